"""The tables of a comparison: a row an arm, the same cells wherever they are shown."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
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


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table: its header, a cell for each arm, and what it means."""

    header: str
    cells: tuple[str, ...]
    note: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether no arm has anything to show here."""
        return all(cell == NOTHING for cell in self.cells)


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
        return [f"{c.header}: {c.note}." for c in self.columns if c.note]


def tables(record: ComparisonRecord, analyses: Sequence[Analysis]) -> list[Table]:
    """Results, training, and differences by metric; empty columns are left out."""
    found = [
        Table("Results", tuple(_results(record))),
        Table("What the penalty was and did", tuple(_training(record))),
        *(
            Table(_title(analysis), tuple(_differences(record, analysis)))
            for analysis in analyses
            if analysis.arms.best is not None
        ),
    ]
    names = Column("arm", tuple(arm.name for arm in record.arms))
    shown = [
        dataclasses.replace(
            table, columns=(names, *(c for c in table.columns if not c.is_empty))
        )
        for table in found
    ]
    return [table for table in shown if len(table.columns) > 1]


def penalty(arm: ArmRecord) -> str:
    """The rule with its strength; where it was tuned, smallest to largest."""
    return words.penalty([h.rule for h in _trained(arm)])


def _trained(arm: ArmRecord) -> list[Hyperparameters]:
    """What the arm was trained with: as given, or what each seed chose."""
    given = [arm.hyperparameters]
    return [run.hyperparameters for run in arm.runs] if arm.grid else given


def _column(
    record: ComparisonRecord,
    header: str,
    cell: Callable[[ArmRecord], str],
    note: str = "",
) -> Column:
    return Column(header, tuple(map(cell, record.arms)), note)


def _results(record: ComparisonRecord) -> Iterable[Column]:
    means = [mean_std(arm.test("data_loss")).mean for arm in record.arms]
    spec = f".{words.places(means)}f"
    regression = all(not arm.test("accuracy") for arm in record.arms)
    gap = f"+{spec if regression else '.4f'}"
    brackets = "in brackets the 95 % interval of the mean over the seeds (Student's t)"
    yield _column(record, "penalty", penalty)
    yield _column(record, "dropout", lambda arm: _span(arm, "dropout"))
    yield _column(record, "weight decay", lambda arm: _span(arm, "weight_decay"))
    yield _column(
        record,
        "test data loss",
        lambda arm: _with_interval(arm, "data_loss", spec),
        f"without the penalty, dropout off; {brackets}",
    )
    yield _column(
        record,
        "test accuracy",
        lambda arm: _with_interval(arm, "accuracy", ".4f"),
        "in brackets likewise",
    )
    yield _column(
        record,
        "ECE",
        lambda arm: words.mean(arm.test("calibration_error"), ".4f"),
        "expected calibration error on the test set",
    )
    yield _column(
        record,
        "gap",
        lambda arm: words.mean(map(_gap, arm.runs), gap),
        "test - train data loss" if regression else "train - test accuracy",
    )


def _training(record: ComparisonRecord) -> Iterable[Column]:
    yield _column(
        record, "coefficient c", _coefficients, "keras.regularizers.L2(c) is the same"
    )
    yield _column(
        record,
        "starting cost = data + penalty",
        _starting_cost,
        "before the first step, whole training set, dropout off",
    )
    yield _column(
        record,
        "penalty share %",
        _shares,
        "penalty / cost, start -> end (with the weights that were kept)",
    )
    yield _column(
        record,
        "gradient ratio",
        _ratios,
        "norm of the penalty's gradient / of the data gradient, one batch, start -> "
        "end; median over the weights",
    )
    yield _column(
        record,
        "weight norm end",
        lambda arm: words.mean((r.weight_norms.get("end") for r in arm.runs), ".4g"),
        "of all weights that a penalty would be put on",
    )
    yield _column(
        record,
        "best epoch",
        lambda arm: words.mean((run.best_epoch for run in arm.runs), ".1f"),
        "of the lowest validation data loss",
    )
    yield _column(
        record,
        "ms per step",
        lambda arm: words.mean(map(_step_time, arm.runs), ".2f"),
        "training, compilation left out",
    )


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
        means, p_values = {}, {}
        for arm, d in by_arm.items():
            means[arm] = difference(d, analysis.spec)
            p_values[arm] = words.p_value(d.p_corrected)
        lost = dict.fromkeys(arms.diverged if by_arm else (), words.DIVERGED)
        for header, cells in (
            (f"minus {name}{mark}", means),
            ("corrected p", p_values),
        ):
            shown = {**cells, **lost}
            yield Column(
                header, tuple(shown.get(arm.name, NOTHING) for arm in record.arms)
            )


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
