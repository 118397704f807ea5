"""The command: what it prints, writes and returns, and its one line on a mistake."""

import os
import re
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_scaled_l2 import cli
from keras_scaled_l2.experiments.arms import DEFAULT_ARMS, PARTS
from keras_scaled_l2.experiments.engine import Engine
from keras_scaled_l2.experiments.plan import (
    DEFAULT_BATCH_SIZE,
    DEFAULT_EPOCHS,
    DEFAULT_LEARNING_RATES,
    DEFAULT_SEEDS,
)
from keras_scaled_l2.experiments.results.comparison import Comparison
from keras_scaled_l2.experiments.results.files import read_json


@pytest.fixture
def small(tmp_path):
    """The arguments of a comparison of a second, of 48 examples to train on."""
    x = np.random.default_rng(0).normal(size=(80, 3))
    path = tmp_path / "small.npz"
    np.savez(path, x_train=x, y_train=(x[:, 0] > 0).astype(int))
    options = "--hidden 4 --epochs 1 --batch-size 16 --arms none"
    return ["compare", "--problem", str(path), *options.split()]


@pytest.fixture
def untrained(monkeypatch):
    """Fails the test if any training starts."""
    for name in ("train", "warm_up"):
        monkeypatch.setattr(Engine, name, lambda *_, **__: pytest.fail("trained"))


def test_compare_prints_the_table_and_writes_the_files(small, tmp_path, capsys):
    directory = tmp_path / "runs"
    arguments = ["--arms", "none,l2", "--strength", "l2=0.5", "--directory"]
    assert cli.main([*small, "--seeds", "1", *arguments, str(directory)]) == 0
    printed = capsys.readouterr()
    saved = Comparison.from_dict(read_json(directory / "comparison.json"))
    assert printed.out.startswith(saved.table())
    assert f"tensorboard --logdir {directory}" in printed.out
    assert [arm.name for arm in saved.arms] == ["none", "l2"]
    assert saved["l2"].rule["config"]["strength"] == 0.5
    assert len(printed.err.splitlines()) == 2


