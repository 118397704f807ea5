"""What stands on a model while strengths are learned: coefficients that are variables.

Nothing here knows how they move: ``learning.py`` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keras_scaled_l2 import _keras
from keras_scaled_l2.fitting import is_in_fit
from keras_scaled_l2.gradients import Tensor, sum_of_squares, to_numpy
from keras_scaled_l2.rule import Quadratic
from keras_scaled_l2.steps import put_regularizer, rebuild_steps

_STATES = "_keras_scaled_l2_coefficients"


class LearnedPenalty(Quadratic):
    """The penalty of a rule whose coefficient is a variable that the step reads."""

    def __init__(self, rule: Any, coefficient: keras.Variable) -> None:
        self.rule = rule
        self.coefficient = coefficient

    def __call__(self, x: Tensor) -> Tensor:
        """``c * sum(x**2)``, with what ``c`` is now."""
        total = sum_of_squares(x)
        c = keras.ops.cast(keras.ops.convert_to_tensor(self.coefficient), total.dtype)
        return keras.ops.cast(c * total, keras.config.floatx())

    def get_config(self) -> dict[str, Any]:
        """That of the rule: nothing of this one is saved."""
        return dict(self.rule.get_config())


class _State(keras.metrics.Metric):
    """Keeps a coefficient among a model's state, and out of its weights.

    Keras carries the states of seed generators through the steps of all backends, and
    nothing says that they must be seeds. A metric, since Keras saves those: what is
    kept for a training to be resumed holds the coefficient.
    """

    def __init__(self, state: keras.Variable) -> None:
        super().__init__(name="coefficient")
        self.state = state

    def save_own_variables(self, store: Any) -> None:
        store["coefficient"] = to_numpy(self.state)

    def load_own_variables(self, store: Any) -> None:
        # A file of another training has none: the strength stays.
        if "coefficient" in store.keys():  # noqa: SIM118 (not a mapping)
            self.state.assign(store["coefficient"])


def begin_learning(model: keras.Model, coefficients: Sequence[Any]) -> None:
    """Have a model's steps, and what is saved of it, hold these variables."""
    states = [_State(c) for c in coefficients]
    _keras.add_states(model, states)
    # Past Keras's tracking, and where it looks for what to save.
    vars(model)[_STATES] = states
    rebuild_steps(model)


def is_learning(model: keras.Model) -> bool:
    """Whether strengths of the model follow the evidence now."""
    return _STATES in vars(model)


def finish_learning(model: keras.Model) -> None:
    """Leave plain rules; also what a training left that broke off."""
    states = vars(model).pop(_STATES, None)
    if states is None:
        return
    # Frozen ones too: they carry no penalty, but would be thawed with it.
    for layer in _keras.layers_within(model):
        for variable in _keras.own_variables(layer):
            if isinstance(variable.regularizer, LearnedPenalty):
                put_regularizer(variable, variable.regularizer.rule)
    for state in states:
        _keras.remove_state(model, state)
    rebuild_steps(model)


def finish_broken_learning(model: keras.Model) -> None:
    """As ``finish_learning``, for a model that is not in its fit at this moment.

    Keras tells no callback that a fit broke off.
    """
    if is_learning(model) and not is_in_fit(model):
        finish_learning(model)
