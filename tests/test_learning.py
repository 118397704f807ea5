"""EvidenceL2 while it trains: fixed points against scikit-learn and float64."""

import dataclasses

import keras
import numpy as np
import pytest
import scipy.sparse
from autodiff import numpy64
from event_files import scalars
from keras import layers
from models import compiled
from sklearn.linear_model import ARDRegression, BayesianRidge
from test_evidence import EXACT, logistic, regression

from keras_scaled_l2 import (
    ApplyL2,
    CostMonitor,
    EvidenceL2,
    SampleL2,
    attach,
    bind,
    cost_report,
    detach,
    grams,
    learning,
    penalized,
)
from keras_scaled_l2.evidence import (
    determined_parameters,
    evidence_strengths,
    gamma_dense,
    output_rows,
)
from keras_scaled_l2.grams import RowFinder, gamma_by_grams

RULE = EvidenceL2(5.0, burn_in=1)


def trained(model, x, y, *, epochs=25, steps=1, callbacks=()):
    """Trains on full batches, so many in an epoch."""
    rule = dataclasses.replace(RULE, samples=len(x))
    return model.fit(
        *(np.concatenate([a] * steps) for a in (x, y)),
        batch_size=len(x),
        shuffle=False,
        epochs=epochs,
        verbose=0,
        callbacks=[ApplyL2(rule, examples=(x, y)), *callbacks],
    )


def unit(activation=None, loss="mse", learning_rate=0.3, features=5):
    dense = layers.Dense(1, activation, name="unit")
    model = keras.Sequential([keras.Input((features,)), dense])
    return compiled(model, learning_rate, loss=loss)


def test_a_linear_model_ends_at_bayesian_ridge():
    x, y = regression()
    oracle = BayesianRidge(**EXACT, max_iter=2000).fit(x, y)
    model = unit()
    history = trained(model, x, y, steps=4).history
    [(path, kernel, rule)] = penalized(model)
    c = oracle.lambda_ / (len(x) * oracle.alpha_)
    assert rule.coefficient((5, 1)) == pytest.approx(c, rel=1e-3)
    np.testing.assert_allclose(numpy64(kernel)[:, 0], oracle.coef_, rtol=1e-3)
    residual = numpy64(model(x))[:, 0] - y
    noise = np.sum(residual**2) / (len(x) - history[f"gamma/{path}"][-1])
    assert 1 / noise == pytest.approx(oracle.alpha_, rel=1e-3)


def test_one_layer_for_each_feature_ends_at_ard_regression():
    x, y = regression(features=2)
    oracle = ARDRegression(**EXACT, max_iter=2000, threshold_lambda=1e12).fit(x, y)
    inputs = keras.Input((2,))
    parts = [layers.Dense(1, use_bias=not j)(inputs[:, j : j + 1]) for j in range(2)]
    model = compiled(keras.Model(inputs, layers.add(parts)), 0.3)
    trained(model, x, y, steps=4)
    found = [rule.coefficient((1, 1)) for _, _, rule in penalized(model)]
    expected = oracle.lambda_ / (len(x) * oracle.alpha_)
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_a_logistic_model_ends_at_the_fixed_point_of_float64():
    x, y = regression(seed=1)
    y = (y > 3).astype("float32")
    c = 0.01
    for _ in range(60):
        w, gamma = logistic(x, y, c)
        c = gamma / (2 * len(x) * np.sum(w[:-1] ** 2))
    model = unit("sigmoid", "binary_crossentropy", learning_rate=4.0)
    history = trained(model, x, y, steps=15).history
    [(path, kernel, rule)] = penalized(model)
    assert rule.coefficient((5, 1)) == pytest.approx(c, rel=1e-3)
    np.testing.assert_allclose(numpy64(kernel)[:, 0], w[:-1], rtol=1e-3)
    penalty = rule.coefficient((5, 1)) * np.sum(numpy64(kernel) ** 2)
    found = history[f"gamma/{path}"][-1]
    assert penalty == pytest.approx(found / (2 * len(x)), rel=2e-3)


def classifier(first="relu", units=4, learning_rate=0.5, loss=None, **options):
    model = keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(units, first, name="first", **options),
            layers.Dense(3, "softmax", name="last", dtype="float32"),
        ]
    )
    random = np.random.default_rng(4)
    for v in model.trainable_variables:
        v.assign(random.normal(size=tuple(v.shape), scale=0.5))
    return compiled(
        model, learning_rate, loss=loss or "sparse_categorical_crossentropy"
    )


