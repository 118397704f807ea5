"""What a tuning will do, checked in every part before any training starts."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_scaled_l2.experiments import architectures
from keras_scaled_l2.experiments.arms import DECAY, check_rate
from keras_scaled_l2.experiments.axis import Axis, make_axis
from keras_scaled_l2.experiments.coefficients import check_single
from keras_scaled_l2.experiments.dropout_variant import derive
from keras_scaled_l2.experiments.errors import (
    InputError,
    one_line,
    several,
    unknown,
)
from keras_scaled_l2.experiments.following import Follower, check_following
from keras_scaled_l2.experiments.plan import (
    Model,
    Plan,
    check_count,
    make_plan,
    writable,
)
from keras_scaled_l2.experiments.problems import Problem
from keras_scaled_l2.experiments.results.curve import Block
from keras_scaled_l2.experiments.results.files import read_json
from keras_scaled_l2.experiments.results.tuning import CRITERIA
from keras_scaled_l2.experiments.search import Space
from keras_scaled_l2.experiments.storage import TUNING, check_directory, differences
from keras_scaled_l2.regularizers import EvidenceL2
from keras_scaled_l2.suggesting import written

METHODS = ("holdout", "kfold", "evidence")
DEFAULT_FOLDS = 5
LONGEST_BURN_IN = 5
"""Epochs of an evidence training before strengths move; a third of a shorter one."""
DEFAULT_PATIENCE = 4
"""Of hold-out; cross-validation trains all epochs unless it is given one."""
DROPOUT = "dropout"


@dataclasses.dataclass(frozen=True)
class TuningPlan:
    """Everything that a tuning needs to know; see ``tune`` for the fields."""

    base: Plan
    rule: str
    axis: Axis
    grid: tuple[float, ...] | None
    method: str
    folds: int
    criterion: str
    storage: str | None
    workers: int
    directory: pathlib.Path | None

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Seeds and folds, in the order in which they are used."""
        parts = self.folds if self.method == "kfold" else 1
        return tuple((s, f) for s in self.base.seeds for f in range(parts))

    @property
    def space(self) -> Space:
        """Where the search may go."""
        middle, lowest, highest = self.axis.bounds
        step = 2
        if self.method == "evidence":
            # Five strengths, half decades apart, the proposal in the middle.
            middle, step, lowest, highest = 0, 1, -2, 2
        screening = max(2, math.ceil(len(self.blocks) / 5))
        return Space(
            self.blocks, middle, step, lowest, highest, min(screening, len(self.blocks))
        )

    @functools.cached_property
    def _problems(self) -> dict[Block, Problem]:
        return {}

    def data(self, block: Block) -> Problem:
        """The problem as a block splits it: made once, since the engine keeps it."""
        made = self._problems
        if block not in made:
            seed, _ = block
            if self.method == "kfold":
                dealt = self.base.problem.source.folds(self.folds, seed)
                made.update({(seed, i): p for i, p in enumerate(dealt)})
            else:
                made[block] = self.base.data(seed)
        return made[block]

    def initial(self, seed: int) -> list[np.ndarray]:
        """Initial weights of a seed, the same in all its folds."""
        network = self.base.architecture.build(seed)
        return architectures.initial_weights(network)

    @property
    def evidence_rule(self) -> EvidenceL2:
        """What the training that proposes a strength is penalized by."""
        burn_in = max(1, min(LONGEST_BURN_IN, self.base.epochs // 3))
        return EvidenceL2(burn_in=burn_in)

    @property
    def evidence_block(self) -> Block:
        """The block whose training data it has."""
        return self.blocks[0]

    def configuration(self) -> dict[str, Any]:
        """What the numbers follow from, as plain data."""
        found = self.base.configuration()
        for name in ("arms", "trials"):
            found.pop(name)
        return {
            **found,
            "rule": self.rule,
            "method": self.method,
            "folds": self.folds if self.method == "kfold" else 1,
            "seeds": list(self.base.seeds),
            "criterion": self.criterion,
            "grid": None if self.grid is None else list(self.grid),
            "dropout": self.axis.rate,
        }


def make_tuning_plan(
    model: Model,
    problem: str | os.PathLike[str] | Problem,
    rule: str | keras.Regularizer,
    *,
    grid: Sequence[float] | None,
    method: str,
    folds: int | None,
    criterion: str,
    patience: int | None,
    storage: str | None,
    workers: int,
    directory: str | os.PathLike[str] | None,
    rate: float | None = None,
    **options: Any,
) -> TuningPlan:
    """Check what ``tune`` was asked for; the arguments are those of ``tune``.

    Raises:
        InputError: If any of it cannot be done.
    """
    if method not in METHODS:
        raise unknown("method", str(method), METHODS)
    if criterion not in CRITERIA:
        raise unknown("criterion", str(criterion), CRITERIA)
    folds = check_count("folds", DEFAULT_FOLDS if folds is None else folds)
    workers = check_count("workers", workers)
    values = None if grid is None else _grid(grid, rule)
    given = {name: value for name, value in options.items() if value is not None}
    if patience is None and method != "kfold":
        patience = DEFAULT_PATIENCE
    base = make_plan(model, problem, ["none"], patience=patience, **given)
    if base.optimizer.config.get("weight_decay"):
        raise InputError(
            "optimizer with a weight_decay of its own: expected one without, since "
            "no strength could be compared with no penalty."
        )
    if criterion == "accuracy" and base.problem.task == "regression":
        raise InputError("criterion 'accuracy' of a regression: expected 'data_loss'.")
    samples = None
    if method == "kfold":
        # Too many folds come to light here.
        first, *_ = base.problem.source.folds(folds, base.seeds[0])
        samples = first.samples["train"]
    plan = TuningPlan(
        base=base,
        rule=_call(rule) + ("" if rate is None else f"+{DROPOUT}"),
        axis=make_axis(rule, base, rate or 0.0, samples=samples),
        grid=values,
        method=method,
        folds=folds,
        criterion=criterion,
        storage=storage,
        workers=workers,
        directory=None if directory is None else writable(directory),
    )
    for strength in values or ():
        made = plan.axis.regularization(strength)
        largest = max(made.weight_decay, *made.span)
        check_single(f"grid value {strength:g}", largest)
    if plan.directory is not None:
        _check_place(plan, plan.directory)
    if method == "evidence":
        follower(plan)
    if plan.axis.kind == DROPOUT or rate:
        # Not every network can have dropout.
        derive(base.network, 0.5)
    return plan


def follower(plan: TuningPlan) -> Follower:
    """What has the training that proposes a strength follow the evidence.

    Raises:
        InputError: If the evidence has no meaning for the network or the optimizer.
    """
    base, rule = plan.base, plan.evidence_rule
    try:
        rule.check_optimizer(base.optimizer.make())
    except ValueError as error:
        raise InputError(f"method 'evidence': {one_line(error)}") from error
    network = base.architecture.build(base.seeds[0])
    data = plan.data(plan.evidence_block)
    return check_following("method 'evidence'", network, rule, data, base.epochs)


def _check_place(plan: TuningPlan, directory: pathlib.Path) -> None:
    """Refuse a directory whose pages this tuning would write over."""
    check_directory(directory, TUNING)
    try:
        old = read_json(directory / "tuning.json")
    except InputError:
        # None, or damaged: it is made anew from the study.
        return
    base = plan.base
    new = {
        "problem": base.problem.name,
        "architecture": base.architecture.name,
        "rule": plan.rule,
        "method": plan.method,
        "criterion": plan.criterion,
        "epochs": base.epochs,
        "batch_size": base.batch_size,
    }
    found = differences({name: old.get(name) for name in new}, new)
    if found:
        raise InputError(
            f"directory {os.fspath(directory)!r} holds another tuning: {found}. Give "
            "another directory, or remove that one."
        )


def check_evidence(rule: Any, grid: Any, folds: int | None) -> None:
    """Refuse what ``method="evidence"`` does not serve, before anything is loaded.

    Raises:
        InputError: For a rule without coefficients, a grid, or folds.
    """
    if folds is not None:
        raise InputError(
            f"folds {folds} and method 'evidence': expected none of them, since it "
            "tries what the evidence proposes by hold-out. Leave folds out, or use "
            "method 'kfold'."
        )
    if grid is not None:
        raise InputError(
            "grid and method 'evidence': expected no grid, since the evidence proposes "
            "the strengths. Leave it out, or use method 'holdout'."
        )
    if isinstance(rule, str) and (rule in (DECAY, DROPOUT) or "+" in rule):
        raise InputError(
            f"rule {rule!r} and method 'evidence': expected a penalty on weights such "
            "as 'l2', the only thing that the evidence proposes a strength for. Use "
            "method 'holdout'."
        )


def _call(rule: Any) -> str:
    """A rule's name, or the call that makes it."""
    if isinstance(rule, keras.Regularizer):
        return written(rule)
    return rule if isinstance(rule, str) else repr(rule)


def _grid(grid: Sequence[float], rule: Any) -> tuple[float, ...]:
    values = []
    for value in several("grid", grid, "0.01,0.02,0.04"):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number and 0 <= value < math.inf):
            raise InputError(
                f"grid value {value!r}: expected a finite number, 0 or more; 0 is no "
                "penalty."
            )
        values.append(check_rate(value) if rule == DROPOUT else float(value))
    if not values:
        raise InputError("grid is empty: expected strengths, as 0.01,0.02,0.04.")
    if len(set(values)) < len(values):
        raise InputError(f"grid {values}: expected no strength twice.")
    return tuple(values)
