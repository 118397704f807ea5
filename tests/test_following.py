"""Jobs whose strengths follow the evidence: against ``fit``, and what they leave."""

import dataclasses

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
    train,
)
from event_files import scalars
from keras import layers as L

from keras_scaled_l2 import ApplyL2, EvidenceL2, detach
from keras_scaled_l2.experiments import Arm, compare
from keras_scaled_l2.experiments.engine import Engine
from keras_scaled_l2.experiments.errors import InputError
from keras_scaled_l2.experiments.following import check_following
from keras_scaled_l2.experiments.jobs import NORMS, Adapted
from keras_scaled_l2.experiments.naming import paths

RULE = EvidenceL2(0.3, burn_in=2)
EPOCHS = 6


def batches(problem, seed):
    """Those of a job, epoch by epoch."""
    for epoch in range(EPOCHS):
        n = len(problem.x_train)
        order = np.random.default_rng([seed, epoch]).permutation(n)
        for i in range(0, n, BATCH):
            chosen = order[i : i + BATCH]
            yield problem.x_train[chosen], problem.y_train[chosen]


def fitted(problem):
    """``fit`` with ``ApplyL2(EvidenceL2())`` on the batches of a job of seed 2."""
    model, m = make_network(problem, seed=2), len(problem.x_train)
    model.compile(OPTIMIZERS["plain sgd"](), LOSSES[problem.task]())
    examples = (problem.x_train, problem.y_train)
    options = {"steps_per_epoch": -(-m // BATCH), "epochs": EPOCHS, "shuffle": False}
    callbacks = [ApplyL2(RULE, samples=m, examples=examples)]
    data = batches(problem, 2)
    logs = model.fit(data, callbacks=callbacks, verbose=0, **options).history
    names = {v.path: name for v in model.weights for name in [paths(model)[id(v)]]}
    kinds = ((key, *key.partition("/")[::2]) for key in logs if key != "loss")
    curves = {f"{kind}/{names[path]}": logs[key] for key, kind, path in kinds}
    return model, curves


def compared(task="classes", arms=("none", "evidence"), **options):
    given = {"hidden": (6,), "batch_size": BATCH, "epochs": EPOCHS, "seeds": [2]}
    problem = make_problem(task)
    return compare("dense", problem, arms, progress=False, **given | options)


@pytest.mark.parametrize("task", ["classes", "regression"])
def test_arm_of_a_comparison_is_fit_under_apply_l2(task):
    optimizer = OPTIMIZERS["plain sgd"]()
    result = compared(task, [Arm("evidence", RULE)], optimizer=optimizer)
    [run], problem = result["evidence"].runs, make_problem(task).source.split(2)
    model, curves = fitted(problem)
    assert len(curves) == 3 * 2
    for name, values in curves.items():
        assert run.curves[name] == pytest.approx(values, rel=1e-3, nan_ok=True)
        if name.startswith("c/"):
            assert run.coefficients[name[2:]] == run.curves[name][-1]
            assert len({*values}) == EPOCHS
    cost, last = run.final_cost, model.evaluate(*train_data(problem), verbose=0)
    assert cost.total == pytest.approx(last, rel=1e-4)
    detach(model)
    model.compile(loss=LOSSES[task]())
    data_loss = model.evaluate(problem.x_test, problem.y_test, verbose=0)
    assert run.test.data_loss == pytest.approx(data_loss, rel=1e-4)


def train_data(problem):
    return problem.x_train, problem.y_train


def test_coefficients_move_without_a_new_compilation():
    calls = []

    class Counts(L.Layer):
        def call(self, inputs):
            calls.append(1)
            return inputs

    def network():
        inner = [L.Dense(5, "relu", name="hidden"), Counts(), L.Dense(3, name="last")]
        return keras.Sequential([keras.Input((4,)), *inner])

    problem, made = make_problem(), network()
    engine, given = make_engine(problem, made), []
    initial = [np.array(w) for w in made.get_weights()]

    def adapt(epochs, weights):
        given.append(weights[0].copy())
        return Adapted(dict.fromkeys(engine.names, 0.01 * 2**epochs), {"told": epochs})

    one = job(problem, dict.fromkeys(engine.names, 0.01), initial=initial, epochs=3)
    train(engine, one, evaluate=("train",))
    traced = len(calls)
    found = train(engine, dataclasses.replace(one, adapt=adapt), evaluate=("train",))
    if keras.config.backend() != "torch":  # compiles nothing: every step calls
        assert len(calls) == traced
    assert found.curves["told"] == [1, 2, 3]
    assert np.array_equal(given[-1], found.weights[0])
    # In force during an epoch is what the one before it left.
    for name in engine.names:
        ratios = np.divide(*(found.norms[k][name] for k in NORMS[2::-2]))
        np.testing.assert_allclose(ratios, [0.02, 0.04, 0.08], rtol=1e-5)
    squares = sum(np.sum(w.astype(float) ** 2) for w in found.weights[::2])
    penalty = found.evaluations["train"].penalty
    assert penalty == pytest.approx(0.08 * squares, rel=1e-5)
    assert set(found.coefficients.values()) == {0.08}


def test_early_stopping_goes_back_to_the_coefficients_of_the_best_epoch():
    problem = make_problem()
    engine = make_engine(problem, threads=1)
    names = engine.names

    def crush(epochs, weights):
        c = 0.01 if epochs < 3 else 4.0
        return Adapted(dict.fromkeys(names, c + epochs / 1000), {})

    start = dict.fromkeys(names, 0.01)
    found = train(engine, job(problem, start, epochs=9, patience=2, adapt=crush))
    assert found.kept_epoch == found.best_epoch == 3
    assert set(found.coefficients.values()) == {4.003}
    # What is trained next starts from its own.
    plain = train(engine, job(problem, start, epochs=1))
    assert [*plain.coefficients.values()] == pytest.approx([0.01, 0.01])


def test_what_the_evidence_cannot_do_is_said_in_one_line():
    problem = make_problem()
    inputs = keras.Input((4,))
    hidden = L.BatchNormalization()(L.Dense(3)(inputs))
    normalized = keras.Model(inputs, L.Dense(3)(hidden))
    for network, epochs, message in (
        (normalized, 6, r"arm 'x': .* without BatchNormalization"),
        (make_network(problem), 2, r"arm 'x': its strengths move after 2 epochs"),
    ):
        with pytest.raises(InputError, match=message):
            check_following("arm 'x'", network, RULE, problem, epochs)
    # A remedy that is there already would be none.
    short, one = make_network(problem), EvidenceL2(burn_in=1)
    with pytest.raises(InputError, match=r"after 1 epoch, and .* Train longer\.$"):
        check_following("arm 'x'", short, one, problem, 1)


def test_arm_tells_what_it_started_from_and_found(tmp_path):
    result = compared(tune=2, directory=tmp_path)
    [run], [plain] = result["evidence"].runs, result["none"].runs
    assert result["evidence"].rule == Arm("x", EvidenceL2()).config
    assert run.trials == ()
    assert plain.starting_coefficients == plain.coefficients == {}
    # alpha = 1 of 30 examples.
    assert [*run.starting_coefficients.values()] == pytest.approx([1 / 60] * 2)
    curves = scalars(tmp_path / "tensorboard" / "evidence" / "seed-2")
    for name, c in run.coefficients.items():
        assert c != run.starting_coefficients[name]
        written = [value for _, value in curves[f"c/{name}"]]
        assert written == pytest.approx(run.curves[f"c/{name}"])
        in_force = [value for _, value in curves[f"coefficient/{name}"]]
        assert in_force == pytest.approx([1 / 60, *written[:-1]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 5}, "arm 'evidence': its strengths move after 5 epochs"),
        ({"optimizer": "adam"}, "arm 'evidence': .* under Adam"),
        ({"strengths": {"evidence": 1.0}}, "strength of 'evidence': that arm finds"),
    ],
)
def test_arm_that_the_evidence_refuses_is_refused_before_training(
    options, message, monkeypatch
):
    monkeypatch.setattr(Engine, "train", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(InputError, match=message):
        compared(**options)
