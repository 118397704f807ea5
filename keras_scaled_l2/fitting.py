"""What the ``fit`` that is running knows and Keras does not tell its callbacks."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import keras

from keras_scaled_l2 import _keras
from keras_scaled_l2.adapters import UNKNOWN, Counted, count
from keras_scaled_l2.gradients import to_numpy


def plain_optimizer(
    model: keras.Model, variable: keras.Variable | None = None
) -> keras.optimizers.Optimizer | None:
    """The optimizer that updates the weights, without its loss scaling, if any.

    Of a ``MultiOptimizer`` the one that updates this variable.
    """
    return _keras.part_for(unwrapped(getattr(model, "optimizer", None)), variable)


def unwrapped(optimizer: Any) -> Any:
    """The optimizer within a loss scaling; without one itself."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def accumulated_steps(
    model: keras.Model, variable: keras.Variable | None = None
) -> int:
    """How many steps share one update of the weights; 1 without accumulation."""
    return steps_per_update(plain_optimizer(model, variable))


def steps_per_update(optimizer: keras.optimizers.Optimizer | None) -> int:
    """The same of an optimizer that no model need have."""
    return getattr(optimizer, "gradient_accumulation_steps", None) or 1


def weight_decay_of(model: keras.Model, variable: keras.Variable) -> tuple[str, float]:
    """The optimizer's decoupled decay of a variable: its argument, its value; or 0."""
    optimizer: Any = plain_optimizer(model, variable)
    name = _keras.decay_argument(optimizer, variable)
    decay = getattr(optimizer, name, None) or 0.0
    return name, float(decay) if decay and _keras.decays(optimizer, variable) else 0.0


def without_weight_decay(model: keras.Model, variable: keras.Variable) -> str:
    """The arguments with which the optimizer of a variable decays nothing, as code."""
    optimizer = plain_optimizer(model, variable)
    # Not None, which AdamW refuses. Muon has a second one.
    names = ("weight_decay", "adam_weight_decay")
    decays = [name for name in names if getattr(optimizer, name, None)]
    return ", ".join(f"{name}=0.0" for name in decays)


def excluding_from_weight_decay(model: keras.Model, variable: keras.Variable) -> str:
    """How weights are excluded from the decay of a variable's optimizer, as code."""
    optimizer = getattr(model, "optimizer", None)
    # What wraps another optimizer decays nothing, and passes no exclusion on.
    inner = getattr(optimizer, "inner_optimizer", None)
    place = "optimizer" if inner is None else "optimizer.inner_optimizer"
    call = f"{place}.exclude_from_weight_decay(...)"
    part = plain_optimizer(model, variable)
    if part is (inner or optimizer):
        return call
    return f"optimizer.exclude_from_weight_decay(...) of that {type(part).__name__}"


def updates(model: keras.Model) -> int:
    """How often the optimizer has changed the weights."""
    return int(to_numpy(model.optimizer.iterations))


def applied_steps(model: keras.Model) -> int:
    """How many gradients the optimizer has been given; several may make one update."""
    return gradients_given(plain_optimizer(model))


def gradients_given(optimizer: keras.optimizers.Optimizer | None) -> int:
    """The same of an optimizer; here its schedule is looked up."""
    return int(to_numpy(_keras.gradients_given(optimizer)))


def current_learning_rate(
    optimizer: keras.optimizers.Optimizer | None,
) -> float | None:
    """The learning rate of the next step; of a schedule, its value at this moment.

    None for a ``MultiOptimizer``, which has several, and where there is none.
    """
    rate = getattr(optimizer, "learning_rate", None)
    return None if rate is None else float(to_numpy(rate))


def build_from_running_fit(model: keras.Model) -> None:
    """Build a model from the shape of the data that ``fit`` was given.

    Keras on TensorFlow builds a deferred model inside its first step, too late to
    count its weights. Does nothing where the shape is not known.
    """
    if model.built and model.weights:
        return
    frame = _running_fit(model)
    found = {} if frame is None else frame.f_locals
    data = found.get("x")
    spec = _keras.element_spec(found.get("epoch_iterator"))
    if spec is None or not all(map(_has_known_shape, keras.tree.flatten(spec))):
        spec = getattr(data, "element_spec", None)
    if isinstance(spec, (tuple, list)):
        spec = spec[0]
    inputs = data if spec is None else spec
    leaves = keras.tree.flatten(inputs)
    if not leaves or not all(_has_known_shape(leaf) for leaf in leaves):
        return
    # Called, not built: only the call of a subclassed model makes its layers' weights.
    model(keras.tree.map_structure(_symbolic, inputs))


def _has_known_shape(leaf: Any) -> bool:
    shape = getattr(leaf, "shape", None)
    return shape is not None and getattr(shape, "rank", 1) is not None


