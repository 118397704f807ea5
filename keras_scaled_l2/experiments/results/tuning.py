"""What a tuning found: frozen, serializable, format 1 of tuning.json."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from keras_scaled_l2.experiments.errors import InputError
from keras_scaled_l2.experiments.results import tuning_text
from keras_scaled_l2.experiments.results.curve import Sample, curve
from keras_scaled_l2.experiments.results.record import FileRecord, Record
from keras_scaled_l2.units import convert

CRITERIA = ("data_loss", "accuracy")


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
class Measured:
    """A strength and its trainings, before any statistics."""

    strength: float
    coefficient: tuple[float, float]
    e_folds: float
    inert: bool
    jobs: tuple[TuningJob, ...]


@dataclasses.dataclass(frozen=True)
class TuningResult(FileRecord):
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
        best: ``strength`` and ``half_life_epochs``.
        one_standard_error: ``strength``.
        plateau: ``low`` and ``high``.
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

    def table(self) -> str:
        """The curve as text, with the findings."""
        return tuning_text.as_text(self)

    def to_markdown(self) -> str:
        """The same as Markdown."""
        return tuning_text.as_markdown(self)

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
            "batch_size": min(self.batch_size, self.samples["train"]),
        }
        targets = ["keras", "textbook", "torch", "sklearn_mlp", "logistic_c", "ridge"]
        targets.append("prior_std")
        rate = config.get("learning_rate")
        if self.optimizer["class_name"] == "SGD" and isinstance(rate, float):
            known |= {"learning_rate": rate, "momentum": config.get("momentum") or 0.0}
            targets += ["decoupled", "half_life"]
        return {name: convert(high, "keras", name, **known) for name in targets}

    def code(self) -> str:
        """The line of code that puts the best strength to use."""
        strength = self.best["strength"] or 0.0
        return tuning_text.code(self.rule, strength)


def make_result(
    measured: Sequence[Measured],
    *,
    exact: bool = True,
    inert_below: float | None = None,
    notes: Sequence[str] = (),
    evidence: Evidence | None = None,
    **fields: Any,
) -> TuningResult:
    """The result of what was measured, statistics and findings included.

    Args:
        measured: The strengths.
        exact: Whether e-folds have their meaning, so that there is a half-life.
        inert_below: The strength below which nothing happens, if it is known.
        notes: Findings of the search itself, put behind the others.
        evidence: What the evidence proposed, if it was asked.
        fields: The fields of ``TuningResult`` that are not derived.
    """
    ordered = sorted(measured, key=lambda m: (m.strength != 0, m.e_folds, m.strength))
    higher = fields["criterion"] == "accuracy"
    samples = [Sample(m.strength, m.e_folds, _values(m, higher)) for m in ordered]
    try:
        found = curve(samples, higher_is_better=higher)
    except ValueError as error:
        raise InputError(
            f"every training of {fields['rule']!r} diverged: expected a finite "
            "validation loss at some strength. Lower the learning rate."
        ) from error
    points = tuple(
        TuningPoint(
            m.strength, m.coefficient, m.e_folds, m.inert, e.mean, e.low, e.high, m.jobs
        )
        for m, e in zip(ordered, found.estimates, strict=True)
    )
    best = points[found.best]
    findings = tuning_text.findings(
        points, found, rule=fields["rule"], inert_below=inert_below
    )
    steps = sum(job.steps for point in points for job in point.jobs)
    if evidence is not None:
        steps += evidence.steps
        findings += tuning_text.evidence_findings(
            points, found, evidence, rule=fields["rule"]
        )
    return TuningResult(
        **fields,
        evidence=evidence,
        steps=steps,
        points=points,
        best={
            "strength": best.strength,
            "half_life_epochs": _half_life(best, fields["epochs"]) if exact else None,
        },
        one_standard_error={"strength": points[found.one_standard_error].strength},
        plateau=dict(zip(("low", "high"), found.plateau, strict=True)),
        findings=(*findings, *notes),
    )


def _half_life(point: TuningPoint, epochs: int) -> float | None:
    """Epochs in which a weight without data gradient halves."""
    return math.log(2.0) * epochs / point.e_folds if point.e_folds > 0 else None


def _values(measured: Measured, accuracy: bool) -> dict[tuple[int, int], float]:
    def value(job: TuningJob) -> float:
        if not accuracy or not math.isfinite(job.data_loss):
            return job.data_loss
        return math.nan if job.accuracy is None else job.accuracy

    return {(job.seed, job.fold): value(job) for job in measured.jobs}
