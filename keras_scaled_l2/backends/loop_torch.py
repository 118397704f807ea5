"""PyTorch: a plain loop without Keras's trainer; one job at a time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import torch
from keras import ops
from torch.fx.experimental.proxy_tensor import make_fx

from keras_scaled_l2 import _keras
from keras_scaled_l2.backends.loop import Data, Trainee, Values

_LOCK = threading.Lock()
"""While a pass is recorded, torch's modules are patched for all threads."""


class TrainingLoop:
    """See ``backends.loop.TrainingLoop``; a state is the variables themselves.

    Forward and backward pass are recorded once as torch's operations and then called
    without Keras's layers and without autograd, whose Python takes longer than the
    operations of a small network. Networks with layers or functions that are not
    Keras's run as they are, and so does what cannot be recorded.

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
        self._modules = _torch_modules(network)
        self._fresh = self._buffers(copied=True)
        self._coefficients: list[float] = []
        self._c = torch.zeros(0)
        self._decay = 0.0
        self._zeros: tuple[bool, ...] = ()
        self._recorded: dict[Any, Callable[..., Any]] = {}
        self._is_recordable = _is_recordable(network)

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
        self._restore(self._fresh)
        self._decay = float(job.decay)
        # A recorded pass has looked whether a number is 0, as dropout does.
        self._zeros = tuple(not v.any() for v in job.other if np.size(v) == 1)
        return self.penalize(variables, job.coefficients[None])

    def step(
        self, state: list[Any], data: Data, chosen: np.ndarray, active: np.ndarray
    ) -> tuple[list[Any], Any, Any]:
        """One measured step on the chosen examples."""
        squares = self._trainee.squares
        with torch.no_grad():
            weights = squares(self._weights())
            sums, gradients = self._one_step(
                self._values(), data, _index(data, chosen), keeps_gradients=True
            )
            return state, sums, torch.stack([weights, squares(gradients)])

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
        values = self._values()
        with torch.no_grad():
            for chosen in _index(data, order[slice(*span)]):
                total += self._one_step(values, data, chosen)[0]
        return state, total

    def evaluate(
        self, state: list[Any], data: Data, chosen: np.ndarray
    ) -> tuple[Any, Any]:
        """Sums and outputs on the chosen examples."""
        x, y = _take(data, _index(data, chosen))
        with torch.no_grad():
            loss, outputs = self._forward(x, y, training=False)
            return self._sums(y, outputs, loss, self._c), outputs

    def gradient_squares(self, state: list[Any], data: Data, chosen: np.ndarray) -> Any:
        """Sums of squares of weights and data gradients, without a step."""
        batch = _take(data, _index(data, chosen))
        *_, gradients = self._gradients(*batch, training=False)
        squares = self._trainee.squares
        return torch.stack([squares(self._weights()), squares(gradients)])

    def keep(self, state: list[Any], better: np.ndarray, kept: Any) -> Any:
        """A copy of the weights."""
        return _copies(self._values()), self._buffers(copied=True)

    def go_back(self, state: list[Any], kept: Any) -> list[Any]:
        """Give the variables the values that were kept."""
        values, buffers = kept
        for variable, value in zip(
            (*self._trainable, *self._other), values, strict=True
        ):
            variable.assign(value)
        self._restore(buffers)
        return state

    def penalize(self, state: list[Any], coefficients: np.ndarray) -> list[Any]:
        """Take other coefficients from now on."""
        self._coefficients = [float(c) for c in coefficients[0]]
        self._c = ops.convert_to_tensor(coefficients[0])
        return state

    def weights(self, state: list[Any]) -> list[list[np.ndarray]]:
        """Trainable, then other variables of the job."""
        variables = (*self._trainable, *self._other)
        return [[np.array(ops.convert_to_numpy(v.value)) for v in variables]]

    def fetch(self, tensor: Any) -> np.ndarray:
        """A result as a NumPy array."""
        return np.asarray(ops.convert_to_numpy(tensor))

    def _buffers(self, copied: bool = False) -> dict[Any, Any]:
        """What torch modules keep beside their weights: no variables of Keras."""
        return {
            (i, name): buffer.clone() if copied else buffer
            for i, module in enumerate(self._modules)
            for name, buffer in module.named_buffers()
        }

    def _restore(self, values: dict[Any, Any]) -> None:
        """Give buffers the values that they had; some appear in a first pass."""
        for name, buffer in self._buffers().items():
            # An expanded one cannot be written to, nor does it change.
            if name in values and not torch.equal(buffer, values[name]):
                buffer.copy_(values[name])

    def _values(self) -> list[Any]:
        return [v.value for v in (*self._trainable, *self._other)]

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
        self, values: list[Any], data: Data, chosen: Any, keeps_gradients: bool = False
    ) -> tuple[Any, list[Any]]:
        """Sums and data gradients of a step; the latter only if they are kept."""
        trainee = self._trainee
        sums, *gradients = self._pass(values, data, chosen)
        # Not in place where the gradient is still to be measured, or is another's.
        places = {g.data_ptr() for g in gradients}
        copied = keeps_gradients or len(places) < len(gradients)
        add = torch.add if copied else torch.Tensor.add_
        total = list(gradients)
        for c, i in zip(self._coefficients, trainee.penalized, strict=True):
            if c:  # an arm without a penalty need not pay
                total[i] = add(gradients[i], values[i], alpha=2.0 * c)
        if trainee.decays and self._decay:
            rate = float(ops.convert_to_numpy(trainee.decay_rate()))
            for i in trainee.penalized:
                values[i].mul_(1.0 - self._decay * rate)
        trainee.optimizer.apply(total, self._trainable)
        return sums, gradients

    def _pass(self, values: list[Any], data: Data, chosen: Any) -> Any:
        """Sums of a training step and its data gradients, recorded the first time."""
        x, y = data
        kinds = (x.dtype, x.shape[1:], y.dtype, y.shape[1:])
        key = (len(chosen), any(self._coefficients), self._zeros, kinds)
        tensors = [*values, x, y, chosen, self._c]
        if key not in self._recorded:
            self._recorded[key] = self._record(tensors)
        return self._recorded[key](*tensors)

    def _training_pass(self, *tensors: Any) -> tuple[Any, ...]:
        """What is recorded; the variables come first, and layers know them anyway."""
        *_, x, y, chosen, c = tensors
        batch = _take((x, y), chosen)
        with torch.enable_grad():
            loss, outputs, gradients = self._gradients(*batch, training=True)
        return self._sums(batch[1], outputs, loss, c), *gradients

    def _record(self, tensors: list[Any]) -> Callable[..., Any]:
        """The training pass as torch's operations; itself where they do not equal it.

        What a layer does in Python would be recorded as it was once: Keras's own layers
        read no numbers there, or recording them fails, and no others are recorded.
        """
        *fixed, x, y, chosen, c = tensors
        if not (self._is_recordable and x.device.type in ("cpu", "cuda")):
            return self._training_pass
        try:
            with _LOCK, self._undone(x.device):
                recorded = make_fx(self._training_pass)(*tensors)
            _shorten(recorded)
            # Other examples than those that were recorded.
            others = [*fixed, x, y, (chosen + len(chosen)) % len(y), c]
            equal = all(
                torch.allclose(one, other, rtol=1e-4, atol=1e-6, equal_nan=True)
                for one, other in zip(
                    self._left_by(self._training_pass, others),
                    self._left_by(recorded.forward, others),
                    strict=True,
                )
            )
        except Exception:  # of whatever a layer does; a fault shows in the pass itself
            return self._training_pass
        return recorded.forward if equal else self._training_pass

    def _left_by(self, function: Callable[..., Any], tensors: list[Any]) -> list[Any]:
        """Results of a pass and the variables that it changes, without a trace."""
        with self._undone(tensors[-1].device):
            results = function(*tensors)
            return [*results, *_copies([v.value for v in self._other])]

    @contextlib.contextmanager
    def _undone(self, device: torch.device) -> Iterator[None]:
        """Afterwards the variables and torch's random numbers are as they were."""
        before = _copies([v.value for v in self._other])
        try:
            devices = [device] if device.type == "cuda" else []
            with torch.random.fork_rng(devices=devices):
                yield
        finally:
            for variable, value in zip(self._other, before, strict=True):
                variable.assign(value)

    def _sums(self, y: Any, outputs: Any, loss: Any, c: Any) -> Any:
        trainee = self._trainee
        if not any(self._coefficients):
            nothing = torch.zeros((0,), device=loss.device)
            return trainee.sums(y, outputs, loss, nothing, nothing)
        return trainee.sums(y, outputs, loss, trainee.squares(self._weights()), c)


