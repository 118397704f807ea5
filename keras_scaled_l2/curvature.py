"""The loss of a model as a sum of squares: what its Gauss-Newton Hessian is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_scaled_l2 import _keras
from keras_scaled_l2.gradients import Tensor, to_numpy

_TINY = 1e-12
_MEANS = ("sum_over_batch_size", "mean", "mean_with_sample_weight")
_KINDS = {
    "meansquarederror": "squares",
    "binarycrossentropy": "binary",
    "categoricalcrossentropy": "classes",
    "sparsecategoricalcrossentropy": "classes",
}


def loss_of(model: keras.Model) -> tuple[str, bool]:
    """Kind of the compiled loss, and whether the outputs are logits.

    Raises:
        ValueError: If the loss is none of mean squared error, binary, categorical or
            sparse categorical cross-entropy, or not their mean over the examples.
    """
    _check_mean(model)
    given = given_loss(model)
    loss = keras.losses.get(given) if isinstance(given, str) else given
    if isinstance(loss, keras.losses.Loss):
        name, logits = type(loss).__name__, bool(loss.get_config().get("from_logits"))
        config = loss.get_config()
        other = config.get("label_smoothing") or config.get("ignore_class") is not None
    else:
        name, logits, other = getattr(loss, "__name__", repr(loss)), False, False
    kind = _KINDS.get(name.replace("_", "").lower())
    if kind is None or other:
        raise ValueError(
            f"loss={given!r}: expected mean squared error, or binary, categorical or "
            "sparse categorical cross-entropy without label smoothing and "
            "ignore_class, of one output."
        )
    return kind, logits


def given_loss(model: keras.Model) -> Any:
    """The loss of ``compile``; the only one of a list or dict, which is the same."""
    given = getattr(model, "loss", None)
    losses = keras.tree.flatten(given)
    return losses[0] if len(losses) == 1 else given


def _check_mean(model: keras.Model) -> None:
    """Refuse a loss k times the mean: the c of the formulas would be off by 1/k."""
    reduction = getattr(given_loss(model), "reduction", _MEANS[0])
    if reduction not in _MEANS:
        raise ValueError(
            f"The loss has reduction={reduction!r}: expected the mean over the "
            f"examples, {_MEANS[0]!r}, with a learning rate to match."
        )
    weights = _keras.loss_weights(model)
    if any(float(w) != 1.0 for w in keras.tree.flatten(weights) if w is not None):
        raise ValueError(
            f"The model was compiled with loss_weights={weights!r}: expected none. "
            "Compile it without, and multiply the learning rate by the weight."
        )


def output_width(model: keras.Model) -> int:
    """Number of output units.

    Raises:
        ValueError: If the model has not one output of shape (None, units), or is a
            subclassed one.
    """
    if not hasattr(model, "output_shape"):
        raise ValueError(
            f"The model {model.name!r} is subclassed and does not tell the shape of "
            "its outputs: expected a Sequential or functional model."
        )
    if np.shape(model.output_shape) != (2,):
        raise ValueError(
            f"The model {model.name!r} has outputs of shape {model.output_shape}: "
            "expected one output of shape (None, units)."
        )
    return int(model.output_shape[-1])


def rows_per_example(model: keras.Model) -> int:
    """Rank of the loss's curvature at the outputs: K - 1 for K classes."""
    width = output_width(model)
    return width - 1 if loss_of(model)[0] == "classes" else width


def transformed(model: keras.Model) -> Callable[[Tensor], Tensor]:
    """Outputs as functions under which the curvature of the loss is the identity.

    Formula, for classes: with the Fisher information ``1 / p`` of ``p = softmax(z)``
    the functions are ``2 sqrt(p)``; for a sigmoid ``2 arcsin(sqrt(p))``.
    """
    kind, logits = loss_of(model)
    width = output_width(model)
    if kind == "squares":
        return lambda z: z * (2.0 / width) ** 0.5
    if kind == "classes":
        return lambda z: 2.0 * ops.sqrt((ops.softmax(z) if logits else z) + _TINY)
    scale = 2.0 / width**0.5

    def angle(z: Tensor) -> Tensor:
        # Not 1 - p + _TINY: XLA adds the two numbers first, which leaves sqrt(0) at
        # p = 1, and a gradient that is no number.
        p = ops.sigmoid(z) if logits else z
        q = ops.sigmoid(-z) if logits else ops.maximum(1.0 - z, _TINY)
        return scale * ops.arctan2(ops.sqrt(p + _TINY), ops.sqrt(q + _TINY))

    return angle


def directions(model: keras.Model) -> Callable[[Tensor], Tensor]:
    """Orthonormal directions of the transformed outputs, all that they can take.

    ``2 sqrt(p)`` lies on a sphere: Householder's reflection of its radius onto the
    first axis gives the K - 1 others.

    Returns:
        A function of (examples, units) that gives (rows, examples, units).
    """
    width = output_width(model)
    if loss_of(model)[0] != "classes":
        return lambda z: ops.eye(width)[:, None, :] * ops.ones_like(z)

    def tangents(z: Tensor) -> Tensor:
        axes = ops.eye(width)
        # The sum of two vectors of positive entries: never near 0.
        v = z / ops.norm(z, axis=-1, keepdims=True) + axes[0]
        v = v / ops.norm(v, axis=-1, keepdims=True)
        return axes[1:, None, :] - 2.0 * ops.transpose(v)[1:, :, None] * v

    return tangents


def mean_loss(model: keras.Model, x: Any, y: Any) -> float:
    """Mean data loss of some examples, without dropout."""
    outputs = model(ops.convert_to_tensor(x), training=False)
    if loss_of(model)[0] == "binary":
        y = np.reshape(y, outputs.shape)
    loss = keras.losses.get(given_loss(model))
    return float(to_numpy(ops.mean(loss(ops.convert_to_tensor(y), outputs))))
