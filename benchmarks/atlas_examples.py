"""What more examples change: the table of docs/atlas.md about it."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from atlas_results import (
    GOAL,
    HALF_LIFE,
    Result,
    interval,
    percent,
    regrets,
    signs,
    table,
    title,
)

from keras_scaled_l2.experiments.results.scaling import Interval, exponent, optimum

POWERS = {"plain": 0.0, "square root of m": 0.5, "SampleL2": 1.0}
"""Rules -> the power of the number of examples that divides c."""


class Pair(NamedTuple):
    """The same cell with few and with many examples.

    Attributes:
        slope: The b of ``best c ~ m**b``.
        regrets: Rule -> what the strength of few examples loses with many.
    """

    few: Result
    many: Result
    slope: Interval
    regrets: dict[str, Interval]


def pairs(results: Sequence[Result]) -> Iterator[Pair]:
    """Cells that differ only in the number of examples, in the order of the page."""

    def rest(result: Result) -> tuple[Any, ...]:
        return (*result.group[:1], *result.group[2:], result.weights)

    ordered = sorted(results, key=lambda r: (*rest(r), r.head["examples"]))
    for _, found in itertools.groupby(ordered, key=rest):
        few, *more = found
        for many in more:
            yield _pair(few, many)


def _pair(few: Result, many: Result) -> Pair:
    # Sizes of the training sets in place of those of the networks.
    sweeps = [
        dataclasses.replace(r.sweep("loss"), weights=r.head["sets"]["train"])
        for r in (few, many)
    ]
    share = sweeps[0].weights / sweeps[1].weights
    strengths = {rule: few.tuned() * share**power for rule, power in POWERS.items()}
    return Pair(few, many, exponent(sweeps), regrets(few, many, strengths))


def examples(results: Sequence[Result]) -> str:
    """Sentences, and a row for each pair."""
    found = list(pairs(results))
    slopes = [p.slope for p in found]
    values = [s.value for s in slopes]
    lines = [
        f"- The exponent b of best c ~ m^b lies between {min(values):.2f} and "
        f"{max(values):.2f} in {len(found)} pairs of cells, median "
        f"{statistics.median(values):.2f}. {signs(slopes)}"
    ]
    rules = [*POWERS, HALF_LIFE]
    lines += [
        _rule(rule, [p.regrets[rule] for p in found if rule in p.regrets])
        for rule in rules
    ]
    head = ["", "weights", "best c, few", "best c, many", "b", *rules]
    return "\n".join(lines) + "\n\n" + table(head, [_row(p, rules) for p in found])


def _rule(rule: str, found: Sequence[Interval]) -> str:
    values = [r.value for r in found]
    fails = sum(r.low is not None and r.low > GOAL for r in found)
    return (
        f"- **{rule}**: regret at most 2 % in {sum(v <= GOAL for v in values)} of "
        f"{len(values)} pairs; surely more in {fails}; median "
        f"{100 * statistics.median(values):.1f} %, largest {100 * max(values):.0f} %."
    )


def _row(pair: Pair, rules: Sequence[str]) -> list[str]:
    few, many = (optimum(r.sweep("loss")) for r in (pair.few, pair.many))
    words = title(pair.few.group).replace(
        f" {pair.few.head['examples']:,} examples,", ""
    )
    return [
        words,
        f"{pair.few.weights:,}",
        *(f"{found.value:.1e}" for found in (few, many)),
        interval(pair.slope, ".2f"),
        *(percent(pair.regrets[r]) if r in pair.regrets else "-" for r in rules),
    ]
