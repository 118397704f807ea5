"""The cells of the atlas: what each one trains, and where it searches."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

from keras_scaled_l2.experiments import plane
from keras_scaled_l2.experiments.plane import Plane
from keras_scaled_l2.experiments.transfer_lines import BOUNDS, COARSE_TIMES

SIZES = (20_000, 70_000, 200_000, 670_000, 2_100_000, 6_600_000, 20_000_000)
FAMILIES = {"conv": (6_800, 27_000, 105_000), "residual": (5_500, 21_500, 85_000)}
"""Sizes of the networks that are not dense: whole widths, each twice the one before."""
SEEDS = 5
LARGE = 150_000
"""From here on one seed screens, not two."""
CRITERIA = ("loss", "accuracy", "last_loss")
"""What is followed to its optimum; ``last_accuracy`` is recorded beside them."""
L2 = "l2"
DECAY = "decay"
RULES = {"scaled": "sgd", "prior": "sgd", DECAY: "adam"}
"""Rules with cells of their own -> the optimizer that they are measured under.

By the names of ``transfer``: ``ScaledL2`` by tensor and ``PriorL2``, which give every
weight another coefficient, and the optimizer's decoupled decay.
"""
LARGEST_OF_RULES = 2_100_000


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell: a problem, an optimizer, a network and a rule.

    A place of a strength is half a decade of ``c``; of the mean ``c`` over the weights
    where a rule gives them different ones; of decay times learning rate under decay,
    which is a half-life.
    """

    problem: str
    examples: int
    noise: float
    optimizer: str
    architecture: str
    size: int
    rule: str = L2

    @property
    def name(self) -> str:
        """Name of its file, without the suffix."""
        noise = f"noise{round(100 * self.noise)}" if self.noise else "clean"
        parts = (self.problem, self.examples, noise, self.optimizer)
        rule = () if self.rule == L2 else (self.rule,)
        return "-".join(map(str, (*parts, self.architecture, self.size, *rule)))

    @property
    def coarse_seeds(self) -> int:
        """Seeds that screen."""
        return 1 if self.size >= LARGE else 2

    def planes(self) -> dict[str, Plane]:
        """Where the rule, and beside L2 dropout, is searched."""
        given: dict[str, Any] = {
            "rates": plane.RATES[self.optimizer],
            "rate_bounds": plane.RATE_BOUNDS[self.optimizer],
            "seeds": SEEDS,
            "screening": self.coarse_seeds,
            "criteria": CRITERIA,
            "tuned": ("loss",),
        }
        if self.rule == DECAY:
            return {DECAY: Plane(**given, coarse=COARSE_TIMES, bounds=BOUNDS)}
        if self.rule == "scaled":
            # Divided by the size, the strength of a small network comes out weak.
            coarse = (None, -10, *plane.COARSE[1:])
            return {self.rule: Plane(**given, coarse=coarse)}
        if self.rule != L2:
            return {self.rule: Plane(**given)}
        dropout = given | {"coarse": (2, 5), "bounds": (1, 9), "tuned": ()}
        return {L2: Plane(**given), "dropout": Plane(**dropout)}


def cells() -> list[Cell]:
    """All cells, in the order in which they are trained: the cheap ones first."""
    groups = [
        ("mnist", 1000, 0.0),
        ("fashion_mnist", 1000, 0.0),
        ("mnist", 1000, 0.2),
        ("fashion_mnist", 1000, 0.2),
        ("mnist1d", 1000, 0.0),
        ("mnist1d", 1000, 0.2),
    ]
    many = [
        ("mnist", 10_000, 0.0),
        ("fashion_mnist", 10_000, 0.0),
        ("mnist", 10_000, 0.2),
        ("fashion_mnist", 10_000, 0.2),
        ("mnist1d", 4000, 0.0),
        ("mnist1d", 4000, 0.2),
    ]
    found = []
    for rows, sizes in ((groups, SIZES), (many, SIZES)):
        for size, optimizer, row in itertools.product(sizes, ("sgd", "adam"), rows):
            found.append(Cell(*row, optimizer, "dense", size))
    for architecture, sizes in FAMILIES.items():
        for size, optimizer in itertools.product(sizes, ("sgd", "adam")):
            row = ("fashion_mnist", 1000, 0.0)
            found.append(Cell(*row, optimizer, architecture, size))
    small = [size for size in SIZES if size <= LARGEST_OF_RULES]
    for size, (rule, optimizer), row in itertools.product(small, RULES.items(), groups):
        found.append(Cell(*row, optimizer, "dense", size, rule))
    return found


def choose(text: str) -> list[Cell]:
    """The cell of that name; else those whose name holds all the words, by commas."""
    wanted = [w for w in text.split(",") if w]
    exact = [c for c in cells() if c.name == text]
    return exact or [c for c in cells() if all(w in f"^{c.name}$" for w in wanted)]


def hidden_units(size: int, inputs: int, outputs: int = 10) -> int:
    """The n of ``inputs-n-n-outputs`` that has about so many weights."""
    b = inputs + outputs + 2
    return max(1, round((-b + math.sqrt(b * b + 4 * (size - outputs))) / 2))


def make_architecture(cell: Cell, problem: Any) -> Any:
    """The network of a cell."""
    from keras_scaled_l2.experiments import architectures, families

    if cell.architecture in FAMILIES:
        width = families.width_for(cell.architecture, problem, cell.size)
        return families.member(cell.architecture, problem, width).architecture
    units = hidden_units(cell.size, math.prod(problem.x_train.shape[1:]))
    return architectures.dense(problem, (units, units))
