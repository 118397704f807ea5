"""A comparison as one HTML page that needs no network, no script, no other file."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from html import escape

from keras_scaled_l2.experiments.errors import require
from keras_scaled_l2.experiments.results import drawing, plots
from keras_scaled_l2.experiments.results.records import ComparisonRecord
from keras_scaled_l2.experiments.results.summary import summarize

DARK = {
    drawing.INK: "#e4e6ea",
    drawing.GRID: "#3a3f47",
    drawing.PAPER: "#15181c",
    **dict(
        zip(
            drawing.COLORS,
            ("#9a9a9a", "#4aa3ff", "#ff8a3d", "#5fe0b4", "#f5b5e0", "#f0e6a8"),
            strict=True,
        )
    ),
}
"""Color of the figures -> what it becomes on a dark page."""

READING = {
    "learning_curves": (
        "Learning curves",
        "The lower a line of the data loss, or the higher a line of the accuracy, the "
        "better the arm does on data that it does not train on. A validation line that "
        "rises while its dashed training line falls shows overfitting.",
    ),
    "metrics_by_arm": (
        "Test results, seed by seed",
        "Each point is one run. Intervals of single means may overlap although an arm "
        "does better on every seed: follow a seed's line from arm to arm.",
    ),
    "cost_split": (
        "What the training minimizes: data cost and penalty",
        "Where the dotted line lies above the solid one, most of the cost is penalty. "
        "All panels have the same axes; epoch 0 is before the first step.",
    ),
    "gradient_ratios": (
        "Penalty-to-data gradient ratio, by layer",
        "Right of 1 the penalty's gradient on the layer's weights is larger than that "
        "of the data, left of it smaller. Hollow is the start, filled the end of the "
        "training.",
    ),
    "gradient_ratio_by_epoch": (
        "Penalty-to-data gradient ratio, by epoch",
        "A line that rises to 1 shows weights that settle where penalty and data "
        "balance. Measured at the first step of each epoch.",
    ),
}
"""Name of a figure -> its heading, and how to read it."""


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A figure on the page: its name, its words, and its SVG."""

    name: str
    heading: str
    reading: str
    svg: str


def html(
    comparison: ComparisonRecord, drawings: Mapping[str, str] | None = None
) -> str:
    """The page comparison.html: the answer, the differences, tables and figures.

    ``drawings``: name -> SVG of the figures, where they are drawn already.

    Raises:
        InputError: If matplotlib or Jinja2 is not installed.
    """
    jinja2 = require("jinja2", "the page")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page: str = environment.get_template("page.html.jinja").render(
        heading=f"Comparison on {comparison.problem}",
        summary=summarize(comparison),
        drawings=[
            _inline(svg, name)
            for name, svg in (
                _draw(comparison) if drawings is None else drawings
            ).items()
        ],
        swatches=[_variable(color) for color in drawing.colors(comparison)],
        light={_variable(color): color for color in DARK},
        dark={_variable(color): to for color, to in DARK.items()},
    )
    return page


def _draw(comparison: ComparisonRecord) -> dict[str, str]:
    drawn = plots.figures(comparison).items()
    return {name: drawing.render(figure, "svg").decode() for name, figure in drawn}


def _inline(svg: str, name: str) -> Drawing:
    """The SVG as a part of the page: its own ids, the page's colors and size."""
    heading, reading = READING[name]
    svg = svg[svg.index("<svg") :]
    # Its style would hold for the whole page, which has the same rule for figures.
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    view = re.search(r'viewBox="[^"]*"', svg)
    label = escape(f"{heading}. {reading}")
    opening = f'<svg {view[0] if view else ""} role="img" aria-label="{label}">'
    svg = re.sub(r"<svg[^>]*>", lambda _: opening, svg, count=1)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'xlink:href="#', f'href="#{name}-', svg)
    svg = svg.replace("url(#", f"url(#{name}-")
    # Only in styles: a text may well read like a color.
    svg = re.sub(r'style="[^"]*"', lambda found: _themed(found[0]), svg)
    return Drawing(name, heading, reading, svg)


def _themed(style: str) -> str:
    for color in DARK:
        style = style.replace(color, f"var({_variable(color)})")
    return style


def _variable(color: str) -> str:
    return f"--c{color[1:]}"
