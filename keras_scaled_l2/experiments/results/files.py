"""JSON and other files, written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import math
import os
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from keras_scaled_l2.experiments.errors import InputError


def write_json(path: str | os.PathLike[str], data: Mapping[str, Any]) -> None:
    """Write a JSON file atomically; NaN and infinity, which JSON lacks, as null."""
    write_text(path, json.dumps(finite(data), indent=2, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON file that holds one object.

    Raises:
        InputError: If it cannot be read or is damaged.
    """
    try:
        data = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {os.fspath(path)!r}: {error}") from error
    if not isinstance(data, dict):
        raise InputError(f"{os.fspath(path)!r} holds no JSON object.")
    return data


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write text as ``write_bytes`` does, in UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file so that a reader finds the old content or the new, never a part.

    The content goes to a temporary file beside it, to the disk, and then in its place.
    """
    target = pathlib.Path(path)
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    temporary = pathlib.Path(name)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only their owner reads.
        temporary.chmod(0o644)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def must_be_written(path: pathlib.Path) -> Iterator[None]:
    """For the first file of a directory, while nothing is trained yet.

    Raises:
        InputError: If it cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{os.fspath(path)!r} cannot be written ({error.strerror or error}): "
            "expected room for it. Make some, or give another directory."
        ) from error


def finite(value: Any) -> Any:
    """Plain data as JSON has it: NaN and infinity as ``None``."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
