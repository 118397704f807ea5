"""What all rules share, and the coefficient of any regularizer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import keras
from keras import ops

from keras_scaled_l2 import _keras
from keras_scaled_l2.fitting import (
    give_back_variables,
    may_be_resolved_by_callbacks,
)
from keras_scaled_l2.gradients import Tensor, sum_of_squares

PACKAGE = "keras_scaled_l2"
"""Registration name of the rules; it stands in saved files, so it never changes."""

STRENGTH_FIELDS = ("strength", "l2", "std", "epochs")
"""Where a rule's config keeps its strength; of Keras's own it is ``l2``."""


@dataclasses.dataclass(frozen=True)
class Rule(keras.Regularizer):
    """What all rules share; a new rule adds its fields and ``coefficient``.

    The penalty of a weight tensor ``w`` is ``coefficient(w.shape) * sum(w**2)``: the
    coefficient is what a user would write in ``keras.regularizers.L2``.

    Rules are values: immutable, hashable, equal when their configs are equal. A
    count that the user leaves open is a field ``x`` that is ``None`` beside a
    keyword ``inferred_x``; ``bind`` fills in the second and leaves the first, so
    that what was inferred can be inferred anew for another model.
    """

    inferable: ClassVar[Mapping[str, str]] = {}
    """Field name of each count that may be inferred -> what is counted, in words."""

    optional: ClassVar[frozenset[str]] = frozenset()
    """Those of them that the rule can do without."""

    learns: ClassVar[bool] = False
    """Whether ``ApplyL2`` is to find the strength by the evidence while it trains."""

    def coefficient(self, shape: Sequence[int | None]) -> float:
        """The coefficient ``c`` for a weight tensor of this shape.

        Args:
            shape: Shape of the weight tensor.

        Returns:
            ``c`` as a Python float, as in ``keras.regularizers.L2(c)``.

        Raises:
            ValueError: If a count that the rule needs is missing, or a dimension
                is unknown.
        """
        raise NotImplementedError

    @property
    def needs(self) -> frozenset[str]:
        """Names of the counts that must be inferred, inferred already or not."""
        return frozenset(n for n in self.inferable if getattr(self, n) is None)

    @property
    def missing(self) -> frozenset[str]:
        """Names of the counts that the rule still lacks."""
        lacking = (n for n in self.needs if getattr(self, f"inferred_{n}") is None)
        return frozenset(lacking) - self.optional

    def resolve(self, counts: Mapping[str, Any]) -> Self:
        """A copy with the counts that the user left open taken from ``counts``."""
        found = {
            f"inferred_{n}": counts[n] for n in self.needs if counts.get(n) is not None
        }
        return dataclasses.replace(self, **found) if found else self

    def check_optimizer(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Refuse an optimizer under which the rule does not mean what it says.

        Args:
            optimizer: The optimizer that the model was compiled with.

        Raises:
            ValueError: With the remedy. Most rules refuse none.
        """

    def __call__(self, x: Tensor) -> Tensor:
        """The penalty ``c * sum(x**2)``, a scalar tensor of Keras's float type.

        Args:
            x: A weight tensor of static shape.

        Returns:
            The penalty; summed in float32 whatever the dtype of ``x``.
        """
        if self.missing:
            # Keras on JAX traces the loss before any callback could count. Without one
            # that may, the error comes there, before Keras takes the weights out of
            # the model; where that trace is left out, they are given back first.
            if _in_symbolic_scope() and may_be_resolved_by_callbacks():
                return ops.zeros((), dtype=keras.config.floatx())
            give_back_variables()
        if isinstance(x, keras.Variable) and _keras.is_taken(x):
            give_back_variables()
            raise ValueError(
                f"{self!r} is asked for the penalty of {x.path!r} while fit has taken "
                "the weights out of the model, to pass them to train_step. Keras's "
                "guide calls self.compute_loss(...) there, which fails with any "
                "penalty: call self.stateless_compute_loss(trainable_variables, "
                "non_trainable_variables, metrics_variables, x=x, y=y, y_pred=y_pred), "
                "which returns the loss and the variables."
            )
        total = sum_of_squares(x)
        # Not ops.cast: TensorFlow's goes through float32.
        coefficient = ops.convert_to_tensor(self.coefficient(x.shape), total.dtype)
        return ops.cast(coefficient * total, keras.config.floatx())

    def get_config(self) -> dict[str, float | int | str | None]:
        """The constructor's arguments; inferred counts only where there are any."""
        config = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {
            name: value
            for name, value in config.items()
            if value is not None or not name.startswith("inferred_")
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The rule of a config.

        Raises:
            ValueError: If the config holds a key that this version does not know.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(config) - known)
        if unknown:
            raise ValueError(
                f"The config of {cls.__name__} holds {unknown}, and this version of "
                f"keras_scaled_l2 knows {sorted(known)}. It was written by another "
                "version: install that one or a newer one to load it."
            )
        return cls(**config)

    def _finite(self, coefficient: float) -> float:
        """``coefficient``, unless the arguments lead beyond the range of floats."""
        if not math.isfinite(coefficient):
            raise ValueError(
                f"{self!r} has a coefficient of {coefficient}: expected arguments that "
                "lead to a finite one."
            )
        return coefficient

    def _count(self, name: str) -> Any:
        """The count that the user gave, else the inferred one."""
        value = getattr(self, name)
        value = getattr(self, f"inferred_{name}") if value is None else value
        if value is None:
            raise self._missing_error(name, f"{name}=<number>")
        return value

    def _missing_error(self, name: str, argument: str) -> ValueError:
        return ValueError(
            f"{self!r} does not know {self.inferable[name]}. Either pass "
            f"{type(self).__name__}(..., {argument}), or let it be counted: "
            "callbacks=[keras_scaled_l2.ApplyL2()] in fit(), or "
            "keras_scaled_l2.bind(model, ...) before."
        )

    def __repr__(self) -> str:
        """The call that makes the rule, without the fields left at None."""
        fields = [(f.name, getattr(self, f.name)) for f in dataclasses.fields(self)]
        shown = ", ".join(f"{n}={v!r}" for n, v in fields if v is not None)
        return f"{type(self).__name__}({shown})"


