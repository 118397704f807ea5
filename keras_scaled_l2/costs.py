"""Split a model's loss into data cost and penalty, inside its own steps."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
from keras import ops
from keras.config import floatx

# Private, but there since Keras 3.0: the only thing that Keras's callbacks look into.
from keras.src.trainers.compile_utils import MetricsList

from keras_scaled_l2.counts import penalized_weights
from keras_scaled_l2.fitting import rebuild_steps
from keras_scaled_l2.gradients import (
    Tensor,
    can_store,
    penalty_scope,
    shadow,
    strategy_scope,
    to_numpy,
)

NAMES = ("data_loss", "penalty")
"""Keys under which Keras's ``logs`` carry the two parts; their sum is ``loss``."""

_INSTALLED = "_keras_scaled_l2_split"


class CostSplit:
    """Two running means beside Keras's ``loss``: ``data_loss`` and ``penalty``.

    The penalty is the sum of the penalties of the trainable weights; all else that
    the loss holds (the compiled loss, ``add_loss``, activity regularizers) is data
    cost. Both are averaged over a pass as Keras averages ``loss``, weighted by batch
    size and at the weights before each step, so that
    ``data_loss + penalty == loss`` to float32 rounding, the last partial batch
    included, in training and in evaluation.

    Nothing is computed twice, and the loss stays what it was: Keras sums it, and the
    parts are sums of the same terms.
    """

    def __init__(self, model: keras.Model) -> None:
        """Installs the two metrics on a compiled model; see ``split_cost``."""
        if not getattr(model, "compiled", False):
            raise ValueError(
                f"The model {model.name!r} is not compiled: call model.compile(...) "
                "before its cost is split."
            )
        taken = set(NAMES) & _names_in_logs(model)
        if taken:
            raise ValueError(
                f"The model {model.name!r} has a metric or output loss named "
                f"{sorted(taken)[0]!r} already: expected {NAMES} to be free in logs. "
                "Rename the output or the metric."
            )
        self._model = model
        self._compute_loss = model.compute_loss
        self.observer: Callable[[Tensor, Tensor], None] | None = None
        self.temporary = False
        """Whether it goes when training ends, whoever was to remove it."""
        self.seen = False
        """Whether a step has called ``compute_loss`` where its parts can be kept."""
        with strategy_scope(model):
            self._means = [_Mean(name=name) for name in NAMES]
            self._pair = _Pair(self._means, name="cost_split")
        model._metrics.append(self._pair)
        self._uncover = shadow(model, "compute_loss", self._split_loss)
        vars(model)[_INSTALLED] = self
        rebuild_steps(model)
        if not any(metric is self._pair for metric in model.metrics):
            self.remove()
            raise ValueError(
                f"The model {model.name!r} has a metrics property that leaves out what "
                "others add, so its cost cannot be split: expected it to end with "
                "Keras's own list, return [self.loss_tracker, *super().metrics]."
            )

    def remove(self) -> None:
        """Leaves the model as it was found."""
        model = self._model
        if vars(model).pop(_INSTALLED, None) is None:
            return
        model._metrics.remove(self._pair)
        self._uncover()
        rebuild_steps(model)

    def _split_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Tensor:
        arguments = {"x": x, "y": y, "y_pred": y_pred, "sample_weight": sample_weight}
        if self._model._compute_loss_has_training_arg:
            arguments["training"] = training
        parts = split_loss(self._model, self._compute_loss, arguments)
        if can_store():
            self._update(x if x is not None else y_pred, parts.data, parts.penalty)
        return parts.total

    def _update(self, batch: Any, data: Tensor, penalty: Tensor) -> None:
        self.seen = True
        first = next(leaf for leaf in keras.tree.flatten(batch) if leaf is not None)
        size = ops.cast(ops.shape(first)[0], floatx())
        values = [ops.stop_gradient(value) for value in (data, penalty)]
        if hasattr(self._model, "distribute_strategy"):
            # Under a distribution strategy Keras divides losses by the replicas.
            share = self._model._aggregate_additional_loss(ops.ones(()))
            values = [value / share for value in values]
        for mean, value in zip(self._means, values, strict=True):
            mean.record(value, size)
        if self.observer is not None:
            self.observer(*values)


class _Pair(MetricsList):
    """The two means, held as Keras holds compiled metrics.

    Only there does ``EarlyStopping(monitor="val_data_loss")`` look for whether less is
    better, in Keras 3.
    """

    def result(self) -> dict[str, Tensor]:
        """Both means by name, as they stand in the logs."""
        return {mean.name: mean.result() for mean in self.metrics}

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


class Parts(NamedTuple):
    """A loss and its two parts."""

    total: Tensor
    data: Tensor
    penalty: Tensor


