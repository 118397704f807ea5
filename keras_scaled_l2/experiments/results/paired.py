"""Arms against each other: differences by seed, with intervals and exact p-values.

All arms of a seed share its split, initial weights and batches, so that a seed that is
easy for one arm is easy for all: the differences spread less than the values.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_scaled_l2.experiments.results.spread import CONFIDENCE, half_width

LEVEL = 1 - CONFIDENCE
EXACT_SEEDS = 16
"""Up to so many seeds all 2**n flips are looked at, above it ``RANDOM_FLIPS``."""
RANDOM_FLIPS = 100_000
REFERENCE = "none"
Interval = tuple[float | None, float | None]


def sign_flip_p(differences: Sequence[float], *, resolution: float = 0.0) -> float:
    """Two-sided p-value of the sign-flip permutation test for paired differences.

    Without a true difference each ``d`` might as well be ``-d``. Formula: the share of
    the ``2**n`` choices of signs with ``|sum(s * d)| >= |sum(d)|``. Above 16 seeds:
    ``(b + 1) / (m + 1)`` with the ``b`` of ``m`` = 100,000 choices, drawn from a fixed
    seed, that reach it.

    It needs no normal distribution, and cannot be below ``2 / 2**n``.

    Args:
        differences: One by seed, all finite, at least one.
        resolution: Smallest step of the metric; 0 if it has none.
    """
    d = np.asarray(differences, dtype=np.float64)
    # Sums that are equal on paper differ by rounding: they count as reached.
    tolerance = max(resolution / 2, 1e-9 * float(np.abs(d).sum()))
    exact = len(d) <= EXACT_SEEDS
    sums = _all_sums(d) if exact else _random_signs(len(d)) @ d
    reached = np.abs(sums) >= abs(d.sum()) - tolerance
    if exact:
        return float(reached.mean())
    return float(reached.sum() + 1) / (RANDOM_FLIPS + 1)


def _all_sums(d: np.ndarray) -> np.ndarray:
    """The sums for all signs of all but the first, which mirror the other half."""
    sums = d[:1]
    for value in d[1:]:
        sums = np.concatenate([sums + value, sums - value])
    return sums


@functools.lru_cache(maxsize=1)
def _random_signs(n: int) -> np.ndarray:
    random = np.random.default_rng(0)
    return random.integers(0, 2, (RANDOM_FLIPS, n), dtype=np.int8) * 2 - 1


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected by Holm's method, in the order given.

    Formula: with ``m`` of them sorted from the smallest (i = 0),
    ``max over j <= i of min(1, (m - j) * p_j)``.
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def least_seeds(comparisons: int) -> int:
    """The number of seeds from which on the exact test can reject at all.

    Formula: the least n with ``comparisons * 2 / 2**n <= 0.05``.
    """
    seeds = itertools.count(1)
    return next(n for n in seeds if comparisons * 2 / 2**n <= LEVEL)


@dataclasses.dataclass(frozen=True)
class Difference:
    """One arm minus another by one metric, over the seeds that they share.

    Args:
        arm: The arm.
        versus: The arm that it is compared with.
        seeds: Number of pairs.
        mean: Mean of ``arm - versus``.
        std: Standard deviation (n - 1) of the differences, no smaller than the metric's
            smallest step: two seeds that both differ by one example prove nothing.
            ``None`` for one seed, as the ends of the intervals.
        low: Lower end of the 95 % interval of this difference alone, Student's t.
        high: Its upper end.
        low_corrected: Lower end of the interval that holds with those of all pairs.
        high_corrected: Its upper end.
        p: P-value of ``sign_flip_p``.
        p_corrected: The same, corrected for all pairs of arms.
    """

    arm: str
    versus: str
    seeds: int
    mean: float
    std: float | None
    low: float | None
    high: float | None
    low_corrected: float | None
    high_corrected: float | None
    p: float
    p_corrected: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval that holds with those of all pairs leaves out 0."""
        low, high = self.low_corrected, self.high_corrected
        return low is not None and high is not None and (low > 0 or high < 0)

    @property
    def is_significant(self) -> bool:
        """Whether the corrected p is at most 0.05 and the interval leaves out 0."""
        return self.p_corrected <= LEVEL and self.excludes_zero

    def reversed(self) -> Difference:
        """The other arm minus this one."""

        def minus(value: float | None) -> float | None:
            return None if value is None else 0.0 - value  # never -0

        return dataclasses.replace(
            self,
            arm=self.versus,
            versus=self.arm,
            mean=0.0 - self.mean,
            low=minus(self.high),
            high=minus(self.low),
            low_corrected=minus(self.high_corrected),
            high_corrected=minus(self.low_corrected),
        )


