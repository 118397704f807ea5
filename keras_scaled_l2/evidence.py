"""MacKay's evidence: how many parameters the data determine, and what c follows.

With ``J = mean data loss + sum_l c_l ||w_l||^2``, the Gauss-Newton Hessian ``H`` of the
mean data loss and ``C`` the diagonal of the ``c_l``, the number of well determined
parameters of a weight is ``gamma_l = tr_l H (H + 2 C)^-1``, a block of the joint
inverse.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_scaled_l2.attaching import check_built
from keras_scaled_l2.counts import penalized_weights
from keras_scaled_l2.gradients import Tensor, gradient_function, to_numpy
from keras_scaled_l2.rule import effective_coefficient
from keras_scaled_l2.validation import positive_count

_MOST_ROWS = 5000
_TINY = 1e-12
# Rows are float32: what is smaller is rounding, such as a shift of all logits.
_RANK = 1e-5


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
            examples x outputs; if the residuals leave no noise.

    Source: MacKay, Bayesian Interpolation (1992), eq. 4.9; A Practical Bayesian
    Framework for Backpropagation Networks (1992).
    """
    check_built(model)
    _refuse_batch_normalization(model)
    coefficients = _coefficients(model)
    m = len(x) if samples is None else positive_count("samples", samples)
    rows = output_rows(model, x)
    gammas = gamma_by_dual(rows, coefficients)
    squares = {
        w.variable.path: float(np.sum(_float64(w.variable) ** 2))
        for w in penalized_weights(model)
    }
    half = _half_noise(model, x, y, sum(gammas.values()))
    return {
        path: Strength(gamma * half / (m * max(squares[path], _TINY)), gamma)
        for path, gamma in gammas.items()
    }


def output_rows(model: keras.Model, x: Any) -> dict[str, Any]:
    """Jacobian rows ``R`` with ``H = R^T R``, float64, for each trainable weight.

    A row is the gradient of one output of one example, multiplied by the root of the
    loss's curvature at that output and by ``m^-1/2``. For probabilities the root is
    exact in closed form: with the Fisher information ``1 / p`` of ``p = softmax(z)``
    the row is the gradient of ``2 sqrt(p)``, so no matrix of K x K is needed.

    Returns:
        Path -> array of (examples x outputs, elements of the weight).
    """
    outputs = _transformed(model)
    if np.shape(model.output_shape) != (2,):
        raise ValueError(
            f"The model {model.name!r} has outputs of shape {model.output_shape}: "
            "expected one output of shape (None, units)."
        )
    width = int(model.output_shape[-1])
    if len(x) * width > _MOST_ROWS:
        raise ValueError(
            f"len(x)={len(x)} examples of {width} outputs: expected at most "
            f"{_MOST_ROWS} examples x outputs. Pass a subset of the training examples "
            "and samples=<number of all of them>."
        )

    def chosen(inputs: Tensor, direction: Tensor) -> Tensor:
        return ops.sum(outputs(model(inputs, training=False)) * direction)

    gradients = gradient_function(model, chosen)
    variables = model.trainable_variables
    rows: dict[str, list[Any]] = {v.path: [] for v in variables}
    directions = [ops.convert_to_tensor(d) for d in np.eye(width, dtype="float32")]
    for example in range(len(x)):
        inputs = ops.convert_to_tensor(x[example : example + 1])
        for direction in directions:
            found = gradients(inputs, direction)
            for variable, gradient in zip(variables, found, strict=True):
                rows[variable.path].append(_flat(variable, gradient))
    return {path: np.stack(found) / np.sqrt(len(x)) for path, found in rows.items()}


def gamma_by_dual(
    rows: Mapping[str, Any], coefficients: Mapping[str, float]
) -> dict[str, float]:
    """Gamma of each weight by the Gram matrices of its rows, in the rows' space.

    Formula: ``gamma_l = tr (I + G)^-1 G_l`` with ``G_l = R_l R_l^T / (2 c_l)`` and
    ``G`` their sum: the same as the trace in the space of the weights, at a cost that
    hardly depends on how many there are. Rows of weights without a coefficient are
    projected out, the limit of a coefficient that goes to 0.

    Args:
        rows: Path -> ``R_l`` as from ``output_rows``.
        coefficients: Path -> ``c_l``, above 0.
    """
    free = [r for path, r in rows.items() if path not in coefficients]
    basis = _complement(free, len(next(iter(rows.values()))))
    projected = {path: basis.T @ rows[path] for path in coefficients}
    grams = {p: r @ r.T / (2.0 * coefficients[p]) for p, r in projected.items()}
    total = np.eye(basis.shape[1]) + sum(grams.values())
    return {p: float(np.trace(np.linalg.solve(total, g))) for p, g in grams.items()}


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


