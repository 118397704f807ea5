"""All that depends on the backend: sums of squares, and a step's own gradients.

No other file of the package asks which backend runs, or imports one.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

Tensor = Any
"""A tensor of whichever backend Keras runs on, or a ``keras.Variable``."""

Measure = Callable[
    [Mapping[int, Tensor], Mapping[int, Tensor], Tensor | None, Tensor], Tensor | None
]
"""What to store, of a step's gradients and values before it, both by ``id``.

Also given: the loss scale, and what the step has assigned to another variable.
"""

_BACKEND = keras.backend.backend()

# Torch: 512 squares add up in float32 with an error below 1e-6 of their sum, even equal
# ones, whose rounding does not cancel; one dot product over millions of weights does
# not (3 % off at 35 million on TensorFlow).
_ROW = 512
# Torch: small enough to stay in a processor's cache, a multiple of _ROW.
_PIECE = 2**20
# XLA adds dimensions of 32 and more up in windows, and smaller ones one by one.
_XLA_WINDOW = 32
_XLA_RUN = 1024
# Operations of TensorFlow's gradients are named after those of the loss.
_PENALTY_SCOPE = "keras_scaled_l2_penalty"
# Fewer rows than a window; so near to each other that a processor's cache holds them.
_XLA_BLOCK = (16, 128)


def sum_of_squares(w: Tensor) -> Tensor:
    """Sum of squares of a tensor, in float32 or better, in one pass.

    Formula: ``sum(w**2)``; the gradient is ``2 * w``, written by hand where the
    backend's own would read the weights more than once.

    Args:
        w: A tensor or a ``keras.Variable`` of any shape and floating dtype.

    Returns:
        A scalar tensor: float64 for a float64 ``w``, float32 for all others.
    """
    w = ops.convert_to_tensor(w)
    if keras.backend.standardize_dtype(w.dtype) not in ("float32", "float64"):
        # Half precision overflows at 65504 and stops counting at 2048 ones.
        w = ops.cast(w, "float32")
    # Only where it is needed: a tensor that is spread over devices would be gathered.
    if math.prod(d for d in w.shape if d and d < _XLA_WINDOW) > _XLA_RUN:
        w = ops.reshape(w, (-1,))
    return _sum_of_squares(w)


def _make_sum_of_squares(backend: str) -> Callable[[Tensor], Tensor]:
    """The one-pass sum of squares of a backend."""
    if backend == "tensorflow":
        import tensorflow as tf

        # A kernel of its own, with the gradient w: no full-size square.
        return lambda w: 2.0 * tf.nn.l2_loss(w)
    if backend == "torch":
        return _make_torch_sum_of_squares()
    # XLA (JAX) fuses the square into the sum, and 2 w into the optimizer's update.
    return lambda w: ops.sum(ops.square(w))


def _make_torch_sum_of_squares() -> Callable[[Tensor], Tensor]:
    import torch

    def row_sums(rows: Any) -> Any:
        return torch.linalg.vector_norm(rows, dim=-1).square().sum()

    def total(w: Any) -> Any:
        flat = w.reshape(-1)
        rest = flat.numel() % _ROW
        if rest == 0:
            return row_sums(flat.reshape(-1, _ROW))
        whole = flat.numel() - rest
        last = row_sums(flat[whole:].reshape(1, -1))
        return row_sums(flat[:whole].reshape(-1, _ROW)) + last if whole else last

    class SumOfSquares(torch.autograd.Function):
        """Torch keeps ``w`` and writes ``w**2`` for the gradient; this does not."""

        @staticmethod
        def forward(ctx: Any, w: Any) -> Any:
            ctx.save_for_backward(w)
            return total(w)

        @staticmethod
        def backward(ctx: Any, upstream: Any) -> Any:
            (w,) = ctx.saved_tensors
            return (2.0 * upstream) * w

    apply: Callable[[Tensor], Tensor] = SumOfSquares.apply
    return apply


_sum_of_squares = _make_sum_of_squares(_BACKEND)


def squared_norms(
    gradient: Tensor,
    scale: Tensor | None,
    factor: Tensor | None,
    weight: Tensor,
    *,
    in_xla: bool = False,
) -> Tensor:
    """Squared norms of ``gradient / scale - factor * weight`` and of ``weight``.

    Subtracted element by element: from the three inner products the sum would lose
    twice as many digits where the two nearly cancel.

    Args:
        gradient: A dense tensor.
        scale: What the gradient was multiplied by; a scalar; ``None`` for 1.
        factor: A scalar; ``None`` for 0.
        weight: A tensor of the gradient's shape.
        in_xla: Whether TensorFlow compiles the step with XLA.

    Returns:
        Two numbers, in float32.
    """
    if _BACKEND == "torch":
        return _torch_squared_norms(gradient, scale, factor, weight)
    data = _difference(gradient, scale, factor, weight)
    square = _sum_of_squares_in_xla if in_xla else sum_of_squares
    return ops.stack([square(data), sum_of_squares(ops.cast(weight, "float32"))])


def _torch_squared_norms(gradient: Any, scale: Any, factor: Any, weight: Any) -> Any:
    """On a processor a piece at a time: each whole tensor would be new memory."""
    import torch

    with torch.no_grad():
        g, w = (ops.convert_to_tensor(t).reshape(-1) for t in (gradient, weight))
        size = _PIECE if g.device.type == "cpu" else max(1, g.numel())
        sums = [torch.zeros(2, device=g.device)]
        for start in range(0, g.numel(), size):
            part = slice(start, start + size)
            data = _difference(g[part], scale, factor, w[part])
            rows = [_sum_of_squares(data), _sum_of_squares(w[part].float())]
            sums.append(torch.stack(rows))
        return torch.stack(sums).sum(dim=0)


def _difference(
    gradient: Tensor, scale: Tensor | None, factor: Tensor | None, weight: Tensor
) -> Tensor:
    """``gradient / scale - factor * weight``, in float32."""
    data = ops.cast(gradient, "float32")
    if scale is not None:
        data = data / scale
    if factor is None:
        return data
    weight = ops.cast(weight, "float32")
    if _BACKEND == "torch":
        import torch

        return torch.addcmul(data, weight, factor, value=-1)  # in one pass
    return data - _opaque(factor) * weight


def _opaque(factor: Tensor) -> Tensor:
    """The same number, as one that XLA on JAX does not recognize.

    It would see that the gradient holds ``factor * weight`` already, and write that
    product to memory for both: a third of what a measured step added.
    """
    if _BACKEND != "jax":
        return factor
    import jax

    return jax.lax.optimization_barrier(factor)


def penalty_scope() -> contextlib.AbstractContextManager[Any]:
    """Marks the penalties that are computed in it for ``data_summand``."""
    scope: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if _BACKEND == "tensorflow":
        import tensorflow as tf

        scope = tf.name_scope(_PENALTY_SCOPE)
    return scope


def data_summand(gradient: Tensor) -> Tensor | None:
    """A gradient without its penalty's part, where the step still has it apart.

    TensorFlow's graph adds the two up at the end; what it adds is there to read, exact
    and at no cost. Elsewhere, and where it cannot be told which is which, ``None``.

    Args:
        gradient: The gradient of one weight.
    """
    if _BACKEND != "tensorflow":
        return None
    import tensorflow as tf

    if not isinstance(gradient, tf.Tensor) or tf.executing_eagerly():
        return None
    parts = list(gradient.op.inputs) if gradient.op.type == "AddN" else []
    data = [part for part in parts if _PENALTY_SCOPE not in part.op.name]
    if len(data) + 1 != len(parts):
        return None
    return data[0] if len(data) == 1 else tf.add_n(data)


def _sum_of_squares_in_xla(x: Tensor) -> Tensor:
    """Sum of squares of what is computed on the way, in TensorFlow's XLA.

    It adds a long dimension in windows of 32, and writes what it adds to memory before;
    sums of fewer are fused with what they add. The root keeps the two sums apart.
    """
    flat = ops.reshape(x, (-1,))
    rows, columns = _XLA_BLOCK
    whole = flat.shape[0] - flat.shape[0] % (rows * columns)
    if not whole:
        return _sum_of_squares(flat)
    blocks = ops.reshape(flat[:whole], (-1, rows, columns))
    norms = ops.sqrt(ops.sum(ops.square(blocks), axis=1))
    return _sum_of_squares(norms) + _sum_of_squares(flat[whole:])


def interceptor(
    model: keras.Model, slot: keras.Variable, given: keras.Variable, measure: Measure
) -> Callable[[], Callable[[], None]]:
    """Call ``measure`` with the gradients that the model's optimizer receives.

    Every way to the weights leads through the optimizer's ``apply``, on JAX
    ``stateless_apply``; both are shadowed on the instance. What ``measure`` returns is
    stored in ``slot``, within the step.

    Args:
        model: A compiled model.
        slot: A variable of one of the model's metrics.
        given: Another one, whose value in the step ``measure`` receives.
        measure: Called where a step is traced or run; returns ``None`` to do nothing.

    Returns:
        A function that installs this, any number of times with the same shadows, so
        that a step that was compiled with them stays right. It returns a function
        that leaves the optimizer and the model as they were found.
    """
    if _BACKEND == "jax":
        return _stateless_interceptor(model, slot, given, measure)
    optimizer = model.optimizer
    original = optimizer.apply
    if _BACKEND == "torch":
        import torch

        # Looking variables up by identity is beyond torch.compile; sums of squares are
        # no faster in it.
        measure = torch.compiler.disable(measure)

    def apply(grads: Sequence[Any], trainable_variables: Any = None) -> Any:
        variables = (
            optimizer._trainable_variables
            if trainable_variables is None
            else list(trainable_variables)
        )
        pairs = zip(variables, grads, strict=True)
        stored = measure(
            {id(v): g for v, g in pairs if g is not None},
            {id(v): v for v in model.trainable_variables},
            _loss_scale(optimizer),
            given,
        )
        if stored is not None:
            slot.assign(ops.stop_gradient(stored))
        return original(grads, trainable_variables)

    return lambda: shadow(optimizer, "apply", apply)


def _loss_scale(optimizer: keras.optimizers.Optimizer) -> Tensor | None:
    """What an optimizer multiplies the loss by; ``None`` for 1."""
    one = ops.ones(())
    scaled = optimizer.scale_loss(one)
    return None if scaled is one else ops.cast(scaled, "float32")


def _stateless_interceptor(
    model: keras.Model, slot: keras.Variable, given: keras.Variable, measure: Measure
) -> Callable[[], Callable[[], None]]:
    """JAX: gradients pass ``stateless_apply``, numbers leave with the state."""
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
                _loss_scale(optimizer),
                metrics[_position(model, given)],
            )
        if stored is not None:
            metrics[_position(model, slot)] = stored
        return logs, (*state[:3], metrics)

    def install() -> Callable[[], None]:
        undo_apply = shadow(optimizer, "stateless_apply", stateless_apply)
        undo_step = shadow(model, "train_step", measured_step)

        def undo() -> None:
            undo_apply()
            undo_step()

        return undo

    return install


def value_and_slopes(
    function: Callable[[Sequence[Tensor]], Tensor], count: int
) -> tuple[Tensor, list[Tensor]]:
    """A scalar function of ``count`` scalars where all are 0, and its derivatives.

    Exact, and nearly free: only what depends on these scalars is differentiated. What
    the function assigns to variables is assigned as in an ordinary call.

    Args:
        function: Called once, with ``count`` scalars of Keras's float type.
        count: How many.

    Returns:
        The value, and one derivative for each scalar.
    """
    if _BACKEND == "torch":
        import torch

        # It keeps the graph for the step's own backward pass: beyond torch.compile.
        apart: Callable[..., Any] = torch.compiler.disable(_torch_value_and_slopes)
        value, slopes = apart(function, count)
    elif _BACKEND == "jax":
        value, slopes = _jax_value_and_slopes(function, count)
    else:
        import tensorflow as tf

        shifts = tf.zeros((count,), keras.config.floatx())
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(shifts)
            value = function(tf.unstack(shifts, num=count))
        none = tf.UnconnectedGradients.ZERO
        slopes = tape.gradient(value, shifts, unconnected_gradients=none)
        slopes = tf.unstack(slopes, num=count)
    return value, list(slopes)


def _torch_value_and_slopes(
    function: Callable[[Sequence[Tensor]], Tensor], count: int
) -> tuple[Tensor, Any]:
    import torch

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


def _jax_value_and_slopes(
    function: Callable[[Sequence[Tensor]], Tensor], count: int
) -> tuple[Tensor, Any]:
    import jax

    # Entering a scope tells which one was open before; Keras exports no other way.
    with keras.StatelessScope(initialize_variables=False) as scope:
        outer = scope.original_scope

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
    """What a ``train_step`` lacks that leaves ``self.losses`` out, as code."""
    if _BACKEND != "jax":
        return "`loss = loss + sum(self.losses)`, before the gradient is taken"
    return (
        "`y_pred, non_trainable_variables, losses = self.stateless_call("
        "trainable_variables, non_trainable_variables, x, training=True, "
        "return_losses=True)`, then `loss = loss + sum(losses)`"
    )


def runs_in_xla(model: keras.Model) -> bool:
    """Whether TensorFlow compiles a model's training step with XLA."""
    return (
        _BACKEND == "tensorflow" and bool(model.jit_compile) and not model.run_eagerly
    )


