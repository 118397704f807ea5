"""Arrays from outside, checked one by one before anything is trained on them."""

from __future__ import annotations

import dataclasses
import os
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from keras_scaled_l2.experiments.errors import InputError, one_line

Task = Literal["binary", "classes", "regression"]
TASKS = ("binary", "classes", "regression")
SETS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays:
    """Checked arrays of one problem; sets that were not given are ``None``."""

    task: Task
    classes: int
    x_train: np.ndarray
    y_train: np.ndarray
    x_validation: np.ndarray | None = None
    y_validation: np.ndarray | None = None
    x_test: np.ndarray | None = None
    y_test: np.ndarray | None = None


def read_npz(path: str) -> dict[str, np.ndarray]:
    """The arrays of a ``.npz`` file, read without pickle.

    Raises:
        InputError: If it is no such file, or holds Python objects.
    """
    known = [f"{axis}_{part}" for part in SETS for axis in "xy"]
    if not os.path.exists(path):
        raise InputError(f"there is no file {path!r}.")
    try:
        # Opened here: NumPy leaves the file of a damaged archive open.
        with open(path, "rb") as raw:
            file = np.load(raw, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array")
            unknown = sorted(set(file.files) - set(known))
            arrays = {name: file[name] for name in file.files if name in known}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"cannot read {path!r} ({one_line(error)}): expected a file written by "
            "numpy.savez(path, x_train=..., y_train=...) from arrays of numbers."
        ) from error
    if unknown:
        raise InputError(
            f"{path!r} holds {', '.join(unknown)}, which means nothing here: expected "
            f"only {', '.join(known)}."
        )
    return arrays


def checked(
    arrays: Mapping[str, Any], *, name: str, task: Task | None = None
) -> Arrays:
    """Features as float32, labels as int32 from 0, targets as float32.

    Args:
        arrays: ``x_train`` and ``y_train``; ``x_validation``, ``y_validation``,
            ``x_test`` and ``y_test`` where there are any.
        name: What to call the problem in an error.
        task: The task; told from ``y_train`` by default: integers and one-hot rows of
            any dtype are classes, other floating-point numbers targets.

    Raises:
        InputError: If an array is missing, empty, not of numbers, not finite, or
            does not fit the others.
    """
    if task is not None and task not in TASKS:
        raise InputError(f"task {task!r}: expected one of {', '.join(TASKS)}.")
    x, y = {}, {}
    for part in SETS:
        names = (f"x_{part}", f"y_{part}")
        missing = [n for n in names if n not in arrays]
        if len(missing) == 2 and part != "train":
            continue
        if missing:
            raise InputError(
                f"{name!r} has no array {missing[0]!r}: found "
                f"{', '.join(sorted(arrays)) or 'nothing'}; expected x_train and "
                "y_train at least, and every x_ with its y_."
            )
        x[part], y[part] = (np.asarray(arrays[n]) for n in names)
        _check_pair(name, part, x[part], y[part])
        _check_same(name, part, x)
        x[part] = _float32(name, f"x_{part}", x[part])
        y[part] = y[part][:, 0] if y[part].shape[1:] == (1,) else y[part]
    if task != "regression":
        y = _unfolded(name, y)
    found = task or _task(name, y["train"])
    if found == "regression":
        classes = 0
        targets = {part: _float32(name, f"y_{part}", v) for part, v in y.items()}
        _check_targets(name, targets)
    else:
        classes = _classes(name, y["train"])
        targets = {part: _labels(name, part, v, classes) for part, v in y.items()}
        _check_task(name, found, classes)
        found = "binary" if found == "binary" or classes == 2 else "classes"
    return Arrays(
        found,
        classes,
        **{f"x_{part}": v for part, v in x.items()},
        **{f"y_{part}": v for part, v in targets.items()},
    )


def _check_pair(name: str, part: str, x: np.ndarray, y: np.ndarray) -> None:
    for axis, array in (("x", x), ("y", y)):
        if array.dtype.kind not in "biuf":
            raise InputError(
                f"{axis}_{part} of {name!r} has dtype {array.dtype}: expected numbers. "
                "Text labels become numbers by numpy.unique(y, return_inverse=True)[1]."
            )
    if x.ndim < 2:
        raise InputError(
            f"x_{part} of {name!r} has shape {x.shape}: expected (examples, features, "
            "...). A single feature is x[:, None]."
        )
    if y.ndim not in (1, 2):
        raise InputError(
            f"y_{part} of {name!r} has shape {y.shape}: expected (examples,) or "
            "(examples, targets)."
        )
    if len(x) != len(y):
        raise InputError(
            f"x_{part} of {name!r} has {len(x)} examples and y_{part} has {len(y)}: "
            "expected as many of each."
        )
    if not x.size or not y.size:
        raise InputError(
            f"x_{part} of {name!r} is empty (shape {x.shape}, labels {y.shape}): "
            "expected one example with one feature at least."
        )


def _check_same(name: str, part: str, x: Mapping[str, np.ndarray]) -> None:
    if x[part].shape[1:] != x["train"].shape[1:]:
        raise InputError(
            f"x_{part} of {name!r} has examples of shape {x[part].shape[1:]}, x_train "
            f"of {x['train'].shape[1:]}: expected the same."
        )


