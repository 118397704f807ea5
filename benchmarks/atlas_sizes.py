"""What each rule loses by size: a row for all groups of one optimizer and size."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence

from atlas_cells import SIZES
from atlas_results import HALF_LIFE, OPTIMIZERS, POWERS, Result, regret_rows, table

FEW = 1000
"""Examples of the cells of every size; the others have 4000 or 10,000."""


def sizes(results: Sequence[Result]) -> str:
    """Median and largest over the dense groups that have a size.

    Args:
        results: Cells of L2 and dropout.
    """
    lost = {(group, weights): found for group, weights, found in regret_rows(results)}
    rows = []
    for few, optimizer, size in itertools.product((True, False), OPTIMIZERS, SIZES):
        cells = [
            r
            for r in results
            if r.group[3:] == (optimizer, "dense")
            and (r.group[1] == FEW) == few
            and nearest(r.weights) == size
        ]
        if not cells:
            continue
        examples = f"{FEW:,}" if few else "4,000 or 10,000"
        row = [f"{examples} examples, {OPTIMIZERS[optimizer]}, {in_words(size)}"]
        row.append(str(len(cells)))
        row.append(_two([r.gain(r.l2, "loss") for r in cells]))
        row.append(_two([r.gain(r.dropout, "loss") for r in cells]))
        regrets = [lost.get((r.group, r.weights), {}) for r in cells]
        for rule in (*POWERS, HALF_LIFE):
            values = [found[rule].value for found in regrets if rule in found]
            row.append(_two(values) if values else "-")
        rows.append(row)
    head = ["", "groups", "L2 gains", "dropout gains", *POWERS, HALF_LIFE]
    return table(head, rows)


def nearest(weights: int) -> int:
    """The size that a network was made for."""
    return min(SIZES, key=lambda size: abs(size - weights))


def in_words(size: int) -> str:
    """``2.1 million weights``."""
    if size < 1_000_000:
        return f"{size // 1000} thousand weights"
    return f"{size / 1e6:g} million weights"


def _two(values: Sequence[float]) -> str:
    """Median and largest."""
    return f"{100 * statistics.median(values):.1f} %, {100 * max(values):.1f} %"
