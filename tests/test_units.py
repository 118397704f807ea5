"""Conversions: against formulas written again, and against the libraries they name."""

import itertools
import math
from fractions import Fraction

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neural_network import MLPClassifier, MLPRegressor

from keras_scaled_l2 import cli
from keras_scaled_l2.regularizers import HalfLifeL2, PriorL2, SampleL2
from keras_scaled_l2.units import CONVENTIONS, COUNTS, convert

pytestmark = pytest.mark.once
NAMES = [
    "keras",
    "textbook",
    "torch",
    "decoupled",
    "sklearn_mlp",
    "logistic_c",
    "ridge",
    "prior_std",
    "half_life",
]
# A conversion goes by way of c: each convention once as a source, once as a target.
# Among them are all four of plain and reciprocal, and two that want the same count.
PAIRS = list(itertools.pairwise([*NAMES, NAMES[0]]))
RECIPROCAL = ["logistic_c", "prior_std", "half_life"]
PLAIN = [name for name in NAMES if name not in RECIPROCAL]
ALL_COUNTS = {
    "samples": 5000,
    "batch_size": 100,
    "learning_rate": 0.1,
    "momentum": 0.9,
    "fan_in": 20,
}
REQUIRED = {
    "textbook": ["samples"],
    "sklearn_mlp": ["batch_size"],
    "logistic_c": ["samples"],
    "ridge": ["samples"],
    "prior_std": ["samples"],
    "half_life": ["samples", "batch_size", "learning_rate"],
}


def naive_from_keras(c, name, counts):
    """Every convention as FACTS and the libraries' manuals write it, in floats."""
    m, b, lr, mu, fan_in = (counts[key] for key in ALL_COUNTS)
    decay_per_step = 2 * c * lr / (1 - mu)
    return {
        "keras": c,
        "textbook": c * 2 * m,
        "torch": c + c,
        "decoupled": 2 * c / (1 - mu),
        "sklearn_mlp": c * 2 * b,
        "logistic_c": 0.5 / (m * c),
        "ridge": m * c,
        "prior_std": (fan_in / (2 * m * c)) ** 0.5,
        "half_life": math.log(2) / decay_per_step / (m / b),
    }[name]


@st.composite
def counts(draw):
    samples = draw(st.integers(1, 10**9))
    return {
        "samples": samples,
        "batch_size": draw(st.integers(1, samples)),
        "learning_rate": draw(st.floats(1e-6, 10)),
        "momentum": draw(st.floats(0, 0.999)),
        "fan_in": draw(st.integers(1, 10**5)),
    }


# Formulas


def test_conventions_are_those_of_the_design_in_one_line_each():
    assert list(CONVENTIONS) == NAMES
    for name, line in CONVENTIONS.items():
        assert line and "\n" not in line, name


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=50)
@given(c=st.floats(1e-12, 1e6), given_counts=counts())
def test_convert_equals_the_formula_written_again(name, c, given_counts):
    expected = naive_from_keras(c, name, given_counts)
    assert convert(c, "keras", name, **given_counts) == pytest.approx(
        expected, rel=1e-12
    )
    assert convert(expected, name, "keras", **given_counts) == pytest.approx(
        c, rel=1e-12
    )


@pytest.mark.parametrize(
    ("value", "source", "target", "given_counts", "expected"),
    [
        (1.0, "textbook", "torch", {"samples": 5000}, 2e-4),
        (1.0, "textbook", "keras", {"samples": 50}, 0.01),
        (5e-4, "torch", "keras", {}, 2.5e-4),
        (1e-3, "keras", "decoupled", {"momentum": 0.9}, 0.02),
        (1e-3, "keras", "decoupled", {}, 0.002),
        (1e-4, "sklearn_mlp", "keras", {"batch_size": 200}, 2.5e-7),
        (1.0, "logistic_c", "textbook", {"samples": 123}, 1.0),
        (1.0, "ridge", "textbook", {"samples": 7}, 2.0),
        (0.1, "prior_std", "textbook", {"samples": 99}, 100.0),
        (0.1, "prior_std", "textbook", {"samples": 99, "fan_in": 4}, 400.0),
        (2.0, "half_life", "decoupled", ALL_COUNTS, math.log(2) / (2 * 50 * 0.1)),
    ],
)
def test_convert_gives_figures_worked_by_hand(
    value, source, target, given_counts, expected
):
    got = convert(value, source, target, **given_counts)
    assert got == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(("source", "target"), PAIRS)
