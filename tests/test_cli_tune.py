"""The command ``tune``: its words reach the tuning, its mistakes are one line."""

import numpy as np
import pytest

from keras_scaled_l2 import cli
from keras_scaled_l2.experiments import TuningResult, tune
from keras_scaled_l2.experiments.engine import Engine
from keras_scaled_l2.experiments.results.files import read_json


@pytest.fixture
def data(tmp_path):
    x = np.random.default_rng(0).normal(size=(60, 3))
    path = tmp_path / "data.npz"
    np.savez(path, x_train=x, y_train=(x[:, 0] > 0).astype(int))
    return str(path)


def test_tune_prints_the_table_and_every_option_reaches_it(data, tmp_path, capsys):
    words = (
        "--rule sample --grid 0,2 --method kfold --folds 3 --seeds 2 --epochs 2 "
        "--criterion accuracy --batch-size 16 --hidden 4 --optimizer adam "
        "--learning-rate 0.01 --patience 1 --quiet"
    )
    folder = tmp_path / "out"
    arguments = ["tune", "--problem", data, *words.split(), "--directory", str(folder)]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr()
    saved = TuningResult.from_dict(read_json(folder / "tuning.json"))
    assert printed.out.startswith(saved.table())
    assert f"sqlite:///{folder}/study.db" in printed.out
    assert printed.err == ""
    expected = tune(
        problem=data,
        rule="sample",
        grid=[0, 2],
        method="kfold",
        folds=3,
        seeds=2,
        epochs=2,
        criterion="accuracy",
        batch_size=16,
        hidden=(4,),
        optimizer="adam",
        learning_rate=0.01,
        patience=1,
        progress=False,
    )
    assert saved == expected


@pytest.mark.parametrize("command", ["tune", "transfer"])
def test_ctrl_c_says_that_the_same_command_goes_on(
    command, data, tmp_path, monkeypatch, capsys
):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "train", interrupted)
    words = ["--problem", data, "--quiet", "--directory", str(tmp_path / "out")]
    words += ["--sizes", "30,300"] if command == "transfer" else ["--hidden", "4"]
    assert cli.main([command, *words]) == cli.INTERRUPTED
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("keras-scaled-l2: interrupted: ")
    assert line.endswith("the same command goes on from there")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--grid 0.1,x", "expected numbers joined by commas"),
        ("--grid ,", "grid is empty"),
        ("--grid 0,1e300", "grid value 1e+300: a coefficient or decay of 1e+300"),
        ("--rule decay --grid 1e39", "grid value 1e+39: a coefficient or decay of"),
        ("--grid -1,2", "expected one argument"),
        ("--rule l3", "unknown rule 'l3'"),
        ("--directory=", "directory '': expected a name"),
        ("--directory= --rule l2+dropout", "directory '': expected a name"),
        ("--hidden 100000000000", "Give fewer units"),
        ("--folds 3", "Leave --folds out, or use --method kfold"),
        ("--model conv", "Leave --hidden out, or use --model dense"),
        ("--problem digits --task classes", "it is for .npz files"),
        ("--method kfold --folds 50", "expected a whole number from 2 to"),
        ("--storage postgresql+psycopg://me:secret@127.0.0.1:1/x", "cannot be used"),
    ],
)
def test_wrong_words_end_with_one_line(words, message, data, tmp_path, monkeypatch):
    monkeypatch.setattr(Engine, "train", lambda *_, **__: pytest.fail("trained"))
    lines = []
    monkeypatch.setattr("sys.stderr.write", lines.append)
    arguments = ["--problem", data, "--hidden", "4", "--directory", str(tmp_path)]
    assert cli.main(["tune", *arguments, *words.split()]) == cli.WRONG_INPUT
    text = "".join(lines)
    assert message in text
    assert "secret" not in text
    assert len(text.strip().splitlines()) == 1
