"""The variant of an architecture with dropout: derived, not written by hand."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Collection, Iterator
from typing import Any

import keras
import numpy as np

from keras_scaled_l2 import _keras
from keras_scaled_l2.experiments import rebuilding
from keras_scaled_l2.experiments.arms import check_rate
from keras_scaled_l2.experiments.errors import InputError
from keras_scaled_l2.experiments.graph import (
    call_of,
    config_of,
    graph_of,
    is_first,
    is_graph,
    is_leaf,
    operation,
    output_call,
    tensors_in,
)
from keras_scaled_l2.experiments.naming import every_layer
from keras_scaled_l2.experiments.rebuilding import Call
from keras_scaled_l2.gradients import is_known_zero, uniform

Where = Callable[[keras.Layer], bool] | Collection[keras.Layer]
"""A predicate on layers, or a collection of layers."""

_NON_LINEAR = (
    keras.layers.ELU,
    keras.layers.LeakyReLU,
    keras.layers.PReLU,
    keras.layers.ReLU,
)
_RECURRENT = (keras.layers.RNN, keras.layers.Bidirectional)
_FUNCTIONS = (
    *("celu", "elu", "gelu", "hardshrink", "hardsigmoid", "hardsilu", "hardtanh"),
    *("leakyrelu", "logsigmoid", "relu", "relu6", "selu", "sigmoid", "silu"),
    *("softplus", "softshrink", "softsign", "squareplus", "tanh", "tanhshrink"),
)
"""Classes of the operations that ``keras.ops`` makes of the non-linearities."""


class VariableDropout(keras.layers.Layer):
    """Dropout whose rate is a variable: one compiled step serves all rates.

    Args:
        rate: Share of units that are dropped in training, at first.
        seed: Seed of the masks.
        name: Name of the layer.
    """

    def __init__(self, rate: float, seed: int | None = None, name: str | None = None):
        # Inputs stay of the type that they are: at rate 0, to the last bit.
        super().__init__(name=name, autocast=False)
        self.initial = rate
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.supports_masking = True
        self.rate = self.add_weight(
            shape=(),
            initializer=keras.initializers.Constant(rate),
            trainable=False,
            autocast=False,
            dtype="float32",
            name="rate",
        )
        self.built = True

    def call(self, inputs: Any, training: bool = False) -> Any:
        """In training: inputs over ``1 - rate`` where the mask keeps them, else 0."""
        if not training or is_known_zero(self.rate):
            return inputs
        rate = keras.ops.convert_to_tensor(self.rate)
        # Uniform in [0, 1): at rate 0 everything is kept, and divided by exactly 1.
        draws = uniform(keras.ops.shape(inputs), self.seed_generator)
        # One product to differentiate: torch works through each operation by itself.
        kept = keras.ops.cast(draws >= rate, inputs.dtype)
        return inputs * (kept / keras.ops.cast(1.0 - rate, inputs.dtype))

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The shape of the inputs."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """What it takes to make the layer again."""
        return {
            "rate": self.initial,
            "seed": _keras.initial_seed(self.seed_generator),
            "name": self.name,
        }


def variable_dropouts(model: keras.Model) -> list[VariableDropout]:
    """The layers of a derived model whose rate can be set."""
    return [x for x in every_layer(model) if isinstance(x, VariableDropout)]


def with_dropout(
    model: keras.Model,
    rate: float,
    where: Where | None = None,
    *,
    seed: int | None = None,
) -> keras.Model:
    """The same network with Dropout after its hidden non-linearities.

    Hidden is what a layer with weights still follows, so the output layer never gets
    dropout. A recurrent layer gets it after its output, as do wrapped layers: its
    own state and those that it returns are left whole (Zaremba et al., 2014). The new
    model has weights of its own with the same values, and layers of the same names;
    the model handed in is left as it was.

    Args:
        model: A built Sequential or functional model. Layers may be shared, paths may
            branch and join, and models may hold models. Layers that hold layers of
            their own (a ``Bidirectional``, a subclassed block) stay as they are
            inside.
        rate: Share of units that are dropped in training; 0 or more, below 1.
        where: Layers to put dropout after: a predicate ``layer -> bool`` or a
            collection of layers. Default: hidden layers with a non-linear activation,
            and hidden recurrent layers.
        seed: Seed of the masks; each Dropout gets one of its own made from it.
            Default: Keras draws them. Keras on torch repeats masks only if the layer
            was given a seed.

    Returns:
        A new model, not compiled.

    Raises:
        InputError: If the model cannot be rewritten, no layer matches, or the rate
            is out of range.
    """
    return derive(model, check_rate(rate), where, seed=seed)


def derive(
    model: keras.Model,
    rate: float,
    where: Where | None = None,
    *,
    seed: int | None = None,
    dropout: type[keras.Layer] = keras.layers.Dropout,
) -> keras.Model:
    """``with_dropout`` with another layer, ``dropout(rate, seed=..., name=...)``."""
    _check_rewritable(model)
    config = copy.deepcopy(model.get_config())
    maker = rebuilding.Maker(dropout, rate, seed)
    calls = _rewrite(model, config, maker, where)
    if not calls:
        raise InputError(
            f"model {model.name!r} has no hidden non-linearity to put dropout after: "
            "add a hidden layer with an activation, or leave out what has dropout "
            "(arms=['none', 'l2'], --arms none,l2)."
            if where is None
            else f"where matches no layer of model {model.name!r}: it has "
            f"{', '.join(repr(layer.name) for layer in model.layers)}."
        )
    try:
        # What the user defined need not be registered to be rebuilt here.
        with keras.saving.CustomObjectScope(rebuilding.defined(model) | maker.classes):
            variant: keras.Model = type(model).from_config(config)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"model {model.name!r} cannot be rewritten with dropout "
            f"({rebuilding.reason(error)}): {rebuilding.remedy(model)}"
        ) from error
    for source, target in matching_weights(model, variant):
        # A copy: on JAX the step that trains one model frees the buffers it shares.
        target.assign(np.array(keras.ops.convert_to_numpy(source.value)))
    return variant


def matching_weights(
    model: keras.Model, variant: keras.Model
) -> Iterator[tuple[keras.Variable, keras.Variable]]:
    """Each weight of a model with the one of its variant, by the layers' names."""
    for layer in model.layers:
        same = variant.get_layer(layer.name)
        if is_graph(layer):
            yield from matching_weights(layer, same)
        else:
            yield from zip(layer.weights, same.weights, strict=True)