def classes(m=60):
    random = np.random.default_rng(0)
    x = random.normal(size=(m, 5)).astype("float32")
    noisy = x[:, 0] + random.normal(size=m)
    return x, np.digitize(noisy, [-0.5, 0.5]).astype("int32")


def coefficients(model):
    return {path: r.coefficient(v.shape) for path, v, r in penalized(model)}


def last(history, model):
    return {path: history[f"c/{path}"][-1] for path in coefficients(model)}


def test_strengths_move_without_a_new_compilation():
    x, y = classes()
    calls, seen = [], []

    class Counted(keras.Model):
        def train_step(self, *args):
            calls.append(1)
            return super().train_step(*args)

    inner = classifier()
    model = Counted(inner.inputs, inner.outputs)
    compiled(model, 0.5, loss="sparse_categorical_crossentropy")
    note = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(len(calls))
    )
    options = {"batch_size": 20, "epochs": 4, "verbose": 0}
    history = model.fit(x, y, callbacks=[ApplyL2(RULE), note], **options).history
    for path in coefficients(model):
        assert len(set(history[f"c/{path}"])) == 4
    if keras.config.backend() == "torch":  # compiles nothing: every step calls
        assert seen == [3, 6, 9, 12]
    else:
        assert len(set(seen)) == 1


def test_gamma_of_dense_layers_is_that_of_written_rows():
    model, (x, _) = classifier(), classes(20)
    c = {"first": 0.03, "last": 0.01}
    c = {f"{model.name}/{name}/kernel": value for name, value in c.items()}
    kernels = [v.path for v in model.trainable_variables if v.name == "kernel"]
    c = dict(zip(kernels, c.values(), strict=True))
    rows = RowFinder(model, x, c)(x)
    written = output_rows(model, x)
    for path, gram in rows.grams.items():
        np.testing.assert_allclose(
            np.linalg.eigvalsh(gram)[-20:],
            np.linalg.eigvalsh(written[path] @ written[path].T)[-20:],
            rtol=2e-3,
            atol=1e-6,
        )
    # 7 biases are more than a tenth of 40 rows: the larger of the two are given.
    assert [f.shape for f in rows.free] == [(40, 3)]
    free = {p: r for p, r in written.items() if p in c or r.shape[1] == 3}
    assert gamma_by_grams(*rows, c) == pytest.approx(gamma_dense(free, c), rel=1e-3)


def test_what_training_leaves_saves_loads_and_goes_on(tmp_path):
    x, y = classes()
    model = classifier()
    path = tmp_path / "middle.keras"
    keep = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: epoch == 2 and model.save(path)
    )
    variables = len(model.variables)
    history = trained(model, x, y, epochs=5, callbacks=[keep]).history
    assert all(type(r) is EvidenceL2 for _, _, r in penalized(model))
    assert len(model.variables) == variables
    assert coefficients(model) == pytest.approx(last(history, model), rel=1e-6)
    middle = coefficients(keras.saving.load_model(path))
    assert list(middle.values()) == pytest.approx(
        [history[f"c/{p}"][2] for p in coefficients(model)], rel=1e-6
    )
    model.save(tmp_path / "end.keras")
    again = keras.saving.load_model(tmp_path / "end.keras")
    assert list(coefficients(again).values()) == list(coefficients(model).values())
    before = model.evaluate(x, y, verbose=0)
    assert again.evaluate(x, y, verbose=0) == pytest.approx(before, rel=1e-5)
    again.fit(x, y, verbose=0)
    assert list(coefficients(again).values()) == list(coefficients(model).values())


def test_a_killed_training_resumes_with_the_strengths_it_had(tmp_path):
    x, y = classes()

    def run(epochs_until_killed=None):
        def kill(epoch, logs):
            if epoch == epochs_until_killed:
                raise KeyboardInterrupt

        model = classifier()
        callbacks = [keras.callbacks.LambdaCallback(on_epoch_begin=kill)]
        if epochs_until_killed is not None:
            backup = keras.callbacks.BackupAndRestore(tmp_path, delete_checkpoint=False)
            callbacks.append(backup)
            with pytest.raises(KeyboardInterrupt):
                trained(model, x, y, epochs=8, callbacks=callbacks)
            model = classifier()
            callbacks = callbacks[1:]
        trained(model, x, y, epochs=8, callbacks=callbacks)
        return list(coefficients(model).values())

    assert run(4) == pytest.approx(run(), rel=1e-5)


