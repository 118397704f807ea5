"""The engine: what Keras's fit computes, by one program, for any number of jobs."""

import dataclasses
import functools
import threading
import types

import keras
import numpy as np
import pytest
from engines import (
    BATCH,
    LOSSES,
    OPTIMIZERS,
    job,
    make_engine,
    make_network,
    make_problem,
    ordinary_fit,
    shared_engine,
    start,
    train,
)

from keras_scaled_l2.experiments import program, training
from keras_scaled_l2.experiments.architectures import initial_weights
from keras_scaled_l2.experiments.coefficients import penalizable
from keras_scaled_l2.experiments.engine import Engine
from keras_scaled_l2.experiments.jobs import Watch
from keras_scaled_l2.experiments.objective import loss_of
from keras_scaled_l2.experiments.program import Parts

BACKEND = keras.config.backend()
L = keras.layers


class AddsLoss(L.Layer):
    """Adds a loss of its own, which counts as data loss."""

    def call(self, inputs):
        self.add_loss(0.1 * keras.ops.mean(keras.ops.square(inputs)))
        return inputs


def sequential(shape, *layers):
    return keras.Sequential([keras.Input(shape), *layers, L.Dense(3)])


NETWORKS = {
    "dense": lambda: make_network(make_problem()),
    "dropout of rate 0": lambda: sequential((4,), L.Dense(5, "tanh"), L.Dropout(0.0)),
    "batch normalization": lambda: sequential(
        (4,), L.Dense(5, use_bias=False), L.BatchNormalization(), L.ReLU()
    ),
    "convolution": lambda: sequential(
        (6, 6, 2), L.Conv2D(3, 3, activation="relu"), L.MaxPooling2D(), L.Flatten()
    ),
    "recurrent": lambda: sequential((5, 3), L.GRU(4)),
    "losses of its own": lambda: sequential(
        (4,), L.Dense(5, "relu", activity_regularizer="l2"), AddsLoss()
    ),
    "frozen layer": lambda: sequential((4,), L.Dense(5, "relu", trainable=False)),
}


@pytest.mark.parametrize("kind", list(NETWORKS))
def test_weights_after_200_steps_are_those_of_fit(kind):
    keras.utils.set_random_seed(0)
    network = NETWORKS[kind]()
    problem = make_problem(shape=network.input_shape[1:])
    initial = initial_weights(network)
    engine = make_engine(problem, network, optimizer="plain sgd")
    c = {name: 0.01 * (i + 1) for i, name in enumerate(penalizable(network))}
    found = train(engine, job(problem, c, initial=initial, epochs=50))
    assert found.steps == 200
    for variable, value in zip(network.weights, initial, strict=True):
        variable.assign(value)
    expected = ordinary_fit(
        network, problem, c, optimizer=OPTIMIZERS["plain sgd"](), seed=2, epochs=50
    )
    moved = 0.0
    for one, other, first in zip(found.weights, expected, initial, strict=True):
        scale = np.linalg.norm(other) + 1e-12
        assert np.linalg.norm(one - other) / scale < 1e-5
        moved = max(moved, np.linalg.norm(first - other) / scale)
    assert moved > 0.05
    frozen = {id(v) for v in network.weights} - {
        id(v) for v in network.trainable_weights
    }
    if kind == "frozen layer":
        assert np.array_equal(found.weights[0], initial[0])
        assert len(frozen) == 2


