"""What a penalty adds to a training step: none, Keras's L2, ours, side by side.

    python benchmarks/penalty_cost.py [--rounds 9] [--steps 6] [--skip-large]

35 million weights, batch 32, Adam, interleaved in one process for each backend; and 300
million weights, one process each, for peak memory. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
from typing import Any

import measure

VARIANTS = ("none", "keras", "ours")
UNITS = {35: 5536, 300: 16944}  # two hidden layers on 784 inputs


def build(variant: str, units: int, xla: bool) -> Any:
    import keras

    from keras_scaled_l2 import ScaledL2

    keras.utils.set_random_seed(0)
    rule = {
        "none": None,
        "keras": keras.regularizers.L2(1e-4),
        "ours": ScaledL2(1e-4, per=1),
    }[variant]
    model = keras.Sequential([keras.Input((784,))])
    for size, activation in ((units, "relu"), (units, "relu"), (1, None)):
        model.add(
            keras.layers.Dense(size, activation=activation, kernel_regularizer=rule)
        )
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    # On torch True would mean torch.compile, which is not what is measured here.
    jit = xla if keras.backend.backend() != "torch" else False
    model.compile(keras.optimizers.Adam(1e-4), loss, jit_compile=jit)
    return model


def data(steps: int) -> tuple[Any, Any]:
    import numpy as np

    rng = np.random.default_rng(0)
    x = rng.normal(size=(32 * steps, 784)).astype("float32")
    return x, (x[:, :1] > 0).astype("float32")


def seconds_of_epoch(model: Any, x: Any, y: Any) -> float:
    clock = measure.epoch_clock()
    model.fit(x, y, batch_size=32, shuffle=False, verbose=0, callbacks=[clock])
    return float(clock.seconds[0])


def run_interleaved(xla: bool, rounds: int, steps: int) -> dict[str, Any]:
    x, y = data(steps)

    def trainer(variant: str) -> Any:
        model = build(variant, UNITS[35], xla)
        return lambda: seconds_of_epoch(model, x, y)

    times = measure.interleaved({v: trainer(v) for v in VARIANTS}, rounds)
    share = [
        (ours - none) / (keras - none)
        for none, keras, ours in zip(*(times[v] for v in VARIANTS), strict=True)
    ]
    return {
        "seconds_per_step": {
            v: measure.spread([t / steps for t in times[v]]) for v in VARIANTS
        },
        "keras_adds": measure.added(times, "keras", "none"),
        "ours_adds": measure.added(times, "ours", "none"),
        "ours_over_keras": measure.spread(share),
    }


def run_large(variant: str, xla: bool) -> dict[str, Any]:
    x, y = data(3)
    model = build(variant, UNITS[300], xla)
    model.fit(x[:32], y[:32], batch_size=32, verbose=0)
    seconds = seconds_of_epoch(model, x, y) / 3
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"seconds_per_step": seconds, "peak_GiB": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--skip-large", action="store_true")
    parser.add_argument("--output", default="runs/benchmarks/penalty_cost.json")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        what, xla = arguments.child[0], arguments.child[1] == "xla"
        result = (
            run_interleaved(xla, arguments.rounds, arguments.steps)
            if what == "small"
            else run_large(what, xla)
        )
        print(json.dumps(result))
        return
    results: dict[str, Any] = {"machine": measure.machine(), "small": {}, "large": {}}
    passed = ["--rounds", str(arguments.rounds), "--steps", str(arguments.steps)]
    print("35 million weights, batch 32, Adam: what a penalty adds to a step")
    print(f"{'':16} {'Keras L2':>30} {'ours':>30}   ours / Keras's")
    for backend, xla in measure.SETTINGS:
        name = f"{backend}{' XLA' if xla else ''}"
        mode = "xla" if xla else "plain"
        found = measure.child(sys.argv[0], [*passed, "--child", "small", mode], backend)
        results["small"][name] = found
        share = found["ours_over_keras"]
        print(
            f"{name:16} {measure.percent(found['keras_adds']):>30} "
            f"{measure.percent(found['ours_adds']):>30}   {share['median']:.2f} "
            f"({share['min']:.2f} to {share['max']:.2f})",
            flush=True,
        )
    if not arguments.skip_large:
        print("\n300 million weights: seconds per step, peak memory in GiB")
        for backend, xla in measure.SETTINGS:
            name = f"{backend}{' XLA' if xla else ''}"
            mode = "xla" if xla else "plain"
            found = {
                v: measure.child(sys.argv[0], ["--child", v, mode], backend)
                for v in VARIANTS
            }
            results["large"][name] = found
            cells = "   ".join(
                f"{v}: {r['seconds_per_step']:.2f} s {r['peak_GiB']:.2f} GiB"
                for v, r in found.items()
            )
            print(f"{name:16} {cells}", flush=True)
    measure.save(arguments.output, results)


if __name__ == "__main__":
    main()
