"""How far a classifier's confidence is from how often it is right."""

from __future__ import annotations

import numpy as np

from keras_scaled_l2.experiments.errors import require

BINS = 15
"""As in Guo et al. (2017), "On calibration of modern neural networks"."""


def calibration_error(
    outputs: np.ndarray, labels: np.ndarray, *, probabilities: bool, bins: int = BINS
) -> float:
    """Expected calibration error of a classifier, in 0 to 1.

    Formula: ``sum over bins of (n_b / n) * abs(accuracy_b - confidence_b)``, where the
    examples are put into bins of equal width by their confidence, the probability that
    they give to the class they predict. NaN if an output is not finite.

    Args:
        outputs: Logits or probabilities of shape ``(n, classes)``; with one column,
            those of class 1 of two.
        labels: Classes of shape ``(n,)``.
        probabilities: Whether the outputs are probabilities.
        bins: Number of bins between 0 and 1.

    Source: Guo et al. (2017), section 2.
    """
    p = np.asarray(outputs, dtype=np.float64)
    if not np.all(np.isfinite(p)):
        return float("nan")
    if not probabilities:
        special = require("scipy.special", "the calibration error")
        p = special.expit(p) if p.shape[1] == 1 else special.softmax(p, axis=1)
    if p.shape[1] == 1:
        p = np.concatenate([1.0 - p, p], axis=1)
    confidence = p.max(axis=1)
    hits = p.argmax(axis=1) == np.reshape(labels, -1)
    # Half-open on the left, as in the paper: a confidence of 1 is in the last bin.
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(bin_of, weights=hits - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(p))
