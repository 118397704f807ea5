"""What a strength loses that nobody tuned: the tables of docs/atlas.md about it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from atlas_results import GOAL, PROBLEMS, Result, table

from keras_scaled_l2.experiments.plane import half_decades
from keras_scaled_l2.experiments.results.scaling import Interval, at, regret

FOLDS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
STRENGTHS = tuple(half_decades(k) for k in (-6, -5, -4))
LAMBDAS = tuple(2000 * half_decades(k) for k in range(-7, -2))
"""Such that lambda / (2m) is a strength of the sweep with 1000 and 10,000 examples."""
FIRST = 6.0
"""What is recommended: the best of these, rounded."""
HEAD = ("median regret", "mean", "largest", "at most 2 %", "surely more")

Strength = Callable[[Result], float]


def suggested(results: Sequence[Result]) -> str:
    """Regret of c for so many e-folds at the learning rate of the best strength."""
    sgd = [r for r in results if r.head["optimizer"] == "sgd"]
    rows = [[f"{e:g}", *_summary([_of_folds(r, e) for r in sgd])] for e in FOLDS]
    lines = [table(["E", *HEAD], rows), ""]
    kinds = {(r.head["architecture"], r.head["examples"]) for r in sgd}
    for kind in sorted(kinds):
        values = [
            _of_folds(r, 1.0).value
            for r in sgd
            if (r.head["architecture"], r.head["examples"]) == kind
        ]
        lines.append(
            f"- E = 1, {kind[0]}, {kind[1]:,} examples: {_words(values)}; "
            f"cells: {len(values)}."
        )
    lines.append(f"- `SampleL2({FIRST:g})` on all of these: {_losses(sgd, FIRST)}.")
    return "\n".join(lines)


def first(results: Sequence[Result]) -> str:
    """Regret of one strength for all cells, and of one chosen on other data sets."""
    none = [loss_of(r, 0.0) for r in results]
    rows = [["none", *_summary(none)]]
    for c in STRENGTHS:
        found = [loss_of(r, c) for r in results]
        rows.append([f"`L2({c:.2g})`", *_summary(found)])
    for number in sorted((*LAMBDAS, FIRST)):
        found = [loss_of(r, textbook(r, number)) for r in results]
        rows.append([f"`SampleL2({number:.2g})`", *_summary(found)])
    lines = [table(["strength", *HEAD], rows), ""]
    for problem, name in PROBLEMS.items():
        there = [r for r in results if r.group[0] == problem]
        chosen = best_lambda([r for r in results if r.group[0] != problem])
        lines.append(
            f"- {name}, {len(there)} cells: without a penalty {_losses(there, 0.0)}; "
            f"`SampleL2({FIRST:g})` {_losses(there, FIRST)}; chosen on the other two "
            f"data sets, `SampleL2({chosen:.2g})`, {_losses(there, chosen)}."
        )
    return "\n".join(lines)


def best_lambda(results: Sequence[Result]) -> float:
    """The strength of ``SampleL2`` with the lowest mean regret."""

    def mean(number: float) -> float:
        found = [loss_of(r, textbook(r, number)).value for r in results]
        return statistics.fmean(found)

    return min(LAMBDAS, key=mean)


def textbook(result: Result, number: float) -> float:
    """The coefficient of lambda / (2m)."""
    return number / (2 * int(result.head["sets"]["train"]))


def loss_of(result: Result, c: float) -> Interval:
    """Regret of a coefficient."""
    sweep = result.sweep("loss")
    return regret(sweep, at(sweep, c)[0], share=True)


def _of_folds(result: Result, folds: float) -> Interval:
    return loss_of(result, folds / result.folds_by_strength())


def _losses(results: Sequence[Result], number: float) -> str:
    return _words([loss_of(r, textbook(r, number)).value for r in results])


def _words(values: Sequence[float]) -> str:
    return (
        f"median {100 * statistics.median(values):.1f} %, largest "
        f"{100 * max(values):.1f} %"
    )


def _summary(found: Sequence[Interval]) -> list[str]:
    values = [r.value for r in found]
    return [
        *(
            f"{100 * f(values):.1f} %"
            for f in (statistics.median, statistics.fmean, max)
        ),
        f"{sum(v <= GOAL for v in values)} of {len(values)}",
        f"{sum(r.low is not None and r.low > GOAL for r in found)}",
    ]
