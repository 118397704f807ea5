"""What is counted: elements, weights, owners; each weight once."""

import keras
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import layers
from models import hidden
from reference import count

from keras_scaled_l2 import ScaledL2
from keras_scaled_l2.counts import count_by_layer, elements, penalized_weights, walk


def paths(weights):
    return [weight.variable.path for weight in weights]


@given(st.lists(st.integers(0, 6), max_size=4))
def test_elements_are_counted(shape):
    found = elements(shape)
    assert type(found) is int
    assert found == count(tuple(shape))


@pytest.mark.parametrize("shape", [(None,), (None, 3), (2, None, 4)])
def test_elements_of_an_unknown_dimension_are_an_error(shape):
    with pytest.raises(ValueError, match=r"unknown dimension.*kernel_regularizer"):
        elements(shape)


def test_elements_of_a_large_model_do_not_overflow():
    assert elements((300_000, 300_000, 300_000)) == 27 * 10**15


def test_walk_yields_every_weight_once_with_its_owner():
    model = hidden()
    found = list(walk(model))
    assert {id(w.variable) for w in found} == {id(v) for v in model.weights}
    assert len(found) == len(model.weights) == 8
    for weight in found:
        assert any(weight.variable is v for v in weight.layer.weights)
        assert weight.layer in model.layers


def test_walk_yields_the_weight_of_a_shared_layer_once():
    shared = layers.Dense(4, name="shared")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, shared(shared(inputs)))
    assert paths(walk(model)) == ["shared/kernel", "shared/bias"]


def test_walk_yields_a_tied_variable_once_for_its_first_owner():
    class Tied(keras.Layer):
        def __init__(self, other):
            super().__init__()
            self.other_kernel = other.kernel

        def call(self, x):
            return x @ keras.ops.transpose(self.other_kernel)

    first = layers.Dense(3, name="first")
    first.build((None, 4))
    model = keras.Sequential([keras.Input((4,)), first, Tied(first)])
    assert paths(walk(model)).count("first/kernel") == 1
    assert next(w.layer for w in walk(model)) is first


def test_walk_enters_nested_models_and_cells():
    inner = keras.Sequential([keras.Input((5, 4)), layers.GRU(3, name="gru")])
    model = keras.Sequential([keras.Input((5, 4)), inner, layers.Dense(1)])
    assert len(list(walk(model))) == 5
    assert {type(w.layer).__name__ for w in walk(model)} == {"GRUCell", "Dense"}


def test_walk_finds_the_variables_of_a_lora_kernel():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="unit")])
    model.layers[0].enable_lora(2)
    names = {weight.variable.name for weight in walk(model)}
    assert names >= {"kernel", "bias", "lora_kernel_a", "lora_kernel_b"}


def test_penalized_weights_are_those_of_the_loss():
    model = hidden(ScaledL2(1.0), keras.regularizers.L2(0.1))
    assert paths(penalized_weights(model)) == [
        model.layers[0].kernel.path,
        model.layers[2].kernel.path,
    ]
    assert len(model.losses) == 2


@pytest.mark.parametrize("frozen", ["first", "second"])
def test_penalized_weights_leave_out_what_is_frozen(frozen):
    model = hidden(ScaledL2(1.0), ScaledL2(1.0))
    model.get_layer(frozen).trainable = False
    [weight] = penalized_weights(model)
    assert weight.layer.name == {"first": "second", "second": "first"}[frozen]
    assert len(model.losses) == 1
    model.get_layer(frozen).trainable = True
    assert len(penalized_weights(model)) == 2


def test_penalized_weights_of_a_frozen_model_are_none():
    model = hidden(ScaledL2(1.0), ScaledL2(1.0))
    model.trainable = False
    assert penalized_weights(model) == []


def test_penalized_weights_do_not_count_batchnorm_statistics():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.BatchNormalization(
                gamma_regularizer=ScaledL2(1.0), beta_regularizer=ScaledL2(1.0)
            ),
        ]
    )
    weights = penalized_weights(model)
    assert [w.variable.name for w in weights] == ["gamma", "beta"]
    assert list(count_by_layer(weights).values()) == [8]


def test_count_by_layer_sums_the_weights_of_one_layer():
    rule = ScaledL2(1.0)
    model = keras.Sequential(
        [
            keras.Input((5, 4)),
            layers.LSTM(3, kernel_regularizer=rule, recurrent_regularizer=rule),
            layers.Dense(2, kernel_regularizer=rule, bias_regularizer=rule),
        ]
    )
    counts = count_by_layer(penalized_weights(model))
    assert sorted(counts.values()) == [3 * 2 + 2, 4 * 12 + 3 * 12]
