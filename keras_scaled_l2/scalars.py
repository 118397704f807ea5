"""The curves of a training: which numbers stand under which tags."""

from __future__ import annotations

import math
from collections.abc import Mapping

from keras_scaled_l2.gradient_norms import GradientNorms


def cost_scalars(data: float, penalty: float, start: float) -> dict[str, float]:
    """The curves of a cost.

    Args:
        data: Data loss.
        penalty: Penalty.
        start: Penalty before the first step.
    """
    total = data + penalty
    return {
        "cost/total": total,
        "cost/data": data,
        "cost/penalty": penalty,
        "cost/penalty_share": penalty / total if total else 0.0,
        "cost/penalty_above_start": penalty - start,
    }


def gradient_scalars(
    norms: Mapping[str, GradientNorms], max_weights: int | None
) -> dict[str, float]:
    """The curves of a measured step: of all weights together, and of the largest."""
    if not norms:
        return {}
    total = GradientNorms(
        *(math.hypot(*column) for column in zip(*norms.values(), strict=True))
    )
    values = {
        "global/weight_norm": total.weight,
        "global/gradient_norm/data": total.data,
        "global/gradient_norm/penalty": total.penalty,
    }
    if 0 < total.data < math.inf:
        values["global/gradient_norm/ratio"] = total.penalty / total.data
    by_penalty = sorted(
        (path for path in norms if norms[path].coefficient > 0),
        key=lambda path: -norms[path].penalty * norms[path].weight,
    )
    for path in (by_penalty or list(norms))[:max_weights]:
        values |= _weight_scalars(path, norms[path])
    return values


def _weight_scalars(path: str, norms: GradientNorms) -> dict[str, float]:
    values = {
        f"penalty/{path}": norms.coefficient * norms.weight**2,
        f"weight_norm/{path}": norms.weight,
        f"gradient_norm/data/{path}": norms.data,
        f"gradient_norm/penalty/{path}": norms.penalty,
        f"coefficient/{path}": norms.coefficient,
    }
    if 0 < norms.data < math.inf:  # a loss scale may overflow: 0 would be wrong
        values[f"gradient_norm/ratio/{path}"] = norms.penalty / norms.data
    return values


def evidence_logs(found: Mapping[str, tuple[float, float, int]]) -> dict[str, float]:
    """The curves of strengths that are learned.

    Args:
        found: Path -> coefficient, gamma, number of weights.
    """
    logs: dict[str, float] = {}
    for path, (coefficient, gamma, weights) in found.items():
        logs |= {
            f"c/{path}": coefficient,
            f"gamma/{path}": gamma,
            f"gamma_share/{path}": gamma / weights,
        }
    return logs


def evidence_of_logs(logs: Mapping[str, float]) -> dict[str, float]:
    """Those of the ``logs`` that ``evidence_logs`` has put there, but for nans."""
    names = ("c/", "gamma/", "gamma_share/")
    return {
        name: float(value)
        for name, value in logs.items()
        if name.startswith(names) and not math.isnan(value)
    }


LAYOUT = {
    "Cost": {
        "data and penalty": ["cost/data$", "cost/penalty$"],
        "penalty above its start": ["cost/penalty_above_start$"],
    },
    "Gradients": {
        "penalty gradient over data gradient, by weight": ["gradient_norm/ratio/.*"],
        "data gradient and penalty gradient, all weights": [
            "global/gradient_norm/data$",
            "global/gradient_norm/penalty$",
        ],
    },
}

EVIDENCE_LAYOUT = {
    "Evidence": {
        "coefficient, by layer": ["^c/.*"],
        "determined parameters, by layer": ["^gamma/.*"],
        "determined parameters over weights, by layer": ["^gamma_share/.*"],
    },
}
"""Beside the others, where strengths are learned."""
