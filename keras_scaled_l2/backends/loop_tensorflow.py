"""TensorFlow: a compiled loop over the steps, on variables; one job at a time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_scaled_l2.backends.loop import Data, Trainee, Values

SLOWER_IN_XLA = re.compile("Conv|Pool|BatchMatMul|Einsum")
"""Operations that XLA compiles badly for processors; docs/development has figures."""


class _Functions(NamedTuple):
    """What is compiled; each is traced when it is first called."""

    step: Any
    steps: Any
    evaluate: Any
    squares: Any


class TrainingLoop:
    """See ``backends.loop.TrainingLoop``; a state is the variables themselves.

    Args:
        trainee: What to train.
        batched: Must be false.
    """

    batches_jobs = False
    side_by_side = not tf.config.list_physical_devices("GPU")
    keeps_state = True

    def __init__(self, trainee: Trainee, *, batched: bool = False) -> None:
        if batched:
            raise NotImplementedError("TensorFlow trains one job at a time.")
        self._trainee = trainee
        self._trainable = [v.value for v in trainee.network.trainable_variables]
        self._other = [v.value for v in trainee.network.non_trainable_variables]
        self._optimizer = [v.value for v in trainee.optimizer.variables]
        self._coefficients = tf.Variable(tf.zeros(len(trainee.penalized)))
        self._decay = tf.Variable(0.0)
        self._functions: _Functions | None = None

    def _compiled(self, data: Data) -> _Functions:
        """The functions; made when the first data tell the shapes."""
        if self._functions is None:
            options: dict[str, Any] = {
                "jit_compile": self.is_faster_in_xla(data),
                "autograph": False,
                "reduce_retracing": False,
            }
            bodies = (
                self._measured_step,
                self._many_steps,
                self._outputs,
                self._gradient_squares,
            )
            self._functions = _Functions(*(tf.function(f, **options) for f in bodies))
        return self._functions

    def is_faster_in_xla(self, data: Data) -> bool:
        """Whether XLA runs the network faster than TensorFlow kernel by kernel.

        Read from a trace of the forward pass, which holds what custom layers call too:
        a rule of shapes and layers, not a measurement, or a resumed run could choose
        otherwise and round otherwise.
        """
        if not self.side_by_side:
            return True
        network = self._trainee.network
        call = tf.function(lambda x: network(x, training=False), autograph=False)
        features, _ = data
        spec = tf.TensorSpec(features.shape, features.dtype)
        graph = call.get_concrete_function(spec).graph.as_graph_def()
        inner = [node for f in graph.library.function for node in f.node_def]
        return not any(SLOWER_IN_XLA.search(n.op) for n in (*graph.node, *inner))

    @property
    def _state(self) -> list[Any]:
        return [
            *self._trainable, *self._other, *self._optimizer,
            self._coefficients, self._decay,
        ]  # fmt: skip

    def put(self, x: np.ndarray, y: np.ndarray) -> Data:
        """Bring data to the device."""
        return tf.constant(x), tf.constant(y)

    def seed(self, number: int) -> None:
        """Programs draw from nothing but Keras's seeds."""

    def start(self, jobs: Sequence[Values]) -> list[Any]:
        """Give the variables the values that a job starts from."""
        (job,) = jobs
        values = [
            *job.trainable, *job.other, *job.optimizer, job.coefficients, job.decay,
        ]  # fmt: skip
        for variable, value in zip(self._state, values, strict=True):
            variable.assign(value)
        return self._state

    def step(
        self, state: list[Any], data: Data, chosen: np.ndarray, active: np.ndarray
    ) -> tuple[list[Any], Any, Any]:
        """One measured step on the chosen examples."""
        return state, *self._compiled(data).step(*data, tf.constant(chosen))

    def steps(
        self,
        state: list[Any],
        data: Data,
        order: np.ndarray,
        span: tuple[int, int],
        active: np.ndarray,
    ) -> tuple[list[Any], Any]:
        """The steps of a span of an order."""
        bounds = [tf.constant(end) for end in span]
        order = tf.constant(order)
        return state, self._compiled(data).steps(*data, order, *bounds)

    def evaluate(
        self, state: list[Any], data: Data, chosen: np.ndarray
    ) -> tuple[Any, Any]:
        """Sums and outputs on the chosen examples."""
        evaluate = self._compiled(data).evaluate
        found: tuple[Any, Any] = evaluate(*data, tf.constant(chosen))
        return found

    def gradient_squares(self, state: list[Any], data: Data, chosen: np.ndarray) -> Any:
        """Sums of squares of weights and data gradients, without a step."""
        return self._compiled(data).squares(*data, tf.constant(chosen))

    def keep(self, state: list[Any], better: np.ndarray, kept: Any) -> list[Any]:
        """A copy of the weights."""
        return [tf.identity(v) for v in (*self._trainable, *self._other)]

    def go_back(self, state: list[Any], kept: list[Any]) -> list[Any]:
        """Give the variables the values that were kept."""
        for variable, value in zip((*self._trainable, *self._other), kept, strict=True):
            variable.assign(value)
        return state

    def penalize(self, state: list[Any], coefficients: np.ndarray) -> list[Any]:
        """Give the variable that the steps read other values."""
        self._coefficients.assign(coefficients[0])
        return state

    def weights(self, state: list[Any]) -> list[list[np.ndarray]]:
        """Trainable, then other variables of the job."""
        return [[v.numpy() for v in (*self._trainable, *self._other)]]

    def fetch(self, tensor: Any) -> np.ndarray:
        """A result as a NumPy array."""
        return np.asarray(tensor.numpy())

    def _forward(self, x: Any, y: Any, training: bool) -> tuple[Any, Any]:
        network = self._trainee.network
        outputs = network(x, training=training)
        return self._trainee.data_loss(y, outputs, network.losses), outputs

    def _gradients(self, x: Any, y: Any, training: bool) -> tuple[Any, Any, list[Any]]:
        with tf.GradientTape() as tape:
            loss, outputs = self._forward(x, y, training)
        found = tape.gradient(
            loss, self._trainable, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        # Rows of an embedding that a batch uses twice stand twice in IndexedSlices.
        return loss, outputs, [tf.convert_to_tensor(g) for g in found]

    def _one_step(self, x: Any, y: Any) -> tuple[Any, Any, list[Any]]:
        """``(sums, squares of the weights, data gradients)``."""
        trainee, c = self._trainee, self._coefficients
        loss, outputs, gradients = self._gradients(x, y, training=True)
        weights = [tf.convert_to_tensor(v) for v in self._trainable]
        squares = self._squares_of(weights)
        sums = trainee.sums(y, outputs, loss, squares, c)
        total = trainee.penalized_gradients(gradients, weights, c)
        if trainee.decays:
            decayed = trainee.decayed(weights, self._decay, trainee.decay_rate())
            for i in trainee.penalized:
                self._trainable[i].assign(decayed[i])
        trainee.optimizer.apply(total, trainee.network.trainable_variables)
        return sums, squares, gradients

    def _measured_step(self, x: Any, y: Any, chosen: Any) -> tuple[Any, Any]:
        sums, squares, gradients = self._one_step(*_take(x, y, chosen))
        return sums, tf.stack([squares, self._squares_of(gradients)])

    def _many_steps(self, x: Any, y: Any, order: Any, start: Any, stop: Any) -> Any:
        def body(i: Any, sums: Any) -> tuple[Any, Any]:
            more, *_ = self._one_step(*_take(x, y, order[i]))
            return i + 1, sums + more

        first = (start, tf.zeros(3))
        condition = lambda i, sums: i < stop  # noqa: E731
        return tf.while_loop(condition, body, first, parallel_iterations=1)[1]

    def _outputs(self, x: Any, y: Any, chosen: Any) -> tuple[Any, Any]:
        x, y = _take(x, y, chosen)
        loss, outputs = self._forward(x, y, training=False)
        squares = self._squares_of(self._trainable)
        sums = self._trainee.sums(y, outputs, loss, squares, self._coefficients)
        return sums, outputs

    def _gradient_squares(self, x: Any, y: Any, chosen: Any) -> Any:
        *_, gradients = self._gradients(*_take(x, y, chosen), training=False)
        return tf.stack(
            [self._squares_of(self._trainable), self._squares_of(gradients)]
        )

    def _squares_of(self, tensors: Sequence[Any]) -> Any:
        """As ``Trainee.squares``, faster."""
        places = self._trainee.penalized
        return tf.stack([_sum_of_squares(tensors[i]) for i in places])


def _take(x: Any, y: Any, chosen: Any) -> tuple[Any, Any]:
    return tf.gather(x, chosen), tf.gather(y, chosen)


def _sum_of_squares(w: Any) -> Any:
    """Four sums side by side, in float32 or better.

    XLA adds one number after the other on a processor, a nanosecond each, which four
    sums leave to vector instructions: 0.03 instead of 0.43 ms for 400,000 weights.
    """
    w = tf.reshape(w, [-1])
    if w.dtype not in (tf.float32, tf.float64):
        w = tf.cast(w, tf.float32)
    quarter = w.shape[0] // 4
    parts = [w[k * quarter : (k + 1) * quarter] for k in range(4)]
    squares = tf.add_n([tf.square(part) for part in parts])
    return tf.reduce_sum(squares) + tf.reduce_sum(tf.square(w[4 * quarter :]))
