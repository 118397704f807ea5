"""From the trainings of a transfer to its result."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from keras_scaled_l2.experiments.coefficients import penalizable_sizes
from keras_scaled_l2.experiments.errors import InputError
from keras_scaled_l2.experiments.plan import Plan
from keras_scaled_l2.experiments.plane import (
    Point,
    best_pair,
    followed,
    half_decades,
    means,
)
from keras_scaled_l2.experiments.results import scaling, transfer_text
from keras_scaled_l2.experiments.results.scaling import Sweep
from keras_scaled_l2.experiments.results.transfer_records import (
    Regret,
    RuleTransfer,
    TransferJob,
    TransferPoint,
    TransferSize,
)
from keras_scaled_l2.experiments.results.transferring import TransferResult
from keras_scaled_l2.experiments.search import Place
from keras_scaled_l2.experiments.transfer_lines import (
    POWERS,
    SWEEP,
    WITH_RATE,
    Key,
    Line,
)
from keras_scaled_l2.experiments.transfer_plan import TransferPlan

Records = dict[tuple[Key, int], dict[str, Any]]
"""Key of the training and seed -> what it reached, at one size."""
_NAMES = {"loss": "data_loss", "accuracy": "accuracy"}
"""Criterion of the search -> its name in the result."""


def points_of(
    line: Line, records: Records, seeds: Sequence[int]
) -> Iterator[tuple[Point, dict[str, Any]]]:
    """The points of a line that were trained, whatever they were trained for."""
    for ((kind, place, rate), seed), record in records.items():
        own, shift = line.key(0, rate)[:2]
        if place is None:
            yield Point(None, rate, seeds.index(seed)), record
        elif kind == own:
            yield Point(place - (shift or 0), rate, seeds.index(seed)), record


def best_places(plan: TransferPlan, line: Line, records: Records) -> dict[str, Place]:
    """Criterion -> the place of a line that is best with all seeds."""
    known = dict(points_of(line, records, plan.seeds))
    everything = range(len(plan.seeds))
    return {c: best_pair(means(known, c, everything))[0] for c in plan.criteria}


def check_trained(plan: TransferPlan, size: int, records: Records) -> None:
    """Refuse what has no best strength.

    Raises:
        InputError: If no strength has a finite validation loss with all seeds.
    """
    known = dict(points_of(plan.line(SWEEP, size), records, plan.seeds))
    found = means(known, "loss", range(len(plan.seeds)))
    if not any(map(math.isfinite, found.values())):
        raise InputError(
            f"every training of {plan.members[size].architecture.name} on "
            f"{plan.plans[size].problem.name!r} diverged, at every strength and "
            "learning rate: expected a finite validation loss. Scale features and "
            "targets, for instance to mean 0 and deviation 1."
        )


def make_result(plan: TransferPlan, records: Sequence[Records]) -> TransferResult:
    """The result of all trainings, statistics and findings included."""
    sweeps = {
        criterion: [
            _sweep(plan, criterion, size, found) for size, found in enumerate(records)
        ]
        for criterion in plan.criteria
    }
    first = plan.plans[0]
    config = {k: v for k, v in first.optimizer.config.items() if k != "learning_rate"}
    result = TransferResult(
        problem=first.problem.name,
        model=plan.family,
        optimizer={**first.optimizer.to_dict(), "config": config},
        samples=plan.data(plan.seeds[0]).samples,
        epochs=first.epochs,
        batch_size=first.batch_size,
        seeds=plan.seeds,
        steps=sum(r["steps"] for found in records for r in found.values()),
        sizes=tuple(_size(plan, sweeps, i, r) for i, r in enumerate(records)),
        rules=tuple(
            _rule(plan, rule, criterion, sweeps[criterion], records)
            for criterion in plan.criteria
            for rule in plan.rules
        ),
        exponents={_NAMES[c]: scaling.exponent(found) for c, found in sweeps.items()},
    )
    findings = tuple(transfer_text.findings(result))
    return dataclasses.replace(result, findings=findings)


def _sweep(plan: TransferPlan, criterion: str, size: int, records: Records) -> Sweep:
    line = plan.line(SWEEP, size)
    finished = dict(points_of(line, records, plan.seeds))
    # Under the half-life other coefficients were trained at one learning rate alone.
    known, _ = followed(finished, plan.plane(line))
    everything = range(len(plan.seeds))
    places = {place for place, _ in means(known, criterion, everything)}
    values = {
        0.0 if place is None else half_decades(place): _values(
            plan, known, criterion, place
        )
        for place in places
    }
    samples = plan.data(plan.seeds[0]).samples["validation"]
    resolution = 1 / samples if criterion == "accuracy" else 0.0
    return Sweep(plan.members[size].weights, values, resolution)


def _values(
    plan: TransferPlan,
    known: Mapping[Point, Mapping[str, Any]],
    criterion: str,
    place: Place,
) -> dict[int, float]:
    """Seed -> value at the best learning rate of a strength, lower is better."""
    found = means(known, criterion, range(len(plan.seeds)))
    _, rate = best_pair({pair: v for pair, v in found.items() if pair[0] == place})
    values = {}
    for i, seed in enumerate(plan.seeds):
        value = known[Point(place, rate, i)][criterion]
        value = math.nan if value is None else float(value)
        values[seed] = 1.0 - value if criterion == "accuracy" else value
    return values


def _size(
    plan: TransferPlan, sweeps: Mapping[str, list[Sweep]], size: int, records: Records
) -> TransferSize:
    member = plan.members[size]
    gain = {}
    for criterion, found in sweeps.items():
        means_ = {
            c: statistics.fmean(v.values()) for c, v in found[size].values.items()
        }
        lowest = min(v for v in means_.values() if math.isfinite(v))
        # Of a loss of exactly 0 there are no shares.
        unit = (means_[0.0] if criterion == "loss" else 1.0) or 1.0
        gain[_NAMES[criterion]] = (means_[0.0] - lowest) / unit
    return TransferSize(
        width=member.width,
        weights=member.weights,
        architecture=member.architecture.name,
        best={_NAMES[c]: scaling.optimum(found[size]) for c, found in sweeps.items()},
        gain=gain,
        points=tuple(_points(plan, size, records)),
    )


def _points(plan: TransferPlan, size: int, records: Records) -> Iterator[TransferPoint]:
    order = {rule: i for i, rule in enumerate(plan.lines)}
    groups: dict[Key, list[TransferJob]] = {}
    for (key, seed), record in records.items():
        loss = record["loss"]
        groups.setdefault(key, []).append(
            TransferJob(
                seed,
                math.nan if loss is None else loss,
                *(record[n] for n in ("accuracy", "best_epoch", "steps")),
            )
        )
    lines = {rule: plan.line(rule, size) for rule in plan.lines}
    for kind, place, rate in sorted(
        groups, key=lambda k: (order[k[0]], k[1] is not None, k[1] or 0, k[2])
    ):
        shift = rate if kind in WITH_RATE and place is not None else 0
        line, own = lines[kind], None if place is None else place + shift
        chosen = line.regularization(own, rate)
        strength = chosen.weight_decay if kind == "decay" else line.strength(place)
        yield TransferPoint(
            rule=kind,
            strength=strength,
            coefficient=chosen.span,
            weight_decay=chosen.weight_decay,
            learning_rate=half_decades(rate),
            jobs=tuple(sorted(groups[kind, place, rate], key=lambda job: job.seed)),
        )


def _rule(
    plan: TransferPlan,
    rule: str,
    criterion: str,
    sweeps: Sequence[Sweep],
    records: Sequence[Records],
) -> RuleTransfer:
    kind = SWEEP if rule in POWERS else rule
    place = best_places(plan, plan.line(kind, 0), records[0])[criterion]
    regrets = []
    for size, sweep in enumerate(sweeps):
        beyond, strength = False, None
        if rule in POWERS:
            shrunk = (_penalized(plan, 0) / _penalized(plan, size)) ** POWERS[rule]
            strength = 0.0 if place is None else half_decades(place) * shrunk
            values, beyond = scaling.at(sweep, strength)
        else:
            line = plan.line(rule, size)
            known = dict(points_of(line, records[size], plan.seeds))
            values = _values(plan, known, criterion, place)
        found = scaling.regret(sweep, values, share=criterion == "loss")
        regrets.append(
            Regret(sweep.weights, strength, found.value, found.low, found.high, beyond)
        )
    return RuleTransfer(
        rule, _NAMES[criterion], _strength(plan, rule, place), tuple(regrets)
    )


def _strength(plan: TransferPlan, rule: str, place: Place) -> float:
    """A strength as its rule counts it; half-lives are in epochs."""
    if place is None:
        return 0.0
    if rule in WITH_RATE:
        return _half_life(plan.plans[0], half_decades(place), rule == "decay")
    if rule == "sample":
        return 2.0 * plan.data(plan.seeds[0]).samples["train"] * half_decades(place)
    if rule in POWERS:
        return half_decades(place) * float(_penalized(plan, 0) ** POWERS[rule])
    return plan.line(rule, 0).strength(place)


def _half_life(plan: Plan, product: float, decoupled: bool) -> float:
    """Epochs in which a weight without data gradient halves.

    ``product``: learning rate times coefficient, or times decoupled decay.
    """
    per_step = product
    if not decoupled:
        momentum = float(plan.optimizer.config.get("momentum") or 0.0)
        per_step = 2.0 * product / (1.0 - momentum)
    samples = plan.problem.samples["train"]
    return math.log(2.0) / per_step / math.ceil(samples / plan.batch_size)


def _penalized(plan: TransferPlan, size: int) -> int:
    return sum(penalizable_sizes(plan.plans[size].network).values())
