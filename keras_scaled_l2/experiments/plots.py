"""A comparison as figures: plain matplotlib, drawn without any global state."""

from __future__ import annotations

import dataclasses
import io
import itertools
import math
import os
import pathlib
import statistics
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from keras_scaled_l2.experiments.errors import require
from keras_scaled_l2.experiments.records import write_bytes
from keras_scaled_l2.experiments.spread import mean_std

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from keras_scaled_l2.experiments.records import ArmRecord, Comparison

INK, GRID, PAPER = "#222222", "#d9d9d9", "#ffffff"
COLORS = ("#777777", "#0072b2", "#d55e00", "#00664d", "#d070b0", "#501a1a")
"""Apart from each other for every kind of color vision, and from white (3:1)."""
MARKERS = "osD^vPX<>phd"
"""Twelve, so that arms that share a color still differ."""
METRICS = {"data_loss": "data loss", "accuracy": "accuracy"}
WIDTH = 9.0
DPI = 150
FEWEST_FOR_INTERVAL = 3
"""Two values give a 95 % interval 9 times as wide as they lie apart."""

_STYLE: dict[str, Any] = {
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10.0,
    "text.color": INK,
    "text.parse_math": False,  # a dollar in a name is a dollar
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.facecolor": PAPER,
    "axes.titlesize": 11.0,
    "axes.titlelocation": "left",
    # Given, not looked for: matplotlib would place all ticks once more for each draw.
    "axes.titley": 1.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": PAPER,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "keras_scaled_l2",
}


def figures(comparison: Comparison) -> dict[str, Figure]:
    """Name -> figure, those left out for which the records hold nothing."""
    drawn = {name: draw(comparison) for name, draw in _FIGURES.items()}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def save_figures(
    comparison: Comparison, directory: str | os.PathLike[str]
) -> list[pathlib.Path]:
    """Write every figure as PNG and SVG into ``directory/figures``.

    Each file is written beside its place and then moved there. A figure that is left
    out takes an older file of its name with it: that one shows something else.

    Args:
        comparison: What to draw.
        directory: Made if it does not exist.

    Returns:
        The files, in the order in which they were written.
    """
    folder = pathlib.Path(directory) / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    drawn, written = figures(comparison), []
    for name, kind in itertools.product(_FIGURES, ("png", "svg")):
        path = folder / f"{name}.{kind}"
        if name in drawn:
            write_bytes(path, render(drawn[name], kind))
            written.append(path)
        else:
            path.unlink(missing_ok=True)
    return written


def render(figure: Figure, kind: str) -> bytes:
    """The figure as a file, the same bytes for the same figure.

    Args:
        figure: A figure of this module.
        kind: ``"png"`` or ``"svg"``.
    """
    options: dict[str, Any] = {
        "png": {
            "metadata": {"Software": None},
            # A tenth larger than by default, in half the time.
            "pil_kwargs": {"compress_level": 3},
        },
        "svg": {"metadata": dict.fromkeys(("Date", "Creator", "Format", "Type"))},
    }
    file = io.BytesIO()
    with _style():
        figure.savefig(file, format=kind, dpi=DPI, **options[kind])
    return file.getvalue()


@dataclasses.dataclass(frozen=True, eq=False)
class Look:
    """An arm as every figure shows it.

    Args:
        arm: The arm.
        index: Its place among all arms, which gives it its color and its marker.
    """

    arm: ArmRecord
    index: int

    @property
    def color(self) -> str:
        """As ``#rrggbb``."""
        return COLORS[self.index % len(COLORS)]

    @property
    def marker(self) -> str:
        """A marker of matplotlib."""
        return MARKERS[self.index % len(MARKERS)]

    @property
    def label(self) -> str:
        """Its name, and how many of its seeds diverged, on lines that are not long."""
        runs = self.arm.runs
        lost = sum(not math.isfinite(run.test.data_loss) for run in runs)
        note = f" ({lost} of {len(runs)} diverged)" if lost else ""
        return textwrap.fill(self.arm.name + note, 26)

    def curves(self, name: str) -> list[list[float]]:
        """The curves of this quantity, of the runs that have it."""
        return [run.curves[name] for run in self.arm.runs if run.curves.get(name)]


