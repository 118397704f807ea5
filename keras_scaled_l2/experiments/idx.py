"""Files in IDX, the format of MNIST and of the sets made like it."""

from __future__ import annotations

import gzip
import math
import os
import pathlib
import zlib

import numpy as np

from keras_scaled_l2.experiments.errors import InputError, one_line

_TYPES = {
    0x08: "u1",
    0x09: "i1",
    0x0B: ">i2",
    0x0C: ">i4",
    0x0D: ">f4",
    0x0E: ">f8",
}
_FILES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}


def read_directory(directory: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The four arrays of a folder with MNIST's files, packed with gzip or not.

    Raises:
        InputError: If one is missing or is no IDX file.
    """
    folder = pathlib.Path(directory)
    return {name: read_idx(_find(folder, stem)) for name, stem in _FILES.items()}


def _find(folder: pathlib.Path, stem: str) -> pathlib.Path:
    # Some packages write a dot where the original has a hyphen.
    names = [
        s + end for s in (stem, stem.replace("-idx", ".idx")) for end in ("", ".gz")
    ]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise InputError(
        f"data directory {os.fspath(folder)!r} has no file {stem} or {stem}.gz: "
        f"expected {', '.join(_FILES.values())}, packed with gzip or not."
    )


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """The array of an IDX file.

    Format: two bytes of 0, the type, the number of dimensions, each dimension as a
    32-bit integer, then the values; all of it big-endian.

    Raises:
        InputError: If the file is none, or is cut off.
    """
    try:
        content = pathlib.Path(path).read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        return _parse(content)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(
            f"cannot read {os.fspath(path)!r} ({one_line(error)}): expected a file in "
            "IDX format, packed with gzip or not."
        ) from error


def _parse(content: bytes) -> np.ndarray:
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _TYPES:
        raise ValueError(f"it begins with {content[:4].hex(' ')}")
    kind, dimensions = np.dtype(_TYPES[content[2]]), content[3]
    start = 4 + 4 * dimensions
    shape = [int(d) for d in np.frombuffer(content[4:start], ">u4")]
    expected = start + math.prod(shape) * kind.itemsize
    if len(shape) < dimensions or len(content) != expected:
        raise ValueError(f"it holds {len(content)} bytes for the shape {shape}")
    return np.frombuffer(content, kind, offset=start).reshape(shape)
