"""Signs of life of a process that works on a shared study."""

from __future__ import annotations

import contextlib
import threading
from typing import Any


class Heartbeats:
    """Signs of life for the trials that this process runs, from a thread.

    Optuna sends them from ``Study.optimize`` alone.
    """

    def __init__(self, storage: Any, seconds: float) -> None:
        """Starts the thread.

        Args:
            storage: Optuna's storage of the study.
            seconds: Time between two signs.
        """
        self._storage, self._seconds = storage, seconds
        self._running: dict[int, int] = {}
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def begin(self, number: int, trial_id: int) -> None:
        """Gives the first sign for a trial, and others from now on."""
        self._storage.record_heartbeat(trial_id)
        with self._lock:
            self._running[number] = trial_id

    def end(self, number: int) -> None:
        """Gives no more for a trial."""
        with self._lock:
            self._running.pop(number, None)

    def stop(self) -> None:
        """Ends the thread."""
        self._end.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._end.wait(self._seconds):
            with self._lock:
                running = list(self._running.values())
            for trial_id in running:
                # A database that is away for a moment: the grace period is longer.
                with contextlib.suppress(Exception):
                    self._storage.record_heartbeat(trial_id)
        self._storage.remove_session()