def _float32(name: str, array_name: str, array: np.ndarray) -> np.ndarray:
    # What float32 cannot hold becomes infinite, and is reported as such.
    with np.errstate(over="ignore"):
        result = np.ascontiguousarray(array, dtype=np.float32)
    wrong = result.size - int(np.count_nonzero(np.isfinite(result)))
    if wrong:
        raise InputError(
            f"{array_name} of {name!r} holds {wrong} values that are NaN, infinite or "
            "too large for float32: expected finite numbers. Fill or drop them first."
        )
    return result


def _unfolded(name: str, y: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One-hot labels as the integers that they stand for, whatever their dtype.

    Raises:
        InputError: If the rows say something else of the classes than one of them.
    """
    train = y["train"]
    if train.ndim == 1 or not _is_part(train):
        return dict(y)
    for part, rows in y.items():
        if rows.shape[1:] != train.shape[1:]:
            raise InputError(
                f"y_{part} of {name!r} has rows of shape {rows.shape[1:]}, y_train of "
                f"{train.shape[1:]}: expected the same."
            )
        if not np.isin(rows, (0, 1)).all():
            raise InputError(
                f"y_{part} of {name!r} has rows of probabilities: expected one label "
                "per example, as y.argmax(axis=1) gives, or --task regression "
                "(task='regression') to fit them by mean squared error."
            )
        ones = np.count_nonzero(rows, axis=1)
        if (ones != 1).any():
            raise InputError(
                f"y_{part} of {name!r} has rows of 0 and 1 with {ones.min()} to "
                f"{ones.max()} ones, which is multi-label: expected one label per "
                "example. Train on one of the labels, as y[:, 0], or say "
                "--task regression (task='regression') for the mean squared error of "
                "all."
            )
    return {part: rows.argmax(axis=1) for part, rows in y.items()}


def _is_part(rows: np.ndarray) -> bool:
    """Whether rows are 0 and 1 throughout, or shares that sum to 1."""
    if np.isin(rows, (0, 1)).all():
        return True
    positive = rows.dtype.kind == "f" and bool((rows >= 0).all())
    return positive and np.allclose(rows.sum(axis=1), 1, atol=1e-3)


_FEW = 20
"""So many different whole numbers may be labels that were saved as floats."""


def _task(name: str, y: np.ndarray) -> Task:
    if y.dtype.kind != "f":
        return "classes"
    values = np.unique(y)
    whole = np.isfinite(values).all() and np.array_equal(values, np.rint(values))
    few = len(values) <= min(_FEW, len(y) // 2)
    counted = np.array_equal(values, np.arange(len(values))) and len(values) < len(y)
    if y.ndim == 1 and whole and len(values) > 1 and (few or counted):
        raise InputError(
            f"y_train of {name!r} has dtype {y.dtype} and only {len(values)} different "
            f"whole numbers, {values[0]:g} to {values[-1]:g}: save labels as "
            "numpy.unique(y, return_inverse=True)[1], or say --task regression "
            "(task='regression') if these are targets."
        )
    return "regression"


def _check_targets(name: str, targets: Mapping[str, np.ndarray]) -> None:
    for part, y in targets.items():
        if y.shape[1:] != targets["train"].shape[1:]:
            raise InputError(
                f"y_{part} of {name!r} has targets of shape {y.shape[1:]}, y_train of "
                f"{targets['train'].shape[1:]}: expected the same."
            )


def _classes(name: str, y: np.ndarray) -> int:
    """Number of classes, each of which must occur in the training set."""
    _check_labels(name, "train", y)
    values = np.unique(y)
    if len(values) < 2:
        raise InputError(
            f"y_train of {name!r} holds one label only, {values[0]}: expected two."
        )
    if not np.array_equal(values, np.arange(len(values))):
        shown = ", ".join(str(v) for v in values[:5]) + ", ..." * (len(values) > 5)
        raise InputError(
            f"y_train of {name!r} holds the labels {shown}: expected every integer "
            "from 0 to classes - 1, as numpy.unique(y, return_inverse=True)[1] gives, "
            "or floating-point numbers for a regression."
        )
    return len(values)


def _labels(name: str, part: str, y: np.ndarray, classes: int) -> np.ndarray:
    _check_labels(name, part, y)
    if y.min() < 0 or y.max() >= classes:
        raise InputError(
            f"y_{part} of {name!r} holds labels from {y.min()} to {y.max()}: expected "
            f"0 to {classes - 1}, as in y_train."
        )
    return y.astype(np.int32)


def _check_labels(name: str, part: str, y: np.ndarray) -> None:
    if y.ndim != 1:
        raise InputError(
            f"y_{part} of {name!r} has shape {y.shape}: expected one integer label per "
            "example, rows of 0 with a single 1 (one-hot), or --task regression "
            "(task='regression') for several targets."
        )
    if y.dtype.kind == "f" and not np.array_equal(y, np.rint(y)):
        raise InputError(
            f"y_{part} of {name!r} holds values that are not whole numbers: expected "
            "integer labels, or --task regression (task='regression')."
        )


def _check_task(name: str, task: Task, classes: int) -> None:
    if task == "binary" and classes != 2:
        raise InputError(
            f"y_train of {name!r} holds {classes} labels: expected 2 for task "
            "'binary'. Leave the task out to have them counted."
        )