@pytest.mark.parametrize(
    ("task", "optimizer"),
    [*((task, "sgd") for task in LOSSES), ("classes", "adam")],
)
def test_curves_and_evaluations_are_those_of_keras(task, optimizer):
    problem = make_problem(task)
    engine = shared_engine(task, optimizer=optimizer)
    c = dict(zip(engine.names, (0.01, 0.3), strict=True))
    found = train(engine, job(problem, c), evaluate=("train", "test"))

    plain = make_network(problem)
    for name, variable in penalizable(plain).items():
        variable.regularizer = keras.regularizers.L2(c[name])
    plain.compile(OPTIMIZERS[optimizer](), LOSSES[task]())
    for epoch in range(2):
        order = np.random.default_rng([2, epoch]).permutation(len(problem.x_train))
        x, y = problem.x_train[order], problem.y_train[order]
        history = plain.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0).history
        total = found.curves["data_loss"][epoch] + found.curves["penalty"][epoch]
        assert total == pytest.approx(history["loss"][0], rel=1e-5)
        x, y = problem.x_validation, problem.y_validation
        both = found.curves["val_data_loss"], found.curves["val_penalty"]
        expected = plain.evaluate(x, y, verbose=0)
        assert both[0][epoch] + both[1][epoch] == pytest.approx(expected, rel=1e-5)
    for part in ("train", "test"):
        x, y = getattr(problem, f"x_{part}"), getattr(problem, f"y_{part}")
        evaluation = found.evaluations[part]
        total = evaluation.data_loss + evaluation.penalty
        assert total == pytest.approx(plain.evaluate(x, y, verbose=0), rel=1e-5)
        outputs = np.asarray(plain.predict(x, verbose=0))
        np.testing.assert_allclose(evaluation.outputs, outputs, rtol=1e-4, atol=1e-5)
        right = {
            "classes": lambda out, y: np.mean(out.argmax(axis=1) == y),
            "binary": lambda out, y: np.mean((out[:, 0] > 0) == y),
            "regression": lambda out, y: None,
        }[task](outputs, y)
        expected = None if right is None else pytest.approx(right)
        assert evaluation.accuracy == expected


@pytest.mark.parametrize("task", [*LOSSES, "masked"])
def test_loss_of_few_operations_is_that_of_keras(task):
    rng = np.random.default_rng(0)
    shape = {"classes": (7, 5, 3), "masked": (2, 3, 4)}.get(task, (7, 1))
    given = keras.ops.convert_to_tensor(rng.normal(size=shape).astype("float32"))
    y = rng.integers(2, size=shape[:-1] if task != "masked" else shape)
    if task == "masked":
        x = np.ones(shape, "float32")
        x[0, 1:] = 0.0
        given, task = L.Masking()(x), "regression"
    y = keras.ops.convert_to_tensor(y)
    expected = float(LOSSES[task]()(y, given))
    assert float(loss_of(task, False)(y, given)) == pytest.approx(expected, 1e-6)


def test_norms_of_an_epochs_first_step_are_those_of_float64():
    problem = make_problem("regression")
    engine = shared_engine("regression")
    c = dict(zip(engine.names, (0.5, 2.0), strict=True))
    found = train(engine, job(problem, c, seed=5, epochs=1)).norms
    first, bias, second, bias_2 = (w.astype("float64") for w in start(problem))
    order = np.random.default_rng([5, 0]).permutation(len(problem.x_train))[:BATCH]
    x, y = problem.x_train[order].astype("float64"), problem.y_train[order]
    hidden = np.maximum(x @ first + bias, 0)
    slope = 2 * (hidden @ second + bias_2 - y[:, None]) / BATCH
    gradients = [x.T @ ((slope @ second.T) * (hidden > 0)), hidden.T @ slope]
    for name, w, g in zip(engine.names, (first, second), gradients, strict=True):
        norm = np.linalg.norm
        assert found["weight"][name] == [pytest.approx(norm(w), rel=1e-5)]
        assert found["data_gradient"][name] == [pytest.approx(norm(g), rel=1e-5)]
        penalty_gradient = 2 * c[name] * norm(w)
        assert found["penalty_gradient"][name] == [
            pytest.approx(penalty_gradient, rel=1e-5)
        ]


def test_start_measures_the_training_set_and_its_gradients():
    problem = make_problem("regression")
    found = shared_engine("regression").start(problem, start(problem))
    first, bias, second, bias_2 = (w.astype("float64") for w in start(problem))
    hidden = np.maximum(problem.x_train @ first + bias, 0)
    error = hidden @ second + bias_2 - problem.y_train[:, None]
    assert found.evaluations["train"].data_loss == pytest.approx(np.mean(error**2))
    gradient = np.linalg.norm(hidden.T @ (2 * error / len(error)))
    assert list(found.gradients.data.values())[1] == pytest.approx(gradient, rel=1e-5)
    norms = [np.linalg.norm(w) for w in (first, second)]
    assert list(found.gradients.weights.values()) == pytest.approx(norms)
    assert found.steps == 0


