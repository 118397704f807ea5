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
from keras_scaled_l2.experiments import grids
from keras_scaled_l2.experiments.architectures import DEFAULT_HIDDEN, initial_weights
from keras_scaled_l2.experiments.arms import DEFAULT_ARMS, DEFAULT_DROPOUT, Arm
from keras_scaled_l2.experiments.coefficients import coefficients, paths, penalizable
from keras_scaled_l2.experiments.interrupts import kept_interrupt
from keras_scaled_l2.experiments.page import html
from keras_scaled_l2.experiments.plan import (
    DEFAULT_BATCH_SIZE,
    DEFAULT_EPOCHS,
    DEFAULT_SEEDS,
    Model,
    Plan,
    make_plan,
    versions,
)
from keras_scaled_l2.experiments.plots import save_figures
from keras_scaled_l2.experiments.problems import Problem
from keras_scaled_l2.experiments.progress import Progress, choose
from keras_scaled_l2.experiments.records import (
    ArmRecord,
    Comparison,
    RunRecord,
    Setting,
    Trial,
    finite,
    write_json,
    write_text,
)
from keras_scaled_l2.experiments.storage import Store
from keras_scaled_l2.experiments.training import Start, Trainer
from keras_scaled_l2.experiments.twin import VariableDropout, derive, matching_weights

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
        tune: How many settings each arm tries on the validation data of each seed,
            before it is trained anew with the best and tested. ``None`` trains each
            arm as it is given.
        patience: Epochs without a lower validation data loss after which training
            stops and goes back to the best epoch, in all arms. ``None`` trains all
            epochs.
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
    )
    return Experiment(plan).run(choose(progress))


