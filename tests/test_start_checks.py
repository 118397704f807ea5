"""What is said before training of data that a network cannot start from."""

import math
import warnings

import keras
import numpy as np
import pytest

from keras_scaled_l2 import cli
from keras_scaled_l2.experiments import compare, load_problem
from keras_scaled_l2.experiments.architectures import dense
from keras_scaled_l2.experiments.arrays import checked
from keras_scaled_l2.experiments.errors import DataWarning, InputError
from keras_scaled_l2.experiments.outputs import (
    gives_probabilities,
    network_outputs,
)
from keras_scaled_l2.experiments.problems import Source
from keras_scaled_l2.experiments.start_checks import (
    _guess,
    _loss,
    check_start,
)

L = keras.layers


def problem(x=None, y=None, standardize=False):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, size=(80, 6, 6, 1)) if x is None else x
    y = np.arange(80) % 2 if y is None else y
    arrays = checked({"x_train": x, "y_train": y}, name="mine")
    return Source("mine", arrays, standardize).split(0)


def network(*first, outputs=1, activation=None):
    layers = [*first, L.Flatten(), L.Dense(32, "relu"), L.Dense(outputs, activation)]
    return keras.Sequential([keras.Input((6, 6, 1)), *layers])


def test_raw_pixels_are_told_with_the_remedy_and_the_remedy_helps():
    with pytest.warns(DataWarning, match="0 to 255: before the first step") as found:
        check_start(network(), problem())
    (said,) = [str(w.message) for w in found if w.category is DataWarning]
    assert "--standardize (load_problem(..., standardize=True))" in said
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        check_start(network(), problem(standardize=True))


@pytest.mark.parametrize("first", [lambda: L.Rescaling(1 / 255), L.BatchNormalization])
@pytest.mark.filterwarnings("error::keras_scaled_l2.experiments.errors.DataWarning")
def test_network_that_scales_its_inputs_itself_is_no_matter_to_tell(first):
    check_start(network(first()), problem())


@pytest.mark.parametrize("name", ["digits", "breast-cancer", "mnist5k"])
@pytest.mark.filterwarnings("error::keras_scaled_l2.experiments.errors.DataWarning")
def test_problems_that_come_along_are_no_matter_to_tell(name):
    data = load_problem(name)
    check_start(dense(data).build(0), data)


def test_large_targets_are_told():
    x = np.random.default_rng(0).normal(size=(80, 6, 6, 1))
    y = 1000 * x[:, 0, 0, 0] + 5000
    with pytest.warns(DataWarning, match=r"targets of 'mine' range from .*\(y - y.mea"):
        check_start(network(), problem(x, y))
    scaled = eval("(y - y.mean()) / y.std()", {"y": y})
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        check_start(network(), problem(x, scaled))


def test_loss_that_is_not_finite_is_refused_before_the_first_step():
    x = np.full((80, 6, 6, 1), 3e38) * np.sign(np.arange(36).reshape(6, 6, 1) - 18)
    with pytest.raises(InputError, match=r"3e\+38, and the outputs .* NaN") as error:
        check_start(network(), problem(x))
    assert "--standardize" in str(error.value)
    broken = network(L.Rescaling(math.nan))
    with pytest.raises(InputError, match="what its layers do") as error:
        check_start(broken, problem(np.ones((80, 6, 6, 1))))
    assert "--standardize" not in str(error.value)


def test_network_that_does_not_take_the_examples_is_one_line():
    inputs = keras.Input((None, None, 1))
    model = keras.Model(inputs, L.Dense(1)(L.Reshape((35,))(inputs)))
    with pytest.raises(InputError, match=r"examples of shape \(6, 6, 1\)") as error:
        check_start(model, problem())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("outputs", "activation", "y", "loss"),
    [
        (1, None, np.arange(80) % 2, keras.losses.BinaryCrossentropy(True)),
        (1, "sigmoid", np.arange(80) % 2, keras.losses.BinaryCrossentropy()),
        (3, None, np.arange(80) % 3, keras.losses.SparseCategoricalCrossentropy(True)),
        (3, "softmax", np.arange(80) % 3, keras.losses.SparseCategoricalCrossentropy()),
        (1, None, np.linspace(0, 1, 80), keras.losses.MeanSquaredError()),
        (
            2,
            None,
            np.random.default_rng(0).normal(size=(80, 2)),
            keras.losses.MeanSquaredError(),
        ),
    ],
)
def test_loss_is_that_of_keras(outputs, activation, y, loss):
    x = np.random.default_rng(1).normal(size=(80, 6, 6, 1))
    data, model = problem(x, y), network(outputs=outputs, activation=activation)
    found = network_outputs(model, data.x_train, training=True)
    labels = data.y_train if outputs > 1 else data.y_train[:, None]
    expected = float(keras.ops.convert_to_numpy(loss(labels, found.astype("float32"))))
    got = _loss(data, found, data.y_train, gives_probabilities(model, data))
    assert got == pytest.approx(expected, rel=1e-5)


def test_guessing_has_the_entropy_of_the_classes_and_the_variance_of_targets():
    x = np.zeros((80, 6, 6, 1))
    y = np.repeat([0, 1, 2, 2], 20)
    entropy = -(2 * 0.25 * math.log(0.25) + 0.5 * math.log(0.5))
    assert _guess(problem(x, y)) == pytest.approx(entropy, rel=1e-12)
    data = problem(x, np.linspace(0, 1, 80))
    assert _guess(data) == pytest.approx(np.var(data.y_train), rel=1e-6)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_float16_is_refused_since_nothing_scales_its_loss(policy):
    inputs = keras.Input((6, 6, 1))
    x = L.Dense(4, "relu", dtype=policy, name="half")(L.Flatten()(inputs))
    model = keras.Model(inputs, L.Dense(3)(x))
    if policy == "mixed_bfloat16":
        check_start(model, problem(standardize=True))
        return
    with pytest.raises(InputError, match=r"layer 'half'.*float16.*mixed_bfloat16"):
        check_start(model, problem(standardize=True))


def test_network_is_left_as_it_was():
    model = network(L.BatchNormalization(), L.Dropout(0.5))
    before = [np.array(keras.ops.convert_to_numpy(v.value)) for v in model.variables]
    check_start(model, problem(standardize=True))
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable.value), value)


def test_compare_and_the_command_say_it_before_training(tmp_path, capsys):
    given = problem().source.arrays
    path = tmp_path / "raw.npz"
    np.savez(path, x_train=given.x_train, y_train=given.y_train)
    options = {"arms": ["none"], "seeds": 1, "epochs": 1, "hidden": (4,)}
    with pytest.warns(DataWarning, match="before the first step") as told:
        compare("dense", path, **options, progress=False)
    assert [w.filename for w in told if w.category is DataWarning] == [__file__]
    command = f"compare --problem {path} --arms none --seeds 1 --epochs 1 --hidden 4"
    command = [*command.split(), "--quiet", "--directory"]
    assert cli.main([*command, f"{tmp_path}/raw"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("keras-scaled-l2: warning: features of ")
    assert cli.main([*command, f"{tmp_path}/scaled", "--standardize"]) == 0
    assert capsys.readouterr().err == ""
