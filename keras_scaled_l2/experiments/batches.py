"""Batches of the data as NumPy has them, in the same order for all arms of a seed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

# Private, but fit() takes its instances in place of the data: "a custom data adapter".
from keras.src.trainers.data_adapters.data_adapter import DataAdapter


class Batches(DataAdapter):
    """Data in batches, in an order of their own, without a copy of them.

    Keras's shuffling draws from a state that earlier runs have moved on; here the
    order of an epoch follows from ``(seed, epoch)`` alone, so that all arms of a seed
    see the same batches. And Keras's own adapters cost more than small networks do: on
    TensorFlow each pass starts threads, and waits for them where it ends.

    Args:
        x: Features.
        y: Labels or targets.
        batch_size: Examples per batch; the last one holds what is left.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, batch_size: int) -> None:
        self.x = x
        self.y = y
        self.order: np.ndarray | None = None
        """Places of the examples; ``None`` for that of the arrays."""
        self._batch_size = batch_size

    def draw(self, seed: int, epoch: int) -> None:
        """Take the order of an epoch."""
        self.order = np.random.default_rng([seed, epoch]).permutation(len(self.x))

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """One pass in the present order."""
        for start in range(0, len(self.x), self._batch_size):
            part = slice(start, start + self._batch_size)
            chosen = part if self.order is None else self.order[part]
            yield self.x[chosen], self.y[chosen]

    def get_numpy_iterator(self) -> Batches:
        """The batches themselves: each backend's step takes NumPy's arrays."""
        return self

    get_tf_dataset = get_jax_iterator = get_torch_dataloader = get_numpy_iterator

    @property
    def num_batches(self) -> int:
        """Batches of a pass."""
        return -(-len(self.x) // self._batch_size)

    @property
    def batch_size(self) -> int:
        """Examples per batch, but for the last."""
        return self._batch_size

    @property
    def has_partial_batch(self) -> bool:
        """Whether the last batch is a smaller one."""
        return self.partial_batch_size is not None

    @property
    def partial_batch_size(self) -> int | None:
        """Examples of a smaller last batch."""
        return len(self.x) % self._batch_size or None


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

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Draws the order of this epoch."""
        self._batches.draw(self._seed, epoch)
