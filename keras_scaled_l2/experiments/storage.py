"""A directory that a comparison can go on in: what is finished stays finished."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from keras_scaled_l2.experiments.errors import (
    InputError,
    RecordWarning,
    one_line,
    require,
)
from keras_scaled_l2.experiments.results.files import (
    finite,
    must_be_written,
    read_json,
    write_json,
)
from keras_scaled_l2.warn import warn

CONFIGURATION = "configuration.json"
RUNS = "runs"
_FORMAT = 1
_TEMPORARY = re.compile(r"\..+\.(json|md|html|png|svg)\.[a-z0-9_]{8}")
"""What ``files.write_bytes`` calls a file until it is whole."""
COMPARISON, TUNING, TRANSFER = "comparison", "tuning", "transfer"
_MARKS = {
    COMPARISON: (CONFIGURATION, "comparison.json"),
    TUNING: ("study.db", "tuning.json"),
    TRANSFER: ("trainings.jsonl", "transfer.json"),
}
"""What is made in a directory -> files that only it writes."""


class Store:
    """Finished runs in a directory, one file each, written atomically.

    Raises:
        InputError: If the directory holds the runs of another configuration; the
            message shows what differs.
    """

    def __init__(
        self, directory: pathlib.Path, configuration: Mapping[str, Any]
    ) -> None:
        self.directory = directory
        self._configuration = json.loads(json.dumps(finite(configuration)))
        self._check()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep the directory for this process, as long as it lives.

        Raises:
            InputError: If another process has it.
        """
        with lock_directory(self.directory, COMPARISON):
            # Again, and from the file: another process may have been here meanwhile.
            self._check()
            self._sweep()
            path = self.directory / CONFIGURATION
            merged = dict(self._configuration)
            if path.exists():
                # Arms that are left out this time keep their finished runs.
                merged["arms"] = {**read_json(path)["arms"], **merged["arms"]}
            with must_be_written(path):
                write_json(path, merged)
            yield

    def load(self, name: str) -> dict[str, Any] | None:
        """The record of this name; ``None`` if there is none that is whole.

        A damaged one is set aside under the name ``....damaged``, with a warning.
        """
        path = self._path(name)
        if not path.exists():
            return None
        try:
            content = read_json(path)
            record = content["record"]
            if content["format"] != _FORMAT or content["sha256"] != _digest(record):
                raise ValueError("its content is not what was written")
        except (KeyError, RecursionError, TypeError, ValueError) as error:
            aside = path.with_suffix(".damaged")
            path.replace(aside)
            warn(
                f"record {os.fspath(path)!r} is damaged ({one_line(error)}): it is set "
                f"aside as {aside.name!r}, and the run is made again.",
                RecordWarning,
            )
            return None
        found: dict[str, Any] = record
        return found

    def save(self, name: str, record: Mapping[str, Any]) -> None:
        """Write the record of this name, as ``finite`` left it, whole or not at all."""
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"format": _FORMAT, "sha256": _digest(record), "record": record}
        write_json(path, content)

    def _path(self, name: str) -> pathlib.Path:
        return self.directory / RUNS / f"{name}.json"

    def _sweep(self) -> None:
        """Take away what killed processes left of files that they were writing."""
        for pattern in (".*", f"{RUNS}/*/.*", "figures/.*"):
            for path in self.directory.glob(pattern):
                if _TEMPORARY.fullmatch(path.name):
                    path.unlink(missing_ok=True)

    def _check(self) -> None:
        check_directory(self.directory, COMPARISON)
        path = self.directory / CONFIGURATION
        where = os.fspath(self.directory)
        remedy = "Give another directory, or remove that one."
        if not path.exists():
            for name in ("comparison.json", RUNS):
                if (self.directory / name).exists():
                    raise InputError(
                        f"directory {where!r} holds {name} without {CONFIGURATION}, so "
                        f"nobody knows what it was made from. {remedy}"
                    )
            return
        try:
            before = read_json(path)
        except (InputError, RecursionError) as error:
            raise InputError(
                f"directory {where!r}: its {CONFIGURATION} is damaged "
                f"({one_line(error)}), so nobody knows what it was made from. {remedy}"
            ) from error
        found = differences(before, self._configuration)
        if found:
            raise InputError(
                f"directory {where!r} holds another comparison: {found}. {remedy}"
            )


def check_directory(directory: pathlib.Path, what: str) -> None:
    """Refuse a directory that holds what another command made.

    Their folders have the same names: one would delete the other's figures and runs.

    Args:
        directory: The directory.
        what: What is to be made there: a key of ``_MARKS``.

    Raises:
        InputError: If another command's files are there.
    """
    for other, names in _MARKS.items():
        found = [name for name in names if (directory / name).exists()]
        if found and other != what:
            raise InputError(
                f"directory {os.fspath(directory)!r} holds {found[0]}, which is of a "
                f"{other}: expected one for this {what} alone. Give another directory."
            )


@contextlib.contextmanager
def lock_directory(directory: pathlib.Path | None, what: str) -> Iterator[None]:
    """Keep a directory for this process, which makes ``what`` there: a comparison.

    Raises:
        InputError: If another process has it.
    """
    if directory is None:
        yield
        return
    filelock = require("filelock", f"a {what} with a directory")
    # The lock is the system's: it ends with the process, however that ends.
    lock = filelock.FileLock(directory / ".lock", blocking=False)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise InputError(
            f"directory {os.fspath(directory)!r} is in use by another {what} that is "
            "running: wait for it, or give another directory."
        ) from error
    try:
        yield
    finally:
        lock.release()


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What differs between two configurations, as ``epochs is 12 there, 2 here``.

    Arms are compared where both have them: to add an arm, or to leave one out, spoils
    no run that is finished. So it is with seeds, which are no part of a configuration.
    Empty if nothing differs.
    """
    found = list(_differences(old, new, ""))
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return "; ".join(found[:3]) + more


def _differences(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str
) -> Iterator[str]:
    for key in dict.fromkeys([*old, *new]):
        name = f"{prefix}{key}"
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            if key == "arms":
                shared = before.keys() & after.keys()
                before = {k: v for k, v in before.items() if k in shared}
                after = {k: v for k, v in after.items() if k in shared}
            yield from _differences(before, after, f"{name} ")
        elif before != after and (pair := _first_pair(before, after)):
            # The sizes of a transfer: as a rule they all differ in the same.
            yield from _differences(*pair, prefix)
        elif before != after:
            yield f"{name} is {_short(before)} there, {_short(after)} here"


def _first_pair(
    before: Any, after: Any
) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
    """The first two configurations that differ, of two lists of as many."""
    if not (isinstance(before, list) and isinstance(after, list)):
        return None
    if len(before) != len(after):
        return None
    pair = next(p for p in zip(before, after, strict=True) if p[0] != p[1])
    return pair if all(isinstance(part, Mapping) for part in pair) else None


def _short(value: Any) -> str:
    text = "not set" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _digest(record: Any) -> str:
    text = json.dumps(record, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
