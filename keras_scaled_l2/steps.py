"""Compiled steps that are out of date, since a penalty was changed after them.

Keras compiles a step once and bakes its penalties in. Who changes a penalty through one
model has that model's steps made anew, but cannot know the other models that hold the
same weights: one that the model is a part of, or a part of it. So each change leaves a
number on its weight, and a model remembers the newest one that its steps are right for.
"""

from __future__ import annotations

import itertools
import weakref
from typing import Any

import keras

_CHANGED = "_keras_scaled_l2_changed"
_numbers = itertools.count(1)
# Model -> the newest change of its penalties when its steps were made anew.
_RIGHT_FOR: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()


def put_regularizer(variable: keras.Variable, regularizer: Any) -> None:
    """Change what a weight is penalized by, so that models can tell that it changed."""
    variable.regularizer = regularizer
    vars(variable)[_CHANGED] = next(_numbers)


def rebuild_steps(model: keras.Model) -> None:
    """Have Keras compile anew the steps that it made with the old loss.

    ``fit`` makes its step before ``on_train_begin`` and keeps it for the next fit.
    """
    if getattr(model, "train_function", None) is not None:
        model.make_train_function(force=True)
    if getattr(model, "test_function", None) is not None:
        model.make_test_function(force=True)
    _RIGHT_FOR[model] = _newest_change(model)


def refresh_steps(model: keras.Model) -> None:
    """Rebuild the steps of a model if a penalty was changed since they were right.

    Steps that nobody has vouched for may be right all the same (compiled by a plain
    ``fit`` after the change): they are compiled once too often, then no more.
    """
    if _newest_change(model) > _RIGHT_FOR.get(model, 0):
        rebuild_steps(model)


def _newest_change(model: keras.Model) -> int:
    return max((vars(v).get(_CHANGED, 0) for v in model.weights), default=0)
