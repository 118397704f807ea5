"""cost_report: its numbers against float64, its findings, its words, its errors."""

import dataclasses
import json
import math
import re

import keras
import numpy as np
import pytest
from autodiff import numpy, numpy64
from discovery import SOME_RULES, every_rule
from keras import layers, ops, optimizers
from models import compiled, data, number
from reference import penalty, penalty_gradient
from second_pass import gradients

from keras_scaled_l2 import (
    HalfLifeL2,
    PriorL2,
    SampleL2,
    ScaledL2,
    attach,
    bind,
    convert,
    cost_report,
)

X, Y = data(samples=10)
L2 = keras.regularizers.L2


def network(
    first=None, second=None, optimizer="sgd", *, middle=(), **compile_arguments
):
    """A network of 4-3-1; penalties on its two kernels."""
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(3, "tanh", kernel_regularizer=first, name="first"),
            *middle,
            layers.Dense(1, kernel_regularizer=second, name="second"),
        ],
        name="network",
    )
    if optimizer is not None:
        model.compile(optimizer, compile_arguments.pop("loss", "mse"))
    return model


def found(report):
    return [finding.name for finding in report.findings]


def finding(report, name):
    """The text of a finding."""
    return next(f.text for f in report.findings if f.name == name)


# ------------------------------------------------------------------------- numbers


def gradients_without(model, coefficients, x, y):
    """Gradient of the whole loss, minus the penalties' own by the formula."""
    total = gradients(model, x, y)
    return {
        v.path: g - penalty_gradient(coefficients.get(v.path, 0.0), numpy64(v))
        for v, g in zip(model.trainable_variables, total, strict=True)
    }


def norm(tensors):
    return math.sqrt(sum(np.sum(t**2) for t in tensors))


@every_rule
def test_report_has_the_numbers_of_float64(rule):
    model = network(None, L2(0.25), optimizers.SGD(0.05, momentum=0.5))
    attach(model, rule, where=[model.layers[0]])
    bind(model, 10, 5)
    first, second = model.layers[0].kernel, model.layers[1].kernel
    c = {
        first.path: first.regularizer.coefficient(first.shape),
        second.path: 0.25,
    }
    report = cost_report(model, X, Y)

    output = np.tanh(X @ numpy64(first)) @ numpy64(second)
    cost = np.mean((output - Y) ** 2)
    penalties = {v.path: penalty(c[v.path], numpy64(v)) for v in (first, second)}
    both = sum(penalties.values())
    assert report.cost == pytest.approx(
        {
            "data": cost,
            "penalty": both,
            "total": cost + both,
            "penalty_share": both / (cost + both),
        },
        rel=1e-5,
    )
    data_gradient = gradients_without(model, c, X, Y)
    assert [w.path for w in report.weights] == [first.path, second.path]
    for weight, v in zip(report.weights, (first, second), strict=True):
        w = numpy64(v)
        decay = c[v.path] * 2 * 0.05 / (1 - 0.5)
        of_penalty = np.linalg.norm(penalty_gradient(c[v.path], w))
        assert dataclasses.asdict(weight) == {
            "path": v.path,
            "rule": weight.rule,
            "dtype": "float32",
            "count": w.size,
            "sum_of_squares": pytest.approx(np.sum(w**2), rel=1e-5),
            "coefficient": pytest.approx(c[v.path], rel=1e-6),
            "penalty": pytest.approx(penalties[v.path], rel=1e-5),
            "share": pytest.approx(penalties[v.path] / both, rel=1e-5),
            "decay_per_step": pytest.approx(decay, rel=1e-5),
            "half_life": pytest.approx(math.log(0.5) / math.log1p(-decay), rel=1e-5),
            "gradient_ratio": pytest.approx(
                of_penalty / np.linalg.norm(data_gradient[v.path]), rel=1e-4
            ),
            "gamma": None,
        }
    of_penalty = [penalty_gradient(c[v.path], numpy64(v)) for v in (first, second)]
    against = [data_gradient[v.path] for v in (first, second)]
    assert report.gradient_ratio == pytest.approx(
        norm(of_penalty) / norm(against), rel=1e-4
    )
    assert report.penalized == 15
    assert report.parameters == 4 * 3 + 3 + 3 + 1
    assert report.optimizer == pytest.approx(
        {"name": "SGD", "learning_rate": 0.05, "momentum": 0.5, "weight_decay": None}
    )


def test_report_without_data_has_what_needs_none():
    model = network(L2(0.5), optimizer=None)
    report = cost_report(model)
    w = numpy64(model.layers[0].kernel)
    assert report.cost == pytest.approx({"penalty": penalty(0.5, w)}, rel=1e-6)
    [weight] = report.weights
    assert weight.penalty == pytest.approx(penalty(0.5, w), rel=1e-6)
    assert weight.gradient_ratio is weight.decay_per_step is weight.half_life is None
    assert report.gradient_ratio is None
    assert report.optimizer == {}


