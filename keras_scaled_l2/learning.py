"""Strengths that follow the evidence while a model trains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_scaled_l2.counts import Weight, elements, penalized_weights
from keras_scaled_l2.curvature import loss_of, mean_loss, rows_per_example
from keras_scaled_l2.evidence import (
    half_noise,
    most_examples,
    present_coefficients,
    refuse_batch_normalization,
    refuse_own_loss,
    sum_of_squares_of,
)
from keras_scaled_l2.gradients import strategy_scope, sum_of_squares, to_numpy
from keras_scaled_l2.grams import RowFinder, gamma_of_all
from keras_scaled_l2.learned import (
    LearnedPenalty,
    begin_learning,
    finish_learning,
)
from keras_scaled_l2.rule import Rule
from keras_scaled_l2.steps import put_regularizer
from keras_scaled_l2.warn import warn

_MOST_MOVE = math.log(2.0)
_DAMPING = 0.5
_INTERPOLATES = 0.01
# Gamma hardly moves from epoch to epoch; to count it on few rows costs nothing.
_RECOUNT = 5
_FEW_ROWS = 300
_TINY = 1e-12


class Learned(NamedTuple):
    """What is known of one layer's strength after an epoch."""

    coefficient: float
    gamma: float
    """Determined parameters; nan before the first update."""
    weights: int


class _Group:
    """The weights of one config entry: they share a rule, and so a coefficient."""

    def __init__(self, weights: Sequence[Weight], model: keras.Model) -> None:
        self.weights = list(weights)
        self.rule: Any = weights[0].variable.regularizer
        self.paths = [w.variable.path for w in weights]
        self.gamma = math.nan
        c = self.rule.coefficient(weights[0].variable.shape)
        self._noted = np.float32(c)
        with strategy_scope(model):
            self.variable = keras.Variable(
                c, trainable=False, dtype="float32", name="coefficient"
            )

    @property
    def size(self) -> int:
        return sum(elements(w.variable.shape) for w in self.weights)

    @property
    def coefficient(self) -> float:
        return float(to_numpy(self.variable))

    def put(self, penalty: Any) -> None:
        """Put a penalty on the variables; the config keeps the rule."""
        for weight in self.weights:
            put_regularizer(weight.variable, penalty)

    def note(self) -> None:
        """Have the config say what the strength is now: a saved model continues."""
        c = to_numpy(self.variable)
        if c == self._noted:
            return
        self._noted = c
        self.rule = self.rule.with_strength(2.0 * self.rule.sample_count * float(c))
        for weight in self.weights:
            weight.variable.regularizer.rule = self.rule
            if weight.attribute is not None:
                setattr(weight.config_layer, weight.attribute, self.rule)


