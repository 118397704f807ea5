"""A comparison as one HTML page that needs no network, no script, no other file."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from keras_scaled_l2.experiments import plots, tables
from keras_scaled_l2.experiments.spread import mean_std

if TYPE_CHECKING:
    from keras_scaled_l2.experiments.records import (
        ArmRecord,
        Comparison,
        RunRecord,
        Setting,
    )

JSON_NAME = "comparison.json"
NOTHING = "-"

DARK = {
    plots.INK: "#e4e6ea",
    plots.GRID: "#3a3f47",
    plots.PAPER: "#15181c",
    **dict(
        zip(
            plots.COLORS,
            ("#9a9a9a", "#4aa3ff", "#ff8a3d", "#5fe0b4", "#f5b5e0", "#f0e6a8"),
            strict=True,
        )
    ),
}
"""Color of the figures -> what it becomes on a dark page."""

TASKS = {
    "binary": "two classes",
    "classes": "several classes",
    "regression": "regression",
}

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
        "What the training minimises: data cost and penalty",
        "Where the dotted line lies above the solid one, most of the cost is penalty. "
        "All panels have the same axes; epoch 0 is before the first step.",
    ),
    "gradient_ratios": (
        "How hard the penalty pulls, by layer",
        "Right of 1 the penalty pulls harder on the layer's weights than the data do, "
        "left of it less hard. Hollow is the start, filled the end of the training.",
    ),
}
"""Name of a figure -> its heading, and how to read it."""


def html(comparison: Comparison, drawings: Mapping[str, str] | None = None) -> str:
    """The page comparison.html: conclusions, what was compared, figures, numbers.

    Args:
        comparison: What to show.
        drawings: Name -> SVG of its figures, where they are drawn already.

    Raises:
        InputError: If matplotlib is not installed.
    """
    title = f"{comparison.problem}: {', '.join(a.name for a in comparison.arms)}"
    sections = {
        "Result": _result(comparison),
        "What was compared": _facts(_compared(comparison)),
        "Figures": _figures(_draw(comparison) if drawings is None else drawings),
        "Numbers by arm": _table(comparison) + _table_notes(comparison),
        "How to repeat it": _facts(_repeat(comparison)) + _repeat_note(comparison),
    }
    body = "\n".join(
        f"<section>\n<h2>{name}</h2>\n{content}\n</section>"
        for name, content in sections.items()
        if content
    )
    return _PAGE.format(
        title=escape(title),
        style=_css(),
        heading=f"Comparison on {escape(comparison.problem)}",
        body=body,
    )


def _result(comparison: Comparison) -> str:
    answer = "".join(f"<p>{escape(x)}</p>\n" for x in tables.first_screen(comparison))
    shown = f'<div class="answer">\n{answer}</div>\n' if answer else ""
    lines = "\n".join(f"<li>{escape(x)}</li>" for x in tables.conclusions(comparison))
    return f'{shown}<ul class="result">\n{lines}\n</ul>'


def _compared(comparison: Comparison) -> dict[str, str]:
    samples = comparison.samples
    task = TASKS.get(comparison.task, comparison.task)
    split = {
        "by seed": "each seed draws its own split",
        "given": "they came split, the same split for all seeds",
    }
    return {
        "Problem": f"{comparison.problem} ({task})",
        "Arms": ", ".join(arm.name for arm in comparison.arms),
        "Architecture": f"{comparison.architecture}, {comparison.weights:,} weights",
        "Samples": f"{samples['train']:,} to train, {samples['validation']:,} to "
        f"validate, {samples['test']:,} to test; "
        f"{split.get(comparison.split, comparison.split)}",
        "Training": _training(comparison),
        "Optimizer": tables.optimizer(comparison.optimizer),
        "Seeds": _seeds(comparison),
        "Shared between the arms": "for each seed the split, the initial weights and "
        "the order of the batches; architecture, epochs and optimizer for all. The "
        "arms differ in penalty, dropout and weight decay only.",
        "Strengths": _tuning(comparison),
        "Test set": "looked at once for each run, after its training.",
    }


def _training(comparison: Comparison) -> str:
    text = f"{comparison.epochs} epochs of batches of {comparison.batch_size}"
    if comparison.patience is None:
        return text
    return (
        f"at most {text}; stops after {comparison.patience} epochs without a lower "
        "validation data loss and goes back to the best"
    )


def _seeds(comparison: Comparison) -> str:
    by_arm = [{run.seed for run in arm.runs} for arm in comparison.arms]
    seeds = sorted(set().union(*by_arm))
    if not seeds:
        return "no run is finished yet"
    text = f"{len(seeds)} ({', '.join(map(str, seeds))})"
    if any(found != set(seeds) for found in by_arm):
        text += "; not every arm has finished all of them"
    return text


def _tuning(comparison: Comparison) -> str:
    tuned = {arm.name: _trials(arm) for arm in comparison.arms if _trials(arm)}
    if not tuned:
        return (
            "given beforehand, the same for all seeds; nothing was tuned, so this says "
            "how these settings did, not which method is better"
        )
    trials = ", ".join(f"{name} ({count} trials)" for name, count in tuned.items())
    given = [arm.name for arm in comparison.arms if arm.name not in tuned]
    rest = f"; given beforehand for {', '.join(given)}" if given else ""
    return f"tuned for each seed on its validation data, for {trials}{rest}"


def _trials(arm: ArmRecord) -> int:
    return max([len(arm.grid), *(len(run.trials) for run in arm.runs)])


def _repeat(comparison: Comparison) -> dict[str, str]:
    versions = ", ".join(f"{k} {v}" for k, v in comparison.versions.items())
    return {
        "Versions": versions,
        "Backend": comparison.backend,
        "Device": comparison.device,
        "Seeds": _seeds(comparison),
        "Optimizer": tables.optimizer(comparison.optimizer),
    }


def _repeat_note(comparison: Comparison) -> str:
    return (
        f"<p>The file <code>{JSON_NAME}</code> beside this page holds every number of "
        "every run, every rule and the optimizer in full. The same settings from the "
        "same seeds, with the same versions on the same device, give the same numbers, "
        "but for the times.</p>"
    )


def _facts(facts: Mapping[str, str]) -> str:
    rows = (
        f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>"
        for name, value in facts.items()
    )
    return "<dl>\n" + "\n".join(rows) + "\n</dl>"


def _draw(comparison: Comparison) -> dict[str, str]:
    drawn = plots.figures(comparison).items()
    return {name: plots.render(figure, "svg").decode() for name, figure in drawn}


def _figures(drawings: Mapping[str, str]) -> str:
    parts = []
    for name, drawing in drawings.items():
        heading, reading = READING[name]
        svg = _inline(drawing, name, heading, reading)
        parts.append(
            f'<h3 id="{name}">{heading}</h3>\n<figure>\n'
            f'<div class="scroll" tabindex="0" role="region" aria-labelledby="{name}">'
            f"{svg}</div>\n{_HINT}<figcaption>{reading}</figcaption>\n</figure>"
        )
    return "\n".join(parts)


def _inline(svg: str, name: str, heading: str, reading: str) -> str:
    """The SVG as a part of the page: its own ids, the page's colors and size."""
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
    return re.sub(r'style="[^"]*"', lambda found: _themed(found[0]), svg)