def test_cost_is_that_of_all_examples_and_the_gradient_that_of_one_step():
    model = network(L2(0.5))
    whole, part = cost_report(model, X, Y), cost_report(model, X, Y, batch_size=4)
    assert part.cost == pytest.approx(whole.cost, rel=1e-6)
    only = cost_report(model, X[:4], Y[:4])
    assert part.gradient_ratio == pytest.approx(only.gradient_ratio, rel=1e-5)
    assert part.gradient_ratio != pytest.approx(whole.gradient_ratio, rel=1e-3)


def test_cost_is_that_of_evaluate_with_sample_weights_and_other_losses():
    class Adding(layers.Layer):
        def call(self, x):
            self.add_loss(ops.mean(ops.square(x)))
            return x

    middle = [
        Adding(),
        layers.ActivityRegularization(l2=0.3),
        layers.Dropout(0.5),
        layers.BatchNormalization(),
    ]
    model = network(L2(0.5), middle=middle)
    weight = np.arange(10.0)
    report = cost_report(model, X, Y, sample_weight=weight)
    cost = model.evaluate(X, Y, sample_weight=weight, batch_size=10, verbose=0)
    assert report.cost["total"] == pytest.approx(cost, rel=1e-5)
    assert report.cost["data"] > 0.3


def test_gradient_is_by_all_that_the_loss_holds():
    # Losses that layers add in their call have gradients like any data cost.
    regularizer = keras.regularizers.L2(5.0)
    model = network(L2(0.5), middle=[layers.Dense(3, activity_regularizer=regularizer)])
    kernel = model.layers[0].kernel
    expected = gradients_without(model, {kernel.path: 0.5}, X, Y)[kernel.path]
    of_penalty = np.linalg.norm(penalty_gradient(0.5, numpy64(kernel)))
    assert cost_report(model, X, Y).weights[0].gradient_ratio == pytest.approx(
        of_penalty / np.linalg.norm(expected), rel=1e-4
    )


def test_report_of_several_inputs_and_outputs_by_name():
    one, two = keras.Input((4,), name="one"), keras.Input((4,), name="two")
    both = layers.concatenate([one, two])
    outputs = {
        "left": layers.Dense(1, kernel_regularizer=L2(0.5), name="left")(both),
        "right": layers.Dense(1, name="right")(both),
    }
    model = keras.Model({"one": one, "two": two}, outputs)
    model.compile("sgd", {"left": "mse", "right": "mae"}, loss_weights=[1.0, 3.0])
    x, y = {"one": X, "two": X[::-1]}, {"left": Y, "right": Y}
    report = cost_report(model, x, y)
    total = model.evaluate(x, y, batch_size=10, verbose=0, return_dict=True)["loss"]
    assert report.cost["total"] == pytest.approx(total, rel=1e-5)
    assert report.weights[0].gradient_ratio > 0


def test_report_of_a_custom_compute_loss_is_of_that_loss():
    class Own(keras.Sequential):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
            total = super().compute_loss(x, y, y_pred, sample_weight)
            return 3.0 * total + 1.0

    unit = layers.Dense(1, kernel_regularizer=L2(0.5))
    model = Own([keras.Input((4,)), unit])
    model.compile("sgd", "mse")
    cost = np.mean((X @ numpy64(unit.kernel) - Y) ** 2)
    report = cost_report(model, X, Y)
    assert report.cost["data"] == pytest.approx(3 * cost + 1, rel=1e-5)


def test_weight_that_the_loss_does_not_reach_has_a_penalty_and_no_ratio():
    class Half(keras.Model):
        def __init__(self):
            super().__init__()
            rule = keras.regularizers.L2(0.1)
            self.used = layers.Dense(3, kernel_regularizer=rule)
            self.unused = layers.Dense(2, kernel_regularizer=rule)

        def build(self, shape):
            self.used.build(shape)
            self.unused.build(shape)

        def call(self, inputs):
            return self.used(inputs)

    model = Half()
    model.build((None, 4))
    model.compile("sgd", "mse")
    x, y = np.ones((8, 4), "float32"), np.ones((8, 3), "float32")
    report = cost_report(model, x, y)
    used, unused = report.weights
    w = numpy64(model.used.kernel)
    error = x @ w - y
    data = np.linalg.norm(x.T @ (2 * error / error.size))
    ratio = 0.2 * np.linalg.norm(w) / data
    assert used.gradient_ratio == pytest.approx(ratio, rel=1e-5)
    assert unused.gradient_ratio is None
    squares = np.sum(numpy64(model.unused.kernel) ** 2)
    assert unused.penalty == pytest.approx(0.1 * squares, rel=1e-6)


