"""What stood on a model's weights before ``attach``, for ``detach`` to put back.

A rule stands in two places, on the variable and in its layer's config. Several models
may hold the same layer (one within another), and each may put a rule there. What each
one has found there is a link of a chain; who is detached before those that came later
leaves what it has found to the next one.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import keras

from keras_scaled_l2.counts import Weight, walk
from keras_scaled_l2.steps import put_regularizer, refresh_steps

_RECORD = "_keras_scaled_l2_attached"
_CHAIN = "_keras_scaled_l2_chain_of"
_ON_VARIABLE = "regularizer"


class _Found:
    """What one model found in a place where it has put a rule."""

    def __init__(self, holder: Any, name: str, present: Iterable[Any] = ()) -> None:
        self.holder, self.name = holder, name
        self.value = getattr(holder, name)
        # Weakly: a layer that is quantized lets go of a kernel.
        self._present = [weakref.ref(variable) for variable in present]

    def made_since(self, variable: keras.Variable) -> bool:
        """Whether a weight of this config was not there yet, as LoRA's factors."""
        return all(known() is not variable for known in self._present)

    def put_back(self) -> None:
        if self.name == _ON_VARIABLE:
            put_regularizer(self.holder, self.value)
        else:
            setattr(self.holder, self.name, self.value)


class _Chain:
    """What models have found in one place, the first one first.

    Weakly: what a model has found goes with the model.
    """

    def __init__(self) -> None:
        self._links: list[weakref.ref[_Found]] = []

    @property
    def links(self) -> list[_Found]:
        """Of the models that are alive."""
        return [found for link in self._links if (found := link()) is not None]

    def append(self, found: _Found) -> None:
        self._links.append(weakref.ref(found))

    def take_out(self, found: _Found) -> bool:
        """Take a link out; whether it was the last one, whose rule stands there."""
        links = self.links
        place = links.index(found)
        later = links[place + 1 :]
        if later:
            later[0].value = found.value
        links.remove(found)
        self._links = [weakref.ref(link) for link in links]
        return not later


def _chain_of(holder: Any, name: str) -> _Chain:
    # In vars(), past Keras's tracking: it must not reach the config or saved files.
    chain: _Chain = vars(holder).setdefault(f"{_CHAIN}_{name}", _Chain())
    return chain


def _tidy(holder: Any, name: str) -> None:
    if not _chain_of(holder, name).links:
        del vars(holder)[f"{_CHAIN}_{name}"]


class _Record:
    """What one model has found, in the order in which it came there."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, str], _Found] = {}

    def of(self, holder: Any, name: str | None) -> _Found | None:
        return None if name is None else self._found.get((id(holder), name))

    def note(self, found: _Found) -> None:
        """Note what stands in a place, if nothing is noted or others came later."""
        key = id(found.holder), found.name
        own, chain = self._found.get(key), _chain_of(found.holder, found.name)
        if own is not None:
            if chain.links[-1] is own:
                return
            chain.take_out(own)
        chain.append(found)
        self._found[key] = found

    def put_back(self) -> list[str]:
        """Put back what can be; the paths of the weights."""
        for found in self._found.values():
            if _chain_of(found.holder, found.name).take_out(found):
                found.put_back()
            _tidy(found.holder, found.name)
        found_on = (f for f in self._found.values() if f.name == _ON_VARIABLE)
        return [found.holder.path for found in found_on]


def remember(model: keras.Model, weights: Iterable[Weight]) -> None:
    """Note what stands on weights and in their configs, before rules are put there."""
    record: _Record = vars(model).setdefault(_RECORD, _Record())
    present: dict[tuple[int, str | None], list[keras.Variable]] = {}
    for weight in walk(model):
        key = id(weight.config_layer), weight.attribute
        present.setdefault(key, []).append(weight.variable)
    for weight in weights:
        found = _Found(weight.variable, _ON_VARIABLE)
        if weight.attribute is not None:
            key = id(weight.config_layer), weight.attribute
            record.note(_Found(*_config(weight), present[key]))
            configured = record.of(*_config(weight))
            if configured is not None and configured.made_since(weight.variable):
                # Made by the layer from a config that had the rule already.
                found.value = configured.value
        record.note(found)


def restore(model: keras.Model) -> list[str]:
    """Put back what stood there before the first ``attach`` to this model.

    Returns:
        The paths of the weights, those included that their layer made since then.
    """
    record: _Record | None = vars(model).pop(_RECORD, None)
    if record is None:
        return []
    made = [
        (weight, configured)
        for weight in walk(model)
        if (configured := record.of(*_config(weight))) is not None
        and configured.made_since(weight.variable)
        and record.of(weight.variable, _ON_VARIABLE) is None
    ]
    paths = record.put_back()
    for weight, configured in made:
        _restore_made(weight, configured.value)
    return paths + [weight.variable.path for weight, _ in made]


@contextlib.contextmanager
def nothing_changed_if_refused(model: keras.Model) -> Iterator[None]:
    """Puts back what weights and configs held, if what is done meanwhile raises.

    A fit that is refused has trained nothing: one without the callback that was
    refused must not train under its rule.
    """
    first = _RECORD not in vars(model)
    weights = list(walk(model))
    before = [_Found(weight.variable, _ON_VARIABLE) for weight in weights]
    before += [_Found(*_config(w)) for w in weights if w.attribute is not None]
    try:
        yield
    except BaseException:
        if first:
            restore(model)
        for found in before:
            if getattr(found.holder, found.name) is not found.value:
                found.put_back()
        refresh_steps(model)
        raise


def _restore_made(weight: Weight, value: Any) -> None:
    """Give a weight that was made from a config with a rule what it had without it."""
    variable = weight.variable
    later = _chain_of(variable, _ON_VARIABLE).links
    _tidy(variable, _ON_VARIABLE)
    if later:
        later[0].value = value
    elif getattr(*_config(weight)) is value:
        put_regularizer(variable, value)


def _config(weight: Weight) -> tuple[keras.Layer, Any]:
    return weight.config_layer, weight.attribute
