"""Callbacks: ``ApplyL2`` counts and attaches, ``CostMonitor`` measures."""

from __future__ import annotations

import functools
import math
import os
import warnings
from typing import Any

import keras

from keras_scaled_l2.attaching import Where, attach, bind, penalized
from keras_scaled_l2.compiled import steps_kept
from keras_scaled_l2.costs import (
    CostSplit,
    is_split,
    remove_temporary_split,
    split_cost,
)
from keras_scaled_l2.findings import text_of_dropped, text_of_forgotten
from keras_scaled_l2.fitting import (
    accumulated_steps,
    applied_steps,
    build_from_running_fit,
    current_learning_rate,
    data_of_running_fit,
    examples_of_running_fit,
    plain_optimizer,
    updates,
)
from keras_scaled_l2.gradient_norms import (
    GradientMeasurement,
    StepRecord,
    measure_gradients,
    remove_stale_measurement,
)
from keras_scaled_l2.learning import Learning, finish_learning, is_learning, learns
from keras_scaled_l2.means import NAMES
from keras_scaled_l2.parts import penalty_of
from keras_scaled_l2.run_table import METRICS, hyperparameters
from keras_scaled_l2.scalars import (
    EVIDENCE_LAYOUT,
    LAYOUT,
    cost_scalars,
    evidence_logs,
    evidence_of_logs,
    gradient_scalars,
)
from keras_scaled_l2.starting import StartingLine, check_counted, inert
from keras_scaled_l2.steps import refresh_steps
from keras_scaled_l2.tensorboard import EventFile, EventFiles
from keras_scaled_l2.validation import check_is_model, positive_count

Logs = dict[str, Any]


class ApplyL2(keras.callbacks.Callback):
    """Attach a rule when training starts, and resolve the rules that a model carries.

    Prints one line of what was done: tensors, weights, smallest and largest
    effective coefficient, and the penalty's share of the starting cost, as soon as
    the first batch tells the cost. Another line says so if the penalty is inert over
    the epochs that ``fit`` is about to train, with the coefficient that is not. The
    rule stays on the model after training, so that a saved model continues without
    the callback; ``detach`` takes it off.

    Args:
        rule: Rule to put on the weights that ``where`` chooses, as ``attach`` does.
            ``None`` leaves the model's own rules and only resolves them.
        where: As in ``attach``.
        samples: Number of training examples. Default: counted from what ``fit`` was
            given, where that tells it (arrays, sequences and data loaders of known
            length); where only a last partial batch leaves it open, the fewest there
            can be, and the line says how many more.
        batch_size: Examples per step. Default: as given to ``fit``.
        examples: Inputs and targets, for ``EvidenceL2``; a subset of what is trained
            on will do. Default: the arrays that ``fit`` was given.

    Raises:
        ValueError: When training starts, if nothing is penalized or a rule lacks a
            count that ``fit`` does not tell (a generator: pass ``samples``), or if the
            evidence has no meaning for the model that ``EvidenceL2`` is on.

    With ``EvidenceL2`` the ``logs`` hold ``c/<path>``, ``gamma/<path>`` and
    ``gamma_share/<path>`` (gamma over the number of weights) for each layer and epoch.

    Example:
        ``model.fit(x, y, callbacks=[ApplyL2(SampleL2(1.0))])``
    """

    # Nothing after the first batch; JAX need not wait for this callback.
    async_safe = True

    def __init__(
        self,
        rule: keras.Regularizer | None = None,
        where: Where | None = None,
        samples: int | None = None,
        batch_size: int | None = None,
        examples: tuple[Any, Any] | None = None,
    ) -> None:
        super().__init__()
        self.examples = examples
        self._learning: Learning | None = None
        self.rule = rule
        self.where = where
        self.samples = samples
        self.batch_size = batch_size
        self._line: StartingLine | None = None
        self._first = 0

    def set_model(self, model: keras.Model) -> None:
        """Refuses a model of Keras 2, whose fit would fail right after this."""
        check_is_model(model)
        super().set_model(model)

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Attaches, counts and resolves."""
        model = self.model
        finish_learning(model)  # of a fit that broke off
        build_from_running_fit(model)
        refresh_steps(model)
        counted = data_of_running_fit(model)
        samples = counted.samples if self.samples is None else self.samples
        size = counted.batch_size if self.batch_size is None else self.batch_size
        with steps_kept(model):
            if self.rule is not None:
                attach(model, self.rule, self.where)
            if not penalized(model):
                raise ValueError(
                    f"ApplyL2() has nothing to resolve: no trainable weight of "
                    f"{model.name!r} carries a penalty. Pass a rule, "
                    "ApplyL2(ScaledL2(1.0)), or build the layers with "
                    "kernel_regularizer=..."
                )
            check_counted(model, samples=samples, batch_size=size)
            bind(model, samples=samples, batch_size=size)
        self._learning = self._learn() if learns(model) else None
        more = 0 if self.samples is not None else counted.more
        self._line = StartingLine(model, samples, more)
        guidance = inert(model, self.params or {})
        if guidance is not None:
            print(f"ApplyL2: {guidance}")
        self._first = model.steps_per_execution - 1

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """Prints the line once the first batch has told the starting cost."""
        # JAX dispatches batches to several threads: only the first one may print.
        if self._line is None or batch > self._first:
            return
        cost = (logs or {}).get("loss")  # a custom step may log others
        print(self._line.text(None if cost is None else float(cost)))
        self._line = None

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Has the strengths that are learned follow the evidence, and logs them."""
        if self._learning is None:
            return
        self._learning.epoch(epoch + 1)
        if logs is not None:
            logs |= evidence_logs(self._learning.numbers())

    def on_train_end(self, logs: Logs | None = None) -> None:
        """Leaves of itself nothing but the rule."""
        remove_temporary_split(self.model)
        if self._learning is not None:
            self._learning.remove()
            self._learning = None

    def _learn(self) -> Learning:
        found = self.examples or examples_of_running_fit(self.model)
        if found is None:
            raise ValueError(
                "ApplyL2(EvidenceL2(...)) needs training examples, and what was given "
                "to fit are no arrays. Pass some: ApplyL2(..., examples=(x, y))."
            )
        learning = Learning(self.model, *found)
        if learning.unknown:
            print(
                f"ApplyL2: the strength of {', '.join(learning.unknown)} stays as it "
                "was given: gamma of such large layers is known for Dense only."
            )
        return learning


