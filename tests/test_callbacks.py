"""ApplyL2 and CostMonitor beside other callbacks, over fits, files and copies."""

import copy
import csv
import gc
import re

import keras
import numpy as np
import pytest
from autodiff import numpy, numpy64
from keras import layers
from models import compiled, data, hidden, linear, losses
from reference import count, penalty
from test_attach import saved_keys
from test_costs import assert_split, fit, state

from keras_scaled_l2 import (
    ApplyL2,
    CostMonitor,
    EvidenceL2,
    SampleL2,
    ScaledL2,
    attach,
    detach,
    penalized,
)

LINE = re.compile(
    r"^ApplyL2: (?P<tensors>[\d,]+) tensors?, (?P<weights>[\d,]+) weights, "
    r"c = (?P<low>\S+?)(?: to (?P<high>\S+?))?; "
    r"penalty at the start (?P<penalty>\S+?); "
    r"cost at the start (?P<cost>\S+?), (?P<share>\d+)% of it penalty$",
    re.MULTILINE,
)


def apply_lines(capsys):
    """The lines of ApplyL2 among what was printed since the last call."""
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if line.startswith("ApplyL2")]
    matches = [LINE.match(line) for line in lines]
    assert all(matches), lines
    return [match.groupdict() for match in matches]


# --------------------------------------------------------------------------- ApplyL2


def test_apply_puts_its_rule_on_and_leaves_it():
    model = linear()
    apply = ApplyL2(SampleL2(3.0))
    fit(model, *data(), apply)
    [(_, variable, rule)] = penalized(model)
    assert variable is model.layers[0].kernel
    assert rule == SampleL2(3.0, inferred_samples=10)
    assert model.layers[0].kernel_regularizer == rule
    assert apply.rule == SampleL2(3.0)
    assert losses(model) == pytest.approx(
        [penalty(3.0 / 20, numpy64(variable))], rel=1e-6
    )


def test_apply_acts_from_the_first_step():
    x, y = data()
    model = linear(learning_rate=0.0)
    squares = penalty(1.0, numpy64(model.layers[0].kernel))
    alone = fit(model, x, y, epochs=1)["loss"]
    with_rule = fit(model, x, y, ApplyL2(SampleL2(20.0)), epochs=1)["loss"]
    assert with_rule == pytest.approx([alone[0] + squares], rel=1e-5)


def test_apply_without_a_rule_resolves_those_of_the_model():
    model = compiled(hidden(SampleL2(1.0), ScaledL2(1.0, "model")))
    fit(model, *data(), ApplyL2())
    assert [rule for _, _, rule in penalized(model)] == [
        SampleL2(1.0, inferred_samples=10),
        ScaledL2(1.0, "model", inferred_per=15),
    ]


def test_apply_counts_anew_for_every_fit():
    model = linear(SampleL2(1.0))
    apply = ApplyL2()
    fit(model, *data(10), apply)
    fit(model, *data(7), apply)
    assert penalized(model)[0][2] == SampleL2(1.0, inferred_samples=7)


def test_apply_never_overwrites_what_the_user_gave():
    model = linear(SampleL2(1.0, samples=500))
    fit(model, *data(10), ApplyL2())
    assert penalized(model)[0][2] == SampleL2(1.0, samples=500)
    model = linear(SampleL2(1.0))
    fit(model, *data(10), ApplyL2(samples=600))
    assert penalized(model)[0][2] == SampleL2(1.0, inferred_samples=600)


def test_apply_puts_its_rule_where_it_is_told():
    model = compiled(hidden())
    where = [model.layers[2]]
    fit(model, *data(), ApplyL2(ScaledL2(1.0), where=where))
    assert [v.path for _, v, _ in penalized(model)] == [model.layers[2].kernel.path]


def test_apply_with_nothing_to_resolve_is_an_error_with_the_remedy():
    with pytest.raises(ValueError, match=r"nothing to resolve.*ScaledL2.*kernel_reg"):
        fit(linear(), *data(), ApplyL2())


def test_apply_with_a_bad_number_of_samples_is_an_error():
    with pytest.raises(ValueError, match=r"samples=-3: expected"):
        fit(linear(), *data(), ApplyL2(SampleL2(1.0), samples=-3))


