"""Ctrl-C that cannot get lost in code of somebody else's."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any


class _Kept:
    """A handler of SIGINT that does what Python's does, and remembers it."""

    pressed = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.pressed = True
        signal.default_int_handler(number, frame)

    def check(self) -> None:
        if self.pressed:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def heard(self) -> Iterator[Callable[[], None]]:
        try:
            yield self.check
        except Exception as error:
            # TensorFlow calls Python as it makes a tensor, and drops what that raised:
            # "SystemError: ... returned a result with an exception set".
            if self.pressed:
                raise KeyboardInterrupt from error
            raise


@contextlib.contextmanager
def kept_interrupt() -> Iterator[Callable[[], None]]:
    """Give a function that raises ``KeyboardInterrupt`` if Ctrl-C was pressed before.

    Python raises it wherever the main thread happens to be. Inside a destructor, or a
    function that a backend calls while it collects garbage, it is printed and dropped;
    the function given raises it again at a place where it is heard. Compiled code may
    make another error of it: whatever is raised after Ctrl-C is the interrupt.
    """
    outer = signal.getsignal(signal.SIGINT)
    if isinstance(outer, _Kept):
        with outer.heard() as check:
            yield check
        return
    kept = _Kept()
    tell = sys.unraisablehook

    def tell_others(dropped: Any) -> None:
        # Nothing is lost: the one that was dropped is raised again.
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            tell(dropped)

    # Another handler is somebody's choice, and only the main thread may set one.
    if outer is not signal.default_int_handler:
        yield kept.check
        return
    try:
        signal.signal(signal.SIGINT, kept)
    except ValueError:
        yield kept.check
        return
    sys.unraisablehook = tell_others
    try:
        with kept.heard() as check:
            yield check
    finally:
        sys.unraisablehook = tell
        signal.signal(signal.SIGINT, signal.default_int_handler)
