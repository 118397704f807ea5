"""The half-life of a weight under an optimizer: what it needs, and where there is none.

Half-life of the penalty under SGD; as decoupled decay under any other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import keras

from keras_scaled_l2.fitting import current_learning_rate, steps_per_update

_REMAKES = ("Ftrl", "ScheduleFreeAdamW")
"""Optimizers of Keras that make the weights anew from a state; by name, since older
versions lack some."""


def decay_acts(optimizer: keras.optimizers.Optimizer) -> bool:
    """Whether decoupled ``weight_decay`` shrinks a weight under this optimizer.

    It is taken from the weight itself, past momentum and scaling, which is lost where
    the weight is made anew from a state in the same update.
    """
    names = {kind.__name__ for kind in type(optimizer).__mro__}
    return names.isdisjoint(_REMAKES)


def optimizer_counts(
    optimizer: keras.optimizers.Optimizer | None, rule: Any, counts: Mapping[str, Any]
) -> dict[str, Any]:
    """What an optimizer tells a rule: learning rate, momentum, examples of an update.

    Args:
        optimizer: The one that updates the weight; ``None`` tells nothing.
        rule: Its ``samples``, if it has any, count where ``counts`` lacks them.
        counts: ``samples`` and ``batch_size`` of a step, each a number or ``None``.
    """
    known: dict[str, Any] = {"learning_rate": current_learning_rate(optimizer)}
    if isinstance(optimizer, keras.optimizers.SGD):
        known["momentum"] = float(optimizer.momentum)
    size = counts.get("batch_size")
    if size is not None:
        given = (getattr(rule, f"{kind}samples", None) for kind in ("", "inferred_"))
        samples = next((m for m in (counts.get("samples"), *given) if m), size)
        # A batch has room for more than all examples, and never holds more. Times
        # the steps: a rule means the examples of one update.
        known["batch_size"] = min(size, samples) * steps_per_update(optimizer)
    return known


def is_usable(rate: float | None) -> bool:
    """Whether a learning rate makes steps whose half-life can be told."""
    return rate is not None and math.isfinite(rate) and rate > 0


def check_half_life(
    rule: Any, optimizer: keras.optimizers.Optimizer, count: Callable[[str], Any]
) -> None:
    """Refuse an optimizer under which the penalty has no half-life.

    Args:
        rule: A ``HalfLifeL2``.
        optimizer: The one that updates the weight.
        count: As ``decoupled_decay`` takes it.

    Raises:
        ValueError: With the remedy: for an adaptive one its decoupled decay; where the
            learning rate is needed and is 0 at this moment, to give one.
    """
    name = type(optimizer).__name__
    if not isinstance(optimizer, keras.optimizers.SGD):
        raise ValueError(
            f"{rule!r} has no half-life under {name}: expected keras.optimizers.SGD. "
            f"{name} divides the penalty's gradient by the size of the gradient. For a "
            f"half-life of {rule.epochs:g} epochs remove the rule and use decoupled "
            f"decay: {decoupled_decay(optimizer, rule.epochs, count)}."
        )
    rate = current_learning_rate(optimizer)
    if rule.learning_rate is None and rate is not None and not is_usable(rate):
        raise ValueError(
            f"{rule!r} has no half-life yet: the learning rate of {name} is {rate:g} "
            "at this moment (where a warm-up begins at 0, for example), and its "
            "coefficient is a number divided by that. Expected one above 0. Pass the "
            "rate of the training, of a schedule the mean over its steps: "
            "HalfLifeL2(..., learning_rate=<number>)."
        )


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
    name = type(optimizer).__name__ if decay_acts(optimizer) else "AdamW"
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
