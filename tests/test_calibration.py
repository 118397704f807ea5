"""Calibration error against a loop of its own, and Dropout with a variable rate."""

import math

import keras
import numpy as np
import pytest
from keras import ops

from keras_scaled_l2.experiments.dropout_variant import VariableDropout
from keras_scaled_l2.experiments.results.calibration import BINS, calibration_error


def naive(probabilities, labels, bins):
    """Guo et al. (2017), equation 3, bin by bin and example by example."""
    total, n = 0.0, len(labels)
    for b in range(bins):
        low, high = b / bins, (b + 1) / bins
        confidences, right = [], []
        for row, label in zip(probabilities, labels, strict=True):
            confidence = max(row)
            if low < confidence <= high:
                confidences.append(confidence)
                right.append(float(list(row).index(confidence) == label))
        if confidences:
            gap = sum(right) / len(right) - sum(confidences) / len(confidences)
            total += len(right) / n * abs(gap)
    return total


def softmax(logits):
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("bins", [1, 7, BINS])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_error_is_that_of_a_naive_loop(classes, bins):
    rng = np.random.default_rng([classes, bins])
    logits = 3 * rng.normal(size=(300, classes))
    labels = rng.integers(0, classes, 300)
    expected = naive(softmax(logits), labels, bins)
    for outputs, given in ((logits, False), (softmax(logits), True)):
        found = calibration_error(outputs, labels, probabilities=given, bins=bins)
        assert found == pytest.approx(expected, rel=1e-9)
        assert 0 <= found <= 1


def test_known_values():
    certain = np.array([[1.0, 0.0]] * 4)
    for labels, expected in (([0] * 4, 0.0), ([1] * 4, 1.0), ([0, 0, 0, 1], 0.25)):
        error = calibration_error(certain, np.array(labels), probabilities=True)
        assert error == expected
    # Two bins: 0.6 that are right in 1 of 2, 0.9 that are right in 2 of 2.
    p = np.array([[0.6, 0.4], [0.6, 0.4], [0.1, 0.9], [0.1, 0.9]])
    error = calibration_error(p, np.array([0, 1, 1, 1]), probabilities=True)
    assert error == pytest.approx(0.5 * 0.1 + 0.5 * 0.1)
    # In one bin they make up for each other but for the mean.
    error = calibration_error(p, np.array([0, 1, 1, 1]), probabilities=True, bins=1)
    assert error == pytest.approx(abs(0.75 - 0.75))


@pytest.mark.parametrize("classes", [2, 5])
def test_calibrated_large_sample_is_near_zero(classes):
    rng = np.random.default_rng(3)
    p = softmax(2 * rng.normal(size=(200_000, classes)))
    labels = (p.cumsum(axis=1) < rng.random((len(p), 1))).sum(axis=1)
    assert calibration_error(p, labels, probabilities=True) < 0.006
    logits = 3 * np.log(p)
    assert calibration_error(logits, labels, probabilities=False) > 0.05


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_column_is_the_second_of_two(dtype):
    rng = np.random.default_rng(1)
    logits = (4 * rng.normal(size=(500, 1))).astype(dtype)
    labels = rng.integers(0, 2, 500)
    both = np.concatenate([np.zeros_like(logits), logits], axis=1)
    expected = calibration_error(both, labels, probabilities=False)
    p = softmax(both.astype("float64"))
    for outputs, given in ((logits, False), (p[:, 1:], True), (p, True)):
        error = calibration_error(outputs, labels, probabilities=given)
        assert error == pytest.approx(expected, rel=1e-6)
    column = labels[:, None]
    error = calibration_error(logits, column, probabilities=False)
    assert error == pytest.approx(expected, rel=1e-6)


def test_huge_logits_are_no_overflow():
    logits = np.array([[1e30], [-1e30], [800.0], [-800.0]])
    assert calibration_error(logits, np.array([1, 0, 1, 0]), probabilities=False) == 0
    wide = np.array([[1e30, -1e30, 0.0]])
    assert calibration_error(wide, np.array([0]), probabilities=False) == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("columns", [1, 3])
def test_outputs_that_are_not_finite_give_nan(value, columns):
    outputs = np.zeros((4, columns))
    outputs[2, 0] = value
    for given in (False, True):
        error = calibration_error(outputs, np.zeros(4, int), probabilities=given)
        assert math.isnan(error)


# --- VariableDropout ----------------------------------------------------------------


def drop(layer, x, training=True):
    return ops.convert_to_numpy(layer(ops.convert_to_tensor(x), training=training))