@settings(deadline=None, max_examples=25)
@given(value=st.floats(1e-8, 1e8), given_counts=counts())
def test_convert_there_and_back_gives_the_value(source, target, value, given_counts):
    there = convert(value, source, target, **given_counts)
    assert convert(there, target, source, **given_counts) == pytest.approx(
        value, rel=1e-14
    )


@settings(deadline=None, max_examples=100)
@given(
    names=st.tuples(*[st.sampled_from(NAMES)] * 3),
    value=st.floats(1e-8, 1e8),
    given_counts=counts(),
)
def test_convert_by_way_of_a_third_convention_changes_nothing(
    names, value, given_counts
):
    source, way, target = names
    direct = convert(value, source, target, **given_counts)
    stop = convert(value, source, way, **given_counts)
    assert convert(stop, way, target, **given_counts) == pytest.approx(
        direct, rel=1e-14
    )


@settings(deadline=None, max_examples=100)
@given(
    names=st.tuples(*[st.sampled_from(NAMES)] * 2),
    values=st.tuples(*[st.floats(1e-8, 1e8)] * 2),
    given_counts=counts(),
)
def test_convert_keeps_order_and_turns_it_for_reciprocal_conventions(
    names, values, given_counts
):
    source, target = names
    low, high = (convert(v, source, target, **given_counts) for v in sorted(values))
    if (source in RECIPROCAL) != (target in RECIPROCAL):
        low, high = high, low
    assert low <= high


@settings(deadline=None, max_examples=100)
@given(value=st.floats(1e-8, 1e8), given_counts=counts())
def test_half_life_to_decoupled_does_not_depend_on_the_momentum(value, given_counts):
    plain = {**given_counts, "momentum": 0.0}
    assert convert(value, "half_life", "decoupled", **given_counts) == convert(
        value, "half_life", "decoupled", **plain
    )


@settings(deadline=None, max_examples=50)
@given(value=st.floats(1e-6, 1e6), given_counts=counts())
def test_convert_agrees_with_the_rules_of_the_package(value, given_counts):
    samples, fan_in = given_counts["samples"], given_counts["fan_in"]
    steps = {key: given_counts[key] for key in given_counts if key != "fan_in"}
    for name, rule in [
        ("textbook", SampleL2(value, samples)),
        ("prior_std", PriorL2(value, samples, fan_in)),
        ("half_life", HalfLifeL2(value, **steps)),
    ]:
        c = convert(value, name, "keras", **given_counts)
        assert c == pytest.approx(rule.coefficient((3, 2)), rel=1e-12), name


# Zero, infinity and extremes


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_no_penalty_stays_no_penalty(source, target):
    nothing = math.inf if source in RECIPROCAL else 0.0
    expected = math.inf if target in RECIPROCAL else 0.0
    assert convert(nothing, source, target, **ALL_COUNTS) == expected


@pytest.mark.parametrize("name", NAMES)
def test_convert_to_the_same_convention_returns_the_value_and_needs_no_counts(name):
    assert convert(0.3, name, name) == 0.3
    assert convert(3, name, name) == 3.0
    assert type(convert(3, name, name)) is float
    nothing = math.inf if name in RECIPROCAL else 0.0
    assert convert(nothing, name, name) == nothing


