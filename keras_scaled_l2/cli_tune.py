"""The command ``keras-scaled-l2 tune``."""

from __future__ import annotations

import argparse
import os
from typing import Any

from keras_scaled_l2.cli_data import add_data, data_of
from keras_scaled_l2.cli_numbers import NumbersError

_PLAIN = ("rule", "method", "criterion", "optimizer", "folds", "seeds", "epochs")
_OTHERS = (
    "batch_size",
    "hidden",
    "learning_rate",
    "patience",
    "memory",
    "storage",
    "workers",
)


def add_tune(commands: Any) -> None:
    """Add the command to the parser's."""
    # Defaults are None here and stand in experiments.tune, which is slow to import.
    parser = commands.add_parser(
        "tune",
        help="find a strength on validation data, and say how sure that is",
        description=(
            "Find the strength of a penalty by hold-out or cross-validation, in few "
            "training steps, and print the curve with what it allows to conclude."
        ),
    )
    add = parser.add_argument
    add_data(parser)
    add("--model", help="as in compare (default: dense)")
    add("--hidden", type=_integers, metavar="UNITS,...", help="(default: 512,512)")
    add(
        "--rule",
        help="l2, scaled, sample, prior, half-life, decay or dropout; with +dropout "
        "for both (default: l2)",
    )
    add(
        "--grid",
        type=_numbers,
        metavar="VALUE,...",
        help="strengths to try, 0 for no penalty (default: they are found)",
    )
    add("--method", help="holdout or kfold (default: holdout)")
    add("--folds", type=int, metavar="N", help="of kfold (default: 5)")
    add("--seeds", type=int, metavar="N", help="for each strength (default: 5)")
    add("--criterion", help="data_loss or accuracy (default: data_loss)")
    add("--epochs", type=int, metavar="N", help="at most (default: 12)")
    add("--batch-size", type=int, metavar="N", help="examples per step (default: 64)")
    add("--optimizer", choices=("sgd", "adam"), help="(default: sgd)")
    add("--learning-rate", type=float, metavar="RATE", help="as in compare")
    add(
        "--patience",
        type=int,
        metavar="N",
        help="epochs without a lower validation data loss after which a training stops "
        "(default: 4 for holdout, none for kfold)",
    )
    add(
        "--storage",
        metavar="URL",
        help="database of the study, as postgresql://user@host/name, for workers on "
        "several machines (default: study.db in the directory)",
    )
    add(
        "--memory",
        type=float,
        metavar="GIB",
        help="that trainings which run at the same time may take, all together "
        "(default: 2)",
    )
    add("--workers", type=int, metavar="N", help="processes that train (default: 1)")
    add(
        "--directory",
        default="runs/tune",
        help="where study, result and page go; the same command goes on where it was "
        "stopped (default: %(default)s)",
    )
    add("--quiet", action="store_true", help="show no progress, only the table")
    parser.set_defaults(run=_tune)


def _tune(arguments: argparse.Namespace) -> int:
    from keras_scaled_l2.experiments.errors import InputError
    from keras_scaled_l2.experiments.tune import tune

    names = ("model", "grid", *_PLAIN, *_OTHERS)
    given = {n: getattr(arguments, n) for n in names}
    try:
        result = tune(
            problem=data_of(arguments),
            directory=arguments.directory,
            progress=not arguments.quiet,
            **{name: value for name, value in given.items() if value is not None},
        )
    except InputError as error:
        raise NumbersError(str(error)) from error
    print(result.table())
    page = os.path.join(arguments.directory, "tuning.html")
    print(
        f"\nWritten to {arguments.directory} (open {page}); trials: optuna-dashboard "
        f"{arguments.storage or 'sqlite:///' + arguments.directory + '/study.db'}"
    )
    return 0


def _integers(text: str) -> list[int]:
    return [int(value) for value in _split(text, int, "512,512")]


def _numbers(text: str) -> list[float]:
    return [float(value) for value in _split(text, float, "0.01,0.02,0.04")]


def _split(text: str, kind: type, example: str) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected numbers joined by commas, as {example}"
        ) from None
