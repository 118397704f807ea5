"""A comparison that is stopped in any way goes on, and ends as if it had not been."""

import contextlib
import dataclasses
import importlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

from keras_scaled_l2 import cli
from keras_scaled_l2.experiments import Comparison, compare
from keras_scaled_l2.experiments.arrays import checked
from keras_scaled_l2.experiments.engine import Engine
from keras_scaled_l2.experiments.errors import InputError, RecordWarning, WriteError
from keras_scaled_l2.experiments.problems import Source
from keras_scaled_l2.experiments.results.files import read_json

pytestmark = pytest.mark.once

ARMS = ("none", "l2", "sample+dropout")
COMPARE = importlib.import_module("keras_scaled_l2.experiments.compare")
L = keras.layers


def arrays():
    x = np.random.default_rng(0).normal(size=(80, 6))
    return {"x_train": x, "y_train": (x[:, 0] > 0).astype(int)}


def problem(**changed):
    return Source("tiny", checked({**arrays(), **changed}, name="tiny")).split(0)


def small(**options):
    return compare(
        **{
            "problem": problem(),
            "batch_size": 16,
            "arms": ARMS,
            "hidden": (4,),
            "epochs": 2,
            "seeds": 2,
            "progress": False,
            **options,
        }
    )


@pytest.fixture
def no_figures(monkeypatch):
    """Figures follow from the comparison, and take longer than these trainings."""
    monkeypatch.setattr(COMPARE, "save_figures", lambda *_: [])