@dataclasses.dataclass(frozen=True)
class MultipleComparison:
    """All arms by one metric.

    Args:
        means: Arm -> mean over the seeds that all arms share; empty if there is
            nothing to compare.
        level: The arms with the best mean.
        seeds: How many seeds they share.
        diverged: Arms that are not compared, because a value is NaN or infinite.
        differences: Of all pairs of arms, each pair once.
    """

    means: dict[str, float]
    level: tuple[str, ...]
    seeds: int
    diverged: tuple[str, ...]
    differences: tuple[Difference, ...]

    @property
    def best(self) -> str | None:
        """The arm with the best mean, the first if several have it."""
        return next(iter(self.level), None)

    def versus(self, name: str | None) -> list[Difference]:
        """The differences of all other arms to this one."""
        return [
            pair if pair.versus == name else pair.reversed()
            for arm in self.means
            for pair in self.differences
            if {pair.arm, pair.versus} == {arm, name} and arm != name
        ]

    def to_dict(self) -> dict[str, Any]:
        """What stands in comparison.json."""
        differences = [dataclasses.asdict(d) for d in self.differences]
        diverged = list(self.diverged)
        return {"best": self.best, "diverged": diverged, "differences": differences}


def compare_arms(
    values: Mapping[str, Mapping[int, float]],
    *,
    higher_is_better: bool = False,
    resolution: float = 0.0,
) -> MultipleComparison:
    """Compare every arm with every other.

    The best arm was picked by looking, which is as good as looking at all pairs of the
    ``k`` arms. So p-values are corrected for all ``k * (k - 1) / 2`` of them by Holm's
    method, intervals by Bonferroni's: together they err in at most 5 % of the cases.

    Args:
        values: Arm -> seed -> value of the metric.
        higher_is_better: ``False`` for a loss.
        resolution: Smallest step of the metric, one example of the test set for an
            accuracy; 0 if it has none.
    """
    diverged = tuple(
        arm
        for arm, by_seed in values.items()
        if not all(math.isfinite(value) for value in by_seed.values())
    )
    shared = _on_shared_seeds({a: v for a, v in values.items() if a not in diverged})
    means = {arm: statistics.fmean(v) for arm, v in shared.items() if v}
    if len(means) < 2:
        return MultipleComparison({}, (), 0, diverged, ())
    seeds = len(next(iter(shared.values())))
    level = _level(means, higher_is_better, resolution / seeds)
    differences = tuple(_differences(shared, resolution))
    return MultipleComparison(means, level, seeds, diverged, differences)


def _level(means: Mapping[str, float], higher: bool, step: float) -> tuple[str, ...]:
    """The arms with the best mean, where means go by this step or without one."""
    best = (max if higher else min)(means.values())
    tolerance = max(step / 2, 1e-9 * abs(best))
    return tuple(arm for arm, mean in means.items() if abs(mean - best) <= tolerance)


def _differences(
    values: Mapping[str, Sequence[float]], resolution: float
) -> list[Difference]:
    """Each arm minus each one before it."""
    pairs = [(arm, versus) for versus, arm in itertools.combinations(values, 2)]
    by_pair = [
        [a - b for a, b in zip(values[arm], values[versus], strict=True)]
        for arm, versus in pairs
    ]
    p_values = [sign_flip_p(d, resolution=resolution) for d in by_pair]
    found = []
    for (arm, versus), d, p, corrected in zip(
        pairs, by_pair, p_values, holm(p_values), strict=True
    ):
        mean, std = statistics.fmean(d), None
        alone: Interval = (None, None)
        together = alone
        if len(d) > 1:
            std = max(statistics.stdev(d), resolution)
            alone, together = (
                _interval(mean, std, len(d), number) for number in (1, len(pairs))
            )
        found.append(
            Difference(arm, versus, len(d), mean, std, *alone, *together, p, corrected)
        )
    return found


def _interval(mean: float, std: float, n: int, comparisons: int) -> Interval:
    half = half_width(std, n, comparisons=comparisons)
    return mean - half, mean + half


def _on_shared_seeds(
    values: Mapping[str, Mapping[int, float]],
) -> dict[str, list[float]]:
    """The values by order of seeds; arms of a comparison cut short lack some."""
    seeds = [set(by_seed) for by_seed in values.values()]
    shared = sorted(set.intersection(*seeds)) if seeds else []
    return {arm: [by_seed[s] for s in shared] for arm, by_seed in values.items()}
