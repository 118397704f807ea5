"""Tuning: as many settings for every arm, chosen by the validation data alone."""

import dataclasses
import itertools
import math

import keras
import numpy as np
import pytest

from keras_scaled_l2 import HalfLifeL2, PriorL2, SampleL2, ScaledL2
from keras_scaled_l2.experiments import Arm, compare, grids
from keras_scaled_l2.experiments.arrays import checked
from keras_scaled_l2.experiments.engine import Engine
from keras_scaled_l2.experiments.problems import Source
from keras_scaled_l2.experiments.results.records import Hyperparameters
from keras_scaled_l2.experiments.training import Training

RULES = {
    "l2": (keras.regularizers.L2(0.5), 0.5),
    "strength": (ScaledL2(2.0), 2.0),
    "sample": (SampleL2(6.0), 6.0),
    "std": (PriorL2(0.25), 0.25),
    "epochs": (HalfLifeL2(epochs=8.0, learning_rate=0.1), 8.0),
}
KEYS = {"sample": "strength"}
ARMS = ("none", "l2", "sample+dropout")


def values(arm, trials):
    key = grids._key(arm.config)
    return [s.rule["config"][key] for s in grids.grid(arm, trials)]


@pytest.mark.parametrize("name", list(RULES))
def test_each_rule_is_turned_by_its_own_key(name):
    rule, given = RULES[name]
    arm = Arm("mine", rule)
    key = KEYS.get(name, name)
    assert grids._key(arm.config) == key
    assert values(arm, 3) == pytest.approx([given / 10, given, given * 10])
    for setting in grids.grid(arm, 3):
        made = keras.saving.deserialize_keras_object(setting.rule)
        assert type(made) is type(rule)
        rest = {k: v for k, v in setting.rule["config"].items() if k != key}
        assert rest == {k: v for k, v in arm.config["config"].items() if k != key}
        assert (setting.dropout, setting.weight_decay) == (0.0, 0.0)
    # The arm is left as it was.
    assert arm.config["config"][key] == pytest.approx(given)


@pytest.mark.parametrize("trials", [1, 2, 3, 4, 5, 8, 11, 16])
def test_every_arm_tries_as_many_settings_each_value_once(trials):
    arms = [
        Arm("rule", ScaledL2(2.0)),
        Arm("decay", weight_decay=0.1),
        Arm("dropout", dropout=0.5),
        Arm("both", ScaledL2(2.0), 0.5),
        Arm("decay+dropout", weight_decay=0.1, dropout=0.5),
    ]
    for arm in arms:
        found = grids.grid(arm, trials)
        assert len(found) == trials
        if arm.rule is not None:
            assert len({s.rule["config"]["strength"] for s in found}) == trials
        if arm.weight_decay:
            assert len({s.weight_decay for s in found}) == trials
        if arm.dropout:
            assert len({s.dropout for s in found}) == trials
        else:
            assert {s.dropout for s in found} == {0.0}
        if trials == 1:
            given = Hyperparameters(arm.config, arm.dropout, arm.weight_decay)
            assert found == (given,)


@pytest.mark.parametrize("trials", range(1, 42, 2))
def test_strength_given_is_in_the_middle_of_an_odd_number(trials):
    middle = trials // 2
    assert values(Arm("x", ScaledL2(0.3)), trials)[middle] == pytest.approx(0.3)
    decay = grids.grid(Arm("x", weight_decay=0.7), trials)
    assert decay[middle].weight_decay == pytest.approx(0.7)


@pytest.mark.parametrize("trials", [2, 3, 5, 9])
def test_strengths_are_even_in_their_logarithm_and_rates_even(trials):
    logs = np.log10(values(Arm("x", ScaledL2(3.0)), trials))
    np.testing.assert_allclose(np.diff(logs), 2 / (trials - 1))
    assert 10 ** logs[0] == pytest.approx(0.3)
    rates = [s.dropout for s in grids.grid(Arm("x", dropout=0.5), trials)]
    np.testing.assert_allclose(np.diff(rates), 0.6 / (trials - 1), atol=2e-4)
    assert (rates[0], rates[-1]) == (0.1, 0.7)


@pytest.mark.parametrize("trials", [3, 4, 5, 8, 16])
def test_pairs_do_not_rise_together(trials):
    found = grids.grid(Arm("x", ScaledL2(3.0), dropout=0.5), trials)
    rates = [s.dropout for s in found]
    assert rates not in (sorted(rates), sorted(rates)[::-1])
    rank = np.corrcoef(np.arange(trials), rates)[0, 1]
    assert abs(rank) < 0.9


