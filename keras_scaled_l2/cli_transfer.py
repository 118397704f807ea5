"""The command ``keras-scaled-l2 transfer``."""

from __future__ import annotations

import argparse
import os
from typing import Any

from keras_scaled_l2.cli_data import add_data, data_of
from keras_scaled_l2.cli_numbers import NumbersError

_OPTIONS = ("model", "rules", "sizes", "widths", "seeds", "epochs", "batch_size")
_MORE = ("optimizer", "patience")


def add_transfer(commands: Any) -> None:
    """Add the command to the parser's."""
    # Defaults are None here and stand in experiments.transfer, which is slow to import.
    parser = commands.add_parser(
        "transfer",
        help="tune a strength on a small network, and say what it loses on larger ones",
        description=(
            "Tune strength and learning rate on the smallest network of a family, take "
            "the strength to larger ones under several rules, and print what it loses "
            "there against the best of a sweep, with 95 % intervals."
        ),
    )
    add = parser.add_argument
    add_data(parser)
    add(
        "--model",
        help="dense, conv, residual, or module:function of a width (default: dense)",
    )
    add(
        "--sizes",
        type=_integers,
        metavar="WEIGHTS,...",
        help="trainable weights of the networks, about, the smallest first "
        "(default: 20000,70000,200000,670000)",
    )
    add(
        "--widths",
        type=_integers,
        metavar="WIDTH,...",
        help="their widths instead, for a function of your own",
    )
    add(
        "--rules",
        type=_names,
        metavar="RULE,...",
        help="of l2, model-0.25, model-0.5, model-1, sample, half-life, scaled, prior, "
        "decay (default: all that fit the optimizer)",
    )
    add("--seeds", type=int, metavar="N", help="at least 2 (default: 3)")
    add("--epochs", type=int, metavar="N", help="at most (default: 12)")
    add("--batch-size", type=int, metavar="N", help="examples per step (default: 64)")
    add(
        "--optimizer",
        choices=("sgd", "adam"),
        help="its learning rate is tuned beside each strength (default: sgd)",
    )
    add(
        "--patience",
        type=int,
        metavar="N",
        help="epochs without a lower validation data loss after which a training stops "
        "(default: 4)",
    )
    add(
        "--directory",
        default="runs/transfer",
        help="where trainings and result go; the same command goes on where it was "
        "stopped (default: %(default)s)",
    )
    add("--quiet", action="store_true", help="show no progress, only the table")
    parser.set_defaults(run=_transfer)


def _transfer(arguments: argparse.Namespace) -> int:
    from keras_scaled_l2.experiments.errors import InputError
    from keras_scaled_l2.experiments.transfer import transfer

    given = {name: getattr(arguments, name) for name in (*_OPTIONS, *_MORE)}
    try:
        result = transfer(
            problem=data_of(arguments),
            directory=arguments.directory,
            progress=not arguments.quiet,
            **{name: value for name, value in given.items() if value is not None},
        )
    except InputError as error:
        raise NumbersError(str(error)) from error
    print(result.table())
    print(f"\nWritten to {os.path.join(arguments.directory, 'transfer.json')}")
    return 0


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _integers(text: str) -> list[int]:
    try:
        return [int(part) for part in _names(text)]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected whole numbers joined by commas, as 20000,70000"
        ) from None
