"""Statistics of a tuning: which strengths are as good as the best, and how sure.

All strengths share their blocks, which are seeds and folds: they are compared block by
block, since a block that is easy for one strength is easy for all.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence

from keras_scaled_l2.experiments.results.spread import half_width

WITHIN = 0.02
"""What counts as equally good: 2 % of the best mean."""

Block = tuple[int, int]
"""Seed and fold."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """What was measured at one strength.

    Args:
        strength: The strength; 0 is no penalty.
        values: Block -> value of the criterion; not finite where training diverged.
    """

    strength: float
    values: Mapping[Block, float]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The curve at one strength.

    Args:
        mean: Mean over the blocks of the best strength: a strength with fewer blocks
            has the best mean plus its mean difference on the blocks that they share.
        low: Lower end of the 95 % interval of the paired difference to the best, added
            to the best mean; for the best itself the mean. ``None`` for one block.
        high: Its upper end.
    """

    mean: float
    low: float | None
    high: float | None


@dataclasses.dataclass(frozen=True)
class Curve:
    """What the samples, in the order of the axis, come to.

    Args:
        estimates: One for each sample.
        best: Place of the best.
        one_standard_error: Place of the strongest penalty within one standard error of
            the best.
        plateau: Lowest and highest strength of the plateau around the best.
        inside: Places of its first and its last strength.
        edge: Whether the best lies at an end beyond which nothing was tried.
        none_is_as_good: Whether no penalty does not differ significantly from the best,
            corrected for all comparisons; ``None`` if no penalty was not tried.
        none_is_within: Whether no penalty is within 2 % of the best.
    """

    estimates: tuple[Estimate, ...]
    best: int
    one_standard_error: int
    plateau: tuple[float, float]
    inside: tuple[int, int]
    edge: bool
    none_is_as_good: bool | None
    none_is_within: bool | None


def curve(
    samples: Sequence[Sample],
    *,
    higher_is_better: bool = False,
    resolution: float = 0.0,
) -> Curve:
    """The statistics of a tuning.

    **Best**: the lowest mean among the strengths with the most blocks; means of fewer
    blocks do not decide. **One standard error**: the strongest penalty whose mean is
    within ``std / sqrt(n)`` of the best, over its ``n`` blocks (Breiman et al. 1984,
    section 3.4.3). **Plateau**: the strengths next to each other around the best whose
    mean is within 2 % of it, or within half its paired interval, if that is more and
    the strength has all blocks, three at least; its ends are where the curve, straight
    in the logarithm, leaves that. **No penalty is as good** unless its paired
    difference to the best is beyond Student's t, corrected for all strengths
    (Bonferroni), since the best was picked by looking.

    Args:
        samples: In the order of the axis, the weakest first; at least one value finite.
        higher_is_better: ``True`` for an accuracy.
        resolution: Smallest step of the criterion, one validation example for an
            accuracy; 0 if it has none. No standard deviation of differences counts as
            smaller: in steps they may all be equal by chance.

    Raises:
        ValueError: If nothing is finite.
    """
    sign = -1.0 if higher_is_better else 1.0
    values = [
        {b: sign * v for b, v in sample.values.items()}
        if all(math.isfinite(v) for v in sample.values.values())
        else {}
        for sample in samples
    ]
    best = _best(values)
    reference = values[best]
    center = statistics.fmean(reference.values())
    estimates = [
        Estimate(center, center, center)
        if v is reference
        else _estimate(v, reference, center, resolution)
        for v in values
    ]
    places = [i for i, v in enumerate(values) if v]
    tolerance = WITHIN * abs(center)
    slack = _standard_error(list(reference.values()))
    chosen = max(i for i in places if estimates[i].mean <= center + slack)
    none = next((i for i, s in enumerate(samples) if s.strength == 0), None)
    positive = [i for i, s in enumerate(samples) if s.strength != 0]
    plateau, inside = _plateau(
        samples,
        estimates,
        best,
        center + tolerance,
        [len(v) == len(reference) > 2 for v in values],
    )
    return Curve(
        estimates=tuple(_turned(e, sign) for e in estimates),
        best=best,
        one_standard_error=chosen,
        plateau=plateau,
        inside=inside,
        edge=len(samples) > 1
        and best in positive
        and (best == positive[-1] or (none is None and best == positive[0])),
        none_is_as_good=None
        if none is None
        else _is_as_good(values, none, best, resolution),
        none_is_within=None
        if none is None
        else estimates[none].mean <= center + tolerance,
    )


