"""The measured step: which ones, how exact, and how often it is compiled."""

import copy
import math

import keras
import numpy as np
import pytest
from event_files import scalars
from keras import layers, ops
from models import compiled, data, hidden
from models import linear as any_linear
from reference import mean_squared_error
from second_pass import gradients

from keras_scaled_l2 import CostMonitor, ScaledL2, attach
from keras_scaled_l2.gradient_norms import GradientNorms, measure_gradients
from keras_scaled_l2.gradients import to_numpy
from keras_scaled_l2.rule import Quadratic
from keras_scaled_l2.scalars import gradient_scalars

BACKEND = keras.config.backend()
BATCH = 4


# XLA is the default everywhere, and slow to start where it is not the only way.
QUICK = {"jit_compile": BACKEND == "jax"}


def linear(regularizer=None, **arguments):
    return any_linear(regularizer, **QUICK, **arguments)


class Watch(keras.callbacks.Callback):
    """Keeps the record of every step, or of those that are due."""

    def __init__(self, due=lambda: True):
        super().__init__()
        self.due = due
        self.records = []

    def on_epoch_begin(self, epoch, logs=None):
        self.measurement = measure_gradients(self.model, self.params)
        self.measurement.watch(self.due, self.records.append)

    def on_train_end(self, logs=None):
        self.measurement.remove()


def fit(model, x, y, *callbacks, epochs=2, **arguments):
    history = model.fit(
        x,
        y,
        **{"batch_size": BATCH, "shuffle": False, "verbose": 0, **arguments},
        epochs=epochs,
        callbacks=list(callbacks),
    )
    return history.history


def watched(model, x, y, **arguments):
    """The records of all steps of a training."""
    watch = Watch()
    fit(model, x, y, CostMonitor(), watch, **arguments)
    return watch.records


def wide(c, learning_rate=0.0):
    """A linear unit of 200 weights under ``c * sum(w**2)``, and a batch for it."""
    x, y = data(BATCH, features=200)
    model = linear(keras.regularizers.L2(c), features=200, learning_rate=learning_rate)
    return model, x, y


# ------------------------------------------------------------------------- precision


@pytest.mark.parametrize("times", [1e-3, 1.0, 1e3, 1e6])
def test_data_norm_keeps_its_digits_under_a_penalty_of_another_size(times):
    model, x, y = wide(1.0)
    w, b = (np.asarray(v, "float64") for v in model.get_weights())
    _, by_w, by_b = mean_squared_error(
        *(np.asarray(a, "float64") for a in (x, y)), w, b
    )
    data_norm = np.linalg.norm(by_w)
    c = times * data_norm / (2 * np.linalg.norm(w))
    model, x, y = wide(c)
    [record] = watched(model, x, y, epochs=1)
    kernel, bias = record.norms.values()
    assert kernel.penalty / data_norm == pytest.approx(times, rel=1e-5)
    # The docstring's bound of GradientMeasurement, and the up to a thousand.
    # TensorFlow's graph has the data gradient by itself.
    bound = 1e-5 if BACKEND == "tensorflow" else max(1e-5, 1e-7 * times)
    assert bound <= 1e-4 or times > 1e3
    assert kernel.data == pytest.approx(data_norm, rel=bound)
    assert bias.data == pytest.approx(np.linalg.norm(by_b), rel=1e-5)
    assert kernel.coefficient == pytest.approx(c)


