"""From a job that was trained to its record and its curves in TensorBoard."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping

from keras_scaled_l2.experiments.engine import Engine
from keras_scaled_l2.experiments.jobs import (
    NORMS,
    Curves,
    Evaluation,
    Gradients,
    Job,
    Norms,
    Trained,
    Watch,
)
from keras_scaled_l2.experiments.results.calibration import calibration_error
from keras_scaled_l2.experiments.results.records import (
    Cost,
    Hyperparameters,
    RunRecord,
    Score,
    Trial,
)
from keras_scaled_l2.gradient_norms import GradientNorms
from keras_scaled_l2.scalars import (
    EVIDENCE_LAYOUT,
    LAYOUT,
    cost_scalars,
    evidence_of_logs,
    gradient_scalars,
)
from keras_scaled_l2.tensorboard import EventFile

TEST_TAGS = ("test/data_loss", "test/accuracy", "test/calibration_error")
MAX_WEIGHTS = 50
"""How many weights get curves of their own, as ``CostMonitor`` has it."""


def record(
    job: Job, setting: Hyperparameters, start: Trained, trained: Trained, engine: Engine
) -> RunRecord:
    """The record of a run: what ``Engine.start`` found, and what the training left."""
    first = c = job.coefficients
    if job.adapt is not None:
        c = {name: trained.coefficients[name] for name in first}
    before = start.evaluations["train"].data_loss
    penalty = starting_penalty(job, start)
    end, test = trained.evaluations["train"], trained.evaluations["test"]
    assert start.gradients is not None and trained.gradients is not None
    ratios = {
        "start": _ratios(first, start.gradients),
        "end": _ratios(c, trained.gradients),
    }
    return RunRecord(
        seed=job.seed,
        starting_cost=Cost(before + penalty, before, penalty),
        train=Score(end.data_loss, end.accuracy),
        validation=validation_score(trained),
        test=Score(
            test.data_loss,
            test.accuracy,
            None if test.accuracy is None else _calibration(job, test, engine),
        ),
        seconds=trained.seconds,
        final_cost=Cost(end.data_loss + end.penalty, end.data_loss, end.penalty),
        hyperparameters=setting,
        coefficients=dict(c),
        starting_coefficients={} if job.adapt is None else dict(first),
        gradient_ratios=ratios if c else {},
        weight_norms={
            "start": math.hypot(*start.gradients.weights.values()),
            "end": math.hypot(*trained.gradients.weights.values()),
        },
        best_epoch=trained.best_epoch,
        kept_epoch=trained.kept_epoch,
        steps=trained.steps,
        curves=trained.curves,
        norms=trained.norms,
    )


def trial(setting: Hyperparameters, trained: Trained) -> Trial:
    """The record of a trial: the validation data alone were looked at."""
    return Trial(setting, validation_score(trained).data_loss, trained.best_epoch)


def validation_score(trained: Trained) -> Score:
    """At the weights that were kept."""
    values = {
        name: trained.curves[name][trained.kept_epoch - 1]
        for name in ("val_data_loss", "val_accuracy")
        if name in trained.curves
    }
    return Score(values["val_data_loss"], values.get("val_accuracy"))


def starting_penalty(job: Job, start: Trained) -> float:
    """The penalty before the first step."""
    assert start.gradients is not None
    weights = start.gradients.weights
    return math.fsum(c * weights[name] ** 2 for name, c in job.coefficients.items())


class RunEvents(Watch):
    """Writes a run's curves for TensorBoard, under the tags of ``CostMonitor``.

    They go to ``train`` and ``validation`` below the directory.

    Raises:
        OSError: If the files cannot be written.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        job: Job,
        *,
        start_penalty: float,
        engine: Engine,
        hparams: Mapping[str, float | str],
    ) -> None:
        self._files = {
            name: EventFile(os.path.join(directory, name))
            for name in ("train", "validation")
        }
        self._job, self._start, self._engine = job, start_penalty, engine
        self._steps = -(-len(job.problem.y_train) // engine.batch_size)
        self._files["train"].hparams(hparams, TEST_TAGS)
        learned = {} if job.adapt is None else EVIDENCE_LAYOUT
        self._files["train"].layout(LAYOUT | learned)

    def epoch(self, place: int, curves: Curves, norms: Norms) -> None:
        """Writes an epoch's costs, and the gradients of its first step."""
        step = len(curves["val_data_loss"]) * self._steps
        train = self._files["train"]
        gradients = gradient_scalars(self._norms(norms), MAX_WEIGHTS)
        train.scalars(gradients, step - self._steps)
        rate = {"learning_rate": self._engine.learning_rate(self._job, step)}
        last = {name: values[-1] for name, values in curves.items()}
        learned = evidence_of_logs(last)
        train.scalars(self._costs(curves, "") | rate | learned, step)
        self._files["validation"].scalars(self._costs(curves, "val_"), step)
        for file in self._files.values():
            file.flush()

    def test(self, score: Score, steps: int) -> None:
        """Adds the test metrics, for TensorBoard's table."""
        values = dataclasses.asdict(score).items()
        self._files["train"].scalars(
            {f"test/{name}": value for name, value in values if value is not None},
            steps,
        )

    def close(self) -> None:
        """Closes the files."""
        for file in self._files.values():
            file.close()

    def _costs(self, curves: Curves, prefix: str) -> dict[str, float]:
        data, penalty = (curves[prefix + n][-1] for n in ("data_loss", "penalty"))
        return cost_scalars(data, penalty, self._start)

    def _norms(self, norms: Norms) -> dict[str, GradientNorms]:
        weight, data, penalty = (norms[kind] for kind in NORMS)
        c = dict(self._job.coefficients)
        if self._job.adapt is not None:
            # What was in force; the curves tell what follows.
            c |= {n: penalty[n] / (2 * weight[n]) for n in c if weight[n]}
        return {
            name: GradientNorms(data[name], penalty[name], weight[name], c.get(name, 0))
            for name in weight
        }


def _ratios(c: Mapping[str, float], norms: Gradients) -> dict[str, float]:
    """Norm of the penalty's gradient over that of the data gradient, by weight."""
    ratios = {}
    for name, coefficient in c.items():
        penalty, data = 2.0 * coefficient * norms.weights[name], norms.data[name]
        ratios[name] = penalty / data if data else (math.inf if penalty else 0.0)
    return ratios


def _calibration(job: Job, test: Evaluation, engine: Engine) -> float:
    return calibration_error(
        test.outputs, job.problem.y_test, probabilities=engine.probabilities
    )
