"""What a comparison leaves behind."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from keras_scaled_l2.experiments.results.record import FileRecord, Record


@dataclasses.dataclass(frozen=True)
class Cost(Record):
    """A cost and its two parts, ``total == data + penalty`` to float32 rounding."""

    total: float
    data: float
    penalty: float

    @property
    def share(self) -> float | None:
        """The penalty's share of the cost, where there is something to share."""
        return self.penalty / self.total if self.total > 0 else None


@dataclasses.dataclass(frozen=True)
class Score(Record):
    """How a trained network does on one set: without penalty, dropout switched off.

    Args:
        data_loss: The loss without penalties.
        accuracy: Share of examples that are right; ``None`` for regression.
        calibration_error: Expected calibration error, on the test set only; ``None``
            elsewhere and for regression.
    """

    data_loss: float
    accuracy: float | None
    calibration_error: float | None = None


@dataclasses.dataclass(frozen=True)
class Hyperparameters(Record):
    """What an arm adds to the network: the values that a tuning may choose.

    Args:
        rule: Config of the rule, or ``None``.
        dropout: Dropout rate.
        weight_decay: Decoupled weight decay of the optimizer.
    """

    rule: dict[str, Any] | None = None
    dropout: float = 0.0
    weight_decay: float = 0.0


PLAIN = Hyperparameters()
"""No penalty, no dropout, no weight decay."""


@dataclasses.dataclass(frozen=True)
class Trial(Record):
    """Hyperparameters tried on the validation data, before the run that counts.

    Args:
        hyperparameters: What was tried.
        data_loss: Validation data loss, of the best epoch if training stops early.
        best_epoch: Epoch of the lowest validation data loss, counted from 1.
    """

    hyperparameters: Hyperparameters
    data_loss: float
    best_epoch: int


@dataclasses.dataclass(frozen=True)
class RunRecord(Record):
    """One run: one arm from one seed.

    Args:
        seed: The seed of split, initial weights, batch order and dropout masks.
        starting_cost: Before the first step, on the whole training set, dropout off.
        train: With the weights that were kept, as ``validation`` and ``test``.
        validation: On the validation set.
        test: On the test set.
        seconds: Wall time of the training, compilation left out.
        final_cost: As ``starting_cost``, with the weights that were kept.
        hyperparameters: What was trained; differs between the seeds where it was
            tuned.
        coefficients: Path of each penalized weight -> effective coefficient ``c``; of a
            rule that learns it the one that it ended with.
        starting_coefficients: The ones that such a rule started from; else empty.
        gradient_ratios: ``"start"`` and ``"end"`` -> path -> norm of the penalty's
            gradient over norm of the data gradient, on one batch of training data,
            dropout off.
        weight_norms: ``"start"`` and ``"end"`` -> norm of all weights that a penalty
            would be put on, taken together.
        best_epoch: Epoch of the lowest validation data loss, counted from 1.
        kept_epoch: Epoch whose weights were kept: the best if training stops early,
            else the last.
        steps: Steps that were trained.
        curves: Name of a quantity (``data_loss``, ``penalty``, ``accuracy``, and these
            with ``val_`` before) -> its value by epoch; those of the training set are
            means over the epoch, dropout on. Of a rule that learns its strength also
            ``c/``, ``gamma/`` and ``gamma_share/`` with the path of each layer.
        norms: ``weight``, ``data_gradient`` and ``penalty_gradient`` -> path of each
            weight that a penalty may be put on -> norm at the first step of each
            epoch, before clipping.
        trials: What was tried on the validation data first; empty if nothing was
            tuned.
    """

    seed: int
    starting_cost: Cost
    train: Score
    validation: Score
    test: Score
    seconds: float
    final_cost: Cost | None = None
    hyperparameters: Hyperparameters = PLAIN
    coefficients: dict[str, float] = dataclasses.field(default_factory=dict)
    gradient_ratios: dict[str, dict[str, float]] = dataclasses.field(
        default_factory=dict
    )
    weight_norms: dict[str, float] = dataclasses.field(default_factory=dict)
    best_epoch: int | None = None
    kept_epoch: int | None = None
    steps: int | None = None
    curves: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    norms: dict[str, dict[str, list[float]]] = dataclasses.field(default_factory=dict)
    trials: tuple[Trial, ...] = ()
    starting_coefficients: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def diverged(self) -> bool:
        """Whether its test loss is NaN or infinite: no number of it means anything."""
        return not math.isfinite(self.test.data_loss)


