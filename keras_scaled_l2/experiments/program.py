"""A network and its compiled training loop, which many trainings share."""

from __future__ import annotations

import dataclasses
import os
import threading
import weakref
from collections.abc import Mapping, Sequence

import keras
import numpy as np
from keras import ops

from keras_scaled_l2.backends import training_loop
from keras_scaled_l2.backends.loop import Data, Trainee, TrainingLoop, Values
from keras_scaled_l2.counts import elements
from keras_scaled_l2.experiments.coefficients import penalizable
from keras_scaled_l2.experiments.dropout_variant import (
    VariableDropout,
    derive,
    matching_weights,
    variable_dropouts,
)
from keras_scaled_l2.experiments.jobs import Job
from keras_scaled_l2.experiments.objective import loss_of, right_answers
from keras_scaled_l2.experiments.outputs import gives_probabilities
from keras_scaled_l2.experiments.problems import Problem

COPIES = 8
"""Of a job's weights: themselves, the best, gradients, momenta, and what steps need."""
SIDE_BY_SIDE = 1_000_000
"""Up to so many weights a processor's cores do better with a training each."""

_LOCK = threading.Lock()

DataOnDevice = weakref.WeakKeyDictionary[Problem, dict[str, Data]]


@dataclasses.dataclass(frozen=True, eq=False)
class Parts:
    """What a program is made of; nothing else uses it from then on.

    Args:
        network: A built network without penalties. Dropout that jobs may set is made
            of ``VariableDropout`` layers.
        weights: Its weights in the order of ``Job.initial``.
        penalties: Name, as the jobs' coefficients have it -> the weight to penalize.
        optimizer: An optimizer.
    """

    network: keras.Model
    weights: Sequence[keras.Variable]
    penalties: Mapping[str, keras.Variable]
    optimizer: keras.optimizers.Optimizer


def make_parts(
    network: keras.Model, optimizer: keras.optimizers.Optimizer, *, drops: bool
) -> Parts:
    """The parts of a built network that may be penalized, and may get dropout.

    Args:
        network: A network without penalties, in whose order the weights stand.
        optimizer: What it trains with.
        drops: Whether jobs may set a dropout rate: then its variant with dropout.
    """
    trained, in_trained = network, {id(v): v for v in network.weights}
    if drops:
        trained = derive(network, 0.5, seed=0, dropout=VariableDropout)
        in_trained = {id(v): t for v, t in matching_weights(network, trained)}
    return Parts(
        trained,
        weights=[in_trained[id(v)] for v in network.weights],
        penalties={path: in_trained[id(v)] for path, v in penalizable(network).items()},
        optimizer=optimizer,
    )