def test_report_of_other_regularizers_has_their_penalty_and_no_coefficient():
    model = network(keras.regularizers.L1(0.5), keras.regularizers.L1L2(0.0, 0.25))
    report = cost_report(model, X, Y)
    first, second = report.weights
    absolute = 0.5 * np.sum(np.abs(numpy64(model.layers[0].kernel)))
    assert first.penalty == pytest.approx(absolute, rel=1e-6)
    assert first.coefficient is first.gradient_ratio is first.decay_per_step is None
    assert (first.rule, second.rule) == ("L1", "L1L2")
    assert second.coefficient == 0.25
    assert report.cost["penalty"] == pytest.approx(
        absolute + penalty(0.25, numpy64(model.layers[1].kernel)), rel=1e-6
    )
    assert "L1" in str(report)


def test_small_gradients_are_not_lost_in_float16():
    rng = np.random.default_rng(0)
    model = keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(16, "tanh", dtype="mixed_float16", kernel_regularizer=L2(0.1)),
            layers.Dense(2048, dtype="mixed_float16", kernel_regularizer=L2(0.1)),
            layers.Activation("linear", dtype="float32"),
        ]
    )
    x = rng.normal(size=(128, 8)).astype("float32")
    outputs = np.asarray(keras.ops.convert_to_numpy(model(x)), "float64")
    y = (outputs + 0.01 * rng.normal(size=outputs.shape)).astype("float32")
    model.compile("sgd", "mse")
    found = cost_report(model, x, y, batch_size=128)
    k1, b1, k2, _ = (w.astype("float64") for w in model.get_weights())
    hidden = np.tanh(x @ k1 + b1)
    errors = 2 * (outputs - y) / outputs.size
    gradients = (x.T @ (errors @ k2.T * (1 - hidden**2)), hidden.T @ errors)
    expected = [
        0.2 * np.linalg.norm(k) / np.linalg.norm(g)
        for k, g in zip((k1, k2), gradients, strict=True)
    ]
    ratios = [w.gradient_ratio for w in found.weights]
    np.testing.assert_allclose(ratios, expected, rtol=0.01)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_report_of_half_precision_is_of_the_stored_weights(dtype):
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(3, dtype=dtype, kernel_regularizer=L2(0.25))]
    )
    model.compile("sgd", "mse")
    report = cost_report(model, X, np.zeros((10, 3), "float32"))
    [weight] = report.weights
    assert weight.dtype == dtype
    assert weight.penalty == pytest.approx(
        penalty(0.25, numpy64(model.layers[0].kernel)), rel=1e-6
    )
    assert weight.gradient_ratio > 0


def test_decay_is_that_of_the_optimizer_under_a_loss_scale_and_of_a_schedule():
    schedule = optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)
    optimizer = optimizers.LossScaleOptimizer(optimizers.SGD(schedule))
    report = cost_report(network(L2(0.5), None, optimizer))
    assert report.weights[0].decay_per_step == pytest.approx(2 * 0.1 * 0.5, rel=1e-6)
    assert report.optimizer["name"] == "SGD"


@pytest.mark.parametrize("name", ["adam", "adamw", "rmsprop", "lion"])
def test_decay_is_unknown_under_an_adaptive_optimizer(name):
    report = cost_report(network(L2(0.5), None, name), X, Y)
    assert report.weights[0].decay_per_step is report.weights[0].half_life is None
    assert report.weights[0].gradient_ratio > 0
    assert "decay/step  " not in str(report)
    assert "rescales the penalty's gradient" in " ".join(str(report).split())


@pytest.mark.parametrize("rate", [0.0, 0.9, 1.0, 3.0])
def test_half_life_is_a_number_or_unknown_at_any_learning_rate(rate):
    [weight] = cost_report(network(L2(1.0), None, optimizers.SGD(rate))).weights
    assert weight.decay_per_step == pytest.approx(2 * rate)
    assert (weight.half_life is None) is (rate != 0.4)


def test_half_life_is_the_updates_after_which_a_weight_has_halved():
    model = network(L2(0.01), None, optimizers.SGD(0.1))
    [weight] = cost_report(model).weights
    assert (1 - 2 * 0.1 * 0.01) ** weight.half_life == pytest.approx(0.5)


# ---------------------------------------------------------------------- equivalents


def test_equivalents_is_what_convert_says():
    model = network(L2(0.01), L2(0.01), optimizers.SGD(0.1, momentum=0.5))
    report = cost_report(model, samples=50, batch_size=5)
    known = {"samples": 50, "batch_size": 5, "learning_rate": 0.1, "momentum": 0.5}
    targets = {
        *("torch", "textbook", "logistic_c", "ridge", "prior_std", "sklearn_mlp"),
        *("decoupled", "half_life"),
    }
    assert set(report.equivalents) == targets
    assert report.equivalents == pytest.approx(
        {target: convert(0.01, "keras", target, **known) for target in targets}
    )


def test_equivalents_leaves_out_what_nobody_said():
    model = network(L2(0.01), L2(0.01), "adam")
    assert set(cost_report(model).equivalents) == {"torch"}
    assert set(cost_report(model, batch_size=5).equivalents) == {"torch", "sklearn_mlp"}
    assert "samples=... and batch_size=... would tell more" in str(cost_report(model))
    assert "5 in a batch (samples=... would" in str(cost_report(model, batch_size=5))


