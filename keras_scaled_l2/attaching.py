"""Put a rule on a built model, resolve what a rule needs to know, take it off."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import keras

from keras_scaled_l2.attached import remember, restore
from keras_scaled_l2.counts import (
    Weight,
    count_by_layer,
    elements,
    penalized_weights,
    trainable_weights,
    walk,
)
from keras_scaled_l2.fan_in import Shape, fan_in, format_fan_ins, is_per_unit
from keras_scaled_l2.fitting import (
    excluding_from_weight_decay,
    plain_optimizer,
    weight_decay_of,
    without_weight_decay,
)
from keras_scaled_l2.half_life import optimizer_counts
from keras_scaled_l2.learned import finish_broken_learning
from keras_scaled_l2.rule import Rule, check_is_regularizer
from keras_scaled_l2.saving import unsaved
from keras_scaled_l2.steps import put_regularizer, refresh_steps
from keras_scaled_l2.validation import check_is_model, positive_count
from keras_scaled_l2.warn import warn

Where = (
    Callable[[keras.Layer, keras.Variable], bool]
    | Collection[keras.Layer | keras.Variable]
)
"""A predicate ``(layer, variable) -> bool``, or a collection of layers or variables."""

Counts = Mapping[str, Any]
"""``samples`` and ``batch_size``, each a number or ``None``."""
CountsByWeight = Mapping[int, Counts]
"""``id`` of a variable -> the counts that hold for it instead.

