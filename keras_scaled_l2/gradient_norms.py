"""Gradient norms of a training step, read from the step's own gradients."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_scaled_l2 import _keras
from keras_scaled_l2.compiled import key_of, same_key
from keras_scaled_l2.costs import CostSplit, split_cost
from keras_scaled_l2.fitting import callbacks_of_running_fit
from keras_scaled_l2.gradients import (
    Tensor,
    data_summand,
    interceptor,
    metric_values,
    penalty_follows_call,
    runs_in_xla,
    squared_norms,
    strategy_scope,
    sum_of_squares,
    to_numpy,
    whole_gradient,
)
from keras_scaled_l2.handles import Handle
from keras_scaled_l2.rule import effective_coefficient


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


def measure_gradients(model: keras.Model, fit: object) -> GradientMeasurement:
    """The measurement of a model's gradients, installed if it is not yet.

    One that a broken-off ``fit`` left is removed, and one whose step another callback
    has remade is made anew; those who watched it ask again. What an earlier ``fit``
    has compiled serves again.

    Args:
        model: A compiled and built model.
        fit: Whatever tells the running ``fit`` from another; compared by ``is``.
    """
    found = _installed(model)
    if found is not None and found.fit is fit and found.in_use:
        found.read_coefficients()
        return found
    if found is not None:
        found.remove()
    split = split_cost(model)
    kept: GradientMeasurement | None = split.measurement
    if kept is None or not kept.is_right():
        split.measurement = kept = GradientMeasurement(model, split)
    kept.install(fit)
    return kept


def _installed(model: keras.Model) -> GradientMeasurement | None:
    """The measurement that a model carries, by the metric that it has put there."""
    own = [m for m in _keras.tracked_metrics(model) if isinstance(m, _Statistics)]
    return own[0].measurement if own else None


def remove_stale_measurement(model: keras.Model, fit: object) -> None:
    """Remove the measurement that an earlier, broken-off ``fit`` left on a model."""
    found = _installed(model)
    if found is not None and found.fit is not fit:
        found.remove()


class GradientMeasurement:
    """Measures those steps of a model that somebody watches; see ``measure_gradients``.

    For each trainable weight a measured step also computes the squared norms of the
    data gradient ``g - 2 c w`` and of ``w``. TensorFlow's graph has the data gradient
    by itself. Elsewhere it is subtracted element by element, so its norm keeps its
    digits until it is as small as the rounding of ``g`` itself: the relative error is
    about ``1e-7 * norm(2 c w) / norm(g - 2 c w)``. Where the model's ``compute_loss``
    weighs the penalties itself, ``c`` is the coefficient times that weight.

    The gradient is the step's: of one batch, before clipping and accumulation, the
    loss scale divided out, summed over replicas. Weights under a penalty that is not
    ``c * sum(w**2)`` are left out, on JAX those under ``SpectralNormalization`` too;
    so are all where the step does not tell its loss or its gradients (a custom one
    that goes past ``compute_loss`` or the optimizer), and where it computes its loss
    more than once.
    """

    def __init__(self, model: keras.Model, split: CostSplit) -> None:
        """Makes what a compiled and built model is measured with."""
        self.fit: object = None
        """Whatever tells one ``fit`` from another."""
        self._model = model
        self._split = split
        self._key = key_of(model)
        self._watchers: dict[Watcher, None] = {}
        self._history: Any = None
        self._measuring = False
        reassigned = _reassigned(model)
        self._weights = [
            v
            for v in model.trainable_weights
            if _is_quadratic(v) and id(v) not in reassigned
        ]
        self._rules = [v.regularizer for v in self._weights]
        self._names = _unique_paths(self._weights)
        # Whether its gradient was there; a step in Python sees that a weight is frozen.
        self._measured = [False for _ in self._weights]
        with strategy_scope(model):
            self._metric = _Statistics(len(self._weights), self)
        slots = self._metric.squares, self._metric.weights
        self._shadows = interceptor(model, *slots, self._measure)
        self._handle = Handle()
        self._train_function: Callable[..., Any] | None = None
        self._remade = False

    def is_right(self) -> bool:
        """Whether its steps still compute what the model would compute now."""
        return not self._remade and same_key(self._key, key_of(self._model))

    def install(self, fit: object) -> None:
        """Puts the measurement, and the steps that it has compiled, on the model."""
        model = self._model
        self.fit = fit
        self._watchers = {}
        self._history = _history_of_running_fit(model)
        self.read_coefficients()
        self._before = model.train_function
        _keras.add_metric(model, self._metric)
        self._handle = Handle(self._give_back, self._shadows().remove)
        self._split.observer = self._record_costs
        if self._train_function is None:
            self._train_function = self._switch()
        model.train_function = self._train_function

    @property
    def in_use(self) -> bool:
        """Whether nobody has remade the model's step since."""
        return self._model.train_function is self._train_function

    def read_coefficients(self) -> None:
        """Read what the coefficients are; in an epoch JAX's variables hold nothing."""
        pairs = zip(self._weights, self._rules, strict=True)
        self._coefficients = [_number(_coefficient(rule, v)) for v, rule in pairs]

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
        self._handle.remove()

    def _give_back(self) -> None:
        """Metric and step, once the methods are uncovered."""
        model = self._model
        self._split.observer = None
        _keras.remove_metric(model, self._metric)
        self._remade = not self.in_use
        if self.in_use:
            model.train_function = self._before
        self._before = None
        self._watchers, self._history = {}, None

    def _switch(self) -> Callable[..., Any]:
        """A train function that measures the calls that are due, and no others.

        Two steps are compiled, with and without the measurement: a condition within
        one step costs as much as measuring always.
        """
        plain, measured = (self._split.new_function("train") for _ in range(2))

        def train_function(*arguments: Any) -> Any:
            # A list: every watcher counts the calls, also those that others ask for.
            done = [done for due, done in self._watchers if due()]
            if not done or self._is_left_over():
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

    def _is_left_over(self) -> bool:
        """Whether the fit broke off that its watchers count the steps of."""
        return _history_of_running_fit(self._model) is not self._history

    def _record_costs(
        self, data: Tensor, penalty: Tensor, weights: Mapping[int, Tensor] | None
    ) -> None:
        if not self._measuring:
            return
        costs = ops.stack([ops.cast(v, "float32") for v in (data, penalty)])
        self._metric.costs.assign(costs)
        if weights and self._weights:
            one = ops.ones((), "float32")
            column = [weights.get(id(v), one) for v in self._weights]
            column = [ops.cast(ops.stop_gradient(w), "float32") for w in column]
            self._metric.weights.assign(ops.stack(column))

    def _read(self, step_result: Any) -> StepRecord:
        slots = [self._metric.costs, self._metric.squares, self._metric.weights]
        costs, squares, weights = metric_values(self._model, slots, step_result)
        factors = self._coefficients
        if self._is_weighed:
            factors = [c * w for c, w in zip(factors, weights.tolist(), strict=True)]
        if self._is_forgotten:
            factors = [0.0 for _ in factors]
        roots = np.sqrt(squares).tolist()
        rows = zip(self._names, factors, roots, self._measured, strict=True)
        norms = {
            name: GradientNorms(data, 2.0 * c * weight, weight, c)
            for name, c, (data, weight), measured in rows
            if measured
        }
        data, penalty = costs.tolist() if self._split.seen else (math.nan, math.nan)
        return StepRecord(data, penalty, norms)

    @property
    def _is_weighed(self) -> bool:
        """Whether the step tells what its penalties are multiplied by."""
        return self._split.seen and self._split.weighs

    @property
    def _is_forgotten(self) -> bool:
        """Whether no penalty can be in these gradients."""
        return self._split.forgotten

    def _measure(
        self,
        gradients: Mapping[int, Tensor],
        values: Mapping[int, Tensor],
        scale: Tensor | None,
        weights: Tensor,
    ) -> Tensor | None:
        """Squared norms of data gradient and weight, one row a weight."""
        if not (self._measuring and self._weights):
            return None
        if self._split.repeated:
            return None  # The gradients of which loss, at which weights?
        if any(self._coefficients) and not (self._split.seen or self._is_forgotten):
            return None  # Nobody knows whether the penalty is in these gradients.
        self._measured = [id(v) in values for v in self._weights]
        rows = []
        for i, (v, rule) in enumerate(zip(self._weights, self._rules, strict=True)):
            factor = None
            if rule is not None and not self._is_forgotten:
                factor = 2.0 * ops.cast(_coefficient(rule, v), "float32")
                if self._is_weighed:
                    factor = factor * ops.convert_to_tensor(weights)[i]
            value = values.get(id(v), v)
            rows.append(self._row(gradients.get(id(v)), value, scale, factor))
        return ops.stack(rows)

    def _row(
        self,
        gradient: Tensor,
        value: Tensor,
        scale: Tensor | None,
        factor: Tensor | None,
    ) -> Tensor:
        if gradient is None:
            squares = sum_of_squares(ops.cast(value, "float32"))
            return ops.stack([ops.zeros(()), squares])
        if factor is not None:
            data = data_summand(gradient)
            if data is not None:
                gradient, factor = data, None
        return squared_norms(
            whole_gradient(gradient),
            scale,
            factor,
            value,
            in_xla=runs_in_xla(self._model),
        )


