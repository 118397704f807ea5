"""Keras's internals, each behind a function that says why: no other file touches them.

The names were seen in Keras 3.8 and 3.15, unless a function says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
from keras import ops
from keras.src.trainers import compile_utils
from keras.src.utils import naming

MetricsList = compile_utils.MetricsList
"""``EarlyStopping(monitor="val_data_loss")`` asks only its instances for the mode."""
FLATTEN_METRICS = "_flatten_metrics_in_order"
"""The method that makes the list of ``evaluate`` out of logs."""
ADD_LOSSES = "_aggregate_additional_loss"
"""The method that sums a loss up before ``compute_loss`` adds it."""
LOSSES_OVERRIDE = "_losses_override"
"""The attribute that ``model.losses`` gives instead of what it would collect."""


def snake_case(name: str) -> str:
    """The name that Keras gives to a layer without one, by its class."""
    return str(naming.to_snake_case(name))


def layers_within(layer: keras.Layer, *, itself: bool = True) -> list[keras.Layer]:
    """A layer and all within it, each once: the public walk stops at models."""
    return list(layer._flatten_layers(include_self=itself))


def children(layer: keras.Layer) -> Sequence[keras.Layer]:
    """The layers that a layer holds itself."""
    found: Sequence[keras.Layer] = layer._layers
    return found


def own_variables(layer: keras.Layer) -> list[keras.Variable]:
    """Variables that a layer made itself: nothing public tells the owner of one."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def own_trainable(layer: keras.Layer) -> Sequence[keras.Variable]:
    """Those that it made to be trained, frozen or not."""
    found: Sequence[keras.Variable] = layer._trainable_variables
    return found


def kernel_variable(layer: keras.Layer) -> keras.Variable:
    """The variable behind ``Dense.kernel``, which may be a computed tensor."""
    return layer._kernel


def passes_training(model: keras.Model) -> bool:
    """Whether a model's call takes ``training``."""
    return bool(model._call_has_training_arg)


def loss_passes_training(model: keras.Model) -> bool:
    """Whether its ``compute_loss`` takes ``training``: older ones do not."""
    return bool(model._compute_loss_has_training_arg)


def flatten_metrics(model: keras.Model) -> Callable[[Any], Any]:
    """The list of ``evaluate`` of some logs."""
    flatten: Callable[[Any], Any] = getattr(model, FLATTEN_METRICS)
    return flatten


def share_of_replicas(model: keras.Model) -> Any:
    """What Keras divides a loss by under a distribution strategy of TensorFlow."""
    return getattr(model, ADD_LOSSES)(ops.ones(()))


def compiled_loss(model: keras.Model) -> Any:
    """The loss of ``compile``, without the losses that layers add; or ``None``."""
    return model._compile_loss


def loss_weights(model: keras.Model) -> Any:
    """The ``loss_weights`` of ``compile`` as they were given; or ``None``."""
    return getattr(compiled_loss(model), "_user_loss_weights", None)


def loss_tracker(model: keras.Model) -> Any:
    """The mean that Keras makes anew with each ``compile``."""
    return getattr(model, "_loss_tracker", None)


def forget_losses(model: keras.Model) -> None:
    """Drop what layers added in their last call; the next one makes it anew."""
    model._clear_losses()


def tracked_metrics(model: keras.Model) -> list[keras.Metric]:
    """The list of a model's own metrics: assigning one would save it with the model."""
    found: list[keras.Metric] = model._metrics
    return found


def add_metric(model: keras.Model, metric: keras.Metric) -> None:
    """Add to a model's own metrics, also while it trains."""
    tracked_metrics(model).append(metric)
    _note_variables(model)


def remove_metric(model: keras.Model, metric: keras.Metric) -> None:
    """Take back what ``add_metric`` added, if it is still there."""
    if any(own is metric for own in tracked_metrics(model)):
        tracked_metrics(model).remove(metric)


def _note_variables(model: keras.Model) -> None:
    """Up to 3.11 JAX's trainer notes as a fit begins where all variables lie."""
    if hasattr(model, "_metrics_variable_shardings"):
        model._record_training_state_sharding_spec()


def unbuilt_metrics(metric: keras.Metric) -> list[Any]:
    """The metrics of ``compile`` before Keras has built them."""
    names = ("_user_metrics", "_user_weighted_metrics")
    return [m for n in names for m in keras.tree.flatten(getattr(metric, n, None))]


