"""What is trained next where strength and learning rate are tuned together.

A pure function of what has been trained. Strengths and learning rates lie on lattices
of half decades (places are whole numbers, ``None`` is no penalty). It begins with few
seeds on a coarse grid of strengths at three learning rates, follows the optimum of each
criterion to its neighbors in both directions, follows the learning rate of every
strength until a lower and a higher one are worse, and then trains every strength with
all seeds at the learning rate that was best for it. A strength that is judged at a
learning rate of another one moves the optimum, and whoever keeps that strength seems to
lose what the learning rate loses: both have to be tuned.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from keras_scaled_l2.experiments.search import Place

CLOSE = 0.05
"""A learning rate within 5 % of a strength's best one gets all seeds as well."""
ROUNDS = 20
"""Steps that an optimum is followed at most."""

COARSE: tuple[Place, ...] = (None, -8, -6, -4, -2)
"""Coefficients to begin with: none, 1e-4, 1e-3, 1e-2, 0.1."""
RATES = {"sgd": (-4, -3, -2), "adam": (-7, -6, -5)}
"""Learning rates to begin with: 0.01 to 0.1 and 0.0003 to 0.003."""
RATE_BOUNDS = {"sgd": (-6, 0), "adam": (-9, -3)}


class Point(NamedTuple):
    """One training: places of strength and learning rate, and the seed."""

    place: Place
    rate: int
    seed: int


Pair = tuple[Place, int]
Records = Mapping[Point, Mapping[str, float | None]]


@dataclasses.dataclass(frozen=True)
class Plane:
    """Where the search may go.

    Args:
        rates: Places of the learning rates to begin with.
        rate_bounds: Lowest and highest place of a learning rate.
        seeds: Number of seeds.
        screening: Seeds that decide where to look closer.
        coarse: Places of the strengths to begin with.
        bounds: Lowest and highest place of a strength.
        criteria: What is followed to its optimum: names in the records, those with
            ``accuracy`` in them to be as high as possible, the others as low.
        tuned: The criteria by which every strength gets the learning rate that suits
            it, and all seeds there; by the others only those around the best.
    """

    rates: tuple[int, ...]
    rate_bounds: tuple[int, int]
    seeds: int
    screening: int
    coarse: tuple[Place, ...] = COARSE
    bounds: tuple[int, int] = (-10, 2)
    criteria: tuple[str, ...] = ("loss", "accuracy")
    tuned: tuple[str, ...] = ("loss", "accuracy")

    @property
    def first(self) -> range:
        """The seeds that screen."""
        return range(min(self.screening, self.seeds))


def half_decades(place: int) -> float:
    """``10**(place / 2)``, to three digits."""
    return float(f"{10 ** (place / 2):.3g}")


def next_points(records: Records, plane: Plane) -> list[Point]:
    """The trainings of the next round; empty when the search has ended."""
    for wanted in _stages(records, plane):
        lacking = [p for p in dict.fromkeys(wanted) if p not in records]
        if lacking:
            # Neighbors in an engine share their data.
            return sorted(lacking, key=lambda p: (p.seed, p.rate, _order(p.place)))
    return []


def followed(
    records: Mapping[Point, Any], plane: Plane
) -> tuple[dict[Point, Any], list[Point]]:
    """The records that a search asks for, from its beginning, and what it lacks next.

    What was trained for another search leads this one nowhere: it goes the same way
    wherever it was stopped, and each of its strengths has its own learning rate.
    """
    known: dict[Point, Any] = {}
    while points := next_points(known, plane):
        if missing := [point for point in points if point not in records]:
            return known, missing
        known |= {point: records[point] for point in points}
    return known, []


def means(records: Records, criterion: str, seeds: Sequence[int]) -> dict[Pair, float]:
    """Mean of a criterion, lower is better, where all these seeds were trained."""
    found = {}
    for place, rate in dict.fromkeys((p.place, p.rate) for p in records):
        points = [Point(place, rate, seed) for seed in seeds]
        if all(p in records for p in points):
            found[place, rate] = _mean(records, points, criterion)
    return found


