"""A comparison as figures: plain matplotlib, drawn without any global state."""

from __future__ import annotations

import itertools
import math
import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from keras_scaled_l2.experiments.results import drawing, gradient_plots
from keras_scaled_l2.experiments.results.drawing import ArmStyle
from keras_scaled_l2.experiments.results.files import write_bytes
from keras_scaled_l2.experiments.results.records import ComparisonRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRICS = {"data_loss": "data loss", "accuracy": "accuracy"}


def figures(comparison: ComparisonRecord) -> dict[str, Figure]:
    """Name -> figure, those left out for which the records hold nothing."""
    drawn = {name: draw(comparison) for name, draw in _FIGURES.items()}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def save_figures(
    comparison: ComparisonRecord, directory: str | os.PathLike[str]
) -> list[pathlib.Path]:
    """Write every figure as PNG and SVG into ``directory/figures``.

    Each file is written beside its place and then moved there. A figure that is left
    out takes an older file of its name with it: that one shows something else.

    Returns:
        The files, in the order in which they were written.
    """
    folder = pathlib.Path(directory) / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    drawn, written = figures(comparison), []
    for name, kind in itertools.product(_FIGURES, ("png", "svg")):
        path = folder / f"{name}.{kind}"
        if name in drawn:
            write_bytes(path, drawing.render(drawn[name], kind))
            written.append(path)
        else:
            path.unlink(missing_ok=True)
    return written


