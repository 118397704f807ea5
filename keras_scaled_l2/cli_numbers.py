"""The subcommands that compute and train nothing: ``report`` and ``convert``."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import traceback
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

from keras_scaled_l2.units import CONVENTIONS, COUNTS, convert

_UNREADABLE = (
    *(OSError, ValueError, AttributeError, TypeError),
    # What is left of a file whose copy broke off.
    *(EOFError, zipfile.BadZipFile, zlib.error),
)


class NumbersError(Exception):
    """Wrong input to ``report`` or ``convert``, in one line."""


def add_convert(commands: Any) -> None:
    """Add ``keras-scaled-l2 convert`` to the subcommands."""
    parser = commands.add_parser(
        "convert",
        help="say a strength in another convention (Keras, PyTorch, scikit-learn, ...)",
        description="Convert a strength from one convention to another.",
        epilog="conventions: "
        + "; ".join(f"{name}: {text}" for name, text in CONVENTIONS.items()),
    )
    parser.add_argument("value", type=float, help="the strength; inf for none")
    parser.add_argument("--from", dest="source", required=True, metavar="CONVENTION")
    parser.add_argument("--to", dest="target", required=True, metavar="CONVENTION")
    for name, meaning in COUNTS.items():
        parser.add_argument(_option(name), type=float, metavar="N", help=meaning)
    parser.set_defaults(run=run_convert)


def add_report(commands: Any) -> None:
    """Add ``keras-scaled-l2 report`` to the subcommands."""
    parser = commands.add_parser(
        "report",
        help="what the penalty of a saved model is and does",
        description=(
            "Say what the penalty of a saved Keras model is and does: by weight, as a "
            "share of the cost, and against the data gradient."
        ),
    )
    add = parser.add_argument
    add("model", help="a .keras or .h5 file")
    add(
        "--data",
        metavar="FILE.npz",
        help="a batch with the arrays x and y, or x_train and y_train",
    )
    add("--samples", type=float, metavar="N", help=COUNTS["samples"])
    add(
        "--batch-size",
        type=float,
        metavar="N",
        help="examples of a step (default: what the rules were bound with)",
    )
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--markdown", action="store_true", help="print Markdown")
    shape.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_report, serializes=False)


def run_convert(arguments: argparse.Namespace) -> int:
    """Print the converted strength."""
    counts = {name: getattr(arguments, name) for name in COUNTS}
    try:
        result = convert(arguments.value, arguments.source, arguments.target, **counts)
    except ValueError as error:
        raise NumbersError(_as_options(str(error))) from error
    print(f"{result:.6g}")
    return 0


def _report(arguments: argparse.Namespace) -> int:
    if not os.path.isfile(arguments.model):
        raise NumbersError(
            f"{arguments.model!r} is not a file: expected a model saved by Keras, as "
            "model.keras"
        )
    x, y = _load_arrays(arguments.data) if arguments.data else (None, None)
    from keras_scaled_l2 import regularizers  # noqa: F401  registers the rules
    from keras_scaled_l2.report import cost_report

    model = _load_model(arguments.model)
    try:
        report = cost_report(
            model, x, y, samples=arguments.samples, batch_size=arguments.batch_size
        )
    except Exception as error:  # each backend raises its own for data of a wrong kind
        text = _one_line(error)
        if not _is_ours(error):
            if x is None:
                raise
            text = (
                f"{arguments.model!r} cannot be evaluated on x {_shape(x)} and y "
                f"{_shape(y)}: {text}"
            )
        remedy = " Here: --samples N." if "training examples" in text else ""
        raise NumbersError(f"{text}{remedy}") from error
    if arguments.json:
        print(json.dumps(_finite(report.to_dict()), indent=1, allow_nan=False))
    else:
        print(report.to_markdown() if arguments.markdown else report)
    return 0


def load_keras(*, serializes: bool = True) -> None:
    """Load Keras and its backend without TensorFlow's banner on standard error.

    Args:
        serializes: Whether the command will have Keras serialize a layer, which loads
            TensorFlow under every backend, where it is installed.

    Raises:
        NumbersError: If the backend that is asked for is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        with _no_standard_error():
            import keras

            keras.ops.zeros(())  # the banner's second half comes with the first tensor
            if serializes:
                keras.saving.serialize_keras_object(keras.initializers.Zeros())
    except (ImportError, ValueError) as error:  # not installed, or not a backend
        backend = os.environ.get("KERAS_BACKEND", "tensorflow")
        raise NumbersError(
            f"Keras cannot load its backend {backend!r} ({error}): install it, as with "
            f'pip install "keras_scaled_l2[{backend}]", or set KERAS_BACKEND to another'
        ) from error


@contextlib.contextmanager
def _no_standard_error() -> Iterator[None]:
    """Hide what libraries write past Python; an exception comes out all the same."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _load_model(path: str) -> Any:
    import keras

    try:
        try:
            return keras.saving.load_model(path)
        except Exception:  # Keras 3 does not know the losses by name of an HDF5 file
            if not path.endswith((".h5", ".hdf5")):
                raise
            return keras.saving.load_model(path, compile=False)
    except Exception as error:  # h5py, zipfile and Keras each raise their own
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise NumbersError(
            f"{path!r} cannot be loaded as a Keras model: {reason[0]}"
        ) from error


def _load_arrays(path: str) -> tuple[Any, Any]:
    import numpy as np

    try:
        # Opened here: NumPy leaves the file of a damaged archive open.
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            for names in (("x", "y"), ("x_train", "y_train")):
                if all(name in file for name in names):
                    x, y = (file[name] for name in names)
                    return x, y
            found = ", ".join(file) or "nothing"
    except _UNREADABLE as error:
        raise NumbersError(
            f"{path!r} cannot be read as .npz: {_one_line(error)}"
        ) from error
    raise NumbersError(
        f"{path!r} holds {found}: expected the arrays x and y, or x_train and y_train"
    )


def _one_line(error: Exception) -> str:
    """What an error says, without colors, the call around it and the data in it."""
    text = re.sub(r"\x1b\[\d+m", "", str(error))
    text = text.partition("\n\nArguments received by")[0]
    text = re.sub(r"^Exception encountered when calling .*", "", text)
    text = " ".join(text.split()) or type(error).__name__
    return text if len(text) <= 500 else f"{text[:200]} ... {text[-200:]}"


def _is_ours(error: Exception) -> bool:
    """Whether this package raised it: a message with what was expected."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).startswith("keras_scaled_l2.")


def _shape(array: Any) -> str:
    return f"{array.shape} of {array.dtype}"


def _finite(value: Any) -> Any:
    """JSON has no infinity and no NaN: null there."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _as_options(message: str) -> str:
    """A message for a Python caller, with the command's options instead."""
    for name in COUNTS:
        message = message.replace(f"{name}=...", f"{_option(name)} N")
        message = message.replace(f"{name}=", f"{_option(name)} ")
    message = message.replace("float('inf')", "inf").replace("value=", "value ")
    return " ".join(message.split())
