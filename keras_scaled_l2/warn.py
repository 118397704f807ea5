"""Warnings that name the user's line: the first one outside this package and Keras."""

from __future__ import annotations

import os
import sys
import warnings

import keras

_INSIDE = tuple(
    os.path.dirname(os.path.abspath(path)) + os.sep
    for path in (__file__, keras.__file__)
)


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn, naming the line that called into this package or into Keras.

    A callback is called by ``fit``, deeper on one backend than on another: no fixed
    ``stacklevel`` finds the user's line. (``skip_file_prefixes`` of ``warnings.warn``
    is of Python 3.12.)

    Args:
        message: What is wrong, and the remedy.
        category: Kind of warning.
    """
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
