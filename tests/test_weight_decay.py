"""Decoupled weight decay as an arm: what Keras's own optimizers do, and no more."""

import functools

import keras
import numpy as np
import pytest

from keras_scaled_l2.experiments import Arm, compare
from keras_scaled_l2.experiments.architectures import dense, initial_weights
from keras_scaled_l2.experiments.arrays import checked
from keras_scaled_l2.experiments.coefficients import penalizable
from keras_scaled_l2.experiments.errors import InputError
from keras_scaled_l2.experiments.problems import Source
from keras_scaled_l2.experiments.records import Setting
from keras_scaled_l2.experiments.training import Trainer
from keras_scaled_l2.experiments.twin import VariableDropout, derive, matching_weights

# Not ours: NumPy 2 wants a keyword that __array__ of torch's tensors does not take yet.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

BATCH = 8
OPTIMIZERS = {
    "sgd": functools.partial(keras.optimizers.SGD, 0.1, momentum=0.9),
    "plain sgd": functools.partial(keras.optimizers.SGD, 0.1),
    "adam": functools.partial(keras.optimizers.Adam, 0.01),
}


@functools.cache
def problem():
    x = np.random.default_rng(0).normal(size=(50, 4)).astype("float32")
    y = np.digitize(x[:, 0], [-0.5, 0.5])
    return Source("made up", checked({"x_train": x, "y_train": y}, name="x")).split(0)


@functools.cache
def trainer(optimizer="sgd", *, drops=False, decays=True):
    network = dense(problem(), [6]).build(0)
    weight, twin = {id(v): v for v in network.weights}, network
    if drops:
        twin = derive(network, 0.5, seed=0, dropout=VariableDropout)
        weight = {id(v): t for v, t in matching_weights(network, twin)}
    return Trainer(
        twin,
        weights=[weight[id(v)] for v in network.weights],
        penalties={p: weight[id(v)] for p, v in penalizable(network).items()},
        problem=problem(),
        optimizer=OPTIMIZERS[optimizer](),
        batch_size=BATCH,
        decays=decays,
    )


def start(seed=0):
    return initial_weights(dense(problem(), [6]).build(seed))


def trained(by, setting, coefficients=None, seed=2):
    """The weights after two epochs, and the record."""
    found = coefficients or {}
    record = by.run(problem(), start(), found, seed=seed, epochs=2, setting=setting)
    return [np.array(keras.ops.convert_to_numpy(v)) for v in by._weights], record


def plain(optimizer, decay, c=0.0):
    """The weights of a Keras model that is trained in the ordinary way."""
    model = dense(problem(), [6]).build(0)
    kernels = list(penalizable(model).values())
    for kernel in kernels:
        kernel.regularizer = keras.regularizers.L2(c)
    made = OPTIMIZERS[optimizer](weight_decay=decay)
    biases = [v for v in model.trainable_variables if v.path.endswith("bias")]
    made.exclude_from_weight_decay(var_list=biases)
    assert len(biases) == 2
    model.compile(made, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    for epoch in range(2):
        order = np.random.default_rng([2, epoch]).permutation(len(problem().x_train))
        x, y = problem().x_train[order], problem().y_train[order]
        model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)
    return initial_weights(model)


def assert_close(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_weights_are_those_of_a_plain_model_with_weight_decay(optimizer):
    by = trainer(optimizer)
    found, record = trained(by, Setting(weight_decay=0.3))
    assert_close(found, plain(optimizer, 0.3))
    assert record.setting.weight_decay == 0.3
    # It is no part of the cost.
    assert record.starting_cost.penalty == record.final_cost.penalty == 0
    # And it does something that a plain model without it does not.
    without = plain(optimizer, None)
    assert any(np.abs(a - b).max() > 0.01 for a, b in zip(found, without, strict=True))


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_decay_zero_equals_none_exactly(optimizer):
    by = trainer(optimizer)
    zero, first = trained(by, Setting())
    trained(by, Setting(weight_decay=5.0), seed=7)
    again, second = trained(by, Setting(weight_decay=0.0))
    for one, other in zip(zero, again, strict=True):
        np.testing.assert_array_equal(one, other)
    assert (first.curves, first.test) == (second.curves, second.test)
    # The same as in a trainer that knows no decay.
    never, third = trained(trainer(optimizer, decays=False), Setting())
    for one, other in zip(zero, never, strict=True):
        np.testing.assert_array_equal(one, other)
    assert (first.curves, first.test) == (third.curves, third.test)


def test_penalty_and_decay_may_be_joined():
    by = trainer("sgd")
    c = dict.fromkeys(by.coefficients, 0.02)
    found, _ = trained(by, Setting(weight_decay=0.1), c)
    assert_close(found, plain("sgd", 0.1, c=0.02))


def test_twin_with_dropout_decays_the_same_weights():
    plain_one, _ = trained(trainer("sgd"), Setting(weight_decay=0.3))
    twin, _ = trained(trainer("sgd", drops=True), Setting(weight_decay=0.3))
    for one, other in zip(plain_one, twin, strict=True):
        np.testing.assert_array_equal(one, other)
    dropped, _ = trained(trainer("sgd", drops=True), Setting(None, 0.5, 0.3))
    assert any(np.any(a != b) for a, b in zip(twin, dropped, strict=True))


def test_trainer_without_decay_refuses_one():
    with pytest.raises(ValueError, match="no decay"):
        trained(trainer("sgd", decays=False), Setting(weight_decay=0.1))


def options(**changed):
    return {
        "problem": problem(),
        "batch_size": BATCH,
        "hidden": (6,),
        "epochs": 2,
        "seeds": 1,
        "progress": False,
        **changed,
    }


def test_named_arm_is_the_arm_written_out():
    mine = Arm("mine", weight_decay=0.3)
    found = compare(arms=["none", "decay", mine], strengths={"decay": 0.3}, **options())
    none, decay, own = (arm.runs[0] for arm in found.arms)
    assert (decay.test, decay.curves) == (own.test, own.curves)
    assert decay.test != none.test
    assert decay.starting_cost == none.starting_cost
    assert found["decay"].weight_decay == 0.3
    assert decay.coefficients == {}
    assert decay.weight_norms["end"] < none.weight_norms["end"]


def test_optimizer_with_decay_of_its_own_is_for_arms_without():
    adamw = keras.optimizers.AdamW(0.01)
    with pytest.raises(InputError, match="expected an optimizer without"):
        compare(arms=["none", "decay"], **options(optimizer=adamw))
    compare(arms=["none"], **options(optimizer=adamw))