@pytest.mark.parametrize("name", NAMES)
def test_convert_takes_numpy_scalars_and_returns_a_float(name):
    got = convert(
        np.float32(0.25),
        name,
        "textbook" if name == "keras" else "keras",
        samples=np.int64(5000),
        batch_size=np.int32(100),
        learning_rate=np.float64(0.1),
        momentum=np.float32(0.5),
        fan_in=np.uint8(20),
    )
    assert type(got) is float and got > 0


@settings(deadline=None, max_examples=200)
@given(
    names=st.tuples(*[st.sampled_from(NAMES)] * 2),
    value=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    samples=st.integers(1, 10**400),
    learning_rate=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    momentum=st.floats(0, 1, exclude_max=True),
)
def test_convert_of_extreme_numbers_is_right_or_a_clear_error(
    names, value, samples, learning_rate, momentum
):
    source, target = names
    given_counts = {
        "samples": samples,
        "batch_size": max(samples // 3, 1),
        "learning_rate": learning_rate,
        "momentum": momentum,
    }
    try:
        got = convert(value, source, target, **given_counts)
    except ValueError as error:
        assert (
            "too large" in str(error)
            or "too small" in str(error)
            or (samples > 1e308 and "samples" in str(error))
        )
    else:
        assert 0 < got < math.inf


@pytest.mark.parametrize("sign", [-1, 1])
def test_convert_does_not_overflow_or_underflow_on_the_way(sign):
    # E * lr = 1e-350 or 1e350: the coefficient is no float, the prior's std is.
    got = convert(
        float(f"1e{150 * sign}"),
        "half_life",
        "prior_std",
        samples=1,
        batch_size=1,
        learning_rate=float(f"1e{200 * sign}"),
    )
    assert got == pytest.approx(float(f"1e{175 * sign}") / math.sqrt(math.log(2)))


@pytest.mark.parametrize("extreme", [1e-300, 1e-154, 1e154, 1e300])
def test_prior_std_root_is_right_where_squares_leave_the_floats(extreme):
    std = convert(extreme, "logistic_c", "prior_std", samples=3)
    assert Fraction(std) ** 2 == pytest.approx(Fraction(extreme), rel=1e-15)


# Errors


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_convert_names_every_missing_count_and_who_needs_it(source, target):
    wanted = {
        name: [c for c in (source, target) if name in REQUIRED.get(c, [])]
        for name in COUNTS
    }
    for name, conventions in wanted.items():
        rest = {key: number for key, number in ALL_COUNTS.items() if key != name}
        if not conventions:
            assert convert(1.0, source, target, **rest) > 0
            continue
        with pytest.raises(ValueError, match=f"{name}=") as caught:
            convert(1.0, source, target, **rest)
        for convention in conventions:
            assert f"for '{convention}'" in str(caught.value) or (
                f"and '{convention}'" in str(caught.value)
            )
        absent = set(REQUIRED.get(source, []) + REQUIRED.get(target, [])) - {name}
        assert not any(f"{other}=..." in str(caught.value) for other in absent)


def test_convert_names_all_missing_counts_at_once():
    with pytest.raises(
        ValueError, match=r"samples=\.\.\., batch_size=\.\.\., learning_rate=\.\.\."
    ):
        convert(2.0, "half_life", "torch")


def test_momentum_and_fan_in_have_the_documented_defaults():
    rest = {"samples": 5000, "batch_size": 100, "learning_rate": 0.1}
    full = {**rest, "momentum": 0.0, "fan_in": 1}
    for source, target in PAIRS:
        assert convert(1.0, source, target, **rest) == convert(
            1.0, source, target, **full
        )


@pytest.mark.parametrize("argument", ["source", "target"])
def test_unknown_convention_lists_the_known_ones_and_suggests(argument):
    names = {"source": "keras", "target": "keras", argument: "Logistic_C"}
    with pytest.raises(ValueError, match="Did you mean 'logistic_c'") as caught:
        convert(1.0, **names)
    assert f"{argument}='Logistic_C'" in str(caught.value)
    for name in NAMES:
        assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", ["", "none of these", None, 3, 0.5, True, [], b""])
def test_a_name_like_no_convention_is_refused_without_suggestion(name):
    with pytest.raises(ValueError, match="expected one of") as caught:
        convert(1.0, name, "keras")
    assert "Did you mean" not in str(caught.value)


BAD_ANYWHERE = [-1.0, -5e-324, -math.inf, math.nan, True, "1", None, [1.0], 1j, 10**400]


@pytest.mark.parametrize("bad", BAD_ANYWHERE, ids=repr)
def test_a_value_that_is_no_strength_is_refused(bad):
    # One plain and one reciprocal source; the target is not looked at.
    for name in ("keras", "half_life"):
        with pytest.raises(
            ValueError, match=r"^value=.*expected .*for no|^value=.*For no"
        ):
            convert(bad, name, name)


@pytest.mark.parametrize("name", RECIPROCAL)
def test_zero_of_a_reciprocal_convention_is_an_infinite_penalty_and_refused(name):
    for zero in (0, 0.0, -0.0):
        with pytest.raises(ValueError, match=r"infinite penalty.*float\('inf'\)"):
            convert(zero, name, "keras", **ALL_COUNTS)


@pytest.mark.parametrize("name", PLAIN)
def test_an_infinite_strength_is_refused(name):
    with pytest.raises(ValueError, match="value=inf: expected a finite number"):
        convert(math.inf, name, "keras", **ALL_COUNTS)


@pytest.mark.parametrize(
    ("count", "bad"),
    [
        *itertools.product(
            ["samples"], [0, -1, 1.5, math.nan, math.inf, True, "7", [7]]
        ),
        *itertools.product(
            ["batch_size", "fan_in", "learning_rate"],
            [0, 0.0, -0.1, math.nan, math.inf, False, "0.1", [0.1]],
        ),
        *itertools.product(
            ["momentum"], [1, 1.0, 1.5, -0.1, math.nan, math.inf, False, "0", [0.0]]
        ),
    ],
    ids=repr,
)
def test_a_count_out_of_range_is_refused_needed_or_not(count, bad):
    given_counts = {**ALL_COUNTS, count: bad}
    for source, target in [("half_life", "prior_std"), ("keras", "torch")]:
        with pytest.raises(ValueError, match=rf"^{count}=.*expected .*\. Pass the "):
            convert(1.0, source, target, **given_counts)


def test_a_batch_may_exceed_the_training_set_where_gradients_accumulate():
    given_counts = {"samples": 100, "batch_size": 400, "learning_rate": 0.1}
    steps_per_epoch = 0.25
    decay = convert(8.0, "half_life", "decoupled", **given_counts)
    assert decay * 0.1 * 8.0 * steps_per_epoch == pytest.approx(math.log(2))


anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.complex_numbers(),
    st.text(max_size=8),
    st.sampled_from(NAMES),
    st.lists(st.floats(), max_size=2),
    st.fractions(),
    st.decimals(),
)


