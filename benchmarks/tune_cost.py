"""Steps that ``tune`` takes, and how good a strength it finds.

Eight tasks, to which the search was once fitted: digits, breast-cancer, mnist5k
clean and with 20 % wrong labels, each with SGD and Adam; and held-out ones.

- Against a plain grid: 12 strengths, no penalty and 11 half decades of e-folds, five
  seeds each, every training over all epochs and judged at its epoch of the lowest
  validation data loss. The strength that ``tune`` chooses is trained likewise on the
  same seeds.
- Against Optuna's TPE with Hyperband and KerasTuner's Hyperband at as many steps: what
  each chooses is trained over all epochs on five seeds that nobody has seen.

    python benchmarks/tune_cost.py [--repetitions N] [TASK ...]
    python benchmarks/tune_cost.py --table

A task is PROBLEM[+noise]/OPTIMIZER. Repetition r uses seeds of its own. What is
finished is kept in ``--results`` and not measured again. KerasTuner is no dependency:
without it (pip install keras-tuner) its column stays empty.
"""

import argparse
import importlib.util
import json
import math
import pathlib
import statistics
import time

from sklearn import datasets
from tune_rivals import RIVALS, Budget

from keras_scaled_l2.experiments.arrays import checked
from keras_scaled_l2.experiments.problems import Source, load_problem
from keras_scaled_l2.experiments.tuner import Tuner, say_nothing
from keras_scaled_l2.experiments.tuning_jobs import make_job
from keras_scaled_l2.experiments.tuning_plan import make_tuning_plan

OPTIMIZERS = ("sgd", "adam")
DEVELOPED = ("digits", "breast-cancer", "mnist5k", "mnist5k+noise")
HELD_OUT = ("wine", "diabetes", "mnist1d")
NOISE = 0.2
HIDDEN = (128, 128)
PLACES = (None, *range(-5, 6))
SEEDS = 5
RUNS = 3
"""Of each rival, on splits of its own."""
UNSEEN = range(1000, 1005)


def tasks(problems):
    return [
        f"{problem}/{optimizer}" for problem in problems for optimizer in OPTIMIZERS
    ]


def problem_of(name):
    plain, _, noise = name.partition("+")
    if plain in ("wine", "diabetes"):
        data = getattr(datasets, f"load_{plain}")()
        y = data.target
        if plain == "diabetes":
            y = (y - y.mean()) / y.std()
        arrays = checked({"x_train": data.data, "y_train": y}, name=plain)
        return Source(plain, arrays, standardize=True).split(0)
    return load_problem(plain, label_noise=NOISE if noise else 0.0)


class Task:
    """A problem with an optimizer: one engine for all that is trained on it."""

    def __init__(self, name):
        title, _, self.optimizer = name.partition("/")
        self.problem = problem_of(title)
        self.engine = None
        self.axis = self.tuner([0]).plan.axis
        self.strengths = [self.axis.strength(k) for k in PLACES]

    def tuner(self, seeds, *, grid=None, patience=None):
        plan = make_tuning_plan(
            "dense",
            self.problem,
            "l2",
            grid=grid,
            method="holdout",
            folds=5,
            criterion="data_loss",
            patience=patience,
            storage=None,
            workers=1,
            directory=None,
            hidden=HIDDEN,
            optimizer=self.optimizer,
            seeds=list(seeds),
        )
        tuner = Tuner(plan, say_nothing)
        tuner._engine = self.engine
        self.engine = tuner._made_engine()
        return tuner

    def whole(self, strengths, seeds):
        """Strength -> mean lowest validation loss, and the steps of one strength.

        No patience shorter than the training: every epoch is trained, the best counts.
        """
        distinct = sorted({self.acting(s) for s in strengths})
        epochs = self.tuner(seeds).plan.base.epochs
        found = self.tuner(seeds, grid=distinct, patience=epochs).run()
        losses = {
            p.strength: statistics.fmean(job.data_loss for job in p.jobs)
            for p in found.points
        }
        steps = sum(job.steps for job in found.points[0].jobs)
        return {s: losses[self.acting(s)] for s in strengths}, steps

    def acting(self, strength):
        """An inert strength is no penalty."""
        return 0.0 if self.axis.is_inert(strength) else strength

    def budget(self, seed, steps):
        tuner = self.tuner([seed])
        per_epoch = math.ceil(
            self.problem.samples["train"] / tuner.plan.base.batch_size
        )

        def train(strength, epochs, told):
            job = make_job(tuner.plan, (strength, seed, 0))
            job = type(job)(**{**vars(job), "epochs": epochs})

            def stop(_, curves):
                return told(curves["val_data_loss"], per_epoch)

            ((_, trained),) = tuner._made_engine().train([job], stop=stop)
            return trained.curves["val_data_loss"], per_epoch

        return Budget(train, steps)


