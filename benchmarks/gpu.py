"""On a GPU: the monitor's numbers against float64 NumPy, and what they cost.

    python benchmarks/gpu.py [--backends jax,torch] [--rounds 3] [--any-device]

For each backend: the norms of data gradient, penalty gradient and weight as a training
step measured them, against the same by hand in float64; then monitor_cost.py's table
for the dense network. Everything is recorded with the device's name. JAX's matrix
products are asked for in full precision for the first part.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from typing import Any

import measure

C = 1e-2


def device() -> str:
    """Name of the device that Keras puts its tensors on; empty for a processor."""
    import keras

    if keras.backend.backend() == "jax":
        import jax

        first = jax.devices()[0]
        return "" if first.platform == "cpu" else str(first.device_kind)
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


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

    from keras_scaled_l2.probe import probe_gradients

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
            self.probe = probe_gradients(self.model, self)
            self.probe.watch(lambda: True, records.append)

        def on_train_end(self, logs: Any = None) -> None:
            self.probe.remove()

    model.fit(x, y, batch_size=128, shuffle=False, verbose=0, callbacks=[Watch()])
    kernels = [n for path, n in records[0].norms.items() if path.endswith("kernel")]
    found = [value for norms in kernels for value in norms[:3]]
    differences = [abs(a / b - 1) for a, b in zip(found, expected, strict=True)]
    return {"device": device(), "largest_difference": max(differences)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backends", default="jax,torch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--any-device", action="store_true")
    parser.add_argument("--output", default="runs/benchmarks/gpu.json")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(check()))
        return
    os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
    results: dict[str, Any] = {}
    for backend in arguments.backends.split(","):
        found = results[backend] = measure.child(sys.argv[0], ["--child"], backend)
        if not (found["device"] or arguments.any_device):
            sys.exit(f"{backend} found no GPU here: run this where there is one.")
        print(
            f"{backend} on {found['device'] or 'a processor'}: norms differ from "
            f"float64 by {found['largest_difference']:.1e} at most (expected: 1e-4)",
            flush=True,
        )
    measure.save(arguments.output, results)
    del os.environ["JAX_DEFAULT_MATMUL_PRECISION"]
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "monitor_cost.py")
    cost = ["--networks", "dense", "--backends", arguments.backends]
    cost += ["--rounds", str(arguments.rounds)]
    subprocess.run([sys.executable, script, *cost], check=True)


if __name__ == "__main__":
    main()
