"""JAX: programs of pure functions, over one job or a batch of them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import keras
import numpy as np

from keras_scaled_l2.backends.loop import Data, Trainee, Values


class JaxState(NamedTuple):
    """Everything that a step reads, and what it changes of it."""

    trainable: list[Any]
    other: list[Any]
    optimizer: list[Any]
    coefficients: Any
    decay: Any


class TrainingLoop:
    """See ``backends.loop.TrainingLoop``: ``fori_loop`` over steps, ``vmap`` over jobs.

    On a processor steps with convolutions are called one by one: within a loop XLA
    runs those on one core, two to five times slower.

    Args:
        trainee: What to train.
        batched: Whether states hold several jobs.
    """

    batches_jobs = jax.default_backend() != "cpu"
    side_by_side = not batches_jobs
    keeps_state = False

    def __init__(self, trainee: Trainee, *, batched: bool = False) -> None:
        self._trainee = trainee
        parameters = inspect.signature(trainee.network.call).parameters
        self._knows_training = "training" in parameters
        self._batched = batched
        self._step = self._compile(self._measured_step, (None, 0), True)
        self._steps = self._compile(self._many_steps, (None, 0, None, None), True)
        self._evaluate = self._compile(self._outputs)
        self._squares = self._compile(self._gradient_squares)
        self._copy = jax.jit(lambda x: jax.tree.map(jnp.copy, x))
        self._is_looped: bool | None = None

    def is_faster_looped(self, state: JaxState, data: Data, chosen: np.ndarray) -> bool:
        """Whether one program of many steps is faster than a call for each step.

        Args:
            state: A state.
            data: Features and labels.
            chosen: Examples of a step, of one job.
        """
        if not self.side_by_side:
            return True
        # As text: a layer may call a program within the program.
        traced = jax.make_jaxpr(self._evaluate)(state, data, chosen)
        return "conv_general_dilated" not in str(traced)

    def _compile(
        self,
        function: Any,
        axes: tuple[int | None, ...] = (None, None),
        donate: bool = False,
    ) -> Any:
        if self._batched:
            # Data are there once, whatever the number of jobs.
            function = jax.vmap(function, in_axes=(0, *axes))
        if not donate:
            return jax.jit(function)

        def masked(state: JaxState, active: Any, *arguments: Any) -> Any:
            new, *measured = function(state, *arguments)
            if self._batched:
                new = jax.tree.map(lambda a, b: _where(active, a, b), new, state)
            return new, *measured

        return jax.jit(masked, donate_argnums=0)

    def put(self, x: np.ndarray, y: np.ndarray) -> Data:
        """Bring data to the device."""
        return jnp.asarray(x), jnp.asarray(y)

    def seed(self, number: int) -> None:
        """Programs draw from nothing but Keras's seeds."""

    def start(self, jobs: Sequence[Values]) -> JaxState:
        """The state that jobs start from."""
        # Copies: what a step is given it writes over.
        if self._batched:
            stacked = jax.tree.map(lambda *values: jnp.stack(values), *jobs)
        else:
            (job,) = jobs
            stacked = jax.tree.map(lambda value: jnp.array(value, copy=True), job)
        return JaxState(*stacked)

    def step(
        self, state: JaxState, data: Data, chosen: np.ndarray, active: np.ndarray
    ) -> tuple[JaxState, Any, Any]:
        """One measured step on the chosen examples."""
        found: tuple[JaxState, Any, Any] = self._step(state, active, data, chosen)
        return found

    def steps(
        self,
        state: JaxState,
        data: Data,
        order: np.ndarray,
        span: tuple[int, int],
        active: np.ndarray,
    ) -> tuple[JaxState, Any]:
        """The steps of a span of an order."""
        if self._is_looped is None:
            one = order.reshape(-1, order.shape[-1])[0]
            self._is_looped = self.is_faster_looped(state, data, one)
        if not self._is_looped:
            return self._one_by_one(state, data, order[..., slice(*span), :], active)
        found: tuple[JaxState, Any] = self._steps(
            state, active, data, order, *np.array(span, np.int32)
        )
        return found

    def _one_by_one(
        self, state: JaxState, data: Data, order: np.ndarray, active: np.ndarray
    ) -> tuple[JaxState, Any]:
        total: Any = 0.0
        for i in range(order.shape[-2]):
            state, sums, _ = self.step(state, data, order[..., i, :], active)
            total = total + sums
        return state, total

    def evaluate(
        self, state: JaxState, data: Data, chosen: np.ndarray
    ) -> tuple[Any, Any]:
        """Sums and outputs on the chosen examples."""
        found: tuple[Any, Any] = self._evaluate(state, data, chosen)
        return found

    def gradient_squares(self, state: JaxState, data: Data, chosen: np.ndarray) -> Any:
        """Sums of squares of weights and data gradients, without a step."""
        return self._squares(state, data, chosen)

    def keep(
        self,
        state: JaxState,
        better: np.ndarray,
        kept: tuple[list[Any], list[Any]] | None,
    ) -> tuple[list[Any], list[Any]]:
        """A copy of the weights of those jobs that are better."""
        new: tuple[list[Any], list[Any]] = self._copy((state.trainable, state.other))
        if kept is None or not self._batched:
            return new
        mixed: tuple[list[Any], list[Any]] = jax.tree.map(
            lambda a, b: _where(better, a, b), new, kept
        )
        return mixed

    def go_back(self, state: JaxState, kept: tuple[list[Any], list[Any]]) -> JaxState:
        """The state with the weights that were kept."""
        return state._replace(trainable=kept[0], other=kept[1])

    def penalize(self, state: JaxState, coefficients: np.ndarray) -> JaxState:
        """The state with other coefficients."""
        rows = coefficients if self._batched else coefficients[0]
        return state._replace(coefficients=jnp.array(rows, copy=True))

    def weights(self, state: JaxState) -> list[list[np.ndarray]]:
        """Trainable, then other variables of each job."""
        values = [np.asarray(v) for v in (*state.trainable, *state.other)]
        if not self._batched:
            return [values]
        return [[v[k] for v in values] for k in range(len(state.decay))]

    def fetch(self, tensor: Any) -> np.ndarray:
        """A result as a NumPy array."""
        return np.asarray(tensor)

    def _forward(
        self, trainable: Any, state: JaxState, batch: Data, training: bool
    ) -> Any:
        x, y = batch
        # stateless_call goes to call() itself, which need not know of training.
        options = {"training": training} if self._knows_training else {}
        outputs, other, own = self._trainee.network.stateless_call(
            trainable, state.other, x, return_losses=True, **options
        )
        return self._trainee.data_loss(y, outputs, own), (outputs, other)

    def _gradients(self, state: JaxState, batch: Data, training: bool) -> Any:
        differentiate = jax.value_and_grad(self._forward, has_aux=True)
        return differentiate(state.trainable, state, batch, training)

    def _one_step(self, state: JaxState, batch: Data) -> Any:
        """``(new state, sums, squares of the weights, data gradients)``."""
        trainee, c = self._trainee, state.coefficients
        (loss, (outputs, other)), gradients = self._gradients(state, batch, True)
        squares = trainee.squares(state.trainable)
        sums = trainee.sums(batch[1], outputs, loss, squares, c)
        weights = state.trainable
        total = trainee.penalized_gradients(gradients, weights, c)
        if trainee.decays:
            weights = trainee.decayed(weights, state.decay, self._decay_rate(state))
        trainable, optimizer = trainee.optimizer.stateless_apply(
            state.optimizer, total, weights
        )
        new = state._replace(
            trainable=list(trainable), other=list(other), optimizer=list(optimizer)
        )
        return new, sums, squares, gradients

    def _measured_step(self, state: JaxState, data: Data, chosen: Any) -> Any:
        new, sums, squares, gradients = self._one_step(state, _take(data, chosen))
        return new, sums, jnp.stack([squares, self._trainee.squares(gradients)])

    def _many_steps(
        self, state: JaxState, data: Data, order: Any, start: Any, stop: Any
    ) -> Any:
        def body(i: Any, carried: Any) -> Any:
            state, sums = carried
            new, more, *_ = self._one_step(state, _take(data, order[i]))
            return new, sums + more

        return jax.lax.fori_loop(start, stop, body, (state, jnp.zeros(3)))

    def _outputs(self, state: JaxState, data: Data, chosen: Any) -> Any:
        trainee, batch = self._trainee, _take(data, chosen)
        loss, (outputs, _) = self._forward(state.trainable, state, batch, False)
        squares = trainee.squares(state.trainable)
        sums = trainee.sums(batch[1], outputs, loss, squares, state.coefficients)
        return sums, outputs

    def _gradient_squares(self, state: JaxState, data: Data, chosen: Any) -> Any:
        _, gradients = self._gradients(state, _take(data, chosen), False)
        squares = self._trainee.squares
        return jnp.stack([squares(state.trainable), squares(gradients)])

    def _decay_rate(self, state: JaxState) -> Any:
        optimizer = self._trainee.optimizer
        mapping = zip(optimizer.variables, state.optimizer, strict=True)
        with keras.StatelessScope(state_mapping=list(mapping)):
            return self._trainee.decay_rate()


def _take(data: Data, chosen: Any) -> Data:
    x, y = data
    return jnp.take(x, chosen, axis=0), jnp.take(y, chosen, axis=0)


def _where(mask: Any, a: Any, b: Any) -> Any:
    return jnp.where(jnp.reshape(mask, (-1,) + (1,) * (a.ndim - 1)), a, b)
