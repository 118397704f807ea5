"""What the benchmarks share: interleaved timing, spread, child processes."""

from __future__ import annotations

import json
import os
import pathlib
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

# (backend, compiled by XLA); Keras leaves it off on TensorFlow without a GPU.
SETTINGS = [
    ("tensorflow", False),
    ("tensorflow", True),
    ("jax", True),
    ("torch", False),
]


def interleaved(
    functions: Mapping[str, Callable[[], float]], rounds: int
) -> dict[str, list[float]]:
    """The seconds that each function returns, in turn, after one round not counted.

    The order changes from round to round, so that none always follows the same one.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    names = list(functions)
    for number in range(rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            seconds = functions[name]()
            if number:
                times[name].append(seconds)
    return times


def accelerator() -> str:
    """Name of the device that Keras puts its tensors on; empty for a processor."""
    import keras

    if keras.backend.backend() == "jax":
        import jax

        first = jax.devices()[0]
        return "" if first.platform == "cpu" else str(first.device_kind)
    if keras.backend.backend() == "torch":
        import torch

        return torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    import tensorflow as tf

    found = tf.config.list_physical_devices("GPU")
    return str(found[0].name) if found else ""


def epoch_clock() -> Any:
    """A Keras callback with the seconds of each epoch, from its first batch on.

    Not those of ``fit``, nor those before the first batch: on TensorFlow both wait for
    threads of the data that went before, up to seconds, whatever is measured.
    """
    import keras

    class Clock(keras.callbacks.Callback):
        async_safe = True

        def __init__(self) -> None:
            super().__init__()
            self.seconds: list[float] = []
            self._start: float | None = None

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            # JAX calls this from several threads, in any order: the first one counts.
            if self._start is None:
                self._start = time.perf_counter()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            assert self._start is not None
            self.seconds.append(time.perf_counter() - self._start)
            self._start = None

    return Clock()


def spread(values: list[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def added(times: Mapping[str, list[float]], name: str, base: str) -> dict[str, float]:
    """What a function adds to the base, as a share of it, round by round."""
    pairs = zip(times[name], times[base], strict=True)
    return spread([a / b - 1.0 for a, b in pairs])


def child(script: str, arguments: list[str], backend: str) -> dict[str, Any]:
    """Run this script again in a process of its own; its last line is JSON."""
    environment = os.environ | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    result = subprocess.run(
        [sys.executable, script, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        sys.exit(f"{backend} {' '.join(arguments)} failed:\n{result.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])
    return found


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


def save(path: str, content: dict[str, Any]) -> None:
    """Write JSON, making the folder."""
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(path).write_text(json.dumps(content, indent=1) + "\n")
    print(f"\nwritten to {path}")


def percent(values: Mapping[str, float]) -> str:
    """``median (min to max)`` in percent."""
    return f"{values['median']:+7.1%} ({values['min']:+.1%} to {values['max']:+.1%})"