def metric_values(
    model: keras.Model, variables: Sequence[keras.Variable], step_result: Any
) -> list[Any]:
    """Values of metric variables right after a step, as NumPy arrays.

    Args:
        model: The model that is training.
        variables: Variables of its metrics.
        step_result: What its train function returned: on JAX the variables do not
            have the state yet, and asking the model for it would cost a copy.
    """
    if _BACKEND == "jax":
        metrics = step_result[1][3]
        return [np.asarray(metrics[_position(model, v)]) for v in variables]
    return [to_numpy(v) for v in variables]


def to_numpy(x: Tensor) -> Any:
    """The value of a tensor, a ``keras.Variable`` or a number as a NumPy array."""
    if _BACKEND == "tensorflow":
        import tensorflow as tf

        # NumPy cannot read a variable of many replicas, nor a scalar of bfloat16.
        return np.asarray(tf.convert_to_tensor(x).numpy())
    return np.asarray(ops.convert_to_numpy(ops.convert_to_tensor(x)))


@contextlib.contextmanager
def strategy_scope(model: keras.Model) -> Iterator[None]:
    """The scope in which variables that join the model's step must be made."""
    strategy = getattr(model, "distribute_strategy", None)
    with contextlib.nullcontext() if strategy is None else strategy.scope():
        yield


