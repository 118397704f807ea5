"""What a network makes of the data before the first step: is there a way from here?"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_scaled_l2 import _keras
from keras_scaled_l2.experiments.errors import DataWarning, InputError
from keras_scaled_l2.experiments.outputs import (
    gives_probabilities,
    network_outputs,
)
from keras_scaled_l2.experiments.problems import Problem
from keras_scaled_l2.warn import warn

EXAMPLES = 256
"""So many training examples tell: raw pixels start 50 times above guessing."""
FAR = 5.0
"""A start so many times above the data loss of guessing is none to learn from."""
LARGE = 10.0
"""Features and targets beyond this root mean square are not scaled."""


def check_start(network: keras.Model, problem: Problem) -> None:
    """Look at the data loss before the first step, as the training will meet it.

    Raises:
        InputError: If the network cannot be called on the examples, its loss is not
            finite, or it computes in float16.
    """
    _check_precision(network)
    x, y = problem.x_train[:EXAMPLES], problem.y_train[:EXAMPLES]
    # In training, where a BatchNormalization scales by the batch.
    outputs = network_outputs(network, x, training=True)
    loss = _loss(problem, outputs, y, gives_probabilities(network, problem))
    features = f"features of {problem.name!r} range from {_range(problem.x_train)}"
    if not np.isfinite(loss):
        raise InputError(
            f"{features}, and the outputs of model {network.name!r} are NaN, infinite "
            f"or too large before the first step. {_remedy(problem)}"
        )
    guess = _guess(problem)
    if loss > FAR * guess and _size(problem.x_train) > LARGE:
        warn(
            f"{features}: before the first step the data loss of model "
            f"{network.name!r} is {loss:.3g}, where guessing has {guess:.3g}. "
            f"{_remedy(problem)}",
            DataWarning,
        )
    if problem.task == "regression" and _size(problem.y_train) > LARGE:
        warn(
            f"targets of {problem.name!r} range from {_range(problem.y_train)}: such "
            "errors make large steps. Save them as (y - y.mean()) / y.std().",
            DataWarning,
        )


def _check_precision(network: keras.Model) -> None:
    """Refuse float16, for which ``fit`` would scale the loss."""
    for layer in _keras.layers_within(network):
        if layer.compute_dtype == "float16":
            raise InputError(
                f"layer {layer.name!r} of model {network.name!r} computes in float16, "
                "where small gradients are 0 unless the loss is scaled, which "
                "experiments do not: expected float32 or mixed_bfloat16."
            )


def _remedy(problem: Problem) -> str:
    if problem.source.standardize or _size(problem.x_train) <= LARGE:
        return (
            "Look for what its layers do to such inputs, or start from other weights."
        )
    return "Scale the features: --standardize (load_problem(..., standardize=True))."


def _loss(
    problem: Problem, outputs: np.ndarray, y: np.ndarray, probabilities: bool
) -> float:
    """The mean data loss; NaN or infinite where float32 has no number for it."""
    if not np.isfinite(outputs).all():
        return float("nan")
    if problem.task == "regression":
        with np.errstate(over="ignore"):
            errors = np.square((outputs.reshape(y.shape) - y).astype(np.float32))
        return float(np.mean(errors))
    z = outputs.reshape(len(y), -1)
    if probabilities:
        # As Keras clips them.
        z = np.clip(z, 1e-7, 1 - 1e-7)
        z = np.log(z) - (np.log1p(-z) if z.shape[1] == 1 else 0.0)
    if z.shape[1] == 1:
        z = np.concatenate([np.zeros_like(z), z], axis=1)
    z = z - z.max(axis=1, keepdims=True)
    return float(np.mean(np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(y)), y]))


def _guess(problem: Problem) -> float:
    """The data loss of who knows the shares of the classes, or the mean, alone."""
    y = problem.y_train
    if problem.task == "regression":
        return float(np.mean(np.var(y.astype(np.float64), axis=0)))
    shares = np.bincount(y) / len(y)
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum())


def _size(values: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def _range(values: Any) -> str:
    return f"{values.min():g} to {values.max():g}"
