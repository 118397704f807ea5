"""What an experiment leaves behind: plain data, JSON in and out, atomic writes."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any, Self

from keras_scaled_l2.experiments import tables
from keras_scaled_l2.experiments.errors import InputError
from keras_scaled_l2.experiments.spread import MeanStd, mean_std

FORMAT = 1
"""Format of comparison.json; fields may be added to a format, never renamed."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """A cost and its two parts, ``total == data + penalty`` to float32 rounding."""

    total: float
    data: float
    penalty: float


@dataclasses.dataclass(frozen=True)
class Score:
    """How a trained network does on one set: without penalty, dropout switched off.

    ``accuracy`` is ``None`` for regression.
    """

    data_loss: float
    accuracy: float | None


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """One run: one arm from one seed.

    Args:
        seed: The seed of initial weights, batch order and dropout masks.
        starting_cost: Before the first step, on the whole training set, dropout off.
        train: After the last step, as ``validation`` and ``test``.
        validation: On the validation set.
        test: On the test set.
        seconds: Wall time of the training, compilation left out.
    """

    seed: int
    starting_cost: Cost
    train: Score
    validation: Score
    test: Score
    seconds: float

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The record of a dictionary that ``dataclasses.asdict`` made."""
        scores = {n: _build(Score, data[n]) for n in ("train", "validation", "test")}
        return cls(
            seed=data["seed"],
            starting_cost=_build(Cost, data["starting_cost"]),
            seconds=data["seconds"],
            **scores,
        )


@dataclasses.dataclass(frozen=True)
class ArmRecord:
    """One arm and its runs, one for each seed.

    Args:
        name: Name of the arm.
        rule: Config of its rule, or ``None``.
        dropout: Its dropout rate.
        coefficients: Path of each penalised weight -> effective coefficient ``c``.
        runs: The runs that are finished, by order of seeds.
    """

    name: str
    rule: dict[str, Any] | None
    dropout: float
    coefficients: dict[str, float]
    runs: tuple[RunRecord, ...] = ()

    @property
    def summary(self) -> dict[str, MeanStd]:
        """Mean and standard deviation (n - 1) over the seeds, by test metric."""
        return {f"test_{name}": mean_std(self.test(name)) for name in METRICS}

    def test(self, metric: str) -> list[float]:
        """The test metric of every run; empty where the task does not have it."""
        values = [getattr(run.test, metric) for run in self.runs]
        return [value for value in values if value is not None]

    def to_dict(self) -> dict[str, Any]:
        """The arm as it stands in comparison.json."""
        summary = {k: dataclasses.asdict(v) for k, v in self.summary.items()}
        return {**dataclasses.asdict(self), "summary": summary}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The arm of a dictionary from comparison.json; the summary is made anew."""
        runs = tuple(RunRecord.from_dict(run) for run in data["runs"])
        arm: Self = _build(cls, {**data, "runs": runs})
        return arm


METRICS = ("accuracy", "data_loss")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Arms that were trained on one architecture from the same starting points.

    Args:
        problem: Name of the problem, or path of the user's file.
        architecture: The network in one line.
        weights: Number of its trainable weights, those without a penalty included.
        backend: Keras's backend.
        device: What it ran on.
        versions: Package -> version.
        samples: Examples in ``train``, ``validation`` and ``test``.
        split_seed: Seed of the split into these, ``None`` if they came so.
        epochs: Passes over the training data.
        batch_size: Examples per step.
        optimizer: Class and config of the optimizer.
        arms: The arms, in the order asked for.
    """

    problem: str
    architecture: str
    weights: int
    backend: str
    device: str
    versions: dict[str, str]
    samples: dict[str, int]
    split_seed: int | None
    epochs: int
    batch_size: int
    optimizer: dict[str, Any]
    arms: tuple[ArmRecord, ...]

    def __getitem__(self, name: str) -> ArmRecord:
        """The arm of this name."""
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise KeyError(f"No arm {name!r}: there are {[a.name for a in self.arms]}.")

    def table(self) -> str:
        """The table by arm and what follows from it, as plain text."""
        return tables.text(self)

    def to_markdown(self) -> str:
        """The page comparison.md."""
        return tables.markdown(self)

    def to_dict(self) -> dict[str, Any]:
        """What comparison.json holds."""
        fields = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self)
        }
        return {"format": FORMAT, **fields, "arms": [a.to_dict() for a in self.arms]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The comparison of a dictionary that ``to_dict`` made.

        Raises:
            InputError: If it is of another format.
        """
        if data.get("format") != FORMAT:
            raise InputError(
                f"this comparison has format {data.get('format')!r}: this version of "
                f"keras_scaled_l2 reads format {FORMAT}. Use the version that wrote it."
            )
        arms = tuple(ArmRecord.from_dict(arm) for arm in data["arms"])
        comparison: Self = _build(cls, {"split_seed": None, **data, "arms": arms})
        return comparison


def write_json(path: str | os.PathLike[str], data: Mapping[str, Any]) -> None:
    """Write a JSON file atomically; NaN and infinity, which JSON lacks, as null."""
    write_text(path, json.dumps(_finite(data), indent=2, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON file that holds one object.

    Raises:
        InputError: If it cannot be read or is damaged.
    """
    try:
        data = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {os.fspath(path)!r}: {error}") from error
    if not isinstance(data, dict):
        raise InputError(f"{os.fspath(path)!r} holds no JSON object.")
    return data


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a file so that a reader finds the old content or the new, never a part.

    The text goes to a temporary file beside it, to the disk, and then in its place.
    """
    target = pathlib.Path(path)
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    temporary = pathlib.Path(name)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only their owner reads.
        temporary.chmod(0o644)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _build(cls: Any, data: Mapping[str, Any]) -> Any:
    """A dataclass of the fields that it knows; null where a number was lost is NaN."""
    values = {f.name: data[f.name] for f in dataclasses.fields(cls)}
    for name in ("total", "data", "penalty", "data_loss"):
        if name in values and values[name] is None:
            values[name] = math.nan
    return cls(**values)
