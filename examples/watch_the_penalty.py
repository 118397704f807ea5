"""Watch data cost, penalty and both gradients of a 35-million-weight classifier.

Trains it under Keras's L2(0.01), the rule of the question, and under SampleL2(1.0), and
writes a TensorBoard run for each. Then:

    tensorboard --logdir runs/watch

CUSTOM SCALARS shows data against penalty, and the ratio of the two gradients.

    python examples/watch_the_penalty.py [units per layer]
"""

import sys

import keras
import numpy as np

from keras_scaled_l2 import ApplyL2, CostMonitor, SampleL2

UNITS = int(sys.argv[1]) if len(sys.argv) > 1 else 5536
SAMPLES, INPUTS = 2048, 784

rng = np.random.default_rng(0)
x = rng.normal(size=(SAMPLES, INPUTS)).astype("float32")
y = (x[:, :10].sum(axis=1, keepdims=True) > 0).astype("float32")


def build() -> keras.Model:
    """The classifier, from the same initial weights each time."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((INPUTS,)),
            keras.layers.Dense(UNITS, activation="relu", name="hidden_1"),
            keras.layers.Dense(UNITS, activation="relu", name="hidden_2"),
            keras.layers.Dense(1, name="output"),
        ],
        name="classifier",
    )
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.02, momentum=0.9), loss)
    return model


for name, rule in {
    "L2(0.01)": keras.regularizers.L2(0.01),
    "SampleL2(1.0)": SampleL2(1.0),
}.items():
    print(f"\n{name}")
    build().fit(
        x,
        y,
        batch_size=128,
        epochs=6,
        validation_split=0.25,
        verbose=2,
        callbacks=[
            ApplyL2(rule),
            CostMonitor(f"runs/watch/{name}", update_freq=2),
        ],
    )
