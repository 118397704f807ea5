"""On a GPU: the monitor's numbers against float64 NumPy, and what they cost.

    python benchmarks/gpu.py [--backends jax,torch] [--rounds 3] [--jobs 64]
        [--any-device]

For each backend: the norms of data gradient, penalty gradient and weight as a training
step measured them, against the same by hand in float64; then monitor_cost.py's table
for the dense network. On JAX also 64 trainings of 784-128-128-10 by the experiments'
engine, in one program (vmap) against one by one. Everything is recorded with the
device's name. JAX's matrix products are asked for in full precision for the first part.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

import measure

C = 1e-2


def by_hand(x: Any, y: Any, weights: list[Any]) -> list[float]:
    """Norms of each kernel: of data gradient, penalty gradient and weight; float64."""
    import numpy as np

    x, w1, b1, w2, b2 = (np.asarray(a, "float64") for a in (x, *weights))
    hidden = x @ w1 + b1
    active = np.maximum(hidden, 0)
    logits = active @ w2 + b2
    share = np.exp(logits - logits.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)
    share[np.arange(len(y)), y] -= 1
    share /= len(y)
    gradients = x.T @ ((share @ w2.T) * (hidden > 0)), active.T @ share
    norm = np.linalg.norm
    pairs = zip((w1, w2), gradients, strict=True)
    return [float(v) for w, g in pairs for v in (norm(g), 2 * C * norm(w), norm(w))]


def check() -> dict[str, Any]:
    """The largest relative difference between the monitor's norms and those by hand."""
    import keras
    import numpy as np

    from keras_scaled_l2.gradient_norms import measure_gradients

    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(128, 300)).astype("float32")
    y = rng.integers(0, 10, size=128)
    rule = {"kernel_regularizer": keras.regularizers.L2(C)}
    model = keras.Sequential(
        [
            keras.Input((300,)),
            keras.layers.Dense(512, activation="relu", **rule),
            keras.layers.Dense(10, **rule),
        ]
    )
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    expected = by_hand(x, y, [keras.ops.convert_to_numpy(w) for w in model.weights])
    records: list[Any] = []

    class Watch(keras.callbacks.Callback):
        def on_train_begin(self, logs: Any = None) -> None:
            self.measurement = measure_gradients(self.model, self)
            self.measurement.watch(lambda: True, records.append)

        def on_train_end(self, logs: Any = None) -> None:
            self.measurement.remove()

    model.fit(x, y, batch_size=128, shuffle=False, verbose=0, callbacks=[Watch()])
    kernels = [n for path, n in records[0].norms.items() if path.endswith("kernel")]
    found = [value for norms in kernels for value in norms[:3]]
    differences = [abs(a / b - 1) for a, b in zip(found, expected, strict=True)]
    return {"device": measure.accelerator(), "largest_difference": max(differences)}


def many(count: int, rounds: int) -> dict[str, Any]:
    """Seconds of so many trainings of 10 epochs, vmapped and one by one."""
    import keras
    import numpy as np

    from keras_scaled_l2.experiments.architectures import dense, initial_weights
    from keras_scaled_l2.experiments.arrays import checked
    from keras_scaled_l2.experiments.coefficients import penalizable
    from keras_scaled_l2.experiments.engine import Engine
    from keras_scaled_l2.experiments.jobs import Job
    from keras_scaled_l2.experiments.problems import Source
    from keras_scaled_l2.experiments.program import Parts

    rng = np.random.default_rng(0)
    x = rng.normal(size=(5000, 784)).astype("float32")
    arrays = checked({"x_train": x, "y_train": rng.integers(0, 10, 5000)}, name="drawn")
    data = Source("drawn", arrays).split(0)

    def parts() -> Parts:
        network = dense(data, [128, 128]).build(0)
        optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
        return Parts(network, network.weights, penalizable(network), optimizer)

    initial = initial_weights(parts().network)
    timers = {}
    for name, batched in (("vmapped", True), ("one by one", False)):
        engine = Engine(parts, problem=data, batch_size=64, batched=batched, threads=1)
        c = dict.fromkeys(engine.names, 1e-4)
        jobs = [Job(data, initial, c, seed=k, epochs=10) for k in range(count)]
        list(engine.train(jobs))  # compiles

        def timed(engine: Engine = engine, jobs: list[Job] = jobs) -> float:
            begun = time.perf_counter()
            list(engine.train(jobs))
            return time.perf_counter() - begun

        timers[name] = timed
    times = measure.interleaved(timers, rounds)
    ratio = [a / b for a, b in zip(times["one by one"], times["vmapped"], strict=True)]
    found = {k: measure.spread(v) for k, v in {**times, "ratio": ratio}.items()}
    return {"jobs": count, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backends", default="jax,torch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--any-device", action="store_true")
    parser.add_argument("--output", default="runs/benchmarks/gpu.json")
    parser.add_argument("--jobs", type=int, default=64)
    parser.add_argument("--child", choices=("norms", "jobs"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        jobs = arguments.child == "jobs"
        found = many(arguments.jobs, arguments.rounds) if jobs else check()
        print(json.dumps(found))
        return
    os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
    results: dict[str, Any] = {}
    for backend in arguments.backends.split(","):
        found = results[backend] = measure.child(
            sys.argv[0], ["--child", "norms"], backend
        )
        if not (found["device"] or arguments.any_device):
            sys.exit(f"{backend} found no GPU here: run this where there is one.")
        print(
            f"{backend} on {found['device'] or 'a processor'}: norms differ from "
            f"float64 by {found['largest_difference']:.1e} at most (expected: 1e-4)",
            flush=True,
        )
    del os.environ["JAX_DEFAULT_MATMUL_PRECISION"]
    if "jax" in results:
        options = ["--child", "jobs", "--jobs", str(arguments.jobs)]
        options += ["--rounds", str(arguments.rounds)]
        found = results["jax"]["jobs"] = measure.child(sys.argv[0], options, "jax")
        print(
            f"jax: {arguments.jobs} trainings vmapped "
            f"{found['vmapped']['median']:.2f} s, "
            f"one by one {found['one by one']['median']:.2f} s: "
            f"{found['ratio']['median']:.1f} times as fast",
            flush=True,
        )
    measure.save(arguments.output, results)
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "monitor_cost.py")
    cost = ["--networks", "dense", "--backends", arguments.backends]
    cost += ["--rounds", str(arguments.rounds)]
    subprocess.run([sys.executable, script, *cost], check=True)


if __name__ == "__main__":
    main()
