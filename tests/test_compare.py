"""The comparison as a whole: fair, repeatable, and never lost."""

import contextlib
import dataclasses
import io
import json
import math
import re
import tempfile
from typing import ClassVar

import keras
import numpy as np
import pytest
from keras.optimizers import SGD, LossScaleOptimizer
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from keras_scaled_l2 import ScaledL2
from keras_scaled_l2.experiments import Arm, Comparison, compare, runs
from keras_scaled_l2.experiments.arrays import checked
from keras_scaled_l2.experiments.engine import Engine
from keras_scaled_l2.experiments.errors import InputError
from keras_scaled_l2.experiments.plan import make_plan
from keras_scaled_l2.experiments.problems import Source
from keras_scaled_l2.experiments.progress import Bar, Lines, Progress, choose
from keras_scaled_l2.experiments.results.files import read_json
from keras_scaled_l2.scalars import LAYOUT

pytestmark = pytest.mark.once
ARMS = ("none", "l2", "sample+dropout")


def tiny_problem():
    """80 examples, 48 of them to train on: few shapes, and so little to compile."""
    x = np.random.default_rng(0).normal(size=(80, 6))
    arrays = {"x_train": x, "y_train": (x[:, 0] > 0).astype(int)}
    return Source("tiny", checked(arrays, name="tiny")).split(0)


def several_rates():
    """An optimizer for the output and another for the rest."""
    parts = keras.optimizers.OptimizerMap(SGD(0.1))
    parts["output"] = keras.optimizers.Adam(0.01)
    return keras.optimizers.MultiOptimizer(parts)


def small(**options):
    return compare(
        **{
            "problem": tiny_problem(),
            "batch_size": 16,
            "arms": ARMS,
            "hidden": (8,),
            "epochs": 2,
            "seeds": 2,
            "progress": False,
            **options,
        }
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One comparison that several tests look at, and its directory."""
    folder = tmp_path_factory.mktemp("made") / "deep" / "folder"
    return small(directory=folder), folder


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A comparison without a directory, its lines, and the folder it ran in."""
    folder, stream = tmp_path_factory.mktemp("quick"), io.StringIO()
    with contextlib.chdir(folder):
        comparison = small(
            problem=tiny_problem().source.split(3),
            arms=["none", "l2"],
            seeds=1,
            epochs=1,
            progress=Lines(stream),
        )
    return comparison, stream.getvalue().splitlines(), folder


def without_seconds(comparison):
    arms = [
        dataclasses.replace(
            arm, runs=tuple(dataclasses.replace(run, seconds=0.0) for run in arm.runs)
        )
        for arm in comparison.arms
    ]
    return dataclasses.replace(comparison, arms=tuple(arms))


@pytest.mark.everywhere
def test_every_arm_is_run_from_every_seed(made):
    comparison, _ = made
    assert [arm.name for arm in comparison.arms] == list(ARMS)
    for arm in comparison.arms:
        assert [run.seed for run in arm.runs] == [0, 1]
    assert comparison.weights == 6 * 8 + 8 + 8 + 1
    assert comparison.architecture == "dense 6-8-1 (relu)"
    assert comparison.backend == keras.config.backend()
    assert comparison.split == "by seed"
    assert comparison.samples == {"train": 48, "validation": 16, "test": 16}
    assert comparison.optimizer["config"]["learning_rate"] == 0.05


def test_arms_of_a_seed_start_from_the_same_weights(made):
    comparison, _ = made
    for index in (0, 1):
        starts = {arm.runs[index].starting_cost.data for arm in comparison.arms}
        assert len(starts) == 1
        norms = {arm.runs[index].weight_norms["start"] for arm in comparison.arms}
        assert len(norms) == 1
    costs = [run.starting_cost.data for run in comparison["none"].runs]
    assert costs[0] != costs[1]


def test_starting_cost_has_the_penalty_of_the_rule(made):
    comparison, _ = made
    c = comparison["l2"].coefficients
    assert set(c.values()) == {2.5e-4}
    assert len(c) == 2
    sample = comparison["sample+dropout"]
    assert list(sample.coefficients.values()) == pytest.approx([6 / (2 * 48)] * 2)
    for one, other in zip(comparison["l2"].runs, sample.runs, strict=True):
        ratio = other.starting_cost.penalty / one.starting_cost.penalty
        assert ratio == pytest.approx(6 / (2 * 48) / 2.5e-4, rel=1e-5)
    assert comparison["none"].coefficients == {}
    assert comparison["none"].runs[0].starting_cost.penalty == 0


@pytest.mark.everywhere
def test_same_call_gives_the_same_numbers(made):
    comparison, _ = made
    np.random.default_rng(5).random()
    keras.random.normal((3,))
    assert without_seconds(small()) == without_seconds(comparison)


def assert_charts_are_filled(tags):
    """Every tag that a chart of the layout names is in the event files."""
    for charts in LAYOUT.values():
        for patterns in charts.values():
            for pattern in patterns:
                assert any(re.fullmatch(pattern.rstrip("$"), tag) for tag in tags)
    names = [tag for tag in tags if tag.startswith("gradient_norm/ratio/")]
    assert len(names) == 2


@pytest.mark.everywhere
def test_directory_holds_json_page_and_curves(made):
    comparison, folder = made
    assert Comparison.from_dict(read_json(folder / "comparison.json")) == comparison
    assert (folder / "comparison.md").read_text() == comparison.to_markdown()
    for arm in ARMS:
        for seed in (0, 1):
            for part in ("train", "validation"):
                place = folder / "tensorboard" / arm / f"seed-{seed}" / part
                tags = {
                    value.tag
                    for events in place.glob("events.out.tfevents*")
                    for event in EventFileLoader(str(events)).Load()
                    for value in event.summary.value
                }
                assert {"cost/data", "cost/penalty"} <= tags
                if part == "train":
                    assert_charts_are_filled(tags)
                assert ("test/data_loss" in tags) is (part == "train")
    page = (folder / "comparison.html").read_text()
    assert all(arm in page for arm in ARMS)
    names = {path.name for path in (folder / "figures").iterdir()}
    assert {"learning_curves.png", "learning_curves.svg"} <= names


def test_curves_of_a_run_that_broke_off_are_taken_away(tmp_path):
    old = tmp_path / "tensorboard" / "none" / "seed-0" / "train" / "events.out.1"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"old")
    keep = tmp_path / "notes.txt"
    keep.write_text("mine")
    small(directory=tmp_path, arms=["none"], seeds=1, epochs=1)
    assert not old.exists()
    assert keep.read_text() == "mine"
    assert list((tmp_path / "tensorboard" / "none").rglob("events.out.tfevents*"))


