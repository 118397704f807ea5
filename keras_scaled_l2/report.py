"""What a model's penalty is and does, in numbers, before the first step."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import keras

from keras_scaled_l2 import report_text
from keras_scaled_l2.attaching import check_built, resolved
from keras_scaled_l2.counts import Weight, elements
from keras_scaled_l2.evidence import by_path, determined_parameters, most_examples
from keras_scaled_l2.findings import find
from keras_scaled_l2.fitting import (
    accumulated_steps,
    current_learning_rate,
    plain_optimizer,
)
from keras_scaled_l2.gradients import sum_of_squares
from keras_scaled_l2.learned import finish_broken_learning
from keras_scaled_l2.parts import penalties_given, penalty_by
from keras_scaled_l2.report_data import (
    as_arrays,
    check_finite,
    check_given,
    check_weights,
    data_cost,
    data_gradient_norms,
    left_alone,
    number,
)
from keras_scaled_l2.report_records import CostRecord, WeightReport
from keras_scaled_l2.rule import Rule, effective_coefficient, name_of
from keras_scaled_l2.units import convert
from keras_scaled_l2.validation import positive_count

_BATCH_SIZE = 256
"""Examples of a forward pass, where nobody says how many a training step has."""


class CostReport(CostRecord):
    """The report: ``str()`` is its text; also ``to_markdown()`` and ``to_dict()``."""

    def __str__(self) -> str:
        """The report as text."""
        return report_text.as_text(self)

    def to_markdown(self) -> str:
        """The report as Markdown."""
        return report_text.as_markdown(self)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data, for JSON."""
        return dataclasses.asdict(self)


def cost_report(
    model: keras.Model,
    x: Any = None,
    y: Any = None,
    *,
    sample_weight: Any = None,
    samples: int | None = None,
    batch_size: int | None = None,
    epochs: int | None = None,
    gamma: bool = False,
) -> CostReport:
    """What the penalty of a model is and does, before the first step.

    The model is left as it is. With data the report also splits the cost and compares
    gradients: the cost is that of all examples given, the gradient that of the first
    ``batch_size`` of them, as one training step would see them; both with dropout off
    and batch statistics frozen.

    Args:
        model: A built model; compiled, if data are given.
        x: Inputs, as for ``fit``: an array, data frame or SciPy sparse
            matrix, or a list or dict of them.
        y: Targets; with ``x``, or neither.
        sample_weight: As for ``fit``.
        samples: Number of training examples, for the rules and conventions that depend
            on it. Not taken from ``x``, which may be a part.
        batch_size: Examples of a training step, likewise. Without it rules keep what
            they were bound with, and data pass through the model 256 at a time.
        epochs: Epochs of the training that is about to run. With ``samples`` and
            ``batch_size`` the report says if the penalty is inert over it.
        gamma: Whether to count, on the first of the data (1000 rows: examples x free
            outputs), how many elements of each weight the data determine under the
            present penalty, of all ``samples``; see docs/evidence. For a model that has
            been trained.

    Returns:
        The report; print it.

    Raises:
        ValueError: If the model is not built, a rule lacks a count or has no meaning
            under the model's optimizer, ``y`` is missing, or the model is not compiled
            though data are given; if labels are no classes of the model, or data or
            weights are NaN.
        TypeError: If the model or the data are of no known kind.

    Example:
        >>> import keras
        >>> from keras_scaled_l2 import cost_report
        >>> l2 = keras.regularizers.L2(0.01)
        >>> model = keras.Sequential(
        ...     [keras.Input((4,)), keras.layers.Dense(2, kernel_regularizer=l2)]
        ... )
        >>> cost_report(model).weights[0].coefficient
        0.01
    """
    check_built(model)
    finish_broken_learning(model)
    if batch_size is not None:
        batch_size = positive_count("batch_size", batch_size)
    if samples is not None:
        samples = positive_count("samples", samples)
    counts = {"samples": samples, "batch_size": batch_size}
    rules = resolved(model, counts)
    _check_optimizer(model, rules)
    squares = [number(sum_of_squares(weight.variable)) for weight, _ in rules]
    if not all(map(math.isfinite, squares)):
        check_weights(model)
    penalties = [
        _penalty(w, rule, s) for (w, rule), s in zip(rules, squares, strict=True)
    ]
    factors = [1.0] * len(rules)
    cost_of_data: float | None = None
    data_norms: dict[int, float] = {}
    if not (x is None and y is None and sample_weight is None):
        check_given(model, x, y)
        arrays = as_arrays(x, y, sample_weight)
        size = batch_size or _BATCH_SIZE
        variables = [weight.variable for weight, _ in rules]
        given = list(zip(variables, penalties, strict=True))
        with penalties_given(given):
            with left_alone(model):
                cost_of_data, factors = data_cost(model, variables, arrays, size)
                check_finite(model, cost_of_data, arrays)
            # From the recurrent states that a training would begin with.
            with left_alone(model):
                data_norms = data_gradient_norms(model, arrays, size)
        penalties = [f * p for f, p in zip(factors, penalties, strict=True)]
    cost = {"penalty": math.fsum(penalties)}
    if cost_of_data is not None:
        cost = _split(cost["penalty"], cost_of_data)
    weights = tuple(
        _weight_report(
            weight,
            rule,
            square=square,
            factor=factor,
            penalty=penalty,
            all_penalties=cost["penalty"],
            decay=_decay_of(model, weight.variable),
            data_norms=data_norms,
        )
        for (weight, rule), square, penalty, factor in zip(
            rules, squares, penalties, factors, strict=True
        )
    )
    if gamma:
        pairs = zip(rules, weights, strict=True)
        used = by_path(model, {id(w.variable): r.coefficient for (w, _), r in pairs})
        weights = _with_gamma(model, x, samples, weights, used)
    ratio = _overall_ratio(rules, squares, factors, data_norms)
    optimizer = _describe_optimizer(model)
    return CostReport(
        model=model.name,
        parameters=sum(elements(v.shape) for v in model.weights),
        penalized=sum(w.count for w in weights),
        weights=weights,
        cost=cost,
        gradient_ratio=ratio,
        optimizer=optimizer,
        findings=tuple(
            find(
                model,
                weights,
                cost,
                ratio,
                optimizer,
                factors=factors,
                steps=_steps(samples, batch_size, epochs),
            )
        ),
        equivalents=_equivalents(
            weights,
            optimizer,
            samples,
            _examples_of_update(model, samples, batch_size),
        ),
        samples=samples,
        batch_size=batch_size,
    )