def test_a_training_that_broke_off_leaves_what_the_next_one_mends():
    x, y = classes()
    model = classifier()

    def broken(epoch, logs):
        raise RuntimeError

    call = keras.callbacks.LambdaCallback(on_epoch_begin=broken)
    variables = len(model.variables)
    with pytest.raises(RuntimeError):
        trained(model, x, y, callbacks=[call])
    trained(model, x, y, epochs=2)
    assert len(model.variables) == variables
    assert all(type(r) is EvidenceL2 for _, _, r in penalized(model))


@pytest.mark.parametrize("after", ["bind", "attach", "detach", "cost_report"])
def test_what_comes_after_a_training_that_broke_off_finds_plain_rules(after):
    x, y = classes()
    model = classifier()

    def broken(epoch, logs):
        raise RuntimeError

    rule = ApplyL2(EvidenceL2(5.0, burn_in=9))
    with pytest.raises(RuntimeError):
        call = keras.callbacks.LambdaCallback(on_epoch_end=broken)
        model.fit(x, y, epochs=2, verbose=0, callbacks=[rule, call])
    if after == "bind":
        assert len(bind(model, samples=600)) == 2
        assert list(coefficients(model).values()) == pytest.approx([5.0 / 1200] * 2)
    if after == "attach":
        attach(model, SampleL2(1.0), where=[model.layers[0]])
        assert {type(r) for _, _, r in penalized(model)} == {EvidenceL2, SampleL2}
    if after == "detach":
        assert len(detach(model)) == 2
        assert penalized(model) == []
    if after == "cost_report":
        assert all("EvidenceL2" in w.rule for w in cost_report(model).weights)


def test_report_within_a_training_leaves_the_strengths_learning():
    x, y = classes()
    model = classifier()
    call = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: cost_report(model)
    )
    history = trained(model, x, y, epochs=4, callbacks=[call]).history
    name = next(iter(coefficients(model)))
    assert len(set(history[f"c/{name}"])) == 4


def test_another_apply_beside_it_leaves_one_that_learns(monkeypatch):
    epochs, epoch = [], learning.Learning.epoch
    monkeypatch.setattr(
        learning.Learning, "epoch", lambda self, n: epochs.append(n) or epoch(self, n)
    )
    x, y = classes()
    beside = classifier()
    one, two = {"where": beside.layers[:1]}, {"where": beside.layers[-1:]}
    rule, plain = EvidenceL2(5.0, burn_in=1), SampleL2(1.0)
    # A generator, of which nobody but the user knows examples and their number.
    for _ in range(2):
        beside.fit(
            ((x, y) for _ in range(3)),
            steps_per_epoch=1,
            epochs=3,
            shuffle=False,
            verbose=0,
            callbacks=[
                ApplyL2(plain, **two, samples=60),
                ApplyL2(rule, **one, samples=60, examples=(x, y)),
            ],
        )
    assert epochs == [1, 2, 3] * 2
    first, second = (r for _, _, r in penalized(beside))
    assert first.inferred_strength != 5.0
    assert second == SampleL2(1.0, inferred_samples=60)


@pytest.mark.parametrize("loss", [list, lambda given: {"out": given[0]}])
def test_an_interpolating_network_stops_whichever_way_its_loss_was_given(loss):
    x, y = classes()
    inputs = keras.Input((5,))
    model = keras.Model(inputs, layers.Dense(3, "softmax", name="out")(inputs))
    given = loss(["sparse_categorical_crossentropy"])
    model.compile(keras.optimizers.SGD(0.1), given)
    rule = EvidenceL2(500.0, burn_in=1)
    model.fit(x, y, epochs=3, verbose=0, callbacks=[ApplyL2(rule)])
    [(_, _, found)] = penalized(model)
    assert found.inferred_strength < 500.0