def test_equivalents_counts_the_examples_of_an_update():
    optimizer = optimizers.SGD(0.1, gradient_accumulation_steps=4)
    report = cost_report(network(L2(0.01), None, optimizer), samples=50, batch_size=5)
    assert report.equivalents["half_life"] == pytest.approx(
        convert(
            0.01, "keras", "half_life", samples=50, batch_size=20, learning_rate=0.1
        )
    )


def test_equivalents_is_empty_and_says_so_where_coefficients_differ():
    report = cost_report(network(L2(0.01), L2(0.02)))
    assert report.equivalents == {}
    assert "coefficients differ" in str(report)
    assert "coefficients differ" in report.to_markdown()


def test_equivalents_of_a_coefficient_of_zero_is_no_penalty():
    report = cost_report(network(L2(0.0), None), samples=50)
    assert report.equivalents["torch"] == 0
    assert report.equivalents["logistic_c"] == math.inf


# ------------------------------------------------------------------------- findings


def sized(model, largest):
    """The model with kernels of this size."""
    for layer in model.layers:
        if hasattr(layer, "kernel"):
            random = np.random.default_rng(3)
            layer.kernel.assign(random.uniform(-largest, largest, layer.kernel.shape))
    return model


HARMLESS = {"first": L2(1e-4), "second": L2(1e-4)}


def test_finding_none_where_nothing_stands_out():
    report = cost_report(network(**HARMLESS), X, Y)
    assert report.findings == ()
    assert "stands out" not in str(report) + report.to_markdown()


def test_finding_that_nothing_is_penalized():
    report = cost_report(network(), X, Y)
    assert found(report) == ["nothing_penalized"]
    assert "attach(model, rule)" in str(report)
    assert report.weights == ()


@pytest.mark.parametrize("arrays", [(), (X, Y)], ids=["bare", "data"])
def test_finding_that_nothing_is_trainable(arrays):
    model = network(L2(0.5))
    model.trainable = False
    report = cost_report(model, *arrays)
    assert found(report) == ["nothing_penalized"]
    assert "No weight is trainable" in str(report)


def test_finding_of_a_penalty_that_dominates_the_gradient():
    report = cost_report(sized(network(L2(10.0), L2(10.0)), 1.0), X, Y)
    assert found(report) == ["dominant_gradient"]
    assert report.gradient_ratio > 1
    assert f"{report.gradient_ratio:.2g} times" in finding(report, "dominant_gradient")


def test_finding_of_a_penalty_that_dominates_the_value_only():
    model = sized(network(L2(1e-3), L2(1e-3)), 30.0)
    model.compile("sgd", Steep())
    report = cost_report(model, X, Y)
    assert found(report) == ["dominant_value"]
    share = report.cost["penalty_share"]
    assert share > 0.5
    assert report.gradient_ratio < 1
    text = finding(report, "dominant_value")
    assert f"{report.gradient_ratio:.2g} times the data gradient" in text
    assert f"{report.cost['penalty']:.4g} of {report.cost['total']:.4g}" in text


class Steep(keras.losses.Loss):
    """Next to nothing in value, and steep."""

    def call(self, y_true, y_pred):
        return 0.01 * ops.square(ops.sin(100 * y_pred))


@pytest.mark.parametrize("name", ["dominant_gradient", "dominant_value"])
def test_finding_of_dominance_needs_data(name):
    assert name not in found(cost_report(sized(network(L2(10.0)), 30.0)))


@pytest.mark.parametrize(
    ("dtype", "smallest"),
    [("float32", 2.0**-24), ("float16", 2.0**-11), ("bfloat16", 2.0**-8)],
)
def test_finding_of_a_penalty_lost_in_rounding_is_exact_to_the_dtype(dtype, smallest):
    # The smallest relative change that is not rounded away, tried on 1.
    one = ops.ones((1,), dtype=dtype)
    assert numpy64(one - ops.cast(1.01 * smallest / 2, dtype))[0] < 1
    assert numpy64(one + ops.cast(0.99 * smallest, dtype))[0] == 1
    assert numpy64(one + ops.cast(1.01 * smallest, dtype))[0] > 1
    for factor in (0.99, 1.01):
        model = keras.Sequential(
            [
                keras.Input((4,)),
                layers.Dense(
                    3, dtype=dtype, kernel_regularizer=L2(factor * smallest / 2)
                ),
            ]
        )
        model.compile(optimizers.SGD(1.0), "mse")
        report = cost_report(model)
        assert found(report) == (["no_op"] if factor < 1 else [])
    text = finding(cost_report(nothing_done(dtype)), "no_op")
    assert f"{dtype} rounds away changes below {smallest:.2g}" in text


def nothing_done(dtype="float32", optimizer="sgd"):
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(3, dtype=dtype, kernel_regularizer=ScaledL2(1e-30)),
        ]
    )
    model.compile(optimizer, "mse")
    return model


