"""Batches of the training data, in the same order for all arms of a seed."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np


class Batches(keras.utils.PyDataset):
    """The training data in an order of its own, without a copy of it.

    Keras's shuffling draws from a state that earlier runs have moved on; here the
    order of an epoch follows from ``(seed, epoch)`` alone, so that all arms of a seed
    see the same batches.

    Args:
        x: Features.
        y: Labels or targets.
        batch_size: Examples per batch; the last one holds what is left.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, batch_size: int) -> None:
        super().__init__()
        self.x = x
        self.y = y
        self.batch_size = batch_size
        # One full batch and one like the last: what a warm-up needs to see.
        self.order = np.arange(min(len(x), batch_size + len(x) % batch_size))

    def __len__(self) -> int:
        """Number of batches of the present order."""
        return math.ceil(len(self.order) / self.batch_size)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The batch at this place of the present order."""
        chosen = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        return self.x[chosen], self.y[chosen]

    def draw(self, seed: int, epoch: int) -> None:
        """Take the order of an epoch."""
        self.order = np.random.default_rng([seed, epoch]).permutation(len(self.x))


class DrawOrder(keras.callbacks.Callback):
    """Draws the order of each epoch, before Keras takes the first batch of it.

    Args:
        batches: The data to order.
        seed: The seed of the run.
    """

    async_safe = True

    def __init__(self, batches: Batches, seed: int) -> None:
        super().__init__()
        self._batches = batches
        self._seed = seed
        batches.draw(seed, 0)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Draws the order of this epoch."""
        self._batches.draw(self._seed, epoch)