def looks(comparison: Comparison) -> list[Look]:
    """The arms that have finished runs, each with the look it has in all figures."""
    return [Look(arm, i) for i, arm in enumerate(comparison.arms) if arm.runs]


def learning_curves(comparison: Comparison) -> Figure | None:
    """Validation data loss and accuracy by epoch, training data loss dashed.

    A line is the mean over the seeds. It ends where a seed diverged; a seed that
    stopped early counts up to its last epoch.
    """
    arms = looks(comparison)
    shown = {
        f"val_{metric}": label
        for metric, label in METRICS.items()
        if any(look.curves(f"val_{metric}") for look in arms)
    }
    if not shown:
        return None
    longest = max(
        len(curve) for name in shown for x in arms for curve in x.curves(name)
    )
    starts = [1, longest // 2 + 1] if longest >= 4 else [1]
    with _style():
        figure = _figure(0.8 + 3.2 * len(starts))
        grid = figure.subplots(len(starts), len(shown), squeeze=False)
        for start, row in zip(starts, grid, strict=True):
            for axes, (name, label) in zip(row, shown.items(), strict=True):
                since = f", enlarged from epoch {start} on" if start > 1 else ""
                axes.set(title=f"Validation {label}{since}", xlabel="epoch")
                axes.xaxis.get_major_locator().set_params(integer=True)
                for look in arms:
                    _draw_curves(axes, look, name, start)
                    # Enlarged, only the validation matters: the axis is for it alone.
                    if name == "val_data_loss" and start == 1:
                        _draw_training(axes, look)
                if name == "val_data_loss":
                    _log_if_wide(axes, "y", _drawn(axes.lines, "y"))
        handles = [_handle(look) for look in arms]
        if "val_data_loss" in shown:
            handles.append(_handle("training data loss", linestyle="--"))
        _finish(figure, handles, _curve_notes(arms))
    return figure


def metrics_by_arm(comparison: Comparison) -> Figure | None:
    """Test data loss and accuracy by arm: every seed, their mean, its 95 % interval."""
    arms = looks(comparison)
    shown = {
        metric: label
        for metric, label in METRICS.items()
        if any(look.arm.test(metric) for look in arms)
    }
    if not shown:
        return None
    labels = [look.label for look in arms]
    with _style():
        figure = _figure(1.5 + sum(0.3 + 0.17 * x.count("\n") for x in labels))
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
            _handle("one seed, joined from arm to arm", marker="o", alpha=0.5),
            _handle("mean and interval", linewidth=2.5, marker="|", markersize=12),
        ]
        few = any(len(look.arm.runs) < FEWEST_FOR_INTERVAL for look in arms)
        since = f", from {FEWEST_FOR_INTERVAL} seeds on" if few else ""
        _finish(figure, handles, [f"Bar at the mean: 95 % t interval{since}."])
    return figure


def cost_split(comparison: Comparison) -> Figure | None:
    """Data cost and penalty of the training by epoch, a panel an arm, common axes.

    Epoch 0 is the starting cost: before the first step, whole training set, dropout
    off. The other epochs are means over the epoch, dropout on, and over the seeds.
    """
    arms = [look for look in looks(comparison) if look.curves("data_loss")]
    if not arms:
        return None
    columns = min(3, len(arms))
    rows = math.ceil(len(arms) / columns)
    with _style():
        figure = _figure(1.4 + 2.2 * rows)
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        panels = list(grid.flat)
        for axes, look in zip(panels, arms, strict=False):
            _draw_costs(axes, look)
        panels[0].xaxis.get_major_locator().set_params(integer=True)
        for axes in panels[len(arms) :]:
            axes.set_visible(False)
        for axes in panels[max(0, len(arms) - columns) : len(arms)]:
            axes.set_xlabel("epoch")
            axes.tick_params(labelbottom=True)
        lines = [line for axes in panels for line in axes.lines]
        _log_if_wide(panels[0], "y", _drawn(lines, "y"))
        handles = [
            _handle("data cost", marker="o"),
            _handle("penalty", linestyle=":", linewidth=2.2, marker="s"),
        ]
        note = "Marked at epoch 0: before the first step, with dropout off."
        _finish(figure, handles, [note])
    return figure


