"""Whether a network has room in the machine's memory."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence

from keras_scaled_l2.experiments.errors import InputError
from keras_scaled_l2.experiments.problems import Problem


def check_hidden(hidden: Sequence[int], problem: Problem) -> None:
    """Refuse hidden layers whose weights alone are more than the machine's memory.

    Raises:
        InputError: If they are.
    """
    widths = [math.prod(problem.x_train.shape[1:]), *hidden, problem.outputs]
    weights = sum((below + 1) * above for below, above in itertools.pairwise(widths))
    units = ",".join(map(str, hidden))
    check_weights(f"hidden units {units}", weights, "Give fewer units.")


def check_weights(what: str, weights: int, remedy: str) -> None:
    """Refuse so many weights if they alone are more than the machine's memory.

    Each backend says so in another way, if the system does not end the process before.

    Raises:
        InputError: If they are.
    """
    room = _memory()
    if 4 * weights > room:
        raise InputError(
            f"{what}: the weights take {4 * weights // 2**30} GiB, expected less than "
            f"the {room / 2**30:.3g} GiB of this machine. {remedy}"
        )


def _memory() -> float:
    """Bytes of the machine; without bound where the system does not tell."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):
        return math.inf