@settings(deadline=None, max_examples=300)
@given(
    value=st.one_of(st.floats(), anything),
    source=st.one_of(st.sampled_from(NAMES), anything),
    target=st.one_of(st.sampled_from(NAMES), anything),
    given_counts=st.fixed_dictionaries(
        {},
        optional={
            "samples": st.one_of(st.integers(1), anything),
            "batch_size": st.one_of(st.integers(1, 9), anything),
            "learning_rate": st.one_of(st.floats(0), anything),
            "momentum": st.one_of(st.floats(0, 1), anything),
            "fan_in": st.one_of(st.integers(1), anything),
        },
    ),
)
def test_convert_of_anything_is_a_strength_or_a_value_error(
    value, source, target, given_counts
):
    try:
        got = convert(value, source, target, **given_counts)
    except ValueError as error:
        assert len(str(error)) > 20
    else:
        assert type(got) is float and got >= 0


# The real thing: scikit-learn
#
# Where scikit-learn finds an optimum, one step of Keras's SGD with rate 1 from there,
# with Keras's own loss and L2(c), must stay there: it moves by Keras's gradient.


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(96, 4))
    y = x @ [1.0, -2.0, 0.5, 0.0] + rng.normal(size=96)
    return x, y


def keras_model(layers, c, loss, optimizer):
    """Dense layers with these kernels and biases (or None), tanh between, L2(c)."""
    model = keras.Sequential([keras.Input((layers[0][0].shape[0],))])
    for kernel, bias in layers:
        last = kernel is layers[-1][0]
        model.add(
            keras.layers.Dense(
                kernel.shape[1],
                activation=None if last else "tanh",
                use_bias=bias is not None,
                kernel_regularizer=keras.regularizers.L2(c),
            )
        )
    model.set_weights([w for layer in layers for w in layer if w is not None])
    model.compile(optimizer, loss=loss)
    return model


