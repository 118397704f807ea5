"""Gradient norms of a training step, read from the step's own gradients."""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_scaled_l2.costs import split_cost
from keras_scaled_l2.gradients import (
    Tensor,
    data_summand,
    intercept_gradients,
    metric_values,
    runs_in_xla,
    separate_train_function,
    squared_norms,
    strategy_scope,
    sum_of_squares,
    to_numpy,
    whole_gradient,
)
from keras_scaled_l2.rule import effective_coefficient

_INSTALLED = "_keras_scaled_l2_probe"


class GradientNorms(NamedTuple):
    """Norms of one weight's gradient in one step, before any clipping."""

    data: float
    """Of the gradient of everything in the loss but the weight's own penalty."""
    penalty: float
    """Of the penalty's gradient, ``2 * c * norm(w)``."""
    weight: float
    """Of the weight before the step."""
    coefficient: float
    """The effective ``c``; 0 without a penalty."""


class StepRecord(NamedTuple):
    """What one measured training step was."""

    data_loss: float
    penalty: float
    norms: dict[str, GradientNorms]
    """By path of the weight: the trainable weights in the model's order."""


Watcher = tuple[Callable[[], bool], Callable[[StepRecord], None]]


def probe_gradients(model: keras.Model, fit: object) -> GradientProbe:
    """The measurement of a model's gradients, installed if it is not yet.

    One that a broken-off ``fit`` left is removed, and one whose step another callback
    has remade is made anew; those who watched it ask again.

    Args:
        model: A compiled and built model.
        fit: Whatever tells the running ``fit`` from another; compared by ``is``.
    """
    found: GradientProbe | None = vars(model).get(_INSTALLED)
    if found is not None and found.fit is fit and found.in_use:
        found.read_coefficients()
        return found
    if found is not None:
        found.remove()
    return GradientProbe(model, fit)


def remove_stale_probe(model: keras.Model, fit: object) -> None:
    """Remove the measurement that an earlier, broken-off ``fit`` left on a model."""
    found: GradientProbe | None = vars(model).get(_INSTALLED)
    if found is not None and found.fit is not fit:
        found.remove()


