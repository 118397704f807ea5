"""Strengths of an engine's jobs that follow the evidence, as under ``ApplyL2``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_scaled_l2.attaching import attach, bind
from keras_scaled_l2.evidence import present_coefficients
from keras_scaled_l2.experiments.errors import DataWarning, InputError, one_line
from keras_scaled_l2.experiments.jobs import Adapted
from keras_scaled_l2.experiments.naming import paths
from keras_scaled_l2.experiments.objective import keras_loss
from keras_scaled_l2.experiments.outputs import gives_probabilities
from keras_scaled_l2.experiments.problems import Problem
from keras_scaled_l2.experiments.results.words import counted
from keras_scaled_l2.learning import Learning
from keras_scaled_l2.rule import Rule
from keras_scaled_l2.scalars import evidence_logs
from keras_scaled_l2.warn import warn


class Follower:
    """The ``adapt`` of a job: coefficients from the weights at the end of each epoch.

    The job's network trains in a program without penalties; this has one of its own
    that is given the job's weights, and asks ``learning.Learning`` as ``fit`` does.

    Args:
        network: The job's network made once more, without penalties. Not shared: jobs
            train side by side.
        rule: A rule that learns its strength.
        problem: The job's data.

    Raises:
        ValueError: If the evidence has no meaning for the network.

    Attributes:
        initial: Name of a weight -> the coefficient that the rule starts from.
        unknown: Names of the weights whose strength stays.
        gammas: Name -> determined parameters at the last count; nan before it.
    """

    def __init__(self, network: keras.Model, rule: Rule, problem: Problem) -> None:
        loss = keras_loss(problem.task, gives_probabilities(network, problem))
        # The job's own optimizer is checked with the plan.
        network.compile(keras.optimizers.SGD(), loss)
        self._network = network
        names = paths(network)
        self._names = {v.path: names[id(v)] for v in network.weights}
        attach(network, rule)
        bind(network, samples=len(problem.x_train), batch_size=1)
        self._learning = Learning(network, problem.x_train, problem.y_train)
        self.unknown = [self._names[p] for p in self._learning.unknown]
        self.initial = self._coefficients()

    @property
    def gammas(self) -> dict[str, float]:
        """See the class."""
        found = self._learning.numbers()
        return {self._names[path]: learned.gamma for path, learned in found.items()}

    def __call__(self, epochs: int, weights: Sequence[np.ndarray]) -> Adapted:
        """The coefficients after so many epochs, and their curves."""
        # Of a training that diverged there is nothing to learn.
        if all(np.isfinite(value).all() for value in weights):
            for variable, value in zip(self._network.weights, weights, strict=True):
                variable.assign(value)
            self._follow(epochs)
        found = self._learning.numbers()
        logs = evidence_logs({self._names[p]: state for p, state in found.items()})
        return Adapted(self._coefficients(), logs)

    def _follow(self, epochs: int) -> None:
        try:
            self._learning.epoch(epochs)
        except ValueError as error:
            # Residuals without noise: in the middle of a training, and of others.
            self._learning.stopped = True
            warn(f"The strengths stay: {one_line(error)}")

    def _coefficients(self) -> dict[str, float]:
        found = present_coefficients(self._network)
        return {self._names[path]: c for path, c in found.items()}


def learned_rule(config: Mapping[str, Any] | None) -> Rule | None:
    """The rule of an arm's config, if it learns its strength."""
    if config is None:
        return None
    try:
        rule = keras.saving.deserialize_keras_object(dict(config))
    except (TypeError, ValueError):
        # Of no known class: ``coefficients`` says so, with the remedy.
        return None
    return rule if isinstance(rule, Rule) and rule.learns else None


def check_following(
    name: str, network: keras.Model, rule: Rule, problem: Problem, epochs: int
) -> Follower:
    """Refuse before any training what the evidence refuses, in one line.

    The network is to be made for this alone; the name is the rule's, for the error.

    Raises:
        InputError: If the evidence has no meaning for the network, or the training is
            too short for it.
    """
    burn_in = getattr(rule, "burn_in", 0)
    if epochs <= burn_in:
        shorter = ", or give EvidenceL2(burn_in=1)" if burn_in > 1 else ""
        raise InputError(
            f"{name}: its strengths move after {counted(burn_in, 'epoch')}, and epochs "
            f"is {epochs}: expected more. Train longer{shorter}."
        )
    try:
        follower = Follower(network, rule, problem)
    except ValueError as error:
        raise InputError(f"{name}: {one_line(error)}") from error
    if follower.unknown:
        warn(
            f"{name}: the strength of {', '.join(follower.unknown)} stays as it was "
            "given: gamma of such large layers is known for Dense only.",
            DataWarning,
        )
    return follower
