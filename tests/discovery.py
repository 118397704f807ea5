"""All rules and all Keras layers that take regularizers, found, not listed."""

import collections
import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from autodiff import numpy64
from keras import layers
from reference import COEFFICIENTS

import keras_scaled_l2

# Names load when they are asked for: vars() has only those that somebody asked for.
_EXPORTED = [getattr(keras_scaled_l2, name) for name in sorted(keras_scaled_l2.__all__)]
RULES = [
    exported
    for exported in _EXPORTED
    if isinstance(exported, type) and issubclass(exported, keras.Regularizer)
]
assert len(RULES) >= 4, f"rules are not found any more: {RULES}"
COUNTS = {
    "samples": 40,
    "batch_size": 8,
    "learning_rate": 0.1,
    "momentum": 0.0,
    "layer_weights": 12,
    "model_weights": 30,
}


def some_rules():
    """Every exported rule once, resolved; a string option of it once for each value."""
    for rule_class in RULES:
        # The first argument is the strength, whatever its name; not 1, which hides
        # a wrong power.
        yield rule_class(0.5).resolve(COUNTS)
        if "per" in inspect.signature(rule_class).parameters:
            for per in ("layer", "model"):
                yield rule_class(0.5, per=per).resolve(COUNTS)


def rule_name(rule):
    """A short name for a test."""
    return "-".join([type(rule).__name__, *filter(None, [getattr(rule, "per", None)])])


SOME_RULES = list(some_rules())
every_rule = pytest.mark.parametrize("rule", SOME_RULES, ids=rule_name)
# A rule sees a shape, a fan-in and counts, and all rules share the code that tells them
# these: one that takes the fan-in and one that takes a count stand for all.
telling_rule = pytest.mark.parametrize(
    "rule",
    [r for r in SOME_RULES if rule_name(r) in ("PriorL2", "ScaledL2-model")],
    ids=rule_name,
)


def expected_coefficient(rule, shape, *, fan_in=None, layer=None, model=None):
    """The reference's coefficient, with counts that the package did not make."""
    config = rule.get_config()
    if config.get("per") in ("layer", "model"):
        config["inferred_per"] = layer if config["per"] == "layer" else model
    if "fan_in" in config and config["fan_in"] is None and fan_in is not None:
        config["fan_in"] = fan_in
    return COEFFICIENTS[type(rule).__name__](config, shape)


def layers_with_regularizers():
    """Keras's layers with a ``..._regularizer`` for a weight -> these arguments."""
    found = {}
    for name, layer in sorted(vars(layers).items()):
        if not (isinstance(layer, type) and issubclass(layer, keras.Layer)):
            continue
        arguments = [
            argument
            for argument in inspect.signature(layer).parameters
            if argument.endswith("_regularizer") and argument != "activity_regularizer"
        ]
        # Conv2D is Convolution2D too.
        if arguments and layer not in [getattr(layers, other) for other in found]:
            found[name] = arguments
    return found


LAYERS = layers_with_regularizers()


def _call(layer, inputs):
    return layer(inputs)


def _attend_to_itself(layer, inputs):
    return layer(inputs, inputs)


def _run(cell, inputs):
    return layers.RNN(cell)(inputs)


@dataclasses.dataclass(frozen=True)
class Case:
    """How to make a layer, and the fan-in of each of its weights by its definition."""

    arguments: dict[str, Any]
    input_shape: tuple[int, ...]
    fan_in: dict[str, float]
    """Name of each weight (``layer/weight`` within attention) -> inputs of a unit."""
    call: Callable = _call
    dtype: str = "float32"


def case_of(name):
    """The case of a layer; a layer without one is an error, never a skip."""
    if name not in CASES:
        pytest.fail(
            f"keras.layers.{name} takes {LAYERS[name]} and has no case: add its "
            "constructor arguments, input shape and fan-ins to CASES in "
            "tests/discovery.py."
        )
    return CASES[name]


_GATES = {"SimpleRNN": 1, "GRU": 3, "LSTM": 4}
_RECURRENT = {
    # 3 units see 5 features and their own 3 states; each gate is a unit of its own.
    f"{name}{cell}": Case(
        {"units": 3},
        (2, 5),
        {"kernel": 5, "recurrent_kernel": 3, "bias": 1},
        _run if cell else _call,
    )
    for name in _GATES
    for cell in ("", "Cell")
}
_CONVOLUTIONS = {
    # Windows of 2 in each direction, 4 channels.
    f"Conv{n}D": Case(
        {"filters": 3, "kernel_size": 2},
        (4,) * n + (4,),
        {"kernel": 2**n * 4, "bias": 1},
    )
    for n in (1, 2, 3)
}
_TRANSPOSED = {
    # A window of 4 at a stride of 2 leaves 2 inputs in each direction to an output.
    f"Conv{n}DTranspose": Case(
        {"filters": 3, "kernel_size": 4, "strides": 2},
        (3,) * n + (5,),
        {"kernel": 2**n * 5, "bias": 1},
    )
    for n in (1, 2, 3)
}
_CONV_LSTM = {
    f"ConvLSTM{n}D": Case(
        {"filters": 2, "kernel_size": 2, "padding": "same"},
        (2, *(3,) * n, 4),
        {"kernel": 2**n * 4, "recurrent_kernel": 2**n * 2, "bias": 1},
    )
    for n in (1, 2, 3)
}
_DEPTHWISE = {
    f"DepthwiseConv{n}D": Case(
        {"kernel_size": 3, "depth_multiplier": 2},
        (4,) * n + (5,),
        {"kernel": 3**n, "bias": 1},
    )
    for n in (1, 2)
}
_SEPARABLE = {
    # 5 channels become 10 through windows of 3, then 4 through windows of 1.
    f"SeparableConv{n}D": Case(
        {"filters": 4, "kernel_size": 3, "depth_multiplier": 2},
        (4,) * n + (5,),
        {"depthwise_kernel": 3**n, "pointwise_kernel": 10, "bias": 1},
    )
    for n in (1, 2)
}
_NORMALIZATION = Case({}, (3, 4), {"gamma": 1, "beta": 1})