def test_nothing_is_written_without_a_directory(quick):
    assert list(quick[2].iterdir()) == []


def test_lines_tell_of_each_run_in_turn(quick):
    told = [line.partition(" test data loss ")[0] for line in quick[1]]
    assert [line.partition(" ")[0] for line in told] == ["[1/2]", "[2/2]"]
    # Of two that train side by side either may end first.
    runs = {line.partition(" ")[2] for line in told}
    assert runs == {"none, seed 0:", "l2, seed 0:"}


def test_optimizer_object_is_used_and_recorded(quick):
    optimizer = keras.optimizers.RMSprop(0.25, rho=0.5)
    comparison = small(
        problem=tiny_problem().source.split(3),
        arms=["none"],
        seeds=1,
        epochs=1,
        optimizer=optimizer,
    )
    assert comparison.optimizer["class_name"] == "RMSprop"
    assert comparison.optimizer["config"]["rho"] == 0.5
    run, by_sgd = comparison["none"].runs[0], quick[0]["none"].runs[0]
    assert run.starting_cost == by_sgd.starting_cost
    assert run.test != by_sgd.test
    assert not optimizer.built


@pytest.mark.everywhere
def test_strength_zero_and_dropout_zero_equal_none_exactly():
    penalties = ("l2", "scaled", "sample", "decay")
    names = ("none", *penalties, "dropout", "sample+dropout")
    zero = dict.fromkeys(penalties, 0.0)
    comparison = small(arms=names, strengths=zero, dropout=0.0, seeds=1)
    first, *others = [
        (
            run.starting_cost,
            run.train,
            run.validation,
            run.test,
            run.final_cost,
            run.weight_norms,
            run.curves,
        )
        for run in (arm.runs[0] for arm in comparison.arms)
    ]
    assert all(run == first for run in others)


class Counting(keras.layers.Layer):
    """Counts how often Python calls it: once for each trace."""

    calls: ClassVar[list[int]] = []

    def call(self, inputs):
        self.calls.append(1)
        return inputs


