"""One backend per process, the one that was asked for, and the same seed everywhere."""

import gc
import importlib.util
import os
import tempfile

import pytest

WANTED = os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Programs of tests run for milliseconds: XLA takes longer to make them fast. Also of
# the processes that tests start; it is read when TensorFlow or JAX is imported.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
)

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

    # Not with JAX 0.4.38: a step that it took from there left the weights as they were.
    if jax.__version_info__ >= (0, 5):
        _CACHE = tempfile.TemporaryDirectory(prefix="keras_scaled_l2_jax_")
        jax.config.update("jax_compilation_cache_dir", _CACHE.name)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

# The same examples in every run, and no clock: the machine is shared.
settings.register_profile("keras_scaled_l2", derandomize=True, deadline=None)
settings.load_profile("keras_scaled_l2")


ONCE_ON = os.environ.get("ONCE_ON", "tensorflow")
"""Where tests run that say the same on every backend; fastest on torch, then JAX."""
ONCE = {
    "test_answer.py",
    "test_architectures.py",
    "test_atlas.py",
    "test_calibration.py",
    "test_cli.py",
    "test_cli_transfer.py",
    "test_cli_tune.py",
    "test_experiment_remedies.py",
    "test_handles.py",
    "test_interrupts.py",
    "test_naming.py",
    "test_outputs.py",
    "test_page.py",
    "test_evidence_page.py",
    "test_paired.py",
    "test_plane.py",
    "test_plots.py",
    "test_problems.py",
    "test_records.py",
    "test_scaling.py",
    "test_search.py",
    "test_start_checks.py",
    "test_tune_workers.py",
    "test_tuning.py",
    "test_tuning_result.py",
}
"""Files that say the same on every backend: they run on ``ONCE_ON``."""


def pytest_ignore_collect(collection_path) -> bool | None:
    left_out = WANTED != ONCE_ON and collection_path.name in ONCE
    return True if left_out else None


def pytest_collection_modifyitems(config, items) -> None:
    """Leaves tests marked ``once`` to ``ONCE_ON``, or to the backend of the mark."""
    chosen, left_out = [], []
    for item in items:
        mark = item.get_closest_marker("once")
        there = mark is None or (mark.args or [ONCE_ON])[0] == WANTED
        there |= item.get_closest_marker("everywhere") is not None
        (chosen if there else left_out).append(item)
    if left_out:
        items[:] = chosen
        config.hook.pytest_deselected(items=left_out)


def pytest_collection_finish(session) -> None:
    """Leaves what is imported by now out of every garbage collection to come."""
    gc.collect()
    gc.freeze()


def pytest_report_header() -> str:
    left = f"; what is marked once is left to {ONCE_ON} (here: ONCE_ON={WANTED})"
    there = "" if WANTED == ONCE_ON else left
    return f"Keras {keras.__version__} on {keras.config.backend()}{there}"


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
