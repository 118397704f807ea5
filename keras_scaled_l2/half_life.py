"""The decoupled decay with a given half-life, as an optimizer takes it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras

from keras_scaled_l2.fitting import current_learning_rate


def decoupled_decay(
    optimizer: keras.optimizers.Optimizer, epochs: float, count: Callable[[str], Any]
) -> str:
    """The call of an optimizer whose decay halves a weight in so many epochs.

    Args:
        optimizer: The one that is in use: its class, and its learning rate.
        epochs: The half-life.
        count: Gives ``samples``, ``batch_size`` and ``learning_rate``; raises a
            ``ValueError`` where one is not known, and the formula is given.
    """
    name = type(optimizer).__name__
    # These make the weights anew from a state that decay does not reach.
    name = "AdamW" if name in ("Ftrl", "ScheduleFreeAdamW") else name
    try:
        m, b = count("samples"), count("batch_size")
        lr = current_learning_rate(optimizer) or count("learning_rate")
        decay = math.log(2.0) * b / (lr * epochs * m)
        arguments = f"{lr:.6g}, weight_decay={decay:.3g}"
    except ValueError:
        arguments = (
            "learning_rate, "
            "weight_decay=ln 2 * batch_size / (learning_rate * epochs * samples)"
        )
    return f"keras.optimizers.{name}({arguments})"