def same(one, other):
    """Whether two jobs left the same, seconds apart, to the last bit."""
    weights = zip(one.weights, other.weights, strict=True)
    plain = [
        dataclasses.replace(x, seconds=0, weights=[], evaluations={}, gradients=None)
        for x in (one, other)
    ]
    fields = dataclasses.asdict(plain[0]) == dataclasses.asdict(plain[1])
    return fields and all(np.array_equal(a, b) for a, b in weights)


@pytest.mark.parametrize("drops", [False, True])
def test_job_leaves_nothing_behind_for_the_next(drops):
    problem, options = make_problem(), {"optimizer": "adam", "decays": True}
    engine = shared_engine(drops=drops, **options)
    c = dict.fromkeys(engine.names, 0.05)
    changed = {"seed": 7, "epochs": 3, "learning_rate": 0.3, "weight_decay": 0.1}
    jobs = [
        job(problem, c, dropout=0.5 * drops),
        job(problem, c),
        job(problem, initial=start(problem, 7), **changed),
    ]
    first = [train(engine, one) for one in jobs]
    assert not same(first[0], first[2])
    assert same(first[0], first[1]) is not drops
    # From the last to the first: then others can have left something behind.
    engine = make_engine(problem, drops=drops, **options)
    for one, expected in zip(jobs[::-1], first[::-1], strict=True):
        assert same(train(engine, one), expected)
    assert same(train(engine, jobs[2]), first[2])


def test_zero_of_anything_equals_nothing_exactly():
    problem = make_problem()
    zero = dict.fromkeys(shared_engine().names, 0.0)
    none = train(shared_engine(), job(problem))
    assert same(train(shared_engine(), job(problem, zero)), none)
    for options in ({"drops": True}, {"decays": True}, {"drops": True, "decays": True}):
        engine = shared_engine(**options)
        assert same(train(engine, job(problem, zero)), none)


def test_dropout_masks_differ_by_job_and_step_and_repeat():
    problem = make_problem()
    engine = shared_engine(drops=True)
    still = {"dropout": 0.5, "learning_rate": 0.0, "epochs": 2}
    jobs = [job(problem, seed=seed, **still) for seed in (1, 2, 1)]
    first, other, again = (x.norms["data_gradient"] for x in train(engine, *jobs))
    assert first == again != other
    # Weights stand still, and the order of the batches is another: look at whole ones.
    whole = make_problem("classes", (4,), 11)
    assert len(whole.x_train) <= BATCH
    single = train(make_engine(whole, drops=True), job(whole, **still)).norms
    for by_epoch in single["data_gradient"].values():
        assert by_epoch[0] != pytest.approx(by_epoch[1])


def test_dropout_of_the_users_own_follows_the_seed_of_the_job():
    problem = make_problem()
    network = sequential((4,), L.Dense(16, "relu"), L.Dropout(0.5))
    engine = make_engine(problem, network)
    initial = initial_weights(network)
    jobs = [job(problem, initial=initial, seed=s) for s in (1, 2, 1)]
    first, other, again = train(engine, *jobs)
    assert same(first, again)
    assert not same(first, other)


