"""What is counted: weights of a tensor, of a layer and of a model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import keras

from keras_scaled_l2 import _keras


def elements(shape: Sequence[int | None]) -> int:
    """Number of elements of a shape; 1 for a scalar, 0 where a dimension is 0.

    Raises:
        ValueError: If a dimension is unknown.
    """
    dimensions = tuple(shape)
    if any(d is None for d in dimensions):
        raise ValueError(
            f"The shape {dimensions} has an unknown dimension: expected the shape of "
            "a weight. These rules are for weights (kernel_regularizer=...), not for "
            "activations (activity_regularizer=...)."
        )
    return math.prod(int(d) for d in dimensions if d is not None)


class Weight(NamedTuple):
    """A weight of a model, and where its regularizer is kept."""

    layer: keras.Layer
    """The layer that owns the variable."""
    variable: keras.Variable
    config_layer: keras.Layer
    """The layer whose config names the regularizer: the owner, or the attention
    layer that made the owner."""
    attribute: str | None
    """Its attribute that ``get_config`` saves; None if there is none."""


def walk(model: keras.Layer) -> Iterator[Weight]:
    """Every weight of a model, each once.

    Walks variables, not attributes: ``Dense.kernel`` may be a computed tensor (LoRA,
    quantization). A weight shared by several layers belongs to the first one that has
    an argument for its regularizer, if any has: ``SpectralNormalization``, which comes
    before the layer that it wraps, holds the kernel of that.
    """
    found: dict[int, Weight] = {}
    layers = _keras.layers_within(model)
    parents = {id(child): layer for layer in layers for child in _keras.children(layer)}
    for layer in layers:
        for variable in _keras.own_variables(layer):
            weight = Weight(layer, variable, *_kept_in(layer, variable, parents))
            known = found.get(id(variable))
            if known is None or (weight.attribute and not known.attribute):
                found[id(variable)] = weight
    yield from found.values()


def trainable_weights(model: keras.Layer) -> list[Weight]:
    """The weights that training changes, in the model's order.

    Keras penalizes no others.
    """
    weights = {id(weight.variable): weight for weight in walk(model)}
    return [weights[id(v)] for v in model.trainable_weights if id(v) in weights]


def penalized_weights(model: keras.Layer) -> list[Weight]:
    """The weights whose penalty is in the loss now: trainable, with a regularizer."""
    weights = trainable_weights(model)
    return [weight for weight in weights if weight.variable.regularizer is not None]


def count_by_layer(weights: Iterable[Weight]) -> dict[int, int]:
    """Elements of the weights given, summed by ``config_layer``; keys are its ``id``.

    Not by the owner: the four kernels of an attention layer are one layer
    to who wrote it, and one regularizer in its config.
    """
    totals: dict[int, int] = {}
    for weight in weights:
        key = id(weight.config_layer)
        totals[key] = totals.get(key, 0) + elements(weight.variable.shape)
    return totals


def _kept_in(
    layer: keras.Layer, variable: keras.Variable, parents: Mapping[int, keras.Layer]
) -> tuple[keras.Layer, str | None]:
    """Where Keras saves a variable's regularizer: the layer, and its attribute."""
    # kernel -> kernel_regularizer, recurrent_kernel -> recurrent_regularizer,
    # lora_kernel_a -> kernel_regularizer; DepthwiseConv's kernel is an exception.
    name = variable.name
    stem = name.removesuffix("_kernel")
    candidates = [f"{name}_regularizer", f"{stem}_regularizer"]
    if name == "kernel":
        candidates.append("depthwise_regularizer")
    if name.startswith("lora_"):
        candidates.append(f"{name.split('_')[1]}_regularizer")
    attribute = next((a for a in candidates if hasattr(layer, a)), None)
    # Attention layers make their dense layers in build, from an attribute of their own.
    # In vars(): an RNN only shows those of its cell, as properties.
    parent = parents.get(id(layer))
    if attribute is not None and not isinstance(parent, (keras.Model, type(None))):
        for own in (attribute, f"_{attribute}"):
            if own in vars(parent):
                return parent, own
    return layer, attribute
