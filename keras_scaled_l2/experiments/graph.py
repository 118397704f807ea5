"""The graph of a model's layers: which calls use what other calls return."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import keras

from keras_scaled_l2.experiments.rebuilding import Call


@dataclasses.dataclass(frozen=True)
class Graph:
    """The calls of a model's layers, and which calls use the output of which."""

    calls: list[Call]
    edges: dict[Call, list[Call]]
    outputs: set[Call]

    def weights_follow(self, model: keras.Model, call: Call, followed: bool) -> bool:
        """Whether a layer with weights comes after a call, in or after the model."""
        ahead, seen = [call], {call}
        while ahead:
            present = ahead.pop()
            if followed and present in self.outputs:
                return True
            for following in self.edges.get(present, []):
                if getattr(operation(model, following[0]), "weights", None):
                    return True
                if following not in seen:
                    seen.add(following)
                    ahead.append(following)
        return False


def graph_of(model: keras.Model, config: dict[str, Any]) -> Graph:
    """The calls in a model's config, and how they follow each other."""
    if isinstance(model, keras.Sequential):
        chain = [(layer.name, 0) for layer in model.layers]
        return Graph(
            chain, {a: [b] for a, b in itertools.pairwise(chain)}, {*chain[-1:]}
        )
    calls: list[Call] = []
    edges: dict[Call, list[Call]] = {}
    for layer in config["layers"]:
        for index, node in enumerate(layer["inbound_nodes"]):
            calls.append((layer["name"], index))
            for tensor in tensors_in(node):
                edges.setdefault(call_of(tensor), []).append(calls[-1])
    outputs = {output_call(model, h) for h in leaves(config["output_layers"])}
    return Graph(calls, edges, outputs)


def output_call(model: keras.Model, history: Sequence[Any]) -> Call:
    """The call that an entry of ``output_layers`` stands for."""
    name, index, _ = history
    # There, and nowhere else, a functional model's calls are counted from 1.
    layer = operation(model, name)
    graph = is_graph(layer) and not isinstance(layer, keras.Sequential)
    return name, index - graph


def leaves(value: Any) -> Iterator[Sequence[Any]]:
    """Every ``[layer, call, output]`` in the outputs of a config, nested or not."""
    if is_leaf(value):
        yield value
    else:
        for item in value.values() if isinstance(value, dict) else value:
            yield from leaves(item)


def is_leaf(value: Any) -> bool:
    """Whether a value is ``[layer, call, output]``."""
    return len(value) == 3 and not isinstance(value, dict) and isinstance(value[0], str)


def tensors_in(value: Any) -> Iterator[dict[str, Any]]:
    """Every tensor that a part of a config refers to, by ``[layer, call, output]``."""
    if isinstance(value, dict):
        if value.get("class_name") == "__keras_tensor__":
            yield value["config"]
        else:
            for item in value.values():
                yield from tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)


def is_first(history: Sequence[Any]) -> bool:
    """Whether a tensor is the first of its call: the others are states, never dropped.

    As those that a recurrent layer gives after its output.
    """
    return bool(history[2] == 0)


def call_of(tensor: dict[str, Any]) -> Call:
    """The call that made a tensor."""
    name, index, _ = tensor["keras_history"]
    return name, index


def operation(model: keras.Model, name: str) -> Any:
    """A layer of a model, or what ``keras.ops`` and ``+`` put in the place of one."""
    found = [*model.layers, *getattr(model, "operations", ())]
    return next(x for x in found if x.name == name)


def is_graph(layer: keras.Layer) -> bool:
    """Whether a layer is nothing but a graph of layers, so that it can be rewritten."""
    return isinstance(layer, keras.Sequential) or (
        isinstance(layer, keras.Model) and "output_layers" in config_of(layer)
    )


def config_of(model: keras.Model) -> dict[str, Any]:
    """The config of a model; empty if it has none."""
    try:
        return model.get_config() or {}
    except (KeyError, TypeError, NotImplementedError):
        return {}