def test_finding_of_a_penalty_lost_in_rounding_under_adam_is_by_the_gradient():
    y = np.zeros((10, 3))
    report = cost_report(nothing_done(optimizer="adam"), X, y)
    assert found(report) == ["no_op"]
    assert "times the data gradient" in finding(report, "no_op")
    assert found(cost_report(nothing_done(optimizer="adam"))) == []


def test_finding_of_a_penalty_of_zero():
    report = cost_report(network(L2(0.0), L2(1e-3)))
    assert found(report) == ["no_op"]
    text = finding(report, "no_op")
    assert "its coefficient is 0" in text
    assert "1 of 2 weight tensors" in text
    assert "first/kernel" in text


def test_finding_that_a_step_indeed_does_nothing():
    model = network(L2(1e-10), None, optimizers.SGD(0.1))
    assert found(cost_report(model)) == ["no_op"]
    # Without data gradient a step leaves every bit as it was.
    before = numpy(model.layers[0].kernel)
    model.fit(0 * X, 0 * Y, batch_size=10, verbose=0)
    np.testing.assert_array_equal(numpy(model.layers[0].kernel), before)


def test_finding_of_double_decay_names_both():
    optimizer = optimizers.AdamW(weight_decay=0.02)
    report = cost_report(network(**HARMLESS, optimizer=optimizer), X, Y)
    assert found(report) == ["double_decay"]
    text = finding(report, "double_decay")
    assert "AdamW's weight_decay=0.02" in text
    assert text.startswith("2 weight tensors such as network/first/kernel decay")


def test_finding_of_double_decay_is_of_the_weights_that_the_optimizer_decays():
    optimizer = optimizers.SGD(0.1, weight_decay=0.02)
    optimizer.exclude_from_weight_decay(var_names=["kernel"])
    assert found(cost_report(network(**HARMLESS, optimizer=optimizer))) == []
    model = network(**HARMLESS)
    optimizer = optimizers.SGD(0.1, weight_decay=0.02)
    optimizer.exclude_from_weight_decay(var_list=[model.layers[0].kernel])
    model.compile(optimizer, "mse")
    report = cost_report(model)
    assert found(report) == ["double_decay"]
    text = finding(report, "double_decay")
    assert text.startswith(f"{model.layers[1].kernel.path} decays twice")


def test_finding_of_double_decay_tells_two_weights_of_one_path_apart():
    units = []

    def tower():
        x = keras.Input((4,))
        units.append(keras.layers.Dense(3, name="h", kernel_regularizer=L2(0.1)))
        return keras.Model(x, units[-1](x))

    x = keras.Input((4,))
    model = keras.Model(x, keras.layers.Add()([tower()(x), tower()(x)]))
    optimizer = optimizers.AdamW(weight_decay=0.02)
    optimizer.exclude_from_weight_decay(var_list=[units[1].kernel])
    model.compile(optimizer, "mse")
    text = finding(cost_report(model), "double_decay")
    assert text.startswith("h/kernel decays twice")


@pytest.mark.skipif(not hasattr(optimizers, "Muon"), reason="Keras 3.8 has none")
@pytest.mark.parametrize(
    ("decays", "twice"),
    [
        ({"weight_decay": 0.0, "adam_weight_decay": 0.3}, "rows/embeddings"),
        ({"weight_decay": 0.3, "adam_weight_decay": 0.0}, "unit/kernel"),
    ],
)
def test_double_decay_under_muon_is_that_of_its_argument_for_the_weight(decays, twice):
    optimizer = optimizers.Muon(0.1, **decays)
    model = keras.Sequential(
        [
            keras.Input((3,), dtype="int32"),
            keras.layers.Embedding(9, 4, name="rows", embeddings_regularizer=L2(0.1)),
            keras.layers.Flatten(),
            keras.layers.Dense(2, name="unit", kernel_regularizer=L2(0.1)),
        ]
    )
    model.compile(optimizer, "mse")
    before = [numpy(v) for v in model.weights]
    optimizer.build(model.trainable_variables)
    zeros = [keras.ops.zeros(v.shape) for v in model.trainable_variables]
    optimizer.apply(zeros)
    shrunk = [
        v.path
        for v, old in zip(model.weights, before, strict=True)
        if np.linalg.norm(numpy(v)) < 0.98 * np.linalg.norm(old)
    ]
    assert [path.endswith(twice) for path in shrunk] == [True]
    text = finding(cost_report(model), "double_decay")
    [argument] = [name for name, value in decays.items() if value]
    assert text.startswith(f"{shrunk[0]} decays twice")
    assert f"Muon's {argument}=0.3" in text
    with pytest.warns(UserWarning, match=f"{twice}', by .* {argument}=0.3"):
        attach(model, L2(0.2))


def test_convention_in_which_a_strength_is_no_float_is_left_out():
    report = cost_report(network(L2(1e-320), L2(1e-320)), samples=10, batch_size=5)
    assert "torch" in report.equivalents
    assert "logistic_c" not in report.equivalents