class Quadratic(keras.Regularizer):
    """``c * sum(w**2)`` with a ``c`` that is a variable, and may change."""

    coefficient: keras.Variable


def check_optional(rule: Rule, check: Callable[[str, Any], Any], *names: str) -> None:
    """Check fields that may be None, each with its inferred counterpart."""
    for name in names:
        for field in (name, f"inferred_{name}"):
            if getattr(rule, field) is not None:
                object.__setattr__(rule, field, check(field, getattr(rule, field)))


def effective_coefficient(regularizer: Any, shape: Sequence[int | None]) -> Any:
    """The ``c`` with which any regularizer acts on a tensor of this shape.

    Args:
        regularizer: A rule, Keras's ``L2`` or ``L1L2``, or anything else.
        shape: Shape of the weight tensor.

    Returns:
        ``c`` of ``c * sum(w**2)`` as a float (a tensor for ``Quadratic``), or ``None``
        for a penalty of another form.
    """
    if isinstance(regularizer, Rule):
        return regularizer.coefficient(shape)
    if isinstance(regularizer, Quadratic):
        return ops.convert_to_tensor(regularizer.coefficient)
    # A class of the user's own may make something else of the same arguments.
    call = type(regularizer).__call__
    if call is keras.regularizers.L2.__call__:
        return float(regularizer.l2)
    if call is keras.regularizers.L1L2.__call__ and float(regularizer.l1) == 0:
        return float(regularizer.l2)
    return None


def check_is_regularizer(rule: Any) -> None:
    """Refuse what is no regularizer: a name, a function, a class, a number."""
    if not isinstance(rule, keras.Regularizer):
        raise TypeError(
            f"rule={rule!r} is of type {type(rule).__name__}: expected a regularizer "
            "such as ScaledL2(1.0) or SampleL2(1.0)."
        )


def name_of(regularizer: Any) -> str:
    """The name of a regularizer's class, or of a function that is one."""
    return str(getattr(regularizer, "__name__", type(regularizer).__name__))


def _in_symbolic_scope() -> bool:
    # Entering a scope tells which one was open before; Keras exports no other way.
    with keras.SymbolicScope() as scope:
        return scope.original_scope is not None
