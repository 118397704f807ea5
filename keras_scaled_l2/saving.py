"""Which penalties a saved file or a clone of a model would lose."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable
from typing import Any

import keras

from keras_scaled_l2 import _keras
from keras_scaled_l2.counts import Weight, trainable_weights


def unsaved(model: keras.Model, weights: Iterable[Weight]) -> list[Weight]:
    """Those of the penalized weights whose penalty a saved file would not hold.

    Keras saves the configs of layers, not the regularizers of variables. A penalty is
    lost where a layer has no argument for it, where one argument stands for several
    weights (attention has one for all its kernels) that do not carry the same rule,
    and where a subclassed model or a custom layer does not write the config of the
    layers inside it.
    """
    uniform = _uniform(model)
    custom = _custom_around(model)
    config_of = functools.cache(_config_of)
    return [
        weight
        for weight in weights
        if weight.attribute is None
        or not uniform[id(weight.config_layer), weight.attribute]
        or not all(
            _contains(config_of(layer), _serialized(weight.variable.regularizer))
            for layer in custom[id(weight.layer)]
        )
    ]


def _uniform(model: keras.Model) -> dict[tuple[int, str | None], bool]:
    """For each entry of a config whether its trainable weights all carry one rule."""
    rules: dict[tuple[int, str | None], list[Any]] = {}
    for weight in trainable_weights(model):
        key = id(weight.config_layer), weight.attribute
        rules.setdefault(key, []).append(weight.variable.regularizer)
    return {key: all(r == found[0] for r in found) for key, found in rules.items()}


def _custom_around(model: keras.Model) -> dict[int, list[keras.Layer]]:
    """By ``id`` of a layer: itself and what it is inside of, if not of Keras's own."""
    found: dict[int, list[keras.Layer]] = {}

    def visit(layer: keras.Layer, around: list[keras.Layer]) -> None:
        if id(layer) not in found:
            own = type(layer).__module__.partition(".")[0] == "keras"
            found[id(layer)] = around if own else [*around, layer]
            for child in _keras.children(layer):
                visit(child, found[id(layer)])

    visit(model, [])
    return found


def _config_of(layer: keras.Layer) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return keras.saving.serialize_keras_object(layer)
        except Exception:  # whatever a user's get_config raises, save() will raise too
            return None


def _serialized(rule: Any) -> Any:
    return keras.saving.serialize_keras_object(rule)


def _contains(config: Any, wanted: Any) -> bool:
    if config == wanted:
        return True
    inner = config.values() if isinstance(config, dict) else config
    return isinstance(config, (dict, list, tuple)) and any(
        _contains(part, wanted) for part in inner
    )
