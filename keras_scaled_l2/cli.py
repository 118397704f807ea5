"""The command ``keras-scaled-l2`` and what its commands share."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from keras_scaled_l2.cli_numbers import (
    NumbersError,
    add_convert,
    add_report,
    load_keras,
    run_convert,
)
from keras_scaled_l2.cli_transfer import add_transfer
from keras_scaled_l2.cli_tune import add_tune
from keras_scaled_l2.cli_words import (
    add_data,
    add_memory,
    add_place,
    check_hidden,
    data_of,
    errors_said,
    given,
    joined,
    names,
    warnings_said,
)
from keras_scaled_l2.interrupts import kept_interrupt

PROGRAM = "keras-scaled-l2"
WRONG_INPUT = 2
INTERRUPTED = 130
TICKED = 40
"""Of so many runs at most TensorBoard shows the curves unasked."""
_OPTIONS = (
    "seeds",
    "epochs",
    "batch_size",
    "hidden",
    "dropout",
    "optimizer",
    "arms",
    "learning_rate",
    "model",
    "tune",
    "patience",
    "memory",
)


class _Parser(argparse.ArgumentParser):
    """Ends with one line where argparse would print its usage before it."""

    def error(self, message: str) -> NoReturn:
        line = " ".join(message.split())
        self.exit(WRONG_INPUT, f"{PROGRAM}: error: {line} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments after the program's name; those of the process by default.

    Returns:
        The exit code: 0, 2 for wrong input, 130 after Ctrl-C.
    """
    try:
        arguments = _parser().parse_args(argv)
        arguments.argv = sys.argv[1:] if argv is None else list(argv)
    except SystemExit as end:
        return int(end.code or 0)
    run: Callable[[argparse.Namespace], int] = arguments.run
    # TensorFlow, where it is installed, would greet the user under every backend.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        with kept_interrupt() as check_interrupt:
            if arguments.run is not run_convert:
                load_keras(serializes=getattr(arguments, "serializes", True))
                check_interrupt()
            trains = hasattr(arguments, "directory")
            with warnings_said(PROGRAM) if trains else contextlib.nullcontext():
                return run(arguments)
    except NumbersError as error:
        return _say(f"error: {error}", WRONG_INPUT)
    except KeyboardInterrupt:
        saved = os.path.isdir(getattr(arguments, "directory", ""))
        more = ": what is finished is saved; the same command goes on from there"
        return _say(f"interrupted{more if saved else ''}", INTERRUPTED)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROGRAM,
        description="Count-aware L2 regularizers for Keras, from a shell.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_compare(commands)
    add_tune(commands)
    add_transfer(commands)
    add_report(commands)
    add_convert(commands)
    return parser


def _add_compare(commands: Any) -> None:
    # Defaults are None here and stand in experiments.plan, which is slow to import.
    parser = commands.add_parser(
        "compare",
        help="train one network under several penalties and dropout, and compare",
        description=(
            "Train one dense network under several arms, from the same initial weights "
            "and on the same batches, and print a table by arm."
        ),
    )
    add = parser.add_argument
    add_data(parser)
    add(
        "--model",
        help="dense, conv, module:function (makes a built Keras model), or a .keras "
        "file, whose weights are drawn anew for each seed (default: dense)",
    )
    add(
        "--hidden",
        type=joined(int, "512,512"),
        metavar="UNITS,...",
        help="units of the hidden layers of dense (default: 512,512)",
    )
    add(
        "--arms",
        type=names,
        metavar="ARM,...",
        help="of none, l2, scaled, sample, decay, evidence, dropout; joined by + for "
        "both, as sample+dropout "
        "(default: none,l2,scaled,sample,dropout,sample+dropout)",
    )
    add("--seeds", type=int, metavar="N", help="runs of each arm (default: 3)")
    add("--epochs", type=int, metavar="N", help="passes over the data (default: 12)")
    add("--batch-size", type=int, metavar="N", help="examples per step (default: 64)")
    add(
        "--strength",
        type=_strength,
        action="append",
        metavar="ARM=VALUE",
        help="strength of an arm's penalty; may be given several times "
        "(default: l2=2.5e-4, scaled=2.5e-4 times the weights of the largest kernel, "
        "sample=6, decay=5e-3)",
    )
    add("--dropout", type=float, metavar="RATE", help="share dropped (default: 0.5)")
    add(
        "--optimizer",
        choices=("sgd", "adam"),
        help="sgd has momentum 0.9 (default: sgd)",
    )
    add(
        "--learning-rate",
        type=float,
        metavar="RATE",
        help="(default: 0.05 for sgd, 0.001 for adam)",
    )
    add(
        "--tune",
        type=int,
        metavar="N",
        help="settings that each arm tries on validation data, for each seed, before "
        "it is trained anew and tested (default: train each arm as it is given)",
    )
    add(
        "--patience",
        type=int,
        metavar="N",
        help="stop after so many epochs without a lower validation data loss and go "
        "back to the best, in all arms (default: train all epochs)",
    )
    add_memory(parser)
    add_place(parser, "runs/compare", "results and TensorBoard runs")
    parser.set_defaults(run=_compare)


