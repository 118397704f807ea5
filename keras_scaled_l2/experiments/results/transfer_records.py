"""What is left of a transfer: frozen, serializable, format 1 of transfer.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from keras_scaled_l2.experiments.results.record import FileRecord, Record
from keras_scaled_l2.experiments.results.scaling import Interval


@dataclasses.dataclass(frozen=True)
class TransferJob(Record):
    """One training.

    Args:
        seed: Seed of split, initial weights and batch order.
        data_loss: On the validation data, at the epoch where it was lowest.
        accuracy: The same; ``None`` for a regression.
        best_epoch: That epoch, from 1.
        steps: Steps that were trained.
    """

    seed: int
    data_loss: float
    accuracy: float | None
    best_epoch: int
    steps: int


@dataclasses.dataclass(frozen=True)
class TransferPoint(Record):
    """A strength at a learning rate.

    Args:
        rule: The rule.
        strength: As the rule counts it; where it is a time, the coefficient or decay
            that it comes to. 0 is no penalty.
        coefficient: Smallest and largest ``c`` on the weights.
        weight_decay: Decoupled decay.
        learning_rate: The learning rate.
        jobs: The trainings.
    """

    rule: str
    strength: float
    coefficient: tuple[float, float]
    weight_decay: float
    learning_rate: float
    jobs: tuple[TransferJob, ...]


@dataclasses.dataclass(frozen=True)
class TransferSize(Record):
    """A network of the family.

    Args:
        width: Its width.
        weights: Number of its trainable weights.
        architecture: The network in one line.
        best: Criterion -> the best coefficient with its interval.
        gain: Criterion -> what the best coefficient gains over no penalty.
        points: What was trained.
    """

    width: int
    weights: int
    architecture: str
    best: Mapping[str, Interval]
    gain: Mapping[str, float]
    points: tuple[TransferPoint, ...]


@dataclasses.dataclass(frozen=True)
class Regret(Record):
    """What a rule loses at one size against the best of the sweep there.

    Args:
        weights: Number of trainable weights.
        strength: Coefficient or decay there; ``None`` where it differs by tensor.
        value: The regret: of the data loss as a share of the best, of the accuracy as
            a difference.
        low: Lower end of its 95 % interval.
        high: Upper end.
        beyond: Whether the strength lies above the whole sweep: the regret is more.
    """

    weights: int
    strength: float | None
    value: float
    low: float | None
    high: float | None
    beyond: bool = False


@dataclasses.dataclass(frozen=True)
class RuleTransfer(Record):
    """A rule's strength, tuned at the smallest size and taken along.

    Args:
        rule: The rule.
        criterion: ``"data_loss"`` or ``"accuracy"``, by which it was tuned.
        strength: That of the smallest size, as the rule counts it.
        regrets: By size, the smallest first.
    """

    rule: str
    criterion: str
    strength: float
    regrets: tuple[Regret, ...]


@dataclasses.dataclass(frozen=True)
class TransferRecord(FileRecord):
    """What a transfer found; the fields are those of transfer.json.

    Args:
        problem: Name of the problem.
        model: The family.
        optimizer: Class and config, but for the learning rate, which is tuned.
        samples: Number of examples by set.
        epochs: Epochs of a training, at most.
        batch_size: Examples of a step.
        seeds: The seeds.
        steps: Steps that were trained in all.
        sizes: From the smallest network to the largest.
        rules: The rules by criterion.
        exponents: Criterion -> the a of best c ~ N**a.
        findings: In words.
    """

    kind = "transfer"

    problem: str
    model: str
    optimizer: Mapping[str, Any]
    samples: Mapping[str, int]
    epochs: int
    batch_size: int
    seeds: tuple[int, ...]
    steps: int
    sizes: tuple[TransferSize, ...]
    rules: tuple[RuleTransfer, ...]
    exponents: Mapping[str, Interval]
    findings: tuple[str, ...] = ()

    def __getitem__(self, key: tuple[str, str]) -> RuleTransfer:
        """The transfer of a rule by a criterion."""
        for found in self.rules:
            if (found.rule, found.criterion) == key:
                return found
        raise KeyError(key)
