"""What each backend's file must have for the gradients of a user's own training."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import keras

from keras_scaled_l2.handles import Handle

Tensor = Any
"""A tensor of whichever backend Keras runs on, or a ``keras.Variable``."""

Measure = Callable[
    [Mapping[int, Tensor], Mapping[int, Tensor], Tensor | None, Tensor], Tensor | None
]
"""What to store, of a step's gradients and values before it, both by ``id``.

Also given: the loss scale, and what the step has assigned to another variable.
"""


class Backend(Protocol):
    """A module of the backend; what needs no way of its own is that of ``plain``."""

    def sum_of_squares(self, w: Tensor) -> Tensor:
        """Sum of squares of a tensor in float32 or float64, in one pass.

        The gradient is ``2 * w``, written by hand where the backend's own would read
        the weights more than once.
        """

    def squared_norms(
        self,
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

    def penalty_scope(self) -> contextlib.AbstractContextManager[Any]:
        """Marks the penalties that are computed in it for ``data_summand``."""

    def data_summand(self, gradient: Tensor) -> Tensor | None:
        """A weight's gradient without its penalty's part, where the step has it apart.

        Elsewhere, and where it cannot be told which is which, ``None``.
        """

    def interceptor(
        self,
        model: keras.Model,
        slot: keras.Variable,
        given: keras.Variable,
        measure: Measure,
    ) -> Callable[[], Handle]:
        """Call ``measure`` with the gradients that the model's optimizer receives.

        Every way to the weights leads through the optimizer's ``apply``, on JAX
        ``stateless_apply``; both are shadowed on the instance. What ``measure`` returns
        is stored in ``slot``, within the step.

        Args:
            model: A compiled model.
            slot: A variable of one of the model's metrics.
            given: Another one, whose value in the step ``measure`` receives.
            measure: Called where a step is traced or run; returns ``None`` to do
                nothing.

        Returns:
            A function that installs this, any number of times with the same shadows, so
            that a step that was compiled with them stays right. Removing the handle
            leaves the optimizer and the model as they were found.
        """

    def value_and_slopes(
        self, function: Callable[[Sequence[Tensor]], Tensor], count: int
    ) -> tuple[Tensor, list[Tensor]]:
        """A scalar function of ``count`` scalars where all are 0, and its derivatives.

        Exact, and nearly free: only what depends on these scalars is differentiated.
        What the function assigns to variables is assigned as in an ordinary call.

        Args:
            function: Called once, with ``count`` scalars of Keras's float type.
            count: How many.

        Returns:
            The value, and one derivative for each scalar.
        """

    def penalty_line(self) -> str:
        """What a ``train_step`` lacks that leaves ``self.losses`` out, as code."""

    def reaches_weights(
        self,
        model: keras.Model,
        step: Callable[..., Any],
        arguments: Sequence[Any],
        scaled: Callable[[Tensor], contextlib.AbstractContextManager[Any]],
    ) -> bool:
        """Whether a factor of the penalties can change the weights that a step makes.

        Args:
            model: The model.
            step: A training step of the model's own, as Keras calls it.
            arguments: What it was called with.
            scaled: Multiplies the penalties by a factor meanwhile.

        Returns:
            False only where it surely cannot; also True where nobody can tell.
        """

    def runs_in_xla(self, model: keras.Model) -> bool:
        """Whether TensorFlow compiles a model's training step with XLA."""

    def penalty_follows_call(self) -> bool:
        """Whether a penalty is a function of what a call made of its weight.

        Of ``SpectralNormalization``, which assigns ``w / norm(w)`` to the kernel: in
        JAX's one function of the weights its penalty is no ``c * sum(w**2)``.
        """

    def metric_values(
        self, model: keras.Model, variables: Sequence[keras.Variable], step_result: Any
    ) -> list[Any]:
        """Values of metric variables right after a step, as NumPy arrays.

        Args:
            model: The model that is training.
            variables: Variables of its metrics.
            step_result: What its train function returned: on JAX the variables do not
                have the state yet, and asking the model for it would cost a copy.
        """

    def to_numpy(self, x: Tensor) -> Any:
        """The value of a tensor, a ``keras.Variable`` or a number as a NumPy array."""

    def can_store(self) -> bool:
        """Whether a variable that is assigned here reaches the model's state.

        On JAX it does in Keras's stateless functions only: outside them the assigned
        value belongs to a trace that is about to end.
        """

    def is_known(self, variables: Sequence[keras.Variable]) -> bool:
        """Whether variables have values here; some stateless functions leave out."""

    def is_known_zero(self, variable: keras.Variable) -> bool:
        """Whether a number is 0 for certain; only where reading it costs nothing."""

    def uniform(self, shape: Sequence[int], seed: keras.random.SeedGenerator) -> Tensor:
        """Random numbers in [0, 1) as float32, others at each call."""

    def whole_gradient(self, gradient: Tensor) -> Tensor:
        """A gradient as one dense tensor, summed over replicas."""

    def loss_gradients(
        self, model: keras.Model, loss: Callable[[], Tensor]
    ) -> list[Tensor | None]:
        """Gradients of a loss with respect to the model's trainable variables.

        A backward pass of its own, for reports before training; nothing is changed.

        Args:
            model: A built model.
            loss: Runs the model and returns a scalar.

        Returns:
            One gradient for each of ``model.trainable_variables``; ``None`` for a
            variable that the loss does not depend on (TensorFlow and torch; zeros on
            JAX).
        """

    def gradient_function(
        self, model: keras.Model, loss: Callable[..., Tensor]
    ) -> Callable[..., list[Tensor | None]]:
        """``loss_gradients`` for many calls: what JAX compiles, it compiles once.

        Args:
            model: A built model.
            loss: Runs the model on its arguments, tensors, and returns a scalar.

        Returns:
            A function of these arguments.
        """

    def shift_gradients(
        self,
        model: keras.Model,
        function: Callable[[Tensor, Sequence[Tensor]], tuple[Tensor, Sequence[Tensor]]],
        directions: Callable[[Tensor], Tensor],
    ) -> Callable[[Tensor, Sequence[Tensor]], tuple[Tensor, Any, Any]]:
        """Gradients of a model's outputs along several directions, by shifts inside it.

        One forward pass, and a backward pass for each direction.

        Args:
            model: A built model.
            function: Inputs and shifts -> outputs of (examples, units) and other
                tensors.
            directions: Outputs -> (rows, examples, units).

        Returns:
            A function of inputs and shifts that returns the outputs, the other tensors
            and for each shift its gradients of (rows, *shape of the shift).
        """