def test_finding_of_weights_before_batch_normalization():
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(3, 2, kernel_regularizer=L2(1e-3), name="followed"),
            layers.BatchNormalization(),
            layers.Conv2D(
                3, 2, activation="relu", kernel_regularizer=L2(1e-3), name="before"
            ),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(1, kernel_regularizer=L2(1e-3), name="last"),
        ]
    )
    report = cost_report(model)
    assert found(report) == ["before_batch_norm"]
    assert "/followed/kernel feeds a " in finding(report, "before_batch_norm")


def test_frozen_normalization_undoes_no_scale():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(3, use_bias=False, kernel_regularizer=L2(1e-3)),
            layers.BatchNormalization(trainable=False),
        ]
    )
    assert found(cost_report(model)) == []
    before = numpy64(model(X, training=True))
    model.layers[0].kernel.assign(5.0 * model.layers[0].kernel)
    assert np.abs(numpy64(model(X, training=True)) - before).max() > 0.1


def test_finding_of_batch_normalization_is_true_of_the_function():
    # The outputs do not change when the weights that were named are scaled.
    model = network(L2(1e-3))
    inputs = keras.Input((4,))
    unit = layers.Dense(3, use_bias=False, kernel_regularizer=L2(1e-3))
    normalized = layers.BatchNormalization(epsilon=1e-12)(unit(inputs))
    model = keras.Model(inputs, normalized)
    assert found(cost_report(model)) == ["before_batch_norm"]
    before = numpy64(model(X, training=True))
    unit.kernel.assign(5.0 * unit.kernel)
    np.testing.assert_allclose(numpy64(model(X, training=True)), before, atol=1e-4)


def test_finding_of_batch_normalization_not_where_another_path_leads_past_it():
    inputs = keras.Input((4,))
    hidden = layers.Dense(4, kernel_regularizer=L2(1e-3))(inputs)
    model = keras.Model(inputs, hidden + layers.BatchNormalization()(hidden))
    assert found(cost_report(model)) == []


def test_findings_come_together_the_gravest_first():
    middle = [layers.Dense(3, kernel_regularizer=L2(1e-20), name="middle")]
    middle.append(layers.BatchNormalization())
    model = network(L2(1e3), L2(1e3), optimizers.AdamW(), middle=middle)
    report = cost_report(sized(model, 1.0), X, Y)
    assert found(report) == [
        *("no_op", "dominant_gradient", "double_decay", "before_batch_norm")
    ]
    assert len(str(report).split("What stands out:")[1].split("\n- ")) == 1 + 4


# ---------------------------------------------------------------------------- words


def full_report():
    model = network(
        ScaledL2(0.5, "model"), PriorL2(2.0, samples=50), optimizers.SGD(0.1)
    )
    bind(model)
    return cost_report(model, X, Y, samples=50)


def test_text_shows_every_number_of_the_table():
    report = full_report()
    text = str(report)
    for weight in report.weights:
        [line] = [li for li in text.splitlines() if li.startswith(weight.path)]
        cells = line.split()
        assert cells[1] == str(weight.count)
        assert float(cells[2]) == pytest.approx(weight.sum_of_squares, rel=1e-3)
        assert float(cells[3]) == pytest.approx(weight.coefficient, rel=1e-2)
        assert float(cells[4]) == pytest.approx(weight.penalty, rel=1e-3)
        assert cells[5] == f"{weight.share:.0%}"
        assert float(cells[6]) == pytest.approx(weight.decay_per_step, rel=0.05)
        assert float(cells[7].replace(",", "")) == round(weight.half_life)
        assert float(cells[8]) == pytest.approx(weight.gradient_ratio, rel=0.05)
    assert f"data {report.cost['data']:.4g}" in text
    assert f"penalty {report.cost['penalty']:.4g}" in text


def test_text_says_which_rules_penalize_how_many_tensors():
    text = str(full_report())
    assert "1 tensor by ScaledL2(strength=0.5, per='model', power=1.0)\n" in text
    assert "1 tensor by PriorL2(std=2.0, samples=50)\n" in text
    assert "inferred" not in text


def test_text_fits_a_terminal_but_for_the_table():
    lines = str(full_report()).splitlines()
    table = [line for line in lines if line.startswith(("weight ", "network/"))]
    assert len(table) == 3
    assert [line for line in lines if len(line) > 80 and line not in table] == []
    assert not any(line != line.rstrip() for line in lines)


def test_text_explains_every_column_that_is_not_plain():
    text = str(full_report())
    for column in ("c", "share", "decay/step", "half-life", "gradient ratio"):
        assert re.search(rf"^{column}: \w", text, re.MULTILINE), column


def test_text_without_data_leaves_the_unknown_out_and_says_how_to_know():
    text = str(cost_report(network(L2(0.5), optimizer=None)))
    assert "gradient ratio" not in text
    assert "half-life" not in text
    assert "Give x and y" in text


