"""What is said of a penalty that is inert, against the training that follows."""

import math
import re

import keras
import numpy as np
import pytest
from keras import optimizers
from keras.optimizers import schedules
from test_efolds import BATCH, SAMPLES, model_of

from keras_scaled_l2 import ApplyL2, attach, cost_report, suggest
from keras_scaled_l2.efolds import e_folds, learning_rates

STEPS = SAMPLES // BATCH
ZEROS = np.zeros((SAMPLES, 8), "float32")


def rates_of_updates(rate, steps, accumulated=1, given=0):
    """Sum of the rates at which weights change, gradient by gradient.

    Keras looks a schedule up by the number of gradients it was given before.
    """
    called = range(given, given + steps)
    return math.fsum(rate(i) for i in called if (i + 1) % accumulated == 0)


def cosine(i, steps=160):
    return 0.1 * 0.5 * (1 + math.cos(math.pi * min(i, steps) / steps))


def halving(i):
    return 0.1 * 0.5 ** (i / 10)


def train(model, epochs, *callbacks, **options):
    """E-folds that the first weight of a model has shrunk by in a fit."""
    before = np.linalg.norm(model.get_weights()[0].astype("float64"))
    options = {"batch_size": BATCH, "verbose": 0, **options}
    model.fit(ZEROS, ZEROS[:, :1], epochs=epochs, callbacks=[*callbacks], **options)
    after = np.linalg.norm(model.get_weights()[0].astype("float64"))
    return math.log(before / after)


def said(text):
    """``(updates, e-folds)`` of what ApplyL2 or a finding says."""
    found = re.search(r"over the ([\d,]+) updates .*E = ([\d.e-]+) e-folds", text)
    return int(found[1].replace(",", "")), float(found[2])


# ------------------------------------------------- schedules under accumulation


