"""JAX: a step's gradients."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import keras
import numpy as np
from keras import ops

from keras_scaled_l2.backends import plain
from keras_scaled_l2.backends.contract import Measure, Tensor
from keras_scaled_l2.backends.plain import (
    data_summand,
    is_known_zero,
    loss_scale,
    penalty_scope,
    runs_in_xla,
    sum_of_squares,
    to_numpy,
    uniform,
    whole_gradient,
)
from keras_scaled_l2.handles import Handle, shadow

__all__ = [
    "can_store",
    "data_summand",
    "gradient_function",
    "interceptor",
    "is_known",
    "is_known_zero",
    "loss_gradients",
    "metric_values",
    "penalty_follows_call",
    "penalty_line",
    "penalty_scope",
    "reaches_weights",
    "runs_in_xla",
    "shift_gradients",
    "squared_norms",
    "sum_of_squares",
    "to_numpy",
    "uniform",
    "value_and_slopes",
    "whole_gradient",
]


def squared_norms(
    gradient: Tensor,
    scale: Tensor | None,
    factor: Tensor | None,
    weight: Tensor,
    *,
    in_xla: bool = False,
) -> Tensor:
    """See ``contract.Backend``."""
    # XLA would see that the gradient holds factor * weight already, and write that
    # product to memory for both: a third of what a measured step added.
    barred = None if factor is None else jax.lax.optimization_barrier(factor)
    return plain.squared_norms(gradient, scale, barred, weight)


def interceptor(
    model: keras.Model, slot: keras.Variable, given: keras.Variable, measure: Measure
) -> Callable[[], Handle]:
    """See ``contract.Backend``.

    Gradients pass ``stateless_apply``, numbers leave with the state.
    """
    optimizer = model.optimizer
    apply, train_step = optimizer.stateless_apply, model.train_step
    captured: list[tuple[Sequence[Any], ...]] = []

    def stateless_apply(
        optimizer_variables: Sequence[Any],
        grads: Sequence[Any],
        trainable_variables: Sequence[Any],
    ) -> Any:
        captured[:] = [(optimizer_variables, grads, trainable_variables)]
        return apply(optimizer_variables, grads, trainable_variables)

    def measured_step(state: tuple[Any, ...], data: Any) -> tuple[Any, Any]:
        captured.clear()
        others = zip(model.non_trainable_variables, state[1], strict=True)
        logs, state = train_step(state, data)
        if not captured:
            return logs, state
        optimizer_values, gradients, values = captured.pop()
        mapping = [*others, *zip(optimizer.variables, optimizer_values, strict=True)]
        ids = [id(v) for v in model.trainable_variables]
        metrics = list(state[3])
        # Outside this scope a variable is the constant that it was at the trace.
        with keras.StatelessScope(state_mapping=mapping):
            stored = measure(
                dict(zip(ids, gradients, strict=True)),
                dict(zip(ids, values, strict=True)),
                loss_scale(optimizer),
                metrics[_position(model, given)],
            )
        if stored is not None:
            metrics[_position(model, slot)] = stored
        return logs, (*state[:3], metrics)

    def install() -> Handle:
        return Handle(
            shadow(optimizer, "stateless_apply", stateless_apply).remove,
            shadow(model, "train_step", measured_step).remove,
        )

    return install


def value_and_slopes(
    function: Callable[[Sequence[Tensor]], Tensor], count: int
) -> tuple[Tensor, list[Tensor]]:
    """See ``contract.Backend``."""
    outer = _open_scope()

    def of_shifts(shifts: Any) -> tuple[Any, Any]:
        parts = [shifts[i] for i in range(count)]
        if outer is None:
            return ops.convert_to_tensor(function(parts)), None
        # What is assigned must leave this function as a result.
        with keras.StatelessScope(collect_losses=outer.collect_losses) as inner:
            inner.state_mapping.update(outer.state_mapping)
            inner.losses.extend(outer.losses)
            value = ops.convert_to_tensor(function(parts))
        return value, (inner.state_mapping, inner.losses)

    differentiate = jax.value_and_grad(of_shifts, has_aux=True)
    (value, assigned), slopes = differentiate(ops.zeros((count,)))
    if outer is not None:
        outer.state_mapping.update(assigned[0])
        outer.losses[:] = assigned[1]
    return value, [slopes[i] for i in range(count)]


def penalty_line() -> str:
    """See ``contract.Backend``."""
    return (
        "`y_pred, non_trainable_variables, losses = self.stateless_call("
        "trainable_variables, non_trainable_variables, x, training=True, "
        "return_losses=True)`, then `loss = loss + sum(losses)`"
    )


def reaches_weights(
    model: keras.Model,
    step: Callable[..., Any],
    arguments: Sequence[Any],
    scaled: Callable[[Tensor], contextlib.AbstractContextManager[Any]],
) -> bool:
    """See ``contract.Backend``.

    Traced once more, and neither compiled nor run: what no operation leads to does not
    depend on the factor.
    """
    optimizer = model.optimizer
    apply = functools.partial(type(optimizer).stateless_apply, optimizer)

    def weights(factor: Tensor) -> Any:
        # Past the interceptor, which would keep the gradients of this trace.
        with scaled(factor), shadow(optimizer, "stateless_apply", apply):
            _, state = step(*arguments)
        return state[0]

    traced = jax.make_jaxpr(weights)(np.float32(1.0))
    reached = {id(variable) for variable in traced.jaxpr.invars}
    for equation in traced.jaxpr.eqns:
        if not reached.isdisjoint(map(id, equation.invars)):
            reached.update(map(id, equation.outvars))
    # An effect may carry it past the operations.
    made = map(id, traced.jaxpr.outvars)
    return bool(traced.effects) or not reached.isdisjoint(made)


def penalty_follows_call() -> bool:
    """See ``contract.Backend``."""
    return True


def metric_values(
    model: keras.Model, variables: Sequence[keras.Variable], step_result: Any
) -> list[Any]:
    """See ``contract.Backend``."""
    metrics = step_result[1][3]
    # All asked for before the first is waited for.
    found: list[Any] = jax.device_get([metrics[_position(model, v)] for v in variables])
    return found


def can_store() -> bool:
    """See ``contract.Backend``."""
    return _open_scope() is not None


def is_known(variables: Sequence[keras.Variable]) -> bool:
    """See ``contract.Backend``."""
    outer = _open_scope()
    return outer is None or all(
        outer.get_current_value(v) is not None for v in variables
    )


def _open_scope() -> Any:
    """The ``StatelessScope`` in which this is called, or ``None``."""
    # Entering a scope tells which one was open before; Keras exports no other way.
    with keras.StatelessScope(initialize_variables=False) as scope:
        return scope.original_scope


def _position(model: keras.Model, variable: keras.Variable) -> int:
    return next(i for i, v in enumerate(model.metrics_variables) if v is variable)


def loss_gradients(
    model: keras.Model, loss: Callable[[], Tensor]
) -> list[Tensor | None]:
    """See ``contract.Backend``."""
    values = [v.value for v in model.trainable_variables]
    return list(_gradients_at(model, loss)(values, []))


def gradient_function(
    model: keras.Model, loss: Callable[..., Tensor]
) -> Callable[..., list[Tensor | None]]:
    """See ``contract.Backend``."""

    def gradients(values: Any, others: Any, arguments: Any) -> Any:
        at = _gradients_at(model, lambda: loss(*arguments))
        return at(values, list(zip(model.non_trainable_variables, others, strict=True)))

    compiled = jax.jit(gradients)

    def call(*arguments: Tensor) -> list[Tensor | None]:
        values = [v.value for v in model.trainable_variables]
        others = [v.value for v in model.non_trainable_variables]
        return list(compiled(values, others, arguments))

    return call


def _gradients_at(model: keras.Model, loss: Callable[[], Tensor]) -> Any:
    """A function of the trainable variables' values, and of ``(variable, value)``."""
    variables = model.trainable_variables

    def at(values: Sequence[Any], others: Sequence[Any]) -> Any:
        mapping = [*zip(variables, values, strict=True), *others]
        # Collected, or losses that layers add in their call would be dropped.
        with keras.StatelessScope(state_mapping=mapping, collect_losses=True):
            return loss()

    return lambda values, others: list(jax.grad(at)(values, others))


def shift_gradients(model: keras.Model, function: Any, directions: Any) -> Any:
    """See ``contract.Backend``."""

    def gradients(values: Any, others: Any, x: Any, shifts: Any) -> Any:
        variables = [*model.trainable_variables, *model.non_trainable_variables]
        mapping = list(zip(variables, [*values, *others], strict=True))

        def at(shifts: Any) -> Any:
            with keras.StatelessScope(state_mapping=mapping):
                return function(x, shifts)

        outputs, pullback, seen = jax.vjp(at, shifts, has_aux=True)
        (found,) = jax.vmap(pullback)(directions(outputs))
        return outputs, seen, found

    compiled = jax.jit(gradients)

    def call(x: Tensor, shifts: Sequence[Tensor]) -> Any:
        values = [v.value for v in model.trainable_variables]
        others = [v.value for v in model.non_trainable_variables]
        return compiled(values, others, x, list(shifts))

    return call
