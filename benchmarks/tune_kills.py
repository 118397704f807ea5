"""Workers killed with -9 at random moments, 20 times: the same trials all the same.

Four local workers, then four processes on a PostgreSQL server (Debian's, started here),
each replaced when it was killed. Both must give what one uninterrupted process gives,
and train no more again than the batches of those that were killed.

    python benchmarks/tune_kills.py [local] [postgresql]
"""

import collections
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time

import optuna

from keras_scaled_l2.experiments import tune, workers

TESTS = pathlib.Path(__file__).parents[1] / "tests"
KILLS = 20
COUNT = 4
WAIT = (0.5, 5.0)
"""Seconds between two kills, drawn evenly."""
WORK = {
    "problem": "mnist5k",
    "hidden": (64,),
    "grid": (0.0, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
    "seeds": 40,
    "progress": False,
}
WORKER = """
import json, os, pathlib, sys
from keras_scaled_l2.experiments import trials, tune, tuner
trials.HEARTBEAT, trials.GRACE = 1, 6
train = tuner.Tuner._train
def begin(self, claimed, *others):
    # It holds trials now: from here on a kill costs something.
    with open(pathlib.Path(sys.argv[3], str(os.getpid())), "a") as file:
        print(len(claimed), file=file)
    train(self, claimed, *others)
tuner.Tuner._train = begin
print(tune(storage=sys.argv[1], **json.loads(sys.argv[2])).steps)
"""


def trials_of(result):
    return {
        (p.strength, job.seed, job.fold): (job.steps, job.data_loss)
        for p in result.points
        for job in p.jobs
    }


def difference(result, alone):
    """Largest relative difference of a loss; the trials must be the same."""
    ours, theirs = trials_of(result), trials_of(alone)
    assert ours.keys() == theirs.keys()
    assert all(ours[k][0] == theirs[k][0] for k in ours), "other numbers of steps"
    return max(abs(ours[k][1] / theirs[k][1] - 1) for k in ours)


def kill_at_random(living, killed, ended):
    """Kill a running process at random moments; ``living`` gives their ids."""
    draw = random.Random(0)
    while len(killed) < KILLS and not ended.wait(draw.uniform(*WAIT)):
        pids = [pid for pid in living() if pid not in killed]
        if pids:
            pid = draw.choice(pids)
            killed.append(pid)
            os.kill(pid, signal.SIGKILL)


def killing(living):
    killed, ended = [], threading.Event()
    thread = threading.Thread(target=kill_at_random, args=(living, killed, ended))
    thread.start()
    return killed, ended, thread


def local():
    """``(result, kills, trainings that were run again)``."""
    lost, made = [], []
    bury, enter = workers.Workers._bury, workers.Workers.__enter__

    def burying(self, process, *rest):
        lost.append(len(process.places))
        bury(self, process, *rest)

    workers.Workers._bury = burying
    # On a busy machine a worker may be killed again and again before it has started.
    workers.DEATHS = KILLS
    workers.Workers.__enter__ = lambda self: made.append(self) or enter(self)
    killed, ended, thread = killing(
        lambda: [p.process.pid for w in made for p in [*w._processes]]
    )
    result = tune(workers=COUNT, **WORK)
    ended.set()
    thread.join()
    return result, len(killed), sum(lost)


def postgresql():
    """The same on a server, where each worker is a command of its own."""
    sys.path.insert(0, str(TESTS))
    import postgres

    with postgres.server() as url, tempfile.TemporaryDirectory() as begun:
        running = {}

        def start():
            command = [sys.executable, "-c", WORKER, url, json.dumps(WORK), begun]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            running[process.pid] = process

        for _ in range(COUNT):
            start()
        killed, ended, thread = killing(
            lambda: [
                pid
                for pid, process in [*running.items()]
                if process.poll() is None and pathlib.Path(begun, str(pid)).exists()
            ]
        )
        replaced = 0
        while any(p.poll() is None for p in running.values()):
            time.sleep(0.2)
            while replaced < len(killed):
                start()
                replaced += 1
        ended.set()
        thread.join()
        codes = collections.Counter(p.wait() for p in running.values())
        assert codes == {-signal.SIGKILL: len(killed), 0: COUNT}, codes
        (study,) = optuna.study.get_all_study_names(url)
        trials = optuna.load_study(study_name=study, storage=url).trials
        complete = [t for t in trials if t.state.name == "COMPLETE"]
        planned = {tuple(t.user_attrs["planned"]) for t in complete}
        assert len(planned) == len(complete), "a training was counted twice"
        # Of trials that several workers enqueued all but one fail, and train nothing.
        taken = sum(
            int(line)
            for path in pathlib.Path(begun).iterdir()
            for line in path.read_text().split()
        )
        return tune(storage=url, **WORK), len(killed), taken - len(complete)


if __name__ == "__main__":
    alone = tune(**WORK)
    for way in (local, postgresql):
        if sys.argv[1:] and way.__name__ not in sys.argv[1:]:
            continue
        clock = time.perf_counter()
        result, kills, again = way()
        most = kills * workers.AT_ONCE
        print(
            f"{way.__name__}: {COUNT} workers, {kills} killed, "
            f"{len(trials_of(result))} trainings, {again} run again (at most {most}); "
            f"largest difference of a loss {difference(result, alone):.1e}; "
            f"{time.perf_counter() - clock:.0f} s",
            flush=True,
        )
        assert kills == KILLS, "finished before all kills: expected more work"
        assert again <= most