def test_learning_rate_of_a_job_is_that_of_an_optimizer():
    problem = make_problem()
    found = train(shared_engine(), job(problem, learning_rate=0.02))
    optimizer = keras.optimizers.SGD(0.02, momentum=0.9)
    expected = ordinary_fit(
        make_network(problem), problem, {}, optimizer=optimizer, seed=2, epochs=2
    )
    for one, other in zip(found.weights, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_learning_rate_of_a_schedule_is_told_by_step():
    problem = make_problem()
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    network = make_network(problem)
    parts = Parts(
        network, network.weights, penalizable(network), keras.optimizers.SGD(schedule)
    )
    engine = Engine(lambda: parts, problem=problem, batch_size=BATCH, threads=1)
    assert engine.learning_rate(job(problem), 20) == pytest.approx(0.025)
    assert shared_engine().learning_rate(job(problem), 20) == pytest.approx(0.1)
    assert shared_engine().learning_rate(job(problem, learning_rate=0.3), 5) == 0.3
    with pytest.raises(ValueError, match="has a schedule"):
        train(engine, job(problem, learning_rate=0.3))
    found = train(engine, job(problem))
    expected = ordinary_fit(
        make_network(problem),
        problem,
        {},
        optimizer=keras.optimizers.SGD(schedule),
        seed=2,
        epochs=2,
    )
    np.testing.assert_allclose(found.weights[0], expected[0], rtol=1e-5)


def test_one_program_serves_all_jobs():
    calls = []

    class Counts(L.Layer):
        def call(self, inputs):
            calls.append(1)
            return inputs

    problem = make_problem()
    network = sequential((4,), L.Dense(5, "relu"), Counts())
    engine = make_engine(problem, network, decays=True)
    initial = initial_weights(network)
    engine.warm_up(problem)
    # As many as below: a batch of another size is another program.
    measured = {"evaluate": ("train", "test"), "gradients": True}
    train(engine, *[job(problem, initial=initial)] * 3, **measured)
    traced = len(calls)
    assert traced
    jobs = [
        job(problem, dict.fromkeys(engine.names, c), initial=initial, seed=seed, **more)
        for seed, c, more in (
            (0, 0.0, {}),
            (1, 0.1, {"learning_rate": 0.2}),
            (2, 10.0, {"weight_decay": 0.1, "patience": 1}),
        )
    ]
    train(engine, *jobs, **measured)
    # Torch records training steps alone: layers themselves evaluate.
    assert (len(calls) == traced) is (BACKEND != "torch")


def test_early_stopping_goes_back_to_the_best_epoch():
    problem = make_problem()
    options = {"epochs": 40, "learning_rate": 0.5}
    found = train(shared_engine(), job(problem, patience=3, **options))
    losses = found.curves["val_data_loss"]
    best = losses.index(min(losses)) + 1
    assert found.best_epoch == found.kept_epoch == best
    assert len(losses) == best + 3 < 40
    assert found.steps == 4 * len(losses)
    shorter = train(shared_engine(), job(problem, **options | {"epochs": best}))
    for one, other in zip(found.weights, shorter.weights, strict=True):
        np.testing.assert_array_equal(one, other)
    assert shorter.kept_epoch == best


@pytest.mark.parametrize("batched", [None, True] if BACKEND == "jax" else [None])
def test_stop_is_asked_after_each_epoch_and_heard(batched):
    asked = []

    def stop(place, curves):
        asked.append((place, len(curves["val_data_loss"])))
        return place == 1 and len(curves["val_data_loss"]) == 2

    problem = make_problem()
    jobs = [job(problem, epochs=3), job(problem, epochs=9)]
    first, second = train(shared_engine(batched=batched), *jobs, stop=stop)
    assert (first.steps, second.steps) == (12, 8)
    # In which order depends on which of two threads is ahead.
    assert sorted(asked) == [(0, 1), (0, 2), (1, 1), (1, 2)]


def test_watch_hears_of_every_epoch():
    heard = []

    class Listens(Watch):
        def begin(self, place):
            heard.append(("begin", place))

        def epoch(self, place, curves, norms):
            heard.append((place, len(curves["data_loss"]), sorted(norms)))

    problem = make_problem()
    train(shared_engine(), job(problem), job(problem, epochs=1), watch=Listens())
    kinds = ["data_gradient", "penalty_gradient", "weight"]
    first = [("begin", 0), (0, 1, kinds), (0, 2, kinds)]
    assert [h for h in heard if h != ("begin", 1) and h[0] != 1] == first
    assert [h for h in heard if h not in first] == [("begin", 1), (1, 1, kinds)]


def test_engine_that_trains_refuses_another_training():
    problem = make_problem()
    engine = make_engine(problem)

    class Nested(Watch):
        def begin(self, place):
            engine.start(problem, start(problem))

    with pytest.raises(RuntimeError, match="is training"):
        train(engine, job(problem), watch=Nested())
    assert train(engine, job(problem)).steps == 8


def test_long_epochs_are_cut_into_calls_and_stay_the_same(monkeypatch):
    problem = make_problem()
    whole = train(shared_engine(), job(problem))
    monkeypatch.setattr(training, "CALL_SECONDS", 0.0)
    engine = make_engine(problem)
    cut = train(engine, job(problem))
    assert same(whole, cut)


def test_given_initial_weights_are_not_changed():
    problem = make_problem()
    weights = start(problem)
    before = [w.copy() for w in weights]
    train(shared_engine(), job(problem, initial=weights))
    for old, new in zip(before, weights, strict=True):
        np.testing.assert_array_equal(old, new)


def test_data_are_brought_to_the_device_once(monkeypatch):
    problem = make_problem()
    engine = make_engine(problem)
    loop = engine._first.loop
    put, real = [], loop.put
    monkeypatch.setattr(loop, "put", lambda x, y: put.append(x) or real(x, y))
    train(engine, job(problem), job(problem, seed=3), evaluate=("train",))
    assert len(put) == 2
    assert put[0] is problem.x_train
    assert put[1] is problem.x_validation


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"coefficients": {"nowhere/kernel": 1.0}}, "nowhere/kernel"),
        ({"dropout": 0.5}, "no dropout"),
        ({"weight_decay": 0.5}, "without decay"),
    ],
)
def test_job_that_the_engine_cannot_do_is_refused(options, expected):
    with pytest.raises(ValueError, match=expected):
        train(shared_engine(), job(make_problem(), **options))