def can_store() -> bool:
    """Whether a variable that is assigned here reaches the model's state.

    On JAX it does in Keras's stateless functions only: outside them the assigned value
    belongs to a trace that is about to end.
    """
    if _BACKEND != "jax":
        return True
    # Entering a scope tells which one was open before; Keras exports no other way.
    with keras.StatelessScope(initialize_variables=False) as scope:
        return scope.original_scope is not None


def is_known(variables: Sequence[keras.Variable]) -> bool:
    """Whether variables have values here; on JAX some stateless functions leave out."""
    with keras.StatelessScope(initialize_variables=False) as scope:
        outer = scope.original_scope
    if _BACKEND != "jax" or outer is None:
        return True
    return all(outer.get_current_value(v) is not None for v in variables)


def shadow(thing: Any, name: str, function: Any) -> Callable[[], None]:
    """Cover a method on one instance; the function returned uncovers it."""
    # Past the __setattr__ of Keras and torch, which looks for layers and weights.
    attributes = vars(thing)
    covered = attributes.get(name)
    attributes[name] = function

    def undo() -> None:
        if covered is None:
            del attributes[name]
        else:
            attributes[name] = covered

    return undo


def _position(model: keras.Model, variable: keras.Variable) -> int:
    return next(i for i, v in enumerate(model.metrics_variables) if v is variable)


