"""The answer of a comparison in a few sentences, for somebody who reads no more."""

from __future__ import annotations

import functools
import math
from statistics import fmean
from typing import TYPE_CHECKING

from keras_scaled_l2.experiments.errors import require
from keras_scaled_l2.experiments.paired import (
    LEVEL,
    REFERENCE,
    Contest,
    Difference,
    least_seeds,
)

if TYPE_CHECKING:
    from keras_scaled_l2.experiments.records import ArmRecord, Comparison

POWER = 0.8
"""Chance to see a difference that is there, where a number of seeds is suggested."""
MOST_SEEDS = 1000


def answer(comparison: Comparison, found: Contest, metric: str) -> list[str]:
    """Which arm won, how sure that is, and at what strength.

    Args:
        comparison: The comparison.
        found: Its arms by one metric.
        metric: What that metric is called, as "test data loss".

    Returns:
        Three or four sentences; the last one says how many seeds would decide what
        these leave open. One sentence for one seed; none if there is nothing to
        compare.
    """
    if found.best is None:
        return []
    if found.seeds < 2:
        value = f"{found.means[found.best]:.4g}"
        return [
            f"{found.best} has the best {metric}, {value}, of one seed, which may be "
            f"luck. {least_seeds(found.comparisons)} seeds can tell: "
            f"{_command(comparison, least_seeds(found.comparisons))}"
        ]
    against = _against(found)
    sentences = [
        _winner(found, metric, against),
        _certainty(found, against),
        _strength(comparison[found.best]),
        _more_seeds(comparison, found, against),
    ]
    return [sentence for sentence in sentences if sentence]


def seeds_to_decide(difference: Difference, comparisons: int) -> int | None:
    """How many seeds would show a difference, if it is as large as it looks.

    Formula: the least ``n`` for which Student's paired test at the level
    ``0.05 / comparisons`` has a power of 80 %: ``P(|T| > t) >= 0.8`` with ``T`` of the
    noncentral t distribution with ``n - 1`` degrees of freedom and noncentrality
    ``sqrt(n) * |mean| / std``. Never fewer than the sign-flip test needs.

    Args:
        difference: The difference, with the spread that was seen.
        comparisons: How many differences are looked at together.

    Returns:
        The number; ``None`` if it is above 1000.

    Source: Cohen, Statistical Power Analysis (1988), 2.4.
    """
    if not difference.std:
        return least_seeds(comparisons) if difference.mean else None
    effect = abs(difference.mean) / difference.std
    low, high = max(least_seeds(comparisons), 2), MOST_SEEDS
    if _power(effect, high, comparisons) < POWER:
        return None
    while low < high:
        middle = (low + high) // 2
        if _power(effect, middle, comparisons) >= POWER:
            high = middle
        else:
            low = middle + 1
    return high


@functools.cache
def _power(effect: float, n: int, comparisons: int) -> float:
    stats = require("scipy.stats", "the number of seeds that would decide")
    t = stats.t.ppf(1 - LEVEL / (2 * comparisons), n - 1)
    power = float(stats.nct.sf(t, n - 1, math.sqrt(n) * effect))
    # Where the distribution is all above t, scipy has no number for it.
    return 1.0 if math.isnan(power) else power


def _against(found: Contest) -> Difference:
    """The difference that decides: to ``none``, else to the nearest arm."""
    to_none = {d.arm: d for d in found.family("none")}
    best = found.best
    if best in to_none:
        return to_none[best]
    others = found.family("best")
    return min(others, key=lambda d: abs(d.mean))


def _winner(found: Contest, metric: str, against: Difference) -> str:
    best = found.best
    assert best is not None
    others = found.family("best")
    clear = [d.arm for d in others if d.is_clear]
    value = f"{found.means[best]:.4g}"
    if len(clear) == len(others):
        return f"{best} won: its {metric} of {value} is the best of {_arms(found)}."
    other = against.versus if against.arm == best else against.arm
    if against.is_clear and best != REFERENCE:
        rest = [d.arm for d in others if not d.is_clear]
        return (
            f"{best} has the best {metric}, {value}, and is better than {other}; it "
            f"cannot be told from {_listed(rest)}, which did about as well."
        )
    if best == REFERENCE:
        return f"No arm won: no other has a better {metric} than {best}, {value}."
    sure = _better_than_none(found)
    also = f"; sure to be better than {REFERENCE}: {_listed(sure)}" if sure else ""
    first = f"No arm won: {best} has the best {metric}, {value}"
    return f"{first}, but it may be chance{also}."


def _better_than_none(found: Contest) -> list[str]:
    """The arms that are significantly better than ``none``, where that is not best."""
    best = found.best
    to_none = found.family("none")
    sign = next((d.mean for d in to_none if d.arm == best), 0.0)
    return [d.arm for d in to_none if d.is_clear and d.mean * sign > 0]


def _certainty(found: Contest, against: Difference) -> str:
    """The difference in absolute and relative size, and how well it is known."""
    best = found.best
    assert best is not None
    other = against.versus if against.arm == best else against.arm
    mean, low, high = against.mean, against.low_corrected, against.high_corrected
    if against.arm != best:
        mean = -mean
        low, high = (None if x is None else -x for x in (high, low))
    base = found.means[other]
    relative = f" ({100 * abs(mean / base):.2g} %)" if base else ""
    interval = (
        ""
        if low is None or high is None
        else f", and with 95 % certainty between {low:+.2g} and {high:+.2g}"
    )
    significance = "significant" if against.is_clear else "not significant"
    return (
        f"Over {found.seeds} seeds the difference to {other} is {mean:+.2g}{relative}"
        f"{interval}; it is {significance} (corrected p {against.p_corrected:.2g})."
    )


def _strength(arm: ArmRecord) -> str:
    """What the best arm was trained with, as code to paste."""
    tuned = ", chosen on validation data" if arm.grid else ""
    parts = []
    if arm.rule is not None:
        found = [c for run in arm.runs for c in run.coefficients.values()]
        c = math.exp(fmean(map(math.log, found))) if all(found) and found else 0.0
        parts.append(
            f"{arm.rule['class_name']} as strong as kernel_regularizer="
            f"keras.regularizers.L2({c:.2g})"
        )
    decay = fmean(run.setting.weight_decay for run in arm.runs)
    rate = fmean(run.setting.dropout for run in arm.runs)
    if decay:
        parts.append(f"an optimizer with weight_decay={decay:.2g}")
    if rate:
        parts.append(f"Dropout({rate:.2g})")
    if not parts:
        return f"{arm.name} is the network without penalty, decay and dropout."
    return f"{arm.name} stands for {' and '.join(parts)} (mean over the seeds{tuned})."


def _more_seeds(comparison: Comparison, found: Contest, against: Difference) -> str:
    if against.is_clear:
        return ""
    n = seeds_to_decide(against, found.comparisons)
    if n is None:
        return (
            f"If the arms differ at all, more than {MOST_SEEDS} seeds would be needed "
            "to show it: for practical purposes they are equal."
        )
    n = max(n, found.seeds + 1)
    command = _command(comparison, n)
    return f"If the difference is as it looks, about {n} seeds decide it: {command}"


def _command(comparison: Comparison, seeds: int) -> str:
    if comparison.command is None:
        return f"compare(..., seeds={seeds})."
    return f"{comparison.command} --seeds {seeds}"


def _arms(found: Contest) -> str:
    return f"{len(found.means)} arms"


def _listed(names: list[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