def _themed(style: str) -> str:
    for color in DARK:
        style = style.replace(color, f"var({_variable(color)})")
    return style


def _variable(color: str) -> str:
    return f"--c{color[1:]}"


def _table(comparison: Comparison) -> str:
    columns = _columns(comparison)
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    rows = []
    for index, arm in enumerate(comparison.arms):
        color = _variable(plots.Look(arm, index).color)
        swatch = f'<span class="swatch" style="background: var({color})"></span>'
        cells = "".join(f"<td>{cell(arm)}</td>" for cell in columns.values())
        name = f'<div class="arm">{swatch}<span>{escape(arm.name)}</span></div>'
        rows.append(f'<tr><th scope="row">{name}</th>{cells}</tr>')
    body = "\n".join(rows)
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Numbers by arm">\n'
        f'<table>\n<thead><tr><th scope="col">arm</th>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table>\n</div>\n{_HINT}"
    )


def _columns(comparison: Comparison) -> dict[str, Callable[[ArmRecord], str]]:
    """Heading -> what stands in an arm's cell; only columns that hold something."""
    columns: dict[str, Callable[[ArmRecord], str]] = {
        "strength": lambda arm: _knob(arm, _strength),
        "dropout": lambda arm: _knob(arm, lambda s: f"{s.dropout:g}"),
        "weight decay": lambda arm: _knob(arm, lambda s: f"{s.weight_decay:g}"),
        "test data loss": lambda arm: _spread(arm.test("data_loss"), ".4f"),
        "test accuracy": lambda arm: _spread(arm.test("accuracy"), ".4f"),
        "ECE": lambda arm: _spread(arm.test("calibration_error"), ".4f"),
        "gap": lambda arm: _spread(map(_gap, arm.runs), "+.4f"),
        "penalty share": lambda arm: _spread(map(_penalty_share, arm.runs), ".1%"),
        "ms per step": lambda arm: _spread(map(_step_time, arm.runs), ".2f"),
    }
    always = ("strength", "dropout", "test data loss", "gap")
    return {
        name: cell
        for name, cell in columns.items()
        if name in always or {cell(arm) for arm in comparison.arms} - {NOTHING, "0"}
    }


def _table_notes(comparison: Comparison) -> str:
    kinds = {
        "ECE": "expected calibration error on the test set",
        "gap": "train - test accuracy"
        if comparison.task != "regression"
        else "test - train data loss",
        "penalty share": "of the cost with the weights kept, training set, no dropout",
        "ms per step": "wall time of the training, compilation left out",
    }
    shown = [f"{k}: {v}" for k, v in kinds.items() if k in _columns(comparison)]
    return (
        "<p>Means over the seeds, below them the 95 % interval of the mean. Data loss: "
        f"without the penalty, dropout off. {escape('; '.join(shown))}.</p>"
    )