def test_job_that_diverges_is_recorded_as_it_is():
    problem = make_problem()
    c = dict.fromkeys(shared_engine().names, 1e6)
    found = train(shared_engine(), job(problem, c, epochs=9, patience=2))
    assert not np.isfinite(found.curves["val_data_loss"][-1])
    assert len(found.curves["val_data_loss"]) < 9


class Notes(Watch):
    """Remembers what it heard, and in which thread."""

    def __init__(self):
        self.heard, self.threads = [], set()

    def begin(self, place):
        self._note((place, 0))

    def epoch(self, place, curves, norms):
        self._note((place, len(curves["val_data_loss"])))

    def _note(self, event):
        self.heard.append(event)
        self.threads.add(threading.current_thread())


def three_programs(**options):
    """An engine with a thread for each of three, whatever the machine has."""
    return make_engine(make_problem(), **options, batched=False, threads=3)


def test_jobs_side_by_side_are_what_they_are_alone():
    problem, options = make_problem(), {"drops": True, "decays": True}
    engine = three_programs(**options)
    engine.warm_up(problem)
    c = dict.fromkeys(engine.names, 0.1)
    jobs = [
        job(problem, c if k % 2 else {}, seed=k, epochs=3 + k, dropout=0.1 * k)
        for k in range(7)
    ]
    notes = Notes()
    together = dict(engine.train(jobs, watch=notes, evaluate=("test",), weights=True))
    assert sorted(together) == list(range(7))
    assert len(engine._programs) == 3
    for k, one in together.items():
        engine = shared_engine(**options, batched=False)
        alone = train(engine, jobs[k], evaluate=("test",))
        assert one.curves == alone.curves
        for a, b in zip(one.weights, alone.weights, strict=True):
            np.testing.assert_array_equal(a, b)
    assert notes.threads == {threading.current_thread()}
    for k in range(7):
        heard = [epoch for place, epoch in notes.heard if place == k]
        assert heard == list(range(3 + k + 1))


@pytest.fixture(scope="module")
def three():
    return three_programs()


def test_error_beside_others_ends_all_and_the_engine_goes_on(three):
    problem, engine = make_problem(), three
    jobs = [job(problem, seed=k, epochs=10**6) for k in range(4)]

    def stop(place, curves):
        if place == 1 and len(curves["val_data_loss"]) == 3:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        list(engine.train(jobs, stop=stop))
    (_, found), *_ = engine.train([job(problem, seed=k) for k in range(2)])
    assert found.steps == 8


