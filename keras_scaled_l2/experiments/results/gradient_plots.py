"""Figures of the penalty's gradient beside that of the data."""

from __future__ import annotations

import itertools
import math
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from keras_scaled_l2.experiments.results import drawing
from keras_scaled_l2.experiments.results.drawing import ArmStyle
from keras_scaled_l2.experiments.results.records import (
    ArmRecord,
    ComparisonRecord,
    RunRecord,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABEL = "norm of the penalty's gradient / norm of the data gradient"


def gradient_ratios(comparison: ComparisonRecord) -> Figure | None:
    """Penalty gradient over data gradient by layer, at the start and at the end.

    Medians over the seeds. What is 0 or diverged has no place on the logarithmic axis.
    """
    ratios = {item: _ratios(item.arm) for item in drawing.styles(comparison)}
    ratios = {item: found for item, found in ratios.items() if found}
    paths = list(dict.fromkeys(path for found in ratios.values() for path in found))
    if not paths:
        return None
    with drawing.style():
        figure = drawing.figure(
            min(40.0, 1.7 + len(paths) * (0.25 + 0.17 * len(ratios)))
        )
        axes = figure.subplots()
        axes.axvline(1.0, color=drawing.INK, linewidth=1.0, label="1")
        for place, (item, found) in enumerate(ratios.items()):
            shift = 0.7 * ((place + 0.5) / len(ratios) - 0.5)
            _draw_ratios(axes, item, found, paths, shift)
        drawn = [1.0, *drawing.drawn(axes.lines, "x")]
        axes.set_yticks(range(len(paths)), _short(paths))
        axes.set_ylim(len(paths) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        for edge in range(1, len(paths)):
            axes.axhline(edge - 0.5, color=drawing.GRID, linewidth=0.6, label="_")
        axes.set_xlabel(LABEL)
        drawing.log(axes, "x", drawn)
        handles = [drawing.handle(item) for item in ratios]
        handles.append(drawing.handle("start", linestyle="", marker="o", hollow=True))
        handles.append(drawing.handle("end of the training", linestyle="", marker="o"))
        note = "Median over the seeds. At 1 both gradients are equally large."
        drawing.finish(figure, handles, [note])
    return figure


def gradient_ratio_by_epoch(comparison: ComparisonRecord) -> Figure | None:
    """Penalty gradient over data gradient at the first step of each epoch.

    The median over the weights of a run, then the mean over the seeds.
    """
    arms = {arm: _by_epoch(arm.arm) for arm in drawing.styles(comparison)}
    arms = {arm: values for arm, values in arms.items() if values}
    if not arms:
        return None
    with drawing.style():
        figure = drawing.figure(4.0)
        axes: Any = figure.subplots()
        for arm, values in arms.items():
            drawing.draw_band(axes, arm, values, 1)
        axes.axhline(1.0, color=drawing.INK, linewidth=1.0, label="1")
        axes.set(xlabel="epoch", ylabel="gradient ratio")
        axes.xaxis.get_major_locator().set_params(integer=True)
        drawing.log(axes, "y", [1.0, *drawing.drawn(axes.lines[:-1], "y")])
        handles = [drawing.handle(arm) for arm in arms]
        note = f"{LABEL.capitalize()}: median over the weights, mean over the seeds."
        drawing.finish(figure, handles, [note])
    return figure


def _by_epoch(arm: ArmRecord) -> list[list[float]]:
    """For each epoch the ratios of the runs that got that far."""
    found = drawing.by_epoch([ratios for run in arm.runs if (ratios := _medians(run))])
    return found if any(value > 0 for values in found for value in values) else []


def _medians(run: RunRecord) -> list[float]:
    """The median over the weights by epoch; NaN where the run has diverged."""
    data, penalty = (run.norms.get(f"{of}_gradient", {}) for of in ("data", "penalty"))
    ratios = [
        [
            p / d if d else math.nan
            for p, d in zip(penalty[path], data[path], strict=True)
        ]
        for path in penalty
        if path in data and path in run.coefficients
    ]
    return [_median(values) for values in zip(*ratios, strict=True)]


def _ratios(arm: ArmRecord) -> dict[str, dict[str, float]]:
    """Path -> ``"start"`` and ``"end"`` -> median over the seeds, if above 0."""
    found: dict[str, dict[str, float]] = {}
    for when in ("start", "end"):
        by_path: dict[str, list[float]] = {}
        for run in arm.runs:
            for path, ratio in run.gradient_ratios.get(when, {}).items():
                by_path.setdefault(path, []).append(ratio)
        for path, ratios in by_path.items():
            middle = _median(ratios)
            if 0 < middle < math.inf:
                found.setdefault(path, {})[when] = middle
    return found


def _median(values: Sequence[float]) -> float:
    # With NaN among the values it would depend on their order.
    return math.nan if any(map(math.isnan, values)) else statistics.median(values)


def _draw_ratios(
    axes: Any,
    item: ArmStyle,
    found: Mapping[str, Mapping[str, float]],
    paths: Sequence[str],
    shift: float,
) -> None:
    places = [place + shift for place in range(len(paths))]
    ends = [
        [found.get(path, {}).get(when, math.nan) for path in paths]
        for when in ("start", "end")
    ]
    for place, start, end in zip(places, *ends, strict=True):
        axes.plot([start, end], [place] * 2, color=item.color, label="_")
    for when, values in zip(("start", "end"), ends, strict=True):
        axes.plot(
            values,
            places,
            linestyle="",
            marker=item.marker,
            markersize=6,
            color=item.color,
            markerfacecolor=drawing.PAPER if when == "start" else item.color,
            label=f"{item.arm.name}, {when}",
        )


def _short(paths: Sequence[str]) -> list[str]:
    """The paths without the folders that all of them begin with."""
    parts = [path.split("/") for path in paths]
    columns = zip(*(part[:-1] for part in parts), strict=False)
    same = itertools.takewhile(lambda column: len(set(column)) == 1, columns)
    shared = len(list(same)) if len(paths) > 1 else 0
    return [textwrap.fill("/".join(part[shared:]), 30) for part in parts]
