"""One run: one arm, one seed, one strength; the only place that calls ``fit``."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_scaled_l2.callbacks import CostMonitor
from keras_scaled_l2.costs import split_cost
from keras_scaled_l2.experiments.architectures import gives_probabilities
from keras_scaled_l2.experiments.batches import Batches, DrawOrder
from keras_scaled_l2.experiments.problems import Problem
from keras_scaled_l2.experiments.records import Cost, RunRecord, Score
from keras_scaled_l2.gradients import Tensor, sum_of_squares

EVALUATION_BATCH = 1000


class VariableL2(keras.Regularizer):
    """``c * sum(w**2)`` with a ``c`` that can change without a new trace.

    Args:
        coefficient: The variable that holds ``c``.
    """

    def __init__(self, coefficient: keras.Variable) -> None:
        self.coefficient = coefficient

    def get_config(self) -> dict[str, Any]:
        """Nothing: the model that owns the variable is never saved."""
        return {}

    def __call__(self, x: Tensor) -> Tensor:
        """The penalty of a weight tensor, a scalar of Keras's float type."""
        total = sum_of_squares(x)
        c = ops.cast(ops.convert_to_tensor(self.coefficient), total.dtype)
        return ops.cast(c * total, keras.config.floatx())


class _Trainee(keras.Model):
    """A network with the coefficients of its penalties as variables of its own.

    Were they constants, every strength would be another trace; were they variables
    of nobody, JAX would make constants of them.
    """

    def __init__(self, network: keras.Model, paths: Sequence[str]) -> None:
        super().__init__(name="trainee")
        self.network = network
        self.coefficients = {
            path: self.add_weight(
                shape=(), dtype="float32", initializer="zeros", trainable=False,
                autocast=False, name=f"coefficient_{i}",
            )
            for i, path in enumerate(paths)
        }  # fmt: skip

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        return self.network(inputs, training=training)