def whole_gradient(gradient: Tensor) -> Tensor:
    """A gradient as one dense tensor, summed over replicas."""
    if _BACKEND != "tensorflow":
        return gradient
    import tensorflow as tf

    # Rows of an embedding that a batch uses twice stand twice in IndexedSlices.
    gradient = tf.convert_to_tensor(gradient)
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return gradient
    return context.all_reduce(tf.distribute.ReduceOp.SUM, gradient)


def loss_gradients(
    model: keras.Model, loss: Callable[[], Tensor]
) -> list[Tensor | None]:
    """Gradients of a loss with respect to the model's trainable variables.

    A backward pass of its own, for reports before training; nothing is changed.

    Args:
        model: A built model.
        loss: Runs the model and returns a scalar.

    Returns:
        One gradient for each of ``model.trainable_variables``; ``None`` for a variable
        that the loss does not depend on (TensorFlow and torch; zeros on JAX).
    """
    variables = model.trainable_variables
    if _BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            value = loss()
        gradients = tape.gradient(value, [v.value for v in variables])
        return [None if g is None else tf.convert_to_tensor(g) for g in gradients]
    if _BACKEND == "torch":
        import torch

        values = [v.value for v in variables]
        return list(torch.autograd.grad(loss(), values, allow_unused=True))
    if _BACKEND == "jax":
        values = [v.value for v in variables]
        return list(_jax_gradients(model, loss)(values, []))
    raise NotImplementedError(
        f"Keras runs on {_BACKEND!r}: expected tensorflow, jax or torch, the backends "
        "that can train."
    )