@pytest.mark.parametrize("make", [VariableDropout, keras.layers.Dropout])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.7, 0.95])
def test_share_that_is_dropped_is_the_rate_and_the_mean_stays(rate, make):
    n = 200_000
    found = drop(make(rate, seed=5), np.ones((n // 100, 100), "float32"))
    np.testing.assert_allclose(np.unique(found), [0, 1 / (1 - rate)], rtol=1e-6)
    sigma = math.sqrt(rate * (1 - rate) / n)
    assert abs(np.mean(found == 0) - rate) < 5 * sigma
    assert abs(found.mean() - 1) < 5 * sigma / (1 - rate)
    # Neither rows nor columns are dropped as a whole.
    for axis in (0, 1):
        share = (found == 0).mean(axis=axis)
        bound = 6 * math.sqrt(rate * (1 - rate) / found.shape[axis])
        assert np.abs(share - rate).max() < bound


def test_rate_zero_changes_no_bit():
    x = np.random.default_rng(0).normal(size=(50, 7)).astype("float32")
    x[0, :4] = [0.0, -0.0, 1e-37, 3e38]
    layer = VariableDropout(0.5, seed=1)
    layer.rate.assign(0.0)
    np.testing.assert_array_equal(drop(layer, x).view("int32"), x.view("int32"))


def test_rate_zero_draws_no_mask_where_that_is_seen_at_no_cost():
    # Where steps run as they are written; elsewhere one trace serves all rates.
    x = np.ones((5, 7), "float32")
    drawn = []
    for rate in (0.0, 0.5):
        layer = VariableDropout(rate, seed=1)
        before = ops.convert_to_numpy(layer.seed_generator.state.value).copy()
        drop(layer, x)
        after = ops.convert_to_numpy(layer.seed_generator.state.value)
        drawn.append(not np.array_equal(before, after))
    assert drawn == [keras.config.backend() != "torch", True]


def test_inference_is_untouched():
    x = np.random.default_rng(0).normal(size=(5, 7)).astype("float32")
    layer = VariableDropout(0.9, seed=1)
    np.testing.assert_array_equal(drop(layer, x, training=False), x)
    np.testing.assert_array_equal(ops.convert_to_numpy(layer(x)), x)


def test_mask_follows_from_the_seed():
    x = np.ones((20, 30), "float32")
    first, again, other = (VariableDropout(0.5, seed=s) for s in (1, 1, 2))
    masks = [drop(layer, x) for layer in (first, first, again, again, other)]
    np.testing.assert_array_equal(masks[0], masks[2])
    np.testing.assert_array_equal(masks[1], masks[3])
    assert np.any(masks[0] != masks[1])
    assert np.any(masks[0] != masks[4])


def test_lower_rate_keeps_what_a_higher_one_keeps():
    x = np.ones((20, 30), "float32")
    low, high = (drop(VariableDropout(r, seed=1), x) for r in (0.2, 0.6))
    assert np.all(low[high > 0] > 0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dtype_stays(dtype):
    before = keras.config.dtype_policy()
    policy = dtype if dtype == "float32" else f"mixed_{dtype}"
    keras.config.set_dtype_policy(policy)
    try:
        layer = VariableDropout(0.5, seed=1)
        x = ops.ones((40, 50), dtype=dtype)
        for training in (True, False):
            found = layer(x, training=training)
            assert keras.backend.standardize_dtype(found.dtype) == dtype
        assert keras.backend.standardize_dtype(layer.rate.dtype) == "float32"
        values = np.unique(
            ops.convert_to_numpy(ops.cast(layer(x, training=True), "float32"))
        )
        assert values.tolist() == [0, 2]
    finally:
        keras.config.set_dtype_policy(before)


def test_inputs_stay_of_the_type_that_they_are():
    layer = VariableDropout(0.0, seed=1)
    for training in (True, False):
        found = layer(ops.ones((4, 5), dtype="float16"), training=training)
        assert keras.backend.standardize_dtype(found.dtype) == "float16"


def test_one_trace_serves_several_rates():
    traces = []

    class Spy(VariableDropout):
        def call(self, inputs, training=False):
            traces.append(training)
            return super().call(inputs, training=training)

    layer = Spy(0.5, seed=1)
    first = keras.layers.Dense(50, kernel_initializer="identity")
    model = keras.Sequential([keras.Input((50,)), first, layer])
    # What is kept is 1 / (1 - rate), so that the mean of the squares is too.
    model.compile(keras.optimizers.SGD(0.0), lambda _, y: ops.mean(ops.square(y)))
    x = np.ones((400, 50), "float32")
    counts, shares = [], []
    for rate in (0.5, 0.0, 0.9, 0.3):
        layer.rate.assign(rate)
        shares.append(1 - 1 / float(model.train_on_batch(x, x)))
        counts.append(len(traces))
    np.testing.assert_allclose(shares, [0.5, 0, 0.9, 0.3], atol=0.02)
    # Torch traces nothing: there the model itself runs at every step.
    if keras.config.backend() != "torch":
        assert len(set(counts)) == 1


def test_layer_comes_back_from_its_config():
    layer = VariableDropout(0.3, seed=7, name="mine")
    again = VariableDropout.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    x = np.ones((20, 30), "float32")
    np.testing.assert_array_equal(drop(layer, x), drop(again, x))
