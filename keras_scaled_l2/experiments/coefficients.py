"""What an arm's rule comes to on the weights of one network."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import keras
import numpy as np

# Registers the rules, so that a config finds its class.
import keras_scaled_l2.regularizers  # noqa: F401
from keras_scaled_l2.attaching import attach, bind, detach, penalized
from keras_scaled_l2.counts import elements
from keras_scaled_l2.experiments.arms import Arm
from keras_scaled_l2.experiments.errors import InputError, one_line
from keras_scaled_l2.experiments.naming import paths
from keras_scaled_l2.rule import Rule, effective_coefficient


def coefficients(
    model: keras.Model,
    arm: Arm,
    *,
    samples: int,
    batch_size: int,
    learned: bool = False,
) -> dict[str, float]:
    """The effective coefficient of an arm's rule on each weight that it penalizes.

    The model is left as it was. A rule that learns its strength is refused, unless
    ``learned``: then these are the ones that it starts from.

    Returns:
        Path of the weight -> ``c``; empty for an arm without a penalty.

    Raises:
        InputError: If the rule cannot be made or resolved, or is not of the form
            ``c * sum(w**2)``.
    """
    if arm.rule is None:
        return {}
    try:
        rule = keras.saving.deserialize_keras_object(dict(arm.rule))
        if isinstance(rule, Rule) and rule.learns and not learned:
            raise ValueError(
                f"{type(rule).__name__} finds its strength while it trains under "
                "ApplyL2, which these trainings cannot: expected a rule of a fixed "
                "strength. Train it with fit, see docs/evidence."
            )
        with _quiet():
            attach(model, rule)
            try:
                bind(model, samples=samples, batch_size=batch_size)
                weights = penalized(model)
            finally:
                detach(model)
    except (TypeError, ValueError) as error:
        raise InputError(f"arm {arm.name!r}: {_advice(error)}") from error
    names = paths(model)
    found = {names[id(v)]: effective_coefficient(r, v.shape) for _, v, r in weights}
    if None in found.values():
        raise InputError(
            f"arm {arm.name!r}: {arm.rule['class_name']} is not of the form c * "
            "sum(w**2): expected a rule of keras_scaled_l2 or keras.regularizers.L2."
        )
    check_single(f"arm {arm.name!r}", max((c for c in found.values() if c), default=0))
    return {path: c for path, c in found.items() if c is not None}


def check_single(name: str, value: float) -> None:
    """Refuse what the trainings, in single precision, could only hold as infinite.

    Raises:
        InputError: If the coefficient, or the weight decay, is too large.
    """
    largest = float(np.finfo(np.float32).max)
    if value > largest:
        raise InputError(
            f"{name}: a coefficient or decay of {value:g}, and single precision ends "
            f"at {largest:.2g}. Expected a smaller strength."
        )


def _advice(error: Exception) -> str:
    """What a library's error says, without the ways out that a comparison lacks."""
    text = one_line(error)
    return text.replace(", or choose the weights with where=...", ": fan_in=...")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """A rule is on for a moment: that no file would hold it is no loss.

    Nor is a decay in the optimizer, which all arms of a comparison have alike.
    """
    with warnings.catch_warnings():
        for message in (
            "The penalty of .* a saved file or a clone will not hold it",
            "Decayed twice",
        ):
            warnings.filterwarnings("ignore", message, UserWarning)
        yield


def penalizable(model: keras.Model) -> dict[str, keras.Variable]:
    """The weights that a rule is put on by default, by path.

    Raises:
        InputError: If there are none.
    """
    try:
        with _quiet():
            attach(model, keras.regularizers.L2(0.0))
            chosen = [v for _, v, _ in penalized(model)]
            detach(model)
    except ValueError as error:
        raise InputError(
            f"Nothing to penalize in model {model.name!r}: expected a kernel or an "
            "embedding that is trained, as keras.layers.Dense and Conv2D have one."
        ) from error
    names = paths(model)
    return {names[id(v)]: v for v in chosen}


def penalizable_sizes(model: keras.Model) -> dict[str, int]:
    """The number of elements of each of these weights, by path."""
    return {path: elements(v.shape) for path, v in penalizable(model).items()}
