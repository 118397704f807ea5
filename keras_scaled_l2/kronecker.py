"""Gamma by Kronecker factors: for more rows than can be inverted.

A dense layer's block of the Gauss-Newton Hessian is the mean of ``a a^T (x) d d^T``
over the examples, of its inputs ``a`` and of the gradients ``d`` before its activation.
Taken for independent, it is ``A (x) D`` of their means, whose eigenvalues are the
products of those of ``A`` and ``D``: no matrix is larger than the layer is wide.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_scaled_l2 import _keras
from keras_scaled_l2.curvature import rows_per_example
from keras_scaled_l2.grams import RowFinder

BATCH = 500
"""Examples that are passed through the network at a time."""


class Factors(NamedTuple):
    """Means of a dense layer over the examples, float64."""

    inputs: Any
    """``A``, of (inputs, inputs); about the mean input where a free bias takes it."""
    gradients: Any
    """``D``, of (units, units), summed over an example's rows."""


def gamma_by_kronecker(
    model: keras.Model, x: Any, coefficients: Mapping[str, float], samples: int
) -> dict[str, float]:
    """An estimate of gamma by the Kronecker factors of dense layers.

    Formula: ``gamma_l = sum_jk e_jk / (e_jk + 2 c_l)`` with ``e_jk`` the product of
    eigenvalue ``j`` of ``A`` and ``k`` of ``D``. A bias without a penalty has a flat
    prior, which turns ``A`` into the covariance of the inputs. The layers are taken
    each by itself; where the sum is more than the rank that ``H`` can have, ``samples``
    times the free outputs, all are divided by what it is more.

    Args:
        model: A compiled model of one output.
        x: Training examples, all or a subset, as many as there are.
        coefficients: Path of each penalized weight -> ``c_l``, above 0.
        samples: Number of all training examples.

    Raises:
        ValueError: If a penalized weight is not the kernel of a dense layer that sees
            one vector for each example.

    Source: Martens and Grosse, Optimizing Neural Networks with Kronecker-factored
    Approximate Curvature (2015), section 3.
    """
    factors = kronecker_factors(model, x)
    lacking = sorted(set(coefficients) - set(factors))
    if lacking:
        raise ValueError(
            f"{len(x)} examples for {lacking}: beyond 5000 examples x outputs expected "
            "kernels of Dense layers alone, which see one vector for each example. "
            "Pass a subset of the training examples and samples=<number of all>."
        )
    found = {
        path: gamma_of_factors(*factors[path], c) for path, c in coefficients.items()
    }
    total, most = sum(found.values()), samples * rows_per_example(model)
    factor = most / total if total > most else 1.0
    return {path: factor * gamma for path, gamma in found.items()}


def gamma_of_factors(inputs: Any, gradients: Any, c: float) -> float:
    """``tr K (K + 2 c)^-1`` of the Kronecker product ``K`` of two factors."""
    left, right = (
        np.maximum(np.linalg.eigvalsh(factor), 0.0) for factor in (inputs, gradients)
    )
    values = np.outer(left, right)
    return float(np.sum(values / (values + 2.0 * c)))


def kronecker_factors(model: keras.Model, x: Any) -> dict[str, Factors]:
    """Path of each dense layer's kernel -> its factors over the examples."""
    finder = RowFinder(model, x[:BATCH], ())
    sums: dict[str, list[Any]] = {}
    for first in range(0, len(x), BATCH):
        part = x[first : first + BATCH]
        for layer, *rows in finder.factors(part)[1]:
            a, d = (np.asarray(row, "float64") for row in rows)
            # The rows are divided by the root of the examples of their part.
            new = [a.T @ a, a.sum(0), len(part) * d.T @ d]
            path = _keras.kernel_variable(layer).path
            old = sums.get(path)
            sums[path] = (
                new if old is None else [o + n for o, n in zip(old, new, strict=True)]
            )
    biased = {
        _keras.kernel_variable(la).path for la in finder.layers if la.bias is not None
    }
    found = {}
    for path, total in sums.items():
        inputs, mean, gradients = (part / len(x) for part in total)
        if path in biased:
            inputs = inputs - np.outer(mean, mean)
        found[path] = Factors(inputs, gradients)
    return found
