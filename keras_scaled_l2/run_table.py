"""What TensorBoard's table of runs sorts a training by."""

from __future__ import annotations

import sys
from typing import Any

import keras

from keras_scaled_l2.attaching import penalized
from keras_scaled_l2.counts import elements
from keras_scaled_l2.rule import effective_coefficient, name_of

# Written with each run, so that TensorBoard's table has the same columns for all.
METRICS = ("cost/data", "cost/penalty", "cost/total", "global/gradient_norm/ratio")


def hyperparameters(model: keras.Model) -> dict[str, float | str]:
    """Rule, strength and counts of a model's penalties."""
    weights = penalized(model)
    found = [effective_coefficient(rule, v.shape) for _, v, rule in weights]
    coefficients = [float(c) for c in found if c is not None]
    configs = {name_of(rule): _numbers_of(rule) for _, _, rule in weights}
    strengths = [next(iter(config.values()), 0.0) for config in configs.values()]
    samples = [c.get("samples") or c.get("inferred_samples") for c in configs.values()]
    # Five: the page shows no more of them unless it is asked to.
    return {
        "rule": " and ".join(sorted(configs)) or "none",
        "strength": max(strengths, default=0.0),
        "coefficient": max(coefficients, default=0.0),
        "penalized_weights": float(sum(elements(v.shape) for _, v, _ in weights)),
        "samples": max((m for m in samples if m), default=0.0),
    }


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
