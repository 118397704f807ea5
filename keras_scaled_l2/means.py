"""The metrics in which a split cost is averaged, as Keras averages the loss."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops
from keras.config import floatx

# Private, but there since Keras 3.0: the only thing that Keras's callbacks look into.
from keras_scaled_l2 import _keras
from keras_scaled_l2.gradients import Tensor, is_known

NAMES = ("data_loss", "penalty")
"""Keys under which Keras's ``logs`` carry the two parts; their sum is ``loss``."""


class PairOfMeans(_keras.MetricsList):
    """The two means, held as Keras holds compiled metrics.

    Only there does ``EarlyStopping(monitor="val_data_loss")`` look for whether less is
    better, in Keras 3.
    """

    def __init__(self, split: Any) -> None:
        self.first = [_Mean(name=name) for name in NAMES]
        # Of the second and later calls of compute_loss in a step.
        self.again = [_Mean(name=f"{name}_again") for name in NAMES]
        super().__init__(metrics=[*self.first, *self.again], name="cost_split")
        self.split = split

    def result(self) -> dict[str, Tensor]:
        """Both means by name, as they stand in the logs."""
        if not self.split.logged:
            return {}
        # The last of the name: its result is the one that Keras logs.
        losses = [m for m in self.split.model.metrics if m.name == "loss"]
        if not (self.split.repeated and losses and is_known(losses[-1].variables)):
            return {mean.name: mean.result() for mean in self.first}
        return self._nearest(losses[-1].result())

    def _nearest(self, loss: Tensor) -> dict[str, Tensor]:
        """Of several losses in a step the one that is logged: first, others or all."""
        pairs = list(zip(self.first, self.again, strict=True))
        rows = ops.stack(
            [
                ops.stack(
                    [
                        one.result(),
                        other.result(),
                        (one.total + other.total) / (one.count + other.count),
                    ]
                )
                for one, other in pairs
            ]
        )
        distance = ops.abs(ops.sum(rows, axis=0) - ops.cast(loss, floatx()))
        distance = ops.where(ops.isnan(distance), float("inf"), distance)
        row = ops.take(rows, ops.argmin(distance), axis=1)
        return dict(zip(NAMES, [row[0], row[1]], strict=True))

    def update_state(self, *arguments: Any, **keywords: Any) -> None:
        """Nothing: custom train steps update all metrics with ``(y, y_pred)``."""


class _Mean(keras.metrics.Mean):
    """A running mean that only the split adds to; unknown until it does."""

    _direction = "down"  # what Keras's callbacks ask: less is better

    def record(self, value: Tensor, size: Tensor) -> None:
        """Adds the value of a batch of this size; Keras's own way to it is longer."""
        self.total.assign_add(value * size)
        self.count.assign_add(size)

    def update_state(self, *arguments: Any, **keywords: Any) -> None:
        """Nothing: custom train steps update all metrics with ``(y, y_pred)``."""

    def result(self) -> Tensor:
        """The mean; not a number, rather than 0, if the step told nothing."""
        return self.total / self.count


def is_ours(metric: keras.Metric) -> bool:
    """Whether a metric of a model is there for the split or the measurement."""
    return isinstance(metric, PairOfMeans) or metric.name == "gradient_statistics"


def names_in_logs(model: keras.Model) -> set[str]:
    """Names of a model's metrics, also of those that Keras has yet to build."""
    names = {name for metric in model.metrics for name in _names(metric)}
    outputs = getattr(model, "output_names", None) or []
    if len(outputs) > 1:
        names |= {f"{output}_loss" for output in outputs}
    return names


def _names(metric: keras.Metric) -> list[str]:
    # The compiled metrics are one object that Keras names after itself.
    inner = getattr(metric, "metrics", None) or _keras.unbuilt_metrics(metric)
    named = [m.name for m in inner if hasattr(m, "name")]
    return named or [metric.name]