class Trainer:
    """One network, compiled once, that serves every arm, strength and seed.

    Args:
        network: A built network; the trainer trains it and owns it from now on.
        weights: Its weights in the order in which initial values will be given.
        penalties: Path, as the arms' coefficients name it -> the weight to penalise.
        problem: Tells the task; the data of each run is given to the run.
        optimizer: An optimizer that nothing else uses.
        batch_size: Examples per step.
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
    ) -> None:
        self.batch_size = batch_size
        self._weights = list(weights)
        self.model = _Trainee(network, list(penalties))
        self.model.build((None, *problem.x_train.shape[1:]))
        for path, variable in penalties.items():
            variable.regularizer = VariableL2(self.model.coefficients[path])
        loss, accuracy = _objective(problem, gives_probabilities(network))
        self.model.compile(
            optimizer=optimizer,
            loss=loss,
            metrics=[accuracy] if accuracy else [],
        )
        self.model.optimizer.build(self.model.trainable_variables)
        split_cost(self.model)
        self._fresh = [
            np.array(ops.convert_to_numpy(v.value))
            for v in self.model.optimizer.variables
        ]
        kept = {id(v) for v in network.weights}
        self._dropout_seeds = [v for v in network.variables if id(v) not in kept]

    @property
    def coefficients(self) -> dict[str, keras.Variable]:
        """Path of each weight to penalise -> the variable with its coefficient."""
        return dict(self.model.coefficients)

    def warm_up(self, problem: Problem) -> None:
        """Compile everything, so that no run's seconds hold the compilation.

        Trains on two batches; ``run`` starts from the weights that it is given.
        """
        batches = Batches(problem.x_train, problem.y_train, self.batch_size)
        validation = (problem.x_validation, problem.y_validation)
        self.model.fit(batches, validation_data=validation, **_QUIET)
        for name in ("train", "validation", "test"):
            self._evaluate(problem, name)

    def run(
        self,
        problem: Problem,
        initial: Sequence[np.ndarray],
        strengths: Mapping[str, float],
        *,
        seed: int,
        epochs: int,
        log_dir: str | os.PathLike[str] | None = None,
        callbacks: Sequence[keras.callbacks.Callback] = (),
    ) -> RunRecord:
        """Train from a seed's initial weights under an arm's coefficients.

        Args:
            problem: The data.
            initial: Initial weights, in the order of the trainer's ``weights``.
            strengths: Path -> coefficient; weights that are not named have 0.
            seed: Seed of batch order and dropout masks.
            epochs: Passes over the training data.
            log_dir: Where event files for TensorBoard go.
            callbacks: More callbacks for ``fit``.
        """
        self._reset(initial, strengths, seed)
        start = self._evaluate(problem, "train")
        batches = Batches(problem.x_train, problem.y_train, self.batch_size)
        # Measuring gradients would compile two steps anew for every run.
        monitor = CostMonitor(log_dir, gradients=False)
        clock = time.perf_counter()
        try:
            self.model.fit(
                batches,
                epochs=epochs,
                validation_data=(problem.x_validation, problem.y_validation),
                callbacks=[DrawOrder(batches, seed), monitor, *callbacks],
                **_QUIET,
            )
        except BaseException:
            # Keras ends no training that was interrupted: close the event files here.
            monitor.on_train_end()
            raise
        seconds = time.perf_counter() - clock
        return RunRecord(
            seed=seed,
            starting_cost=Cost(start["loss"], start["data_loss"], start["penalty"]),
            train=self._score(problem, "train"),
            validation=self._score(problem, "validation"),
            test=self._score(problem, "test"),
            seconds=seconds,
        )

    def _reset(
        self, initial: Sequence[np.ndarray], strengths: Mapping[str, float], seed: int
    ) -> None:
        unknown = set(strengths) - set(self.model.coefficients)
        if unknown:
            raise ValueError(
                f"strengths for {sorted(unknown)}: expected only the weights "
                f"{sorted(self.model.coefficients)}."
            )
        for variable, value in zip(self._weights, initial, strict=True):
            variable.assign(value)
        for variable, value in zip(
            self.model.optimizer.variables, self._fresh, strict=True
        ):
            variable.assign(value)
        for path, variable in self.model.coefficients.items():
            variable.assign(strengths.get(path, 0.0))
        drawn = np.random.SeedSequence([seed, 1]).generate_state(
            len(self._dropout_seeds)
        )
        for variable, value in zip(self._dropout_seeds, drawn, strict=True):
            variable.assign(np.array([int(value) % 2**31, 0]))

    def _evaluate(self, problem: Problem, name: str) -> dict[str, float]:
        found: dict[str, float] = self.model.evaluate(
            getattr(problem, f"x_{name}"),
            getattr(problem, f"y_{name}"),
            batch_size=EVALUATION_BATCH,
            verbose=0,
            return_dict=True,
        )
        return {key: float(value) for key, value in found.items()}

    def _score(self, problem: Problem, name: str) -> Score:
        found = self._evaluate(problem, name)
        return Score(found["data_loss"], found.get("accuracy"))


_QUIET: dict[str, Any] = {
    "verbose": 0,
    "shuffle": False,
    "validation_batch_size": EVALUATION_BATCH,
}


def _objective(problem: Problem, probabilities: bool) -> tuple[Any, Any]:
    """Loss and accuracy for a task; mean squared error and none for a regression."""
    if problem.task == "regression":
        return keras.losses.MeanSquaredError(), None
    if problem.task == "classes":
        return (
            keras.losses.SparseCategoricalCrossentropy(from_logits=not probabilities),
            keras.metrics.SparseCategoricalAccuracy(name="accuracy"),
        )
    threshold = 0.5 if probabilities else 0.0

    def hits(y_true: Tensor, y_pred: Tensor) -> Tensor:
        labels = ops.reshape(y_true, ops.shape(y_pred))
        return ops.equal(ops.cast(labels, "bool"), y_pred > threshold)

    return (
        keras.losses.BinaryCrossentropy(from_logits=not probabilities),
        keras.metrics.MeanMetricWrapper(hits, name="accuracy"),
    )