def test_records_of_a_training_are_those_of_float64():
    x, y = data(6)
    c, rate = 0.3, 0.1
    model = linear(ScaledL2(c, per=1), learning_rate=rate)
    w, b = (np.asarray(v, "float64") for v in model.get_weights())
    for record, start in zip(
        watched(model, x, y, batch_size=2), [0, 2, 4] * 2, strict=True
    ):
        rows = slice(start, start + 2)
        cost, by_w, by_b = mean_squared_error(x[rows], y[rows], w, b)
        kernel, bias = record.norms.values()
        assert kernel.data == pytest.approx(np.linalg.norm(by_w), rel=1e-5)
        assert kernel.penalty == pytest.approx(2 * c * np.linalg.norm(w), rel=1e-5)
        assert kernel.weight == pytest.approx(np.linalg.norm(w), rel=1e-5)
        assert bias.data == pytest.approx(np.linalg.norm(by_b), rel=1e-5)
        assert (bias.penalty, bias.coefficient) == (0.0, 0.0)
        assert record.data_loss == pytest.approx(cost, rel=1e-5)
        assert record.penalty == pytest.approx(c * np.sum(w**2), rel=1e-5)
        w = w - rate * (by_w + 2 * c * w)
        b = b - rate * by_b


# -------------------------------------------------------------- which weights, which c


def three(*penalties):
    """A chain of units, each kernel under its own penalty; no biases."""
    return compiled(
        keras.Sequential(
            [keras.Input((4,))]
            + [
                layers.Dense(2, use_bias=False, kernel_regularizer=penalty, name=name)
                for penalty, name in zip(penalties, "abc", strict=True)
            ],
            name="chain",
        ),
        **QUICK,
    )


def test_penalties_of_another_form_are_left_out_of_the_norms(tmp_path):
    x, y = data(BATCH, outputs=2)
    l1 = keras.regularizers.L1(0.1)
    both = keras.regularizers.L1L2(0.1, 0.1)
    quadratic = keras.regularizers.L1L2(0.0, 0.1)
    model = three(l1, both, quadratic)
    unpenalized = three(None, None, None)
    unpenalized.set_weights(model.get_weights())
    [record] = watched(model, x, y, epochs=1)
    assert list(record.norms) == ["chain/c/kernel"]
    *_, expected = gradients(unpenalized, x, y)
    norms = record.norms["chain/c/kernel"]
    assert norms.data == pytest.approx(np.linalg.norm(expected), rel=1e-5)
    assert norms.penalty == pytest.approx(0.2 * norms.weight, rel=1e-6)
    fit(model, x, y, CostMonitor(tmp_path), epochs=1)
    found = scalars(tmp_path)
    assert "gradient_norm/data/chain/c/kernel" in found
    assert not [tag for tag in found if "chain/a" in tag or "chain/b" in tag]


def test_no_norm_is_wrong_under_spectral_normalization():
    def normalized(c):
        keras.utils.set_random_seed(0)
        inner = layers.Dense(
            2,
            use_bias=False,
            kernel_regularizer=keras.regularizers.L2(c) if c else None,
        )
        last = layers.Dense(2, kernel_regularizer=keras.regularizers.L2(0.1))
        network = [keras.Input((3,)), layers.SpectralNormalization(inner), last]
        return compiled(keras.Sequential(network), **QUICK)

    x, y = data(BATCH, features=3, outputs=2)
    model, unpenalized = normalized(0.1), normalized(0.0)
    model.set_weights(unpenalized.get_weights())
    before = unpenalized.get_weights()
    expected = np.linalg.norm(gradients(unpenalized, x, y)[0])
    unpenalized.set_weights(before)
    [record] = watched(model, x, y, epochs=1)
    kernel = model.layers[0].layer.kernel.path
    # On JAX its penalty is a function of all that the call made of it.
    assert (kernel in record.norms) == (BACKEND != "jax")
    if kernel in record.norms:
        assert record.norms[kernel].data == pytest.approx(expected, rel=1e-4)
    assert model.layers[1].kernel.path in record.norms
    [record] = watched(unpenalized, x, y, epochs=1)
    kernel = unpenalized.layers[0].layer.kernel.path
    assert record.norms[kernel].data == pytest.approx(expected, rel=1e-4)