def _inverse(matrix: Any) -> Any:
    return np.linalg.pinv(matrix, rcond=_RANK**2, hermitian=True)


def _complement(free: list[Any], size: int) -> Any:
    """An orthonormal basis of what the rows of free weights leave."""
    if not free:
        return np.eye(size)
    left, values, _ = np.linalg.svd(np.concatenate(free, axis=1), full_matrices=True)
    rank = int(np.sum(values > _RANK * max(values.max(initial=0.0), _TINY)))
    return left[:, rank:]


def _coefficients(model: keras.Model) -> dict[str, float]:
    found = {}
    for weight in penalized_weights(model):
        variable = weight.variable
        c = effective_coefficient(variable.regularizer, variable.shape)
        c = None if c is None else float(to_numpy(c))
        if c is None or c <= 0:
            raise ValueError(
                f"The penalty of {variable.path!r} has the coefficient {c}: expected "
                "c * sum(w**2) with c above 0, such as SampleL2(1.0)."
            )
        found[variable.path] = c
    if not found:
        raise ValueError(
            f"No trainable weight of {model.name!r} carries a penalty: expected one "
            "to update. Put it on with attach(model, SampleL2(1.0, samples=...))."
        )
    return found


def _refuse_batch_normalization(model: keras.Model) -> None:
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            raise ValueError(
                f"The model {model.name!r} normalizes by batches ({layer.name!r}): the "
                "evidence has no meaning for a weight whose scale does not change the "
                "output. Expected a model without BatchNormalization; choose the "
                "strength with validation data."
            )


def _loss_of(model: keras.Model) -> tuple[str, bool]:
    """Kind of the compiled loss, and whether the outputs are logits."""
    given = getattr(model, "loss", None)
    loss = keras.losses.get(given) if isinstance(given, str) else given
    if isinstance(loss, keras.losses.Loss):
        name, logits = type(loss).__name__, bool(loss.get_config().get("from_logits"))
        smoothed = loss.get_config().get("label_smoothing")
    else:
        name, logits, smoothed = getattr(loss, "__name__", repr(loss)), False, 0.0
    kind = _KINDS.get(name.replace("_", "").lower())
    if kind is None or smoothed:
        raise ValueError(
            f"loss={given!r}: expected mean squared error, or binary, categorical or "
            "sparse categorical cross-entropy without label smoothing, of one output."
        )
    return kind, logits


_KINDS = {
    "meansquarederror": "squares",
    "binarycrossentropy": "binary",
    "categoricalcrossentropy": "classes",
    "sparsecategoricalcrossentropy": "classes",
}


def _transformed(model: keras.Model) -> Callable[[Tensor], Tensor]:
    """Outputs as functions under which the curvature of the loss is the identity."""
    kind, logits = _loss_of(model)
    width = int(model.output_shape[-1])
    if kind == "squares":
        return lambda z: z * (2.0 / width) ** 0.5
    if kind == "classes":
        return lambda z: 2.0 * ops.sqrt((ops.softmax(z) if logits else z) + _TINY)
    scale = 2.0 / width**0.5

    def angle(z: Tensor) -> Tensor:
        p = ops.sigmoid(z) if logits else z
        return scale * ops.arctan2(ops.sqrt(p + _TINY), ops.sqrt(1.0 - p + _TINY))

    return angle


def _half_noise(model: keras.Model, x: Any, y: Any, gamma: float) -> float:
    """What the mean of the negative log-likelihood is short of, halved: 1/2, s^2/k."""
    kind, _ = _loss_of(model)
    width = int(model.output_shape[-1])
    if kind == "classes":
        return 0.5
    if kind == "binary":
        return 0.5 / width
    outputs = _float64(model(ops.convert_to_tensor(x), training=False))
    residual = outputs - np.asarray(y, "float64").reshape(outputs.shape)
    freedom = residual.size - gamma
    if freedom <= 0:
        raise ValueError(
            f"gamma={gamma:.4g} of {residual.size} targets: expected fewer determined "
            "parameters than targets. The model interpolates; pass more examples."
        )
    return float(np.sum(residual**2) / freedom / width)


def _flat(variable: keras.Variable, gradient: Tensor | None) -> Any:
    if gradient is None:
        return np.zeros(int(np.prod(variable.shape)))
    return _float64(gradient).reshape(-1)


def _float64(tensor: Tensor) -> Any:
    return np.asarray(to_numpy(ops.cast(tensor, "float32")), "float64")
