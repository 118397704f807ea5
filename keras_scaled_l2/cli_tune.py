"""The command ``keras-scaled-l2 tune``."""

from __future__ import annotations

import argparse
import os
import shlex
from typing import Any

from keras_scaled_l2.cli_words import (
    add_data,
    add_memory,
    add_place,
    check_hidden,
    data_of,
    errors_said,
    given,
    joined,
)

_OPTIONS = (
    "model",
    "rule",
    "grid",
    "method",
    "criterion",
    "optimizer",
    "folds",
    "seeds",
    "epochs",
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
    add(
        "--hidden",
        type=joined(int, "512,512"),
        metavar="UNITS,...",
        help="(default: 512,512)",
    )
    add(
        "--rule",
        help="l2, scaled, sample, prior, half-life, decay or dropout; with +dropout "
        "for both (default: l2)",
    )
    add(
        "--grid",
        type=joined(float, "0.01,0.02,0.04"),
        metavar="VALUE,...",
        help="strengths to try, 0 for no penalty (default: they are found)",
    )
    add("--method", help="holdout, kfold or evidence (default: holdout)")
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
    add_memory(parser)
    add("--workers", type=int, metavar="N", help="processes that train (default: 1)")
    add_place(parser, "runs/tune", "study, result and page")
    parser.set_defaults(run=_tune)


def _check_folds(arguments: argparse.Namespace) -> None:
    """Refuse a number of folds where there are none.

    Raises:
        InputError: If it was given.
    """
    from keras_scaled_l2.experiments.errors import InputError

    # What the evidence refuses has a message of its own.
    if arguments.folds is not None and arguments.method in (None, "holdout"):
        raise InputError(
            f"--folds {arguments.folds} and --method holdout: expected no folds, since "
            "it has none. Leave --folds out, or use --method kfold."
        )


def _tune(arguments: argparse.Namespace) -> int:
    from keras_scaled_l2.experiments.tune import tune

    with errors_said():
        check_hidden(arguments)
        _check_folds(arguments)
        result = tune(
            problem=data_of(arguments),
            directory=arguments.directory,
            progress=not arguments.quiet,
            **given(arguments, *_OPTIONS),
        )
    print(result.table())
    page = os.path.join(arguments.directory, "tuning.html")
    path = os.path.join(arguments.directory, "study.db")
    escaped = path.replace("%", "%25").replace("?", "%3F")
    url = shlex.quote(arguments.storage or f"sqlite:///{escaped}")
    print(
        f"\nWritten to {arguments.directory} (open {page}); trials: optuna-dashboard "
        f"{url}"
    )
    return 0
