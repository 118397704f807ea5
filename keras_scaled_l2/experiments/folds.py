"""Cross-validation of a problem: stratified, shuffled, the test set left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from keras_scaled_l2.experiments.arrays import Arrays
from keras_scaled_l2.experiments.errors import InputError, require
from keras_scaled_l2.experiments.problems import Problem, Source


def folds(source: Source, k: int, seed: int) -> list[Problem]:
    """The problem k times, each with another part of the examples for validation.

    Training and validation set of the split by this seed are put together and dealt
    into ``k`` folds, shuffled; every class gives the same share to each. The test set
    stays as it is. Features that are standardized are so by each fold's training set.

    Args:
        source: The data.
        k: Number of folds.
        seed: Seed of the split and of the shuffle.

    Raises:
        InputError: If there are more folds than examples, or than examples of the
            rarest class.
    """
    own: Callable[[int, int], Any] | None = getattr(source, "folds", None)
    if own is not None:
        return list(own(k, seed))
    # Without the scaling: it is measured anew on the training set of each fold.
    plain = Source(source.name, source.arrays).split(seed)
    x = np.concatenate([plain.x_train, plain.x_validation])
    y = np.concatenate([plain.y_train, plain.y_validation])
    classes = plain.task != "regression"
    check_folds(source.name, k, y, classes=classes)
    selection = require("sklearn.model_selection", "cross-validation")
    kind = selection.StratifiedKFold if classes else selection.KFold
    dealt = kind(k, shuffle=True, random_state=seed).split(x, y)
    return [
        Source(
            source.name,
            Arrays(
                task=plain.task,
                classes=plain.classes,
                x_train=x[train],
                y_train=y[train],
                x_validation=x[left],
                y_validation=y[left],
                x_test=plain.x_test,
                y_test=plain.y_test,
            ),
            source.standardize,
        ).split(seed)
        for train, left in dealt
    ]


def check_folds(name: str, k: int, y: np.ndarray, *, classes: bool) -> None:
    """Refuse more folds than there is data for.

    Raises:
        InputError: With what was given and how many there may be.
    """
    most, what = len(y), "examples to train on"
    if classes:
        most, what = int(np.bincount(y.astype(int)).min()), "of the rarest class"
    if not 2 <= k <= most:
        raise InputError(
            f"folds {k}: expected from 2 to {most}, since {name!r} has {most} {what}."
        )
