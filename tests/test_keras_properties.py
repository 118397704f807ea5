"""What Keras's own tests ask of L2, as properties, with each rule in its place.

After Keras 3.15: src/regularizers/regularizers_test.py, the number of losses that
src/testing/test_case.py expects of layers, src/layers/layer_test.py,
core/wrapper_test.py, core/dense_test.py, backend/common/variables_test.py,
trainers/trainer_test.py and backend/tensorflow/distribute_test.py.
"""

import json
import math
import pathlib

import keras
import numpy as np
import pytest
from autodiff import numpy64
from discovery import (
    LAYERS,
    RULES,
    SOME_RULES,
    every_rule,
    expected_coefficient,
    model_of,
    rule_name,
    telling_rule,
)
from hypothesis import given
from hypothesis import strategies as st
from keras import layers, ops, regularizers
from models import compiled, data, linear, losses, number, run_python
from reference import penalty

every_rule_class = pytest.mark.parametrize("rule_class", RULES)
one_of_each_rule = pytest.mark.parametrize(
    "rule",
    [next(r for r in SOME_RULES if type(r) is rule_class) for rule_class in RULES],
    ids=rule_name,
)
every_regularized_argument = pytest.mark.parametrize(
    ("name", "argument"),
    [(name, argument) for name, arguments in LAYERS.items() for argument in arguments],
)

matrices = st.lists(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=3, max_size=3),
    min_size=1,
    max_size=5,
).map(lambda rows: np.array(rows, "float32"))


def value(rule, w):
    """The penalty of a Keras variable with these values."""
    return number(rule(keras.Variable(w)))


# --------------------------------------------------------------------- regularizers


@every_rule
@given(w=matrices)
def test_penalty_is_the_coefficient_times_the_sum_of_squares(rule, w):
    c = expected_coefficient(rule, w.shape, layer=12, model=30)
    expected = penalty(c, w)
    assert value(rule, w) == pytest.approx(expected, rel=1e-6, abs=1e-37)


@every_rule
@given(w=matrices)
def test_penalty_does_not_see_the_sign(rule, w):
    assert value(rule, w) == value(rule, -w) == value(rule, np.abs(w))


@every_rule
@given(w=matrices, factor=st.sampled_from([0.5, 2.0, 4.0, 1024.0]))
def test_penalty_grows_with_the_square_of_the_weights(rule, w, factor):
    # Powers of two, so that no digit is lost.
    w = np.where(np.abs(w) < 1e-6, 0, w).astype("float32")
    assert value(rule, factor * w) == pytest.approx(
        factor**2 * value(rule, w), rel=1e-6
    )


@every_rule
def test_penalty_of_zeros_is_zero(rule):
    assert value(rule, np.zeros((4, 4), "float32")) == 0


@every_rule
@given(w=matrices, row=st.integers(0, 4), column=st.integers(0, 2))
def test_penalty_is_more_for_a_weight_that_is_larger(rule, w, row, column):
    more = w.copy()
    more[row % len(w), column] = 2 * np.abs(w).max() + 1
    assert value(rule, more) > value(rule, w)


@every_rule_class
def test_strength_of_zero_gives_zero_or_is_refused(rule_class):
    try:
        rule = rule_class(0.0)
    except ValueError as error:
        assert "above 0" in str(error)
        return
    settled = rule.resolve({"samples": 4})
    assert value(settled, np.ones((4, 4), "float32")) == 0


@every_rule_class
@pytest.mark.parametrize("strength", ["no number", math.nan, math.inf, -math.inf, -1])
def test_strength_that_keras_l2_refuses_is_refused(rule_class, strength):
    with pytest.raises(ValueError, match="expected"):
        regularizers.L2(strength)
    with pytest.raises(ValueError, match="expected"):
        rule_class(strength)


@every_rule_class
@pytest.mark.parametrize("strength", [1, 1.5, 1e-10, 3e10])
def test_strength_that_keras_l2_takes_is_taken(rule_class, strength):
    regularizers.L2(strength)
    first = next(iter(rule_class(strength).get_config().values()))
    assert first == pytest.approx(float(strength))


@every_rule
def test_rule_survives_serialization_twice(rule):
    once = regularizers.deserialize(regularizers.serialize(rule))
    again = type(rule).from_config(once.get_config())
    assert once == again == rule
    assert vars(once) == vars(again) == vars(rule)
    json.dumps(once.get_config())


@every_rule
def test_get_knows_a_rule_by_itself_and_by_its_config(rule):
    assert regularizers.get(rule) is rule
    assert regularizers.get(regularizers.serialize(rule)) == rule
    assert keras.layers.Dense(1, kernel_regularizer=rule).kernel_regularizer is rule


