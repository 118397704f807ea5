"""What a cost report says, as values; those who find and render them know these."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class WeightReport:
    """One penalized weight tensor; ``None`` where a number cannot be known."""

    path: str
    rule: str
    """The rule as the user wrote it; of other regularizers the class."""
    dtype: str
    count: int
    """Number of elements."""
    sum_of_squares: float
    coefficient: float | None
    """The effective ``c`` of ``c * sum(w**2)``; with data, as the loss weighs it."""
    penalty: float
    share: float
    """Of the penalties of all weights together."""
    decay_per_step: float | None
    """Part of itself that the weight loses in an update that nothing else drives."""
    half_life: float | None
    """Updates until it has halved so."""
    gradient_ratio: float | None
    """Norm of the penalty's gradient over norm of the data gradient."""
    gamma: float | None = None
    """Elements that the data determine, by the evidence; if it was asked for."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One finding: a name from a closed set, and the sentence for a person.

    Names: ``nothing_penalized``, ``not_in_loss``, ``weighed``, ``dominant_value``,
    ``dominant_gradient``, ``no_op``, ``inert``, ``double_decay``,
    ``before_batch_norm``.
    """

    name: str
    text: str


@dataclasses.dataclass(frozen=True)
class CostRecord:
    """What a report says, as plain values."""

    model: str
    parameters: int
    penalized: int
    """Number of elements under a penalty."""
    weights: tuple[WeightReport, ...]
    cost: dict[str, float]
    """``penalty``, and with data ``total``, ``data`` and ``penalty_share``."""
    gradient_ratio: float | None
    """Of all penalized weights together."""
    optimizer: dict[str, float | str | None]
    findings: tuple[Finding, ...]
    equivalents: dict[str, float]
    """The same penalty in other conventions; empty if the coefficients differ."""
    samples: int | None
    """The number of training examples that was given."""
    batch_size: int | None
    """The number of examples of an update that was given."""
