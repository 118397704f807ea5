"""What a monitor compiles serves the next fit; a list of results keeps its length."""

import enum
import functools
import gc
import linecache
import warnings
import weakref

import keras
import numpy as np
import pytest
from autodiff import numpy64
from event_files import scalars
from keras import layers
from models import compiled, data, linear
from reference import penalty
from test_costs import assert_split, state
from test_gradient_norms import BACKEND, BATCH, GRADIENT, QUICK, fit
from test_monitor_company import BreakAt, Broken

from keras_scaled_l2 import (
    ApplyL2,
    CostMonitor,
    SampleL2,
    ScaledL2,
    attach,
    cost_report,
    detach,
)

X, Y = data(3 * BATCH)


class Counting(layers.Layer):
    """Counts in Python how often it is traced; on torch how often it runs."""

    def __init__(self):
        super().__init__()
        self.traces = 0

    def call(self, x):
        self.traces += 1
        return x


def counted(rule=None, frozen=False):
    """A model, and a function that trains it and tells how often that traced."""
    counting = Counting()
    hidden = layers.Dense(3, kernel_regularizer=rule, trainable=not frozen)
    unit = layers.Dense(1, kernel_regularizer=rule)
    model = keras.Sequential([keras.Input((4,)), counting, hidden, unit])
    compiled(model, 0.01, **QUICK)
    model.optimizer.build(model.trainable_variables)

    def train(*callbacks, **options):
        counting.traces = 0
        options = {"validation_data": (X, Y), "epochs": 2} | options
        history = fit(model, X, Y, *callbacks, **options)
        return counting.traces, history

    return model, train


if BACKEND != "torch":
    # Torch runs the layer's code in every step, compiled or not.

    @pytest.mark.parametrize("log", [True, False], ids=["event files", "logs only"])
    @pytest.mark.parametrize("rule", [False, True], ids=["monitor alone", "with rule"])
    def test_second_fit_compiles_nothing(log, rule, tmp_path):
        model, train = counted(None if rule else ScaledL2(1.0))
        monitor = CostMonitor(tmp_path if log else None)
        # A rule that is counted anew, with the same result, is the same.
        others = [ApplyL2(SampleL2(2.0))] if rule else []
        untouched = None
        for number in range(3):
            if number == 2:  # and with a new one
                monitor = CostMonitor(tmp_path / "new" if log else None)
            traces, history = train(monitor, *others)
            assert (traces > 0) is (number == 0)
            assert_split(history, 2)
            squares = [penalty(1.0, numpy64(v)) for v in model.weights[::2]]
            counts = [2 / 24] * 2 if rule else [1 / 12, 1 / 3]
            expected = np.dot(counts, squares)
            assert history["val_penalty"][-1] == pytest.approx(expected, rel=1e-5)
            untouched = untouched or state(model)
            assert state(model) == untouched
            assert "compute_loss" not in vars(model)
            assert "make_train_function" not in vars(model)
            assert [m.name for m in model.metrics] == ["loss"]
        if log:
            assert len(scalars(tmp_path)[GRADIENT]) == 4
            assert len(scalars(tmp_path / "new")[GRADIENT]) == 2

    def test_bare_fit_before_and_between_keeps_its_own_step(tmp_path):
        _, train = counted(ScaledL2(1.0))
        bare, _ = train()
        monitored, _ = train(CostMonitor(tmp_path))
        assert min(bare, monitored) > 0
        for callbacks in ([], [CostMonitor(tmp_path)], []):
            traces, history = train(*callbacks)
            assert traces == 0
            assert ("penalty" in history) is bool(callbacks)
        assert len(scalars(tmp_path)[GRADIENT]) == 4

    def test_rule_that_is_applied_again_compiles_nothing_without_a_monitor():
        _, train = counted()
        assert train(ApplyL2(SampleL2(2.0)))[0] > 0
        assert train(ApplyL2(SampleL2(2.0)))[0] == 0


def attach_one(model):
    attach(model, ScaledL2(6.0))


def attach_and_detach(model):
    attach(model, ScaledL2(6.0))
    detach(model)
    attach(model, ScaledL2(7.0), where=[model.layers[-1]])


def freeze(model):
    model.layers[1].trainable = False
    compiled(model, 0.01, **QUICK)


def compile_anew(model):
    compiled(model, 0.0, **QUICK)


def replace(model):
    model.layers[-1].kernel.regularizer = ScaledL2(9.0, per=1)


def change_in_place(model):
    model.layers[-1].kernel.regularizer = keras.regularizers.L2(0.5)


