"""The options of a command that say what to train on."""

from __future__ import annotations

import argparse
from typing import Any


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add the options of a problem, which ``compare`` explains."""
    add = parser.add_argument
    add("--problem", default="mnist5k", help="as in compare (default: %(default)s)")
    add(
        "--task",
        choices=("binary", "classes", "regression"),
        help="what the labels of a .npz file are (default: told from their dtype)",
    )
    add("--standardize", action="store_true", default=None, help="as in compare")
    add("--samples", type=int, metavar="N", help="as in compare (default: all)")
    add(
        "--label-noise",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="as in compare (default: 0)",
    )
    add("--data-dir", metavar="FOLDER", help="as in compare")


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
