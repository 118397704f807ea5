"""What an experiment costs: the engine against Keras's fit and against the limit.

    python benchmarks/compare_cost.py [--backends tensorflow,jax,torch]
        [--hidden 25,128,512,4096] [--rounds 5]

For networks 784-n-n-10 on mnist5k (3000 examples, batches of 64, momentum SGD, L2 on
the kernels), milliseconds per training step, in turn, in one process:

- engine: four jobs as `compare` and `tune` train them (side by side in threads up to a
  million weights), with validation after each epoch and the gradient norms of each
  epoch's first step; wall time over the steps of all jobs;
- fit: a plain Keras model with keras.regularizers.L2, without validation or metrics;
- fit+: the same with the accuracy and validation that the engine measures too;
- hand: a loop written in the backend itself (hand_loops.py), without either.

Then the whole of a comparison (records, event files, figures, page) against the same
trainings by its engine alone. Compilation is left out. Leave the machine alone
meanwhile.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import hand_loops
import measure
import numpy as np

BATCH = hand_loops.BATCH
NAMES = ("engine", "fit", "fit+", "hand")
RATIOS = (("fit", "engine"), ("fit+", "engine"), ("engine", "hand"))
JOBS = 4
LARGE = 2000
"""From so many units on one job is timed: it keeps all cores busy."""


def problem() -> Any:
    from keras_scaled_l2.experiments import load_problem

    return load_problem("mnist5k")


def order_of(n: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([0, epoch]).permutation(n)


def engine_timer(data: Any, units: int, epochs: int) -> Callable[[], float]:
    import keras

    from keras_scaled_l2.experiments.architectures import dense, initial_weights
    from keras_scaled_l2.experiments.coefficients import penalizable
    from keras_scaled_l2.experiments.engine import Engine
    from keras_scaled_l2.experiments.jobs import Job
    from keras_scaled_l2.experiments.program import Parts

    def parts() -> Parts:
        network = dense(data, [units, units]).build(0)
        optimizer = keras.optimizers.SGD(hand_loops.RATE, momentum=hand_loops.MOMENTUM)
        return Parts(network, network.weights, penalizable(network), optimizer)

    engine = Engine(parts, problem=data, batch_size=BATCH)
    begun = time.perf_counter()
    engine.warm_up(data)
    compiled = time.perf_counter() - begun
    initial = initial_weights(dense(data, [units, units]).build(0))
    coefficients = dict.fromkeys(engine.names, hand_loops.C)
    # As many as train at the same time, twice.
    count = 1 if units >= LARGE else JOBS
    jobs = [
        Job(data, initial, coefficients, seed=seed, epochs=epochs)
        for seed in range(count)
    ]

    # From then on it has as many threads as it will have.
    begun = time.perf_counter()
    while time.perf_counter() - begun <= 1.1 * compiled:
        list(engine.train(jobs))

    def timed() -> float:
        begun = time.perf_counter()
        steps = sum(trained.steps for _, trained in engine.train(jobs))
        return (time.perf_counter() - begun) / steps

    return timed


def fit_timer(
    data: Any, units: int, epochs: int, measured: bool = False
) -> Callable[[], float]:
    import keras

    from keras_scaled_l2.experiments.architectures import dense

    model = dense(data, [units, units]).build(0)
    for variable in model.trainable_variables:
        if len(variable.shape) > 1:
            variable.regularizer = keras.regularizers.L2(hand_loops.C)
    model.compile(
        keras.optimizers.SGD(hand_loops.RATE, momentum=hand_loops.MOMENTUM),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"] if measured else None,
    )
    more = {"validation_data": (data.x_validation, data.y_validation)}
    model.optimizer.build(model.trainable_variables)
    variables = [*model.variables, *model.optimizer.variables]
    fresh = [np.array(keras.ops.convert_to_numpy(v.value)) for v in variables]
    n = len(data.x_train)

    def timed() -> float:
        # From the start: a network with nothing left to learn has denormal momenta,
        # with which PyTorch takes half as long again.
        for variable, value in zip(variables, fresh, strict=True):
            variable.assign(value)
        begun = time.perf_counter()
        for epoch in range(epochs):
            order = order_of(n, epoch)
            model.fit(
                data.x_train[order],
                data.y_train[order],
                batch_size=BATCH,
                shuffle=False,
                verbose=0,
                **(more if measured else {}),
            )
        return (time.perf_counter() - begun) / (epochs * -(-n // BATCH))

    return timed


def hand_timer(data: Any, units: int, epochs: int) -> Callable[[], float]:
    import keras

    x = data.x_train.reshape(len(data.x_train), -1)
    widths = [x.shape[1], units, units, data.outputs]
    loop = hand_loops.LOOPS[keras.backend.backend()](x, data.y_train, widths)
    whole = len(x) // BATCH

    def timed() -> float:
        begun = time.perf_counter()
        for epoch in range(epochs):
            order = order_of(len(x), epoch)[: whole * BATCH]
            loop(order.astype("int32").reshape(whole, BATCH))
        return (time.perf_counter() - begun) / (epochs * whole)

    return timed


def steps(units: int, rounds: int) -> dict[str, Any]:
    """Milliseconds per step, and the ratios, round by round."""
    data = problem()
    epochs = max(1, min(20, 2000 // units))
    timers = {
        "engine": engine_timer,
        "fit": fit_timer,
        "fit+": functools.partial(fit_timer, measured=True),
        "hand": hand_timer,
    }
    functions = {name: make(data, units, epochs) for name, make in timers.items()}
    times = measure.interleaved(functions, rounds)
    ratios = {
        f"{a} / {b}": [x / y for x, y in zip(times[a], times[b], strict=True)]
        for a, b in RATIOS
    }
    milliseconds = {name: [1000 * t for t in found] for name, found in times.items()}
    return {k: measure.spread(v) for k, v in {**milliseconds, **ratios}.items()}


def whole(seeds: int, epochs: int) -> dict[str, Any]:
    """A comparison as `make compare` has it, then its trainings alone."""
    from keras_scaled_l2.experiments import compare
    from keras_scaled_l2.experiments.engine import Engine

    seconds = {"compiling": 0.0, "engine": 0.0}
    asked: list[tuple[Any, Any, dict[str, Any]]] = []
    compile_all, train = Engine._compile, Engine.train

    def timed_compile(self: Engine, programs: Any) -> None:
        begun = time.perf_counter()
        compile_all(self, programs)
        seconds["compiling"] += time.perf_counter() - begun

    def noted_train(self: Engine, jobs: Any, watch: Any = None, **options: Any) -> Any:
        asked.append((self, list(jobs), options))
        yield from train(self, asked[-1][1], watch=watch, **options)

    Engine._compile, Engine.train = timed_compile, noted_train  # type: ignore
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        compare(
            problem=problem(),
            hidden=[128, 128],
            seeds=seeds,
            epochs=epochs,
            tune=5,
            directory=folder,
            progress=False,
        )
    wall = time.perf_counter() - begun - seconds["compiling"]
    begun = time.perf_counter()
    for engine, jobs, options in asked:
        list(train(engine, jobs, **options))
    seconds["engine"] = time.perf_counter() - begun
    return {**seconds, "whole": wall, "ratio": wall / seconds["engine"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--hidden", default="25,128,512,4096")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--backends", default="tensorflow,jax,torch")
    parser.add_argument("--output", default="runs/benchmarks/compare_cost.json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child == "whole":
        print(json.dumps(whole(arguments.seeds, arguments.epochs)))
        return
    if arguments.child:
        print(json.dumps(steps(int(arguments.child), arguments.rounds)))
        return
    results: dict[str, Any] = {"machine": measure.machine()}
    print(
        "ms per step of 784-n-n-10   engine      fit     fit+     hand"
        "   fit/engine          fit+/engine        engine/hand"
    )
    for backend in arguments.backends.split(","):
        results[backend] = {}
        for units in arguments.hidden.split(","):
            options = ["--child", units, "--rounds", str(arguments.rounds)]
            found = measure.child(sys.argv[0], options, backend)
            results[backend][units] = found
            print(
                f"{backend:12} n = {units:>6} "
                + " ".join(f"{found[k]['median']:8.3f}" for k in NAMES)
                + "".join(
                    f"  {found[k]['median']:5.2f} ({found[k]['min']:.2f}-"
                    f"{found[k]['max']:.2f})"
                    for k in (f"{a} / {b}" for a, b in RATIOS)
                ),
                flush=True,
            )
        if arguments.seeds:
            options = ["--child", "whole", "--seeds", str(arguments.seeds)]
            options += ["--epochs", str(arguments.epochs)]
            found = measure.child(sys.argv[0], options, backend)
            results[backend]["whole"] = found
            print(
                f"{backend:12} whole comparison {found['whole']:.1f} s, its engine "
                f"{found['engine']:.1f} s: {found['ratio']:.2f}; compiling "
                f"{found['compiling']:.1f} s apart",
                flush=True,
            )
    measure.save(arguments.output, results)


if __name__ == "__main__":
    main()
