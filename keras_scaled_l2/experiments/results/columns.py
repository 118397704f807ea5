"""The tables of a comparison: a row an arm, the same cells wherever they are shown."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median

from keras_scaled_l2.experiments.results import words
from keras_scaled_l2.experiments.results.analysis import Analysis
from keras_scaled_l2.experiments.results.paired import REFERENCE, Difference
from keras_scaled_l2.experiments.results.records import (
    ArmRecord,
    ComparisonRecord,
    Cost,
    Hyperparameters,
    RunRecord,
)
from keras_scaled_l2.experiments.results.spread import mean_std
from keras_scaled_l2.experiments.results.words import NOTHING

Cell = Callable[[ArmRecord], str]

NOTES = {
    "test data loss": "without the penalty, dropout off; in brackets the 95 % interval "
    "of the mean over the seeds (Student's t)",
    "test accuracy": "in brackets likewise",
    "ECE": "expected calibration error on the test set",
    "gap": "train - test accuracy; in a regression test - train data loss",
    "coefficient c": "keras.regularizers.L2(c) is the same",
    "starting cost = data + penalty": "before the first step, whole training set, "
    "dropout off",
    "penalty share %": "penalty / cost, start -> end (with the weights that were kept)",
    "gradient ratio": "norm of the penalty's gradient / of the data gradient, one "
    "batch, start -> end; median over the weights",
    "weight norm end": "of all weights that a penalty would be put on",
    "best epoch": "of the lowest validation data loss",
    "ms per step": "training, compilation left out",
}
"""Header of a column -> what it means."""


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table: its header and a cell for each arm."""

    header: str
    cells: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Table:
    """A title and columns, the names of the arms first."""

    title: str
    columns: tuple[Column, ...]

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """The headers, then the cells of each arm."""
        columns = [(column.header, *column.cells) for column in self.columns]
        return list(zip(*columns, strict=True))

    @property
    def notes(self) -> list[str]:
        """What the columns mean, of those that need to be told."""
        headers = [column.header for column in self.columns]
        return [f"{name}: {NOTES[name]}." for name in headers if name in NOTES]


def tables(record: ComparisonRecord, analyses: Sequence[Analysis]) -> list[Table]:
    """Results, training, and differences by metric; empty columns are left out."""
    found = {
        "Results": _results(record),
        "What the penalty was and did": _training(record),
        **{_title(a): _differences(record, a) for a in analyses if a.arms.best},
    }
    names = Column("arm", tuple(arm.name for arm in record.arms))
    filled = {
        title: [c for c in columns if set(c.cells) - {NOTHING}]
        for title, columns in found.items()
    }
    return [
        Table(title, (names, *columns)) for title, columns in filled.items() if columns
    ]


def penalty(arm: ArmRecord) -> str:
    """The rule with its strength; where it was tuned, smallest to largest."""
    return words.penalty([h.rule for h in _trained(arm)])


def _trained(arm: ArmRecord) -> list[Hyperparameters]:
    """What the arm was trained with: as given, or what each seed chose."""
    given = [arm.hyperparameters]
    return [run.hyperparameters for run in arm.runs] if arm.grid else given


def _results(record: ComparisonRecord) -> Iterable[Column]:
    means = [mean_std(arm.test("data_loss")).mean for arm in record.arms]
    spec = f".{words.places(means)}f"
    gap = "+.4f" if any(arm.test("accuracy") for arm in record.arms) else f"+{spec}"
    return _columns(
        record,
        {
            "penalty": penalty,
            "dropout": lambda arm: _span(arm, "dropout"),
            "weight decay": lambda arm: _span(arm, "weight_decay"),
            "test data loss": lambda arm: _with_interval(arm, "data_loss", spec),
            "test accuracy": lambda arm: _with_interval(arm, "accuracy", ".4f"),
            "ECE": lambda arm: words.mean(arm.test("calibration_error"), ".4f"),
            "gap": lambda arm: words.mean(map(_gap, arm.runs), gap),
        },
    )


