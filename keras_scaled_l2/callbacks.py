"""CostMonitor: measures costs and gradients while a model trains."""

from __future__ import annotations

import functools
import math
import os
from typing import Any

import keras

from keras_scaled_l2.attaching import penalized
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
    plain_optimizer,
    updates,
)
from keras_scaled_l2.gradient_norms import (
    GradientMeasurement,
    StepRecord,
    measure_gradients,
    remove_stale_measurement,
)
from keras_scaled_l2.learned import is_learning
from keras_scaled_l2.means import NAMES
from keras_scaled_l2.parts import penalty_of
from keras_scaled_l2.run_table import METRICS, hyperparameters
from keras_scaled_l2.scalars import (
    EVIDENCE_LAYOUT,
    LAYOUT,
    cost_scalars,
    evidence_of_logs,
    gradient_scalars,
)
from keras_scaled_l2.steps import refresh_steps
from keras_scaled_l2.tensorboard import EventFile, EventFiles
from keras_scaled_l2.validation import check_is_model, positive_count
from keras_scaled_l2.warn import warn

Logs = dict[str, Any]


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
        TypeError: If ``log_dir`` is no path.
        ValueError: If another argument is outside its range.
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
        if not isinstance(log_dir, (str, os.PathLike, type(None))):
            raise TypeError(
                f"log_dir={log_dir!r} is of type {type(log_dir).__name__}: expected a "
                "directory for event files (a str or a path), or None for none."
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
        self._is_measured = False

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
        self._warned = False

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
        self._is_measured = False
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
        text = text or self._what_is_wrong_in_validation(logs)
        text = text or self._what_is_not_measured()
        if text is not None:
            self._warned = True
            warn(text)

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

    def _what_is_wrong_in_validation(self, logs: Logs) -> str | None:
        found = (float(logs.get(f"val_{n}", 0.0)) for n in ("data_loss", "loss"))
        if list(map(math.isnan, found)) != [True, False]:
            return None
        return (
            f"CostMonitor cannot tell data cost from penalty in validation: the "
            f"test_step of {self.model.name!r} does not call self.compute_loss(...), "
            "on JAX self.stateless_compute_loss(...). It logs val_data_loss and "
            "val_penalty as nan: callbacks can follow val_loss only."
        )

    def _what_is_not_measured(self) -> str | None:
        measurement = self._measurement
        if self._files is None or measurement is None:
            return None
        if self._is_measured or measurement.in_use:
            return None
        return (
            f"CostMonitor has measured nothing in this epoch: a callback that comes "
            f"after it has had the step of {self.model.name!r} made anew as the epoch "
            "began (attach, a weight frozen). Put CostMonitor after that callback."
        )

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
        self._is_measured = True
        # The last execution of an epoch may have fewer steps than the others.
        batches = min(self._batch, self.params.get("steps") or self._batch)
        step = (self._before + batches - 1) // self._accumulated
        values = gradient_scalars(record.norms, self.max_weights)
        if self.update_freq != "epoch":
            start = self._start_penalty or 0.0
            values |= cost_scalars(record.data_loss, record.penalty, start)
        if self._files is not None:
            self._files.write("train", lambda file: file.scalars(values, step))
