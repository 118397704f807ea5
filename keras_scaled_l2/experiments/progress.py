"""What the user sees while a comparison runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import IO, Any

from keras_scaled_l2.experiments.results.records import RunRecord, Trial


class Progress:
    """Told of everything that happens in a comparison; this one shows nothing.

    Several runs may be under way at the same time.
    """

    def start(self, jobs: int, epochs: int) -> None:
        """So many runs and trials of at most so many epochs each are to be made."""

    def compile(self) -> None:
        """A network is being compiled."""

    def begin(self, arm: str, seed: int, trial: int | None = None) -> None:
        """A run begins, or a trial; not told of one that was finished before."""

    def epoch(self, arm: str, seed: int, logs: dict[str, Any]) -> None:
        """An epoch of a run or trial has ended with these logs."""

    def tried(self, arm: str, seed: int, number: int, trial: Trial) -> None:
        """A trial has ended, now or in an earlier call, with this record."""

    def finish(self, arm: str, record: RunRecord) -> None:
        """A run has ended, now or in an earlier call, with this record."""

    def stop(self) -> None:
        """Nothing follows; called even if the comparison was interrupted."""


class Lines(Progress):
    """A plain line for each finished run or trial, by default on standard error."""

    def __init__(
        self,
        stream: IO[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._clock = clock
        self._jobs = self._ended = self._made = 0
        self._begun: float | None = None
        self._running: set[tuple[str, int, int | None]] = set()

    def start(self, jobs: int, epochs: int) -> None:
        """Counts the runs and trials."""
        self._jobs, self._ended, self._made = jobs, 0, 0
        self._begun = None
        self._running.clear()

    def begin(self, arm: str, seed: int, trial: int | None = None) -> None:
        """Takes the time of the first."""
        self._begun = self._clock() if self._begun is None else self._begun
        self._running.add((arm, seed, trial))

    def tried(self, arm: str, seed: int, number: int, trial: Trial) -> None:
        """Prints the line of the trial."""
        line = describe_trial(arm, seed, number, trial)
        self._line(line, (arm, seed, number))

    def finish(self, arm: str, record: RunRecord) -> None:
        """Prints the line of the run."""
        self._line(describe(arm, record), (arm, record.seed, None))

    def _line(self, text: str, run: tuple[str, int, int | None]) -> None:
        self._ended += 1
        left = self._jobs - self._ended
        if run not in self._running or self._begun is None:
            text += " (found)"
        else:
            self._running.remove(run)
            self._made += 1
            seconds = (self._clock() - self._begun) / self._made
            if left:
                text += f"; about {duration(seconds * left)} left"
        print(
            f"[{self._ended}/{self._jobs}] {text}",
            file=self._stream or sys.stderr,
            flush=True,
        )


class Bar(Progress):
    """A live bar over all epochs of all runs, with the time that is left.

    Raises:
        ImportError: If rich is not installed.
    """

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Columns

        self._columns = Columns(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("epochs, time left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._columns.add_task("starting", total=None)
        self._epochs = self._ended = 0

    def start(self, jobs: int, epochs: int) -> None:
        """Shows the bar."""
        self._epochs = epochs
        self._columns.update(self._task, total=jobs * epochs)
        self._columns.start()

    def compile(self) -> None:
        """Says what takes so long."""
        self._columns.update(self._task, description="compiling")

    def begin(self, arm: str, seed: int, trial: int | None = None) -> None:
        """Names the run."""
        run = f"{arm}, seed {seed}"
        if trial is not None:
            run += f", trial {trial}"
        self._columns.update(self._task, description=run)

    def epoch(self, arm: str, seed: int, logs: dict[str, Any]) -> None:
        """Moves the bar."""
        loss, validation = logs.get("data_loss"), logs.get("val_data_loss")
        shown = "" if loss is None else f": data loss {loss:.4f}"
        shown += "" if validation is None else f", validation {validation:.4f}"
        run = f"{arm}, seed {seed}"
        self._columns.update(self._task, advance=1, description=run + shown)

    def tried(self, arm: str, seed: int, number: int, trial: Trial) -> None:
        """Prints the line of the trial above the bar."""
        self._end(describe_trial(arm, seed, number, trial))

    def finish(self, arm: str, record: RunRecord) -> None:
        """Prints the line of the run above the bar."""
        self._end(describe(arm, record))

    def stop(self) -> None:
        """Takes the bar away."""
        self._columns.stop()

    def _end(self, line: str) -> None:
        self._ended += 1
        # Fewer epochs than there might have been, where training stopped early; never
        # back, where others are under way.
        done = max(self._ended * self._epochs, self._columns.tasks[0].completed)
        self._columns.update(self._task, completed=done)
        self._columns.console.print(line, highlight=False, markup=False)


def choose(progress: Progress | bool) -> Progress:
    """The progress to show: a bar on a terminal, lines elsewhere, or one's own."""
    if not isinstance(progress, bool):
        return progress
    if not progress:
        return Progress()
    if sys.stderr.isatty():
        try:
            return Bar()
        except ImportError:
            pass
    return Lines()


def duration(seconds: float) -> str:
    """A time span for people: ``45 s``, ``3 min``, ``2.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def describe_trial(arm: str, seed: int, number: int, trial: Trial) -> str:
    """One line for a finished trial."""
    return (
        f"{arm}, seed {seed}, trial {number}: validation data loss "
        f"{trial.data_loss:.4f}"
    )


def describe(arm: str, record: RunRecord) -> str:
    """One line for a finished run."""
    accuracy = record.test.accuracy
    shown = "" if accuracy is None else f", test accuracy {accuracy:.4f}"
    return (
        f"{arm}, seed {record.seed}: test data loss {record.test.data_loss:.4f}"
        f"{shown}, {record.seconds:.1f} s"
    )
