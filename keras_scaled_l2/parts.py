"""A model's loss on one batch, and its two parts: data cost and penalty."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
from keras import ops
from keras.config import floatx

from keras_scaled_l2 import _keras
from keras_scaled_l2.counts import penalized_weights
from keras_scaled_l2.gradients import (
    Tensor,
    penalty_scope,
    reaches_weights,
    to_numpy,
    value_and_slopes,
)
from keras_scaled_l2.handles import shadow


class Parts(NamedTuple):
    """A loss and its two parts."""

    total: Tensor
    data: Tensor
    penalty: Tensor
    weights: dict[int, Tensor] | None
    """``id`` of each penalized variable -> the weight of its penalty in the loss.

    ``None`` where all are 1, as Keras's own ``compute_loss`` has them.
    """


def weighs_penalties(model: keras.Model) -> bool:
    """Whether a model's ``compute_loss`` is not Keras's, and may weigh or drop them."""
    return not _is_stock(model, "compute_loss")


def steps_by_itself(model: keras.Model) -> bool:
    """Whether a model's ``train_step`` is not Keras's, and may leave them out."""
    return not _is_stock(model, "train_step")


def _is_stock(model: keras.Model, name: str) -> bool:
    method = getattr(model, name)
    return getattr(method, "__func__", None) is getattr(keras.Model, name)


def split_loss(
    model: keras.Model, compute_loss: Callable[..., Tensor], arguments: dict[str, Any]
) -> Parts:
    """A model's loss on a batch, as its ``compute_loss`` has it, and its two parts.

    The penalty counts with the weight with which it enters the loss, which is the
    derivative of the loss by the penalty: 1 in Keras's own ``compute_loss``; in
    another one that is what this differentiates.

    Args:
        model: The model, right after its forward pass on the batch.
        compute_loss: Its ``compute_loss``.
        arguments: For ``compute_loss``, by keyword.
    """
    with penalty_scope():
        # Computed when they are asked for: only the weights' penalties.
        losses = list(model.losses)
    # Keras appends the weights' penalties, in order, after all other losses. Counted
    # as Keras does: penalized_weights walks the layers, which torch would do each step.
    penalized = [v for v in model.trainable_weights if v.regularizer is not None]
    first = len(losses) - len(penalized)
    if getattr(compute_loss, "__func__", None) is not keras.Model.compute_loss:
        return _weighed(model, compute_loss, arguments, losses[:first], losses[first:])
    compiled: list[Tensor] = []
    summed: list[Tensor] = []
    with (
        _losses_are(model, losses),
        _recorded(_keras.compiled_loss(model), "call", compiled),
        _recorded(model, _keras.ADD_LOSSES, summed),
    ):
        # Keras's own sum of all losses: training is not touched by the split.
        total = compute_loss(**arguments)
    others, penalties = summed[:first], summed[first:]
    # Summed anew, not subtracted: a penalty a million times the data cost would
    # leave no digit of it.
    return Parts(total, _sum([*compiled, *others]), _sum(penalties), None)


def _weighed(
    model: keras.Model,
    compute_loss: Callable[..., Tensor],
    arguments: dict[str, Any],
    others: list[Tensor],
    penalties: list[Tensor],
) -> Parts:
    """The parts under a ``compute_loss`` that may do with ``self.losses`` anything."""
    if not penalties:
        total = compute_loss(**arguments)
        return Parts(total, ops.cast(total, floatx()), ops.zeros(()), {})
    variables = [v for v in model.trainable_weights if v.regularizer is not None]
    tensors = [ops.sum(ops.convert_to_tensor(penalty)) for penalty in penalties]

    def loss_at(shifts: Sequence[Tensor]) -> Tensor:
        shifted = [
            p + ops.cast(s, p.dtype) for p, s in zip(tensors, shifts, strict=True)
        ]
        giving = list(zip(variables, map(_Gives, shifted), strict=True))
        # Also under layer.losses, for a compute_loss that adds those of one layer. Not
        # on replicas, whose threads would see each other's.
        one = getattr(_strategy(model), "num_replicas_in_sync", 1) == 1
        # Where Keras has no list of its own compute_loss may still call add_loss.
        listed = not one or vars(model)[_keras.LOSSES_OVERRIDE]
        with contextlib.ExitStack() as meanwhile:
            if listed:
                meanwhile.enter_context(_losses_are(model, [*others, *shifted]))
            if one:
                meanwhile.enter_context(_regularized(giving))
            return compute_loss(**arguments)

    total, slopes = value_and_slopes(loss_at, len(tensors))
    pairs = zip(slopes, tensors, strict=True)
    penalty = _sum([slope * ops.cast(p, floatx()) for slope, p in pairs])
    weights = {id(v): slope for v, slope in zip(variables, slopes, strict=True)}
    return Parts(total, ops.cast(total, floatx()) - penalty, penalty, weights)


def _strategy(model: keras.Model) -> Any:
    return getattr(model, "distribute_strategy", None)


class _Gives(keras.Regularizer):
    """A penalty that is known already."""

    def __init__(self, penalty: Tensor) -> None:
        self.penalty = penalty

    def __call__(self, x: Tensor) -> Tensor:
        return self.penalty


class _Notes(keras.Regularizer):
    """A regularizer of which somebody wants to know whether it is asked."""

    def __init__(self, regularizer: Any, tell: Callable[[], None]) -> None:
        self.regularizer, self.tell = regularizer, tell

    def __call__(self, x: Tensor) -> Tensor:
        self.tell()
        return self.regularizer(x)


class _Scaled(keras.Regularizer):
    """A regularizer times a factor."""

    def __init__(self, regularizer: Any, factor: Tensor) -> None:
        self.regularizer, self.factor = regularizer, factor

    def __call__(self, x: Tensor) -> Tensor:
        penalty = ops.convert_to_tensor(self.regularizer(x))
        return ops.cast(self.factor, penalty.dtype) * penalty


def penalties_act(
    model: keras.Model, step: Callable[..., Any], arguments: Sequence[Any]
) -> bool:
    """Whether the penalties may change the weights that a training step makes.

    Args:
        model: The model.
        step: A ``train_step`` of its own.
        arguments: What it was called with.

    Returns:
        False only where they surely do not.
    """

    def scaled(factor: Tensor) -> contextlib.AbstractContextManager[None]:
        variables = [w.variable for w in penalized_weights(model)]
        return _regularized([(v, _Scaled(v.regularizer, factor)) for v in variables])

    return reaches_weights(model, step, arguments, scaled)


@contextlib.contextmanager
def penalties_noted(model: keras.Model, tell: Callable[[], None]) -> Iterator[None]:
    """Calls ``tell`` whenever the penalty of a weight is computed meanwhile."""
    variables = [w.variable for w in penalized_weights(model)]
    with _regularized([(v, _Notes(v.regularizer, tell)) for v in variables]):
        yield


@contextlib.contextmanager
def penalties_given(
    penalties: Sequence[tuple[keras.Variable, float]],
) -> Iterator[None]:
    """The penalties of variables are these numbers meanwhile, whatever their values."""
    held = [(v, _Gives(ops.convert_to_tensor(p, floatx()))) for v, p in penalties]
    with _regularized(held):
        yield


@contextlib.contextmanager
def _regularized(regularizers: Sequence[tuple[keras.Variable, Any]]) -> Iterator[None]:
    before = [(variable, variable.regularizer) for variable, _ in regularizers]
    for variable, regularizer in regularizers:
        variable.regularizer = regularizer
    try:
        yield
    finally:
        for variable, regularizer in before:
            variable.regularizer = regularizer


def _sum(values: list[Tensor]) -> Tensor:
    floats = [ops.cast(value, floatx()) for value in values]
    if len(floats) == 1:  # often the data cost: torch computes each operation
        return floats[0]
    return ops.sum(ops.stack(floats)) if floats else ops.zeros(())


@contextlib.contextmanager
def _recorded(thing: Any, name: str, values: list[Tensor]) -> Iterator[None]:
    """Appends what a method of one object gives meanwhile."""
    if thing is None:
        yield
        return
    method = getattr(thing, name)

    def record(*arguments: Any) -> Tensor:
        value = method(*arguments)
        if value is not None:
            values.append(value)
        return value

    with shadow(thing, name, record):
        yield


@contextlib.contextmanager
def _losses_are(model: keras.Model, losses: list[Tensor]) -> Iterator[None]:
    """What ``model.losses`` gives meanwhile, so that nothing is computed twice."""
    # Past Keras's and torch's __setattr__, which look for layers and weights.
    attributes = vars(model)
    before = attributes[_keras.LOSSES_OVERRIDE]
    attributes[_keras.LOSSES_OVERRIDE] = losses
    try:
        yield
    finally:
        attributes[_keras.LOSSES_OVERRIDE] = before


def penalty_of(model: keras.Model) -> float:
    """The sum of a model's penalties at its weights now; 0 without any."""
    variables = (weight.variable for weight in penalized_weights(model))
    return sum(penalty_by(v.regularizer, v) for v in variables)


def penalty_by(regularizer: Any, variable: keras.Variable) -> float:
    """The penalty of one variable, by a regularizer of any kind."""
    # Keras sums what it returns, which may be of shape (1,).
    return float(to_numpy(regularizer(variable.value)).sum())