def best_pair(found: Mapping[Pair, float]) -> Pair:
    """The pair of the lowest mean; of equals the weaker strength, the lower rate."""
    return min(found, key=lambda pair: (found[pair], _order(pair[0]), pair[1]))


def _stages(records: Records, plane: Plane) -> Iterator[list[Point]]:
    """What has to be there, each stage following from those before it."""
    start = [(place, rate) for place in plane.coarse for rate in plane.rates]
    yield _points(start, plane.first)
    for seeds in (plane.first, range(plane.seeds)):
        for _ in range(ROUNDS):
            wanted = _around(records, plane, seeds)
            if all(p in records for p in wanted):
                break
            yield wanted
        yield _points(_chosen(records, plane), range(plane.seeds))


def _around(records: Records, plane: Plane, seeds: Sequence[int]) -> list[Point]:
    """Neighbors of the optima in strength, and of all in learning rate."""
    pairs: list[Pair] = []
    for criterion in plane.criteria:
        found = means(records, criterion, seeds)
        place, rate = best_pair(found)
        near: list[Place] = [place]
        if place is not None:
            low, high = plane.bounds
            near += [k for k in (place - 1, place + 1) if low <= k <= high]
        pairs += [(k, r) for k in near for r in _beside(rate, plane)]
        if place is not None and None in plane.coarse:
            # What the best is compared with gets as good a learning rate.
            own = _best_rate(means(records, criterion, plane.first), None)
            pairs += [(None, r) for r in _beside(own, plane)]
    for criterion in plane.tuned:
        found = means(records, criterion, plane.first)
        pairs += [
            (place, r)
            for place in _places(found)
            for r in _beside(_best_rate(found, place), plane)
        ]
    return _points(pairs, plane.first)


def _chosen(records: Records, plane: Plane) -> list[Pair]:
    """What gets all seeds: strengths at the learning rates that suit them.

    By a criterion that tunes all of them, each one; by another the best one and no
    penalty, by the first criterion also the neighbors of the best.
    """
    pairs: list[Pair] = []
    for criterion in plane.criteria:
        found = means(records, criterion, plane.first)
        best, _ = best_pair(found)
        near = {None, best, *(() if best is None else (best - 1, best + 1))}
        places = _places(found)
        if criterion not in plane.tuned:
            close = near if criterion == plane.criteria[0] else {None, best}
            places = [k for k in places if k in close]
        own = {place: _best_rate(found, place) for place in places}
        pairs += own.items()
        if criterion == plane.criteria[0] in plane.tuned and len(plane.first) > 1:
            # One seed is too few to compare learning rates.
            pairs += [
                (place, rate)
                for (place, rate), value in found.items()
                if place in near and value <= found[place, own[place]] * (1 + CLOSE)
            ]
    return pairs


def _best_rate(found: Mapping[Pair, float], place: Place) -> int:
    return best_pair({pair: v for pair, v in found.items() if pair[0] == place})[1]


def _beside(rate: int, plane: Plane) -> list[int]:
    low, high = plane.rate_bounds
    return [r for r in (rate - 1, rate, rate + 1) if low <= r <= high]


def _places(found: Mapping[Pair, float]) -> list[Place]:
    return sorted({place for place, _ in found}, key=_order)


def _points(pairs: Sequence[Pair], seeds: Sequence[int]) -> list[Point]:
    return [Point(place, rate, seed) for place, rate in pairs for seed in seeds]


def _order(place: Place) -> float:
    return -math.inf if place is None else place


def _mean(records: Records, points: Sequence[Point], criterion: str) -> float:
    values = [records[p][criterion] for p in points]
    finite = [v for v in values if v is not None and math.isfinite(v)]
    if len(finite) < len(values):
        return math.inf
    mean = statistics.fmean(finite)
    return -mean if "accuracy" in criterion else mean
