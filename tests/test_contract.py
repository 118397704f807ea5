"""What every exported rule must do; rules are found, so a new one is covered too."""

import contextlib
import copy
import dataclasses
import inspect
import itertools
import json
import math
import pickle
import typing

import keras
import numpy as np
import pytest
from autodiff import compiled, numpy64, value_and_gradient, with_float64
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops
from reference import COEFFICIENTS, count, penalty, penalty_gradient

import keras_scaled_l2

RULES = [
    exported
    for exported in (getattr(keras_scaled_l2, n) for n in keras_scaled_l2.__all__)
    if isinstance(exported, type) and issubclass(exported, keras.Regularizer)
]
COUNTS = {
    "samples": 40,
    "batch_size": 8,
    "layer_weights": 12,
    "model_weights": 30,
    "learning_rate": 0.1,
    "momentum": 0.25,
}
SHAPES = [(), (0,), (3, 0), (7,), (4, 5), (2, 3, 2, 4), (4099,), (2, 4096)]
EPSILON = {
    "float64": 2.0**-52,
    "float32": 2.0**-23,
    "bfloat16": 2.0**-7,
    "float16": 2.0**-10,
}


def parameters(rule_class):
    """The constructor's parameters that a user sets."""
    return {
        name: parameter
        for name, parameter in inspect.signature(rule_class).parameters.items()
        if not name.startswith("inferred_")
    }


def some_arguments(rule_class):
    """Constructor arguments: the required ones, then each optional one beside them."""
    hints = typing.get_type_hints(rule_class)
    required = {
        name: 0.5
        for name, parameter in parameters(rule_class).items()
        if parameter.default is parameter.empty
    }
    yield required
    for name in [n for n in parameters(rule_class) if n not in required]:
        for kind in typing.get_args(hints[name]) or (hints[name],):
            if kind in (int, float):
                yield {**required, name: 7 if kind is int else 0.25}
            for string in typing.get_args(kind):
                yield {**required, name: string}


def settled(rule):
    """The rule with every count it may need."""
    resolved = rule.resolve(COUNTS)
    assert not resolved.missing
    return resolved


ARGUMENTS = [
    (rule_class, arguments)
    for rule_class in RULES
    for arguments in some_arguments(rule_class)
]
INSTANCES = [rule_class(**arguments) for rule_class, arguments in ARGUMENTS]
OPEN = [rule for rule in INSTANCES if rule.missing]
SETTLED = [settled(rule) for rule in INSTANCES]
ONE_OF_EACH = [
    settled(rule_class(**next(some_arguments(rule_class)))) for rule_class in RULES
]
# One of each set of fields that have a value: unresolved, given and inferred ones.
STATES = list(
    {
        (type(r), *(n for n, v in r.get_config().items() if v is not None)): r
        for r in INSTANCES + SETTLED
    }.values()
)
one_of_each = pytest.mark.parametrize("rule", ONE_OF_EACH, ids=repr)
every_instance = pytest.mark.parametrize("rule", INSTANCES, ids=repr)
every_settled = pytest.mark.parametrize("rule", SETTLED, ids=repr)
every_open = pytest.mark.parametrize("rule", OPEN, ids=repr)
every_state = pytest.mark.parametrize("rule", STATES, ids=repr)


def expected_coefficient(rule, shape):
    """What the reference says, from the plain config."""
    return COEFFICIENTS[type(rule).__name__](rule.get_config(), shape)


def test_discovery_finds_the_rules_and_their_instances():
    assert {r.__name__ for r in RULES} >= {"ScaledL2", "SampleL2"}
    assert len(OPEN) >= 3
    assert len(INSTANCES) >= 8


@pytest.mark.parametrize("rule_class", RULES)
def test_rule_has_a_reference_formula(rule_class):
    assert rule_class.__name__ in COEFFICIENTS


@every_settled
def test_coefficient_is_the_formula(rule):
    for shape in (s for s in SHAPES if count(s)):
        coefficient = rule.coefficient(shape)
        expected = expected_coefficient(rule, shape)
        assert type(coefficient) is float
        assert coefficient == pytest.approx(expected, rel=1e-14), shape