def test_arms_with_nothing_to_choose_try_nothing():
    for arm in (Arm("none"), Arm("zero", ScaledL2(0.0)), Arm("off", dropout=0.0)):
        assert grids.grid(arm, 5) == ()


# --- the whole ----------------------------------------------------------------------


def source():
    """100 examples that came split: the test set can be spoilt without the others."""
    x = np.random.default_rng(0).normal(size=(100, 6))
    y = (x[:, 0] + np.random.default_rng(1).normal(size=100) > 0).astype(int)
    parts = {"train": slice(0, 48), "validation": slice(48, 72), "test": slice(72, 100)}
    arrays = {f"x_{name}": x[part] for name, part in parts.items()}
    arrays |= {f"y_{name}": y[part] for name, part in parts.items()}
    return Source("tiny", checked(arrays, name="tiny"))


def small(data=None, **options):
    return compare(
        **{
            "problem": (data or source()).split(0),
            "batch_size": 16,
            "arms": ARMS,
            "hidden": (8,),
            "epochs": 3,
            "seeds": 2,
            "tune": 3,
            "progress": False,
            **options,
        }
    )


@pytest.fixture(scope="module")
def calls():
    """What every training of ``tuned`` was asked for, in turn."""
    return []


@pytest.fixture(scope="module")
def tuned(calls):
    real = Engine.train

    def spy(self, jobs, **options):
        jobs = list(jobs)
        for place, found in real(self, jobs, **options):
            kind = "run" if options.get("evaluate") else "trial"
            calls.append((kind, jobs[place], found))
            yield place, found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "train", spy)
        comparison = small()
    # What a seed starts from is measured by a job that trains no epoch.
    calls[:] = [call for call in calls if call[1].epochs]
    return comparison


def without_test(run):
    empty = dataclasses.replace(run.test, data_loss=0, accuracy=0, calibration_error=0)
    return dataclasses.replace(run, test=empty, seconds=0.0)


def test_choice_is_the_lowest_validation_loss_of_the_trials(tuned):
    for arm in tuned.arms:
        for run in arm.runs:
            assert [t.hyperparameters for t in run.trials] == list(arm.grid)
            if arm.name == "none":
                assert run.trials == ()
                assert run.hyperparameters == Hyperparameters()
            else:
                best = min(run.trials, key=lambda t: t.data_loss)
                assert run.hyperparameters == best.hyperparameters
                assert len({t.data_loss for t in run.trials}) > 1
    assert {len(arm.grid) for arm in tuned.arms} == {0, 3}


def test_test_set_has_no_part_in_the_choice(tuned):
    data = source()
    spoilt = dataclasses.replace(
        data.arrays,
        x_test=np.full_like(data.arrays.x_test, np.nan),
        y_test=1 - data.arrays.y_test,
    )
    found = small(dataclasses.replace(data, arrays=spoilt))
    for one, other in zip(tuned.arms, found.arms, strict=True):
        for first, second in zip(one.runs, other.runs, strict=True):
            # TensorFlow makes numbers of what is none.
            assert first.test.accuracy != second.test.accuracy
            assert without_test(first) == without_test(second)


def test_trials_never_ask_for_the_test_set(monkeypatch):
    asked, real = [], Training._evaluate

    def spy(self, part):
        asked.append((self._jobs[0].seed, part))
        return real(self, part)

    monkeypatch.setattr(Training, "_evaluate", spy)
    monkeypatch.setattr(Engine, "warm_up", lambda *_: None)
    small(arms=["l2"], seeds=1)
    assert {part for seed, part in asked if seed == 2**20} == {"validation"}
    assert asked.count((0, "test")) == 1


def test_every_training_has_the_same_budget(tuned, calls):
    assert {(job.epochs, job.patience) for _, job, _ in calls} == {(3, None)}
    assert {run.steps for arm in tuned.arms for run in arm.runs} == {9}
    kinds = [kind for kind, *_ in calls]
    assert (kinds.count("trial"), kinds.count("run")) == (2 * 2 * 3, 2 * 3)


def test_trials_start_from_other_weights_than_the_run_that_counts(tuned, calls):
    starts = {"trial": {}, "run": {}}
    for kind, job, _ in calls:
        seed = job.seed % 2**20
        starts[kind].setdefault(seed, set()).add(job.initial[0].tobytes())
    for by_seed in starts.values():
        # The same for all arms, another for each seed.
        assert [len(v) for v in by_seed.values()] == [1, 1]
    together = [v for by_seed in starts.values() for v in by_seed.values()]
    assert len(set().union(*together)) == 4
    assert {job.seed for _, job, _ in calls} == {0, 1, 2**20, 2**20 + 1}


