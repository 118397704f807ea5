"""What an arm's rule comes to on the weights of one network."""

from __future__ import annotations

import collections
import re
import warnings
from collections.abc import Callable, Iterator

import keras

# Registers the rules, so that a config finds its class.
import keras_scaled_l2.regularizers  # noqa: F401
from keras_scaled_l2.attaching import attach, bind, detach, penalized
from keras_scaled_l2.experiments.arms import Arm
from keras_scaled_l2.experiments.errors import InputError, one_line
from keras_scaled_l2.rule import effective_coefficient


def coefficients(
    model: keras.Model, arm: Arm, *, samples: int, batch_size: int
) -> dict[str, float]:
    """The effective coefficient of an arm's rule on each weight that it penalizes.

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
        _attach(model, rule)
        try:
            bind(model, samples=samples, batch_size=batch_size)
            weights = penalized(model)
        finally:
            detach(model)
    except (TypeError, ValueError) as error:
        raise InputError(f"arm {arm.name!r}: {one_line(error)}") from error
    names = paths(model)
    found = {names[id(v)]: effective_coefficient(r, v.shape) for _, v, r in weights}
    if None in found.values():
        raise InputError(
            f"arm {arm.name!r}: {arm.rule['class_name']} is not of the form c * "
            "sum(w**2): expected a rule of keras_scaled_l2 or keras.regularizers.L2."
        )
    return {path: c for path, c in found.items() if c is not None}


def _attach(model: keras.Model, rule: keras.Regularizer) -> None:
    """Attach a rule for a moment: that no file would hold it is no loss."""
    with warnings.catch_warnings():
        message = "The penalty of .* acts, but a saved file or a clone will not hold it"
        warnings.filterwarnings("ignore", message, UserWarning)
        attach(model, rule)


def penalizable(model: keras.Model) -> dict[str, keras.Variable]:
    """The weights that a rule is put on by default, by path."""
    _attach(model, keras.regularizers.L2(0.0))
    chosen = [v for _, v, _ in penalized(model)]
    detach(model)
    names = paths(model)
    return {names[id(v)]: v for v in chosen}


def paths(model: keras.Model) -> dict[int, str]:
    """``id`` of each weight -> its path, the same for a model that is made again.

    Keras numbers layers without a name of their own by how many it has made before;
    here they are numbered within the model.

    Raises:
        InputError: If two weights have one path.
    """
    rename = plain_names(model)
    found = {
        id(v): "/".join(rename(part) for part in v.path.split("/"))
        for v in model.weights
    }
    doubled = [path for path, n in collections.Counter(found.values()).items() if n > 1]
    if doubled:
        raise InputError(
            f"model {model.name!r} has several weights of the path {doubled[0]!r}: "
            "expected layers of different names."
        )
    return found


def plain_names(model: keras.Model) -> Callable[[str], str]:
    """A function that numbers the names that Keras gave from 0, as they come."""
    kinds = {
        re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
        for name in (type(layer).__name__ for layer in [model, *every_layer(model)])
    } | {"input_layer"}
    pattern = re.compile(rf"({'|'.join(sorted(map(re.escape, kinds)))})(_[0-9]+)?")
    given: dict[str, str] = {}
    counts: collections.Counter[str] = collections.Counter()

    def rename(name: str) -> str:
        match = pattern.fullmatch(name)
        if match is None:
            return name
        if name not in given:
            kind = match[1]
            given[name] = f"{kind}_{counts[kind]}" if counts[kind] else kind
            counts[kind] += 1
        return given[name]

    return rename


def every_layer(layer: keras.Layer) -> Iterator[keras.Layer]:
    """All layers within a layer, each once."""
    return iter(layer._flatten_layers(include_self=False))