@one_of_each
def test_coefficient_of_an_empty_tensor_is_finite(rule):
    assert math.isfinite(rule.coefficient((3, 0)))


@every_instance
def test_coefficient_of_an_unknown_shape_is_an_error_or_does_not_use_it(rule):
    rule = settled(rule)
    try:
        coefficient = rule.coefficient((None, 3))
    except ValueError as error:
        assert "unknown dimension" in str(error)
        assert "kernel_regularizer" in str(error)
    else:
        assert coefficient == rule.coefficient((2, 3)) == rule.coefficient((5, 7))


@pytest.fixture
def dtype(request):
    """The dtype of a weight, while Keras's own stays float32."""
    with with_float64() if request.param == "float64" else contextlib.nullcontext():
        yield request.param


# All rules share the code between the coefficient and the loss, and the sum of squares
# has tests of its own: each rule once, then one in each dtype.
every_dtype = pytest.mark.parametrize("dtype", EPSILON, indirect=True)


@pytest.mark.parametrize(
    ("rule", "shape", "dtype"),
    [
        *((rule, (2, 3, 2, 4), "float32") for rule in ONE_OF_EACH),
        *itertools.product(ONE_OF_EACH[:1], [(), (0,), (2, 4096)], EPSILON),
    ],
    indirect=["dtype"],
    ids=str,
)
def test_penalty_and_gradient_are_those_of_float64_numpy(rule, shape, dtype):
    values = np.random.default_rng(3).normal(size=shape)
    w = ops.cast(ops.convert_to_tensor(values), dtype)
    c = expected_coefficient(rule, shape) if count(shape) else 0.0
    value, gradient = value_and_gradient(rule, w)
    rounded = numpy64(w)
    # Half precision is itself a thousand times as coarse.
    exact = 1e-6 if dtype in ("float32", "float64") else 1e-5
    assert numpy64(value) == pytest.approx(penalty(c, rounded), rel=exact, abs=0)
    np.testing.assert_allclose(
        numpy64(gradient),
        penalty_gradient(c, rounded),
        rtol=2 * max(EPSILON[dtype], EPSILON["float32"]),
        # Below the smallest normal number half precision has fewer digits.
        atol=2.0**-24 if dtype == "float16" else 0,
    )


@every_dtype
def test_gradient_has_the_dtype_of_the_weight(dtype):
    w = ops.cast(ops.ones((4, 5)), dtype)
    assert keras.backend.standardize_dtype(w.dtype) == dtype
    _, gradient = value_and_gradient(ONE_OF_EACH[0], w)
    assert gradient.dtype == w.dtype


@every_dtype
def test_penalty_has_the_dtype_that_adds_to_the_loss(dtype):
    value = ONE_OF_EACH[0](ops.cast(ops.ones((4, 5)), dtype))
    assert keras.backend.standardize_dtype(value.dtype) == "float32"


@one_of_each
def test_penalty_in_double_precision_is_exact_to_its_last_digits(rule, float64):
    values = np.random.default_rng(3).normal(size=(40, 50))
    value, gradient = value_and_gradient(rule, ops.convert_to_tensor(values))
    c = expected_coefficient(rule, values.shape)
    assert numpy64(value) == pytest.approx(penalty(c, values), rel=1e-13)
    np.testing.assert_allclose(
        numpy64(gradient), penalty_gradient(c, values), rtol=1e-14
    )


@one_of_each
def test_penalty_of_zeros_is_zero_with_gradient_zero(rule):
    value, gradient = value_and_gradient(rule, ops.zeros((4, 5)))
    assert numpy64(value) == 0
    assert np.all(numpy64(gradient) == 0)


@one_of_each
def test_penalty_compiled_is_the_penalty(rule):
    w = ops.convert_to_tensor(np.random.default_rng(3).normal(size=(4, 5)), "float32")
    assert numpy64(compiled(rule)(w)) == pytest.approx(numpy64(rule(w)), rel=1e-6)


@one_of_each
def test_penalty_of_a_variable_is_that_of_its_value(rule):
    values = np.random.default_rng(3).normal(size=(4, 5)).astype("float32")
    c = expected_coefficient(rule, values.shape)
    assert numpy64(rule(keras.Variable(values))) == pytest.approx(
        penalty(c, values), rel=1e-6
    )


