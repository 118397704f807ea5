"""What all figures share: colors, layout, legend, logarithmic axes; no global state."""

from __future__ import annotations

import dataclasses
import io
import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from keras_scaled_l2.experiments.errors import require
from keras_scaled_l2.experiments.results.records import ArmRecord, ComparisonRecord
from keras_scaled_l2.experiments.results.spread import mean_std

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, GRID, PAPER = "#222222", "#d9d9d9", "#ffffff"
COLORS = ("#777777", "#0072b2", "#d55e00", "#00664d", "#d070b0", "#501a1a")
"""Apart from each other for every kind of color vision, and from white (3:1)."""
MARKERS = "osD^vPX<>phd"
"""Twelve, so that arms that share a color still differ."""
FEWEST_FOR_INTERVAL = 3
"""Two values give a 95 % interval 9 times as wide as they lie apart."""
WIDTH = 9.0
DPI = 150

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


@dataclasses.dataclass(frozen=True, eq=False)
class ArmStyle:
    """An arm as every figure shows it: its place gives it its color and its marker."""

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
        lost, runs = len(self.arm.diverged), len(self.arm.runs)
        note = f" ({lost} of {runs} diverged)" if lost else ""
        return textwrap.fill(self.arm.name + note, 26)

    def curves(self, name: str) -> list[list[float]]:
        """The curves of this quantity, of the runs that have it."""
        return [run.curves[name] for run in self.arm.runs if run.curves.get(name)]


def styles(comparison: ComparisonRecord) -> list[ArmStyle]:
    """The arms that have finished runs, each as it is drawn in all figures."""
    return [ArmStyle(arm, i) for i, arm in enumerate(comparison.arms) if arm.runs]


def colors(comparison: ComparisonRecord) -> list[str]:
    """The color of each arm, with or without runs."""
    return [ArmStyle(arm, i).color for i, arm in enumerate(comparison.arms)]


def render(figure: Figure, kind: str) -> bytes:
    """The figure as ``"png"`` or ``"svg"``, the same bytes for the same figure."""
    options: dict[str, Any] = {
        "png": {
            "metadata": {"Software": None},
            # A tenth larger than by default, in half the time.
            "pil_kwargs": {"compress_level": 3},
        },
        "svg": {"metadata": dict.fromkeys(("Date", "Creator", "Format", "Type"))},
    }
    file = io.BytesIO()
    with style():
        figure.savefig(file, format=kind, dpi=DPI, **options[kind])
    return file.getvalue()


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of the mean; ``None`` for few values, or if one diverged."""
    found = mean_std(values)
    if len(values) < FEWEST_FOR_INTERVAL or found.low is None or found.high is None:
        return None
    return (found.low, found.high) if math.isfinite(found.low) else None


def mean(values: Sequence[float]) -> float:
    """NaN, which no line shows, where a seed diverged."""
    mean = mean_std(values).mean
    return math.nan if mean is None else mean


def by_epoch(curves: Sequence[Sequence[float]]) -> list[list[float]]:
    """For each epoch the values of the runs that got that far."""
    longest = max(map(len, curves), default=0)
    return [[c[e] for c in curves if len(c) > e] for e in range(longest)]


def band(values: Sequence[float]) -> tuple[float, float]:
    """The interval of the mean, or for few values the lowest and the highest."""
    if not all(map(math.isfinite, values)):
        return math.nan, math.nan
    return interval(values) or (min(values), max(values))


def style() -> Any:
    """The default style and this module's, for as long as a figure is made."""
    styles = require("matplotlib.style", "drawing figures")
    return styles.context(["default", _STYLE])


def figure(height: float) -> Figure:
    """A figure that pyplot does not know of, so that nobody has to close it."""
    module = require("matplotlib.figure", "drawing figures")
    size = (WIDTH, height)
    figure: Figure = module.Figure(figsize=size, dpi=DPI, layout="constrained")
    return figure


def handle(of: ArmStyle | str, *, hollow: bool = False, **options: Any) -> Any:
    """A line for the legend: of an arm, or in ink with a text."""
    line = require("matplotlib.lines", "drawing figures").Line2D
    if isinstance(of, str):
        face = {"markerfacecolor": PAPER} if hollow else {}
        return line([], [], color=INK, label=of, **face, **options)
    return line([], [], color=of.color, marker=of.marker, label=of.label)


def finish(figure: Figure, handles: Sequence[Any], notes: Iterable[str]) -> None:
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


def drawn(lines: Iterable[Any], axis: str) -> list[float]:
    """The coordinates of these lines."""
    return [float(v) for line in lines for v in getattr(line, f"get_{axis}data")()]


def log_if_wide(axes: Any, axis: str, values: Iterable[float]) -> None:
    """A logarithmic axis where a linear one would press the small values flat."""
    positive = [value for value in values if 0 < value < math.inf]
    if positive and max(positive) / min(positive) > 50:
        log(axes, axis, positive)


def log(axes: Any, axis: str, values: Iterable[float]) -> None:
    """A logarithmic ``"x"`` or ``"y"`` axis, each of its ticks with a plain number."""
    ticker = require("matplotlib.ticker", "drawing figures")
    positive = [value for value in values if 0 < value < math.inf]
    narrow = max(positive) / min(positive) < 100
    axes.set(**{f"{axis}scale": "log"})
    if min(positive) == max(positive):
        # Matplotlib would warn of an axis without extent, and make one.
        axes.set(**{f"{axis}lim": (positive[0] / 3, positive[0] * 3)})
    ticks = getattr(axes, f"{axis}axis")
    ticks.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if narrow else (1,)))
    ticks.set_major_formatter(ticker.FormatStrFormatter("%g"))
    # They would take a fifth of the time of all figures.
    ticks.set_minor_locator(ticker.NullLocator())


def draw_band(
    axes: Any, item: ArmStyle, values: Sequence[Sequence[float]], start: int
) -> None:
    """A line of the means by epoch, from an epoch on, and the band of their spread."""
    epochs = range(start, start + len(values))
    low, high = zip(*map(band, values), strict=True)
    axes.fill_between(epochs, low, high, color=item.color, alpha=0.15, linewidth=0)
    # The arms' markers at different epochs, so that none hides another.
    step = max(1, math.ceil(len(values) / 8))
    axes.plot(
        epochs,
        list(map(mean, values)),
        color=item.color,
        marker=item.marker,
        markersize=5,
        markevery=(item.index % step, step),
        label=item.arm.name,
    )
