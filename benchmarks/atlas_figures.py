"""The figures of docs/atlas.md."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

from atlas_results import (
    HALF_LIFE,
    POWERS,
    PROBLEMS,
    Result,
    groups,
    regret_rows,
)
from atlas_rules import WORDS, rows

from keras_scaled_l2.experiments.results.scaling import optimum

COLORS = {"mnist": "#0072b2", "fashion_mnist": "#d55e00", "mnist1d": "#00664d"}
STYLES = {"sgd": "-", "adam": "--"}
MARKERS = {"dense": "o", "conv": "s", "residual": "D"}
FEW = 1000
"""Examples of most groups; those of others are drawn paler."""
PANELS = {0.0: "clean labels", 0.2: "20 % wrong labels"}


def draw(
    results: Sequence[Result], others: Sequence[Result], folder: pathlib.Path
) -> None:
    """Write ``atlas_best.svg`` and ``atlas_regret.svg``."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "atlas"
    figures = {"best": _best(results), "regret": _regret(results, others)}
    for name, figure in figures.items():
        figure.savefig(folder / f"atlas_{name}.svg", metadata={"Date": None})


def _figure(columns: int, lines: int = 1) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 1.4 + 2.8 * lines), layout="constrained")
    return figure, figure.subplots(lines, columns, sharey=True)


def _line(group: tuple[Any, ...]) -> dict[str, Any]:
    problem, examples, noise, optimizer, architecture = group
    return {
        "color": COLORS[problem],
        "linestyle": STYLES[optimizer],
        "marker": "x" if noise else MARKERS[architecture],
        "alpha": 1.0 if examples == FEW else 0.45,
        "markersize": 4,
        "linewidth": 1.2,
    }


def _best(results: Sequence[Result]) -> Any:
    """Best c against N, with intervals."""
    figure, axes = _figure(len(PANELS))
    for axis, (noise, title) in zip(axes, PANELS.items(), strict=True):
        chosen = {g: c for g, c in groups(results).items() if g[2] == noise}
        for i, (group, cells) in enumerate(chosen.items()):
            # Side by side, or the intervals would hide each other.
            x = [r.weights * 1.04 ** (i - len(chosen) / 2) for r in cells]
            best = [optimum(r.sweep("loss")) for r in cells]
            low = [b.value if b.low is None else b.low for b in best]
            high = [b.value if b.high is None else b.high for b in best]
            y = [b.value for b in best]
            errors = [
                [v - a for v, a in zip(y, low, strict=True)],
                [b - v for v, b in zip(y, high, strict=True)],
            ]
            axis.errorbar(x, y, errors, capsize=2, elinewidth=0.8, **_line(group))
        axis.set(xscale="log", yscale="log", xlabel="weights N", title=title)
        axis.set_ylim(1e-5, 0.1)
        _sizes(axis, results)
    axes[0].set_ylabel("best c by validation loss")
    _legend(figure, results)
    return figure


def _regret(results: Sequence[Result], others: Sequence[Result]) -> Any:
    """Regret of each rule against N."""
    panels: dict[str, dict[tuple[Any, ...], dict[int, float]]] = {
        rule: {} for rule in (*POWERS, HALF_LIFE, *WORDS.values())
    }
    smallest = {group: cells[0].weights for group, cells in groups(results).items()}
    for group, weights, regrets in regret_rows(results):
        for rule, found in regrets.items():
            # Where the strength was tuned it is the best.
            line = panels[rule].setdefault(group, {smallest[group]: 0.0})
            line[weights] = 100 * found.value
    for row in rows(results, others):
        line = panels[WORDS[row.cell.rule]].setdefault(row.cell.group, {})
        line[row.cell.weights] = 100 * (row.kept or row.best).value
    figure, axes = _figure(len(panels) // 2, lines=2)
    for axis, (rule, lines) in zip(axes.flat, panels.items(), strict=True):
        for group, line in lines.items():
            axis.plot(list(line), list(line.values()), **_line(group))
        axis.axhline(2, color="black", linewidth=0.8, linestyle=":")
        axis.set(xscale="log", xlabel="weights N", title=rule.replace("`", ""))
        _sizes(axis, results)
    for axis in axes[:, 0]:
        axis.set_ylabel("regret, % of the best loss of L2")
    _legend(figure, results)
    return figure


def _sizes(axis: Any, results: Sequence[Result]) -> None:
    """Ticks where there are networks: 20k, 70k, 2.1M."""
    # Those of the other networks lie between them.
    dense = (r for r in results if r.head["architecture"] == "dense")
    sizes = sorted({r.head["size"] for r in dense})
    labels = [f"{n / 1e6:g}M" if n >= 1e6 else f"{n // 1000}k" for n in sizes]
    # Upright, or the five panels of the regret have no room for them.
    axis.set_xticks(sizes, labels, rotation=90)
    axis.set_xticks([], minor=True)
    axis.grid(alpha=0.3)


def _legend(figure: Any, results: Sequence[Result]) -> None:
    from matplotlib.lines import Line2D

    problems = dict.fromkeys(g[0] for g in groups(results))
    handles = [Line2D([], [], color=COLORS[p], label=PROBLEMS[p]) for p in problems]
    gray = {"color": "gray"}
    handles += [
        Line2D([], [], **gray, linestyle="-", label="SGD"),
        Line2D([], [], **gray, linestyle="--", label="Adam"),
        Line2D([], [], **gray, marker="x", linestyle="", label="20 % wrong labels"),
    ]
    for architecture in dict.fromkeys(g[4] for g in groups(results)):
        marker, label = MARKERS[architecture], f"clean, {architecture}"
        handles.append(Line2D([], [], **gray, marker=marker, linestyle="", label=label))
    if any(g[1] != FEW for g in groups(results)):
        label = "pale: 10,000 examples, mnist1d 4,000"
        pale = Line2D([], [], **gray, alpha=0.45, label=label)
        handles.append(pale)
    # One row of all would be wider than the figure, and cut off.
    columns = -(-len(handles) // 2)
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, frameon=False
    )