def split_loss(
    model: keras.Model, compute_loss: Callable[..., Tensor], arguments: dict[str, Any]
) -> Parts:
    """A model's loss on a batch, as its ``compute_loss`` has it, and its two parts.

    Args:
        model: The model, right after its forward pass on the batch.
        compute_loss: Its ``compute_loss``.
        arguments: For ``compute_loss``, by keyword.
    """
    with penalty_scope():
        # Computed when they are asked for: only the weights' penalties.
        losses = list(model.losses)
    # Keras appends the weights' penalties, in order, after all other losses. Counted
    # as Keras does: penalized_weights walks the layers, which torch would do each step.
    penalized = [v for v in model.trainable_weights if v.regularizer is not None]
    first = len(losses) - len(penalized)
    compiled: list[Tensor] = []
    summed: list[Tensor] = []
    with (
        _losses_are(model, losses),
        _recorded(model._compile_loss, "call", compiled),
        _recorded(model, "_aggregate_additional_loss", summed),
    ):
        # Keras's own sum of all losses: training is not touched by the split.
        total = compute_loss(**arguments)
    if getattr(compute_loss, "__func__", None) is keras.Model.compute_loss:
        others, penalties = summed[:first], summed[first:]
        # Summed anew, not subtracted: a penalty a million times the data cost would
        # leave no digit of it.
        return Parts(total, _sum([*compiled, *others]), _sum(penalties))
    # A custom compute_loss may weigh what it likes.
    penalty = _sum([model._aggregate_additional_loss(loss) for loss in losses[first:]])
    return Parts(total, total - penalty, penalty)


def _sum(values: list[Tensor]) -> Tensor:
    floats = [ops.cast(value, floatx()) for value in values]
    if len(floats) == 1:  # often the data cost: torch computes each operation
        return floats[0]
    return ops.sum(ops.stack(floats)) if floats else ops.zeros(())


@contextlib.contextmanager
def _recorded(thing: Any, name: str, values: list[Tensor]) -> Iterator[None]:
    """Appends what a method of one object gives meanwhile."""
    if thing is None:
        yield
        return
    method = getattr(thing, name)

    def record(*arguments: Any) -> Tensor:
        value = method(*arguments)
        if value is not None:
            values.append(value)
        return value

    undo = shadow(thing, name, record)
    try:
        yield
    finally:
        undo()


@contextlib.contextmanager
def _losses_are(model: keras.Model, losses: list[Tensor]) -> Iterator[None]:
    """What ``model.losses`` gives meanwhile, so that nothing is computed twice."""
    # Past Keras's and torch's __setattr__, which look for layers and weights.
    attributes = vars(model)
    before = attributes["_losses_override"]
    attributes["_losses_override"] = losses
    try:
        yield
    finally:
        attributes["_losses_override"] = before


def split_cost(model: keras.Model) -> CostSplit:
    """The split of a compiled model's cost, installed if it is not yet.

    Args:
        model: A compiled model.

    Returns:
        The split; its ``remove()`` leaves the model as it was found. While it is
        installed, ``fit`` and ``evaluate`` report ``data_loss`` and ``penalty``.

    Raises:
        ValueError: If the model is not compiled, or has metrics of these names.
    """
    return vars(model).get(_INSTALLED) or CostSplit(model)


@contextlib.contextmanager
def without_penalties(model: keras.Model) -> Iterator[None]:
    """The model's loss without the penalties of its weights, meanwhile."""
    variables = [weight.variable for weight in penalized_weights(model)]
    regularizers = [variable.regularizer for variable in variables]
    for variable in variables:
        variable.regularizer = None
    try:
        yield
    finally:
        for variable, regularizer in zip(variables, regularizers, strict=True):
            variable.regularizer = regularizer


def penalty_of(model: keras.Model) -> float:
    """The sum of a model's penalties at its weights now; 0 without any."""
    values = (
        w.variable.regularizer(w.variable.value) for w in penalized_weights(model)
    )
    return sum(float(to_numpy(value)) for value in values)


def is_split(model: keras.Model) -> bool:
    """Whether the split is installed on the model."""
    return _INSTALLED in vars(model)


def _names_in_logs(model: keras.Model) -> set[str]:
    """Names of a model's metrics, also of those that Keras has yet to build."""
    names = {name for metric in model.metrics for name in _names(metric)}
    outputs = getattr(model, "output_names", None) or []
    if len(outputs) > 1:
        names |= {f"{output}_loss" for output in outputs}
    return names


def _names(metric: keras.Metric) -> list[str]:
    # The compiled metrics are one object that Keras names after itself.
    inner = getattr(metric, "metrics", None) or [
        *keras.tree.flatten(getattr(metric, "_user_metrics", None)),
        *keras.tree.flatten(getattr(metric, "_user_weighted_metrics", None)),
    ]
    named = [m.name for m in inner if hasattr(m, "name")]
    return named or [metric.name]
