"""What is particular to each rule, against Keras's L2 and scikit-learn."""

import math

import keras
import numpy as np
import pytest
import reference
from autodiff import numpy, numpy64
from keras import ops
from models import compiled, data, linear, losses
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from keras_scaled_l2 import EvidenceL2, SampleL2, ScaledL2
from keras_scaled_l2.rule import effective_coefficient


@pytest.mark.parametrize(
    ("strength", "power", "shape"),
    [
        (0, 1, (784, 512)),
        (1e-6, 0, (3, 3, 16, 32)),
        (0.01, 0.25, (784, 512)),
        (3, 0.5, (3, 3, 16, 32)),
        (3, 2, (784, 512)),
        (3, 1, ()),
    ],
)
def test_scaled_l2_divides_by_a_power_of_the_tensors_weights(strength, power, shape):
    found = ScaledL2(strength, power=power).coefficient(shape)
    assert found == pytest.approx(strength / math.prod(shape) ** power, rel=1e-14)


@pytest.mark.parametrize("per", [1, 20, 0.5, 35_000_000, np.int64(20)])
def test_scaled_l2_divides_by_the_number_given_whatever_the_shape(per):
    rule = ScaledL2(3.0, per=per)
    assert rule.coefficient((4, 5)) == rule.coefficient(()) == 3.0 / float(per)


def test_scaled_l2_is_strength_times_the_mean_square():
    w = np.random.default_rng(0).normal(size=(30, 40)).astype("float32")
    mean_square = np.mean(w.astype("float64") ** 2)
    value = numpy64(ScaledL2(0.5)(ops.convert_to_tensor(w)))
    assert value == pytest.approx(0.5 * mean_square, rel=1e-6)


def test_scaled_l2_of_power_zero_is_keras_l2():
    w = np.random.default_rng(0).normal(size=(30, 40)).astype("float32")
    value = numpy64(ScaledL2(0.5, power=0)(ops.convert_to_tensor(w)))
    assert value == pytest.approx(numpy64(keras.regularizers.L2(0.5)(w)), rel=1e-6)


def test_scaled_l2_divided_beyond_floats_is_zero():
    assert ScaledL2(1.0, per=1e300, power=2).coefficient((4, 5)) == 0.0


def test_scaled_l2_grown_beyond_floats_is_an_error_that_names_the_arguments():
    with pytest.raises(ValueError, match=r"per=.*power="):
        ScaledL2(1.0, per=1e-300, power=2).coefficient((4, 5))
    with pytest.raises(ValueError, match=r"per=.*power="):
        ScaledL2(1e10, per=1e-300).coefficient((4, 5))


@pytest.mark.parametrize(
    "arguments",
    [
        {"per": 0},
        {"per": -3},
        {"per": math.nan},
        {"per": math.inf},
        {"per": 10**400},
        {"per": True},
        {"per": None},
        {"per": "kernel"},
        {"per": (3, 4)},
        {"power": -1},
        {"power": math.nan},
        {"power": math.inf},
        {"power": "1"},
        {"power": None},
        {"inferred_per": 0},
        {"inferred_per": 2.5},
    ],
    ids=str,
)
def test_scaled_l2_refuses_a_bad_argument_by_name(arguments):
    [(name, value)] = arguments.items()
    with pytest.raises(ValueError, match=rf"^{name}=") as caught:
        ScaledL2(1.0, **arguments)
    assert repr(value) in str(caught.value)


def test_scaled_l2_takes_its_inferred_count_by_keyword_only():
    with pytest.raises(TypeError):
        ScaledL2(1.0, "layer", 1.0, 30)


@pytest.mark.parametrize(("strength", "samples"), [(0, 1), (0.01, 569), (3, 10**12)])
def test_sample_l2_is_the_textbooks_lambda_over_two_m(strength, samples):
    found = SampleL2(strength, samples=samples).coefficient((4, 5))
    assert found == pytest.approx(strength / 2 / samples, rel=1e-14)


@pytest.mark.parametrize("name", ["samples", "inferred_samples"])
@pytest.mark.parametrize(
    "value", [0, -5, 2.5, math.nan, math.inf, True, "many", 10**400], ids=str
)
def test_sample_l2_refuses_a_bad_count_by_name(name, value):
    with pytest.raises(ValueError, match=rf"^{name}=.*expected"):
        SampleL2(1.0, **{name: value})


def test_sample_l2_prefers_what_the_user_gave_to_what_was_inferred():
    rule = SampleL2(1.0, samples=50, inferred_samples=9)
    assert rule.coefficient((4, 5)) == 0.01
    assert not rule.needs


def test_evidence_l2_has_the_strength_that_training_found():
    rule = EvidenceL2(2.0, samples=50)
    found = rule.with_strength(8.0)
    assert (rule.strength, rule.coefficient((4, 5))) == (2.0, 0.02)
    assert (found.strength, found.coefficient((4, 5))) == (8.0, 0.08)
    assert found.sample_count == 50


@pytest.mark.parametrize(
    ("regularizer", "expected"),
    [
        (ScaledL2(0.5), 0.5 / 20),
        (SampleL2(1.0, samples=50), 0.01),
        (keras.regularizers.L2(0.25), 0.25),
        (keras.regularizers.L1L2(l1=0.0, l2=0.25), 0.25),
        (keras.regularizers.L1L2(l1=0.1, l2=0.25), None),
        (keras.regularizers.L1(0.1), None),
        (keras.regularizers.OrthogonalRegularizer(), None),
        (lambda w: 0.0, None),
    ],
    # No addresses: every process must find the same names.
    ids=lambda value: type(value).__name__,
)
def test_effective_coefficient_is_that_of_the_sum_of_squares(regularizer, expected):
    assert effective_coefficient(regularizer, (4, 5)) == expected


