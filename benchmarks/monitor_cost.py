"""What CostMonitor adds to a training step, against a second backward pass.

    python benchmarks/monitor_cost.py [--rounds 7] [--steps 20]

Bare fit, CostMonitor by epoch, every 10 steps, every step, and a hand-made second
backward pass every step; a dense network of 35 million weights and a small
convolutional one, batch 128, interleaved, on each backend. "by neighbors" measures
every second step of one fit and compares each with the next one, which the drift of a
machine from one fit to another does not touch; not on JAX, whose steps end later than
their calls. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from typing import Any

import measure


def build(network: str, xla: bool) -> Any:
    import keras

    from keras_scaled_l2 import ScaledL2

    keras.utils.set_random_seed(0)
    dense = {"kernel_regularizer": ScaledL2(1e-4, per=1)}
    layers = keras.layers
    stack = (
        [
            keras.Input((784,)),
            layers.Dense(5536, activation="relu", **dense),
            layers.Dense(5536, activation="relu", **dense),
            layers.Dense(10, **dense),
        ]
        if network == "dense"
        else [
            keras.Input((28, 28, 1)),
            layers.Conv2D(16, 3, strides=2, activation="relu", **dense),
            layers.Conv2D(32, 3, strides=2, activation="relu", **dense),
            layers.Flatten(),
            layers.Dense(10, **dense),
        ]
    )
    model = keras.Sequential(stack)
    jit = xla if keras.backend.backend() != "torch" else False
    model.compile(
        keras.optimizers.Adam(1e-4),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=jit,
    )
    return model


def second_pass(model: Any, x: Any, y: Any) -> Any:
    """A callback that computes the gradients again, as users do by hand."""
    import keras

    from keras_scaled_l2.gradients import loss_gradients, sum_of_squares

    batch = (
        keras.ops.convert_to_tensor(x[:128]),
        keras.ops.convert_to_tensor(y[:128]),
    )

    def loss() -> Any:
        return model.compute_loss(*batch, model(batch[0], training=True))

    def norms() -> Any:
        gradients = loss_gradients(model, loss)
        return keras.ops.stack([sum_of_squares(g) for g in gradients if g is not None])

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        norms = tf.function(norms)
    elif keras.backend.backend() == "jax":
        norms = _jax_norms(model, loss)

    class SecondPass(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            # Asking for the model brings JAX's state back, as any such callback must.
            assert self.model is model
            keras.ops.convert_to_numpy(norms())

    return SecondPass()


def _jax_norms(model: Any, loss: Any) -> Any:
    import jax
    import keras

    from keras_scaled_l2.gradients import sum_of_squares

    def at(values: Any) -> Any:
        mapping = list(zip(model.trainable_variables, values, strict=True))
        with keras.StatelessScope(state_mapping=mapping):
            return loss()

    @jax.jit
    def squares(values: Any) -> Any:
        return keras.ops.stack([sum_of_squares(g) for g in jax.grad(at)(values)])

    return lambda: squares([v.value for v in model.trainable_variables])


def by_neighbors(model: Any, x: Any, y: Any, folder: str) -> dict[str, float]:
    """What a measured step takes more than the one after it, as a share of that."""
    import keras
    import numpy as np

    from keras_scaled_l2 import CostMonitor

    seconds: list[float] = []

    class Clock(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            self.start = time.perf_counter()

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            seconds.append(time.perf_counter() - self.start)

    model.fit(
        x,
        y,
        batch_size=128,
        epochs=4,
        shuffle=False,
        verbose=0,
        callbacks=[CostMonitor(folder, update_freq=2), Clock()],
    )
    # Both kinds of steps are compiled in the first epoch.
    pairs = np.reshape(seconds[len(x) // 128 :], (-1, 2))
    low, middle, high = np.quantile(pairs[:, 0] / pairs[:, 1] - 1, (0.25, 0.5, 0.75))
    return {"median": middle, "min": low, "max": high}


def run(network: str, xla: bool, rounds: int, steps: int) -> dict[str, Any]:
    import keras
    import numpy as np

    from keras_scaled_l2 import CostMonitor

    rng = np.random.default_rng(0)
    shape = (784,) if network == "dense" else (28, 28, 1)
    x = rng.normal(size=(128 * steps, *shape)).astype("float32")
    y = rng.integers(0, 10, size=128 * steps)
    epochs = 3
    kept = tempfile.TemporaryDirectory()

    def once(variant: str) -> float:
        model = build(network, xla)
        clock = measure.epoch_clock()
        frequency = {"epoch": "epoch", "every 10": 10, "every step": 1}.get(variant)
        callbacks: list[Any] = []
        if frequency is not None:
            callbacks = [CostMonitor(f"{kept.name}/{variant}", update_freq=frequency)]
        elif variant == "second pass":
            callbacks = [second_pass(model, x, y)]
        model.fit(
            x,
            y,
            batch_size=128,
            epochs=epochs,
            shuffle=False,
            verbose=0,
            callbacks=[*callbacks, clock],
        )
        return min(clock.seconds[1:])

    variants = ("bare", "epoch", "every 10", "every step", "second pass")
    times: dict[str, list[float]] = {v: [] for v in variants}
    for number in range(rounds):
        turn = number % len(variants)
        for variant in variants[turn:] + variants[:turn]:
            times[variant].append(once(variant))
    adds = {v: measure.added(times, v, "bare") for v in variants[1:]}
    if keras.backend.backend() != "jax":
        folder = f"{kept.name}/neighbors"
        adds["by neighbors"] = by_neighbors(build(network, xla), x, y, folder)
    return {
        "seconds_per_step": {
            v: measure.spread([t / steps for t in times[v]]) for v in variants
        },
        "adds": adds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="an even number")
    parser.add_argument("--networks", default="dense,conv")
    parser.add_argument("--backends", default="tensorflow,jax,torch")
    parser.add_argument("--output", default="runs/benchmarks/monitor_cost.json")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        network, mode = arguments.child
        found = run(network, mode == "xla", arguments.rounds, arguments.steps)
        print(json.dumps(found))
        return
    results: dict[str, Any] = {"machine": measure.machine()}
    passed = ["--rounds", str(arguments.rounds), "--steps", str(arguments.steps)]
    for network in arguments.networks.split(","):
        results[network] = {}
        print(f"\n{network}, batch 128, Adam: added to a step")
        for backend, xla in measure.SETTINGS:
            if backend not in arguments.backends.split(","):
                continue
            name = f"{backend}{' XLA' if xla else ''}"
            mode = "xla" if xla else "plain"
            found = measure.child(
                sys.argv[0], [*passed, "--child", network, mode], backend
            )
            results[network][name] = found
            for variant, values in found["adds"].items():
                print(f"{name:16} {variant:12} {measure.percent(values)}", flush=True)
    measure.save(arguments.output, results)


if __name__ == "__main__":
    main()
