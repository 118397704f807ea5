"""Networks of one kind and any width."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import keras

from keras_scaled_l2.counts import elements
from keras_scaled_l2.experiments import architectures
from keras_scaled_l2.experiments.architectures import Architecture
from keras_scaled_l2.experiments.errors import InputError, unknown
from keras_scaled_l2.experiments.plan import check_count
from keras_scaled_l2.experiments.problems import Problem
from keras_scaled_l2.experiments.room import check_weights

NAMES = ("dense", "conv", "residual")
WIDEST = 100_000
BLOCKS = 2
"""Blocks of the residual network, each of two convolutions."""
STATISTICS_MOMENTUM = 0.9
"""Of the residual network's batch normalization.

Keras's 0.99 needs more steps than a short training has: the means lag behind, the more
so where a penalty shrinks the weights, and a validation loss is that of the lag.
"""

Family = str | Callable[[int], keras.Model]
"""One of ``NAMES``, ``"module:function"``, or a function of a width."""


@dataclasses.dataclass(frozen=True)
class Member:
    """A network of a family, made of seed 0, with its number of trainable weights."""

    width: int
    weights: int
    architecture: Architecture
    network: keras.Model


def member(family: Family, problem: Problem, width: int) -> Member:
    """The network of a width.

    ``dense``: two hidden layers of ``width`` units. ``conv``: that of ``compare`` with
    ``width`` and twice as many filters and four times as many units. ``residual``: a
    convolution of ``width`` filters, two blocks of two convolutions with batch
    normalization around which the input is added, and the mean over all places.

    Raises:
        InputError: If there is no such family, or it does not fit the problem.
    """
    width = check_count("width", width)
    if isinstance(family, str) and family in NAMES:
        inputs = problem.x_train.shape[1:]
        # What is no image is refused by the architecture.
        if family == "dense" or len(inputs) == 3:
            weights = _weights(family, inputs, problem.outputs, width)
            check_weights(f"width {width}", weights, "Give smaller networks.")
    found = _architecture(family, problem, width)
    network = found.build(0)
    weights = sum(elements(v.shape) for v in network.trainable_weights)
    return Member(width, weights, found, network)


def width_for(family: Family, problem: Problem, weights: int) -> int:
    """The width whose network has about so many trainable weights.

    Raises:
        InputError: If the family is a function of the user's, whose widths have to be
            given, or the number is less than that of a network of width 1.
    """
    weights = check_count("size", weights)
    if not isinstance(family, str) or ":" in family:
        raise InputError(
            f"sizes for the model {family!r}: expected widths, since nobody knows how "
            "many weights it has by width. Use widths=[...] (--widths 16,32)."
        )
    # It refuses what is no family, or does not fit the problem.
    _architecture(family, problem, 1)
    inputs, outputs = problem.x_train.shape[1:], problem.outputs
    low, high = 1, WIDEST
    least = _weights(family, inputs, outputs, 1)
    if least > 1.5 * weights:
        raise InputError(
            f"size {weights}: {family!r} has {least} weights at width 1. Expected a "
            "larger size."
        )
    while high - low > 1:
        middle = (low + high) // 2
        if _weights(family, inputs, outputs, middle) <= weights:
            low = middle
        else:
            high = middle
    return min(
        (low, high),
        key=lambda w: abs(_weights(family, inputs, outputs, w) - weights),
    )


def _weights(family: str, inputs: tuple[int, ...], outputs: int, n: int) -> int:
    """Trainable weights by width, as ``member`` makes them."""
    if family == "dense":
        return (math.prod(inputs) + n + outputs + 2) * n + outputs
    channels = inputs[-1]
    if family == "conv":
        flat = (inputs[0] // 4) * (inputs[1] // 4) * 2 * n
        first = (9 * channels + 1) * n + (9 * n + 1) * 2 * n
        return first + (flat + 1) * 4 * n + (4 * n + 1) * outputs
    convolutions = 9 * channels * n + 2 * BLOCKS * 9 * n * n
    return convolutions + (2 * BLOCKS + 1) * 2 * n + (n + 1) * outputs


def _architecture(family: Family, problem: Problem, width: int) -> Architecture:
    if family == "dense":
        return architectures.dense(problem, (width, width))
    if family in NAMES:
        # It refuses what is no image.
        found = architectures.convolutional(problem, width, name=family)
        return found if family == "conv" else _residual(problem, width)
    if isinstance(family, str):
        if ":" not in family:
            raise unknown("model", family, [*NAMES, "module:function"])
        function = architectures.find_function(family)
        return _of_function(function, problem, width, family)
    if not callable(family):
        raise InputError(
            f"model {family!r}: expected one of {', '.join(NAMES)}, 'module:function' "
            "or a function of a width."
        )
    return _of_function(family, problem, width, getattr(family, "__name__", "model"))


def _of_function(
    function: Callable[[int], keras.Model], problem: Problem, width: int, name: str
) -> Architecture:
    return architectures.from_function(
        lambda: function(width), problem, name=f"{name}({width})"
    )


def _residual(problem: Problem, width: int) -> Architecture:
    shape, layers = problem.x_train.shape[1:], keras.layers

    def build(seed: int) -> keras.Model:
        seeds = iter(architectures.layer_seeds(seed, 2 * BLOCKS + 2))

        def convolution(x: Any, name: str) -> Any:
            x = layers.Conv2D(
                width,
                3,
                padding="same",
                use_bias=False,
                kernel_initializer=keras.initializers.HeNormal(seed=next(seeds)),
                name=name,
            )(x)
            normalize = layers.BatchNormalization(
                momentum=STATISTICS_MOMENTUM, name=f"{name}_normalization"
            )
            return normalize(x)

        inputs = keras.Input(shape, name="features")
        x = layers.ReLU(name="relu_0")(convolution(inputs, "convolution_0"))
        x = layers.MaxPooling2D(name="pooling_0")(x)
        for block in range(1, BLOCKS + 1):
            y = convolution(x, f"convolution_{block}a")
            y = convolution(layers.ReLU(name=f"relu_{block}a")(y), f"block_{block}b")
            x = layers.ReLU(name=f"relu_{block}")(
                layers.Add(name=f"add_{block}")([x, y])
            )
            if block < BLOCKS:
                x = layers.MaxPooling2D(name=f"pooling_{block}")(x)
        x = layers.GlobalAveragePooling2D(name="mean")(x)
        last = keras.initializers.GlorotUniform(seed=next(seeds))
        outputs = layers.Dense(problem.outputs, kernel_initializer=last, name="output")(
            x
        )
        return keras.Model(inputs, outputs, name="residual")

    size = "x".join(map(str, shape))
    name = f"residual {size}-{width}c3, {BLOCKS} blocks-{problem.outputs}"
    return Architecture(f"{name} (relu, batch normalization)", build)
