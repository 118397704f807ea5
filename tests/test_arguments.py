"""Thousands of arguments: each gives a sound result or a clear error."""

import inspect
import json
import math
import numbers

import keras
import numpy as np
import pytest
from autodiff import numpy
from discovery import COUNTS, RULES, expected_coefficient
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers
from models import losses
from reference import penalty

from keras_scaled_l2 import ScaledL2, attach, cost_report, detach, penalized

every_rule_class = pytest.mark.parametrize("rule_class", RULES)

odd_things = st.one_of(
    st.none(),
    st.booleans(),
    st.text(max_size=5),
    st.binary(max_size=3),
    st.complex_numbers(),
    st.decimals(),
    st.fractions(),
    st.dates(),
    st.just(object()),
    st.floats(width=32).map(np.array),
    st.lists(st.floats(), max_size=2),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    st.sampled_from(["layer", "model", "tensor", "all", "2x3:4", "3:x", "::"]),
)
odd_numbers = st.one_of(
    st.floats(),
    st.integers(),
    st.integers(10**15, 10**400),
    st.floats(0, 1e-290),
    st.floats(1e290, 1e308),
    st.sampled_from([np.float16(3), np.float32(0.1), np.int8(5), np.bool_(True), -0.0]),
)
anything = odd_numbers | odd_things


def in_range(arguments):
    """Whether products of these stay within float64, in whichever order."""
    sizes = [abs(float(v)) for v in arguments.values() if isinstance(v, numbers.Real)]
    return all(size == 0 or 1e-50 < size < 1e50 for size in sizes)


# ---------------------------------------------------------------------------- rules


@pytest.mark.once
@every_rule_class
@settings(max_examples=500)
@given(data=st.data())
def test_rule_of_any_arguments_has_a_sound_coefficient_or_a_clear_error(
    rule_class, data
):
    names = data.draw(
        st.sets(st.sampled_from(sorted(inspect.signature(rule_class).parameters)))
    )
    first = next(iter(inspect.signature(rule_class).parameters))
    arguments = {name: data.draw(anything, label=name) for name in {first, *names}}
    shape = tuple(data.draw(st.lists(st.integers(0, 50), max_size=3), label="shape"))
    try:
        rule = rule_class(**arguments)
        resolved = rule.resolve(COUNTS)
        coefficient = resolved.coefficient(shape)
    except (ValueError, TypeError) as error:
        assert any(name in str(error) for name in arguments), error
        assert len(str(error)) > 20
        return
    assert type(coefficient) is float
    assert math.isfinite(coefficient)
    assert coefficient >= 0
    with np.errstate(all="ignore"):
        expected = expected_coefficient(
            resolved,
            shape or (1,),
            layer=resolved.get_config().get("inferred_per"),
            model=resolved.get_config().get("inferred_per"),
        )
    if math.prod(shape) and "inferred_fan_in" not in names and in_range(arguments):
        assert coefficient == pytest.approx(float(expected), rel=1e-9, abs=0)
    assert rule_class.from_config(json.loads(json.dumps(rule.get_config()))) == rule
    assert hash(resolved) == hash(rule.resolve(COUNTS))


@pytest.mark.once
@every_rule_class
@settings(max_examples=150)
@given(names=st.dictionaries(st.text(min_size=1, max_size=12), odd_numbers, min_size=1))
def test_config_of_any_keys_is_a_rule_or_a_clear_error(rule_class, names):
    try:
        rule_class.from_config({**rule_class(0.5).get_config(), **names})
    except ValueError as error:
        assert any(name in str(error) or repr(name) in str(error) for name in names)


# ---------------------------------------------------------------------------- where


@pytest.fixture(scope="module")
def model():
    return keras.Sequential(
        [
            keras.Input((4, 5)),
            layers.LSTM(3, return_sequences=True),
            layers.BatchNormalization(),
            keras.Sequential([keras.Input((4, 3)), layers.Dense(2), layers.Dense(2)]),
            layers.Conv1D(2, 2),
        ]
    )


def kernels(thing):
    """The weights that a layer stands for, by their names."""
    return [v for v in thing.trainable_variables if v.name.endswith("kernel")]