@pytest.mark.parametrize(
    "change",
    [attach_one, attach_and_detach, freeze, compile_anew, replace, change_in_place],
    ids=lambda change: change.__name__,
)
def test_change_between_fits_is_noticed(change, tmp_path):
    model, train = counted(ScaledL2(1.0))
    train(CostMonitor(tmp_path / "1"))
    change(model)
    weights = model.get_weights()
    _, history = train(CostMonitor(tmp_path / "2"), epochs=1)
    assert_split(history, 1)
    # A model that has never been trained otherwise gives the same numbers.
    fresh, train_fresh = counted(ScaledL2(1.0))
    change(fresh)
    fresh.set_weights(weights)
    _, expected = train_fresh(CostMonitor(tmp_path / "3"), epochs=1)
    for name in ("loss", "data_loss", "penalty", "val_penalty"):
        assert history[name] == pytest.approx(expected[name], rel=1e-5)
    for tag in (GRADIENT, "global/gradient_norm/penalty", "global/weight_norm"):
        values = [
            [value for _, value in scalars(tmp_path / run)[tag]] for run in ("2", "3")
        ]
        assert values[0] == pytest.approx(values[1], rel=1e-4)
    for one, other in zip(model.get_weights(), fresh.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_bare_fit_after_a_change_is_that_of_a_model_never_monitored(tmp_path):
    model, train = counted(ScaledL2(1.0))
    train(CostMonitor(tmp_path))
    attach(model, ScaledL2(60.0))
    weights = model.get_weights()
    _, history = train(epochs=1)
    fresh, train_fresh = counted(ScaledL2(60.0))
    fresh.set_weights(weights)
    _, expected = train_fresh(epochs=1)
    assert history["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert history["val_loss"] == pytest.approx(expected["val_loss"], rel=1e-5)


def test_penalty_attached_in_a_training_is_in_its_validation_too():
    model, train = counted(ScaledL2(1.0))

    class Attach(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            attach(self.model, ScaledL2(30.0 * (epoch + 1), per=1))

    _, history = train(CostMonitor(), Attach(), epochs=3)
    squares = sum(penalty(1.0, numpy64(v)) for v in model.weights[::2])
    assert_split(history, 3)
    # Attached after the second epoch: in the third one's validation.
    assert history["val_penalty"][-1] == pytest.approx(60.0 * squares, rel=1e-5)
    assert history["val_loss"][-1] > 60.0 * squares


def test_monitored_model_is_freed():
    model, train = counted(ScaledL2(1.0))
    train(CostMonitor(), epochs=1)
    alive = weakref.ref(model)
    del model, train
    keras.backend.clear_session()
    gc.collect()
    assert alive() is None


# ------------------------------------------------------------------ lists of results


class Evaluates(keras.callbacks.Callback):
    """Calls what gives a list, in the middle of a training."""

    def on_epoch_end(self, epoch, logs=None):
        self.names = self.model.evaluate(X, Y, verbose=0, return_dict=True)
        self.evaluated = self.model.evaluate(X, Y, verbose=0)
        self.tested = self.model.test_on_batch(X, Y)


@pytest.mark.parametrize("metrics", [[], ["mae", "mse"]], ids=["loss", "metrics"])
@pytest.mark.parametrize("log", [True, False], ids=["event files", "logs only"])
def test_list_of_results_is_as_long_as_without_a_monitor(metrics, log, tmp_path):
    model = linear(ScaledL2(1.0), metrics=metrics, **QUICK)
    bare, watched = Evaluates(), Evaluates()
    fit(model, X, Y, bare, epochs=1)
    fit(model, X, Y, CostMonitor(tmp_path if log else None), watched, epochs=1)
    assert np.shape(watched.evaluated) == np.shape(bare.evaluated)
    assert np.shape(watched.tested) == np.shape(bare.tested)
    assert {"data_loss", "penalty"} <= set(watched.names)
    order = [name for name in bare.names]
    first = np.atleast_1d(watched.evaluated)
    assert dict(zip(["loss", "mae", "mse"], first, strict=False)) == pytest.approx(
        {name: watched.names[name] for name in order}, rel=1e-6
    )


@pytest.mark.parametrize("log", [True, False], ids=["event files", "logs only"])
def test_list_of_results_is_the_same_after_a_fit_that_broke_off(log, tmp_path):
    model = linear(ScaledL2(1.0), metrics=["mae"], **QUICK)
    with pytest.raises(Broken):
        fit(model, X, Y, CostMonitor(tmp_path if log else None), BreakAt())
    loss, error = model.evaluate(X, Y, verbose=0)
    logs = model.evaluate(X, Y, verbose=0, return_dict=True)
    assert (loss, error) == pytest.approx((logs["loss"], logs["mae"]))
    assert len(model.train_on_batch(X, Y)) == 2


# -------------------------------------------------- regularizers of every other kind


def function(w, strength=0.1):
    return strength * keras.ops.sum(keras.ops.abs(w))


class Plain(keras.Regularizer):
    """Has no get_config."""

    def __call__(self, w):
        return function(w)


class Configured(keras.Regularizer):
    """Has a config of any kind."""

    def __init__(self, **config):
        self.config = config

    def __call__(self, w):
        return function(w)

    def get_config(self):
        return self.config


class Refusing(Configured):
    """Has a get_config that fails."""

    def get_config(self):
        raise KeyError("strength")


class Callable:
    """Is no regularizer but in what it does."""

    def __call__(self, w):
        return function(w)


class Annealed(keras.Regularizer):
    """Has a variable called coefficient, and is no ``c * sum(w**2)``."""

    def __init__(self):
        self.coefficient = keras.Variable(0.1, trainable=False)

    def __call__(self, w):
        return self.coefficient * keras.ops.sum(keras.ops.abs(w))


class AroundOne(keras.regularizers.L2):
    """Pulls to 1 instead of 0."""

    def __call__(self, w):
        return super().__call__(w - 1.0)


class Row(Plain):
    """Gives no scalar; Keras sums it."""

    def __call__(self, w):
        return keras.ops.reshape(function(w), (1,))


REGULARIZERS = {
    "a coefficient of its own": Annealed(),
    "own L2": AroundOne(0.1),
    "penalty of shape (1,)": Row(),
    "partial": functools.partial(function, strength=0.2),
    "method": Plain().__call__,
    "array, dict, enumeration": Configured(
        a=np.ones(3), b={"c": {"d": 1}}, e=enum.Enum("E", "a").a, f=10**400
    ),
    "function": function,
    "lambda": lambda w: 0.3 * keras.ops.sum(w**4),
    "class without config": Plain(),
    "class of its own": Callable(),
    "string": Configured(mode="rows"),
    "none": Configured(strength=None),
    "list": Configured(strengths=[0.1, 0.2]),
    "failing config": Refusing(),
    "built in": keras.regularizers.OrthogonalRegularizer(0.1),
}


@pytest.mark.parametrize("kind", REGULARIZERS)
def test_any_regularizer_that_keras_takes_is_monitored(kind, tmp_path, capsys):
    x, y = data(8, outputs=3)
    unit = layers.Dense(3, kernel_regularizer=REGULARIZERS[kind])
    model = compiled(keras.Sequential([keras.Input((4,)), unit]), 0.0, **QUICK)
    options = {"epochs": 1, "batch_size": 8, "validation_data": (x, y)}
    history = fit(model, x, y, ApplyL2(), CostMonitor(tmp_path), **options)
    assert_split(history, 1)
    [expected] = [float(numpy64(loss).sum()) for loss in model.losses]
    assert history["penalty"][0] == pytest.approx(expected, rel=1e-5)
    line = capsys.readouterr().out
    assert "1 under a penalty other than c * sum(w**2)" in line
    assert "nan" not in line
    assert f"{expected / history['loss'][0]:.0%} of it penalty" in line
    report = cost_report(model, x, y)
    assert report.cost["total"] == pytest.approx(history["loss"][0], rel=1e-5)
    assert "nan" not in str(report)


# ------------------------------------------------------------ weights decayed twice


OPTIMIZERS = sorted(
    name
    for name, kind in vars(keras.optimizers).items()
    if isinstance(kind, type)
    and issubclass(kind, keras.optimizers.Optimizer)
    and name not in ("Optimizer", "LossScaleOptimizer", "MultiOptimizer")
)


def test_remedy_against_two_decays_works_for_every_optimizer(recwarn):
    for name in OPTIMIZERS:
        model = linear(ScaledL2(1.0))
        model.compile(getattr(keras.optimizers, name)(weight_decay=0.004), "mse")
        attach(model, ScaledL2(2.0))
        text = str(recwarn.pop(UserWarning).message)
        assert "Decayed twice" in text
        call = text.split("compile with ")[1].split(", or ", maxsplit=1)[0]
        assert call.startswith(f"{name}(..., ")
        made = eval(call.replace("..., ", ""), vars(keras.optimizers))
        model.compile(made, "mse")
        [finding] = [
            f for f in cost_report(model).findings if f.name == "double_decay"
        ] or [None]
        assert finding is None
        attach(model, ScaledL2(3.0))
        before = numpy64(model.layers[0].kernel)
        made.build(model.trainable_variables)
        made._apply_weight_decay(model.trainable_variables)
        np.testing.assert_array_equal(numpy64(model.layers[0].kernel), before)
        assert not [w for w in recwarn if "Decayed twice" in str(w.message)]


def test_two_decays_are_warned_of_once_for_an_optimizer():
    model = linear(**QUICK)
    for _ in range(2):
        model.compile(keras.optimizers.AdamW(weight_decay=0.004), "mse", **QUICK)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                fit(model, X, Y, ApplyL2(SampleL2(1.0)), CostMonitor(), epochs=1)
        assert len([w for w in caught if "Decayed twice" in str(w.message)]) == 1


def test_warning_of_a_callback_names_the_line_that_called_fit():
    model = linear(**QUICK)
    model.compile(keras.optimizers.AdamW(weight_decay=0.004), "mse", **QUICK)
    with pytest.warns(UserWarning, match="Decayed twice") as told:
        model.fit(X, Y, callbacks=[ApplyL2(SampleL2(1.0))], verbose=0)
    [ours] = [w for w in told if "Decayed twice" in str(w.message)]
    assert ours.filename == __file__
    line = linecache.getline(__file__, ours.lineno)
    assert line.strip().startswith("model.fit(")
