"""How far a penalty alone would shrink a weight over one training, in e-folds.

``E`` e-folds shrink a weight without data gradient to ``exp(-E)`` of itself. They are
the natural axis of a strength: below ``INERT`` a penalty does nothing, whatever its
coefficient; above some 30 the data hardly count.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_scaled_l2 import _keras
from keras_scaled_l2.fitting import (
    current_learning_rate,
    gradients_given,
    steps_per_update,
)
from keras_scaled_l2.gradients import to_numpy

INERT = 0.02
"""E-folds below which a penalty does nothing: no weight shrinks by more than 2 %."""
STAND_IN_MARGIN = 100.0
"""How far the stand-in for adaptive optimizers may be off before "inert" is said."""

_POINTS = 256
"""Updates at which a schedule is looked at; between them it is taken to be smooth."""


def learning_rates(
    optimizer: keras.optimizers.Optimizer, updates: int, start: int = 0
) -> float | None:
    """The sum of the learning rates over a training.

    Keras looks a schedule up by the number of gradients it was given, not of updates:
    with k of them to an update, update j (from 0) happens at ``k (j + 1) - 1``.

    Args:
        optimizer: Its learning rate is a number or a schedule.
        updates: Updates of the weights.
        start: Updates that were made before, for a schedule.

    Returns:
        ``T * lr`` for a number; for a schedule the mean over at most 256 evenly spaced
        updates, times ``T``. ``None`` for an optimizer with several rates.
    """
    schedule = _schedule(optimizer)
    if schedule is None:
        rate = current_learning_rate(optimizer)
        return None if rate is None else rate * updates
    if updates == 0:
        return 0.0
    count = min(updates, _POINTS)
    numbers = start + (np.arange(count) + 0.5) * updates / count
    given = steps_per_update(optimizer)
    steps = (given * (int(number) + 1) - 1 for number in numbers)
    values = [float(to_numpy(schedule(step))) for step in steps]
    return math.fsum(values) / count * updates


def updates_in(
    steps: int, optimizer: keras.optimizers.Optimizer, given: int = 0
) -> int:
    """Updates of the weights in so many steps, after so many gradients.

    Fewer than steps under gradient accumulation, where some may be waiting.
    """
    each = steps_per_update(optimizer)
    return (given + steps) // each - given // each


def is_exact(optimizer: keras.optimizers.Optimizer) -> bool:
    """Whether a penalty in the loss has e-folds under this optimizer: under SGD."""
    return isinstance(optimizer, keras.optimizers.SGD)


def e_folds(
    coefficient: float,
    optimizer: keras.optimizers.Optimizer,
    updates: int,
    *,
    weights: int = 1,
    start: int = 0,
) -> float | None:
    """E-folds of a training under the penalty ``c * sum(w**2)`` in its loss.

    SGD with momentum mu: ``E = 2 c sum(lr) / (1 - mu)``, to first order in
    ``2 c lr / (1 - mu)``.

    An adaptive optimizer divides the gradient, the penalty's included, by the
    gradient's root mean square, which nobody knows before training: E has no exact
    meaning there (Loshchilov & Hutter 2019, Proposition 2). The **stand-in** is a
    gradient of norm 1 that is spread evenly over the penalized weights:
    ``E = 2 c sum(lr) sqrt(weights)``. It tells the order of magnitude, no more.

    Args:
        coefficient: ``c``, as in ``keras.regularizers.L2(c)``.
        optimizer: The optimizer.
        updates: Updates of the weights, T.
        weights: Number of penalized weights, for the stand-in alone.
        start: Updates that were made before, for a schedule.

    Returns:
        E, or ``None`` for an optimizer with several learning rates.

    Example:
        >>> import keras
        >>> sgd = keras.optimizers.SGD(0.5, momentum=0.5)
        >>> e_folds(1e-3, sgd, 500)
        1.0
    """
    per_coefficient = e_folds_per_coefficient(
        optimizer, updates, weights=weights, start=start
    )
    return None if per_coefficient is None else coefficient * per_coefficient


def e_folds_per_coefficient(
    optimizer: keras.optimizers.Optimizer,
    updates: int,
    *,
    weights: int = 1,
    start: int = 0,
) -> float | None:
    """``E / c``: what ``e_folds`` multiplies the coefficient with."""
    total = learning_rates(optimizer, updates, start)
    if total is None:
        return None
    if is_exact(optimizer):
        return 2.0 * total / (1.0 - float(optimizer.momentum))
    return 2.0 * total * math.sqrt(weights)


def e_folds_of_decay(
    weight_decay: float,
    optimizer: keras.optimizers.Optimizer,
    updates: int,
    *,
    start: int = 0,
) -> float | None:
    """E-folds of a training under decoupled weight decay: ``E = sum(lr) * wd``.

    Exact for the optimizers of Keras, adaptive or not: the decay is taken from the
    weight itself, past momentum and scaling. Not for ``Ftrl`` and
    ``ScheduleFreeAdamW``, which make the weight anew: see ``half_life.decay_acts``.

    Args:
        weight_decay: The optimizer's ``weight_decay``.
        optimizer: Gives the learning rate.
        updates: Updates of the weights, T.
        start: Updates that were made before, for a schedule.
    """
    total = learning_rates(optimizer, updates, start)
    return None if total is None else weight_decay * total


def inert_below(optimizer: keras.optimizers.Optimizer) -> float:
    """The e-folds of a penalty in the loss below which it is called inert.

    ``INERT`` where E is exact; a hundredth of it where E is the stand-in.
    """
    return INERT if is_exact(optimizer) else INERT / STAND_IN_MARGIN


@dataclasses.dataclass(frozen=True)
class Reach:
    """How far penalties reach over a training to come; numbers, without its model.

    Args:
        updates: Updates of the weights.
        per_coefficient: ``E / c``; ``None`` where nobody can tell.
        inert_below: E-folds below which a penalty is inert.
        exact: Whether E is exact, and not the stand-in.
    """

    updates: int
    per_coefficient: float | None
    inert_below: float
    exact: bool


def reach(optimizer: keras.optimizers.Optimizer, steps: int, *, weights: int) -> Reach:
    """How far penalties reach over the training about to run.

    Args:
        optimizer: The optimizer, as far as it has come: a schedule goes on from there.
        steps: Steps that are to come; several may make one update.
        weights: Number of penalized weights.
    """
    given = gradients_given(optimizer)
    updates = updates_in(steps, optimizer, given)
    start = given // steps_per_update(optimizer)
    return Reach(
        updates,
        e_folds_per_coefficient(optimizer, updates, weights=weights, start=start),
        inert_below(optimizer),
        is_exact(optimizer),
    )


def inert_sentence(
    coefficients: Sequence[float], over: Reach, factor: float = 1.0
) -> str | None:
    """What to say of a penalty that is inert over the training about to run.

    Args:
        coefficients: The ``c`` of every penalized weight tensor.
        over: How far they reach over it.
        factor: The weight that the loss gives all penalties.

    Returns:
        The sentence with the coefficient for E = 1; ``None`` if the penalty is not
        inert, or nobody can tell.
    """
    largest = max(coefficients, default=0.0)
    per_coefficient = factor * (over.per_coefficient or 0.0)
    folds = largest * per_coefficient
    if folds <= 0 or folds >= over.inert_below:
        return None
    about = "" if over.exact else "in order of magnitude "
    span = "" if min(coefficients) == largest else " at the largest"
    return (
        f"The penalty is inert: over the {over.updates:,} updates of this training it "
        f"shrinks no weight by more than {about}{-math.expm1(-folds):.2g} of itself "
        f"(E = {folds:.2g} e-folds; below {INERT:g} nothing happens). E = 1 takes "
        f"c = {1.0 / per_coefficient:.3g}{span}, {1.0 / folds:,.0f} times as much."
    )


def _schedule(optimizer: keras.optimizers.Optimizer) -> Any:
    """The schedule of the learning rate; ``None`` if it is a number."""
    rate = _keras.given_learning_rate(optimizer)
    schedules = keras.optimizers.schedules
    return rate if isinstance(rate, schedules.LearningRateSchedule) else None
