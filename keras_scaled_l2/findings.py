"""What stands out in a cost report, in plain words with their numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from keras_scaled_l2 import _keras
from keras_scaled_l2.counts import penalized_weights
from keras_scaled_l2.efolds import inert_sentence, reach
from keras_scaled_l2.fitting import (
    plain_optimizer,
    weight_decay_of,
    without_weight_decay,
)
from keras_scaled_l2.gradients import penalty_line
from keras_scaled_l2.report_records import Finding, WeightReport


def find(
    model: keras.Model,
    weights: Sequence[WeightReport],
    cost: dict[str, float],
    gradient_ratio: float | None,
    optimizer: dict[str, Any],
    *,
    steps: int | None = None,
    factors: Sequence[float] = (),
) -> Iterator[Finding]:
    """The findings that hold, the gravest first.

    ``steps`` are those of the training to come, ``factors`` those with which the loss
    holds the weights' penalties.
    """
    if not weights:
        yield _nothing_penalized(model)
        return
    if factors and not any(factors):
        yield Finding("not_in_loss", text_of_dropped(model))
        return
    yield from _weighed(model, factors)
    yield from _no_op(weights, optimizer)
    yield from _inert(model, weights, steps)
    yield from _dominant(cost, gradient_ratio)
    yield from _double_decay(model)
    yield from _before_batch_norm(model)


def _nothing_penalized(model: keras.Model) -> Finding:
    if not model.trainable_weights:
        text = "No weight is trainable, and Keras penalizes only trainable weights."
    else:
        text = (
            "No trainable weight carries a penalty. Put one on with attach(model, "
            "rule), or build the layers with kernel_regularizer=..."
        )
    return Finding("nothing_penalized", text)


def text_of_dropped(model: keras.Model) -> str:
    """That a ``compute_loss`` drops the penalties, and the code that it lacks."""
    return (
        f"The penalty does not act: the compute_loss of {model.name!r} leaves "
        "self.losses out, or multiplies them by 0 as yet. Add `loss = loss + "
        "sum(self.losses)` before it returns loss, unless a warm-up lets them in later."
    )


def text_of_forgotten(model: keras.Model) -> str:
    """That a ``train_step`` forgets the penalties, and the code that it lacks."""
    return (
        f"The penalty does not act in training: the train_step of {model.name!r} "
        f"leaves self.losses out. Add {penalty_line()}."
    )


def _weighed(model: keras.Model, factors: Sequence[float]) -> Iterator[Finding]:
    low, high = min(factors, default=1.0), max(factors, default=1.0)
    if max(abs(low - 1.0), abs(high - 1.0)) > 1e-4:
        span = f"{low:.3g}" if high - low < 1e-4 * high else f"{low:.3g} to {high:.3g}"
        yield Finding(
            "weighed",
            f"The compute_loss of {model.name!r} counts the penalties {span} times. "
            "All numbers here are of what is in the loss.",
        )


def _dominant(cost: dict[str, float], ratio: float | None) -> Iterator[Finding]:
    if ratio is not None and ratio >= 1:
        yield Finding(
            "dominant_gradient",
            "The penalty's gradient is larger than that of the data: "
            f"{ratio:.2g} times the data gradient. The first steps shrink the "
            "weights rather than fit the data; lower the strength unless that is "
            "meant.",
        )
    elif cost.get("penalty_share", 0.0) >= 0.5 and ratio is not None:
        yield Finding(
            "dominant_value",
            f"The penalty is {percent(cost['penalty_share'])} of the cost ("
            f"{cost['penalty']:.4g} of {cost['total']:.4g}), but its gradient is only "
            f"{ratio:.2g} times the data gradient. Learning follows the gradient, so "
            "the large value by itself does no harm. Judge the training by the data "
            "cost alone: CostMonitor logs it as data_loss.",
        )


def _no_op(
    weights: Sequence[WeightReport], optimizer: dict[str, Any]
) -> Iterator[Finding]:
    """Weights that no step can change, in the arithmetic of their own dtype."""
    below = [w for w in weights if _vanishes(w)]
    if not below:
        return
    worst = min(below, key=lambda w: w.decay_per_step or w.gradient_ratio or 0.0)
    if worst.coefficient == 0:
        why = "its coefficient is 0"
    elif worst.decay_per_step is not None:
        rate = optimizer["learning_rate"]
        at = "" if rate is None else f"at learning rate {rate:.2g} "
        why = f"{at}one step changes it by {worst.decay_per_step:.2g} of itself"
    else:
        why = f"its gradient is {worst.gradient_ratio:.2g} times the data gradient"
    yield Finding(
        "no_op",
        f"The penalty does nothing to {len(below)} of {len(weights)} weight tensors. "
        f"For {worst.path}: {why}, and {worst.dtype} rounds away changes below "
        f"{_resolution(worst.dtype):.2g}. Raise the strength; ScaledL2 can also divide "
        "by less (power below 1).",
    )


def _inert(
    model: keras.Model, weights: Sequence[WeightReport], steps: int | None
) -> Iterator[Finding]:
    """A penalty that does nothing in the whole training that is about to run."""
    optimizer = plain_optimizer(model)
    coefficients = [w.coefficient for w in weights if w.coefficient is not None]
    if steps is None or optimizer is None or len(coefficients) < len(weights):
        return
    over = reach(optimizer, steps, weights=sum(w.count for w in weights))
    text = inert_sentence(coefficients, over)
    if text is not None:
        yield Finding("inert", text)


def percent(share: float) -> str:
    """A share in percent; 0 and 100 only where it is nothing or all."""
    if 0 < share < 0.005:
        return "<1%"
    return ">99%" if 0.995 <= share < 1 else f"{share:.0%}"


def _vanishes(weight: WeightReport) -> bool:
    if weight.coefficient is None:
        return False
    if weight.coefficient == 0:
        return True
    effect = (
        weight.gradient_ratio
        if weight.decay_per_step is None
        else weight.decay_per_step
    )
    return effect is not None and effect < _resolution(weight.dtype)


def _resolution(dtype: str) -> float:
    """Smallest relative change that does not round away: half the machine epsilon."""
    if dtype == "bfloat16":  # NumPy has no bfloat16: 8 bits of precision
        return 2.0**-8
    return float(np.finfo(dtype).eps) / 2.0


def _double_decay(model: keras.Model) -> Iterator[Finding]:
    # The variables themselves: two may have one path.
    variables = [weight.variable for weight in penalized_weights(model)]
    decaying = [v for v in variables if weight_decay_of(model, v)[1]]
    both = [v.path for v in decaying]
    if both:
        first = decaying[0]
        argument, value = weight_decay_of(model, first)
        # Of a MultiOptimizer the part that decays: itself it takes no such argument.
        name = type(plain_optimizer(model, first)).__name__
        yield Finding(
            "double_decay",
            f"{_tensors(both)} {_verb(both, 'decays', 'decay')} twice: by the L2 "
            f"penalty and by {name}'s {argument}={value:g}. Use one of the two: "
            f"{name}(..., {without_weight_decay(model, first)}) leaves the penalty "
            "alone.",
        )


def _before_batch_norm(model: keras.Model) -> Iterator[Finding]:
    followed = [
        weight.variable.path
        for weight in penalized_weights(model)
        if len(weight.variable.shape) > 1 and _feeds_only_batch_norm(weight.layer)
    ]
    if followed:
        yield Finding(
            "before_batch_norm",
            f"{_tensors(followed)} {_verb(followed, 'feeds', 'feed')} a "
            "BatchNormalization, which undoes any scale: there the penalty does not "
            "limit the function, it only sets the effective learning rate (van "
            "Laarhoven 2017).",
        )


def _feeds_only_batch_norm(layer: keras.Layer) -> bool:
    """Whether all that a linear layer gives goes straight into a normalization.

    By the batch: a frozen one divides by what it has found before, whatever comes.
    """
    if getattr(layer, "activation", None) not in (None, keras.activations.linear):
        return False
    users = _keras.users(layer)
    return bool(users) and all(
        isinstance(user, keras.layers.BatchNormalization) and user.trainable
        for user in users
    )


def _tensors(paths: Sequence[str]) -> str:
    if len(paths) == 1:
        return paths[0]
    return f"{len(paths)} weight tensors such as {paths[0]}"


def _verb(paths: Sequence[str], one: str, many: str) -> str:
    return one if len(paths) == 1 else many