REFUSED = [
    (r"examples=\(x, y\)", EvidenceL2(1.0), {"samples": 10}),
    (r"Pass it: ApplyL2\(samples", SampleL2(5.0), {}),
]


@pytest.mark.parametrize(("message", "rule", "given"), REFUSED)
@pytest.mark.parametrize("before", [None, keras.regularizers.L2(0.3)])
@pytest.mark.parametrize("attached", [False, True])
def test_apply_that_is_refused_leaves_the_model_as_it_was(
    message, rule, given, before, attached
):
    x, y = data()
    model, plain = linear(before), linear(before)
    plain.set_weights(model.get_weights())
    if attached:
        for one in (model, plain):
            attach(one, SampleL2(2.0, samples=10))
    for one in (model, plain):
        fit(one, x, y, epochs=1, shuffle=False)
    config, own = model.get_config(), vars(model).keys()

    def batches():
        while True:
            yield x, y

    with pytest.raises(ValueError, match=message):
        options = {"steps_per_epoch": 1, "shuffle": False}
        fit(model, batches(), None, ApplyL2(rule, **given), **options)
    assert model.get_config() == config
    assert vars(model).keys() == own
    assert losses(model) == losses(plain)
    after, expected = (fit(one, x, y, shuffle=False)["loss"] for one in (model, plain))
    assert after == expected
    assert detach(model) == ([model.layers[0].kernel.path] if attached else [])
    assert model.layers[0].kernel.regularizer is before


def test_apply_prints_what_was_done(capsys):
    x, y = data()
    model = compiled(hidden(ScaledL2(2.0), ScaledL2(3.0)), 0.0)
    first, second = (numpy64(v) for _, v, _ in penalized(model))
    penalties = penalty(2.0 / 12, first) + penalty(3.0 / 3, second)
    [cost] = fit(model, x, y, epochs=1, batch_size=10)["loss"]

    fit(model, x, y, ApplyL2(), epochs=1, batch_size=10)

    [line] = apply_lines(capsys)
    assert (line["tensors"], line["weights"]) == ("2", "15")
    assert float(line["low"]) == pytest.approx(2 / 12, rel=1e-2)
    assert float(line["high"]) == pytest.approx(3 / 3, rel=1e-2)
    assert float(line["penalty"]) == pytest.approx(penalties, rel=1e-3)
    assert float(line["cost"]) == pytest.approx(cost, rel=1e-3)
    assert float(line["share"]) == pytest.approx(100 * penalties / cost, abs=0.6)


def test_apply_says_no_share_of_a_cost_that_is_no_number(capsys):
    x, y = data()
    x[0, 0] = np.nan
    fit(linear(SampleL2(1.0)), x, y, ApplyL2(), epochs=1, batch_size=10)
    [line] = [li for li in capsys.readouterr().out.splitlines() if "at the start" in li]
    assert line.endswith("cost at the start nan")


def test_apply_prints_one_coefficient_where_two_read_the_same(capsys):
    model = compiled(hidden(*map(keras.regularizers.L2, (0.1, 0.1 + 1e-9))))
    fit(model, *data(), ApplyL2(), epochs=1)
    assert "c = 0.1;" in capsys.readouterr().out


def test_apply_prints_one_coefficient_where_all_are_the_same(capsys):
    fit(linear(), *data(), ApplyL2(SampleL2(3.0)))
    [line] = apply_lines(capsys)
    assert float(line["low"]) == pytest.approx(3 / 20)
    assert line["high"] is None


def test_apply_prints_exactly_once_in_a_fit(capsys):
    x, y = data(40)
    model, apply = linear(), ApplyL2(SampleL2(3.0))
    # Many short batches: JAX dispatches their callbacks to several threads.
    fit(model, x, y, apply, epochs=5, batch_size=1)
    assert len(apply_lines(capsys)) == 1
    fit(model, x, y, apply, epochs=2)
    assert len(apply_lines(capsys)) == 1


if keras.config.backend() != "torch":
    # Keras refuses several steps per execution on torch.

    @pytest.mark.parametrize("steps", [2, 5])
    def test_apply_prints_with_several_steps_per_execution(steps, capsys):
        model = linear(steps_per_execution=steps)
        fit(model, *data(), ApplyL2(SampleL2(3.0)))
        assert len(apply_lines(capsys)) == 1