class CostMonitor(keras.callbacks.Callback):
    """Log data cost and penalty apart, and each weight's gradients, while it trains.

    Puts ``data_loss`` and ``penalty`` into ``logs`` (``val_data_loss`` and
    ``val_penalty`` with validation data), every epoch, so that
    ``EarlyStopping(monitor="val_data_loss")``, ``CSVLogger``, ``History`` and Keras's
    TensorBoard callback see them. ``data_loss + penalty == loss`` for every epoch, to
    float32 rounding. With ``log_dir`` it writes event files for TensorBoard as well,
    and measures the gradients of the training step itself, without a second backward
    pass. The model is left as it was found when training ends.

    Args:
        log_dir: Directory for event files (``train`` and ``validation`` below it, as
            Keras's TensorBoard callback has them). ``None`` writes none.
        update_freq: ``"epoch"``: costs as means over each epoch, gradients of the
            first step of each epoch. A number ``n``: costs and gradients of one batch,
            every ``n`` steps.
        gradients: Whether to measure gradients; they go to ``log_dir`` only.
        max_weights: How many weights get curves of their own, those with the largest
            penalty first; ``None`` for all.

    Raises:
        ValueError: If an argument is outside its range.
        OSError: When training starts, if ``log_dir`` cannot be written. A disk that
            fails later gives one warning, and training goes on.

    Tags: ``cost/total``, ``cost/data``, ``cost/penalty``, ``cost/penalty_share`` and
    ``cost/penalty_above_start``; for each weight ``penalty/<path>``,
    ``weight_norm/<path>``, ``gradient_norm/data/<path>``,
    ``gradient_norm/penalty/<path>``, ``gradient_norm/ratio/<path>`` (penalty over
    data) and ``coefficient/<path>``; ``global/...`` for all weights together;
    ``learning_rate``; ``c/<path>``, ``gamma/<path>`` and ``gamma_share/<path>`` of
    ``EvidenceL2``, if its ``ApplyL2`` comes before. Gradient norms are before clipping.
    The step axis is the optimizer's iteration count, so that a resumed training
    continues its curves.
    """

    def __init__(
        self,
        log_dir: str | os.PathLike[str] | None = None,
        update_freq: str | int = "epoch",
        gradients: bool = True,
        max_weights: int | None = 50,
    ) -> None:
        super().__init__()
        if isinstance(update_freq, str) and update_freq != "epoch":
            raise ValueError(
                f"update_freq={update_freq!r}: expected 'epoch' or a number of steps."
            )
        self.log_dir = None if log_dir is None else os.fspath(log_dir)
        self.update_freq = (
            update_freq
            if isinstance(update_freq, str)
            else positive_count("update_freq", update_freq)
        )
        self.gradients = gradients
        self.max_weights = (
            None if max_weights is None else positive_count("max_weights", max_weights)
        )
        self._files: EventFiles | None = None
        self._measurement: GradientMeasurement | None = None
        self._start_penalty: float | None = None
        self._warned = False
        # Batches before this epoch, batches of this epoch, batches in one call.
        self._before, self._batch, self._stride = 0, 0, 1
        self._accumulated = 1

    def set_model(self, model: keras.Model) -> None:
        """Refuses a model of Keras 2, whose fit would fail right after this."""
        check_is_model(model)
        super().set_model(model)

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Installs the split, after checking that events can be written."""
        self._close_files()
        if self.log_dir is not None:
            self._files = EventFiles(self.log_dir, "train")
        # Keras gives all callbacks of a fit the same params.
        remove_stale_measurement(self.model, self.params)
        build_from_running_fit(self.model)
        refresh_steps(self.model)
        if not is_split(self.model):
            split_cost(self.model).temporary = True
        self._start_penalty = None

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Installs the measurement, again if another callback remade the step."""
        model = self.model
        if self._files is None or not (model.built and model.weights):
            return
        if self._start_penalty is None:
            self._start_penalty = penalty_of(model)
            self._files.write("train", self.describe)
        self._accumulated = accumulated_steps(model)
        self._before = applied_steps(model)
        self._batch, self._stride = 0, model.steps_per_execution
        if self.gradients:
            self._measurement = measure_gradients(model, self.params)
            self._measurement.watch(self._due, self._measured)

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Writes the epoch's costs, and flushes: there may be no end of training."""
        self._warn_of_cost(logs or {})
        if logs is not None and is_split(self.model):
            for name in NAMES:  # a step that returns logs of its own has none
                logs.setdefault(name, math.nan)
        if self._files is None or logs is None:
            return
        step = updates(self.model)
        for run, prefix in (("train", ""), ("validation", "val_")):
            if f"{prefix}data_loss" not in logs:
                continue
            values = {}
            if prefix or self.update_freq == "epoch" or not self.gradients:
                data, penalty = (float(logs[f"{prefix}{n}"]) for n in NAMES)
                values = cost_scalars(data, penalty, self._start_penalty or 0.0)
            if not prefix:
                rate = current_learning_rate(plain_optimizer(self.model))
                if rate is not None:
                    values["learning_rate"] = rate
                values |= evidence_of_logs(logs)
            self._files.write(
                run, functools.partial(EventFile.scalars, values=values, step=step)
            )

    def on_train_end(self, logs: Logs | None = None) -> None:
        """Closes the files and leaves the model as it was found."""
        self._close_files()
        if self._measurement is not None:
            self._measurement.remove()
            self._measurement = None
        # Also one that a broken training left.
        remove_temporary_split(self.model)

    def describe(self, file: EventFile) -> None:
        """Writes the hyperparameters of the model's penalties, and the layout."""
        file.hparams(hyperparameters(self.model), METRICS)
        self.describe_layout(file)

    def describe_layout(self, file: EventFile) -> None:
        """Writes which curves TensorBoard puts into one chart."""
        learned = is_learning(self.model)
        file.layout(LAYOUT | EVIDENCE_LAYOUT if learned else LAYOUT)

    def _warn_of_cost(self, logs: Logs) -> None:
        """Says once what keeps the numbers from being told, or the penalty from acting.

        What training has compiled tells; a validation that has it right changes
        nothing.
        """
        if self._warned or not is_split(self.model):
            return
        text = self._what_is_wrong(split_cost(self.model), logs)
        if text is not None:
            self._warned = True
            warnings.warn(text, stacklevel=3)

    def _what_is_wrong(self, split: CostSplit, logs: Logs) -> str | None:
        model, name = self.model, self.model.name
        unknown = "CostMonitor logs data_loss and penalty of the training as nan."
        if split.forgotten and penalized(model):
            return f"{text_of_forgotten(model)} {unknown}"
        if not split.seen:
            return (
                f"CostMonitor cannot tell data cost from penalty: the train_step of "
                f"{name!r} does not call self.compute_loss(...), on JAX "
                f"self.stateless_compute_loss(...). {unknown}"
            )
        if not logs.keys() >= set(NAMES):
            return (
                f"CostMonitor finds no data_loss and no penalty in the logs that the "
                f"train_step of {name!r} returns, which end as those of the last "
                "batch. Update all of self.metrics in it and return their results, as "
                f"the train_step of Keras's guide does. {unknown}"
            )
        if split.weighs and logs.get("penalty") == 0 and penalty_of(model) != 0:
            return text_of_dropped(model)
        if split.repeated and self._files is not None and self.gradients:
            return (
                f"CostMonitor measures no gradients: the train_step of {name!r} calls "
                "compute_loss more than once, so that the gradients are not those of "
                "one loss."
            )
        return None

    def _close_files(self) -> None:
        if self._files is not None:
            self._files.close()
            self._files = None

    def _due(self) -> bool:
        """Whether to measure the call that is about to be made; counts it."""
        first, self._batch = self._batch, self._batch + self._stride
        if isinstance(self.update_freq, str):
            return first == 0
        return -(self._before + first) % self.update_freq < self._stride

    def _measured(self, record: StepRecord) -> None:
        """Writes what a measured step was, at the weights before it."""
        # The last execution of an epoch may have fewer steps than the others.
        batches = min(self._batch, self.params.get("steps") or self._batch)
        step = (self._before + batches - 1) // self._accumulated
        values = gradient_scalars(record.norms, self.max_weights)
        if self.update_freq != "epoch":
            start = self._start_penalty or 0.0
            values |= cost_scalars(record.data_loss, record.penalty, start)
        if self._files is not None:
            self._files.write("train", lambda file: file.scalars(values, step))
