"""Engines for the tests: small networks, and the plain Keras model beside each."""

import functools

import keras
import numpy as np

from keras_scaled_l2.experiments.architectures import dense, initial_weights
from keras_scaled_l2.experiments.arrays import checked
from keras_scaled_l2.experiments.coefficients import penalizable
from keras_scaled_l2.experiments.engine import Engine
from keras_scaled_l2.experiments.jobs import Job
from keras_scaled_l2.experiments.problems import Source
from keras_scaled_l2.experiments.program import make_parts

BATCH = 8
OPTIMIZERS = {
    "sgd": functools.partial(keras.optimizers.SGD, 0.1, momentum=0.9),
    "plain sgd": functools.partial(keras.optimizers.SGD, 0.1),
    "adam": functools.partial(keras.optimizers.Adam, 0.01),
    # Of 4 steps to an epoch: updates are not where epochs end.
    "accumulating": functools.partial(
        keras.optimizers.SGD, 0.1, momentum=0.9, gradient_accumulation_steps=3
    ),
}
LOSSES = {
    "classes": functools.partial(
        keras.losses.SparseCategoricalCrossentropy, from_logits=True
    ),
    "binary": functools.partial(keras.losses.BinaryCrossentropy, from_logits=True),
    "regression": keras.losses.MeanSquaredError,
}


@functools.cache
def make_problem(task="classes", shape=(4,), examples=50):
    """30 examples to train on, in batches of 8: the last one has 6."""
    x = np.random.default_rng(0).normal(size=(examples, *shape)).astype("float32")
    first = x.reshape(examples, -1)[:, 0]
    y = {
        "classes": np.digitize(first, [-0.5, 0.5]),
        "binary": (first > 0).astype(int),
        "regression": first * 2.5,
    }[task]
    return Source("made up", checked({"x_train": x, "y_train": y}, name="x")).split(0)


def make_network(problem, seed=0):
    return dense(problem, [6]).build(seed)


def make_engine(
    problem, network=None, *, drops=False, optimizer="sgd", decays=False, **options
):
    """Of a function that makes a network, or of one network: then in one thread."""

    def parts():
        made = make_network(problem) if network is None else network
        return make_parts(made, OPTIMIZERS[optimizer](), drops=drops)

    if isinstance(network, keras.Model):
        options.setdefault("threads", 1)
    return Engine(parts, problem=problem, batch_size=BATCH, decays=decays, **options)


@functools.cache
def shared_engine(task="classes", **options):
    """One for all tests: that no job leaves anything behind is a test of its own."""
    return make_engine(make_problem(task), **options)


def start(problem, seed=0):
    return initial_weights(make_network(problem, seed))


def train(engine, *jobs, **options):
    """What the jobs left, in their order."""
    found = dict(engine.train(jobs, weights=True, **options))
    results = [found[i] for i in range(len(jobs))]
    return results if len(jobs) > 1 else results[0]


def job(problem, coefficients=None, *, initial=None, seed=2, epochs=2, **options):
    initial = start(problem) if initial is None else initial
    return Job(problem, initial, coefficients or {}, seed, epochs, **options)


def ordinary_fit(network, problem, coefficients, *, optimizer, seed, epochs):
    """An ordinary Keras model, trained by ``fit`` on the batches of a job.

    Args:
        coefficients: By the names of ``penalizable``.
    """
    for name, variable in penalizable(network).items():
        c = coefficients.get(name)
        variable.regularizer = None if c is None else keras.regularizers.L2(c)
    network.compile(optimizer, LOSSES[problem.task]())
    n = len(problem.x_train)

    def batches():
        for epoch in range(epochs):
            order = np.random.default_rng([seed, epoch]).permutation(n)
            for i in range(0, n, BATCH):
                chosen = order[i : i + BATCH]
                yield problem.x_train[chosen], problem.y_train[chosen]

    # One call: each has a cost of its own, and the weights are all that is asked.
    steps = epochs * -(-n // BATCH)
    network.fit(batches(), steps_per_epoch=steps, shuffle=False, verbose=0)
    for variable in network.weights:
        variable.regularizer = None
    return initial_weights(network)
