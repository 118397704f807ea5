"""The twin of an architecture with dropout: derived, not written by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator
from typing import Any

import keras
import numpy as np

from keras_scaled_l2.experiments.arms import check_rate
from keras_scaled_l2.experiments.errors import InputError, one_line

Where = Callable[[keras.Layer], bool] | Collection[keras.Layer]
"""A predicate on layers, or a collection of layers."""

_LINEAR = (None, "linear")
_NON_LINEAR = (
    keras.layers.ELU,
    keras.layers.LeakyReLU,
    keras.layers.PReLU,
    keras.layers.ReLU,
)
_SUFFIX = "_dropout"


def with_dropout(
    model: keras.Model,
    rate: float,
    where: Where | None = None,
    *,
    seed: int | None = None,
) -> keras.Model:
    """The same network with Dropout behind its hidden non-linearities.

    Hidden is what a layer with weights still follows, so the output layer never gets
    dropout. The new model has weights of its own with the same values, and layers
    of the same names; the model handed in is left as it was.

    Args:
        model: A built Sequential or functional model. Layers may be shared and paths
            may branch and join; models within the model cannot be rewritten yet.
        rate: Share of units that are dropped in training; 0 or more, below 1.
        where: Layers to put dropout behind: a predicate ``layer -> bool`` or a
            collection of layers. Default: hidden layers with a non-linear activation.
        seed: Seed of the masks; each Dropout gets one of its own made from it.
            Default: Keras draws them. Keras on torch repeats masks only if the layer
            was given a seed.

    Returns:
        A new model, not compiled.

    Raises:
        InputError: If the model cannot be rewritten, no layer matches, or the rate
            is out of range.
    """
    rate = check_rate(rate)
    config = _config(model)
    chosen = _chosen(model, config, where)
    if not chosen:
        raise InputError(
            f"model {model.name!r} has no hidden non-linearity to put dropout behind: "
            "add a hidden layer, or name layers with where=..."
        )
    if isinstance(model, keras.Sequential):
        _rewrite_chain(config, chosen, rate, seed)
    else:
        _rewrite_graph(config, chosen, rate, seed)
    try:
        # Layers defined by the user need not be registered to be rebuilt here.
        with keras.saving.CustomObjectScope(
            {type(x).__name__: type(x) for x in model.layers}
        ):
            twin: keras.Model = type(model).from_config(config)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"model {model.name!r} cannot be rewritten with dropout "
            f"({one_line(error)}): put Dropout in by hand and compare it as a model of "
            "its own."
        ) from error
    copy_weights(model, twin)
    return twin


def copy_weights(model: keras.Model, twin: keras.Model) -> None:
    """Give a twin the present weights of the model that it was derived from."""
    for source, target in matching_weights(model, twin):
        # A copy: on JAX the step that trains one model frees the buffers it shares.
        target.assign(np.array(keras.ops.convert_to_numpy(source.value)))


def matching_weights(
    model: keras.Model, twin: keras.Model
) -> Iterator[tuple[keras.Variable, keras.Variable]]:
    """Each weight of a model with the one of its twin, by the layers' names."""
    for layer in model.layers:
        yield from zip(layer.weights, twin.get_layer(layer.name).weights, strict=True)


def _config(model: keras.Model) -> dict[str, Any]:
    """A copy of the config of a model that is nothing but a graph of layers."""
    nested = [
        x.name for x in getattr(model, "layers", []) if isinstance(x, keras.Model)
    ]
    if nested:
        raise InputError(
            f"model {model.name!r} holds the model {nested[0]!r}, which cannot be "
            "rewritten with dropout yet: put its layers into the outer model, or put "
            "Dropout in by hand."
        )
    try:
        config: dict[str, Any] = model.get_config()
        layers = config["layers"]
        rewritable = isinstance(model, keras.Sequential) or "output_layers" in config
        if not (model.built and layers and rewritable):
            raise KeyError("layers")
    except (KeyError, TypeError, NotImplementedError) as error:
        raise InputError(
            f"model {model.name!r} of class {type(model).__name__} cannot be "
            "rewritten with dropout: expected a built Sequential or functional model. "
            "Write it as a functional model, or put Dropout in by hand."
        ) from error
    return config


