"""Sums of squares, and a step's own gradients, on whichever backend Keras runs.

``backends.contract`` says what each function does; only ``backends`` asks which runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
from keras import ops

from keras_scaled_l2.backends import current_backend
from keras_scaled_l2.backends.contract import Backend, Measure, Tensor
from keras_scaled_l2.backends.plain import summable

_BACKEND: Backend = current_backend()

can_store = _BACKEND.can_store
data_summand = _BACKEND.data_summand
gradient_function = _BACKEND.gradient_function
interceptor = _BACKEND.interceptor
is_known = _BACKEND.is_known
is_known_zero = _BACKEND.is_known_zero
loss_gradients = _BACKEND.loss_gradients
metric_values = _BACKEND.metric_values
penalty_follows_call = _BACKEND.penalty_follows_call
penalty_line = _BACKEND.penalty_line
penalty_scope = _BACKEND.penalty_scope
reaches_weights = _BACKEND.reaches_weights
runs_in_xla = _BACKEND.runs_in_xla
squared_norms = _BACKEND.squared_norms
to_numpy = _BACKEND.to_numpy
uniform = _BACKEND.uniform
value_and_slopes = _BACKEND.value_and_slopes
whole_gradient = _BACKEND.whole_gradient

__all__ = [
    "Measure",
    "Tensor",
    "can_store",
    "data_summand",
    "gradient_function",
    "interceptor",
    "is_known",
    "is_known_zero",
    "loss_gradients",
    "metric_values",
    "penalty_follows_call",
    "penalty_line",
    "penalty_scope",
    "reaches_weights",
    "runs_in_xla",
    "shift_gradients",
    "squared_norms",
    "strategy_scope",
    "sum_of_squares",
    "to_numpy",
    "uniform",
    "value_and_slopes",
    "whole_gradient",
]


def sum_of_squares(w: Tensor) -> Tensor:
    """Sum of squares of a tensor, in float32 or better, in one pass.

    Formula: ``sum(w**2)``; the gradient is ``2 * w``.

    Args:
        w: A tensor or a ``keras.Variable`` of any shape and floating dtype.

    Returns:
        A scalar tensor: float64 for a float64 ``w``, float32 for all others.
    """
    return _BACKEND.sum_of_squares(summable(w))


@contextlib.contextmanager
def strategy_scope(model: keras.Model) -> Iterator[None]:
    """The scope in which variables that join the model's step must be made."""
    strategy = getattr(model, "distribute_strategy", None)
    with contextlib.nullcontext() if strategy is None else strategy.scope():
        yield


def shift_gradients(
    model: keras.Model,
    function: Callable[[Tensor, Sequence[Tensor]], tuple[Tensor, Sequence[Tensor]]],
    directions: Callable[[Tensor], Tensor],
) -> Callable[[Any, Sequence[Any]], tuple[Any, list[Any], list[Any]]]:
    """``Backend.shift_gradients`` from and to NumPy arrays."""
    call = _BACKEND.shift_gradients(model, function, directions)

    def in_numpy(x: Any, shifts: Sequence[Any]) -> tuple[Any, list[Any], list[Any]]:
        given = [ops.convert_to_tensor(s) for s in shifts]
        outputs, others, found = call(ops.convert_to_tensor(x), given)
        return (
            to_numpy(outputs),
            [to_numpy(o) for o in others],
            [to_numpy(f) for f in found],
        )

    return in_numpy
