"""MacKay's evidence: how many parameters the data determine, and what c follows.

With ``J = mean data loss + sum_l c_l ||w_l||^2``, the Gauss-Newton Hessian ``H`` of the
mean data loss and ``C`` the diagonal of the ``c_l``, the number of well determined
parameters of a weight is ``gamma_l = tr_l H (H + 2 C)^-1``, a block of the joint
inverse.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_scaled_l2 import _keras
from keras_scaled_l2.attaching import check_built
from keras_scaled_l2.counts import penalized_weights
from keras_scaled_l2.curvature import loss_of, output_width, rows_per_example
from keras_scaled_l2.gradients import to_numpy
from keras_scaled_l2.grams import (
    RANK,
    RowFinder,
    gamma_by_grams,
    gamma_of_all,
    span,
    written_rows,
)
from keras_scaled_l2.kronecker import gamma_by_kronecker
from keras_scaled_l2.parts import weighs_penalties
from keras_scaled_l2.rule import effective_coefficient
from keras_scaled_l2.validation import positive_count

MOST_ROWS = 5000
ROWS = 1000
"""Rows that are counted on where nobody says how many."""
_TINY = 1e-12


class Strength(NamedTuple):
    """What the evidence says of one weight tensor."""

    coefficient: float
    """The next ``c``, as in ``keras.regularizers.L2(c)``."""
    gamma: float
    """The number of its parameters that the data determine, under the present c."""


def evidence_strengths(
    model: keras.Model, x: Any, y: Any, samples: int | None = None
) -> dict[str, Strength]:
    """One fixed-point update of the coefficients of a trained model.

    Formula, for cross-entropy: ``c = gamma / (2 m sum(w**2))``. For a mean squared
    error of ``k`` outputs ``c = gamma s^2 / (m k sum(w**2))`` with
    ``s^2 = sum(r**2) / (m k - sum of gammas)``. Trainable weights without a penalty
    (biases) have a flat prior: what they explain is nobody's gamma. The model is left
    as it is; train it with the new coefficients and repeat until they stay.

    Args:
        model: A compiled model of one output, trained under the penalties it carries.
        x: One array of inputs, of training examples or of a subset of them. There is a
            backward pass for each example and output.
        y: Their targets.
        samples: Number of training examples ``m``; default ``len(x)``.

    Returns:
        Path of each penalized weight -> its next coefficient and its gamma.

    Raises:
        ValueError: If the loss is none of mean squared error, binary, categorical or
            sparse categorical cross-entropy; if a penalty is not ``c * sum(w**2)``
            with ``c`` above 0; if the model normalizes by batches (the evidence of a
            scale-invariant weight has no meaning); if there are more than 5000
            examples x outputs and a penalty on anything but the kernels of ``Dense``,
            for which gamma is an estimate then (see ``gamma_by_kronecker``); if the
            residuals leave no noise.

    Source: MacKay, Bayesian Interpolation (1992), eq. 4.9; A Practical Bayesian
    Framework for Backpropagation Networks (1992).
    """
    check_built(model)
    refuse_own_loss(model)
    m = len(x) if samples is None else positive_count("samples", samples)
    gammas = determined_parameters(model, x, m)
    squares = {
        w.variable.path: sum_of_squares_of(w.variable) for w in penalized_weights(model)
    }
    half = half_noise(model, x, y, sum(gammas.values()), m)
    return {
        path: Strength(gamma * half / (m * max(squares[path], _TINY)), gamma)
        for path, gamma in gammas.items()
    }


def determined_parameters(
    model: keras.Model,
    x: Any,
    samples: int | None = None,
    coefficients: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Gamma of each penalized weight: how many of its parameters the data determine.

    Args:
        model: A compiled model of one output, with penalties.
        x: Training examples. Beyond 5000 rows gamma is an estimate, for networks whose
            penalized weights are kernels of ``Dense`` alone: ``gamma_by_kronecker``.
        samples: Number of training examples, default ``len(x)``; of more it is an
            estimate, see ``gamma_of_all``.
        coefficients: Path of each penalized weight -> the ``c`` to count under,
            default the present ones.

    Raises:
        ValueError: As ``evidence_strengths``.
    """
    check_built(model)
    refuse_batch_normalization(model)
    if coefficients is None:
        coefficients = present_coefficients(model)
    if len(x) * rows_per_example(model) > MOST_ROWS:
        return gamma_by_kronecker(model, x, coefficients, samples or len(x))
    finder = RowFinder(model, x, coefficients)
    if finder.unknown:
        raise ValueError(
            f"The rows of {finder.unknown} for {len(x)} examples are too long to be "
            "written out. Pass fewer examples and samples=<number of all of them>."
        )
    rows = finder(x)
    return gamma_of_all(rows, coefficients, len(x), samples or len(x))