def _chosen(
    model: keras.Model, config: dict[str, Any], where: Where | None
) -> set[tuple[str, int]]:
    """``(layer name, call index)`` of the calls to put dropout behind."""
    if isinstance(model, keras.Sequential):
        names = [layer.name for layer in model.layers]
        edges = {(a, 0): [(b, 0)] for a, b in itertools.pairwise(names)}
        calls = [(name, 0) for name in names]
    else:
        calls, edges = _graph(config)
    if where is not None:
        selected = where if callable(where) else _among(where)
        return {call for call in calls if selected(model.get_layer(call[0]))}
    return {
        call
        for call in calls
        if _is_non_linear(model.get_layer(call[0]))
        and _weights_follow(model, call, edges)
    }


def _among(layers: Collection[keras.Layer]) -> Callable[[keras.Layer], bool]:
    ids = {id(layer) for layer in layers}
    return lambda layer: id(layer) in ids


def _is_non_linear(layer: keras.Layer) -> bool:
    if isinstance(layer, _NON_LINEAR):
        return True
    activation = getattr(layer, "activation", None)
    # Recurrent layers and attention are left alone: dropout has its own place there.
    if activation is None or hasattr(layer, "recurrent_initializer"):
        return False
    return getattr(activation, "__name__", "") not in (*_LINEAR, "softmax")


def _weights_follow(
    model: keras.Model,
    call: tuple[str, int],
    edges: dict[tuple[str, int], list[tuple[str, int]]],
) -> bool:
    ahead, seen = list(edges.get(call, [])), set()
    while ahead:
        following = ahead.pop()
        if following in seen:
            continue
        seen.add(following)
        if model.get_layer(following[0]).weights:
            return True
        ahead += edges.get(following, [])
    return False


def _graph(
    config: dict[str, Any],
) -> tuple[list[tuple[str, int]], dict[tuple[str, int], list[tuple[str, int]]]]:
    """The calls of a functional model, and which calls use the output of which."""
    calls: list[tuple[str, int]] = []
    edges: dict[tuple[str, int], list[tuple[str, int]]] = {}
    for layer in config["layers"]:
        for index, node in enumerate(layer["inbound_nodes"]):
            calls.append((layer["name"], index))
            for tensor in _tensors(node):
                edges.setdefault(_call(tensor), []).append(calls[-1])
    return calls, edges


def _tensors(value: Any) -> Iterator[dict[str, Any]]:
    """Every tensor that a part of a config refers to, by ``[layer, call, output]``."""
    if isinstance(value, dict):
        if value.get("class_name") == "__keras_tensor__":
            yield value["config"]
        else:
            for item in value.values():
                yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _call(tensor: dict[str, Any]) -> tuple[str, int]:
    """The call that made a tensor."""
    name, index, _ = tensor["keras_history"]
    return name, index


def _rewrite_chain(
    config: dict[str, Any],
    chosen: set[tuple[str, int]],
    rate: float,
    seed: int | None,
) -> None:
    layers = []
    for entry in config["layers"]:
        layers.append(entry)
        name = entry["config"]["name"]
        if (name, 0) in chosen:
            layers.append(_dropout(name, 0, rate, seed))
    config["layers"] = layers
    # It describes the shapes of the old chain; the input layer gives them anew.
    config.pop("build_input_shape", None)


def _rewrite_graph(
    config: dict[str, Any],
    chosen: set[tuple[str, int]],
    rate: float,
    seed: int | None,
) -> None:
    added: dict[str, dict[str, Any]] = {}
    for entry in config["layers"]:
        for tensor in _tensors(entry["inbound_nodes"]):
            if _call(tensor) in chosen:
                dropout = _dropout(*_call(tensor), rate, seed)
                source = {"class_name": "__keras_tensor__", "config": dict(tensor)}
                dropout["inbound_nodes"] = [{"args": [source], "kwargs": {}}]
                added[dropout["name"]] = dropout
                tensor["keras_history"] = [dropout["name"], 0, 0]
    config["layers"] += added.values()


def _dropout(name: str, call: int, rate: float, seed: int | None) -> dict[str, Any]:
    suffix = _SUFFIX if call == 0 else f"{_SUFFIX}_{call}"
    name = f"{name}{suffix}"
    if seed is not None:
        # Neighbouring seeds would give the same masks, one step apart, on torch.
        mixed = np.random.SeedSequence([seed, *name.encode()]).generate_state(1)
        seed = int(mixed[0]) % 2**31
    layer = keras.layers.Dropout(rate, seed=seed, name=name)
    entry: dict[str, Any] = keras.saving.serialize_keras_object(layer)
    return {**entry, "name": name, "inbound_nodes": []}
