"""The networks that are compared: how to make one from a seed."""

from __future__ import annotations

import dataclasses
import importlib
import math
import os
import sys
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_scaled_l2.experiments.errors import (
    InputError,
    one_line,
    several,
    unknown,
)
from keras_scaled_l2.experiments.model_checks import (
    check_model,
    check_same,
)
from keras_scaled_l2.experiments.naming import plain_paths, set_paths
from keras_scaled_l2.experiments.problems import Problem
from keras_scaled_l2.validation import keras_2_remedy

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

    Raises:
        InputError: If a number of units is not a whole number of 1 or more.
    """
    units = check_hidden(hidden)
    shape = problem.x_train.shape[1:]

    def build(seed: int) -> keras.Model:
        seeds = iter(layer_seeds(seed, len(units) + 1))
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


def convolutional(
    problem: Problem, width: int = 32, *, name: str = "conv"
) -> Architecture:
    """A small convolutional network for images, as many first networks are.

    Two convolutions of 3 x 3 with 32 and 64 filters, each followed by 2 x 2 pooling,
    a dense layer of 128 units, and a linear output; another width goes for 32, and its
    double and fourfold for the others. ``name`` is that of the model asked for.

    Raises:
        InputError: If the examples are no images ``(height, width, channels)``.
    """
    shape = problem.x_train.shape[1:]
    if len(shape) != 3 or min(shape[:2]) < 4:
        raise InputError(
            f"model {name!r} needs images (height, width, channels) of at least 4 x 4: "
            f"problem {problem.name!r} has examples of shape {shape}. Use 'dense'."
        )
    layers = keras.layers

    def build(seed: int) -> keras.Model:
        start = [keras.initializers.HeNormal(seed=s) for s in layer_seeds(seed, 3)]
        last = keras.initializers.GlorotUniform(seed=layer_seeds(seed, 4)[-1])

        def convolution(index: int, filters: int) -> keras.Layer:
            return layers.Conv2D(
                filters,
                3,
                padding="same",
                activation="relu",
                kernel_initializer=start[index],
                name=f"convolution_{index + 1}",
            )

        hidden = layers.Dense(
            4 * width, activation="relu", kernel_initializer=start[2], name="hidden"
        )
        return keras.Sequential(
            [
                keras.Input(shape, name="features"),
                convolution(0, width),
                layers.MaxPooling2D(name="pooling_1"),
                convolution(1, 2 * width),
                layers.MaxPooling2D(name="pooling_2"),
                layers.Flatten(name="flatten"),
                hidden,
                layers.Dense(problem.outputs, kernel_initializer=last, name="output"),
            ],
            name="conv",
        )

    size = "x".join(map(str, shape))
    name = f"conv {size}-{width}c3-{2 * width}c3-{4 * width}-{problem.outputs}"
    return Architecture(f"{name} (relu, 2x2 pooling)", build)


def architecture(
    model: str
    | os.PathLike[str]
    | keras.Model
    | Callable[[], keras.Model]
    | Architecture,
    problem: Problem,
    hidden: Sequence[int] = DEFAULT_HIDDEN,
) -> Architecture:
    """The network that a user names or hands in.

    Args:
        model: ``"dense"``, ``"conv"``, ``"module:function"``, the path of a ``.keras``
            file, a built model, a function that makes one, or an architecture.
        problem: What it is to be trained on.
        hidden: Units of the hidden layers of ``"dense"``.

    Raises:
        InputError: If there is no such network, or it does not fit the problem.
    """
    if isinstance(model, Architecture):
        return model
    if isinstance(model, str | os.PathLike):
        return _named(os.fspath(model), problem, hidden)
    if isinstance(model, keras.Model):
        return from_model(model, problem)
    # A model of Keras 2 can be called too.
    old = keras_2_remedy(model)
    if callable(model) and not old:
        return from_function(model, problem)
    raise InputError(
        f"model {model!r}: expected a built keras.Model, a function without arguments "
        f"that makes one, 'dense', 'conv', 'module:function' or a .keras file{old}."
    )


def _named(name: str, problem: Problem, hidden: Sequence[int]) -> Architecture:
    if name == "dense":
        return dense(problem, hidden)
    if name == "conv":
        return convolutional(problem)
    if name.endswith(".keras"):
        return from_model(_load(name), problem, name=name)
    if ":" in name:
        return from_function(find_function(name), problem, name=name)
    raise unknown("model", name, ["dense", "conv", "module:function", "file.keras"])


def _load(path: str) -> keras.Model:
    try:
        return keras.saving.load_model(path, compile=False)
    except (OSError, ValueError, TypeError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(
            f"model {path!r} cannot be read ({one_line(error)})."
        ) from error


def find_function(name: str) -> Callable[..., keras.Model]:
    """The function of ``module:function``.

    Raises:
        InputError: If there is none.
    """
    module, _, function = name.partition(":")
    # As "python -m" does it: modules beside the user count.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), function)
    except (Exception, SystemExit) as error:
        # Whatever the user's own module may raise when it is imported; a script
        # without a main guard ends by sys.exit.
        why = one_line(error)
        if isinstance(error, SystemExit):
            why = f"its import ends the program with sys.exit({error.code!r})"
        raise InputError(
            f"model {name!r} is not found ({why}): expected "
            "module:function, of a module that Python finds from here."
        ) from error
    if not callable(found):
        raise InputError(f"model {name!r} is no function: {found!r}.")
    make: Callable[..., keras.Model] = found
    return make


def from_model(
    model: keras.Model, problem: Problem, name: str | None = None
) -> Architecture:
    """The architecture of a built model; its weights are drawn anew for each seed.

    A model whose own weights matter, a pretrained one, is handed in as a function that
    loads it: then every seed starts from them.

    Raises:
        InputError: If it does not fit the problem, or cannot be cloned.
    """
    check_model(model, problem)
    names: list[str] = []

    def build(seed: int) -> keras.Model:
        keras.utils.set_random_seed(seed)
        try:
            made = keras.models.clone_model(model)
        except (ValueError, TypeError, NotImplementedError) as error:
            raise InputError(
                f"model {model.name!r} cannot be cloned ({one_line(error)}): hand in a "
                "function that makes it."
            ) from error
        names[:] = names or plain_paths(made)
        set_paths(made, names)
        return made

    return Architecture(name or str(model.name), build)


def from_function(
    make: Callable[[], keras.Model], problem: Problem, name: str | None = None
) -> Architecture:
    """The network that a user's function makes.

    The function is called once for each seed, after ``keras.utils.set_random_seed``.

    Raises:
        InputError: If it fails, makes no built model with one input and fitting
            outputs, or one that carries penalties of its own.
    """

    def build(seed: int) -> keras.Model:
        keras.utils.set_random_seed(seed)
        return make()

    title = name or str(getattr(make, "__name__", "model"))
    try:
        model = build(0)
    except (Exception, SystemExit) as error:
        # Whatever a user's own code may raise.
        raise InputError(
            f"model function {title!r} failed: {type(error).__name__}: "
            f"{one_line(error)}"
        ) from error
    check_model(model, problem)
    names: list[str] = []

    def build_anew(seed: int) -> keras.Model:
        made = build(seed)
        # Else a seed would start from what the one before it has trained.
        first = {id(v) for v in model.trainable_weights}
        if any(id(v) in first for v in made.trainable_weights):
            raise InputError(
                f"model function {title!r} made the same weights twice: expected a new "
                "model from every call. Make or load it in there, or hand in the model."
            )
        check_same(title, model, made)
        names[:] = names or plain_paths(model, made)
        set_paths(made, names)
        return made

    return Architecture(title, build_anew)


def initial_weights(model: keras.Model) -> list[np.ndarray]:
    """Copies of a model's weights, in the order of ``model.weights``."""
    return [np.array(keras.ops.convert_to_numpy(v.value)) for v in model.weights]


def check_hidden(hidden: Sequence[int]) -> tuple[int, ...]:
    """The units of the hidden layers, each a whole number of 1 or more.

    Raises:
        InputError: If one is not.
    """
    hidden = several("hidden units", hidden, "512,512")
    for units in hidden:
        if isinstance(units, bool) or not isinstance(units, int) or units < 1:
            raise InputError(
                f"hidden units {units!r}: expected whole numbers of 1 or more, as "
                "512,512."
            )
    return hidden


def layer_seeds(seed: int, count: int) -> list[int]:
    """Seeds for the layers: different from each other, and for other seeds."""
    state = np.random.SeedSequence([seed, 0]).generate_state(count)
    # Keras wants signed 32-bit seeds on some backends.
    return [int(s) % 2**31 for s in state]
