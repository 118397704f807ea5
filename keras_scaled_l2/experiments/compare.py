"""Arms and seeds on one architecture: the same start, batches and budget for all."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import os
import pathlib
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_scaled_l2.counts import elements
from keras_scaled_l2.experiments.architectures import DEFAULT_HIDDEN, initial_weights
from keras_scaled_l2.experiments.arms import DEFAULT_ARMS, DEFAULT_DROPOUT, Arm
from keras_scaled_l2.experiments.coefficients import coefficients, penalisable
from keras_scaled_l2.experiments.interrupts import kept_interrupt
from keras_scaled_l2.experiments.plan import (
    DEFAULT_BATCH_SIZE,
    DEFAULT_EPOCHS,
    DEFAULT_SEEDS,
    Plan,
    make_plan,
)
from keras_scaled_l2.experiments.problems import Problem
from keras_scaled_l2.experiments.progress import Progress, choose
from keras_scaled_l2.experiments.records import (
    ArmRecord,
    Comparison,
    RunRecord,
    write_json,
    write_text,
)
from keras_scaled_l2.experiments.training import Trainer
from keras_scaled_l2.experiments.twin import matching_weights, with_dropout


def compare(
    model: Callable[[], keras.Model] | None = None,
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
    progress: Progress | bool = True,
) -> Comparison:
    """Train one network under several arms, and say what came of it.

    All arms of a seed start from the same weights and see the same batches in the
    same order. The same call gives the same numbers, but for the seconds. The test
    set is looked at once, at the end of each run.

    Args:
        model: A function that makes the network, built and not compiled. Default: a
            dense network with the ``hidden`` units.
        problem: Name of a problem, path of an ``.npz`` file, or what
            ``load_problem`` gave.
        arms: Names of arms, or ``Arm`` objects.
        seeds: How many, or which. A seed sets initial weights, order of the batches
            and dropout masks.
        epochs: Passes over the training data.
        batch_size: Examples per step.
        hidden: Units of the hidden layers of the default network.
        dropout: Rate of the named arms with dropout.
        strengths: Name of an arm, or of its penalty -> strength. For the defaults see
            ``experiments.arms.default_strength``.
        optimizer: ``"sgd"`` (momentum 0.9), ``"adam"``, or a Keras optimizer.
        learning_rate: Default: 0.05 for ``"sgd"``, 0.001 for ``"adam"``.
        directory: Where ``comparison.json``, ``comparison.md`` and the TensorBoard
            runs go, written anew after each run. ``None`` writes nothing.
        progress: ``True`` shows progress on standard error, ``False`` nothing.

    Raises:
        InputError: Before any training, if something that was asked for cannot be
            done.

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
    )
    return Experiment(plan).run(choose(progress))


class Experiment:
    """A plan with its network built: what is left can only train.

    Args:
        plan: What to do.

    Raises:
        InputError: If an arm does not fit the network.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        network = plan.network
        samples = len(plan.problem.x_train)
        self._arms = [
            ArmRecord(
                name=arm.name,
                rule=arm.config,
                dropout=arm.dropout,
                coefficients=coefficients(
                    network, arm, samples=samples, batch_size=plan.batch_size
                ),
            )
            for arm in plan.arms
        ]
        self._penalties = penalisable(network)
        self._size = sum(elements(v.shape) for v in network.trainable_weights)
        self._trainers = self._make_trainers(network)
        self._finished: dict[str, list[RunRecord]] = {arm.name: [] for arm in plan.arms}

    @property
    def runs(self) -> tuple[int, int]:
        """Number of runs that are finished, and of all."""
        finished = sum(len(runs) for runs in self._finished.values())
        return finished, len(self.plan.arms) * len(self.plan.seeds)

    def result(self) -> Comparison:
        """The comparison with the runs that are finished."""
        plan = self.plan
        return Comparison(
            problem=plan.problem.name,
            architecture=plan.architecture.name,
            weights=self._size,
            backend=keras.backend.backend(),
            device=_device(),
            versions=_versions(),
            samples=plan.problem.samples,
            split_seed=plan.problem.split_seed,
            epochs=plan.epochs,
            batch_size=plan.batch_size,
            optimizer=plan.optimizer.to_dict(),
            arms=tuple(
                dataclasses.replace(arm, runs=tuple(self._finished[arm.name]))
                for arm in self._arms
            ),
        )

    def run(self, progress: Progress) -> Comparison:
        """Train every arm from every seed; what is finished is saved at once."""
        _remove_old_events(self.plan.directory)
        progress.start(self.runs[1], self.plan.epochs)
        try:
            with kept_interrupt() as check_interrupt:
                for trainer in self._trainers.values():
                    trainer.warm_up(self.plan.problem)
                report = _Report(progress, check_interrupt)
                for seed in self.plan.seeds:
                    initial = initial_weights(self.plan.architecture.build(seed))
                    for arm in self._arms:
                        check_interrupt()
                        progress.begin(arm.name, seed)
                        record = self._run(arm, seed, initial, report)
                        self._finished[arm.name].append(record)
                        progress.finish(arm.name, record)
                        self._save()
        except KeyboardInterrupt:
            # The last run may have ended while its record was on the way to the disk.
            self._save()
            raise
        finally:
            progress.stop()
        return self.result()

    def _run(
        self,
        arm: ArmRecord,
        seed: int,
        initial: Sequence[np.ndarray],
        report: keras.callbacks.Callback,
    ) -> RunRecord:
        folder = self.plan.directory
        if folder is not None:
            folder = folder / "tensorboard" / arm.name / f"seed-{seed}"
        return self._trainers[arm.dropout].run(
            self.plan.problem,
            initial,
            arm.coefficients,
            seed=seed,
            epochs=self.plan.epochs,
            log_dir=folder,
            callbacks=[report],
        )

    def _make_trainers(self, network: keras.Model) -> dict[float, Trainer]:
        """A trainer for each dropout rate: one trace of the network with that rate."""
        trainers = {}
        for rate in sorted({arm.dropout for arm in self.plan.arms}, reverse=True):
            twin = with_dropout(network, rate, seed=0) if rate else network
            weight = {id(v): v for v in network.weights}
            if rate:
                weight = {id(v): t for v, t in matching_weights(network, twin)}
            trainers[rate] = Trainer(
                twin,
                weights=[weight[id(v)] for v in network.weights],
                penalties={p: weight[id(v)] for p, v in self._penalties.items()},
                problem=self.plan.problem,
                optimizer=self.plan.optimizer.make(),
                batch_size=self.plan.batch_size,
            )
        return trainers

    def _save(self) -> None:
        folder = self.plan.directory
        if folder is not None:
            result = self.result()
            write_json(folder / "comparison.json", result.to_dict())
            write_text(folder / "comparison.md", result.to_markdown())


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


def _remove_old_events(directory: pathlib.Path | None) -> None:
    """Curves of an earlier comparison in the directory would be drawn into the new."""
    if directory is not None:
        for path in (directory / "tensorboard").rglob("events.out.tfevents*"):
            path.unlink()


@functools.cache
def _versions() -> dict[str, str]:
    names = ["keras", "numpy", keras.backend.backend()]
    versions = {name: importlib.metadata.version(name) for name in names}
    from keras_scaled_l2 import __version__

    python = ".".join(map(str, sys.version_info[:3]))
    return {"python": python, "keras_scaled_l2": __version__, **versions}


@functools.cache
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
