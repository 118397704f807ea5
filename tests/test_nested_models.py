"""A model within another: rules put on and taken off the one while the other trains."""

import gc

import keras
import pytest
from autodiff import numpy64
from keras import layers
from models import compiled, data, losses
from reference import penalty
from test_costs import fit
from test_gradient_norms import QUICK
from test_monitor_reuse import Counting

from keras_scaled_l2 import (
    ApplyL2,
    CostMonitor,
    ScaledL2,
    attach,
    bind,
    detach,
)

BACKEND = keras.config.backend()
X, Y = data(20)


def nested(learning_rate=0.0):
    """A model, and a compiled one that holds it."""
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    x = keras.Input((4,))
    outer = keras.Model(x, layers.Dense(1)(inner(x)))
    return inner, compiled(outer, learning_rate)


def squares(model):
    return penalty(1.0, numpy64(model.layers[0].kernel))


# ------------------------------------------------- steps that were compiled before


def change(inner, how):
    """Put a strong penalty on, or take off what ``start`` has put on."""
    detach(inner) if how == "detach" else attach(inner, keras.regularizers.L2(50.0))


def start(how):
    """A nested model that has been trained and evaluated, and its data cost."""
    inner, outer = nested()
    if how == "detach":
        attach(inner, keras.regularizers.L2(50.0))
    # The outer model keeps a penalty, or ApplyL2 would have nothing to do.
    attach(outer, keras.regularizers.L2(1.0), where=[outer.layers[-1]])
    arguments = {"epochs": 1, "validation_data": (X, Y)}
    history = fit(outer, X, Y, **arguments)
    return inner, outer, history["loss"][0] - sum(losses(outer))


@pytest.mark.parametrize("how", ["attach", "detach"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: [ApplyL2()],
        lambda: [CostMonitor()],
        lambda: [CostMonitor(), ApplyL2()],
        lambda: [ApplyL2(), CostMonitor()],
    ],
    ids=["apply", "monitor", "monitor first", "apply first"],
)
def test_change_of_a_model_within_acts_in_the_next_fit(make, how):
    inner, outer, cost = start(how)
    change(inner, how)
    expected = cost + sum(losses(outer))
    assert (expected > cost + 50) is (how == "attach")
    arguments = {"epochs": 1, "validation_data": (X, Y)}
    history = fit(outer, X, Y, *make(), **arguments)
    assert history["loss"] == pytest.approx([expected], rel=1e-5)
    assert history["val_loss"] == pytest.approx([expected], rel=1e-5)
    # And in those after it, without a callback.
    history = fit(outer, X, Y, **arguments)
    assert history["loss"] == pytest.approx([expected], rel=1e-5)
    assert outer.evaluate(X, Y, verbose=0) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("how", ["attach", "detach"])
def test_change_of_a_model_within_acts_after_bind(how):
    inner, outer, cost = start(how)
    change(inner, how)
    bind(outer)
    [found] = fit(outer, X, Y, epochs=1)["loss"]
    assert found == pytest.approx(cost + sum(losses(outer)), rel=1e-5)


def test_attach_of_the_rule_that_a_model_within_has_got_acts():
    inner, outer = nested()
    rule = keras.regularizers.L2(50.0)
    [cost] = fit(outer, X, Y, epochs=1)["loss"]
    attach(inner, rule)
    attach(outer, rule, where=[inner])
    [found] = fit(outer, X, Y, epochs=1)["loss"]
    assert found == pytest.approx(cost + 50.0 * squares(inner), rel=1e-5)


def test_change_of_the_model_around_acts_in_the_next_fit_of_the_one_within():
    inner, outer = nested()
    compiled(inner, 0.0)
    x, y = data(20, outputs=3)
    [cost] = fit(inner, x, y, epochs=1)["loss"]
    attach(outer, keras.regularizers.L2(50.0))
    [found] = fit(inner, x, y, ApplyL2(), epochs=1)["loss"]
    assert found == pytest.approx(cost + 50.0 * squares(inner), rel=1e-5)


