"""A comparison as text: the table by arm, and what it allows to say."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from keras_scaled_l2.experiments.spread import (
    Difference,
    MeanStd,
    mean_std,
    paired_difference,
)

if TYPE_CHECKING:
    from keras_scaled_l2.experiments.records import ArmRecord, Comparison

METRIC_NAMES = {"accuracy": "test accuracy", "data_loss": "test data loss"}

NOTES = (
    "In the table ± is the standard deviation over the seeds (n - 1). Costs at the "
    "start: before the first step, whole training set, dropout off. Data loss: "
    "without the penalty, dropout off. Gap: {gap}. Seconds: training of one run, "
    "compilation left out."
)


def text(comparison: Comparison) -> str:
    """The table in columns, the conclusions, and what the columns mean."""
    headers, rows = _cells(comparison)
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in (headers, ["-" * width for width in widths], *rows)
    ]
    return "\n".join(
        [
            setting(comparison),
            "",
            *(line.rstrip() for line in lines),
            "",
            *conclusions(comparison),
            "",
            _notes(comparison),
        ]
    )


def markdown(comparison: Comparison) -> str:
    """The page: the same table, with everything that is needed to run it again."""
    headers, rows = _cells(comparison)
    table = [
        f"| {' | '.join(line)} |" for line in (headers, ["---"] * len(headers), *rows)
    ]
    versions = ", ".join(f"{k} {v}" for k, v in comparison.versions.items())
    parts = [
        f"# {comparison.problem}: {', '.join(arm.name for arm in comparison.arms)}",
        setting(comparison),
        "\n".join(table),
        "\n".join(f"- {line}" for line in conclusions(comparison)),
        _notes(comparison),
        f"Optimizer: {_optimizer(comparison.optimizer)}.",
        f"Ran on {comparison.device} with {versions}.",
    ]
    return "\n\n".join(parts) + "\n"


def _optimizer(optimizer: Mapping[str, Any]) -> str:
    """The optimizer as a call, without what is switched off."""
    set_ = {k: v for k, v in optimizer["config"].items() if v}
    arguments = ", ".join(f"{name}={value}" for name, value in set_.items())
    return f"{optimizer['class_name']}({arguments})"


def setting(comparison: Comparison) -> str:
    """What was trained, in one line."""
    samples = comparison.samples
    seeds = max((len(arm.runs) for arm in comparison.arms), default=0)
    return (
        f"{comparison.problem}: {comparison.architecture}, {comparison.weights:,} "
        f"weights; {samples['train']} / {samples['validation']} / {samples['test']} "
        f"examples to train / validate / test; {comparison.epochs} epochs of batches "
        f"of {comparison.batch_size}; {seeds} seed{'s' * (seeds != 1)}; "
        f"{comparison.backend}"
    )


def strength(rule: Mapping[str, Any] | None) -> str:
    """What the user set of a rule: its strength, else its first argument."""
    if rule is None:
        return "-"
    config = rule["config"]
    if "strength" in config:
        return f"{config['strength']:.4g}"
    return next((f"{k}={v}" for k, v in config.items()), "-")


def conclusions(comparison: Comparison) -> list[str]:
    """For each test metric one sentence: who won, by how much, and if that is sure."""
    finished = [arm for arm in comparison.arms if arm.runs]
    sentences = []
    for metric, name in METRIC_NAMES.items():
        arms = [arm for arm in finished if arm.test(metric)]
        if arms:
            smallest = 1 / comparison.samples["test"] if metric == "accuracy" else 0.0
            sentences.append(f"By {name} {_conclusion(arms, metric, smallest)}")
    return sentences or ["No run is finished yet."]


def _conclusion(arms: Sequence[ArmRecord], metric: str, resolution: float) -> str:
    lost = [arm.name for arm in arms if not math.isfinite(_mean(arm, metric))]
    prefix = f"(without {', '.join(lost)}, which diverged) " if lost else ""
    # Arms of a comparison that was interrupted are compared on the seeds they share.
    values = _paired([arm for arm in arms if arm.name not in lost], metric)
    seeds = len(next(iter(values.values()), []))
    if len(values) < 2 or not seeds:
        return prefix + "there is nothing to compare yet."
    sign = 1 if metric == "accuracy" else -1
    means = {name: statistics.fmean(runs) for name, runs in values.items()}
    best, second, *_ = sorted(values, key=lambda name: -sign * means[name])
    others = list(dict.fromkeys([second, *(["none"] if "none" in values else [])]))
    # The best was picked among all, so each of its differences is one of many.
    differences = {
        name: paired_difference(
            values[best],
            values[name],
            comparisons=len(values) - 1,
            resolution=resolution,
        )
        for name in others
        if name != best
    }
    return prefix + _sentence(best, means[best], differences, seeds, sign)


def _sentence(
    best: str, mean: float, differences: Mapping[str, Difference], seeds: int, sign: int
) -> str:
    found = " and ".join(
        f"{abs(d.mean):.4f}{'' if d.margin is None else f' ± {d.margin:.4f}'} "
        f"{'above' if sign > 0 else 'below'} {name}"
        for name, d in differences.items()
    )
    if seeds == 1:
        return f"{best} is ahead with {mean:.4f}, {found}; one seed may be luck."
    second = next(iter(differences))
    if differences[second].mean == 0:
        return f"no arm won: {best} and {second} are level with {mean:.4f}."
    interval = f"95 % interval over {seeds} seeds"
    tied = [name for name, d in differences.items() if not d.is_clear]
    if not tied:
        return f"{best} won with {mean:.4f}, {found} ({interval})."
    return (
        f"no arm won: {best} is ahead with {mean:.4f}, {found} ({interval}), which "
        f"does not tell it apart from {' or '.join(tied)}."
    )


def _paired(arms: Sequence[ArmRecord], metric: str) -> dict[str, list[float]]:
    by_seed = {
        arm.name: {run.seed: getattr(run.test, metric) for run in arm.runs}
        for arm in arms
    }
    seeds = [set(runs) for runs in by_seed.values()]
    shared = set.intersection(*seeds) if seeds else set()
    return {name: [runs[s] for s in sorted(shared)] for name, runs in by_seed.items()}


def _mean(arm: ArmRecord, metric: str) -> float:
    mean = mean_std(arm.test(metric)).mean
    return math.nan if mean is None else mean


def _cells(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    headers = [
        "arm",
        "strength",
        "coefficient c",
        "cost at the start = data + penalty",
        "test data loss",
        "test accuracy",
        "gap",
        "seconds",
    ]
    return headers, [_row(arm) for arm in comparison.arms]


def _row(arm: ArmRecord) -> list[str]:
    costs = [run.starting_cost for run in arm.runs]
    parts = [
        mean_std([getattr(cost, part) for cost in costs])
        for part in ("total", "data", "penalty")
    ]
    total, data, penalty = (_number(part.mean, ".4g") for part in parts)
    return [
        arm.name,
        strength(arm.rule),
        _range(list(arm.coefficients.values())),
        f"{total} = {data} + {penalty}" if costs else "-",
        _spread(arm.summary["test_data_loss"]),
        _spread(arm.summary["test_accuracy"]),
        _gap(arm),
        _number(mean_std([run.seconds for run in arm.runs]).mean, ".2f"),
    ]


def _gap(arm: ArmRecord) -> str:
    gaps = []
    for run in arm.runs:
        if run.train.accuracy is not None and run.test.accuracy is not None:
            gaps.append(run.train.accuracy - run.test.accuracy)
        else:
            gaps.append(run.test.data_loss - run.train.data_loss)
    return _number(mean_std(gaps).mean, "+.4f")


def _notes(comparison: Comparison) -> str:
    runs = itertools.chain.from_iterable(arm.runs for arm in comparison.arms)
    classes = all(run.test.accuracy is not None for run in runs)
    gap = "train - test accuracy" if classes else "test - train data loss"
    return NOTES.format(gap=gap)


def _range(values: Sequence[float]) -> str:
    if not values:
        return "-"
    low, high = min(values), max(values)
    return f"{low:.3g}" if low == high else f"{low:.3g} .. {high:.3g}"


def _spread(value: MeanStd) -> str:
    mean = _number(value.mean, ".4f")
    return mean if value.std is None else f"{mean} ± {_number(value.std, '.4f')}"


def _number(value: float | None, spec: str) -> str:
    if value is None:
        return "-"
    return format(value, spec) if math.isfinite(value) else "diverged"
