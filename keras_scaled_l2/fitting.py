"""What the ``fit`` that is running knows and Keras does not tell its callbacks."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import keras

from keras_scaled_l2.gradients import to_numpy


def rebuild_steps(model: keras.Model) -> None:
    """Have Keras compile anew the steps that it made with the old loss.

    ``fit`` makes its step before ``on_train_begin`` and keeps it for the next fit.
    """
    if getattr(model, "train_function", None) is not None:
        model.make_train_function(force=True)
    if getattr(model, "test_function", None) is not None:
        model.make_test_function(force=True)


def plain_optimizer(
    model: keras.Model, variable: keras.Variable | None = None
) -> keras.optimizers.Optimizer | None:
    """The optimizer that updates the weights, without its loss scaling, if any.

    Of a ``MultiOptimizer`` the one that updates this variable.
    """
    optimizer = getattr(model, "optimizer", None)
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    optimizer_of = getattr(optimizer, "_optimizer_map", None)
    if variable is None or optimizer_of is None:
        return optimizer
    return optimizer_of(variable)


def accumulated_steps(
    model: keras.Model, variable: keras.Variable | None = None
) -> int:
    """How many steps share one update of the weights; 1 without accumulation."""
    optimizer = plain_optimizer(model, variable)
    return getattr(optimizer, "gradient_accumulation_steps", None) or 1


def weight_decay_of(model: keras.Model, variable: keras.Variable) -> float:
    """The decoupled weight decay that the optimizer applies to a variable; or 0."""
    optimizer: Any = plain_optimizer(model, variable)
    decay = getattr(optimizer, "weight_decay", None)
    return float(decay) if decay and optimizer._use_weight_decay(variable) else 0.0


def without_weight_decay(model: keras.Model, variable: keras.Variable) -> str:
    """The arguments with which the optimizer of a variable decays nothing, as code."""
    optimizer = plain_optimizer(model, variable)
    # Not None, which AdamW refuses. Muon has a second one.
    names = ("weight_decay", "adam_weight_decay")
    decays = [name for name in names if getattr(optimizer, name, None)]
    return ", ".join(f"{name}=0.0" for name in decays)


def updates(model: keras.Model) -> int:
    """How often the optimizer has changed the weights."""
    return int(to_numpy(model.optimizer.iterations))


def applied_steps(model: keras.Model) -> int:
    """How many gradients the optimizer has been given; several may make one update."""
    return int(to_numpy(getattr(plain_optimizer(model), "_iterations", 0)))


def current_learning_rate(optimizer: keras.optimizers.Optimizer) -> float | None:
    """The learning rate of the next step; of a schedule, its value at this moment.

    None for a ``MultiOptimizer``, which has several.
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
    data = None if frame is None else frame.f_locals.get("x")
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


def data_of_running_fit(model: keras.Model) -> tuple[int | None, int | None]:
    """Training examples and batch size of the ``fit`` that is on the call stack.

    Keras tells its callbacks neither. Both stand in the data adapter that ``fit``
    has made by the time it calls ``on_train_begin``, so this looks there rather than
    make every user repeat ``samples=len(x_train)``. Read only, and never a guess: a
    generator, or a data set that does not tell its batch size, gives ``None``.

    Returns:
        ``(samples, batch_size)``, each ``None`` where it cannot be known.
    """
    frame = _running_fit(model)
    iterator = None if frame is None else frame.f_locals.get("epoch_iterator")
    return _samples_of_adapter(getattr(iterator, "data_adapter", None))


def _running_fit(model: keras.Model) -> FrameType | None:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "fit" and frame.f_locals.get("self") is model:
            return frame
        frame = frame.f_back
    return None


def _samples_of_adapter(adapter: Any) -> tuple[int | None, int | None]:
    loader = getattr(adapter, "_dataloader", None)
    if loader is not None:
        return _samples_of_loader(loader)
    try:
        batches, batch_size = adapter.num_batches, adapter.batch_size
        partial = adapter.partial_batch_size if adapter.has_partial_batch else None
    except (AttributeError, NotImplementedError):
        return None, None
    if batches is None or batch_size is None:
        return None, batch_size
    last = batch_size if partial is None else partial
    return (int(batches) - 1) * int(batch_size) + int(last), int(batch_size)


def _samples_of_loader(loader: Any) -> tuple[int | None, int | None]:
    """Of a torch DataLoader, which Keras takes to yield its whole data set."""
    if loader.batch_size is None:
        return None, None
    try:
        samples = len(loader.sampler)
    except TypeError:
        return None, loader.batch_size
    if loader.drop_last:
        samples -= samples % loader.batch_size
    return samples, loader.batch_size
