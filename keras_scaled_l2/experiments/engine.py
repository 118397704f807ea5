"""Many trainings of one architecture by one compiled program."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_scaled_l2.backends import current_backend
from keras_scaled_l2.backends.loop import Data, State, Trainee, TrainingLoop, Values
from keras_scaled_l2.counts import elements
from keras_scaled_l2.experiments.architectures import gives_probabilities
from keras_scaled_l2.experiments.objective import loss_of, right_answers
from keras_scaled_l2.experiments.problems import Problem
from keras_scaled_l2.experiments.twin import variable_dropouts

EVALUATION_BATCH = 1000
CALL_SECONDS = 0.5
"""How long one call of a program may take: so long Ctrl-C waits for an answer."""
MEMORY = 2 * 2**30
"""Bytes that a batch of jobs may take by default."""
COPIES = 8
"""Of a job's weights: themselves, the best, gradients, momenta, and what steps need."""

Curves = Mapping[str, Sequence[float]]
Norms = Mapping[str, Mapping[str, float]]
Stop = Callable[[int, Curves], bool]
NORMS = ("weight", "data_gradient", "penalty_gradient")


class Watch:
    """Hears of what an engine does; this one does nothing."""

    def begin(self, place: int) -> None:
        """The job of this place begins."""

    def epoch(self, place: int, curves: Curves, norms: Norms) -> None:
        """An epoch has ended.

        Args:
            place: Place of the job.
            curves: Its curves so far, as ``Trained`` has them.
            norms: Its norms at the first step of the epoch: kind -> weight -> norm.
        """


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """One training: what differs between the jobs of an architecture.

    Args:
        problem: The data, split.
        initial: Initial weights, in the order of the engine's ``weights``.
        coefficients: Name of a weight, as the engine's ``penalties`` has it -> ``c`` of
            its penalty ``c * sum(w**2)``; 0 for those that are left out.
        seed: Seed of batch order and dropout masks.
        epochs: Passes over the training data, at most.
        dropout: Dropout rate.
        weight_decay: Decoupled weight decay on the weights that may be penalized.
        learning_rate: ``None`` for that of the engine's optimizer.
        patience: Epochs without a lower validation data loss after which to stop and
            go back to the best; ``None`` trains all epochs and keeps the last.
    """

    problem: Problem
    initial: Sequence[np.ndarray]
    coefficients: Mapping[str, float]
    seed: int
    epochs: int
    dropout: float = 0.0
    weight_decay: float = 0.0
    learning_rate: float | None = None
    patience: int | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """A network on one set, dropout off.

    Args:
        data_loss: Mean loss without penalties.
        penalty: ``sum of c * sum(w**2)``.
        accuracy: Share of right answers; ``None`` in a regression.
        outputs: Of each example.
    """

    data_loss: float
    penalty: float
    accuracy: float | None
    outputs: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Gradients:
    """Norms of weights and of their data gradients on one batch, dropout off."""

    weights: dict[str, float]
    data: dict[str, float]


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """What a job left.

    Args:
        curves: ``data_loss``, ``penalty``, and for classes ``accuracy`` -> value by
            epoch, means over the epoch with dropout on; the same with ``val_`` before
            the name, of the validation set after the epoch.
        norms: ``weight``, ``data_gradient`` and ``penalty_gradient`` -> name of the
            weight -> norm at the first step of each epoch.
        best_epoch: Epoch of the lowest validation data loss, counted from 1.
        kept_epoch: Epoch whose weights were kept.
        steps: Steps that were trained.
        seconds: Wall time of the training; jobs of a batch share it.
        evaluations: Set -> its evaluation with the weights that were kept, of the sets
            that were asked for.
        gradients: With the weights that were kept; ``None`` if not asked for.
        weights: The weights that were kept, in the order of ``Job.initial``.
    """

    curves: dict[str, list[float]]
    norms: dict[str, dict[str, list[float]]]
    best_epoch: int
    kept_epoch: int
    steps: int
    seconds: float
    evaluations: dict[str, Evaluation]
    gradients: Gradients | None
    weights: list[np.ndarray]