def _knob(arm: ArmRecord, of: Callable[[Any], str]) -> str:
    """What was set; for a tuned arm what the seeds chose, and how many of them."""
    if not _trials(arm):
        return of(arm)
    chosen: Sequence[Setting] = [run.setting for run in arm.runs]
    counts = Counter(map(of, chosen))
    if len(counts) <= 1:
        return next(iter(counts), NOTHING)
    return "<br>".join(
        f"{value} ({count} of {len(chosen)})" for value, count in sorted(counts.items())
    )


def _strength(setting: ArmRecord | Setting) -> str:
    if setting.rule is None:
        return NOTHING
    kind = escape(str(setting.rule.get("class_name", "")))
    return f"{escape(tables.strength(setting.rule))}<small>{kind}</small>"


def _spread(values: Iterable[float | None], spec: str) -> str:
    """The mean, and its interval where there are seeds enough for one."""
    found = mean_std([value for value in values if value is not None])
    if found.mean is None:
        return NOTHING
    if not math.isfinite(found.mean):
        return "diverged"
    mean = format(found.mean, spec)
    if found.low is None or found.high is None:
        return mean
    return f"{mean}<small>{found.low:{spec}} to {found.high:{spec}}</small>"


def _gap(run: RunRecord) -> float:
    if run.train.accuracy is not None and run.test.accuracy is not None:
        return run.train.accuracy - run.test.accuracy
    return run.test.data_loss - run.train.data_loss


def _penalty_share(run: RunRecord) -> float | None:
    cost = run.final_cost
    if cost is None or cost.penalty == 0 or cost.total <= 0:
        return None
    return cost.penalty / cost.total


def _step_time(run: RunRecord) -> float | None:
    return 1000 * run.seconds / run.steps if run.steps else None


def _css() -> str:
    light = "".join(f"{_variable(c)}: {c}; " for c in DARK)
    dark = "".join(f"{_variable(c)}: {to}; " for c, to in DARK.items())
    return _CSS.replace("LIGHT", light).replace("DARK", dark)


_HINT = '<p class="hint">Scroll sideways to see the rest.</p>\n'

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{heading}</h1>
{body}
</main>
</body>
</html>
"""

_CSS = """
:root { color-scheme: light dark; LIGHT--ink: #222222; --soft: #595f69;
  --paper: #ffffff; --line: #d9d9d9; --box: #f3f5f8; }
@media screen and (prefers-color-scheme: dark) {
  :root { DARK--ink: #e4e6ea; --soft: #a6adb8;
    --paper: #15181c; --line: #3a3f47; --box: #20242a; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0.5rem 0 1rem; }
h2 { font-size: 1.25rem; margin: 2rem 0 0.75rem; }
h3 { font-size: 1.05rem; margin: 1.5rem 0 0.5rem; }
p, figcaption { max-width: 46rem; }
.result { background: var(--box); border-left: 4px solid var(--c0072b2);
  margin: 0; padding: 0.75rem 1rem 0.75rem 2rem; }
.answer { margin: 0 0 1rem; font-size: 1.1rem; }
.answer p { color: var(--ink); }
.result li + li { margin-top: 0.4rem; }
dl { margin: 0; }
dl div { display: grid; grid-template-columns: 12rem 1fr; gap: 0 1rem;
  padding: 0.3rem 0; border-bottom: 1px solid var(--line); }
dt { font-weight: 600; }
dd { margin: 0; }
figure { margin: 0; }
figcaption, p { color: var(--soft); margin: 0.5rem 0 0; }
.scroll { overflow-x: auto; }
.scroll:focus-visible { outline: 2px solid var(--c0072b2); outline-offset: 2px; }
svg { display: block; width: 100%; min-width: 44rem; height: auto; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
table { border-collapse: separate; border-spacing: 0; font-size: 0.9rem;
  font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: 0.4rem 0.6rem; border-bottom: 1px solid var(--line);
  text-align: right; vertical-align: top; white-space: nowrap; }
th:first-child { text-align: left; padding-left: 0; white-space: normal;
  position: sticky; left: 0; background: var(--paper); }
.arm { display: flex; gap: 0.5rem; width: max-content; max-width: min(14rem, 32vw);
  overflow-wrap: anywhere; }
thead th { border-bottom: 2px solid var(--ink); vertical-align: bottom; }
small { display: block; color: var(--soft); font-size: 0.8rem; }
.swatch { flex: none; width: 0.75rem; height: 0.75rem; margin-top: 0.3rem;
  border-radius: 2px; }
@media (max-width: 40rem) {
  dl div { grid-template-columns: 1fr; }
}
.hint { display: none; font-size: 0.8rem; }
@media screen and (max-width: 46rem) {
  .hint { display: block; }
}
@media print {
  main { max-width: none; padding: 0; }
  figure, tr, .result { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  .scroll { overflow: visible; }
  svg { min-width: 0; }
  table { font-size: 0.7rem; }
  th, td { padding: 0.2rem 0.3rem; }
  .swatch { print-color-adjust: exact; }
}
"""
