"""What an experiment runs on: versions and device."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import pathlib
import platform
import sys

import keras


@functools.cache
def versions() -> dict[str, str]:
    """Version of everything that the numbers depend on."""
    names = ["keras", "numpy", keras.backend.backend()]
    found = {name: importlib.metadata.version(name) for name in names}
    from keras_scaled_l2 import __version__

    python = ".".join(map(str, sys.version_info[:3]))
    return {"python": python, "keras_scaled_l2": __version__, **found}


def device() -> str:
    """The device that Keras puts its tensors on; the processor in any case."""
    # Every backend's tensors name it, each in words of its own.
    device = str(getattr(keras.ops.zeros(()), "device", "")).rpartition("device:")[2]
    processor = f"{_processor()}, {os.cpu_count()} cores"
    return processor if "cpu" in device.lower() else f"{device}; {processor}"


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [
        line.partition(":")[2].strip() for line in lines if line.startswith("model n")
    ]
    return models[0] if models else platform.processor() or platform.machine()
