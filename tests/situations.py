"""The situations in which a monitored training must be right: issue 4, point 2.

Each is a function ``(penalty) -> compiled model``; called twice it gives the same
weights. ``penalty`` is a regularizer for the weights that carry one, or ``None``.
"""

import contextlib
import dataclasses
import functools
import unittest.mock
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers, ops
from models import data

BACKEND = keras.config.backend()
C = 0.05
BATCH = 4
# Whole batches: on JAX another batch size is another compilation.
X, Y = data(2 * BATCH)
VALIDATION = data(BATCH, seed=1)
# Where it matters: the last batch of an epoch is half as large.
x, y = data(2 * BATCH + BATCH // 2)
PARTIAL = {"x": x, "y": y, "validation_data": data(BATCH + BATCH // 2, seed=1)}


@dataclasses.dataclass(frozen=True)
class Situation:
    """A model, how it is trained, and what the norms of its first step compare to."""

    name: str
    make: Callable[[Any], keras.Model]
    fit: dict[str, Any] = dataclasses.field(default_factory=dict)
    # Weights of the examples that mean what fit was told in another way.
    sample_weight: Any = None
    # What the loss is multiplied by before the gradient is taken.
    scale: float = 1.0
    # The measured step of an epoch; with several in one execution the last of them.
    step: int = 0
    # Relative error of the data gradient that the step's own precision allows.
    rounding: float = 1e-4
    # Whether training may not differ in a single bit, where the backend allows it.
    exact: bool = True
    # Entered for the training.
    context: Callable[[], Any] = contextlib.nullcontext
    # What Keras itself warns of there, with the monitor or without.
    warning: str | None = None

    def build(self, penalty=None):
        keras.utils.set_random_seed(7)
        return self.make(penalty)

    @property
    def arguments(self):
        """What fit is called with."""
        return {
            "x": X,
            "y": Y,
            "validation_data": VALIDATION,
            "batch_size": BATCH,
            "shuffle": False,
            "verbose": 0,
            **self.fit,
        }

    def batch(self):
        """``(x, y, sample_weight)`` of the measured step."""
        rows = slice(self.step * BATCH, (self.step + 1) * BATCH)
        weight = self.fit.get("sample_weight", self.sample_weight)
        return keras.tree.map_structure(
            lambda leaf: None if leaf is None else leaf[rows],
            (self.arguments["x"], self.arguments["y"], weight),
        )


SITUATIONS: dict[str, Situation] = {}


def situation(**facts):
    """Add the situation that is built by the decorated function."""

    def add(make):
        SITUATIONS[make.__name__] = Situation(make.__name__, make, **facts)
        return make

    return add


def network(penalty, optimizer=None, hidden=None, **compile_arguments):
    """4-3-1, two penalized kernels and two free biases."""
    model = keras.Sequential(
        [
            keras.Input((4,)),
            hidden
            or layers.Dense(3, "tanh", kernel_regularizer=penalty, name="hidden"),
            layers.Dense(1, kernel_regularizer=penalty, name="out"),
        ],
        name="network",
    )
    return compiled(model, optimizer, **compile_arguments)


def compiled(model, optimizer=None, **arguments):
    optimizer = optimizer or keras.optimizers.Adam(0.01, name="adam")
    # On TensorFlow XLA is the exception here: without it not a bit may differ.
    defaults = {"loss": "mse", "jit_compile": BACKEND == "jax"}
    model.compile(optimizer, **{**defaults, **arguments})
    return model


def sgd(**arguments):
    return keras.optimizers.SGD(0.05, name="sgd", **arguments)


@situation(fit=PARTIAL)
def plain(penalty):
    return network(penalty)


# Two units in the last place of float16, in which the gradients are summed over the
# batch: the compiled step and the second pass round them in other places. Against the
# gradients of the step itself test_monitor_situations has a closer look.
@situation(scale=2.0**15, rounding=2.0**-9)
def mixed_float16_with_a_dynamic_loss_scale(penalty):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = network(penalty)
    finally:
        keras.config.set_dtype_policy(before)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    return model


@situation()
def loss_scale_factor(penalty):
    return network(penalty, sgd(loss_scale_factor=64.0))


@situation(scale=8.0)
def dynamic_loss_scale_that_grows(penalty):
    optimizer = keras.optimizers.LossScaleOptimizer(
        sgd(), initial_scale=8.0, dynamic_growth_steps=1, name="scaled"
    )
    return network(penalty, optimizer)


# TensorFlow's graph optimizer multiplies constants with each other first where nothing
# else reads what lies between: the measurement does, and the last bit may change.
@situation(exact=False)
def loss_scale_factor_that_rounds(penalty):
    return network(penalty, sgd(loss_scale_factor=48.0))


@situation()
def clipnorm(penalty):
    return network(penalty, sgd(clipnorm=1e-3))


@situation()
def global_clipnorm(penalty):
    return network(penalty, sgd(global_clipnorm=1e-3))


@situation()
def clipvalue(penalty):
    return network(penalty, sgd(clipvalue=1e-3))


@situation()
def gradient_accumulation(penalty):
    return network(penalty, sgd(momentum=0.9, gradient_accumulation_steps=2))


class Forgetful(layers.Layer):
    """Has two penalized and two free weights, and uses one of each."""

    def __init__(self, penalty, **arguments):
        super().__init__(**arguments)
        self.penalty = penalty

    def build(self, shape):
        for name in ("used", "lost"):
            self.add_weight(shape=(4, 3), name=name, regularizer=self.penalty)
            self.add_weight(shape=(3,), initializer="ones", name=f"free_{name}")

    def call(self, x):
        kernel, bias = self.weights[:2]
        return ops.tanh(ops.matmul(x, kernel) + bias)

    def get_config(self):
        return {**super().get_config(), "penalty": None}


@situation(warning="Gradients do not exist for variables")
def weight_not_reached_by_the_loss(penalty):
    return network(penalty, hidden=Forgetful(penalty, name="hidden"))


def embedding_network(penalty, of_embeddings):
    model = keras.Sequential(
        [
            keras.Input((3,), dtype="int32"),
            layers.Embedding(
                6, 2, embeddings_regularizer=of_embeddings, name="embedding"
            ),
            layers.Flatten(name="flatten"),
            layers.Dense(1, kernel_regularizer=penalty, name="out"),
        ],
        name="network",
    )
    return compiled(model)


ROWS = np.array([[1, 1, 2], [2, 1, 1], [5, 2, 2], [1, 3, 1]] * 2, "int32")
REPEATED_ROWS = {"x": ROWS, "validation_data": (ROWS[:BATCH], Y[:BATCH])}


@situation(fit=REPEATED_ROWS)
def embedding_of_repeated_rows(penalty):
    return embedding_network(penalty, None)


@situation(fit=REPEATED_ROWS)
def penalized_embedding_of_repeated_rows(penalty):
    return embedding_network(penalty, penalty)


@situation()
def frozen_weights(penalty):
    frozen = layers.Dense(
        3, "tanh", kernel_regularizer=penalty, trainable=False, name="frozen"
    )
    return network(penalty, hidden=frozen)


@situation()
def shared_layer(penalty):
    shared = layers.Dense(4, "tanh", kernel_regularizer=penalty, name="shared")
    inputs = keras.Input((4,))
    outputs = layers.Dense(1, name="out")(shared(shared(inputs)))
    return compiled(keras.Model(inputs, outputs, name="network"))


class Tied(keras.Model):
    """Encodes and decodes with one kernel."""

    def __init__(self, penalty):
        super().__init__(name="tied")
        self.encoder = layers.Dense(3, kernel_regularizer=penalty, name="encoder")
        self.out = layers.Dense(1, kernel_regularizer=penalty, name="out")

    def get_config(self):
        return {"penalty": None}

    def call(self, x):
        code = ops.tanh(self.encoder(x))
        return self.out(ops.matmul(code, ops.transpose(self.encoder.kernel)))


@situation()
def shared_weight(penalty):
    model = Tied(penalty)
    model(X[:1])
    return compiled(model)


@situation()
def batch_normalization(penalty):
    inner = layers.BatchNormalization(name="norm")
    # No bias: its gradient would be rounding, and nothing else.
    dense = layers.Dense(3, use_bias=False, kernel_regularizer=penalty, name="hidden")
    return network(penalty, hidden=keras.Sequential([dense, inner], name="block"))


@situation()
def run_eagerly(penalty):
    return network(penalty, run_eagerly=True, jit_compile=False)


@situation(
    fit={
        "y": {"first": Y, "second": Y[:, 0] > 0},
        "validation_data": (
            X[:BATCH],
            {"first": Y[:BATCH], "second": Y[:BATCH, 0] > 0},
        ),
    }
)
def several_outputs(penalty):
    inputs = keras.Input((4,))
    hidden = layers.Dense(3, "tanh", kernel_regularizer=penalty, name="hidden")(inputs)
    first = layers.Dense(1, kernel_regularizer=penalty, name="first")(hidden)
    second = layers.Dense(1, "sigmoid", name="second")(hidden)
    model = keras.Model(inputs, {"first": first, "second": second}, name="network")
    return compiled(
        model,
        loss={"first": "mse", "second": "binary_crossentropy"},
        loss_weights={"first": 1.0, "second": 0.5},
        metrics={"second": "accuracy"},
    )


class Overflow(layers.Layer):
    """Adds to the loss what its inputs exceed 1 by, and passes them on."""

    def call(self, x):
        self.add_loss(0.3 * ops.mean(ops.relu(ops.abs(x) - 1.0)))
        return x


@situation()
def add_loss(penalty):
    dense = layers.Dense(3, kernel_regularizer=penalty, name="hidden")
    parts = [Overflow(name="before"), dense, Overflow(name="after")]
    return network(penalty, hidden=keras.Sequential(parts, name="block"))


@situation()
def activity_regularizer(penalty):
    hidden = layers.Dense(
        3,
        kernel_regularizer=penalty,
        activity_regularizer=keras.regularizers.L2(0.3),
        name="hidden",
    )
    return network(penalty, hidden=hidden)


@situation(fit={"sample_weight": np.linspace(0.0, 3.0, len(X)).astype("float32")})
def sample_weights(penalty):
    return network(penalty)


CLASSES = np.array([0, 1, 2, 1, 1, 0, 2, 2])
CLASS_WEIGHT = {0: 0.2, 1: 3.0, 2: 1.0}


@situation(
    fit={
        "y": CLASSES,
        "validation_data": (X[:BATCH], CLASSES[:BATCH]),
        "class_weight": CLASS_WEIGHT,
    },
    sample_weight=np.array([CLASS_WEIGHT[c] for c in CLASSES], "float32"),
)
def class_weights(penalty):
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(3, "softmax", kernel_regularizer=penalty, name="out"),
        ],
        name="network",
    )
    return compiled(model, loss="sparse_categorical_crossentropy")


class OwnLoss(keras.Model):
    """Overrides ``compute_loss``, which sees the penalties among ``self.losses``."""

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        return ops.mean(ops.abs(y - y_pred)) + sum(self.losses)


@situation()
def custom_compute_loss(penalty):
    inputs = keras.Input((4,))
    hidden = layers.Dense(3, "tanh", kernel_regularizer=penalty, name="hidden")
    outputs = layers.Dense(1, kernel_regularizer=penalty, name="out")(hidden(inputs))
    return compiled(OwnLoss(inputs, outputs, name="network"))


# The guide's step averages over batches, not examples: these are of one size.
@situation()
def own_train_step(penalty):
    inputs = keras.Input((4,))
    hidden = layers.Dense(3, "tanh", kernel_regularizer=penalty, name="hidden")
    outputs = layers.Dense(1, kernel_regularizer=penalty, name="out")(hidden(inputs))
    return compiled(OwnStep(inputs, outputs, name="network"), metrics=["mae"])


if BACKEND == "tensorflow":
    import tensorflow as tf

    class OwnStep(keras.Model):
        """As in Keras's guide "Customizing what happens in fit"."""

        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                y_pred = self(x, training=True)
                loss = self.compute_loss(y=y, y_pred=y_pred)
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply(gradients, self.trainable_variables)
            for metric in self.metrics:
                if metric.name == "loss":
                    metric.update_state(loss)
                else:
                    metric.update_state(y, y_pred)
            return {metric.name: metric.result() for metric in self.metrics}

elif BACKEND == "torch":
    import torch

    class OwnStep(keras.Model):
        """As in Keras's guide "Customizing what happens in fit"."""

        def train_step(self, data):
            x, y = data
            self.zero_grad()
            y_pred = self(x, training=True)
            loss = self.compute_loss(y=y, y_pred=y_pred)
            loss.backward()
            weights = list(self.trainable_weights)
            gradients = [v.value.grad for v in weights]
            with torch.no_grad():
                self.optimizer.apply(gradients, weights)
            for metric in self.metrics:
                if metric.name == "loss":
                    metric.update_state(loss)
                else:
                    metric.update_state(y, y_pred)
            return {metric.name: metric.result() for metric in self.metrics}

else:
    import jax

    class OwnStep(keras.Model):
        """As in Keras's guide, with the penalties that the guide leaves out."""

        def own_loss(self, trainable, non_trainable, metrics, x, y):
            y_pred, non_trainable, losses = self.stateless_call(
                trainable, non_trainable, x, training=True, return_losses=True
            )
            self._losses_override = losses
            loss, (_, _, metrics) = self.stateless_compute_loss(
                trainable, non_trainable, metrics, x=x, y=y, y_pred=y_pred
            )
            self._losses_override = []
            return loss, (y_pred, non_trainable, metrics)

        def train_step(self, state, data):
            trainable, non_trainable, optimizer, metrics = state
            x, y = data
            (loss, (y_pred, non_trainable, metrics)), gradients = jax.value_and_grad(
                self.own_loss, has_aux=True
            )(trainable, non_trainable, metrics, x, y)
            trainable, optimizer = self.optimizer.stateless_apply(
                optimizer, gradients, trainable
            )
            logs, updated = {}, []
            for metric in self.metrics:
                values = metrics[len(updated) : len(updated) + len(metric.variables)]
                if metric.name == "loss":
                    values = metric.stateless_update_state(values, loss)
                else:
                    values = metric.stateless_update_state(values, y, y_pred)
                logs[metric.name] = metric.stateless_result(values)
                updated += values
            return logs, (trainable, non_trainable, optimizer, updated)


if BACKEND != "torch":

    @situation(fit=PARTIAL, step=1)
    def steps_per_execution(penalty):
        return network(penalty, sgd(), steps_per_execution=2)


if BACKEND == "torch":

    def traced_by_dynamo():
        """What torch.compile makes of Python; what C++ makes of that takes minutes."""
        compiler = functools.partial(torch.compile, backend="eager")
        return unittest.mock.patch("torch.compile", compiler)

    @situation(context=traced_by_dynamo, warning="<class .* should not be instantiated")
    def torch_compile(penalty):
        model = keras.Sequential(
            [
                keras.Input((4,)),
                layers.Dense(1, kernel_regularizer=penalty, name="out"),
            ],
            name="network",
        )
        return compiled(model, sgd(), jit_compile=True)

else:

    @situation()
    def jit_compile(penalty):
        return network(penalty, jit_compile=True)

    @situation()
    def without_jit_compile(penalty):
        return network(penalty, jit_compile=False)
