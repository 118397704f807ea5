"""What a comparison will do, checked in every part before any training starts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self, TypeAlias

import keras
import numpy as np

from keras_scaled_l2.experiments import architectures, room
from keras_scaled_l2.experiments.architectures import DEFAULT_HIDDEN, Architecture
from keras_scaled_l2.experiments.arms import (
    DEFAULT_ARMS,
    DEFAULT_DROPOUT,
    Arm,
    check_decay_acts,
    listed,
    make_arms,
)
from keras_scaled_l2.experiments.arrays import Arrays
from keras_scaled_l2.experiments.coefficients import (
    check_single,
    penalizable_sizes,
)
from keras_scaled_l2.experiments.environment import versions
from keras_scaled_l2.experiments.errors import (
    InputError,
    plain,
    require,
    several,
    unknown,
)
from keras_scaled_l2.experiments.following import check_following, learned_rule
from keras_scaled_l2.experiments.model_checks import fitted
from keras_scaled_l2.experiments.naming import every_layer, plain_config
from keras_scaled_l2.experiments.problems import Problem, load_problem
from keras_scaled_l2.experiments.start_checks import check_start
from keras_scaled_l2.fitting import current_learning_rate, unwrapped

Model: TypeAlias = (
    str | os.PathLike[str] | keras.Model | Callable[[], keras.Model] | None
)
"""What ``architectures.architecture`` takes; ``None`` is ``"dense"``."""

DEFAULT_SEEDS = 3
DEFAULT_EPOCHS = 12
DEFAULT_BATCH_SIZE = 64
DEFAULT_MEMORY = 2.0
DEFAULT_LEARNING_RATES = {"sgd": 0.05, "adam": 1e-3}
"""``sgd`` has momentum 0.9; ``adam`` is Keras's own.

Of 0.02, 0.03 and 0.05, 0.05 gave every arm its lowest validation data loss on mnist5k
with the defaults above."""


@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
    """How to make an optimizer again: its class, and its arguments but for the name.

    Keras counts in the name. Not ``keras.optimizers.serialize``: that loads TensorFlow
    under every backend.
    """

    kind: type[keras.optimizers.Optimizer]
    config: dict[str, Any]

    @classmethod
    def of(cls, optimizer: keras.optimizers.Optimizer) -> Self:
        """What it takes to make this optimizer."""
        config = {k: v for k, v in optimizer.get_config().items() if k != "name"}
        return cls(type(optimizer), config)

    def make(self) -> keras.optimizers.Optimizer:
        """A new optimizer."""
        return self.kind.from_config(dict(self.config))

    def to_dict(self) -> dict[str, Any]:
        """Class and config, as they stand in comparison.json."""
        return {"class_name": self.kind.__name__, "config": self.config}


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that a comparison needs to know; see ``compare`` for the fields.

    ``network`` is what ``architecture`` makes of the first seed.
    """

    problem: Problem
    architecture: Architecture
    network: keras.Model
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    epochs: int
    batch_size: int
    optimizer: OptimizerSpec
    directory: pathlib.Path | None
    trials: int
    patience: int | None
    memory: int

    def data(self, seed: int) -> Problem:
        """The problem as a seed splits it; arrays that came split stay so."""
        if self.problem.split_seed is None:
            return self.problem
        return self.problem.source.split(seed)

    def configuration(self) -> dict[str, Any]:
        """What the numbers follow from, but for the seeds, as plain data."""
        problem = self.problem
        return {
            "problem": problem.source.name,
            "samples": problem.source.samples,
            "label noise": problem.source.label_noise or None,
            "task": problem.task,
            "data": _digest(*_arrays(problem.source.arrays)),
            "standardize": problem.source.standardize,
            "architecture": self.architecture.name,
            # They follow from the layers, their shapes and how they are initialized.
            "initial weights": _digest(
                *architectures.initial_weights(self.architecture.build(0))
            ),
            "layers": _layers(self.network),
            "epochs": self.epochs,
            "batch size": self.batch_size,
            "optimizer": self.optimizer.to_dict(),
            "trials": self.trials,
            "patience": self.patience,
            "backend": keras.backend.backend(),
            "versions": versions(),
            "arms": {
                arm.name: {
                    "rule": arm.config,
                    "dropout": arm.dropout,
                    "weight_decay": arm.weight_decay,
                }
                for arm in self.arms
            },
        }


