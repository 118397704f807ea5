"""The command ``transfer``: its words reach the function, its mistakes are one line."""

import importlib
import types
import warnings

import numpy as np
import pytest

from keras_scaled_l2 import cli
from keras_scaled_l2.experiments.errors import RecordWarning

# The package's attribute of this name is the function.
MODULE = importlib.import_module("keras_scaled_l2.experiments.transfer")
TUNE = importlib.import_module("keras_scaled_l2.experiments.tune")


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.npz"
    x = np.random.default_rng(0).normal(size=(90, 3))
    np.savez(path, x_train=x, y_train=np.arange(90) % 3)
    return str(path)


@pytest.fixture
def asked(monkeypatch):
    """What the functions behind the commands are called with."""
    given = {}

    def note(**arguments):
        given.update(arguments)
        return types.SimpleNamespace(table=lambda: "the table")

    monkeypatch.setattr(MODULE, "transfer", note)
    monkeypatch.setattr(TUNE, "tune", note)
    return given


def test_transfer_prints_the_table_and_every_option_reaches_it(
    data, tmp_path, capsys, asked
):
    words = (
        "--samples 30 --label-noise 0.2 --model residual --widths 2,4 --rules l2,prior "
        "--seeds 4 --epochs 5 --batch-size 8 --optimizer adam --patience 2 --quiet"
    )
    folder = str(tmp_path / "out")
    command = ["transfer", "--problem", data, *words.split(), "--directory", folder]
    assert cli.main(command) == 0
    assert capsys.readouterr().out.startswith("the table\n")
    problem = asked.pop("problem")
    assert problem.samples["train"] == 30
    assert problem.source.label_noise == 0.2
    assert asked == {
        "directory": folder,
        "progress": False,
        "model": "residual",
        "widths": [2, 4],
        "rules": ["l2", "prior"],
        "seeds": 4,
        "epochs": 5,
        "batch_size": 8,
        "optimizer": "adam",
        "patience": 2,
    }


def test_tune_takes_number_of_examples_and_label_noise(data, capsys, asked):
    command = ["tune", "--problem", data, "--samples", "30", "--label-noise", "0.2"]
    assert cli.main(command) == 0
    assert asked["problem"].samples["train"] == 30
    assert asked["problem"].source.label_noise == 0.2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--sizes 20,many", "expected whole numbers joined by commas"),
        ("--rules l3", "unknown rule 'l3'"),
        ("--sizes 300,30", "each larger than the one before"),
        ("--optimizer adam --rules half-life", "Use 'decay'"),
        ("--samples 0", "samples 0: expected a whole number of 1 or more"),
        ("--data-dir nowhere", "expected the name mnist or fashion_mnist"),
        ("--directory= --widths 2,4", "directory '': expected a name"),
        ("--problem digits --task classes", "it is for .npz files"),
        ("--problem nothing", "unknown problem 'nothing'"),
        ("--model residual --widths 2,4", "model 'residual' needs images"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(data, tmp_path, capsys, words, message):
    folder = str(tmp_path / "out")
    command = ["transfer", "--problem", data, "--directory", folder, *words.split()]
    assert cli.main(command) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.count("\n") == 1


def test_damaged_line_of_the_journal_is_one_line(data, tmp_path, capsys, monkeypatch):
    def warn(**_):
        warnings.warn("a line is damaged.", RecordWarning, stacklevel=2)
        return types.SimpleNamespace(table=lambda: "the table")

    monkeypatch.setattr(MODULE, "transfer", warn)
    folder = str(tmp_path / "out")
    assert cli.main(["transfer", "--problem", data, "--directory", folder]) == 0
    printed = capsys.readouterr()
    assert printed.err == "keras-scaled-l2: warning: a line is damaged.\n"
    assert printed.out.startswith("the table\n")
