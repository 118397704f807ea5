"""One backend per process, the one that was asked for, and the same seed everywhere."""

import importlib.util
import os
import tempfile

import pytest

WANTED = os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

if importlib.util.find_spec(WANTED) is None:
    # Never a skip: a suite that is green because nothing ran proves nothing.
    raise pytest.UsageError(
        f"KERAS_BACKEND={WANTED}, and no package of that name is installed here: "
        f"pip install '.[{WANTED}]', or set KERAS_BACKEND to another backend."
    )

import keras  # noqa: E402  (Keras reads KERAS_BACKEND when it is imported)
from hypothesis import settings  # noqa: E402

if keras.config.backend() != WANTED:
    raise pytest.UsageError(
        f"KERAS_BACKEND={WANTED}, but Keras runs on {keras.config.backend()}: "
        "something imported Keras before tests/conftest.py could choose."
    )

if WANTED == "jax":
    # Many tests compile what another one has compiled: a third of their time. Of this
    # process alone: one that is killed by a test might leave a part of an entry.
    import jax

    _CACHE = tempfile.TemporaryDirectory(prefix="keras_scaled_l2_jax_")
    jax.config.update("jax_compilation_cache_dir", _CACHE.name)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

# The same examples in every run, and no clock: the machine is shared.
settings.register_profile("keras_scaled_l2", derandomize=True, deadline=None)
settings.load_profile("keras_scaled_l2")


def pytest_report_header() -> str:
    return f"Keras {keras.__version__} on {keras.config.backend()}"


@pytest.fixture(autouse=True)
def fixed_seeds():
    keras.utils.set_random_seed(20240229)


@pytest.fixture
def float64():
    """Keras in double precision for the time of one test."""
    from autodiff import with_float64

    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    with with_float64():
        yield
    keras.config.set_floatx(before)
