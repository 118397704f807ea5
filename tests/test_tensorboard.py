"""Event files: read back with TensorBoard's reader, and through its server."""

import json
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request

import keras
import numpy as np
import pytest
from autodiff import numpy64
from models import data, hidden, linear
from reference import penalty
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from test_callbacks import BreakAfter, Broken
from test_costs import fit

from keras_scaled_l2 import CostMonitor, SampleL2, ScaledL2
from keras_scaled_l2.run_table import hyperparameters
from keras_scaled_l2.tensorboard import EventFile

COSTS = {"cost/total", "cost/data", "cost/penalty", "cost/penalty_share"}


def event_files(directory):
    return sorted(pathlib.Path(directory).glob("events.out.tfevents.*"))


def scalars(directory):
    """Tag -> [(step, value)] of all event files of a run, in order of writing."""
    curves = {}
    files = event_files(directory)
    assert files, f"no event file in {directory}"
    for file in files:
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "scalars":
                    [number] = value.tensor.float_val
                    curves.setdefault(value.tag, []).append((event.step, number))
    return curves


def tags_of(directory):
    """All tags of a run, whatever they hold."""
    return {
        value.tag
        for file in event_files(directory)
        for event in EventFileLoader(str(file)).Load()
        for value in event.summary.value
    }


def steps(curve):
    return [step for step, _ in curve]


def values(curve):
    return [value for _, value in curve]


# ------------------------------------------------------------------------- EventFile


def test_event_file_gives_back_what_was_written(tmp_path):
    file = EventFile(tmp_path / "a" / "b")
    file.scalars({"x": 1.5, "y/z": -2.0}, step=0)
    file.scalars({"x": math.inf}, step=2**40)
    file.close()
    assert scalars(tmp_path / "a" / "b") == {
        "x": [(0, 1.5), (2**40, math.inf)],
        "y/z": [(0, -2.0)],
    }


def test_event_file_keeps_the_wall_time_of_the_clock_it_was_handed(tmp_path):
    ticks = iter(range(1000, 2000))
    file = EventFile(tmp_path, clock=lambda: float(next(ticks)))
    for step in range(3):
        file.scalars({"x": 0.0}, step)
    file.close()
    [path] = event_files(tmp_path)
    times = [event.wall_time for event in EventFileLoader(str(path)).Load()]
    assert len(times) >= 4
    assert times[0] >= 1000
    assert times == sorted(set(times))
    assert times[-1] < 2000


def test_event_file_is_readable_before_it_is_closed(tmp_path):
    file = EventFile(tmp_path)
    file.scalars({"x": 1.0}, step=3)
    file.flush()
    assert scalars(tmp_path) == {"x": [(3, 1.0)]}
    file.close()


def test_event_files_of_the_same_second_do_not_meet(tmp_path):
    files = [EventFile(tmp_path, clock=lambda: 1000.0) for _ in range(3)]
    for i, file in enumerate(files):
        file.scalars({"x": float(i)}, step=i)
        file.close()
    assert len(event_files(tmp_path)) == 3
    assert sorted(values(scalars(tmp_path)["x"])) == [0.0, 1.0, 2.0]


def test_event_file_where_it_cannot_be_is_an_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError):
        EventFile(tmp_path / "file")
    assert event_files(tmp_path) == []


# ----------------------------------------------------------------------- CostMonitor


def test_monitor_writes_the_costs_of_every_epoch(tmp_path):
    x, y = data()
    model = linear(ScaledL2(2.0))
    history = fit(
        model,
        x,
        y,
        CostMonitor(tmp_path, gradients=False),
        validation_data=(x, y),
        epochs=3,
    )
    for run, prefix in (("train", ""), ("validation", "val_")):
        found = scalars(tmp_path / run)
        assert set(found) >= COSTS
        # Ten examples in batches of four are three steps an epoch.
        for tag in COSTS:
            assert steps(found[tag]) == [3, 6, 9]
        for tag, name in (
            ("cost/total", "loss"),
            ("cost/data", "data_loss"),
            ("cost/penalty", "penalty"),
        ):
            assert values(found[tag]) == pytest.approx(history[prefix + name], rel=1e-5)
        assert values(found["cost/penalty_share"]) == pytest.approx(
            np.divide(history[f"{prefix}penalty"], history[f"{prefix}loss"]), rel=1e-5
        )
    expected = penalty(0.5, numpy64(model.layers[0].kernel))
    last = values(scalars(tmp_path / "validation")["cost/penalty"])[-1]
    assert last == pytest.approx(expected, rel=1e-5)


def test_monitor_without_validation_writes_no_such_run(tmp_path):
    fit(linear(ScaledL2(2.0)), *data(), CostMonitor(tmp_path, gradients=False))
    assert [path.name for path in tmp_path.iterdir()] == ["train"]