def _with_gamma(
    model: keras.Model,
    x: Any,
    samples: int | None,
    weights: tuple[WeightReport, ...],
    coefficients: dict[str, float],
) -> tuple[WeightReport, ...]:
    """The same with gamma, under the coefficients that they show."""
    if getattr(x, "shape", None) is None:
        raise ValueError(
            f"gamma=True with x of type {type(x).__name__}: expected an array of "
            "examples. Pass some training examples as x, and their targets as y."
        )
    most = most_examples(model)
    # SciPy's sparse matrices have no length, and not all can be sliced.
    few = x.tocsr()[:most].toarray() if hasattr(x, "tocsr") else x[:most]
    m = samples or int(x.shape[0])
    found = determined_parameters(model, few, m, coefficients)
    return tuple(dataclasses.replace(w, gamma=found[w.path]) for w in weights)


def _examples_of_update(
    model: keras.Model, samples: int | None, batch_size: int | None
) -> int | None:
    """The batch size of libraries that have no name for steps that share an update."""
    if batch_size is None:
        return None
    return min(batch_size, samples or batch_size) * accumulated_steps(model)


def _steps(
    samples: int | None, batch_size: int | None, epochs: int | None
) -> int | None:
    """Steps of a training of so many epochs, where that is known."""
    if samples is None or batch_size is None or epochs is None:
        return None
    return positive_count("epochs", epochs) * math.ceil(samples / batch_size)


def _check_optimizer(model: keras.Model, rules: Sequence[tuple[Weight, Any]]) -> None:
    for weight, rule in rules:
        optimizer = plain_optimizer(model, weight.variable)
        if isinstance(rule, Rule) and optimizer is not None:
            rule.check_optimizer(optimizer)