def test_penalty_in_float16_survives_where_keras_l2_is_zero():
    w = ops.cast(ops.ones((50, 20)), "float16")
    stock = keras.regularizers.L2(0.01 / 35e6)(w)
    ours = ScaledL2(0.01, per=35_000_000)(w)
    assert numpy64(stock) == 0
    assert numpy64(ours) == pytest.approx(1000 * 0.01 / 35e6, rel=1e-6)


def test_penalty_in_float16_is_finite_where_the_sum_exceeds_its_range():
    w = ops.cast(ops.full((400, 400), 4.0), "float16")
    assert numpy64(ScaledL2(1.0)(w)) == pytest.approx(16.0, rel=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_penalty_of_many_weights_counts_them_all(dtype):
    # One running sum in float32 stops at 2**24 ones, in bfloat16 at 256.
    n = 2**24 + 3 * 4096 + 5
    value = numpy64(ScaledL2(1.0, per=1)(ops.ones((n,), dtype=dtype)))
    assert value == pytest.approx(n, rel=1e-6)


def test_rule_on_activities_is_an_error_that_says_what_it_is_for():
    layer = keras.layers.Dense(3, activity_regularizer=ScaledL2(1.0))
    model = compiled(keras.Sequential([keras.Input((4,)), layer]))
    x, y = data(outputs=3)
    # Of static shape, as in a NumPy call, activities are tensors like any other.
    with pytest.raises(ValueError, match="not for activations"):
        ScaledL2(1.0).coefficient((None, 3))
    assert model(x).shape == (10, 3)
    assert y.shape == (10, 3)


@pytest.mark.parametrize("rule", [SampleL2(1.0), ScaledL2(1.0, "model")], ids=repr)
def test_training_with_an_unresolved_rule_is_an_error_with_the_remedy(rule):
    model = linear(rule)
    with pytest.raises(ValueError, match="ApplyL2"):
        model.fit(*data(), verbose=0)


def test_training_with_scaled_l2_per_one_is_training_with_keras_l2():
    x, y = data(samples=50, features=6)
    weights, costs = [], []
    for regularizer in (ScaledL2(0.03, per=1), keras.regularizers.L2(0.03)):
        model = linear(regularizer, features=6)
        history = model.fit(
            x, y, batch_size=8, epochs=4, shuffle=False, verbose=0
        ).history
        weights.append([numpy(w) for w in model.weights])
        costs.append(history["loss"])
    for ours, stock in zip(*weights, strict=True):
        if keras.config.backend() == "jax":
            # XLA may round the same step another way.
            np.testing.assert_allclose(ours, stock, rtol=1e-5, atol=1e-7)
        else:
            np.testing.assert_array_equal(ours, stock)
    np.testing.assert_allclose(*costs, rtol=1e-6)


@pytest.mark.parametrize(
    "rule", [ScaledL2(2.0), ScaledL2(0.3, per=3, power=0.5), SampleL2(2.0, samples=10)]
)
def test_sgd_step_shrinks_the_weights_and_follows_the_data(rule):
    x, y = data()
    learning_rate = 0.1
    model = linear(rule, learning_rate=learning_rate)
    w, b = (numpy64(v) for v in model.layers[0].weights)
    c = reference.COEFFICIENTS[type(rule).__name__](rule.get_config(), w.shape)
    _, by_w, by_b = reference.mean_squared_error(x, y, w, b)

    model.fit(x, y, batch_size=10, verbose=0)

    stepped_w, stepped_b = (numpy(v) for v in model.layers[0].weights)
    np.testing.assert_allclose(
        stepped_w, w * (1 - 2 * learning_rate * c) - learning_rate * by_w, rtol=1e-5
    )
    np.testing.assert_allclose(stepped_b, b - learning_rate * by_b, rtol=1e-5)


def test_penalty_is_in_the_models_losses():
    model = linear(ScaledL2(2.0))
    w = numpy(model.layers[0].kernel)
    assert losses(model) == pytest.approx([reference.penalty(2.0 / 4, w)], rel=1e-6)


@pytest.mark.parametrize("inverse_strength", [0.1, 1.0])
def test_sample_l2_finds_the_coefficients_of_scikit_learn(inverse_strength):
    x, y = load_breast_cancer(return_X_y=True)
    x = StandardScaler().fit_transform(x)
    samples, features = x.shape
    theirs = LogisticRegression(C=inverse_strength, tol=1e-10, max_iter=10_000)
    theirs.fit(x, y)

    model = keras.Sequential(
        [
            keras.Input((features,)),
            keras.layers.Dense(
                1,
                kernel_initializer="zeros",
                kernel_regularizer=SampleL2(1 / inverse_strength, samples=samples),
            ),
        ]
    )
    model.compile(
        optimizer=keras.optimizers.SGD(0.5, momentum=0.95, nesterov=True),
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
    )
    # Whole-batch steps; one long epoch, since an epoch costs more than its step.
    x, y = np.tile(x.astype("float32"), (50, 1)), np.tile(y[:, None], (50, 1))
    model.fit(x, y, batch_size=samples, epochs=10, shuffle=False, verbose=0)

    kernel, bias = (numpy(w) for w in model.layers[0].weights)
    np.testing.assert_allclose(kernel[:, 0], theirs.coef_[0], atol=1e-3)
    np.testing.assert_allclose(bias, theirs.intercept_, atol=1e-3)
