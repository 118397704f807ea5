"""Processes that train for a tuning; the parent alone writes what they find.

Each is a fresh interpreter, ``python -m keras_scaled_l2.experiments.worker``, connected
by a socket: backends do not survive a fork, and a script needs no main guard. A process
that dies closes its socket, which the parent notices at once: what it was training is
trained again by another.
"""

from __future__ import annotations

import collections
import contextlib
import io
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any, Self

import keras

from keras_scaled_l2.experiments.errors import InputError, one_line
from keras_scaled_l2.experiments.trials import Key

AT_ONCE = 4
"""Trainings that a worker is given, or takes, at a time."""
DEATHS = 3
"""So many deaths in a row for each worker, before any result, are no accident."""
COMMAND = ("-m", "keras_scaled_l2.experiments.worker")
"""What a worker runs; file descriptors of its socket and of the arguments follow."""


class _Process:
    """One worker, what it is training, and what of it is left."""

    def __init__(self, arguments: int) -> None:
        ours, theirs = Pipe()
        self.connection: Connection = ours
        self.places: list[int] = []
        with theirs:
            passed = (theirs.fileno(), arguments)
            self.process = subprocess.Popen(
                [sys.executable, *COMMAND, *map(str, passed)],
                pass_fds=passed,
                # A terminal's Ctrl-C is for the parent, which ends its workers; they
                # would say where they were, while they still import Keras as well.
                process_group=0,
                env=os.environ
                | {
                    "PYTHONPATH": os.pathsep.join(sys.path),
                    # A user's module may have set another one for whoever asks next.
                    "KERAS_BACKEND": keras.backend.backend(),
                },
            )

    def stop(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.wait()


class _Pickler(pickle.Pickler):
    """Refuses what another process would look for in its own main program."""

    def reducer_override(self, obj: Any) -> Any:
        """Called for each object but the plainest."""
        if getattr(obj, "__module__", None) == "__main__" and hasattr(
            obj, "__qualname__"
        ):
            raise pickle.PicklingError(
                f"{obj.__qualname__} is defined in the script that runs"
            )
        return NotImplemented


def _pickled(arguments: Mapping[str, Any]) -> bytes:
    with io.BytesIO() as file:
        _Pickler(file).dump(arguments)
        return file.getvalue()


class Workers:
    """Worker processes, started when there is work for them.

    Each makes its own plan of these arguments of ``make_tuning_plan``.

    Raises:
        InputError: If the arguments cannot be sent to another process.
    """

    def __init__(self, arguments: Mapping[str, Any], count: int) -> None:
        try:
            self._arguments = _pickled({**arguments, "directory": None})
        except Exception as error:
            # Whatever a user's own objects may raise.
            raise InputError(
                f"workers {count}: what was asked for cannot be sent to another "
                f"process ({one_line(error)}). Give the model as a name, a file or "
                "module:function, own classes from a module, or train with one worker."
            ) from error
        self._count = count
        self._processes: list[_Process] = []
        self._open = contextlib.ExitStack()
        self._descriptor: int

    def __enter__(self) -> Self:
        """Writes what all processes read: a socket would wait until one has started."""
        file = self._open.enter_context(tempfile.TemporaryFile())
        file.write(self._arguments)
        file.flush()
        self._descriptor = file.fileno()
        return self

    def __exit__(self, *exception: object) -> None:
        """Ends the processes."""
        for process in self._processes:
            process.stop()
        self._processes = []
        self._open.close()

    def trainings(
        self,
        keys: Sequence[Key],
        known: Mapping[Key, Mapping[str, Any]],
        check: Callable[[], None],
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Train in the processes; as ``Tuner.trainings``.

        Raises:
            RuntimeError: If one fails, or several die before any result.
        """
        size = max(1, min(AT_ONCE, -(-len(keys) // self._count)))
        places = range(len(keys))
        waiting = collections.deque(
            list(places[i : i + size]) for i in range(0, len(keys), size)
        )
        deaths = 0
        while waiting or any(p.places for p in self._processes):
            check()
            self._hand_out(waiting, keys, known)
            by_connection = {p.connection: p for p in self._processes}
            for ready in wait(list(by_connection), timeout=1.0):
                process = by_connection[ready]  # type: ignore[index]
                try:
                    place, record = _answer(process)
                except (EOFError, OSError):
                    # Nothing came, or a message broke off in the middle.
                    deaths += 1
                    self._bury(process, waiting, deaths)
                    continue
                deaths = 0
                process.places.remove(place)
                yield place, record

    def _hand_out(
        self,
        waiting: collections.deque[list[int]],
        keys: Sequence[Key],
        known: Mapping[Key, Mapping[str, Any]],
    ) -> None:
        idle = [p for p in self._processes if not p.places]
        while waiting and (idle or len(self._processes) < self._count):
            if idle:
                process = idle.pop()
            else:
                process = _Process(self._descriptor)
                self._processes.append(process)
            process.places = waiting.popleft()
            chosen = [keys[place] for place in process.places]
            blocks = {key[1:] for key in chosen}
            needed = {k: r for k, r in known.items() if k[1:] in blocks}
            with contextlib.suppress(OSError):  # seen when it is waited for
                process.connection.send((process.places, chosen, needed))

    def _bury(
        self, process: _Process, waiting: collections.deque[list[int]], deaths: int
    ) -> None:
        """Put back what a process that died was training."""
        code = process.process.wait()
        self._processes.remove(process)
        process.stop()
        if process.places:
            waiting.appendleft(process.places)
        if deaths >= DEATHS * self._count:
            raise RuntimeError(
                f"{deaths} workers in a row ended before any result, the last with "
                f"code {code}: expected at least one. Train with workers=1 to see why."
            )


def _answer(process: _Process) -> tuple[int, dict[str, Any]]:
    kind, content = process.connection.recv()
    if kind == "failed":
        raise RuntimeError(f"a worker failed: {content}")
    place, record = content
    return place, record
