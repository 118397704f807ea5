"""Arms and seeds on one architecture: the same start, batches and budget for all."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import pathlib
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_scaled_l2.counts import elements
from keras_scaled_l2.experiments import grids, runs
from keras_scaled_l2.experiments.architectures import DEFAULT_HIDDEN, initial_weights
from keras_scaled_l2.experiments.arms import DEFAULT_ARMS, DEFAULT_DROPOUT, Arm
from keras_scaled_l2.experiments.coefficients import coefficients, penalizable
from keras_scaled_l2.experiments.engine import (
    Curves,
    Engine,
    Job,
    Norms,
    Parts,
    Trained,
    Watch,
)
from keras_scaled_l2.experiments.following import Follower, learned_rule
from keras_scaled_l2.experiments.interrupts import kept_interrupt
from keras_scaled_l2.experiments.plan import (
    DEFAULT_BATCH_SIZE,
    DEFAULT_EPOCHS,
    DEFAULT_MEMORY,
    DEFAULT_SEEDS,
    Model,
    Plan,
    make_plan,
    versions,
)
from keras_scaled_l2.experiments.problems import Problem
from keras_scaled_l2.experiments.program import make_parts
from keras_scaled_l2.experiments.progress import Progress, choose
from keras_scaled_l2.experiments.results.comparison import Comparison
from keras_scaled_l2.experiments.results.files import finite, write_json, write_text
from keras_scaled_l2.experiments.results.page import html
from keras_scaled_l2.experiments.results.plots import save_figures
from keras_scaled_l2.experiments.results.records import (
    ArmRecord,
    Hyperparameters,
    RunRecord,
    Trial,
)
from keras_scaled_l2.experiments.storage import Store
from keras_scaled_l2.experiments.twin import derive

TRIAL_SEED = 2**20
"""Trials start from other weights than the runs that count: luck is not chosen."""


def compare(
    model: Model = "dense",
    problem: str | os.PathLike[str] | Problem = "mnist5k",
    arms: Sequence[str | Arm] = DEFAULT_ARMS,
    *,
    seeds: int | Sequence[int] = DEFAULT_SEEDS,
    epochs: int = DEFAULT_EPOCHS,
    batch_size: int = DEFAULT_BATCH_SIZE,
    hidden: Sequence[int] = DEFAULT_HIDDEN,
    dropout: float = DEFAULT_DROPOUT,
    strengths: Mapping[str, float] | None = None,
    optimizer: str | keras.optimizers.Optimizer = "sgd",
    learning_rate: float | None = None,
    directory: str | os.PathLike[str] | None = None,
    tune: int | None = None,
    patience: int | None = None,
    memory: float = DEFAULT_MEMORY,
    progress: Progress | bool = True,
) -> Comparison:
    """Train one network under several arms, and say what came of it.

    All arms of a seed have the same split of the data, start from the same weights and
    see the same batches in the same order. The same call gives the same numbers, but
    for the seconds. The test set is looked at once, at the end of each run.

    Args:
        model: ``"dense"`` or ``"conv"``; a built model, whose weights are drawn anew
            for each seed; a function that makes a built model; ``"module:function"``;
            or the path of a ``.keras`` file.
        problem: Name of a problem, path of an ``.npz`` file, or what
            ``load_problem`` gave.
        arms: Names of arms, or ``Arm`` objects.
        seeds: How many, or which. A seed sets the split of the data (unless it came
            split), initial weights, order of the batches and dropout masks.
        epochs: Passes over the training data.
        batch_size: Examples per step.
        hidden: Units of the hidden layers of ``"dense"``.
        dropout: Rate of the named arms with dropout.
        strengths: Name of an arm, or of its penalty -> strength. For the defaults see
            ``experiments.arms.default_strength``.
        optimizer: ``"sgd"`` (momentum 0.9), ``"adam"``, or a Keras optimizer.
        learning_rate: Default: 0.05 for ``"sgd"``, 0.001 for ``"adam"``.
        directory: Where everything goes: records, ``comparison.json``,
            ``comparison.md``, ``comparison.html``, figures and TensorBoard runs. Each
            finished run is saved at once, and the same call goes on where it was
            stopped. ``None`` writes nothing.
        tune: How many values each arm tries on the validation data of each seed,
            before it is trained anew with the best and tested. ``None`` trains each
            arm as it is given.
        patience: Epochs without a lower validation data loss after which training
            stops and goes back to the best epoch, in all arms. ``None`` trains all
            epochs.
        memory: GiB that trainings which run at the same time may take, all together
            (eight copies of its weights each).
        progress: ``True`` shows progress on standard error, ``False`` nothing.

    Raises:
        InputError: Before any training, if something that was asked for cannot be
            done, or the directory holds another comparison.

    Example:
        ``print(compare(problem="digits", arms=["none", "dropout"]).table())``
    """
    plan = make_plan(
        model,
        problem,
        arms,
        seeds=seeds,
        epochs=epochs,
        batch_size=batch_size,
        hidden=hidden,
        dropout=dropout,
        strengths=strengths,
        optimizer=optimizer,
        learning_rate=learning_rate,
        directory=directory,
        tune=tune,
        patience=patience,
        memory=memory,
    )
    return Experiment(plan).run(choose(progress))


@dataclasses.dataclass(frozen=True)
class _Task:
    """A run or a trial that is to be made."""

    arm: ArmRecord
    seed: int
    trial: int | None = None

    @property
    def name(self) -> str:
        """Name of its record."""
        name = f"{self.arm.name}/seed-{self.seed}"
        return name if self.trial is None else f"{name}-trial-{self.trial}"

    @property
    def tried(self) -> Hyperparameters:
        """What a trial tries."""
        assert self.trial is not None
        return self.arm.grid[self.trial]


class _Shared:
    """What the arms of a seed share, made when it is first asked for.

    Args:
        plan: The plan.
        seed: The seed.
    """

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


class Experiment:
    """A plan with its network built: what is left can only train.

    Args:
        plan: What to do.

    Raises:
        InputError: If an arm does not fit the network, or the directory holds another
            comparison.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.command: str | None = None
        """The command line that asked for it, but for the seeds."""
        network = plan.network
        self._penalties = penalizable(network)
        self._size = sum(elements(v.shape) for v in network.trainable_weights)
        self._arms = [self._record(arm) for arm in plan.arms]
        self._engines: dict[tuple[bool, bool], Engine] = {}
        self._runs: dict[tuple[str, int], RunRecord] = {}
        self._check_interrupt: Callable[[], None] = lambda: None
        if any(s.dropout for arm in self._arms for s in _settings(arm)):
            # Before any training: not every network can have dropout.
            derive(network, 0.5)
        self._store = None
        if plan.directory is not None:
            self._store = Store(plan.directory, plan.configuration())

    @property
    def runs(self) -> tuple[int, int]:
        """Number of runs that are finished, and of all."""
        return len(self._runs), len(self.plan.arms) * len(self.plan.seeds)

    def result(self) -> Comparison:
        """The comparison with the runs that are finished."""
        plan = self.plan
        return Comparison(
            problem=plan.problem.name,
            architecture=plan.architecture.name,
            weights=self._size,
            backend=keras.backend.backend(),
            device=_device(),
            versions=versions(),
            samples=plan.problem.samples,
            split="given" if plan.problem.split_seed is None else "by seed",
            epochs=plan.epochs,
            batch_size=plan.batch_size,
            optimizer=plan.optimizer.to_dict(),
            arms=tuple(
                dataclasses.replace(
                    arm,
                    runs=tuple(
                        self._runs[arm.name, seed]
                        for seed in plan.seeds
                        if (arm.name, seed) in self._runs
                    ),
                )
                for arm in self._arms
            ),
            patience=plan.patience,
            task=plan.problem.task,
            command=self.command,
        )

    def run(self, progress: Progress) -> Comparison:
        """Train every arm from every seed; what is finished is saved at once.

        Raises:
            InputError: If another process works in the directory.
        """
        with self._locked(), kept_interrupt() as self._check_interrupt:
            jobs = sum(1 + len(arm.grid) for arm in self._arms) * len(self.plan.seeds)
            progress.start(jobs, self.plan.epochs)
            try:
                for seed in self.plan.seeds:
                    self._run_seed(seed, progress)
            except BaseException:
                progress.stop()
                # The last run may have ended while its record was on the way.
                self._write_json()
                self._write_markdown()
                raise
            progress.stop()
            self._write_pages()
        return self.result()

    def _run_seed(self, seed: int, progress: Progress) -> None:
        """All trials of a seed, then all its runs, as batches of jobs."""
        shared = _Shared(self.plan, seed)
        tasks = [_Task(a, seed, n) for a in self._arms for n in range(len(a.grid))]
        tried_by_number: dict[str, dict[int, Trial]] = {a.name: {} for a in self._arms}
        for task, found in self._all(tasks, [t.tried for t in tasks], shared, progress):
            tried = Trial.from_dict(found)
            assert task.trial is not None
            tried_by_number[task.arm.name][task.trial] = tried
            progress.tried(task.arm.name, seed, task.trial, tried)
        # As they stand in the grid, whichever ended first.
        trials = {
            name: [found[number] for number in sorted(found)]
            for name, found in tried_by_number.items()
        }
        tasks = [_Task(arm, seed) for arm in self._arms]
        settings = [_best(arm, trials[arm.name]) for arm in self._arms]
        for task, found in self._all(tasks, settings, shared, progress):
            record = RunRecord.from_dict(found)
            name = task.arm.name
            record = dataclasses.replace(record, trials=tuple(trials[name]))
            self._runs[name, seed] = record
            progress.finish(name, record)
        # The runs are saved; their statistics are worth a look once all arms are there.
        self._write_json()

    def _all(
        self,
        tasks: Sequence[_Task],
        settings: Sequence[Hyperparameters],
        shared: _Shared,
        progress: Progress,
    ) -> Iterator[tuple[_Task, dict[str, Any]]]:
        """The records of tasks: those that are found, then the others, as they end."""
        waiting: dict[tuple[bool, bool], list[tuple[_Task, Hyperparameters]]] = {}
        for task, setting in zip(tasks, settings, strict=True):
            found = self._load(task)
            if found is not None:
                yield task, found
            else:
                kind = _kind(task.arm)
                waiting.setdefault(kind, []).append((task, setting))
        for kind, pairs in waiting.items():
            engine = self._engine(kind, progress)
            training = _Training(self, engine, pairs, shared, progress)
            yield from training.records()

    def _events(self, task: _Task) -> pathlib.Path | None:
        """The folder for the curves of a run, without those of one that broke off."""
        if self.plan.directory is None:
            return None
        folder = (
            self.plan.directory / "tensorboard" / task.arm.name / f"seed-{task.seed}"
        )
        shutil.rmtree(folder, ignore_errors=True)
        return folder

    def _record(self, arm: Arm) -> ArmRecord:
        grid = grids.grid(arm, self.plan.trials) if self.plan.trials else ()
        for setting in grid:
            self._coefficients(arm.name, setting)
        return ArmRecord(
            name=arm.name,
            rule=arm.config,
            dropout=arm.dropout,
            coefficients=self._coefficients(arm.name, grids.given(arm)),
            weight_decay=arm.weight_decay,
            grid=grid,
        )

    def _coefficients(self, name: str, setting: Hyperparameters) -> dict[str, float]:
        return coefficients(
            self.plan.network,
            Arm(name, setting.rule),
            samples=self.plan.problem.samples["train"],
            batch_size=self.plan.batch_size,
            learned=True,
        )

    def follower(self, setting: Hyperparameters, data: Problem) -> Follower | None:
        """What has a job follow the evidence; ``None`` for rules that do not."""
        rule = learned_rule(setting.rule)
        if rule is None:
            return None
        return Follower(self.plan.architecture.build(self.plan.seeds[0]), rule, data)

    def _engine(self, kind: tuple[bool, bool], progress: Progress) -> Engine:
        """The engine for jobs with or without dropout, with or without decay.

        Random numbers cost more than a small network, and a step with weight decay
        reads all weights once more: each is another program.
        """
        if kind not in self._engines:
            progress.compile()
            engine = self._make_engine(*kind)
            engine.warm_up(self.plan.problem)
            self._engines[kind] = engine
        return self._engines[kind]

    def _make_engine(self, drops: bool, decays: bool) -> Engine:
        return Engine(
            functools.partial(self._parts, drops),
            problem=self.plan.problem,
            batch_size=self.plan.batch_size,
            decays=decays,
            memory=self.plan.memory,
        )

    def _parts(self, drops: bool) -> Parts:
        network = self.plan.architecture.build(self.plan.seeds[0])
        return make_parts(network, self.plan.optimizer.make(), drops=drops)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with contextlib.nullcontext() if self._store is None else self._store.locked():
            yield

    def _load(self, task: _Task) -> dict[str, Any] | None:
        return None if self._store is None else self._store.load(task.name)

    def _save(self, task: _Task, record: dict[str, Any]) -> dict[str, Any]:
        """The record as it will be read again, saved where there is a directory."""
        plain: dict[str, Any] = finite(record)
        if self._store is not None:
            self._store.save(task.name, plain)
        return plain

    def _write_json(self) -> None:
        if self.plan.directory is not None:
            result = self.result().to_dict()
            write_json(self.plan.directory / "comparison.json", result)

    def _write_markdown(self) -> None:
        if self.plan.directory is not None:
            text = self.result().to_markdown()
            write_text(self.plan.directory / "comparison.md", text)

    def _write_pages(self) -> None:
        folder = self.plan.directory
        if folder is not None:
            result = self.result()
            self._write_markdown()
            drawings = {
                path.stem: path.read_text(encoding="utf-8")
                for path in save_figures(result, folder)
                if path.suffix == ".svg"
            }
            write_text(folder / "comparison.html", html(result, drawings))


