"""What the cells of the atlas say: the tables and sentences of docs/atlas.md.

Everything between ``<!-- atlas: NAME -->`` and ``<!-- end -->`` in that page is made
here from the JSON files of the finished cells, and so are the figures beside it::

    python benchmarks/atlas.py --tables
"""

from __future__ import annotations

import collections
import math
import pathlib
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import atlas_cells
import atlas_examples
import atlas_first
import atlas_rules
import atlas_sizes
from atlas_results import (
    GOAL,
    HALF_LIFE,
    POWERS,
    Result,
    groups,
    interval,
    load,
    percent,
    regret_rows,
    signs,
    table,
    title,
)

from keras_scaled_l2.experiments.plane import half_decades
from keras_scaled_l2.experiments.results.scaling import (
    Interval,
    at,
    exponent,
    optimum,
    regret,
)

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "atlas.md"
IMAGES = ROOT / "docs" / "images"
_LARGE = 10_000_000


def tables(results: Sequence[Result], others: Sequence[Result]) -> dict[str, str]:
    """Name -> what stands under it in the page.

    Args:
        results: Cells of L2 and dropout.
        others: Cells of other rules.
    """
    return {
        "measured": _measured(results, others),
        "answer": _answer(results),
        "sizes": atlas_sizes.sizes(results),
        "exponents": _exponents(results),
        "regrets": _regrets(results),
        "examples": atlas_examples.examples(results),
        "rules": atlas_rules.rules(results, others),
        "first": atlas_first.first(results),
        "suggested": atlas_first.suggested(results),
        "question": _question(results),
        "cells": _cells(results),
    }


