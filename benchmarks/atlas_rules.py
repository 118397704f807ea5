"""Rules that L2's sweep does not cover: the table of docs/atlas.md about them.

Coefficients by tensor and by fan-in, and decoupled decay, have trainings of their own.
Each of their cells stands beside that of L2 with the same data, optimizer and network.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from atlas_cells import DECAY, RULES
from atlas_results import (
    GOAL,
    Records,
    Result,
    groups,
    interval,
    percent,
    regret_rows,
    signs,
    table,
    title,
)

from keras_scaled_l2.experiments.plane import Point as PlanePoint
from keras_scaled_l2.experiments.plane import best_pair, half_decades, means
from keras_scaled_l2.experiments.results.scaling import (
    Interval,
    at,
    exponent,
    optimum,
    regret,
)
from keras_scaled_l2.experiments.results.spread import half_width

WORDS = {
    "scaled": "`ScaledL2` by tensor",
    "prior": "`PriorL2`",
    "decay": "decoupled decay",
}
MEASURES = {
    "scaled": "Best mean c",
    "prior": "Best mean c",
    "decay": "Best decay times learning rate",
}
"""What a strength of the rule is in the tables."""


class Row(NamedTuple):
    """A cell of a rule beside that of L2.

    Attributes:
        cell: The rule's.
        best: What its best strength loses against L2's; below 0 it is better.
        kept: What the strength of the smallest network loses against L2's best here;
            ``None`` at the smallest. An edge: it lies outside of the sweep.
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
    smallest = {group: cells[0].weights for group, cells in groups(l2).items()}
    plain = {(g, n): found["plain"] for g, n, found in regret_rows(l2)}
    for cells in series(others):
        first = cells[0]
        for cell in cells:
            key = (cell.group, cell.weights)
            if key not in beside:
                continue
            kept: list[Interval | None] = [None, None]
            if first.weights == smallest[cell.group] < cell.weights:
                strengths = (kept_strength(first, cell), first.tuned())
                kept = [_regret(cell, beside[key], c) for c in strengths]
            if cell.rule == DECAY:
                kept[1] = None  # the strength itself
            yield Row(cell, versus(cell, beside[key]), *kept, plain.get(key))


def _regret(cell: Result, l2: Result, strength: float) -> Interval:
    """What a strength of a rule's cell loses against the best of L2's."""
    sweep = cell.sweep("loss")
    found = regret(l2.sweep("loss"), at(sweep, strength)[0], share=True)
    inside = sweep.strengths[0] <= strength <= sweep.strengths[-1]
    return dataclasses.replace(found, edge=not inside)


def versus(cell: Result, l2: Result) -> Interval:
    """What the best of a cell loses against the best of L2, as a share of it.

    Strength and learning rate of each are chosen on all seeds but one and judged on
    that one, each in turn: chosen on the same numbers either would look better than it
    is. The choices share seeds, so that Student's t over the differences would be too
    narrow; the variance is that of Nadeau and Bengio (2003), 1 / n + 1 / (n - 1) of
    theirs in place of 1 / n. ``tests/test_atlas.py`` counts how often it errs.
    """
    seeds = range(l2.head["seeds"])
    pairs = [
        [chosen_by_others(r.l2, seed, seeds) for r in (cell, l2)] for seed in seeds
    ]
    return _difference(pairs)


def _difference(pairs: Sequence[Sequence[float]]) -> Interval:
    """Mean of the first less the second, over the mean of the second."""
    n = len(pairs)
    unit = statistics.fmean(b for _, b in pairs)
    differences = [(a - b) / unit for a, b in pairs]
    mean = statistics.fmean(differences)
    if not math.isfinite(mean):
        return Interval(math.inf, None, None)
    half = half_width(statistics.stdev(differences), n) * math.sqrt(1 + n / (n - 1))
    return Interval(mean, mean - half, mean + half)


def chosen_by_others(records: Records, seed: int, seeds: Sequence[int]) -> float:
    """The loss of a seed at the strength and learning rate that the others choose."""
    whole = means(records, "loss", seeds)
    others = means(records, "loss", [s for s in seeds if s != seed])
    pair = best_pair({p: value for p, value in others.items() if p in whole})
    loss = records[PlanePoint(*pair, seed)]["loss"]
    return math.inf if loss is None else float(loss)


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
    average = [row.mean for row in chosen if row.mean]
    mean = f" (its mean c kept instead: {_spread(average)})" if average else ""
    slopes = [
        exponent([r.sweep("loss") for r in cells])
        for cells in series(others)
        if cells[0].rule == rule and len(cells) > 1
    ]
    exponents = [s.value for s in slopes]
    return (
        f"kept, the strength loses at most 2 % in {sum(r.value <= GOAL for r in kept)} "
        f"of {len(kept)} larger cells; surely more in {surely}; "
        f"{_spread(kept)}{mean}. {_versus(best)} {MEASURES[rule]} ~ N^a: a from "
        f"{min(exponents):.2f} to {max(exponents):.2f} in {len(slopes)} groups, median "
        f"{statistics.median(exponents):.2f}, {sum(s.edge for s in slopes)} of them "
        f"with an optimum at an end of a sweep. {signs(slopes)}"
    )


def _spread(values: Sequence[Interval]) -> str:
    numbers = [100 * v.value for v in values]
    return f"median {statistics.median(numbers):.1f} %, largest {max(numbers):.0f} %"


def _versus(best: Sequence[Interval]) -> str:
    better = sum(r.high is not None and r.high < 0 for r in best)
    worse = sum(r.low is not None and r.low > 0 for r in best)
    return (
        f"At its best it loses {_spread(best)} against L2 at its best; it is surely "
        f"better in {better} of {len(best)} cells and surely worse in {worse}."
    )


def _row(row: Row) -> list[str]:
    cell = row.cell
    best = optimum(cell.sweep("loss"))
    _, rate = cell.column(cell.l2, cell.best_place(cell.l2, "loss"), "loss")
    return [
        f"{WORDS[cell.rule]}, {title(cell.group).replace(' 1,000 examples,', '')}",
        f"{cell.weights:,}",
        interval(best, ".1e"),
        f"{half_decades(rate):.2g}",
        percent(row.best),
        *("-" if r is None else percent(r) for r in (row.kept, row.mean, row.l2)),
    ]