@every_rule_class
def test_keras_knows_a_rule_by_its_registered_name_and_not_by_another(rule_class):
    registered = f"keras_scaled_l2>{rule_class.__name__}"
    assert keras.saving.get_registered_object(registered) is rule_class
    assert keras.saving.get_registered_name(rule_class) == registered
    # Of names by themselves Keras's get knows those of its own regularizers only.
    for name in (registered, rule_class.__name__, "typo"):
        with pytest.raises(ValueError, match="Could not interpret"):
            regularizers.get(name)


# --------------------------------------------------------------------------- layers


@every_regularized_argument
@telling_rule
def test_layer_has_one_loss_for_each_weight_of_an_argument(name, argument, rule):
    model = model_of(name, rule, which=[argument])
    weights = [v for v in model.weights if v.regularizer is not None]
    several = 4 if name.endswith("Attention") else 1
    assert len(weights) == several
    assert losses(model) == pytest.approx([number(rule(v)) for v in weights], rel=1e-6)


@one_of_each_rule
def test_layer_has_as_many_losses_as_regularizers(rule):
    assert len(model_of("Dense", rule, which=[]).losses) == 0
    assert len(model_of("Dense", rule).losses) == 2
    assert len(model_of("LSTM", rule).losses) == 3
    assert len(model_of("MultiHeadAttention", rule).losses) == 8


@one_of_each_rule
def test_losses_do_not_pile_up_over_calls(rule):
    layer = layers.Dense(3, kernel_regularizer=rule, activity_regularizer="l2")
    x = np.ones((2, 4), "float32")
    for _ in range(3):
        layer(x)
        assert len(layer.losses) == 2
    layer(keras.Input((4,)))
    assert number(rule(layer.kernel)) in [number(loss) for loss in layer.losses]


@one_of_each_rule
def test_losses_are_of_the_values_of_now(rule):
    model = linear(rule)
    [before] = losses(model)
    model.layers[0].kernel.assign(2.0 * model.layers[0].kernel)
    assert losses(model) == pytest.approx([4 * before], rel=1e-6)


@one_of_each_rule
def test_frozen_layer_has_no_loss_until_it_is_thawed(rule):
    model = linear(rule)
    model.layers[0].trainable = False
    assert losses(model) == []
    model.layers[0].trainable = True
    assert len(losses(model)) == 1


@one_of_each_rule
@pytest.mark.parametrize(
    "wrap",
    [
        layers.TimeDistributed,
        lambda layer: keras.Sequential([layer]),
        layers.SpectralNormalization,
    ],
    ids=["TimeDistributed", "Sequential", "SpectralNormalization"],
)
def test_wrapper_has_the_losses_of_what_it_wraps_once(rule, wrap):
    wrapper = wrap(layers.Dense(2, kernel_regularizer=rule, bias_regularizer=rule))
    wrapper(np.ones((2, 3, 4), "float32"))
    assert len(wrapper.losses) == 2


@one_of_each_rule
def test_bidirectional_has_the_losses_of_both_directions(rule):
    layer = layers.Bidirectional(layers.SimpleRNN(2, recurrent_regularizer=rule))
    layer(np.ones((2, 3, 4), "float32"))
    assert len(layer.losses) == 2


@one_of_each_rule
@pytest.mark.parametrize(
    "make",
    [
        lambda rule: layers.Dense(3, kernel_regularizer=rule, lora_rank=2),
        lambda rule: layers.EinsumDense(
            "ab,bc->ac", 3, kernel_regularizer=rule, lora_rank=2
        ),
        lambda rule: layers.Embedding(4, 3, embeddings_regularizer=rule, lora_rank=2),
    ],
    ids=["Dense", "EinsumDense", "Embedding"],
)
def test_lora_has_a_loss_for_each_factor_and_none_for_the_kernel(rule, make):
    layer = make(rule)
    layer(np.ones((2, 4), "int32" if "Embedding" in layer.name else "float32"))
    factors = [v for v in layer.trainable_weights if v.name.startswith("lora_")]
    assert len(factors) == 2
    assert [number(loss) for loss in layer.losses] == pytest.approx(
        [number(rule(v)) for v in factors], rel=1e-6
    )


@one_of_each_rule
def test_layers_config_holds_the_rule(rule):
    layer = layers.Dense(3, kernel_regularizer=rule, bias_regularizer=rule)
    again = layers.Dense.from_config(json.loads(json.dumps(layer.get_config())))
    assert again.kernel_regularizer == again.bias_regularizer == rule


# ------------------------------------------------------------------------ variables


@every_rule
def test_variable_takes_a_rule_and_gives_it_back(rule):
    variable = keras.Variable(np.ones((2, 3)))
    variable.regularizer = rule
    assert variable.regularizer is rule
    variable.regularizer = None
    assert variable.regularizer is None


