"""The whole comparison against its bare training steps.

    python benchmarks/compare_cost.py [--rounds 2]

The README's comparison, or one like it: what `compare` takes from start to end (data,
validation, tests, records, figures and page), and what plain Keras models, one with the
penalty and the dropout of each arm, take for as many training steps on batches of the
same size, without metrics, validation or callbacks. After each run of an arm its plain
model trains, so that both see the same machine. Compilation is counted apart: it
happens once, whatever the number of runs. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from typing import Any

import measure

# Name of each default arm: Keras's own L2 or none, and a rate of dropout.
ARMS = {
    "none": (False, 0.0),
    "l2": (True, 0.0),
    "scaled": (True, 0.0),
    "sample": (True, 0.0),
    "dropout": (False, 0.5),
    "sample+dropout": (True, 0.5),
}


def bare(  # noqa: PLR0917
    problem: Any,
    hidden: list[int],
    epochs: int,
    batch_size: int,
    penalty: bool,
    rate: float,
) -> Any:
    """A function that trains a plain model and returns the seconds of its steps."""
    import keras
    import numpy as np

    from keras_scaled_l2.experiments.architectures import dense

    model = dense(problem, hidden).build(0)
    network = model
    if rate:
        from keras_scaled_l2.experiments import with_dropout

        network = with_dropout(model, rate)
    if penalty:
        for variable in network.trainable_variables:
            if len(variable.shape) > 1:
                variable.regularizer = keras.regularizers.L2(1e-4)
    network.compile(
        keras.optimizers.SGD(0.05, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )

    network.optimizer.build(network.trainable_variables)
    variables = [*network.variables, *network.optimizer.variables]
    fresh = [np.array(v) for v in variables]

    def train(count: int) -> float:
        # Each run from the start: the momentum of a network that has nothing more to
        # learn are denormal numbers, with which PyTorch takes half as long again.
        for variable, value in zip(variables, fresh, strict=True):
            variable.assign(value)
        start = time.perf_counter()
        for epoch in range(count):
            order = np.random.default_rng(epoch).permutation(len(problem.x_train))
            network.fit(
                problem.x_train[order],
                problem.y_train[order],
                batch_size=batch_size,
                shuffle=False,
                verbose=0,
            )
        return time.perf_counter() - start

    train(1)  # compiles
    return lambda: train(epochs)


def run(rounds: int, seeds: int, epochs: int, hidden: list[int]) -> dict[str, Any]:
    from keras_scaled_l2.experiments import compare, load_problem
    from keras_scaled_l2.experiments.progress import Silent
    from keras_scaled_l2.experiments.training import Trainer

    problem = load_problem("mnist5k")
    plain = {
        name: bare(problem, hidden, epochs, 64, *arm) for name, arm in ARMS.items()
    }
    seconds = {"bare": 0.0, "beside": 0.0, "compiling": 0.0, "fits": 0.0}

    class Beside(Silent):
        """Trains the plain model of an arm after each of its runs."""

        def finish(self, arm: str, record: Any) -> None:
            start = time.perf_counter()
            seconds["bare"] += plain[arm]()
            seconds["fits"] += record.seconds
            seconds["beside"] += time.perf_counter() - start

    warm_up = Trainer.warm_up

    def timed(self: Trainer, problem: Any) -> None:
        start = time.perf_counter()
        warm_up(self, problem)
        seconds["compiling"] += time.perf_counter() - start

    Trainer.warm_up = timed  # type: ignore[method-assign]
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        seconds.update(dict.fromkeys(seconds, 0.0))
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            compare(
                problem=problem,
                arms=list(ARMS),
                hidden=hidden,
                seeds=seeds,
                epochs=epochs,
                directory=folder,
                progress=Beside(),
            )
        wall = time.perf_counter() - start
        whole = wall - seconds["beside"] - seconds["compiling"]
        for name, value in {
            **seconds,
            "compare": whole,
            "ratio": whole / seconds["bare"],
            "fits_ratio": seconds["fits"] / seconds["bare"],
        }.items():
            found.setdefault(name, []).append(value)
    return {name: measure.spread(values) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--hidden", default="512,512")
    parser.add_argument("--backends", default="tensorflow,jax,torch")
    parser.add_argument("--output", default="runs/benchmarks/compare_cost.json")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        hidden = [int(units) for units in arguments.hidden.split(",")]
        found = run(arguments.rounds, arguments.seeds, arguments.epochs, hidden)
        print(json.dumps(found))
        return
    results: dict[str, Any] = {"machine": measure.machine()}
    passed = ["--child", "--rounds", str(arguments.rounds)]
    passed += ["--seeds", str(arguments.seeds), "--epochs", str(arguments.epochs)]
    passed += ["--hidden", arguments.hidden]
    runs = len(ARMS) * arguments.seeds
    print(f"mnist5k, hidden {arguments.hidden}: {runs} runs, {arguments.epochs} epochs")
    for backend in arguments.backends.split(","):
        found = results[backend] = measure.child(sys.argv[0], passed, backend)
        print(
            f"{backend:12} bare steps {found['bare']['median']:6.1f} s, compare "
            f"{found['compare']['median']:6.1f} s: {found['ratio']['median']:.2f} "
            f"({found['ratio']['min']:.2f} to {found['ratio']['max']:.2f}), of it "
            f"{found['fits_ratio']['median']:.2f} in fit, with validation; compiling "
            f"{found['compiling']['median']:.1f} s apart",
            flush=True,
        )
    measure.save(arguments.output, results)


if __name__ == "__main__":
    main()
