"""E-folds against a training that is done, the suggestion, and the guidance."""

import math
import re

import keras
import numpy as np
import pytest

from keras_scaled_l2 import (
    ApplyL2,
    HalfLifeL2,
    PriorL2,
    SampleL2,
    ScaledL2,
    attach,
    bind,
    cost_report,
    penalized,
    suggest,
)
from keras_scaled_l2.efolds import e_folds, e_folds_of_decay, learning_rates
from keras_scaled_l2.rule import effective_coefficient

pytestmark = pytest.mark.once
SAMPLES, BATCH, EPOCHS = 64, 4, 40
UPDATES = EPOCHS * SAMPLES // BATCH


def model_of(*units):
    layers = [keras.layers.Dense(n, use_bias=False) for n in units]
    return keras.Sequential([keras.Input((8,)), *layers])


def shrunk(optimizer, c):
    """E-folds that a weight without data gradient has really shrunk by."""
    model = model_of(1)
    attach(model, keras.regularizers.L2(c))
    model.compile(optimizer, "mse")
    before = np.linalg.norm(model.get_weights()[0])
    zeros = np.zeros((SAMPLES, 8), "float32")
    model.fit(zeros, zeros[:, :1], batch_size=BATCH, epochs=EPOCHS, verbose=0)
    return math.log(before / np.linalg.norm(model.get_weights()[0]))


@pytest.mark.everywhere
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_e_folds_are_what_a_weight_without_data_shrinks_by(momentum):
    sgd = keras.optimizers.SGD(0.01, momentum=momentum)
    c = 0.05 * (1 - momentum)
    expected = e_folds(c, sgd, UPDATES)
    assert expected == pytest.approx(2 * 0.05 * UPDATES * 0.01)
    assert shrunk(sgd, c) == pytest.approx(expected, rel=0.03)


