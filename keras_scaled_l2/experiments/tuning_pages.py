"""A tuning as files: JSON, Markdown, figure, page, TensorBoard."""

from __future__ import annotations

import contextlib
import html
import math
import os
import pathlib
import shutil
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from keras_scaled_l2.efolds import INERT
from keras_scaled_l2.experiments.results import drawing, tuning_text
from keras_scaled_l2.experiments.results.files import (
    write_bytes,
    write_json,
    write_text,
)
from keras_scaled_l2.experiments.results.tuning import TuningResult
from keras_scaled_l2.experiments.results.tuning_records import TuningPoint, falls
from keras_scaled_l2.tensorboard import EventFile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NEAR = 20.0
"""The inert range is shown if it begins within this factor of the strengths."""
CURVE, BEST, PLATEAU = drawing.COLORS[1:4]


def write_pages(result: TuningResult, directory: str | os.PathLike[str]) -> None:
    """Write everything that people look at into a directory.

    ``tuning.json``, ``tuning.md``, ``tuning.html``, ``figures/tuning.png`` and
    ``.svg``, and below ``tensorboard/`` a run for each training.
    """
    folder = pathlib.Path(directory)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    write_json(folder / "tuning.json", result.to_dict())
    write_text(folder / "tuning.md", result.to_markdown())
    figure = draw(result)
    svg = drawing.render(figure, "svg")
    write_bytes(folder / "figures" / "tuning.svg", svg)
    write_bytes(folder / "figures" / "tuning.png", drawing.render(figure, "png"))
    write_text(folder / "tuning.html", page(result, svg.decode()))
    write_events(result, folder / "tensorboard")


def draw(result: TuningResult) -> Figure:
    """The curve: mean and paired interval by strength, plateau, inert range.

    Strengths that only the screening trained are hollow and without an interval: that
    of two trainings would be wider than the figure.
    """
    points = [p for p in result.points if math.isfinite(p.mean)]
    positive = [p for p in points if p.strength > 0]
    with drawing.style():
        figure = drawing.figure(4.5)
        axes = figure.add_subplot()
        if positive and not result.rule.startswith("dropout"):
            drawing.log(axes, "x", [p.strength for p in positive])
        _draw_curve(axes, positive, most=max(len(p.jobs) for p in points))
        for point in points:
            if point.strength == 0:
                axes.axhline(
                    point.mean,
                    color=drawing.COLORS[0],
                    linestyle="--",
                    label=tuning_text.without(result.rule),
                )
            elif point.strength == result.best["strength"]:
                axes.plot(
                    *(point.strength, point.mean, "*"),
                    color=BEST,
                    markersize=15,
                    zorder=3,
                    label="best",
                )
        _draw_ranges(axes, result, positive)
        axes.set_xlabel(f"strength of {result.rule}")
        axes.set_ylabel(f"validation {result.criterion.replace('_', ' ')}")
        axes.set_title(f"{result.problem}: {result.architecture}")
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    return figure


def _draw_curve(axes: Axes, points: Sequence[TuningPoint], most: int) -> None:
    axes.plot([p.strength for p in points], [p.mean for p in points], color=CURVE)
    whole = [p for p in points if len(p.jobs) == most]
    few = [p for p in points if len(p.jobs) < most]
    for chosen, face, label in (
        (whole, CURVE, f"{most} trainings, with 95 % interval"),
        (few, drawing.PAPER, "fewer trainings"),
    ):
        if not chosen:
            continue
        reach = [
            [0.0 if p.low is None else p.mean - p.low for p in chosen],
            [0.0 if p.high is None else p.high - p.mean for p in chosen],
        ]
        axes.errorbar(
            [p.strength for p in chosen],
            [p.mean for p in chosen],
            yerr=reach if chosen is whole else None,
            fmt="o",
            color=CURVE,
            markerfacecolor=face,
            capsize=3,
            label=label,
        )