@dataclasses.dataclass(frozen=True)
class ArmRecord(Record):
    """One arm and its runs, one for each seed.

    Args:
        name: Name of the arm.
        rule: Config of its rule as it was given, or ``None``.
        dropout: Its dropout rate as it was given.
        coefficients: Path of each penalized weight -> effective coefficient ``c`` of
            the rule as it was given.
        runs: The runs that are finished, by order of seeds.
        weight_decay: Its decoupled weight decay as it was given.
        grid: What each seed tries on validation data; empty if the arm is trained as
            it was given.
    """

    name: str
    rule: dict[str, Any] | None
    dropout: float
    coefficients: dict[str, float]
    runs: tuple[RunRecord, ...] = ()
    weight_decay: float = 0.0
    grid: tuple[Hyperparameters, ...] = ()

    @property
    def hyperparameters(self) -> Hyperparameters:
        """What it adds to the network as it was given."""
        return Hyperparameters(self.rule, self.dropout, self.weight_decay)

    @property
    def diverged(self) -> tuple[int, ...]:
        """The seeds that diverged."""
        return tuple(run.seed for run in self.runs if run.diverged)

    def by_seed(self, metric: str) -> dict[int, float]:
        """A test metric by seed; empty where the task does not have it.

        NaN for a run that diverged, whatever the metric: outputs that are no numbers
        have an accuracy all the same.
        """
        if all(getattr(run.test, metric) is None for run in self.runs):
            return {}
        found = {run.seed: getattr(run.test, metric) for run in self.runs}
        lost = {seed for seed, value in found.items() if value is None}
        return {**found, **dict.fromkeys(lost.union(self.diverged), math.nan)}

    def test(self, metric: str) -> list[float]:
        """The same by order of the runs."""
        return list(self.by_seed(metric).values())


@dataclasses.dataclass(frozen=True)
class ComparisonRecord(FileRecord):
    """Arms that were trained on one architecture from the same starting points.

    Args:
        problem: Name of the problem, or path of the user's file.
        architecture: The network in one line.
        weights: Number of its trainable weights, those without a penalty included.
        backend: Keras's backend.
        device: What it ran on.
        versions: Package -> version.
        samples: Examples in ``train``, ``validation`` and ``test``.
        split: ``"by seed"`` if each seed draws its own split into these, ``"given"``
            if they came split.
        epochs: Passes over the training data.
        batch_size: Examples per step.
        optimizer: Class and config of the optimizer.
        arms: The arms, in the order asked for.
        patience: Epochs without a lower validation data loss after which training
            stops and goes back to the best; ``None`` if it does not stop early.
        task: ``"binary"``, ``"classes"`` or ``"regression"``.
        command: The command that made it, but for the seeds; ``None`` if it was called
            from Python.
    """

    kind = "comparison"

    problem: str
    architecture: str
    weights: int
    backend: str
    device: str
    versions: dict[str, str]
    samples: dict[str, int]
    split: str
    epochs: int
    batch_size: int
    optimizer: dict[str, Any]
    arms: tuple[ArmRecord, ...]
    patience: int | None = None
    task: str = "classes"
    command: str | None = None

    def __getitem__(self, name: str) -> ArmRecord:
        """The arm of this name."""
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise KeyError(f"No arm {name!r}: there are {[a.name for a in self.arms]}.")

    @property
    def seeds(self) -> list[int]:
        """The seeds that any arm has finished."""
        return sorted({run.seed for arm in self.arms for run in arm.runs})