@pytest.mark.parametrize(
    ("c", "shown"), [(1e-9, "(<1% of"), (1e9, "(>99% of"), (0.0, "(0% of")]
)
def test_text_rounds_no_share_to_nothing_or_all(c, shown):
    assert shown in str(cost_report(network(L2(c)), X, Y))


def table(markdown):
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in markdown.splitlines()
        if line.startswith("|")
    ]


@pytest.mark.parametrize("with_data", [True, False])
def test_markdown_is_a_table_with_as_many_cells_in_each_row(with_data):
    model = network(L2(0.5), L2(0.5), "sgd" if with_data else "adam")
    report = cost_report(model, *((X, Y) if with_data else ()))
    header, ruler, *rows = table(report.to_markdown())
    assert len(rows) == 2
    assert {len(row) for row in (header, ruler, *rows)} == {9 if with_data else 6}
    assert all(re.fullmatch("-+:?", cell) for cell in ruler)
    assert [row[0] for row in rows] == [weight.path for weight in report.weights]


def test_markdown_headings_and_findings_are_markdown():
    lines = cost_report(network(L2(100.0)), X, Y).to_markdown().splitlines()
    assert lines[0].startswith("# Penalty of 'network': 12 of 19 weights, in 1 tensor")
    assert "## What stands out" in lines
    assert any(line.startswith("- **dominant_gradient**: ") for line in lines)


def test_dict_is_json_and_has_everything():
    report = full_report()
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert set(plain) == {field.name for field in dataclasses.fields(report)}
    assert plain["weights"][0]["coefficient"] == report.weights[0].coefficient
    assert plain["cost"] == report.cost
    assert plain["samples"] == 50


# --------------------------------------------------------------- leaves no traces


def state(model):
    """Everything that a report must not touch."""
    return (
        [numpy(v).tolist() for v in model.variables],
        [numpy(v).tolist() for v in model.optimizer.variables],
        [v.regularizer for v in model.weights],
        [number(loss) for loss in model.losses],
        [
            numpy(v).tolist()
            for layer in model.layers
            if isinstance(layer, layers.RNN)
            for v in layer.states or []
        ],
        model.get_config() if isinstance(model, keras.Sequential) else None,
        model.train_function is None,
        model.test_function is None,
        sorted(vars(model)),
        # Of metrics that are there, or not there yet.
        {v.path: n for v in model.metrics_variables if (n := numpy(v).tolist())},
    )


def stateful():
    """A model in which a forward pass leaves traces wherever it can."""
    inputs = keras.Input(batch_shape=(5, 3, 4))
    # Keras on torch fails to train a stateful layer.
    stateful = keras.config.backend() != "torch"
    lstm = layers.LSTM(3, stateful=stateful, kernel_regularizer=SampleL2(1.0))
    x = lstm(inputs)
    x = layers.BatchNormalization()(layers.Dropout(0.5)(x))
    x = layers.GaussianNoise(1.0)(x)
    one = layers.Dense(1, kernel_regularizer=ScaledL2(1.0, "model"), name="one")(x)
    two = layers.Dense(1, activity_regularizer="l2", name="two")(x)
    model = keras.Model(inputs, [one, two])
    model.compile("sgd", ["mse", "mae"], metrics=[["mae"], ["mse"]])
    return model


@pytest.mark.parametrize("trained", [False, True])
def test_report_leaves_the_model_as_it_was(trained):
    model = stateful()
    bind(model, 10)
    x = np.random.default_rng(0).normal(size=(10, 3, 4)).astype("float32")
    if trained:
        model.fit(x, [Y, Y], batch_size=5, validation_split=0.5, verbose=0)
        model._clear_losses()
    before = state(model)
    report = cost_report(model, x, [Y, Y], samples=10, batch_size=5)
    assert report.cost["data"] > 0
    assert state(model) == before


@pytest.mark.skipif(keras.config.backend() == "torch", reason="no gradient in Keras")
def test_gradient_of_a_stateful_layer_is_from_the_states_that_it_has():
    inputs = keras.Input(batch_shape=(2, 3, 4))
    unit = layers.LSTM(3, stateful=True, kernel_regularizer=ScaledL2(1.0))
    model = compiled(keras.Model(inputs, layers.Dense(1)(unit(inputs))))
    x = np.random.default_rng(0).normal(size=(6, 3, 4)).astype("float32")
    first = cost_report(model, x[:2], Y[:2], batch_size=2)
    report = cost_report(model, x, Y[:6], batch_size=2)
    assert report.gradient_ratio == pytest.approx(first.gradient_ratio, rel=1e-5)
    assert first == cost_report(model, x[:2], Y[:2], batch_size=2)


def test_report_that_fails_leaves_the_model_as_it_was():
    model = stateful()
    bind(model, 10)
    before = state(model)

    def broken(**arguments):
        raise RuntimeError("a loss that does not work")

    x = np.zeros((10, 3, 4), "float32")
    vars(model)["compute_loss"] = broken
    with pytest.raises(RuntimeError, match="does not work"):
        cost_report(model, x, [Y, Y], samples=10, batch_size=5)
    del vars(model)["compute_loss"]
    assert state(model) == before


