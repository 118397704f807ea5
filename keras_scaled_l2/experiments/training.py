"""One run: one arm, one seed, one strength; the only place that calls ``fit``."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_scaled_l2.callbacks import CostMonitor
from keras_scaled_l2.costs import split_cost
from keras_scaled_l2.experiments.architectures import gives_probabilities
from keras_scaled_l2.experiments.batches import Batches, DrawOrder
from keras_scaled_l2.experiments.calibration import calibration_error
from keras_scaled_l2.experiments.problems import Problem
from keras_scaled_l2.experiments.records import (
    PLAIN,
    Cost,
    RunRecord,
    Score,
    Setting,
    Trial,
)
from keras_scaled_l2.experiments.twin import variable_dropouts
from keras_scaled_l2.gradients import (
    Tensor,
    gradient_function,
    sum_of_squares,
    to_numpy,
)
from keras_scaled_l2.tensorboard import EventFile

EVALUATION_BATCH = 1000
# There each step runs as Python, operation by operation.
_EAGER = keras.backend.backend() == "torch"


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
        c = ops.cast(self.coefficient.value, total.dtype)
        return ops.cast(c * total, keras.config.floatx())


class _Trainee(keras.Model):
    """A network with the coefficients of its penalties as variables of its own.

    Were they constants, every strength would be another trace; were they variables
    of nobody, JAX would make constants of them.
    """

    def __init__(self, network: keras.Model, paths: Sequence[str]) -> None:
        super().__init__(name="trainee")
        self.network = network
        self._names: dict[str, None] | None = None
        self.coefficients = {
            path: self.add_weight(
                shape=(), dtype="float32", initializer="zeros", trainable=False,
                autocast=False, name=f"coefficient_{i}",
            )
            for i, path in enumerate(paths)
        }  # fmt: skip

    def __setattr__(self, name: str, value: Any) -> None:
        # On JAX Keras keeps the state here after each step, and would look through
        # all of it for layers and weights: some percent of a step of 4 ms.
        if name == "_jax_state":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        return self.network(inputs, training=training)

    def compute_metrics(
        self, x: Tensor, y: Tensor, y_pred: Tensor, sample_weight: None = None
    ) -> dict[str, Any]:
        """Updates the metrics; on torch, asks for their values once a pass."""
        if not _EAGER:
            results: dict[str, Any] = super().compute_metrics(
                x, y, y_pred, sample_weight
            )
            return results
        if self._compile_metrics is not None:
            self._compile_metrics.update_state(y, y_pred, sample_weight)
        # Keras reads only the names here, and asks all metrics when the pass ends.
        if self._names is None:
            self._names = dict.fromkeys(self.get_metrics_result())
        return dict(self._names)


class Start(NamedTuple):
    """What no arm changes of the first step: dropout is off, penalties left out."""

    data_loss: float
    """Of the whole training set."""

    gradients: dict[str, float]
    """Path of each weight to penalize -> norm of its data gradient."""

    weights: dict[str, float]
    """Path of each weight to penalize -> its norm."""


class Trainer:
    """One network, compiled once, that serves every arm, strength and seed.

    Args:
        network: A built network; the trainer trains it and owns it from now on.
        weights: Its weights in the order in which initial values will be given.
        penalties: Path, as the arms' coefficients name it -> the weight to penalize.
        problem: Tells the task; the data of each run is given to the run.
        optimizer: An optimizer that nothing else uses.
        batch_size: Examples per step.
        decays: Whether runs may have the optimizer's weight decay, on the weights to
            penalize; it costs a pass over them in each step.
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
    ) -> None:
        self.batch_size = batch_size
        self._weights = list(weights)
        self._network = network
        self._penalties = dict(penalties)
        self._rates = [layer.rate for layer in variable_dropouts(network)]
        self._decay = _variable_decay(optimizer, network, penalties) if decays else None
        self.model = _Trainee(network, list(penalties))
        self.model.build((None, *problem.x_train.shape[1:]))
        self._regularizers = {
            path: VariableL2(c) for path, c in self.model.coefficients.items()
        }
        for path, variable in penalties.items():
            variable.regularizer = self._regularizers[path]
        self._probabilities = gives_probabilities(network)
        self._loss, accuracy = _objective(problem, self._probabilities)
        if _EAGER:
            self._loss = _Averaged(self._loss)
        self.model.compile(
            optimizer=optimizer,
            loss=self._loss,
            metrics=[accuracy] if accuracy else [],
        )
        self._gradients = gradient_function(
            network, lambda x, y: self._loss(y, network(x, training=False))
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
        """Path of each weight to penalize -> the variable with its coefficient."""
        return dict(self.model.coefficients)

    def warm_up(self, problem: Problem) -> None:
        """Compile everything, so that no run's seconds hold the compilation.

        Trains on two batches; ``run`` starts from the weights that it is given.
        """
        # One full batch and one like the last: all the shapes of a run.
        size = self.batch_size + len(problem.x_train) % self.batch_size
        batches = Batches(
            problem.x_train[:size], problem.y_train[:size], self.batch_size
        )
        validation = _part(problem, "validation")
        self.model.fit(batches, validation_data=validation, **_QUIET)
        self._evaluate(problem, "train")
        self._test_score(problem)
        self._gradient_norms(problem)

    def start(self, problem: Problem, initial: Sequence[np.ndarray]) -> Start:
        """What all arms of a seed have in common: to be computed once for them."""
        self._reset(initial, {}, PLAIN, 0)
        data_loss = self._evaluate(problem, "train")["data_loss"]
        return Start(data_loss, self._gradient_norms(problem), self._weight_norms())

    def run(
        self,
        problem: Problem,
        initial: Sequence[np.ndarray],
        coefficients: Mapping[str, float],
        *,
        seed: int,
        epochs: int,
        setting: Setting = PLAIN,
        start: Start | None = None,
        patience: int | None = None,
        log_dir: str | os.PathLike[str] | None = None,
        hparams: Mapping[str, float | str] | None = None,
        callbacks: Sequence[keras.callbacks.Callback] = (),
    ) -> RunRecord:
        """Train from a seed's initial weights, and test once.

        Args:
            problem: The data.
            initial: Initial weights, in the order of the trainer's ``weights``.
            coefficients: Path -> coefficient; weights that are not named have 0.
            seed: Seed of batch order and dropout masks.
            epochs: Passes over the training data, at most.
            setting: Gives dropout rate and weight decay; its rule is only recorded.
            start: What ``start`` gave for these weights; computed if it is left out.
            patience: Epochs without a lower validation data loss after which to stop
                and go back to the best; ``None`` trains all epochs and keeps the last.
            log_dir: Where event files for TensorBoard go.
            hparams: What TensorBoard's table of runs says of this one.
            callbacks: More callbacks for ``fit``; they hear of epochs alone.
        """
        if start is None:
            start = self.start(problem, initial)
        self._reset(initial, coefficients, setting, seed)
        data = start.data_loss
        penalty = math.fsum(
            c * start.weights[path] ** 2 for path, c in coefficients.items()
        )
        ratios = {"start": _ratios(coefficients, start.weights, start.gradients)}
        fitted = self._fit(
            problem,
            seed=seed,
            epochs=epochs,
            patience=patience,
            callbacks=callbacks,
            # Measuring gradients would compile two steps anew for every run.
            monitor=_Monitor(log_dir, hparams),
        )
        end = self._evaluate(problem, "train")
        weights = self._weight_norms()
        if coefficients:
            gradients = self._gradient_norms(problem)
            ratios["end"] = _ratios(coefficients, weights, gradients)
        test = self._test_score(problem)
        if log_dir is not None:
            _write_test(log_dir, test, fitted.steps)
        return RunRecord(
            seed=seed,
            starting_cost=Cost(data + penalty, data, penalty),
            train=Score(end["data_loss"], end.get("accuracy")),
            validation=fitted.validation,
            test=test,
            seconds=fitted.seconds,
            final_cost=Cost(end["loss"], end["data_loss"], end["penalty"]),
            setting=setting,
            coefficients=dict(coefficients),
            gradient_ratios=ratios if coefficients else {},
            weight_norms={
                "start": math.hypot(*start.weights.values()),
                "end": math.hypot(*weights.values()),
            },
            best_epoch=fitted.best_epoch,
            kept_epoch=fitted.kept_epoch,
            steps=fitted.steps,
            curves=fitted.curves,
        )

    def trial(
        self,
        problem: Problem,
        initial: Sequence[np.ndarray],
        coefficients: Mapping[str, float],
        *,
        seed: int,
        epochs: int,
        setting: Setting,
        patience: int | None = None,
        callbacks: Sequence[keras.callbacks.Callback] = (),
    ) -> Trial:
        """Train as ``run`` does, and look at the validation data alone."""
        self._reset(initial, coefficients, setting, seed)
        fitted = self._fit(
            problem,
            seed=seed,
            epochs=epochs,
            patience=patience,
            callbacks=callbacks,
            monitor=CostMonitor(gradients=False),
        )
        loss = fitted.curves["val_data_loss"][fitted.kept_epoch - 1]
        return Trial(setting, loss, fitted.best_epoch)

    def _fit(
        self,
        problem: Problem,
        *,
        seed: int,
        epochs: int,
        patience: int | None,
        callbacks: Sequence[keras.callbacks.Callback],
        monitor: CostMonitor,
    ) -> _Fitted:
        batches = Batches(problem.x_train, problem.y_train, self.batch_size)
        own: list[keras.callbacks.Callback] = [DrawOrder(batches, seed), monitor]
        if patience is not None:
            own.append(
                keras.callbacks.EarlyStopping(
                    monitor="val_data_loss",
                    patience=patience,
                    restore_best_weights=True,
                )
            )
        clock = time.perf_counter()
        try:
            history = self.model.fit(
                batches,
                epochs=epochs,
                validation_data=_part(problem, "validation"),
                callbacks=_EpochCallbacks(
                    [*own, *callbacks],
                    add_history=True,
                    model=self.model,
                    epochs=epochs,
                    steps=batches.num_batches,
                    verbose=0,
                ),
                **_QUIET,
            ).history
        except BaseException:
            # Keras ends no training that was interrupted: close the event files here.
            monitor.on_train_end()
            raise
        seconds = time.perf_counter() - clock
        curves = {
            name: [float(value) for value in history[name]]
            for name in CURVES
            if name in history
        }
        losses = curves["val_data_loss"]
        # A loss that is not a number is no best one, wherever it stands.
        ordered = [loss if math.isfinite(loss) else math.inf for loss in losses]
        best = ordered.index(min(ordered)) + 1
        kept = len(losses) if patience is None else best
        accuracies = curves.get("val_accuracy")
        return _Fitted(
            seconds=seconds,
            steps=len(losses) * batches.num_batches,
            curves=curves,
            best_epoch=best,
            kept_epoch=kept,
            validation=Score(
                losses[kept - 1], None if accuracies is None else accuracies[kept - 1]
            ),
        )

    def _reset(
        self,
        initial: Sequence[np.ndarray],
        coefficients: Mapping[str, float],
        setting: Setting,
        seed: int,
    ) -> None:
        unknown = set(coefficients) - set(self.model.coefficients)
        if unknown:
            raise ValueError(
                f"coefficients for {sorted(unknown)}: expected only the weights "
                f"{sorted(self.model.coefficients)}."
            )
        if (setting.dropout and not self._rates) or (
            setting.weight_decay and self._decay is None
        ):
            raise ValueError(f"{setting}: this trainer has no dropout or no decay.")
        for variable, value in zip(self._weights, initial, strict=True):
            variable.assign(value)
        for variable, value in zip(
            self.model.optimizer.variables, self._fresh, strict=True
        ):
            variable.assign(value)
        for path, variable in self.model.coefficients.items():
            c = coefficients.get(path, 0.0)
            variable.assign(c)
            if _EAGER:  # an arm without a penalty need not pay
                penalized = self._penalties[path]
                penalized.regularizer = self._regularizers[path] if c else None
        for variable in self._rates:
            variable.assign(setting.dropout)
        if self._decay is not None:
            self._decay.assign(setting.weight_decay)
        # A Dropout without a seed, in a user's model, may draw from a global state.
        keras.utils.set_random_seed(seed)
        drawn = np.random.SeedSequence([seed, 1]).generate_state(
            len(self._dropout_seeds)
        )
        for variable, value in zip(self._dropout_seeds, drawn, strict=True):
            variable.assign(np.array([int(value) % 2**31, 0]))

    def _weight_norms(self) -> dict[str, float]:
        """Norm of each weight to penalize."""
        return {path: norm(v) for path, v in self._penalties.items()}

    def _gradient_norms(self, problem: Problem) -> dict[str, float]:
        """Norm of the data gradient of each penalized weight, on one batch."""
        batch = next(iter(_part(problem, "train")))
        found = self._gradients(*map(ops.convert_to_tensor, batch))
        variables = self._network.trainable_variables
        by_id = {id(v): g for v, g in zip(variables, found, strict=True)}
        gradients = {path: by_id[id(v)] for path, v in self._penalties.items()}
        return {p: 0.0 if g is None else norm(g) for p, g in gradients.items()}

    def _evaluate(self, problem: Problem, name: str) -> dict[str, float]:
        found: dict[str, float] = self.model.evaluate(
            _part(problem, name), verbose=0, return_dict=True
        )
        return {key: float(value) for key, value in found.items()}

    def _test_score(self, problem: Problem) -> Score:
        found = self._evaluate(problem, "test")
        score = Score(found["data_loss"], found.get("accuracy"))
        if problem.task == "regression":
            return score
        outputs = self.model.predict(_part(problem, "test"), verbose=0)
        error = calibration_error(
            np.asarray(outputs), problem.y_test, probabilities=self._probabilities
        )
        return dataclasses.replace(score, calibration_error=error)


class _Monitor(CostMonitor):
    """Costs by epoch, with what TensorBoard's table is to say of the run."""

    def __init__(
        self,
        log_dir: str | os.PathLike[str] | None,
        hparams: Mapping[str, float | str] | None,
    ) -> None:
        super().__init__(log_dir, gradients=False)
        self._hparams = hparams

    def describe(self, file: EventFile) -> None:
        """Writes the hyperparameters, and the test metrics as what to sort by."""
        if self._hparams is not None:
            file.hparams(self._hparams, TEST_TAGS)
        super().describe_layout(file)


class _EpochCallbacks(keras.callbacks.CallbackList):
    """Callbacks that hear of epochs alone.

    Keras turns the logs of each batch into numbers, which waits for the step, whether
    a callback looks at them or not.
    """

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Nothing."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Nothing."""

    def on_test_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Nothing."""

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        """Nothing."""


TEST_TAGS = ("test/data_loss", "test/accuracy", "test/calibration_error")


def _write_test(log_dir: str | os.PathLike[str], test: Score, step: int) -> None:
    """Add the test metrics to the curves of a run."""
    values = dataclasses.asdict(test)
    with contextlib.closing(EventFile(os.path.join(log_dir, "train"))) as file:
        file.scalars({f"test/{k}": v for k, v in values.items() if v is not None}, step)


@dataclasses.dataclass(frozen=True)
class _Fitted:
    """What a training was, seen from outside."""

    seconds: float
    steps: int
    curves: dict[str, list[float]]
    best_epoch: int
    kept_epoch: int
    validation: Score
    """At the weights that were kept."""


CURVES = ("data_loss", "penalty", "accuracy", "val_data_loss", "val_accuracy")
"""What is kept of Keras's history, by epoch."""


def norm(x: Tensor) -> float:
    """Euclidean norm of a tensor or variable."""
    # NumPy: several times as fast as an operation of its own on each weight.
    return math.sqrt(float(np.sum(np.square(to_numpy(x), dtype=np.float64))))


def _ratios(
    coefficients: Mapping[str, float],
    weights: Mapping[str, float],
    gradients: Mapping[str, float],
) -> dict[str, float]:
    """Norm of the penalty's gradient over that of the data gradient, by weight."""
    ratios = {}
    for path, c in coefficients.items():
        pull, data = 2.0 * c * weights[path], gradients[path]
        ratios[path] = pull / data if data else (math.inf if pull else 0.0)
    return ratios


def _variable_decay(
    optimizer: keras.optimizers.Optimizer,
    network: keras.Model,
    penalties: Mapping[str, keras.Variable],
) -> keras.Variable:
    """Give an optimizer a weight decay that can change without a new trace."""
    decayed = {id(v) for v in penalties.values()}
    optimizer.exclude_from_weight_decay(
        var_list=[v for v in network.trainable_variables if id(v) not in decayed]
    )
    # A variable of the optimizer's own: JAX makes constants of all others.
    optimizer.weight_decay = optimizer.add_variable(
        shape=(), initializer="zeros", dtype="float32", name="weight_decay"
    )
    decay: keras.Variable = optimizer.weight_decay
    return decay


_QUIET: dict[str, Any] = {"verbose": 0, "shuffle": False}


def _part(problem: Problem, name: str) -> Batches:
    """A part of the data in its own order, in batches as large as speed asks for."""
    x, y = (getattr(problem, f"{axis}_{name}") for axis in "xy")
    return Batches(x, y, EVALUATION_BATCH)


def _objective(problem: Problem, probabilities: bool) -> tuple[Any, Any]:
    """Loss and accuracy for a task; mean squared error and none for a regression."""
    if problem.task == "regression":
        return keras.losses.MeanSquaredError(), None
    if problem.task == "classes":
        return (
            keras.losses.SparseCategoricalCrossentropy(from_logits=not probabilities),
            _Accuracy(lambda outputs: ops.argmax(outputs, axis=-1)),
        )
    threshold = 0.5 if probabilities else 0.0
    return (
        keras.losses.BinaryCrossentropy(from_logits=not probabilities),
        _Accuracy(lambda outputs: ops.reshape(outputs, (-1,)) > threshold),
    )


class _Averaged(keras.losses.Loss):
    """A loss by example, averaged in one operation; Keras counts examples in six."""

    def __init__(self, loss: keras.losses.Loss) -> None:
        super().__init__(name=loss.name)
        self._loss = loss

    def __call__(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: None = None
    ) -> Tensor:
        """The mean over a batch."""
        if getattr(y_pred, "_keras_mask", None) is not None:
            return self._loss(y_true, y_pred)
        return ops.mean(self._loss.call(y_true, ops.cast(y_pred, self.dtype)))


class _Accuracy(keras.metrics.Mean):
    """Share of right answers; Keras's own take several times the operations.

    Args:
        decide: The class of each example, from the outputs of the network.
    """

    def __init__(self, decide: Callable[[Tensor], Tensor]) -> None:
        super().__init__(name="accuracy")
        self._decide = decide

    def update_state(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: None = None
    ) -> None:
        """Counts the right answers of a batch."""
        given = self._decide(y_pred)
        labels = ops.cast(ops.reshape(y_true, (-1,)), given.dtype)
        self.total.assign_add(ops.sum(ops.cast(labels == given, self.dtype)))
        self.count.assign_add(ops.shape(given)[0])
