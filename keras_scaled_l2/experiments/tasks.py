"""The runs and trials of a comparison: what each is, and how an engine trains them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from keras_scaled_l2.experiments import runs
from keras_scaled_l2.experiments.architectures import initial_weights
from keras_scaled_l2.experiments.engine import Engine
from keras_scaled_l2.experiments.jobs import Curves, Job, Norms, Trained, Watch
from keras_scaled_l2.experiments.plan import Plan
from keras_scaled_l2.experiments.problems import Problem
from keras_scaled_l2.experiments.progress import Progress
from keras_scaled_l2.experiments.results.records import (
    ArmRecord,
    Hyperparameters,
    Trial,
)

TRIAL_SEED = 2**20
"""Trials start from other weights than the runs that count: luck is not chosen."""

_EVERYTHING = {"evaluate": ("train", "test"), "gradients": True}
"""What a run that counts is asked at its end; a trial is not."""


@dataclasses.dataclass(frozen=True)
class Task:
    """A run or a trial that is to be made."""

    arm: ArmRecord
    seed: int
    trial: int | None = None

    @property
    def name(self) -> str:
        """Name of its record."""
        name = f"{self.arm.name}/seed-{self.seed}"
        return name if self.trial is None else f"{name}-trial-{self.trial}"


class Shared:
    """What the arms of a seed share, made when it is first asked for."""

    def __init__(self, plan: Plan, seed: int) -> None:
        self._plan = plan
        self._seed = seed
        self._initial: dict[int, list[np.ndarray]] = {}
        self._starts: dict[Engine, Trained] = {}

    @functools.cached_property
    def data(self) -> Problem:
        """The problem as this seed splits it."""
        return self._plan.data(self._seed)

    def initial(self, seed: int) -> list[np.ndarray]:
        """Initial weights, drawn from a seed of their own: trials have another."""
        if seed not in self._initial:
            drawn = initial_weights(self._plan.architecture.build(seed))
            self._initial[seed] = drawn
        return self._initial[seed]

    def start(self, engine: Engine) -> Trained:
        """What an engine finds before the first step: dropout and penalties off."""
        if engine not in self._starts:
            found = engine.start(self.data, self.initial(self._seed))
            self._starts[engine] = found
        return self._starts[engine]


class TaskTraining(Watch):
    """Tasks that one engine trains, and their records.

    Args:
        engine: What trains them.
        pairs: Each task with the setting that it comes to.
        shared: What the tasks of the seed share.
        progress: Told of what happens.
        job: Makes the job of a task and its setting.
        events: The folder for the curves of a task, if it has any.
        save: Saves the record of a task; gives it as it will be read again.
        check_interrupt: Called whenever something is heard; may raise.
    """

    def __init__(
        self,
        engine: Engine,
        pairs: Sequence[tuple[Task, Hyperparameters]],
        shared: Shared,
        progress: Progress,
        *,
        job: Callable[[Shared, Task, Hyperparameters], Job],
        events: Callable[[Task], pathlib.Path | None],
        lost: Callable[[str, OSError], None],
        save: Callable[[Task, dict[str, Any]], dict[str, Any]],
        check_interrupt: Callable[[], None],
    ) -> None:
        self._engine, self._shared = engine, shared
        self._folder, self._save, self._check = events, save, check_interrupt
        self._lost = lost
        self._pairs, self._progress = pairs, progress
        self._jobs = [job(shared, task, setting) for task, setting in pairs]
        self._events: dict[int, runs.RunEvents] = {}
        is_trial = pairs[0][0].trial is not None
        self._asked: dict[str, Any] = {} if is_trial else _EVERYTHING
        # Now: an engine trains one thing at a time.
        self._start = None if is_trial else shared.start(engine)

    def records(self) -> Iterator[tuple[Task, dict[str, Any]]]:
        """Trains, and gives each record once it is saved."""
        try:
            for place, trained in self._engine.train(
                self._jobs, watch=self, **self._asked
            ):
                task, setting = self._pairs[place]
                record = self._record(place, setting, trained)
                yield task, self._save(task, record)
        finally:
            for events in self._events.values():
                events.close()

    def begin(self, place: int) -> None:
        """Opens the files of a run."""
        self._check()
        task, setting = self._pairs[place]
        self._progress.begin(task.arm.name, task.seed, task.trial)
        folder = None if task.trial is not None else self._folder(task)
        if folder is not None and self._start is not None:
            job = self._jobs[place]
            with self._writing(place):
                self._events[place] = runs.RunEvents(
                    folder,
                    job,
                    start_penalty=runs.starting_penalty(job, self._start),
                    engine=self._engine,
                    hparams=_hparams(task, setting, job.coefficients),
                )

    def epoch(self, place: int, curves: Curves, norms: Norms) -> None:
        """Tells the progress, and writes the curves."""
        self._check()
        if place in self._events:
            with self._writing(place):
                self._events[place].epoch(place, curves, norms)
        logs = {name: values[-1] for name, values in curves.items()}
        task, _ = self._pairs[place]
        self._progress.epoch(task.arm.name, task.seed, logs)

    def _record(
        self, place: int, setting: Hyperparameters, trained: Trained
    ) -> dict[str, Any]:
        if self._start is None:
            return dataclasses.asdict(runs.trial(setting, trained))
        job, engine = self._jobs[place], self._engine
        record = runs.record(job, setting, self._start, trained, engine)
        if place in self._events:
            with self._writing(place):
                self._events[place].test(record.test, trained.steps)
                self._events.pop(place).close()
        return record.to_dict()

    @contextlib.contextmanager
    def _writing(self, place: int) -> Iterator[None]:
        """Leave the rest of a run's curves out if they cannot be written."""
        try:
            yield
        except OSError as error:
            broken = self._events.pop(place, None)
            if broken is not None:
                with contextlib.suppress(OSError):  # said below
                    broken.close()
            task, _ = self._pairs[place]
            self._lost(f"tensorboard/{task.arm.name}/seed-{task.seed}", error)


def kind_of(arm: ArmRecord) -> tuple[bool, bool]:
    """Whether an arm may have dropout, and weight decay."""
    settings = settings_of(arm)
    return any(s.dropout for s in settings), any(s.weight_decay for s in settings)


def settings_of(arm: ArmRecord) -> list[Hyperparameters]:
    """Everything that an arm may come to."""
    return [arm.hyperparameters, *arm.grid]


def trial_seed(seed: int) -> int:
    """The seed of the weights that the trials of a seed start from."""
    return (seed + TRIAL_SEED) % 2**31


def best_of(arm: ArmRecord, trials: Sequence[Trial]) -> Hyperparameters:
    """Those of the lowest validation data loss; the first of equal ones."""
    if not trials:
        return arm.hyperparameters
    losses = [t.data_loss if math.isfinite(t.data_loss) else math.inf for t in trials]
    return trials[losses.index(min(losses))].hyperparameters


def _hparams(
    task: Task, setting: Hyperparameters, found: Mapping[str, float]
) -> dict[str, float | str]:
    """What TensorBoard's table sorts the runs by."""
    rule = setting.rule
    return {
        "arm": task.arm.name,
        "seed": float(task.seed),
        "rule": "none" if rule is None else str(rule["class_name"]),
        "coefficient": max(found.values(), default=0.0),
        "dropout": setting.dropout,
        "weight_decay": setting.weight_decay,
    }
