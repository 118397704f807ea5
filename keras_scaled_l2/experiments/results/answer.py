"""The answer of a comparison in a few sentences, for somebody who reads no more."""

from __future__ import annotations

import math
from statistics import fmean

import numpy as np

from keras_scaled_l2.experiments.errors import require
from keras_scaled_l2.experiments.results.analysis import Analysis
from keras_scaled_l2.experiments.results.columns import penalty
from keras_scaled_l2.experiments.results.paired import (
    LEVEL,
    REFERENCE,
    Difference,
    MultipleComparison,
    least_seeds,
)
from keras_scaled_l2.experiments.results.records import ArmRecord, ComparisonRecord
from keras_scaled_l2.experiments.results.words import are, interval, listed

POWER = 0.8
"""Chance to see a difference that is there, where a number of seeds is suggested."""
MOST_SEEDS = 1000


def answer(
    record: ComparisonRecord, analysis: Analysis, *others: Analysis
) -> list[str]:
    """Which arm won, how sure that is, and at what strength.

    Args:
        record: The comparison.
        analysis: Its arms by the metric that decides.
        others: By other metrics, which are told where they do not agree.

    Returns:
        Three to five sentences; the last one says how many seeds would decide what
        these leave open. One sentence for one seed; none if there is nothing to
        compare.
    """
    found, metric = analysis.arms, analysis.metric.name
    if found.best is None:
        return []
    least = least_seeds(len(found.differences))
    if found.seeds < 2:
        return [
            f"{found.best} has the best {metric}, {found.means[found.best]:.4g}, of "
            f"one seed, which may be luck. {least} seeds can tell: "
            f"{_command(record, least)}"
        ]
    against = _against(found)
    sentences = [
        _winner(found, metric, against),
        _certainty(found, against),
        *(_disagreement(str(found.best), other) for other in others),
        _strength(record[found.best]),
        _more_seeds(record, found, against),
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
    stats = require("scipy.stats", "the number of seeds that would decide")
    n = np.arange(max(least_seeds(comparisons), 2), MOST_SEEDS + 1)
    # Any n will do above 100, where scipy has no number for the distribution any more.
    effect = min(abs(difference.mean) / difference.std, 100.0)
    t = stats.t.ppf(1 - LEVEL / (2 * comparisons), n - 1)
    enough = n[stats.nct.sf(t, n - 1, np.sqrt(n) * effect) >= POWER]
    return int(enough[0]) if len(enough) else None


def _against(found: MultipleComparison) -> Difference:
    """The best arm minus the one that matters: ``none``, else the runner-up."""
    others = {d.arm: d.reversed() for d in found.versus(found.best)}
    return others.get(REFERENCE) or _nearest(list(others.values()))


def _nearest(differences: list[Difference]) -> Difference:
    return min(differences, key=lambda d: abs(d.mean))


def _open(found: MultipleComparison) -> list[Difference]:
    """The best arm minus those that it is not significantly different from."""
    others = found.versus(found.best)
    return [d.reversed() for d in others if not d.is_significant]


def _winner(found: MultipleComparison, metric: str, against: Difference) -> str:
    best, open_ = str(found.best), [d.versus for d in _open(found)]
    value = f"{found.means[best]:.4g}"
    if not open_:
        arms = len(found.means)
        return f"{best} won: its {metric} of {value} is the best of {arms} arms."
    if against.is_significant and best != REFERENCE:
        worse = [d.arm for d in found.versus(best) if d.is_significant]
        return (
            f"{best} has the best {metric}, {value}, and is better than "
            f"{listed(worse)}; it is not significantly different from {listed(open_)}."
        )
    if best == REFERENCE:
        return f"No arm won: no other has a better {metric} than {best}, {value}."
    # Another arm may be significantly better than none, where the best is not.
    sure = [
        d.arm
        for d in found.versus(REFERENCE)
        if d.is_significant and d.mean * against.mean > 0
    ]
    first = (
        f"No arm won: {best} has the best {metric}, {value}, but its lead may be chance"
    )
    if not sure:
        return f"{first}."
    return f"{first}; {listed(sure)} {are(sure)} significantly better than {REFERENCE}."


def _certainty(found: MultipleComparison, against: Difference) -> str:
    """The difference in absolute and relative size, and how well it is known."""
    base = found.means[against.versus]
    relative = f" ({100 * abs(against.mean / base):.2g} %)" if base else ""
    ends = interval(against.low_corrected, against.high_corrected, ".2g")
    certain = f", with 95 % certainty within{ends}" if ends else ""
    return (
        f"Over {found.seeds} seeds its difference to {against.versus} is "
        f"{against.mean:+.2g}{relative}{certain}; it is {_significance(against)}."
    )


def _disagreement(best: str, other: Analysis) -> str:
    """Which arm another metric prefers to the best one."""
    arms = other.arms
    if arms.best is None or best in arms.level or best not in arms.means:
        return ""
    (difference,) = (d for d in arms.versus(arms.best) if d.arm == best)
    return (
        f"Its {other.metric.name} is {arms.means[best]:{other.spec}}; {arms.best} has "
        f"the best, {arms.means[arms.best]:{other.spec}}, a difference that is "
        f"{_significance(difference)}."
    )


def _significance(difference: Difference) -> str:
    found = "significant" if difference.is_significant else "not significant"
    return f"{found} (corrected p {difference.p_corrected:.2g})"


def _strength(arm: ArmRecord) -> str:
    """What the best arm was trained with, as code to paste."""
    tuned = ", chosen on validation data" if arm.grid else ""
    parts = []
    if arm.rule is not None:
        found = [c for run in arm.runs for c in run.coefficients.values()]
        c = math.exp(fmean(map(math.log, found))) if all(found) and found else 0.0
        parts.append(
            f"{penalty(arm)} (as strong as kernel_regularizer="
            f"keras.regularizers.L2({c:.2g}))"
        )
    decay = fmean(run.hyperparameters.weight_decay for run in arm.runs)
    rate = fmean(run.hyperparameters.dropout for run in arm.runs)
    if decay:
        parts.append(f"an optimizer with weight_decay={decay:.2g}")
    if rate:
        parts.append(f"Dropout({rate:.2g})")
    if not parts:
        return (
            f"{arm.name} is the network as it was given, without penalty, decay or "
            "dropout added."
        )
    return f"{arm.name} stands for {listed(parts)}, means over the seeds{tuned}."


def _more_seeds(
    record: ComparisonRecord, found: MultipleComparison, against: Difference
) -> str:
    """How many seeds decide what is open: against ``none``, then the runner-up."""
    if not _open(found):
        return ""
    decides = _nearest(_open(found)) if against.is_significant else against
    n = seeds_to_decide(decides, len(found.differences))
    if n is None:
        return (
            f"If its difference to {decides.versus} is as small as it looks, it takes "
            f"more than {MOST_SEEDS} seeds to show it."
        )
    n = max(n, found.seeds + 1)
    return (
        f"If its difference to {decides.versus} is as it looks, about {n} seeds decide "
        f"it: {_command(record, n)}"
    )


def _command(record: ComparisonRecord, seeds: int) -> str:
    if record.command is None:
        return f"compare(..., seeds={seeds})."
    return f"{record.command} --seeds {seeds}"
