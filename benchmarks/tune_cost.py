"""Steps that ``tune`` takes against a plain grid, and how good a strength it finds.

Eight settings: digits, breast-cancer, mnist5k clean and with 20 % label noise, each
with SGD and Adam. The grid has 12 strengths, no penalty and 11 half decades of e-folds,
five seeds each, every training over all epochs and judged at its epoch of the lowest
validation data loss. The strength that ``tune`` chooses is trained for the same seeds
and compared with the grid's best.

    python benchmarks/tune_cost.py [problem[+noise]/optimizer ...]
"""

import sys
import time

import numpy as np

from keras_scaled_l2.experiments.arrays import checked
from keras_scaled_l2.experiments.axis import make_axis
from keras_scaled_l2.experiments.problems import Source, load_problem
from keras_scaled_l2.experiments.tuner import Tuner, say_nothing
from keras_scaled_l2.experiments.tuning_plan import make_tuning_plan

SETTINGS = [
    f"{problem}/{optimizer}"
    for problem in ("digits", "breast-cancer", "mnist5k", "mnist5k+noise")
    for optimizer in ("sgd", "adam")
]
NOISE = 0.2
HIDDEN = (128, 128)
PLACES = (None, *range(-5, 6))


def problem_of(name):
    """The problem; with noise, a fifth of all labels that it trains and tunes on."""
    plain, _, noise = name.partition("+")
    problem = load_problem(plain)
    if not noise:
        return problem
    given = problem.source.arrays
    random = np.random.default_rng(0)
    y = given.y_train.copy()
    wrong = random.random(len(y)) < NOISE
    y[wrong] = random.integers(0, problem.classes, int(wrong.sum()))
    arrays = {"x_train": given.x_train, "y_train": y}
    return Source(name, checked(arrays, name=name)).split(0)


def run(problem, optimizer, *, grid, patience):
    plan = make_tuning_plan(
        "dense",
        problem,
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
        optimizer=optimizer,
        seeds=5,
    )
    return plan, Tuner(plan, say_nothing).run()


def measure(name):
    title, _, optimizer = name.partition("/")
    problem = problem_of(title)
    clock = time.perf_counter()
    plan, tuned = run(problem, optimizer, grid=None, patience=None)
    seconds = time.perf_counter() - clock
    chosen = tuned.best["strength"]
    network = plan.base.network
    axis = make_axis(
        "l2",
        network=network,
        optimizer=plan.base.optimizer.make(),
        samples=problem.samples["train"],
        batch_size=plan.base.batch_size,
        epochs=plan.base.epochs,
    )
    strengths = sorted({axis.strength(k) for k in PLACES})
    # No patience shorter than the training: every epoch is trained, the best is kept.
    whole = plan.base.epochs
    grid = sorted({*strengths, chosen})
    _, found = run(problem, optimizer, grid=grid, patience=whole)
    steps = sum(job.steps for s in strengths for job in at(found, axis, s).jobs)
    best = min(strengths, key=lambda s: np.mean(losses_at(found, axis, s)))
    ours = np.mean(losses_at(found, axis, chosen))
    theirs = np.mean(losses_at(found, axis, best))
    print(
        f"{name:22} steps {tuned.steps:6d} of {steps:6d} ({tuned.steps / steps:5.1%}); "
        f"tune {chosen:<9g} {ours:.4f}, grid's best {best:<9g} {theirs:.4f} "
        f"({ours / theirs - 1:+.1%}); {seconds:.0f} s",
        flush=True,
    )


def at(result, axis, strength):
    """The point of a strength; an inert one is that of no penalty."""
    return result[0.0 if axis.is_inert(strength) else strength]


def losses_at(result, axis, strength):
    return [job.data_loss for job in at(result, axis, strength).jobs]


if __name__ == "__main__":
    for setting in sys.argv[1:] or SETTINGS:
        measure(setting)
