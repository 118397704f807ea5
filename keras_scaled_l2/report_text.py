"""A cost report as text and as Markdown."""

from __future__ import annotations

import collections
import textwrap
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from keras_scaled_l2.findings import percent
from keras_scaled_l2.report_records import CostRecord, WeightReport

_NONE = "-"


class _Column(NamedTuple):
    title: str
    cell: Callable[[WeightReport], str]
    meaning: str = ""


_COLUMNS = (
    _Column("weight", lambda w: w.path),
    _Column("count", lambda w: f"{w.count:,}"),
    _Column("sum w²", lambda w: f"{w.sum_of_squares:.4g}"),
    _Column(
        "c",
        lambda w: _or_none(w.coefficient, ".3g"),
        "coefficient of the penalty c * sum(w²), as in keras.regularizers.L2(c).",
    ),
    _Column("penalty", lambda w: f"{w.penalty:.4g}"),
    _Column("share", lambda w: percent(w.share), "of the penalty of all weights."),
    _Column(
        "decay/step",
        lambda w: _or_none(w.decay_per_step, ".2g"),
        "part of itself that a weight loses in one update if nothing else drives it.",
    ),
    _Column(
        "half-life",
        lambda w: _or_none(
            w.half_life, ",.0f" if w.half_life and w.half_life < 1e7 else ".2g"
        ),
        "updates after which it has halved so.",
    ),
    _Column(
        "gradient ratio",
        lambda w: _or_none(w.gradient_ratio, ".2g"),
        "norm of the penalty's gradient over norm of the data gradient; above 1 the "
        "weight shrinks rather than fits the data.",
    ),
    _Column(
        "gamma",
        lambda w: _or_none(w.gamma, ".4g"),
        "elements of the weight that the data determine, by the evidence.",
    ),
)
EQUIVALENTS = {
    "textbook": "the textbook's lambda / (2 m): lambda",
    "torch": "torch.optim.SGD and Adam: weight_decay",
    "decoupled": "AdamW and Keras's optimizers: weight_decay",
    "sklearn_mlp": "scikit-learn's MLPClassifier (sgd, adam; regressor: half): alpha",
    "logistic_c": "scikit-learn's LogisticRegression (cross-entropy): C",
    "ridge": "scikit-learn's Ridge (squared error; k targets: k times): alpha",
    "prior_std": "Gaussian prior on each weight: standard deviation",
    "half_life": "half-life of a weight without data gradient, in epochs",
}
"""Convention, as ``convert`` names it -> what is set there."""


def as_text(report: CostRecord) -> str:
    """The report for a terminal."""
    blocks = ["\n".join([_headline(report), _wrapped(_rules(report), "- ")]).rstrip()]
    if report.weights:
        columns = _columns(report)
        rows = [[c.title for c in columns], *_rows(report, columns)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = [
            "  ".join(
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        blocks += ["\n".join(table), _wrapped(_legend(report, columns), "")]
    blocks.append(_cost(report))
    if report.findings:
        findings = (f.text for f in report.findings)
        blocks.append("What stands out:\n" + _wrapped(findings, "- "))
    equivalents = list(_equivalents(report))
    if equivalents:
        lines = [f"  {line}" for line in equivalents[1:]]
        blocks.append("\n".join([*textwrap.wrap(equivalents[0], 80), *lines]))
    return "\n\n".join(blocks)


def as_markdown(report: CostRecord) -> str:
    """The report as Markdown."""
    blocks = [f"# {_headline(report)}"]
    blocks += ["\n".join(f"- {rule}" for rule in _rules(report))] * bool(report.weights)
    if report.weights:
        columns = _columns(report)
        header = [c.title for c in columns]
        ruler = ["---", *["---:"] * (len(columns) - 1)]
        lines = [
            "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
            for row in (header, ruler, *_rows(report, columns))
        ]
        blocks += ["\n".join(lines), "  \n".join(_legend(report, columns))]
    blocks.append(_cost(report).replace("\n", "  \n"))
    if report.findings:
        found = "\n".join(f"- **{f.name}**: {f.text}" for f in report.findings)
        blocks.append(f"## What stands out\n\n{found}")
    equivalents = list(_equivalents(report))
    if equivalents:
        lines = [f"- {line}" for line in equivalents[1:]]
        blocks.append("\n".join([equivalents[0], *([""] if lines else []), *lines]))
    return "\n\n".join(blocks) + "\n"


def _wrapped(texts: Iterable[str], bullet: str) -> str:
    indent = " " * (len(bullet) or 2)
    return "\n".join(
        textwrap.fill(text, 80, initial_indent=bullet, subsequent_indent=indent)
        for text in texts
    )


def _headline(report: CostRecord) -> str:
    return (
        f"Penalty of {report.model!r}: {report.penalized:,} of {report.parameters:,} "
        f"weights, in {_tensors(len(report.weights))}"
    )


def _rules(report: CostRecord) -> Iterator[str]:
    by_rule = collections.Counter(weight.rule for weight in report.weights)
    for rule, number in by_rule.items():
        yield f"{_tensors(number)} by {rule}"


def _tensors(number: int) -> str:
    return f"{number} tensor" if number == 1 else f"{number} tensors"


def _columns(report: CostRecord) -> list[_Column]:
    """The columns of which something is known."""
    return [c for c in _COLUMNS if any(c.cell(w) != _NONE for w in report.weights)]


def _rows(report: CostRecord, columns: list[_Column]) -> list[list[str]]:
    return [[column.cell(weight) for column in columns] for weight in report.weights]


def _legend(report: CostRecord, columns: list[_Column]) -> Iterator[str]:
    yield from (f"{c.title}: {c.meaning}" for c in columns if c.meaning)
    if report.optimizer and all(w.decay_per_step is None for w in report.weights):
        yield (
            f"No decay/step and no half-life: {report.optimizer['name']} rescales the "
            "penalty's gradient. SGD does not."
        )


def _or_none(value: float | None, form: str) -> str:
    return _NONE if value is None else format(value, form)


def _cost(report: CostRecord) -> str:
    cost = report.cost
    if "total" not in cost:
        hint = " Give x and y to compare it with the data cost."
        return f"Penalty now: {cost['penalty']:.4g}." + hint * bool(report.weights)
    line = (
        f"Cost now: {cost['total']:.4g} = data {cost['data']:.4g} + penalty "
        f"{cost['penalty']:.4g} ({percent(cost['penalty_share'])} of the cost)."
    )
    if report.gradient_ratio is not None:
        line += (
            f"\nPenalty gradient of all penalized weights: "
            f"{report.gradient_ratio:.2g} times the data gradient."
        )
    return line


def _equivalents(report: CostRecord) -> Iterator[str]:
    """A heading, and the names of the penalty."""
    if not report.equivalents:
        if len({w.coefficient for w in report.weights}) > 1:
            yield (
                "The coefficients differ, so the penalty has no single equivalent in "
                "other conventions; convert(c, 'keras', ...) tells it for one."
            )
        return
    counts = {"examples to train on": report.samples, "in a batch": report.batch_size}
    known = [f"{number:,} {what}" for what, number in counts.items() if number]
    lacking = [
        f"{name}=..."
        for name, number in (
            ("samples", report.samples),
            ("batch_size", report.batch_size),
        )
        if not number
    ]
    yield (
        "In other conventions"
        + (f", with {' and '.join(known)}" if known else "")
        + (f" ({' and '.join(lacking)} would tell more)" if lacking else "")
        + ":"
    )
    for name, value in report.equivalents.items():
        yield f"{EQUIVALENTS[name]} = {value:.4g}"