@pytest.mark.everywhere
def test_e_folds_follow_a_schedule():
    schedule = keras.optimizers.schedules.CosineDecay(0.02, UPDATES)
    sgd = keras.optimizers.SGD(schedule)
    # Of a falling rate the first step has the most: half a step more than half.
    exact = 0.01 * (UPDATES + 1)
    assert learning_rates(sgd, UPDATES) == pytest.approx(exact, rel=1e-4)
    assert shrunk(sgd, 0.2) == pytest.approx(e_folds(0.2, sgd, UPDATES), rel=0.02)
    # The second half of it is the smaller one.
    assert learning_rates(sgd, UPDATES // 2, UPDATES // 2) < 0.2 * 0.01 * UPDATES


def test_decoupled_decay_has_e_folds_under_adam():
    adam = keras.optimizers.Adam(0.01, weight_decay=0.1)
    expected = e_folds_of_decay(0.1, adam, UPDATES)
    assert expected == pytest.approx(0.1 * 0.01 * UPDATES)
    assert shrunk(adam, 0.0) == pytest.approx(expected, rel=0.01)


def test_stand_in_of_adam_grows_with_the_root_of_the_weights():
    adam = keras.optimizers.Adam(0.001)
    assert e_folds(0.01, adam, 1000, weights=10_000) == pytest.approx(2.0)


RULES = {
    "l2": None,
    "scaled": ScaledL2(1.0),
    "model": ScaledL2(3.0, per="model", power=0.5),
    "sample": SampleL2(1.0),
    "prior": PriorL2(2.0),
    "half_life": HalfLifeL2(1.0),
}


@pytest.mark.parametrize("name", list(RULES))
def test_suggested_strength_gives_the_e_folds_that_were_asked_for(name):
    model = model_of(16, 2)
    sgd = keras.optimizers.SGD(0.01, momentum=0.5)
    model.compile(sgd, "mse")
    given = {"samples": SAMPLES, "batch_size": BATCH}
    found = suggest(model, **given, epochs=EPOCHS, rule=RULES[name], e_folds=0.5)
    assert penalized(model) == []
    kinds = {"ScaledL2": ScaledL2, "SampleL2": SampleL2, "PriorL2": PriorL2}
    made = eval(found.rule, {"keras": keras, "HalfLifeL2": HalfLifeL2, **kinds})
    attach(model, made)
    bind(model, **given)
    weights = [(v, effective_coefficient(r, v.shape)) for _, v, r in penalized(model)]
    counts = [math.prod(v.shape) for v, _ in weights]
    mean = np.average([c for _, c in weights], weights=counts)
    assert e_folds(mean, sgd, UPDATES) == pytest.approx(0.5, rel=0.01)
    assert found.coefficient == pytest.approx(
        (min(c for _, c in weights), max(c for _, c in weights)), rel=0.01
    )
    # From a tenth of the e-folds to ten times.
    steps = np.sign(np.diff(found.grid))
    assert abs(steps.sum()) == len(found.grid) - 1
    assert found.strength in found.grid
    assert found.rule in str(found)


@pytest.mark.everywhere
def test_suggestion_leaves_the_model_as_it_was():
    model = model_of(16, 2)
    before = keras.regularizers.L2(0.5)
    attach(model, before)
    suggest(
        model, samples=9, batch_size=3, epochs=1, optimizer=keras.optimizers.SGD(0.1)
    )
    assert [r for *_, r in penalized(model)] == [before, before]


def test_suggestion_for_a_regularizer_that_tells_no_strength_is_refused():
    class Own(keras.regularizers.Regularizer):
        def __call__(self, x):
            return keras.ops.sum(x)

    sgd = keras.optimizers.SGD(0.1)
    options = {"samples": 10, "batch_size": 5, "epochs": 1, "optimizer": sgd}
    with pytest.raises(ValueError, match="has no strength above 0 to change"):
        suggest(model_of(2), rule=Own(), **options)


@pytest.mark.parametrize("kind", ["Ftrl", "Adam"])
def test_decay_that_is_advised_shrinks_as_it_is_said(kind):
    model = model_of(4, 1)
    optimizer = getattr(keras.optimizers, kind)(0.01)
    counts = {"samples": SAMPLES, "batch_size": BATCH, "epochs": EPOCHS}
    found = suggest(model, **counts, optimizer=optimizer)
    named = re.search(r"(Its|With (\w+), a) decoupled weight_decay=(\S+) ", str(found))
    advised = getattr(keras.optimizers, named[2] or kind)
    optimizer = advised(0.01, weight_decay=float(named[3]))
    assert shrunk(optimizer, 0.0) == pytest.approx(1.0, rel=0.01)


def test_suggestion_for_adam_says_what_it_does_not_know():
    text = str(
        suggest(
            model_of(4),
            samples=100,
            batch_size=10,
            epochs=10,
            optimizer=keras.optimizers.Adam(0.01),
        )
    )
    assert "order of magnitude" in text
    assert "weight_decay=1 " in text


@pytest.mark.parametrize(
    ("units", "samples", "optimizer", "said"),
    [
        (5000, 1500, "sgd", ("would be c = 0.002 here", "stands in docs/atlas.md")),
        (5000, 1500, "adam", ("would be c = 0.002 here", "is silent")),
        (5000, 20_000, "sgd", ("is silent",)),
        (4, 1500, "sgd", ("is silent",)),
    ],
)
def test_suggestion_names_the_atlas_as_far_as_it_was_measured(
    units, samples, optimizer, said
):
    text = suggest(
        model_of(units),
        samples=samples,
        batch_size=10,
        epochs=10,
        optimizer=keras.optimizers.get(optimizer),
    ).reason
    parts = ("would be c = 0.002 here", "stands in docs/atlas.md", "is silent")
    assert tuple(p for p in parts if p in text) == said
    assert ("would be" in text) == ("would be c = 0.002 here" in said)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": None}, "expected a Keras optimizer"),
        ({"epochs": 0}, "epochs=0"),
        ({"samples": -1}, "samples=-1"),
        ({"e_folds": 0.0}, "e_folds=0"),
        ({"rule": keras.regularizers.L1(0.1)}, "has no strength above 0"),
        ({"rule": SampleL2(0.0)}, "has no strength above 0"),
    ],
)
def test_suggestion_of_wrong_input_is_refused(options, message):
    given = {"samples": 9, "batch_size": 3, "epochs": 1}
    given["optimizer"] = keras.optimizers.SGD(0.1)
    with pytest.raises(ValueError, match=message):
        suggest(model_of(4), **(given | options))


@pytest.mark.everywhere
def test_apply_l2_says_that_a_penalty_is_inert_and_what_is_not(capsys):
    x = np.ones((SAMPLES, 8), "float32")
    for c, inert in ((1e-5, True), (1e-2, False)):
        model = model_of(1)
        model.compile(keras.optimizers.SGD(0.05), "mse")
        model.fit(
            x,
            x[:, :1],
            batch_size=BATCH,
            epochs=2,
            verbose=0,
            callbacks=[ApplyL2(keras.regularizers.L2(c))],
        )
        text = capsys.readouterr().out
        assert ("inert" in text) is inert
        if inert:
            # E = 2 c T lr with T = 32.
            assert "32 updates" in text
            assert f"c = {1 / (2 * 32 * 0.05):.3g}" in text


