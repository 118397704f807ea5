"""Layers made again from their configs, whatever their classes are called."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import keras
import numpy as np

from keras_scaled_l2.experiments.errors import one_line
from keras_scaled_l2.experiments.naming import every_layer

Call = tuple[str, int]
"""Name of a layer and the number of its call."""

_SUFFIX = "_dropout"


@dataclasses.dataclass(frozen=True)
class Maker:
    """Makes the entries of dropout layers in a config."""

    layer: type[keras.Layer]
    rate: float
    seed: int | None
    classes: dict[str, type] = dataclasses.field(default_factory=dict)
    """Name that stands for one class alone -> the class, to make entries again."""

    def name_class(self, entry: dict[str, Any], kind: type) -> None:
        """Have an entry made of this very class, whatever other classes are called."""
        if not _is_keras(kind):
            alias = f"{__name__}>{len(self.classes)}"
            self.classes[alias] = kind
            entry["registered_name"] = alias

    def entry(self, after: Call, prefix: str, taken: set[str]) -> dict[str, Any]:
        """The entry of the dropout layer after a call; its name becomes ``taken``."""
        name, index = after
        name = f"{name}{_SUFFIX}{f'_{index}' if index else ''}"
        while name in taken:
            name += "_"
        taken.add(name)
        seed = self.seed
        if seed is not None:
            # Neighboring seeds would give the same masks, one step apart, on torch.
            path = f"{prefix}{name}".encode()
            mixed = np.random.SeedSequence([seed, *path]).generate_state(1)
            seed = int(mixed[0]) % 2**31
        made = self.layer(self.rate, seed=seed, name=name)
        entry: dict[str, Any] = keras.saving.serialize_keras_object(made)
        self.name_class(entry, self.layer)
        return {**entry, "name": name, "inbound_nodes": []}


def defined(model: keras.Model) -> dict[str, Any]:
    """Classes and functions that the user's layers are made of, by name.

    A name that two of them have is left out: better none than a wrong one.
    """
    things: dict[str, dict[int, Any]] = {}
    for layer in every_layer(model):
        parts: list[Any] = [type(layer)]
        parts += [f for f in vars(layer).values() if inspect.isfunction(f)]
        for thing in parts:
            if not _is_keras(thing):
                things.setdefault(thing.__name__, {})[id(thing)] = thing
    return {
        name: thing
        for name, found in things.items()
        for thing in found.values()
        if len(found) == 1
    }


def _is_keras(thing: Any) -> bool:
    return str(thing.__module__).partition(".")[0] == "keras"


def reason(error: Exception) -> str:
    """What Keras says, without the config of the whole layer before it."""
    text = one_line(error).rpartition("Exception encountered: ")[2]
    return text if len(text) <= 200 else f"{text[:197]}..."


def remedy(model: keras.Model) -> str:
    """What to do where the layers of a model cannot be made again."""
    for layer in every_layer(model):
        for value in vars(layer).values():
            if inspect.isfunction(value) and value.__name__ == "<lambda>":
                return (
                    f"write the lambda of layer {layer.name!r} as a function with a "
                    "name (def)."
                )
    return "put Dropout in by hand and compare it as a model of its own."
