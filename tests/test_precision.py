"""Penalties and gradients in every precision, at the size where precision is lost."""

import json
import pathlib
from fractions import Fraction

import keras
import numpy as np
import pytest
from autodiff import compiled as compiled_function
from autodiff import numpy64, value_and_gradient
from discovery import RULES, SOME_RULES, every_rule, expected_coefficient, rule_name
from keras import ops
from models import compiled, data, losses, run_python
from reference import penalty, penalty_gradient

from keras_scaled_l2 import SampleL2, ScaledL2, attach, bind, penalized

MANY = 35_000_000
POLICIES = ["float32", "bfloat16", "float16", "mixed_bfloat16", "mixed_float16"]
HALVES = ["bfloat16", "float16"]
EPSILON = {"float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}
every_policy = pytest.mark.parametrize("policy", POLICIES)
one_of_each_rule = pytest.mark.parametrize(
    "rule",
    [next(r for r in SOME_RULES if type(r) is rule_class) for rule_class in RULES],
    ids=rule_name,
)


@pytest.fixture(scope="module")
def many_weights():
    """As many weights as the question that started the package; seeded, float32."""
    return np.random.default_rng(5).normal(0.01, 0.02, MANY).astype("float32")


# ------------------------------------------------------------------- at full size


@pytest.mark.parametrize("dtype", ["float32", *HALVES])
def test_penalty_of_35_million_weights_is_that_of_float64(dtype, many_weights):
    w = ops.cast(ops.convert_to_tensor(many_weights), dtype)
    # A million at a time: all of them in float64 would take half a gigabyte.
    squares = sum(
        penalty(1.0, numpy64(w[start : start + 2**20]))
        for start in range(0, MANY, 2**20)
    )
    for rule in SOME_RULES:
        # The coefficient's own formula is tested in test_contract.
        c = np.float64(rule.coefficient(w.shape))
        assert numpy64(rule(w)) == pytest.approx(c * squares, rel=1e-6, abs=0)


def test_one_running_sum_in_float32_would_not_be_close_enough(many_weights):
    # The reason for the care: this is what the test above would not accept.
    running = float(np.cumsum(many_weights**2, dtype="float32")[-1])
    assert running != pytest.approx(penalty(1.0, many_weights), rel=1e-6)


SHAPES = [(40, 30), (512, 30), (3, 3, 64, 64), (31, 31, 31, 31), (2049, 2047)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("run", [lambda f: f, compiled_function], ids=["eager", "xla"])
def test_penalty_does_not_depend_on_the_shape_of_the_weights(shape, run):
    # XLA adds up dimensions below 32 one by one, and loses digits on the way.
    w = np.random.default_rng(0).normal(size=shape).astype("float32")
    rule = ScaledL2(1.0, per=1)
    value = numpy64(run(rule)(ops.convert_to_tensor(w)))
    assert value == pytest.approx(penalty(1.0, w), rel=1e-6)


# --------------------------------------------------------------- layers and models


def dense(policy, rule=None, *, largest=1.0):
    """A layer of 40 x 30 weights under a policy, in a model."""
    layer = keras.layers.Dense(30, dtype=policy, kernel_regularizer=rule)
    model = keras.Sequential([keras.Input((40,)), layer])
    layer.kernel.assign(np.random.default_rng(2).uniform(-largest, largest, (40, 30)))
    return model


@every_policy
@every_rule
def test_penalty_of_a_layer_is_that_of_float64_at_its_own_rounding(policy, rule):
    model = dense(policy)
    attach(model, rule)
    kernel = model.layers[0].kernel
    stored = numpy64(kernel)
    dtype = policy if policy in HALVES else "float32"
    assert keras.backend.standardize_dtype(kernel.dtype) == dtype
    c = expected_coefficient(rule, kernel.shape, fan_in=40, layer=1200, model=1200)
    assert losses(model) == pytest.approx([penalty(c, stored)], rel=1e-6)
    w = ops.cast(ops.convert_to_tensor(stored), dtype)
    value, gradient = value_and_gradient(kernel.regularizer, w)
    assert keras.backend.standardize_dtype(value.dtype) == "float32"
    np.testing.assert_allclose(
        numpy64(gradient),
        penalty_gradient(c, stored),
        rtol=EPSILON[dtype],
        # The smallest number that float16 has.
        atol=2.0**-24 if policy == "float16" else 0,
    )


@every_policy
@pytest.mark.parametrize(
    ("largest", "strength"),
    [(1e-4, 1.0), (1e-4, 1e-6), (400.0, 1.0), (400.0, 1e6), (6e4, 1e-30), (1e-7, 1e30)],
)
def test_penalty_is_never_zero_or_infinite_where_float64_is_not(
    policy, largest, strength
):
    model = dense(policy, ScaledL2(strength), largest=largest)
    stored = numpy64(model.layers[0].kernel)
    expected = penalty(strength / stored.size, stored)
    assert 0 < expected < 3e38
    assert losses(model) == pytest.approx([expected], rel=1e-5, abs=0)


def test_penalty_of_the_question_in_float16_is_zero_with_keras_l2_and_not_with_ours():
    c = 0.01 / MANY
    w = ops.cast(ops.convert_to_tensor([200.0, -100.0]), "float16")
    stock, stock_gradient = value_and_gradient(keras.regularizers.L2(c), w)
    assert numpy64(stock) == 0
    assert np.all(numpy64(stock_gradient) == 0)
    ours, our_gradient = value_and_gradient(ScaledL2(0.01, per=MANY), w)
    assert numpy64(ours) == pytest.approx(c * 50_000, rel=1e-6)
    # 1.1e-7 and 5.7e-8 are about 2 and 1 of float16's smallest steps.
    expected = penalty_gradient(c, [200.0, -100.0])
    np.testing.assert_allclose(numpy64(our_gradient), expected, rtol=0, atol=2.0**-25)
    assert numpy64(our_gradient).tolist() == [2.0**-23, -(2.0**-24)]


@pytest.fixture
def global_policy(policy):
    """Keras's own policy for the time of one test: it decides on loss scaling."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    yield policy
    keras.config.set_dtype_policy(before)


@every_policy
@one_of_each_rule
def test_model_of_any_precision_trains_under_a_rule(policy, rule, global_policy):
    x, y = data(samples=8, features=40, outputs=30)
    model, plain = compiled(dense(None), 0.05), compiled(dense(None))
    attach(model, rule)
    bind(model, 8, 8)
    before = numpy64(model.layers[0].kernel)
    loss = model.fit(x, y, batch_size=8, verbose=0).history["loss"]
    [(_, kernel, bound)] = penalized(model)
    cost = plain.evaluate(x, y, batch_size=8, verbose=0)
    expected = cost + penalty(bound.coefficient(kernel.shape), before)
    rounding = 2e-2 if policy in HALVES else 2e-3
    assert loss == pytest.approx([expected], rel=rounding)
    after = numpy64(kernel)
    assert np.all(np.isfinite(after))
    assert np.any(after != before)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_step_of_a_mixed_model_shrinks_the_weights_as_float32_does(
    policy, global_policy
):
    # No data cost reaches the weights; mixed_float16 multiplies the loss by 2**15.
    model = compiled(dense(None), 0.1)
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled is (policy == "mixed_float16")
    attach(model, SampleL2(0.2))
    bind(model, samples=10)
    before = numpy64(model.layers[0].kernel)
    model.fit(np.zeros((2, 40)), np.zeros((2, 30)), verbose=0)
    np.testing.assert_allclose(
        numpy64(model.layers[0].kernel), before * (1 - 0.1 * 2 * 0.01), rtol=1e-6
    )


@pytest.mark.parametrize("policy", POLICIES)
def test_penalties_of_layers_of_different_precision_add_up(policy):
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(3, dtype=policy, kernel_regularizer=ScaledL2(0.5))
    outputs = keras.layers.Dense(1, kernel_regularizer=keras.regularizers.L2(0.1))
    model = compiled(keras.Model(inputs, outputs(hidden(inputs))))
    x, y = data(samples=8)
    expected = penalty(0.5 / 12, numpy64(hidden.kernel))
    expected += penalty(0.1, numpy64(outputs.kernel))
    assert sum(losses(model)) == pytest.approx(expected, rel=1e-6)
    [cost] = model.fit(x, y, verbose=0).history["loss"]
    assert cost > expected


# ------------------------------------------------------------------ Keras's floatx

FLOATX = """
import json, os, sys
os.environ["JAX_ENABLE_X64"] = "1"
sys.path.insert(0, sys.argv[1])
import keras
import itertools
import numpy as np
from autodiff import value_and_gradient
from discovery import SOME_RULES
from keras import ops
from keras_scaled_l2 import attach, bind
from models import compiled, data

FLOATX = ("float16", "bfloat16", "float64")
for floatx, rule in itertools.product(FLOATX, SOME_RULES):
    keras.config.set_floatx(floatx)
    # Keras makes the policy of new layers from the first floatx that it meets.
    keras.config.set_dtype_policy(floatx)
    rule = rule.from_config(rule.get_config())
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="unit")])
    compiled(model, 1e-3)
    attach(model, rule)
    bind(model, 8, 8)
    kernel = model.layers[0].kernel
    before = ops.convert_to_numpy(ops.cast(kernel, "float64"))
    w = ops.cast(ops.convert_to_tensor(before), keras.config.floatx())
    value, gradient = value_and_gradient(kernel.regularizer, w)
    x, y = data(samples=8, outputs=3)
    loss = model.fit(x, y, batch_size=8, verbose=0).history["loss"]
    print("result", json.dumps({
        "floatx": floatx,
        "rule": repr(rule),
        "c": kernel.regularizer.coefficient(kernel.shape),
        "kernel": before.tolist(),
        "dtypes": [
            keras.backend.standardize_dtype(t.dtype) for t in (kernel, value, gradient)
        ],
        "value": float(value),
        "gradient": ops.convert_to_numpy(ops.cast(gradient, "float64")).tolist(),
        "loss": float(loss[0]),
    }))
"""


@pytest.mark.once
def test_floatx_of_any_precision_gives_penalties_that_add_to_the_loss():
    printed = run_python(FLOATX, pathlib.Path(__file__).parent)
    found = [
        json.loads(line.removeprefix("result "))
        for line in printed.splitlines()
        if line.startswith("result ")
    ]
    assert len(found) == 3 * len(SOME_RULES)
    for result in found:
        floatx = result["floatx"]
        epsilon = {**EPSILON, "float64": 2.0**-52}[floatx]
        assert result["dtypes"] == [floatx] * 3, result["rule"]
        w = np.array(result["kernel"])
        squares = sum(Fraction(value) ** 2 for value in w.ravel().tolist())
        expected = float(Fraction(result["c"]) * squares)  # exact but for this rounding
        # Narrow numbers are summed wider. In float64 half an epsilon for each square,
        # sum and product; a root that is squared again costs three.
        bound = (w.size + 4) / 2 if floatx == "float64" else 2
        assert result["value"] == pytest.approx(expected, rel=bound * epsilon)
        np.testing.assert_allclose(
            result["gradient"], penalty_gradient(result["c"], w), rtol=4 * epsilon
        )
        assert result["loss"] >= result["value"]
