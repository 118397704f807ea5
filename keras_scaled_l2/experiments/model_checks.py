"""Whether a network fits a problem: its shapes, and its last activation."""

from __future__ import annotations

from typing import Any

import keras

from keras_scaled_l2.curvature import given_loss, loss_of
from keras_scaled_l2.experiments.errors import DataWarning, InputError
from keras_scaled_l2.experiments.outputs import ends_in, gives_probability_per_class
from keras_scaled_l2.experiments.problems import Problem
from keras_scaled_l2.validation import keras_2_remedy
from keras_scaled_l2.warn import warn


def check_model(model: Any, problem: Problem) -> None:
    """Refuse a model that a problem cannot be trained on.

    Raises:
        InputError: If it is not built, has other inputs or outputs, or a penalty.
    """
    if not isinstance(model, keras.Model) or not model.built:
        raise InputError(
            f"model function made {type(model).__name__}: expected a built keras.Model"
            f"{keras_2_remedy(model)}."
        )
    shape = (None, *problem.x_train.shape[1:])
    if not _fits(getattr(model, "input_shape", shape), shape):
        raise InputError(
            f"model {model.name!r} takes inputs of shape {model.input_shape}: problem "
            f"{problem.name!r} has {shape}. Make it with keras.Input({shape[1:]})."
        )
    outputs = (None, problem.outputs)
    found = getattr(model, "output_shape", outputs)
    if not _fits(found, outputs) and not _has_two_for_binary(found, problem):
        raise InputError(
            f"model {model.name!r} has outputs of shape {model.output_shape}: problem "
            f"{problem.name!r} ({problem.task}) needs {outputs}. End it with "
            f"keras.layers.Dense({problem.outputs})."
        )
    _check_activation(model, problem)
    own = [v.path for v in model.trainable_weights if v.regularizer is not None]
    if own:
        raise InputError(
            f"model {model.name!r} carries a penalty on {own[0]} already, which would "
            "be in every arm: take it off, and give it as an Arm."
        )
    _tell_other_loss(model, problem)


def _fits(shape: Any, wanted: tuple[int | None, ...]) -> bool:
    """Whether a model's shape is the one wanted, or leaves open what the data tell."""
    if not isinstance(shape, tuple | list) or len(shape) != len(wanted):
        return False
    if shape[0] is not None:
        return False
    return all(a in (None, b) for a, b in zip(shape[1:], wanted[1:], strict=True))


def _has_two_for_binary(shape: Any, problem: Problem) -> bool:
    """Whether a network has an output for each of two classes."""
    return problem.task == "binary" and tuple(shape) == (None, 2)


def fitted(problem: Problem, network: keras.Model) -> Problem:
    """The problem as a network answers it: two outputs are two classes, one is binary.

    Both are the same question; loss and accuracy read the outputs by the task.
    """
    if _has_two_for_binary(getattr(network, "output_shape", ()), problem):
        return problem.as_classes()
    return problem


def _check_activation(model: keras.Model, problem: Problem) -> None:
    """Outputs that are no distribution over the classes would be trained all wrong."""
    if problem.task == "regression":
        return
    several = tuple(getattr(model, "output_shape", (None, problem.outputs)))[1] != 1
    if several and (
        ends_in(model, "sigmoid", problem)
        or gives_probability_per_class(model, problem)
    ):
        raise InputError(
            f"model {model.name!r} ends in a sigmoid for each class of problem "
            f"{problem.name!r}, which do not sum to 1: expected one label per example, "
            "and activation='softmax' or none."
        )
    if not several and ends_in(model, "softmax", problem):
        raise InputError(
            f"model {model.name!r} ends in a softmax over one unit, which is 1 "
            "whatever it sees: expected activation='sigmoid' or none, or two units."
        )


_LOSSES = {
    "squares": "mean squared error",
    "binary": "binary cross-entropy",
    "classes": "categorical cross-entropy",
}
"""Kind of a loss, as ``curvature`` calls it -> what is trained."""


def _tell_other_loss(model: keras.Model, problem: Problem) -> None:
    """Whoever compiled a loss may take it for the one that is trained."""
    given = given_loss(model)
    if given is None:
        return
    task = fitted(problem, model).task
    trained = "squares" if task == "regression" else task
    try:
        if loss_of(model)[0] == trained:
            return
    except ValueError:
        pass  # None of them, or with smoothing or weights.
    plain = isinstance(given, str | list | dict)
    name = given if plain else getattr(given, "__name__", type(given).__name__)
    warn(
        f"model {model.name!r} is compiled with loss={name!r}, which is not used: it "
        f"is trained with {_LOSSES[trained]}, the plain mean over the examples without "
        "label smoothing or weights. Compile it with that, or not at all.",
        DataWarning,
    )


def check_same(title: str, first: keras.Model, made: keras.Model) -> None:
    """Weights are matched by their place, so their number and shapes must stay."""
    shapes = [[tuple(v.shape) for v in model.weights] for model in (first, made)]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"model function {title!r} made another network when it was called again: "
            f"weights of the shapes {shapes[1]}, before {shapes[0]}. Expected the same "
            "layers from every call: draw nothing but weights in there."
        )
