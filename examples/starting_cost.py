"""The question that started the package: why does the cost begin at 50, not 0.69?

A binary classifier with 35 million weights, its cost before the first step under
several penalties, and beside each the penalty's gradient relative to that of the
data: value and gradient are two questions.

    python examples/starting_cost.py
"""

import keras
import numpy as np

from keras_scaled_l2 import SampleL2, ScaledL2, attach, cost_report, detach

SAMPLES, INPUTS, BATCH = 5000, 784, 256
keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)
x = rng.normal(size=(BATCH, INPUTS)).astype("float32")
y = (x[:, :10].sum(axis=1, keepdims=True) > 0).astype("float32")

model = keras.Sequential(
    [
        keras.Input((INPUTS,)),
        keras.layers.Dense(5536, activation="relu"),
        keras.layers.Dense(5536, activation="relu"),
        keras.layers.Dense(1),
    ]
)
model.compile("adam", keras.losses.BinaryCrossentropy(from_logits=True))
print(f"{model.count_params():,} weights; guessing costs ln 2 = {np.log(2):.2f}\n")

print(f"{'':34}   coefficient      cost =   data + penalty   penalty / data gradient")
for name, rule in {
    "keras.regularizers.L2(0.01)": keras.regularizers.L2(0.01),
    "ScaledL2(0.01), by tensor": ScaledL2(0.01),
    "ScaledL2(0.01, per='model')": ScaledL2(0.01, per="model"),
    "SampleL2(0.01), m = 5000": SampleL2(0.01, samples=SAMPLES),
    "SampleL2(1.0), m = 5000": SampleL2(1.0, samples=SAMPLES),
}.items():
    attach(model, rule)
    report = cost_report(model, x, y).to_dict()
    cost, c = report["cost"], report["weights"][1]["coefficient"]
    print(
        f"{name:34} {c:13.3g} {cost['total']:9.3f} = {cost['data']:6.3f} + "
        f"{cost['penalty']:7.3f}   {report['gradient_ratio']:.2g}"
    )
    detach(model)
