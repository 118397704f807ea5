"""Mistakes in what the user asked for, each told in one line."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from typing import Any

import numpy as np

EXTRA = 'pip install "keras_scaled_l2[experiments]"'


class InputError(ValueError):
    """What the user asked for cannot be done; the message is one line.

    The command line ends with this line and exit code 2. Any other exception is a
    defect of the package and keeps its traceback.
    """


class DataWarning(UserWarning):
    """Something about the data that will spoil a training; the message is one line."""


class RecordWarning(UserWarning):
    """A record of a training is damaged, or not written yet; one line."""


class WriteError(OSError):
    """What was computed could not be written; one line.

    Args:
        message: What, why, and what to do.
        result: What was computed, all of it; ``None`` where the work stopped.
    """

    def __init__(self, message: str, result: Any = None) -> None:
        super().__init__(message)
        self.result = result


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name of a kind, as "arm", with the nearest one that is known."""
    names = list(known)
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return InputError(f"unknown {kind} {name!r}: {hint}Known: {', '.join(names)}.")


def plain(value: Any) -> Any:
    """A number of NumPy's as Python's, which JSON can hold; all else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def several(name: str, values: Any, example: str) -> tuple[Any, ...]:
    """The members of a sequence, or of an array, each made plain.

    Raises:
        InputError: If it is one value alone, or a text.
    """
    if isinstance(values, str) or not np.iterable(values):
        raise InputError(f"{name} {values!r}: expected a sequence, as {example}.")
    return tuple(plain(value) for value in values)


def require(module: str, purpose: str, install: str = EXTRA) -> Any:
    """Import a package that only the experiments need.

    Args:
        module: Name of the module.
        purpose: What it is needed for, to complete "... needs scikit-learn".
        install: The command that installs it.

    Raises:
        InputError: If it is not installed, with the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"{purpose} needs {module.partition('.')[0]}, which cannot be imported "
            f"({one_line(error)}). Install it with: {install}"
        ) from error


def one_line(error: BaseException) -> str:
    """The message of an exception on one line; its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