def render(page: str, made: Mapping[str, str]) -> str:
    """The page with its marked parts made anew.

    Raises:
        KeyError: If a mark has a name that is not known.
    """
    pattern = re.compile(r"(<!-- atlas: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
    return pattern.sub(lambda m: f"{m[1]}{made[m[2]]}\n{m[3]}", page)


def _measured(results: Sequence[Result], others: Sequence[Result]) -> str:
    everything = [*results, *others]
    trainings = sum(len(r.l2) + len(r.dropout) for r in everything)
    hours = sum(r.head["seconds"] for r in everything) / 3600
    dates = sorted({r.head["date"] for r in everything})
    devices = collections.Counter(
        device for r in everything for device in r.head["device"].split("; ")
    )
    cells_on = ", ".join(f"{n} on {name}" for name, n in devices.most_common())
    lines = [
        f"- {len(everything)} cells of {len(atlas_cells.cells())} that the plan has "
        f"are finished: {trainings:,} trainings, {hours:.1f} hours on machines that "
        f"others used as well ({', '.join(dates)}).",
        f"- Cells with trainings on each device: {cells_on}.",
    ]
    lines += _begun(everything)
    for group, cells in groups(results).items():
        sizes = ", ".join(f"{r.weights:,}" for r in cells)
        lines.append(f"- {title(group)}: {sizes} weights.")
    for rule, words in atlas_rules.WORDS.items():
        sizes = [r.weights for r in others if r.rule == rule]
        if sizes:
            lines.append(
                f"- {words}: {len(sizes)} cells beside those, {min(sizes):,} to "
                f"{max(sizes):,} weights."
            )
    return "\n".join(lines)


def _begun(results: Sequence[Result]) -> list[str]:
    """Cells in which not every strength has the learning rate that suits it."""
    found = [r for r in results if not r.head.get("followed")]
    if not found:
        return []
    kinds = collections.Counter(
        atlas_sizes.in_words(atlas_sizes.nearest(r.weights))
        if r.group[4] == "dense"
        else r.group[4]
        for r in sorted(found, key=lambda r: r.weights)
    )
    listed = ", ".join(f"{name} ({n})" for name, n in kinds.items())
    return [
        f"- In {len(found)} of them strengths away from the best ones have the "
        "best of the learning rates that the search began with, which may be too "
        f"low or too high for them and make them look worse: {listed}."
    ]


def _exponents(results: Sequence[Result]) -> str:
    rows = []
    for group, cells in groups(results).items():
        if len(cells) < 2:
            continue
        row = [title(group), _sizes(cells)]
        for criterion in ("loss", "accuracy", "last_loss"):
            found = exponent([r.sweep(criterion) for r in cells])
            row.append(interval(found, ".2f"))
        rows.append(row)
    head = ["", "weights", "loss, stopped early", "accuracy", "loss, last epoch"]
    return table(head, rows)


def _regrets(results: Sequence[Result]) -> str:
    rules = [*POWERS, HALF_LIFE]
    rows = [
        [
            title(group),
            f"{weights:,}",
            *(percent(found[r]) if r in found else "-" for r in rules),
        ]
        for group, weights, found in regret_rows(results)
    ]
    return table(["", "weights", *rules], rows)


def _answer(results: Sequence[Result]) -> str:
    by_group = {g: cells for g, cells in groups(results).items() if len(cells) > 1}
    slopes = {
        g: exponent([r.sweep("loss") for r in cells]) for g, cells in by_group.items()
    }
    rows = list(regret_rows(results))
    lines = [_slope_words(slopes)]
    for rule in (*POWERS, HALF_LIFE):
        regrets = [found[rule] for *_, found in rows if rule in found]
        within = sum(r.value <= GOAL for r in regrets)
        shown = sum(r.high is not None and r.high <= GOAL for r in regrets)
        fails = sum(r.low is not None and r.low > GOAL for r in regrets)
        worst = max(r.value for r in regrets)
        lines.append(
            f"- **{rule}**: regret at most 2 % in {within} of {len(regrets)} larger "
            f"cells, shown by the interval in {shown}; surely more in {fails}; median "
            f"{100 * statistics.median(r.value for r in regrets):.1f} %, largest "
            f"{100 * worst:.0f} %."
        )
    lines += _kept(rows)
    lines += _matters(results)
    return "\n".join(lines)


def _kept(rows: Sequence[tuple[Any, int, Mapping[str, Interval]]]) -> list[str]:
    """Regret of the kept coefficient by kind of network, examples and size."""
    kinds: dict[tuple[str, int, bool], list[Interval]] = {}
    for (_, examples, *_, architecture), weights, found in rows:
        kind = (architecture, examples, weights > _LARGE)
        kinds.setdefault(kind, []).append(found["plain"])
    lines = []
    for (architecture, examples, large), regrets in sorted(kinds.items()):
        more = sum(r.value > GOAL for r in regrets)
        surely = sum(r.low is not None and r.low > GOAL for r in regrets)
        size = " at 20 million weights" if large else ""
        cells = f"{len(regrets)} larger cell{'s' if len(regrets) > 1 else ''}"
        lines.append(
            f"- plain, {architecture}, {examples:,} examples{size}: largest "
            f"{100 * max(r.value for r in regrets):.1f} % in {cells}, more than 2 % "
            f"in {more}, surely in {surely}."
        )
    return lines


def _slope_words(slopes: Mapping[Any, Interval]) -> str:
    values = [s.value for s in slopes.values()]
    return (
        f"- The exponent a of best c ~ N^a lies between {min(values):.2f} and "
        f"{max(values):.2f} in {len(values)} groups, median "
        f"{statistics.median(values):.2f}: in the middle of the groups the best "
        f"strength changes by a factor of {10 ** statistics.median(values):.2g} per "
        f"decade of weights. {signs(list(slopes.values()))}"
    )


def _matters(results: Sequence[Result]) -> list[str]:
    gains = {id(r): r.gain(r.l2, "loss") for r in results}
    small = [r for r in results if gains[id(r)] < GOAL]
    dropouts = {id(r): r.gain(r.dropout, "loss") for r in results}
    better = [r for r in results if dropouts[id(r)] > gains[id(r)]]
    clear = [r for r in better if _dropout_interval(r).high < 0]
    worse = [r for r in results if _dropout_interval(r).low > 0]
    edge = [r for r in results if optimum(r.sweep("loss")).edge]
    return [
        f"- L2 lowers the validation loss by {100 * min(gains.values()):.1f} to "
        f"{100 * max(gains.values()):.1f} %, by less than 2 % in {len(small)} of "
        f"{len(results)} cells: there nothing matters.",
        f"- Dropout gains more than L2 in {len(better)} of {len(results)} cells; the "
        f"paired interval shows it in {len(clear)}, and shows L2 to be better in "
        f"{len(worse)}.",
        f"- In {len(edge)} cells no penalty is best, or the best lies at an end of the "
        "sweep.",
    ]


def _dropout_interval(result: Result) -> Interval:
    """Loss under the best dropout minus loss under the best L2, seed by seed."""
    from keras_scaled_l2.experiments.results.spread import mean_std

    columns = [
        result.column(records, result.best_place(records, "loss"), "loss")[0]
        for records in (result.dropout, result.l2)
    ]
    found = mean_std([columns[0][s] - columns[1][s] for s in columns[0]])
    assert found.mean is not None
    return Interval(found.mean, found.low, found.high)


def _question(results: Sequence[Result]) -> str:
    lines = []
    for words, values in (
        ("c = 0.01 (`L2(0.01)`)", lambda m: (0.01,)),
        ("some c from 0.01 to 0.4", lambda m: (0.01, 0.4)),
        ("lambda = 0.01 in lambda / (2m)", lambda m: (0.005 / m,)),
        (
            "some lambda from 0.01 to 0.4 in lambda / (2m)",
            lambda m: (0.005 / m, 0.2 / m),
        ),
        ("lambda = 0.01 over the number of weights", lambda m: (None,)),
    ):
        inside = [r for r in results if _on_plateau(r, values)]
        names = {title(r.group) for r in inside}
        lines.append(
            f"- {words}: on the plateau of {len(inside)} of {len(results)} cells"
            + (f" ({len(names)} groups)." if inside else ".")
        )
    large = [r for r in results if r.weights > _LARGE]
    rows = [[*_names(r), _starting_cost(r), *_against(r, 0.01)] for r in large]
    head = ["`L2(0.01)`", "weights", "cost at the start", "above the best"]
    return "\n".join([*lines, "", table([*head, "below none"], rows)])


def _names(result: Result) -> tuple[str, str]:
    return title(result.group), f"{result.weights:,}"


def _starting_cost(result: Result) -> str:
    """Of ``L2(0.01)`` under He's initialization: each unit's weights have variance 2/n.

    A unit adds 0.01 * 2, whatever it sums (the ten outputs, by Glorot, about as much);
    the data cost of ten classes is log(10).
    """
    units = sum(map(int, re.findall(r"\d+", result.head["network"])[1:]))
    return f"{0.01 * 2 * units + math.log(10):.0f}"


def _against(result: Result, c: float) -> tuple[str, str]:
    """How far the loss lies above that of the best strength, and below no penalty's."""
    sweep = result.sweep("loss")
    above = regret(sweep, at(sweep, c)[0], share=True).value
    none = regret(sweep, at(sweep, 0.0)[0], share=True).value
    return f"{100 * above:.1f} %", f"{100 * (1 - (1 + above) / (1 + none)):.1f} %"


def _on_plateau(result: Result, values: Any) -> bool:
    """Whether a part of what is asked for lies on the plateau."""
    found, _ = result.curve()
    low, high = found.plateau
    asked = values(result.head["sets"]["train"])
    asked = [0.01 / result.weights if v is None else v for v in asked]
    return max(asked) >= low and min(asked) <= high


def _cells(results: Sequence[Result]) -> str:
    parts = []
    head = [
        *("weights", "best c", "plateau", "learning rate", "e-folds"),
        *("half-life, epochs", "gain", "test gain", "dropout", "its gain"),
        *("best c, accuracy", "best c, last epoch"),
    ]
    for group, cells in groups(results).items():
        rows = [_row(result) for result in cells]
        parts.append(f"**{title(group)}**\n\n{table(head, rows)}")
    return "\n\n".join(parts)


def _row(result: Result) -> list[str]:
    found, _ = result.curve()
    best = optimum(result.sweep("loss"))
    low, high = found.plateau
    place = result.best_place(result.l2, "loss")
    folds = result.folds()
    rate = half_decades(result.column(result.l2, place, "loss")[1])
    life = "-"
    if folds:
        life = f"{math.log(2) * result.head['epochs'] / folds:.2g}"
    others = [
        optimum(result.sweep(criterion)) for criterion in ("accuracy", "last_loss")
    ]
    dropout = result.best_place(result.dropout, "loss") or 0
    return [
        f"{result.weights:,}",
        interval(best, ".1e"),
        f"{_strength(low)} to {_strength(high)}",
        f"{rate:.2g}",
        "-" if folds is None else f"{folds:.2g}",
        life,
        f"{100 * result.gain(result.l2, 'loss'):.1f} %",
        f"{100 * result.gain(result.l2, 'test_loss'):.1f} %",
        f"{dropout / 10:g}",
        f"{100 * result.gain(result.dropout, 'loss'):.1f} %",
        *(f"{o.value:.1e}{' *' if o.edge else ''}" for o in others),
    ]


def _strength(c: float) -> str:
    return f"{c:.1e}" if c else "none"


def _sizes(cells: Sequence[Result]) -> str:
    return f"{cells[0].weights:,} to {cells[-1].weights:,}"


def main() -> None:
    """Make the page's tables and the figures."""
    import atlas_figures

    results = load()
    others = load(rules=True)
    made = tables(results, others)
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8"), made), encoding="utf-8")
    atlas_figures.draw(results, others, IMAGES)


if __name__ == "__main__":
    main()
