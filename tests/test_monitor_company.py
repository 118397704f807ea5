"""CostMonitor among other callbacks, and when something breaks."""

import collections
import csv

import keras
import numpy as np
import pytest
from event_files import scalars
from models import compiled, data, hidden
from second_pass import gradients
from test_gradient_norms import BACKEND, GRADIENT, QUICK, RATE, fit, linear, steps

from keras_scaled_l2 import ApplyL2, CostMonitor, SampleL2, ScaledL2, attach
from keras_scaled_l2.tensorboard import EventFile

C = 0.4


def model_and_data(learning_rate=0.05):
    x, y = data(12)
    return linear(ScaledL2(C, per=1), learning_rate=learning_rate), x, y


def data_norm(model, x, y):
    """The norm of the data gradient on the first batch, by a second backward pass."""
    unpenalized = linear()
    unpenalized.set_weights(model.get_weights())
    norms = [np.linalg.norm(g) for g in gradients(unpenalized, x[:4], y[:4])]
    return np.linalg.norm(norms)


def state(model):
    """All that a monitor could leave behind."""
    return (
        set(vars(model)),
        set(vars(model.optimizer)),
        model.metrics,
        model.optimizer.apply,
        model.train_step,
        model.compute_loss,
    )


def is_readable_and_whole(log_dir):
    """Whether no curve of a run has two points of one step."""
    curves = scalars(log_dir)
    repeated = {
        tag: counts
        for tag, curve in curves.items()
        if (counts := collections.Counter(steps(curve))).most_common(1)[0][1] > 1
    }
    assert not repeated
    return True


# ------------------------------------------------------------------- other callbacks