def make_plan(
    model: Model = "dense",
    problem: str | os.PathLike[str] | Problem = "mnist5k",
    arms: Sequence[str | Arm] = DEFAULT_ARMS,
    *,
    seeds: int | Sequence[int] = DEFAULT_SEEDS,
    epochs: int = DEFAULT_EPOCHS,
    batch_size: int = DEFAULT_BATCH_SIZE,
    hidden: Sequence[int] = DEFAULT_HIDDEN,
    dropout: float = DEFAULT_DROPOUT,
    strengths: Mapping[str, float] | None = None,
    optimizer: str | keras.optimizers.Optimizer = "sgd",
    learning_rate: float | None = None,
    directory: str | os.PathLike[str] | None = None,
    tune: int | None = None,
    patience: int | None = None,
    memory: float = DEFAULT_MEMORY,
) -> Plan:
    """Check what ``compare`` was asked for; the arguments are those of ``compare``.

    Raises:
        InputError: If any of it cannot be done.
    """
    asked = listed(arms)
    # First without a network: a wrong name costs no loading of data.
    make_arms(asked, strengths, dropout)
    seeds = _seeds(seeds)
    epochs = check_count("epochs", epochs)
    batch_size = check_count("batch size", batch_size)
    hidden = architectures.check_hidden(hidden)
    trials = 0 if tune is None else check_count("tune", tune)
    if patience is not None:
        patience = check_count("patience", patience)
    size = _memory(memory)
    config = _optimizer(optimizer, plain(learning_rate))
    # Missing packages come to light now, not after an hour of training.
    require("scipy.stats", "the confidence interval")
    require("jinja2", "the page")
    if not isinstance(problem, Problem):
        problem = load_problem(problem)
    if model in (None, "dense"):
        room.check_hidden(hidden, problem)
    architecture = architectures.architecture(
        "dense" if model is None else model, problem, hidden
    )
    network = architecture.build(seeds[0])
    # A rule that needs the learning rate finds it there.
    network.compile(optimizer=config.make())
    problem = fitted(problem, network)
    check_start(network, problem)
    given = make_arms(asked, strengths, dropout, largest_kernel(network))
    _check_decay(given, config)
    for arm in given:
        rule = learned_rule(arm.config)
        if rule is not None:
            made = architecture.build(seeds[0])
            check_following(f"arm {arm.name!r}", made, rule, problem, epochs)
    return Plan(
        problem=problem,
        architecture=architecture,
        network=network,
        arms=given,
        seeds=seeds,
        epochs=epochs,
        batch_size=batch_size,
        optimizer=config,
        directory=None if directory is None else writable(directory),
        trials=trials,
        patience=patience,
        memory=size,
    )


def largest_kernel(network: keras.Model) -> int:
    """Number of weights of the largest tensor that a rule is put on by default."""
    return max(penalizable_sizes(network).values())


def _check_decay(arms: Sequence[Arm], optimizer: OptimizerSpec) -> None:
    for arm in arms:
        check_single(f"arm {arm.name!r}", arm.weight_decay)
    decay = optimizer.config.get("weight_decay")
    decaying = [arm.name for arm in arms if arm.weight_decay]
    if decay and decaying:
        raise InputError(
            f"optimizer with weight_decay={decay} and arm {decaying[0]!r} with one of "
            "its own: expected an optimizer without, so that the arms differ in it."
        )
    if decaying:
        check_decay_acts(optimizer.make())


def _arrays(arrays: Arrays) -> Iterator[np.ndarray]:
    for field in dataclasses.fields(arrays):
        value = getattr(arrays, field.name)
        if isinstance(value, np.ndarray):
            yield value