class Engine:
    """One network, compiled once, that trains any number of jobs.

    Penalty coefficients, dropout rate, decay, learning rate and seeds are inputs of the
    program, not constants of its trace. On an accelerator several jobs train in one
    program, as many as ``memory`` holds (``COPIES`` copies of the weights each);
    on a processor one after the other, since batching gains nothing there and a job
    that stops early stops costing.

    Args:
        network: A built network without penalties; the engine owns it from now on.
            Dropout that jobs may set is made of ``VariableDropout`` layers.
        weights: Its weights in the order of ``Job.initial``.
        penalties: Name, as the jobs' coefficients have it -> the weight to penalize.
        problem: Tells the task; the data of each job is its own.
        optimizer: An optimizer that nothing else uses.
        batch_size: Examples per step; the last step of an epoch has what is left.
        decays: Whether jobs may have weight decay; it costs a pass over the weights.
        memory: Bytes that a batch of jobs may take.
        batched: Whether to batch jobs; by default where the device gains by it.
    """

    def __init__(
        self,
        network: keras.Model,
        *,
        weights: Sequence[keras.Variable],
        penalties: Mapping[str, keras.Variable],
        problem: Problem,
        optimizer: keras.optimizers.Optimizer,
        batch_size: int,
        decays: bool = False,
        memory: int = MEMORY,
        batched: bool | None = None,
    ) -> None:
        self.batch_size = batch_size
        self.names = list(penalties)
        self.probabilities = gives_probabilities(network)
        self._network, self._weights = network, list(weights)
        trainable = network.trainable_variables
        place = {id(v): i for i, v in enumerate(trainable)}
        optimizer.build(trainable)
        self._optimizer = optimizer
        right = right_answers(problem.task, self.probabilities)
        self._trainee = Trainee(
            network=network,
            optimizer=optimizer,
            loss=loss_of(problem.task, self.probabilities),
            right=right,
            penalized=tuple(place[id(v)] for v in penalties.values()),
            decays=decays,
        )
        kind = current_backend().TrainingLoop
        self._batched = kind.batches_jobs if batched is None else batched
        self._loop: TrainingLoop = kind(self._trainee, batched=self._batched)
        size = sum(elements(v.shape) for v in network.variables)
        self.jobs_at_once = (
            max(1, memory // (4 * COPIES * size)) if self._batched else 1
        )
        self._drops = bool(variable_dropouts(network))
        self._initial = {id(v): _numpy(v) for v in network.variables}
        self._fresh = [_numpy(v) for v in optimizer.variables]
        self._data: weakref.WeakKeyDictionary[Problem, dict[str, Data]]
        self._data = weakref.WeakKeyDictionary()
        self._seconds_per_step: float | None = None
        self._busy = False

    def train(
        self,
        jobs: Iterable[Job],
        *,
        stop: Stop | None = None,
        watch: Watch | None = None,
        evaluate: Sequence[str] = (),
        gradients: bool = False,
    ) -> Iterator[tuple[int, Trained]]:
        """Train jobs; each result is given as soon as its batch has ended.

        Args:
            jobs: What to train. Neighbors with the same problem may share a batch.
            stop: ``(place of the job, its curves so far)`` -> whether it is to stop;
                asked after each epoch.
            watch: Hears of the beginning and of the epochs of each job.
            evaluate: Sets to evaluate at the end: ``"train"``, ``"test"``.
            gradients: Whether to measure gradients at the end, on one batch.

        Yields:
            ``(place of the job, what it left)``.
        """
        for group in self._groups(list(jobs)):
            with self._alone():
                run = _Run(self, group, stop, watch)
                run.train()
                results = [
                    run.result(k, evaluate, gradients) for k in range(len(group))
                ]
            yield from zip(group, results, strict=True)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Where the state lies in variables, another training would write over it."""
        if self._busy:
            raise RuntimeError(
                "This engine is training: expected a call before or after, not from a "
                "watch or a stop."
            )
        self._busy = True
        try:
            yield
        finally:
            self._busy = False

    def start(self, problem: Problem, initial: Sequence[np.ndarray]) -> Trained:
        """Evaluation of the training set and gradients before any step."""
        job = Job(problem, initial, {}, seed=0, epochs=0)
        ((_, found),) = self.train([job], evaluate=["train"], gradients=True)
        return found

    def warm_up(self, problem: Problem) -> None:
        """Compile everything, so that no job's seconds hold the compilation."""
        initial = [self._initial[id(v)] for v in self._weights]
        job = Job(problem, initial, {}, seed=0, epochs=1)
        run = _Run(self, {0: job})
        run.epoch(steps=2)
        run.validate()
        run.result(0, ["train", "test"], gradients=True)

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

    def _rate_place(self) -> int | None:
        """Where the optimizer's variables hold its learning rate; not in a schedule."""
        rate = self._optimizer.learning_rate
        places = [i for i, v in enumerate(self._optimizer.variables) if v is rate]
        return places[0] if places else None

    def _groups(self, jobs: Sequence[Job]) -> Iterator[dict[int, Job]]:
        """Neighbors with the same data, as many as train at once."""
        for _, same in itertools.groupby(
            enumerate(jobs), key=lambda item: id(item[1].problem)
        ):
            numbered = list(same)
            for first in range(0, len(numbered), self.jobs_at_once):
                yield dict(numbered[first : first + self.jobs_at_once])

    def _put(self, problem: Problem, part: str) -> Data:
        """A part of the data on the device, brought there once."""
        parts = self._data.setdefault(problem, {})
        if part not in parts:
            x, y = (getattr(problem, f"{axis}_{part}") for axis in "xy")
            parts[part] = self._loop.put(x, y)
        return parts[part]

    def _values(self, job: Job) -> Values:
        """What the program of a job starts from."""
        self._check(job)
        network = self._network
        found = dict(self._initial)
        for variable, value in zip(self._weights, job.initial, strict=True):
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
        if job.weight_decay and not self._trainee.decays:
            raise ValueError(f"weight_decay={job.weight_decay}: made without decay.")


class _Run:
    """A batch of jobs that trains: the only place that moves its state.

    Args:
        engine: The engine.
        jobs: Place of the job -> the job; all of one problem.
        stop: As in ``Engine.train``.
        watch: As in ``Engine.train``.
    """

    def __init__(
        self,
        engine: Engine,
        jobs: Mapping[int, Job],
        stop: Stop | None = None,
        watch: Watch | None = None,
    ) -> None:
        self._engine, self._loop = engine, engine._loop
        self._watch = watch or Watch()
        self._places, self._jobs = list(jobs), list(jobs.values())
        self._stop = stop
        self._problem = self._jobs[0].problem
        # Layers that draw without a seed of their own draw from Keras's global one.
        keras.utils.set_random_seed(self._jobs[0].seed)
        values = [engine._values(job) for job in self._jobs]
        self._c = np.stack([v.coefficients for v in values]).astype(np.float64)
        self._state: State = self._loop.start(values)
        self._kept: Any = None
        n = len(self._jobs)
        self._curves: list[dict[str, list[float]]] = [{} for _ in range(n)]
        self._squares: list[list[np.ndarray]] = [[] for _ in range(n)]
        self._best, self._best_epoch = np.full(n, math.inf), np.zeros(n, int)
        self._epoch = 0
        self._active = np.array([job.epochs > 0 for job in self._jobs])
        self._steps = np.zeros(n, int)
        self._seconds = np.zeros(n)

    def train(self) -> None:
        """All epochs of all jobs."""
        for place in self._places:
            self._watch.begin(place)
        while self._active.any():
            clock = time.perf_counter()
            self.epoch()
            self.validate()
            self._look_at_losses()
            self._seconds[self._active] += time.perf_counter() - clock
            for k in np.flatnonzero(self._active).tolist():
                self._watch.epoch(
                    self._places[k], self._curves[k], self._norms(k, self._epoch - 1)
                )
            self._active &= [not self._ends(k) for k in range(len(self._jobs))]
        if self._kept is not None:
            self._state = self._loop.go_back(self._state, self._kept)

    def epoch(self, steps: int | None = None) -> None:
        """One pass over the training data, measured at its first step."""
        size = self._engine.batch_size
        data = self._engine._put(self._problem, "train")
        n = len(self._problem.y_train)
        order = self._order(n)
        whole = n // size if steps is None else min(steps, n // size)
        batches = order[:, : n // size * size].reshape(len(order), -1, size)
        rest = order[:, n // size * size :]
        first = batches[:, 0] if whole else rest
        sums, squares = self._step(data, first)
        if whole > 1:
            sums = sums + self._many(data, batches, 1, whole)
        if whole and rest.shape[1]:
            # Of another size: a program of its own, as Keras's last step is.
            sums = sums + self._step(data, rest)[0]
        self._steps[self._active] += -(-n // size)
        measured = self._each(squares)
        for k in np.flatnonzero(self._active):
            self._squares[k].append(measured[k].astype(np.float64))
        self._append("", self._each(sums), n)
        self._epoch += 1

    def validate(self) -> None:
        """Validation losses of the jobs that train."""
        sums, _ = self._evaluate("validation")
        self._append("val_", sums, len(self._problem.y_validation))

    def result(self, k: int, evaluate: Sequence[str], gradients: bool) -> Trained:
        """What a job left."""
        curves = self._curves[k]
        last = len(curves.get("val_data_loss", ()))
        best = int(self._best_epoch[k]) or min(1, last)
        kept = last if self._jobs[k].patience is None else best
        return Trained(
            curves=curves,
            norms=self._all_norms(k),
            best_epoch=best,
            kept_epoch=kept,
            steps=int(self._steps[k]),
            seconds=float(self._seconds[k]),
            evaluations={part: self._evaluation(part, k) for part in evaluate},
            gradients=self._gradients(k) if gradients else None,
            weights=self._final_weights(k),
        )

    def _ends(self, k: int) -> bool:
        job = self._jobs[k]
        waited = self._epoch - self._best_epoch[k]
        if self._epoch >= job.epochs or (
            job.patience is not None and waited >= job.patience
        ):
            return True
        place = self._places[k]
        return self._stop is not None and self._stop(place, self._curves[k])

    def _order(self, n: int) -> np.ndarray:
        """The order of the examples, which follows from seed and epoch alone."""
        return np.stack(
            [
                np.random.default_rng([job.seed, self._epoch]).permutation(n)
                for job in self._jobs
            ]
        ).astype(np.int32)

    def _look_at_losses(self) -> None:
        """Remembers the best epoch, and its weights where they are to be kept."""
        losses = np.array([c["val_data_loss"][-1] for c in self._curves])
        # A loss that is not a number is no best one, wherever it stands.
        better = self._active & (losses < self._best)
        self._best = np.where(better, losses, self._best)
        self._best_epoch = np.where(better, self._epoch, self._best_epoch)
        stopping = np.array([job.patience is not None for job in self._jobs])
        if not stopping.any():
            return
        # Jobs without patience keep their last weights.
        keep = np.where(stopping, better, self._active)
        if self._epoch == 1 or keep.any():
            self._kept = self._loop.keep(self._state, keep, self._kept)

    def _step(self, data: Data, chosen: np.ndarray) -> tuple[Any, Any]:
        self._state, sums, squares = self._loop.step(
            self._state, data, self._some(chosen), self._active
        )
        return sums, squares

    def _many(self, data: Data, order: np.ndarray, start: int, stop: int) -> Any:
        """Steps in calls short enough for Ctrl-C to be answered."""
        total: Any = 0.0
        while start < stop:
            pace = self._engine._seconds_per_step
            # Before the first measurement few steps at once, and waited for.
            n = 2 if pace is None else max(1, int(CALL_SECONDS / pace))
            end = min(start + n, stop)
            clock = time.perf_counter()
            self._state, sums = self._loop.steps(
                self._state, data, self._some(order), (start, end), self._active
            )
            total = total + sums
            if pace is None or end < stop:
                self._loop.fetch(sums)
                seconds = (time.perf_counter() - clock) / (end - start)
                self._engine._seconds_per_step = max(seconds, 1e-6)
            start = end
        return total

    def _some(self, array: np.ndarray) -> np.ndarray:
        """An array with a row for each job, as the loop takes it."""
        return array if self._engine._batched else array[0]

    def _each(self, tensor: Any) -> np.ndarray:
        """A result with a row for each job."""
        found = self._loop.fetch(tensor)
        return found if self._engine._batched else found[None]

    def _evaluate(self, part: str) -> tuple[np.ndarray, list[Any]]:
        data = self._engine._put(self._problem, part)
        n = len(getattr(self._problem, f"y_{part}"))
        total, outputs = None, []
        for start in range(0, n, EVALUATION_BATCH):
            chosen = np.arange(start, min(start + EVALUATION_BATCH, n), dtype=np.int32)
            sums, output = self._loop.evaluate(self._state, data, chosen)
            total = sums if total is None else total + sums
            outputs.append(output)
        return self._each(total), outputs

    def _evaluation(self, part: str, k: int) -> Evaluation:
        sums, outputs = self._evaluate(part)
        n = len(getattr(self._problem, f"y_{part}"))
        loss, penalty, right = (float(value) / n for value in sums[k])
        return Evaluation(
            data_loss=loss,
            penalty=penalty,
            accuracy=None if self._engine._trainee.right is None else right,
            outputs=np.concatenate([self._each(output)[k] for output in outputs]),
        )

    def _gradients(self, k: int) -> Gradients:
        data = self._engine._put(self._problem, "train")
        n = min(EVALUATION_BATCH, len(self._problem.y_train))
        chosen = np.arange(n, dtype=np.int32)
        found = self._loop.gradient_squares(self._state, data, chosen)
        weights, gradients = np.sqrt(self._each(found)[k].astype(np.float64)).tolist()
        names = self._engine.names
        return Gradients(
            dict(zip(names, weights, strict=True)),
            dict(zip(names, gradients, strict=True)),
        )

    def _append(self, prefix: str, sums: np.ndarray, n: int) -> None:
        names = ["data_loss", "penalty", "accuracy"]
        if self._engine._trainee.right is None:
            names = names[:2]
        for k in np.flatnonzero(self._active):
            for name, value in zip(names, sums[k], strict=False):
                curve = self._curves[k].setdefault(prefix + name, [])
                curve.append(float(value) / n)

    def _norms(self, k: int, epoch: int) -> dict[str, dict[str, float]]:
        """Norms at the first step of an epoch: kind -> weight -> norm."""
        weights, gradients = np.sqrt(self._squares[k][epoch])
        columns = (weights, gradients, 2.0 * self._c[k] * weights)
        return {
            kind: dict(zip(self._engine.names, column.tolist(), strict=True))
            for kind, column in zip(NORMS, columns, strict=True)
        }

    def _all_norms(self, k: int) -> dict[str, dict[str, list[float]]]:
        """``_norms`` of all epochs: kind -> weight -> norm by epoch."""
        epochs = [self._norms(k, epoch) for epoch in range(len(self._squares[k]))]
        return {
            kind: {name: [norms[kind][name] for norms in epochs] for name in names}
            for kind in NORMS
            if (names := self._engine.names) and epochs
        }

    def _final_weights(self, k: int) -> list[np.ndarray]:
        network = self._engine._network
        variables = (*network.trainable_variables, *network.non_trainable_variables)
        values = self._loop.weights(self._state)[k]
        found = {id(v): value for v, value in zip(variables, values, strict=True)}
        return [found[id(v)] for v in self._engine._weights]


def _numpy(variable: keras.Variable) -> np.ndarray:
    return np.array(ops.convert_to_numpy(variable.value))
