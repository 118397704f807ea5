"""The networks that are compared: how to make one from a seed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_scaled_l2.experiments.errors import InputError
from keras_scaled_l2.experiments.problems import Problem

DEFAULT_HIDDEN = (512, 512)


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A network that can be made again and again with other initial weights.

    Args:
        name: The network in one line.
        build: Seed -> a built, uncompiled model; the same seed, the same weights.
    """

    name: str
    build: Callable[[int], keras.Model]


def dense(problem: Problem, hidden: Sequence[int] = DEFAULT_HIDDEN) -> Architecture:
    """A network of dense ReLU layers; its last layer is linear.

    Hidden kernels start He-normal, the last one Glorot-uniform, biases at 0.

    Args:
        problem: Gives the input's shape and the number of outputs.
        hidden: Units of each hidden layer; none makes a linear model.

    Raises:
        InputError: If a number of units is not a whole number of 1 or more.
    """
    units = check_hidden(hidden)
    shape = problem.x_train.shape[1:]

    def build(seed: int) -> keras.Model:
        seeds = iter(_seeds(seed, len(units) + 1))
        layers: list[Any] = [keras.Input(shape, name="features")]
        if len(shape) > 1:
            layers.append(keras.layers.Flatten(name="flatten"))
        layers += [
            keras.layers.Dense(
                width,
                activation="relu",
                kernel_initializer=keras.initializers.HeNormal(seed=next(seeds)),
                name=f"hidden_{i}",
            )
            for i, width in enumerate(units, start=1)
        ]
        last = keras.initializers.GlorotUniform(seed=next(seeds))
        layers.append(
            keras.layers.Dense(problem.outputs, kernel_initializer=last, name="output")
        )
        return keras.Sequential(layers, name="dense")

    widths = [math.prod(shape), *units, problem.outputs]
    return Architecture(f"dense {'-'.join(map(str, widths))} (relu)", build)


def from_function(make: Callable[[], keras.Model], problem: Problem) -> Architecture:
    """The network that a user's function makes.

    The function is called once for each seed, after ``keras.utils.set_random_seed``.

    Raises:
        InputError: If it makes no built model with one input and fitting outputs, or
            one that carries penalties of its own.
    """

    def build(seed: int) -> keras.Model:
        keras.utils.set_random_seed(seed)
        return make()

    _check_model(build(0), problem)
    return Architecture(getattr(make, "__name__", "model"), build)


def gives_probabilities(model: keras.Model) -> bool:
    """Whether a classifier's last layer is a softmax or sigmoid, not linear."""
    last = model.layers[-1]
    activation = getattr(last, "activation", None)
    name = getattr(activation, "__name__", "")
    return name in ("softmax", "sigmoid") or isinstance(last, keras.layers.Softmax)


def initial_weights(model: keras.Model) -> list[np.ndarray]:
    """Copies of a model's weights, in the order of ``model.weights``."""
    return [np.array(keras.ops.convert_to_numpy(v.value)) for v in model.weights]


def check_hidden(hidden: Sequence[int]) -> tuple[int, ...]:
    """The units of the hidden layers, each a whole number of 1 or more.

    Raises:
        InputError: If one is not.
    """
    for units in hidden:
        if isinstance(units, bool) or not isinstance(units, int) or units < 1:
            raise InputError(
                f"hidden units {units!r}: expected whole numbers of 1 or more, as "
                "512,512."
            )
    return tuple(hidden)


def _check_model(model: Any, problem: Problem) -> None:
    if not isinstance(model, keras.Model) or not model.built:
        raise InputError(
            f"model function made {type(model).__name__}: expected a built keras.Model."
        )
    shape = (None, *problem.x_train.shape[1:])
    if tuple(getattr(model, "input_shape", shape)) != shape:
        raise InputError(
            f"model {model.name!r} takes inputs of shape {model.input_shape}: problem "
            f"{problem.name!r} has {shape}."
        )
    outputs = (None, problem.outputs)
    if tuple(getattr(model, "output_shape", outputs)) != outputs:
        raise InputError(
            f"model {model.name!r} has outputs of shape {model.output_shape}: problem "
            f"{problem.name!r} ({problem.task}) needs {outputs}."
        )
    own = [v.path for v in model.trainable_weights if v.regularizer is not None]
    if own:
        raise InputError(
            f"model {model.name!r} carries a penalty on {own[0]} already, which would "
            "be in every arm: take it off, and give it as an Arm."
        )


def _seeds(seed: int, count: int) -> list[int]:
    """Seeds for the layers: different from each other, and for other seeds."""
    state = np.random.SeedSequence([seed, 0]).generate_state(count)
    # Keras wants signed 32-bit seeds on some backends.
    return [int(s) % 2**31 for s in state]
