"""Several processes: the same trials as one, whatever dies."""

import os
import shutil
import signal
import subprocess
import sys

import keras
import numpy as np
import postgres
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


WORKER = """
import sys
sys.path[:0] = sys.argv[2:]
from keras_scaled_l2.experiments import trials
from test_tune import small
from test_tune_workers import GRID
trials.HEARTBEAT, trials.GRACE = 1, 5
print(small(grid=GRID, seeds=3, storage=sys.argv[1], progress=True).steps)
"""


def test_workers_on_a_server_give_the_trials_of_one_though_one_is_killed():
    alone = small(grid=GRID, seeds=3)
    with postgres.server() as url:
        command = [sys.executable, "-c", WORKER, url, *sys.path]
        running = [
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            for _ in range(4)
        ]
        victim = running[0]
        # Its first result is there: it is in the middle of a batch.
        for line in victim.stderr:
            if "  strength" in line:
                break
        victim.kill()
        ended = [worker.communicate(timeout=300) for worker in running]
        assert [worker.returncode for worker in running] == [-9, 0, 0, 0], ended
        steps = {int(out.split()[-1]) for out, _ in ended[1:]}
        assert steps == {alone.steps}
        # The study is finished: nothing is trained.
        agree(small(grid=GRID, seeds=3, storage=url), alone)
