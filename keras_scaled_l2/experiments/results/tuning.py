"""``TuningResult``: from what was measured to what a tuning found."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from keras_scaled_l2.experiments.errors import InputError
from keras_scaled_l2.experiments.results import tuning_text
from keras_scaled_l2.experiments.results.curve import Sample, curve
from keras_scaled_l2.experiments.results.tuning_records import (
    Evidence,
    TuningJob,
    TuningPoint,
    TuningRecord,
)

CRITERIA = ("data_loss", "accuracy")


@dataclasses.dataclass(frozen=True)
class Measured:
    """A strength and its trainings, before any statistics."""

    strength: float
    coefficient: tuple[float, float]
    e_folds: float
    inert: bool
    jobs: tuple[TuningJob, ...]


class TuningResult(TuningRecord):
    """What a tuning found, as text and as plain data.

    ``result[0.01]`` is the point of that strength; for the fields, which are those of
    tuning.json, see ``TuningRecord``.
    """

    def table(self) -> str:
        """The curve as text, with the findings."""
        return tuning_text.as_text(self)

    def to_markdown(self) -> str:
        """The same as Markdown."""
        return tuning_text.as_markdown(self)

    def code(self) -> str:
        """The line of code that puts the best strength to use."""
        return tuning_text.code(self)


def make_result(
    measured: Sequence[Measured],
    *,
    exact: bool = True,
    inert_below: float | None = None,
    notes: Sequence[str] = (),
    evidence: Evidence | None = None,
    dropout: float | None = None,
    **fields: Any,
) -> TuningResult:
    """The result of what was measured, statistics and findings included.

    Args:
        measured: The strengths.
        exact: Whether e-folds have their meaning, so that there is a half-life.
        inert_below: The strength below which nothing happens, if it is known.
        notes: Findings of the search itself, put after the others.
        evidence: What the evidence proposed, if it was asked.
        dropout: The rate beside the penalty, where that was tuned first.
        fields: The fields of ``TuningResult`` that are not derived.
    """
    ordered = sorted(measured, key=lambda m: (m.strength != 0, m.e_folds, m.strength))
    higher = fields["criterion"] == "accuracy"
    samples = [Sample(m.strength, _values(m, higher)) for m in ordered]
    try:
        found = curve(
            samples,
            higher_is_better=higher,
            resolution=1 / fields["samples"]["validation"] if higher else 0.0,
        )
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
    chosen = {
        "strength": best.strength,
        "half_life_epochs": _half_life(best, fields["epochs"]) if exact else None,
    }
    return TuningResult(
        **fields,
        evidence=evidence,
        steps=steps,
        points=points,
        best=chosen if dropout is None else chosen | {"dropout": dropout},
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
