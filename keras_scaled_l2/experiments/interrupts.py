"""Ctrl-C that cannot get lost in a callback of somebody else's."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any


@contextlib.contextmanager
def kept_interrupt() -> Iterator[Callable[[], None]]:
    """Give a function that raises ``KeyboardInterrupt`` if Ctrl-C was pressed before.

    Python raises it wherever the main thread happens to be. Inside a destructor, or a
    function that a backend calls while it collects garbage, it is printed and dropped;
    the function given raises it again at a place where it is heard.
    """
    pressed = False

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        signal.default_int_handler(number, frame)

    def check() -> None:
        if pressed:
            raise KeyboardInterrupt

    tell = sys.unraisablehook

    def tell_others(dropped: Any) -> None:
        # Nothing is lost: the one that was dropped is raised again.
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            tell(dropped)

    # Another handler is somebody's choice, and only the main thread may set one.
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield check
        return
    try:
        signal.signal(signal.SIGINT, remember)
    except ValueError:
        yield check
        return
    sys.unraisablehook = tell_others
    try:
        yield check
    finally:
        sys.unraisablehook = tell
        signal.signal(signal.SIGINT, signal.default_int_handler)
