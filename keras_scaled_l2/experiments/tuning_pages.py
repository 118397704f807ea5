"""A tuning as files: JSON, Markdown, figure, page, TensorBoard."""

from __future__ import annotations

import contextlib
import html
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

from keras_scaled_l2.efolds import INERT
from keras_scaled_l2.experiments.errors import require
from keras_scaled_l2.experiments.results import drawing
from keras_scaled_l2.experiments.results.files import (
    write_bytes,
    write_json,
    write_text,
)
from keras_scaled_l2.experiments.results.tuning import TuningPoint, TuningResult
from keras_scaled_l2.tensorboard import EventFile

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVE, PLATEAU = drawing.COLORS[1], drawing.COLORS[3]


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
    """The curve: mean and paired interval by strength, plateau, inert range."""
    figure_module = require("matplotlib.figure", "the figure of a tuning")
    points = [p for p in result.points if p.mean == p.mean]
    positive = [p for p in points if p.strength > 0]
    with drawing.style():
        figure: Figure = figure_module.Figure(
            (drawing.WIDTH, 4.5), layout="constrained"
        )
        axes = figure.add_subplot()
        if result.rule != "dropout":
            axes.set_xscale("log")
        if positive:
            x = [p.strength for p in positive]
            low = [p.mean if p.low is None else p.low for p in positive]
            high = [p.mean if p.high is None else p.high for p in positive]
            axes.fill_between(x, low, high, color=CURVE, alpha=0.2, linewidth=0)
            axes.plot(x, [p.mean for p in positive], color=CURVE, marker="o")
        left = max(
            result.plateau["low"], min((p.strength for p in positive), default=1)
        )
        if result.plateau["high"] > left:
            axes.axvspan(
                left, result.plateau["high"], color=PLATEAU, alpha=0.12, label="plateau"
            )
        acting = [p for p in positive if p.e_folds > 0]
        if acting and result.rule != "dropout":
            edge = _inert_strength(acting[0])
            if edge is not None and edge > min(p.strength for p in positive) / 100:
                axes.axvline(
                    edge, color=drawing.INK, linestyle=":", label="inert beyond this"
                )
        for point in points:
            if point.strength == 0:
                axes.axhline(
                    point.mean,
                    color=drawing.COLORS[0],
                    linestyle="--",
                    label="no penalty",
                )
        axes.set_xlabel(f"strength of {result.rule}")
        axes.set_ylabel(f"validation {result.criterion.replace('_', ' ')}")
        axes.set_title(f"{result.problem}: {result.architecture}")
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    return figure


def _inert_strength(point: TuningPoint) -> float | None:
    """Where E is 0.02, for a strength that E is proportional to."""
    if point.coefficient[1] and point.e_folds:
        return point.strength * INERT / point.e_folds
    return None


def page(result: TuningResult, drawing: str) -> str:
    """One HTML page that needs no network."""
    svg = drawing[drawing.index("<svg") :]
    title = html.escape(f"Tuning of {result.rule} on {result.problem}")
    found = "\n".join(f"<li>{html.escape(line)}</li>" for line in result.findings)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{title}</title>\n<style>body{{font:16px/1.5 sans-serif;"
        "max-width:60rem;margin:2rem auto;padding:0 1rem}svg{max-width:100%;"
        "height:auto}pre{overflow-x:auto}</style></head>\n"
        f"<body><h1>{title}</h1>\n<ul>\n{found}\n</ul>\n{svg}\n"
        f"<pre>{html.escape(result.table())}</pre>\n</body></html>\n"
    )


def write_events(result: TuningResult, folder: pathlib.Path) -> None:
    """A run for each training, for TensorBoard's HPARAMS page."""
    shutil.rmtree(folder, ignore_errors=True)
    for point in result.points:
        for job in point.jobs:
            name = f"strength-{point.strength:g}/seed-{job.seed}-fold-{job.fold}"
            with _closing(EventFile(os.fspath(folder / name))) as file:
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


@contextlib.contextmanager
def _closing(file: EventFile) -> Iterator[EventFile]:
    try:
        yield file
    finally:
        file.close()
