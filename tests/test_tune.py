"""A tuning as a whole: against scikit-learn, resumed, refused, written."""

import itertools
import json
import math
import warnings

import keras
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV, RidgeCV
from sklearn.metrics import log_loss

from keras_scaled_l2 import HalfLifeL2, PriorL2, SampleL2, ScaledL2
from keras_scaled_l2.experiments import TuningResult, compare, transfer, tune
from keras_scaled_l2.experiments.arrays import checked
from keras_scaled_l2.experiments.axis import make_axis
from keras_scaled_l2.experiments.engine import Engine
from keras_scaled_l2.experiments.errors import InputError
from keras_scaled_l2.experiments.plan import make_plan
from keras_scaled_l2.experiments.problems import Source
from keras_scaled_l2.experiments.results.files import read_json
from keras_scaled_l2.experiments.trials import Trials
from keras_scaled_l2.experiments.tuner import Tuner, say_nothing
from keras_scaled_l2.experiments.tuning_plan import make_tuning_plan

pytestmark = pytest.mark.once


def problem(kind="binary", n=100, features=6):
    random = np.random.default_rng(0)
    x = random.normal(size=(n, features))
    score = x[:, 0] - 0.5 * x[:, 1] + 0.7 * random.normal(size=n)
    y = score if kind == "regression" else (score > 0).astype(int)
    return Source(kind, checked({"x_train": x, "y_train": y}, name=kind)).split(0)


def small(**options):
    return tune(
        **{
            "problem": problem(),
            "hidden": (4,),
            "batch_size": 20,
            "epochs": 3,
            "seeds": 2,
            "progress": False,
            **options,
        }
    )


GRID = (0.001, 0.01, 0.1, 0.3)
CONVERGED = {
    "hidden": (),
    "batch_size": 200,
    "epochs": 250,
    "method": "kfold",
    "folds": 3,
    "seeds": 1,
    "grid": GRID,
    "learning_rate": 0.1,
}


def dealt(data):
    """The folds as one array with indices, as scikit-learn's cv wants them."""
    parts = data.source.folds(3, 0)
    x = np.concatenate([p.x_validation for p in parts])
    y = np.concatenate([p.y_validation for p in parts])
    sizes = np.cumsum([0, *(len(p.x_validation) for p in parts)])
    ranges = [np.arange(a, b) for a, b in itertools.pairwise(sizes)]
    every = np.arange(len(x))
    return x, y, [(np.setdiff1d(every, r), r) for r in ranges]


def test_ridge_agrees_with_scikit_learn_on_the_same_folds():
    data = problem("regression")
    result = small(problem=data, **CONVERGED)
    x, y, cv = dealt(data)
    for c in GRID:
        losses = []
        for train, left in cv:
            centered = x[train] - x[train].mean(0)
            target = y[train] - y[train].mean()
            m = len(train)
            w = np.linalg.solve(
                centered.T @ centered + m * c * np.eye(x.shape[1]), centered.T @ target
            )
            predicted = (x[left] - x[train].mean(0)) @ w + y[train].mean()
            losses.append(np.mean((predicted - y[left]) ** 2))
        found = [job.data_loss for job in result[c].jobs]
        assert found == pytest.approx(losses, rel=0.01)
    m = len(cv[0][0])
    ridge = RidgeCV([m * c for c in GRID], cv=cv, scoring="neg_mean_squared_error")
    assert result.best["strength"] == pytest.approx(ridge.fit(x, y).alpha_ / m)


@pytest.mark.everywhere
def test_logistic_regression_agrees_with_scikit_learn_on_the_same_folds():
    data = problem()
    result = small(problem=data, **CONVERGED)
    x, y, cv = dealt(data)
    for c in GRID:
        losses = []
        for train, left in cv:
            model = LogisticRegression(C=1 / (2 * len(train) * c), tol=1e-8)
            model.fit(x[train], y[train])
            losses.append(log_loss(y[left], model.predict_proba(x[left])))
        found = [job.data_loss for job in result[c].jobs]
        assert found == pytest.approx(losses, rel=0.01)
    m = len(cv[0][0])
    with warnings.catch_warnings():
        # Defaults of scikit-learn that are about to change, none of which is used.
        warnings.simplefilter("ignore", FutureWarning)
        search = LogisticRegressionCV(
            Cs=[1 / (2 * m * c) for c in GRID], cv=cv, scoring="neg_log_loss"
        ).fit(x, y)
    assert result.best["strength"] == pytest.approx(1 / (2 * m * np.max(search.C_)))