def _check_rewritable(model: keras.Model) -> None:
    if not (
        isinstance(model, keras.Model)
        and model.built
        and is_graph(model)
        and config_of(model).get("layers")
    ):
        raise InputError(
            f"model {getattr(model, 'name', model)!r} of class {type(model).__name__} "
            "cannot be rewritten with dropout: expected a built Sequential or "
            "functional model. Write it as a functional model, or put Dropout in by "
            "hand."
        )


def _rewrite(
    model: keras.Model,
    config: dict[str, Any],
    maker: rebuilding.Maker,
    where: Where | None,
    *,
    followed: bool = False,
    prefix: str = "",
) -> int:
    """Put dropout into the config of a model and of the models in it.

    Args:
        model: The model of the config; says what its layers are.
        config: Changed in place.
        maker: Makes the layers.
        where: As in ``with_dropout``.
        followed: Whether layers with weights follow the model's own outputs.
        prefix: Names of the models around it.

    Returns:
        The number of calls that got dropout.
    """
    graph = graph_of(model, config)
    if where is None:
        chosen = {
            call
            for call in graph.calls
            if _is_non_linear(operation(model, call[0]))
            and graph.weights_follow(model, call, followed)
        }
    else:
        selected = where if callable(where) else _among(where)
        layer_of = {layer.name: layer for layer in model.layers}
        chosen = {
            call
            for call in graph.calls
            if call[0] in layer_of and selected(layer_of[call[0]])
        }
    count = len(chosen)
    for entry in config["layers"]:
        layer = _layer_of(model, entry)
        if layer is not None:
            maker.name_class(entry, type(layer))
        if layer is not None and is_graph(layer):
            after = any(
                graph.weights_follow(model, call, followed)
                for call in graph.calls
                if call[0] == layer.name
            )
            inner = f"{prefix}{layer.name}/"
            count += _rewrite(
                layer, entry["config"], maker, where, followed=after, prefix=inner
            )
    taken = {x.name for x in (*model.layers, *getattr(model, "operations", ()))}
    entry_after = functools.partial(maker.entry, prefix=prefix, taken=taken)
    if isinstance(model, keras.Sequential):
        _rewrite_chain(config, chosen, entry_after)
    else:
        outputs = followed or where is not None
        _rewrite_graph(model, config, chosen, entry_after, outputs=outputs)
    return count


