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

    Args:
        data_loss: The loss without penalties.
        accuracy: Share of examples that are right; ``None`` for regression.
        calibration_error: Expected calibration error, on the test set only; ``None``
            elsewhere and for regression.
    """

    data_loss: float
    accuracy: float | None
    calibration_error: float | None = None


@dataclasses.dataclass(frozen=True)
class Setting:
    """What an arm comes to in one run: the knobs that a tuning may turn.

    Args:
        rule: Config of the rule, or ``None``.
        dropout: Dropout rate.
        weight_decay: Decoupled weight decay of the optimizer.
    """

    rule: dict[str, Any] | None = None
    dropout: float = 0.0
    weight_decay: float = 0.0


PLAIN = Setting()
"""No penalty, no dropout, no weight decay."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """One setting tried on the validation data, before the run that counts.

    Args:
        setting: What was tried.
        data_loss: Validation data loss, of the best epoch if training stops early.
        best_epoch: Epoch of the lowest validation data loss, counted from 1.
    """

    setting: Setting
    data_loss: float
    best_epoch: int

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The trial of a dictionary that ``dataclasses.asdict`` made."""
        setting = _build(Setting, data["setting"])
        trial: Self = _build(cls, {**data, "setting": setting})
        return trial


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """One run: one arm from one seed.

    Args:
        seed: The seed of split, initial weights, batch order and dropout masks.
        starting_cost: Before the first step, on the whole training set, dropout off.
        train: With the weights that were kept, as ``validation`` and ``test``.
        validation: On the validation set.
        test: On the test set.
        seconds: Wall time of the training, compilation left out.
        final_cost: As ``starting_cost``, with the weights that were kept.
        setting: What was trained; differs between the seeds where it was tuned.
        coefficients: Path of each penalized weight -> effective coefficient ``c``.
        gradient_ratios: ``"start"`` and ``"end"`` -> path -> norm of the penalty's
            gradient over norm of the data gradient, on one batch of training data,
            dropout off.
        weight_norms: ``"start"`` and ``"end"`` -> norm of all weights that a penalty
            would be put on, taken together.
        best_epoch: Epoch of the lowest validation data loss, counted from 1.
        kept_epoch: Epoch whose weights were kept: the best if training stops early,
            else the last.
        steps: Steps that were trained.
        curves: Name of a quantity (``data_loss``, ``penalty``, ``accuracy``, and these
            with ``val_`` before) -> its value by epoch; those of the training set are
            means over the epoch, dropout on.
        norms: ``weight``, ``data_gradient`` and ``penalty_gradient`` -> path of each
            weight that a penalty may be put on -> norm at the first step of each
            epoch, before clipping.
        trials: What was tried on the validation data first; empty if nothing was
            tuned.
    """

    seed: int
    starting_cost: Cost
    train: Score
    validation: Score
    test: Score
    seconds: float
    final_cost: Cost | None = None
    setting: Setting = PLAIN
    coefficients: dict[str, float] = dataclasses.field(default_factory=dict)
    gradient_ratios: dict[str, dict[str, float]] = dataclasses.field(
        default_factory=dict
    )
    weight_norms: dict[str, float] = dataclasses.field(default_factory=dict)
    best_epoch: int | None = None
    kept_epoch: int | None = None
    steps: int | None = None
    curves: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    norms: dict[str, dict[str, list[float]]] = dataclasses.field(default_factory=dict)
    trials: tuple[Trial, ...] = ()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The record of a dictionary that ``to_dict`` made."""
        parts: dict[str, Any] = {
            n: _build(Score, data[n]) for n in ("train", "validation", "test")
        }
        parts["starting_cost"] = _build(Cost, data["starting_cost"])
        if data.get("final_cost") is not None:
            parts["final_cost"] = _build(Cost, data["final_cost"])
        if "setting" in data:
            parts["setting"] = _build(Setting, data["setting"])
        parts["trials"] = tuple(Trial.from_dict(t) for t in data.get("trials", ()))
        parts["curves"] = {
            name: [_number(value) for value in values]
            for name, values in data.get("curves", {}).items()
        }
        parts["norms"] = {
            kind: {path: [_number(v) for v in values] for path, values in norms.items()}
            for kind, norms in data.get("norms", {}).items()
        }
        parts["gradient_ratios"] = {
            when: {path: _number(value) for path, value in ratios.items()}
            for when, ratios in data.get("gradient_ratios", {}).items()
        }
        parts["weight_norms"] = {
            when: _number(value) for when, value in data.get("weight_norms", {}).items()
        }
        run: Self = _build(cls, {**data, **parts})
        return run

    def to_dict(self) -> dict[str, Any]:
        """The run as it stands in comparison.json."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class ArmRecord:
    """One arm and its runs, one for each seed.

    Args:
        name: Name of the arm.
        rule: Config of its rule as it was given, or ``None``.
        dropout: Its dropout rate as it was given.
        coefficients: Path of each penalized weight -> effective coefficient ``c`` of
            the rule as it was given.
        runs: The runs that are finished, by order of seeds.
        weight_decay: Its decoupled weight decay as it was given.
        grid: The settings that each seed tries on validation data; empty if the arm
            is trained as it was given.
    """

    name: str
    rule: dict[str, Any] | None
    dropout: float
    coefficients: dict[str, float]
    runs: tuple[RunRecord, ...] = ()
    weight_decay: float = 0.0
    grid: tuple[Setting, ...] = ()

    @property
    def summary(self) -> dict[str, MeanStd]:
        """Mean over the seeds, its spread and its 95 % interval, by test metric."""
        return {f"test_{name}": mean_std(self.test(name)) for name in METRICS}

    def test(self, metric: str) -> list[float]:
        """The test metric of every run; empty where the task does not have it.

        NaN for a run that diverged: an accuracy or a calibration error of outputs that
        are not numbers is a number all the same, and says nothing.
        """
        values = [
            (getattr(run.test, metric), math.isfinite(run.test.data_loss))
            for run in self.runs
        ]
        return [v if finite else math.nan for v, finite in values if v is not None]

    def to_dict(self) -> dict[str, Any]:
        """The arm as it stands in comparison.json."""
        summary = {k: dataclasses.asdict(v) for k, v in self.summary.items()}
        return {**dataclasses.asdict(self), "summary": summary}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The arm of a dictionary from comparison.json; the summary is made anew."""
        runs = tuple(RunRecord.from_dict(run) for run in data["runs"])
        grid = tuple(_build(Setting, setting) for setting in data.get("grid", ()))
        arm: Self = _build(cls, {**data, "runs": runs, "grid": grid})
        return arm


METRICS = ("accuracy", "data_loss", "calibration_error")


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
        split: ``"by seed"`` if each seed draws its own split into these, ``"given"``
            if they came split.
        epochs: Passes over the training data.
        batch_size: Examples per step.
        optimizer: Class and config of the optimizer.
        arms: The arms, in the order asked for.
        patience: Epochs without a lower validation data loss after which training
            stops and goes back to the best; ``None`` if it does not stop early.
        task: ``"binary"``, ``"classes"`` or ``"regression"``.
        command: The command that made it, but for the seeds; ``None`` if it was called
            from Python.
    """

    problem: str
    architecture: str
    weights: int
    backend: str
    device: str
    versions: dict[str, str]
    samples: dict[str, int]
    split: str
    epochs: int
    batch_size: int
    optimizer: dict[str, Any]
    arms: tuple[ArmRecord, ...]
    patience: int | None = None
    task: str = "classes"
    command: str | None = None

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
        """What comparison.json holds; the statistics are made of the runs."""
        fields = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self)
        }
        return {
            "format": FORMAT,
            **fields,
            "arms": [a.to_dict() for a in self.arms],
            "statistics": tables.statistics(self),
        }

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
        comparison: Self = _build(cls, {"split": "given", **data, "arms": arms})
        return comparison


def write_json(path: str | os.PathLike[str], data: Mapping[str, Any]) -> None:
    """Write a JSON file atomically; NaN and infinity, which JSON lacks, as null."""
    write_text(path, json.dumps(finite(data), indent=2, allow_nan=False) + "\n")


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
    """Write text as ``write_bytes`` does, in UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file so that a reader finds the old content or the new, never a part.

    The content goes to a temporary file beside it, to the disk, and then in its place.
    """
    target = pathlib.Path(path)
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    temporary = pathlib.Path(name)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only their owner reads.
        temporary.chmod(0o644)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def finite(value: Any) -> Any:
    """Plain data as JSON has it: NaN and infinity as ``None``."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def _build(cls: Any, data: Mapping[str, Any]) -> Any:
    """A dataclass of the fields that it knows; null where a number was lost is NaN."""
    values = {f.name: data[f.name] for f in dataclasses.fields(cls) if f.name in data}
    for name in ("total", "data", "penalty", "data_loss"):
        if name in values:
            values[name] = _number(values[name])
    return cls(**values)


def _number(value: float | None) -> float:
    """JSON has no NaN: it was written as null."""
    return math.nan if value is None else value