def _draw_ranges(
    axes: Axes, result: TuningResult, positive: Sequence[TuningPoint]
) -> None:
    """The plateau, and where the penalty is inert."""
    if not positive:
        return
    strengths = [p.strength for p in positive]
    low, high = result.plateau["low"], result.plateau["high"]
    with_none = low == 0
    if with_none and high > 0:
        # From no penalty, which is beyond the weakest.
        weakest = strengths[0]
        low, high = (high, weakest) if falls(positive) else (weakest, high)
    if high > low:
        inside = [
            p
            for p in result.points
            if math.isfinite(p.mean)
            and (low <= p.strength <= high or (with_none and p.strength == 0))
        ]
        best = next(p for p in inside if p.strength == result.best["strength"])
        far = tuning_text.far_off(inside, best)
        label = "any of these will do" if far is None else "too few trainings to tell"
        axes.axvspan(low, high, color=PLATEAU, alpha=0.15, label=label)
    found = _inert_edge(result, positive)
    if found is None:
        return
    edge, below = found
    # Decades away it would squeeze the curve.
    if below and edge > min(strengths) / NEAR:
        inert = (min(*strengths, edge) / 2, edge)
        axes.set_xlim(left=inert[0])
    elif not below and edge < max(strengths) * NEAR:
        inert = (edge, max(*strengths, edge) * 2)
        axes.set_xlim(right=inert[1])
    else:
        return
    axes.axvspan(*inert, color=drawing.COLORS[0], alpha=0.2, label="inert")


def _inert_edge(
    result: TuningResult, positive: Sequence[TuningPoint]
) -> tuple[float, bool] | None:
    """``(strength where E is 0.02, whether below it nothing happens)``.

    E goes with a power of the strength, which two points tell: a prior acts more, the
    narrower it is. ``None`` where E is a stand-in.
    """
    acting = [p for p in positive if p.e_folds > 0]
    exact = result.optimizer["class_name"] == "SGD" or result.rule.startswith("decay")
    if not exact or len(acting) < 2:
        return None
    first, last = acting[0], acting[-1]
    power = math.log(last.e_folds / first.e_folds) / math.log(
        last.strength / first.strength
    )
    return first.strength * (INERT / first.e_folds) ** (1 / power), power > 0


def page(result: TuningResult, drawing: str) -> str:
    """One HTML page that needs no network."""
    svg = drawing[drawing.index("<svg") :]
    title = html.escape(f"Tuning of {result.rule} on {result.problem}")
    found = _items(result.findings)
    header, *rows = tuning_text.cells(result)
    use, *others = tuning_text.use(result)
    other = _items(others) if others else "<p>It has none.</p>"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width">'
        f"<title>{title}</title>\n<style>{_STYLE}</style></head>\n"
        f"<body><h1>{title}</h1>\n<p>{html.escape(tuning_text.description(result))}</p>\n"
        f"<h2>What it says</h2>\n{found}\n<p><strong>{html.escape(use)}</strong></p>\n"
        f"{svg}\n<h2>The curve</h2>\n<div class=wide><table><thead>"
        f"{_row('th', header)}</thead>\n<tbody>"
        f"{''.join(_row('td', row) for row in rows)}</tbody></table></div>\n"
        f"{_items(tuning_text.LEGEND)}\n<h2>The best strength in other words</h2>\n"
        f"{other}"
        "\n</body></html>\n"
    )


_STYLE = (
    "body{font:16px/1.5 sans-serif;color:#222;max-width:60rem;margin:2rem auto;"
    "padding:0 1rem}svg{max-width:100%;height:auto}.wide{overflow-x:auto}"
    "table{border-collapse:collapse}th,td{padding:.2rem .8rem;text-align:right;"
    "border-bottom:1px solid #d9d9d9;white-space:nowrap}td:last-child{text-align:left}"
)


def _items(lines: Iterable[str]) -> str:
    return "<ul>\n" + "\n".join(f"<li>{html.escape(x)}</li>" for x in lines) + "\n</ul>"


def _row(kind: str, cells: Iterable[str]) -> str:
    return f"<tr>{''.join(f'<{kind}>{html.escape(c)}</{kind}>' for c in cells)}</tr>\n"


def write_events(result: TuningResult, folder: pathlib.Path) -> None:
    """A run for each training, for TensorBoard's HPARAMS page."""
    # Those of this tuning, and nothing else that lies there.
    for old in folder.glob("strength-*/seed-*-fold-*"):
        shutil.rmtree(old, ignore_errors=True)
    for point in result.points:
        for job in point.jobs:
            name = f"strength-{point.strength:g}/seed-{job.seed}-fold-{job.fold}"
            with contextlib.closing(EventFile(os.fspath(folder / name))) as file:
                file.hparams(
                    {
                        "rule": result.rule,
                        "strength": point.strength,
                        "e_folds": point.e_folds,
                        "seed": float(job.seed),
                        "fold": float(job.fold),
                    },
                    ("validation/data_loss", "validation/accuracy"),
                )
                values = {"validation/data_loss": job.data_loss}
                if job.accuracy is not None:
                    values["validation/accuracy"] = job.accuracy
                file.scalars(values, job.steps)