def learning_curves(comparison: ComparisonRecord) -> Figure | None:
    """Validation data loss and accuracy by epoch, training data loss dashed.

    A line is the mean over the seeds. It ends where a seed diverged; a seed that
    stopped early counts up to its last epoch.
    """
    arms = drawing.styles(comparison)
    shown = {
        f"val_{metric}": label
        for metric, label in METRICS.items()
        if any(item.curves(f"val_{metric}") for item in arms)
    }
    if not shown:
        return None
    longest = max(
        len(curve) for name in shown for x in arms for curve in x.curves(name)
    )
    starts = [1, longest // 2 + 1] if longest >= 4 else [1]
    with drawing.style():
        figure = drawing.figure(0.8 + 3.2 * len(starts))
        grid = figure.subplots(len(starts), len(shown), squeeze=False)
        for start, row in zip(starts, grid, strict=True):
            for axes, (name, label) in zip(row, shown.items(), strict=True):
                since = f", enlarged from epoch {start} on" if start > 1 else ""
                axes.set(title=f"Validation {label}{since}", xlabel="epoch")
                axes.xaxis.get_major_locator().set_params(integer=True)
                for item in arms:
                    _draw_curves(axes, item, name, start)
                    # Enlarged, only the validation matters: the axis is for it alone.
                    if name == "val_data_loss" and start == 1:
                        _draw_training(axes, item)
                if name == "val_data_loss":
                    drawing.log_if_wide(axes, "y", drawing.drawn(axes.lines, "y"))
        handles = [drawing.handle(item) for item in arms]
        if "val_data_loss" in shown:
            handles.append(drawing.handle("training data loss", linestyle="--"))
        drawing.finish(figure, handles, _curve_notes(arms))
    return figure


def metrics_by_arm(comparison: ComparisonRecord) -> Figure | None:
    """Test data loss and accuracy by arm: every seed, their mean, its 95 % interval."""
    arms = drawing.styles(comparison)
    shown = {
        metric: label
        for metric, label in METRICS.items()
        if any(item.arm.test(metric) for item in arms)
    }
    if not shown:
        return None
    labels = [item.label for item in arms]
    with drawing.style():
        figure = drawing.figure(1.5 + sum(0.3 + 0.17 * x.count("\n") for x in labels))
        panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
        for axes, (metric, label) in zip(panels, shown.items(), strict=True):
            axes.set_title(f"Test {label}")
            axes.grid(visible=False, axis="y")
            _draw_seeds(axes, arms, metric)
            _draw_means(axes, arms, metric)
            axes.locator_params(axis="x", nbins=5)
        panels[0].set_yticks(range(len(arms)), labels)
        panels[0].set_ylim(len(arms) - 0.4, -0.5)
        handles = [
            drawing.handle("one seed, joined from arm to arm", marker="o", alpha=0.5),
            drawing.handle(
                "mean and interval", linewidth=2.5, marker="|", markersize=12
            ),
        ]
        few = any(len(item.arm.runs) < drawing.FEWEST_FOR_INTERVAL for item in arms)
        since = f", from {drawing.FEWEST_FOR_INTERVAL} seeds on" if few else ""
        drawing.finish(figure, handles, [f"Bar at the mean: 95 % t interval{since}."])
    return figure


def cost_split(comparison: ComparisonRecord) -> Figure | None:
    """Data cost and penalty of the training by epoch, a panel an arm, common axes.

    Epoch 0 is the starting cost: before the first step, whole training set, dropout
    off. The other epochs are means over the epoch, dropout on, and over the seeds.
    """
    arms = [item for item in drawing.styles(comparison) if item.curves("data_loss")]
    if not arms:
        return None
    columns = min(3, len(arms))
    rows = math.ceil(len(arms) / columns)
    with drawing.style():
        figure = drawing.figure(1.4 + 2.2 * rows)
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        panels = list(grid.flat)
        for axes, item in zip(panels, arms, strict=False):
            _draw_costs(axes, item)
        panels[0].xaxis.get_major_locator().set_params(integer=True)
        for axes in panels[len(arms) :]:
            axes.set_visible(False)
        for axes in panels[max(0, len(arms) - columns) : len(arms)]:
            axes.set_xlabel("epoch")
            axes.tick_params(labelbottom=True)
        lines = [line for axes in panels for line in axes.lines]
        drawing.log_if_wide(panels[0], "y", drawing.drawn(lines, "y"))
        handles = [
            drawing.handle("data cost", marker="o"),
            drawing.handle("penalty", linestyle=":", linewidth=2.2, marker="s"),
        ]
        note = "Marked at epoch 0: before the first step, with dropout off."
        drawing.finish(figure, handles, [note])
    return figure


_FIGURES = {
    "learning_curves": learning_curves,
    "metrics_by_arm": metrics_by_arm,
    "cost_split": cost_split,
    "gradient_ratios": gradient_plots.gradient_ratios,
    "gradient_ratio_by_epoch": gradient_plots.gradient_ratio_by_epoch,
}


def _draw_curves(axes: Any, item: ArmStyle, name: str, start: int) -> None:
    values = drawing.by_epoch(item.curves(name))[start - 1 :]
    if values:
        drawing.draw_band(axes, item, values, start)


def _draw_training(axes: Any, item: ArmStyle) -> None:
    values = drawing.by_epoch(item.curves("data_loss"))
    axes.plot(
        range(1, len(values) + 1),
        list(map(drawing.mean, values)),
        color=item.color,
        linestyle="--",
        linewidth=1.1,
        label=f"{item.arm.name}, training",
    )


def _curve_notes(arms: Sequence[ArmStyle]) -> list[str]:
    curves = [curve for item in arms for curve in item.curves("val_data_loss")]
    counts = {
        len(values)
        for item in arms
        for values in drawing.by_epoch(item.curves("val_data_loss"))
    }
    few = any(count < drawing.FEWEST_FOR_INTERVAL for count in counts)
    many = any(count >= drawing.FEWEST_FOR_INTERVAL for count in counts)
    bands = ["95 % t interval of the mean"] * many + ["lowest to highest seed"] * few
    where = (
        f" where there are fewer than {drawing.FEWEST_FOR_INTERVAL}"
        if few and many
        else ""
    )
    notes = [f"Line: mean over the seeds. Band: {', '.join(bands)}{where}."]
    if len(set(map(len, curves))) > 1:
        notes.append("After a run stopped early, the mean is that of the others.")
    if not all(math.isfinite(value) for curve in curves for value in curve):
        notes.append("A line ends where a seed diverged.")
    return notes


def _draw_seeds(axes: Any, arms: Sequence[ArmStyle], metric: str) -> None:
    """A point for each run; a line for each seed, so that the pairs can be seen."""
    by_seed = [item.arm.by_seed(metric) for item in arms]
    seeds = dict.fromkeys(seed for values in by_seed for seed in values)
    for seed in seeds:
        row = [values.get(seed, math.nan) for values in by_seed]
        places = range(len(arms))
        axes.plot(
            row,
            places,
            color=drawing.INK,
            alpha=0.2,
            linewidth=0.8,
            label=f"seed {seed}",
        )
    for place, item in enumerate(arms):
        points = item.arm.test(metric)
        axes.plot(
            points,
            [place] * len(points),
            linestyle="",
            marker=item.marker,
            markersize=5,
            color=item.color,
            alpha=0.6,
            markeredgewidth=0,
            label=item.arm.name,
        )


def _draw_means(axes: Any, arms: Sequence[ArmStyle], metric: str) -> None:
    """Below the points, which would hide them."""
    for place, item in enumerate(arms):
        values = item.arm.test(metric)
        if not values or not math.isfinite(drawing.mean(values)):
            continue
        found = drawing.interval(values)
        style = {"color": item.color, "linewidth": 2.5, "solid_capstyle": "butt"}
        below = place + 0.25
        label = f"{item.arm.name}, interval"
        axes.plot(found or (), [below] * 2 if found else (), label=label, **style)
        axes.plot(
            [drawing.mean(values)],
            [below],
            color=item.color,
            marker="|",
            markersize=12,
            markeredgewidth=2.5,
            label=f"{item.arm.name}, mean",
        )


def _draw_costs(axes: Any, item: ArmStyle) -> None:
    axes.set_title(item.label)
    starts = [run.starting_cost for run in item.arm.runs]
    parts = {
        "data cost": ([c.data for c in starts], "data_loss", "-", "o"),
        "penalty": ([c.penalty for c in starts], "penalty", ":", "s"),
    }
    drawn = False
    for part, (start, name, line, marker) in parts.items():
        means = [
            drawing.mean(values)
            for values in (start, *drawing.by_epoch(item.curves(name)))
        ]
        # A penalty of 0 is none: the logarithmic axis has no place for it.
        drawn = any(mean != 0 for mean in means)
        axes.plot(
            range(len(means)) if drawn else (),
            means if drawn else (),
            color=item.color,
            linestyle=line,
            linewidth=2.2 if part == "penalty" else 1.5,
            marker=marker,
            markersize=5,
            markevery=[0] if drawn else None,
            label=part,
        )
    if not drawn:
        place = {"ha": "right", "va": "top", "transform": axes.transAxes}
        axes.text(0.97, 0.95, "no penalty", **place)
