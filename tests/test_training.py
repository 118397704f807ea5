"""Training: one compiled step for every arm, and each run as if it were the first."""

import functools
import itertools

import keras
import numpy as np
import pytest

from keras_scaled_l2.experiments import training
from keras_scaled_l2.experiments.architectures import dense, initial_weights
from keras_scaled_l2.experiments.arrays import checked
from keras_scaled_l2.experiments.batches import Batches
from keras_scaled_l2.experiments.coefficients import penalizable
from keras_scaled_l2.experiments.problems import Source
from keras_scaled_l2.experiments.records import Setting
from keras_scaled_l2.experiments.training import Trainer
from keras_scaled_l2.experiments.twin import (
    VariableDropout,
    derive,
    matching_weights,
)

# Not ours: NumPy 2 wants a keyword that __array__ of torch's tensors does not take yet.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

BATCH = 8
SGD = {"class_name": "SGD", "config": {"learning_rate": 0.1, "momentum": 0.9}}
ADAM = {"class_name": "Adam", "config": {"learning_rate": 0.01}}
OPTIMIZERS = {"sgd": SGD, "adam": ADAM}


@functools.cache
def make_problem(task="classes"):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 4)).astype("float32")
    y = {
        "classes": np.digitize(x[:, 0], [-0.5, 0.5]),
        "binary": (x[:, 0] > 0).astype(int),
        "regression": x[:, 0] * 2.5,
    }[task]
    return Source("made up", checked({"x_train": x, "y_train": y}, name="x")).split(0)


@functools.cache
def shared_trainer(task="classes", dropout=0.0, optimizer="sgd"):
    """One for all tests: that no run leaves anything behind is a test of its own."""
    return make_trainer(make_problem(task), dropout, OPTIMIZERS[optimizer])


def make_trainer(problem, dropout=0.0, optimizer=SGD):
    network = dense(problem, [6]).build(0)
    twin = network
    if dropout:
        twin = derive(network, dropout, seed=0, dropout=VariableDropout)
    weight = {id(v): v for v in network.weights}
    if dropout:
        weight = {id(v): t for v, t in matching_weights(network, twin)}
    return Trainer(
        twin,
        weights=[weight[id(v)] for v in network.weights],
        penalties={p: weight[id(v)] for p, v in penalizable(network).items()},
        problem=problem,
        optimizer=keras.optimizers.deserialize(dict(optimizer)),
        batch_size=BATCH,
    )


def start(problem, seed=0):
    return initial_weights(dense(problem, [6]).build(seed))


def kernels(trainer):
    return list(trainer.coefficients)


def numbers(record):
    """Everything but the seconds."""
    return (
        record.seed,
        record.starting_cost,
        record.train,
        record.validation,
        record.test,
    )


def test_order_follows_from_seed_and_epoch_alone():
    batches = Batches(np.arange(20)[:, None], np.arange(20), BATCH)
    batches.draw(3, 1)
    first = [y.tolist() for _, y in batches]
    np.random.default_rng(0).random()
    batches.draw(3, 1)
    assert [y.tolist() for _, y in batches] == first
    assert [len(b) for b in first] == [8, 8, 4]
    assert all(x[:, 0].tolist() == y.tolist() for x, y in batches)
    assert sorted(itertools.chain.from_iterable(first)) == list(range(20))
    for other in ((3, 2), (4, 1)):
        batches.draw(*other)
        assert next(iter(batches))[1].tolist() != first[0]


@pytest.mark.parametrize("n", [16, 20, 5])
def test_keras_is_told_the_sizes_of_the_batches(n):
    batches = Batches(np.zeros((n, 1)), np.arange(n), BATCH)
    sizes = [len(y) for _, y in batches]
    assert batches.num_batches == len(sizes)
    assert batches.batch_size == BATCH
    assert batches.has_partial_batch == (sizes[-1] != BATCH)
    assert (batches.partial_batch_size or BATCH) == sizes[-1]


