"""One penalty, many names: strengths converted between conventions.

Every convention is one row of a table: ``c = scale * value ** power``, where ``c`` is
the coefficient in ``c * sum(w**2)``, as in ``keras.regularizers.L2(c)``, and ``scale``
follows from counts such as the number of training examples. A conversion goes from
the source to ``c`` and from ``c`` to the target.
"""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType

from keras_scaled_l2.validation import (
    fraction,
    non_negative,
    positive,
    positive_count,
)

__all__ = ["CONVENTIONS", "COUNTS", "convert"]

# Fractions, because they neither overflow nor underflow on the way: only the value
# that comes in and the one that goes out have to fit into a float.
_Counts = Mapping[str, Fraction]

COUNTS: Mapping[str, str] = MappingProxyType(
    {
        "samples": "the number of training examples, m",
        "batch_size": "the examples in one update of the weights, b",
        "learning_rate": "the learning rate, lr; of a schedule its mean",
        "momentum": "the momentum of SGD, mu (default 0: plain SGD)",
        "fan_in": "the inputs that one unit sums (default 1: std of a single weight)",
    }
)
"""What a conversion may have to know: keyword of `convert` -> meaning."""

_DEFAULTS = {"momentum": Fraction(0), "fan_in": Fraction(1)}


@dataclass(frozen=True)
class _Convention:
    """One way to write a strength: ``c = scale(counts) * value ** power``."""

    description: str
    scale: Callable[[_Counts], Fraction]
    power: int = 1
    needs: tuple[str, ...] = ()

    @property
    def reciprocal(self) -> bool:
        """Whether a larger value means a weaker penalty, and infinity none."""
        return self.power < 0

    def to_keras(self, value: Fraction, counts: _Counts) -> Fraction:
        return self.scale(counts) * value**self.power

    def from_keras(self, c: Fraction, counts: _Counts) -> Fraction:
        powered = c / self.scale(counts)
        if self.reciprocal:
            powered = 1 / powered
        return powered if abs(self.power) == 1 else _square_root(powered)


_LN2 = Fraction(math.log(2.0))

_TABLE = {
    "keras": _Convention(
        "c of keras.regularizers.L2(c): loss + c * sum(w**2)",
        lambda n: Fraction(1),
    ),
    "textbook": _Convention(
        "lambda of loss + lambda / (2 m) * sum(w**2): lambda = 2 m c",
        lambda n: 1 / (2 * n["samples"]),
        needs=("samples",),
    ),
    "torch": _Convention(
        "weight_decay of torch.optim.SGD and Adam, added to the gradient: 2 c",
        lambda n: Fraction(1, 2),
    ),
    "decoupled": _Convention(
        "weight_decay of AdamW and of Keras's optimizers: 2 c / (1 - mu), "
        "the same time scale under SGD with momentum mu",
        lambda n: (1 - n["momentum"]) / 2,
        needs=("momentum",),
    ),
    "sklearn_mlp": _Convention(
        "alpha of scikit-learn's MLPClassifier: alpha = 2 b c "
        "(b: mini-batch for sgd and adam, all examples for lbfgs)",
        lambda n: 1 / (2 * n["batch_size"]),
        needs=("batch_size",),
    ),
    "logistic_c": _Convention(
        "C of scikit-learn's LogisticRegression: C = 1 / (2 m c)",
        lambda n: 1 / (2 * n["samples"]),
        power=-1,
        needs=("samples",),
    ),
    "ridge": _Convention(
        "alpha of scikit-learn's Ridge, the loss being mean squared error: alpha = m c",
        lambda n: 1 / n["samples"],
        needs=("samples",),
    ),
    "prior_std": _Convention(
        "std of a Gaussian prior on the weights, std / sqrt(fan_in) for each: "
        "std = sqrt(fan_in / (2 m c))",
        lambda n: n["fan_in"] / (2 * n["samples"]),
        power=-2,
        needs=("samples", "fan_in"),
    ),
    "half_life": _Convention(
        "epochs E in which a weight without data gradient halves under SGD with "
        "momentum mu: E = ln(2) b (1 - mu) / (2 lr m c)",
        lambda n: (
            (_LN2 * n["batch_size"] * (1 - n["momentum"]))
            / (2 * n["learning_rate"] * n["samples"])
        ),
        power=-1,
        needs=("samples", "batch_size", "learning_rate", "momentum"),
    ),
}

