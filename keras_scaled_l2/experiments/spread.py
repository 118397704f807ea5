"""What a handful of seeds can tell: means, spreads, paired differences."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence

from keras_scaled_l2.experiments.errors import require

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class MeanStd:
    """Mean and sample standard deviation.

    ``std`` divides by n - 1 and is ``None`` for one value; ``mean`` is ``None`` for
    none. Both are NaN if a value is: a run that diverged is not left out.
    """

    mean: float | None
    std: float | None


def mean_std(values: Sequence[float]) -> MeanStd:
    """Mean and sample standard deviation (n - 1) of the values."""
    if not values:
        return MeanStd(None, None)
    if not all(math.isfinite(v) for v in values):
        return MeanStd(math.nan, math.nan if len(values) > 1 else None)
    std = statistics.stdev(values) if len(values) > 1 else None
    return MeanStd(statistics.fmean(values), std)


@dataclasses.dataclass(frozen=True)
class Difference:
    """A mean paired difference and the half width of its confidence interval.

    ``margin`` is ``None`` where a single pair leaves it open.
    """

    mean: float
    margin: float | None

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.margin is not None and abs(self.mean) > self.margin


def paired_difference(
    first: Sequence[float],
    second: Sequence[float],
    *,
    comparisons: int = 1,
    resolution: float = 0.0,
) -> Difference:
    """Mean of ``first - second``, seed by seed, with its 95 % interval.

    Formula: ``mean(d) +- t * std(d) / sqrt(n)`` with Student's t of ``n - 1`` degrees
    of freedom at ``1 - 0.05 / (2 * comparisons)`` (Bonferroni), so that picking the
    best of several arms does not by itself make a winner.

    Args:
        first: A metric of one arm by seed.
        second: The same of the other arm, in the same order of seeds.
        comparisons: How many such differences the reader may look at.
        resolution: Smallest step of the metric, one example of the test set for an
            accuracy. The spread is taken to be no smaller: two seeds that both differ
            by one example prove nothing.
    """
    differences = [a - b for a, b in zip(first, second, strict=True)]
    n = len(differences)
    spread = mean_std(differences)
    if spread.mean is None:
        return Difference(math.nan, None)
    if spread.std is None:
        return Difference(spread.mean, None)
    student = require("scipy.stats", "the confidence interval").t
    quantile = student.ppf(1 - (1 - CONFIDENCE) / (2 * comparisons), n - 1)
    std = max(spread.std, resolution)
    return Difference(spread.mean, float(quantile) * std / math.sqrt(n))
