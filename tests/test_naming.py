"""Weights of a network that is made again: matched by place, called the same."""

import itertools

import keras
import pytest

from keras_scaled_l2.experiments import compare
from keras_scaled_l2.experiments.architectures import architecture
from keras_scaled_l2.experiments.arrays import checked
from keras_scaled_l2.experiments.naming import paths, plain_config
from keras_scaled_l2.experiments.plan import _layers
from keras_scaled_l2.experiments.problems import Source

L = keras.layers


def problem():
    import numpy as np

    x = np.random.default_rng(0).normal(size=(40, 6, 4, 1))
    arrays = {"x_train": x, "y_train": (x[:, 0, 0, 0] > 0).astype(int)}
    return Source("tiny", checked(arrays, name="tiny")).split(0)


def chain(*layers):
    return keras.Sequential([keras.Input((6, 4, 1)), *layers, L.Flatten(), L.Dense(1)])


def own(name, base=L.Dense, **members):
    """A layer class of any name."""
    return type(name, (base,), members)


def unnamed(self, shape):
    self.w = self.add_weight(shape=(shape[-1], 2))
    self.built = True


def functional(last=L.Dense):
    inputs = keras.Input((6, 4, 1))
    x = L.Flatten()(inputs)
    x = keras.ops.relu(L.Dense(3, activation="relu")(x) + L.Dense(3)(x))
    return keras.Model(inputs, last(1)(x))


def siblings():
    """Two models whose layers bear the same names, one inside the other."""
    inner = keras.Sequential([keras.Input((24,)), L.Dense(3, name="same")])
    x = keras.Input((6, 4, 1))
    other = keras.Sequential([keras.Input((3,)), L.Dense(1, name="same")])
    return keras.Model(x, other(inner(L.Flatten()(x))))


COUNT = itertools.count()

MODELS = {
    "convolutions": lambda: chain(
        L.Conv2D(2, 2, activation="relu"), L.Conv2D(2, 2), L.DepthwiseConv2D(2)
    ),
    "digits": lambda: chain(own("Dense2")(2), own("H264Layer")(2), own("A1B2c3")(2)),
    "underscores": lambda: chain(own("_My_Dense_")(2), own("Dense_1")(2), L.Dense(2)),
    "non-ASCII": lambda: chain(own("Größe")(2), own("密")(2), own("ÜberDense")(2)),
    "a class called like a weight": lambda: chain(own("Kernel")(2), own("Kernel")(2)),
    "wrapped": lambda: chain(
        L.Reshape((6, 4)), L.Bidirectional(L.LSTM(2, return_sequences=True))
    ),
    "names that a user made of Keras's": lambda: chain(
        *(L.Dense(2, name=f"block-{layer.name}") for layer in (L.Dense(1), L.ReLU()))
    ),
    "names that a user counts": lambda: chain(L.Dense(2, name=f"x{next(COUNT)}")),
    "variables without names": lambda: chain(
        own("Bare", L.Layer, build=unnamed, call=lambda self, x: x @ self.w)()
    ),
    "operations called like activations": functional,
    "equal names": siblings,
    "a class called like a data type": lambda: chain(own("Float32")(2)),
}


@pytest.mark.parametrize("what", MODELS)
def test_network_that_is_made_again_has_the_same_names_and_config(what):
    build = architecture(MODELS[what], problem()).build
    first, *others = (build(seed) for seed in (0, 1, 2))
    names = list(paths(first).values())
    assert len(set(names)) == len(first.weights)
    for other in others:
        assert list(paths(other).values()) == names
        assert _layers(other) == _layers(first)


def unstable(what):
    return what in ("names that a user made of Keras's", "names that a user counts")


@pytest.mark.parametrize("what", [w for w in MODELS if not unstable(w)])
def test_built_model_is_named_as_one_that_was_built_before(what):
    made = [MODELS[what](), MODELS[what]()]
    architectures = [architecture(model, problem()) for model in made]
    first, second = (list(paths(a.build(0)).values()) for a in architectures)
    assert first == second


@pytest.mark.parametrize("what", ["convolutions", "names that a user counts"])
def test_compare_trains_a_network_whatever_its_layers_are_called(what):
    options = {"seeds": 2, "epochs": 1, "batch_size": 16, "progress": False}
    first, again = (
        compare(MODELS[what], problem(), ["none", "l2"], **options) for _ in range(2)
    )
    names = {tuple(run.coefficients) for run in first["l2"].runs}
    assert names == {tuple(run.coefficients) for run in again["l2"].runs}
    assert len(names) == 1


def test_names_are_those_that_keras_gives_to_the_first():
    build = architecture(MODELS["convolutions"], problem()).build
    build(0)
    assert [p for p in paths(build(1)).values() if "bias" not in p] == [
        "sequential/conv2d/kernel",
        "sequential/conv2d_1/kernel",
        "sequential/depthwise_conv2d/kernel",
        "sequential/dense/kernel",
    ]


def test_names_that_the_user_gave_stay():
    def make():
        return chain(L.Dense(2, name="hidden_7"), L.Dense(2, name="hidden_9"))

    build = architecture(make, problem()).build
    kernels = [p for p in paths(build(0)).values() if "kernel" in p]
    assert kernels == [
        f"sequential/{name}/kernel" for name in ("hidden_7", "hidden_9", "dense")
    ]


def test_config_distinguishes_networks_but_for_names_and_seeds():
    inputs = keras.Input((6, 4, 1))
    flat = L.Flatten()(inputs)

    def joined(order):
        a, b = L.Dense(3, "relu")(flat), L.Dense(3, "tanh")(flat)
        parts = [a, b] if order else [b, a]
        return keras.Model(inputs, L.Dense(1)(L.Subtract()(parts)))

    assert _layers(joined(True)) == _layers(joined(True))
    assert _layers(joined(True)) != _layers(joined(False))
    assert _layers(functional()) != _layers(functional(own("Other")))
    seeded = [chain(L.Dropout(0.5, seed=seed)) for seed in (1, 2)]
    assert plain_config(seeded[0]) == plain_config(seeded[1])
    rates = [chain(L.Dropout(rate, seed=1)) for rate in (0.5, 0.6)]
    assert plain_config(rates[0]) != plain_config(rates[1])
    types = [chain(L.Dense(2, dtype=dtype)) for dtype in ("float32", "bfloat16")]
    assert plain_config(types[0]) != plain_config(types[1])
