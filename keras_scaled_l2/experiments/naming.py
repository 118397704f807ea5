"""What the weights of a network are called: the same when it is made again.

Two networks that one function made are matched weight by weight, by their place in
``model.weights``. The names are for people only: Keras numbers what has no name of its
own by how many it has made before, and these numbers would change from seed to seed.
"""

from __future__ import annotations

import collections
import itertools
import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras

from keras_scaled_l2 import _keras

_NAMES: weakref.WeakKeyDictionary[keras.Model, Any] = weakref.WeakKeyDictionary()
"""Network -> what its weights are called, in the order of ``model.weights``."""
_NUMBER = re.compile(r"_\d+$")
_WRAPPED = ("", "forward_", "backward_")
"""What ``Bidirectional`` puts before the name that its layer had."""


def paths(model: keras.Model) -> dict[int, str]:
    """``id`` of each weight -> its path, the same for a model that is made again."""
    names = _NAMES.get(model) or plain_paths(model)
    return {id(v): name for v, name in zip(model.weights, names, strict=True)}


def set_paths(model: keras.Model, names: Sequence[str]) -> None:
    """Say what ``paths`` is to call the weights, in the order of ``model.weights``."""
    _NAMES[model] = tuple(names)


def plain_paths(model: keras.Model, again: keras.Model | None = None) -> list[str]:
    """The paths of a model's weights, with names that Keras gave numbered from 0.

    Args:
        model: A built model.
        again: The same network made once more: a name that changed is none that the
            user gave, whatever it looks like.
    """
    parts = [v.path.split("/") for v in model.weights]
    given = _given_by_keras(model)
    if again is not None:
        for one, other in zip(model.weights, again.weights, strict=True):
            given |= _changed(one.path.split("/"), other.path.split("/"))
    rename = _numbered(given)
    seen: collections.Counter[str] = collections.Counter()
    found = []
    for names in parts:
        path = "/".join(map(rename, names))
        found.append(f"{path}_{seen[path]}" if seen[path] else path)
        seen[path] += 1
    return found


def every_layer(layer: keras.Layer) -> Iterator[keras.Layer]:
    """All layers within a layer, each once."""
    return iter(_keras.layers_within(layer, itself=False))


def plain_config(network: keras.Model) -> Any:
    """A network's config without names and seeds: what its numbers follow from."""
    graphs = [network, *every_layer(network)]
    known = {x.name for graph in graphs for x in getattr(graph, "operations", ())}
    known |= {layer.name for layer in graphs}
    return _without_names(network.get_config(), known, {})


def _given_by_keras(model: keras.Model) -> dict[str, str]:
    """Names that Keras gave to layers and variables -> the name without its number."""
    found = {}
    for thing in (model, *every_layer(model), *model.weights):
        kind = _keras.snake_case(type(thing).__name__)
        for prefix in _WRAPPED:
            stem = prefix + kind
            number = thing.name.removeprefix(stem)
            if thing.name.startswith(stem) and re.fullmatch(r"(_\d+)?", number):
                found[thing.name] = stem
    return found


def _changed(one: Sequence[str], other: Sequence[str]) -> dict[str, str]:
    """Names of a path that another making changed -> what both have in common."""
    found = {}
    for name, changed in zip(one, other, strict=False):
        if name != changed:
            pairs = zip(name, changed, strict=False)
            common = itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)
            stem = "".join(letter for letter, _ in common)
            found[name] = _NUMBER.sub("", stem).strip("_-") or "layer"
    return found


def _numbered(stems: dict[str, str]) -> Callable[[str], str]:
    """A function that numbers names of the same stem as they come."""
    given: dict[str, str] = {}
    counts: collections.Counter[str] = collections.Counter()

    def rename(name: str) -> str:
        if name not in stems:
            return name
        if name not in given:
            stem = stems[name]
            given[name] = f"{stem}_{counts[stem]}" if counts[stem] else stem
            counts[stem] += 1
        return given[name]

    return rename


def _without_names(value: Any, known: Iterable[str], places: dict[str, int]) -> Any:
    """A part of a config with the names of layers dropped, or made their places.

    Names stand in fields of their own, and nowhere else are they looked for: a layer
    may be called like an activation.
    """
    if isinstance(value, list | tuple):
        return [_without_names(item, known, places) for item in value]
    if not isinstance(value, dict):
        return value
    if str(value.get("class_name", "")).endswith("DTypePolicy"):
        return value
    layers = value.get("layers")
    if isinstance(layers, list):
        places = {x["name"]: i for i, x in enumerate(layers) if "name" in x}
    found = {}
    for key, item in value.items():
        if key in ("keras_history", "input_layers", "output_layers"):
            found[key] = _placed(item, places)
        elif not _is_name_or_seed(key, item, known):
            found[key] = _without_names(item, known, places)
    return found


def _is_name_or_seed(key: str, item: Any, known: Iterable[str]) -> bool:
    if key == "seed":
        return item is None or isinstance(item, int)
    return key == "name" and isinstance(item, str) and item in known


def _placed(value: Any, places: dict[str, int]) -> Any:
    """References to layers by name, as references by place."""
    if isinstance(value, dict):
        return {key: _placed(item, places) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_placed(item, places) for item in value]
    return places.get(value, value) if isinstance(value, str) else value
