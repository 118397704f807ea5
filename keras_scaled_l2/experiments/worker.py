"""A process that trains for a tuning: ``python -m ...worker FILE_DESCRIPTOR``."""

from __future__ import annotations

import pickle
import signal
import sys
import traceback
from multiprocessing.connection import Connection


def main(descriptor: int) -> None:
    """Train what comes through a socket, until it is closed."""
    # Ctrl-C is for the parent, which ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Connection(descriptor) as parent:
        try:
            _serve(parent)
        except (EOFError, ConnectionError):
            return
        except Exception:
            parent.send(("failed", traceback.format_exc()))


def _serve(parent: Connection) -> None:
    from keras_scaled_l2.experiments.tuner import Tuner, say_nothing
    from keras_scaled_l2.experiments.tuning_plan import make_tuning_plan

    plan = make_tuning_plan(**pickle.loads(parent.recv_bytes()))
    tuner = Tuner(plan, say_nothing)
    while True:
        places, keys, known = parent.recv()
        for index, record in tuner.trainings(keys, known, lambda: None):
            parent.send(("trained", (places[index], record)))


if __name__ == "__main__":
    main(int(sys.argv[1]))
