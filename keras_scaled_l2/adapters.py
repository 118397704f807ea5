"""How many examples an epoch has, by what Keras's data adapters tell."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras

from keras_scaled_l2 import _keras
from keras_scaled_l2.gradients import to_numpy


class Counted(NamedTuple):
    """What can be known of the data of a ``fit``; ``None`` where it cannot."""

    samples: int | None
    """Training examples of one epoch; the fewest there can be."""
    batch_size: int | None
    more: int = 0
    """How many more there may be, where a last partial batch does not tell its size."""


UNKNOWN = Counted(None, None)


def count(adapter: Any, steps: int | None) -> Counted:
    """What an adapter tells of an epoch, of so many steps if they were given."""
    loader = _keras.torch_loader(adapter)
    if loader is not None:
        return _count_of_loader(loader)
    sequence = getattr(adapter, "py_dataset", None)
    if sequence is not None:
        return _count_of_sequence(sequence)
    if _keras.tf_dataset(adapter) is not None:
        return _count_of_dataset(adapter, steps)
    try:
        batches, batch_size = adapter.num_batches, adapter.batch_size
        partial = adapter.partial_batch_size if adapter.has_partial_batch else None
    except (AttributeError, NotImplementedError):
        return UNKNOWN
    if batches is None or batch_size is None:
        return Counted(None, batch_size)
    last = batch_size if partial is None else partial
    return Counted((int(batches) - 1) * int(batch_size) + int(last), int(batch_size))


def _count_of_dataset(adapter: Any, steps: int | None) -> Counted:
    """Of a ``tf.data`` set: repeated ones hold several epochs, unless steps tell."""
    try:
        size, batches = adapter.batch_size, adapter.num_batches
    except AttributeError:  # of a strategy: it tells the shapes of each replica's part
        return UNKNOWN
    if size is not None:
        if batches is None:  # endless: nobody knows what it repeats
            return Counted(None, int(size))
        # No batch is smaller: its size is a part of the type. Keras goes on where an
        # epoch of fewer steps ended, and so sees all that is not a repetition.
        if steps and _repeats(_keras.tf_dataset(adapter)):
            batches = min(steps, batches)
        return Counted(batches * int(size), int(size))
    size, samples = _batching(_keras.tf_dataset(adapter))
    if size is None or batches is None or (steps and steps != batches):
        return Counted(None, size)
    if -(-samples // size) == batches:
        return Counted(samples, size)
    return Counted((batches - 1) * size + 1, size, more=size - 1)


def _repeats(dataset: Any) -> bool:
    """Whether a ``tf.data`` set, or what it is made of, repeats itself."""
    inputs = [dataset]
    while inputs:
        below = inputs.pop()
        if "Repeat" in type(below).__name__:
            return True
        inputs += below._inputs()
    return False


# Classes of tf.data that hand on each of their elements, changed or not: exactly these,
# since others are called nearly so (FlatMap).
_ONE_TO_ONE = (
    "Prefetch",
    "Map",
    "ParallelMap",
    "Options",
    "Cache",
    "AssertCardinality",
)


def _batching(dataset: Any) -> tuple[int | None, int]:
    """Examples of each batch but the last, of a ``tf.data`` set that batches once.

    And how many it batches, a negative number where that is not known.
    """
    mapped: list[Any] = []
    while dataset is not None:
        kind = type(dataset).__name__.strip("_").removesuffix("Dataset")
        size = getattr(dataset, "_batch_size", None)
        if size is not None:
            size = int(to_numpy(size))
            known = not _batches_below(dataset) and _keep_size(mapped, dataset, size)
            if not known:
                break
            return size, int(dataset._input_dataset.cardinality())
        if kind not in _ONE_TO_ONE:
            break
        if kind.endswith("Map"):
            mapped.append(dataset)
        dataset = getattr(dataset, "_input_dataset", None)
    return None, -1


def _keep_size(mapped: list[Any], batches: Any, size: int) -> bool:
    """Whether what is mapped over the batches of a ``tf.data`` set keeps their size.

    Traced once more, for batches of known size: TensorFlow tells the shapes that come
    out. What it cannot tell is taken for another size.
    """
    if not mapped:
        return True
    try:
        whole = batches._input_dataset.batch(size, drop_remainder=True)
        for dataset in reversed(mapped):
            whole = whole.map(dataset._map_func._func)
    except Exception:  # a function of the user's, that may not like to be traced again
        return False
    return bool(keras.tree.flatten(whole.element_spec)[0].shape[0] == size)


def _batches_below(dataset: Any) -> bool:
    """Whether what a ``tf.data`` set batches may be batches already."""
    inputs = list(dataset._inputs())
    while inputs:
        below = inputs.pop()
        if (
            getattr(below, "_batch_size", getattr(below, "_batch_sizes", None))
            is not None
        ):
            return True
        inputs += below._inputs()
    return False


def _count_of_sequence(sequence: Any) -> Counted:
    """Of a ``PyDataset``, taken to have batches of one size but for the last.

    Its first and last batch, which are made for this, tell their sizes.
    """
    batches = sequence.num_batches
    if not batches:
        return UNKNOWN
    first, last = (_length(sequence[i]) for i in (0, batches - 1))
    if last > first:  # batches of several sizes
        return UNKNOWN
    return Counted(first * (int(batches) - 1) + last, first)


def _length(batch: Any) -> int:
    return int(keras.tree.flatten(batch)[0].shape[0])


def _count_of_loader(loader: Any) -> Counted:
    """Of a torch DataLoader, which Keras takes to yield its whole data set."""
    if loader.batch_size is None:
        return UNKNOWN
    try:
        samples = len(loader.sampler)
    except TypeError:
        return Counted(None, loader.batch_size)
    if loader.drop_last:
        samples -= samples % loader.batch_size
    return Counted(samples, loader.batch_size)
