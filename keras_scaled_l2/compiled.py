"""What a compiled step was compiled for, so that it serves until that changes.

Keras compiles a model's steps once and keeps them, in ``model.train_function``. What
the monitor compiles in their place is kept on that function: ``compile`` and whoever
has the step made anew throw it away together with Keras's own. What else is baked into
a step (trainable weights, penalties, the optimizer) is compared by its key.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras

from keras_scaled_l2 import _keras
from keras_scaled_l2.rule import Rule, effective_coefficient

Key = tuple[Any, ...]
"""Things compared by identity; rules, numbers and strings by value."""

_OPTIONS = ("run_eagerly", "jit_compile", "steps_per_execution")


def key_of(model: keras.Model) -> Key:
    """All that a compiled step of the model has taken for constant."""
    weights = list(model.trainable_weights) if model.built else []
    return (
        getattr(model, "optimizer", None),
        *(getattr(model, name, None) for name in _OPTIONS),
        _keras.loss_tracker(model),
        *weights,
        *(v.regularizer for v in weights),
        *(_coefficient(v) for v in weights),
    )


def same_key(one: Key | None, other: Key | None) -> bool:
    """Whether a step that was compiled for one is right for the other."""
    if one is None or other is None:
        return False
    return len(one) == len(other) and all(map(_same, one, other))


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    return isinstance(one, (Rule, bool, int, float, str)) and bool(one == other)


def _coefficient(variable: keras.Variable) -> float | None:
    """Of a regularizer that may be changed in place; of a variable it is state."""
    if isinstance(variable.regularizer, Rule):
        return None
    found = effective_coefficient(variable.regularizer, variable.shape)
    return found if isinstance(found, float) else None


@contextlib.contextmanager
def steps_kept(model: keras.Model) -> Iterator[None]:
    """Gives the compiled steps back if nothing that matters to them changes meanwhile.

    A rule that is put on anew and resolved anew, with the same counts, is the same.
    """
    key = key_of(model)
    steps = (model.train_function, model.test_function)
    yield
    if steps[0] is not None and same_key(key, key_of(model)):
        model.train_function, model.test_function = steps
