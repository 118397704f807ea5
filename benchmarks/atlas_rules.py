"""Rules that L2's sweep does not cover: the table of docs/atlas.md about them.

Coefficients by tensor and by fan-in, and decoupled decay, have trainings of their own.
Each of their cells stands beside that of L2 with the same data, optimizer and network.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from atlas_cells import DECAY, RULES
from atlas_results import (
    GOAL,
    Result,
    interval,
    percent,
    regret_rows,
    signs,
    table,
    title,
)

from keras_scaled_l2.experiments.plane import half_decades
from keras_scaled_l2.experiments.results.scaling import (
    Interval,
    at,
    exponent,
    optimum,
    regret,
)

WORDS = {
    "scaled": "`ScaledL2` by tensor",
    "prior": "`PriorL2`",
    "decay": "decoupled decay",
}


class Row(NamedTuple):
    """A cell of a rule beside that of L2.

    Attributes:
        cell: The rule's.
        best: What its own best strength loses against L2's; below 0 it is better.
        kept: What the strength of the smallest network loses against L2's best here;
            ``None`` at the smallest.
        mean: What its mean coefficient loses, kept instead; likewise.
        l2: What L2's kept strength loses; likewise.
    """

    cell: Result
    best: Interval
    kept: Interval | None
    mean: Interval | None
    l2: Interval | None


def rows(l2: Sequence[Result], others: Sequence[Result]) -> Iterator[Row]:
    """The cells of a rule by group and size, those of one rule together."""
    beside = {(r.group, r.weights): r for r in l2}
    plain = {(g, n): found["plain"] for g, n, found in regret_rows(l2)}
    for cells in series(others):
        first = cells[0]
        for cell in cells:
            key = (cell.group, cell.weights)
            sweep = beside[key].sweep("loss")
            place = cell.best_place(cell.l2, "loss")
            best, _ = cell.column(cell.l2, place, "loss")
            kept: list[Interval | None] = [None, None]
            if cell is not first:
                own = cell.sweep("loss")
                strengths = (kept_strength(first, cell), first.tuned())
                kept = [regret(sweep, at(own, c)[0], share=True) for c in strengths]
            yield Row(cell, regret(sweep, best, share=True), *kept, plain.get(key))


def series(others: Sequence[Result]) -> list[list[Result]]:
    """Cells that differ only in size."""
    order = list(RULES)
    ordered = sorted(others, key=lambda r: order.index(r.rule))
    return [
        list(found)
        for _, found in itertools.groupby(ordered, key=lambda r: (r.rule, r.group))
    ]


def kept_strength(first: Result, cell: Result) -> float:
    """The mean coefficient in a cell of the strength that another was tuned to."""
    units = [r.head["mean_coefficient"] for r in (cell, first)]
    return float(first.tuned() * units[0] / units[1])


def rules(l2: Sequence[Result], others: Sequence[Result]) -> str:
    """Sentences on each rule, and a row for each of its cells."""
    found = list(rows(l2, others))
    lines = []
    for rule, words in WORDS.items():
        chosen = [row for row in found if row.cell.rule == rule]
        if any(row.kept for row in chosen):
            lines.append(f"- **{words}**: {_words(chosen, others, rule)}")
    head = [
        *("", "weights", "best strength", "learning rate", "its best against L2's"),
        *("kept", "mean c kept", "L2 kept"),
    ]
    return "\n".join([*lines, "", table(head, [_row(row) for row in found])])


def _words(chosen: Sequence[Row], others: Sequence[Result], rule: str) -> str:
    kept = [row.kept for row in chosen if row.kept]
    best = [row.best for row in chosen]
    surely = sum(r.low is not None and r.low > GOAL for r in kept)
    mean = ""
    if rule != DECAY:
        means = [row.mean for row in chosen if row.mean]
        mean = f" (with the mean coefficient kept instead {_spread(means)})"
    slopes = [
        exponent([r.sweep("loss") for r in cells])
        for cells in series(others)
        if cells[0].rule == rule and len(cells) > 1
    ]
    exponents = [s.value for s in slopes]
    return (
        f"kept, the strength loses at most 2 % in {sum(r.value <= GOAL for r in kept)} "
        f"of {len(kept)} larger cells; surely more in {surely}; "
        f"{_spread(kept)}{mean}. {_versus(best)} Best mean c ~ N^a: a from "
        f"{min(exponents):.2f} to {max(exponents):.2f} in {len(slopes)} groups, median "
        f"{statistics.median(exponents):.2f}. {signs(slopes)}"
    )


def _spread(values: Sequence[Interval]) -> str:
    numbers = [100 * v.value for v in values]
    return f"median {statistics.median(numbers):.1f} %, largest {max(numbers):.0f} %"


def _versus(best: Sequence[Interval]) -> str:
    better = sum(r.high is not None and r.high < 0 for r in best)
    worse = sum(r.low is not None and r.low > 0 for r in best)
    return (
        f"At its own best strength it is {_spread(best)} above L2's best, surely "
        f"better in {better} of {len(best)} cells and surely worse in {worse}."
    )


def _row(row: Row) -> list[str]:
    cell = row.cell
    best = optimum(cell.sweep("loss"))
    _, rate = cell.column(cell.l2, cell.best_place(cell.l2, "loss"), "loss")
    return [
        f"{WORDS[cell.rule]}, {title(cell.group).replace(' 1,000 examples,', '')}",
        f"{cell.weights:,}",
        interval(best, ".1e") + (" *" if best.edge else ""),
        f"{half_decades(rate):.2g}",
        percent(row.best),
        *("-" if r is None else percent(r) for r in (row.kept, row.mean, row.l2)),
    ]