def test_without_an_order_the_batches_are_the_arrays_themselves():
    x, y = np.zeros((20, 1)), np.arange(20)
    served = list(Batches(x, y, BATCH))
    assert np.concatenate([part for _, part in served]).tolist() == y.tolist()
    assert all(np.shares_memory(a, x) and np.shares_memory(b, y) for a, b in served)


def test_batches_hold_the_data_and_no_copy():
    x, y = np.ones((4, 2)), np.ones(4)
    batches = Batches(x, y, BATCH)
    assert batches.x is x
    assert batches.y is y


@pytest.mark.parametrize("epochs", [1, 3])
def test_fit_sees_the_batches_of_each_epoch_in_their_order(epochs, monkeypatch):
    problem = make_problem()
    served = []
    real = Batches.__iter__

    def spy(self):
        for x, labels in real(self):
            if self.y is problem.y_train and self.order is not None:
                served.append(labels.tolist())
            yield x, labels

    trainer = shared_trainer()
    trainer.warm_up(problem)
    monkeypatch.setattr(Batches, "__iter__", spy)
    trainer.run(problem, start(problem), {}, seed=5, epochs=epochs)
    n = len(problem.y_train)
    expected = []
    for epoch in range(epochs):
        order = np.random.default_rng([5, epoch]).permutation(n)
        labels = problem.y_train[order].tolist()
        expected += [labels[i : i + BATCH] for i in range(0, n, BATCH)]
    assert served == expected


@pytest.mark.parametrize("task", ["classes", "binary", "regression"])
def test_run_is_what_a_plain_keras_model_with_l2_does(task):
    problem = make_problem(task)
    trainer = shared_trainer(task)
    path = kernels(trainer)
    record = trainer.run(
        problem, start(problem), {path[0]: 0.01, path[1]: 0.3}, seed=2, epochs=2
    )

    plain = dense(problem, [6]).build(0)
    for layer, c in zip(
        [x for x in plain.layers if x.weights], (0.01, 0.3), strict=True
    ):
        layer.kernel.regularizer = keras.regularizers.L2(c)
    loss = {
        "classes": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "binary": keras.losses.BinaryCrossentropy(from_logits=True),
        "regression": keras.losses.MeanSquaredError(),
    }[task]
    plain.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss)
    total = plain.evaluate(problem.x_train, problem.y_train, verbose=0)
    assert record.starting_cost.total == pytest.approx(total, rel=1e-5)
    for epoch in range(2):
        order = np.random.default_rng([2, epoch]).permutation(len(problem.x_train))
        x, y = problem.x_train[order], problem.y_train[order]
        plain.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)
    for layer in plain.layers:
        if layer.weights:
            layer.kernel.regularizer = None
    plain.compile(loss=loss)
    for part in ("train", "validation", "test"):
        x, y = getattr(problem, f"x_{part}"), getattr(problem, f"y_{part}")
        expected = plain.evaluate(x, y, verbose=0)
        assert getattr(record, part).data_loss == pytest.approx(expected, rel=1e-4)
        outputs = np.asarray(plain.predict(x, verbose=0))
        hits = {
            "classes": lambda out, y: np.mean(out.argmax(axis=1) == y),
            "binary": lambda out, y: np.mean((out[:, 0] > 0) == y),
            "regression": lambda out, y: None,
        }[task](outputs, y)
        assert getattr(record, part).accuracy == (
            None if hits is None else pytest.approx(hits)
        )


@pytest.mark.parametrize(
    ("loss", "labels", "outputs"),
    [
        (keras.losses.SparseCategoricalCrossentropy(from_logits=True), 3, (7, 3)),
        (keras.losses.SparseCategoricalCrossentropy(from_logits=True), 3, (7, 5, 3)),
        (keras.losses.BinaryCrossentropy(from_logits=True), 2, (7, 1)),
        (keras.losses.MeanSquaredError(), 100, (7, 1)),
    ],
)
def test_loss_averaged_at_once_is_the_loss_of_keras(loss, labels, outputs):
    rng = np.random.default_rng(0)
    y = keras.ops.convert_to_tensor(rng.integers(labels, size=outputs[:-1]))
    given = keras.ops.convert_to_tensor(rng.normal(size=outputs).astype("float32"))
    expected = float(loss(y, given))
    assert float(training._Averaged(loss)(y, given)) == pytest.approx(expected, 1e-6)