@pytest.mark.parametrize("rule", ["l2", "prior", "decay", "dropout", "l2+dropout"])
def test_each_rule_is_searched(rule):
    result = small(rule=rule)
    assert result.rule == rule
    assert result.points[0].strength == 0
    assert len(result.points) >= 3
    full = [p for p in result.points if len(p.jobs) == 2]
    assert result[result.best["strength"]] in full
    for point in result.points[1:]:
        assert (point.e_folds > 0) == (rule != "dropout")
    if rule == "l2+dropout":
        assert result.best["dropout"] in [k / 10 for k in range(10)]
    if rule == "prior":
        # A weaker prior is a wider one.
        stds = [p.strength for p in result.points[1:]]
        assert stds == sorted(stds, reverse=True)


def test_coefficients_are_those_of_the_rule():
    x = problem().samples["train"]
    result = small(rule=SampleL2(1.0), grid=[0, 6.0])
    assert result[6.0].coefficient == pytest.approx((6 / (2 * x),) * 2)
    scaled = small(rule=ScaledL2(1.0), grid=[0, 2.0])[2.0]
    assert scaled.coefficient == pytest.approx((2 / 24, 2 / 4))
    prior = small(rule=PriorL2(1.0), grid=[0, 0.5])[0.5]
    assert prior.coefficient == pytest.approx((4 / (2 * 0.25 * x), 6 / (2 * 0.25 * x)))


def test_e_folds_are_what_the_training_does():
    steps, rate = 3 * 3, 0.05
    point = small(grid=[0.0, 0.01, 0.1])[0.1]
    assert point.e_folds == pytest.approx(2 * 0.1 * steps * rate / (1 - 0.9))
    decay = small(rule="decay", grid=[0.0, 0.01, 0.1])[0.1]
    assert decay.e_folds == pytest.approx(0.1 * steps * rate)


def test_inert_strengths_are_merged_with_none_and_named():
    result = small(grid=[1e-8, 1e-7, 0.1])
    assert [p.strength for p in result.points] == [0.0, 0.1]
    assert any("1e-08, 1e-07" in line for line in result.findings)


def test_criterion_accuracy_decides_by_accuracy():
    result = small(grid=[0.0, 0.1], criterion="accuracy", epochs=4)
    for point in result.points:
        mean = np.mean([job.accuracy for job in point.jobs])
        assert point.mean == pytest.approx(mean)


@pytest.fixture
def counted(monkeypatch):
    """The jobs that engines are given; may break off after some."""
    seen, real = [], Engine.train
    limit = {"jobs": math.inf}

    def train(self, jobs, **options):
        for place, trained in real(self, jobs, **options):
            if len(seen) >= limit["jobs"]:
                raise RuntimeError("cut short")
            seen.append(jobs[place])
            yield place, trained

    monkeypatch.setattr(Engine, "train", train)
    return seen, limit


@pytest.mark.everywhere
def test_interrupted_tuning_goes_on_and_trains_nothing_twice(counted, tmp_path):
    seen, limit = counted
    whole = small()
    total = len(seen)
    seen.clear()
    for limit["jobs"] in (3, 5):
        with pytest.raises(RuntimeError, match="cut short"):
            small(directory=tmp_path)
    limit["jobs"] = math.inf
    assert small(directory=tmp_path) == whole
    assert len(seen) == total
    # All is there: nothing is trained.
    assert small(directory=tmp_path) == whole
    assert len(seen) == total


def test_files_are_written_and_agree(tmp_path):
    result = small(directory=tmp_path, grid=[0.0, 0.01, 0.1])
    saved = TuningResult.from_dict(read_json(tmp_path / "tuning.json"))
    assert saved == result
    assert result.to_markdown() == (tmp_path / "tuning.md").read_text()
    page = (tmp_path / "tuning.html").read_text()
    assert "<svg" in page
    for name in ("tuning.png", "tuning.svg"):
        assert (tmp_path / "figures" / name).stat().st_size > 1000
    runs = list((tmp_path / "tensorboard").rglob("events*"))
    assert len(runs) == 3 * 2


def test_directory_of_another_configuration_is_refused(tmp_path):
    small(directory=tmp_path, grid=[0.0])
    with pytest.raises(InputError, match=r"epochs is 3 there, 2 here"):
        small(directory=tmp_path, grid=[0.0], epochs=2)