CASES = {
    **_RECURRENT,
    **_CONVOLUTIONS,
    **_TRANSPOSED,
    **_CONV_LSTM,
    **_DEPTHWISE,
    **_SEPARABLE,
    "Dense": Case({"units": 3}, (5,), {"kernel": 5, "bias": 1}),
    "EinsumDense": Case(
        # 6 units, in 2 groups of 3, each sums the 4 x 5 that the equation sums.
        {"equation": "abc,bcde->ade", "output_shape": (2, 3), "bias_axes": "de"},
        (4, 5),
        {"kernel": 20, "bias": 1},
    ),
    "Embedding": Case(
        {"input_dim": 7, "output_dim": 3}, (4,), {"embeddings": 1}, dtype="int32"
    ),
    "ReversibleEmbedding": Case(
        {"input_dim": 7, "output_dim": 3}, (4,), {"embeddings": 1}, dtype="int32"
    ),
    "MultiHeadAttention": Case(
        {"num_heads": 2, "key_dim": 3},
        (4, 5),
        {
            **{
                f"{part}/{weight}": inputs
                for part in ("query", "key", "value")
                for weight, inputs in (("kernel", 5), ("bias", 1))
            },
            "attention_output/kernel": 2 * 3,
            "attention_output/bias": 1,
        },
        _attend_to_itself,
    ),
    "GroupQueryAttention": Case(
        {"head_dim": 3, "num_query_heads": 4, "num_key_value_heads": 2},
        (4, 5),
        {
            **{
                f"{part}/{weight}": inputs
                for part in ("query", "key", "value")
                for weight, inputs in (("kernel", 5), ("bias", 1))
            },
            "attention_output/kernel": 4 * 3,
            "attention_output/bias": 1,
        },
        _attend_to_itself,
    ),
    "BatchNormalization": _NORMALIZATION,
    "LayerNormalization": _NORMALIZATION,
    "GroupNormalization": dataclasses.replace(_NORMALIZATION, arguments={"groups": 2}),
    "PReLU": Case({}, (3, 4), {"alpha": 1}),
}


def model_of(name, regularizer=None, which=None):
    """A functional model of one layer, its weights seeded and all different from 0.

    Args:
        name: Name of the layer.
        regularizer: For all of the layer's arguments that take one.
        which: Only for these arguments.
    """
    case = case_of(name)
    layer_class = getattr(layers, name)
    arguments = {
        # The values are set below; JAX compiles every random initializer anew.
        **{
            argument: "zeros"
            for argument in inspect.signature(layer_class).parameters
            if argument.endswith("_initializer")
        },
        **dict.fromkeys(LAYERS[name] if which is None else which, regularizer),
        **case.arguments,
    }
    layer = layer_class(**arguments, name=f"a_{name}")
    inputs = keras.Input(case.input_shape, dtype=case.dtype)
    model = keras.Model(inputs, case.call(layer, inputs))
    randomize(model)
    return model


def randomize(model, seed=7):
    """Give every trainable weight values that no initializer favors."""
    random = np.random.default_rng(seed)
    for variable in model.trainable_weights:
        variable.assign(random.normal(size=tuple(variable.shape)))


def name_in_case(variable):
    """The layer that a variable is of, and its key in the case's table of fan-ins."""
    parts = variable.path.split("/")
    [name] = [part[2:] for part in parts if part.startswith("a_")]
    within = parts[-2:] if name.endswith("Attention") else parts[-1:]
    return name, "/".join(within)


def expected_coefficients(rule, chosen):
    """Path of each chosen variable -> coefficient, by the reference and the cases."""
    layers_of = {v.path: name_in_case(v) for v in chosen}
    by_layer = collections.Counter()
    for variable in chosen:
        by_layer[layers_of[variable.path][0]] += math.prod(variable.shape)
    return {
        v.path: expected_coefficient(
            rule,
            tuple(v.shape),
            fan_in=case_of(layers_of[v.path][0]).fan_in[layers_of[v.path][1]],
            layer=by_layer[layers_of[v.path][0]],
            model=by_layer.total(),
        )
        for v in chosen
    }


def values(variables):
    """Path -> value in float64."""
    return {v.path: numpy64(v) for v in variables}