# -------------------------------------------------------- what nobody can vouch for


def test_penalty_above_the_cost_is_told_with_the_remedy(capsys):
    _, outer = nested()
    fit(outer, X, Y, epochs=1)
    # Past this package, which would have left a mark.
    outer.layers[-1].kernel.regularizer = keras.regularizers.L2(500.0)
    fit(outer, X, Y, ApplyL2(), epochs=1)
    printed = capsys.readouterr().out
    if BACKEND == "torch":  # runs the layer's code in every step
        assert "of it penalty" in printed
        return
    assert "of it penalty" not in printed
    assert "less than the penalty" in printed
    assert "model.compile(...)" in printed
    compiled(outer, 0.0)
    fit(outer, X, Y, ApplyL2(), epochs=1)
    assert "of it penalty" in capsys.readouterr().out


if BACKEND != "torch":
    # Torch runs the layer's code in every step, compiled or not.

    @pytest.mark.parametrize("callback", [ApplyL2, CostMonitor])
    def test_what_is_compiled_after_a_change_within_serves_on(callback):
        counting = Counting()
        inner = keras.Sequential([keras.Input((4,)), counting, layers.Dense(3)])
        x = keras.Input((4,))
        outer = compiled(keras.Model(x, layers.Dense(1)(inner(x))), **QUICK)
        outer.optimizer.build(outer.trainable_variables)

        def traces(*callbacks):
            before = counting.traces
            fit(outer, X, Y, *callbacks, epochs=1)
            return counting.traces - before

        assert traces() > 0
        attach(inner, ScaledL2(5.0))
        assert traces(callback()) > 0
        traces()  # the model's own step, which the monitor did without
        assert [traces(*c) for c in ([callback()], [], [callback()])] == [0] * 3


# -------------------------------------------------------------- detach of several


@pytest.mark.parametrize("order", ["inner first", "outer first"])
def test_nothing_is_left_once_both_are_detached(order):
    stock = keras.regularizers.L2(0.5)
    inner, outer = nested()
    kernel = inner.layers[0].kernel
    for before in (None, stock):
        kernel.regularizer = inner.layers[0].kernel_regularizer = before
        attach(inner, ScaledL2(1.0))
        attach(outer, ScaledL2(2.0))
        if order == "inner first":
            # What the outer one has put on stays until that is detached.
            assert detach(inner) == [kernel.path]
            assert kernel.regularizer == ScaledL2(2.0)
            assert len(detach(outer)) == 2
        else:
            assert len(detach(outer)) == 2
            assert kernel.regularizer == ScaledL2(1.0)
            assert inner.layers[0].kernel_regularizer == ScaledL2(1.0)
            assert detach(inner) == [kernel.path]
        assert kernel.regularizer is before
        assert inner.layers[0].kernel_regularizer is before
        assert detach(inner) == detach(outer) == []
        kernel.regularizer = None
        assert outer.losses == []


def test_attach_in_turns_is_detached_without_a_rest():
    inner, outer = nested()
    kernel = inner.layers[0].kernel
    attach(inner, ScaledL2(1.0))
    attach(outer, ScaledL2(2.0))
    attach(inner, ScaledL2(3.0))
    detach(inner)
    assert kernel.regularizer == ScaledL2(2.0)
    attach(inner, ScaledL2(3.0))
    detach(outer)
    assert kernel.regularizer == ScaledL2(3.0)
    detach(inner)
    assert outer.losses == []
    assert inner.layers[0].kernel_regularizer is None


def test_detach_takes_off_what_a_model_that_is_gone_has_put_on():
    inner, outer = nested()
    attach(inner, ScaledL2(1.0))
    attach(outer, ScaledL2(2.0))
    del outer
    keras.backend.clear_session()
    gc.collect()
    detach(inner)
    assert inner.losses == []
    assert inner.layers[0].kernel_regularizer is None
