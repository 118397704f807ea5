"""What an arm's rule comes to on the weights of one network."""

from __future__ import annotations

import keras

# Registers the rules, so that a config finds its class.
import keras_scaled_l2.regularizers  # noqa: F401
from keras_scaled_l2.attach import attach, bind, detach, penalised
from keras_scaled_l2.experiments.arms import Arm
from keras_scaled_l2.experiments.errors import InputError, one_line
from keras_scaled_l2.rule import effective_coefficient


def coefficients(
    model: keras.Model, arm: Arm, *, samples: int, batch_size: int
) -> dict[str, float]:
    """The effective coefficient of an arm's rule on each weight that it penalises.

    Args:
        model: A built model; left as it was.
        arm: The arm.
        samples: Number of training examples.
        batch_size: Examples per step.

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
        attach(model, rule)
        try:
            bind(model, samples=samples, batch_size=batch_size)
            weights = penalised(model)
        finally:
            detach(model)
    except (TypeError, ValueError) as error:
        raise InputError(f"arm {arm.name!r}: {one_line(error)}") from error
    found = {path: effective_coefficient(r, v.shape) for path, v, r in weights}
    if len(found) < len(weights):
        raise InputError(
            f"model {model.name!r} has several weights of one path among "
            f"{[path for path, _, _ in weights]}: expected layers of different names."
        )
    if None in found.values():
        raise InputError(
            f"arm {arm.name!r}: {arm.rule['class_name']} is not of the form c * "
            "sum(w**2): expected a rule of keras_scaled_l2 or keras.regularizers.L2."
        )
    return {path: c for path, c in found.items() if c is not None}


def penalisable(model: keras.Model) -> dict[str, keras.Variable]:
    """The weights that a rule is put on by default, by path."""
    paths = set(attach(model, keras.regularizers.L2(0.0)))
    detach(model)
    return {v.path: v for v in model.trainable_weights if v.path in paths}
