"""What is left of a tuning: frozen, serializable, format 1 of tuning.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from keras_scaled_l2.experiments.results.record import FileRecord, Record
from keras_scaled_l2.units import convert


@dataclasses.dataclass(frozen=True)
class TuningJob(Record):
    """One training at one strength.

    Args:
        seed: Seed of split or folds, initial weights and batch order.
        fold: Fold that was left out, from 0; 0 for hold-out.
        data_loss: On the validation data, with the weights that were kept.
        accuracy: The same; ``None`` for a regression.
        best_epoch: Epoch of the lowest validation data loss, from 1.
        steps: Steps that were trained.
    """

    seed: int
    fold: int
    data_loss: float
    accuracy: float | None
    best_epoch: int
    steps: int


@dataclasses.dataclass(frozen=True)
class TuningPoint(Record):
    """One strength; see ``curve.Estimate`` for mean and interval.

    Args:
        strength: Of the rule; 0 is no penalty.
        coefficient: Smallest and largest ``c`` on the weights.
        e_folds: Of a whole training, with the largest coefficient.
        inert: Whether the penalty does nothing at this strength.
        mean: Of the criterion.
        low: Lower end of the paired 95 % interval.
        high: Its upper end.
        jobs: The trainings.
    """

    strength: float
    coefficient: tuple[float, float]
    e_folds: float
    inert: bool
    mean: float
    low: float | None
    high: float | None
    jobs: tuple[TuningJob, ...]


def falls(points: Sequence[TuningPoint]) -> bool:
    """Whether the larger strength is the weaker penalty, as of priors and half-lives.

    Args:
        points: From the weakest penalty to the strongest.
    """
    strengths = [point.strength for point in points if point.strength]
    return len(strengths) > 1 and strengths[0] > strengths[-1]


@dataclasses.dataclass(frozen=True)
class Evidence(Record):
    """The training that proposed a strength.

    Args:
        strength: What it proposed: the rule's strength whose coefficients have the same
            geometric mean over the weights.
        coefficients: Weight -> the ``c`` that the evidence gave it.
        gammas: Layer, by its first weight -> its parameters that the data determine.
        seed: Seed of its split, initial weights and batch order.
        data_loss: On its validation data, after the last epoch; nothing was chosen by
            it.
        accuracy: The same; ``None`` for a regression.
        steps: Steps that it was trained.
    """

    strength: float
    coefficients: Mapping[str, float]
    gammas: Mapping[str, float]
    seed: int
    data_loss: float
    accuracy: float | None
    steps: int


@dataclasses.dataclass(frozen=True)
class TuningRecord(FileRecord):
    """What a tuning found; the fields are those of tuning.json.

    Args:
        problem: Name of the problem.
        architecture: The network in one line.
        weights: Number of its trainable weights.
        rule: What was tuned.
        method: ``"holdout"``, ``"kfold"`` or ``"evidence"``.
        criterion: ``"data_loss"`` or ``"accuracy"``, of the validation data.
        optimizer: Class and config.
        samples: Number of examples by set.
        epochs: Epochs of a whole training.
        batch_size: Examples of a step.
        steps: Steps that were trained in all.
        points: From the weakest penalty to the strongest.
        best: ``strength`` and ``half_life_epochs``; ``dropout``, its rate, where that
            was tuned first.
        one_standard_error: ``strength``.
        plateau: ``low`` and ``high``; a ``low`` of 0 is no penalty, to which strengths
            rise from ``high`` where the larger one is the weaker (``falls``).
        findings: In words.
        evidence: What the evidence proposed; ``None`` for the other methods.
    """

    kind = "tuning"

    problem: str
    architecture: str
    weights: int
    rule: str
    method: str
    criterion: str
    optimizer: Mapping[str, Any]
    samples: Mapping[str, int]
    epochs: int
    batch_size: int
    steps: int
    points: tuple[TuningPoint, ...]
    best: Mapping[str, float | None]
    one_standard_error: Mapping[str, float]
    plateau: Mapping[str, float]
    findings: tuple[str, ...]
    evidence: Evidence | None = None

    def __getitem__(self, strength: float) -> TuningPoint:
        """The point of a strength."""
        for point in self.points:
            if point.strength == strength:
                return point
        raise KeyError(strength)

    def equivalents(self) -> dict[str, float]:
        """The best strength in every convention that can express it.

        Empty where the coefficient differs between the weights, or nothing but the
        dropout rate was tuned.
        """
        point = self[self.best["strength"] or 0.0]
        low, high = point.coefficient
        if low != high or not high:
            return {}
        config = self.optimizer["config"]
        known: dict[str, Any] = {
            "samples": self.samples["train"],
            # The examples of one update of the weights.
            "batch_size": min(self.batch_size, self.samples["train"])
            * (config.get("gradient_accumulation_steps") or 1),
        }
        targets = ["keras", "textbook", "torch", "sklearn_mlp", "logistic_c", "ridge"]
        targets.append("prior_std")
        rate = config.get("learning_rate")
        if self.optimizer["class_name"] == "SGD" and isinstance(rate, float):
            known |= {"learning_rate": rate, "momentum": config.get("momentum") or 0.0}
            targets += ["decoupled", "half_life"]
        return {name: convert(high, "keras", name, **known) for name in targets}