def test_apply_that_is_copied_before_use_works_as_the_original():
    model = linear()
    made = copy.deepcopy(ApplyL2(SampleL2(3.0), samples=50))
    fit(model, *data(), made)
    assert penalized(model)[0][2] == SampleL2(3.0, inferred_samples=50)


def two_applies(model, **given):
    """A callback for each layer; the arguments of the second one, by keyword."""
    first, second = ([model.layers[i]] for i in (0, 2))
    return [
        ApplyL2(SampleL2(1.0), where=first, samples=1000),
        ApplyL2(SampleL2(2.0), where=second, **given),
    ]


@pytest.mark.parametrize("turned", [False, True])
def test_number_given_to_one_apply_wins_over_what_another_counts(turned):
    model = compiled(hidden())
    both = two_applies(model)
    fit(model, *data(10), *(both[::-1] if turned else both))
    assert [rule.inferred_samples for _, _, rule in penalized(model)] == [1000, 1000]


@pytest.mark.parametrize("turned", [False, True])
def test_each_apply_gives_its_number_to_its_own_weights(turned):
    model = compiled(hidden())
    both = two_applies(model, samples=2000)
    for _ in range(2):
        fit(model, *data(10), *(both[::-1] if turned else both))
        found = [rule.inferred_samples for _, _, rule in penalized(model)]
        assert found == [1000, 2000]


def test_number_given_to_a_later_apply_serves_a_generator():
    model = compiled(hidden())
    both = two_applies(model)[::-1]
    x, y = data(10)

    def batches():
        while True:
            yield x, y

    history = model.fit(
        batches(), steps_per_epoch=2, shuffle=False, verbose=0, callbacks=both
    )
    assert len(history.history["loss"]) == 1
    assert [rule.inferred_samples for _, _, rule in penalized(model)] == [1000, 1000]


def two_towers():
    """Two towers that one function made: their kernels have the same path."""

    def tower():
        x = keras.Input((4,))
        return keras.Model(x, layers.Dense(3, name="h")(x))

    one, other = tower(), tower()
    x = keras.Input((4,))
    joined = layers.Concatenate()([one(x), other(x)])
    return compiled(keras.Model(x, layers.Dense(1)(joined))), one, other


def test_each_apply_gives_its_number_to_its_own_weight_of_two_with_one_path():
    model, one, other = two_towers()
    both = [
        ApplyL2(SampleL2(1.0), where=[one], samples=1000),
        ApplyL2(SampleL2(1.0), where=[other], samples=20),
    ]
    fit(model, *data(10), *both)
    [first, second] = penalized(model)
    assert first[0] == second[0]
    assert [rule.inferred_samples for *_, rule in (first, second)] == [1000, 20]


def test_evidence_of_two_weights_with_one_path_is_refused_with_the_remedy():
    model, *_ = two_towers()
    with pytest.raises(ValueError, match=r"called 'h/kernel'.*Dense\(\.\.\., name="):
        fit(model, *data(10), ApplyL2(EvidenceL2(1.0)))


def test_number_that_was_given_is_forgotten_after_the_fit():
    model = compiled(hidden())
    fit(model, *data(10), *two_applies(model))
    fit(model, *data(7), ApplyL2())
    assert [rule.inferred_samples for _, _, rule in penalized(model)] == [7, 7]


def test_apply_with_layers_that_is_copied_means_the_same_layers():
    model = compiled(hidden())
    for chosen in ([model.layers[2]], [model.layers[2].kernel]):
        made = copy.deepcopy(ApplyL2(ScaledL2(1.0), where=chosen))
        fit(model, *data(), made)
        assert [v.path for _, v, _ in penalized(model)] == [model.layers[2].kernel.path]


def test_apply_goes_with_the_monitor_in_either_order():
    x, y = data()
    for order in (1, -1):
        model = linear()
        callbacks = [ApplyL2(SampleL2(3.0)), CostMonitor()][::order]
        history = fit(model, x, y, *callbacks, validation_data=(x, y))
        assert_split(history, 2)
        expected = penalty(3.0 / 20, numpy64(model.layers[0].kernel))
        assert history["val_penalty"][-1] == pytest.approx(expected, rel=1e-5)


