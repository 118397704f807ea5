"""Small models and data, and a new Python process, for all test files."""

import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
from autodiff import numpy64

ROOT = pathlib.Path(__file__).parents[1]


def data(samples=10, features=4, outputs=1, seed=0):
    """Inputs and targets of a regression, float32."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(samples, features)).astype("float32")
    y = random.normal(size=(samples, outputs)).astype("float32")
    return x, y


def linear(regularizer=None, *, features=4, learning_rate=0.1, **compile_arguments):
    """A compiled linear unit of seeded weights; data as from ``data()``."""
    model = keras.Sequential(
        [
            keras.Input((features,)),
            keras.layers.Dense(
                1,
                kernel_regularizer=regularizer,
                kernel_initializer=keras.initializers.RandomNormal(stddev=1.0, seed=1),
                bias_initializer="ones",
                name="unit",
            ),
        ]
    )
    return compiled(model, learning_rate, **compile_arguments)


def hidden(rule_1=None, rule_2=None, *, build=True):
    """A network of 4-3-1 with a BatchNormalization, not compiled."""
    model = keras.Sequential(
        [
            keras.layers.Dense(3, kernel_regularizer=rule_1, name="first"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dense(1, kernel_regularizer=rule_2, name="second"),
        ]
    )
    if build:
        model.build((None, 4))
    return model


def compiled(model, learning_rate=0.1, loss="mse", **arguments):
    optimizer = keras.optimizers.SGD(learning_rate)
    model.compile(optimizer=optimizer, loss=loss, **arguments)
    return model


def number(tensor):
    """A scalar tensor as a float."""
    return float(numpy64(tensor))


def losses(model):
    """What Keras adds to the model's loss, as a list of floats."""
    return [number(loss) for loss in model.losses]


def run_python(code, *arguments, backend=None, timeout=120):
    """Run code in a new process that warns of nothing; return what it printed.

    Fails with the process's own traceback if it does not end well.
    """
    environment = {
        **os.environ,
        "KERAS_BACKEND": backend or keras.config.backend(),
        "PYTHONPATH": os.pathsep.join([*map(str, _import_roots())]),
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def _import_roots():
    # The package under test, also if it is a copy elsewhere.
    import keras_scaled_l2

    return [pathlib.Path(keras_scaled_l2.__file__).parents[1]]
