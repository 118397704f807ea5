"""A strength to start from, before any training."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import keras

from keras_scaled_l2.attaching import check_built, resolved
from keras_scaled_l2.counts import Weight, elements, trainable_weights
from keras_scaled_l2.efolds import (
    e_folds_per_coefficient,
    is_exact,
    learning_rates,
    updates_in,
)
from keras_scaled_l2.fan_in import is_per_unit
from keras_scaled_l2.fitting import plain_optimizer, steps_per_update, unwrapped
from keras_scaled_l2.half_life import decay_acts
from keras_scaled_l2.rule import (
    STRENGTH_FIELDS,
    Rule,
    check_is_regularizer,
    effective_coefficient,
)
from keras_scaled_l2.validation import positive, positive_count

MEASURED = (20_000, 20_000_000)
"""Weights of the smallest and largest network that all SGD groups of the atlas have."""

MEASURED_SAMPLES = (1000, 10_000)
"""Fewest and most training examples of the atlas."""

LAMBDA = 6.0
"""Of ``SampleL2``: the one strength that loses least over all cells of the atlas."""

_GRID = (0.1, 0.3, 1.0, 3.0, 10.0)
"""The grid around a suggestion, as multiples of its e-folds."""


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """A strength to start from; ``str()`` is the reason.

    Args:
        strength: Of the rule that was asked for.
        grid: Strengths around it, from the weakest penalty to the strongest.
        rule: The call that makes the rule with this strength.
        coefficient: Smallest and largest ``c`` on the weights.
        e_folds: Of the training, with the mean coefficient.
        weight_decay: Decoupled ``weight_decay`` of the optimizer for the same e-folds.
        reason: Why, in words.
    """

    strength: float
    grid: tuple[float, ...]
    rule: str
    coefficient: tuple[float, float]
    e_folds: float
    weight_decay: float
    reason: str

    def __str__(self) -> str:
        """The reason."""
        return self.reason


def suggest(
    model: keras.Model,
    *,
    samples: int,
    batch_size: int,
    epochs: int,
    rule: keras.Regularizer | None = None,
    optimizer: keras.optimizers.Optimizer | None = None,
    e_folds: float = 1.0,
) -> Suggestion:
    """A strength for a rule to start from, a short grid around it, and the reason.

    The strength lets a weight without data gradient shrink by ``exp(-e_folds)`` over
    the training: E = 2 c T lr / (1 - mu) for SGD, with T updates; under a schedule
    T lr is the sum of the learning rates. Where the coefficient differs by tensor, E is
    that of its mean over the weights. ``E = 1`` is a place to start, not an optimum:
    docs/atlas.md has what it loses, for SGD and dense networks of 20 thousand to
    20 million weights by the number of examples; the reason says where it is silent.
    For Adam and its like E has no exact meaning, see ``efolds.e_folds``.

    Args:
        model: A built model; left as it is. Its trainable kernels and embeddings are
            taken to be penalized, as ``attach`` does by default.
        samples: Number of training examples.
        batch_size: Examples of a step.
        epochs: Passes over the training data.
        rule: The rule whose strength is asked for, of any strength; ``None`` for
            ``keras.regularizers.L2``.
        optimizer: What is to train: rate, momentum and accumulation are all its own.
            ``None`` for the one that the model was compiled with.
        e_folds: The E to reach, above 0.

    Raises:
        ValueError: If the model is not built, or has no optimizer with one learning
            rate above 0, no update of the weights happens, an argument is out of its
            range, or the rule has no strength.
        TypeError: If ``rule`` is not a regularizer.

    Example:
        >>> import keras
        >>> from keras_scaled_l2 import suggest
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> sgd = keras.optimizers.SGD(0.125)
        >>> suggest(
        ...     model, samples=800, batch_size=100, epochs=50, optimizer=sgd
        ... ).strength
        0.01
    """
    check_built(model)
    counts = {
        "samples": positive_count("samples", samples),
        "batch_size": positive_count("batch_size", batch_size),
    }
    epochs = positive_count("epochs", epochs)
    target = float(positive("e_folds", e_folds))
    rule = keras.regularizers.L2(0.01) if rule is None else rule
    check_is_regularizer(rule)
    field, old = strength_of(rule)
    optimizer = _optimizer(model, optimizer)
    if isinstance(rule, Rule):
        rule.check_optimizer(optimizer)
    updates = _updates(optimizer, epochs, math.ceil(samples / batch_size))
    sizes, given = _coefficients(model, rule, counts, optimizer)
    per_coefficient = e_folds_per_coefficient(optimizer, updates, weights=sum(sizes))
    total = learning_rates(optimizer, updates)
    if not per_coefficient or not total:
        raise ValueError(
            f"{type(optimizer).__name__} has no learning rate above 0 over {updates} "
            "updates: expected an optimizer with one. Pass optimizer=..."
        )
    mean = math.fsum(n * c for n, c in zip(sizes, given, strict=True)) / sum(sizes)
    factor = target / per_coefficient / mean
    power = _power(model, rule, counts, optimizer)
    strength, *grid = (
        _rounded(old * (factor * f) ** (1 / power)) for f in (1.0, *_GRID)
    )
    made = with_strength(rule, strength)
    coefficient = (min(given) * factor, max(given) * factor)
    return Suggestion(
        strength=strength,
        grid=tuple(grid),
        rule=_call(made, field, strength),
        coefficient=coefficient,
        e_folds=target,
        weight_decay=target / total,
        reason=f"{_call(made, field, strength)}: "
        + _reason(optimizer, updates, target, coefficient, target / total)
        + _measured(optimizer, sum(sizes), samples),
    )


def strength_of(rule: keras.Regularizer) -> tuple[str, float]:
    """``(name of the field, value)`` of a rule's strength.

    Raises:
        ValueError: If it has none, or one of 0, which has no scale.
    """
    try:
        config = rule.get_config()
    except NotImplementedError:  # a class of one's own need not have it
        config = {}
    for name in STRENGTH_FIELDS:
        if config.get(name):
            return name, float(config[name])
    raise ValueError(
        f"{written(rule)} has no strength above 0 to change: expected a rule such as "
        "ScaledL2(1.0), SampleL2(1.0) or keras.regularizers.L2(0.01)."
    )


def written(rule: keras.Regularizer) -> str:
    """The call that makes a regularizer; the ``repr`` of Keras's own is an address."""
    if isinstance(rule, Rule):
        return repr(rule)
    try:
        config = rule.get_config()
    except NotImplementedError:  # a class of one's own need not have it
        config = {}
    arguments = ", ".join(f"{k}={v!r}" for k, v in config.items())
    own = type(rule).__module__.partition(".")[0] != "keras"
    place = "" if own else "keras.regularizers."
    return f"{place}{type(rule).__name__}({arguments})"