@one_of_each
def test_penalty_of_a_transposed_weight_is_the_same(rule):
    values = np.random.default_rng(3).normal(size=(40, 50)).astype("float32")
    value, gradient = value_and_gradient(
        lambda w: rule(ops.transpose(w)), ops.convert_to_tensor(values)
    )
    c = expected_coefficient(rule, values.T.shape)
    assert numpy64(value) == pytest.approx(penalty(c, values), rel=1e-6)
    np.testing.assert_allclose(
        numpy64(gradient), penalty_gradient(c, values), rtol=1e-6
    )


@one_of_each
def test_rule_cannot_be_changed(rule):
    for field in dataclasses.fields(rule):
        before = getattr(rule, field.name)
        with pytest.raises(AttributeError):
            setattr(rule, field.name, 3)
        with pytest.raises(AttributeError):
            delattr(rule, field.name)
        assert getattr(rule, field.name) == before
    with pytest.raises(AttributeError):
        rule.something_new = 3


def test_rules_are_equal_exactly_when_class_and_config_are():
    rules = INSTANCES + SETTLED
    for a in rules:
        for b in rules:
            same = type(a) is type(b) and a.get_config() == b.get_config()
            assert (a == b) is same
            assert not same or hash(a) == hash(b)
    assert len(set(INSTANCES)) == len(
        {(type(r), json.dumps(r.get_config())) for r in INSTANCES}
    )


@one_of_each
def test_rule_is_not_equal_to_other_things(rule):
    assert rule != keras.regularizers.L2(0.5)
    assert rule != rule.get_config()
    assert rule is not None


@pytest.mark.parametrize(("rule_class", "arguments"), ARGUMENTS, ids=str)
def test_config_holds_the_arguments_and_no_uninferred_count(rule_class, arguments):
    config = rule_class(**arguments).get_config()
    assert {name: config[name] for name in arguments} == arguments
    assert set(config) == set(parameters(rule_class))


@every_state
def test_config_is_plain_and_survives_json(rule):
    config = rule.get_config()
    for value in config.values():
        assert value is None or type(value) in (int, float, str)
    again = type(rule).from_config(json.loads(json.dumps(config)))
    assert again == rule
    assert again.get_config() == config


@every_instance
def test_config_of_numpy_arguments_is_plain(rule):
    arguments = {
        name: value
        for name, value in rule.get_config().items()
        if isinstance(value, (int, float))
    }
    rest = {n: v for n, v in rule.get_config().items() if n not in arguments}
    made = type(rule)(**{n: np.asarray(v)[()] for n, v in arguments.items()}, **rest)
    assert made == rule
    assert json.loads(json.dumps(made.get_config())) == rule.get_config()


@one_of_each
def test_config_with_an_unknown_key_names_it_and_the_remedy(rule):
    config = {**rule.get_config(), "flavour": 3}
    with pytest.raises(ValueError, match=r"flavour.*version"):
        type(rule).from_config(config)


@every_state
def test_copy_is_equal_and_gives_the_same_penalty(rule):
    pickled = pickle.loads(pickle.dumps(rule))
    for made in (copy.copy(rule), copy.deepcopy(rule), pickled):
        assert made == rule
        assert hash(made) == hash(rule)
        if not rule.missing:
            assert made.coefficient((4, 5)) == rule.coefficient((4, 5))


@every_state
def test_keras_serializes_rule_under_the_fixed_name(rule):
    saved = json.loads(json.dumps(keras.regularizers.serialize(rule)))
    assert saved["registered_name"] == f"keras_scaled_l2>{type(rule).__name__}"
    assert keras.regularizers.deserialize(saved) == rule
    assert keras.regularizers.get(saved) == rule


@every_state
def test_repr_is_the_call_that_makes_the_rule(rule):
    assert eval(repr(rule), {type(rule).__name__: type(rule)}) == rule