@pytest.fixture
def untrained(monkeypatch):
    for name in ("train", "warm_up"):
        monkeypatch.setattr(Engine, name, lambda *_, **__: pytest.fail("trained"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished comparison and its directory, to be copied and not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(COMPARE, "save_figures", lambda *_: [])
        return small(directory=folder, seeds=3), folder


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished[1], tmp_path / "copied")


def without_seconds(value):
    """Of a Comparison or of JSON."""
    if isinstance(value, Comparison):
        return without_seconds(value.to_dict())
    if isinstance(value, dict):
        return {k: without_seconds(v) for k, v in value.items() if k != "seconds"}
    if isinstance(value, list | tuple):
        return [without_seconds(item) for item in value]
    return value


def saved(folder):
    """The comparison but for the command that asked for it, which names the folder."""
    data = without_seconds(read_json(folder / "comparison.json"))
    asked = data.pop("command")
    answer = data["statistics"]["answer"]
    *_, last = answer
    # The seeds that would decide, and how to ask for them.
    answer[-1] = last.partition(asked or "compare(...")[0]
    return data


def content(folder):
    """Name of each file -> its bytes and the time it was written."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


def records(folder):
    return sorted(folder.glob("runs/*/seed-*.json"))


def hidden(folder):
    return [path.name for path in folder.rglob(".*") if path.name != ".lock"]


# --- processes of their own ---------------------------------------------------------


def command(tmp_path, *options):
    """Arguments of the command, but for the directory."""
    path = tmp_path / "small.npz"
    np.savez(path, **arrays())
    given = "--hidden 4 --epochs 2 --batch-size 16 --seeds 3 --quiet"
    arms = ["--arms", ",".join(ARMS)]
    return ["compare", "--problem", str(path), *given.split(), *arms, *options]


def start(arguments, folder):
    # What a shell starts in the background ignores Ctrl-C, and so would its children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "keras_scaled_l2", *arguments),
                *("--directory", str(folder)),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "KERAS_BACKEND": keras.config.backend()},
        )
    finally:
        signal.signal(signal.SIGINT, before)


def stop(process, folder, runs, seconds, number):
    """Send a signal some seconds after so many more runs are finished."""
    goal = len(records(folder)) + runs
    limit = time.monotonic() + 120
    while process.poll() is None and len(records(folder)) < goal:
        assert time.monotonic() < limit
        time.sleep(0.002)
    time.sleep(seconds)
    process.send_signal(number)
    return process.communicate(timeout=120)


def test_killed_again_and_again_it_ends_as_if_never_stopped(tmp_path):
    # So many epochs that several trainings are left when the signal comes.
    arguments = command(tmp_path, "--tune", "2", "--epochs", "100")
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    assert cli.main([*arguments, "--directory", str(whole)]) == 0
    random = np.random.default_rng(0)
    kept = {}
    for _ in range(3):
        process = start(arguments, folder)
        runs, seconds = int(random.integers(1, 5)), float(random.uniform(0, 0.1))
        stop(process, folder, runs, seconds, signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        now = {path: path.read_bytes() for path in records(folder)}
        # What was finished before is there, and was not made again.
        assert kept.items() <= now.items()
        assert len(now) > len(kept)
        kept = now
    assert len(kept) < len(records(whole))
    process = start(arguments, folder)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert "Traceback" not in error
    assert "sample+dropout" in out
    assert saved(folder) == saved(whole)
    assert hidden(folder) == []
    assert kept.items() <= {p: p.read_bytes() for p in records(folder)}.items()
    assert {p.name for p in folder.iterdir()} == {p.name for p in whole.iterdir()}


def test_ctrl_c_is_made_good_by_the_same_command(tmp_path, finished):
    arguments, folder = command(tmp_path), tmp_path / "stopped"
    process = start(arguments, folder)
    # While the second network is compiled: Keras on torch drops a Ctrl-C there.
    out, error = stop(process, folder, 2, 0.03, signal.SIGINT)
    assert process.returncode == 130, error
    assert "the same command goes on from there" in error
    assert "Traceback" not in error
    assert out == ""
    assert hidden(folder) == []
    before = content(folder / "runs")
    assert 2 <= len(before) < 9
    assert cli.main([*arguments, "--directory", str(folder)]) == 0
    assert before.items() <= content(folder / "runs").items()
    name = read_json(folder / "comparison.json")["problem"]
    assert saved(folder) == {**saved(finished[1]), "problem": name}


HOLD = """
import contextlib, sys, time, pathlib
from keras_scaled_l2.experiments.storage import Store
folder = pathlib.Path(sys.argv[1])
import json
configuration = json.loads((folder / "configuration.json").read_text())
with Store(folder, configuration).locked():
    print("locked", flush=True)
    time.sleep(600)
"""


@pytest.mark.usefixtures("no_figures")
def test_second_process_is_refused_until_the_first_is_dead(tmp_path, capsys):
    arguments = [*command(tmp_path), "--directory", str(tmp_path / "shared")]
    assert cli.main(arguments) == 0
    folder = tmp_path / "shared"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "KERAS_BACKEND": keras.config.backend()},
    )
    try:
        assert holder.stdout.readline() == "locked\n"
        before = content(folder)
        capsys.readouterr()
        assert cli.main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "is in use by another comparison that is running" in line
        assert content(folder) == before
    finally:
        holder.kill()
        holder.communicate()
    assert cli.main(arguments) == 0


# --- in this process ----------------------------------------------------------------


def residual():
    """Layers and operations that Keras names, a new number for each one made."""
    inputs = keras.Input((6,))
    x = L.Dense(6, activation="relu")(inputs)
    x = L.Dropout(0.3)(keras.ops.tanh(x + inputs))
    return keras.Model(inputs, L.Dense(1)(x))


def chain():
    return keras.Sequential(
        [keras.Input((6,)), L.Dense(4, "relu"), L.BatchNormalization(), L.Dense(1)]
    )


@pytest.mark.everywhere
@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    ("model", "options"),
    [("dense", {}), (residual, {"tune": 2, "patience": 1}), (chain, {})],
)
def test_finished_comparison_is_read_and_not_trained(model, options, tmp_path, request):
    first = small(model=model, directory=tmp_path, seeds=1, **options)
    runs = content(tmp_path / "runs")
    request.getfixturevalue("untrained")
    again = small(model=model, directory=tmp_path, seeds=1, **options)
    assert again == first
    assert content(tmp_path / "runs") == runs


class Breaking:
    """Presses Ctrl-C in a run, counted from 1."""

    def __init__(self, run):
        self.left, self.breaks = run, False

    def __getattr__(self, name):
        return lambda *_: None

    def begin(self, *_):
        self.left -= 1
        self.breaks |= self.left == 0

    def epoch(self, *_):
        if self.breaks:
            raise KeyboardInterrupt


@pytest.mark.everywhere
@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("model", [residual])
def test_model_with_dropout_of_its_own_goes_on_the_same(model, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        small(model=model, directory=tmp_path, progress=Breaking(3))
    resumed = small(model=model, directory=tmp_path)
    assert without_seconds(resumed) == without_seconds(small(model=model))


@pytest.mark.usefixtures("no_figures")
def test_comparison_file_is_made_once_a_seed(tmp_path, monkeypatch):
    made = []
    real = Comparison.to_dict

    def spy(self):
        made.append([len(arm.runs) for arm in self.arms])
        return real(self)

    monkeypatch.setattr(Comparison, "to_dict", spy)
    small(directory=tmp_path, epochs=1)
    assert made == [[1, 1, 1], [2, 2, 2]]


@pytest.mark.usefixtures("no_figures")
def test_seeds_and_arms_may_be_added_and_left_out(finished, tmp_path):
    small(directory=tmp_path, seeds=1, arms=["l2"])
    small(directory=tmp_path, seeds=[2], arms=["none", "l2"])
    before = content(tmp_path / "runs")
    comparison = small(directory=tmp_path, seeds=3)
    assert without_seconds(comparison) == without_seconds(finished[0])
    assert before.items() <= content(tmp_path / "runs").items()
    assert len(before) == 3
    fewer = small(directory=tmp_path, seeds=[1], arms=["none"])
    assert [run.seed for run in fewer["none"].runs] == [1]
    with pytest.raises(InputError, match="arms l2 rule config strength is 0"):
        small(directory=tmp_path, arms=["none", "l2"], strengths={"l2": 0.5})
    assert before.items() <= content(tmp_path / "runs").items()


def changed_value():
    x = arrays()["x_train"]
    x[3, 2] += 1e-3
    return problem(x_train=x)


def changed_label():
    y = arrays()["y_train"]
    y[5] = 1 - y[5]
    return problem(y_train=y)


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"epochs": 3}, "epochs is 2 there, 3 here"),
        ({"batch_size": 8}, "batch size is 16 there, 8 here"),
        (
            {"strengths": {"l2": 0.5}},
            "arms l2 rule config strength is 0.00025 there, 0",
        ),
        ({"dropout": 0.25}, "arms sample+dropout dropout is 0.5 there, 0.25 here"),
        ({"problem": changed_value()}, "data is "),
        ({"problem": changed_label()}, "data is "),
        ({"optimizer": "adam"}, "optimizer class_name is SGD there, Adam here"),
        ({"learning_rate": 0.1}, "learning_rate is 0.05 there, 0.1 here"),
        ({"hidden": (5,)}, "dense 6-4-1 (relu) there, dense 6-5-1 (relu) here"),
        ({"tune": 2}, "trials is 0 there, 2 here"),
        ({"patience": 1}, "patience is not set there, 1 here"),
        ({"model": chain}, "architecture is dense 6-4-1 (relu) there, chain here"),
    ],
)
def test_another_configuration_is_refused_with_the_difference(
    options, expected, finished
):
    _, folder = finished
    before = content(folder)
    with pytest.raises(InputError) as error:
        small(**{"directory": folder, **options})
    assert expected in str(error.value)
    assert "\n" not in str(error.value)
    assert content(folder) == before


def network(units=4, activation="relu", initializer="glorot_uniform", rate=0.1):
    def make():
        return keras.Sequential(
            [
                keras.Input((6,)),
                L.Dense(units, activation, kernel_initializer=initializer),
                L.Dropout(rate),
                L.Dense(1),
            ]
        )

    return make


@pytest.mark.usefixtures("no_figures")
def test_another_network_of_the_same_name_is_refused(tmp_path):
    options = {"directory": tmp_path, "seeds": 1, "arms": ["none"]}
    first = small(model=network(), **options)
    before = content(tmp_path)
    for changed, expected in (
        ({"units": 5}, "initial weights is "),
        ({"initializer": "he_normal"}, "initial weights is "),
        ({"activation": "tanh"}, "layers is "),
        ({"rate": 0.2}, "layers is "),
    ):
        with pytest.raises(InputError, match=expected):
            small(model=network(**changed), **options)
        assert content(tmp_path) == before
    assert small(model=network(), **options) == first


@pytest.mark.usefixtures("no_figures")
def test_another_configuration_is_one_line_and_exit_code_2(tmp_path, capsys):
    arguments = [*command(tmp_path, "--directory", str(tmp_path / "runs"))]
    assert cli.main([*arguments, "--arms", "none", "--seeds", "1"]) == 0
    before = content(tmp_path)
    capsys.readouterr()
    assert cli.main([*arguments, "--arms", "none", "--epochs", "3"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("keras-scaled-l2: error: directory ")
    assert "holds another comparison: epochs is 2 there, 3 here" in line
    assert content(tmp_path) == before


def changed_digit(text):
    loss = json.loads(text)["record"]["test"]["data_loss"]
    old = f'"data_loss": {loss}'
    assert old in text
    # The last digits of a number may be more than a float can tell.
    place = text.index(old) + len('"data_loss": 0.12')
    return text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :]


DAMAGES = {
    "truncated": lambda text: text[: len(text) // 2],
    "empty": lambda _: "",
    "changed digit": changed_digit,
    "other object": lambda _: '{"a": 1}',
    "no object": lambda _: "[1, 2]",
    "null": lambda _: "null",
    "record of null": lambda _: '{"format": 1, "sha256": "", "record": null}',
    "not a number": lambda _: '{"format": 1, "sha256": "", "record": NaN}',
    "deep": lambda _: "[" * 200_000,
    "binary": lambda _: bytes(range(256)) * 4,
    "zeros": lambda text: bytes(len(text)),
}


@pytest.mark.usefixtures("no_figures")
def test_damaged_records_are_named_set_aside_and_run_again(copied, finished):
    paths = records(copied)
    assert len(paths) == 9
    damaged = {}
    for (name, damage), path in zip(DAMAGES.items(), [*paths, *paths], strict=False):
        if path in damaged:
            continue
        new = damage(path.read_text())
        path.write_bytes(new if isinstance(new, bytes) else new.encode())
        damaged[path] = (name, path.read_bytes())
    (copied / "comparison.json").write_text("gone")
    with pytest.warns(UserWarning) as caught:
        comparison = small(directory=copied, seeds=3)
    assert without_seconds(comparison) == without_seconds(finished[0])
    said = [str(w.message) for w in caught if "is damaged" in str(w.message)]
    assert len(said) == len(damaged) == 9
    for path, (name, content_before) in damaged.items():
        assert sum(f"{str(path)!r}" in line for line in said) == 1, name
        assert path.with_suffix(".damaged").read_bytes() == content_before, name
    assert all("\n" not in line for line in said)
    assert hidden(copied) == []


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("name", ["binary", "zeros", "null"])
def test_damaged_trial_is_tried_again_and_the_choice_stays(name, tmp_path):
    options = {"directory": tmp_path, "arms": ["l2"], "seeds": 1, "tune": 2}
    first = small(**options)
    path = tmp_path / "runs" / "l2" / "seed-0-trial-1.json"
    new = DAMAGES[name](path.read_text())
    path.write_bytes(new if isinstance(new, bytes) else new.encode())
    (tmp_path / "runs" / "l2" / "seed-0.json").unlink()
    with pytest.warns(UserWarning, match=r"seed-0-trial-1\.json.*is damaged"):
        again = small(**options)
    assert without_seconds(again) == without_seconds(first)


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 200_000, "\0" * 99])
def test_damaged_configuration_is_told_and_nothing_is_lost(text, copied):
    (copied / "configuration.json").write_text(text)
    before = content(copied)
    with pytest.raises(InputError) as error:
        small(directory=copied)
    assert "configuration.json is damaged" in str(error.value)
    assert "Give another directory" in str(error.value)
    assert "\n" not in str(error.value)
    assert content(copied) == before


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("gone", [(), ("comparison.json",)])
def test_runs_of_nobody_knows_what_are_refused(gone, copied):
    for name in ("configuration.json", *gone):
        (copied / name).unlink()
    with pytest.raises(InputError, match=r"without configuration\.json"):
        small(directory=copied)


@pytest.mark.usefixtures("no_figures")
def test_what_a_killed_write_left_is_taken_away_and_nothing_else(copied, finished):
    left = [".comparison.json.ab12_x9z", "runs/l2/.seed-1.json.abcdefgh"]
    mine = [".notes.json", ".comparison", "figures.txt", "runs/l2/.mine.txt"]
    for name in (*left, *mine):
        (copied / name).write_text("text")
    assert small(directory=copied, seeds=3) == finished[0]
    assert not any((copied / name).exists() for name in left)
    assert all((copied / name).exists() for name in mine)


@pytest.mark.usefixtures("no_figures")
def test_failed_write_loses_no_finished_run(tmp_path, monkeypatch):
    real, written = os.replace, []

    def full(source, target):
        written.append(target)
        if len(written) >= 5:
            raise OSError(28, "No space left on device")
        real(source, target)

    options = {"directory": tmp_path, "seeds": 1}
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with (
            pytest.warns(RecordWarning, match="cannot be written .No space left"),
            pytest.raises(
                WriteError, match=r"No space left.*Make room there"
            ) as caught,
        ):
            small(**options)
    assert "\n" not in str(caught.value)
    assert without_seconds(caught.value.result) == without_seconds(small(seeds=1))
    assert hidden(tmp_path) == []
    before = content(tmp_path / "runs")
    assert before
    assert without_seconds(small(**options)) == without_seconds(small(seeds=1))
    assert before.items() <= content(tmp_path / "runs").items()


@contextlib.contextmanager
def room(size):
    """No file can grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# JAX would write the tests' own compilation cache in that room.
@pytest.mark.once("tensorflow")
@pytest.mark.parametrize(
    ("name", "least", "more"),
    [
        ("compare", 3000, "--seeds 1 --hidden 4 --arms none,l2"),
        ("transfer", 6000, "--seeds 2 --sizes 30,300 --rules l2"),
        # The pages of a tuning are smaller than its study.
        ("tune", 120_000, "--seeds 20 --hidden 4 --grid 0,0.1,0.2"),
    ],
)
def test_full_disk_is_one_line_after_the_table(name, least, more, tmp_path, capsys):
    folder = tmp_path / "full"
    np.savez(tmp_path / "tiny.npz", **arrays())
    words = [name, "--problem", str(tmp_path / "tiny.npz"), "--epochs", "1"]
    words += [*more.split(), "--quiet", "--directory", str(folder)]
    with room(least):
        assert cli.main(words) == 2
    out, err = capsys.readouterr()
    *warned, last = err.splitlines()
    assert "the same command goes on" in last
    if name == "tune":
        # A study that cannot be written ends the search: there is no table yet.
        assert (out, warned) == ("", [])
    else:
        assert "95 %" in out
        assert [w.startswith("keras-scaled-l2: warning: ") for w in warned] == [True]
    if name == "transfer":
        assert (folder / "trainings.jsonl").read_text().endswith("\n")
    assert cli.main(words) == 0
    assert "95 %" in capsys.readouterr().out


@pytest.mark.usefixtures("no_figures")
def test_write_that_failed_once_is_made_good(tmp_path, monkeypatch):
    real, written = os.replace, []

    def full(source, target):
        written.append(target)
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.warns(RecordWarning, match="the trainings go on"):
        small(directory=tmp_path, seeds=1)
    assert len(records(tmp_path)) == len(ARMS)


@pytest.mark.usefixtures("no_figures")
def test_diverged_runs_survive_the_round_trip(tmp_path, request):
    options = {"learning_rate": 1e20, "directory": tmp_path, "tune": 2, "patience": 1}
    first = small(**options)
    assert not np.isfinite([run.test.data_loss for run in first["l2"].runs]).any()
    request.getfixturevalue("untrained")
    again = small(**options)
    assert again == first
    read = Comparison.from_dict(read_json(tmp_path / "comparison.json"))
    assert read == first
    assert read.table() == first.table()
    assert read.to_markdown() == first.to_markdown()


@pytest.mark.usefixtures("no_figures")
def test_same_directory_within_one_process_is_refused_too(tmp_path):
    class Nested(Breaking):
        def begin(self, *_):
            with pytest.raises(InputError, match="is in use"):
                small(directory=tmp_path, seeds=1)

    small(directory=tmp_path, seeds=1, arms=["none"], progress=Nested(-1))
    with contextlib.redirect_stderr(io.StringIO()):
        small(directory=tmp_path, seeds=1, arms=["none"])


def test_only_the_seconds_are_left_out_of_these_comparisons(finished):
    whole = finished[0]
    arm = whole.arms[0]
    run = dataclasses.replace(arm.runs[0], seconds=99.0)
    slow = dataclasses.replace(arm, runs=(run, *arm.runs[1:]))
    other = dataclasses.replace(whole, arms=(slow, *whole.arms[1:]))
    assert without_seconds(other) == without_seconds(whole)
    assert other.to_dict() != whole.to_dict()
