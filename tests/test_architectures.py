"""The networks of a comparison: built in, handed in, named, or from a file."""

import sys
import zipfile

import keras
import numpy as np
import pytest

from keras_scaled_l2 import cli
from keras_scaled_l2.experiments import compare, with_dropout
from keras_scaled_l2.experiments.architectures import (
    architecture,
    convolutional,
    dense,
    initial_weights,
)
from keras_scaled_l2.experiments.arrays import checked
from keras_scaled_l2.experiments.errors import InputError
from keras_scaled_l2.experiments.outputs import gives_probabilities
from keras_scaled_l2.experiments.problems import Source
from keras_scaled_l2.experiments.results.comparison import Comparison
from keras_scaled_l2.experiments.results.files import read_json

L = keras.layers


def problem(shape=(6,), targets=None):
    x = np.random.default_rng(0).normal(size=(80, *shape))
    y = (x.reshape(80, -1)[:, 0] > 0).astype(int)
    if targets is not None:
        y = x.reshape(80, -1) @ np.random.default_rng(1).normal(size=(6, targets))
    return Source("tiny", checked({"x_train": x, "y_train": y}, name="tiny")).split(0)


def small(**options):
    return compare(
        **{
            "problem": problem(),
            "batch_size": 16,
            "arms": ("none",),
            "hidden": (4,),
            "epochs": 1,
            "seeds": 2,
            "progress": False,
            **options,
        }
    )


def chain(outputs=1, activation=None):
    return keras.Sequential(
        [keras.Input((6,)), L.Dense(4, "relu"), L.Dense(outputs, activation)]
    )


def same(first, second):
    pairs = zip(first, second, strict=True)
    return [np.array_equal(one, other) for one, other in pairs]


def test_conv_trains_on_images_and_can_have_dropout():
    images = problem((4, 5, 2))
    network = convolutional(images).build(0)
    assert network.output_shape == (None, 1)
    assert len(with_dropout(network, 0.5).layers) == len(network.layers) + 3
    found = small(
        model="conv",
        problem=images,
        arms=["l2"],
        seeds=1,
        epochs=5,
        learning_rate=0.005,
    )
    assert found.architecture == "conv 4x5x2-32c3-64c3-128-1 (relu, 2x2 pooling)"
    assert len(found["l2"].coefficients) == 4
    [run] = found["l2"].runs
    assert run.final_cost.data < run.starting_cost.data


@pytest.mark.parametrize("shape", [(6,), (4, 4), (3, 8, 1), (8, 3, 1)])
def test_conv_is_refused_for_what_is_no_image(shape):
    with pytest.raises(InputError, match="needs images") as error:
        small(model="conv", problem=problem(shape))
    assert "Use 'dense'" in str(error.value)


@pytest.mark.parametrize("make", [dense, convolutional])
def test_seed_gives_the_weights(make):
    build = make(problem((4, 4, 1))).build
    first, again, other = (initial_weights(build(seed)) for seed in (0, 0, 1))
    assert all(same(first, again))
    kernels = [w.ndim > 1 for w in first]
    assert [not s for s in same(first, other)] == kernels


@pytest.mark.parametrize("model", ["chain", "shared"])
def test_built_model_is_drawn_anew_by_seed_and_left_alone(model):
    model = chain() if model == "chain" else residual()
    before = initial_weights(model)
    build = architecture(model, problem()).build
    first, again, other = (initial_weights(build(seed)) for seed in (0, 0, 1))
    assert all(same(first, again))
    assert not all(same(first, other))
    assert not all(same(first, before))
    found = small(model=model, arms=["none", "l2"], epochs=2)
    assert found.architecture == model.name
    assert all(same(initial_weights(model), before))
    assert all(v.regularizer is None for v in model.trainable_weights)
    assert not model.compiled


def residual():
    """A graph as users write them: + and functions between the layers."""
    inputs = keras.Input((6,))
    x = L.Dense(6, activation="relu")(inputs) + inputs
    x = keras.ops.relu(L.Dense(5)(x))
    return keras.Model(inputs, L.Dense(1)(x))


def test_operations_between_layers_are_no_obstacle():
    model = residual()
    variant = with_dropout(model, 0.5)
    added = [x.name for x in variant.layers if isinstance(x, L.Dropout)]
    assert len(added) == 2
    data = np.random.default_rng(0).normal(size=(7, 6)).astype("float32")
    np.testing.assert_array_equal(
        *(keras.ops.convert_to_numpy(m(data, training=False)) for m in (model, variant))
    )
    dropped = keras.ops.convert_to_numpy(variant(data, training=True))
    assert np.any(dropped != keras.ops.convert_to_numpy(model(data)))
    where = with_dropout(model, 0.5, where=lambda layer: layer.units == 5)
    assert sum(isinstance(x, L.Dropout) for x in where.layers) == 1
    found = small(model=residual, arms=["none", "dropout"], dropout=0.0)
    none, dropout = found.arms
    for one, other in zip(none.runs, dropout.runs, strict=True):
        assert (one.test, one.curves) == (other.test, other.curves)