@every_open
def test_unresolved_rule_names_the_count_and_both_remedies(rule):
    assert rule.missing == rule.needs - type(rule).optional
    for use in (lambda: rule.coefficient((4, 5)), lambda: rule(ops.ones((4, 5)))):
        with pytest.raises(ValueError) as caught:
            use()
        message = str(caught.value)
        assert any(
            f"{name}=<" in message and type(rule).inferable[name] in message
            for name in rule.missing
        )
        assert type(rule).__name__ in message
        assert "ApplyL2" in message
        assert "bind" in message


@every_open
def test_resolve_gives_a_copy_and_leaves_the_rule(rule):
    config = rule.get_config()
    resolved = rule.resolve(COUNTS)
    assert resolved.needs == rule.needs
    assert not resolved.missing
    assert resolved != rule
    assert rule.get_config() == config
    assert {n: resolved.get_config()[n] for n in config} == config


@every_open
def test_resolve_infers_anew_for_other_counts(rule):
    other = {name: 2 * value for name, value in COUNTS.items()}
    assert rule.resolve(COUNTS).resolve(other) == rule.resolve(other)
    assert rule.resolve(COUNTS).resolve({}) == rule.resolve(COUNTS)
    assert rule.resolve(COUNTS) != rule.resolve(other)


@pytest.mark.parametrize("rule", [r for r in INSTANCES if not r.missing], ids=repr)
def test_resolve_never_overwrites_what_the_user_gave(rule):
    assert rule.resolve(COUNTS) == rule


@pytest.mark.parametrize("rule", {type(r): r for r in OPEN}.values(), ids=repr)
def test_unresolved_rule_gets_through_the_trace_of_a_fit_that_resolves_it_only(rule):
    class Penalized(keras.Layer):
        def call(self, x):
            return x + rule(ops.ones((4, 5)))

    def trace():
        return Penalized().compute_output_spec(keras.KerasTensor((2, 3)))

    class Traces(keras.Model):
        def fit(self, callbacks):
            return trace()

    assert tuple(Traces().fit([keras_scaled_l2.ApplyL2()]).shape) == (2, 3)
    for use in (trace, lambda: Traces().fit([]), lambda: rule(ops.ones((4, 5)))):
        with pytest.raises(ValueError, match="ApplyL2"):
            use()


def test_one_rule_serves_tensors_of_different_shapes():
    for rule in SETTLED:
        for shape in [(2,), (40, 50), (2,)]:
            c = expected_coefficient(rule, shape)
            expected = penalty(c, np.ones(shape))
            assert numpy64(rule(ops.ones(shape))) == pytest.approx(expected, rel=1e-6)


def numbers_and_others():
    return st.one_of(
        st.floats(),
        st.integers(),
        st.integers(min_value=10**300, max_value=10**320),
        st.floats(min_value=0, max_value=1e-290),
        st.booleans(),
        st.none(),
        st.text(max_size=5),
        st.sampled_from(["tensor", "layer", "model", [], 1j, np.float32(3), "1"]),
        st.fractions(),
        st.decimals(),
    )


@pytest.mark.parametrize("rule_class", RULES)
@settings(max_examples=200)
@given(data=st.data())
def test_any_argument_gives_a_finite_coefficient_or_a_clear_error(rule_class, data):
    arguments = {
        name: data.draw(numbers_and_others(), label=name)
        for name in parameters(rule_class)
        if parameters(rule_class)[name].default is inspect.Parameter.empty
        or data.draw(st.booleans())
    }
    shape = data.draw(st.lists(st.integers(0, 10**6), max_size=4))
    try:
        rule = rule_class(**arguments)
        coefficient = rule.resolve(COUNTS).coefficient(tuple(shape))
    except ValueError as error:
        assert any(f"{name}=" in str(error) for name in arguments), error
    else:
        assert math.isfinite(coefficient)
        assert coefficient >= 0
        assert rule_class.from_config(json.loads(json.dumps(rule.get_config()))) == rule


@pytest.mark.parametrize("rule_class", RULES)
def test_bad_first_argument_is_refused_by_name_with_what_was_received(rule_class):
    name = next(iter(parameters(rule_class)))
    for value in (-1, -1e-300, math.nan, math.inf, True, "1", None, [1], 1j, b"1"):
        with pytest.raises(ValueError, match=rf"^{name}=.*expected a") as caught:
            rule_class(value)
        assert repr(value) in str(caught.value)
