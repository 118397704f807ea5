"""What the strengths of a rule are at each size of a family."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from keras_scaled_l2.experiments.axis import Axis, Regularization, make_axis
from keras_scaled_l2.experiments.coefficients import penalizable, penalizable_sizes
from keras_scaled_l2.experiments.plan import Plan
from keras_scaled_l2.experiments.plane import COARSE, half_decades
from keras_scaled_l2.experiments.search import Place

SWEEP = "l2"
"""The rule whose sweep at every size serves all that are constant within a model."""
POWERS = {
    "l2": 0.0,
    "sample": 0.0,
    "model-0.25": 0.25,
    "model-0.5": 0.5,
    "model-1": 1.0,
}
"""Rules constant within a model -> the power of its weights that divides c.

``SampleL2`` divides by the number of examples, which is the same at every size.
"""
WITH_RATE = ("half-life", "decay")
"""Rules whose strength is a time: what they add to a step goes with the rate."""
OWN = ("half-life", "scaled", "prior", "decay")
"""Rules with trainings of their own."""
RULES = (*POWERS, *OWN)
COARSE_TIMES: tuple[Place, ...] = (None, -11, -9, -7, -5)
"""Where their search begins: c, or the decay, times the learning rate."""
BOUNDS = (-15, 2)

Key = tuple[str, Place, int]
"""Kind, place and place of the learning rate: the same training for the same key."""


@dataclasses.dataclass(frozen=True)
class Line:
    """The strengths of a rule at one size.

    A place is half a decade of the mean coefficient; where the strength is a time, of
    the coefficient (of the decay) times the learning rate.

    Args:
        rule: The rule.
        penalized: Names of the weights with a penalty.
        small: Axis at the smallest size, which gives a place its strength.
        here: Axis at this size, which gives a strength its coefficients.
        sizes: Elements by name, at the smallest size.
    """

    rule: str
    penalized: tuple[str, ...]
    small: Axis | None = None
    here: Axis | None = None
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def coarse(self) -> tuple[Place, ...]:
        """Where a search begins."""
        return COARSE_TIMES if self.rule in WITH_RATE else COARSE

    def key(self, place: Place, rate: int) -> Key:
        """What a training is known by."""
        if place is None:
            return SWEEP, None, rate
        if self.rule in WITH_RATE:
            kind = SWEEP if self.rule == "half-life" else self.rule
            return kind, place - rate, rate
        return self.rule, place, rate

    def strength(self, place: Place) -> float:
        """The strength of a place, as the rule counts it; 0 is no penalty."""
        if place is None:
            return 0.0
        if self.small is None:
            return half_decades(place)
        reference = self.small.reference
        total = sum(self.sizes[path] * c for path, c in reference.items())
        factor = half_decades(place) / (total / sum(self.sizes.values()))
        return float(f"{self.small.unit * factor ** (1 / self.small.power):.3g}")

    def regularization(self, place: Place, rate: int) -> Regularization:
        """What to train with."""
        if place is None:
            return Regularization({})
        if self.rule == "decay":
            return Regularization({}, half_decades(place - rate))
        if self.here is not None:
            return self.here.regularization(self.strength(place))
        shift = rate if self.rule == "half-life" else 0
        return Regularization(
            dict.fromkeys(self.penalized, half_decades(place - shift))
        )


def make_line(rule: str, small: Plan, here: Plan) -> Line:
    """The line of a rule of ``OWN``, or of ``SWEEP``, at a size.

    Raises:
        InputError: If the rule does not fit network or optimizer.
    """
    names = tuple(penalizable(here.network))
    if rule in (SWEEP, "decay"):
        return Line(rule, names)
    first, own = make_axis(rule, small), make_axis(rule, here)
    if rule == "half-life":
        return Line(rule, names)
    return Line(rule, names, first, own, penalizable_sizes(small.network))
