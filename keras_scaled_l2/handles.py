"""What is put on a user's model for a time, and the handle that takes it off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self


class Handle:
    """Takes off what was put on, as the handles of torch's hooks do.

    Args:
        undo: What to call, the last one first.
    """

    __slots__ = ("_undo",)

    def __init__(self, *undo: Callable[[], None]) -> None:
        self._undo = list(undo)

    def remove(self) -> None:
        """Takes it off; what is off already stays so."""
        while self._undo:
            self._undo.pop()()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def shadow(thing: Any, name: str, function: Any) -> Handle:
    """Cover a method on one instance, until the handle is removed."""
    # Past the __setattr__ of Keras and torch, which looks for layers and weights.
    attributes = vars(thing)
    covered = attributes.get(name)
    attributes[name] = function

    def uncover() -> None:
        if covered is None:
            del attributes[name]
        else:
            attributes[name] = covered

    return Handle(uncover)
