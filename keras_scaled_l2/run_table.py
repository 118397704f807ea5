"""What TensorBoard's table of runs sorts a training by."""

from __future__ import annotations

import sys
from typing import Any

import keras

from keras_scaled_l2.attaching import penalized
from keras_scaled_l2.counts import elements
from keras_scaled_l2.rule import STRENGTH_FIELDS, effective_coefficient, name_of

# Written with each run, so that TensorBoard's table has the same columns for all.
METRICS = ("cost/data", "cost/penalty", "cost/total", "global/gradient_norm/ratio")


def hyperparameters(model: keras.Model) -> dict[str, float | str]:
    """Rule, strength and counts of a model's penalties."""
    weights = penalized(model)
    found = [effective_coefficient(rule, v.shape) for _, v, rule in weights]
    coefficients = [float(c) for c in found if c is not None]
    names = {name_of(rule) for _, _, rule in weights}
    configs = [_numbers_of(rule) for _, _, rule in weights]
    strengths = [_strength_in(config) for config in configs]
    samples = [c.get("samples") or c.get("inferred_samples") for c in configs]
    # Five: the page shows no more of them unless it is asked to.
    return {
        "rule": " and ".join(sorted(names)) or "none",
        "strength": max(strengths, default=0.0),
        "coefficient": max(coefficients, default=0.0),
        "penalized_weights": float(sum(elements(v.shape) for _, v, _ in weights)),
        "samples": max((m for m in samples if m), default=0.0),
    }


def _strength_in(config: dict[str, float]) -> float:
    """The number that scales a penalty; of a class of one's own the first."""
    first = next(iter(config.values()), 0.0)
    return next((config[name] for name in STRENGTH_FIELDS if config.get(name)), first)


def _numbers_of(rule: Any) -> dict[str, float]:
    """The numbers in a regularizer's config; Keras takes any function for one."""
    try:
        config = dict(rule.get_config())
    except Exception:  # a function has none, and a class of one's own may refuse it
        return {}
    numbers = (int, float)
    large = sys.float_info.max
    return {
        k: float(v)
        for k, v in config.items()
        if isinstance(v, numbers) and not (isinstance(v, int) and abs(v) > large)
    }