class Program:
    """A network, compiled once.

    Args:
        parts: What to train.
        problem: Tells the task; the data of each job is its own.
        batch_size: Examples per step.
        decays: Whether jobs may have weight decay.
        batched: Whether a state holds several jobs; by default where the device gains.
        data: What is on the device already, for programs that share it.
    """

    def __init__(
        self,
        parts: Parts,
        *,
        problem: Problem,
        batch_size: int,
        decays: bool,
        batched: bool | None,
        data: DataOnDevice | None = None,
    ) -> None:
        network, optimizer = parts.network, parts.optimizer
        self.network, self.weights = network, list(parts.weights)
        self.names = list(parts.penalties)
        self.batch_size, self.decays = batch_size, decays
        self.probabilities = gives_probabilities(network, problem)
        self.right = right_answers(problem.task, self.probabilities)
        optimizer.build(network.trainable_variables)
        place = {id(v): i for i, v in enumerate(network.trainable_variables)}
        kind = training_loop()
        self.batched: bool = kind.batches_jobs if batched is None else batched
        self.loop: TrainingLoop = kind(
            Trainee(
                network=network,
                optimizer=optimizer,
                loss=loss_of(problem.task, self.probabilities),
                right=self.right,
                penalized=tuple(place[id(v)] for v in parts.penalties.values()),
                decays=decays,
            ),
            batched=self.batched,
        )
        self.size = sum(elements(v.shape) for v in network.variables)
        self.seconds_per_step: float | None = None
        self.data = weakref.WeakKeyDictionary() if data is None else data
        self._optimizer = optimizer
        self._drops = bool(variable_dropouts(network))
        self._initial = {id(v): _numpy(v) for v in network.variables}
        self._fresh = [_numpy(v) for v in optimizer.variables]

    def at_once(self, memory: int) -> tuple[int, int]:
        """How many jobs make a batch, and how many batches fit, into these bytes."""
        fit = max(1, memory // (4 * COPIES * self.size))
        if self.batched:
            return 1 << (fit.bit_length() - 1), 1
        if not self.loop.side_by_side or self.size > SIDE_BY_SIDE:
            return 1, 1
        return 1, min(fit, os.cpu_count() or 1)

    def rows(self, jobs: int) -> int:
        """Rows of a state with so many jobs: powers of two, as each size compiles."""
        return 1 << (jobs - 1).bit_length() if self.batched else jobs

    def own_initial(self) -> list[np.ndarray]:
        """The weights that the network came with."""
        return [self._initial[id(v)] for v in self.weights]

    def put(self, problem: Problem, part: str) -> Data:
        """A part of the data on the device, brought there once."""
        with _LOCK:
            parts = self.data.setdefault(problem, {})
            if part not in parts:
                x, y = (getattr(problem, f"{axis}_{part}") for axis in "xy")
                parts[part] = self.loop.put(x, y)
            return parts[part]

    def learning_rate(self, job: Job, step: int) -> float:
        """The learning rate of a job after so many steps."""
        if job.learning_rate is not None:
            return job.learning_rate
        place = self._rate_place()
        if place is not None:
            return float(self._fresh[place])
        config = self._optimizer.get_config()["learning_rate"]
        schedule = keras.optimizers.schedules.deserialize(config)
        return float(ops.convert_to_numpy(schedule(step)))

    def values(self, job: Job) -> Values:
        """What a job starts from.

        Raises:
            ValueError: If the program cannot train it.
        """
        self._check(job)
        network = self.network
        found = dict(self._initial)
        for variable, value in zip(self.weights, job.initial, strict=True):
            found[id(variable)] = value
        for layer in variable_dropouts(network):
            found[id(layer.rate)] = np.array(job.dropout, np.float32)
        kept = {id(v) for v in network.weights}
        seeds = [v for v in network.variables if id(v) not in kept]
        drawn = np.random.SeedSequence([job.seed, 1]).generate_state(len(seeds))
        for variable, seed in zip(seeds, drawn, strict=True):
            found[id(variable)] = np.array([int(seed) % 2**31, 0], variable.dtype)
        optimizer = list(self._fresh)
        if job.learning_rate is not None:
            place = self._rate_place()
            assert place is not None  # checked
            optimizer[place] = np.asarray(job.learning_rate, optimizer[place].dtype)
        c = [job.coefficients.get(name, 0.0) for name in self.names]
        return Values(
            trainable=[found[id(v)] for v in network.trainable_variables],
            other=[found[id(v)] for v in network.non_trainable_variables],
            optimizer=optimizer,
            coefficients=np.array(c, np.float32),
            decay=np.array(job.weight_decay, np.float32),
        )

    def _rate_place(self) -> int | None:
        """Where the optimizer's variables hold its learning rate; not in a schedule."""
        rate = self._optimizer.learning_rate
        places = [i for i, v in enumerate(self._optimizer.variables) if v is rate]
        return places[0] if places else None

    def _check(self, job: Job) -> None:
        unknown = set(job.coefficients) - set(self.names)
        if unknown:
            raise ValueError(
                f"coefficients for {sorted(unknown)}: expected only the weights "
                f"{self.names}."
            )
        if job.learning_rate is not None and self._rate_place() is None:
            raise ValueError(
                f"learning_rate={job.learning_rate}: the engine's optimizer has a "
                "schedule. Make the engine with a number as learning rate."
            )
        if job.dropout and not self._drops:
            raise ValueError(f"dropout={job.dropout}: this engine has no dropout.")
        if job.weight_decay and not self.decays:
            raise ValueError(f"weight_decay={job.weight_decay}: made without decay.")


def _numpy(variable: keras.Variable) -> np.ndarray:
    return np.array(ops.convert_to_numpy(variable.value))
