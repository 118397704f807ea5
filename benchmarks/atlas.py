"""The atlas: the best strength of L2 by data set, optimizer, network and size.

Cell by cell, each a grid of strength x learning rate with dropout beside it, of which
``experiments/plane.py`` says the points. The result of each cell is a JSON file under
``benchmarks/atlas/``, written after each round and each minute: kill it at any time,
and the same command goes on::

    python benchmarks/atlas.py --list
    python benchmarks/atlas.py --cells "mnist-1000-clean-sgd" --budget-minutes 30 \
        --mnist data/mnist --fashion-mnist /usr/share/datasets/fashion-mnist
    python benchmarks/atlas.py --tables

MNIST comes from ``benchmarks/digits_png.py``, Fashion-MNIST from Debian's package
``dataset-fashion-mnist``, mnist1d from PyPI's package of that name.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import itertools
import json
import math
import pathlib
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import filelock
import measure
from atlas_cells import DECAY, SEEDS, Cell, choose, make_architecture

from keras_scaled_l2.experiments import plane
from keras_scaled_l2.experiments.plan import DEFAULT_MEMORY
from keras_scaled_l2.experiments.plane import half_decades, next_points

FOLDER = pathlib.Path(__file__).parent / "atlas"
BATCH_SIZE = 64
EPOCHS = {"mnist": 20, "fashion_mnist": 20, "mnist1d": 40}
POOL, TEST = 12_000, 2_000
"""Images that a cell draws from, a sixth for validation; images of its test set."""
SEQUENCES = {1000: 5000, 4000: 6000}
"""Training examples of a cell of mnist1d -> sequences that are made for it.

A fifth of them is for test, a sixth of the others for validation.
"""
SAVE_SECONDS = 60.0
"""A round of a large network takes longer than anybody wants to lose."""
COLUMNS = (
    *("kind", "place", "rate", "seed", "loss", "accuracy", "best_epoch"),
    *("last_loss", "last_accuracy", "test_loss", "test_accuracy"),
)


class Point(NamedTuple):
    """One training: kind, place of the strength, place of the learning rate, seed."""

    kind: str
    place: int | None
    rate: int
    seed: int

    @property
    def strength(self) -> float:
        """Coefficient or dropout rate."""
        if self.place is None:
            return 0.0
        return self.place / 10 if self.kind == "dropout" else half_decades(self.place)


class Trainer:
    """Trains the points of cells; what is compiled and read serves later cells."""

    def __init__(
        self, folders: Mapping[str, str | None], memory: float = DEFAULT_MEMORY
    ) -> None:
        self._folders, self._memory = folders, int(memory * 2**30)
        self._sources: dict[tuple[Any, ...], Any] = {}
        self._problems: dict[tuple[Any, ...], Any] = {}
        self._engines: dict[tuple[Any, ...], Any] = {}

    def problem(self, cell: Cell, seed: int) -> Any:
        """The data of a seed."""
        key = (cell.problem, cell.examples, cell.noise)
        if key not in self._sources:
            self._problems.clear()
            self._sources = {key: self._source(cell)}
        if (key, seed) not in self._problems:
            self._problems[key, seed] = self._sources[key].split(seed)
        return self._problems[key, seed]

    def _source(self, cell: Cell) -> Any:
        from keras_scaled_l2.experiments.datasets import mnist1d
        from keras_scaled_l2.experiments.problems import load_problem

        found = load_problem(cell.problem, data_dir=self._folders.get(cell.problem))
        arrays = found.source.arrays
        if cell.problem == "mnist1d":
            arrays = mnist1d(SEQUENCES[cell.examples]).arrays
        else:
            arrays = dataclasses.replace(
                arrays,
                x_train=arrays.x_train[:POOL],
                y_train=arrays.y_train[:POOL],
                x_test=arrays.x_test[:TEST],
                y_test=arrays.y_test[:TEST],
            )
        return dataclasses.replace(
            found.source,
            arrays=arrays,
            samples=cell.examples,
            label_noise=cell.noise,
        )

    def engine(self, cell: Cell) -> tuple[Any, Any, list[str]]:
        """Engine, architecture and penalized weights."""
        problem = self.problem(cell, 0)
        key = (
            *(cell.architecture, cell.size, cell.optimizer, cell.rule == DECAY),
            problem.x_train.shape[1:],
        )
        if key not in self._engines:
            # One at a time: their weights would add up.
            self._engines = {key: _engine(cell, problem, self._memory)}
        return self._engines[key]

    def train(self, cell: Cell, points: list[Point]) -> Iterator[tuple[Point, Any]]:
        """Train points; each result as soon as it is there."""
        from keras_scaled_l2.experiments.architectures import initial_weights
        from keras_scaled_l2.experiments.jobs import Job

        engine, architecture, _ = self.engine(cell)
        shape = unit_coefficients(cell, architecture, self.problem(cell, 0))
        mean = mean_coefficient(shape)
        epochs = EPOCHS[cell.problem]
        for seed, group in itertools.groupby(points, key=lambda p: p.seed):
            chosen = list(group)
            initial = initial_weights(architecture.build(seed))
            jobs = []
            for point in chosen:
                value = point.strength
                c = 0.0 if point.kind in ("dropout", DECAY) else value / mean
                jobs.append(
                    Job(
                        problem=self.problem(cell, seed),
                        initial=initial,
                        coefficients={n: c * u for n, (u, _) in shape.items()},
                        seed=seed,
                        epochs=epochs,
                        dropout=value if point.kind == "dropout" else 0.0,
                        weight_decay=decay_of(point),
                        learning_rate=half_decades(point.rate),
                        # Never stops, and goes back to the best epoch for the test.
                        patience=epochs,
                    )
                )
            for place, trained in engine.train(jobs, evaluate=["test"]):
                yield chosen[place], _record(trained)


def _engine(cell: Cell, problem: Any, memory: int) -> tuple[Any, Any, list[str]]:
    import keras

    from keras_scaled_l2.experiments.engine import Engine
    from keras_scaled_l2.experiments.program import Parts, make_parts

    architecture = make_architecture(cell, problem)

    def parts() -> Parts:
        optimizer: Any = keras.optimizers.SGD(0.1, momentum=0.9)
        if cell.optimizer == "adam":
            optimizer = keras.optimizers.Adam(0.001)
        return make_parts(architecture.build(0), optimizer, drops=True)

    engine = Engine(
        parts,
        problem=problem,
        batch_size=BATCH_SIZE,
        decays=cell.rule == DECAY,
        memory=memory,
    )
    return engine, architecture, engine.names


def unit_coefficients(
    cell: Cell, architecture: Any, problem: Any
) -> dict[str, tuple[float, int]]:
    """Weight -> its ``c`` at strength 1 of the cell's rule, and its elements."""
    import keras_scaled_l2 as ksl
    from keras_scaled_l2.experiments.arms import Arm
    from keras_scaled_l2.experiments.coefficients import (
        coefficients,
        penalizable_sizes,
    )

    network = architecture.build(0)
    sizes = penalizable_sizes(network)
    rules = {"scaled": ksl.ScaledL2, "prior": ksl.PriorL2}
    found = dict.fromkeys(sizes, 1.0)
    if cell.rule in rules:
        found = coefficients(
            network,
            Arm(cell.rule, rules[cell.rule](1.0)),
            samples=problem.samples["train"],
            batch_size=BATCH_SIZE,
        )
    return {name: (found[name], size) for name, size in sizes.items()}