Not its path: Keras lets two weights have the same one, in models made of others.
"""
_NO_WEIGHT: CountsByWeight = {}

# Optimizer -> paths of the weights that somebody has been warned of.
_TOLD_OF_DECAY: weakref.WeakKeyDictionary[Any, set[str]] = weakref.WeakKeyDictionary()


def attach(
    model: keras.Model, rule: keras.Regularizer, where: Where | None = None
) -> list[str]:
    """Put a rule on the weights of a built model, without touching their values.

    The penalty is in ``model.losses`` at once, and in the config of each layer, so
    that ``save`` and ``clone_model`` keep it. Counts that the model tells are
    resolved for all rules that it carries; those of the data by ``bind`` or
    ``ApplyL2``. The steps that Keras compiled for the model before are made anew.
    Those of another model that holds it, or is a part of it, cannot be found from here:
    if it was trained before, ``bind`` or ``compile`` it, or train it with ``ApplyL2``
    or ``CostMonitor``, which notice. The same holds for ``detach``.

    Args:
        model: A built model, trained or not.
        rule: Any of the rules, or another ``keras.Regularizer``.
        where: Which weights: a predicate ``(layer, variable) -> bool``, or a
            collection of layers (all their trainable kernels and embeddings) or
            variables. Default: trainable kernels and embeddings; never biases,
            never the scales and offsets of a normalization.

    Returns:
        The paths of the weights that now carry the rule.

    Raises:
        ValueError: If the model is not built, or no weight matches.
        TypeError: If ``rule`` is not a regularizer, or ``where`` of no known kind.

    Example:
        >>> import keras
        >>> from keras_scaled_l2 import ScaledL2, attach
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> len(attach(model, ScaledL2(1.0)))
        1
    """
    check_is_model(model)
    finish_broken_learning(model)
    targets = attach_to(model, rule, where)
    warn_of_unsaved(model, targets)
    warn_of_double_decay(model, targets)
    return [weight.variable.path for weight in targets]


def attach_to(
    model: keras.Model, rule: keras.Regularizer, where: Where | None
) -> list[Weight]:
    """As ``attach``, without its warnings; returns the weights."""
    check_is_regularizer(rule)
    check_built(model)
    selected = _selector(where)
    trainable = trainable_weights(model)
    targets = [w for w in trainable if selected(w.layer, w.variable)]
    if not targets:
        raise ValueError(_nothing_matched(model, where, bool(trainable)))
    remember(model, targets)
    for weight in targets:
        _set(weight, rule)
    _resolve(model, {})
    return targets


def detach(model: keras.Model) -> list[str]:
    """Take off what ``attach`` and ``ApplyL2`` put on, and restore what was there.

    What a layer has made since then with the rule (LoRA's factors) is freed of it too.
    A rule that was put on the same weights later, through a model around this one or
    within it, stays until that model is detached.

    Args:
        model: The model that ``attach`` was called with.

    Returns:
        The paths of the weights that were restored; empty if there were none.

    Raises:
        TypeError: If it is no Keras model.
    """
    check_is_model(model)
    finish_broken_learning(model)
    paths = restore(model)
    if paths:
        _resolve(model, {})
    return paths


def bind(
    model: keras.Model, samples: int | None = None, batch_size: int | None = None
) -> list[str]:
    """Resolve the rules that a model carries: count anew, fill in what they lack.

    What the user gave to a rule is never overwritten; what was inferred is inferred
    anew, so ``bind`` again after freezing layers or for another data set.

    Args:
        model: A built model whose weights carry rules.
        samples: Number of training examples.
        batch_size: Examples per training step.

    Returns:
        The paths of the weights whose penalty is a rule of this package.

    Raises:
        ValueError: If the model is not built, or a rule still lacks a count.
    """
    check_built(model)
    finish_broken_learning(model)
    counts = checked_counts({"samples": samples, "batch_size": batch_size})
    weights = bind_each(model, counts, {})
    warn_of_double_decay(model, weights)
    return [weight.variable.path for weight in weights]


def bind_each(model: keras.Model, counts: Counts, own: CountsByWeight) -> list[Weight]:
    """As ``bind``, without its warning; returns the weights that carry rules."""
    weights = [
        weight
        for weight in penalized_weights(model)
        if isinstance(weight.variable.regularizer, Rule)
    ]
    _resolve(model, counts, own)
    for weight in weights:
        rule = weight.variable.regularizer
        optimizer = plain_optimizer(model, weight.variable)
        if optimizer is not None:
            rule.check_optimizer(optimizer)
        # Asking is the check: an unresolved rule says what it lacks, and the remedy.
        rule.coefficient(weight.variable.shape)
    return weights


def penalized(model: keras.Model) -> list[tuple[str, keras.Variable, Any]]:
    """The weights whose penalty is in the loss now.

    Args:
        model: A built model.

    Returns:
        ``(path, variable, regularizer)`` of each trainable weight with a penalty,
        rules of this package and others alike, in the model's order. Frozen weights
        carry no penalty.
    """
    check_built(model)
    variables = [weight.variable for weight in penalized_weights(model)]
    return [(v.path, v, v.regularizer) for v in variables]


def _default(layer: keras.Layer, variable: keras.Variable) -> bool:
    return len(variable.shape) >= 2 and not is_per_unit(layer, variable)


def _selector(where: Where | None) -> Callable[[keras.Layer, keras.Variable], bool]:
    if where is None:
        return _default
    if isinstance(where, (keras.Layer, keras.Variable)):
        where = [where]
    # A NumPy array calls itself a collection, and one without axes cannot be walked.
    if isinstance(where, Collection) and not (
        isinstance(where, (str, bytes)) or getattr(where, "ndim", 1) == 0
    ):
        wrong = [w for w in where if not isinstance(w, (keras.Layer, keras.Variable))]
        if not wrong:
            return _selector_of(where)
        raise TypeError(
            f"where holds {wrong[0]!r} of type {type(wrong[0]).__name__}: expected "
            "layers and variables of the model."
        )
    if callable(where):
        return where
    raise TypeError(
        f"where={where!r} is of type {type(where).__name__}: expected a predicate "
        "(layer, variable) -> bool, or a collection of layers or variables."
    )


def _selector_of(
    things: Collection[keras.Layer | keras.Variable],
) -> Callable[[keras.Layer, keras.Variable], bool]:
    variables = {id(v) for v in things if isinstance(v, keras.Variable)}
    of_layers = {
        id(v)
        for thing in things
        if isinstance(thing, keras.Layer)
        for layer, v, *_ in walk(thing)
        if _default(layer, v)
    }
    return lambda layer, variable: id(variable) in variables | of_layers


def _set(weight: Weight, rule: Any) -> None:
    """Put a rule on a variable and in its layer's config, where there is another."""
    # The variable makes the loss, the layer's attribute the config: Keras reads each
    # for its own purpose and never compares them.
    if weight.variable.regularizer != rule:
        put_regularizer(weight.variable, rule)
    layer, attribute = weight.config_layer, weight.attribute
    if attribute is not None and getattr(layer, attribute) != rule:
        setattr(layer, attribute, rule)


def checked_counts(counts: Counts) -> dict[str, int | None]:
    """Numbers that a user gave, or ``None``; refused by name."""
    return {
        name: None if value is None else positive_count(name, value)
        for name, value in counts.items()
    }


def _resolve(
    model: keras.Model, counts: Counts, own: CountsByWeight = _NO_WEIGHT
) -> None:
    """Count, and give every rule of the model what it lacks; its steps see to it."""
    for weight, rule in resolved(model, counts, own):
        _set(weight, rule)
    refresh_steps(model)


def resolved(
    model: keras.Model,
    counts: Counts,
    own: CountsByWeight = _NO_WEIGHT,
    optimizer: keras.optimizers.Optimizer | None = None,
) -> list[tuple[Weight, Any]]:
    """The penalized weights with their regularizers, the rules resolved as by ``bind``.

    Args:
        model: A built model; left as it is.
        counts: Those of the data.
        own: Those of single weights.
        optimizer: ``None`` for the one that the model was compiled with.
    """
    weights = penalized_weights(model)
    by_layer = count_by_layer(weights)
    fan_ins = _fan_ins_by_config(weights)
    model_weights = sum(elements(w.variable.shape) for w in weights)
    return [
        (
            weight,
            rule.resolve(
                {
                    **(known := {**counts, **own.get(id(weight.variable), {})}),
                    **optimizer_counts(
                        optimizer or plain_optimizer(model, weight.variable),
                        rule,
                        known,
                    ),
                    "model_weights": model_weights,
                    "layer_weights": by_layer[id(weight.config_layer)],
                    "fan_in": fan_ins[id(weight.config_layer), weight.attribute],
                }
            )
            if isinstance(rule := weight.variable.regularizer, Rule)
            else rule,
        )
        for weight in weights
    ]


def _fan_ins_by_config(weights: Iterable[Weight]) -> dict[tuple[int, str | None], Any]:
    """The fan-ins that one config entry stands for, as the rules save them."""
    found: dict[tuple[int, str | None], dict[Shape, float]] = {}
    for weight in weights:
        shape = tuple(int(d) for d in weight.variable.shape)
        inputs = fan_in(weight.layer, weight.variable)
        group = found.setdefault((id(weight.config_layer), weight.attribute), {})
        if group.setdefault(shape, inputs) != inputs and _uses_fan_in(weight):
            raise ValueError(
                f"Two weights of {weight.config_layer.name!r} have the shape {shape}; "
                f"one sums {group[shape]:g} inputs, {weight.variable.path!r} "
                f"{inputs:g}. "
                "The layer's config holds one rule for both, which cannot say so: "
                "pass fan_in to the rule, or choose the weights with where=..."
            )
    return {key: format_fan_ins(group) for key, group in found.items()}


def _uses_fan_in(weight: Weight) -> bool:
    rule = weight.variable.regularizer
    return isinstance(rule, Rule) and "fan_in" in rule.needs


def warn_of_unsaved(model: keras.Model, weights: Iterable[Weight]) -> None:
    """Warn of penalties that a saved file or a clone would not hold."""
    lost = unsaved(model, weights)
    if lost:
        warn(
            f"The penalty of {_named(lost)} is in model.losses, but a saved file or a "
            "clone will not hold it: the layer has no ..._regularizer argument, or one "
            "for several weights that differ, or is inside a subclassed model or "
            "custom layer whose config does not hold it. Attach again after loading.",
        )


def warn_of_double_decay(model: keras.Model, weights: Iterable[Weight]) -> None:
    """Warn of weights that the optimizer decays besides, once for each optimizer."""
    both = [w for w in weights if weight_decay_of(model, w.variable)[1]]
    if not both:
        return
    first = both[0].variable
    argument, value = weight_decay_of(model, first)
    optimizer: Any = plain_optimizer(model, first)
    # Of an optimizer once for the same weights, whoever finds it: attach, bind, fit.
    paths = {w.variable.path for w in both}
    told = _TOLD_OF_DECAY.setdefault(optimizer, set())
    if paths <= told:
        return
    told |= paths
    warn(
        f"Decayed twice: {_named(both)}, by an L2 penalty and by the optimizer's "
        f"{argument}={value:g}. Use one: compile with "
        f"{type(optimizer).__name__}(..., {without_weight_decay(model, first)}), or "
        f"exclude them with {excluding_from_weight_decay(model, first)}.",
    )


def _named(weights: Sequence[Weight]) -> str:
    path = repr(weights[0].variable.path)
    return path if len(weights) == 1 else f"{len(weights)} weights such as {path}"


def check_built(model: Any) -> None:
    """Refuse what is no model, or has no weights yet, with the remedy."""
    check_is_model(model)
    if not model.built or not model.weights:
        raise ValueError(
            f"The model {model.name!r} is not built: it has no weights yet. Call it on "
            "a batch of data, or model.build(input_shape), first."
        )


def _nothing_matched(
    model: keras.Model, where: Where | None, any_trainable: bool
) -> str:
    if not any_trainable:
        return (
            f"No weight of {model.name!r} is trainable, and Keras penalizes only "
            "trainable weights. Set layer.trainable = True first."
        )
    asked = "the default choice" if where is None else "where"
    return (
        f"Nothing to penalize in {model.name!r}: {asked} matches none of its "
        f"{len(model.trainable_weights)} trainable weights. By default trainable "
        "kernels and embeddings are penalized; choose others with "
        "where=lambda layer, variable: ..."
    )