def test_report_keeps_what_rules_were_bound_with():
    model = network(HalfLifeL2(5.0), None, optimizers.SGD(0.1))
    bind(model, 50, 2)
    [bound] = cost_report(model).weights
    assert bound.coefficient == model.layers[0].kernel.regularizer.coefficient((4, 3))
    [other] = cost_report(model, batch_size=4).weights
    assert other.coefficient == pytest.approx(2 * bound.coefficient)
    [again] = cost_report(model).weights
    assert again == bound


# --------------------------------------------------------------------------- errors


def test_unresolved_rule_is_an_error_with_the_count_and_the_remedies():
    model = network(SampleL2(1.0))
    with pytest.raises(ValueError, match=r"training examples.*samples=.*ApplyL2.*bind"):
        cost_report(model)
    [weight] = cost_report(model, samples=10).weights
    assert weight.coefficient == 1 / 20
    assert model.layers[0].kernel.regularizer.inferred_samples is None


def test_rule_without_meaning_under_the_optimizer_is_an_error_with_the_remedy():
    model = network(HalfLifeL2(5.0), None, "adam")
    with pytest.raises(ValueError, match=r"no half-life under Adam.*weight_decay=69"):
        cost_report(model, samples=10, batch_size=5)


def test_unbuilt_model_is_an_error():
    with pytest.raises(ValueError, match="not built"):
        cost_report(keras.Sequential([layers.Dense(1)]))
    with pytest.raises(TypeError, match="expected a Keras model"):
        cost_report("model")


def test_model_that_is_not_compiled_is_an_error_with_data_only():
    model = network(L2(0.5), optimizer=None)
    assert cost_report(model).weights
    with pytest.raises(ValueError, match=r"not compiled.*compile\(.*without data"):
        cost_report(model, X, Y)


def test_cost_of_a_model_without_a_loss_is_an_error_unless_layers_add_one():
    model = network(L2(0.5), optimizer=None)
    model.compile("sgd")
    with pytest.raises(ValueError, match=r"without a loss.*compile\(optimizer, loss"):
        cost_report(model, X, Y)
    inputs = keras.Input(X.shape[1:])
    layer = layers.Dense(2, kernel_regularizer=L2(0.5), activity_regularizer="l2")
    model = keras.Model(inputs, layer(inputs))
    model.compile("sgd")
    [total] = np.atleast_1d(model.evaluate(X, Y, batch_size=len(X), verbose=0))
    report = cost_report(model, X, Y)
    assert report.cost["total"] == pytest.approx(total, rel=1e-5)
    assert report.cost["data"] > 0


@pytest.mark.parametrize(
    ("given", "lacking"),
    [
        ({"x": X}, "but y not"),
        ({"y": Y}, "but x not"),
        ({"sample_weight": Y[:, 0]}, "but x and y not"),
    ],
    ids=["x", "y", "sample_weight"],
)
def test_half_of_the_data_is_an_error_that_names_the_other(given, lacking):
    with pytest.raises(ValueError, match=lacking):
        cost_report(network(L2(0.5)), **given)


@pytest.mark.parametrize(
    "arrays",
    [(X, Y[:9]), (X[:0], Y[:0]), ({"x": X}, Y[:3])],
    ids=["lengths", "empty", "dict"],
)
def test_data_of_different_length_or_none_are_an_error_with_the_lengths(arrays):
    with pytest.raises(ValueError, match=r"have \[.*\] examples.*same number"):
        cost_report(network(L2(0.5)), *arrays)
    with pytest.raises(ValueError, match=r"have \[3, 10\] examples"):
        cost_report(network(L2(0.5)), X, Y, sample_weight=np.ones(3))


@pytest.mark.parametrize(
    "wrong",
    [3, "data", [1.0, 2.0], iter([X]), np.float32(1)],
    ids=lambda x: type(x).__name__,
)
def test_data_of_another_kind_are_an_error_with_the_kind(wrong):
    with pytest.raises(TypeError, match=r"type \w+: expected arrays"):
        cost_report(network(L2(0.5)), wrong, Y)
    with pytest.raises(TypeError, match=r"type \w+: expected arrays"):
        cost_report(network(L2(0.5)), X, wrong)


@pytest.mark.parametrize("name", ["samples", "batch_size"])
@pytest.mark.parametrize("wrong", [0, -1, 1.5, math.nan, True, "3"], ids=repr)
def test_wrong_count_is_an_error_that_names_it(name, wrong):
    with pytest.raises(ValueError, match=rf"{name}=.*expected"):
        cost_report(network(L2(0.5)), **{name: wrong})


def test_every_rule_can_be_reported():
    for rule in SOME_RULES:
        report = cost_report(network(rule, rule), X, Y, samples=10, batch_size=5)
        assert report.cost["penalty"] > 0
        assert str(report)