def mean_coefficient(units: Mapping[str, tuple[float, int]]) -> float:
    """The mean of the coefficients over all penalized weights."""
    total = math.fsum(c * size for c, size in units.values())
    return total / sum(size for _, size in units.values())


def decay_of(point: Point) -> float:
    """The optimizer's decay whose product with the learning rate is the strength's."""
    if point.kind != DECAY or point.place is None:
        return 0.0
    return half_decades(point.place - point.rate)


def _record(trained: Any) -> dict[str, Any]:
    curves, kept = trained.curves, trained.kept_epoch - 1
    losses, accuracies = curves["val_data_loss"], curves["val_accuracy"]
    test = trained.evaluations["test"]
    return {
        "loss": losses[kept],
        "accuracy": accuracies[kept],
        "best_epoch": trained.kept_epoch,
        "last_loss": losses[-1],
        "last_accuracy": accuracies[-1],
        "test_loss": test.data_loss,
        "test_accuracy": test.accuracy,
    }


def read(path: pathlib.Path) -> tuple[dict[str, Any], dict[Point, dict[str, Any]]]:
    """What stands in a cell's file: head and records."""
    data = json.loads(path.read_text(encoding="utf-8"))
    records, columns = {}, data.pop("columns")
    for row in data.pop("rows"):
        values = dict(zip(columns, row, strict=True))
        point = Point(*(values.pop(n) for n in ("kind", "place", "rate", "seed")))
        records[point] = values
    return data, records


def write(
    path: pathlib.Path, head: Mapping[str, Any], records: Mapping[Point, Any]
) -> None:
    """Write a cell's file, a line for each training."""
    from keras_scaled_l2.experiments.results.files import finite, write_text

    rows = [
        json.dumps(finite([*point, *(record[n] for n in COLUMNS[4:])]))
        for point, record in sorted(records.items(), key=lambda item: str(item[0]))
    ]
    text = json.dumps({**head, "columns": COLUMNS}, indent=1)
    body = ",\n".join(rows)
    write_text(path, f'{text[:-2]},\n "rows": [\n{body}\n ]\n}}\n')


def _devices(before: str | None, now: str | None) -> str | None:
    """A cell that went on elsewhere says so."""
    if before is None or now is None or now in before.split("; "):
        return before or now
    return f"{before}; {now}"


def _rounded(value: float | None) -> float | None:
    # None: read from a file, where a training had diverged.
    return value if value is None or isinstance(value, int) else float(f"{value:.6g}")


def train_cell(trainer: Trainer, cell: Cell, command: str, until: float) -> bool:
    """Train what a cell lacks, unless another process does; whether to go on."""
    path = FOLDER / f"{cell.name}.json"
    try:
        with filelock.FileLock(path.with_suffix(".lock"), timeout=0):
            return _train_cell(trainer, cell, path, command, until)
    except filelock.Timeout:
        print(f"{cell.name}: another process trains it", file=sys.stderr)
        return True


