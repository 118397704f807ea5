"""HalfLifeL2, by measuring how long a weight that nothing drives takes to halve."""

import inspect
import math
import re

import keras
import numpy as np
import pytest
from autodiff import numpy64
from keras import optimizers
from models import losses

from keras_scaled_l2 import (
    ApplyL2,
    HalfLifeL2,
    ScaledL2,
    attach,
    bind,
    cost_report,
    detach,
    penalized,
    suggest,
)

SAMPLES, BATCH = 200, 4
STEPS = SAMPLES // BATCH
EPOCHS = 4


def without_data_gradient(optimizer, rule=None, **compile_arguments):
    """A weight of 1 whose input is always 0: the data cost does not depend on it."""
    model = keras.Sequential(
        [
            keras.Input((1,)),
            keras.layers.Dense(
                1,
                use_bias=False,
                kernel_initializer="ones",
                kernel_regularizer=rule,
            ),
        ]
    )
    model.compile(optimizer, "mse", **compile_arguments)
    return model


def train(model, *, epochs=EPOCHS, samples=SAMPLES, batch_size=BATCH, **arguments):
    """The weight after training."""
    nothing = np.zeros((samples, 1), "float32")
    model.fit(nothing, nothing, batch_size, epochs, verbose=0, **arguments)
    return weight(model)


def weight(model):
    return float(numpy64(model.layers[-1].kernel)[0, 0])


def recursion(c, learning_rates, momentum=0.0, nesterov=False):
    """Gradient descent on c * w**2 from 1, step by step in double precision."""
    w, velocity = 1.0, 0.0
    for learning_rate in learning_rates:
        step = -learning_rate * 2 * c * w
        velocity = momentum * velocity + step
        w += momentum * velocity + step if nesterov else velocity
    return w


def formula(epochs, *, learning_rate, momentum=0.0, samples=SAMPLES, batch=BATCH):
    """Ln 2 b (1 - mu) / (2 lr epochs m)."""
    return math.log(2) * batch * (1 - momentum) / (2 * learning_rate * epochs * samples)


MOMENTA = {
    "plain": {},
    "momentum 0.5": {"momentum": 0.5},
    "momentum 0.9": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9, "nesterov": True},
}


@pytest.mark.parametrize("kind", MOMENTA)
@pytest.mark.parametrize("by", ["bind", "attach"])
def test_weight_without_data_gradient_halves_in_the_epochs_of_the_rule(kind, by):
    momentum = MOMENTA[kind]
    optimizer = optimizers.SGD(0.05, **momentum)
    if by == "attach":
        model = without_data_gradient(optimizer)
        attach(model, HalfLifeL2(EPOCHS))
    else:
        model = without_data_gradient(optimizer, HalfLifeL2(EPOCHS))
    bind(model, SAMPLES, BATCH)
    c = formula(EPOCHS, learning_rate=0.05, momentum=momentum.get("momentum", 0))
    assert losses(model) == pytest.approx([c], rel=1e-6)
    w = train(model)
    # Momentum takes some steps to come up to speed, and a little more than its limit.
    close = 0.05 if momentum else 0.002
    assert w == pytest.approx(0.5, rel=close)
    expected = recursion(c, [0.05] * STEPS * EPOCHS, **momentum)
    assert w == pytest.approx(expected, rel=1e-4)
    assert train(model) == pytest.approx(w / 2, rel=close)


def test_weight_without_data_gradient_halves_under_a_loss_scale():
    optimizer = optimizers.LossScaleOptimizer(optimizers.SGD(0.05, momentum=0.5))
    model = without_data_gradient(optimizer, HalfLifeL2(EPOCHS))
    bind(model, SAMPLES, BATCH)
    assert train(model) == pytest.approx(0.5, rel=0.02)


if keras.config.backend() != "torch":  # Keras refuses it there

    def test_weight_without_data_gradient_halves_with_several_steps_in_one_execution():
        optimizer = optimizers.SGD(0.05, momentum=0.5)
        model = without_data_gradient(
            optimizer, HalfLifeL2(EPOCHS), steps_per_execution=10
        )
        bind(model, SAMPLES, BATCH)
        assert train(model) == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize("steps", [2, 5])