@pytest.mark.parametrize(("steps", "given"), [(160, 0), (80, 80), (30, 3), (1001, 2)])
def test_schedule_is_looked_up_at_the_gradients_that_were_given(steps, given):
    accumulated = 4
    schedule = schedules.CosineDecay(0.1, 160)
    sgd = optimizers.SGD(schedule, gradient_accumulation_steps=accumulated)
    updates = (given + steps) // accumulated - given // accumulated
    expected = rates_of_updates(cosine, steps, accumulated, given)
    found = learning_rates(sgd, updates, given // accumulated)
    assert found == pytest.approx(expected, rel=1e-5)


def test_suggestion_under_a_schedule_and_accumulation_gives_its_e_folds():
    model = model_of(1)
    schedule = schedules.CosineDecay(0.1, 160)
    model.compile(optimizers.SGD(schedule, gradient_accumulation_steps=4), "mse")
    found = suggest(model, samples=SAMPLES, batch_size=BATCH, epochs=10)
    total = rates_of_updates(cosine, 160, 4)
    assert total == pytest.approx(1.975, rel=1e-5)
    assert found.strength == pytest.approx(1 / (2 * total), rel=0.005)
    attach(model, keras.regularizers.L2(found.strength))
    assert train(model, 10) == pytest.approx(1.0, rel=0.03)


def test_second_fit_under_a_schedule_and_accumulation_is_told_as_it_trains(capsys):
    model = model_of(1)
    attach(model, keras.regularizers.L2(0.02))
    schedule = schedules.ExponentialDecay(0.1, 10, 0.5)
    model.compile(optimizers.SGD(schedule, gradient_accumulation_steps=4), "mse")
    train(model, 10)
    train(model, 10, ApplyL2())
    updates, folds = said(capsys.readouterr().out)
    assert updates == 40
    expected = 2 * 0.02 * rates_of_updates(halving, 160, 4, given=160)
    assert folds == pytest.approx(expected, rel=0.05)


def test_updates_of_a_fit_that_begins_within_an_accumulation_are_counted(capsys):
    # 16 steps, and 4 of 5 gradients are waiting: 20 // 5 updates instead of 16 // 5.
    model = model_of(1)
    attach(model, keras.regularizers.L2(1e-4))
    model.compile(optimizers.SGD(0.1, gradient_accumulation_steps=5), "mse")
    train(model, 1, steps_per_epoch=4)
    folds = train(model, 1, ApplyL2())
    updates, told = said(capsys.readouterr().out)
    assert updates == 4
    assert told == pytest.approx(2e-4 * 0.1 * 4, rel=0.05)
    assert folds == pytest.approx(told, abs=1e-6)


# ------------------------------------------------------- fewer steps than an update


@pytest.mark.parametrize("rate", [0.1, schedules.CosineDecay(0.1, 160)])
def test_fit_without_an_update_is_not_broken_by_an_estimate(rate, capsys):
    model = model_of(1)
    model.compile(optimizers.SGD(rate, gradient_accumulation_steps=8), "mse")
    callback = ApplyL2(keras.regularizers.L2(0.1))
    assert train(model, 1, callback, batch_size=16) == 0
    assert "inert" not in capsys.readouterr().out


@pytest.mark.parametrize("rate", [0.1, schedules.CosineDecay(0.1, 160)])
def test_report_and_e_folds_of_a_training_without_an_update(rate):
    model = model_of(1)
    attach(model, keras.regularizers.L2(0.1))
    sgd = optimizers.SGD(rate, gradient_accumulation_steps=8)
    model.compile(sgd, "mse")
    assert e_folds(0.1, sgd, 0) == 0
    counts = {"samples": SAMPLES, "batch_size": 16, "epochs": 1}
    assert "inert" not in {f.name for f in cost_report(model, **counts).findings}


@pytest.mark.parametrize("rate", [0.1, schedules.CosineDecay(0.1, 160)])
def test_suggestion_for_a_training_without_an_update_says_so(rate):
    model = model_of(1)
    model.compile(optimizers.SGD(rate, gradient_accumulation_steps=8), "mse")
    with pytest.raises(ValueError, match=r"8 steps: no .*epochs=2") as error:
        suggest(model, samples=SAMPLES, batch_size=16, epochs=1)
    assert "learning rate" not in str(error.value)
    # The remedy it names is one.
    suggest(model, samples=SAMPLES, batch_size=16, epochs=2)


# ----------------------------------------------------- which training is to come


def test_report_takes_a_schedule_as_far_as_the_optimizer_has_come(capsys):
    model = model_of(1)
    attach(model, keras.regularizers.L2(0.05))
    schedule = schedules.ExponentialDecay(0.1, 10, 0.5)
    model.compile(optimizers.SGD(schedule), "mse")
    counts = {"samples": SAMPLES, "batch_size": BATCH, "epochs": 5}
    assert "inert" not in {f.name for f in cost_report(model, **counts).findings}
    train(model, 5)
    (finding,) = [f for f in cost_report(model, **counts).findings if f.name == "inert"]
    updates, folds = said(finding.text)
    assert updates == 80
    expected = 2 * 0.05 * rates_of_updates(halving, 80, given=80)
    assert folds == pytest.approx(expected, rel=0.05)
    # ApplyL2 says the same.
    train(model, 5, ApplyL2())
    assert finding.text in capsys.readouterr().out


L2_OF_E = keras.regularizers.L2


def compiled(c=None, rate=0.1, **options):
    model = model_of(1)
    if c is not None:
        attach(model, L2_OF_E(c))
    model.compile(optimizers.SGD(rate), "mse", **options)
    return model


def test_epochs_before_the_initial_one_are_not_to_come(capsys):
    # E of all 1000 epochs is 0.32, of the two that are trained 0.00064.
    model = compiled()
    folds = train(model, 1000, ApplyL2(L2_OF_E(1e-4)), initial_epoch=998)
    updates, told = said(capsys.readouterr().out)
    assert updates == 2 * STEPS
    assert told == pytest.approx(2 * 1e-4 * 0.1 * 2 * STEPS, rel=0.02)
    assert folds == pytest.approx(told, rel=0.02)


def test_epochs_that_a_backup_has_trained_are_not_to_come(tmp_path, capsys):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 27:
                raise KeyboardInterrupt

    def backup():
        return keras.callbacks.BackupAndRestore(str(tmp_path))

    schedule = schedules.ExponentialDecay(0.1, 100, 0.5)
    rule = L2_OF_E(0.005)
    with pytest.raises(KeyboardInterrupt):
        train(compiled(rate=schedule), 30, ApplyL2(rule), backup(), Stop())
    assert "inert" not in capsys.readouterr().out
    # Whichever comes first: the backup sets the epoch as the training begins.
    train(compiled(rate=schedule), 30, ApplyL2(rule), backup())
    updates, told = said(capsys.readouterr().out)
    assert updates in (2 * STEPS, 3 * STEPS)
    given = 30 * STEPS - updates
    total = rates_of_updates(lambda i: 0.1 * 0.5 ** (i / 100), updates, given=given)
    assert told == pytest.approx(2 * 0.005 * total, rel=0.05)


class Weighing(keras.Sequential):
    """A model whose loss holds a fraction of the penalties."""

    factor = 1e-4

    def compute_loss(self, x=None, y=None, y_pred=None, **options):
        data = keras.ops.mean(keras.ops.square(y - y_pred))
        return data + self.factor * keras.ops.sum(keras.ops.stack(self.losses))


@pytest.mark.parametrize(("factor", "c"), [(1e-4, 1.0), (0.5, 1.0), (100.0, 1e-4)])
def test_penalty_counts_with_the_weight_that_the_loss_gives_it(factor, c, capsys):
    layer = keras.layers.Dense(1, use_bias=False, kernel_regularizer=L2_OF_E(c))
    model = Weighing([keras.Input((8,)), layer])
    model.factor = factor
    model.compile(optimizers.SGD(0.1))
    folds = train(model, 1, ApplyL2())
    text = capsys.readouterr().out
    assert ("inert" in text) is (folds < 0.02)
    if "inert" in text:
        updates, told = said(text)
        assert updates == STEPS
        assert told == pytest.approx(folds, rel=0.02)


def test_penalty_that_the_loss_drops_is_told_as_that_and_not_as_inert(capsys):
    layer = keras.layers.Dense(1, use_bias=False, kernel_regularizer=L2_OF_E(1e-5))
    model = Weighing([keras.Input((8,)), layer])
    model.factor = 0.0
    model.compile(optimizers.SGD(0.1))
    train(model, 1, ApplyL2())
    text = capsys.readouterr().out
    assert "does not act" in text
    assert "inert" not in text
