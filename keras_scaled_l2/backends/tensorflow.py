"""TensorFlow: a step's gradients."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_scaled_l2.backends import plain
from keras_scaled_l2.backends.contract import Tensor
from keras_scaled_l2.backends.plain import (
    can_store,
    interceptor,
    is_known,
    is_known_zero,
    penalty_follows_call,
    penalty_line,
    reaches_weights,
    uniform,
)

__all__ = [
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
    "sum_of_squares",
    "to_numpy",
    "uniform",
    "value_and_slopes",
    "whole_gradient",
]

# Operations of the gradients are named after those of the loss.
_PENALTY_SCOPE = "keras_scaled_l2_penalty"
# Fewer rows than the 32 that XLA adds up in windows; so near to each other that a
# processor's cache holds them.
_XLA_BLOCK = (16, 128)


def sum_of_squares(w: Tensor) -> Tensor:
    """See ``contract.Backend``."""
    # A kernel of its own, with the gradient w: no full-size square.
    return 2.0 * tf.nn.l2_loss(w)


def squared_norms(
    gradient: Tensor,
    scale: Tensor | None,
    factor: Tensor | None,
    weight: Tensor,
    *,
    in_xla: bool = False,
) -> Tensor:
    """See ``contract.Backend``."""
    data = plain.difference(gradient, scale, factor, weight)
    weight = plain.summable(ops.cast(weight, "float32"))
    if in_xla:
        return tf.stack([_sum_of_squares_in_xla(data), sum_of_squares(weight)])
    return tf.stack([sum_of_squares(plain.summable(data)), sum_of_squares(weight)])


def _sum_of_squares_in_xla(x: Tensor) -> Tensor:
    """Sum of squares of what is computed on the way, in XLA.

    It adds a long dimension in windows of 32, and writes what it adds to memory before;
    sums of fewer are fused with what they add. The root keeps the two sums apart.
    """
    flat = ops.reshape(x, (-1,))
    rows, columns = _XLA_BLOCK
    whole = flat.shape[0] - flat.shape[0] % (rows * columns)
    if not whole:
        return sum_of_squares(flat)
    blocks = ops.reshape(flat[:whole], (-1, rows, columns))
    norms = ops.sqrt(ops.sum(ops.square(blocks), axis=1))
    return sum_of_squares(norms) + sum_of_squares(flat[whole:])


def penalty_scope() -> contextlib.AbstractContextManager[Any]:
    """See ``contract.Backend``."""
    scope: contextlib.AbstractContextManager[Any] = tf.name_scope(_PENALTY_SCOPE)
    return scope


def data_summand(gradient: Tensor) -> Tensor | None:
    """See ``contract.Backend``.

    The graph adds the two up at the end; what it adds is there to read, exact and at no
    cost.
    """
    if not isinstance(gradient, tf.Tensor) or tf.executing_eagerly():
        return None
    parts = list(gradient.op.inputs) if gradient.op.type == "AddN" else []
    data = [part for part in parts if _PENALTY_SCOPE not in part.op.name]
    if len(data) + 1 != len(parts):
        return None
    return data[0] if len(data) == 1 else tf.add_n(data)


def value_and_slopes(
    function: Callable[[Sequence[Tensor]], Tensor], count: int
) -> tuple[Tensor, list[Tensor]]:
    """See ``contract.Backend``."""
    shifts = tf.zeros((count,), keras.config.floatx())
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(shifts)
        value = function(tf.unstack(shifts, num=count))
    none = tf.UnconnectedGradients.ZERO
    slopes = tape.gradient(value, shifts, unconnected_gradients=none)
    return value, list(tf.unstack(slopes, num=count))


def runs_in_xla(model: keras.Model) -> bool:
    """See ``contract.Backend``."""
    return bool(model.jit_compile) and not model.run_eagerly


def metric_values(
    model: keras.Model, variables: Sequence[keras.Variable], step_result: Any
) -> list[Any]:
    """See ``contract.Backend``."""
    return [to_numpy(v) for v in variables]


def to_numpy(x: Tensor) -> Any:
    """See ``contract.Backend``."""
    # NumPy cannot read a variable of many replicas, nor a scalar of bfloat16.
    return np.asarray(tf.convert_to_tensor(x).numpy())


def whole_gradient(gradient: Tensor) -> Tensor:
    """See ``contract.Backend``."""
    # Rows of an embedding that a batch uses twice stand twice in IndexedSlices.
    gradient = tf.convert_to_tensor(gradient)
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return gradient
    return context.all_reduce(tf.distribute.ReduceOp.SUM, gradient)


def loss_gradients(
    model: keras.Model, loss: Callable[[], Tensor]
) -> list[Tensor | None]:
    """See ``contract.Backend``."""
    with tf.GradientTape() as tape:
        value = loss()
    gradients = tape.gradient(value, [v.value for v in model.trainable_variables])
    return [None if g is None else tf.convert_to_tensor(g) for g in gradients]


def gradient_function(
    model: keras.Model, loss: Callable[..., Tensor]
) -> Callable[..., list[Tensor | None]]:
    """See ``contract.Backend``."""
    return lambda *arguments: loss_gradients(model, lambda: loss(*arguments))


def shift_gradients(model: keras.Model, function: Any, directions: Any) -> Any:
    """See ``contract.Backend``."""
    return functools.partial(_shift_gradients, function, directions)


def _shift_gradients(
    function: Any, directions: Any, x: Tensor, shifts: Sequence[Tensor]
) -> tuple[Tensor, Any, Any]:
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
        tape.watch(shifts)
        outputs, others = function(x, shifts)
    along = tf.unstack(directions(outputs))
    none = tf.UnconnectedGradients.ZERO
    rows = [
        tape.gradient(outputs, shifts, d, unconnected_gradients=none) for d in along
    ]
    return outputs, others, [tf.stack(column) for column in zip(*rows, strict=True)]