def _digest(*arrays: np.ndarray) -> str:
    """A hash of arrays: type, shape and content."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def _layers(network: keras.Model) -> str:
    """A hash of everything that a network's config says, but for seeds and names."""
    try:
        config = plain_config(network)
        text = json.dumps(config, sort_keys=True, default=str)
    except (TypeError, ValueError, NotImplementedError):
        kinds = [type(layer).__name__ for layer in every_layer(network)]
        text = str([kinds, [tuple(v.shape) for v in network.weights]])
    # Where an object says where it lies in memory.
    text = re.sub(r"\b0x[0-9a-f]+", "", text)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_count(name: str, value: Any) -> int:
    """A whole number of 1 or more.

    Raises:
        InputError: If it is not.
    """
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} {value!r}: expected a whole number of 1 or more.")
    if value >= 2**31:
        raise InputError(f"{name} {value}: expected a whole number below 2**31.")
    return value


def _memory(value: Any) -> int:
    """GiB as bytes."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and 0 < value < 2**31):
        raise InputError(f"memory {value!r}: expected GiB, above 0 and below 2**31.")
    return int(value * 2**30)


def _seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    if isinstance(plain(seeds), int):
        return tuple(range(check_count("seeds", seeds)))
    result = several("seeds", seeds, "0,1,2, or their number")
    for seed in result:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**31:
            raise InputError(
                f"seed {seed!r}: expected a whole number from 0 to 2**31 - 1."
            )
    if not result or len(set(result)) < len(result):
        raise InputError(
            f"seeds {list(result)}: expected one or more, none of them twice."
        )
    return result


def _optimizer(
    optimizer: str | keras.optimizers.Optimizer, learning_rate: float | None
) -> OptimizerSpec:
    if learning_rate is not None and not (
        isinstance(learning_rate, int | float)
        and math.isfinite(learning_rate)
        and learning_rate > 0
    ):
        raise InputError(f"learning rate {learning_rate!r}: expected a number above 0.")
    if isinstance(optimizer, str):
        if optimizer not in DEFAULT_LEARNING_RATES:
            raise unknown("optimizer", optimizer, DEFAULT_LEARNING_RATES)
        rate = learning_rate or DEFAULT_LEARNING_RATES[optimizer]
        if optimizer == "sgd":
            optimizer = keras.optimizers.SGD(rate, momentum=0.9)
        else:
            optimizer = keras.optimizers.Adam(rate)
        made = OptimizerSpec.of(optimizer)
        # Keras gives back the float32 that it holds; this is what was asked for.
        made.config["learning_rate"] = rate
        return made
    if learning_rate is not None:
        raise InputError(
            "learning rate and an optimizer object: give it to the object."
        )
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise InputError(f"optimizer {optimizer!r}: expected a name or an optimizer.")
    _check_plain(optimizer)
    return OptimizerSpec.of(optimizer)


def _check_plain(optimizer: keras.optimizers.Optimizer) -> None:
    """Refuse what ``fit`` does beside the optimizer, and these trainings do not."""
    name, reason = type(optimizer).__name__, "since these trainings"
    if unwrapped(optimizer) is not optimizer:
        raise InputError(
            f"optimizer {name}: expected its inner optimizer, {reason} do not scale "
            "the loss."
        )
    if current_learning_rate(optimizer) is None:
        raise InputError(
            f"optimizer {name}: expected one with a single learning rate, which goes "
            "into the curves and the decay."
        )
    for option, what in (
        ("loss_scale_factor", "do not scale the loss"),
        ("use_ema", "test the weights themselves, not their averages"),
    ):
        if getattr(optimizer, option, None):
            raise InputError(
                f"optimizer {name} with {option}: expected one without, {reason} "
                f"{what}."
            )


def writable(directory: str | os.PathLike[str]) -> pathlib.Path:
    """A directory, made if it does not exist; an ``InputError`` if it takes no file."""
    if not os.fspath(directory):
        raise InputError("directory '': expected a name; '.' is the current folder.")
    folder = pathlib.Path(directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"directory {os.fspath(directory)!r} cannot be written "
            f"({error.strerror or error}): expected a folder, or a place for one."
        ) from error
    return folder