@one_of_each_rule
def test_weight_that_a_layer_adds_with_a_rule_is_in_its_losses(rule):
    class Scaling(layers.Layer):
        def build(self, shape):
            self.scaling = self.add_weight(
                shape=shape[1:], initializer="ones", regularizer=rule
            )
            self.add_weight(
                shape=shape[1:], initializer="ones", regularizer=rule, trainable=False
            )

        def call(self, x):
            return x * self.scaling

    layer = Scaling()
    layer(np.ones((2, 4), "float32"))
    assert [number(loss) for loss in layer.losses] == pytest.approx(
        [penalty(rule.coefficient((4,)), np.ones(4))], rel=1e-6
    )


# ------------------------------------------------------------------------- training


@one_of_each_rule
def test_loss_of_a_model_is_the_compiled_loss_and_all_others(rule):
    class Adding(layers.Layer):
        def call(self, x):
            self.add_loss(0.25 + 0.0 * ops.sum(x))
            return x

    inputs = keras.Input((4,))
    unit = layers.Dense(
        2,
        kernel_regularizer=rule,
        bias_regularizer=regularizers.L1(0.5),
        activity_regularizer=regularizers.L2(0.1),
        bias_initializer="ones",
    )
    model = compiled(keras.Model(inputs, Adding()(unit(inputs))), 0.0)
    x, y = data(outputs=2)
    outputs = numpy64(model(x))
    expected = {
        "compiled": np.mean((outputs - y) ** 2),
        "activity": 0.1 * np.sum(outputs**2) / len(x),
        "added": 0.25,
        "bias": 0.5 * 2,
        "rule": penalty(rule.coefficient((4, 2)), numpy64(unit.kernel)),
    }
    total = pytest.approx(sum(expected.values()), rel=1e-5)
    assert number(model.compute_loss(x=x, y=y, y_pred=model(x))) == total
    assert model.fit(x, y, batch_size=10, verbose=0).history["loss"] == [total]
    assert model.evaluate(x, y, batch_size=10, verbose=0) == total


@one_of_each_rule
def test_custom_compute_loss_can_leave_the_penalty_out(rule):
    class Own(keras.Sequential):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
            return ops.mean(ops.square(y - y_pred))

    layer = layers.Dense(1, kernel_regularizer=rule)
    model = compiled(Own([keras.Input((4,)), layer]), 0.0)
    x, y = data()
    expected = np.mean((numpy64(model(x)) - y) ** 2)
    assert model.evaluate(x, y, batch_size=10, verbose=0) == pytest.approx(
        expected, rel=1e-5
    )


@one_of_each_rule
def test_validation_loss_holds_the_penalty_too(rule):
    model = linear(rule, learning_rate=0.0)
    x, y = data()
    history = model.fit(x, y, validation_data=(x, y), batch_size=10, verbose=0).history
    assert history["val_loss"] == pytest.approx(history["loss"], rel=1e-6)
    cost = np.mean((numpy64(model(x)) - y) ** 2)
    assert history["loss"][0] - cost == pytest.approx(sum(losses(model)), rel=1e-3)


if keras.config.backend() == "jax":

    @one_of_each_rule
    def test_stateless_call_returns_the_penalty_of_the_values_given(rule):
        model = linear(rule)
        given = [2.0 * v.value for v in model.trainable_variables]
        _, _, found = model.stateless_call(
            given, [], np.ones((2, 4), "float32"), return_losses=True
        )
        expected = penalty(rule.coefficient((4, 1)), numpy64(given[0]))
        assert [number(loss) for loss in found] == pytest.approx([expected], rel=1e-6)


if keras.config.backend() == "tensorflow":
    REPLICAS = """
import json, sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
two = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(cpu, two)
sys.path.insert(0, sys.argv[1])
import keras, numpy as np
from discovery import SOME_RULES, rule_name
from models import data, linear

x, y = data(samples=12)
for rule in SOME_RULES:
    found = []
    for replicas in (1, 2):
        devices = [f"CPU:{i}" for i in range(replicas)]
        with tf.distribute.MirroredStrategy(devices).scope():
            model = linear(rule, jit_compile=False)
        data_set = tf.data.Dataset.from_tensor_slices((x, y)).batch(12)
        loss = model.fit(data_set, verbose=0).history["loss"]
        [kernel] = [v for v in model.trainable_variables if v.name == "kernel"]
        found.append([loss[0], *np.ravel(kernel.numpy()).tolist()])
    print("result", json.dumps([rule_name(rule), *found]))
"""

    def test_penalty_and_step_are_the_same_on_two_replicas():
        printed = run_python(REPLICAS, pathlib.Path(__file__).parent)
        results = [
            json.loads(line.removeprefix("result "))
            for line in printed.splitlines()
            if line.startswith("result ")
        ]
        assert [name for name, _, _ in results] == [rule_name(r) for r in SOME_RULES]
        for name, one, two in results:
            assert two == pytest.approx(one, rel=1e-5), name
