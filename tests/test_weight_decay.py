"""Decoupled weight decay as an arm: what Keras's own optimizers do, and no more."""

import keras
import numpy as np
import pytest
from engines import (
    BATCH,
    OPTIMIZERS,
    job,
    make_network,
    make_problem,
    ordinary_fit,
    shared_engine,
    train,
)

from keras_scaled_l2.experiments import Arm, compare
from keras_scaled_l2.experiments.coefficients import penalizable
from keras_scaled_l2.experiments.errors import InputError


def trained(setting=None, c=0.0, optimizer="sgd", *, drops=False, decays=True):
    """The weights after two epochs, and what else the job left."""
    engine = shared_engine(optimizer=optimizer, drops=drops, decays=decays)
    one = job(make_problem(), dict.fromkeys(engine.names, c), **(setting or {}))
    found = train(engine, one)
    return found.weights, found


def plain(optimizer, decay, c=0.0):
    """The weights of a Keras model that is trained in the ordinary way."""
    model = make_network(make_problem())
    made = OPTIMIZERS[optimizer](weight_decay=decay)
    biases = [v for v in model.trainable_variables if v.path.endswith("bias")]
    made.exclude_from_weight_decay(var_list=biases)
    assert len(biases) == 2
    coefficients = dict.fromkeys(penalizable(model), c)
    return ordinary_fit(
        model, make_problem(), coefficients, optimizer=made, seed=2, epochs=2
    )


def assert_close(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_weights_are_those_of_a_plain_model_with_weight_decay(optimizer):
    found, left = trained({"weight_decay": 0.3}, optimizer=optimizer)
    assert_close(found, plain(optimizer, 0.3))
    # It is no part of the cost.
    assert set(left.curves["penalty"]) == {0.0}
    # And it does something that a plain model without it does not.
    without = plain(optimizer, None)
    assert any(np.abs(a - b).max() > 0.01 for a, b in zip(found, without, strict=True))


def test_penalty_and_decay_may_be_joined():
    assert_close(trained({"weight_decay": 0.1}, 0.02)[0], plain("sgd", 0.1, c=0.02))


def test_variant_with_dropout_decays_the_same_weights():
    plain_one, _ = trained({"weight_decay": 0.3})
    variant, _ = trained({"weight_decay": 0.3}, drops=True)
    for one, other in zip(plain_one, variant, strict=True):
        np.testing.assert_array_equal(one, other)
    dropped, _ = trained({"weight_decay": 0.3, "dropout": 0.5}, drops=True)
    assert any(np.any(a != b) for a, b in zip(variant, dropped, strict=True))


def options(**changed):
    return {
        "problem": make_problem(),
        "batch_size": BATCH,
        "hidden": (6,),
        "epochs": 2,
        "seeds": 1,
        "progress": False,
        **changed,
    }


def test_named_arm_is_the_arm_written_out():
    mine = Arm("mine", weight_decay=0.3)
    found = compare(arms=["none", "decay", mine], strengths={"decay": 0.3}, **options())
    none, decay, own = (arm.runs[0] for arm in found.arms)
    assert (decay.test, decay.curves) == (own.test, own.curves)
    assert decay.test != none.test
    assert decay.starting_cost == none.starting_cost
    assert found["decay"].weight_decay == 0.3
    assert decay.coefficients == {}
    assert decay.weight_norms["end"] < none.weight_norms["end"]


def test_optimizer_with_decay_of_its_own_is_for_arms_without():
    adamw = keras.optimizers.AdamW(0.01)
    with pytest.raises(InputError, match="expected an optimizer without"):
        compare(arms=["none", "decay"], **options(optimizer=adamw))
    compare(arms=["none"], **options(optimizer=adamw))