def part_for(
    optimizer: keras.optimizers.Optimizer | None, variable: keras.Variable | None
) -> keras.optimizers.Optimizer | None:
    """Of a ``MultiOptimizer`` the one for a variable (not in 3.8); else itself."""
    optimizer_of = getattr(optimizer, "_optimizer_map", None)
    return (
        optimizer
        if variable is None or optimizer_of is None
        else optimizer_of(variable)
    )


def decays(optimizer: keras.optimizers.Optimizer, variable: keras.Variable) -> bool:
    """Whether an optimizer's weight decay applies to a variable."""
    return bool(optimizer._use_weight_decay(variable))


def element_spec(epoch_iterator: Any) -> Any:
    """What the data set of a fit yields, on TensorFlow: made of whatever was given."""
    data_set = getattr(epoch_iterator, "_distributed_dataset", None)
    return getattr(data_set, "element_spec", None)


def decay_argument(optimizer: Any, variable: keras.Variable) -> str:
    """The optimizer's argument that decays a variable: Muon has two (3.10 to 3.15)."""
    by_adam = getattr(optimizer, "_should_use_adamw", None)
    if by_adam is not None and by_adam(variable):
        return "adam_weight_decay"
    return "weight_decay"


def gradients_given(optimizer: keras.optimizers.Optimizer | None) -> Any:
    """How many gradients it was given: ``iterations`` counts the updates only."""
    return getattr(optimizer, "_iterations", 0)


def given_learning_rate(optimizer: keras.optimizers.Optimizer) -> Any:
    """A number or a schedule: the public one is the value at this moment."""
    return getattr(optimizer, "_learning_rate", None)


def trained_by(optimizer: keras.optimizers.Optimizer) -> Sequence[keras.Variable]:
    """The variables that an optimizer was built for, in its order."""
    found: Sequence[keras.Variable] = optimizer._trainable_variables
    return found


def averages(
    optimizer: keras.optimizers.Optimizer,
) -> Iterator[tuple[keras.Variable, keras.Variable]]:
    """Each weight and its moving average (``use_ema``)."""
    kept = optimizer._model_variables_moving_average
    return zip(trained_by(optimizer), kept, strict=True)


def has_value(variable: keras.Variable) -> bool:
    """Whether JAX's trainer has not taken the value away for the time of a training."""
    return variable._value is not None


def is_taken(variable: keras.Variable) -> bool:
    """Whether it has, unlike from one that is yet to be given its first value."""
    return not has_value(variable) and variable._initializer is None


def put_value(variable: keras.Variable, value: Any) -> None:
    """Past ``assign``, which would write into a trace that is open."""
    variable._value = value


def value_behind(variable: keras.Variable) -> Any:
    """What ``put_value`` takes."""
    return variable._value


def add_states(model: keras.Model, states: Sequence[Any]) -> None:
    """Add to a model's seed generators, whose states JAX's steps carry along."""
    model._seed_generators.extend(states)
    _note_variables(model)


def remove_state(model: keras.Model, state: Any) -> None:
    """Take back what ``add_states`` added."""
    model._seed_generators.remove(state)


def initial_seed(generator: keras.random.SeedGenerator) -> Any:
    """What a seed generator was made with, which Keras's own layers do not save."""
    return generator._initial_seed


def torch_loader(adapter: Any) -> Any:
    """The ``DataLoader`` behind the adapter of a ``fit``; ``None`` for other data."""
    return getattr(adapter, "_dataloader", None)


def tf_dataset(adapter: Any) -> Any:
    """The ``tf.data`` set behind the adapter of a ``fit``; ``None`` for other data."""
    dataset = getattr(adapter, "_dataset", None)
    # Grain's adapter has one too, of another kind.
    return dataset if hasattr(dataset, "element_spec") else None


def users(layer: keras.Layer) -> list[Any]:
    """The layers and operations that take what a layer gives, in functional models."""
    return [node.operation for node in getattr(layer, "_outbound_nodes", [])]


def has_mask(tensor: Any) -> bool:
    """Whether some examples or steps of a layer's output do not count."""
    return getattr(tensor, "_keras_mask", None) is not None


def maker(tensor: Any) -> tuple[Any, Sequence[Any]]:
    """What made a symbolic tensor, and the tensors it took."""
    last, call, _ = tensor._keras_history
    return last, last._inbound_nodes[call].input_tensors