CONVENTIONS: Mapping[str, str] = MappingProxyType(
    {name: convention.description for name, convention in _TABLE.items()}
)
"""The conventions that `convert` knows: name -> one line with the formula."""


def convert(
    value: float,
    source: str,
    target: str,
    *,
    samples: int | None = None,
    batch_size: float | None = None,
    learning_rate: float | None = None,
    momentum: float | None = None,
    fan_in: float | None = None,
) -> float:
    """Says what a penalty strength of one convention is called in another.

    With c as in ``keras.regularizers.L2(c)``, which adds ``c * sum(w**2)`` to a loss
    that is a **mean** over the examples, m training examples, b examples per step,
    learning rate lr and momentum mu:

    - ``"keras"``: c itself.
    - ``"textbook"``: lambda = 2 m c, in loss + lambda / (2 m) * sum(w**2). Needs
      `samples`.
    - ``"torch"``: weight_decay = 2 c of ``torch.optim.SGD`` and ``Adam``, which add
      weight_decay * w to the gradient (coupled). Exact.
    - ``"decoupled"``: weight_decay = 2 c / (1 - mu) of ``AdamW`` in Keras and PyTorch
      and of the argument `weight_decay` of Keras's optimizers, which shrink w by
      lr * weight_decay in each step, past the momentum (but ``Ftrl`` and
      ``ScheduleFreeAdamW``, which make w anew). Exact for plain SGD. With
      momentum the two decay on the same time scale, to first order in
      lr * weight_decay / (1 - mu): the decay must take many times 1 / (1 - mu) steps
      (a half-life of 400 steps at mu = 0.9 is 403 when measured, one of 100 steps at
      mu = 0.99 is 163). mu is the momentum of the SGD that c is used with.
      An adaptive optimizer with c in its loss has no equal here (Loshchilov & Hutter
      2019, Proposition 2).
    - ``"sklearn_mlp"``: alpha = 2 b c of ``MLPClassifier``, which divides its penalty
      by the examples in the **batch**: for ``sgd`` and ``adam`` b is its mini-batch
      (default min(200, m)), and a smaller last batch is penalized more; for ``lbfgs``
      the batch is the training set, so `batch_size` is m. Needs `batch_size`.
      ``MLPRegressor`` halves the squared error: against Keras's mean squared error
      its c is twice what this gives, and its alpha half.
    - ``"logistic_c"``: C = 1 / (2 m c) of ``LogisticRegression``. Needs `samples`.
    - ``"ridge"``: alpha = m c of ``Ridge``, the loss being mean squared error. Needs
      `samples`. Keras also averages over outputs: for k outputs give m k.
    - ``"prior_std"``: std = sqrt(fan_in / (2 m c)), the weights having independent
      priors N(0, std**2 / fan_in), the loss being the mean negative log-likelihood
      (cross-entropy; mean squared error is that of noise with variance 1/2) and the
      optimum the posterior mode (Bishop 2006, section 3.3; with `fan_in` as in Neal
      1996, chapter 2, and ``PriorL2``). Without `fan_in` it is 1, and std that of a
      single weight. Needs `samples`.
    - ``"half_life"``: E = ln(2) b (1 - mu) / (2 lr m c), the epochs in which a weight
      without data gradient halves under SGD, to first order as above. An epoch is
      m / b steps. Needs `samples`, `batch_size` and `learning_rate`. Between this and
      ``"decoupled"`` the momentum cancels, so there it holds for AdamW as well.

    No penalty is 0, and infinity in ``"logistic_c"``, ``"prior_std"`` and
    ``"half_life"``. The arithmetic is exact up to the rounding of the result.

    Args:
        value: The strength in the source convention, 0 or above. In the three
            reciprocal conventions above 0, up to infinity.
        source: The convention of `value`, a key of `CONVENTIONS`.
        target: The convention wanted, a key of `CONVENTIONS`.
        samples: Training examples, m, at least 1.
        batch_size: Examples in one update of the weights, b, above 0: with gradient
            accumulation those of all its steps, otherwise never more than `samples`.
        learning_rate: Learning rate, above 0; of a schedule the mean over the steps.
        momentum: Momentum of SGD, from 0 to below 1. None is 0, plain SGD.
        fan_in: Inputs that one unit sums, above 0. None is 1.

    Returns:
        The same strength in the target convention; with `source` equal to `target`
        the value as it came, for which no counts are needed. Counts that a conversion
        does not need are checked, and change nothing.

    Raises:
        ValueError: An unknown convention, an argument that is no number or out of its
            range, a count that is missing (the message names it and who needs it), or
            a result too large or too small for a float.

    Examples:
        >>> convert(1.0, "textbook", "torch", samples=5000)
        0.0002
        >>> convert(1e-3, "keras", "logistic_c", samples=1000)
        0.5
        >>> epochs = convert(5e-4, "torch", "half_life", samples=50_000,
        ...                  batch_size=128, learning_rate=0.1, momentum=0.9)
        >>> round(epochs, 2)
        3.55
        >>> convert(0.0, "keras", "prior_std", samples=1000)
        inf
    """
    start, end = _convention("source", source), _convention("target", target)
    strength = _strength(value, start)
    given = _given(samples, batch_size, learning_rate, momentum, fan_in)
    if source == target:
        return strength
    counts = _needed(given, source, target)
    if strength == 0 or math.isinf(strength):
        return math.inf if end.reciprocal else 0.0
    c = start.to_keras(Fraction(strength), counts)
    result = end.from_keras(c, counts)
    return _as_float(result, f"{value!r} of {source!r} is a {target!r}")


