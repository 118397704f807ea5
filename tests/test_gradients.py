"""The sum of squares: exact for every shape and dtype, with the gradient 2 w."""

import keras
import numpy as np
import pytest
from autodiff import compiled, numpy64, value_and_gradient
from keras import ops

from keras_scaled_l2.gradients import (
    data_summand,
    gradient_function,
    is_known,
    loss_gradients,
    penalty_scope,
    squared_norms,
    sum_of_squares,
    to_numpy,
)

# Empty, scalar, and around the lengths at which torch takes another way: 2**15 for
# several operations in float32, and from there on multiples of 512.
SHAPES = [
    (),
    (0,),
    (0, 3),
    (1,),
    (7,),
    (3, 5, 7),
    (1, 511),
    (512,),
    (513,),
    (2, 3, 4, 5, 6),
    (32_768,),
    (32_769,),
    (128, 512),
    (100_003,),
]
DTYPES = ["float16", "bfloat16", "float32"]
# On JAX float64 is an option of the process, and off.
if keras.config.backend() != "jax":
    DTYPES.append("float64")

TOLERANCE = {"float64": 1e-14}


def tensor(shape, dtype, seed=3):
    """A tensor of normal numbers, and its values after rounding, as float64."""
    values = np.random.default_rng(seed).normal(size=shape)
    rounded = ops.cast(ops.convert_to_tensor(values.astype("float64")), dtype)
    return rounded, numpy64(rounded)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sum_of_squares_equals_that_of_float64(shape, dtype):
    w, values = tensor(shape, dtype)
    found = sum_of_squares(w)
    assert tuple(found.shape) == ()
    wide = dtype if dtype == "float64" else "float32"
    assert keras.backend.standardize_dtype(found.dtype) == wide
    assert numpy64(found) == pytest.approx(
        np.sum(values**2), rel=TOLERANCE.get(dtype, 2e-6), abs=0
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradient_of_the_sum_of_squares_is_twice_the_weight(shape, dtype):
    w, values = tensor(shape, dtype)
    _, gradient = value_and_gradient(lambda w: 0.75 * sum_of_squares(w), w)
    assert keras.backend.standardize_dtype(gradient.dtype) == dtype
    # Halves are exact in every dtype but for the last rounding.
    digits = {"float16": 1e-3, "bfloat16": 8e-3, "float32": 1e-6, "float64": 1e-14}
    np.testing.assert_allclose(
        numpy64(gradient), 1.5 * values, rtol=digits[dtype], atol=1e-7
    )


@pytest.mark.parametrize("shape", [(), (0,), (513,)], ids=str)
def test_sum_of_squares_is_the_same_when_it_is_compiled(shape):
    w, values = tensor(shape, "float32")
    found = numpy64(compiled(sum_of_squares)(w))
    assert found == pytest.approx(np.sum(values**2), rel=3e-7, abs=0)


def test_sum_of_squares_takes_a_variable():
    variable = keras.Variable(np.array([[1.0, -2.0], [3.0, 0.5]]))
    assert numpy64(sum_of_squares(variable)) == 14.25


def test_sum_of_squares_takes_a_tensor_that_is_not_contiguous():
    w, values = tensor((300, 40), "float32")
    found = sum_of_squares(ops.transpose(w))
    assert numpy64(found) == pytest.approx(np.sum(values**2), rel=3e-7)
    _, gradient = value_and_gradient(lambda w: sum_of_squares(ops.transpose(w)), w)
    np.testing.assert_allclose(numpy64(gradient), 2 * values, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sum_of_squares_of_half_precision_neither_overflows_nor_stops(dtype):
    # 300**2 is beyond float16, and 10000 ones are beyond counting in either.
    assert numpy64(sum_of_squares(ops.full((100,), 300.0, dtype))) == pytest.approx(9e6)
    assert numpy64(sum_of_squares(ops.ones((10_000,), dtype))) == pytest.approx(
        10_000, rel=1e-6
    )


def test_sum_of_squares_of_a_tiny_weight_is_not_lost():
    found = numpy64(sum_of_squares(ops.full((4,), 1e-18)))
    assert found == pytest.approx(4e-36, rel=1e-6)


def test_sum_of_squares_carries_what_is_not_a_number():
    assert np.isnan(numpy64(sum_of_squares(ops.array([1.0, np.nan]))))
    assert numpy64(sum_of_squares(ops.array([1.0, -np.inf]))) == np.inf


def test_sum_of_squares_of_35_million_weights_is_exact_to_a_millionth():
    w = np.random.default_rng(0).standard_normal((35_000, 1000), dtype="float32")
    exact = sum(np.sum(np.square(rows, dtype="float64")) for rows in w)
    w = ops.convert_to_tensor(w)
    for function in (sum_of_squares, compiled(sum_of_squares)):
        assert numpy64(function(w)) == pytest.approx(exact, rel=1e-6)


# 2048 numbers are one block in XLA, 2**20 a piece on torch.
@pytest.mark.parametrize(
    "shape", [(), (7,), (2048,), (31, 331), (2**20,), (1_100_001,)], ids=str
)
@pytest.mark.parametrize("in_xla", [False, True])
def test_squared_norms_equal_those_of_float64(shape, in_xla):
    gradient, g = tensor(shape, "float32")
    weight, w = tensor(shape, "float32", seed=4)

    def norms(gradient):
        scale, factor = ops.array(8.0), ops.array(0.75)
        return squared_norms(gradient, scale, factor, weight, in_xla=in_xla)

    exact = [np.sum((g / 8.0 - 0.75 * w) ** 2), np.sum(w**2)]
    for function in (norms, compiled(norms)):
        assert numpy64(function(gradient)) == pytest.approx(exact, rel=2e-6)


@pytest.mark.parametrize("in_xla", [False, True])
def test_squared_norms_without_scale_and_factor_are_those_of_the_tensors(in_xla):
    gradient, g = tensor((3000,), "float32")
    weight, w = tensor((3000,), "float32", seed=4)
    found = squared_norms(gradient, None, None, weight, in_xla=in_xla)
    exact = [np.sum(g**2), np.sum(w**2)]
    assert numpy64(found) == pytest.approx(exact, rel=2e-6)


def test_value_of_a_tensor_a_variable_and_a_number_is_read():
    np.testing.assert_array_equal(to_numpy(keras.Variable([1.0, 2.0])), [1.0, 2.0])
    assert to_numpy(ops.array(3.0)) == 3.0
    assert to_numpy(0.5) == 0.5


def trained_with(penalty, uses=1):
    """Data gradient, whole gradient and what is read of it, in a compiled step."""
    import tensorflow as tf

    w = tf.Variable([[1.0, -2.0], [3.0, 0.5]])
    x = tf.constant([[0.3, -0.7], [1.1, 0.2]])
    read = []

    @tf.function
    def step():
        with tf.GradientTape(persistent=True) as tape:
            with penalty_scope():
                added = penalty(w)
            data = tf.reduce_sum(tf.square(sum(x @ w for _ in range(uses))))
            total = data + added
        found = data_summand(tape.gradient(total, w))
        read.append(found is not None)
        return tape.gradient(data, w), tf.zeros(()) if found is None else found

    return read, *(value.numpy() for value in step())


if keras.config.backend() == "tensorflow":

    @pytest.mark.parametrize("uses", [1, 3])
    @pytest.mark.parametrize(
        "penalty", [lambda w: 1e9 * sum_of_squares(w), keras.regularizers.L2(1e9)]
    )
    def test_data_gradient_is_read_beside_a_penalty_that_drowns_it(penalty, uses):
        read, data, found = trained_with(penalty, uses)
        assert read == [True]
        assert found == pytest.approx(data, rel=1e-6)

    def test_gradient_of_one_part_is_not_taken_apart():
        read, *_ = trained_with(lambda w: 0.0)
        assert read == [False]

    def test_eager_gradient_is_not_taken_apart():
        assert data_summand(ops.ones((2,))) is None

else:

    def test_only_the_graph_of_tensorflow_has_gradients_apart():
        with penalty_scope():
            assert data_summand(ops.ones((2,))) is None


if keras.config.backend() == "jax":

    def test_variables_that_a_stateless_function_leaves_out_are_not_known():
        one, other = keras.Variable(1.0), keras.Variable(2.0)
        assert is_known([one, other])
        with keras.StatelessScope(state_mapping=[(one, ops.ones(()))]):
            assert is_known([one])
            assert not is_known([one, other])


def test_compiled_gradients_follow_weights_statistics_and_data():
    layers = [keras.layers.BatchNormalization(), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((3,)), *layers])

    def loss(x):
        return ops.mean(ops.square(model(x, training=False)))

    compiled_gradients = gradient_function(model, loss)
    rng = np.random.default_rng(0)
    for _ in range(2):
        x = ops.convert_to_tensor(rng.normal(size=(4, 3)).astype("float32"))
        for variable in model.variables:
            if variable.shape:
                values = rng.uniform(0.5, 1.5, size=variable.shape)
                variable.assign(values.astype(variable.dtype))
        found = compiled_gradients(x)
        expected = loss_gradients(model, lambda x=x: loss(x))
        assert len(found) == len(model.trainable_variables)
        for a, b in zip(found, expected, strict=True):
            assert to_numpy(a) == pytest.approx(to_numpy(b), rel=1e-5)
