"""A process that trains for a tuning: ``python -m ...worker SOCKET ARGUMENTS``.

Both are file descriptors, of a socket to the parent and of a file with the arguments.
"""

from __future__ import annotations

import mmap
import pickle
import sys
import traceback
from multiprocessing.connection import Connection


def main(socket: int, arguments: int) -> None:
    """Train what comes through a socket, until it is closed."""
    with Connection(socket) as parent:
        try:
            _serve(parent, arguments)
        except (EOFError, ConnectionError):
            return
        except Exception:
            parent.send(("failed", traceback.format_exc()))


def _serve(parent: Connection, arguments: int) -> None:
    from keras_scaled_l2.experiments.tuner import Tuner, say_nothing
    from keras_scaled_l2.experiments.tuning_plan import make_tuning_plan

    # All workers share the file and its position: mapped, it needs none.
    with mmap.mmap(arguments, 0, access=mmap.ACCESS_READ) as content:
        plan = make_tuning_plan(**pickle.loads(content))
    tuner = Tuner(plan, say_nothing)
    while True:
        places, keys, known = parent.recv()
        for index, record in tuner.trainings(keys, known, lambda: None):
            parent.send(("trained", (places[index], record)))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