class Subclassed(keras.Model):
    def __init__(self, units):
        super().__init__()
        self.first, self.last = L.Dense(units, activation="relu"), L.Dense(1)

    def call(self, inputs):
        return self.last(self.first(inputs))


def subclassed():
    model = Subclassed(4)
    model(np.zeros((1, 6), "float32"))
    return model


def test_subclassed_model_is_refused_with_what_works():
    with pytest.raises(InputError, match="hand in a function that makes it") as error:
        small(model=subclassed())
    assert "\n" not in str(error.value)
    found = small(model=subclassed, arms=["none", "l2"])
    assert len({run.starting_cost.data for run in found["none"].runs}) == 2


def test_compiled_and_trained_model_is_like_any_other():
    def make():
        model = chain()
        loss = keras.losses.BinaryCrossentropy(from_logits=True)
        model.compile("adam", loss, metrics=["mae"])
        model.fit(np.ones((4, 6)), np.ones(4), verbose=0)
        return model

    assert small(model=make)["none"].runs[0].test.data_loss > 0
    assert small(model=make())["none"].runs[0].test.data_loss > 0


MODULE = """
import keras
def make():
    return keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(3, "tanh"), keras.layers.Dense(1)]
    )
number = 3
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current directory, with modules beside the user."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "kslnets.py").write_text(MODULE)
    (tmp_path / "kslbad.py").write_text("def make(:\n")
    (tmp_path / "kslraises.py").write_text("raise RuntimeError('not today')\n")
    (tmp_path / "kslexits.py").write_text("import sys\nsys.exit(0)\n")
    (tmp_path / "kslleaves.py").write_text("def make():\n    raise SystemExit(3)\n")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("kslnets:nothing", "is not found"),
        ("kslnets:number", "is no function: 3"),
        ("kslnowhere:make", "is not found"),
        (":make", "is not found"),
        ("kslnets:", "is not found"),
        ("kslbad:make", "invalid syntax"),
        ("kslraises:make", "not today"),
        ("kslexits:make", r"ends the program with sys.exit\(0\)"),
        ("kslleaves:make", "failed: SystemExit: 3"),
    ],
)
@pytest.mark.usefixtures("here")
def test_function_that_cannot_be_used_is_one_line(name, expected):
    with pytest.raises(InputError, match=expected) as error:
        small(model=name)
    assert "\n" not in str(error.value)


def test_command_takes_a_function_of_a_module_beside_the_user(here):
    np.savez(here / "d.npz", x_train=problem().x_train, y_train=problem().y_train)
    options = "--problem d.npz --arms none,dropout --seeds 1 --epochs 1 --quiet"
    names = ["kslnets:make", "saved.keras"]
    chain().save(here / "saved.keras")
    for name in names:
        folder = f"out-{name[:3]}"
        arguments = [*options.split(), "--model", name, "--directory", folder]
        assert cli.main(["compare", *arguments]) == 0
        found = Comparison.from_dict(read_json(here / folder / "comparison.json"))
        assert found.architecture == name
        assert len(found["dropout"].runs) == 1


def test_file_is_drawn_anew_by_seed(tmp_path):
    path = tmp_path / "net.keras"
    model = chain()
    model.save(path)
    for name in (str(path), path):
        build = architecture(name, problem()).build
        first, again, other = (initial_weights(build(seed)) for seed in (0, 0, 1))
        assert all(same(first, again))
        assert not all(same(first, other))
        assert not all(same(first, initial_weights(model)))


@pytest.mark.parametrize("damage", ["text", "half", "empty zip", "bit"])
def test_damaged_file_is_one_line(damage, tmp_path):
    path = tmp_path / "net.keras"
    chain().save(path)
    whole = path.read_bytes()
    place = whole.index(b"config.json") + 60
    if damage == "empty zip":
        with zipfile.ZipFile(path, "w"):
            pass
    else:
        flipped = whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :]
        new = {"text": b"text", "half": whole[: len(whole) // 2], "bit": flipped}
        path.write_bytes(new[damage])
    with pytest.raises(InputError, match="cannot be read") as error:
        small(model=str(path))
    assert "\n" not in str(error.value)


def late_merge(activation):
    """A graph whose output layer is not the last in ``model.layers``."""
    inputs = keras.Input((6,))
    shared = L.Dense(6, activation=activation, name="shared")
    x = shared(inputs)
    for i in range(2):
        x = L.Dense(6, activation="tanh" if activation else "sigmoid", name=f"x{i}")(x)
    model = keras.Model(inputs, shared(x))
    assert model.layers[-1] is not shared
    return model


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (chain, False),
        (lambda: chain(1, "sigmoid"), True),
        (lambda: chain(3, "softmax"), True),
        (lambda: chain(1, "tanh"), False),
        # The output layer was called before the others too, and comes first.
        (lambda: late_merge("sigmoid"), True),
        (lambda: late_merge(None), False),
        (lambda: keras.Sequential([chain(3), L.Softmax()]), True),
        (lambda: keras.Sequential([chain(3), L.Activation("softmax")]), True),
        (lambda: keras.Sequential([keras.Input((6,)), chain(1, "sigmoid")]), True),
        (lambda: keras.Sequential([chain(4, "sigmoid"), L.Dense(1)]), False),
        (lambda: keras.Sequential([chain(1, "sigmoid"), L.Reshape((1,))]), True),
        (lambda: functional(keras.ops.sigmoid), True),
        (lambda: functional(keras.activations.softmax), True),
        (lambda: functional(keras.ops.tanh), False),
        (lambda: functional(lambda x: x + 1.0), False),
        (lambda: functional(chain_of(3)), False),
    ],
)
def test_last_activation_tells_probabilities_from_logits(make, expected):
    assert gives_probabilities(make(), problem()) is expected


def functional(last):
    inputs = keras.Input((6,))
    return keras.Model(inputs, last(L.Dense(3, activation="relu")(inputs)))


def chain_of(features):
    return keras.Sequential([keras.Input((features,)), L.Dense(1)])


def test_probabilities_and_logits_of_one_network_give_the_same_losses():
    logits = small(model=chain, epochs=3)
    inputs = keras.Input((6,))

    def probabilities():
        x = L.Dense(4, activation="relu")(inputs)
        return keras.Model(inputs, keras.ops.sigmoid(L.Dense(1)(x)))

    for one, other in zip(
        logits["none"].runs,
        small(model=probabilities, epochs=3)["none"].runs,
        strict=True,
    ):
        assert other.test.data_loss == pytest.approx(one.test.data_loss, rel=1e-4)
        assert other.test.accuracy == one.test.accuracy
        calibration = one.test.calibration_error
        assert other.test.calibration_error == pytest.approx(calibration, rel=1e-3)


@pytest.mark.parametrize("activation", ["softmax", None])
def test_two_outputs_answer_a_problem_of_two_classes(activation):
    found = small(
        model=lambda: chain(2, activation),
        epochs=8,
        arms=["none", "l2", "dropout"],
        learning_rate=0.1,
    )
    assert found.task == "classes"
    for run in found["none"].runs:
        assert run.starting_cost.data == pytest.approx(np.log(2), abs=0.6)
        assert run.train.data_loss < 0.7 * run.starting_cost.data
        assert run.test.calibration_error is not None


def open_images():
    """Takes images of any size, as many published networks do."""
    inputs = keras.Input((None, None, 2))
    x = L.Conv2D(3, 2, activation="relu")(inputs)
    return keras.Model(inputs, L.Dense(1)(L.GlobalAveragePooling2D()(x)))


def recurrent():
    inputs = keras.Input((None, 2))
    x = L.SimpleRNN(3, return_sequences=True)(inputs)
    return keras.Model(inputs, L.Dense(1)(L.SimpleRNN(2)(x)))


@pytest.mark.parametrize(
    ("make", "shape", "handed", "arms"),
    [
        (open_images, (4, 5, 2), "function", ["none", "l2", "dropout"]),
        (open_images, (4, 5, 2), "model", ["none", "dropout"]),
        (recurrent, (4, 2), "model", ["none", "dropout"]),
    ],
)
def test_shapes_that_a_network_leaves_open_are_told_by_the_data(
    make, shape, handed, arms
):
    model = make if handed == "function" else make()
    found = small(model=model, problem=problem(shape), arms=arms, seeds=1)
    losses = {arm.name: arm.runs[0].test.data_loss for arm in found.arms}
    assert all(0 < loss < 2 for loss in losses.values())
    assert losses["none"] != losses["dropout"]


@pytest.mark.parametrize("shape", [(4, 5, 3), (4, 2), (4, 5, 2, 1)])
def test_shapes_that_do_not_fit_are_refused(shape):
    with pytest.raises(InputError, match="takes inputs of shape"):
        small(model=open_images, problem=problem(shape))


@pytest.mark.parametrize(
    ("model", "targets", "arms"),
    [
        ("dense", 3, ["none", "dropout"]),
        ("function", 3, ["none"]),
        ("dense", 1, ["none"]),
    ],
)
def test_regression_with_several_targets(model, targets, arms):
    given = "dense" if model == "dense" else lambda: chain(targets)
    found = small(
        model=given,
        problem=problem(targets=targets),
        arms=arms,
        epochs=40,
        learning_rate=0.02,
        seeds=1,
    )
    for arm in found.arms:
        run = arm.runs[0]
        assert run.test.accuracy is run.test.calibration_error is None
    run = found["none"].runs[0]
    assert run.train.data_loss < run.starting_cost.data / 2
    wrong = chain(targets + 1)
    with pytest.raises(InputError, match=r"\(regression\) needs"):
        small(model=wrong, problem=problem(targets=targets))