def test_model_of_nothing_but_other_penalties_is_monitored_for_its_costs(tmp_path):
    l1 = keras.regularizers.L1(0.1)
    fit(three(l1, l1, l1), *data(outputs=2), CostMonitor(tmp_path, 1))
    found = scalars(tmp_path)
    assert len(found["cost/penalty"]) == 6
    assert all(value > 0 for _, value in found["cost/penalty"])
    assert not [tag for tag in found if tag.startswith(("gradient_norm", "global"))]


def test_model_without_a_penalty_has_the_norms_of_all_its_weights(tmp_path):
    x, y = data(BATCH)
    model = linear()
    expected = [np.linalg.norm(g) for g in gradients(model, x, y)]
    fit(model, x, y, CostMonitor(tmp_path), epochs=1)
    found = scalars(tmp_path)
    for variable, norm in zip(model.trainable_weights, expected, strict=True):
        [(_, value)] = found[f"gradient_norm/data/{variable.path}"]
        assert value == pytest.approx(norm, rel=1e-5)
        assert found[f"gradient_norm/penalty/{variable.path}"] == [(0, 0.0)]
    assert found["global/gradient_norm/ratio"] == [(0, 0.0)]


def test_frozen_weights_are_in_no_record():
    x, y = data(BATCH)
    model = hidden(ScaledL2(1.0), ScaledL2(1.0))
    model.layers[0].trainable = False
    [record] = watched(compiled(model, **QUICK), x, y, epochs=1)
    assert list(record.norms) == [v.path for v in model.trainable_weights]
    assert not [path for path in record.norms if "first" in path]


@pytest.mark.skipif(BACKEND == "jax", reason="Keras on JAX fails in such a training")
def test_weight_frozen_while_steps_run_in_python_is_in_no_record_from_then_on():
    x, y = data(BATCH)

    def trained(*watches):
        keras.utils.set_random_seed(1)
        model = compiled(hidden(ScaledL2(1.0), ScaledL2(1.0)), run_eagerly=True)

        def freeze(epoch, logs):
            model.layers[0].trainable = epoch == 0

        freezing = keras.callbacks.LambdaCallback(on_epoch_begin=freeze)
        fit(model, x, y, CostMonitor(), *watches, freezing)
        return [to_numpy(v).tolist() for v in model.weights]

    watch = Watch()
    assert trained(watch) == trained()
    both, second = (list(record.norms) for record in watch.records)
    assert second == [path for path in both if "first" not in path]
    assert len(second) == len(both) - 2


class Twice(keras.Model):
    """Two layers of one name, which Keras allows here."""

    def __init__(self):
        super().__init__(name="twice")
        self.one = layers.Dense(3, kernel_regularizer=ScaledL2(0.1), name="same")
        self.two = layers.Dense(1, kernel_regularizer=ScaledL2(0.2), name="same")

    def call(self, x):
        return self.two(self.one(x))


def test_weights_of_one_path_are_told_apart():
    x, y = data(BATCH)
    model = Twice()
    model(x)
    expected = [np.linalg.norm(w) for w in model.get_weights()]
    [record] = watched(compiled(model, **QUICK), x, y, epochs=1)
    paths = [v.path for v in model.weights]
    assert len(set(paths)) == 2
    assert list(record.norms) == [*paths[:2], *(f"{path}_1" for path in paths[2:])]
    found = [norms.weight for norms in record.norms.values()]
    assert found == pytest.approx(expected, rel=1e-6)


class Pair(layers.Layer):
    """Two weights, of which one has the name that a second of the other would get."""

    def build(self, shape):
        for name in ("w_1", "w"):
            self.add_weight(shape=(4, 4), name=name, regularizer=ScaledL2(0.1))

    def call(self, x):
        return ops.matmul(ops.matmul(x, self.weights[0]), self.weights[1])


class TwoPairs(keras.Model):
    """Two such layers of one name."""

    def __init__(self):
        super().__init__(name="pairs")
        self.one, self.two = Pair(name="same"), Pair(name="same")

    def call(self, x):
        return self.two(self.one(x))


