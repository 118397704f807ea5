"""What differs between the backends of Keras, a file each with the same functions."""

from __future__ import annotations

import importlib
from typing import Any

import keras

KNOWN = ("tensorflow", "jax", "torch")
"""Those that can train."""


def current_backend() -> Any:
    """The module of the backend that Keras runs on, a ``contract.Backend``."""
    name = keras.backend.backend()
    return importlib.import_module(f"{__name__}.{name if name in KNOWN else 'plain'}")


def training_loop() -> Any:
    """The ``TrainingLoop`` of the backend that Keras runs on, as ``loop`` has it.

    Raises:
        NotImplementedError: If that backend cannot train.
    """
    name = keras.backend.backend()
    if name not in KNOWN:
        raise NotImplementedError(
            f"Keras runs on {name!r}: expected {', '.join(KNOWN)}, the backends that "
            "can train."
        )
    return importlib.import_module(f"{__name__}.loop_{name}").TrainingLoop
