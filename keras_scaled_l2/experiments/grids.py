"""What an arm tries on validation data: as many values as every other arm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_scaled_l2.experiments.arms import Arm
from keras_scaled_l2.experiments.results.records import Hyperparameters
from keras_scaled_l2.rule import STRENGTH_FIELDS

RATES = (0.1, 0.7)
"""Lowest and highest dropout rate that is tried."""
DECADES = 1.0
"""How far a grid of strengths reaches below and above the strength given."""


def grid(arm: Arm, trials: int) -> tuple[Hyperparameters, ...]:
    """What an arm tries; empty if it has nothing to choose.

    Strengths are spaced evenly in their logarithm, from a tenth to ten times the one
    given; dropout rates evenly from 0.1 to 0.7. An arm with both tries as many pairs as
    the others try values: each value once, the weakest penalty not always beside the
    lowest rate (a Latin square's diagonal).
    """
    factors = np.logspace(-DECADES, DECADES, trials) if trials > 1 else np.ones(1)
    rates = np.linspace(*RATES, trials) if trials > 1 else np.array([arm.dropout])
    key = _key(arm.config)
    penalized = key is not None or arm.weight_decay > 0
    if not penalized and not arm.dropout:
        return ()
    if not arm.dropout:
        rates = np.zeros(trials)
    elif penalized:
        rates = rates[_spread(trials)]
    return tuple(
        Hyperparameters(
            _scaled(arm.config, key, float(factor)),
            round(float(rate), 4),
            arm.weight_decay * float(factor),
        )
        for factor, rate in zip(factors, rates, strict=True)
    )


def _key(config: Mapping[str, Any] | None) -> str | None:
    """The entry of a rule's config to turn, if it is a number that is not 0."""
    if config is None:
        return None
    values = config["config"]
    return next((k for k in STRENGTH_FIELDS if values.get(k)), None)


def _scaled(
    config: Mapping[str, Any] | None, key: str | None, factor: float
) -> dict[str, Any] | None:
    if config is None or key is None:
        return None if config is None else dict(config)
    values = config["config"]
    return {**config, "config": {**values, key: float(values[key]) * factor}}


def _spread(n: int) -> np.ndarray:
    """A permutation of ``range(n)`` in steps near the golden ratio, as in a lattice."""
    step = next((s for s in range(max(1, round(0.618 * n)), n) if np.gcd(s, n) == 1), 1)
    return (np.arange(n) * step + n // 2) % n