def test_number_of_a_second_path_is_one_that_no_weight_has():
    x, y = data(BATCH)
    model = TwoPairs()
    model(x)
    expected = [np.linalg.norm(w) for w in model.get_weights()]
    [record] = watched(compiled(model, **QUICK), x, np.tile(y, 4), epochs=1)
    found = [norms.weight for norms in record.norms.values()]
    assert found == pytest.approx(expected, rel=1e-6)


class Variable(Quadratic):
    """``c * sum(w**2)`` with a ``c`` that may change."""

    def __init__(self, value):
        self.coefficient = keras.Variable(value, trainable=False, name="coefficient")

    def __call__(self, x):
        return self.coefficient * ops.sum(ops.square(x))


def test_coefficient_that_changes_between_epochs_is_followed():
    x, y = data(BATCH)
    rule = Variable(0.5)
    unit = layers.Dense(1, kernel_regularizer=rule)
    # Keras on JAX knows only the variables of the model.
    unit.coefficient = rule.coefficient
    model = compiled(
        keras.Sequential([keras.Input((4,)), unit]), learning_rate=0.0, **QUICK
    )
    unpenalized = linear()
    unpenalized.set_weights([v.numpy() for v in model.trainable_weights])
    expected = [np.linalg.norm(g) for g in gradients(unpenalized, x, y)]

    class Raise(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            rule.coefficient.assign(5.0)

    watch = Watch()
    fit(model, x, y, CostMonitor(), watch, Raise())
    for record, c in zip(watch.records, (0.5, 5.0), strict=True):
        kernel = next(iter(record.norms.values()))
        assert kernel.penalty == pytest.approx(2 * c * kernel.weight, rel=1e-6)
        assert kernel.data == pytest.approx(expected[0], rel=1e-4)


# ------------------------------------------------------------------------ which steps


def steps(curve):
    return [step for step, _ in curve]


GRADIENT, RATE = "global/gradient_norm/data", "learning_rate"


@pytest.mark.parametrize(
    "update_freq, measured, costs",
    [
        ("epoch", [0, 3], [3, 6]),
        (1, [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]),
        (2, [0, 2, 4], [0, 2, 4]),
        (5, [0, 5], [0, 5]),
    ],
)
def test_update_freq_chooses_the_steps(update_freq, measured, costs, tmp_path):
    fit(linear(ScaledL2(1.0)), *data(), CostMonitor(tmp_path, update_freq))
    found = scalars(tmp_path)
    assert steps(found[GRADIENT]) == measured
    assert steps(found["cost/total"]) == steps(found["cost/penalty"]) == costs
    assert steps(found[RATE]) == [3, 6]


def test_costs_of_single_steps_are_those_of_their_batches(tmp_path):
    x, y = data()
    model, again = linear(ScaledL2(1.0)), linear(ScaledL2(1.0))
    fit(model, x, y, CostMonitor(tmp_path, 1), epochs=1)
    expected = []
    for i in (0, 4, 8):
        again.reset_metrics()  # Keras 3.8 goes on with the mean of the batches before
        loss = again.train_on_batch(x[i : i + BATCH], y[i : i + BATCH])
        expected.append(float(loss))
    found = [value for _, value in scalars(tmp_path)["cost/total"]]
    assert found == pytest.approx(expected, rel=1e-5)


def test_second_fit_continues_the_curves(tmp_path):
    model = linear(ScaledL2(1.0))
    for _ in range(2):
        fit(model, *data(), CostMonitor(tmp_path))
    found = scalars(tmp_path)
    assert steps(found[GRADIENT]) == [0, 3, 6, 9]
    assert steps(found["cost/total"]) == [3, 6, 9, 12]


def test_steps_of_accumulated_gradients_are_updates(tmp_path):
    optimizer = keras.optimizers.SGD(0.01, gradient_accumulation_steps=2)
    model = linear(ScaledL2(1.0))
    model.compile(optimizer, "mse", **QUICK)
    fit(model, *data(), CostMonitor(tmp_path, 1))
    found = scalars(tmp_path)
    # Three batches an epoch: the second update takes one of either.
    assert steps(found[GRADIENT]) == [0, 0, 1, 1, 2, 2]
    assert steps(found[RATE]) == [1, 3]


if BACKEND != "torch":

    @pytest.mark.parametrize(
        "update_freq, measured", [("epoch", [1, 4]), (4, [1, 4]), (1, [1, 2, 4, 5])]
    )
    def test_of_several_steps_in_one_execution_the_last_is_measured(
        update_freq, measured, tmp_path
    ):
        model = linear(ScaledL2(1.0), steps_per_execution=2)
        fit(model, *data(), CostMonitor(tmp_path, update_freq))
        assert steps(scalars(tmp_path)[GRADIENT]) == measured

    def test_execution_longer_than_an_epoch_is_measured_at_its_last_step(tmp_path):
        model = linear(ScaledL2(1.0), steps_per_execution=9)
        fit(model, *data(), CostMonitor(tmp_path))
        found = scalars(tmp_path)
        assert steps(found[GRADIENT]) == [2, 5]
        assert steps(found["cost/total"]) == [3, 6]


def test_several_watchers_share_one_measurement():
    x, y = data()
    every, first = Watch(), Watch(lambda: not first.records)
    model = linear(ScaledL2(1.0))
    fit(model, x, y, CostMonitor(), every, first)
    assert len(every.records) == 6
    assert first.records == every.records[:1]
    assert [m.name for m in model.metrics] == ["loss"]


def test_monitors_of_one_fit_write_their_own_steps(tmp_path):
    monitors = [CostMonitor(tmp_path / "1", 1), CostMonitor(tmp_path / "2", "epoch")]
    fit(linear(ScaledL2(1.0)), *data(), *monitors)
    assert steps(scalars(tmp_path / "1")[GRADIENT]) == [0, 1, 2, 3, 4, 5]
    assert steps(scalars(tmp_path / "2")[GRADIENT]) == [0, 3]


def test_step_that_is_not_due_is_not_measured():
    calls = []

    def never():
        calls.append(1)
        return False

    watch = Watch(never)
    fit(linear(ScaledL2(1.0)), *data(), CostMonitor(), watch)
    assert (len(calls), watch.records) == (6, [])


# --------------------------------------------------------------- how often it compiles


if BACKEND != "torch":

    class Counting(layers.Layer):
        """Counts in Python how often it is traced, in training and otherwise."""

        def __init__(self):
            super().__init__()
            self.traces = {True: 0, False: 0}

        def call(self, x, training=False):
            self.traces[training] += 1
            return x

    def traces(*callbacks, epochs=3, fits=1):
        x, y = data(3 * BATCH)
        counting = Counting()
        unit = layers.Dense(1, kernel_regularizer=ScaledL2(1.0))
        model = compiled(keras.Sequential([keras.Input((4,)), counting, unit]), **QUICK)
        # Without it TensorFlow traces the first step twice, to make these variables.
        model.optimizer.build(model.trainable_variables)
        found = []
        for _ in range(fits):
            counting.traces.update({True: 0, False: 0})
            fit(model, x, y, *callbacks, epochs=epochs, validation_data=(x, y))
            found.append((counting.traces[True], counting.traces[False]))
        return found

    def test_two_steps_are_compiled_one_measured_and_one_not(tmp_path):
        [(bare, evaluation)] = traces()
        assert bare == 1
        monitor = CostMonitor(tmp_path)
        # Every fit, and evaluation no more often than without the monitor.
        assert traces(monitor, fits=2)[0] == (2, evaluation)
        assert traces(monitor, fits=2)[1][0] <= 2
        assert len(scalars(tmp_path)[GRADIENT]) == 12

    def test_one_step_is_compiled_where_all_are_measured_or_none(tmp_path):
        [(every, _)] = traces(CostMonitor(tmp_path, 1))
        assert every == 1
        [(none, _)] = traces(CostMonitor(tmp_path, gradients=False))
        assert none == 1

    def test_monitors_of_one_fit_compile_no_more_than_one(tmp_path):
        monitors = [CostMonitor(tmp_path / "1"), CostMonitor(tmp_path / "2", 2)]
        [(steps, _)] = traces(*monitors)
        assert steps == 2


# -------------------------------------------------------- steps that cannot be measured


if BACKEND == "tensorflow":
    import tensorflow as tf

    class PastComputeLoss(keras.Model):
        """Sums the loss itself."""

        def own_sum(self):
            return 0.0

        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = ops.mean(ops.square(y - self(x, training=True)))
                loss = loss + self.own_sum()
            weights = self.trainable_variables
            self.optimizer.apply(tape.gradient(loss, weights), weights)
            return {"loss": loss}

elif BACKEND == "torch":

    class PastComputeLoss(keras.Model):
        """Sums the loss itself."""

        def own_sum(self):
            return 0.0

        def train_step(self, data):
            import torch

            x, y = data
            self.zero_grad()
            loss = ops.mean(ops.square(y - self(x, training=True)))
            loss = loss + self.own_sum()
            loss.backward()
            weights = self.trainable_variables
            with torch.no_grad():
                self.optimizer.apply([v.value.grad for v in weights], weights)
            return {"loss": loss}

else:
    import jax

    class PastComputeLoss(keras.Model):
        """As in Keras's guide, which calls compute_loss where no state is kept."""

        def own_sum(self):
            return 0.0

        def own_loss(self, trainable, non_trainable, x, y):
            with keras.StatelessScope(
                zip(self.trainable_variables, trainable, strict=True)
            ):
                own_sum = self.own_sum()
            y_pred, _ = self.stateless_call(trainable, non_trainable, x, training=True)
            return ops.mean(ops.square(y - y_pred)) + own_sum

        def train_step(self, state, data):
            trainable, non_trainable, optimizer, metrics = state
            loss, gradients = jax.value_and_grad(self.own_loss)(
                trainable, non_trainable, *data
            )
            trainable, optimizer = self.optimizer.stateless_apply(
                optimizer, gradients, trainable
            )
            return {"loss": loss}, (trainable, non_trainable, optimizer, metrics)


class PastButWhole(PastComputeLoss):
    """Sums the loss itself, and thinks of the penalties."""

    def own_sum(self):
        return sum(self.losses)


def past(penalty, kind=PastComputeLoss):
    inputs = keras.Input((4,))
    unit = layers.Dense(1, kernel_regularizer=penalty, name="unit")
    return compiled(kind(inputs, unit(inputs)), **QUICK)


def test_step_past_compute_loss_gives_no_norms_rather_than_wrong_ones(tmp_path):
    x, y = data()
    model = past(ScaledL2(1.0), PastButWhole)
    bare = fit(model, x, y)
    with pytest.warns(UserWarning, match="does not call self.compute_loss") as caught:
        history = fit(past(ScaledL2(1.0), PastButWhole), x, y, CostMonitor(tmp_path, 1))
    assert len([w for w in caught if w.category is UserWarning]) == 1
    assert history["loss"] == pytest.approx(bare["loss"], abs=9.0)
    found = scalars(tmp_path)
    assert not [tag for tag in found if tag.startswith(("gradient_norm", "global"))]
    assert all(math.isnan(value) for _, value in found["cost/data"])


def test_step_that_forgets_the_penalties_has_the_norms_of_the_data_alone(tmp_path):
    x, y = data(BATCH)
    model = past(ScaledL2(1.0))
    unpenalized = past(None)
    unpenalized.set_weights(model.get_weights())
    expected = [np.linalg.norm(g) for g in gradients(unpenalized, x, y)]
    with pytest.warns(UserWarning, match="does not act in training"):
        fit(model, x, y, CostMonitor(tmp_path), epochs=1)
    found = scalars(tmp_path)
    assert found[GRADIENT] == [(0, pytest.approx(np.hypot(*expected), rel=1e-5))]
    assert found["global/gradient_norm/penalty"] == [(0, 0.0)]
    assert found["global/gradient_norm/ratio"] == [(0, 0.0)]


def test_step_past_compute_loss_without_penalties_is_measured(tmp_path):
    x, y = data(BATCH)
    model = past(None)
    expected = [np.linalg.norm(g) for g in gradients(model, x, y)]
    with pytest.warns(UserWarning, match="compute_loss"):
        fit(model, x, y, CostMonitor(tmp_path), epochs=1)
    found = scalars(tmp_path)["global/gradient_norm/data"]
    assert found == [(0, pytest.approx(np.hypot(*expected), rel=1e-5))]


def test_diverged_training_goes_on_and_says_so(tmp_path):
    x, y = data()
    model = linear(ScaledL2(1.0), learning_rate=1e25)
    history = fit(model, x, y, CostMonitor(tmp_path, 1))
    assert not np.isfinite(history["loss"][-1])
    assert len(scalars(tmp_path)[GRADIENT]) == 6


@pytest.mark.once
def test_ratio_to_a_gradient_that_overflows_is_left_out():
    whole = GradientNorms(data=2.0, penalty=1.0, weight=4.0, coefficient=0.125)
    values = gradient_scalars({"a": whole, "b": whole._replace(data=math.inf)}, None)
    assert values["gradient_norm/ratio/a"] == 0.5
    assert values["gradient_norm/data/b"] == math.inf
    assert not {"gradient_norm/ratio/b", "global/gradient_norm/ratio"} & set(values)


# -------------------------------------------------------------------------- installing


def test_measurement_of_a_fit_is_one_and_leaves_with_its_remover():
    model = linear(ScaledL2(1.0))
    fit(model, *data(), epochs=1)
    metrics, attributes = model.metrics, set(vars(model))
    of_optimizer = set(vars(model.optimizer))
    fit_1, fit_2 = {}, {}
    measurement = measure_gradients(model, fit_1)
    assert measure_gradients(model, fit_1) is measurement
    assert not [name for name in vars(model) if "keras_scaled_l2" in name]
    # What was compiled serves the next fit; who watched in the first does not hear.
    first = []
    measurement.watch(lambda: True, first.append)
    other = measure_gradients(model, fit_2)
    assert other is measurement
    fit(model, *data(), epochs=1)
    assert first == []
    assert measure_gradients(model, fit_2) is other
    other.remove()
    other.remove()
    from keras_scaled_l2.costs import split_cost

    split_cost(model).remove()
    assert model.metrics == metrics
    assert set(vars(model)) == attributes
    assert set(vars(model.optimizer)) == of_optimizer


def test_used_monitor_can_be_copied_and_used_again(tmp_path):
    model = linear(ScaledL2(1.0))
    monitor = CostMonitor(tmp_path)
    fit(model, *data(), monitor, epochs=1)
    for again in (copy.deepcopy(monitor), monitor):
        fit(model, *data(), again, epochs=1)
    assert steps(scalars(tmp_path)[GRADIENT]) == [0, 3, 6]


def test_attached_rule_is_measured_from_the_epoch_after(tmp_path):
    class Attach(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 0:
                attach(self.model, ScaledL2(3.0, per=1))

    model = linear()
    monitor = CostMonitor(tmp_path, max_weights=None)
    fit(model, *data(), monitor, Attach(), epochs=3)
    found = scalars(tmp_path)
    path = model.layers[0].kernel.path
    penalty = dict(found[f"gradient_norm/penalty/{path}"])
    weight = dict(found[f"weight_norm/{path}"])
    assert steps(found[GRADIENT]) == [0, 3, 6]
    assert penalty[0] == 0.0
    for step in (3, 6):
        assert penalty[step] == pytest.approx(6 * weight[step], rel=1e-6)
    assert to_numpy(model.layers[0].kernel).shape == (4, 1)