def test_weight_without_data_gradient_halves_with_accumulated_gradients(steps):
    optimizer = optimizers.SGD(0.05, gradient_accumulation_steps=steps)
    model = without_data_gradient(optimizer, HalfLifeL2(EPOCHS))
    bind(model, SAMPLES, BATCH)
    c = formula(EPOCHS, learning_rate=0.05, batch=BATCH * steps)
    assert losses(model) == pytest.approx([c], rel=1e-6)
    assert train(model) == pytest.approx(0.5, rel=0.02)


def test_batch_size_that_the_user_gave_means_examples_per_update():
    optimizer = optimizers.SGD(0.05, gradient_accumulation_steps=2)
    model = without_data_gradient(optimizer, HalfLifeL2(EPOCHS, batch_size=BATCH * 2))
    bind(model, SAMPLES)
    assert train(model) == pytest.approx(0.5, rel=0.02)


def test_last_partial_batch_is_an_update_like_the_others():
    # 200 / 24 is 8.3 steps by the formula, 9 in truth.
    model = without_data_gradient(optimizers.SGD(0.05), HalfLifeL2(EPOCHS))
    bind(model, SAMPLES, 24)
    w = train(model, batch_size=24)
    assert w == pytest.approx(0.5 ** (9 / (SAMPLES / 24)), rel=0.02)


def cosine(steps=STEPS * EPOCHS, rate=0.05):
    return optimizers.schedules.CosineDecay(rate, steps)


def rates(schedule, steps=STEPS * EPOCHS):
    return [float(numpy64(schedule(step))) for step in range(steps)]


def test_schedule_is_read_at_the_moment_of_binding_and_decays_with_its_sum():
    schedule = cosine()
    model = without_data_gradient(optimizers.SGD(schedule), HalfLifeL2(EPOCHS))
    bind(model, SAMPLES, BATCH)
    c = formula(EPOCHS, learning_rate=0.05)
    assert losses(model) == pytest.approx([c], rel=1e-6)
    w = train(model)
    # Half the mean rate, so half of the way to one half on a logarithmic scale.
    assert w == pytest.approx(math.sqrt(0.5), rel=0.005)
    assert w == pytest.approx(math.exp(-2 * c * sum(rates(schedule))), rel=0.005)


def test_schedule_bound_again_later_is_read_at_that_moment():
    schedule = optimizers.schedules.PiecewiseConstantDecay([STEPS - 1], [0.05, 0.01])
    model = without_data_gradient(optimizers.SGD(schedule), HalfLifeL2(EPOCHS))
    bind(model, SAMPLES, BATCH)
    w = train(model, epochs=1)
    bind(model, SAMPLES, BATCH)
    assert train(model) == pytest.approx(w / 2, rel=0.02)


def test_mean_rate_of_a_schedule_fixes_the_decay_of_the_whole_run():
    schedule = cosine()
    mean = float(np.mean(rates(schedule)))
    rule = HalfLifeL2(EPOCHS, learning_rate=mean)
    model = without_data_gradient(optimizers.SGD(schedule), rule)
    bind(model, SAMPLES, BATCH)
    assert train(model) == pytest.approx(0.5, rel=0.005)


# ------------------------------------------------------------- adaptive optimizers


WRAPPERS = {"Optimizer", "LossScaleOptimizer", "MultiOptimizer"}
ADAPTIVE = [
    name
    for name, optimizer in sorted(vars(optimizers).items())
    if inspect.isclass(optimizer)
    and issubclass(optimizer, optimizers.Optimizer)
    and name not in WRAPPERS | {"SGD"}
]
MAKES_WEIGHTS_ANEW = {"Ftrl", "ScheduleFreeAdamW"}
"""From a state of their own, so that decoupled decay has no half-life there either."""


def refusal(optimizer, rule):
    model = without_data_gradient(optimizer, rule)
    with pytest.raises(ValueError) as caught:
        bind(model, SAMPLES, BATCH)
    return str(caught.value)


def advised(message):
    """The optimizer that an error advises, made as it says."""
    name, rate, decay = re.search(
        r"use decoupled decay: keras.optimizers.(\w+)\((.*), weight_decay=(.*)\)\.$",
        message,
    ).groups()
    return name, getattr(optimizers, name)(float(rate), weight_decay=float(decay))


