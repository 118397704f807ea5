"""What an engine is given to train, and what it gives back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from keras_scaled_l2.experiments.problems import Problem

Curves = Mapping[str, Sequence[float]]
Norms = Mapping[str, Mapping[str, float]]
Stop = Callable[[int, Curves], bool]
Adapt = Callable[[int, Sequence[np.ndarray]], "Adapted"]
"""``(epochs so far, weights in the order of Job.initial)`` -> what follows of them."""
NORMS = ("weight", "data_gradient", "penalty_gradient")


class Adapted(NamedTuple):
    """What a job that learns its penalties goes on with after an epoch.

    Args:
        coefficients: Name of a weight -> its next ``c``, as in ``Job.coefficients``.
        curves: Name -> value, for the curves of the job.
    """

    coefficients: Mapping[str, float]
    curves: Mapping[str, float]


class Watch:
    """Hears of what an engine does; this one does nothing."""

    def begin(self, place: int) -> None:
        """The job of this place begins."""

    def epoch(self, place: int, curves: Curves, norms: Norms) -> None:
        """An epoch has ended.

        Args:
            place: Place of the job.
            curves: Its curves so far, as ``Trained`` has them.
            norms: Its norms at the first step of the epoch: kind -> weight -> norm.
        """

    def tick(self) -> None:
        """Called every half second or so while an epoch lasts; may raise to end all."""


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """One training: what differs between the jobs of an architecture.

    Args:
        problem: The data, split.
        initial: Initial weights, in the order of the engine's ``weights``.
        coefficients: Name of a weight, as the engine's ``penalties`` has it -> ``c`` of
            its penalty ``c * sum(w**2)``; 0 for those that are left out.
        seed: Seed of batch order and dropout masks.
        epochs: Passes over the training data, at most.
        dropout: Dropout rate.
        weight_decay: Decoupled weight decay on the weights that may be penalized.
        learning_rate: ``None`` for that of the engine's optimizer.
        patience: Epochs without a lower validation data loss after which to stop and
            go back to the best; ``None`` trains all epochs and keeps the last.
        adapt: Asked at the end of each epoch for the coefficients of the next, perhaps
            in a thread; ``None`` keeps them. They are values that the steps read:
            nothing is compiled anew.
    """

    problem: Problem
    initial: Sequence[np.ndarray]
    coefficients: Mapping[str, float]
    seed: int
    epochs: int
    dropout: float = 0.0
    weight_decay: float = 0.0
    learning_rate: float | None = None
    patience: int | None = None
    adapt: Adapt | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """A network on one set, dropout off.

    Args:
        data_loss: Mean loss without penalties.
        penalty: ``sum of c * sum(w**2)``.
        accuracy: Share of right answers; ``None`` in a regression.
        outputs: Of each example.
    """

    data_loss: float
    penalty: float
    accuracy: float | None
    outputs: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Gradients:
    """Norms of weights and of their data gradients on one batch, dropout off."""

    weights: dict[str, float]
    data: dict[str, float]


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """What a job left.

    Args:
        curves: ``data_loss``, ``penalty``, and for classes ``accuracy`` -> value by
            epoch, means over the epoch with dropout on; the same with ``val_`` before
            the name, of the validation set after the epoch. And what ``Job.adapt``
            gave.
        norms: ``weight``, ``data_gradient`` and ``penalty_gradient`` -> name of the
            weight -> norm at the first step of each epoch.
        best_epoch: Epoch of the lowest validation data loss, counted from 1.
        kept_epoch: Epoch whose weights were kept.
        steps: Steps that were trained.
        seconds: Wall time of the training; jobs of a batch share it.
        evaluations: Set -> its evaluation with the weights that were kept, of the sets
            that were asked for.
        gradients: With the weights that were kept; ``None`` if not asked for.
        weights: The weights that were kept, in the order of ``Job.initial``; ``None``
            if not asked for.
        coefficients: Name of a weight -> the ``c`` after the epoch that was kept.
    """

    curves: dict[str, list[float]]
    norms: dict[str, dict[str, list[float]]]
    best_epoch: int
    kept_epoch: int
    steps: int
    seconds: float
    evaluations: dict[str, Evaluation]
    gradients: Gradients | None
    weights: list[np.ndarray] | None
    coefficients: dict[str, float] = dataclasses.field(default_factory=dict)
