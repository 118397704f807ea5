"""Several processes: the same trials as one, whatever dies."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import keras
import numpy as np
import postgres
import pytest
from test_tune import small

from keras_scaled_l2.experiments import workers
from keras_scaled_l2.experiments.errors import InputError

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


def test_four_workers_give_the_trials_of_one_though_one_is_killed(monkeypatch):
    alone = small(grid=GRID, seeds=3)
    killed, real = [], workers._answer

    def answer(process):
        found = real(process)
        if not killed:
            os.kill(process.process.pid, signal.SIGKILL)
            killed.append(process.process.pid)
        return found

    monkeypatch.setattr(workers, "_answer", answer)
    # As a user's module may do, too late for the process that imports it.
    monkeypatch.setenv("KERAS_BACKEND", "none of Keras")
    result = small(grid=GRID, seeds=3, workers=4)
    assert len(killed) == 1
    agree(result, alone)


STAND_IN = """
import os, sys, time
from multiprocessing.connection import Connection
log = os.open(sys.argv[3], os.O_WRONLY | os.O_APPEND)
with Connection(int(sys.argv[1])) as parent:
    while True:
        places, keys, known = parent.recv()
        for place, key in zip(places, keys):
            os.write(log, f"{os.getpid()} {place} {time.monotonic()}\\n".encode())
            time.sleep(0.02)
            # So long that a kill may break it off in the middle.
            parent.send(("trained", (place, {"key": key, "curve": [0.5] * 30000})))
"""


class Killer(threading.Thread):
    """Kills a running worker at random moments, so many times.

    Once for each answer at most: on a machine that is busy elsewhere a dozen would die
    before any of them answers, which is a fault of another kind.
    """

    def __init__(self, running, times, answered):
        super().__init__(daemon=True)
        self.killed, self._running, self._times = set(), running, times
        self._answered = answered

    def run(self):
        random = np.random.default_rng(0)
        before = -1
        while len(self.killed) < self._times:
            time.sleep(random.uniform(0.0, 0.1))
            pids = sorted({p.process.pid for p in [*self._running()]} - self.killed)
            if pids and len(self._answered) > before:
                before = len(self._answered)
                self.killed.add(pid := int(random.choice(pids)))
                os.kill(pid, signal.SIGKILL)


def test_twenty_kills_lose_nothing_but_the_running_batches(monkeypatch, tmp_path):
    log = tmp_path / "log"
    log.touch()
    real = subprocess.Popen

    def popen(command, **options):
        return real([*command, str(log)], **options)

    # A worker that trains nothing starts at once: only the parent is put to the test.
    monkeypatch.setattr(workers, "COMMAND", ("-S", "-c", STAND_IN))
    monkeypatch.setattr(workers.subprocess, "Popen", popen)
    keys = [(float(i), i, 0) for i in range(300)]
    answered = {}
    with workers.Workers({}, 4) as four:
        killer = Killer(lambda: four._processes, 20, answered)
        killer.start()
        for place, record in four.trainings(keys, {}, lambda: None):
            assert place not in answered
            answered[place] = time.monotonic()
            assert tuple(record["key"]) == keys[place]
        killer.join()
    assert sorted(answered) == [*range(300)]
    begun = [line.split() for line in log.read_text().splitlines()]
    again = len(begun) - len(keys)
    # Each kill costs a batch at most, and some cost one.
    assert 0 < again <= 20 * workers.AT_ONCE
    for pid, place, moment in begun:
        # What was given up was with one that was killed; what was answered is over.
        others = [p for p, other, _ in begun if other == place and p != pid]
        assert int(pid) in killer.killed or {*map(int, others)} <= killer.killed
        assert float(moment) < answered[int(place)]


def test_workers_that_cannot_be_sent_what_they_need_are_refused():
    def local():
        return keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])

    with pytest.raises(InputError, match="cannot be sent to another process"):
        small(model=local, workers=2)


def test_what_the_script_itself_defines_is_refused_before_any_training():
    # It pickles, by a name that a worker would look for in its own main program.
    def make():
        return keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])

    class Own(keras.optimizers.SGD):
        pass

    for own in (make, Own):
        own.__module__, own.__qualname__ = "__main__", own.__name__
        setattr(sys.modules["__main__"], own.__name__, own)
    try:
        for options in ({"model": make}, {"optimizer": Own(0.1)}):
            with pytest.raises(InputError, match="defined in the script that runs"):
                small(workers=2, **options)
    finally:
        for own in (make, Own):
            delattr(sys.modules["__main__"], own.__name__)


def test_ctrl_c_of_a_terminal_is_not_for_the_workers():
    with workers.Workers({}, 1) as made:
        process = workers._Process(made._descriptor)
        try:
            assert os.getpgid(process.process.pid) != os.getpgrp()
        finally:
            process.stop()


def test_workers_that_always_die_are_given_up(monkeypatch):
    monkeypatch.setattr(workers.sys, "executable", shutil.which("false"))
    with pytest.raises(RuntimeError, match="6 workers in a row ended"):
        small(grid=GRID, workers=2)


WORKER = """
import os, sys, time
sys.path[:0] = sys.argv[3:]
from keras_scaled_l2.experiments import trials
from keras_scaled_l2.experiments.training import Training
from test_tune import small
from test_tune_workers import GRID
trials.HEARTBEAT, trials.GRACE = 1, 5
validate = Training.validate
def slowly(training):
    time.sleep(600 if os.path.exists(sys.argv[2]) else 0.2)
    validate(training)
Training.validate = slowly
print("ready", file=sys.stderr, flush=True)
print(small(grid=GRID, seeds=3, storage=sys.argv[1], progress=True).steps)
"""


def test_workers_on_a_server_give_the_trials_of_one_though_one_is_killed(tmp_path):
    alone = small(grid=GRID, seeds=3)
    halt, never = tmp_path / "halt", tmp_path / "never"
    with postgres.server() as url:

        def start(path):
            return subprocess.Popen(
                [sys.executable, "-c", WORKER, url, str(path), *sys.path],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )

        def wait_for(worker, text):
            assert any(text in line for line in worker.stderr)

        # Stopped after its first result, in the middle of a batch: on a busy machine it
        # could be done before the others begin, or they before it is killed.
        victim = start(halt)
        wait_for(victim, "  strength")
        halt.touch()
        others = [start(never) for _ in range(2)]
        wait_for(others[0], "ready")
        victim.kill()
        ended = [worker.communicate(timeout=300) for worker in [victim, *others]]
        codes = [worker.returncode for worker in [victim, *others]]
        assert codes == [-signal.SIGKILL, 0, 0], ended
        steps = {int(out.split()[-1]) for out, _ in ended[1:]}
        assert steps == {alone.steps}
        # The study is finished: nothing is trained.
        agree(small(grid=GRID, seeds=3, storage=url), alone)