@dataclasses.dataclass(frozen=True)
class _Job:
    """A run or a trial that is to be made."""

    arm: ArmRecord
    seed: int
    trial: int | None = None

    @property
    def name(self) -> str:
        """Name of its record."""
        name = f"{self.arm.name}/seed-{self.seed}"
        return name if self.trial is None else f"{name}-trial-{self.trial}"


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
        self._starts: dict[Trainer, Start] = {}

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

    def start(self, trainer: Trainer) -> Start:
        """What a trainer finds before the first step."""
        if trainer not in self._starts:
            found = trainer.start(self.data, self.initial(self._seed))
            self._starts[trainer] = found
        return self._starts[trainer]


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
        network = plan.network
        self._penalties = penalizable(network)
        self._size = sum(elements(v.shape) for v in network.trainable_weights)
        self._arms = [self._record(arm) for arm in plan.arms]
        self._trainers: dict[tuple[bool, bool], Trainer] = {}
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
        shared = _Shared(self.plan, seed)
        for arm in self._arms:
            trials = []
            for number in range(len(arm.grid)):
                job = _Job(arm, seed, number)
                found = self._load(job)
                if found is None:
                    self._check_interrupt()
                    progress.begin(arm.name, seed, number)
                    trial = self._try(job, shared, progress)
                    found = self._save(job, dataclasses.asdict(trial))
                trials.append(Trial.from_dict(found))
                progress.tried(arm.name, seed, number, trials[-1])
            job = _Job(arm, seed)
            found = self._load(job)
            if found is None:
                self._check_interrupt()
                progress.begin(arm.name, seed)
                run = self._run(job, _best(arm, trials), shared, progress)
                run = dataclasses.replace(run, trials=tuple(trials))
                found = self._save(job, run.to_dict())
            record = RunRecord.from_dict(found)
            self._runs[arm.name, seed] = record
            progress.finish(arm.name, record)
        # The runs are saved; their statistics are worth a look once all arms are there.
        self._write_json()

    def _run(
        self, job: _Job, setting: Setting, shared: _Shared, progress: Progress
    ) -> RunRecord:
        found = self._coefficients(job.arm.name, setting)
        trainer = self._trainer(job.arm, progress)
        return trainer.run(
            shared.data,
            shared.initial(job.seed),
            found,
            seed=job.seed,
            epochs=self.plan.epochs,
            setting=setting,
            start=shared.start(trainer),
            patience=self.plan.patience,
            log_dir=self._events(job),
            hparams=_hparams(job, setting, found),
            callbacks=[_Report(progress, self._check_interrupt)],
        )

    def _try(self, job: _Job, shared: _Shared, progress: Progress) -> Trial:
        assert job.trial is not None
        setting = job.arm.grid[job.trial]
        return self._trainer(job.arm, progress).trial(
            shared.data,
            shared.initial(_trial_seed(job.seed)),
            self._coefficients(job.arm.name, setting),
            seed=_trial_seed(job.seed),
            epochs=self.plan.epochs,
            setting=setting,
            patience=self.plan.patience,
            callbacks=[_Report(progress, self._check_interrupt)],
        )

    def _events(self, job: _Job) -> pathlib.Path | None:
        """The folder for the curves of a run, without those of one that broke off."""
        if self.plan.directory is None:
            return None
        folder = self.plan.directory / "tensorboard" / job.arm.name / f"seed-{job.seed}"
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
            coefficients=self._coefficients(arm.name, grids.setting(arm)),
            weight_decay=arm.weight_decay,
            grid=grid,
        )

    def _coefficients(self, name: str, setting: Setting) -> dict[str, float]:
        return coefficients(
            self.plan.network,
            Arm(name, setting.rule),
            samples=self.plan.problem.samples["train"],
            batch_size=self.plan.batch_size,
        )

    def _trainer(self, arm: ArmRecord, progress: Progress) -> Trainer:
        """The trainer of an arm: one for those with dropout, one for those without.

        A step with weight decay reads all weights once more, so it is another one.
        """
        drops = any(s.dropout for s in _settings(arm))
        decays = any(s.weight_decay for s in _settings(arm))
        if (drops, decays) not in self._trainers:
            progress.compile()
            trainer = self._make_trainer(drops=drops, decays=decays)
            trainer.warm_up(self.plan.problem)
            self._trainers[drops, decays] = trainer
        return self._trainers[drops, decays]

    def _make_trainer(self, *, drops: bool, decays: bool) -> Trainer:
        network = self.plan.architecture.build(self.plan.seeds[0])
        twin = network
        weight = {id(v): v for v in network.weights}
        if drops:
            twin = derive(network, 0.5, seed=0, dropout=VariableDropout)
            weight = {id(v): t for v, t in matching_weights(network, twin)}
        path = paths(network)
        return Trainer(
            twin,
            weights=[weight[id(v)] for v in network.weights],
            penalties={
                path[id(v)]: weight[id(v)]
                for v in network.weights
                if path[id(v)] in self._penalties
            },
            problem=self.plan.problem,
            optimizer=self.plan.optimizer.make(),
            batch_size=self.plan.batch_size,
            decays=decays,
        )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with contextlib.nullcontext() if self._store is None else self._store.locked():
            yield

    def _load(self, job: _Job) -> dict[str, Any] | None:
        return None if self._store is None else self._store.load(job.name)

    def _save(self, job: _Job, record: dict[str, Any]) -> dict[str, Any]:
        """The record as it will be read again, saved where there is a directory."""
        plain: dict[str, Any] = finite(record)
        if self._store is not None:
            self._store.save(job.name, plain)
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


def _settings(arm: ArmRecord) -> list[Setting]:
    """Everything that an arm may come to."""
    return [Setting(arm.rule, arm.dropout, arm.weight_decay), *arm.grid]


def _trial_seed(seed: int) -> int:
    return (seed + TRIAL_SEED) % 2**31


def _best(arm: ArmRecord, trials: Sequence[Trial]) -> Setting:
    """The setting of the lowest validation data loss; the first of equal ones."""
    if not trials:
        return Setting(arm.rule, arm.dropout, arm.weight_decay)
    losses = [t.data_loss if math.isfinite(t.data_loss) else math.inf for t in trials]
    return trials[losses.index(min(losses))].setting


def _hparams(
    job: _Job, setting: Setting, found: Mapping[str, float]
) -> dict[str, float | str]:
    """What TensorBoard's table sorts the runs by."""
    rule = setting.rule
    return {
        "arm": job.arm.name,
        "seed": float(job.seed),
        "rule": "none" if rule is None else str(rule["class_name"]),
        "coefficient": max(found.values(), default=0.0),
        "dropout": setting.dropout,
        "weight_decay": setting.weight_decay,
    }


class _Report(keras.callbacks.Callback):
    """Tells the progress of each epoch; nothing after each batch, which would cost."""

    async_safe = True

    def __init__(self, progress: Progress, check_interrupt: Callable[[], None]) -> None:
        super().__init__()
        self._progress = progress
        self._check_interrupt = check_interrupt

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._check_interrupt()
        self._progress.epoch(dict(logs or {}))


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
