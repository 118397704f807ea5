"""A tuning in words: findings, table, Markdown, and the line to paste."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Sequence

from keras_scaled_l2.experiments.results.curve import WITHIN, Curve
from keras_scaled_l2.experiments.results.tuning_records import (
    Evidence,
    TuningPoint,
    TuningRecord,
    falls,
)
from keras_scaled_l2.experiments.results.words import counted, percent, places
from keras_scaled_l2.report_text import EQUIVALENTS

_CODE = {
    "l2": "kernel_regularizer=keras.regularizers.L2({:g})",
    "scaled": "kernel_regularizer=ScaledL2({:g})",
    "sample": "ApplyL2(SampleL2({:g}))",
    "prior": "ApplyL2(PriorL2({:g}))",
    "half-life": "ApplyL2(HalfLifeL2({:g}))",
    "decay": "weight_decay={:g}",
    "dropout": "keras.layers.Dropout({:g})",
}
"""Rule -> the line that puts a strength to use."""

FAR = 0.25
"""A mean that is 25 % worse is named, even if it does not differ significantly."""

_STRENGTH = re.compile(r"\b((?:strength|l2|std|epochs)=)[^,)]+")


def code(result: TuningRecord) -> str:
    """The line of code that puts the best strength to use, and dropout beside it."""
    line = _line(result)
    rate = result.best.get("dropout")
    return f"{line}, with {_CODE['dropout'].format(rate)}" if rate else line


def _line(result: TuningRecord) -> str:
    strength = result.best["strength"]
    if not strength:
        return without(result.rule)
    penalty = result.rule.removesuffix("+dropout")
    template = _CODE.get(penalty)
    if template is not None:
        return template.format(strength)
    # A rule of the user's own, as the call that makes it.
    made, found = _STRENGTH.subn(rf"\g<1>{strength:g}", penalty, count=1)
    return f"ApplyL2({made})" if found else f"{result.rule} of strength {strength:g}"


def without(rule: str) -> str:
    """What the strength 0 of a rule is called."""
    return "no dropout" if rule == "dropout" else "no penalty"


def findings(
    points: Sequence[TuningPoint],
    found: Curve,
    *,
    rule: str,
    inert_below: float | None = None,
) -> list[str]:
    """What the curve says, in words, the answer first."""
    lines = [_plateau(points, found, rule)]
    if found.edge:
        lines.append(
            f"The optimum lies at the edge: {_say(points[found.best].strength)} is the "
            "end of the range that was tried. Try values beyond it."
        )
    lines += _none(points, found, rule)
    if inert_below:
        lines.append(
            f"Below {inert_below:.2g} nothing happens: the penalty would shrink no "
            "weight by more than 2 % over the whole training."
        )
    lost = [p.strength for p in points if math.isnan(p.mean)]
    if lost:
        lines.append(f"Diverged: {', '.join(map(_say, lost))}.")
    return lines


def evidence_findings(
    points: Sequence[TuningPoint], found: Curve, evidence: Evidence, *, rule: str
) -> list[str]:
    """What the evidence proposed, and what hold-out found around it."""
    c, gamma = evidence.coefficients.values(), math.fsum(evidence.gammas.values())
    low, high = min(c), max(c)
    span = f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g} by layer"
    known = f", {gamma:.4g} parameters determined" if math.isfinite(gamma) else ""
    lines = [
        f"The evidence of one training ({evidence.steps:,} steps) proposed the "
        f"strength {evidence.strength:.3g} of {rule}: c = {span}{known}."
    ]
    tried = [p for p in points if p.strength]
    around = (
        f"Hold-out tried {len(tried)} strengths around it, from "
        f"{_say(tried[0].strength)} to {_say(tried[-1].strength)}"
    )
    best = points[found.best]
    proposed = next(p for p in tried if p.strength == evidence.strength)
    if best is proposed:
        return [*lines, f"{around}: the proposal itself is best."]
    behind = abs(proposed.mean - best.mean) / abs(best.mean) if best.mean else math.nan
    return [
        *lines,
        f"{around}: {_say(best.strength)} is best, the proposal "
        f"{percent(behind, 1)} behind.",
    ]


def _plateau(points: Sequence[TuningPoint], found: Curve, rule: str) -> str:
    low, high = found.plateau
    best = points[found.best]
    name = f"The best strength of {rule} is {_say(best.strength)}"
    if len(points) == 1:
        return f"{name}, the only one that was trained: nothing to compare it with."
    if low == high:
        return f"{name}; no other value that was tried is as good."
    limit = WITHIN * abs(best.mean)
    first, last = found.inside
    inside = points[first : last + 1]
    surely = all(abs(p.mean - best.mean) <= limit for p in inside)
    how = (
        f"all are within {percent(WITHIN)} of the best"
        if surely
        else "none differs significantly from the best "
        f"({counted(len(best.jobs), 'training')})"
    )
    span = f"from {_say(low)} to {_say(high)}"
    if low == 0 and falls(points):
        span = f"of {_say(high)} or more, and none,"
    return f"{name}. Any value {span} will do: {how}.{_far(inside, best)}"


def far_off(inside: Iterable[TuningPoint], best: TuningPoint) -> TuningPoint | None:
    """The strength of a plateau whose mean says that its interval is merely wide."""
    far = max(inside, key=lambda p: abs(p.mean - best.mean))
    behind = abs(far.mean - best.mean)
    return far if best.mean and behind > FAR * abs(best.mean) else None


def _far(inside: Sequence[TuningPoint], best: TuningPoint) -> str:
    far = far_off(inside, best)
    if far is None:
        return ""
    behind = abs(far.mean - best.mean) / abs(best.mean)
    return (
        f" But the mean at {_say(far.strength)} is {percent(behind)} "
        "worse than the best: these are too few to tell. Give more seeds before you "
        "use it."
    )


def _none(points: Sequence[TuningPoint], found: Curve, rule: str) -> list[str]:
    none = without(rule).capitalize()
    if len(points) == 1:
        return []
    if points[found.best].strength == 0:
        return [f"{none} is best: nothing that was tried is better."]
    if found.none_is_as_good:
        return [
            f"{none} is as good: what the best strength gains is not significant "
            f"({counted(len(points[found.best].jobs), 'training')})."
        ]
    if found.none_is_as_good is None and found.none_is_within is not None:
        zero = next(p for p in points if p.strength == 0)
        return [_cannot_tell(zero.mean, points[found.best].mean, rule)]
    if found.none_is_within:
        return [f"{none} is worse, but within {percent(WITHIN)} of the best."]
    return []


def _cannot_tell(none: float, best: float, rule: str) -> str:
    """One pair of trainings has no spread to judge a difference by."""
    behind = abs(none - best) / abs(best) if best else math.nan
    here = f": here it is {percent(behind, 1)} behind" if math.isfinite(behind) else ""
    return (
        f"One training cannot tell whether {without(rule)} is as good{here}. Give more "
        "seeds, or use method kfold."
    )


def as_text(result: TuningRecord) -> str:
    """The curve for a terminal."""
    rows = list(cells(result))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = [
        "  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    blocks = [_wrapped(description(result)), "\n".join(table)]
    blocks.append("\n".join(_wrapped(line, "- ") for line in result.findings))
    blocks.append("\n".join(use(result)))
    return "\n\n".join(blocks)


def as_markdown(result: TuningRecord) -> str:
    """The same as Markdown."""
    ruler = ["---:"] * len(_HEADER)
    header, *rows = cells(result)
    lines = [f"| {' | '.join(row)} |" for row in (header, ruler, *rows)]
    title = f"# Tuning of {result.rule} on {result.problem}"
    lists = [
        "\n".join(f"- {line}" for line in part)
        for part in (result.findings, LEGEND, use(result))
    ]
    blocks = [title, description(result), lists[0], "\n".join(lines), *lists[1:]]
    return "\n\n".join(blocks) + "\n"


_HEADER = ("strength", "c", "e-folds", "mean", "95 % interval", "jobs", "steps", "")

LEGEND = (
    "c: the coefficient, as in keras.regularizers.L2(c).",
    "e-folds: the penalty alone would shrink a weight to exp(-e-folds) of itself over "
    "the whole training (one with the largest c); below 0.02 nothing happens, above 30 "
    "the data hardly count.",
    "95 % interval: of the difference to the best on the same trainings, added to the "
    "mean of the best.",
    "one standard error: the strongest penalty whose mean is within one standard error "
    "of the best.",
    "jobs: trainings; few where the first ones showed that others are better.",
)
"""What the columns mean."""


def cells(result: TuningRecord) -> Iterable[tuple[str, ...]]:
    """The curve as a table, its header first."""
    yield _HEADER
    decimals = 4
    if result.criterion == "data_loss":
        decimals = places(p.mean for p in result.points)
    for p in result.points:
        low, high = p.coefficient
        span = f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
        ends = [_value(v, decimals) for v in (p.low, p.high) if v is not None]
        yield (
            _say(p.strength),
            span,
            f"{p.e_folds:.3g}",
            _value(p.mean, decimals),
            f"[{', '.join(ends)}]" if ends else "-",
            str(len(p.jobs)),
            f"{sum(job.steps for job in p.jobs):,}",
            _mark(result, p),
        )


def _value(value: float, decimals: int) -> str:
    """A loss or an accuracy."""
    # One that has almost diverged would push the others off the screen.
    return f"{value:.{decimals}f}" if abs(value) < 1e6 else f"{value:.3e}"


def _mark(result: TuningRecord, point: TuningPoint) -> str:
    marks = []
    if point.strength == result.best["strength"]:
        marks.append("best")
    if point.strength == result.one_standard_error["strength"]:
        marks.append("one standard error")
    if point.inert and point.strength:
        marks.append("inert")
    return ", ".join(marks)


def description(result: TuningRecord) -> str:
    """What was trained, in a sentence or two."""
    folds = {(job.seed, job.fold) for p in result.points for job in p.jobs}
    seeds = len({seed for seed, _ in folds})
    how = f"hold-out, {counted(seeds, 'seed')}"
    if result.method == "evidence":
        how = f"hold-out around what the evidence proposed, {counted(seeds, 'seed')}"
    if result.method == "kfold":
        k = len({fold for _, fold in folds})
        how = f"{k}-fold cross-validation, {counted(seeds, 'seed')}"
    return (
        f"Tuning of {result.rule} on {result.problem}, {result.architecture} "
        f"({result.weights:,} weights), {result.optimizer['class_name']}: validation "
        f"{result.criterion.replace('_', ' ')}, {how}, at most "
        f"{counted(result.epochs, 'epoch')}, "
        f"{result.steps:,} steps in all. Intervals are of the paired difference to the "
        "best."
    )


def use(result: TuningRecord) -> Iterable[str]:
    """The best strength as code, then in other conventions."""
    yield f"To use it: {code(result)}"
    if result.rule.startswith("decay") and result.best["strength"]:
        yield (
            "Kernels alone were decayed, as after optimizer.exclude_from_weight_decay"
            "(var_names=['bias', 'gamma', 'beta'])"
        )
    life = result.best["half_life_epochs"]
    if life is not None:
        low, high = result[result.best["strength"] or 0.0].coefficient
        where = "" if low == high else " and with the largest c"
        yield f"Half-life of a weight without data gradient{where}: {life:.3g} epochs"
    for name, value in result.equivalents().items():
        if name not in ("keras", "half_life"):
            yield f"{EQUIVALENTS[name]} = {value:.3g}"


def _say(strength: float) -> str:
    return "none" if strength == 0 else f"{strength:.3g}"


def _wrapped(line: str, bullet: str = "") -> str:
    whole = line.replace(" %", "\N{NO-BREAK SPACE}%")
    text = textwrap.fill(
        whole,
        80,
        initial_indent=bullet,
        subsequent_indent=" " * len(bullet),
        break_on_hyphens=False,
    )
    return text.replace("\N{NO-BREAK SPACE}", " ")
