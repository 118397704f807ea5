"""The contract of a compiled training loop: the same for all backends."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import keras
import numpy as np
from keras import ops

from keras_scaled_l2 import _keras
from keras_scaled_l2.fitting import steps_per_update
from keras_scaled_l2.gradients import Tensor, sum_of_squares

State = Any
"""Weights, optimizer and hyperparameters of the jobs that train now."""

Data = tuple[Tensor, Tensor]
"""Features and labels on the device."""


class Values(NamedTuple):
    """What a job starts from, as NumPy arrays."""

    trainable: Sequence[np.ndarray]
    """In the order of the network's ``trainable_variables``."""

    other: Sequence[np.ndarray]
    """Of its ``non_trainable_variables``: statistics, dropout rates, seeds."""

    optimizer: Sequence[np.ndarray]
    """Of the optimizer's ``variables``."""

    coefficients: np.ndarray
    """``c`` of each penalized weight, float32."""

    decay: np.ndarray
    """Decoupled weight decay of the penalized weights, a float32 scalar."""


@dataclasses.dataclass(frozen=True, eq=False)
class Trainee:
    """A network and what it is trained for; what a program is compiled from.

    Args:
        network: A built network without penalties of its own.
        optimizer: Built on the network's ``trainable_variables``.
        loss: ``(labels, outputs)`` -> mean loss of the examples, a scalar.
        right: ``(labels, outputs)`` -> number of right answers; ``None`` where there
            are none, in a regression.
        penalized: Places in ``trainable_variables`` of the weights that may carry a
            penalty or decay.
        decays: Whether there may be weight decay: it costs a pass over the weights.
    """

    network: keras.Model
    optimizer: keras.optimizers.Optimizer
    loss: Callable[[Tensor, Tensor], Tensor]
    right: Callable[[Tensor, Tensor], Tensor] | None
    penalized: tuple[int, ...]
    decays: bool

    def data_loss(self, labels: Tensor, outputs: Tensor, own: Sequence[Tensor]) -> Any:
        """The loss of a batch without penalties on weights.

        Args:
            labels: Labels or targets.
            outputs: Outputs of the network.
            own: Losses that its layers added in this call.
        """
        return sum(own, start=self.loss(labels, outputs))

    def penalized_gradients(
        self, gradients: Sequence[Tensor], weights: Sequence[Tensor], c: Tensor
    ) -> list[Tensor]:
        """Gradients with those of the penalties, ``2 c w``, added."""
        result = list(gradients)
        for k, i in enumerate(self.penalized):
            factor = ops.cast(2.0 * c[k], weights[i].dtype)
            result[i] = gradients[i] + factor * weights[i]
        return result

    def decay_rate(self) -> Tensor:
        """The learning rate where the next step updates the weights, else 0.

        An optimizer that gathers the gradients of several steps decays with their
        update, once.
        """
        rate = ops.convert_to_tensor(self.optimizer.learning_rate)
        each = steps_per_update(self.optimizer)
        if each == 1:
            return rate
        given = ops.convert_to_tensor(_keras.gradients_given(self.optimizer))
        return ops.where((given + 1) % each == 0, rate, ops.zeros_like(rate))

    def decayed(
        self, weights: Sequence[Tensor], decay: Tensor, rate: Tensor
    ) -> list[Tensor]:
        """Weights after decoupled weight decay, ``w - w * decay * rate``."""
        result = list(weights)
        for i in self.penalized if self.decays else ():
            w = weights[i]
            result[i] = w - w * ops.cast(decay, w.dtype) * ops.cast(rate, w.dtype)
        return result

    def squares(self, tensors: Sequence[Tensor]) -> Tensor:
        """Sum of squares of the tensor of each weight that may be penalized."""
        return ops.stack([sum_of_squares(tensors[i]) for i in self.penalized])

    def sums(
        self,
        labels: Tensor,
        outputs: Tensor,
        data_loss: Tensor,
        squares: Tensor,
        c: Tensor,
    ) -> Tensor:
        """Data loss and penalty times the examples, and how many answers are right."""
        n = float(labels.shape[0])
        penalty = ops.sum(c * ops.cast(squares, c.dtype))
        count = 0.0 if self.right is None else self.right(labels, outputs)
        parts = (n * data_loss, n * penalty, count)
        return ops.stack([ops.cast(part, "float32") for part in parts])


class TrainingLoop(Protocol):
    """Trains one architecture; compiled once, for all jobs.

    A state holds one job, or ``k`` of them where ``batches_jobs`` is true: then every
    array has them in its first dimension, as ``order`` and ``chosen`` do.
    """

    batches_jobs: bool
    """Whether several jobs in one state are faster than one after the other."""

    side_by_side: bool
    """Whether several trainings at a time, in threads, are faster."""

    keeps_state: bool
    """Whether the state lies in the network's variables: one training at a time."""

    def __init__(self, trainee: Trainee, *, batched: bool = False) -> None:
        """Compiles nothing yet."""

    def put(self, x: np.ndarray, y: np.ndarray) -> Data:
        """Bring data to the device."""

    def seed(self, number: int) -> None:
        """For layers that draw from neither a seed of their own nor Keras's."""

    def start(self, jobs: Sequence[Values]) -> State:
        """The state that jobs start from."""

    def step(
        self, state: State, data: Data, chosen: np.ndarray, active: np.ndarray
    ) -> tuple[State, Tensor, Tensor]:
        """One step on the chosen examples, measured.

        Returns:
            The new state; ``Trainee.sums``; and, of each weight that may be penalized,
            the sums of squares of the weight and of its data gradient, ``(2, p)``.
        """

    def steps(
        self,
        state: State,
        data: Data,
        order: np.ndarray,
        span: tuple[int, int],
        active: np.ndarray,
    ) -> tuple[State, Tensor]:
        """The steps of a span of an order ``(steps, batch size)``.

        Returns:
            The new state, and ``Trainee.sums`` over the steps.
        """

    def evaluate(
        self, state: State, data: Data, chosen: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        """``Trainee.sums`` on the chosen examples without dropout, and the outputs."""

    def gradient_squares(self, state: State, data: Data, chosen: np.ndarray) -> Tensor:
        """As the third result of ``step``, without dropout and without a step."""

    def keep(self, state: State, better: np.ndarray, kept: State | None) -> State:
        """A copy of the weights of those jobs that are better, else what was kept."""

    def go_back(self, state: State, kept: State) -> State:
        """The state with the weights that were kept."""

    def penalize(self, state: State, coefficients: np.ndarray) -> State:
        """The state with other coefficients: a row of float32 for each job."""

    def weights(self, state: State) -> list[list[np.ndarray]]:
        """Trainable, then other variables of each job, as NumPy arrays."""

    def fetch(self, tensor: Tensor) -> np.ndarray:
        """A result as a NumPy array; waits for it."""