def moved(layers, c, loss, x, y):
    """The largest change of a weight by a step of rate 1, Keras's largest gradient."""
    model = keras_model(layers, c, loss, keras.optimizers.SGD(1.0))
    before = model.get_weights()
    model.train_on_batch(x.astype("float32"), y.reshape(-1, 1).astype("float32"))
    return max(
        np.abs(new - old).max()
        for new, old in zip(model.get_weights(), before, strict=True)
    )


def log_loss():
    return keras.losses.BinaryCrossentropy(from_logits=True)


def assert_optimum_of_keras(layers, c, loss, x, y):
    """Keras's gradient vanishes with c there, and not with a c off by 10 percent."""
    assert moved(layers, c, loss, x, y) < 1e-4
    assert moved(layers, 1.1 * c, loss, x, y) > 1e-3


def test_ridge_alpha_gives_the_solution_of_mean_squared_error_with_c(data):
    x, y = data
    c = 0.3
    alpha = convert(c, "keras", "ridge", samples=len(x))
    ridge = Ridge(alpha=alpha, fit_intercept=False, tol=1e-12).fit(x, y)
    normal = np.linalg.solve(x.T @ x / len(x) + c * np.eye(4), x.T @ y / len(x))
    np.testing.assert_allclose(ridge.coef_, normal, rtol=1e-12)
    assert_optimum_of_keras(
        [(ridge.coef_[:, None], None)], c, "mean_squared_error", x, y
    )


def test_ridge_with_several_outputs_counts_examples_times_outputs(data):
    x, y = data
    targets = np.stack([y, y**2, -3 * y], axis=1)
    c = 0.3
    alpha = convert(c, "keras", "ridge", samples=targets.size)
    ridge = Ridge(alpha=alpha, fit_intercept=False).fit(x, targets)
    kernel = ridge.coef_.T
    model = keras_model([(kernel, None)], c, "mse", keras.optimizers.SGD(1.0))
    model.train_on_batch(x.astype("float32"), targets.astype("float32"))
    np.testing.assert_allclose(model.get_weights()[0], kernel, atol=1e-5)


def test_logistic_regression_c_gives_the_optimum_of_mean_log_loss_with_c(data):
    x, y = data
    labels = y > 0
    c = 0.02
    inverse = convert(c, "keras", "logistic_c", samples=len(x))
    fitted = LogisticRegression(C=inverse, tol=1e-10, max_iter=1000).fit(x, labels)
    w, b = fitted.coef_[0], fitted.intercept_[0]
    error = 1 / (1 + np.exp(-(x @ w + b))) - labels
    np.testing.assert_allclose(x.T @ error / len(x) + 2 * c * w, 0, atol=1e-7)
    layers = [(fitted.coef_.T, fitted.intercept_)]
    assert_optimum_of_keras(layers, c, log_loss(), x, labels)