def _training(record: ComparisonRecord) -> Iterable[Column]:
    def mean(of: Callable[[RunRecord], float | None], spec: str) -> Cell:
        return lambda arm: words.mean(map(of, arm.runs), spec)

    return _columns(
        record,
        {
            "coefficient c": _coefficients,
            "starting cost = data + penalty": _starting_cost,
            "penalty share %": _shares,
            "gradient ratio": _ratios,
            "weight norm end": mean(lambda run: run.weight_norms.get("end"), ".4g"),
            "best epoch": mean(lambda run: run.best_epoch, ".1f"),
            "ms per step": mean(_step_time, ".2f"),
        },
    )


def _columns(record: ComparisonRecord, cells: Mapping[str, Cell]) -> list[Column]:
    return [Column(name, tuple(map(of, record.arms))) for name, of in cells.items()]


def _title(analysis: Analysis) -> str:
    better = "positive" if analysis.metric.higher_is_better else "negative"
    seeds = words.counted(analysis.arms.seeds, "seed")
    return f"Differences in {analysis.metric.name}, {seeds}, {better} is better"


def _differences(record: ComparisonRecord, analysis: Analysis) -> Iterable[Column]:
    """To ``none``, and to the best arm if that says more."""
    arms = analysis.arms
    said = REFERENCE in arms.means and (
        # Of two arms there is one difference.
        arms.best == REFERENCE or len(arms.means) == 2
    )
    for name, mark in [(REFERENCE, "")] + [(str(arms.best), " (best)")] * (not said):
        by_arm = {d.arm: d for d in arms.versus(name)}
        if not by_arm:
            continue
        lost = dict.fromkeys(arms.diverged, words.DIVERGED)
        means = {a: difference(d, analysis.spec) for a, d in by_arm.items()} | lost
        p = {a: words.p_value(d.p_corrected) for a, d in by_arm.items()} | lost
        for header, cells in ((f"minus {name}{mark}", means), ("corrected p", p)):
            shown = [cells.get(arm.name, NOTHING) for arm in record.arms]
            yield Column(header, tuple(shown))


def difference(d: Difference, spec: str) -> str:
    """The mean, and the interval that holds with those of all pairs."""
    ends = words.interval(d.low_corrected, d.high_corrected, spec)
    return f"{d.mean:+{spec}}{ends}"


def _span(arm: ArmRecord, name: str) -> str:
    """The dropout rate or the weight decay; nothing where it is switched off."""
    values = [getattr(hyperparameters, name) for hyperparameters in _trained(arm)]
    return words.span(values) if any(values) else NOTHING


def _with_interval(arm: ArmRecord, metric: str, spec: str) -> str:
    found = mean_std(arm.test(metric))
    ends = words.interval(found.low, found.high, spec)
    return f"{words.number(found.mean, spec)}{ends}"


def _coefficients(arm: ArmRecord) -> str:
    tuned = [c for run in arm.runs for c in run.coefficients.values()]
    return words.span(tuned or list(arm.coefficients.values()))


def _starting_cost(arm: ArmRecord) -> str:
    if not arm.runs:
        return NOTHING
    total, data, penalty_ = (
        words.mean((getattr(run.starting_cost, part) for run in arm.runs), ".4g")
        for part in ("total", "data", "penalty")
    )
    return f"{total} = {data} + {penalty_}"


def _shares(arm: ArmRecord) -> str:
    if not any(run.starting_cost.penalty for run in arm.runs):
        return NOTHING
    return _start_to_end(
        [_percent(run.starting_cost) for run in arm.runs],
        [_percent(run.final_cost) for run in arm.runs],
    )


def _percent(cost: Cost | None) -> float | None:
    share = None if cost is None else cost.share
    return None if share is None else 100 * share


def _ratios(arm: ArmRecord) -> str:
    start, end = (
        [
            median(ratios.values())
            if (ratios := run.gradient_ratios.get(when))
            else None
            for run in arm.runs
        ]
        for when in ("start", "end")
    )
    return _start_to_end(start, end)


def _start_to_end(start: Iterable[float | None], end: Iterable[float | None]) -> str:
    first, last = words.mean(start, ".3g"), words.mean(end, ".3g")
    return NOTHING if first == last == NOTHING else f"{first} -> {last}"


def _gap(run: RunRecord) -> float:
    if run.diverged:
        return math.nan
    if run.train.accuracy is not None and run.test.accuracy is not None:
        return run.train.accuracy - run.test.accuracy
    return run.test.data_loss - run.train.data_loss


def _step_time(run: RunRecord) -> float | None:
    return 1000 * run.seconds / run.steps if run.steps else None
