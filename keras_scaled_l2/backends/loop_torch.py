"""PyTorch: a plain loop without Keras's trainer; one job at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from keras import ops

from keras_scaled_l2.backends.loop import Data, Trainee, Values


class TrainingLoop:
    """See ``backends.loop.TrainingLoop``; a state is the variables themselves.

    Args:
        trainee: What to train.
        batched: Must be false: seeded dropout reads its seed in Python, which
            ``torch.func.vmap`` refuses.
    """

    batches_jobs = False
    side_by_side = False
    keeps_state = True

    def __init__(self, trainee: Trainee, *, batched: bool = False) -> None:
        if batched:
            raise NotImplementedError("PyTorch trains one job at a time.")
        self._trainee = trainee
        network = trainee.network
        self._trainable = list(network.trainable_variables)
        self._other = list(network.non_trainable_variables)
        self._coefficients: list[float] = []
        self._decay = 0.0

    def put(self, x: np.ndarray, y: np.ndarray) -> Data:
        """Bring data to the device."""
        return ops.convert_to_tensor(x), ops.convert_to_tensor(y)

    def seed(self, number: int) -> None:
        """For torch modules with dropout, which draw from torch's global generator."""
        torch.manual_seed(number)

    def start(self, jobs: Sequence[Values]) -> list[Any]:
        """Give the variables the values that a job starts from."""
        (job,) = jobs
        variables = [*self._trainable, *self._other, *self._trainee.optimizer.variables]
        values = [*job.trainable, *job.other, *job.optimizer]
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        self._coefficients = [float(c) for c in job.coefficients]
        self._decay = float(job.decay)
        return variables

    def step(
        self, state: list[Any], data: Data, chosen: np.ndarray, active: np.ndarray
    ) -> tuple[list[Any], Any, Any]:
        """One measured step on the chosen examples."""
        sums, gradients, weights = self._one_step(*_take(data, chosen), measured=True)
        return state, sums, torch.stack([weights, self._trainee.squares(gradients)])

    def steps(
        self,
        state: list[Any],
        data: Data,
        order: np.ndarray,
        span: tuple[int, int],
        active: np.ndarray,
    ) -> tuple[list[Any], Any]:
        """The steps of a span of an order."""
        total = torch.zeros(3, device=data[0].device)
        for chosen in order[slice(*span)]:
            total += self._one_step(*_take(data, chosen))[0]
        return state, total

    def evaluate(
        self, state: list[Any], data: Data, chosen: np.ndarray
    ) -> tuple[Any, Any]:
        """Sums and outputs on the chosen examples."""
        x, y = _take(data, chosen)
        with torch.no_grad():
            loss, outputs = self._forward(x, y, training=False)
            return self._sums(y, outputs, loss, self._weights()), outputs

    def gradient_squares(self, state: list[Any], data: Data, chosen: np.ndarray) -> Any:
        """Sums of squares of weights and data gradients, without a step."""
        *_, gradients = self._gradients(*_take(data, chosen), training=False)
        squares = self._trainee.squares
        return torch.stack([squares(self._weights()), squares(gradients)])

    def keep(self, state: list[Any], better: np.ndarray, kept: Any) -> list[Any]:
        """A copy of the weights."""
        return [v.value.detach().clone() for v in (*self._trainable, *self._other)]

    def go_back(self, state: list[Any], kept: list[Any]) -> list[Any]:
        """Give the variables the values that were kept."""
        for variable, value in zip((*self._trainable, *self._other), kept, strict=True):
            variable.assign(value)
        return state

    def penalize(self, state: list[Any], coefficients: np.ndarray) -> list[Any]:
        """Take other coefficients from now on."""
        self._coefficients = [float(c) for c in coefficients[0]]
        return state

    def weights(self, state: list[Any]) -> list[list[np.ndarray]]:
        """Trainable, then other variables of the job."""
        variables = (*self._trainable, *self._other)
        return [[np.array(ops.convert_to_numpy(v.value)) for v in variables]]

    def fetch(self, tensor: Any) -> np.ndarray:
        """A result as a NumPy array."""
        return np.asarray(ops.convert_to_numpy(tensor))

    def _weights(self) -> list[Any]:
        return [v.value.detach() for v in self._trainable]

    def _forward(self, x: Any, y: Any, training: bool) -> tuple[Any, Any]:
        network = self._trainee.network
        outputs = network(x, training=training)
        return self._trainee.data_loss(y, outputs, network.losses), outputs

    def _gradients(self, x: Any, y: Any, training: bool) -> tuple[Any, Any, list[Any]]:
        loss, outputs = self._forward(x, y, training)
        values = [v.value for v in self._trainable]
        found = torch.autograd.grad(loss, values, allow_unused=True)
        gradients = [
            torch.zeros_like(v) if g is None else g
            for v, g in zip(values, found, strict=True)
        ]
        return loss.detach(), outputs.detach(), gradients

    def _one_step(
        self, x: Any, y: Any, measured: bool = False
    ) -> tuple[Any, list[Any], Any]:
        """``(sums, data gradients, squares of the weights)``; two only if measured."""
        trainee = self._trainee
        loss, outputs, gradients = self._gradients(x, y, training=True)
        with torch.no_grad():
            weights = self._weights()
            sums = self._sums(y, outputs, loss, weights)
            squares = trainee.squares(weights) if measured else None
            # Not in place where the gradient is still to be measured, or is another's.
            places = {g.data_ptr() for g in gradients}
            copied = measured or len(places) < len(gradients)
            add = torch.add if copied else torch.Tensor.add_
            total = list(gradients)
            for c, i in zip(self._coefficients, trainee.penalized, strict=True):
                if c:  # an arm without a penalty need not pay
                    total[i] = add(gradients[i], weights[i], alpha=2.0 * c)
            if trainee.decays and self._decay:
                rate = float(ops.convert_to_numpy(trainee.optimizer.learning_rate))
                for i in trainee.penalized:
                    weights[i].mul_(1.0 - self._decay * rate)
            trainee.optimizer.apply(total, self._trainable)
        return sums, gradients, squares

    def _sums(self, y: Any, outputs: Any, loss: Any, weights: list[Any]) -> Any:
        trainee = self._trainee
        if not any(self._coefficients):
            nothing = torch.zeros((0,), device=loss.device)
            return trainee.sums(y, outputs, loss, nothing, nothing)
        squares = trainee.squares(weights)
        c = torch.tensor(self._coefficients, device=loss.device)
        return trainee.sums(y, outputs, loss, squares, c)


def _take(data: Data, chosen: np.ndarray) -> Data:
    x, y = data
    index = torch.as_tensor(chosen, device=x.device)
    return x[index], y[index]