def _weight_report(
    weight: Weight,
    rule: Any,
    *,
    square: float,
    factor: float,
    penalty: float,
    all_penalties: float,
    decay: float | None,
    data_norms: dict[int, float],
) -> WeightReport:
    variable = weight.variable
    c = effective_coefficient(rule, variable.shape)
    c = None if c is None else factor * number(c)
    per_step = None if decay is None or c is None else c * decay
    data = data_norms.get(id(variable))
    return WeightReport(
        path=variable.path,
        rule=_name(rule),
        dtype=keras.backend.standardize_dtype(variable.dtype),
        count=elements(variable.shape),
        sum_of_squares=square,
        coefficient=c,
        penalty=penalty,
        share=penalty / all_penalties if all_penalties > 0 else 0.0,
        decay_per_step=per_step,
        half_life=_half_life(per_step),
        gradient_ratio=(
            2.0 * c * math.sqrt(square) / data if c is not None and data else None
        ),
    )


def _half_life(decay: float | None) -> float | None:
    """Steps until ``(1 - decay)**steps`` is one half."""
    if not decay or decay >= 1:
        return None
    return -math.log(2.0) / math.log1p(-decay)


def _decay_of(model: keras.Model, variable: keras.Variable) -> float | None:
    """Decay per step and unit of ``c``: ``2 lr / (1 - mu)`` for SGD, else none."""
    optimizer = plain_optimizer(model, variable)
    if not isinstance(optimizer, keras.optimizers.SGD):
        return None
    rate = current_learning_rate(optimizer) or 0.0
    return 2.0 * rate / (1.0 - float(optimizer.momentum))


def _describe_optimizer(model: keras.Model) -> dict[str, float | str | None]:
    optimizer = plain_optimizer(model)
    if optimizer is None:
        return {}
    momentum = getattr(optimizer, "momentum", None)
    weight_decay = getattr(optimizer, "weight_decay", None)
    return {
        "name": type(optimizer).__name__,
        "learning_rate": current_learning_rate(optimizer),
        "momentum": None if momentum is None else float(momentum),
        "weight_decay": None if weight_decay is None else float(weight_decay),
    }


def _penalty(weight: Weight, rule: Any, square: float) -> float:
    c = effective_coefficient(rule, weight.variable.shape)
    return penalty_by(rule, weight.variable) if c is None else number(c) * square


def _split(penalty: float, data: float) -> dict[str, float]:
    total = data + penalty
    share = penalty / total if total > 0 else 0.0
    return {"total": total, "data": data, "penalty": penalty, "penalty_share": share}


def _overall_ratio(
    rules: Sequence[tuple[Weight, Any]],
    squares: Sequence[float],
    factors: Sequence[float],
    data_norms: dict[int, float],
) -> float | None:
    penalty = data = 0.0
    for (weight, rule), square, f in zip(rules, squares, factors, strict=True):
        c = effective_coefficient(rule, weight.variable.shape)
        if c is not None and id(weight.variable) in data_norms:
            penalty += (2.0 * f * number(c)) ** 2 * square
            data += data_norms[id(weight.variable)] ** 2
    return math.sqrt(penalty / data) if data > 0 else None


def _equivalents(
    weights: Sequence[WeightReport],
    optimizer: dict[str, float | str | None],
    samples: int | None,
    batch_size: int | None,
) -> dict[str, float]:
    coefficients = {weight.coefficient for weight in weights}
    if len(coefficients) != 1 or None in coefficients:
        return {}
    (c,) = coefficients
    known: dict[str, Any] = {"samples": samples, "batch_size": batch_size}
    targets = ["torch"]
    if samples is not None:
        targets += ["textbook", "logistic_c", "ridge", "prior_std"]
    if batch_size is not None:
        targets.append("sklearn_mlp")
    if optimizer.get("name") == "SGD" and optimizer["learning_rate"]:
        known["learning_rate"] = optimizer["learning_rate"]
        known["momentum"] = optimizer["momentum"]
        targets.append("decoupled")
        if samples is not None and batch_size is not None:
            targets.append("half_life")
    found = {}
    for name in targets:
        # What is too large or too small for a float has no number there.
        with contextlib.suppress(ValueError):
            found[name] = convert(c or 0.0, "keras", name, **known)
    return found


def _name(rule: Any) -> str:
    if isinstance(rule, Rule):
        inferred = {f"inferred_{name}": None for name in rule.inferable}
        return repr(dataclasses.replace(rule, **inferred))
    return name_of(rule)