def _train_cell(
    trainer: Trainer, cell: Cell, path: pathlib.Path, command: str, until: float
) -> bool:
    head, records = read(path) if path.exists() else ({}, {})
    if head.get("followed"):
        return True
    if head.get("finished") and not lacking(cell, records):
        write(path, head | {"followed": True}, records)
        return True
    start = time.perf_counter() - head.get("seconds", 0.0)

    def save(*, finished: bool) -> float:
        now = time.perf_counter()
        # What was finished before learning rates were followed counts meanwhile.
        before = bool(head.get("finished"))
        new = _head(trainer, cell, command, now - start, finished=finished or before)
        new["followed"] = finished
        new["device"] = _devices(head.get("device"), new.get("device"))
        write(path, new, records)
        return now

    while points := lacking(cell, records):
        saved = time.perf_counter()
        for point, record in trainer.train(cell, points):
            # As the file will have it: who goes on from there decides the same.
            records[point] = {n: _rounded(value) for n, value in record.items()}
            over = time.time() > until
            if over or time.perf_counter() - saved > SAVE_SECONDS:
                saved = save(finished=False)
            if over:
                return False
        save(finished=False)
    seconds = save(finished=True) - start
    print(f"{cell.name}: {len(records)} trainings, {seconds:.0f} s", flush=True)
    return True


def lacking(cell: Cell, records: Mapping[Point, Any]) -> list[Point]:
    """The trainings of a cell's next round: L2 first, then dropout."""
    for kind, where in cell.planes().items():
        known = {plane.Point(*p[1:]): r for p, r in records.items() if p.kind == kind}
        found = next_points(known, where)
        if found:
            return [Point(kind, *point) for point in found]
    return []


def _head(
    trainer: Trainer, cell: Cell, command: str, seconds: float, *, finished: bool
) -> dict[str, Any]:
    import keras

    from keras_scaled_l2.counts import elements
    from keras_scaled_l2.experiments.plan import versions

    _, architecture, penalized = trainer.engine(cell)
    network = architecture.build(0)
    units = unit_coefficients(cell, architecture, trainer.problem(cell, 0))
    return {
        **dataclasses.asdict(cell),
        "finished": finished,
        "network": architecture.name,
        "weights": sum(elements(v.shape) for v in network.trainable_weights),
        "penalized": len(penalized),
        # Of the rule, at strength 1.
        "mean_coefficient": mean_coefficient(units),
        "epochs": EPOCHS[cell.problem],
        "batch_size": BATCH_SIZE,
        "seeds": SEEDS,
        "sets": trainer.problem(cell, 0).samples,
        "command": f"{command} --cells {cell.name}",
        "backend": keras.backend.backend(),
        "versions": versions(),
        "device": measure.accelerator()
        or f"{platform.machine()} processor, {platform.system()}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "seconds": round(seconds, 1),
    }


def main() -> int:
    """Train, list, or make the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--list", action="store_true", help="print the cells and what is finished")
    add("--tables", action="store_true", help="make docs/atlas.md and its figures")
    add("--cells", default="", help="a name, or what ^name$ must hold, by commas")
    add("--budget-minutes", type=float, default=math.inf, help="then stop")
    add("--mnist", help="folder with MNIST's IDX files")
    add("--fashion-mnist", help="folder with Fashion-MNIST's IDX files")
    add(
        "--memory",
        type=float,
        default=DEFAULT_MEMORY,
        help="GB that trainings side by side may take (%(default)g)",
    )
    arguments = parser.parse_args()
    chosen = choose(arguments.cells)
    if arguments.list:
        for cell in chosen:
            print(f"{cell.name:50s} {_state(cell)}")
        return 0
    if arguments.tables:
        import atlas_tables

        atlas_tables.main()
        return 0
    FOLDER.mkdir(exist_ok=True)
    _full_precision()
    trainer = Trainer(
        {"mnist": arguments.mnist, "fashion_mnist": arguments.fashion_mnist},
        arguments.memory,
    )
    until = time.time() + 60 * arguments.budget_minutes
    command = shlex.join(["python", "benchmarks/atlas.py"])
    for cell in chosen:
        if not train_cell(trainer, cell, command, until):
            print("the budget is spent: the same command goes on", file=sys.stderr)
            return 1
    return 0


def _full_precision() -> None:
    """No TF32, so that cells of a GPU and of a processor may stand in one table."""
    import keras

    if keras.backend.backend() == "jax" and measure.accelerator():
        import jax

        jax.config.update("jax_default_matmul_precision", "highest")


def _state(cell: Cell) -> str:
    path = FOLDER / f"{cell.name}.json"
    if not path.exists():
        return ""
    head, records = read(path)
    state = "finished" if head["finished"] else "begun"
    if head["finished"] and not head.get("followed"):
        state = "finished, learning rates to be followed"
    return f"{state}, {len(records)} trainings, {head['seconds']:.0f} s"


if __name__ == "__main__":
    raise SystemExit(main())
