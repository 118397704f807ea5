"""What a strength of a tuning is: coefficients, decay or dropout, and its e-folds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import keras

from keras_scaled_l2.efolds import (
    INERT,
    e_folds_of_decay,
    e_folds_per_coefficient,
    inert_below,
    is_exact,
    updates_in,
)
from keras_scaled_l2.experiments.arms import DECAY, Arm, check_decay_acts, named_arms
from keras_scaled_l2.experiments.coefficients import coefficients, penalizable_sizes
from keras_scaled_l2.experiments.errors import InputError, one_line, unknown
from keras_scaled_l2.experiments.plan import Plan
from keras_scaled_l2.experiments.search import Place
from keras_scaled_l2.regularizers import HalfLifeL2, PriorL2
from keras_scaled_l2.rule import Rule
from keras_scaled_l2.suggesting import strength_of, with_strength, written

Kind = Literal["penalty", "decay", "dropout"]
NAMES = ("l2", "scaled", "sample", "prior", "half-life", DECAY, "dropout")
RULES = (*NAMES, *(f"{name}+dropout" for name in NAMES[:-1]))
"""Names of rules, and of rules beside dropout."""
_LATTICE = math.sqrt(10.0)
"""Half a decade: the step of the lattice in e-folds."""
HIGHEST_RATE = 0.9
"""Dropout rates lie on a lattice of tenths up to here."""
_TENTHS = round(10 * HIGHEST_RATE)


@dataclasses.dataclass(frozen=True)
class Regularization:
    """What a strength comes to in a training."""

    coefficients: Mapping[str, float]
    weight_decay: float = 0.0
    dropout: float = 0.0

    @property
    def span(self) -> tuple[float, float]:
        """Smallest and largest coefficient."""
        found = self.coefficients.values()
        return min(found, default=0.0), max(found, default=0.0)


@dataclasses.dataclass(frozen=True)
class Axis:
    """All strengths of what is tuned.

    Args:
        kind: What is tuned.
        reference: Coefficients at the strength ``unit``.
        unit: A strength above 0.
        power: ``c`` goes with this power of the strength; below 0 for a reciprocal.
        largest_folds: E-folds at ``unit``, of the largest coefficient.
        mean_folds: E-folds at ``unit``, of the mean coefficient over the weights.
        exact: Whether the e-folds have their meaning.
        inert: E-folds below which nothing happens.
        rate: Dropout rate at every strength of a penalty or decay.
    """

    kind: Kind
    reference: Mapping[str, float]
    unit: float
    power: float
    largest_folds: float
    mean_folds: float
    exact: bool
    inert: float
    rate: float = 0.0

    def regularization(self, strength: float) -> Regularization:
        """What to train with."""
        if self.kind == "dropout":
            return Regularization({}, 0.0, strength)
        if self.kind == "decay":
            return Regularization({}, strength, self.rate)
        if strength == 0:
            return Regularization({}, 0.0, self.rate)
        factor = (strength / self.unit) ** self.power
        found = {path: c * factor for path, c in self.reference.items()}
        return Regularization(found, 0.0, self.rate)

    def e_folds(self, strength: float) -> float:
        """E-folds of a whole training, with the largest coefficient."""
        if strength == 0 or self.kind == "dropout":
            return 0.0
        return float(self.largest_folds * (strength / self.unit) ** self.power)

    def is_inert(self, strength: float) -> bool:
        """Whether a strength does nothing."""
        if self.kind == "dropout":
            return strength == 0
        return self.e_folds(strength) < self.inert

    @property
    def inert_below(self) -> float | None:
        """The strength at which the penalty begins to act."""
        if self.kind == "dropout" or self.power < 0 or not self.exact:
            return None
        return float(self.unit * (self.inert / self.largest_folds) ** (1 / self.power))

    def strength(self, place: Place) -> float:
        """The strength at a place of the lattice, to three digits."""
        if place is None:
            return 0.0
        if self.kind == "dropout":
            return place / 10
        factor = _LATTICE**place / self.mean_folds
        return float(f"{self.unit * factor ** (1 / self.power):.3g}")

    def around(self, center: float, place: Place) -> float:
        """The strength so many half decades of the coefficient from a strength."""
        if place is None:
            return 0.0
        return float(f"{center * _LATTICE ** (place / self.power):.3g}")

    def strength_like(
        self, coefficients: Mapping[str, float], sizes: Mapping[str, int]
    ) -> float:
        """The strength whose coefficients are these in the mean, to three digits.

        Their geometric mean, each weight counting as many times as it has elements, is
        that of the strength's own.

        Args:
            coefficients: Name of a weight -> its ``c``, above 0.
            sizes: Name -> number of elements.
        """
        total = math.fsum(
            sizes[p] * math.log(c / self.reference[p]) for p, c in coefficients.items()
        )
        mean = total / sum(sizes[p] for p in coefficients)
        return float(f"{self.unit * math.exp(mean / self.power):.3g}")

    @property
    def bounds(self) -> tuple[int, int, int]:
        """Where a search begins, and the lowest and highest place."""
        if self.kind == "dropout":
            return 4, 1, _TENTHS
        # The stand-in of an adaptive optimizer may be off by a hundred.
        return (0, -3, 6) if self.exact else (0, -7, 8)


def make_axis(
    rule: str | keras.Regularizer,
    plan: Plan,
    rate: float = 0.0,
    *,
    samples: int | None = None,
) -> Axis:
    """The axis of a rule, or of a name of ``NAMES``, in the trainings of a plan.

    Args:
        rule: The rule.
        plan: What is trained.
        rate: Dropout rate beside it.
        samples: Examples of a training, where they are not the plan's, as in folds.

    Raises:
        InputError: If there is no such rule, or it does not fit.
    """
    if rule == "dropout":
        return Axis("dropout", {}, 1.0, 1.0, 0.0, 0.0, True, 0.0)
    optimizer = plan.optimizer.make()
    samples = plan.problem.samples["train"] if samples is None else samples
    steps = plan.epochs * math.ceil(samples / plan.batch_size)
    updates = updates_in(steps, optimizer)
    if rule == DECAY:
        check_decay_acts(optimizer)
        folds = _positive(e_folds_of_decay(1.0, optimizer, updates))
        return Axis("decay", {}, 1.0, 1.0, folds, folds, True, INERT, rate)
    made = _rule(rule, optimizer)
    counts: dict[str, Any] = {"samples": samples, "batch_size": plan.batch_size}
    reference = _coefficients(plan, made, counts)
    _, unit = strength_of(made)
    doubled = with_strength(made, 2.0 * unit)
    twice = _coefficients(plan, doubled, counts)
    path = next(iter(reference))
    sizes = penalizable_sizes(plan.network)
    folds = _positive(
        e_folds_per_coefficient(optimizer, updates, weights=sum(sizes.values()))
    )
    total = math.fsum(sizes[p] * c for p, c in reference.items())
    return Axis(
        kind="penalty",
        reference=reference,
        unit=unit,
        power=round(math.log2(twice[path] / reference[path]), 6),
        largest_folds=folds * max(reference.values()),
        mean_folds=folds * total / sum(sizes.values()),
        exact=is_exact(optimizer),
        inert=inert_below(optimizer),
        rate=rate,
    )


def _rule(rule: Any, optimizer: keras.optimizers.Optimizer) -> keras.Regularizer:
    if isinstance(rule, str):
        rule = _named(rule, optimizer)
    elif not isinstance(rule, keras.Regularizer):
        raise InputError(
            f"rule {rule!r}: expected a regularizer such as ScaledL2(1.0), or one of "
            f"{', '.join(NAMES)}."
        )
    try:
        if isinstance(rule, Rule) and rule.learns:
            raise ValueError(
                "expected a rule of a fixed strength, since this one finds its own "
                'while it trains. tune(method="evidence") has it propose one.'
            )
        strength_of(rule)
        if isinstance(rule, Rule):
            rule.check_optimizer(optimizer)
    except ValueError as error:
        text, call = one_line(error), written(rule)
        # What the rule says itself begins with the same call.
        named = "rule" if text.startswith(call) else f"rule {call}:"
        raise InputError(f"{named} {text}") from error
    return rule


def _coefficients(
    plan: Plan, rule: keras.Regularizer, counts: Mapping[str, Any]
) -> dict[str, float]:
    name = "tuned"
    try:
        return coefficients(plan.network, Arm(name, rule), **counts)
    except InputError as error:
        # Nobody gave an arm here.
        what = str(error).removeprefix(f"arm {name!r}: ")
        raise InputError(f"rule {written(rule)}: {what}") from error


def _named(name: str, optimizer: keras.optimizers.Optimizer) -> keras.Regularizer:
    if name == "l2":
        return keras.regularizers.L2(1e-3)
    if name in ("scaled", "sample"):
        (arm,) = named_arms([name], {name: 1.0})
        return keras.saving.deserialize_keras_object(arm.config)
    if name == "prior":
        return PriorL2(1.0)
    if name == "half-life":
        if not isinstance(optimizer, keras.optimizers.SGD):
            raise InputError(
                f"rule 'half-life' under {type(optimizer).__name__}: expected SGD, "
                "since an adaptive optimizer leaves no half-life to a penalty. Use "
                "'decay'."
            )
        config = optimizer.get_config()
        rate = config.get("learning_rate")
        return HalfLifeL2(
            epochs=5.0,
            learning_rate=rate if isinstance(rate, float) else None,
            momentum=config.get("momentum"),
        )
    raise unknown("rule", name, RULES)


def _positive(folds: float | None) -> float:
    if not folds:
        raise InputError(
            "the optimizer has no single learning rate above 0: expected one, since "
            "the strengths are laid out by it."
        )
    return folds
