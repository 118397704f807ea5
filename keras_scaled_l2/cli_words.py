"""The options that several commands share."""

from __future__ import annotations

import argparse
import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from keras_scaled_l2.cli_numbers import NumbersError


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what to train on."""
    add = parser.add_argument
    add(
        "--problem",
        default="mnist5k",
        help="mnist5k, digits, breast-cancer, mnist1d, mnist, fashion_mnist, cifar10, "
        "or a .npz file with x_train, y_train and maybe x_validation, y_validation, "
        "x_test, y_test "
        "(default: %(default)s)",
    )
    add(
        "--task",
        choices=("binary", "classes", "regression"),
        help="what the labels of a .npz file are (default: told from their dtype)",
    )
    add(
        "--standardize",
        action="store_true",
        default=None,
        help="scale features by the mean and standard deviation of the training set",
    )
    add(
        "--samples",
        type=int,
        metavar="N",
        help="number of training examples, drawn by each seed (default: all)",
    )
    add(
        "--label-noise",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of the training and validation labels that each seed makes wrong "
        "(default: 0)",
    )
    add(
        "--data-dir",
        metavar="FOLDER",
        help="where the files of mnist or fashion_mnist are, in IDX format, packed "
        "with gzip or not (default: downloaded by Keras)",
    )


def check_hidden(arguments: argparse.Namespace) -> None:
    """Refuse units of hidden layers for a model that has its own.

    Raises:
        InputError: If they were given with such a model.
    """
    from keras_scaled_l2.experiments.errors import InputError

    model = arguments.model
    own = model is not None and (model == "conv" or not model.isidentifier())
    if own and arguments.hidden is not None:
        raise InputError(
            f"--hidden and --model {model}: expected no hidden units, since the model "
            "has its own layers. Leave --hidden out, or use --model dense."
        )


def data_of(arguments: argparse.Namespace) -> Any:
    """The problem that the options name.

    Raises:
        InputError: If there is none.
    """
    from keras_scaled_l2.experiments.problems import load_problem

    return load_problem(
        arguments.problem,
        task=arguments.task,
        standardize=arguments.standardize,
        samples=arguments.samples,
        label_noise=arguments.label_noise,
        data_dir=arguments.data_dir,
    )


@contextlib.contextmanager
def errors_said() -> Iterator[None]:
    """Hand an error of the experiments to the command, which says it in one line.

    Of what could not be written the table is printed first.

    Raises:
        NumbersError: If there was one.
    """
    from keras_scaled_l2.experiments.errors import InputError, WriteError

    try:
        yield
    except InputError as error:
        raise NumbersError(str(error)) from error
    except WriteError as error:
        if error.result is not None:
            print(error.result.table(), flush=True)
        raise NumbersError(str(error)) from error


@contextlib.contextmanager
def warnings_said(program: str) -> Iterator[None]:
    """Say the experiments' own warnings in one line, as errors are said."""
    from keras_scaled_l2.experiments.errors import DataWarning, RecordWarning

    with warnings.catch_warnings():
        show = warnings.showwarning
        for category in (DataWarning, RecordWarning):
            warnings.simplefilter("default", category)

        def say(
            message: Warning | str, category: type[Warning], *rest: Any, **given: Any
        ) -> None:
            if issubclass(category, (DataWarning, RecordWarning)):
                print(f"{program}: warning: {message}", file=sys.stderr)
            else:
                show(message, category, *rest, **given)

        warnings.showwarning = say
        yield


def add_memory(parser: argparse.ArgumentParser) -> None:
    """Add the option that bounds what trains at the same time."""
    parser.add_argument(
        "--memory",
        type=float,
        metavar="GIB",
        help="that trainings which run at the same time may take, all together "
        "(default: 2)",
    )


def add_place(parser: argparse.ArgumentParser, default: str, what: str) -> None:
    """Add the options that say where everything goes, and how much is said.

    Args:
        parser: The parser of a command.
        default: The directory by default.
        what: What goes there.
    """
    add = parser.add_argument
    add(
        "--directory",
        default=default,
        help=f"where {what} go; the same command goes on where it was stopped "
        "(default: %(default)s)",
    )
    add("--quiet", action="store_true", help="show no progress, only the table")


def given(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options of these names that were given."""
    found = {name: getattr(arguments, name) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def names(text: str) -> list[str]:
    """Words joined by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def joined(kind: type, example: str) -> Callable[[str], list[Any]]:
    """A type of an option: numbers of a kind, joined by commas.

    Args:
        kind: ``int`` or ``float``.
        example: For the error.
    """

    def parse(text: str) -> list[Any]:
        try:
            return [kind(part) for part in names(text)]
        except ValueError:
            numbers = "whole numbers" if kind is int else "numbers"
            raise argparse.ArgumentTypeError(
                f"{text!r}: expected {numbers} joined by commas, as {example}"
            ) from None

    return parse