def measure(task, repetition):
    first = SEEDS * repetition
    seeds = range(first, first + SEEDS)
    clock = time.perf_counter()
    tuned = task.tuner(seeds).run()
    seconds = time.perf_counter() - clock
    chosen = tuned.best["strength"]
    losses, steps = task.whole([*task.strengths, chosen], seeds)
    best = min(task.strengths, key=losses.get)
    choices = {"tune": [chosen], "grid": [best]}
    low, high = min(task.strengths[1:]), max(task.strengths)
    for name, search in RIVALS.items():
        if name.startswith("Keras") and not importlib.util.find_spec("keras_tuner"):
            continue
        choices[name] = [
            search(
                task.budget(seed, tuned.steps),
                low,
                high,
                tuned.epochs,
                seed,
            )
            for seed in seeds[:RUNS]
        ]
    every = sorted({s for values in choices.values() for s in values})
    unseen, _ = task.whole(every, UNSEEN)
    return {
        "steps": tuned.steps,
        "grid_steps": steps * len(PLACES),
        "seconds": seconds,
        "chosen": chosen,
        "loss": losses[chosen],
        "grid_best": best,
        "grid_loss": losses[best],
        "curve": [[s, losses[s]] for s in task.strengths],
        "choices": choices,
        "unseen": {name: [unseen[s] for s in v] for name, v in choices.items()},
        "findings": list(tuned.findings),
    }


def read(folder, name, repetition):
    path = folder / f"{name.replace('/', '-')}-{repetition}.json"
    return path, json.loads(path.read_text()) if path.exists() else None


def measured(names, folder, repetitions):
    for name in names:
        for repetition in range(repetitions):
            _, found = read(folder, name, repetition)
            if found:
                yield name.replace("/", " / "), found


def row(*cells):
    return f"| {' | '.join(cells)} |"


def against_grid(results):
    yield row(
        *("problem / optimizer", "steps of tune", "of the grid", "share"),
        *("tune chose", "grid's best", "loss above it"),
    )
    yield row("---", *["---:"] * 6)
    for name, r in results:
        share, above = r["steps"] / r["grid_steps"], r["loss"] / r["grid_loss"] - 1
        yield row(
            name,
            f"{r['steps']:,}",
            f"{r['grid_steps']:,}",
            f"{share:.1%}",
            said(r["chosen"]),
            said(r["grid_best"]),
            f"{above:+.1%}",
        )


def against_rivals(results):
    """Losses on the unseen seeds, those of others relative to that of tune."""
    columns = ["grid", *RIVALS]
    yield row("problem / optimizer", "tune", *columns)
    yield row("---", *["---:"] * (len(columns) + 1))
    for name, r in results:
        (ours,) = r["unseen"]["tune"]
        cells = [
            [loss / ours - 1 for loss in r["unseen"].get(column, [])]
            for column in columns
        ]
        yield row(name, f"{ours:.4f}", *map(spread, cells))


def spread(excess):
    """The mean, and the range where there are several."""
    if not excess:
        return ""
    mean = f"{statistics.fmean(excess):+.1%}"
    ends = f" ({min(excess):+.1%} to {max(excess):+.1%})"
    return mean + ends * (len(excess) > 1)


def said(strength):
    return f"{strength:g}" if strength else "none"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("tasks", nargs="*")
    parser.add_argument("--repetitions", type=int, default=1)
    parser.add_argument("--results", type=pathlib.Path, default="runs/tune_cost")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    names = given.tasks or tasks((*DEVELOPED, *HELD_OUT))
    if given.table:
        found = list(measured(names, given.results, given.repetitions))
        for made in (against_grid, against_rivals):
            print("\n".join(made(found)), end="\n\n")
        return
    given.results.mkdir(parents=True, exist_ok=True)
    for repetition in range(given.repetitions):
        for name in names:
            path, found = read(given.results, name, repetition)
            if found is None:
                found = measure(Task(name), repetition)
                path.write_text(json.dumps(found, indent=1))
            share = found["steps"] / found["grid_steps"]
            above = found["loss"] / found["grid_loss"] - 1
            print(
                f"{name} {repetition}: {share:.1%} of the steps, {above:+.1%}, "
                f"{found['seconds']:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
