"""What a transfer will do, checked in every part before any training starts."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from keras_scaled_l2.experiments.errors import InputError, several, unknown
from keras_scaled_l2.experiments.families import Family, Member, member, width_for
from keras_scaled_l2.experiments.plan import Plan, make_plan, writable
from keras_scaled_l2.experiments.plane import RATE_BOUNDS, RATES, Plane
from keras_scaled_l2.experiments.problems import Problem, load_problem
from keras_scaled_l2.experiments.search import Place
from keras_scaled_l2.experiments.storage import TRANSFER, check_directory
from keras_scaled_l2.experiments.transfer_lines import (
    BOUNDS,
    OWN,
    RULES,
    SWEEP,
    Line,
    make_line,
)

DEFAULT_SIZES = (20_000, 70_000, 200_000, 670_000)
DEFAULT_PATIENCE = 4
LEAST_SEEDS = 2


@dataclasses.dataclass(frozen=True)
class TransferPlan:
    """Everything that a transfer needs to know; see ``transfer`` for the fields."""

    family: str
    optimizer: str
    rules: tuple[str, ...]
    criteria: tuple[str, ...]
    members: tuple[Member, ...]
    plans: tuple[Plan, ...]
    directory: pathlib.Path | None

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, shared by all sizes."""
        return self.plans[0].seeds

    @property
    def lines(self) -> tuple[str, ...]:
        """What is trained: the sweep, and the rules with trainings of their own."""
        return (SWEEP, *(rule for rule in OWN if rule in self.rules))

    def line(self, rule: str, size: int) -> Line:
        """The strengths of a rule at a size, counted from 0."""
        return make_line(rule, self.plans[0], self.plans[size])

    def plane(self, line: Line) -> Plane:
        """Where the strength of a rule is looked for."""
        # What others are compared with is tuned everywhere.
        tuned = self.criteria if line.rule == SWEEP else ()
        return self._plane(coarse=line.coarse, bounds=BOUNDS, tuned=tuned)

    def at(self, place: Place) -> Plane:
        """Where a learning rate for a strength is looked for."""
        ends = (0, 0) if place is None else (place, place)
        return self._plane(coarse=(place,), bounds=ends, tuned=self.criteria)

    def _plane(self, **given: Any) -> Plane:
        return Plane(
            rates=RATES[self.optimizer],
            rate_bounds=RATE_BOUNDS[self.optimizer],
            seeds=len(self.seeds),
            screening=2,
            criteria=self.criteria,
            **given,
        )

    @functools.cached_property
    def _problems(self) -> dict[int, Problem]:
        return {}

    def data(self, seed: int) -> Problem:
        """The problem as a seed splits it, the same at all sizes."""
        if seed not in self._problems:
            self._problems[seed] = self.plans[0].data(seed)
        return self._problems[seed]

    def configuration(self) -> dict[str, Any]:
        """What the numbers follow from, as plain data."""
        found = [plan.configuration() for plan in self.plans]
        for one in found:
            for name in ("arms", "trials"):
                one.pop(name)
        return {
            "sizes": found,
            "seeds": list(self.seeds),
            "rules": list(self.rules),
            "patience": self.plans[0].patience,
        }


def make_transfer_plan(
    model: Family,
    problem: str | os.PathLike[str] | Problem,
    rules: Sequence[str] | None,
    *,
    sizes: Sequence[int] | None,
    widths: Sequence[int] | None,
    optimizer: str,
    patience: int | None,
    directory: str | os.PathLike[str] | None,
    **options: Any,
) -> TransferPlan:
    """Check what ``transfer`` was asked for; the arguments are those of ``transfer``.

    Raises:
        InputError: If any of it cannot be done.
    """
    chosen = _rules(rules, optimizer)
    if sizes is not None and widths is not None:
        raise InputError("both sizes and widths: expected one of them.")
    if not isinstance(problem, Problem):
        problem = load_problem(problem)
    if widths is None:
        given = DEFAULT_SIZES if sizes is None else sizes
        given = several("sizes", given, "20000,70000")
        widths = [width_for(model, problem, size) for size in given]
    widths = several("widths", widths, "16,32")
    members = [member(model, problem, width) for width in widths]
    counts = [one.weights for one in members]
    if len(counts) < 2 or sorted(set(counts)) != counts:
        found = ", ".join(map(str, counts)) or "no"
        raise InputError(
            f"networks of {found} weights: expected two or more, each larger than the "
            "one before. Give other sizes or widths."
        )
    if patience is None:
        patience = DEFAULT_PATIENCE
    options = {name: value for name, value in options.items() if value is not None}
    plans = tuple(
        make_plan(
            one.architecture,
            problem,
            ["none"],
            optimizer=optimizer,
            patience=patience,
            **options,
        )
        for one in members
    )
    if len(plans[0].seeds) < LEAST_SEEDS:
        raise InputError(
            f"seeds {len(plans[0].seeds)}: expected {LEAST_SEEDS} or more, since the "
            "intervals are taken over them."
        )
    plan = TransferPlan(
        family=model if isinstance(model, str) else getattr(model, "__name__", "model"),
        optimizer=optimizer,
        rules=chosen,
        criteria=("loss",)
        if plans[0].problem.task == "regression"
        else ("loss", "accuracy"),
        members=tuple(members),
        plans=plans,
        directory=None if directory is None else writable(directory),
    )
    if plan.directory is not None:
        check_directory(plan.directory, TRANSFER)
    for rule in plan.lines:
        # A rule that does not fit comes to light here.
        plan.line(rule, len(plans) - 1)
    return plan


def _rules(rules: Sequence[str] | None, optimizer: str) -> tuple[str, ...]:
    if optimizer not in RATES:
        raise unknown("optimizer", str(optimizer), RATES)
    # An adaptive optimizer leaves no half-life to a penalty in the loss.
    fitting = [r for r in RULES if optimizer == "sgd" or r != "half-life"]
    if rules is None:
        return tuple(fitting)
    rules = [rules] if isinstance(rules, str) else several("rules", rules, "l2,prior")
    for rule in rules:
        if rule not in RULES:
            raise unknown("rule", str(rule), RULES)
        if rule not in fitting:
            raise InputError(
                f"rule {rule!r} with optimizer {optimizer!r}: expected 'sgd', since an "
                "adaptive optimizer leaves no half-life. Use 'decay'."
            )
    if not rules or len(set(rules)) < len(rules):
        raise InputError(f"rules {list(rules)}: expected one or more, none twice.")
    return tuple(rules)