def test_stop_side_by_side_is_asked_by_one_at_a_time(three):
    problem, engine = make_problem(), three
    asking, most = [], []

    def stop(place, curves):
        asking.append(place)
        most.append(len(asking))
        asking.remove(place)
        return len(curves["val_data_loss"]) > place

    jobs = [job(problem, seed=k, epochs=50) for k in range(6)]
    found = dict(engine.train(jobs, stop=stop))
    assert [found[k].steps for k in range(6)] == [4 * (k + 1) for k in range(6)]
    assert max(most) == 1


def test_programs_for_threads_are_made_once_they_pay(monkeypatch):
    monkeypatch.setattr(program.os, "cpu_count", lambda: 2)
    problem = make_problem()
    engine = make_engine(problem, batched=False)
    loop = engine._first.loop
    assert engine._threads == (2 if loop.side_by_side else 1)
    engine.warm_up(problem)
    jobs = [job(problem, seed=k) for k in range(3)]
    at_once = 1 if loop.keeps_state else engine._threads
    list(engine.train(jobs))
    assert len(engine._programs) == at_once
    engine._seconds = engine._compiled_in + 1.0
    list(engine.train(jobs[:1]))
    assert len(engine._programs) == at_once
    list(engine.train(jobs))
    assert len(engine._programs) == engine._threads