def _shorten(recorded: torch.fx.GraphModule) -> None:
    """Without what does nothing where autograd is off."""
    for node in recorded.graph.nodes:
        node.meta.clear()  # stack traces, as large as a network's weights
        if node.target is torch.ops.aten.detach.default:
            node.replace_all_uses_with(node.args[0])
            recorded.graph.erase_node(node)
    recorded.recompile()


def _torch_modules(network: keras.Model) -> list[torch.nn.Module]:
    wrapper = keras.layers.TorchModuleWrapper
    layers = _keras.layers_within(network)
    return [layer.module for layer in layers if isinstance(layer, wrapper)]


def _copies(tensors: list[Any]) -> list[Any]:
    return [tensor.detach().clone() for tensor in tensors]


def _is_recordable(network: keras.Model) -> bool:
    """Whether a network is of Keras's own layers, with Keras's own functions.

    Recurrent ones are loops in Python: a list of all their steps takes long to make,
    and is little faster.
    """
    refused = keras.layers.RNN | keras.layers.TorchModuleWrapper
    if any(isinstance(layer, refused) for layer in _keras.layers_within(network)):
        return False
    try:
        return _is_of_keras(keras.saving.serialize_keras_object(network))
    except Exception:  # of a get_config that is not Keras's
        return False


def _is_of_keras(config: Any) -> bool:
    """Whether a serialized object has no part from elsewhere."""
    if isinstance(config, dict):
        module = config.get("module", "keras")
        if config.get("class_name") == "__lambda__" or module is None:
            return False
        known = module.partition(".")[0] in ("keras", "keras_scaled_l2")
        return known and all(map(_is_of_keras, config.values()))
    if isinstance(config, list | tuple):
        return all(map(_is_of_keras, config))
    return True


def _index(data: Data, chosen: np.ndarray) -> Any:
    return torch.as_tensor(chosen, device=data[0].device)


def _take(data: Data, index: Any) -> Data:
    x, y = data
    return x[index], y[index]