def test_help_names_every_arm_and_the_default(capsys, monkeypatch):
    """Written out there: the list comes with Keras, which help must not wait for."""
    monkeypatch.setenv("COLUMNS", "400")  # argparse breaks lines at hyphens too
    assert cli.main(["compare", "--help"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"of {', '.join(PARTS)}; joined by +" in told
    assert f"(default: {','.join(DEFAULT_ARMS)})" in told


@pytest.mark.parametrize("ticked", [4, 3])
def test_runs_that_tensorboard_does_not_tick_are_said(
    small, tmp_path, capsys, monkeypatch, ticked
):
    monkeypatch.setattr(cli, "TICKED", ticked)
    arguments = ["--seeds", "1", "--arms", "none,l2", "--directory", str(tmp_path)]
    assert cli.main([*small, *arguments]) == 0
    said = f"more than {ticked}; add /l2 for those of one arm"
    runs = len(list((tmp_path / "tensorboard").rglob("events*")))
    assert (said in capsys.readouterr().out) == (runs > ticked)
    assert runs == 4


def test_quiet_shows_the_table_only(small, tmp_path, capsys):
    arguments = ["--seeds", "1", "--quiet", "--directory", str(tmp_path)]
    assert cli.main([*small, *arguments]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "none" in printed.out


def test_every_option_reaches_the_comparison(tmp_path):
    path = tmp_path / "data.npz"
    x = 1000 * np.random.default_rng(0).normal(size=(30, 3))
    np.savez(path, x_train=x, y_train=np.arange(30) % 2.0)
    arguments = (
        f"--problem {path} --task regression --standardize --hidden 4,3 "
        "--arms sample+dropout --seeds 2 --epochs 1 --batch-size 7 --strength sample=2 "
        f"--dropout 0.25 --optimizer adam --learning-rate 0.5 --quiet "
        f"--directory {tmp_path / 'out'}"
    )
    assert cli.main(["compare", *arguments.split()]) == 0
    saved = Comparison.from_dict(read_json(tmp_path / "out" / "comparison.json"))
    assert saved.architecture == "dense 3-4-3-1 (relu)"
    assert (saved.epochs, saved.batch_size) == (1, 7)
    assert saved.optimizer["class_name"] == "Adam"
    assert saved.optimizer["config"]["learning_rate"] == 0.5
    (arm,) = saved.arms
    assert (arm.dropout, len(arm.runs)) == (0.25, 2)
    assert set(arm.coefficients.values()) == {2 / (2 * 18)}
    # Only scaled features start with a cost of this order.
    assert arm.runs[0].starting_cost.data < 10


def wrong(tmp_path):
    """Case -> arguments, and a part of the line that they must end in."""
    file = tmp_path / "file"
    file.write_text("text")
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes(b"PK damaged")
    short = tmp_path / "short.npz"
    np.savez(short, x_train=np.ones((3, 2)), y_train=np.zeros(2, int))
    only_x = tmp_path / "only_x.npz"
    np.savez(only_x, x_train=np.ones((3, 2)))
    return {
        "arm": ("--arms none,scalde", "unknown arm 'scalde': did you mean 'scaled'?"),
        "problem": ("--problem digit", "did you mean 'digits'?"),
        "negative": ("--strength l2=-1", "strength l2=-1.0"),
        "nan": ("--strength l2=nan", "expected a finite number"),
        "infinite": ("--strength l2=inf", "expected a finite number"),
        "no number": ("--strength l2=much", "expected ARM=VALUE"),
        "no arm": ("--strength 0.1", "expected ARM=VALUE"),
        "strength of dropout": ("--strength dropout=0.1", "--dropout"),
        "rate": ("--dropout 1", "dropout rate 1.0"),
        "hidden": ("--hidden 512,x", "whole numbers joined by commas"),
        "zero hidden": ("--hidden 0", "hidden units 0"),
        "seeds": ("--seeds 0", "seeds 0"),
        "many seeds": ("--seeds 100000000000", "seeds 100000000000: expected"),
        "huge batch": ("--batch-size 100000000000000000000", "below 2**31"),
        "memory": ("--memory 1e300", "memory 1e+300: expected GiB"),
        "huge hidden": ("--hidden 100000000000", "Give fewer units"),
        "huge units": (f"--hidden {10**400}", "hidden units 1"),
        "no directory": ("--directory=", "directory '': expected a name"),
        "epochs": ("--epochs -3", "epochs -3"),
        "batch": ("--batch-size 1.5", "invalid int value: '1.5'"),
        "rate of learning": ("--learning-rate 0", "learning rate 0.0"),
        "missing file": (f"--problem {tmp_path}/no.npz", "there is no file"),
        "damaged file": (f"--problem {damaged}", "cannot read"),
        "lengths": (f"--problem {short}", "has 3 examples and y_train has 2"),
        "missing array": (f"--problem {only_x}", "has no array 'y_train'"),
        "directory is a file": (f"--directory {file}", "cannot be written"),
        "directory in a file": (f"--directory {file}/in", "cannot be written"),
        "unknown option": ("--epoch-count 3", "unrecognized arguments"),
        "task of a known problem": ("--task regression", "it is for .npz files"),
        "hidden of conv": ("--model conv --hidden 4", "Leave --hidden out"),
        "hidden of a function": ("--model a.b:c --hidden 4", "Leave --hidden out"),
        "hidden of a file": ("--model a.keras --hidden 4", "Leave --hidden out"),
        "hidden of nothing": ("--model dens --hidden 4", "did you mean 'dense'?"),
        "dropout of no arm": ("--dropout 0.3 --arms none,l2", "leave --dropout out"),
        "strength twice": (
            "--strength l2=1 --strength sample=2 --strength l2=1",
            "--strength l2=... is given more than once",
        ),
    }


@pytest.mark.usefixtures("untrained")
def test_wrong_input_is_one_line_and_exit_code_2(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for case, (arguments, expected) in wrong(tmp_path).items():
        code = cli.main(["compare", "--problem", "breast-cancer", *arguments.split()])
        printed = capsys.readouterr()
        assert code == 2, case
        assert printed.out == "", case
        (line,) = printed.err.splitlines()
        assert line.startswith("keras-scaled-l2: error: "), case
        assert expected in line, case


@pytest.mark.parametrize("arguments", [[], ["compere"], ["--wrong"]])
def test_wrong_command_is_one_line_and_exit_code_2(arguments, capsys):
    assert cli.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("keras-scaled-l2: error: ")


def test_help_gives_the_defaults_that_hold(capsys):
    assert cli.main(["compare", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for option, default in (
        ("--seeds N", DEFAULT_SEEDS),
        ("--epochs N", DEFAULT_EPOCHS),
        ("--batch-size N", DEFAULT_BATCH_SIZE),
        ("--dropout RATE", 0.5),
    ):
        assert re.search(rf"{option} [^(]*\(default: {default}\)", shown), option
    rates = DEFAULT_LEARNING_RATES
    assert f"{rates['sgd']} for sgd, {rates['adam']} for adam" in shown


def test_quiet_command_says_nothing_on_standard_error(small, tmp_path):
    # In a process of its own: libraries greet past Python, once, as they are loaded.
    command = [sys.executable, "-m", "keras_scaled_l2", *small, "--arms", "none"]
    environment = {**os.environ, "KERAS_BACKEND": keras.config.backend()}
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)
    done = subprocess.run(
        [*command, "--seeds", "1", "--quiet", "--directory", str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_ctrl_c_is_one_line_and_loses_no_finished_run(small, tmp_path):
    # In a process of its own: the signal must come from outside, and nothing but the
    # command has imported the rules.
    command = [sys.executable, "-m", "keras_scaled_l2", *small, "--arms", "l2,none"]
    # What a shell starts in the background ignores Ctrl-C, and so would its children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [*command, "--seeds", "100000", "--directory", str(tmp_path)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "KERAS_BACKEND": keras.config.backend()},
    )
    signal.signal(signal.SIGINT, before)
    lines = []
    try:
        for line in process.stderr:
            lines.append(line)
            if line.startswith("[3/"):
                process.send_signal(signal.SIGINT)
                break
        out, rest = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, "".join(lines) + rest
    assert "Traceback" not in rest
    last = rest.splitlines()[-1]
    found = re.fullmatch(
        r"keras-scaled-l2: interrupted: (\d+) of 200000 runs are finished and saved in "
        rf"{re.escape(str(tmp_path))}/comparison\.json; "
        "the same command goes on from there",
        last,
    )
    assert found, rest
    saved = Comparison.from_dict(read_json(tmp_path / "comparison.json"))
    assert sum(len(arm.runs) for arm in saved.arms) == int(found[1]) >= 3
    assert out == ""


@pytest.mark.parametrize(
    "words",
    [
        "compare --seeds 2 --seeds 3 --epochs 4",
        "compare --seeds=2 --epochs 4 --seeds 3",
        "compare --seed 2 --epochs 4 --seeds=3",
        "compare --epochs 4",
        "compare --epochs 4 --seeds",
    ],
)
def test_command_without_its_seeds_keeps_all_else(words):
    expected = "keras-scaled-l2 compare --epochs 4"
    assert cli._without_seeds(words.split()) == expected
