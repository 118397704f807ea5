"""The command ``keras-scaled-l2 transfer``."""

from __future__ import annotations

import argparse
import os
from typing import Any

from keras_scaled_l2.cli_words import (
    add_data,
    add_place,
    data_of,
    errors_said,
    given,
    joined,
    names,
)

_OPTIONS = (
    "model",
    "rules",
    "sizes",
    "widths",
    "seeds",
    "epochs",
    "batch_size",
    "optimizer",
    "patience",
)


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
        type=joined(int, "20000,70000"),
        metavar="WEIGHTS,...",
        help="trainable weights of the networks, about, the smallest first "
        "(default: 20000,70000,200000,670000)",
    )
    add(
        "--widths",
        type=joined(int, "20000,70000"),
        metavar="WIDTH,...",
        help="their widths instead, for a function of your own",
    )
    add(
        "--rules",
        type=names,
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
    add_place(parser, "runs/transfer", "trainings and result")
    parser.set_defaults(run=_transfer)


def _transfer(arguments: argparse.Namespace) -> int:
    from keras_scaled_l2.experiments.transfer import transfer

    with errors_said():
        result = transfer(
            problem=data_of(arguments),
            directory=arguments.directory,
            progress=not arguments.quiet,
            **given(arguments, *_OPTIONS),
        )
    print(result.table())
    print(f"\nWritten to {os.path.join(arguments.directory, 'transfer.json')}")
    return 0