# ----------------------------------------------------------------------- CostMonitor


@pytest.mark.parametrize("log", [False, True], ids=["logs only", "event files"])
def test_monitor_leaves_the_model_as_it_was_found(log, tmp_path):
    x, y = data()
    model = linear(ScaledL2(1.0))
    fit(model, x, y, epochs=1, validation_data=(x, y))
    model.save(tmp_path / "before.keras")
    before = state(model)
    history = fit(
        model,
        x,
        y,
        CostMonitor(tmp_path / "logs" if log else None),
        validation_data=(x, y),
    )
    assert_split(history, 2)
    assert state(model) == before
    assert "compute_loss" not in vars(model)
    again = fit(model, x, y, epochs=1, validation_data=(x, y))
    assert set(again) == {"loss", "val_loss"}
    model.save(tmp_path / "after.keras")
    assert saved_keys(tmp_path / "after.keras") == saved_keys(tmp_path / "before.keras")


class Broken(Exception):
    """Ends a fit from within."""


class BreakAfter(keras.callbacks.Callback):
    """Raises at the end of the first epoch, as a pruner does."""

    def on_epoch_end(self, epoch, logs=None):
        raise Broken


@pytest.mark.parametrize(
    ("log", "same"),
    [(False, True), (False, False), (True, True), (True, False)],
    ids=["same", "a new one", "same with event files", "a new one with event files"],
)
def test_monitor_after_a_fit_that_broke_off_is_as_new(log, same, tmp_path):
    x, y = data()
    model = linear(ScaledL2(1.0))
    fit(model, x, y, epochs=1, validation_data=(x, y))
    before = state(model)
    directory = tmp_path if log else None
    monitor = CostMonitor(directory)
    with pytest.raises(Broken):
        fit(model, x, y, monitor, BreakAfter())
    monitor = monitor if same else CostMonitor(directory)
    history = fit(model, x, y, monitor, validation_data=(x, y))
    assert_split(history, 2)
    assert state(model) == before


def test_model_saved_while_it_is_monitored_is_like_any_other(tmp_path):
    x, y = data()
    model = linear(ScaledL2(1.0))
    fit(model, x, y, epochs=1)
    model.save(tmp_path / "plain.keras")
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "monitored.keras")
    fit(model, x, y, CostMonitor(tmp_path / "logs"), checkpoint, epochs=1)
    keys = saved_keys(tmp_path / "plain.keras")
    assert len(keys) > 4
    assert saved_keys(tmp_path / "monitored.keras") == keys
    loaded = keras.models.load_model(tmp_path / "monitored.keras")
    for ours, theirs in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(numpy(ours), numpy(theirs))
    assert losses(loaded) == pytest.approx(losses(model))
    assert [m.name for m in loaded.metrics] == ["loss"]


@pytest.mark.parametrize(
    ("monitor", "order", "best"),
    # The means of an epoch are those before its steps: one epoch behind.
    [("val_data_loss", 1, 2), ("val_data_loss", -1, 2), ("penalty", 1, 3)],
    ids=["before", "after", "penalty of training"],
)
def test_early_stopping_sees_the_parts_and_that_less_is_better(monitor, order, best):
    x, y = data()
    model = linear(ScaledL2(2.0))
    learn_for_three = keras.callbacks.LearningRateScheduler(lambda e: 0.01 * (e < 3))
    # Without mode: Keras finds out which way is better, or raises an error.
    stop = keras.callbacks.EarlyStopping(monitor=monitor, patience=2)
    callbacks = [CostMonitor(), learn_for_three, stop][::order]
    options = {"validation_data": (x, y), "epochs": 9, "shuffle": False}
    history = fit(model, x, y, *callbacks, **options)
    values = history[monitor]
    assert all(np.diff(values[: best + 1]) < 0), values
    assert stop.best_epoch == best
    assert stop.stopped_epoch == best + 2
    assert_split(history, best + 3)