@pytest.mark.once
@settings(max_examples=200)
@given(data=st.data())
def test_where_of_any_layers_and_variables_penalizes_exactly_these(model, data):
    things = [
        *model.trainable_variables,
        *model.layers,
        *model.layers[2].layers,
        layers.Dense(1),
        keras.Variable([1.0]),
    ]
    indices = data.draw(st.lists(st.integers(0, len(things) - 1), max_size=5))
    kind = data.draw(st.sampled_from([list, tuple, set, frozenset]))
    where = [things[i] for i in indices]
    if kind in (set, frozenset):  # Keras's variables compare by value: not hashable
        where = [t for t in where if isinstance(t, keras.Layer)]
    wanted = {
        id(v)
        for thing in where
        for v in (kernels(thing) if isinstance(thing, keras.Layer) else [thing])
    }
    expected = [v for v in model.trainable_variables if id(v) in wanted]
    values = [numpy(v) for v in model.variables]
    try:
        if not expected:
            with pytest.raises(ValueError, match="matches none of its"):
                attach(model, ScaledL2(1.0), kind(where))
            assert model.losses == []
            return
        assert attach(model, ScaledL2(1.0), kind(where)) == [v.path for v in expected]
        assert [v for _, v, _ in penalized(model)] == expected
        for loss, v in zip(losses(model), expected, strict=True):
            w = numpy(v)
            assert loss == pytest.approx(penalty(1 / w.size, w), rel=1e-6)
    finally:
        detach(model)
    assert model.losses == []
    for value, variable in zip(values, model.variables, strict=True):
        np.testing.assert_array_equal(numpy(variable), value)


@pytest.mark.once
@settings(max_examples=150)
@given(chosen=st.sets(st.integers(0, 20)), truth=st.sampled_from([True, 1, "yes", [0]]))
def test_where_of_any_predicate_penalizes_what_it_is_true_of(model, chosen, truth):
    variables = model.trainable_variables
    wanted = [v for i, v in enumerate(variables) if i in chosen]
    ids = {id(v) for v in wanted}

    def where(layer, variable):
        assert isinstance(layer, keras.Layer)
        assert any(variable is v for v in layer.trainable_variables)
        return truth if id(variable) in ids else None

    try:
        if wanted:
            assert attach(model, ScaledL2(1.0), where) == [v.path for v in wanted]
        else:
            with pytest.raises(ValueError, match="matches none"):
                attach(model, ScaledL2(1.0), where)
    finally:
        detach(model)
    assert model.losses == []


@pytest.mark.once
@settings(max_examples=200)
@given(where=odd_numbers | odd_things.filter(lambda x: x is not None))
def test_where_of_any_other_kind_is_an_error_that_says_so(model, where):
    try:
        with pytest.raises((TypeError, ValueError), match=r"where|positional|argument"):
            attach(model, ScaledL2(1.0), where)
    finally:
        assert detach(model) == []
    assert model.losses == []


@pytest.mark.once
@settings(max_examples=150)
@given(rule=anything)
def test_rule_of_any_other_kind_is_an_error_that_says_so(model, rule):
    with pytest.raises(TypeError, match=r"rule=.*expected a regularizer"):
        attach(model, rule)
    assert model.losses == []


# ----------------------------------------------------------------------- cost_report


@pytest.fixture(scope="module")
def unit():
    model = keras.Sequential(
        [keras.Input((2,)), layers.Dense(1, kernel_regularizer=ScaledL2(1.0))]
    )
    model.compile("sgd", "mse", run_eagerly=True)
    return model


@pytest.mark.once
@settings(max_examples=200)
@given(samples=anything, batch_size=anything)
def test_report_of_any_counts_is_sound_or_a_clear_error(unit, samples, batch_size):
    try:
        report = cost_report(unit, samples=samples, batch_size=batch_size)
    except ValueError as error:
        assert (
            "samples=" in str(error)
            or "batch_size=" in str(error)
            or "float" in str(error)
        )
        return
    assert report.samples is None or report.samples == samples >= 1
    assert report.batch_size is None or report.batch_size == batch_size >= 1
    json.dumps(report.to_dict())
    assert str(report)
    assert report.to_markdown()


arrays = st.one_of(
    st.tuples(st.integers(0, 4), st.integers(0, 3)).map(
        lambda shape: np.ones(shape, "float32")
    ),
    st.integers(0, 4).map(lambda n: np.ones(n, "float32")),
    st.integers(1, 4).map(lambda n: np.full((n, 2), np.nan, "float32")),
    st.integers(1, 4).map(lambda n: np.full((n, 2), 1e30, "float32")),
)


@settings(max_examples=200)
@given(
    x=arrays | odd_things,
    y=arrays | odd_things,
    sample_weight=st.none() | st.integers(0, 4).map(np.ones) | odd_things,
)
def test_report_of_any_data_is_sound_or_an_error(unit, x, y, sample_weight):
    before = [numpy(v) for v in unit.variables]
    try:
        report = cost_report(unit, x, y, sample_weight=sample_weight)
    except (ValueError, TypeError) as error:
        assert len(str(error)) > 20
    except Exception as error:
        assert isinstance(x, np.ndarray), error
        assert isinstance(y, np.ndarray), error
    else:
        assert ("total" in report.cost) is (x is not None)
        assert str(report)
        assert report.to_markdown()
    assert len(losses(unit)) == 1
    assert unit.layers[0].kernel.regularizer == ScaledL2(1.0)
    for value, variable in zip(before, unit.variables, strict=True):
        np.testing.assert_array_equal(numpy(variable), value)
