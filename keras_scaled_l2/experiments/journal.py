"""The journal of a transfer: what is trained is written down, a line each."""

from __future__ import annotations

import json
import math
import os
import pathlib
from typing import Any

from keras_scaled_l2.experiments.errors import InputError, RecordWarning, one_line
from keras_scaled_l2.experiments.results.files import (
    finite,
    must_be_written,
    write_bytes,
    write_text,
)
from keras_scaled_l2.experiments.storage import differences
from keras_scaled_l2.experiments.transfer_lines import Key
from keras_scaled_l2.experiments.transfer_plan import TransferPlan
from keras_scaled_l2.experiments.transfer_result import Records
from keras_scaled_l2.experiments.writes import Writes
from keras_scaled_l2.warn import warn

_FARTHEST = 99
"""No place on an axis, half a decade each, is farther from 0."""


class Journal:
    """Trainings by size, a line of a file for each: what is written stays.

    Raises:
        InputError: If the directory holds a transfer of another configuration, or of
            one that nobody knows.
    """

    def __init__(self, plan: TransferPlan, writes: Writes) -> None:
        self._plan, self._writes = plan, writes
        self._waiting: list[str] = []
        self._records: list[Records] = [{} for _ in plan.plans]
        self._path: pathlib.Path | None = None
        if plan.directory is not None:
            self._path = plan.directory / "trainings.jsonl"
            self._read(self._path)

    def of(self, size: int) -> Records:
        """The trainings of a size."""
        return self._records[size]

    def add(self, size: int, key: Key, seed: int, record: dict[str, Any]) -> None:
        """Note a training."""
        self._records[size][key, seed] = record
        if self._path is not None:
            line = json.dumps(finite([size, key, seed, record]))
            self._waiting.append(f"{line}\n")
            self._writes.do(self._path.name, self._append)

    def _append(self) -> None:
        assert self._path is not None
        before = self._path.stat().st_size
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write("".join(self._waiting))
        except OSError:
            # Half a line would spoil the next one.
            os.truncate(self._path, before)
            raise
        self._waiting.clear()

    def _read(self, path: pathlib.Path) -> None:
        wanted = json.loads(json.dumps(finite(self._plan.configuration())))
        if not path.exists():
            with must_be_written(path):
                write_text(path, json.dumps(wanted) + "\n")
            return
        content = path.read_bytes()
        head, *lines = content.decode(errors="replace").split("\n")
        self._check_head(head, wanted, path)
        # A last line without an end: killed while it wrote.
        whole, cut = lines[:-1], "".join(lines[-1:])
        kept = [line for line in whole if self._take(line)]
        damaged = len(whole) - len(kept)
        if damaged:
            aside = path.with_suffix(".damaged")
            write_bytes(aside, content)
            warn(
                f"{os.fspath(path)!r}: {damaged} of {len(whole)} lines are damaged. It "
                f"is kept as {aside.name!r}; what they held is trained again.",
                RecordWarning,
            )
        if damaged or cut or not lines:
            write_text(path, "".join(f"{line}\n" for line in (head, *kept)))

    def _check_head(self, head: str, wanted: Any, path: pathlib.Path) -> None:
        where = os.fspath(path.parent)
        try:
            found = json.loads(head)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"directory {where!r}: the first line of its {path.name} is damaged "
                f"({one_line(error)}), so nobody knows what it was made from. Give "
                "another directory, or delete it."
            ) from error
        if found != wanted:
            other = differences(found, wanted) if isinstance(found, dict) else ""
            raise InputError(
                f"directory {where!r} holds a transfer of another configuration"
                f"{other and f' ({other})'}: expected the same call. Give another "
                "directory, or delete it."
            )

    def _take(self, line: str) -> bool:
        """Keep the training of a line, if it is one of this transfer."""
        try:
            size, (kind, place, rate), seed, record = json.loads(line)
            whole = (
                _is_count(size, len(self._records) - 1)
                and kind in self._plan.lines
                and (place is None or _is_place(place))
                and _is_place(rate)
                and seed in self._plan.seeds
                and _is_record(record)
            )
        except (ValueError, TypeError, KeyError, RecursionError):
            return False
        if whole:
            self._records[size][(kind, place, rate), seed] = record
        return whole


def _is_record(record: Any) -> bool:
    return (
        all(_is_value(record[name]) for name in ("loss", "accuracy"))
        and _is_count(record["best_epoch"])
        and _is_count(record["steps"])
    )


def _is_value(value: Any) -> bool:
    """Whether it is a loss or an accuracy; ``None`` is one that was no number."""
    return value is None or (isinstance(value, int | float) and math.isfinite(value))


def _is_place(value: Any) -> bool:
    return type(value) is int and abs(value) <= _FARTHEST


def _is_count(value: Any, most: float = math.inf) -> bool:
    return type(value) is int and 0 <= value <= most