def with_strength(rule: keras.Regularizer, strength: float) -> Any:
    """The same rule with another strength."""
    name, _ = strength_of(rule)
    return type(rule).from_config({**rule.get_config(), name: float(strength)})


def _power(
    model: keras.Model,
    rule: keras.Regularizer,
    counts: dict[str, Any],
    optimizer: keras.optimizers.Optimizer,
) -> float:
    """The power p of ``c ~ strength**p``: 1, or -1 and -2 where it is a reciprocal."""
    _, value = strength_of(rule)
    _, once = _coefficients(model, rule, counts, optimizer)
    doubled = with_strength(rule, 2.0 * value)
    _, twice = _coefficients(model, doubled, counts, optimizer)
    return round(math.log2(twice[0] / once[0]), 6)


def _coefficients(
    model: keras.Model,
    rule: keras.Regularizer,
    counts: dict[str, Any],
    optimizer: keras.optimizers.Optimizer,
) -> tuple[list[int], list[float]]:
    """``(elements, c)`` of each weight that ``attach`` would penalize by default."""
    with _carrying(model, rule):
        found = resolved(model, counts, optimizer=optimizer)
    sizes = [elements(weight.variable.shape) for weight, _ in found]
    values = [effective_coefficient(r, w.variable.shape) for w, r in found]
    if None in values:
        raise ValueError(
            f"{rule!r} is not of the form c * sum(w**2): expected a rule of "
            "keras_scaled_l2 or keras.regularizers.L2."
        )
    return sizes, [float(c) for c in values]


