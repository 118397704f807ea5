"""Loss and accuracy of a task, as functions of few operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_scaled_l2 import _keras
from keras_scaled_l2.gradients import Tensor


def loss_of(task: str, probabilities: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """The mean loss of a batch: ``(labels, outputs)`` -> a scalar.

    Args:
        task: ``"classes"``, ``"binary"`` or ``"regression"`` (mean squared error).
        probabilities: Whether a classifier's outputs are probabilities, not logits.
    """
    loss = keras_loss(task, probabilities)

    def mean_loss(labels: Tensor, outputs: Tensor) -> Tensor:
        if _keras.has_mask(outputs):
            return loss(labels, outputs)
        outputs = ops.cast(outputs, loss.dtype)
        if task != "classes":
            labels = ops.cast(labels, loss.dtype)
        # Keras's own average counts the examples again, in six operations.
        return ops.mean(loss.call(labels, outputs))

    return mean_loss


def keras_loss(task: str, probabilities: bool) -> Any:
    """The same as a loss of Keras's."""
    if task == "regression":
        return keras.losses.MeanSquaredError()
    if task == "classes":
        return keras.losses.SparseCategoricalCrossentropy(from_logits=not probabilities)
    return keras.losses.BinaryCrossentropy(from_logits=not probabilities)


def right_answers(
    task: str, probabilities: bool
) -> Callable[[Tensor, Tensor], Tensor] | None:
    """How many answers are right: ``(labels, outputs)`` -> a scalar; none to count."""
    if task == "regression":
        return None

    def decide(outputs: Tensor) -> Tensor:
        if task == "classes":
            return ops.argmax(outputs, axis=-1)
        return ops.reshape(outputs, (-1,)) > (0.5 if probabilities else 0.0)

    def count(labels: Tensor, outputs: Tensor) -> Tensor:
        given = decide(outputs)
        labels = ops.cast(ops.reshape(labels, (-1,)), given.dtype)
        return ops.sum(ops.cast(labels == given, "float32"))

    return count