class _Training(Watch):
    """Tasks that one engine trains, and their records.

    Args:
        experiment: What they belong to.
        engine: What trains them.
        pairs: Each task with the setting that it comes to.
        shared: What the tasks of the seed share.
        progress: Told of what happens.
    """

    def __init__(
        self,
        experiment: Experiment,
        engine: Engine,
        pairs: Sequence[tuple[_Task, Hyperparameters]],
        shared: _Shared,
        progress: Progress,
    ) -> None:
        self._experiment, self._engine, self._shared = experiment, engine, shared
        self._pairs, self._progress = pairs, progress
        self._jobs = [self._job(task, setting) for task, setting in pairs]
        self._events: dict[int, runs.RunEvents] = {}
        is_trial = pairs[0][0].trial is not None
        self._asked: dict[str, Any] = {} if is_trial else _EVERYTHING
        # Now: an engine trains one thing at a time.
        self._start = None if is_trial else shared.start(engine)

    def records(self) -> Iterator[tuple[_Task, dict[str, Any]]]:
        """Trains, and gives each record once it is saved."""
        try:
            for place, trained in self._engine.train(
                self._jobs, watch=self, **self._asked
            ):
                task, setting = self._pairs[place]
                record = self._record(place, setting, trained)
                yield task, self._experiment._save(task, record)
        finally:
            for events in self._events.values():
                events.close()

    def begin(self, place: int) -> None:
        """Opens the files of a run."""
        self._experiment._check_interrupt()
        task, setting = self._pairs[place]
        self._progress.begin(task.arm.name, task.seed, task.trial)
        folder = None if task.trial is not None else self._experiment._events(task)
        if folder is not None and self._start is not None:
            job = self._jobs[place]
            self._events[place] = runs.RunEvents(
                folder,
                job,
                start_penalty=runs.starting_penalty(job, self._start),
                engine=self._engine,
                hparams=_hparams(task, setting, job.coefficients),
            )

    def epoch(self, place: int, curves: Curves, norms: Norms) -> None:
        """Tells the progress, and writes the curves."""
        self._experiment._check_interrupt()
        if place in self._events:
            self._events[place].epoch(place, curves, norms)
        logs = {name: values[-1] for name, values in curves.items()}
        task, _ = self._pairs[place]
        self._progress.epoch(task.arm.name, task.seed, logs)

    def _job(self, task: _Task, setting: Hyperparameters) -> Job:
        plan = self._experiment.plan
        seed = task.seed if task.trial is None else _trial_seed(task.seed)
        return Job(
            self._shared.data,
            self._shared.initial(seed),
            self._experiment._coefficients(task.arm.name, setting),
            seed=seed,
            epochs=plan.epochs,
            dropout=setting.dropout,
            weight_decay=setting.weight_decay,
            patience=plan.patience,
            adapt=self._experiment.follower(setting, self._shared.data),
        )

    def _record(
        self, place: int, setting: Hyperparameters, trained: Trained
    ) -> dict[str, Any]:
        if self._start is None:
            return dataclasses.asdict(runs.trial(setting, trained))
        job, engine = self._jobs[place], self._engine
        record = runs.record(job, setting, self._start, trained, engine)
        if place in self._events:
            self._events[place].test(record.test, trained.steps)
            self._events.pop(place).close()
        return record.to_dict()


