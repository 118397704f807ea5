"""What a cell of the atlas trains next: a pure function of what it has trained.

A point is a strength at a learning rate. Strengths lie half a decade apart: place ``k``
is the coefficient ``10**(k / 2)``, ``None`` no penalty; dropout rates are tenths.
Learning rates lie half a decade apart too, so that ``c`` times learning rate stays on
the lattice. A cell begins with few seeds on a coarse grid at three learning rates,
follows the optimum of each criterion to its neighbors, and then trains every strength
with all seeds at the learning rate that was best for it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

CRITERIA = ("loss", "accuracy", "last_loss")
"""What is followed to its optimum; ``last_accuracy`` is recorded beside them."""
COARSE = {"l2": (None, -8, -6, -4, -2), "dropout": (2, 5)}
BOUNDS = {"l2": (-10, 2), "dropout": (1, 9)}
RATES = {"sgd": (-4, -3, -2), "adam": (-7, -6, -5)}
"""Learning rates to begin with, as places: 0.01 ... 0.1 and 0.0003 ... 0.003."""
RATE_BOUNDS = {"sgd": (-6, 0), "adam": (-9, -3)}
CLOSE = 0.05
"""A learning rate within 5 % of a strength's best one gets all seeds as well."""


class Point(NamedTuple):
    """One training: kind, place of the strength, place of the learning rate, seed."""

    kind: str
    place: int | None
    rate: int
    seed: int


Records = Mapping[Point, Mapping[str, float]]


def strength(kind: str, place: int | None) -> float:
    """Coefficient or dropout rate of a place, to three digits."""
    if place is None:
        return 0.0
    return place / 10 if kind == "dropout" else half_decades(place)


def half_decades(place: int) -> float:
    """``10**(place / 2)``, to three digits."""
    return float(f"{10 ** (place / 2):.3g}")


def next_points(
    records: Records, *, optimizer: str, seeds: int, coarse_seeds: int
) -> list[Point]:
    """The trainings of the next round; empty when the cell is finished."""
    for kind in ("l2", "dropout"):
        cell = _Cell(kind, records, optimizer, seeds, coarse_seeds)
        for wanted in cell.stages():
            lacking = [p for p in dict.fromkeys(wanted) if p not in records]
            if lacking:
                return sorted(lacking, key=lambda p: (p.seed, p.rate, str(p.place)))
    return []


class _Cell:
    """The trainings of one kind."""

    def __init__(
        self, kind: str, records: Records, optimizer: str, seeds: int, coarse: int
    ) -> None:
        self.kind, self.optimizer = kind, optimizer
        self.records = {p: r for p, r in records.items() if p.kind == kind}
        self.all, self.coarse = range(seeds), range(coarse)

    def stages(self) -> Iterator[list[Point]]:
        """What has to be there, each stage following from those before it."""
        start = RATES[self.optimizer]
        yield self._points([(p, r) for p in COARSE[self.kind] for r in start])
        for seeds in (self.coarse, self.all):
            for _ in range(12):
                wanted = self._around(seeds)
                if all(p in self.records for p in wanted):
                    break
                yield wanted
            yield self._points(self._chosen(), self.all)

    def _around(self, seeds: Sequence[int]) -> list[Point]:
        """Neighbors of each criterion's optimum, in strength and learning rate."""
        found: list[Point] = []
        for criterion in CRITERIA:
            means = self._means(criterion, seeds)
            place, rate = min(means, key=lambda pair: means[pair])
            pairs = [(place, r) for r in self._beside(rate)]
            if place is not None:
                low, high = BOUNDS[self.kind]
                near = [k for k in (place - 1, place + 1) if low <= k <= high]
                pairs += [(k, r) for k in near for r in self._beside(rate)]
            if self.kind == "l2" and place is not None:
                # What it is compared with gets as good a learning rate.
                rate = self._best_rate(None, criterion)
                pairs += [(None, r) for r in self._beside(rate)]
            found += self._points(pairs)
        return found

    def _chosen(self) -> list[tuple[int | None, int]]:
        """All strengths at their best learning rate, and what is best by criterion."""
        places = {p.place for p in self.records}
        if self.kind == "dropout":
            means = self._means("loss", self.coarse)
            best = min(means, key=lambda pair: means[pair])[0] or 0
            places = {p for p in places if p is not None and abs(p - best) <= 1}
        ordered = sorted(places, key=lambda k: -math.inf if k is None else k)
        pairs = [(place, self._best_rate(place, "loss")) for place in ordered]
        pairs += self._close(pairs)
        for criterion in CRITERIA[1:]:
            means = self._means(criterion, self.coarse)
            pairs.append(min(means, key=lambda pair: means[pair]))
            if self.kind == "l2":
                pairs.append((None, self._best_rate(None, criterion)))
        return pairs

    def _close(
        self, pairs: Sequence[tuple[int | None, int]]
    ) -> list[tuple[int | None, int]]:
        """The second learning rates, of none and around the best, that may be better.

        One seed is too few to tell them apart by: a cell that screens with one does
        without.
        """
        if len(self.coarse) < 2 or self.kind == "dropout":
            return []
        means = self._means("loss", self.coarse)
        best = min(means, key=lambda pair: means[pair])[0]
        near = {None, *(() if best is None else range(best - 1, best + 2))}
        first = {place: means[place, rate] for place, rate in pairs}
        return [
            (place, rate)
            for (place, rate), value in means.items()
            if place in near and value <= first[place] * (1 + CLOSE)
        ]

    def _best_rate(self, place: int | None, criterion: str) -> int:
        means = self._means(criterion, self.coarse)
        known = {rate: v for (k, rate), v in means.items() if k == place}
        return min(known, key=lambda rate: known[rate])

    def _beside(self, rate: int) -> list[int]:
        low, high = RATE_BOUNDS[self.optimizer]
        return [r for r in (rate - 1, rate, rate + 1) if low <= r <= high]

    def _means(
        self, criterion: str, seeds: Sequence[int]
    ) -> dict[tuple[int | None, int], float]:
        """Strength and learning rate -> mean, lower is better, where all seeds are."""
        pairs = dict.fromkeys((p.place, p.rate) for p in self.records)
        found = {}
        for place, rate in pairs:
            points = [Point(self.kind, place, rate, s) for s in seeds]
            if all(p in self.records for p in points):
                found[place, rate] = mean(self.records, points, criterion)
        return found

    def _points(
        self, pairs: Sequence[tuple[int | None, int]], seeds: Sequence[int] = ()
    ) -> list[Point]:
        chosen = seeds or self.coarse
        return [Point(self.kind, k, r, s) for k, r in pairs for s in chosen]


def mean(records: Records, points: Sequence[Point], criterion: str) -> float:
    """Mean of a criterion, lower is better; infinite where a training diverged."""
    sign = -1.0 if "accuracy" in criterion else 1.0
    values = [records[p][criterion] for p in points]
    if not all(v is not None and math.isfinite(v) for v in values):
        return math.inf
    return sign * statistics.fmean(values)
