"""Whether a network gives probabilities is decided by what it does, not by a name."""

import keras
import numpy as np
import pytest

from keras_scaled_l2.experiments import compare
from keras_scaled_l2.experiments.arrays import checked
from keras_scaled_l2.experiments.errors import InputError
from keras_scaled_l2.experiments.outputs import gives_probabilities
from keras_scaled_l2.experiments.problems import Source

L, ops = keras.layers, keras.ops


def problem(classes):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(160, 6))
    y = np.digitize(x[:, 0], [-0.5, 0.5][: classes - 1])
    return Source("tiny", checked({"x_train": x, "y_train": y}, name="tiny")).split(0)


def own_softmax(x):
    return ops.softmax(x)


def own_sigmoid(x):
    return ops.sigmoid(x)


def own_relu(x):
    return ops.relu(x)


class Named(L.Layer):
    def call(self, x):
        return ops.softmax(x)


class Subclassed(keras.Model):
    """The layers are listed in the order in which they are assigned."""

    def __init__(self, units, activation, first=None):
        super().__init__()
        self.out = L.Dense(units, activation=activation)
        self.hidden = L.Dense(8, activation=first or "relu")
        self.out.build((None, 8))
        self.hidden.build((None, 6))
        self.built = True

    def call(self, x):
        return self.out(self.hidden(x))


class Ended(keras.Model):
    """A functional model whose own call goes on where its graph ends."""

    def call(self, x, training=None, mask=None):
        return ops.softmax(super().call(x, training=training, mask=mask))


def ended():
    inputs = keras.Input((6,))
    return Ended(inputs, L.Dense(3)(inputs))


def functional(end):
    inputs = keras.Input((6,))
    return keras.Model(inputs, end(L.Dense(8, activation="relu")(inputs)))


def average(units, activation):
    return functional(
        lambda x: L.Average()([L.Dense(units, activation)(x) for _ in range(2)])
    )


def linear32(x):
    return L.Activation("linear", dtype="float32")(x)


PROBABILITIES = {
    "softmax": lambda: functional(L.Dense(3, "softmax")),
    "linear float32": lambda: functional(lambda x: linear32(L.Dense(3, "softmax")(x))),
    "average": lambda: average(3, "softmax"),
    "own softmax": lambda: functional(L.Dense(3, own_softmax)),
    "subclassed": lambda: Subclassed(3, "softmax"),
    "own call": ended,
    "own layer": lambda: functional(lambda x: Named()(L.Dense(3)(x))),
    "clipped": lambda: functional(
        lambda x: ops.clip(L.Dense(3, "softmax")(x), 1e-6, 1.0)
    ),
    # Its rows are all the same before the first step.
    "of zeros": lambda: functional(L.Dense(3, own_softmax, kernel_initializer="zeros")),
    "binary": lambda: functional(L.Dense(1, "sigmoid")),
    "binary linear": lambda: functional(lambda x: linear32(L.Dense(1, "sigmoid")(x))),
    "binary cast": lambda: functional(
        lambda x: ops.cast(L.Dense(1, "sigmoid")(x), "float32")
    ),
    "binary average": lambda: average(1, "sigmoid"),
    "binary subclassed": lambda: Subclassed(1, "sigmoid"),
}


@pytest.mark.parametrize("name", PROBABILITIES)
def test_start_is_that_of_keras_which_is_told_of_probabilities(name):
    data = problem(2 if name.startswith("binary") else 3)
    make = PROBABILITIES[name]
    found = compare(
        make, data, ["none"], seeds=1, epochs=1, batch_size=16, progress=False
    )
    (run,) = found["none"].runs
    keras.utils.set_random_seed(0)
    model = make()
    loss = "binary" if name.startswith("binary") else "sparse_categorical"
    model.compile(loss=f"{loss}_crossentropy")
    y = data.y_train if loss != "binary" else data.y_train[:, None]
    cost = model.evaluate(data.x_train, y, batch_size=1000, verbose=0)
    assert run.starting_cost.data == pytest.approx(cost, abs=1e-5)
    # Else the test would show nothing.
    as_logits = keras.losses.get(f"{loss}_crossentropy")
    wrong = as_logits(y, model.predict(data.x_train, verbose=0), from_logits=True)
    wrong = float(np.mean(ops.convert_to_numpy(wrong)))
    assert name == "of zeros" or abs(wrong - cost) > 1e-3


LOGITS = {
    "linear": lambda: functional(L.Dense(3)),
    "average": lambda: average(3, None),
    "subclassed": lambda: Subclassed(3, None),
    # The gate was assigned last, and is not what the network ends in.
    "gate": lambda: Subclassed(3, None, first="sigmoid"),
    # A third each, which is no softmax.
    "of thirds": lambda: functional(
        lambda x: linear32(
            L.Dense(
                3,
                kernel_initializer="zeros",
                bias_initializer=keras.initializers.Constant(1 / 3),
            )(x)
        )
    ),
    "thirds behind a sum": lambda: functional(
        lambda x: (
            L.Dense(
                3,
                kernel_initializer="zeros",
                bias_initializer=keras.initializers.Constant(1 / 6),
            )(x)
            + 1 / 6
        )
    ),
    # Each between 0 and 1 by chance.
    "relu": lambda: functional(
        L.Dense(
            3,
            own_relu,
            kernel_initializer="zeros",
            bias_initializer=keras.initializers.Constant(0.4),
        )
    ),
    "binary": lambda: functional(L.Dense(1)),
    "binary gate": lambda: Subclassed(1, None, first="sigmoid"),
    # Between 0 and 1 by chance.
    "binary relu": lambda: functional(
        L.Dense(1, "relu", kernel_initializer="zeros", bias_initializer="zeros")
    ),
    "binary tanh": lambda: functional(L.Dense(1, "tanh")),
}


@pytest.mark.parametrize("name", LOGITS)
def test_logits_stay_logits(name):
    data = problem(2 if name.startswith("binary") else 3)
    assert gives_probabilities(LOGITS[name](), data) is False


def test_sigmoid_for_each_class_is_refused_where_the_network_ends_in_it():
    options = {"seeds": 1, "epochs": 1, "progress": False}
    for make in (
        lambda: functional(lambda x: linear32(L.Dense(3, "sigmoid")(x))),
        lambda: Assigned(3),
        # By another name.
        lambda: functional(L.Dense(3, own_sigmoid)),
        lambda: functional(lambda x: 1 / (1 + ops.exp(-L.Dense(3)(x)))),
    ):
        with pytest.raises(InputError, match="a sigmoid for each class"):
            compare(make, problem(3), ["none"], **options)
    for name in ("gate", "relu"):
        assert compare(LOGITS[name], problem(3), ["none"], **options)["none"].runs


class Assigned(Subclassed):
    """Ends in the layer that was assigned last."""

    def __init__(self, units):
        super().__init__(units, "relu")
        self.last = L.Dense(units, "sigmoid")
        self.last.build((None, units))

    def call(self, x):
        return self.last(super().call(x))


def test_model_is_left_as_it_was():
    model = Subclassed(3, own_softmax)
    before = [ops.convert_to_numpy(v.value).copy() for v in model.variables]
    assert gives_probabilities(model, problem(3))
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(variable.value), value)
