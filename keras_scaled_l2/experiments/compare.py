"""Arms and seeds on one architecture: the same start, batches and budget for all."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras

from keras_scaled_l2.counts import elements
from keras_scaled_l2.experiments import grids
from keras_scaled_l2.experiments.architectures import DEFAULT_HIDDEN
from keras_scaled_l2.experiments.arms import DEFAULT_ARMS, DEFAULT_DROPOUT, Arm
from keras_scaled_l2.experiments.coefficients import coefficients, penalizable
from keras_scaled_l2.experiments.dropout_variant import derive
from keras_scaled_l2.experiments.engine import Engine, make_engine
from keras_scaled_l2.experiments.environment import device, versions
from keras_scaled_l2.experiments.following import Follower, learned_rule
from keras_scaled_l2.experiments.jobs import Job
from keras_scaled_l2.experiments.plan import (
    DEFAULT_BATCH_SIZE,
    DEFAULT_EPOCHS,
    DEFAULT_MEMORY,
    DEFAULT_SEEDS,
    Model,
    Plan,
    make_plan,
)
from keras_scaled_l2.experiments.problems import Problem
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
from keras_scaled_l2.experiments.tasks import (
    Shared,
    Task,
    TaskTraining,
    best_of,
    kind_of,
    settings_of,
    trial_seed,
)
from keras_scaled_l2.experiments.writes import Writes
from keras_scaled_l2.interrupts import kept_interrupt


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
        WriteError: At the end, if not everything could be written, as on a full disk;
            its ``result`` is the comparison.

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


class Experiment:
    """A plan with its network built: what is left can only train.

    Raises:
        InputError: If an arm does not fit the network, or the directory holds another
            comparison.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.command: str | None = None
        """The command line that asked for it, but for the seeds."""
        penalizable(plan.network)  # or none of the arms makes sense
        self._size = sum(elements(v.shape) for v in plan.network.trainable_weights)
        self._arms = [self._record(arm) for arm in plan.arms]
        self._engines: dict[tuple[bool, bool], Engine] = {}
        self._runs: dict[tuple[str, int], RunRecord] = {}
        self._check_interrupt: Callable[[], None] = lambda: None
        if any(s.dropout for arm in self._arms for s in settings_of(arm)):
            # Before any training: not every network can have dropout.
            derive(plan.network, 0.5)
        self._writes = Writes(plan.directory)
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
            device=device(),
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
            WriteError: If not everything could be written.
        """
        lock = self._store.locked() if self._store else contextlib.nullcontext()
        with lock, kept_interrupt() as self._check_interrupt:
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
            result = self.result()
            self._writes.finish(result)
        return result

    def _run_seed(self, seed: int, progress: Progress) -> None:
        """All trials of a seed, then all its runs, as batches of jobs."""
        shared = Shared(self.plan, seed)
        tasks = [Task(a, seed, n) for a in self._arms for n in range(len(a.grid))]
        tried: dict[tuple[str, int], Trial] = {}
        settings = [setting for arm in self._arms for setting in arm.grid]
        for task, found in self._all(tasks, settings, shared, progress):
            assert task.trial is not None
            trial = tried[task.arm.name, task.trial] = Trial.from_dict(found)
            progress.tried(task.arm.name, seed, task.trial, trial)
        # As they stand in the grid, whichever ended first.
        trials = {
            arm.name: [tried[arm.name, n] for n in range(len(arm.grid))]
            for arm in self._arms
        }
        tasks = [Task(arm, seed) for arm in self._arms]
        settings = [best_of(arm, trials[arm.name]) for arm in self._arms]
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
        tasks: Sequence[Task],
        settings: Sequence[Hyperparameters],
        shared: Shared,
        progress: Progress,
    ) -> Iterator[tuple[Task, dict[str, Any]]]:
        """The records of tasks: those that are found, then the others, as they end."""
        waiting: dict[tuple[bool, bool], list[tuple[Task, Hyperparameters]]] = {}
        for task, setting in zip(tasks, settings, strict=True):
            found = self._load(task)
            if found is not None:
                yield task, found
            else:
                kind = kind_of(task.arm)
                waiting.setdefault(kind, []).append((task, setting))
        for kind, pairs in waiting.items():
            engine = self._engine(kind, progress)
            training = TaskTraining(
                engine,
                pairs,
                shared,
                progress,
                job=self._job,
                events=self._events,
                lost=self._writes.lost,
                save=self._save,
                check_interrupt=self._check_interrupt,
            )
            yield from training.records()

    def _events(self, task: Task) -> pathlib.Path | None:
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
            self._coefficients(arm.name, setting.rule)
        return ArmRecord(
            name=arm.name,
            rule=arm.config,
            dropout=arm.dropout,
            coefficients=self._coefficients(arm.name, arm.config),
            weight_decay=arm.weight_decay,
            grid=grid,
        )

    def _coefficients(
        self, name: str, rule: Mapping[str, Any] | None
    ) -> dict[str, float]:
        return coefficients(
            self.plan.network,
            Arm(name, rule),
            samples=self.plan.problem.samples["train"],
            batch_size=self.plan.batch_size,
            learned=True,
        )

    def _job(self, shared: Shared, task: Task, setting: Hyperparameters) -> Job:
        """What a task trains as."""
        plan = self.plan
        seed = task.seed if task.trial is None else trial_seed(task.seed)
        return Job(
            shared.data,
            shared.initial(seed),
            self._coefficients(task.arm.name, setting.rule),
            seed=seed,
            epochs=plan.epochs,
            dropout=setting.dropout,
            weight_decay=setting.weight_decay,
            patience=plan.patience,
            adapt=self.follower(setting, shared.data),
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
            drops, decays = kind
            engine = make_engine(self.plan, drops=drops, decays=decays)
            engine.warm_up(self.plan.problem)
            self._engines[kind] = engine
        return self._engines[kind]

    def _load(self, task: Task) -> dict[str, Any] | None:
        return None if self._store is None else self._store.load(task.name)

    def _save(self, task: Task, record: dict[str, Any]) -> dict[str, Any]:
        """The record as it will be read again, saved where there is a directory."""
        plain: dict[str, Any] = finite(record)
        if self._store is not None:
            save = functools.partial(self._store.save, task.name, plain)
            self._writes.do(f"the record of {task.name}", save)
        return plain

    def _write_json(self) -> None:
        if self.plan.directory is not None:
            data, path = self.result().to_dict(), self.plan.directory
            name = "comparison.json"
            self._writes.do(name, functools.partial(write_json, path / name, data))

    def _write_markdown(self) -> None:
        if self.plan.directory is not None:
            text, path = self.result().to_markdown(), self.plan.directory
            name = "comparison.md"
            self._writes.do(name, functools.partial(write_text, path / name, text))

    def _write_pages(self) -> None:
        if self.plan.directory is not None:
            self._write_markdown()
            self._writes.do("comparison.html", self._write_page)

    def _write_page(self) -> None:
        folder, result = self.plan.directory, self.result()
        assert folder is not None
        drawings = {
            path.stem: path.read_text(encoding="utf-8")
            for path in save_figures(result, folder)
            if path.suffix == ".svg"
        }
        write_text(folder / "comparison.html", html(result, drawings))
