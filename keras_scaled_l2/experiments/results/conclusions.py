"""What the test metrics allow to say, and what they do not, in sentences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from keras_scaled_l2.experiments.results.analysis import Analysis
from keras_scaled_l2.experiments.results.paired import (
    EXACT_SEEDS,
    RANDOM_FLIPS,
    REFERENCE,
    Difference,
    MultipleComparison,
    least_seeds,
)
from keras_scaled_l2.experiments.results.records import ComparisonRecord
from keras_scaled_l2.experiments.results.words import (
    are,
    counted,
    interval,
    listed,
    p_value,
)


def conclusions(record: ComparisonRecord, analyses: Sequence[Analysis]) -> list[str]:
    """By metric; then whether the seeds are too few, and what was tuned."""
    if not record.seeds:
        return ["No run is finished yet."]
    given = len(record.arms)
    lines = [line for analysis in analyses for line in _about(analysis, given)]
    # Of two metrics by which the same arms are compared, once.
    limits = dict.fromkeys(filter(None, (_too_few(a.arms) for a in analyses)))
    return [*lines, *limits, _tuning(record)]


def method(analyses: Sequence[Analysis]) -> list[str]:
    """How the differences were judged."""
    seeds = max((analysis.arms.seeds for analysis in analyses), default=0)
    if not seeds:
        return []
    flips = "all sign flips" if seeds <= EXACT_SEEDS else f"{RANDOM_FLIPS:,} sign flips"
    return [
        "Differences: arm - other arm, paired by seed; in brackets the 95 % interval "
        "that holds for all pairs of arms together (Student's t, Bonferroni).",
        f"Corrected p: permutation test with {flips}, corrected for all pairs of arms "
        "(Holm), since the best was picked by looking.",
        "Significantly different: corrected p at most 0.05, and the interval leaves "
        "out 0. Each metric holds its 5 % by itself.",
    ]


def _about(analysis: Analysis, given: int) -> Iterable[str]:
    """Sentences by a metric; ``given``: how many arms the comparison has."""
    arms, metric = analysis.arms, analysis.metric
    lost = arms.diverged
    start = f"By {metric.name} "
    start += f"(without {listed(lost)}, which diverged) " if lost else ""
    if arms.best is None:
        # Runs that are still to come may change it, unless too few arms are left.
        yet = "" if given - len(lost) < 2 else " yet"
        yield f"{start}there is nothing to compare{yet}."
        return
    yield start + _about_best(arms, analysis.spec)
    to_none = arms.versus(REFERENCE)
    # Of two arms the first sentence has said it all.
    if arms.seeds > 1 and len(arms.means) > 2 and REFERENCE in arms.means:
        yield start + _about_none(to_none, metric.higher_is_better, analysis.spec)


def _about_best(arms: MultipleComparison, spec: str) -> str:
    best, others = arms.level[0], arms.versus(arms.best)
    mean = format(arms.means[best], spec)
    clear = [d.arm for d in others if d.is_significant and d.arm not in arms.level]
    if len(clear) == len(others):
        p = max(d.p_corrected for d in others)
        return (
            f"{best} won with {mean}: over {arms.seeds} seeds it is significantly "
            f"different from {listed(clear)} (corrected p {p_value(p)}"
            f"{' at most' * (len(clear) > 1)})."
        )
    if len(arms.level) > 1:
        head = f"no arm won: {listed(arms.level)} are level with {mean}"
    else:
        head = f"no arm won: {best} is ahead with {mean}"
    if arms.seeds == 1:
        return f"{head}; one seed may be luck."
    open_ = [d for d in others if d.arm not in clear]
    also = f" It is significantly different from {listed(clear)}." if clear else ""
    return (
        f"{head}, but over {arms.seeds} seeds it is not significantly different from "
        f"{_possible(open_, spec)}; the differences to {best} in brackets remain "
        f"possible.{also}"
    )


def _about_none(differences: list[Difference], higher: bool, spec: str) -> str:
    clear = [d for d in differences if d.is_significant]
    better = [d.arm for d in clear if (d.mean > 0) == higher]
    worse = [d.arm for d in clear if d.arm not in better]
    open_ = [d for d in differences if not d.is_significant]
    parts = [
        f"{listed(better)} {are(better)} significantly better" if better else "",
        f"{listed(worse)} {are(worse)} significantly worse" if worse else "",
        f"no significant difference of {_possible(open_, spec)}" if open_ else "",
    ]
    return f"against none: {'; '.join(filter(None, parts))}."


def _possible(differences: Sequence[Difference], spec: str) -> str:
    """The arms, each with its interval and with what speaks against one without 0."""
    shown = []
    for d in differences:
        but = f" but corrected p {p_value(d.p_corrected)}" if d.excludes_zero else ""
        shown.append(f"{d.arm}{interval(d.low_corrected, d.high_corrected, spec)}{but}")
    return listed(shown)


def _too_few(arms: MultipleComparison) -> str:
    """A sentence if no difference, however large, could have been shown."""
    needed = least_seeds(max(len(arms.differences), 1))
    if arms.best is None or arms.seeds >= needed:
        return ""
    return (
        f"{counted(arms.seeds, 'seed')} {'is' if arms.seeds == 1 else 'are'} too few: "
        f"among {len(arms.means)} arms the sign-flip test cannot show a difference, "
        f"however large it is; from {needed} seeds on it can."
    )


def _tuning(record: ComparisonRecord) -> str:
    tuned = [
        f"{arm.name} ({counted(len(arm.grid), 'trial')})"
        for arm in record.arms
        if arm.grid
    ]
    if not tuned:
        return (
            "Strengths, dropout rates and weight decay are as given, not tuned: this "
            "says how these values did, not which method is better."
        )
    given = [arm.name for arm in record.arms if not arm.grid]
    rest = f"; as given: {listed(given)}" if given else ""
    return f"Tuned for each seed on its validation data: {listed(tuned)}{rest}."
