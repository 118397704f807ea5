"""Checks of what users pass: what came, what was expected, the remedy."""

from __future__ import annotations

import math
import numbers
from typing import Any


def non_negative(name: str, value: Any) -> float:
    """``value`` as a float, if it is a finite number of 0 or more."""
    number = _number(name, value)
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"{name}={value!r}: expected a finite number, 0 or more.")
    return number


def positive(name: str, value: Any) -> float:
    """``value`` as a float (an int stays one), if it is finite and above 0."""
    number = _number(name, value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{name}={value!r}: expected a finite number above 0.")
    return int(value) if isinstance(value, numbers.Integral) else number


def fraction(name: str, value: Any) -> float:
    """``value`` as a float, if it is 0 or more and below 1."""
    number = _number(name, value)
    if not 0 <= number < 1:
        raise ValueError(f"{name}={value!r}: expected a number of 0 or more, below 1.")
    return number


def positive_count(name: str, value: Any) -> int:
    """``value`` as an int, if it is a whole number of 1 or more."""
    number = _number(name, value)
    # Compared with the value itself: a large fraction is whole once it is a float.
    if not (math.isfinite(number) and number >= 1 and value == int(value)):
        raise ValueError(f"{name}={value!r}: expected a whole number, 1 or more.")
    return int(value)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError(
            f"{name}={value!r} is of type {type(value).__name__}: expected a number."
        )
    try:
        return float(value)
    except OverflowError:
        return math.inf


def check_is_model(model: Any) -> None:
    """Refuse what is no Keras 3 model or layer; of Keras 2 with the way out."""
    # Not above: numbers are checked by what needs no Keras, as the conversions.
    import keras

    if not isinstance(model, keras.Layer):
        raise TypeError(
            f"model={model!r} is of type {type(model).__name__}: expected a Keras "
            f"model{keras_2_remedy(model)}."
        )


def keras_2_remedy(model: Any) -> str:
    """How to come from a Keras 2 object to Keras 3; empty for any other object.

    It goes on after the words "expected a Keras model".
    """
    modules = {base.__module__ for base in type(model).__mro__}
    if not any(name.startswith(_KERAS_2) for name in modules):
        return ""
    return (
        " of Keras 3, and this is one of Keras 2. Make it with `import keras` instead "
        "of tf_keras, and unset TF_USE_LEGACY_KERAS, which makes tf.keras Keras 2; "
        'weights come over by a file, old.save_weights("old.weights.h5") and '
        'new.load_weights("old.weights.h5")'
    )


_KERAS_2 = ("tf_keras.", "tensorflow.python.keras.")