def test_loss_averaged_at_once_leaves_masked_steps_out():
    x = np.ones((2, 3, 4), "float32")
    x[0, 1:] = 0.0
    masked = keras.layers.Masking()(x)
    y = np.arange(24, dtype="float32").reshape(2, 3, 4)
    loss = keras.losses.MeanSquaredError()
    averaged = float(training._Averaged(loss)(y, masked))
    assert averaged == pytest.approx(float(loss(y, masked)), 1e-6)
    assert averaged != pytest.approx(np.mean((y - x) ** 2), 1e-3)


def test_starting_cost_is_data_and_penalty_computed_by_hand():
    problem = make_problem()
    trainer = shared_trainer()
    path = kernels(trainer)
    weights = start(problem)
    record = trainer.run(
        problem, weights, {path[0]: 0.5, path[1]: 2.0}, seed=0, epochs=1
    )
    first, bias, second, bias_2 = (w.astype("float64") for w in weights)
    logits = np.maximum(problem.x_train @ first + bias, 0) @ second + bias_2
    shifted = logits - logits.max(axis=1, keepdims=True)
    chosen = shifted[np.arange(len(logits)), problem.y_train]
    data = np.mean(np.log(np.exp(shifted).sum(axis=1)) - chosen)
    penalty = 0.5 * np.sum(first**2) + 2.0 * np.sum(second**2)
    cost = record.starting_cost
    assert cost.data == pytest.approx(data, rel=1e-5)
    assert cost.penalty == pytest.approx(penalty, rel=1e-5)
    assert cost.total == pytest.approx(data + penalty, rel=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_start_is_the_same_before_and_after_any_arm(dropout):
    problem = make_problem()
    trainer = shared_trainer(dropout=dropout)
    weights = start(problem)
    found = trainer.start(problem, weights)
    options = {"setting": Setting(dropout=dropout), "seed": 1, "epochs": 2}
    penalties = dict.fromkeys(kernels(trainer), 0.3)
    given = trainer.run(problem, weights, penalties, start=found, **options)
    assert trainer.start(problem, weights) == found
    assert trainer.start(problem, start(problem, 1)) != found
    alone = trainer.run(problem, weights, penalties, **options)
    assert numbers(given) == numbers(alone)
    assert given.gradient_ratios == alone.gradient_ratios
    assert set(given.gradient_ratios) == {"start", "end"}


@pytest.mark.skipif(
    keras.config.backend() != "torch", reason="where steps are traced, one serves all"
)
def test_on_torch_an_arm_without_a_penalty_computes_none(monkeypatch):
    called = []
    real = training.VariableL2.__call__

    def spy(self, x):
        called.append(self)
        return real(self, x)

    monkeypatch.setattr(training.VariableL2, "__call__", spy)
    problem = make_problem()
    trainer = make_trainer(problem)
    path = kernels(trainer)
    trainer.run(problem, start(problem), {path[1]: 0.0}, seed=0, epochs=1)
    assert not called
    trainer.run(problem, start(problem), {path[0]: 0.1}, seed=0, epochs=1)
    assert len(set(called)) == 1
    trainer.run(problem, start(problem), dict.fromkeys(path, 0.1), seed=0, epochs=1)
    assert len(set(called)) == 2


def test_strength_zero_equals_no_penalty_exactly():
    problem = make_problem()
    trainer = shared_trainer()
    none = trainer.run(problem, start(problem), {}, seed=1, epochs=2)
    zero = trainer.run(
        problem, start(problem), dict.fromkeys(kernels(trainer), 0.0), seed=1, epochs=2
    )
    assert numbers(none) == numbers(zero)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_run_leaves_nothing_behind_for_the_next(dropout, optimizer):
    problem = make_problem()
    trainer = shared_trainer(dropout=dropout, optimizer=optimizer)
    setting = Setting(dropout=dropout)
    penalties = dict.fromkeys(kernels(trainer), 0.05)
    run = functools.partial(trainer.run, problem, setting=setting)
    first = run(start(problem), penalties, seed=1, epochs=2)
    other = run(start(problem, 7), {}, seed=7, epochs=3)
    again = run(start(problem), penalties, seed=1, epochs=2)
    assert numbers(first) == numbers(again)
    assert numbers(first)[1:] != numbers(other)[1:]


def test_dropout_masks_follow_from_the_seed():
    problem = make_problem()
    trainer = shared_trainer(dropout=0.5)
    weights = start(problem)
    losses = []
    for seed in (1, 2, 1):
        trainer._reset(weights, {}, Setting(dropout=0.5), seed)
        x = problem.x_train
        outputs = trainer.model(keras.ops.convert_to_tensor(x), training=True)
        total = keras.ops.sum(keras.ops.abs(keras.ops.stop_gradient(outputs)))
        losses.append(float(total))
    assert losses[0] == losses[2]
    assert losses[0] != losses[1]


def test_one_compiled_step_serves_all_strengths_and_seeds(monkeypatch):
    traces = []
    real = training._Trainee.call

    def spy(self, inputs, training=None):
        traces.append(training)
        return real(self, inputs, training=training)

    monkeypatch.setattr(training._Trainee, "call", spy)
    problem = make_problem()
    trainer = make_trainer(problem)
    trainer.warm_up(problem)
    steps = trainer.model.train_function, trainer.model.test_function
    compiled = len(traces)
    assert compiled > 0
    for seed, c in ((0, 0.0), (1, 0.1), (2, 10.0)):
        penalties = dict.fromkeys(kernels(trainer), c)
        trainer.run(problem, start(problem, seed), penalties, seed=seed, epochs=2)
    assert (trainer.model.train_function, trainer.model.test_function) == steps
    # Torch traces nothing: there the model itself runs at every step.
    if keras.config.backend() != "torch":
        assert len(traces) == compiled


def test_state_of_a_step_is_kept_as_it_is_and_not_searched_for_layers():
    problem = make_problem()
    trainer = shared_trainer()
    kinds = []
    # At the end of a validation, before Keras takes the state away.
    look = keras.callbacks.LambdaCallback(
        on_test_end=lambda *_: kinds.append(type(vars(trainer.model).get("_jax_state")))
    )
    trainer.run(problem, start(problem), {}, seed=0, epochs=2, callbacks=[look])
    # Keras's own would be a TrackedDict. Only JAX has its state outside the model.
    expected = dict if keras.config.backend() == "jax" else type(None)
    assert kinds == [expected] * 2


def test_given_initial_weights_are_not_changed():
    problem = make_problem()
    trainer = shared_trainer()
    weights = start(problem)
    before = [w.copy() for w in weights]
    trainer.run(problem, weights, {}, seed=0, epochs=2)
    for old, new in zip(before, weights, strict=True):
        np.testing.assert_array_equal(old, new)


def test_strength_for_an_unknown_weight_is_refused():
    problem = make_problem()
    trainer = shared_trainer()
    with pytest.raises(ValueError, match="nowhere/kernel"):
        trainer.run(problem, start(problem), {"nowhere/kernel": 1.0}, seed=0, epochs=1)


def test_penalty_that_outgrows_float32_is_recorded_as_it_is():
    problem = make_problem()
    trainer = shared_trainer()
    record = trainer.run(
        problem, start(problem), dict.fromkeys(kernels(trainer), 1e6), seed=0, epochs=1
    )
    assert not np.isfinite(record.test.data_loss)
