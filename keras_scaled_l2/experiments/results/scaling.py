"""How a best strength moves with the size of a network, and what a rule loses by it.

All strengths of a size share their seeds, and so do the sizes: differences are taken
seed by seed.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from keras_scaled_l2.experiments.results.spread import half_width

DECADE_BELOW = 1.0
"""So far below the weakest strength, in decades, a penalty counts as none."""


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What a network of one size reaches at each strength.

    Args:
        weights: Number of its trainable weights.
        values: Coefficient -> seed -> value, lower is better; 0 is no penalty.
        resolution: Smallest step of the values, one validation example for an
            accuracy; 0 if they have none.
    """

    weights: int
    values: Mapping[float, Mapping[int, float]]
    resolution: float = 0.0

    @property
    def seeds(self) -> list[int]:
        """The seeds that every strength has."""
        shared = set.intersection(*(set(v) for v in self.values.values()))
        return sorted(shared)

    @property
    def strengths(self) -> list[float]:
        """Coefficients above 0, rising."""
        return sorted(c for c in self.values if c > 0)


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval; the ends are ``None`` for one seed.

    ``edge``: whether it rests on an end of a sweep, beyond which nothing was tried.
    """

    value: float
    low: float | None
    high: float | None
    edge: bool = False


def optimum(sweep: Sweep) -> Interval:
    """The best coefficient: lowest point of a parabola in the logarithm of c.

    It goes through the lowest point of the mean curve and its two neighbors; further
    ones would bend it, since curves rise slowly to the weaker side and steeply to the
    stronger one. The interval is the jackknife's over the seeds.
    """
    found = _jackknife(lambda seeds: _vertex(sweep, seeds), sweep.seeds)
    ends = [None if v is None else float(10**v) for v in (found.low, found.high)]
    return Interval(10**found.value, ends[0], ends[1], _at_edge(sweep))


def exponent(sweeps: Sequence[Sweep]) -> Interval:
    """The a of ``best c ~ N**a``, by least squares over the logarithms.

    The interval is that of the jackknife over the seeds, each left out of all sizes at
    once: ``a +- t * s / sqrt(n)`` with the standard deviation s of the pseudo-values
    (Tukey 1958).

    Raises:
        ValueError: If there are fewer than two sizes.
    """
    sizes = [math.log10(sweep.weights) for sweep in sweeps]
    if len(set(sizes)) < 2:
        raise ValueError(f"{len(sweeps)} sizes: expected two different ones or more.")
    centered = np.array(sizes) - statistics.fmean(sizes)
    seeds = sorted(set.intersection(*(set(sweep.seeds) for sweep in sweeps)))

    def slope(chosen: Sequence[int]) -> float:
        optima = np.array([_vertex(sweep, chosen) for sweep in sweeps])
        return float(centered @ optima / (centered @ centered))

    found = _jackknife(slope, seeds)
    return dataclasses.replace(found, edge=any(map(_at_edge, sweeps)))


def regret(sweep: Sweep, values: Mapping[int, float], *, share: bool) -> Interval:
    """What a strength loses against the best of the sweep.

    The best is chosen by looking at the same numbers, which makes it look better than
    it is, and may be the strength itself. The lower end therefore compares, for each
    seed, with what the other seeds choose; the upper end is the highest of those
    against every strength of the sweep, since one of them is the best (Hsu 1984). Each
    by Student's t over the seeds.

    Args:
        sweep: The sweep of the same network.
        values: Seed -> value under the strength.
        share: Whether to divide by the best value, unless that is exactly 0.

    Returns:
        The regret; its lower end may be below 0.
    """
    seeds = [seed for seed in sweep.seeds if seed in values]
    best = _best(sweep, seeds)
    unit = (_mean(sweep.values[best], seeds) if share else 1.0) or 1.0
    inside = [values[s] - sweep.values[best][s] for s in seeds]
    value = statistics.fmean(inside) / unit
    if len(seeds) < 2 or not all(map(math.isfinite, inside)):
        return Interval(value, None, None)
    outside = []
    for seed in seeds:
        other = _best(sweep, [s for s in seeds if s != seed])
        outside.append(values[seed] - sweep.values[other][seed])
    low, _ = _student(outside, sweep.resolution)
    high = max(
        _student([values[s] - column[s] for s in seeds], sweep.resolution)[1]
        for column in sweep.values.values()
        if all(math.isfinite(column[s]) for s in seeds)
    )
    return Interval(value, min(low / unit, value), max(high / unit, value))


def _student(values: Sequence[float], resolution: float) -> tuple[float, float]:
    """The 95 % interval of a mean of differences.

    In steps they may all be equal by chance: no standard deviation counts as smaller
    than a step, but where each is 0, as between a strength and itself.
    """
    mean, std = statistics.fmean(values), statistics.stdev(values)
    if any(values):
        std = max(std, resolution)
    half = half_width(std, len(values))
    return mean - half, mean + half


def at(sweep: Sweep, coefficient: float) -> tuple[dict[int, float], bool]:
    """Seed -> value at any coefficient, straight between two of the sweep in log c.

    A decade below the weakest one, and weaker, is no penalty.

    Returns:
        The values, and whether the coefficient lies above all of the sweep: then they
        are those of the strongest, and the truth is worse.
    """
    strengths = sweep.strengths
    places = [math.log10(c) for c in strengths]
    columns = [sweep.values[c] for c in strengths]
    if 0.0 in sweep.values:
        places.insert(0, places[0] - DECADE_BELOW)
        columns.insert(0, sweep.values[0.0])
    place = -math.inf if coefficient == 0 else math.log10(coefficient)
    found = {
        seed: float(np.interp(place, places, [column[seed] for column in columns]))
        for seed in sweep.seeds
    }
    return found, place > places[-1] + 1e-6


def _vertex(sweep: Sweep, seeds: Sequence[int]) -> float:
    """Logarithm of the best coefficient, from the means of some seeds."""
    places = [math.log10(c) for c in sweep.strengths]
    curve = [_mean(sweep.values[c], seeds) for c in sweep.strengths]
    best = min(range(len(curve)), key=lambda i: curve[i])
    if not 0 < best < len(curve) - 1:
        return places[best]
    around = slice(best - 1, best + 2)
    if not all(map(math.isfinite, curve[around])):
        return places[best]
    x = np.array(places[around]) - places[best]
    bend, tilt, _ = np.polyfit(x, curve[around], 2)
    if bend <= 0:
        return places[best]
    return places[best] - float(tilt / (2 * bend))


def _at_edge(sweep: Sweep) -> bool:
    """Whether the best is no penalty, or the weakest or strongest one tried."""
    best = _best(sweep, sweep.seeds)
    return best in (0.0, sweep.strengths[0], sweep.strengths[-1])


def _best(sweep: Sweep, seeds: Sequence[int]) -> float:
    return min(sorted(sweep.values), key=lambda c: _mean(sweep.values[c], seeds))


def _mean(values: Mapping[int, float], seeds: Sequence[int]) -> float:
    found = [values[s] for s in seeds]
    return statistics.fmean(found) if all(map(math.isfinite, found)) else math.inf


def _jackknife(
    statistic: Callable[[Sequence[int]], float], seeds: Sequence[int]
) -> Interval:
    """A statistic of all seeds, with Student's t over its pseudo-values."""
    value, n = statistic(seeds), len(seeds)
    if n < 2:
        return Interval(value, None, None)
    pseudo = [
        n * value - (n - 1) * statistic([s for s in seeds if s != left])
        for left in seeds
    ]
    half = half_width(statistics.stdev(pseudo), n)
    return Interval(value, value - half, value + half)