class _Statistics(keras.metrics.Metric):
    """Carries the numbers out of the step as Keras carries a metric; logs nothing."""

    def __init__(self, weights: int, measurement: GradientMeasurement) -> None:
        super().__init__(name="gradient_statistics")
        self.measurement = measurement
        # Every replica computes the same sums; of the costs each knows its share.
        self.squares = self.add_variable(
            (weights, 2), "zeros", aggregation="only_first_replica"
        )
        self.costs = self.add_variable((2,), "zeros", aggregation="mean")
        # What each weight's penalty is multiplied by in the loss.
        self.weights = self.add_variable(
            (weights,), "ones", aggregation="only_first_replica"
        )

    def update_state(self, *arguments: Any, **keywords: Any) -> None:
        """Nothing: custom train steps update all metrics with ``(y, y_pred)``."""

    def result(self) -> dict[str, Tensor]:
        """No entries in Keras's logs."""
        return {}


def _reassigned(model: keras.Model) -> set[int]:
    """``id`` of the penalized weights whose penalty is no function of them alone."""
    if not penalty_follows_call():
        return set()
    return {
        id(v)
        for layer in _keras.layers_within(model)
        if isinstance(layer, keras.layers.SpectralNormalization)
        for v in layer.trainable_weights
        if v.regularizer is not None
    }


def _history_of_running_fit(model: keras.Model) -> Any:
    """The ``History`` that Keras gives each fit; ``None`` outside of one."""
    for callback in callbacks_of_running_fit(model):
        if isinstance(callback, keras.callbacks.History):
            return callback
    return None


def _is_quadratic(variable: keras.Variable) -> bool:
    return _coefficient(variable.regularizer, variable) is not None


def _unique_paths(variables: Sequence[keras.Variable]) -> list[str]:
    """Paths of variables; layers of the same name get a number."""
    own = {variable.path for variable in variables}
    paths: dict[str, None] = {}
    for path in (variable.path for variable in variables):
        numbered = (f"{path}_{number}" for number in itertools.count(1))
        free = (name for name in numbered if name not in own and name not in paths)
        paths[path if path not in paths else next(free)] = None
    return list(paths)


def _coefficient(regularizer: Any, variable: keras.Variable) -> Any:
    if regularizer is None:
        return 0.0
    return effective_coefficient(regularizer, variable.shape)


def _number(value: Any) -> float:
    return float(to_numpy(value))
