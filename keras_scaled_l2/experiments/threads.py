"""Trainings side by side, each in a thread of its own."""

from __future__ import annotations

import collections
import functools
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from keras_scaled_l2.experiments.jobs import Curves, Job, Norms, Stop, Trained, Watch

Group = Mapping[int, Job]
Results = list[tuple[int, Trained]]
Train = Callable[[Group, Stop | None, Watch], Results]


class _Cancelled(Exception):
    """The others are no longer wanted."""


class _Messenger(Watch):
    """Has the main thread tell what a thread's training tells."""

    def __init__(
        self,
        watch: Watch,
        inbox: queue.SimpleQueue[Any],
        cancelled: threading.Event,
    ) -> None:
        self._watch, self._inbox, self._cancelled = watch, inbox, cancelled

    def begin(self, place: int) -> None:
        """Tells it later."""
        self.tick()
        self._inbox.put(functools.partial(self._watch.begin, place))

    def epoch(self, place: int, curves: Curves, norms: Norms) -> None:
        """Tells it later, as it is now."""
        self.tick()
        now = {name: list(values) for name, values in curves.items()}
        self._inbox.put(functools.partial(self._watch.epoch, place, now, norms))

    def tick(self) -> None:
        """Breaks off where the others were broken off."""
        if self._cancelled.is_set():
            raise _Cancelled


def side_by_side(
    trains: Sequence[Train], groups: Iterable[Group], stop: Stop | None, watch: Watch
) -> Iterator[tuple[int, Trained]]:
    """Train groups of jobs, as many at a time as there are functions.

    What the watch hears it hears in the calling thread, where Ctrl-C is heard too;
    ``stop`` is asked in the threads, by one at a time.

    Yields:
        ``(place of the job, what it left)``, as they end.
    """
    waiting = collections.deque(groups)
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    cancelled, lock = threading.Event(), threading.Lock()
    messenger = _Messenger(watch, inbox, cancelled)

    def stops(place: int, curves: Curves) -> bool:
        with lock:
            return stop is not None and stop(place, curves)

    def work(train: Train) -> None:
        try:
            while waiting and not cancelled.is_set():
                try:
                    group = waiting.popleft()
                except IndexError:  # another one was faster
                    break
                inbox.put(train(group, stops, messenger))
        except BaseException as error:  # raised again in the main thread
            inbox.put(error)
        finally:
            inbox.put(None)

    threads = [threading.Thread(target=work, args=(train,)) for train in trains]
    for thread in threads:
        thread.start()
    working = len(threads)
    try:
        while working:
            message = inbox.get()
            if message is None:
                working -= 1
            elif isinstance(message, BaseException):
                raise message
            elif callable(message):
                message()
            else:
                yield from message
    finally:
        cancelled.set()
        for thread in threads:
            thread.join()
