"""What differs between the backends of Keras, one file each with the same functions."""

from __future__ import annotations

import importlib
from typing import Any

import keras

KNOWN = ("tensorflow", "jax", "torch")


def current_backend() -> Any:
    """The module of the backend that Keras runs on.

    Raises:
        NotImplementedError: If that backend cannot train.
    """
    name = keras.backend.backend()
    if name not in KNOWN:
        raise NotImplementedError(
            f"Keras runs on {name!r}: expected {', '.join(KNOWN)}, the backends that "
            "can train."
        )
    return importlib.import_module(f"{__name__}.{name}")