def test_a_training_that_diverges_ends_as_it_would_without_the_evidence():
    x, y = classes()
    model = classifier()
    weights = [np.full_like(w, np.nan) for w in model.get_weights()]
    model.set_weights(weights)
    history = trained(model, x, y, epochs=3).history
    assert np.isnan(history["loss"]).all()
    c = [5.0 / (2 * len(x))] * 2
    assert list(coefficients(model).values()) == pytest.approx(c)


def test_frozen_layers_keep_out_of_it():
    x, y = classes()
    model = classifier()
    model.layers[0].trainable = False
    compiled(model, 0.5, loss="sparse_categorical_crossentropy")
    history = trained(model, x, y, epochs=3).history
    [path] = coefficients(model)
    assert path.endswith("last/kernel")
    assert [k for k in history if k.startswith("c/")] == [f"c/{path}"]


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_finds_nearly_the_same_strengths(policy):
    x, y = classes()
    found = []
    for dtype in ("float32", policy):
        model = classifier(dtype=dtype)
        trained(model, x, y, epochs=6)
        found.append(list(coefficients(model).values()))
    assert found[1] == pytest.approx(found[0], rel=0.05)


def test_an_interpolating_network_stops_with_a_warning():
    y = np.arange(30) % 3
    x = np.eye(5, dtype="float32")[y]
    model = classifier()
    # Each class a unit of its own, and logits so far apart that the loss is 3e-4.
    for layer, scale in zip(model.layers, (3.0, 3.0), strict=True):
        kernel = scale * np.eye(*layer.kernel.shape)
        layer.set_weights([kernel, np.zeros(kernel.shape[1])])
    callbacks = [ApplyL2(EvidenceL2(0.1, burn_in=1))]
    with pytest.warns(UserWarning, match="stops.*fits its training examples") as told:
        history = model.fit(x, y, epochs=3, verbose=0, callbacks=callbacks).history
    [ours] = [w for w in told if "EvidenceL2 stops" in str(w.message)]
    assert ours.filename == __file__
    for path in coefficients(model):
        assert len(set(history[f"c/{path}"])) == 1


def test_temperature_is_a_factor_of_the_fixed_point():
    x, y = regression()
    found = []
    for temperature in (1.0, 1.5):
        model = unit()
        rule = EvidenceL2(5.0, burn_in=1, temperature=temperature)
        model.fit(x, y, batch_size=60, epochs=40, verbose=0, callbacks=[ApplyL2(rule)])
        [c] = coefficients(model).values()
        found.append(c)
    # Of gamma and of the weights there is little left to change.
    assert found[1] == pytest.approx(1.5 * found[0], rel=0.05)


def test_other_rules_stay_as_they_are_and_large_layers_are_named(monkeypatch, capsys):
    x, y = classes()
    model = classifier(kernel_regularizer=SampleL2(2.0))
    model.fit(
        x,
        y,
        verbose=0,
        callbacks=[ApplyL2(RULE, where=[model.layers[1]])],
    )
    assert [type(r) for _, _, r in penalized(model)] == [SampleL2, EvidenceL2]
    monkeypatch.setattr(grams, "_MOST_NUMBERS", 100)
    model = keras.Sequential(
        [
            keras.Input((5, 1)),
            layers.Conv1D(2, 3, name="conv"),
            layers.Flatten(),
            layers.Dense(3, "softmax"),
        ]
    )
    compiled(model, 0.1, loss="sparse_categorical_crossentropy")
    rule = EvidenceL2(5.0, burn_in=1)
    model.fit(x, y, epochs=2, verbose=0, callbacks=[ApplyL2(rule)])
    assert "strength of sequential" in (text := capsys.readouterr().out)
    assert "conv/kernel stays as it was given" in text
    first, second = coefficients(model).values()
    assert first == 5.0 / (2 * 60) != second


