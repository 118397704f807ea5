"""Writes that may fail, as on a full disk, while trainings go on."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from typing import Any

from keras_scaled_l2.experiments.errors import RecordWarning, WriteError, one_line
from keras_scaled_l2.warn import warn


class Writes:
    """What cannot be written is kept, tried again with the next, and told at the end.

    Args:
        directory: Where everything goes.
    """

    def __init__(self, directory: pathlib.Path | None) -> None:
        self._directory = directory
        self._left: dict[str, Callable[[], object]] = {}
        self._lost: list[str] = []
        self._error: OSError | None = None

    def do(self, name: str, action: Callable[[], object]) -> None:
        """Write a file, and what is left of those before."""
        self._left[name] = action
        self._retry()

    def lost(self, name: str, error: OSError) -> None:
        """Note a file that cannot be tried again."""
        self._lost.append(name)
        self._note(name, error)

    def finish(self, result: Any) -> None:
        """Try for the last time.

        Raises:
            WriteError: If anything could not be written; it holds the result.
        """
        self._retry()
        names = [*self._left, *self._lost]
        if names:
            assert self._error is not None
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise WriteError(
                f"directory {os.fspath(self._directory or '')!r}: {names[0]}{more} "
                f"could not be written ({_reason(self._error)}). Make room there: the "
                "same command goes on.",
                result,
            ) from self._error

    def _retry(self) -> None:
        for name, action in list(self._left.items()):
            try:
                action()
            except OSError as error:
                # In order: a later line of a file must not come before an earlier one.
                self._note(name, error)
                return
            del self._left[name]

    def _note(self, name: str, error: OSError) -> None:
        if self._error is None:
            warn(
                f"{name} cannot be written ({_reason(error)}): the trainings go on, "
                "and what is left is tried again.",
                RecordWarning,
            )
        self._error = error


def _reason(error: OSError) -> str:
    return error.strerror or one_line(error)
