"""What holds on any backend of Keras, those that cannot train included."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import keras
import numpy as np
from keras import ops

from keras_scaled_l2 import _keras
from keras_scaled_l2.backends.contract import Measure, Tensor
from keras_scaled_l2.handles import Handle, shadow

# XLA adds dimensions of 32 and more up in windows, and smaller ones one by one.
_XLA_WINDOW = 32
_XLA_RUN = 1024


def sum_of_squares(w: Tensor) -> Tensor:
    """See ``contract.Backend``."""
    return ops.sum(ops.square(w))


def summable(w: Tensor) -> Tensor:
    """A tensor as ``sum_of_squares`` wants it: float32 or float64, easy to add up."""
    w = ops.convert_to_tensor(w)
    if keras.backend.standardize_dtype(w.dtype) not in ("float32", "float64"):
        # Half precision overflows at 65504 and stops counting at 2048 ones.
        w = ops.cast(w, "float32")
    # Only where it is needed: a tensor that is spread over devices would be gathered.
    if math.prod(d for d in w.shape if d and d < _XLA_WINDOW) > _XLA_RUN:
        w = ops.reshape(w, (-1,))
    return w


def squared_norms(
    gradient: Tensor,
    scale: Tensor | None,
    factor: Tensor | None,
    weight: Tensor,
    *,
    in_xla: bool = False,
) -> Tensor:
    """See ``contract.Backend``."""
    data = difference(gradient, scale, factor, weight)
    return ops.stack(
        [sum_of_squares(data), sum_of_squares(ops.cast(weight, "float32"))]
    )


def difference(
    gradient: Tensor, scale: Tensor | None, factor: Tensor | None, weight: Tensor
) -> Tensor:
    """``gradient / scale - factor * weight``, in float32."""
    data = ops.cast(gradient, "float32")
    if scale is not None:
        data = data / scale
    return data if factor is None else data - factor * ops.cast(weight, "float32")


def penalty_scope() -> contextlib.AbstractContextManager[Any]:
    """See ``contract.Backend``."""
    return contextlib.nullcontext()


def data_summand(gradient: Tensor) -> Tensor | None:
    """See ``contract.Backend``."""
    return None


def interceptor(
    model: keras.Model, slot: keras.Variable, given: keras.Variable, measure: Measure
) -> Callable[[], Handle]:
    """See ``contract.Backend``: the optimizer's ``apply``."""
    optimizer = model.optimizer
    original = optimizer.apply

    def apply(grads: Sequence[Any], trainable_variables: Any = None) -> Any:
        variables = (
            _keras.trained_by(optimizer)
            if trainable_variables is None
            else list(trainable_variables)
        )
        pairs = zip(variables, grads, strict=True)
        stored = measure(
            {id(v): g for v, g in pairs if g is not None},
            {id(v): v for v in model.trainable_variables},
            loss_scale(optimizer),
            given,
        )
        if stored is not None:
            slot.assign(ops.stop_gradient(stored))
        return original(grads, trainable_variables)

    return lambda: shadow(optimizer, "apply", apply)


def loss_scale(optimizer: keras.optimizers.Optimizer) -> Tensor | None:
    """What an optimizer multiplies the loss by; ``None`` for 1."""
    one = ops.ones(())
    scaled = optimizer.scale_loss(one)
    return None if scaled is one else ops.cast(scaled, "float32")


def penalty_line() -> str:
    """See ``contract.Backend``."""
    return "`loss = loss + sum(self.losses)`, before the gradient is taken"


def reaches_weights(
    model: keras.Model,
    step: Callable[..., Any],
    arguments: Sequence[Any],
    scaled: Callable[[Tensor], contextlib.AbstractContextManager[Any]],
) -> bool:
    """See ``contract.Backend``: only JAX's steps return what they make of weights."""
    return True


def runs_in_xla(model: keras.Model) -> bool:
    """See ``contract.Backend``."""
    return False


def penalty_follows_call() -> bool:
    """See ``contract.Backend``."""
    return False


def metric_values(
    model: keras.Model, variables: Sequence[keras.Variable], step_result: Any
) -> list[Any]:
    """See ``contract.Backend``."""
    return [to_numpy(v) for v in variables]


def to_numpy(x: Tensor) -> Any:
    """See ``contract.Backend``."""
    return np.asarray(ops.convert_to_numpy(ops.convert_to_tensor(x)))


def can_store() -> bool:
    """See ``contract.Backend``."""
    return True


def is_known(variables: Sequence[keras.Variable]) -> bool:
    """See ``contract.Backend``."""
    return True


def is_known_zero(variable: keras.Variable) -> bool:
    """See ``contract.Backend``."""
    return False


def uniform(shape: Sequence[int], seed: keras.random.SeedGenerator) -> Tensor:
    """See ``contract.Backend``."""
    return keras.random.uniform(shape, dtype="float32", seed=seed)


def whole_gradient(gradient: Tensor) -> Tensor:
    """See ``contract.Backend``."""
    return gradient


def no_training(*_: Any, **__: Any) -> NoReturn:
    """In place of what needs gradients, on backends that have none."""
    raise NotImplementedError(
        f"Keras runs on {keras.backend.backend()!r}: expected tensorflow, jax or "
        "torch, the backends that can train."
    )


value_and_slopes = loss_gradients = gradient_function = shift_gradients = no_training
