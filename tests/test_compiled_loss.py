"""A model may come compiled with a loss that is not the one that is trained."""

import warnings

import keras
import numpy as np
import pytest

from keras_scaled_l2 import cli
from keras_scaled_l2.experiments.architectures import architecture
from keras_scaled_l2.experiments.arrays import checked
from keras_scaled_l2.experiments.errors import DataWarning
from keras_scaled_l2.experiments.problems import Source

K = keras.losses


def problem(task):
    x = np.random.default_rng(0).normal(size=(80, 6))
    y = {"regression": x[:, 0], "binary": np.arange(80) % 2, "classes": np.arange(80)}
    y = y[task] % 3 if task == "classes" else y[task]
    return Source("tiny", checked({"x_train": x, "y_train": y}, name="tiny")).split(0)


def model(loss, units=1, **options):
    made = keras.Sequential([keras.Input((6,)), keras.layers.Dense(units, name="out")])
    if loss is not None:
        made.compile(loss=loss, **options)
    return made


OTHERS = [
    ("regression", 1, lambda: "mae", "'mae'", "mean squared error"),
    ("regression", 1, K.Huber, "'Huber'", "mean squared error"),
    ("regression", 1, lambda: ["mae"], "'mae'", "mean squared error"),
    ("regression", 1, lambda: K.mean_absolute_error, "'mean_abs", "squared error"),
    ("regression", 1, lambda: K.MeanSquaredError("sum"), "'MeanSq", "plain mean"),
    ("binary", 1, lambda: "hinge", "'hinge'", "binary cross-entropy"),
    ("binary", 1, lambda: "mse", "'mse'", "binary cross-entropy"),
    ("binary", 2, lambda: "binary_crossentropy", "'binary_", "categorical cross"),
    (
        *("classes", 3, lambda: K.CategoricalFocalCrossentropy(from_logits=True)),
        *("'CategoricalFocalCrossentropy'", "categorical cross-entropy"),
    ),
    (
        *("classes", 3, lambda: K.CategoricalCrossentropy(label_smoothing=0.1)),
        *("'CategoricalCrossentropy'", "without label smoothing"),
    ),
]


@pytest.mark.parametrize(("task", "units", "loss", "named", "trained"), OTHERS)
def test_another_loss_is_told(task, units, loss, named, trained):
    data = problem(task)
    for given in (model(loss(), units), lambda: model(loss(), units)):
        with pytest.warns(DataWarning, match="is not used") as found:
            architecture(given, data)
        (said,) = [str(w.message) for w in found if w.category is DataWarning]
        assert f"compiled with loss={named}" in said
        assert trained in said.partition("is trained with")[2]
        assert "\n" not in said


SAME = [
    ("regression", 1, lambda: None),
    ("regression", 1, lambda: "mse"),
    ("regression", 1, lambda: "MSE"),
    ("regression", 1, lambda: ["mse"]),
    ("regression", 1, lambda: {"out": "mean_squared_error"}),
    ("regression", 1, K.MeanSquaredError),
    ("regression", 1, lambda: K.mean_squared_error),
    ("binary", 1, lambda: "binary_crossentropy"),
    ("binary", 1, lambda: K.BinaryCrossentropy(from_logits=True)),
    ("binary", 2, lambda: "sparse_categorical_crossentropy"),
    ("classes", 3, lambda: "categorical_crossentropy"),
    ("classes", 3, lambda: K.SparseCategoricalCrossentropy(from_logits=True)),
]


@pytest.mark.parametrize(("task", "units", "loss"), SAME)
def test_the_loss_that_is_trained_and_none_are_no_matter_to_tell(task, units, loss):
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        architecture(model(loss(), units), problem(task))
        architecture(lambda: model(loss(), units), problem(task))


def test_the_command_says_it_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "ksl_mae.py").write_text(
        "import keras\n"
        "def make():\n"
        "    m = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])\n"
        "    m.compile(loss='mae')\n"
        "    return m\n"
    )
    given = problem("regression").source.arrays
    np.savez(tmp_path / "d.npz", x_train=given.x_train, y_train=given.y_train)
    command = "compare --problem d.npz --model ksl_mae:make --arms none --seeds 1"
    command += " --epochs 1 --quiet --directory out"
    assert cli.main(command.split()) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("keras-scaled-l2: warning: model 'sequential")