class GradientProbe:
    """Measures those steps of a model that somebody watches; see ``probe_gradients``.

    For each trainable weight a measured step also computes the squared norms of the
    data gradient ``g - 2 c w`` and of ``w``. TensorFlow's graph has the data gradient
    by itself. Elsewhere it is subtracted element by element, so its norm keeps its
    digits until it is as small as the rounding of ``g`` itself: the relative error is
    about ``1e-7 * norm(2 c w) / norm(g - 2 c w)``.

    The gradient is the step's: of one batch, before clipping and accumulation, the
    loss scale divided out, summed over replicas. Weights under a penalty that is not
    ``c * sum(w**2)`` are left out; so are all where the step does not tell its loss or
    its gradients (a custom one that goes past ``compute_loss`` or the optimizer).
    """

    def __init__(self, model: keras.Model, fit: object) -> None:
        """Installs the measurement on a compiled and built model."""
        self.fit = fit
        """Whatever tells one ``fit`` from another."""
        self._model = model
        self._watchers: dict[Watcher, None] = {}
        self._measuring = self._measured = False
        self._weights = [v for v in model.trainable_weights if _is_quadratic(v)]
        self._names = _unique_paths(self._weights)
        self.read_coefficients()
        with strategy_scope(model):
            self._metric = _Statistics(len(self._weights))
        model._metrics.append(self._metric)
        self._undo = intercept_gradients(model, self._metric.squares, self._measure)
        self._split = split_cost(model)
        self._split.observer = self._record_costs
        vars(model)[_INSTALLED] = self
        self._train_function = model.train_function = self._switch()

    @property
    def in_use(self) -> bool:
        """Whether nobody has remade the model's step since."""
        return self._model.train_function is self._train_function

    def read_coefficients(self) -> None:
        """Read what the coefficients are; in an epoch JAX's variables hold nothing."""
        self._coefficients = [_number(_coefficient(v)) for v in self._weights]

    def watch(
        self, due: Callable[[], bool], done: Callable[[StepRecord], None]
    ) -> None:
        """Measure for somebody; to ask twice for the same is to ask once.

        Args:
            due: Whether to measure the call that is about to be made; called for each.
            done: Called with the record if it was due; of several steps in one
                execution, it is the last one's.
        """
        self._watchers[due, done] = None

    def remove(self) -> None:
        """Leaves the optimizer and the model as they were found."""
        model = self._model
        if vars(model).get(_INSTALLED) is not self:
            return
        del vars(model)[_INSTALLED]
        self._undo()
        self._split.observer = None
        model._metrics.remove(self._metric)
        if self.in_use:
            model.make_train_function(force=True)

    def _switch(self) -> Callable[..., Any]:
        """A train function that measures the calls that are due, and no others.

        Two steps are compiled, with and without the measurement: a condition within
        one step costs as much as measuring always.
        """
        plain, measured = (separate_train_function(self._model) for _ in range(2))

        def train_function(*arguments: Any) -> Any:
            # A list: every watcher counts the calls, also those that others ask for.
            done = [done for due, done in self._watchers if due()]
            if not done:
                return plain(*arguments)
            self._measuring = True
            try:
                result = measured(*arguments)
            finally:
                self._measuring = False
            record = self._read(result)
            for tell in done:
                tell(record)
            return result

        return train_function

    def _record_costs(self, data: Tensor, penalty: Tensor) -> None:
        if self._measuring:
            costs = ops.stack([ops.cast(v, "float32") for v in (data, penalty)])
            self._metric.costs.assign(costs)

    def _read(self, step_result: Any) -> StepRecord:
        variables = [self._metric.costs, self._metric.squares]
        costs, squares = metric_values(self._model, variables, step_result)
        rows = zip(
            self._names, self._coefficients, np.sqrt(squares).tolist(), strict=True
        )
        norms = {
            name: GradientNorms(data, 2.0 * c * weight, weight, c)
            for name, c, (data, weight) in rows
            if self._measured
        }
        data, penalty = costs.tolist() if self._split.seen else (math.nan, math.nan)
        return StepRecord(data, penalty, norms)

    def _measure(
        self,
        gradients: Mapping[int, Tensor],
        values: Mapping[int, Tensor],
        scale: Tensor | None,
    ) -> Tensor | None:
        """Squared norms of data gradient and weight, one row a weight."""
        if not (self._measuring and self._weights):
            return None
        if any(self._coefficients) and not self._split.seen:
            return None  # Nobody knows whether the penalty is in these gradients.
        self._measured = True
        return ops.stack(
            [
                self._row(v, gradients.get(id(v)), values[id(v)], scale)
                for v in self._weights
            ]
        )

    def _row(
        self,
        variable: keras.Variable,
        gradient: Tensor,
        value: Tensor,
        scale: Tensor | None,
    ) -> Tensor:
        if gradient is None:
            squares = sum_of_squares(ops.cast(value, "float32"))
            return ops.stack([ops.zeros(()), squares])
        factor = None
        if variable.regularizer is not None:
            data = data_summand(gradient)
            if data is None:
                factor = 2.0 * ops.cast(_coefficient(variable), "float32")
            else:
                gradient = data
        return squared_norms(
            whole_gradient(gradient),
            scale,
            factor,
            value,
            in_xla=runs_in_xla(self._model),
        )


class _Statistics(keras.metrics.Metric):
    """Carries the numbers out of the step as Keras carries a metric; logs nothing."""

    def __init__(self, weights: int) -> None:
        super().__init__(name="gradient_statistics")
        # Every replica computes the same sums; of the costs each knows its share.
        self.squares = self.add_variable(
            (weights, 2), "zeros", aggregation="only_first_replica"
        )
        self.costs = self.add_variable((2,), "zeros", aggregation="mean")

    def update_state(self, *arguments: Any, **keywords: Any) -> None:
        """Nothing: custom train steps update all metrics with ``(y, y_pred)``."""

    def result(self) -> dict[str, Tensor]:
        """No entries in Keras's logs."""
        return {}


def _is_quadratic(variable: keras.Variable) -> bool:
    return variable.regularizer is None or _coefficient(variable) is not None


def _unique_paths(variables: Sequence[keras.Variable]) -> list[str]:
    """Paths of variables; layers of the same name get a number."""
    seen: collections.Counter[str] = collections.Counter()
    paths = []
    for path in (variable.path for variable in variables):
        paths.append(f"{path}_{seen[path]}" if seen[path] else path)
        seen[path] += 1
    return paths


def _coefficient(variable: keras.Variable) -> Any:
    if variable.regularizer is None:
        return 0.0
    return effective_coefficient(variable.regularizer, variable.shape)


def _number(value: Any) -> float:
    return float(to_numpy(value))
