"""PyTorch: a step's gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import torch
from keras import ops
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing

from keras_scaled_l2.backends import plain
from keras_scaled_l2.backends.contract import Measure, Tensor
from keras_scaled_l2.backends.plain import (
    can_store,
    data_summand,
    is_known,
    metric_values,
    penalty_follows_call,
    penalty_line,
    penalty_scope,
    reaches_weights,
    runs_in_xla,
    to_numpy,
    whole_gradient,
)
from keras_scaled_l2.handles import Handle

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

# 512 squares add up in float32 with an error below 1e-6 of their sum, even equal ones,
# whose rounding does not cancel; one dot product over millions of weights does not (3 %
# off at 35 million on TensorFlow).
_ROW = 512
# Up to so many one operation in float64 takes less time than several in float32.
_FEW = 2**15
# Small enough to stay in a processor's cache, a multiple of _ROW.
_PIECE = 2**20


class _SumOfSquares(torch.autograd.Function):
    """Torch keeps ``w`` and writes ``w**2`` for the gradient; this does not."""

    @staticmethod
    def forward(ctx: Any, w: Any) -> Any:
        ctx.save_for_backward(w)
        if w.numel() <= _FEW and w.device.type in ("cpu", "cuda"):
            # Not every device has float64.
            norm = torch.linalg.vector_norm(w, dtype=torch.float64)
            return norm.square().to(w.dtype)
        flat = w.reshape(-1)
        rest = flat.numel() % _ROW
        if rest == 0:
            return _row_sums(flat.reshape(-1, _ROW))
        whole = flat.numel() - rest
        last = _row_sums(flat[whole:].reshape(1, -1))
        return _row_sums(flat[:whole].reshape(-1, _ROW)) + last if whole else last

    @staticmethod
    def backward(ctx: Any, upstream: Any) -> Any:
        (w,) = ctx.saved_tensors
        return (2.0 * upstream) * w


def _row_sums(rows: Any) -> Any:
    return torch.linalg.vector_norm(rows, dim=-1).square().sum()


sum_of_squares: Callable[[Tensor], Tensor] = _SumOfSquares.apply


def squared_norms(
    gradient: Tensor,
    scale: Tensor | None,
    factor: Tensor | None,
    weight: Tensor,
    *,
    in_xla: bool = False,
) -> Tensor:
    """See ``contract.Backend``.

    On a processor a piece at a time: each whole tensor would be new memory.
    """
    with torch.no_grad():
        g, w = (ops.convert_to_tensor(t).reshape(-1) for t in (gradient, weight))
        size = _PIECE if g.device.type == "cpu" else max(1, g.numel())
        sums = [torch.zeros(2, device=g.device)]
        for start in range(0, g.numel(), size):
            part = slice(start, start + size)
            data = _difference(g[part], scale, factor, w[part])
            rows = [sum_of_squares(data), sum_of_squares(w[part].float())]
            sums.append(torch.stack(rows))
        return torch.stack(sums).sum(dim=0)


def _difference(gradient: Any, scale: Any, factor: Any, weight: Any) -> Any:
    """As ``plain.difference``, product and subtraction in one pass."""
    data = plain.difference(gradient, scale, None, weight)
    if factor is None:
        return data
    return torch.addcmul(data, weight.float(), factor, value=-1)


def interceptor(
    model: keras.Model, slot: keras.Variable, given: keras.Variable, measure: Measure
) -> Callable[[], Handle]:
    """See ``contract.Backend``."""
    # Looking variables up by identity is beyond torch.compile; sums of squares are no
    # faster in it.
    return plain.interceptor(model, slot, given, torch.compiler.disable(measure))


def value_and_slopes(
    function: Callable[[Sequence[Tensor]], Tensor], count: int
) -> tuple[Tensor, list[Tensor]]:
    """See ``contract.Backend``."""
    # It keeps the graph for the step's own backward pass: beyond torch.compile.
    apart: Callable[..., Any] = torch.compiler.disable(_value_and_slopes)
    value, slopes = apart(function, count)
    return value, list(slopes)


def _value_and_slopes(
    function: Callable[[Sequence[Tensor]], Tensor], count: int
) -> tuple[Tensor, Any]:
    training = torch.is_grad_enabled()
    with torch.enable_grad():
        shifts = ops.zeros((count,)).requires_grad_(True)
        value = function(list(shifts.unbind()))
        slopes = None
        if value.requires_grad:
            [slopes] = torch.autograd.grad(
                value, [shifts], retain_graph=training, allow_unused=True
            )
    slopes = torch.zeros_like(shifts) if slopes is None else slopes
    return value if training else value.detach(), slopes.detach().unbind()


def is_known_zero(variable: keras.Variable) -> bool:
    """See ``contract.Backend``."""
    value = variable.value
    # On a GPU reading it would wait for all that went before.
    if value.device.type != "cpu":
        return False
    # A recorded pass (loop_torch.py) is one for numbers that are 0, or are not.
    with disable_proxy_modes_tracing():
        return not value.item()


def _uniform(seed: Tensor, shape: Sequence[int]) -> Tensor:
    generator = torch.Generator(seed.device)
    # As Keras has it: a counter makes the second part another at each call.
    generator.manual_seed(int(seed.sum()) & 0xFFFFFFFF)
    options = {"device": seed.device, "dtype": torch.float32}
    return torch.rand(shape, generator=generator, **options)


_OPERATION = torch.library.custom_op(
    "keras_scaled_l2::uniform",
    _uniform,
    mutates_args=(),
    schema="(Tensor seed, SymInt[] shape) -> Tensor",
)
_OPERATION.register_fake(
    lambda seed, shape: torch.empty(shape, device=seed.device, dtype=torch.float32)
)


def uniform(shape: Sequence[int], seed: keras.random.SeedGenerator) -> Tensor:
    """See ``contract.Backend``.

    An operation of its own, that a recorded pass (loop_torch.py) calls anew each time.
    """
    return _OPERATION(seed.next(), shape)


def loss_gradients(
    model: keras.Model, loss: Callable[[], Tensor]
) -> list[Tensor | None]:
    """See ``contract.Backend``."""
    values = [v.value for v in model.trainable_variables]
    value = loss()
    if not (values and value.requires_grad):  # an error to torch
        return [None for _ in values]
    return list(torch.autograd.grad(value, values, allow_unused=True))


def gradient_function(
    model: keras.Model, loss: Callable[..., Tensor]
) -> Callable[..., list[Tensor | None]]:
    """See ``contract.Backend``."""
    return lambda *arguments: loss_gradients(model, lambda: loss(*arguments))


def shift_gradients(model: keras.Model, function: Any, directions: Any) -> Any:
    """See ``contract.Backend``."""
    return functools.partial(_shift_gradients, function, directions)


def _shift_gradients(
    function: Any, directions: Any, x: Tensor, shifts: Sequence[Tensor]
) -> tuple[Tensor, Any, Any]:
    with torch.enable_grad():
        shifts = [s.detach().clone().requires_grad_(True) for s in shifts]
        outputs, others = function(x, shifts)
    rows = (
        [
            torch.autograd.grad(outputs, shifts, d, retain_graph=True)
            for d in directions(outputs.detach())
        ]
        if shifts
        else []
    )
    found = [torch.stack(column) for column in zip(*rows, strict=True)]
    return outputs.detach(), [o.detach() for o in others], found