_EVERYTHING = {"evaluate": ("train", "test"), "gradients": True}
"""What a run that counts is asked at its end; a trial is not."""


def _kind(arm: ArmRecord) -> tuple[bool, bool]:
    """Whether an arm may have dropout, and weight decay."""
    settings = _settings(arm)
    return any(s.dropout for s in settings), any(s.weight_decay for s in settings)


def _settings(arm: ArmRecord) -> list[Hyperparameters]:
    """Everything that an arm may come to."""
    return [arm.hyperparameters, *arm.grid]


def _trial_seed(seed: int) -> int:
    return (seed + TRIAL_SEED) % 2**31


def _best(arm: ArmRecord, trials: Sequence[Trial]) -> Hyperparameters:
    """Those of the lowest validation data loss; the first of equal ones."""
    if not trials:
        return arm.hyperparameters
    losses = [t.data_loss if math.isfinite(t.data_loss) else math.inf for t in trials]
    return trials[losses.index(min(losses))].hyperparameters


def _hparams(
    task: _Task, setting: Hyperparameters, found: Mapping[str, float]
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


def _device() -> str:
    """The device that Keras puts its tensors on; the processor in any case."""
    # Every backend's tensors name it, each in words of its own.
    device = str(getattr(keras.ops.zeros(()), "device", "")).rpartition("device:")[2]
    processor = f"{_processor()}, {os.cpu_count()} cores"
    return processor if "cpu" in device.lower() else f"{device}; {processor}"


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [
        line.partition(":")[2].strip() for line in lines if line.startswith("model n")
    ]
    return models[0] if models else platform.processor() or platform.machine()