@pytest.mark.everywhere
def test_one_network_is_compiled_once_for_all_arms_and_seeds(monkeypatch):
    engines, made = [], Engine.__init__

    def network():
        layers = [keras.layers.Dense(8, "relu"), Counting(), keras.layers.Dense(1)]
        return keras.Sequential([keras.Input((6,)), *layers])

    def count(self, *arguments, **options):
        engines.append(self)
        made(self, *arguments, **options)

    monkeypatch.setattr(Engine, "__init__", count)
    # Once for each seed, and in warming up, and never again in training.
    traced, warm = [], Engine.warm_up

    def warm_up(self, problem):
        warm(self, problem)
        Counting.calls.clear()
        traced.append(self)

    monkeypatch.setattr(Engine, "warm_up", warm_up)
    train = Engine.train

    def train_and_look(self, *arguments, **options):
        before = len(Counting.calls)
        yield from train(self, *arguments, **options)
        if keras.config.backend() != "torch":  # there it runs at every step
            assert len(Counting.calls) == before

    monkeypatch.setattr(Engine, "train", train_and_look)
    small(model=network, arms=["none", "l2", "scaled", "sample"], tune=2)
    assert len(engines) == len(traced) == 1
    small(model=network, arms=["none", "dropout", "l2+dropout"], tune=2)
    assert len(engines) == len(traced) == 3


def test_first_arm_has_its_penalty_and_its_masks(tmp_path):
    arms = ["l2", "none", "sample+dropout"]
    found = small(directory=tmp_path, strengths={"l2": 0.5}, arms=arms, seeds=1)
    again = small(strengths={"l2": 0.5}, arms=arms[::-1], seeds=1)
    for arm in arms:
        one, other = found[arm].runs[0], again[arm].runs[0]
        assert one.curves == other.curves
        assert (min(one.curves["penalty"]) > 0) is (arm != "none")


def test_arm_of_ones_own_stands_beside_the_named_ones():
    mine = Arm("mine", ScaledL2(2.0, per="model"), dropout=0.2)
    comparison = small(arms=["l2+dropout", mine], dropout=0.2, seeds=[4], epochs=1)
    assert list(comparison["mine"].coefficients.values()) == [2.0 / 56] * 2
    assert comparison["mine"].runs[0].seed == 4
    assert comparison["mine"].rule == mine.rule


def test_regression_has_losses_and_no_accuracy(tmp_path):
    x = np.random.default_rng(0).normal(size=(80, 3))
    np.savez(tmp_path / "data.npz", x_train=x, y_train=x @ [1.0, 2.0, 3.0])
    comparison = small(
        problem=str(tmp_path / "data.npz"), arms=["none"], epochs=60, learning_rate=0.01
    )
    for run in comparison["none"].runs:
        assert run.test.accuracy is None
        assert run.train.data_loss < run.starting_cost.data / 2
    assert "test - train data loss" in comparison.table()
    assert "By test accuracy" not in comparison.table()


@pytest.mark.everywhere
def test_network_of_a_function_is_made_anew_for_each_seed():
    def network():
        return keras.Sequential(
            [
                keras.Input((6,)),
                keras.layers.Dense(4, activation="tanh"),
                keras.layers.Dense(1, activation="sigmoid"),
            ]
        )

    first, again = (small(model=network, arms=["none"], epochs=1) for _ in range(2))
    assert first.architecture == "network"
    costs = {run.starting_cost.data for run in first["none"].runs}
    assert len(costs) == 2
    assert max(costs) < 2
    assert without_seconds(again) == without_seconds(first)