def test_discovery_finds_the_adaptive_optimizers():
    assert {"Adam", "AdamW", "RMSprop", "Lion"} <= set(ADAPTIVE)


@pytest.mark.once
@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_optimizer_is_refused_with_a_decay_that_halves_in_these_epochs(name):
    optimizer = getattr(optimizers, name)(learning_rate=0.05)
    message = refusal(optimizer, HalfLifeL2(EPOCHS))
    assert f"no half-life under {name}" in message
    other, decaying = advised(message)
    assert other == ("AdamW" if name in MAKES_WEIGHTS_ANEW else name)
    assert decaying.weight_decay == pytest.approx(
        math.log(2) / (0.05 * STEPS * EPOCHS), rel=1e-2
    )
    assert train(without_data_gradient(decaying)) == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize("name", sorted(MAKES_WEIGHTS_ANEW.intersection(ADAPTIVE)))
def test_optimizer_that_is_not_advised_has_no_half_life_by_decay(name):
    # If this fails, Keras mended it, and it can be advised.
    decay = math.log(2) / (0.05 * STEPS * EPOCHS)
    optimizer = getattr(optimizers, name)(learning_rate=0.05, weight_decay=decay)
    assert train(without_data_gradient(optimizer)) != pytest.approx(0.5, rel=0.1)


def test_advice_is_for_the_examples_of_an_update():
    optimizer = optimizers.AdamW(0.05, gradient_accumulation_steps=2)
    # At the rate that runs, whatever rate the rule was given.
    _, decaying = advised(refusal(optimizer, HalfLifeL2(EPOCHS, learning_rate=0.3)))
    again = optimizers.AdamW(
        0.05, weight_decay=decaying.weight_decay, gradient_accumulation_steps=2
    )
    assert train(without_data_gradient(again)) == pytest.approx(0.5, rel=0.02)


def test_adaptive_optimizer_under_a_loss_scale_is_refused_too():
    optimizer = optimizers.LossScaleOptimizer(optimizers.Adam(0.05))
    message = refusal(optimizer, HalfLifeL2(EPOCHS))
    assert advised(message)[0] == "Adam"


def test_adaptive_optimizer_is_refused_with_the_formula_where_counts_are_missing():
    model = without_data_gradient(optimizers.Adam(0.05), HalfLifeL2(EPOCHS))
    with pytest.raises(ValueError, match=r"weight_decay=ln 2 \* batch_size / \("):
        bind(model)


def test_penalty_under_adam_has_no_half_life():
    # Why it is refused: the same coefficient decays a hundred times as fast.
    c = formula(EPOCHS, learning_rate=0.05)
    model = without_data_gradient(optimizers.Adam(0.05), keras.regularizers.L2(c))
    assert abs(train(model, epochs=1)) < 0.1


# --------------------------------------------------------------- inferring, and not


def the_rule(model):
    [(_, _, rule)] = penalized(model)
    return rule


def test_rule_is_inferred_anew_for_another_optimizer():
    model = without_data_gradient(optimizers.SGD(0.05), HalfLifeL2(EPOCHS))
    bind(model, SAMPLES, BATCH)
    model.compile(optimizers.SGD(0.02, momentum=0.5), "mse")
    bind(model, SAMPLES, BATCH)
    assert the_rule(model).inferred_learning_rate == pytest.approx(0.02)
    assert the_rule(model).inferred_momentum == pytest.approx(0.5)
    assert train(model) == pytest.approx(0.5, rel=0.02)