def test_mlp_alpha_with_lbfgs_takes_the_training_set_as_its_batch(data):
    x, y = data
    labels = y > 0
    c = 0.02
    alpha = convert(c, "keras", "sklearn_mlp", batch_size=len(x))
    mlp = MLPClassifier(
        hidden_layer_sizes=(3,),
        activation="tanh",
        solver="lbfgs",
        alpha=alpha,
        tol=1e-12,
        max_iter=2000,
        max_fun=10**5,
        random_state=0,
    ).fit(x, labels)
    layers = list(zip(mlp.coefs_, mlp.intercepts_, strict=True))
    assert all(np.abs(kernel).max() > 0.1 for kernel, _ in layers)
    assert_optimum_of_keras(layers, c, log_loss(), x, labels)


def test_mlp_regressor_halves_the_squared_error_so_its_alpha_is_half(data):
    x, y = data
    c = 0.02
    alpha = convert(c, "keras", "sklearn_mlp", batch_size=len(x)) / 2
    mlp = MLPRegressor(
        hidden_layer_sizes=(3,),
        activation="tanh",
        solver="lbfgs",
        alpha=alpha,
        tol=1e-12,
        max_iter=5000,
        max_fun=10**5,
        random_state=0,
    ).fit(x, y)
    layers = list(zip(mlp.coefs_, mlp.intercepts_, strict=True))
    assert_optimum_of_keras(layers, c, "mean_squared_error", x, y)


@pytest.mark.everywhere
@pytest.mark.parametrize("solver", ["sgd", "adam"])
def test_mlp_alpha_takes_the_same_mini_batch_steps_as_keras(solver, data):
    x, y = data
    labels = (y > 0).astype("float32")
    alpha, batch_size, rate = 5.0, 24, 0.1

    def one_epoch(learning_rate):
        return MLPClassifier(
            hidden_layer_sizes=(3,),
            activation="tanh",
            solver=solver,
            alpha=alpha,
            batch_size=batch_size,
            learning_rate_init=learning_rate,
            momentum=0.0,
            shuffle=False,
            random_state=0,
        ).partial_fit(x, labels, classes=[0, 1])

    def keras_epoch(c):
        optimizer = {
            "sgd": keras.optimizers.SGD(rate),
            "adam": keras.optimizers.Adam(rate, epsilon=1e-8),
        }[solver]
        start = one_epoch(1e-30)  # its initial weights
        layers = list(zip(start.coefs_, start.intercepts_, strict=True))
        model = keras_model(layers, c, log_loss(), optimizer)
        model.fit(x, labels[:, None], batch_size, shuffle=False, verbose=0)
        return np.concatenate([w.ravel() for w in model.get_weights()])

    fitted = one_epoch(rate)
    expected = np.concatenate(
        [
            w.ravel()
            for layer in zip(fitted.coefs_, fitted.intercepts_, strict=True)
            for w in layer
        ]
    )
    c = convert(alpha, "sklearn_mlp", "keras", batch_size=batch_size)
    np.testing.assert_allclose(keras_epoch(c), expected, atol=1e-5)
    # Against the training set, as one may read the manual, it would be another c.
    whole = convert(alpha, "sklearn_mlp", "keras", batch_size=len(x))
    assert np.abs(keras_epoch(whole) - expected).max() > 0.02


# The real thing: priors and the textbook


