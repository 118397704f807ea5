"""What a network's outputs mean: probabilities, or what a loss has yet to make them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_scaled_l2 import _keras
from keras_scaled_l2.experiments.errors import InputError, one_line
from keras_scaled_l2.experiments.problems import Problem

EXAMPLES = 32
"""So many training examples tell what a network's outputs are."""
SUM_TOLERANCE = 0.01
"""How far from 1 a row may sum: halves of 16 bits, and probabilities clipped, do."""
DRAWS = (1.0, 1.0, 1.0, 1.0, 10.0, 10.0, 10.0, 10.0)
"""Sizes of the weights that are drawn where the initial ones do not tell."""


def last_activation(model: keras.Model) -> str:
    """Name of the activation of the layer that makes a model's output."""
    last, _ = _output_layer(model)
    activation = getattr(last, "activation", None)
    # A layer Softmax and what keras.ops.softmax puts into a graph are called so too.
    return str(getattr(activation, "__name__", type(last).__name__.lower()))


def gives_probabilities(model: keras.Model, problem: Problem) -> bool:
    """Whether a classifier's outputs are probabilities, not logits.

    Where Keras's own last layer says so, that counts. Else what the network does: a
    softmax may have any name, and a subclassed model does not tell its last layer.
    """
    known = _known(model)
    if known is not None or problem.task == "regression":
        return bool(known)
    x = problem.x_train[:EXAMPLES]
    found = network_outputs(model, x).reshape(len(x), -1)
    if not _within(found):
        return False
    if found.shape[1] > 1:
        if not _sums_to_one(found):
            return False
        # Logits do so by chance only where all rows are the same: of a kernel of 0.
        if np.ptp(found, axis=0).max() > 0:
            return True
        return all(_within(z) and _sums_to_one(z) for z in _drawn(model, x))
    # A single logit may lie there by chance, after a ReLU too: but not with weights
    # of any size, on both sides of 0.5.
    drawn = np.concatenate([found, *_drawn(model, x)])
    return _within(drawn) and bool(drawn.min() < 0.5 < drawn.max())


def gives_probability_per_class(model: keras.Model, problem: Problem) -> bool:
    """Whether each of several outputs is a probability and they do not sum to 1.

    So does a sigmoid of any name; a ReLU may by chance, but not with other weights.
    """
    x = problem.x_train[:EXAMPLES]
    found = network_outputs(model, x).reshape(len(x), -1)
    if found.shape[1] == 1 or not _within(found) or _sums_to_one(found):
        return False
    drawn = np.concatenate([found, *_drawn(model, x)])
    return _within(drawn) and bool(drawn.min() < 0.5 < drawn.max())


def ends_in(model: keras.Model, activation: str, problem: Problem) -> bool:
    """Whether a network ends in a softmax or sigmoid, by its name and by its outputs.

    The last layer of a subclassed model is only the one that was assigned last.
    """
    if last_activation(model) != activation:
        return False
    if _output_layer(model)[1]:
        return True
    found = network_outputs(model, problem.x_train[:EXAMPLES])
    return _within(found) and (activation != "softmax" or bool((found == 1).all()))


def network_outputs(
    network: keras.Model,
    x: np.ndarray,
    *,
    training: bool = False,
    weights: list[tuple[keras.Variable, Any]] | None = None,
) -> np.ndarray:
    """What a network makes of examples; it is left as it was.

    Args:
        network: A built network.
        x: Examples.
        training: Whether as in training.
        weights: Variables with other values to have for this once.

    Raises:
        InputError: If it cannot be called on them.
    """
    try:
        # What a layer notes for later stays in the scope.
        with keras.StatelessScope(state_mapping=weights):
            outputs = network(keras.ops.convert_to_tensor(x), training=training)
            return np.asarray(keras.ops.convert_to_numpy(outputs), dtype=np.float64)
    except Exception as error:
        # Whatever layers and backends may raise.
        reason = one_line(error)
        raise InputError(
            f"model {network.name!r} cannot be called on examples of shape "
            f"{x.shape[1:]}: {reason if len(reason) <= 300 else reason[:297] + '...'}"
        ) from error


def _known(model: keras.Model) -> bool | None:
    """What Keras's own last layer says; ``None`` where it says nothing."""
    last, surely = _output_layer(model)
    activation = getattr(last, "activation", None)
    if not surely or not (_of_keras(type(last)) and _of_keras(activation)):
        return None
    name = last_activation(model)
    if name in ("softmax", "sigmoid"):
        return True
    return False if name == "linear" and last.weights else None


def _of_keras(made: Any) -> bool:
    module = getattr(made, "__module__", "") or ""
    return made is None or module.partition(".")[0] == "keras"


def _within(outputs: np.ndarray) -> bool:
    """Whether all lie where probabilities do; NaN does not."""
    return bool(((outputs >= 0) & (outputs <= 1)).all())


def _sums_to_one(outputs: np.ndarray) -> bool:
    return bool((abs(outputs.sum(axis=1) - 1) <= SUM_TOLERANCE).all())


def _drawn(model: keras.Model, x: np.ndarray) -> Iterator[np.ndarray]:
    """Finite outputs with other weights: a softmax stays one whatever they are."""
    rng = np.random.default_rng(0)
    for size in DRAWS:
        weights = []
        for variable in model.trainable_weights:
            shape = tuple(variable.shape)
            # As He draws kernels, so that outputs neither fade nor grow with depth.
            fan = np.prod(shape[:-1]) / 2 if len(shape) > 1 else 1.0
            value = rng.normal(0.0, size / np.sqrt(fan), shape)
            tensor = keras.ops.convert_to_tensor(value, dtype=variable.dtype)
            weights.append((variable, tensor))
        found = network_outputs(model, x, weights=weights).reshape(len(x), -1)
        yield found[np.isfinite(found).all(axis=1)]


_SHAPING = (
    keras.layers.Dropout,
    keras.layers.Flatten,
    keras.layers.Identity,
    keras.layers.Reshape,
)
"""Layers that leave the probabilities that they are given what they are."""


def _shapes_only(layer: Any) -> bool:
    """Whether a layer or operation hands on what it is given, in another shape or type.

    ``Activation("linear", dtype="float32")`` ends networks of mixed precision.
    """
    if isinstance(layer, keras.layers.Activation):
        return layer.activation is keras.activations.linear
    # What keras.ops.cast puts into a graph.
    cast = not isinstance(layer, keras.Layer) and type(layer).__name__ == "Cast"
    return cast or isinstance(layer, _SHAPING)


def _output_layer(model: keras.Model) -> tuple[Any, bool]:
    """The layer or operation that makes a model's output, and whether that is sure.

    It is not always the last one of ``layers``; of a subclassed model nothing else is
    known.
    """
    last, surely = model, True
    while isinstance(last, keras.Model) and getattr(last, "layers", None):
        # A functional model with a call of its own may do more than its graph says.
        surely = surely and _of_keras(type(last).call)
        try:
            (tensor,) = keras.tree.flatten(last.outputs)
        except (AttributeError, ValueError):
            last, surely = last.layers[-1], False
            continue
        while True:
            last, taken = _keras.maker(tensor)
            if not _shapes_only(last):
                break
            (tensor,) = taken
    return last, surely
