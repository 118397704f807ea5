"""Split a model's loss into data cost and penalty, inside its own steps."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras
from keras import ops
from keras.config import floatx

from keras_scaled_l2 import _keras
from keras_scaled_l2.compiled import Key, key_of, same_key
from keras_scaled_l2.gradients import (
    Tensor,
    can_store,
    metric_values,
    strategy_scope,
)
from keras_scaled_l2.handles import Handle, shadow
from keras_scaled_l2.means import NAMES, PairOfMeans, is_ours, names_in_logs
from keras_scaled_l2.parts import (
    penalties_act,
    penalties_noted,
    split_loss,
    steps_by_itself,
    weighs_penalties,
)
from keras_scaled_l2.steps import rebuild_steps

Observer = Callable[[Tensor, Tensor, Mapping[int, Tensor] | None], None]
"""Given data cost, penalty and weights of a batch, as in ``Parts``."""

_CACHED = "_keras_scaled_l2_splits"
_MADE = "_keras_scaled_l2_made_for"


class FirstStep(NamedTuple):
    """What the penalty is of the first step's loss."""

    penalty: float | None
    """``None`` if the step does not tell."""
    forgotten: bool
    """Whether the step leaves it out, or has not even asked for it."""


class CostSplit:
    """Two running means beside Keras's ``loss``: ``data_loss`` and ``penalty``.

    The penalty is the sum of the penalties of the trainable weights, each with the
    weight with which it enters the loss; all else that the loss holds (the compiled
    loss, ``add_loss``, activity regularizers) is data cost. Both are averaged over a
    pass as Keras averages ``loss``, weighted by batch size and at the weights before
    each step, so that ``data_loss + penalty == loss`` to float32 rounding, the last
    partial batch included, in training and in evaluation. Of a step that computes its
    loss more than once those parts count that add up to the loss it logs.

    Nothing is computed twice, and the loss stays what it was: Keras sums it, and the
    parts are sums of the same terms. What is compiled with the split is kept for the
    next time it is installed, beside the step that it stood in for; see ``compiled``.
    """

    def __init__(self, model: keras.Model, *, logged: bool = True) -> None:
        """Makes the metrics for a compiled model; see ``split_cost``."""
        if not getattr(model, "compiled", False):
            raise ValueError(
                f"The model {model.name!r} is not compiled: call model.compile(...) "
                "before its cost is split."
            )
        taken = set(NAMES) & names_in_logs(model)
        if taken and logged:
            raise ValueError(
                f"The model {model.name!r} has a metric or output loss named "
                f"{sorted(taken)[0]!r} already: expected {NAMES} to be free in logs. "
                "Rename the output or the metric."
            )
        self.logged = logged
        """Whether its means are in the logs; else only ``on_first_step`` has them."""
        self.observer: Observer | None = None
        self.on_first_step: Callable[[FirstStep], None] | None = None
        """Told once, after the next call of the train function."""
        self.temporary = False
        """Whether it goes when training ends, whoever was to remove it."""
        self.seen = False
        """Whether a training step has called ``compute_loss`` where parts are kept."""
        self.evaluated = False
        """Whether a training step of the model's own has asked for any penalty."""
        self.dropped: bool | None = None
        """Whether it surely makes nothing of what it has asked for, once looked at."""
        self.begun = False
        """Whether a training step has been traced or run."""
        self.repeated = False
        """Whether one has called ``compute_loss`` more than once."""
        self.measurement: Any = None
        """The measurement of gradients that shares its steps, if there is one."""
        self.model = model
        """The model that it belongs to."""
        self._compute_loss = model.compute_loss
        self.weighs = weighs_penalties(model)
        """Whether the loss may hold penalties times something, or not at all."""
        self._step = threading.local()  # replicas are traced by threads of their own
        with strategy_scope(model):
            self._pair = PairOfMeans(self)
        self._made: dict[str, Any] = {"train": None, "test": None}
        self._found: tuple[Any, Any] = (None, None)
        self._found_key: Key = ()
        self._placed: Any = None
        self._make: dict[str, Callable[..., Any]] = {}
        self._handle = Handle()

    @property
    def forgotten(self) -> bool:
        """Whether the training steps so far leave the penalties out of the weights."""
        return self.begun and not (self.seen or (self.evaluated and not self.dropped))

    def install(self) -> None:
        """Puts the split, and the steps that it has compiled before, on the model."""
        model = self.model
        self._found_key = key_of(model)
        self._found = (model.train_function, model.test_function)
        self._compute_loss = model.compute_loss
        self._train_step = model.train_step
        self.weighs = weighs_penalties(model)
        _keras.add_metric(model, self._pair)
        covers = {
            "compute_loss": self._split_loss,
            "make_train_function": self._maker("train"),
            "make_test_function": self._maker("test"),
            _keras.FLATTEN_METRICS: self._flattener(),
        }
        covers |= {"train_step": self._own_step} if steps_by_itself(model) else {}
        shadows = [shadow(model, name, cover) for name, cover in covers.items()]
        self._handle = Handle(self._give_back, *(s.remove for s in shadows))
        if not same_key(self._key_made(self._made["train"]), self._found_key):
            self._forget()
        model.train_function = self._made["train"]
        model.test_function = self._made["test"]
        if self._found[0] is not None:
            model.make_train_function()
        self._placed = model.train_function
        self._carried = any(metric is self._pair for metric in model.metrics)
        if self.logged and not self._carried:
            self.remove()
            raise ValueError(
                f"The model {model.name!r} has a metrics property that leaves out what "
                "others add, so its cost cannot be split: expected Keras's own list, "
                "which has the model's own metrics too, return super().metrics."
            )

    def remove(self) -> None:
        """Leaves the model as it was found."""
        if self.measurement is not None:
            self.measurement.remove()
        self._handle.remove()

    def _give_back(self) -> None:
        """Metric and steps, once the methods are uncovered."""
        model = self.model
        _keras.remove_metric(model, self._pair)
        key, found = key_of(model), self._found
        # Not kept here: on JAX a step that is alive shares its traces with the next.
        self._found = (None, None)
        # Else somebody has had it remade, and may have a reason that no key knows.
        untouched = model.train_function is self._placed
        self._placed = None
        if same_key(self._key_made(model.train_function), key):
            self._made = {"train": model.train_function, "test": model.test_function}
        else:
            self._forget()
        if untouched and same_key(key, self._found_key):
            model.train_function, model.test_function = found
        else:
            del found
            rebuild_steps(model)
        if model.train_function is not None:
            cached = vars(model.train_function).setdefault(_CACHED, {})
            cached[self.logged] = self

    def _forget(self) -> None:
        """Lets go of what was compiled, and of what was learned from compiling it."""
        self._made = {"train": None, "test": None}
        self.seen = self.evaluated = self.repeated = self.begun = False
        self.measurement = self.dropped = None

    def _maker(self, kind: str) -> Callable[..., None]:
        """What covers Keras's ``make_..._function``."""
        model = self.model
        make = getattr(model, f"make_{kind}_function")
        self._make[kind] = make

        def make_anew(force: bool = False) -> None:
            if getattr(model, f"{kind}_function") is not None and not force:
                return
            setattr(model, f"{kind}_function", self.new_function(kind))

        return make_anew

    def new_function(self, kind: str) -> Callable[..., Any]:
        """A train or test function of its own, not yet traced.

        Args:
            kind: ``"train"`` or ``"test"``.
        """
        model, step = self.model, getattr(self.model, f"{kind}_step")

        # A new function: JAX traces one once, however often it is compiled.
        def marked(*arguments: Any) -> Any:
            return self._marked(kind, step, *arguments)

        before = getattr(model, f"{kind}_function")
        with shadow(model, f"{kind}_step", marked):
            self._make[kind](force=True)
        function = getattr(model, f"{kind}_function")
        setattr(model, f"{kind}_function", before)
        if kind == "test":
            return functools.partial(self._marked, kind, function)
        told = self._told(function)
        vars(told)[_MADE] = (self, key_of(model))
        return told

    def _key_made(self, function: Any) -> Key | None:
        """What a train function was compiled for, if this has made it."""
        maker, key = getattr(function, _MADE, (None, None))
        return key if maker is self else None

    def _marked(self, kind: str, step: Callable[..., Any], *arguments: Any) -> Any:
        """Runs or traces a step of this kind.

        Where it is traced, by whichever thread; and around its function, since torch
        looks for ``train_step`` when it runs.
        """
        self._step.training, self._step.calls = kind == "train", 0
        self.begun |= kind == "train"
        try:
            return step(*arguments)
        finally:
            self._step.training = False

    def _own_step(self, *arguments: Any) -> Any:
        """A step of the model's own; what it asks for and drops is looked for once."""
        result = self._train_step(*arguments)
        if self.evaluated and not self.seen and self.dropped is None:
            self.dropped = not penalties_act(self.model, self._train_step, arguments)
        return result

    def _told(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A train function that tells of its first call."""
        model, fresh = self.model, steps_by_itself(self.model)

        def train_function(*arguments: Any) -> Any:
            nonlocal fresh
            noted: Any = contextlib.nullcontext()
            if fresh:
                # Whoever sums the loss itself may ask for the penalties, or forget.
                fresh, noted = False, penalties_noted(model, self._note)
            with noted:
                result = self._marked("train", function, *arguments)
            if self.on_first_step is not None:
                tell, self.on_first_step = self.on_first_step, None
                tell(self._first_step(result))
            return result

        return train_function

    def _first_step(self, result: Any) -> FirstStep:
        if not (self.seen and self._carried):
            return FirstStep(0.0 if self.forgotten else None, self.forgotten)
        mean = self._pair.first[1]
        variables = [mean.total, mean.count]
        total, count = metric_values(self.model, variables, result)
        return FirstStep(float(total) / float(count) if count else None, False)

    def _note(self) -> None:
        self.evaluated = True

    def _flattener(self) -> Callable[[Mapping[str, Any]], Any]:
        """Keras's list of ``evaluate``, which keeps its length and order."""
        model = self.model
        flatten = _keras.flatten_metrics(model)

        def without_parts(logs: Mapping[str, Any]) -> Any:
            ours = {*NAMES, *(m.name for m in model.metrics if is_ours(m))}
            return flatten({k: v for k, v in logs.items() if k not in ours})

        return without_parts

    def _split_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Tensor:
        arguments = {"x": x, "y": y, "y_pred": y_pred, "sample_weight": sample_weight}
        if _keras.loss_passes_training(self.model):
            arguments["training"] = training
        parts = split_loss(self.model, self._compute_loss, arguments)
        if can_store():
            batch = x if x is not None else y_pred
            self._update(batch, parts.data, parts.penalty, parts.weights)
        return parts.total

    def _update(
        self,
        batch: Any,
        data: Tensor,
        penalty: Tensor,
        weights: Mapping[int, Tensor] | None,
    ) -> None:
        again = getattr(self._step, "calls", 0) > 0
        self._step.calls = 1
        if getattr(self._step, "training", False):
            self.seen = True
            self.repeated |= again
        first = next(leaf for leaf in keras.tree.flatten(batch) if leaf is not None)
        size = ops.cast(ops.shape(first)[0], floatx())
        data, penalty = ops.stop_gradient(data), ops.stop_gradient(penalty)
        if hasattr(self.model, "distribute_strategy"):
            # Under a distribution strategy Keras divides losses by the replicas.
            share = _keras.share_of_replicas(self.model)
            data, penalty = data / share, penalty / share
            weights = weights and {v: weight / share for v, weight in weights.items()}
        means = self._pair.again if again else self._pair.first
        for mean, value in zip(means, (data, penalty), strict=True):
            mean.record(value, size)
        if self.observer is not None and not again:
            self.observer(data, penalty, weights)


def _installed(model: keras.Model) -> CostSplit | None:
    """The split that a model carries, by the metric that it has put there."""
    pairs = [m for m in _keras.tracked_metrics(model) if isinstance(m, PairOfMeans)]
    return pairs[0].split if pairs else None


def split_cost(model: keras.Model, *, logged: bool = True) -> CostSplit:
    """The split of a compiled model's cost, installed if it is not yet.

    Args:
        model: A compiled model.
        logged: Whether the parts must be in the logs.

    Returns:
        The split; its ``remove()`` leaves the model as it was found. While it is
        installed and logged, ``fit`` and ``evaluate`` report ``data_loss`` and
        ``penalty``.

    Raises:
        ValueError: If the model is not compiled, or has metrics of these names.
    """
    found = _installed(model)
    listener = None
    if found is not None:
        if found.logged or not logged:
            return found
        listener = found.on_first_step
        found.remove()
    cached = getattr(getattr(model, "train_function", None), _CACHED, {})
    split: CostSplit = cached.get(logged) or CostSplit(model, logged=logged)
    split.install()
    split.temporary, split.on_first_step = False, listener
    return split


def is_split(model: keras.Model) -> bool:
    """Whether the split is installed on the model, and logged."""
    found = _installed(model)
    return found is not None and found.logged


def tell_first_step(model: keras.Model, tell: Callable[[FirstStep], None]) -> bool:
    """Have the penalty in the loss of a training's first step told.

    Args:
        model: A compiled model.
        tell: Called once, right after the step.

    Returns:
        Whether it will be. Not where the penalty is in the loss by construction, with
        Keras's own ``train_step`` and ``compute_loss``: then nothing is installed.
    """
    if not (weighs_penalties(model) or steps_by_itself(model)):
        return False
    split = _installed(model)
    if split is None:
        split = split_cost(model, logged=False)
        split.temporary = True
    split.on_first_step = tell
    return True


def remove_temporary_split(model: keras.Model) -> None:
    """Remove a split that was to last for one training, if there is one."""
    found = _installed(model)
    if found is not None and found.temporary:
        found.remove()