class Nameless(keras.Regularizer):
    """Without a config, which Keras asks for only where it is saved."""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": []}, "grid is empty"),
        ({"grid": [-1.0]}, r"grid value -1.0: expected a finite number"),
        ({"grid": [math.nan]}, "grid value nan"),
        ({"grid": [0.1, 0.1]}, "no strength twice"),
        ({"grid": [1.5], "rule": "dropout"}, "dropout rate 1.5"),
        ({"rule": "l3"}, "unknown rule 'l3': did you mean 'l2'"),
        ({"rule": "dropout+l2"}, "unknown rule"),
        ({"rule": 3}, "rule 3: expected a regularizer"),
        ({"rule": keras.regularizers.L1(0.5)}, r"rule keras.regularizers.L1\(l1=0.5"),
        (
            {"rule": keras.regularizers.L1L2(0.5, 0.5)},
            r"rule keras.regularizers.L1L2\(.*\): L1L2 is not of the form",
        ),
        ({"rule": Nameless()}, r"^rule Nameless\(\) has no strength"),
        ({"method": "loo"}, "unknown method 'loo'"),
        ({"criterion": "loss"}, "unknown criterion"),
        (
            {"method": "kfold", "folds": 100},
            r"folds 100: expected a whole number from 2 to \d+",
        ),
        ({"workers": 0}, "workers 0"),
        ({"seeds": 0}, "seeds 0"),
        ({"seeds": 2.0}, "seeds 2.0: expected a sequence, as 0,1,2, or their number"),
        ({"grid": 0.1}, "grid 0.1: expected a sequence, as 0.01,0.02"),
        ({"grid": "0.1"}, "grid '0.1': expected a sequence"),
        ({"hidden": 5}, "hidden units 5: expected a sequence, as 512,512"),
        ({"problem": ([[0.0]], [1])}, r"problem of type tuple: .* numpy.savez\("),
        ({"storage": "nothing://here"}, "storage 'nothing://here' cannot be used"),
        ({"rule": "half-life", "optimizer": "adam"}, "^rule 'half-life' under Adam: "),
        ({"rule": HalfLifeL2(3), "optimizer": "adam"}, r"^rule HalfLifeL2\(\S+ has no"),
        (
            {"optimizer": keras.optimizers.AdamW()},
            "expected one without",
        ),
        (
            {"problem": problem("regression"), "criterion": "accuracy"},
            "of a regression",
        ),
    ],
)
def test_wrong_input_is_one_clear_line_before_training(options, message, monkeypatch):
    monkeypatch.setattr(Engine, "train", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(InputError, match=message) as caught:
        small(**options)
    assert "\n" not in str(caught.value)
    assert "0x" not in str(caught.value)


def test_numbers_of_numpy_are_as_good_as_pythons():
    given = {"epochs": 2, "batch_size": 20, "patience": 1, "workers": 1}
    plain = plan_of(grid=[0.5, 2.0], seeds=[3, 5], hidden=[4], **given)
    arrays = {"seeds": np.array([3, 5]), "hidden": np.array([4])}
    scalars = {name: np.int64(value) for name, value in given.items()}
    grid = np.array([0.5, 2.0], "float32")
    made = plan_of(grid=grid, **arrays, **scalars)
    # A study writes it down.
    configuration = json.dumps(made.configuration())
    assert configuration == json.dumps(plain.configuration())
    assert plan_of(seeds=np.int64(2)).base.seeds == (0, 1)


def plan_of(**options):
    given = {
        "grid": None,
        "method": "holdout",
        "folds": 5,
        "criterion": "data_loss",
        "patience": None,
        "storage": None,
        "workers": 1,
        "directory": None,
        "hidden": (4,),
        "batch_size": 20,
        "epochs": 3,
        "seeds": 2,
    }
    return make_tuning_plan("dense", problem(), "l2", **(given | options))


def record(loss, curve=()):
    return {
        "data_loss": loss,
        "accuracy": 0.5,
        "best_epoch": 1,
        "steps": 9,
        "stopped": False,
        "curve": [*curve],
    }


def test_only_the_screening_of_a_search_is_stopped_early():
    tuner = Tuner(plan_of(seeds=5), say_nothing)
    weak = {(0.0, 0, 0): record(0.5, [0.5, 0.6, 0.7])}
    late = [9.0] * 5
    assert tuner._is_hopeless((1.0, 0, 0), late, weak)
    # Of another block, of a block that confirms, and of a grid of the user's.
    assert not tuner._is_hopeless((1.0, 1, 0), late, weak)
    confirming = {(0.0, 4, 0): weak[0.0, 0, 0]}
    assert not tuner._is_hopeless((1.0, 4, 0), late, confirming)
    given = Tuner(plan_of(seeds=5, grid=[0.0, 1.0]), say_nothing)
    assert not given._is_hopeless((1.0, 0, 0), late, weak)


@pytest.fixture
def study(tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}"

    def opened(**options):
        made = Trials(url, "test", {"epochs": 3}, **options)
        opens.append(made)
        return made

    opens = []
    yield opened
    for made in opens:
        made.close()


KEYS = [(0.0, 0, 0), (0.1, 0, 0), (0.1, 1, 2)]


def test_trials_are_kept_between_processes(study):
    first = study()
    first.add_round(KEYS)
    first.enqueue(KEYS)
    claimed = first.claim(2)
    assert [key for _, key in claimed] == KEYS[:2]
    first.finish(claimed[0][0], record(0.5), 0.5)
    again = study()
    assert again.rounds() == [KEYS]
    assert again.finished() == {KEYS[0]: record(0.5)}
    # One runs: whether it still does, only its worker knows.
    assert [key for _, key in again.claim(9)] == KEYS[2:]
    again.requeue_running()
    again.enqueue(KEYS)
    assert [key for _, key in again.claim(9)] == KEYS[1:]


def test_study_of_a_file_stands_there_whatever_its_name_means_in_a_url(tmp_path):
    for name in ("q?x", "pct%20x", "we ird#{ü}"):
        folder = tmp_path / name
        result = small(grid=[0.0, 0.1], directory=folder)
        assert (folder / "study.db").is_file()
        again = small(grid=[0.0, 0.1], directory=folder)
        assert again.table() == result.table()
    assert {path.name for path in tmp_path.iterdir()} == {
        *("q?x", "pct%20x", "we ird#{ü}")
    }


def test_worker_that_ends_gives_back_what_it_took(study):
    # Not by its heartbeat, a minute later.
    one, two = study(shared=True), study(shared=True)
    one.enqueue(KEYS)
    assert len(one.claim(2)) == 2
    one.close()
    two.enqueue(KEYS)
    assert [key for _, key in two.claim(9)] == [KEYS[2], *KEYS[:2]]


def test_training_that_two_workers_enqueued_is_run_once(study):
    one, two = study(), study()
    one.enqueue(KEYS[:1])
    # As if both had looked before either wrote.
    two._study.enqueue_trial({}, user_attrs={"planned": list(KEYS[0])})
    assert len(one.claim(9)) == 1
    assert two.claim(9) == []


def test_worker_that_died_is_noticed_by_its_heartbeat(study, monkeypatch):
    dead, alive = study(shared=True), study(shared=True)
    dead.enqueue(KEYS[:1])
    ((number, _),) = dead.claim(1)
    alive.enqueue(KEYS[:1])
    assert alive.claim(1) == []
    monkeypatch.setattr(alive._storage, "grace_period", -1)
    alive.enqueue(KEYS[:1])
    ((again, key),) = alive.claim(1)
    assert key == KEYS[0]
    alive.finish(again, record(0.3), 0.3)
    # The one that was taken to be dead comes back: its result does not count.
    dead.finish(number, record(0.9), 0.9)
    assert alive.finished() == {KEYS[0]: record(0.3)}


def test_worker_that_died_before_its_first_heartbeat_is_noticed(study, monkeypatch):
    dead, alive = study(shared=True), study(shared=True)
    dead.enqueue(KEYS[:1])

    def killed(*_):
        raise SystemExit

    monkeypatch.setattr(dead._beats, "begin", killed)
    with pytest.raises(SystemExit):
        dead.claim(1)
    assert alive.claim(1) == []
    monkeypatch.setattr(alive._storage, "grace_period", -1)
    alive.enqueue(KEYS[:1])
    assert [key for _, key in alive.claim(1)] == KEYS[:1]


def test_losses_that_are_no_numbers_survive_the_study(study):
    trials = study()
    trials.enqueue(KEYS[:1])
    ((number, _),) = trials.claim(1)
    trials.finish(number, record(math.nan, [1.0, math.nan]), 1e300)
    found = trials.finished()[KEYS[0]]
    assert found["data_loss"] is None
    assert json.dumps(found["curve"]) == "[1.0, null]"


def test_e_folds_of_a_tuning_count_the_updates_of_an_accumulating_optimizer():
    sgd = keras.optimizers.SGD(0.1, gradient_accumulation_steps=4)
    options = {"hidden": (4,), "batch_size": 20, "epochs": 8}
    plan = make_plan(problem=problem(), arms=["none"], optimizer=sgd, **options)
    steps = plan.epochs * math.ceil(plan.problem.samples["train"] / plan.batch_size)
    axis = make_axis("l2", plan)
    assert axis.e_folds(0.01) == pytest.approx(2 * 0.01 * 0.1 * (steps // 4))


def test_strengths_of_cross_validation_count_the_examples_of_a_fold():
    result = small(
        rule="sample", method="kfold", folds=2, seeds=1, grid=(0.0, 5.0), batch_size=16
    )
    # 60 of 100 to train by hold-out; 40 of the 80 outside the test set here.
    m, steps = result.samples["train"], math.ceil(40 / 16)
    point = result[5.0]
    assert m == 40 and {job.steps for job in point.jobs} == {3 * steps}
    c = 5.0 / (2 * m)
    assert point.coefficient == pytest.approx((c, c))
    assert point.e_folds == pytest.approx(2 * c * 3 * steps * 0.05 / (1 - 0.9))


def contents(folder):
    """Name of each file -> its bytes."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): path.read_bytes() for path in files if path.name != ".lock"}


@pytest.mark.parametrize(
    ("mark", "other"),
    [
        ("comparison.json", "comparison"),
        ("configuration.json", "comparison"),
        ("tuning.json", "tuning"),
        ("study.db", "tuning"),
        ("trainings.jsonl", "transfer"),
        ("transfer.json", "transfer"),
    ],
)
def test_directory_of_another_command_is_refused(mark, other, tmp_path, monkeypatch):
    monkeypatch.setattr(Engine, "train", lambda *_, **__: pytest.fail("trained"))
    (tmp_path / mark).write_text("{}")
    run = tmp_path / "tensorboard" / "l2" / "seed-0" / "events"
    run.parent.mkdir(parents=True)
    run.write_text("curves")
    before = contents(tmp_path)
    calls = {
        "comparison": lambda: compare(
            problem=problem(), hidden=(4,), directory=tmp_path, progress=False
        ),
        "tuning": lambda: small(directory=tmp_path),
        "transfer": lambda: transfer(
            problem=problem(), sizes=(30, 300), directory=tmp_path, progress=False
        ),
    }
    for what, call in calls.items():
        if what != other:
            with pytest.raises(InputError) as caught:
                call()
            assert f"holds {mark}, which is of a {other}" in str(caught.value)
            assert "Give another directory." in str(caught.value)
            assert "\n" not in str(caught.value)
            assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"rule": "sample"}, "rule is l2 there, sample here"),
        ({"rule": "l2+dropout"}, "rule is l2 there, l2+dropout here"),
        ({"problem": problem("other")}, "problem is binary there, other here"),
        ({"method": "kfold", "folds": 2}, "method is holdout there, kfold here"),
    ],
)
def test_directory_of_another_tuning_is_refused(
    options, difference, tmp_path, monkeypatch
):
    small(directory=tmp_path, grid=[0.0])
    before = contents(tmp_path)
    monkeypatch.setattr(Engine, "train", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(InputError) as caught:
        small(directory=tmp_path, grid=[0.0], **options)
    assert f"holds another tuning: {difference}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert contents(tmp_path) == before
    # It was stopped before its result: the study tells.
    (tmp_path / "tuning.json").unlink()
    with pytest.raises(InputError, match="holds the tuning 'binary l2 holdout'"):
        small(directory=tmp_path, grid=[0.0], **{**options, "rule": "prior"})


def test_tuning_deletes_its_own_runs_alone(tmp_path):
    mine = tmp_path / "tensorboard" / "mine" / "events"
    mine.parent.mkdir(parents=True)
    mine.write_text("curves")
    first = small(directory=tmp_path, grid=[0.0, 0.01, 0.1])
    names = set(contents(tmp_path / "tensorboard"))
    (tmp_path / "tuning.json").write_text("damaged")
    assert small(directory=tmp_path, grid=[0.0, 0.01, 0.1]) == first
    again = contents(tmp_path / "tensorboard")
    assert again[str(mine)] == b"curves"
    assert len(again) == len(names) == 1 + 3 * 2
