"""Draws of examples and of wrong labels, each from a seed of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def drawn_share(
    groups: Sequence[np.ndarray], share: float, seed: Sequence[int]
) -> np.ndarray:
    """The same share of each group, rounded, in rising order."""
    random = np.random.default_rng(seed)
    drawn = [random.permutation(g)[: round(share * len(g))] for g in groups]
    return np.sort(np.concatenate(drawn))


def drawn_count(
    groups: Sequence[np.ndarray], count: int, seed: Sequence[int]
) -> np.ndarray:
    """So many of all, no more than there are, each group by its share, in rising order.

    What is left over by rounding down goes to the groups that lost most by it. A
    larger count from the same seed holds nearly all that a smaller one does.
    """
    random = np.random.default_rng(seed)
    sizes = np.array([len(group) for group in groups])
    quotas = count * sizes / sizes.sum()
    counts = np.floor(quotas).astype(int)
    left = np.argsort(counts - quotas, kind="stable")[: count - counts.sum()]
    counts[left] += 1
    drawn = [random.permutation(g)[:k] for g, k in zip(groups, counts, strict=True)]
    return np.sort(np.concatenate(drawn))


def with_wrong_labels(
    labels: np.ndarray, classes: int, share: float, seed: Sequence[int]
) -> np.ndarray:
    """Labels of which exactly this share, rounded, is another class drawn evenly."""
    random = np.random.default_rng(seed)
    wrong = random.permutation(len(labels))[: round(share * len(labels))]
    result = labels.copy()
    steps = random.integers(1, classes, size=len(wrong))
    result[wrong] = (labels[wrong] + steps) % classes
    return result