if BACKEND == "jax":
    # On a processor XLA runs a convolution within a loop several times slower.
    @pytest.mark.parametrize("batched", [False, True])
    @pytest.mark.parametrize(
        ("kind", "expected"), [("convolution", False), ("recurrent", True)]
    )
    def test_steps_with_convolutions_are_called_one_by_one(
        kind, expected, batched, monkeypatch
    ):
        network = NETWORKS[kind]()
        problem = make_problem(shape=network.input_shape[1:])
        engine, called = make_engine(problem, network, batched=batched), []
        loop = engine._first.loop
        monkeypatch.setattr(loop, "side_by_side", True)  # as on a processor
        step = loop.step
        monkeypatch.setattr(loop, "step", lambda *a: (called.append(1), step(*a))[1])
        found = train(engine, job(problem, initial=initial_weights(network)))
        # 30 examples in batches of 8, two epochs: the first and the last, or all.
        assert len(called) == 2 * (2 if expected else 4)
        loop._is_looped = True
        looped = train(engine, job(problem, initial=initial_weights(network)))
        for a, b in zip(found.weights, looped.weights, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
        monkeypatch.setattr(loop, "side_by_side", False)
        data = loop.put(problem.x_train, problem.y_train)
        assert loop.is_faster_looped(None, data, np.arange(4))

    def test_batch_of_jobs_is_what_they_are_one_by_one():
        problem = make_problem()
        options = {"drops": True, "optimizer": "adam", "decays": True}
        engine = make_engine(problem, **options, batched=True)
        c = dict.fromkeys(engine.names, 0.1)
        jobs = [
            job(problem, epochs=5, learning_rate=0.5, patience=1),
            job(problem, c, dropout=0.5, seed=4, epochs=3),
            job(problem, c, initial=start(problem, 9), weight_decay=0.2, epochs=4),
        ]
        together = train(engine, *jobs, evaluate=("test",), gradients=True)
        for one, k in zip(together, range(3), strict=True):
            alone = train(shared_engine(**options), jobs[k], evaluate=("test",))
            assert (one.steps, one.kept_epoch) == (alone.steps, alone.kept_epoch)
            for name, curve in alone.curves.items():
                assert one.curves[name] == pytest.approx(curve, rel=1e-4, abs=1e-6)
            for a, b in zip(one.weights, alone.weights, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
            a, b = (x.evaluations["test"].outputs for x in (one, alone))
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)

    def test_batches_of_few_sizes_are_compiled():
        # Three jobs train in a state of four rows, as four do.
        problem = make_problem()
        engine = make_engine(problem, batched=True)
        jobs = [job(problem, seed=k) for k in range(4)]
        whole = train(engine, *jobs)
        loop = engine._first.loop
        compiled = loop._step._cache_size(), loop._steps._cache_size()
        found = train(engine, *jobs[:3])
        assert (loop._step._cache_size(), loop._steps._cache_size()) == compiled
        for one, other in zip(found, whole[:3], strict=True):
            assert one.curves == other.curves
            assert all(map(np.array_equal, one.weights, other.weights))
        found = train(engine, *jobs[:2])
        assert (loop._step._cache_size(), loop._steps._cache_size()) > compiled

    def test_memory_bounds_the_jobs_of_a_batch():
        problem = make_problem()
        network = make_network(problem)
        size = sum(int(np.prod(v.shape)) for v in network.variables)
        memory = int(3.5 * 4 * program.COPIES * size)
        engine = make_engine(problem, network, batched=True, memory=memory)
        assert engine.jobs_at_once == 2  # not 3, whose state would have 4 rows
        assert [len(g) for g in engine._groups([job(problem)] * 5)] == [2, 2, 1]
        assert make_engine(problem, batched=True, memory=1).jobs_at_once == 1
else:

    def test_batch_of_jobs_is_refused_where_there_is_none():
        with pytest.raises(NotImplementedError, match="one job at a time"):
            make_engine(make_problem(), batched=True)


if BACKEND == "tensorflow":
    import tensorflow as tf

    class Filters(L.Layer):
        """A convolution that only its call knows of."""

        def build(self, shape):
            self.kernel = self.add_weight(shape=(3, 3, shape[-1], 2))

        def call(self, inputs):
            return keras.ops.conv(inputs, self.kernel)

    class Attends(L.Layer):
        def build(self, shape):
            self.attention = L.MultiHeadAttention(2, 3)
            self.attention.build(shape, shape)

        def call(self, inputs):
            return self.attention(inputs, inputs)

    # What trains faster in XLA on a processor, and what there up to fifty times slower.
    @pytest.mark.parametrize(
        ("network", "expected"),
        [
            (NETWORKS["dense"], True),
            (NETWORKS["recurrent"], True),
            (NETWORKS["convolution"], False),
            (lambda: sequential((6, 6, 2), Filters(), L.Flatten()), False),
            (lambda: sequential((6, 6, 2), L.AveragePooling2D(2), L.Flatten()), False),
            (lambda: sequential((5, 3), Attends(), L.Flatten()), False),
            (
                lambda: sequential(
                    (5, 6, 6, 1), L.TimeDistributed(L.Conv2D(2, 3)), L.Flatten()
                ),
                False,
            ),
        ],
    )
    def test_networks_that_xla_slows_down_are_left_to_kernels(
        network, expected, monkeypatch
    ):
        network, asked, function = network(), set(), tf.function
        problem = make_problem(shape=network.input_shape[1:])
        loop = make_engine(problem, network)._first.loop
        data = loop.put(problem.x_train, problem.y_train)

        def noted(*arguments, **options):
            # Keras compiles functions of its own.
            if [getattr(f, "__self__", None) for f in arguments] == [loop]:
                asked.add(options["jit_compile"])
            return function(*arguments, **options)

        monkeypatch.setattr(tf, "function", noted)
        loop.evaluate(None, data, np.arange(4))
        assert asked == {expected}
        loop.side_by_side = False  # on a GPU XLA has the same kernels
        assert loop.is_faster_in_xla(data)


if BACKEND == "torch":
    import torch

    from keras_scaled_l2.backends import loop_torch

    class CountsCalls(L.Layer):
        """Follows a number in Python."""

        count = 0

        def call(self, inputs):
            self.count += 1
            return inputs * (1.0 + self.count % 2)

    def doubled(x):
        return 2.0 * x

    def engine_and_loop(*layers):
        network = sequential((4,), L.Dense(5, "relu"), *layers)
        initial = initial_weights(network)
        problem = make_problem()
        engine = make_engine(problem, network, drops=True)
        options = {"initial": initial, "epochs": 5, "dropout": 0.2}
        c = dict.fromkeys(engine.names, 0.01)
        return engine, engine._first.loop, job(problem, c, **options)

    def test_recorded_steps_equal_those_of_the_layers_to_the_bit(monkeypatch):
        engine, loop, a_job = engine_and_loop(L.BatchNormalization(), L.Dropout(0.3))
        recorded = train(engine, a_job)
        # 24 and 6 examples are 3 steps of one kind and 1 of another.
        assert len(loop._recorded) == 2
        assert loop._training_pass not in loop._recorded.values()
        monkeypatch.setattr(loop, "_record", lambda tensors: loop._training_pass)
        loop._recorded.clear()
        layers = train(engine, a_job)
        assert layers.curves == recorded.curves
        assert layers.norms == recorded.norms
        for one, other in zip(layers.weights, recorded.weights, strict=True):
            np.testing.assert_array_equal(one, other)

    @pytest.mark.parametrize(
        "layer",
        [
            CountsCalls,
            functools.partial(L.Lambda, doubled),
            functools.partial(L.Lambda, lambda x: 2.0 * x),
            functools.partial(L.Dense, 3, activation=doubled),
            functools.partial(L.TorchModuleWrapper, torch.nn.BatchNorm1d(5)),
            # Loops in Python, and a generator that is seeded there.
            lambda: keras.Sequential([L.Reshape((5, 1)), L.Bidirectional(L.GRU(2))]),
            functools.partial(L.GaussianNoise, 0.5),
        ],
    )
    def test_what_python_may_decide_is_not_recorded(layer):
        network = sequential((4,), L.Dense(5, "relu"), layer())
        # Before any call: in the first one a wrapped module adds its weights.
        problem, initial = make_problem(), initial_weights(network)
        engine = make_engine(problem, network)
        train(engine, job(problem, initial=initial))
        loop = engine._first.loop
        assert set(loop._recorded.values()) == {loop._training_pass}

    def test_buffers_of_a_torch_module_are_each_jobs_own():
        # No variables of Keras; a validation loss reads them.
        module = torch.nn.BatchNorm1d(5, momentum=0.5)
        wrapper = L.TorchModuleWrapper(module, output_shape=(None, 5))
        network = sequential((4,), L.Dense(5, "relu"), wrapper)
        problem = make_problem()
        engine = make_engine(problem, network)
        initial = initial_weights(network)
        # Diverges slowly, so that an early epoch is kept.
        one = job(problem, initial=initial, epochs=4, learning_rate=3.0, patience=4)
        first = train(engine, one, evaluate=["validation"])
        train(engine, job(problem, initial=initial, epochs=9))
        again = train(engine, one)
        assert first.kept_epoch < 4
        assert again.curves == first.curves
        # And those of the epoch that was kept.
        kept = first.curves["val_data_loss"][first.kept_epoch - 1]
        loss = first.evaluations["validation"].data_loss
        assert loss == pytest.approx(kept, rel=1e-6)

    def test_buffers_that_appear_late_or_cannot_be_written_to_are_no_fault():
        class Module(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("ones", torch.ones(1).expand(5))

            def forward(self, x):
                if not hasattr(self, "late"):
                    self.register_buffer("late", torch.ones(5))
                return x * self.ones * self.late

        wrapper = L.TorchModuleWrapper(Module(), output_shape=(None, 5))
        network = sequential((4,), L.Dense(5, "relu"), wrapper)
        problem = make_problem()
        engine = make_engine(problem, network)
        one = job(problem, initial=initial_weights(network), patience=2)
        assert train(engine, one).curves == train(engine, one).curves

    @pytest.mark.parametrize("fault", ["other numbers", "error"])
    def test_recording_that_does_not_equal_the_layers_is_not_used(fault, monkeypatch):
        engine, loop, a_job = engine_and_loop(L.BatchNormalization())

        def forward(*tensors):
            if fault == "error":
                raise RuntimeError("shape mismatch")
            sums, first, *rest = loop._training_pass(*tensors)
            return sums, 1.01 * first, *rest

        def make_fx(function):
            nodes = types.SimpleNamespace(nodes=[])
            made = types.SimpleNamespace(graph=nodes, forward=forward)
            return lambda *tensors: made

        monkeypatch.setattr(loop_torch, "make_fx", make_fx)
        train(engine, a_job)
        assert set(loop._recorded.values()) == {loop._training_pass}

    def test_recording_draws_no_random_numbers():
        engine, _, a_job = engine_and_loop(L.BatchNormalization(), L.Dropout(0.3))
        first, again = train(engine, a_job), train(engine, a_job)
        assert first.curves == again.curves