def _convention(argument: str, name: str) -> _Convention:
    """The row of the table with this name."""
    if isinstance(name, str) and name in _TABLE:
        return _TABLE[name]
    close = difflib.get_close_matches(str(name).lower(), _TABLE, n=1)
    raise ValueError(
        f"{argument}={name!r} is no convention: expected one of "
        f"{', '.join(map(repr, _TABLE))}."
        + (f" Did you mean {close[0]!r}?" if close else "")
    )


def _strength(value: object, convention: _Convention) -> float:
    """The value as a float, checked against what its convention can express."""
    if not convention.reciprocal:
        return _checked(non_negative, "value", value, "For no penalty pass 0.")
    if isinstance(value, numbers.Real) and value == math.inf:
        return math.inf
    remedy = "0 would be an infinite penalty; for none at all pass float('inf')."
    return float(_checked(positive, "value", value, remedy))


def _given(
    samples: object,
    batch_size: object,
    learning_rate: object,
    momentum: object,
    fan_in: object,
) -> _Counts:
    """The counts that are there, checked; defaults where there are any."""
    counts = dict(_DEFAULTS)
    for name, value, check in (
        ("samples", samples, positive_count),
        ("batch_size", batch_size, positive),
        ("learning_rate", learning_rate, positive),
        ("momentum", momentum, fraction),
        ("fan_in", fan_in, positive),
    ):
        if value is not None:
            remedy = f"Pass {COUNTS[name]}."
            counts[name] = Fraction(_checked(check, name, value, remedy))
    return counts


def _checked(
    check: Callable[[str, object], float], name: str, value: object, remedy: str
) -> float:
    """What the check returns; its error with the remedy added."""
    try:
        return check(name, value)
    except ValueError as error:
        raise ValueError(f"{error} {remedy}") from None


def _needed(given: _Counts, source: str, target: str) -> _Counts:
    """The counts, once all that both conventions need are there."""
    missing: dict[str, list[str]] = {}
    for convention in (source, target):
        for name in _TABLE[convention].needs:
            if name not in given:
                missing.setdefault(name, []).append(repr(convention))
    if missing:
        wants = "; ".join(
            f"{name}, {COUNTS[name]} (for {' and '.join(conventions)})"
            for name, conventions in missing.items()
        )
        raise ValueError(
            f"Converting {source!r} to {target!r} takes counts that were not given: "
            f"{wants}. Pass {', '.join(f'{name}=...' for name in missing)}."
        )
    return given


def _square_root(number: Fraction) -> Fraction:
    """The square root of a positive fraction, to 64 binary digits or more."""
    top, bottom = number.numerator, number.denominator
    shift = max(0, 65 + (bottom.bit_length() - top.bit_length()) // 2)
    return Fraction(math.isqrt((top << 2 * shift) // bottom), 1 << shift)


def _as_float(number: Fraction, result_is: str) -> float:
    """A positive fraction as a float; an error where that is 0 or infinite."""
    try:
        result = float(number)
    except OverflowError:
        result = math.inf
    if 0 < result < math.inf:
        return result
    raise ValueError(
        f"{result_is} that is too {'large' if result else 'small'} for a float: "
        "expected one between 5e-324 and 1.8e308. Check the sizes of the value and of "
        "the counts."
    )
