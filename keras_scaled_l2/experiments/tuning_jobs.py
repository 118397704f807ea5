"""From the key of a training to its job, and from what it left to its record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras_scaled_l2.experiments.coefficients import penalizable_sizes
from keras_scaled_l2.experiments.following import Follower
from keras_scaled_l2.experiments.jobs import Job, Trained
from keras_scaled_l2.experiments.results.tuning_records import Evidence
from keras_scaled_l2.experiments.runs import validation_score
from keras_scaled_l2.experiments.trials import EVIDENCE, Key
from keras_scaled_l2.experiments.tuning_plan import TuningPlan, follower

Record = Mapping[str, Any]


def make_job(plan: TuningPlan, key: Key) -> Job:
    """What a key is trained as."""
    strength, seed, fold = key
    if strength == EVIDENCE:
        return _evidence_job(plan, seed)
    chosen = plan.axis.regularization(strength)
    return Job(
        problem=plan.data((seed, fold)),
        initial=plan.initial(seed),
        coefficients=chosen.coefficients,
        seed=seed,
        epochs=plan.base.epochs,
        dropout=chosen.dropout,
        weight_decay=chosen.weight_decay,
        patience=plan.base.patience,
    )


def _evidence_job(plan: TuningPlan, seed: int) -> Job:
    """All epochs: the evidence is known at the optimum only."""
    follows = follower(plan)
    return Job(
        problem=plan.data(plan.evidence_block),
        initial=plan.initial(seed),
        coefficients=follows.initial,
        seed=seed,
        epochs=plan.base.epochs,
        adapt=follows,
    )


def make_record(job: Job, trained: Trained, stopped: bool) -> dict[str, Any]:
    """What is written down of a training."""
    score = validation_score(trained)
    record: dict[str, Any] = {
        "data_loss": score.data_loss,
        "accuracy": score.accuracy,
        "best_epoch": trained.best_epoch,
        "kept_epoch": trained.kept_epoch,
        "steps": trained.steps,
        "stopped": stopped,
        "curve": trained.curves["val_data_loss"],
    }
    if isinstance(job.adapt, Follower):
        unknown = job.adapt.unknown
        found = trained.coefficients.items()
        record["coefficients"] = {p: c for p, c in found if p not in unknown}
        record["gammas"] = job.adapt.gammas
    return record


def apart(finished: Mapping[Key, Record]) -> tuple[dict[Key, Record], Record | None]:
    """The trainings of strengths, and the one that had the evidence propose one."""
    proposed = [record for (s, *_), record in finished.items() if s == EVIDENCE]
    others = {key: record for key, record in finished.items() if key[0] != EVIDENCE}
    return others, proposed[0] if proposed else None


def proposal(plan: TuningPlan, record: Record) -> Evidence:
    """What the evidence proposed, as it is told."""
    sizes = penalizable_sizes(plan.base.network)
    names = ("coefficients", "gammas", "data_loss", "accuracy", "steps")
    return Evidence(
        strength=plan.axis.strength_like(record["coefficients"], sizes),
        seed=plan.evidence_block[0],
        **{name: record[name] for name in names},
    )