def gradient_function(
    model: keras.Model, loss: Callable[..., Tensor]
) -> Callable[..., list[Tensor | None]]:
    """``loss_gradients`` for many calls: what JAX compiles, it compiles once.

    Args:
        model: A built model.
        loss: Runs the model on its arguments, tensors, and returns a scalar.

    Returns:
        A function of these arguments.
    """
    if _BACKEND != "jax":
        return lambda *arguments: loss_gradients(model, lambda: loss(*arguments))
    import jax

    def gradients(values: Any, others: Any, arguments: Any) -> Any:
        at = _jax_gradients(model, lambda: loss(*arguments))
        return at(values, list(zip(model.non_trainable_variables, others, strict=True)))

    compiled = jax.jit(gradients)

    def call(*arguments: Tensor) -> list[Tensor | None]:
        values = [v.value for v in model.trainable_variables]
        others = [v.value for v in model.non_trainable_variables]
        return list(compiled(values, others, arguments))

    return call


def _jax_gradients(model: keras.Model, loss: Callable[[], Tensor]) -> Any:
    """A function of the trainable variables' values, and of ``(variable, value)``."""
    import jax

    variables = model.trainable_variables

    def at(values: Sequence[Any], others: Sequence[Any]) -> Any:
        mapping = [*zip(variables, values, strict=True), *others]
        # Collected, or losses that layers add in their call would be dropped.
        with keras.StatelessScope(state_mapping=mapping, collect_losses=True):
            return loss()

    return lambda values, others: list(jax.grad(at)(values, others))


def shift_gradients(
    model: keras.Model,
    function: Callable[[Tensor, Sequence[Tensor]], tuple[Tensor, Sequence[Tensor]]],
    directions: Callable[[Tensor], Tensor],
) -> Callable[[Any, Sequence[Any]], tuple[Any, list[Any], list[Any]]]:
    """Gradients of a model's outputs along several directions, by shifts inside it.

    One forward pass, and a backward pass for each direction.

    Args:
        model: A built model.
        function: Inputs and shifts -> outputs of (examples, units) and other tensors.
        directions: Outputs -> (rows, examples, units).

    Returns:
        A function of inputs and shifts, NumPy arrays, that returns as NumPy arrays
        the outputs, the other tensors and for each shift its gradients of
        (rows, *shape of the shift).
    """
    if _BACKEND == "jax":
        call = _jax_shift_gradients(model, function, directions)
    elif _BACKEND == "torch":
        call = functools.partial(_torch_shift_gradients, function, directions)
    else:
        call = functools.partial(_tensorflow_shift_gradients, function, directions)

    def in_numpy(x: Any, shifts: Sequence[Any]) -> tuple[Any, list[Any], list[Any]]:
        given = [ops.convert_to_tensor(s) for s in shifts]
        outputs, others, found = call(ops.convert_to_tensor(x), given)
        return (
            to_numpy(outputs),
            [to_numpy(o) for o in others],
            [to_numpy(f) for f in found],
        )

    return in_numpy


def _tensorflow_shift_gradients(
    function: Any, directions: Any, x: Tensor, shifts: Sequence[Tensor]
) -> tuple[Tensor, Any, Any]:
    import tensorflow as tf

    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
        tape.watch(shifts)
        outputs, others = function(x, shifts)
    along = tf.unstack(directions(outputs))
    none = tf.UnconnectedGradients.ZERO
    rows = [
        tape.gradient(outputs, shifts, d, unconnected_gradients=none) for d in along
    ]
    return outputs, others, [tf.stack(column) for column in zip(*rows, strict=True)]


def _torch_shift_gradients(
    function: Any, directions: Any, x: Tensor, shifts: Sequence[Tensor]
) -> tuple[Tensor, Any, Any]:
    import torch

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


def _jax_shift_gradients(model: keras.Model, function: Any, directions: Any) -> Any:
    import jax

    def gradients(values: Any, others: Any, x: Any, shifts: Any) -> Any:
        variables = [*model.trainable_variables, *model.non_trainable_variables]
        mapping = list(zip(variables, [*values, *others], strict=True))

        def at(shifts: Any) -> Any:
            with keras.StatelessScope(state_mapping=mapping, collect_losses=True):
                return function(x, shifts)

        outputs, pull, seen = jax.vjp(at, shifts, has_aux=True)
        (found,) = jax.vmap(pull)(directions(outputs))
        return outputs, seen, found

    compiled = jax.jit(gradients)

    def call(x: Tensor, shifts: Sequence[Tensor]) -> Any:
        values = [v.value for v in model.trainable_variables]
        others = [v.value for v in model.non_trainable_variables]
        return compiled(values, others, x, list(shifts))

    return call
