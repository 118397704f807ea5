"""Several processes: the same trials as one, whatever dies."""

import os
import shutil
import signal

import keras
import numpy as np
import pytest
from test_tune import small

from keras_scaled_l2.experiments import workers
from keras_scaled_l2.experiments.errors import InputError

# Not ours: NumPy 2 wants a keyword that __array__ of torch's tensors does not take yet.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

GRID = [0.0, 0.01, 0.1, 0.3]


def agree(result, other):
    """The same trials with the same values, but for what XLA rounds."""
    assert [p.strength for p in result.points] == [p.strength for p in other.points]
    for ours, theirs in zip(result.points, other.points, strict=True):
        assert [(j.seed, j.fold, j.steps) for j in ours.jobs] == [
            (j.seed, j.fold, j.steps) for j in theirs.jobs
        ]
        values = [[j.data_loss for j in p.jobs] for p in (ours, theirs)]
        assert values[0] == pytest.approx(values[1], rel=1e-4)


def test_workers_give_the_trials_of_one_though_they_are_killed(monkeypatch):
    alone = small(grid=GRID, seeds=3)
    random, killed, real = np.random.default_rng(0), [], workers._answer

    def answer(process):
        found = real(process)
        if len(killed) < 3 and random.random() < 0.5:
            os.kill(process.process.pid, signal.SIGKILL)
            killed.append(process.process.pid)
        return found

    monkeypatch.setattr(workers, "_answer", answer)
    result = small(grid=GRID, seeds=3, workers=2)
    assert len(killed) == len(set(killed)) >= 2
    agree(result, alone)


def test_workers_that_cannot_be_sent_what_they_need_are_refused():
    def local():
        return keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])

    with pytest.raises(InputError, match="cannot be sent to another process"):
        small(model=local, workers=2)


def test_workers_that_always_die_are_given_up(monkeypatch):
    monkeypatch.setattr(workers.sys, "executable", shutil.which("false"))
    with pytest.raises(RuntimeError, match="3 workers in a row ended"):
        small(grid=GRID, workers=2)
