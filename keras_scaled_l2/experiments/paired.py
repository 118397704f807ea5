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
from typing import Any, Literal

import numpy as np

from keras_scaled_l2.experiments.spread import CONFIDENCE, half_width

LEVEL = 1 - CONFIDENCE
EXACT_SEEDS = 16
"""Up to so many seeds all 2**n flips are looked at, above it ``RANDOM_FLIPS``."""
RANDOM_FLIPS = 100_000

REFERENCE = "none"
Family = Literal["none", "best"]


@dataclasses.dataclass(frozen=True)
class PairedDifference:
    """A mean paired difference and the half width of its confidence interval.

    ``margin`` is ``None`` where a single pair leaves it open.
    """

    mean: float
    margin: float | None

    @property
    def low(self) -> float | None:
        """Lower end of the interval."""
        return None if self.margin is None else self.mean - self.margin

    @property
    def high(self) -> float | None:
        """Upper end of the interval."""
        return None if self.margin is None else self.mean + self.margin


def paired_difference(
    first: Sequence[float],
    second: Sequence[float],
    *,
    comparisons: int = 1,
    resolution: float = 0.0,
) -> PairedDifference:
    """Mean of ``first - second``, seed by seed, with its 95 % interval.

    Formula: ``mean(d) +- t * std(d) / sqrt(n)`` with Student's t of ``n - 1`` degrees
    of freedom at ``1 - 0.05 / (2 * comparisons)`` (Bonferroni).

    Args:
        first: A metric of one arm by seed, all finite, at least one.
        second: The same of the other arm, in the same order of seeds.
        comparisons: How many such differences the reader may look at; 1 gives the
            pointwise interval.
        resolution: Smallest step of the metric, one example of the test set for an
            accuracy. The spread is taken to be no smaller: two seeds that both differ
            by one example prove nothing.
    """
    differences = [a - b for a, b in zip(first, second, strict=True)]
    mean, n = statistics.fmean(differences), len(differences)
    if n == 1:
        return PairedDifference(mean, None)
    std = max(statistics.stdev(differences), resolution)
    return PairedDifference(mean, half_width(std, n, comparisons=comparisons))


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
        family: ``"none"`` for a difference to the arm of that name, ``"best"`` for one
            to the best arm.
        seeds: Number of pairs.
        mean: Mean of ``arm - versus``.
        std: Standard deviation (n - 1) of ``arm - versus`` over the seeds, no smaller
            than the resolution of the metric; ``None`` for one seed.
        low: Lower end of the 95 % interval of this difference alone; ``None`` for one
            seed, as the other ends.
        high: Its upper end.
        low_corrected: Lower end of the interval that holds with those of all pairs.
        high_corrected: Its upper end.
        p: P-value of ``sign_flip_p``.
        p_corrected: The same, corrected for all pairs of arms.
    """

    arm: str
    versus: str
    family: Family
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
    def is_clear(self) -> bool:
        """Whether the corrected p is at most 0.05 and the interval leaves out 0."""
        low, high = self.low_corrected, self.high_corrected
        if low is None or high is None:
            return False
        return self.p_corrected <= LEVEL and (low > 0 or high < 0)


@dataclasses.dataclass(frozen=True)
class Contest:
    """All arms by one metric.

    Args:
        best: The arm with the best mean, the first if several have it; ``None`` if
            there is nothing to compare.
        means: Arm -> mean over the seeds that all arms share.
        level: The arms with the mean of the best, ``best`` among them.
        seeds: How many seeds they share.
        diverged: Arms that are not compared, because a value is NaN or infinite.
        differences: To ``none``, then to the best arm.
    """

    best: str | None
    means: dict[str, float]
    level: tuple[str, ...]
    seeds: int
    diverged: tuple[str, ...]
    differences: tuple[Difference, ...]

    def family(self, name: Family) -> list[Difference]:
        """The differences to ``none``, or those to the best arm."""
        return [d for d in self.differences if d.family == name]

    @property
    def comparisons(self) -> int:
        """How many differences the smallest p is corrected for: all pairs of arms."""
        return math.comb(len(self.means), 2)

    def to_dict(self) -> dict[str, Any]:
        """What stands in comparison.json."""
        differences = [dataclasses.asdict(d) for d in self.differences]
        return {"best": self.best, "differences": differences}


def contest(
    values: Mapping[str, Mapping[int, float]],
    *,
    higher_is_better: bool = False,
    resolution: float = 0.0,
) -> Contest:
    """Compare every arm with ``none``, if it is there, and with the best arm.

    The best arm was picked by looking, which is as good as looking at all pairs of the
    ``k`` arms. So p-values are corrected for all ``k * (k - 1) / 2`` of them by Holm's
    method, intervals by Bonferroni's: together, differences to ``none`` and to the best
    arm err in at most 5 % of the cases.

    Args:
        values: Arm -> seed -> value of the metric.
        higher_is_better: ``False`` for a loss.
        resolution: See ``paired_difference``.
    """
    diverged = tuple(
        arm
        for arm, by_seed in values.items()
        if not all(math.isfinite(value) for value in by_seed.values())
    )
    shared = _on_shared_seeds({a: v for a, v in values.items() if a not in diverged})
    means = {arm: statistics.fmean(v) for arm, v in shared.items() if v}
    if len(means) < 2:
        return Contest(None, {}, (), 0, diverged, ())
    level = _level(
        means, higher_is_better, resolution / len(next(iter(shared.values())))
    )
    p_values = _p_of_pairs(shared, resolution)
    differences = _differences(shared, level[0], "best", p_values, resolution)
    if REFERENCE in shared:
        planned = _differences(shared, REFERENCE, "none", p_values, resolution)
        differences = [*planned, *differences]
    seeds = differences[0].seeds
    return Contest(level[0], means, level, seeds, diverged, tuple(differences))


def _level(means: Mapping[str, float], higher: bool, step: float) -> tuple[str, ...]:
    """The arms with the best mean, where means go by this step or without one."""
    best = (max if higher else min)(means.values())
    tolerance = max(step / 2, 1e-9 * abs(best))
    return tuple(arm for arm, mean in means.items() if abs(mean - best) <= tolerance)


def _p_of_pairs(
    values: Mapping[str, Sequence[float]], resolution: float
) -> dict[frozenset[str], tuple[float, float]]:
    """Each pair of arms -> its p-value, and the same corrected for all pairs."""
    pairs = list(itertools.combinations(values, 2))
    p = [
        sign_flip_p(
            [a - b for a, b in zip(values[one], values[other], strict=True)],
            resolution=resolution,
        )
        for one, other in pairs
    ]
    return dict(zip(map(frozenset, pairs), zip(p, holm(p), strict=True), strict=True))


def _differences(
    values: Mapping[str, Sequence[float]],
    versus: str,
    family: Family,
    p_values: Mapping[frozenset[str], tuple[float, float]],
    resolution: float,
) -> list[Difference]:
    comparisons = len(p_values)
    differences = []
    for arm, runs in values.items():
        if arm == versus:
            continue
        p, corrected = p_values[frozenset([arm, versus])]
        gaps = [a - b for a, b in zip(runs, values[versus], strict=True)]
        alone, together = (
            paired_difference(
                runs, values[versus], comparisons=number, resolution=resolution
            )
            for number in (1, comparisons)
        )
        differences.append(
            Difference(
                arm=arm,
                versus=versus,
                family=family,
                seeds=len(runs),
                mean=alone.mean,
                std=max(statistics.stdev(gaps), resolution) if len(gaps) > 1 else None,
                low=alone.low,
                high=alone.high,
                low_corrected=together.low,
                high_corrected=together.high,
                p=p,
                p_corrected=corrected,
            )
        )
    return differences


def _on_shared_seeds(
    values: Mapping[str, Mapping[int, float]],
) -> dict[str, list[float]]:
    """The values by order of seeds; arms of a comparison cut short lack some."""
    seeds = [set(by_seed) for by_seed in values.values()]
    shared = sorted(set.intersection(*seeds)) if seeds else []
    return {arm: [by_seed[s] for s in shared] for arm, by_seed in values.items()}