@contextlib.contextmanager
def _carrying(model: keras.Model, rule: keras.Regularizer) -> Iterator[None]:
    """The rule on the weights to penalize, and nothing on the others, for a moment."""
    weights = trainable_weights(model)
    chosen = {id(w.variable) for w in weights if _is_default(w)}
    if not chosen:
        raise ValueError(
            f"The model {model.name!r} has no trainable kernel or embedding to "
            "penalize: expected at least one. Set layer.trainable = True first."
        )
    before = [w.variable.regularizer for w in weights]
    try:
        for weight in weights:
            kept = rule if id(weight.variable) in chosen else None
            weight.variable.regularizer = kept
        yield
    finally:
        for weight, regularizer in zip(weights, before, strict=True):
            weight.variable.regularizer = regularizer


def _is_default(weight: Weight) -> bool:
    layer, variable = weight.layer, weight.variable
    return len(variable.shape) >= 2 and not is_per_unit(layer, variable)


def _optimizer(
    model: keras.Model, optimizer: keras.optimizers.Optimizer | None
) -> keras.optimizers.Optimizer:
    """The one to suggest for, without a loss scale, which changes no update."""
    found = plain_optimizer(model) if optimizer is None else unwrapped(optimizer)
    if not isinstance(found, keras.optimizers.Optimizer):
        raise ValueError(
            f"optimizer={optimizer!r} for the model {model.name!r}: expected a Keras "
            "optimizer. Pass optimizer=keras.optimizers.SGD(...), or compile the model."
        )
    return found


def _updates(optimizer: keras.optimizers.Optimizer, epochs: int, steps: int) -> int:
    """Updates of the weights in so many epochs of so many steps: at least one."""
    found = updates_in(epochs * steps, optimizer)
    if not found:
        each = steps_per_update(optimizer)
        name = type(optimizer).__name__
        raise ValueError(
            f"epochs={epochs} of {steps} steps each are {epochs * steps} steps, and "
            f"{name} with gradient_accumulation_steps={each} updates the weights once "
            f"in {each} steps: no update happens. Expected one at least: train for "
            f"epochs={math.ceil(each / steps)} or more, or accumulate fewer."
        )
    return found


def _rounded(value: float) -> float:
    """Three digits: more than anybody knows of a starting point."""
    return float(f"{value:.3g}")


def _call(rule: Any, field: str, strength: float) -> str:
    """The call that makes a rule, as it stands in a program."""
    if isinstance(rule, Rule):
        return repr(rule)
    return f"keras.regularizers.{type(rule).__name__}({field}={strength:g})"


def _reason(
    optimizer: keras.optimizers.Optimizer,
    updates: int,
    target: float,
    coefficient: Sequence[float],
    weight_decay: float,
) -> str:
    low, high = coefficient
    span = f"{low:.3g}" if math.isclose(low, high) else f"{low:.3g} to {high:.3g}"
    name = type(optimizer).__name__
    text = (
        f"c = {span}. Over {updates:,} updates of {name} a weight without data "
        f"gradient shrinks by {target:g} e-folds, to {math.exp(-target):.2g} of itself."
    )
    if not is_exact(optimizer):
        text += (
            f" Under {name} that is an order of magnitude, not a number: it divides "
            "the penalty's gradient by the RMS of the whole gradient. "
            f"{'Its' if decay_acts(optimizer) else 'With AdamW, a'} decoupled "
            f"weight_decay={weight_decay:.3g} does exactly this."
        )
    return text + " Then compare a tenth, three tenths, 3 and 10 times as many e-folds."


def _measured(optimizer: keras.optimizers.Optimizer, weights: int, samples: int) -> str:
    """What the atlas has to say of such a start, and of another."""
    low, high = MEASURED
    fewest, most = MEASURED_SAMPLES
    # Its sizes are round, and count biases.
    within = 0.8 * low <= weights <= 1.2 * high and fewest <= samples <= most
    if is_exact(optimizer) and within:
        text = (
            " What such a start loses by the number of examples, on dense networks of "
            f"{low:,} to {high:,} weights, stands in docs/atlas.md."
        )
    else:
        text = (
            " For this docs/atlas.md is silent: it has such starts for SGD and dense "
            f"networks of {low:,} to {high:,} weights with {fewest:,} to {most:,} "
            "examples."
        )
    if within:
        text += (
            f" The one strength that loses least over all its cells, {LAMBDA:g} in "
            f"lambda / (2m), would be c = {LAMBDA / (2 * samples):.2g} here."
        )
    return text
