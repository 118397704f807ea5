"""The finished cells of the atlas, and what follows from a group of them."""

from __future__ import annotations

import dataclasses
import itertools
import math
import pathlib
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import atlas
from atlas_cells import L2

from keras_scaled_l2.experiments.plane import Point as PlanePoint
from keras_scaled_l2.experiments.plane import best_pair, half_decades, means
from keras_scaled_l2.experiments.results.curve import Curve, Sample, curve
from keras_scaled_l2.experiments.results.scaling import (
    Interval,
    Sweep,
    at,
    regret,
)

POWERS = {"plain": 0.0, "power 0.25": 0.25, "power 0.5": 0.5, "power 1": 1.0}
"""Rules constant within a model -> the power of the weights that divides c."""
HALF_LIFE = "half-life"
"""The e-folds of the training kept, under SGD: at another learning rate another c."""
GOAL = 0.02
MOMENTUM = 0.9
PROBLEMS = {
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "mnist1d": "mnist1d",
}
OPTIMIZERS = {"sgd": "SGD", "adam": "Adam"}
Records = Mapping[PlanePoint, Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished cell.

    Args:
        head: What stands above the rows of its file.
        l2: The trainings of its rule, of L2 in most cells.
        dropout: Those of dropout, none in a cell of another rule.
    """

    head: Mapping[str, Any]
    l2: Records
    dropout: Records

    @property
    def rule(self) -> str:
        """Its rule; files written before there were others do not name it."""
        return str(self.head.get("rule", L2))

    @property
    def group(self) -> tuple[Any, ...]:
        """What cells that differ only in size have in common."""
        names = ("problem", "examples", "noise", "optimizer", "architecture")
        return tuple(self.head[name] for name in names)

    @property
    def weights(self) -> int:
        """Trainable weights."""
        return int(self.head["weights"])

    def column(
        self, records: Records, place: int | None, criterion: str, value: str = ""
    ) -> tuple[dict[int, float], int]:
        """Seed -> value at a strength's best learning rate, and its place.

        Args:
            records: Of L2 or of dropout.
            place: Place of the strength.
            criterion: What chooses the learning rate.
            value: What to give; the criterion by default, accuracies as errors.
        """
        seeds = range(self.head["seeds"])
        found = means(records, criterion, seeds)
        _, rate = best_pair({p: v for p, v in found.items() if p[0] == place})
        name = value or criterion
        values = {}
        for seed in seeds:
            number = records[PlanePoint(place, rate, seed)][name]
            number = math.nan if number is None else float(number)
            values[seed] = 1.0 - number if "accuracy" in name else number
        return values, rate

    def places(self, records: Records, criterion: str) -> list[int | None]:
        """Strengths that all seeds have."""
        found = means(records, criterion, range(self.head["seeds"]))
        return sorted({p for p, _ in found}, key=lambda k: -99 if k is None else k)

    def sweep(self, criterion: str) -> Sweep:
        """Coefficient -> seed -> value, lower is better."""
        return Sweep(
            self.weights,
            {
                0.0 if place is None else half_decades(place): self.column(
                    self.l2, place, criterion
                )[0]
                for place in self.places(self.l2, criterion)
            },
        )

    def curve(self, criterion: str = "loss") -> tuple[Curve, list[float]]:
        """Statistics of the sweep, and its strengths."""
        values = self.sweep(criterion).values
        strengths = sorted(values)
        samples = [
            Sample(c, {(s, 0): v for s, v in values[c].items()}) for c in strengths
        ]
        return curve(samples), strengths

    def best_place(self, records: Records, criterion: str) -> int | None:
        """The strength with the lowest mean of all seeds."""
        return best_pair(means(records, criterion, range(self.head["seeds"])))[0]

    def tuned(self) -> float:
        """The strength that is best by validation loss."""
        place = self.best_place(self.l2, "loss")
        return 0.0 if place is None else half_decades(place)

    def folds(self) -> float | None:
        """E-folds of the whole training at the best strength; of SGD alone."""
        place = self.best_place(self.l2, "loss")
        if self.head["optimizer"] != "sgd" or place is None:
            return None
        return half_decades(place) * self.folds_by_strength()

    def folds_by_strength(self) -> float:
        """E-folds of the training over c, at the learning rate of the best strength."""
        _, rate = self.column(self.l2, self.best_place(self.l2, "loss"), "loss")
        steps = math.ceil(self.head["sets"]["train"] / self.head["batch_size"])
        total = self.head["epochs"] * steps * half_decades(rate)
        return 2.0 * total / (1.0 - MOMENTUM)

    def gain(self, records: Records, value: str) -> float:
        """What the strength that is best by validation loss gains over none.

        Args:
            records: Of L2 or of dropout.
            value: ``loss`` or ``test_loss``.
        """
        place = self.best_place(records, "loss")
        best, _ = self.column(records, place, "loss", value)
        none, _ = self.column(self.l2, None, "loss", value)
        return 1.0 - statistics.fmean(best.values()) / statistics.fmean(none.values())


def load(folder: pathlib.Path = atlas.FOLDER, *, rules: bool = False) -> list[Result]:
    """The finished cells of L2, or those of other rules, by group and size."""
    found = []
    for path in sorted(folder.glob("*.json")):
        head, records = atlas.read(path)
        if head["finished"]:
            parts: dict[str, dict[PlanePoint, Any]] = {"l2": {}, "dropout": {}}
            for point, record in records.items():
                kind = "dropout" if point.kind == "dropout" else "l2"
                parts[kind][PlanePoint(*point[1:])] = record
            found.append(Result(head, **parts))
    found = [r for r in found if (r.rule != L2) == rules]
    order = list(PROBLEMS)
    return sorted(
        found,
        key=lambda r: (order.index(r.group[0]), *r.group[1:], r.weights),
    )


def groups(results: Iterable[Result]) -> dict[tuple[Any, ...], list[Result]]:
    """Cells that differ only in size, the smallest first."""
    return {k: list(g) for k, g in itertools.groupby(results, key=lambda r: r.group)}


def title(group: tuple[Any, ...]) -> str:
    """A group in words."""
    problem, examples, noise, optimizer, architecture = group
    labels = f"{100 * noise:.0f} % wrong labels" if noise else "clean"
    kind = "" if architecture == "dense" else f", {architecture}"
    name = f"{OPTIMIZERS[optimizer]}{kind}"
    return f"{PROBLEMS[problem]}, {examples:,} examples, {labels}, {name}"


def regret_rows(
    results: Sequence[Result],
) -> Iterator[tuple[tuple[Any, ...], int, dict[str, Interval]]]:
    """Group, weights, and the regret of each rule, of all sizes but the smallest."""
    for group, cells in groups(results).items():
        first, tuned = cells[0].weights, cells[0].tuned()
        for result in cells[1:]:
            strengths = {
                rule: tuned * (first / result.weights) ** power
                for rule, power in POWERS.items()
            }
            yield group, result.weights, regrets(cells[0], result, strengths)


def regrets(
    tuned: Result, result: Result, strengths: Mapping[str, float]
) -> dict[str, Interval]:
    """What strengths lose in a cell, and that of the half-life kept from another.

    Args:
        tuned: The cell whose half-life is kept, under SGD.
        result: The cell.
        strengths: Rule -> its strength there.
    """
    sweep, found = result.sweep("loss"), dict(strengths)
    if (folds := tuned.folds()) is not None:
        found[HALF_LIFE] = folds / result.folds_by_strength()
    return {
        rule: regret(sweep, at(sweep, c)[0], share=True) for rule, c in found.items()
    }


def signs(slopes: Sequence[Interval]) -> str:
    """How many exponents the intervals show to be on which side of 0."""
    below = sum(s.high is not None and s.high < 0 for s in slopes)
    above = sum(s.low is not None and s.low > 0 for s in slopes)
    return (
        f"The 95 % interval lies below 0 in {below}, above 0 in {above}, and holds 0 "
        f"in {len(slopes) - below - above}."
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    ruler = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ruler, *rows))


def interval(found: Interval, spec: str) -> str:
    """Value and 95 % interval; a star where it rests on an end of a sweep."""
    text = f"{found.value:{spec}}"
    if found.low is not None and found.high is not None:
        text += f" [{found.low:{spec}}, {found.high:{spec}}]"
    return text + (" *" if found.edge else "")


def percent(found: Interval) -> str:
    """The same as a percentage."""
    text = f"{100 * found.value:.1f} %"
    if found.low is not None and found.high is not None:
        text += f" [{100 * found.low:.1f}, {100 * found.high:.1f}]"
    return text + (" *" if found.edge else "")