def _layer_of(model: keras.Model, entry: dict[str, Any]) -> keras.Layer | None:
    """The layer of an entry; ``None`` for the input of a Sequential model."""
    name = entry["config"].get("name")
    return next((layer for layer in model.layers if layer.name == name), None)


def _among(layers: Collection[keras.Layer]) -> Callable[[keras.Layer], bool]:
    ids = {id(layer) for layer in layers}
    return lambda layer: id(layer) in ids


def _is_non_linear(layer: Any) -> bool:
    if isinstance(layer, keras.layers.Wrapper):
        return _is_non_linear(layer.layer)
    # After a recurrent layer dropout meets what it hands on, never its own state:
    # Zaremba et al. (2014), "Recurrent neural network regularization".
    if isinstance(layer, (*_NON_LINEAR, *_RECURRENT)):
        return True
    if not isinstance(layer, keras.Layer):
        return type(layer).__name__.lower() in _FUNCTIONS
    activation = getattr(layer, "activation", None)
    if activation is None:
        return False
    return getattr(activation, "__name__", "") not in ("linear", "softmax")


def _rewrite_chain(
    config: dict[str, Any],
    chosen: set[Call],
    entry_after: Callable[[Call], dict[str, Any]],
) -> None:
    layers = []
    for entry in config["layers"]:
        layers.append(entry)
        call = (entry["config"].get("name"), 0)
        if call in chosen:
            layers.append(entry_after(call))
    config["layers"] = layers
    # It describes the shapes of the old chain; the input layer gives them anew.
    if "InputLayer" in (entry["class_name"] for entry in layers):
        config.pop("build_input_shape", None)


def _rewrite_graph(
    model: keras.Model,
    config: dict[str, Any],
    chosen: set[Call],
    entry_after: Callable[[Call], dict[str, Any]],
    *,
    outputs: bool,
) -> None:
    """Put dropout between the chosen calls and those that use what they return.

    Changes the config in place. ``outputs``: whether the model's own outputs are taken
    after the dropout too.
    """
    added: dict[Call, dict[str, Any]] = {}

    def after(call: Call, shape: Any, dtype: Any) -> list[Any]:
        """The output of the dropout after a call, as ``keras_history`` has it."""
        if call not in added:
            added[call] = entry_after(call)
            tensor = {"shape": shape, "dtype": dtype, "keras_history": [*call, 0]}
            source = {"class_name": "__keras_tensor__", "config": tensor}
            added[call]["inbound_nodes"] = [{"args": [source], "kwargs": {}}]
        return [added[call]["name"], 0, 0]

    def redirected(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: redirected(item) for key, item in value.items()}
        if not is_leaf(value):
            return [redirected(item) for item in value]
        call = output_call(model, value)
        # Keras finds the tensor by its history; shape and dtype are not looked at.
        dropped = call in chosen and is_first(value)
        return after(call, [None], "float32") if dropped else value

    for entry in config["layers"]:
        for tensor in tensors_in(entry["inbound_nodes"]):
            call = call_of(tensor)
            if call in chosen and is_first(tensor["keras_history"]):
                tensor["keras_history"] = after(call, tensor["shape"], tensor["dtype"])
    if outputs:
        config["output_layers"] = redirected(config["output_layers"])
    config["layers"] += added.values()