def test_monitor_of_a_resumed_training_continues_its_curves(tmp_path):
    x, y = data()
    model = linear(ScaledL2(2.0))
    monitor = CostMonitor(tmp_path, gradients=False)
    fit(model, x, y, monitor)
    fit(model, x, y, monitor, epochs=3, initial_epoch=2)
    fit(model, x, y, CostMonitor(tmp_path, gradients=False), epochs=1)
    assert steps(scalars(tmp_path / "train")["cost/total"]) == [3, 6, 9, 12]


def test_monitor_of_a_fit_that_broke_off_has_written_its_epochs(tmp_path):
    x, y = data()
    monitor = CostMonitor(tmp_path, gradients=False)
    with pytest.raises(Broken):
        fit(linear(ScaledL2(2.0)), x, y, monitor, BreakAfter())
    # Nothing closed the file, and what was written is there.
    assert steps(scalars(tmp_path / "train")["cost/total"]) == [3]
    monitor.on_train_end()


def test_monitor_of_a_model_without_penalty_writes_zeros(tmp_path):
    fit(linear(), *data(), CostMonitor(tmp_path, gradients=False))
    found = scalars(tmp_path / "train")
    assert values(found["cost/penalty"]) == [0.0, 0.0]
    assert values(found["cost/data"]) == values(found["cost/total"])


def test_monitor_takes_a_path_or_a_string(tmp_path):
    for log_dir in (tmp_path / "path", str(tmp_path / "string")):
        fit(
            linear(ScaledL2(2.0)),
            *data(),
            CostMonitor(log_dir, gradients=False),
            epochs=1,
        )
        assert set(scalars(pathlib.Path(log_dir) / "train")) >= COSTS


# ------------------------------------------------------------------------ the server

LIMIT = 60.0


def served(process):
    """The address that a starting server prints, within the limit."""
    found, done = [], threading.Event()

    def read():
        for line in process.stderr:
            match = re.search(r"http://\S+?:\d+", line)
            if match:
                found.append(match.group())
                done.set()
        done.set()

    threading.Thread(target=read, daemon=True).start()
    assert done.wait(LIMIT), "TensorBoard did not start in time"
    assert found, "TensorBoard ended without serving"
    return found[0]


def fetch(address, until):
    """JSON from a server, asked until it satisfies a condition or time is up."""
    end = time.monotonic() + LIMIT
    answer = None
    while time.monotonic() < end:
        with urllib.request.urlopen(address, timeout=10) as response:
            answer = json.load(response)
        if until(answer):
            return answer
        time.sleep(0.2)
    raise AssertionError(f"{address} still answers {answer}")


@pytest.mark.once
def test_tensorboard_serves_the_curves_of_a_run(tmp_path):
    x, y = data()
    history = fit(
        linear(ScaledL2(2.0)),
        x,
        y,
        CostMonitor(tmp_path, gradients=False),
        validation_data=(x, y),
    )
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "tensorboard.main"),
            *("--logdir", str(tmp_path), "--host", "127.0.0.1", "--port", "0"),
            *("--load_fast", "false"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # Its own process group, so that nothing of it stays behind.
        start_new_session=True,
    )
    try:
        address = served(process)
        tags = fetch(
            f"{address}/data/plugin/scalars/tags",
            until=lambda answer: {"train", "validation"} <= set(answer),
        )
        for run in ("train", "validation"):
            assert set(tags[run]) >= COSTS
        points = fetch(
            f"{address}/data/plugin/scalars/scalars?run=validation&tag=cost%2Fpenalty",
            until=lambda answer: len(answer) == 2,
        )
        assert [step for _, step, _ in points] == [3, 6]
        served_values = [value for _, _, value in points]
        assert served_values == pytest.approx(history["val_penalty"], rel=1e-5)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(LIMIT)
        process.stderr.close()


if keras.config.backend() == "tensorflow":

    def test_kerass_own_tensorboard_callback_sees_the_parts(tmp_path):
        callbacks = [CostMonitor(), keras.callbacks.TensorBoard(tmp_path)]
        fit(linear(ScaledL2(2.0)), *data(), *callbacks)
        assert set(tags_of(tmp_path / "train")) >= {"epoch_penalty", "epoch_data_loss"}


@pytest.mark.parametrize(
    ("rules", "strength"),
    [
        ((SampleL2(10.0, samples=60), SampleL2(1.0, samples=60)), 10.0),
        ((SampleL2(1.0, samples=60), SampleL2(10.0, samples=60)), 10.0),
        ((keras.regularizers.L1L2(0.5, 0.1), None), 0.1),
    ],
)
def test_table_of_runs_has_the_largest_strength(rules, strength):
    assert hyperparameters(hidden(*rules))["strength"] == pytest.approx(strength)