def _best(values: Sequence[Mapping[Block, float]]) -> int:
    most = max(map(len, values), default=0)
    if most == 0:
        raise ValueError("No strength has finite losses: expected at least one.")
    full = [i for i, v in enumerate(values) if len(v) == most]
    return min(full, key=lambda i: statistics.fmean(values[i].values()))


def _estimate(
    values: Mapping[Block, float],
    reference: Mapping[Block, float],
    center: float,
    resolution: float,
) -> Estimate:
    shared = sorted(values.keys() & reference.keys())
    if not shared:
        return Estimate(math.nan, None, None)
    differences = [values[b] - reference[b] for b in shared]
    mean = center + statistics.fmean(differences)
    if len(differences) < 2:
        return Estimate(mean, None, None)
    std = max(statistics.stdev(differences), resolution)
    half = half_width(std, len(differences))
    return Estimate(mean, mean - half, mean + half)


def _turned(estimate: Estimate, sign: float) -> Estimate:
    """The estimate in the criterion's own sense."""
    if sign > 0:
        return estimate
    low, high = estimate.low, estimate.high
    # 0 - x: -0.0 is not what people call 0.
    return Estimate(
        0.0 - estimate.mean,
        None if high is None else 0.0 - high,
        None if low is None else 0.0 - low,
    )


def _standard_error(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    return statistics.stdev(values) / math.sqrt(len(values))


def _plateau(
    samples: Sequence[Sample],
    estimates: Sequence[Estimate],
    best: int,
    limit: float,
    whole: Sequence[bool],
) -> tuple[tuple[float, float], tuple[int, int]]:
    """The strengths at its ends, in rising order; the first and last place in it."""

    def bound(i: int) -> float:
        """What the mean must not exceed: 2 %, or what the blocks can tell."""
        low = estimates[i].low
        # Two blocks can tell nothing; that is no reason to recommend a strength.
        if low is None or not whole[i]:
            return limit
        return max(limit, center + estimates[i].mean - low)

    def belongs(i: int) -> bool:
        return estimates[i].mean <= bound(i)

    center = estimates[best].mean
    ends, places = [], []
    for step in (-1, 1):
        last = best
        while 0 <= last + step < len(samples) and belongs(last + step):
            last += step
        beyond = last + step
        strength = samples[last].strength
        if 0 <= beyond < len(samples):
            strength = _crossing(
                (strength, estimates[last].mean),
                (samples[beyond].strength, estimates[beyond].mean),
                bound(beyond),
            )
        ends.append(strength)
        places.append(last)
    return (min(ends), max(ends)), (places[0], places[1])


def _crossing(
    inner: tuple[float, float], outer: tuple[float, float], limit: float
) -> float:
    """The strength at which a straight line in the logarithm reaches the limit."""
    (a, inside), (b, outside) = inner, outer
    if not (a > 0 and b > 0 and outside > limit > inside):
        return a
    share = (limit - inside) / (outside - inside)
    return float(math.exp(math.log(a) + share * (math.log(b) - math.log(a))))


def _is_as_good(
    values: Sequence[Mapping[Block, float]], none: int, best: int, resolution: float
) -> bool | None:
    if none == best:
        return True
    shared = sorted(values[none].keys() & values[best].keys())
    if not values[none]:
        return False
    differences = [values[none][b] - values[best][b] for b in shared]
    if len(differences) < 2:
        return None
    others = sum(1 for v in values if v) - 1
    std = max(statistics.stdev(differences), resolution)
    half = half_width(std, len(differences), comparisons=others)
    return statistics.fmean(differences) <= half