class Learning:
    """Moves the strengths of a model's learning rules, epoch by epoch.

    Args:
        model: A built and compiled model whose rules are resolved.
        x: Training examples, all or a subset; few of them are used.
        y: Their targets.

    Raises:
        ValueError: If the evidence has no meaning for the model or its loss.
    """

    def __init__(self, model: keras.Model, x: Any, y: Any) -> None:
        refuse_batch_normalization(model)
        refuse_own_loss(model)
        self._model = model
        self._x, self._y = _chosen(x, y, most_examples(model))
        self._finder = RowFinder(model, self._x, present_coefficients(model))
        self._groups = [_Group(g, model) for g in _grouped(model, self._finder.unknown)]
        self.stopped = False
        few = len(self._x) * rows_per_example(model) <= _FEW_ROWS
        self._recount = 1 if few else _RECOUNT
        self._updates = 0
        self.unknown = list(self._finder.unknown)
        for group in self._groups:
            group.put(LearnedPenalty(group.rule, group.variable))
        begin_learning(model, [group.variable for group in self._groups])

    def epoch(self, epochs: int) -> None:
        """After so many epochs of this training: an update, if it is time for one."""
        due = [g for g in self._groups if epochs >= g.rule.burn_in]
        if due and not self.stopped and self._is_finite():
            self._update(due)
        for group in self._groups:
            group.note()

    def numbers(self) -> dict[str, Learned]:
        """Path of each layer's weight, the first if there are several -> its state."""
        return {
            g.paths[0]: Learned(g.coefficient, g.gamma, g.size) for g in self._groups
        }

    def remove(self) -> None:
        """Leaves plain rules with the strengths that were found."""
        finish_learning(self._model)

    def _update(self, due: Sequence[_Group]) -> None:
        if self._updates % self._recount == 0:
            self._count(due[0].rule.sample_count)
        self._updates += 1
        gamma = sum(g.gamma for g in self._groups) + self._others
        m = due[0].rule.sample_count
        half = half_noise(self._model, self._x, self._y, gamma, m)
        wanted = [math.log(max(_target(g, half), _TINY)) for g in due]
        moves = [w - math.log(g.coefficient) for w, g in zip(wanted, due, strict=True)]
        if all(move < 0 for move in moves) and self._interpolates():
            self._stop()
            return
        for group, move in zip(due, moves, strict=True):
            _move(group, move)

    def _count(self, m: int) -> None:
        coefficients = present_coefficients(self._model)
        known = {p: c for p, c in coefficients.items() if p not in self.unknown}
        gammas = gamma_of_all(self._finder(self._x), known, len(self._x), m)
        for group in self._groups:
            group.gamma = sum(gammas.pop(p) for p in group.paths)
        self._others = sum(gammas.values())

    def _is_finite(self) -> bool:
        """Whether the training has not diverged, which no strength would mend."""
        # Where the weights are: in float64 each of them would be copied, every epoch.
        sums = [sum_of_squares(v) for v in self._model.trainable_variables]
        return all(math.isfinite(float(to_numpy(s))) for s in sums)

    def _interpolates(self) -> bool:
        if loss_of(self._model)[0] == "squares":
            return False
        return mean_loss(self._model, self._x, self._y) < _INTERPOLATES

    def _stop(self) -> None:
        self.stopped = True
        warn(
            f"EvidenceL2 stops: {self._model.name!r} fits its training examples "
            f"(mean loss below {_INTERPOLATES:g}), where gamma goes to 0 and the "
            "strength with it. The strengths stay as they are, for the rest of this "
            "training; choose one with validation data.",
        )


def _move(group: _Group, move: float) -> None:
    """A damped step of the logarithm, at most a factor of 2."""
    step = max(-_MOST_MOVE, min(_MOST_MOVE, _DAMPING * move))
    group.variable.assign(group.coefficient * math.exp(step))


def _target(group: _Group, half: float) -> float:
    squares = sum(sum_of_squares_of(w.variable) for w in group.weights)
    rule = group.rule
    m = rule.sample_count
    return float(rule.temperature * group.gamma * half / (m * max(squares, _TINY)))


def learns(model: keras.Model) -> bool:
    """Whether a model carries a rule whose strength is to be learned."""
    return any(
        isinstance(w.variable.regularizer, Rule) and w.variable.regularizer.learns
        for w in penalized_weights(model)
    )


def _grouped(model: keras.Model, unknown: Sequence[str]) -> list[list[Weight]]:
    groups: dict[tuple[int, Any], list[Weight]] = {}
    for weight in penalized_weights(model):
        rule = weight.variable.regularizer
        if not (isinstance(rule, Rule) and rule.learns):
            continue
        if weight.variable.path in unknown:
            continue
        entry = weight.attribute or weight.variable.path
        groups.setdefault((id(weight.config_layer), entry), []).append(weight)
    return list(groups.values())


def _chosen(x: Any, y: Any, most: int) -> tuple[Any, Any]:
    """A subset of the examples, the same in every training."""
    x, y = to_numpy(x), to_numpy(y)
    if len(x) != len(y):
        raise ValueError(
            f"The examples are {len(x)} inputs and {len(y)} targets: expected a target "
            "for each input."
        )
    if len(x) <= most:
        return x, y
    places = np.random.default_rng(0).permutation(len(x))[:most]
    return x[places], y[places]
