"""A summary as plain text and as Markdown."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence

from keras_scaled_l2.experiments.results.columns import Column, Table
from keras_scaled_l2.experiments.results.summary import Summary

WIDTH = 120


def plain(summary: Summary) -> str:
    """The answer, the tables and what follows from them, 120 columns wide."""
    tables = [
        part
        for table in summary.tables
        for part in (_wrapped(f"{table.title}:"), *_blocks(table))
    ]
    return "\n\n".join(
        [
            *map(_wrapped, summary.answer),
            _wrapped(summary.setup),
            *tables,
            "\n".join(_wrapped(line, "- ") for line in summary.conclusions),
            "\n".join(map(_wrapped, summary.notes)),
        ]
    )


def markdown(summary: Summary) -> str:
    """The same, with everything that is needed to run it again."""
    tables = [
        part
        for table in summary.tables
        for part in (f"## {_safe(table.title)}", _marked(table))
    ]
    facts = [f"{name}: {value}" for name, value in summary.facts.items()]
    parts = [
        f"# {_safe(summary.title)}",
        *map(_safe, summary.answer),
        _safe(summary.setup),
        *tables,
        "## What follows",
        _bullets(summary.conclusions),
        "## How to read it",
        _bullets(summary.notes),
        "## What was compared",
        _bullets(facts),
    ]
    return "\n\n".join(parts) + "\n"


def _blocks(table: Table) -> list[str]:
    """The table in pieces of at most 120 characters, the names before each."""
    names, *columns = table.columns
    blocks: list[list[Column]] = []
    for column in columns:
        if blocks and len(_lines([names, *blocks[-1], column])[1]) <= WIDTH:
            blocks[-1].append(column)
        else:
            blocks.append([column])
    return ["\n".join(_lines([names, *block])) for block in blocks]


def _lines(columns: Sequence[Column]) -> list[str]:
    header, *rows = Table("", tuple(columns)).rows
    widths = [max(map(len, cells)) for cells in zip(header, *rows, strict=True)]
    return [
        "  ".join(map(str.ljust, line, widths)).rstrip()
        for line in (header, ["-" * width for width in widths], *rows)
    ]


def _marked(table: Table) -> str:
    header, *rows = table.rows
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(_safe, line))} |" for line in lines)


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {_safe(line)}" for line in lines)


def _safe(line: str) -> str:
    """The text as Markdown shows it: names may hold what Markdown takes for its own."""
    escaped = re.sub(r"[\\`*<|]|\](?=[(\[:])|(?<!\w)_|_(?!\w)", r"\\\g<0>", line)
    return " ".join(escaped.split())


def _wrapped(line: str, bullet: str = "") -> str:
    return textwrap.fill(
        bullet + line,
        WIDTH,
        subsequent_indent=" " * len(bullet),
        break_long_words=False,
        break_on_hyphens=False,
    )
