"""Many trainings of one architecture by one compiled program."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from keras_scaled_l2.experiments.problems import Problem


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """One training: what differs between the jobs of an architecture.

    Args:
        problem: The data, split.
        initial: Initial weights, in the order of the network's ``weights``.
        coefficients: Path of a weight -> ``c`` of its penalty ``c * sum(w**2)``.
        seed: Seed of batch order and dropout masks.
        epochs: Passes over the training data, at most.
        dropout: Dropout rate.
        weight_decay: Decoupled weight decay on the weights that may be penalized.
        learning_rate: ``None`` for that of the engine's optimizer.
        patience: Epochs without a lower validation data loss after which to stop and
            go back to the best; ``None`` trains all epochs and keeps the last.
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


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """What a job left.

    Args:
        curves: ``data_loss``, ``penalty``, ``val_data_loss``, and for classes
            ``accuracy``, ``val_accuracy`` -> value by epoch; those of the training set
            are means over the epoch, dropout on.
        norms: ``weight``, ``data_gradient`` and ``penalty_gradient`` -> path -> norm at
            the first step of each epoch.
        best_epoch: Epoch of the lowest validation data loss, counted from 1.
        kept_epoch: Epoch whose weights were kept.
        steps: Steps that were trained.
        seconds: Wall time, compilation left out.
        weights: The weights that were kept, in the order of ``Job.initial``.
    """

    curves: Mapping[str, Sequence[float]]
    norms: Mapping[str, Mapping[str, Sequence[float]]]
    best_epoch: int
    kept_epoch: int
    steps: int
    seconds: float
    weights: Sequence[np.ndarray]