def _compare(arguments: argparse.Namespace) -> int:
    from keras_scaled_l2.experiments.compare import Experiment
    from keras_scaled_l2.experiments.plan import make_plan
    from keras_scaled_l2.experiments.progress import choose

    experiment = None
    try:
        with errors_said():
            _check_used(arguments)
            plan = make_plan(
                problem=data_of(arguments),
                strengths=dict(arguments.strength or []),
                directory=arguments.directory,
                **given(arguments, *_OPTIONS),
            )
            experiment = Experiment(plan)
            experiment.command = _without_seeds(arguments.argv)
            comparison = experiment.run(choose(not arguments.quiet))
    except KeyboardInterrupt:
        if experiment is None:
            raise
        finished, runs = experiment.runs
        where = os.path.join(arguments.directory, "comparison.json")
        return _say(
            f"interrupted: {finished} of {runs} runs are finished and saved in "
            f"{where}; the same command goes on from there",
            INTERRUPTED,
        )
    print(comparison.table())
    print(
        f"\nWritten to {arguments.directory} (open comparison.html); "
        f"curves: tensorboard --logdir {arguments.directory}/tensorboard"
    )
    trained = [arm for arm in comparison.arms if arm.runs]
    # Two folders a run: what was trained and what was measured on validation data.
    if len(trained) > 1 and 2 * sum(len(arm.runs) for arm in trained) > TICKED:
        print(
            f"(it shows only runs that are ticked when there are more than {TICKED}; "
            f"add /{trained[-1].name} for those of one arm)"
        )
    return 0


def _check_used(arguments: argparse.Namespace) -> None:
    """Refuse options that would do nothing.

    Raises:
        InputError: If one was given.
    """
    from keras_scaled_l2.experiments.arms import named_arms
    from keras_scaled_l2.experiments.errors import InputError

    check_hidden(arguments)
    strengths = [name for name, _ in arguments.strength or []]
    for name in strengths:
        if strengths.count(name) > 1:
            raise InputError(
                f"--strength {name}=... is given more than once: expected one strength "
                "for each arm. Leave all but one out."
            )
    if arguments.dropout is None or not arguments.arms:
        return
    if not any(arm.dropout for arm in named_arms(arguments.arms)):
        raise InputError(
            f"--dropout {arguments.dropout:g} and no arm with dropout: expected one, "
            "as dropout or sample+dropout. Add it to --arms, or leave --dropout out."
        )


def _without_seeds(argv: Sequence[str]) -> str:
    """The command line again, but for the number of seeds."""
    kept, left = [], iter(argv)
    for word in left:
        option, has_value, _ = word.partition("=")
        # argparse takes a shortened option too; what is shorter is ambiguous.
        if option.startswith("--se") and "--seeds".startswith(option):
            if not has_value:
                next(left, None)
        else:
            kept.append(word)
    return shlex.join([PROGRAM, *kept])


def _say(line: str, code: int) -> int:
    print(f"{PROGRAM}: {line}", file=sys.stderr)
    return code


def _strength(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name.strip(), float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected ARM=VALUE, as sample=6"
        ) from None
