"""The formulas again: naive, in float64 NumPy, importing nothing of the package."""

import numpy as np


def scaled_l2(config, shape):
    """strength / n**power, where n is counted one by one."""
    n = config["per"]
    if n == "tensor":
        n = count(shape)
    elif n in ("layer", "model"):
        n = config["inferred_per"]
    return np.float64(config["strength"]) / np.float64(n) ** np.float64(config["power"])


def sample_l2(config, shape):
    """Lambda / (2 m)."""
    return np.float64(config["strength"]) / (2 * given_or_inferred(config, "samples"))


def prior_l2(config, shape):
    """fan_in / (2 std**2 m)."""
    fan_in = config["fan_in"]
    if fan_in is None:
        # All but the units, of which a vector has none apart from its inputs.
        fan_in = count(shape[:-1] if len(shape) > 1 else shape)
    variance = np.float64(config["std"]) ** 2
    return fan_in / (2 * variance * given_or_inferred(config, "samples"))


def half_life_l2(config, shape):
    """ln 2 b (1 - mu) / (2 lr epochs m)."""
    m, b, lr, mu = (
        given_or_inferred(config, name)
        for name in ("samples", "batch_size", "learning_rate", "momentum")
    )
    return np.log(2) * b * (1 - mu) / (2 * lr * np.float64(config["epochs"]) * m)


def evidence_l2(config, shape):
    """Alpha / (2 m), alpha as it was found or as it was given to start from."""
    alpha = config.get("inferred_strength")
    alpha = np.float64(config["initial"] if alpha is None else alpha)
    return alpha / (2 * given_or_inferred(config, "samples"))


def given_or_inferred(config, name):
    """What the user gave goes before what was counted."""
    given = config[name]
    return np.float64(config[f"inferred_{name}"] if given is None else given)


COEFFICIENTS = {
    "ScaledL2": scaled_l2,
    "SampleL2": sample_l2,
    "PriorL2": prior_l2,
    "HalfLifeL2": half_life_l2,
    "EvidenceL2": evidence_l2,
}
"""Name of a rule -> its coefficient from (its config, the weight's shape)."""


def count(shape):
    """Number of elements of an array of this shape, by counting them."""
    return sum(1 for _ in np.ndindex(*shape))


def penalty(c, w):
    """C * sum(w**2)."""
    w = np.asarray(w, dtype=np.float64)
    return np.float64(c) * np.sum(w**2)


def penalty_gradient(c, w):
    """The derivative of the penalty: 2 c w."""
    return 2 * np.float64(c) * np.asarray(w, dtype=np.float64)


def mean_squared_error(x, y, w, b):
    """Cost of a linear unit, and its gradients by w and b."""
    residual = x @ w + b - y
    cost = np.mean(residual**2)
    return cost, 2 * x.T @ residual / residual.size, 2 * residual.sum(0) / residual.size


def train_linear(x, y, w, b, *, c, learning_rate, batch_size, epochs):
    """Plain SGD on mean squared error + c sum(w**2), batches in the given order.

    Returns the final (w, b) and per epoch the means over its examples of data cost
    and penalty, both taken at the weights before each step.
    """
    x, y, w, b = (np.array(a, dtype=np.float64) for a in (x, y, w, b))
    history = []
    for _ in range(epochs):
        data = penalties = 0.0
        for start in range(0, len(x), batch_size):
            rows = slice(start, start + batch_size)
            cost, by_w, by_b = mean_squared_error(x[rows], y[rows], w, b)
            data += cost * len(x[rows])
            penalties += penalty(c, w) * len(x[rows])
            w = w * (1 - 2 * learning_rate * c) - learning_rate * by_w
            b = b - learning_rate * by_b
        history.append((data / len(x), penalties / len(x)))
    return w, b, history