@pytest.mark.parametrize("fan_in", [None, 16])
def test_prior_std_makes_the_cost_the_negative_log_posterior(fan_in, data):
    x, y = data
    labels = y > 0
    c = convert(0.7, "prior_std", "keras", samples=len(x), fan_in=fan_in)
    prior = stats.norm(0, 0.7 / math.sqrt(fan_in or 1))

    def log_posterior(w):
        likelihood = stats.bernoulli(1 / (1 + np.exp(-(x @ w))))
        return likelihood.logpmf(labels).sum() + prior.logpdf(w).sum()

    def cost(w):
        model = keras_model([(w[:, None], None)], c, log_loss(), "sgd")
        return model.evaluate(x, labels[:, None], batch_size=len(x), verbose=0)

    one, two = np.array([1.0, -1.0, 0.5, 2.0]), np.array([0.3, -2.0, 1.5, 0.0])
    # Posterior and cost differ by a constant: compare how they change.
    assert -(log_posterior(one) - log_posterior(two)) / len(x) == pytest.approx(
        cost(one) - cost(two), rel=1e-4
    )


@pytest.mark.everywhere
def test_textbook_lambda_over_two_m_is_the_penalty_of_keras():
    w = np.random.default_rng(1).normal(size=(5, 3))
    c = convert(0.7, "textbook", "keras", samples=40)
    penalty = keras.regularizers.L2(c)(keras.ops.convert_to_tensor(w, "float32"))
    assert float(penalty) == pytest.approx(0.7 / (2 * 40) * (w**2).sum(), rel=1e-6)


# The real thing: what an optimizer does to a weight without data gradient


def without_data_gradient(optimizer, c=0.0):
    """A model whose inputs are zero, so that only the penalty and decay act."""
    model = keras_model([(np.ones((1, 1)), None)], c, "mse", optimizer)
    zeros = np.zeros((1, 1), "float32")

    def step():
        model.train_on_batch(zeros, zeros)
        return float(model.get_weights()[0][0, 0])

    return step


@pytest.mark.everywhere
def test_l2_and_keras_weight_decay_are_equal_under_plain_sgd():
    c = 0.05
    decay = convert(c, "keras", "decoupled")
    coupled = without_data_gradient(keras.optimizers.SGD(0.1), c)
    decoupled = without_data_gradient(keras.optimizers.SGD(0.1, weight_decay=decay))
    for n in range(1, 21):
        expected = pytest.approx((1 - 0.1 * 2 * c) ** n, rel=1e-5)
        assert coupled() == expected
        assert decoupled() == expected


@pytest.mark.everywhere
@pytest.mark.parametrize("nesterov", [False, True])
def test_l2_and_keras_weight_decay_share_the_time_scale_under_momentum(nesterov):
    rate, momentum, c, steps = 0.1, 0.9, 0.002, 300
    decay = convert(c, "keras", "decoupled", momentum=momentum)
    sgd = keras.optimizers.SGD
    coupled = without_data_gradient(sgd(rate, momentum, nesterov), c)
    decoupled = without_data_gradient(sgd(rate, momentum, nesterov, weight_decay=decay))
    for _ in range(steps):
        with_l2, with_decay = coupled(), decoupled()
    assert with_decay == pytest.approx((1 - rate * decay) ** steps, rel=1e-4)
    assert 0.2 < with_decay < 0.4
    # Time scales agree within 1 %; taking 2 c for the decay would be off by 900 %.
    assert math.log(with_l2) == pytest.approx(math.log(with_decay), rel=0.01)


@pytest.mark.everywhere
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_half_life_is_the_epochs_in_which_a_weight_without_data_gradient_halves(
    momentum,
):
    counts_ = {"samples": 1600, "batch_size": 16, "learning_rate": 0.1}
    epochs = 4.0
    c = convert(epochs, "half_life", "keras", momentum=momentum, **counts_)
    step = without_data_gradient(keras.optimizers.SGD(0.1, momentum), c)
    steps = 1
    while step() > 0.5:
        steps += 1
    assert steps / (1600 / 16) == pytest.approx(epochs, rel=0.015)


@pytest.mark.everywhere
def test_half_life_of_adamw_is_that_of_its_decoupled_weight_decay():
    counts_ = {"samples": 1600, "batch_size": 16, "learning_rate": 0.01}
    decay = convert(2.0, "half_life", "decoupled", **counts_)
    step = without_data_gradient(keras.optimizers.AdamW(0.01, weight_decay=decay))
    steps = 1
    while step() > 0.5:
        steps += 1
    assert steps / (1600 / 16) == pytest.approx(2.0, rel=0.01)


