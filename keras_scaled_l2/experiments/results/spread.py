"""What a handful of seeds can tell: a mean, its spread and its interval."""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Sequence

from keras_scaled_l2.experiments.errors import require

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class MeanStd:
    """Mean, sample standard deviation, and the ends of the mean's 95 % interval.

    ``std`` divides by n - 1; it, ``low`` and ``high`` are ``None`` for one value;
    ``mean`` is ``None`` for none. All are NaN if a value is NaN or infinite: a run that
    diverged is not left out.
    """

    mean: float | None
    std: float | None
    low: float | None = None
    high: float | None = None


def mean_std(values: Sequence[float]) -> MeanStd:
    """Mean of the values, their standard deviation, and the mean's 95 % interval.

    Formula: ``mean +- t * std / sqrt(n)``, see ``half_width``.
    """
    if not values:
        return MeanStd(None, None)
    if not all(math.isfinite(v) for v in values):
        return MeanStd(math.nan, *[math.nan if len(values) > 1 else None] * 3)
    mean = statistics.fmean(values)
    if len(values) == 1:
        return MeanStd(mean, None)
    std = statistics.stdev(values)
    half = half_width(std, len(values))
    return MeanStd(mean, std, mean - half, mean + half)


def half_width(std: float, n: int, *, comparisons: int = 1) -> float:
    """Half the width of the 95 % interval of a mean.

    Formula: ``t * std / sqrt(n)`` with Student's t of ``n - 1`` degrees of freedom at
    ``1 - 0.05 / (2 * comparisons)`` (Bonferroni).

    Args:
        std: Standard deviation (n - 1) of the values.
        n: How many there are, at least two.
        comparisons: How many intervals are to hold together.

    Raises:
        InputError: If scipy is not installed.
    """
    return _quantile(n - 1, comparisons) * std / math.sqrt(n)


@functools.cache
def _quantile(degrees: int, comparisons: int) -> float:
    student = require("scipy.stats", "the confidence interval").t
    return float(student.ppf(1 - (1 - CONFIDENCE) / (2 * comparisons), degrees))