def test_coefficients_are_those_of_the_setting_chosen(tuned, calls):
    runs = {(arm.name, run.seed): run for arm in tuned.arms for run in arm.runs}
    trained = {str(sorted(j.coefficients.items())) for k, j, _ in calls if k == "run"}
    for run in runs.values():
        rule = run.hyperparameters.rule
        if rule and rule["class_name"] == "SampleL2":
            c = rule["config"]["strength"] / (2 * 48)
            assert list(run.coefficients.values()) == pytest.approx([c, c])
        assert str(sorted(run.coefficients.items())) in trained
    given = tuned["l2"].coefficients
    assert set(given.values()) == {2.5e-4}


def test_trial_that_diverged_is_not_chosen():
    huge = Arm("huge", ScaledL2(1e6, per=1))
    run = small(arms=[huge], seeds=1, tune=4)["huge"].runs[0]
    assert not all(math.isfinite(t.data_loss) for t in run.trials)
    few = Arm("mixed", ScaledL2(3.0, per=1))
    found = small(arms=[few], seeds=1, learning_rate=0.3, epochs=20)["mixed"].runs[0]
    losses = [t.data_loss for t in found.trials]
    finite = [loss for loss in losses if math.isfinite(loss)]
    assert 0 < len(finite) < len(losses)
    assert (
        found.hyperparameters == found.trials[losses.index(min(finite))].hyperparameters
    )


# --- early stopping -----------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped():
    arms = ("none", "l2")
    options = {"arms": arms, "epochs": 40, "learning_rate": 0.5, "tune": 2}
    return small(patience=3, **options)


def test_training_stops_and_goes_back_to_the_best_epoch(stopped):
    for run in itertools.chain.from_iterable(arm.runs for arm in stopped.arms):
        losses = run.curves["val_data_loss"]
        best = losses.index(min(losses)) + 1
        assert run.best_epoch == run.kept_epoch == best
        assert len(losses) == best + 3 < 40
        assert run.steps == 3 * len(losses)
        assert run.validation.data_loss == losses[best - 1]
        accuracy = run.curves["val_accuracy"][best - 1]
        assert run.validation.accuracy == pytest.approx(accuracy)


def test_training_set_is_measured_with_the_weights_that_were_kept(stopped):
    for run in stopped["l2"].runs:
        again = small(
            arms=["l2"],
            seeds=[run.seed],
            epochs=run.kept_epoch,
            learning_rate=0.5,
            tune=None,
            strengths={"l2": run.hyperparameters.rule["config"]["strength"]},
        )["l2"].runs[0]
        for part in ("train", "validation", "test", "final_cost", "weight_norms"):
            assert getattr(run, part) == getattr(again, part)


def test_trials_stop_early_and_are_judged_by_their_best_epoch(monkeypatch):
    calls, real = [], Engine.train

    def spy(self, jobs, **options):
        calls.append({})
        for place, found in real(self, jobs, **options):
            calls[-1][place] = found
            yield place, found

    monkeypatch.setattr(Engine, "train", spy)
    options = {"epochs": 40, "learning_rate": 0.5, "patience": 2, "seeds": 1}
    run = small(arms=["l2"], **options)["l2"].runs[0]
    tried = calls[0]  # in the order in which they ended
    assert sorted(tried) == [0, 1, 2]
    for place, trial in enumerate(run.trials):
        losses = tried[place].curves["val_data_loss"]
        assert len(losses) < 40
        assert trial.data_loss == min(losses)
        assert trial.best_epoch == losses.index(min(losses)) + 1


def test_without_patience_the_last_epoch_is_kept(tuned):
    for arm in tuned.arms:
        for run in arm.runs:
            losses = run.curves["val_data_loss"]
            assert run.kept_epoch == len(losses) == 3
            assert run.best_epoch == losses.index(min(losses)) + 1
            assert run.validation.data_loss == losses[-1]


def test_best_epoch_is_kept_where_patience_never_ends():
    options = {"arms": ["none"], "tune": None, "seeds": 1, "epochs": 12}
    run = small(patience=11, learning_rate=0.9, **options)["none"].runs[0]
    losses = run.curves["val_data_loss"]
    assert len(losses) == 12
    assert run.kept_epoch == run.best_epoch < 12
    assert run.validation.data_loss == min(losses)


def test_diverged_run_stops_and_says_so():
    options = {"arms": ["none"], "tune": None, "seeds": 1, "epochs": 9}
    run = small(patience=2, learning_rate=1e20, **options)["none"].runs[0]
    assert len(run.curves["val_data_loss"]) <= 4
    assert not math.isfinite(run.test.data_loss)
    assert run.best_epoch == 1