def test_cost_report_finds_an_inert_penalty_over_the_training_to_come():
    model = model_of(1)
    model.compile(keras.optimizers.SGD(0.05), "mse")
    attach(model, keras.regularizers.L2(1e-4))
    counts = {"samples": SAMPLES, "batch_size": BATCH}

    def names(**options):
        return {f.name for f in cost_report(model, **counts, **options).findings}

    assert "inert" not in names()
    assert "inert" in names(epochs=2)
    # The same penalty acts in a training that is long enough.
    assert "inert" not in names(epochs=1000)


# ------------------------------------------- an optimizer that is not the compiled one

SGD = keras.optimizers.SGD
OTHERS = {
    "accumulation": (SGD(0.1), lambda: SGD(0.1, gradient_accumulation_steps=4)),
    "no accumulation": (SGD(0.1, gradient_accumulation_steps=4), lambda: SGD(0.1)),
    "loss scale": (
        SGD(0.3),
        lambda: keras.optimizers.LossScaleOptimizer(SGD(0.1), initial_scale=2.0),
    ),
    "momentum": (SGD(0.1, momentum=0.9), lambda: SGD(0.02, momentum=0.5)),
    "beside Adam": (keras.optimizers.Adam(0.1), lambda: SGD(0.1)),
    "of a model that is not compiled": (None, lambda: SGD(0.1)),
}


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        *((name, None) for name in OTHERS),
        # A rule that finds the optimizer's numbers itself, and one that counts.
        ("accumulation", HalfLifeL2(3.0)),
        ("momentum", HalfLifeL2(3.0)),
        ("beside Adam", HalfLifeL2(3.0)),
        ("no accumulation", ScaledL2(1.0)),
    ],
    ids=repr,
)
def test_suggestion_is_for_the_optimizer_that_is_passed(name, rule):
    compiled, other = OTHERS[name]
    model = model_of(1)
    if compiled is not None:
        model.compile(type(compiled).from_config(compiled.get_config()), "mse")
    epochs = 25
    found = suggest(
        model,
        samples=SAMPLES,
        batch_size=BATCH,
        epochs=epochs,
        rule=rule,
        optimizer=other(),
    )
    # What a training with it makes of a weight that the data do not drive.
    made = eval(found.rule, {f.__name__: f for f in (ScaledL2, HalfLifeL2)} | KERAS)
    model.compile(other(), "mse")
    before = model.get_weights()[0]
    zeros = np.zeros((SAMPLES, 8), "float32")
    options = {"batch_size": BATCH, "epochs": epochs, "verbose": 0}
    model.fit(zeros, zeros[:, :1], callbacks=[ApplyL2(made)], **options)
    after = model.get_weights()[0]
    folds = math.log(np.linalg.norm(before) / np.linalg.norm(after))
    assert folds == pytest.approx(1.0, rel=0.03)


KERAS = {"keras": keras}


def test_suggested_half_life_is_that_of_the_optimizer_that_is_passed():
    model = model_of(1)
    model.compile(SGD(0.1, momentum=0.9), "mse")
    other = SGD(0.02, momentum=0.5)
    counts = {"samples": SAMPLES, "batch_size": BATCH, "epochs": 10}
    found = suggest(model, **counts, rule=HalfLifeL2(3.0), optimizer=other)
    # A half-life of ln 2 trainings is one e-fold a training, whatever the optimizer.
    assert found.strength == pytest.approx(10 * math.log(2), rel=0.001)


@pytest.mark.parametrize("rule", ["l2", keras.regularizers.l2, lambda w: 0.0, 0.01])
def test_suggestion_for_what_is_no_regularizer_is_refused_as_by_attach(rule):
    model = model_of(1)
    model.compile(SGD(0.1), "mse")
    messages = []
    for call in (
        lambda: attach(model, rule),
        lambda: suggest(model, samples=9, batch_size=3, epochs=1, rule=rule),
    ):
        with pytest.raises(TypeError, match="expected a regularizer such as") as error:
            call()
        messages.append(str(error.value))
    assert messages[0] == messages[1]