def _symbolic(leaf: Any) -> keras.KerasTensor:
    """A batch of unknown size, of the shape and type of an array."""
    dtype = getattr(leaf, "dtype", keras.config.floatx())
    dtype = keras.backend.standardize_dtype(dtype)
    return keras.KerasTensor((None, *leaf.shape[1:]), dtype)


def data_of_running_fit(model: keras.Model) -> Counted:
    """Training examples and batch size of the ``fit`` that is on the call stack.

    Keras tells its callbacks neither. Both stand in the data adapter that ``fit``
    has made by the time it calls ``on_train_begin``, so this looks there rather than
    make every user repeat ``samples=len(x_train)``. A generator, or a data set that
    does not tell its batch size, gives ``None``; a ``PyDataset`` is asked for its first
    and its last batch, the only ones whose sizes are looked at.
    """
    frame = _running_fit(model)
    if frame is None:
        return UNKNOWN
    adapter = getattr(frame.f_locals.get("epoch_iterator"), "data_adapter", None)
    return count(adapter, frame.f_locals.get("steps_per_epoch"))


def examples_of_running_fit(model: keras.Model) -> tuple[Any, Any] | None:
    """Inputs and targets that the running ``fit`` trains on, if they are arrays.

    Raises:
        ValueError: If the examples are weighted.
    """
    frame = _running_fit(model)
    if frame is None:
        return None
    # A validation split has been taken off by now.
    found = {n: frame.f_locals.get(n) for n in ("x", "y")}
    for name in ("sample_weight", "class_weight"):
        if frame.f_locals.get(name) is not None:
            raise ValueError(
                f"{name} was given to fit: the evidence counts every example once. "
                f"Expected a fit without {name}."
            )
    if any(getattr(array, "shape", None) is None for array in found.values()):
        return None
    return found["x"], found["y"]


def may_be_resolved_by_callbacks() -> bool:
    """Whether the nearest ``fit`` on the call stack has a callback that may bind rules.

    Keras on JAX traces the loss before any callback could: an unresolved rule must get
    through that trace if it may be resolved after it, and only then.
    """
    frame = _nearest("fit")
    if frame is None:
        return False
    return any(_may_bind(callback) for callback in _callbacks_in(frame))


def callbacks_of_running_fit(model: keras.Model) -> list[Any]:
    """The callbacks of the ``fit`` that is on the call stack, in their order."""
    frame = _running_fit(model)
    return [] if frame is None else _callbacks_in(frame)


def _callbacks_in(frame: FrameType) -> list[Any]:
    callbacks = frame.f_locals.get("callbacks")
    inner = getattr(callbacks, "callbacks", callbacks)
    return list(keras.tree.flatten(inner))


def _may_bind(callback: Any) -> bool:
    own = isinstance(callback, keras.callbacks.LambdaCallback)
    return callback is not None and (
        own or type(callback).__module__.partition(".")[0] != "keras"
    )


def give_back_variables() -> None:
    """Undo what Keras on JAX does to a model's variables for the time of its steps.

    It hands their values to the step and empties them; an error inside the step would
    leave the model without weights. Nothing to do elsewhere, or before that.
    """
    for name in ("fit", "evaluate"):
        frame = _nearest(name)
        state = None if frame is None else frame.f_locals.get("state")
        if frame is None or not isinstance(state, tuple):
            continue
        model = frame.f_locals["self"]
        groups = [model.trainable_variables, model.non_trainable_variables]
        if name == "fit":
            groups.append(model.optimizer.variables)
        groups.append(model.metrics_variables)
        for variables, values in zip(groups, state, strict=True):
            for variable, value in zip(variables, values, strict=True):
                if not _keras.has_value(variable):
                    _keras.put_value(variable, value)
        if name == "fit":
            _start_averages(model.optimizer)


def _start_averages(optimizer: Any) -> None:
    """Give the averages of an optimizer that has not stepped yet the weights.

    They are zero until its first step, and Keras on JAX puts them in the place of the
    weights when a fit ends, with an error too.
    """
    if not getattr(optimizer, "use_ema", False) or int(to_numpy(optimizer.iterations)):
        return
    for weight, average in _keras.averages(optimizer):
        _keras.put_value(average, _keras.value_behind(weight))


def _nearest(name: str) -> FrameType | None:
    """The nearest call of a model's method of this name on the call stack."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        model = frame.f_locals.get("self")
        if frame.f_code.co_name == name and isinstance(model, keras.Model):
            return frame
        frame = frame.f_back
    return None


def is_in_fit(model: keras.Model) -> bool:
    """Whether a ``fit`` of the model is on the call stack."""
    return _running_fit(model) is not None


def _running_fit(model: keras.Model) -> FrameType | None:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "fit" and frame.f_locals.get("self") is model:
            return frame
        frame = frame.f_back
    return None