def test_what_it_cannot_do_is_said_before_training():
    x, y = classes()
    model = classifier()
    with pytest.raises(ValueError, match=r"sample_weight was given to fit"):
        model.fit(x, y, sample_weight=x[:, 0], verbose=0, callbacks=[ApplyL2(RULE)])
    for weights in ({"sample_weight": x[:, 0]}, {"class_weight": {0: 2.0}}):
        with pytest.raises(ValueError, match=r"_weight was given to fit"):
            given = ApplyL2(RULE, examples=(x, y))
            model.fit(x, y, **weights, verbose=0, callbacks=[given])
    for examples, message in (
        ((x,), r"got a tuple of 1: expected inputs and their targets"),
        ((x, y[:9]), r"60 inputs and 9 targets: expected a target"),
    ):
        with pytest.raises(ValueError, match=message):
            given = ApplyL2(RULE, examples=examples)
            model.fit(x, y, verbose=0, callbacks=[given])
    sequence = Batches(x, y)
    with pytest.raises(ValueError, match=r"examples=\(x, y\)"):
        model.fit(sequence, verbose=0, callbacks=[ApplyL2(RULE)])
    model.fit(sequence, verbose=0, callbacks=[ApplyL2(RULE, examples=(x, y))])
    model.compile("adam", "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match=r"under Adam: expected keras.optimizers.SGD"):
        trained(model, x, y)
    inputs = keras.Input((5,))
    hidden = layers.BatchNormalization()(layers.Dense(4)(inputs))
    model = keras.Model(inputs, layers.Dense(3, "softmax")(hidden))
    compiled(model, loss="sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match=r"without BatchNormalization; choose"):
        trained(model, x, y)


def test_a_loss_of_ones_own_is_refused():
    x, y = classes()
    model = classifier()

    class Tenth(keras.Sequential):
        def compute_loss(self, x=None, y=None, y_pred=None, *_, **__):
            return keras.ops.mean(y_pred) + 0.1 * sum(self.losses)

    own = compiled(Tenth(model.layers), loss="sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match=r"a compute_loss of its own"):
        trained(own, x, y)
    attach(own, SampleL2(1.0, samples=60))
    with pytest.raises(ValueError, match=r"a compute_loss of its own"):
        evidence_strengths(own, x, y)


class Batches(keras.utils.PyDataset):
    def __init__(self, x, y):
        super().__init__()
        self.data = x, y

    def __len__(self):
        return 3

    def __getitem__(self, i):
        return tuple(a[20 * i : 20 * i + 20] for a in self.data)


def test_the_monitor_writes_the_curves_of_the_evidence(tmp_path):
    x, y = classes()
    model = classifier()
    rule = EvidenceL2(5.0, burn_in=2)
    callbacks = [ApplyL2(rule), CostMonitor(tmp_path, gradients=False)]
    history = model.fit(x, y, epochs=3, verbose=0, callbacks=callbacks).history
    curves = scalars(tmp_path)
    for name in coefficients(model):
        assert [v for _, v in curves[f"c/{name}"]] == pytest.approx(
            history[f"c/{name}"]
        )
        gamma = history[f"gamma/{name}"]
        assert np.isnan(gamma[0])
        assert [v for _, v in curves[f"gamma/{name}"]] == pytest.approx(gamma[1:])
        [share] = {v for _, v in curves[f"gamma_share/{name}"][-1:]}
        [count] = [v.value.shape for p, v, _ in penalized(model) if p == name]
        assert share == pytest.approx(gamma[-1] / np.prod(count))


def test_cost_report_shows_gamma_on_request():
    x, y = classes()
    model = classifier(kernel_regularizer=SampleL2(2.0, samples=60))
    c = coefficients(model)
    rows = RowFinder(model, x, c)(x)
    report = cost_report(model, x, y, gamma=True)
    assert {w.path: w.gamma for w in report.weights} == pytest.approx(
        gamma_by_grams(*rows, c)
    )
    assert "gamma: elements of the weight that the data determine" in str(report)
    assert "gamma" not in str(cost_report(model, x, y))
    with pytest.raises(ValueError, match=r"gamma=True with x of type NoneType"):
        cost_report(model, gamma=True)


@pytest.mark.parametrize("kind", [np.asarray, scipy.sparse.coo_array])
def test_gamma_of_a_report_is_counted_under_the_coefficients_that_it_shows(kind):
    x, y = classes()
    # Not resolved: the report alone knows of how many examples.
    model = classifier(kernel_regularizer=SampleL2(2.0))
    report = cost_report(model, kind(x), y, samples=600, gamma=True)
    assert {w.coefficient for w in report.weights} == {2.0 / 1200}
    bind(model, samples=600)
    expected = determined_parameters(model, x, 600)
    assert {w.path: w.gamma for w in report.weights} == pytest.approx(expected)
    bind(model, samples=60)
    assert determined_parameters(model, x, 600) != pytest.approx(expected)
