"""What the user sees while a comparison runs."""

from __future__ import annotations

import sys
from typing import IO, Any, Protocol

from keras_scaled_l2.experiments.records import RunRecord


class Progress(Protocol):
    """Told of everything that happens in a comparison, in this order."""

    def start(self, runs: int, epochs: int) -> None:
        """So many runs of so many epochs each are about to be made."""

    def begin(self, arm: str, seed: int) -> None:
        """A run begins."""

    def epoch(self, logs: dict[str, Any]) -> None:
        """An epoch of it has ended with these logs."""

    def finish(self, arm: str, record: RunRecord) -> None:
        """The run has ended with this record."""

    def stop(self) -> None:
        """Nothing follows; called even if the comparison was interrupted."""


class Silent:
    """Shows nothing."""

    def start(self, runs: int, epochs: int) -> None:
        """Shows nothing."""

    def begin(self, arm: str, seed: int) -> None:
        """Shows nothing."""

    def epoch(self, logs: dict[str, Any]) -> None:
        """Shows nothing."""

    def finish(self, arm: str, record: RunRecord) -> None:
        """Shows nothing."""

    def stop(self) -> None:
        """Shows nothing."""


class Lines(Silent):
    """A plain line for each finished run, for files and pipes.

    Args:
        stream: Where the lines go; standard error by default.
    """

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = stream
        self._runs = 0
        self._finished = 0

    def start(self, runs: int, epochs: int) -> None:
        """Counts the runs."""
        self._runs, self._finished = runs, 0

    def finish(self, arm: str, record: RunRecord) -> None:
        """Prints the line of the run."""
        self._finished += 1
        print(
            f"[{self._finished}/{self._runs}] {describe(arm, record)}",
            file=self._stream or sys.stderr,
            flush=True,
        )


class Bar(Silent):
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
        from rich.progress import (
            Progress as Columns,
        )

        self._columns = Columns(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("epochs, time left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._columns.add_task("compiling", total=None)
        self._run = ""

    def start(self, runs: int, epochs: int) -> None:
        """Shows the bar."""
        self._columns.update(self._task, total=runs * epochs)
        self._columns.start()

    def begin(self, arm: str, seed: int) -> None:
        """Names the run."""
        self._run = f"{arm}, seed {seed}"
        self._columns.update(self._task, description=self._run)

    def epoch(self, logs: dict[str, Any]) -> None:
        """Moves the bar."""
        loss = logs.get("val_data_loss")
        shown = "" if loss is None else f": validation data loss {loss:.4f}"
        self._columns.update(self._task, advance=1, description=self._run + shown)

    def finish(self, arm: str, record: RunRecord) -> None:
        """Prints the line of the run above the bar."""
        self._columns.console.print(
            describe(arm, record), highlight=False, markup=False
        )

    def stop(self) -> None:
        """Takes the bar away."""
        self._columns.stop()


def choose(progress: Progress | bool) -> Progress:
    """The progress to show: a bar on a terminal, plain lines elsewhere.

    Args:
        progress: ``True`` for that choice, ``False`` for nothing, or one of one's own.
    """
    if not isinstance(progress, bool):
        return progress
    if not progress:
        return Silent()
    if sys.stderr.isatty():
        try:
            return Bar()
        except ImportError:
            pass
    return Lines()


def describe(arm: str, record: RunRecord) -> str:
    """One line for a finished run."""
    accuracy = record.test.accuracy
    shown = "" if accuracy is None else f", test accuracy {accuracy:.4f}"
    return (
        f"{arm}, seed {record.seed}: test data loss {record.test.data_loss:.4f}"
        f"{shown}, {record.seconds:.1f} s"
    )