def output_rows(model: keras.Model, x: Any) -> dict[str, Any]:
    """Jacobian rows ``R`` with ``H = R^T R``, float64, for each trainable weight.

    A row is the gradient of one output of one example, multiplied by the root of the
    loss's curvature at that output and by ``m^-1/2``. All are written out: for small
    models, and as a check.

    Returns:
        Path -> array of (examples x outputs, elements of the weight).

    Raises:
        ValueError: Beyond 5000 examples x outputs.
    """
    each = rows_per_example(model)
    if len(x) * each > MOST_ROWS:
        raise ValueError(
            f"len(x)={len(x)} examples with {each} free outputs each: expected at "
            f"most {MOST_ROWS} examples x outputs. Pass a subset of the examples."
        )
    axes = np.eye(output_width(model), dtype="float32")
    return written_rows(model)(x, [axes] * len(x), model.trainable_variables)


def most_examples(model: keras.Model) -> int:
    """How many examples give ``ROWS`` rows."""
    return max(1, ROWS // rows_per_example(model))


def gamma_by_dual(
    rows: Mapping[str, Any], coefficients: Mapping[str, float]
) -> dict[str, float]:
    """Gamma of each weight by the Gram matrices of its rows; see ``gamma_by_grams``.

    Args:
        rows: Path -> ``R_l`` as from ``output_rows``. Those without a coefficient are
            projected out.
        coefficients: Path -> ``c_l``, above 0.
    """
    free = [r for path, r in rows.items() if path not in coefficients]
    grams = {path: rows[path] @ rows[path].T for path in coefficients}
    return gamma_by_grams(grams, free, coefficients)


def gamma_dense(
    rows: Mapping[str, Any], coefficients: Mapping[str, float]
) -> dict[str, float]:
    """Gamma of each weight by the Hessian itself: for small models, and as a check.

    Formula: ``tr_l H (H + 2 C)^-1`` with the pseudo-inverse, where weights without a
    coefficient have 0 in ``C``.
    """
    jacobian = np.concatenate(list(rows.values()), axis=1)
    sizes = [r.shape[1] for r in rows.values()]
    prior = np.repeat([2.0 * coefficients.get(p, 0.0) for p in rows], sizes)
    hessian = jacobian.T @ jacobian
    determined = np.diag(hessian @ _inverse(hessian + np.diag(prior)))
    parts = np.split(determined, np.cumsum(sizes)[:-1])
    named = zip(rows, parts, strict=True)
    return {path: float(part.sum()) for path, part in named if path in coefficients}


def gamma_by_hutchinson(
    rows: Mapping[str, Any],
    coefficients: Mapping[str, float],
    probes: int = 100,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Gamma of each weight by random signs, without any matrix: a check.

    Formula: ``gamma_l = E z^T H (H + 2 C)^-1 z`` over ``z`` of random signs on the
    weight and 0 elsewhere; the inverse by conjugate gradients.

    Args:
        rows: Path -> ``R_l`` as from ``output_rows``.
        coefficients: Path -> ``c_l``, above 0.
        probes: How many ``z`` for each weight, 2 or more.
        seed: Of the signs.

    Returns:
        Path -> the mean, and its standard error.

    Source: Hutchinson (1990), A stochastic estimator of the trace of the influence
    matrix for Laplacian smoothing splines.
    """
    free = [r for path, r in rows.items() if path not in coefficients]
    basis = span(free, len(next(iter(rows.values()))))
    jacobian = np.concatenate([rows[path] for path in coefficients], axis=1)
    jacobian = jacobian - basis @ (basis.T @ jacobian)
    sizes = [rows[path].shape[1] for path in coefficients]
    prior = np.repeat([2.0 * c for c in coefficients.values()], sizes)
    random, found, first = np.random.default_rng(seed), {}, 0
    for path, size in zip(coefficients, sizes, strict=True):
        z = np.zeros((len(prior), probes))
        z[first : first + size] = random.choice([-1.0, 1.0], (size, probes))
        first += size
        solved = _conjugate_gradients(jacobian, prior, z)
        each = np.sum((jacobian @ z) * (jacobian @ solved), axis=0)
        found[path] = (float(each.mean()), float(each.std(ddof=1) / probes**0.5))
    return found


def _conjugate_gradients(jacobian: Any, prior: Any, b: Any) -> Any:
    """Solutions of ``(J^T J + diag(prior)) x = b`` for each column of ``b``."""
    x, r = np.zeros_like(b), b.copy()
    p, squares = r.copy(), np.sum(r * r, axis=0)
    start = squares.copy()
    for _ in range(len(b)):
        image = jacobian.T @ (jacobian @ p) + prior[:, None] * p
        step = squares / np.maximum(np.sum(p * image, axis=0), _TINY)
        x, r = x + step * p, r - step * image
        before, squares = squares, np.sum(r * r, axis=0)
        if np.all(squares <= 1e-16 * start):
            break
        p = r + squares / np.maximum(before, _TINY**2) * p
    return x


def _inverse(matrix: Any) -> Any:
    return np.linalg.pinv(matrix, rcond=RANK**2, hermitian=True)


def present_coefficients(model: keras.Model) -> dict[str, float]:
    """Path of each penalized weight -> its ``c``; refuses what is none, or 0.

    And two weights of one path, which would be taken for one.
    """
    found = {}
    for weight in penalized_weights(model):
        c = effective_coefficient(weight.variable.regularizer, weight.variable.shape)
        found[id(weight.variable)] = None if c is None else float(to_numpy(c))
    return by_path(model, found)


def by_path(
    model: keras.Model, coefficients: Mapping[int, float | None]
) -> dict[str, float]:
    """Coefficients by the ``id`` of their weight, all above 0 -> by its path.

    Refuses as ``present_coefficients``.
    """
    found: dict[str, float] = {}
    for weight in penalized_weights(model):
        variable = weight.variable
        c = coefficients[id(variable)]
        if c is None or c <= 0:
            raise ValueError(
                f"The penalty of {variable.path!r} has the coefficient {c}: expected "
                "c * sum(w**2) with c above 0, such as SampleL2(1.0)."
            )
        if variable.path in found:
            raise ValueError(
                f"Two weights of {model.name!r} are called {variable.path!r}: expected "
                "a name of its own for each, by which the evidence knows them. Name "
                "the layers that made them apart: keras.layers.Dense(..., name=...)."
            )
        found[variable.path] = c
    if not found:
        raise ValueError(
            f"No trainable weight of {model.name!r} carries a penalty: expected one "
            "to update. Put it on with attach(model, SampleL2(1.0, samples=...))."
        )
    return found


def refuse_batch_normalization(model: keras.Model) -> None:
    """Refuse a model whose weights may be scale-invariant, with the remedy."""
    for layer in _keras.layers_within(model):
        if isinstance(layer, keras.layers.BatchNormalization):
            raise ValueError(
                f"The model {model.name!r} normalizes by batches ({layer.name!r}): the "
                "evidence has no meaning for a weight whose scale does not change the "
                "output. Expected a model without BatchNormalization; choose the "
                "strength with validation data."
            )


def refuse_own_loss(model: keras.Model) -> None:
    """Refuse a model whose loss is not the compiled one plus the penalties."""
    if weighs_penalties(model):
        raise ValueError(
            f"The model {model.name!r} has a compute_loss of its own, which may weigh "
            "the penalties or add to the loss: the evidence knows the loss of compile "
            "alone. Expected a model with Keras's compute_loss; choose the strength "
            "with validation data."
        )


def half_noise(model: keras.Model, x: Any, y: Any, gamma: float, m: int) -> float:
    """What the mean of the negative log-likelihood is short of, halved: 1/2, s^2/k.

    Args:
        model: The model.
        x: Examples.
        y: Their targets.
        gamma: Sum of the gammas.
        m: Number of all training examples, of which these are a subset or all.
    """
    kind, width = loss_of(model)[0], output_width(model)
    if kind == "classes":
        return 0.5
    if kind == "binary":
        return 0.5 / width
    outputs = _float64(model(ops.convert_to_tensor(x), training=False))
    residual = outputs - np.asarray(y, "float64").reshape(outputs.shape)
    freedom = m * width - gamma
    if freedom <= 0:
        raise ValueError(
            f"gamma={gamma:.4g} of {m * width} targets: expected fewer determined "
            "parameters than targets. The model interpolates; pass more examples."
        )
    return float(np.mean(residual**2) * m / freedom)


def sum_of_squares_of(variable: keras.Variable) -> float:
    """Sum of the squares of a weight, in float64."""
    return float(np.sum(_float64(variable) ** 2))


def _float64(tensor: Any) -> Any:
    return np.asarray(to_numpy(ops.cast(tensor, "float32")), "float64")