@pytest.mark.parametrize("order", [1, -1], ids=["before", "after"])
def test_csv_logger_writes_the_parts_of_every_epoch(order, tmp_path):
    x, y = data()
    logger = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    callbacks = [CostMonitor(), logger][::order]
    history = fit(linear(ScaledL2(2.0)), x, y, *callbacks, validation_data=(x, y))
    with open(tmp_path / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    names = ["loss", "data_loss", "penalty"]
    for name in names + [f"val_{n}" for n in names]:
        assert [float(r[name]) for r in rows] == pytest.approx(history[name], rel=1e-6)


@pytest.mark.parametrize("log", [False, True], ids=["logs only", "event files"])
def test_monitor_twice_in_a_list_reports_once_and_leaves_nothing(log, tmp_path):
    x, y = data()
    model = linear(ScaledL2(1.0))
    fit(model, x, y, epochs=1, validation_data=(x, y))
    before = state(model)
    directories = [tmp_path / "1", tmp_path / "2"] if log else [None, None]
    monitors = map(CostMonitor, directories)
    history = fit(model, x, y, *monitors, validation_data=(x, y))
    assert_split(history, 2)
    assert state(model) == before


def test_monitor_that_is_copied_works_as_the_original(tmp_path):
    x, y = data()
    monitor = CostMonitor(tmp_path / "logs", gradients=False)
    made = copy.deepcopy(monitor)
    assert made.log_dir == monitor.log_dir
    for callback in (made, monitor):
        model = linear(ScaledL2(2.0))
        history = fit(model, x, y, callback, validation_data=(x, y), epochs=1)
        assert_split(history, 1)


def test_monitor_of_an_unbuilt_model_splits_its_first_epoch():
    x, y = data()
    model = keras.Sequential([layers.Dense(1, kernel_regularizer=ScaledL2(2.0))])
    history = fit(compiled(model), x, y, CostMonitor(), validation_data=(x, y))
    assert_split(history, 2)
    expected = penalty(2.0 / count((4, 1)), numpy64(model.layers[0].kernel))
    assert history["val_penalty"][-1] == pytest.approx(expected, rel=1e-5)


def test_monitor_follows_a_rule_that_is_attached_between_fits():
    x, y = data()
    model, monitor = linear(learning_rate=0.0), CostMonitor()
    first = fit(model, x, y, monitor)
    attach(model, ScaledL2(2.0))
    second = fit(model, x, y, monitor)
    assert first["penalty"] == [0.0, 0.0]
    assert second["penalty"] == pytest.approx(losses(model) * 2, rel=1e-5)
    assert second["data_loss"] == pytest.approx(first["data_loss"], rel=1e-5)


@pytest.mark.parametrize("update_freq", ["batch", 0, -1, 1.5, None, True], ids=repr)
def test_monitor_refuses_a_bad_frequency_by_name(update_freq):
    with pytest.raises(ValueError, match=r"^update_freq="):
        CostMonitor(update_freq=update_freq)


@pytest.mark.parametrize("log_dir", [5, True, b"runs"], ids=repr)
def test_monitor_refuses_a_directory_that_is_no_path_by_name(log_dir):
    with pytest.raises(TypeError, match=r"^log_dir=.* expected a directory"):
        CostMonitor(log_dir)


def test_monitor_whose_directory_cannot_be_made_stops_before_training(tmp_path):
    x, y = data()
    (tmp_path / "file").write_text("not a directory")
    model = linear(ScaledL2(2.0))
    fit(model, x, y, epochs=1)
    before = numpy(model.layers[0].kernel)
    plain = state(model)
    with pytest.raises(OSError, match=r"file"):
        fit(model, x, y, CostMonitor(tmp_path / "file" / "logs"))
    np.testing.assert_array_equal(numpy(model.layers[0].kernel), before)
    assert state(model) == plain


def test_monitor_beside_a_taken_name_is_refused_in_the_first_fit():
    model = linear(ScaledL2(2.0), metrics=[keras.metrics.MeanSquaredError("penalty")])
    with pytest.raises(ValueError, match="Rename"):
        fit(model, *data(), CostMonitor())


def test_monitor_beside_a_taken_name_leaves_no_open_file(tmp_path):
    model = linear(ScaledL2(2.0), metrics=[keras.metrics.MeanSquaredError("penalty")])
    fit(model, *data(), epochs=1)
    # An event file that stays open is a ResourceWarning, which is an error here.
    with pytest.raises(ValueError, match="Rename"):
        fit(model, *data(), CostMonitor(tmp_path / "logs"))
    gc.collect()