def test_rule_is_inferred_anew_for_another_data_set():
    model = without_data_gradient(optimizers.SGD(0.05), HalfLifeL2(EPOCHS))
    bind(model, SAMPLES, BATCH)
    w = train(model)
    bind(model, SAMPLES // 2, 2)
    assert the_rule(model).inferred_samples == SAMPLES // 2
    assert the_rule(model).inferred_batch_size == 2
    again = train(model, samples=SAMPLES // 2, batch_size=2)
    assert again == pytest.approx(w / 2, rel=0.02)


def test_rule_is_inferred_anew_for_another_learning_rate():
    model = without_data_gradient(optimizers.SGD(0.05), HalfLifeL2(EPOCHS))
    bind(model, SAMPLES, BATCH)
    model.optimizer.learning_rate = 0.01
    bind(model, SAMPLES, BATCH)
    assert train(model) == pytest.approx(0.5, rel=0.02)


GIVEN = {"samples": 7, "batch_size": 3, "learning_rate": 0.3, "momentum": 0.25}


@pytest.mark.parametrize("name", GIVEN)
def test_value_that_the_user_gave_is_never_overwritten(name):
    rule = HalfLifeL2(EPOCHS, **{name: GIVEN[name]})
    model = without_data_gradient(optimizers.SGD(0.05, momentum=0.5), rule)
    bind(model, SAMPLES, BATCH)
    bound = the_rule(model)
    assert getattr(bound, name) == GIVEN[name]
    assert getattr(bound, f"inferred_{name}") is None
    read = {
        "samples": SAMPLES,
        "batch_size": BATCH,
        "learning_rate": 0.05,
        "momentum": 0.5,
        name: GIVEN[name],
    }
    assert losses(model) == pytest.approx(
        [formula(EPOCHS, batch=read.pop("batch_size"), **read)], rel=1e-6
    )


def test_all_values_given_need_no_binding():
    model = without_data_gradient(optimizers.Adam(), HalfLifeL2(EPOCHS, **GIVEN))
    [penalty] = losses(model)
    assert penalty == pytest.approx(math.log(2) * 3 * 0.75 / (2 * 0.3 * EPOCHS * 7))


if hasattr(optimizers, "MultiOptimizer"):
    from keras.optimizers import MultiOptimizer, OptimizerMap

    def several(**by_layer):
        """Plain SGD of another rate for each of these layers, Adam for the others."""
        chosen = {f"{name}/.*": optimizer for name, optimizer in by_layer.items()}
        return MultiOptimizer(OptimizerMap(optimizers.Adam(0.5), chosen))

    def two_without_data_gradient(optimizer):
        """Two weights of 1 beside each other, whose input is always 0."""
        inputs = keras.Input((1,))
        units = [
            keras.layers.Dense(1, use_bias=False, kernel_initializer="ones", name=name)(
                inputs
            )
            for name in ("one", "two")
        ]
        model = keras.Model(inputs, keras.layers.add(units))
        model.compile(optimizer, "mse")
        return model

    def test_each_weight_is_bound_to_the_optimizer_that_updates_it():
        model = two_without_data_gradient(
            several(one=optimizers.SGD(0.05), two=optimizers.SGD(0.02, momentum=0.5))
        )
        attach(model, HalfLifeL2(EPOCHS))
        bind(model, SAMPLES, BATCH)
        found = {
            path: (rule.inferred_learning_rate, rule.inferred_momentum)
            for path, _, rule in penalized(model)
        }
        assert found["one/kernel"] == pytest.approx((0.05, 0.0))
        assert found["two/kernel"] == pytest.approx((0.02, 0.5))

    def test_weight_that_an_adaptive_optimizer_updates_is_refused_beside_sgd():
        model = two_without_data_gradient(several(one=optimizers.SGD(0.05)))
        attach(model, HalfLifeL2(EPOCHS), where=[model.get_layer("one")])
        bind(model, SAMPLES, BATCH)
        attach(model, HalfLifeL2(EPOCHS))
        with pytest.raises(ValueError, match="no half-life under Adam"):
            bind(model, SAMPLES, BATCH)


# ------------------------------------------- a learning rate of 0, as warm-ups begin


def warm_up():
    return optimizers.schedules.CosineDecay(
        0.0, STEPS * EPOCHS, warmup_target=0.05, warmup_steps=10
    )


RATES_OF_ZERO = {"warm-up": warm_up, "zero": lambda: 0.0}
REMEDY = r"learning rate of SGD is 0 .*HalfLifeL2\(\.\.\., learning_rate=<number>\)"


@pytest.mark.parametrize("kind", RATES_OF_ZERO)
def test_learning_rate_of_0_is_refused_where_the_half_life_needs_it(kind):
    def compiled(rule=None):
        return without_data_gradient(optimizers.SGD(RATES_OF_ZERO[kind]()), rule)

    counts = {"samples": SAMPLES, "batch_size": BATCH}
    model = compiled(HalfLifeL2(EPOCHS))
    for fails in (
        lambda: bind(model, SAMPLES, BATCH),
        lambda: cost_report(model, **counts),
        lambda: train(model, callbacks=[ApplyL2()]),
        lambda: train(compiled(), callbacks=[ApplyL2(HalfLifeL2(EPOCHS))]),
    ):
        with pytest.raises(ValueError, match=REMEDY) as caught:
            fails()
        assert "inferred_learning_rate" not in str(caught.value)
    if kind == "warm-up":  # at 0 throughout there is nothing to suggest either
        with pytest.raises(ValueError, match=REMEDY):
            suggest(compiled(), **counts, epochs=EPOCHS, rule=HalfLifeL2(EPOCHS))


@pytest.mark.parametrize("kind", RATES_OF_ZERO)
def test_learning_rate_of_0_is_no_matter_where_nothing_needs_it(kind):
    two = keras.Sequential([keras.Input((1,)), *map(keras.layers.Dense, (3, 1))])
    two.compile(optimizers.SGD(RATES_OF_ZERO[kind]()), "mse")
    attach(two, HalfLifeL2(EPOCHS), where=[two.layers[0]])
    attach(two, ScaledL2(1.0), where=[two.layers[1]])
    assert detach(two)
    model = without_data_gradient(optimizers.SGD(RATES_OF_ZERO[kind]()))
    attach(model, HalfLifeL2(EPOCHS, learning_rate=0.05))
    bind(model, SAMPLES, BATCH)
    assert losses(model) == pytest.approx([formula(EPOCHS, learning_rate=0.05)])


@pytest.mark.once
def test_mean_rate_of_a_warm_up_halves_the_weight_as_the_error_says():
    schedule = warm_up()
    mean = float(np.mean(rates(schedule)))
    model = without_data_gradient(optimizers.SGD(schedule))
    train(model, callbacks=[ApplyL2(HalfLifeL2(EPOCHS, learning_rate=mean))])
    assert weight(model) == pytest.approx(0.5, rel=0.005)


def test_rate_of_an_earlier_optimizer_is_not_kept_for_a_warm_up():
    model = without_data_gradient(optimizers.SGD(0.05), HalfLifeL2(EPOCHS))
    bind(model, SAMPLES, BATCH)
    model.compile(optimizers.SGD(warm_up()), "mse")
    with pytest.raises(ValueError, match=REMEDY):
        bind(model, SAMPLES, BATCH)


def test_adaptive_optimizer_at_a_rate_of_0_is_refused_with_the_formula():
    message = refusal(optimizers.Adam(warm_up()), HalfLifeL2(EPOCHS))
    assert "no half-life under Adam" in message
    assert "weight_decay=ln 2 * batch_size / (" in message


# ------------------------------------------------- fewer examples than a batch holds


@pytest.mark.once
@pytest.mark.parametrize("accumulated", [None, 5])
@pytest.mark.parametrize("by", ["fit", "bind", "rule"])
def test_weight_halves_where_a_batch_has_room_for_more_than_all_examples(
    by, accumulated
):
    sgd = optimizers.SGD(0.05, gradient_accumulation_steps=accumulated)
    # To first order: some updates in a half-life.
    epochs = 100 if accumulated else 30
    rule = HalfLifeL2(epochs, samples=20 if by == "rule" else None)
    model = without_data_gradient(sgd, rule)
    callbacks = [ApplyL2()] if by == "fit" else []
    if by != "fit":
        bind(model, 20 if by == "bind" else None, batch_size=32)
    w = train(model, epochs=epochs, samples=20, batch_size=None, callbacks=callbacks)
    assert w == pytest.approx(0.5, rel=0.02)


def test_report_of_a_batch_with_room_for_more_than_all_examples_has_its_half_life():
    model = without_data_gradient(optimizers.SGD(0.05), HalfLifeL2(100))
    report = cost_report(model, samples=20, batch_size=32)
    assert report.equivalents["half_life"] == pytest.approx(100, rel=1e-5)
    assert report.weights[0].half_life == pytest.approx(100, rel=0.01)