@pytest.mark.skipif(
    not hasattr(keras.optimizers, "MultiOptimizer"), reason="not in this Keras"
)
def test_optimizer_of_several_learning_rates_is_refused():
    with pytest.raises(InputError, match="optimizer MultiOptimizer: expected one with"):
        small(optimizer=several_rates())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"seeds": [1, 1]}, "none of them twice"),
        ({"seeds": [-1]}, "seed -1"),
        ({"batch_size": 1.5}, "batch size 1.5"),
        ({"hidden": [8, 0]}, "hidden units 0"),
        ({"learning_rate": math.nan}, "learning rate"),
        ({"optimizer": 3}, "expected a name or an optimizer"),
        ({"optimizer": SGD(use_ema=True)}, "optimizer SGD with use_ema"),
        ({"optimizer": SGD(loss_scale_factor=64.0)}, "with loss_scale_factor"),
        ({"optimizer": LossScaleOptimizer(SGD())}, "expected its inner optimizer"),
        ({"arms": [Arm("l2"), "l2"]}, "more than once"),
        ({"arms": ["l2", "l2"]}, "more than once"),
        ({"model": 3}, "expected a built keras.Model"),
        ({"model": "nowhere.keras"}, "cannot be read"),
        ({"tune": 0}, "tune 0"),
        ({"patience": 0}, "patience 0"),
        ({"memory": 0}, "memory 0: expected GiB"),
        ({"model": lambda: 3}, "made int"),
        ({"arms": None}, "arms None: expected a sequence, as ['none', 'l2']"),
        ({"arms": ["none", 3]}, "arm 3 of type int: expected a name such as 'l2'"),
        ({"strengths": 5}, "strengths 5: expected a dict of names and numbers"),
        ({"arms": ["l2"], "strengths": {"l2": 1e300}}, "precision ends at 3.4e+38"),
        ({"arms": ["decay"], "strengths": {"decay": 1e39}}, "decay of 1e+39"),
        ({"model": lambda: 1 / 0}, "failed: ZeroDivisionError"),
        ({"arms": [Arm("x", {"class_name": "Nowhere", "config": {}})]}, "arm 'x'"),
    ],
)
def test_wrong_input_is_refused_before_any_training(options, expected, monkeypatch):
    monkeypatch.setattr(Engine, "train", lambda *_, **__: pytest.fail("trained"))
    monkeypatch.setattr(Engine, "warm_up", lambda *_: pytest.fail("trained"))
    with pytest.raises(InputError) as error:
        small(**options)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_arms_may_be_an_iterator():
    plan = make_plan(problem="digits", arms=iter(["none", "l2"]), hidden=(4,))
    assert [arm.name for arm in plan.arms] == ["none", "l2"]


class Interrupting(Progress):
    """Presses Ctrl-C in the second run."""

    def __init__(self):
        self.finished = 0

    def finish(self, arm, record):
        self.finished += 1

    def epoch(self, arm, seed, logs):
        if self.finished:
            raise KeyboardInterrupt


def test_interrupted_comparison_keeps_what_is_finished(tmp_path, made, monkeypatch):
    begun, ended = [], []
    start, end = runs.RunEvents.__init__, runs.RunEvents.close
    monkeypatch.setattr(
        runs.RunEvents,
        "__init__",
        lambda self, *a, **k: begun.append(self) or start(self, *a, **k),
    )
    monkeypatch.setattr(
        runs.RunEvents, "close", lambda self: ended.append(self) or end(self)
    )
    with pytest.raises(KeyboardInterrupt):
        small(directory=tmp_path, progress=Interrupting())
    saved = Comparison.from_dict(read_json(tmp_path / "comparison.json"))
    finished = [arm for arm in saved.arms if arm.runs]
    assert 1 <= len(finished) < 3
    # Of the interrupted runs too the event files are closed.
    assert len(begun) > len(finished)
    assert set(ended) == set(begun)
    for arm in finished:
        kept, whole = (
            dataclasses.replace(comparison[arm.name].runs[0], seconds=0.0)
            for comparison in (saved, made[0])
        )
        assert kept == whole
    assert "| none |" in (tmp_path / "comparison.md").read_text()


def test_folder_that_takes_no_file_is_refused(tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(InputError, match=r"cannot be written \(Permission denied\)"):
        small(directory=tmp_path)


def test_bar_counts_every_epoch(capsys):
    bar = Bar()
    small(progress=bar, arms=["none", "l2"], seeds=1, epochs=3)
    (task,) = bar._columns.tasks
    assert (task.completed, task.total) == (6, 6)
    assert "l2, seed 0: test data loss" in capsys.readouterr().err


def test_bar_is_for_terminals_and_lines_for_files(monkeypatch):
    assert isinstance(choose(True), Lines)
    assert type(choose(False)) is Progress
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert isinstance(choose(True), Bar)
    mine = Progress()
    assert choose(mine) is mine


def test_json_needs_no_special_reader(made):
    _, folder = made
    data = json.loads((folder / "comparison.json").read_text())
    assert data["format"] == 1
    rule = data["arms"][1]["rule"]
    assert keras.saving.deserialize_keras_object(rule) == ScaledL2(2.5e-4, per=1)