@pytest.mark.parametrize("first", [True, False], ids=["monitor first", "monitor last"])
def test_callbacks_that_watch_the_logs_see_the_parts(first, tmp_path):
    x, y = data(12)
    model = linear(ScaledL2(C), learning_rate=1e-30)
    others = [
        keras.callbacks.EarlyStopping(monitor="val_data_loss", patience=4),
        keras.callbacks.ReduceLROnPlateau(
            monitor="val_data_loss", mode="min", patience=2, factor=0.5
        ),
        keras.callbacks.ModelCheckpoint(
            tmp_path / "best.keras", monitor="val_data_loss", save_best_only=True
        ),
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
        keras.callbacks.TerminateOnNaN(),
    ]
    monitor = CostMonitor(tmp_path / "logs")
    callbacks = [monitor, *others] if first else [*others, monitor]
    history = fit(model, x, y, *callbacks, epochs=9, validation_data=(x, y))
    # Nothing gets better at such a rate: the first epoch is the best.
    assert len(history["loss"]) == 5
    with open(tmp_path / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for name in ("data_loss", "penalty", "val_data_loss", "val_penalty"):
        assert [float(row[name]) for row in rows] == pytest.approx(history[name])
    assert keras.models.load_model(tmp_path / "best.keras").compiled
    rates = [value for _, value in scalars(tmp_path / "logs")[RATE]]
    assert rates[-1] < rates[0]


def test_backup_and_restore_resumes_a_monitored_training(tmp_path):
    class Break(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                raise Broken

    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path / "backup")

    whole, x, y = model_and_data()
    fit(whole, x, y, CostMonitor(tmp_path / "whole"), epochs=4)
    model, _, _ = model_and_data()
    with pytest.raises(Broken):
        fit(model, x, y, CostMonitor(tmp_path / "logs"), backup(), Break(), epochs=4)
    again, _, _ = model_and_data()
    history = fit(again, x, y, CostMonitor(tmp_path / "logs"), backup(), epochs=4)
    assert len(history["data_loss"]) == 2
    for a, b in zip(again.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    expected, found = scalars(tmp_path / "whole"), scalars(tmp_path / "logs")
    # The curves go on where they were, as if nothing had happened.
    for tag in (GRADIENT, "cost/total", RATE):
        assert steps(found[tag]) == steps(expected[tag])
        values = [[value for _, value in run[tag]] for run in (found, expected)]
        assert values[0] == pytest.approx(values[1], rel=1e-4)


if BACKEND == "tensorflow":

    def test_kerass_tensorboard_in_the_same_directory(tmp_path):
        model, x, y = model_and_data()
        bare, _, _ = model_and_data()
        theirs = keras.callbacks.TensorBoard(tmp_path, histogram_freq=1)
        fit(bare, x, y, validation_data=(x, y))
        fit(model, x, y, CostMonitor(tmp_path), theirs, validation_data=(x, y))
        for a, b in zip(model.get_weights(), bare.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
        assert steps(scalars(tmp_path)[GRADIENT]) == [0, 3]
        assert steps(scalars(tmp_path, "validation")["cost/data"]) == [3, 6]
        assert len(list((tmp_path / "train").iterdir())) == 2


@pytest.mark.parametrize("first", [True, False], ids=["monitor first", "monitor last"])
def test_rule_of_apply_is_measured_from_the_first_step(first, tmp_path):
    x, y = data(12)
    model = linear()
    norm = data_norm(model, x, y)
    monitor, apply = CostMonitor(tmp_path), ApplyL2(SampleL2(6.0))
    fit(model, x, y, *([monitor, apply] if first else [apply, monitor]), epochs=1)
    found = scalars(tmp_path)
    assert found[GRADIENT] == [(0, pytest.approx(norm, rel=1e-4))]
    penalized = [tag for tag in found if tag.startswith("gradient_norm/penalty/")]
    assert len(penalized) == 1
    for tag in penalized:
        [(_, weight)] = found[tag.replace("gradient_norm/penalty", "weight_norm")]
        # c = lambda / (2 m) = 6 / 24.
        assert found[tag] == [(0, pytest.approx(2 * 0.25 * weight, rel=1e-6))]


class Recompile(keras.callbacks.Callback):
    """Another optimizer and a thawed layer from the second epoch on."""

    def __init__(self, when):
        super().__init__()
        setattr(self, when, self.recompile)

    def recompile(self, epoch, logs=None):
        if not self.model.layers[0].trainable:
            self.model.layers[0].trainable = True
            self.model.compile(keras.optimizers.SGD(0.01), "mse", **QUICK)
            # As Keras itself needs it in the middle of a fit.
            self.model.optimizer.build(self.model.trainable_variables)
            self.model.make_train_function()


@pytest.mark.parametrize("first", [True, False], ids=["monitor first", "monitor last"])
def test_step_that_another_callback_remakes_is_measured_again(first, tmp_path):
    x, y = data(12)
    model = hidden(keras.regularizers.L2(C), ScaledL2(C, per=1))
    model.layers[0].trainable = False
    compiled(model, **QUICK)
    before = model.optimizer
    fit(model, x, y, epochs=1, validation_data=(x, y))
    untouched = state(model)
    monitor, other = CostMonitor(tmp_path), Recompile("on_epoch_end")
    history = fit(
        model,
        x,
        y,
        *([monitor, other] if first else [other, monitor]),
        epochs=3,
        validation_data=(x, y),
    )
    total = np.add(history["data_loss"], history["penalty"])
    np.testing.assert_allclose(total, history["loss"], rtol=1e-5)
    found = scalars(tmp_path)
    assert len(found[GRADIENT]) == 3
    path = model.layers[0].kernel.path
    # Frozen in the first epoch, and penalized since.
    assert len(found[f"gradient_norm/penalty/{path}"]) == 2
    assert model.optimizer is not before
    assert "apply" not in vars(before)
    assert state(model)[:2] == untouched[:2]
    assert "train_step" not in vars(model)


class Attach(keras.callbacks.Callback):
    """Another strength for each epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        attach(self.model, SampleL2(1.0 + epoch, samples=12))


@pytest.mark.parametrize("frequency", ["epoch", 1])
def test_monitor_before_a_callback_that_remakes_each_epochs_step_says_so(
    frequency, tmp_path
):
    model = compiled(hidden())
    monitor = CostMonitor(tmp_path / "first", update_freq=frequency)
    with pytest.warns(UserWarning, match="measured nothing.*Put CostMonitor after"):
        fit(model, *data(12), monitor, Attach(), epochs=2)
    assert "global/gradient_norm/data" not in scalars(tmp_path / "first")
    monitor = CostMonitor(tmp_path / "last", update_freq=frequency)
    fit(model, *data(12), Attach(), monitor, epochs=2)
    assert "global/gradient_norm/data" in scalars(tmp_path / "last")


class Scaled(keras.layers.Layer):
    """Times a number that a compiled step does not read again."""

    factor = 1.0

    def call(self, x):
        return self.factor * x


class Retrace(keras.callbacks.Callback):
    """Another number from the second epoch on, in a step made anew."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            self.model.layers[0].factor = 3.0
            self.model.make_train_function(force=True)


@pytest.mark.parametrize("first", [True, False], ids=["monitor first", "monitor last"])
def test_step_that_is_remade_for_what_no_key_knows_is_not_the_old_one(first, tmp_path):
    x, y = data(12)

    def trained(*callbacks):
        keras.utils.set_random_seed(5)
        unit = keras.layers.Dense(1, kernel_regularizer=ScaledL2(C))
        model = keras.Sequential([keras.Input((4,)), Scaled(), unit])
        fit(compiled(model, **QUICK), x, y, *callbacks, epochs=3)
        return model.get_weights()

    monitor, expected = CostMonitor(tmp_path), trained(Retrace())
    if first:
        with pytest.warns(UserWarning, match="measured nothing"):
            found = trained(monitor, Retrace())
    else:
        found = trained(Retrace(), monitor)
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_unbuilt_model_is_measured_from_its_first_step(tmp_path):
    x, y = data(12)

    def unbuilt():
        keras.utils.set_random_seed(5)
        return compiled(hidden(ScaledL2(C), ScaledL2(C), build=False), **QUICK)

    bare, model = unbuilt(), unbuilt()
    fit(bare, x, y)
    fit(model, x, y, CostMonitor(tmp_path))
    assert steps(scalars(tmp_path)[GRADIENT]) == [0, 3]
    for a, b in zip(model.get_weights(), bare.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- broken off trainings


class Broken(Exception):
    """Ends a fit from within."""


class BreakAt(keras.callbacks.Callback):
    """Raises before the second batch of the second epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if (self.epoch, batch) == (1, 1):
            raise Broken


@pytest.mark.parametrize("same", [True, False], ids=["same callback", "a new one"])
def test_training_that_breaks_off_has_logged_and_the_next_is_right(same, tmp_path):
    model, x, y = model_and_data()
    fit(model, x, y, epochs=1, validation_data=(x, y))
    untouched = state(model)
    monitor = CostMonitor(tmp_path / "first")
    with pytest.raises(Broken):
        fit(model, x, y, monitor, BreakAt(), epochs=3)
    # Nobody has closed the file: what was measured is there all the same.
    logged = scalars(tmp_path / "first")
    assert steps(logged[GRADIENT]) == [3, 6]
    assert steps(logged["cost/total"]) == [6]
    norm = data_norm(model, x, y)
    start = int(keras.ops.convert_to_numpy(model.optimizer.iterations))
    assert start == 7
    if not same:
        monitor = CostMonitor(tmp_path / "second")
    history = fit(model, x, y, monitor, validation_data=(x, y))
    total = np.add(history["data_loss"], history["penalty"])
    np.testing.assert_allclose(total, history["loss"], rtol=1e-5)
    found = scalars(tmp_path / ("first" if same else "second"))
    assert steps(found[GRADIENT])[-2:] == [7, 10]
    assert steps(found["cost/total"])[-2:] == [10, 13]
    assert found[GRADIENT][-2][1] == pytest.approx(norm, rel=1e-4)
    if not same:
        # What the first monitor left does not write on.
        assert scalars(tmp_path / "first") == logged
        assert is_readable_and_whole(tmp_path / "second")
    assert state(model) == untouched


def test_training_after_a_broken_one_is_right_without_a_monitor(tmp_path):
    finals = []
    for callbacks in ([], [CostMonitor(tmp_path)]):
        model, x, y = model_and_data()
        with pytest.raises(Broken):
            fit(model, x, y, *callbacks, BreakAt())
        fit(model, x, y)
        finals.append(model.get_weights())
    for a, b in zip(*finals, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_fit_after_a_broken_one_is_in_no_curve_of_its_monitor(tmp_path):
    model, x, y = model_and_data()
    with pytest.raises(Broken):
        fit(model, x, y, CostMonitor(tmp_path, update_freq=1), BreakAt())
    logged = scalars(tmp_path)
    assert steps(logged[GRADIENT]) == [0, 1, 2, 3]
    fit(model, x, y)
    model.train_on_batch(x, y)
    assert scalars(tmp_path) == logged


def test_training_that_breaks_off_thrice_leaves_nothing_after_the_fourth(tmp_path):
    model, x, y = model_and_data()
    fit(model, x, y, epochs=1, validation_data=(x, y))
    untouched = state(model)
    for number in range(3):
        with pytest.raises(Broken):
            fit(model, x, y, CostMonitor(tmp_path / str(number)), BreakAt())
    # One that measures nothing removes what the others left, before it trains.
    logged = scalars(tmp_path / "2")
    measuring = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            measuring.extend(m for m in self.model.metrics if "gradient" in m.name)

    fit(model, x, y, CostMonitor(), Look(), validation_data=(x, y))
    assert measuring == []
    assert scalars(tmp_path / "2") == logged
    assert state(model) == untouched
    assert set(fit(model, x, y)) == {"loss"}


# ------------------------------------------------------------------------ broken disks


class FullDisk:
    """Lets so many writes through; then the disk is full, for every file."""

    def __init__(self, monkeypatch, writes):
        self.left = writes
        write = EventFile._write

        def limited(file, event):
            if not self.left:
                raise OSError(28, "No space left on device")
            self.left -= 1
            write(file, event)

        monkeypatch.setattr(EventFile, "_write", limited)


# In the head of the file, in the first measured step, at the end of an epoch, and
# when the file of the validation is made.
@pytest.mark.parametrize("writes", [1, 4, 5, 6])
def test_disk_that_fills_gives_one_warning_and_training_goes_on(
    writes, tmp_path, monkeypatch
):
    bare, x, y = model_and_data()
    model, _, _ = model_and_data()
    expected = fit(bare, x, y, epochs=3, validation_data=(x, y))
    FullDisk(monkeypatch, writes)
    with pytest.warns(UserWarning, match="No space left") as caught:
        history = fit(
            model, x, y, CostMonitor(tmp_path), epochs=3, validation_data=(x, y)
        )
    assert len([w for w in caught if w.category is UserWarning]) == 1
    for name in ("loss", "val_loss"):
        assert history[name] == pytest.approx(expected[name], rel=1e-5)
    assert len(history["val_data_loss"]) == 3
    # What was written before can be read.
    assert len(list((tmp_path / "train").iterdir())) == 1
    scalars(tmp_path)


@pytest.mark.parametrize("gradients", [True, False])
def test_directory_that_cannot_be_made_fails_before_training(gradients, tmp_path):
    (tmp_path / "file").write_text("in the way")
    model, x, y = model_and_data()
    fit(model, x, y, epochs=1)
    weights, untouched = model.get_weights(), state(model)
    monitor = CostMonitor(tmp_path / "file" / "logs", gradients=gradients)
    with pytest.raises(OSError, match=r"log_dir=.*cannot be written"):
        fit(model, x, y, monitor)
    for a, b in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(a, b)
    assert state(model) == untouched


def test_linear_unit_is_measured_after_a_plain_first_step(tmp_path):
    x, y = data(12)
    model = linear(ScaledL2(C), learning_rate=0.0)
    unpenalized = linear()
    expected = [np.linalg.norm(g) for g in gradients(unpenalized, x[4:8], y[4:8])]
    fit(model, x, y, epochs=1)
    # Step 3 is the first of this fit, and 4 the first that is due.
    fit(model, x, y, CostMonitor(tmp_path, 4), epochs=1)
    [(step, value)] = scalars(tmp_path)[GRADIENT]
    assert step == 4
    assert value == pytest.approx(np.hypot(*expected), rel=1e-5)