def gradient_ratios(comparison: Comparison) -> Figure | None:
    """Penalty gradient over data gradient by layer, at the start and at the end.

    Medians over the seeds. What is 0 or diverged has no place on the logarithmic axis.
    """
    ratios = {look: _ratios(look.arm) for look in looks(comparison)}
    ratios = {look: found for look, found in ratios.items() if found}
    paths = list(dict.fromkeys(path for found in ratios.values() for path in found))
    if not paths:
        return None
    with _style():
        figure = _figure(min(40.0, 1.7 + len(paths) * (0.25 + 0.17 * len(ratios))))
        axes = figure.subplots()
        axes.axvline(1.0, color=INK, linewidth=1.0, label="1")
        for place, (look, found) in enumerate(ratios.items()):
            shift = 0.7 * ((place + 0.5) / len(ratios) - 0.5)
            _draw_ratios(axes, look, found, paths, shift)
        drawn = [1.0, *_drawn(axes.lines, "x")]
        axes.set_yticks(range(len(paths)), _short(paths))
        axes.set_ylim(len(paths) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        for edge in range(1, len(paths)):
            axes.axhline(edge - 0.5, color=GRID, linewidth=0.6, label="_")
        axes.set_xlabel("norm of the penalty's gradient / norm of the data gradient")
        _log(axes, "x", drawn)
        handles = [_handle(look) for look in ratios]
        handles.append(_handle("start", linestyle="", marker="o", hollow=True))
        handles.append(_handle("end of the training", linestyle="", marker="o"))
        note = "Median over the seeds. At 1 the penalty pulls as hard as the data."
        _finish(figure, handles, [note])
    return figure


_FIGURES = {
    "learning_curves": learning_curves,
    "metrics_by_arm": metrics_by_arm,
    "cost_split": cost_split,
    "gradient_ratios": gradient_ratios,
}


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of the mean; ``None`` for few values, or if one diverged."""
    found = mean_std(values)
    if len(values) < FEWEST_FOR_INTERVAL or found.low is None or found.high is None:
        return None
    return (found.low, found.high) if math.isfinite(found.low) else None


def _mean(values: Sequence[float]) -> float:
    """NaN, which no line shows, where a seed diverged."""
    mean = mean_std(values).mean
    return math.nan if mean is None else mean


def _by_epoch(curves: Sequence[Sequence[float]]) -> list[list[float]]:
    """For each epoch the values of the runs that got that far."""
    longest = max(map(len, curves), default=0)
    return [[c[e] for c in curves if len(c) > e] for e in range(longest)]


def _band(values: Sequence[float]) -> tuple[float, float]:
    """The interval of the mean, or for few values the lowest and the highest."""
    if not all(map(math.isfinite, values)):
        return math.nan, math.nan
    return interval(values) or (min(values), max(values))


def _draw_curves(axes: Any, look: Look, name: str, start: int) -> None:
    values = _by_epoch(look.curves(name))[start - 1 :]
    if not values:
        return
    epochs = range(start, start + len(values))
    low, high = zip(*map(_band, values), strict=True)
    axes.fill_between(epochs, low, high, color=look.color, alpha=0.15, linewidth=0)
    # The arms' markers at different epochs, so that none hides another.
    step = max(1, math.ceil(len(values) / 8))
    axes.plot(
        epochs,
        list(map(_mean, values)),
        color=look.color,
        marker=look.marker,
        markersize=5,
        markevery=(look.index % step, step),
        label=look.arm.name,
    )


def _draw_training(axes: Any, look: Look) -> None:
    values = _by_epoch(look.curves("data_loss"))
    axes.plot(
        range(1, len(values) + 1),
        list(map(_mean, values)),
        color=look.color,
        linestyle="--",
        linewidth=1.1,
        label=f"{look.arm.name}, training",
    )


def _curve_notes(arms: Sequence[Look]) -> list[str]:
    curves = [curve for look in arms for curve in look.curves("val_data_loss")]
    counts = {
        len(values)
        for look in arms
        for values in _by_epoch(look.curves("val_data_loss"))
    }
    few = any(count < FEWEST_FOR_INTERVAL for count in counts)
    many = any(count >= FEWEST_FOR_INTERVAL for count in counts)
    bands = ["95 % t interval of the mean"] * many + ["lowest to highest seed"] * few
    where = f" where there are fewer than {FEWEST_FOR_INTERVAL}" if few and many else ""
    notes = [f"Line: mean over the seeds. Band: {', '.join(bands)}{where}."]
    if len(set(map(len, curves))) > 1:
        notes.append("After a run stopped early, the mean is that of the others.")
    if not all(math.isfinite(value) for curve in curves for value in curve):
        notes.append("A line ends where a seed diverged.")
    return notes


def _draw_seeds(axes: Any, arms: Sequence[Look], metric: str) -> None:
    """A point for each run; a line for each seed, so that the pairs can be seen."""
    seeds = dict.fromkeys(run.seed for look in arms for run in look.arm.runs)
    by_seed = [
        {run.seed: getattr(run.test, metric) for run in look.arm.runs} for look in arms
    ]
    for seed in seeds:
        row = [_finite(values.get(seed)) for values in by_seed]
        places = range(len(arms))
        axes.plot(
            row, places, color=INK, alpha=0.2, linewidth=0.8, label=f"seed {seed}"
        )
    for place, look in enumerate(arms):
        points = [_finite(getattr(run.test, metric)) for run in look.arm.runs]
        axes.plot(
            points,
            [place] * len(points),
            linestyle="",
            marker=look.marker,
            markersize=5,
            color=look.color,
            alpha=0.6,
            markeredgewidth=0,
            label=look.arm.name,
        )


def _draw_means(axes: Any, arms: Sequence[Look], metric: str) -> None:
    """Below the points, which would hide them."""
    for place, look in enumerate(arms):
        values = look.arm.test(metric)
        if not values or not math.isfinite(_mean(values)):
            continue
        found = interval(values)
        style = {"color": look.color, "linewidth": 2.5, "solid_capstyle": "butt"}
        below = place + 0.25
        label = f"{look.arm.name}, interval"
        axes.plot(found or (), [below] * 2 if found else (), label=label, **style)
        axes.plot(
            [_mean(values)],
            [below],
            color=look.color,
            marker="|",
            markersize=12,
            markeredgewidth=2.5,
            label=f"{look.arm.name}, mean",
        )


def _draw_costs(axes: Any, look: Look) -> None:
    axes.set_title(look.label)
    starts = [run.starting_cost for run in look.arm.runs]
    parts = {
        "data cost": ([c.data for c in starts], "data_loss", "-", "o"),
        "penalty": ([c.penalty for c in starts], "penalty", ":", "s"),
    }
    drawn = False
    for part, (start, name, line, marker) in parts.items():
        means = [_mean(values) for values in (start, *_by_epoch(look.curves(name)))]
        # A penalty of 0 is none: the logarithmic axis has no place for it.
        drawn = any(mean != 0 for mean in means)
        axes.plot(
            range(len(means)) if drawn else (),
            means if drawn else (),
            color=look.color,
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


def _ratios(arm: ArmRecord) -> dict[str, dict[str, float]]:
    """Path -> ``"start"`` and ``"end"`` -> median over the seeds, if above 0."""
    found: dict[str, dict[str, float]] = {}
    for when in ("start", "end"):
        by_path: dict[str, list[float]] = {}
        for run in arm.runs:
            for path, ratio in run.gradient_ratios.get(when, {}).items():
                by_path.setdefault(path, []).append(ratio)
        for path, ratios in by_path.items():
            # A median with NaN among its values depends on their order.
            middle = (
                math.nan if any(map(math.isnan, ratios)) else statistics.median(ratios)
            )
            if 0 < middle < math.inf:
                found.setdefault(path, {})[when] = middle
    return found


def _draw_ratios(
    axes: Any,
    look: Look,
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
        axes.plot([start, end], [place] * 2, color=look.color, label="_")
    for when, values in zip(("start", "end"), ends, strict=True):
        axes.plot(
            values,
            places,
            linestyle="",
            marker=look.marker,
            markersize=6,
            color=look.color,
            markerfacecolor=PAPER if when == "start" else look.color,
            label=f"{look.arm.name}, {when}",
        )


def _short(paths: Sequence[str]) -> list[str]:
    """The paths without the folders that all of them begin with."""
    parts = [path.split("/") for path in paths]
    columns = zip(*(part[:-1] for part in parts), strict=False)
    same = itertools.takewhile(lambda column: len(set(column)) == 1, columns)
    shared = len(list(same)) if len(paths) > 1 else 0
    return [textwrap.fill("/".join(part[shared:]), 30) for part in parts]


def _style() -> Any:
    """The default style and this module's, for as long as a figure is made."""
    styles = require("matplotlib.style", "drawing figures")
    return styles.context(["default", _STYLE])


def _figure(height: float) -> Figure:
    """A figure that pyplot does not know of, so that nobody has to close it."""
    module = require("matplotlib.figure", "drawing figures")
    size = (WIDTH, height)
    figure: Figure = module.Figure(figsize=size, dpi=DPI, layout="constrained")
    return figure


def _handle(of: Look | str, *, hollow: bool = False, **options: Any) -> Any:
    """A line for the legend: of an arm, or in ink with a text."""
    line = require("matplotlib.lines", "drawing figures").Line2D
    if isinstance(of, str):
        face = {"markerfacecolor": PAPER} if hollow else {}
        return line([], [], color=INK, label=of, **face, **options)
    return line([], [], color=of.color, marker=of.marker, label=of.label)


def _finish(figure: Figure, handles: Sequence[Any], notes: Iterable[str]) -> None:
    """Legend above the panels, notes below, and room for all that is drawn."""
    longest = max(len(part) for h in handles for part in h.get_label().split("\n"))
    columns = max(1, min(len(handles), 100 // (longest + 7)))
    figure.legend(handles=handles, loc="outside upper left", ncols=columns)
    lines = sum(1 + handle.get_label().count("\n") for handle in handles) / columns
    figure.set_figheight(figure.get_figheight() + 0.2 * lines)
    text = textwrap.fill(" ".join(notes), 115)
    figure.supxlabel(text, x=0.01, horizontalalignment="left", fontsize=9)
    # Laid out here, once: each file of a figure would do it again, twice.
    layout: Any = figure.get_layout_engine()
    layout.execute(figure)
    figure.set_layout_engine(None)


def _drawn(lines: Iterable[Any], axis: str) -> list[float]:
    """The coordinates of these lines."""
    return [float(v) for line in lines for v in getattr(line, f"get_{axis}data")()]


def _log_if_wide(axes: Any, axis: str, values: Iterable[float]) -> None:
    """A logarithmic axis where a linear one would press the small values flat."""
    positive = [value for value in values if 0 < value < math.inf]
    if positive and max(positive) / min(positive) > 50:
        _log(axes, axis, positive)


def _log(axes: Any, axis: str, values: Iterable[float]) -> None:
    """A logarithmic ``"x"`` or ``"y"`` axis, each of its ticks with a plain number."""
    ticker = require("matplotlib.ticker", "drawing figures")
    positive = [value for value in values if 0 < value < math.inf]
    narrow = max(positive) / min(positive) < 100
    axes.set(**{f"{axis}scale": "log"})
    ticks = getattr(axes, f"{axis}axis")
    ticks.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if narrow else (1,)))
    ticks.set_major_formatter(ticker.FormatStrFormatter("%g"))
    # They would take a fifth of the time of all figures.
    ticks.set_minor_locator(ticker.NullLocator())


def _finite(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) else math.nan