# The real thing: PyTorch, in the process whose backend it is

if keras.config.backend() == "torch":
    import torch

    def torch_path(make_optimizer, c, steps=20):
        """Weights over steps on a small regression, c * sum(w**2) in the loss."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(32, 4, generator=generator, dtype=torch.float64)
        y = torch.randn(32, generator=generator, dtype=torch.float64)
        w = torch.ones(4, dtype=torch.float64, requires_grad=True)
        optimizer = make_optimizer([w])
        path = []
        for _ in range(steps):
            optimizer.zero_grad()
            (((x @ w - y) ** 2).mean() + c * (w**2).sum()).backward()
            optimizer.step()
            path.append(w.detach().clone())
        return torch.stack(path).numpy()

    @pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
    def test_torch_weight_decay_takes_the_steps_of_c_in_the_loss(name):
        c = 0.3
        decay = convert(c, "keras", "torch")

        def make(weight_decay):
            return {
                "sgd": lambda w: torch.optim.SGD(w, 0.1, weight_decay=weight_decay),
                "momentum": lambda w: torch.optim.SGD(
                    w, 0.1, momentum=0.9, weight_decay=weight_decay
                ),
                "adam": lambda w: torch.optim.Adam(w, 0.1, weight_decay=weight_decay),
            }[name]

        with_c = torch_path(make(0.0), c)
        np.testing.assert_allclose(torch_path(make(decay), 0.0), with_c, rtol=1e-10)
        assert np.abs(torch_path(make(c), 0.0) - with_c).max() > 1e-2

    @pytest.mark.parametrize("momentum", [0.0, 0.9])
    def test_torch_sgd_weight_decay_takes_the_steps_of_keras_l2(momentum, data):
        x, y = data
        c = 0.2
        kernel = np.ones((4, 1))
        sgd = keras.optimizers.SGD(0.1, momentum)
        model = keras_model([(kernel, None)], c, "mean_squared_error", sgd)
        w = torch.tensor(kernel, requires_grad=True)
        decay = convert(c, "keras", "torch")
        optimizer = torch.optim.SGD([w], 0.1, momentum=momentum, weight_decay=decay)
        for _ in range(10):
            model.train_on_batch(x.astype("float32"), y[:, None].astype("float32"))
            optimizer.zero_grad()
            ((torch.tensor(x) @ w - torch.tensor(y)[:, None]) ** 2).mean().backward()
            optimizer.step()
        np.testing.assert_allclose(
            model.get_weights()[0], w.detach().numpy(), rtol=1e-4
        )

    def test_torch_adamw_and_keras_adamw_decay_a_weight_without_data_gradient_alike():
        decay = convert(0.05, "keras", "decoupled", momentum=0.5)
        w = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
        w.grad = torch.zeros_like(w)
        optimizer = torch.optim.AdamW([w], lr=0.1, weight_decay=decay)
        step = without_data_gradient(keras.optimizers.AdamW(0.1, weight_decay=decay))
        for _ in range(20):
            optimizer.step()
            assert step() == pytest.approx(float(w.detach()), rel=1e-5)
        assert float(w.detach()) == pytest.approx((1 - 0.1 * decay) ** 20)


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        ("1 --from textbook --to torch", "Pass --samples N."),
        ("0 --from logistic_c --to keras --samples 9", "value 0.0: expected"),
        ("0 --from logistic_c --to keras --samples 9", "for none at all pass inf."),
    ],
)
def test_command_says_what_is_wrong_in_words_of_the_command(words, remedy, capsys):
    assert cli.main(["convert", *words.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert remedy in line
    assert "float(" not in line
    assert "=" not in line
