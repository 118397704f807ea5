"""Models whose loss weighs, drops or forgets the penalties, or is computed twice."""

import re

import keras
import numpy as np
import pytest
from autodiff import numpy64
from event_files import scalars
from keras import layers, ops
from models import data
from reference import penalty as reference
from second_pass import gradients
from test_gradient_norms import BACKEND, QUICK, PastComputeLoss, fit

from keras_scaled_l2 import ApplyL2, CostMonitor, ScaledL2, attach, cost_report

C = 0.3
BATCH = 4
X, Y = data(2 * BATCH)


def mean_square(y, y_pred):
    return ops.mean(ops.square(y - y_pred))


class Weighed(keras.Model):
    """Adds a part of the penalties to its loss."""

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        return mean_square(y, y_pred) + 0.1 * sum(self.losses)


class Dropped(keras.Model):
    """Forgets the penalties; the test adds what a message tells it to."""

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        return mean_square(y, y_pred)


class OfOneLayer(keras.Model):
    """Adds the penalties of one layer only."""

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        return mean_square(y, y_pred) + 2.0 * sum(self.layers[-1].losses)


class Each(keras.Model):
    """Weighs each penalty in its own way."""

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        first, second = self.losses
        return mean_square(y, y_pred) + 0.5 * first + 4.0 * second


class Annealed(keras.Model):
    """Weighs the penalties by a number that changes between epochs."""

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.beta = self.add_weight(
            shape=(), initializer="ones", trainable=False, name="beta"
        )

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        return mean_square(y, y_pred) + self.beta * sum(self.losses)


class Rooted(keras.Model):
    """Is not linear in the penalties: what counts is the derivative."""

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        return mean_square(y, y_pred) + ops.sqrt(sum(self.losses))


def of_kind(kind, penalty=C, rate=0.05):
    keras.utils.set_random_seed(3)
    l2 = keras.regularizers.L2(penalty) if penalty else None
    inputs = keras.Input((4,))
    hidden = layers.Dense(3, "tanh", kernel_regularizer=l2, name="hidden")(inputs)
    outputs = layers.Dense(1, kernel_regularizer=l2, name="out")(hidden)
    model = kind(inputs, outputs, name="network")
    model.compile(keras.optimizers.SGD(rate), "mse", **QUICK)
    return model


def kernels(model):
    return [model.get_layer(name).kernel for name in ("hidden", "out")]


def squares(model):
    return squares_of(*kernels(model))


def squares_of(*weights):
    return [float(reference(1.0, numpy64(w))) for w in weights]


KINDS = [
    (Weighed, lambda p, q: (0.1, 0.1)),
    (Dropped, lambda p, q: (0.0, 0.0)),
    (OfOneLayer, lambda p, q: (0.0, 2.0)),
    (Each, lambda p, q: (0.5, 4.0)),
    (Annealed, lambda p, q: (1.0, 1.0)),
    (Rooted, lambda p, q: (0.5 / (C * (p + q)) ** 0.5,) * 2),
]


class Summed(keras.Model):
    """Adds a part of the penalties, which may be of any shape."""

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        return mean_square(y, y_pred) + 0.1 * sum(ops.sum(p) for p in self.losses)


def test_penalty_of_one_element_counts_with_its_weight():
    model = of_kind(Summed, rate=0.0)
    for kernel in kernels(model):
        kernel.regularizer = lambda w: ops.reshape(C * ops.sum(w**2), (1,))
    history = fit(model, X, Y, CostMonitor(), epochs=1, batch_size=8)
    assert history["penalty"] == pytest.approx([0.1 * C * sum(squares(model))])
    total = history["data_loss"][0] + history["penalty"][0]
    assert total == pytest.approx(history["loss"][0], rel=1e-6)


@pytest.mark.filterwarnings("ignore:The penalty does not act")
@pytest.mark.parametrize("kind, weights", KINDS, ids=[k.__name__ for k, _ in KINDS])
def test_penalty_counts_with_its_weight_in_the_loss(kind, weights, tmp_path):
    model = of_kind(kind, rate=0.0)
    p, q = squares(model)
    one, other = weights(p, q)
    expected = C * (one * p + other * q)
    options = {"validation_data": (X, Y), "batch_size": 8}
    history = fit(model, X, Y, CostMonitor(tmp_path), epochs=1, **options)
    for prefix in ("", "val_"):
        loss, cost, penalty = (
            history[f"{prefix}{name}"][0] for name in ("loss", "data_loss", "penalty")
        )
        assert penalty == pytest.approx(expected, rel=1e-5, abs=1e-9)
        assert cost + penalty == pytest.approx(loss, rel=1e-6)
    # The gradients: the data's by a second pass through a model without.
    unpenalized = of_kind(Dropped, penalty=None)
    unpenalized.set_weights([w for w in model.get_weights() if w.ndim])
    norms = [np.linalg.norm(g) for g in gradients(unpenalized, X, Y)]
    found = scalars(tmp_path)
    for variable, norm, weight, square in zip(
        kernels(model),
        (norms[0], norms[2]),
        (one, other),
        (p, q),
        strict=True,
    ):
        if not weight and any((one, other)):
            continue  # without a penalty in the loss, and without a curve
        [(_, of_data)] = found[f"gradient_norm/data/{variable.path}"]
        assert of_data == pytest.approx(norm, rel=1e-4)
        [(_, of_penalty)] = found[f"gradient_norm/penalty/{variable.path}"]
        expected = 2 * C * weight * np.sqrt(square)
        assert of_penalty == pytest.approx(expected, rel=1e-5, abs=1e-9)
    [(_, of_all)] = found["global/gradient_norm/data"]
    assert of_all == pytest.approx(np.hypot.reduce(norms), rel=1e-4)


def test_weight_that_changes_between_epochs_is_followed():
    model = of_kind(Annealed, rate=0.0)
    total = C * sum(squares(model))

    class Anneal(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.model.beta.assign((0.25, 3.0)[epoch])

    history = fit(model, X, Y, Anneal(), CostMonitor())
    assert history["penalty"] == pytest.approx([0.25 * total, 3 * total], rel=1e-5)


class Adding(keras.Model):
    """Adds a loss, and a second forward pass with one, while it computes its own."""

    def __init__(self):
        super().__init__(name="network")
        l2 = keras.regularizers.L2(C)
        self.hidden = layers.Dense(
            3, "tanh", kernel_regularizer=l2, activity_regularizer="l2"
        )
        self.out = layers.Dense(1, kernel_regularizer=l2)

    def call(self, inputs):
        return self.out(self.hidden(inputs))

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        other = self(2.0 * x)
        self.add_loss(0.5 * ops.mean(ops.square(other - y_pred)))
        return mean_square(y, y_pred) + 0.5 * sum(self.losses)


def test_loss_that_adds_losses_is_the_one_without_the_monitor():
    histories, models = [], []
    for callbacks in ([], [CostMonitor()]):
        keras.utils.set_random_seed(3)
        model = Adding()
        model(X)
        model.compile(keras.optimizers.SGD(0.05), "mse", **QUICK)
        start = C * sum(squares_of(model.hidden.kernel, model.out.kernel))
        histories.append(fit(model, X, Y, *callbacks, batch_size=8, epochs=2))
        models.append(model)
    bare, monitored = histories
    assert monitored["loss"] == pytest.approx(bare["loss"], rel=1e-6)
    for one, other in zip(*(m.get_weights() for m in models), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)
    assert monitored["penalty"][0] == pytest.approx(0.5 * start, rel=1e-5)


def test_warm_up_from_0_is_not_told_that_it_forgets(capsys):
    model = of_kind(Annealed, rate=0.0)
    total = C * sum(squares(model))

    class WarmUp(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.model.beta.assign(float(epoch))

    with pytest.warns(UserWarning, match="by 0 as yet.*unless a warm-up") as caught:
        history = fit(model, X, Y, WarmUp(), ApplyL2(), CostMonitor(), epochs=2)
    assert len([w for w in caught if w.category is UserWarning]) == 1
    assert "by 0 as yet" in capsys.readouterr().out
    assert history["penalty"] == pytest.approx([0.0, total], rel=1e-5)


@pytest.mark.parametrize("kind, weights", KINDS, ids=[k.__name__ for k, _ in KINDS])
def test_report_of_a_loss_that_weighs_is_what_evaluate_says(kind, weights):
    model = of_kind(kind)
    p, q = squares(model)
    one, other = weights(p, q)
    report = cost_report(model, X, Y)
    [total] = np.atleast_1d(model.evaluate(X, Y, batch_size=8, verbose=0))
    assert report.cost["total"] == pytest.approx(total, rel=1e-5)
    assert [w.penalty for w in report.weights] == pytest.approx(
        [C * one * p, C * other * q], rel=1e-5, abs=1e-9
    )
    assert [w.coefficient for w in report.weights] == pytest.approx(
        [C * one, C * other], rel=1e-5, abs=1e-9
    )
    names = [finding.name for finding in report.findings]
    assert ("not_in_loss" in names) is (one == other == 0)
    assert ("weighed" in names) is not (one == other == 1 or one == other == 0)
    # Nothing is left of what was lent to the model.
    assert [v.regularizer.l2 for v in kernels(model)] == pytest.approx([C, C])


@pytest.mark.parametrize("kind, weights", KINDS, ids=[k.__name__ for k, _ in KINDS])
def test_line_of_apply_has_the_share_that_is_in_the_loss(kind, weights, capsys):
    model = of_kind(kind, rate=0.0)
    p, q = squares(model)
    one, other = weights(p, q)
    part = C * (one * p + other * q)
    loss = fit(model, X, Y, epochs=1, batch_size=8)["loss"][0]
    before = sorted(vars(model))
    history = fit(model, X, Y, ApplyL2(), epochs=1, batch_size=8)
    line = capsys.readouterr().out
    assert f"penalty at the start {C * (p + q):.4g}" in line
    assert f"cost at the start {loss:.4g}" in line
    if part:
        assert f"{part / loss:.0%} of it penalty" in line
    else:
        assert "none of it penalty. The penalty does not act" in line
    assert ("as the loss weighs it" in line) is (part not in (0, C * (p + q)))
    assert set(history) == {"loss"}
    assert sorted(vars(model)) == before


@pytest.mark.parametrize("order", [1, -1], ids=["apply first", "monitor first"])
def test_apply_and_monitor_agree_on_a_loss_that_weighs(order, capsys):
    model = of_kind(Weighed, rate=0.0)
    callbacks = [ApplyL2(), CostMonitor()][::order]
    history = fit(model, X, Y, *callbacks, epochs=1, batch_size=8)
    share = history["penalty"][0] / history["loss"][0]
    assert history["penalty"][0] == pytest.approx(0.1 * C * sum(squares(model)))
    assert f"{share:.0%} of it penalty" in capsys.readouterr().out
    assert [metric.name for metric in model.metrics] == ["loss"]


def distiller(penalty=C):
    student, teacher = of_kind(keras.Model, penalty), of_kind(keras.Model, None)
    model = keras.distillation.Distiller(
        teacher=teacher,
        student=student,
        distillation_losses=keras.distillation.LogitsDistillation(),
        student_loss_weight=0.5,
    )
    model.compile(optimizer=keras.optimizers.SGD(0.0), loss="mse", **QUICK)
    return model


def test_distiller_is_told_once_that_its_penalty_does_not_act(capsys):
    model = distiller()
    with pytest.warns(UserWarning, match="does not act.*sum.self.losses") as caught:
        history = fit(
            model, X, Y, ApplyL2(), CostMonitor(), validation_data=(X, Y), epochs=2
        )
    assert len([w for w in caught if w.category is UserWarning]) == 1
    assert history["penalty"] == history["val_penalty"] == [0.0, 0.0]
    for prefix in ("", "val_"):
        assert history[f"{prefix}data_loss"] == history[f"{prefix}loss"]
    assert "none of it penalty. The penalty does not act" in capsys.readouterr().out
    # Its own means are those of a training without the monitor.
    names = set(history) - {f"{p}{n}" for p in ("", "val_") for n in ("data_loss",)}
    bare = fit(distiller(), X, Y, validation_data=(X, Y), epochs=2)
    for name in names & set(bare):
        assert history[name] == pytest.approx(bare[name], rel=1e-5)
    report = cost_report(model, X, Y)
    assert report.cost["total"] == pytest.approx(
        model.evaluate(X, Y, verbose=0, return_dict=True)["loss"], rel=1e-5
    )
    assert [f.name for f in report.findings] == ["not_in_loss"]


def test_monitor_that_is_used_again_tells_of_each_training():
    monitor = CostMonitor()
    for make in (distiller, distiller):
        with pytest.warns(UserWarning, match="does not act"):
            fit(make(), X, Y, monitor)


# ------------------------------------------- steps that forget, and what they are told


def code_in(text):
    """The code between backticks, in order."""
    return text.split("`")[1::2]


def told(model, capsys):
    """What a monitored training under ApplyL2 warns of, and the line it prints."""
    with pytest.warns(UserWarning) as caught:
        fit(model, X, Y, ApplyL2(), CostMonitor(), validation_data=(X, Y))
    texts = [str(w.message) for w in caught if w.category is UserWarning]
    return texts, capsys.readouterr().out


def test_compute_loss_with_the_line_that_the_message_gives_acts(capsys):
    [text], line = told(of_kind(Dropped), capsys)
    [code] = code_in(text)
    assert code in line
    assert "of 'network' leaves self.losses out" in text

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        names = {"self": self, "loss": mean_square(y, y_pred)}
        exec(code, names)
        return names["loss"]

    mended = of_kind(type("Mended", (keras.Model,), {"compute_loss": compute_loss}), 1)
    history = fit(mended, X, Y, CostMonitor(), epochs=1)
    stock = of_kind(keras.Model, 1)
    expected = fit(stock, X, Y, CostMonitor(), epochs=1)
    for name in ("loss", "data_loss", "penalty"):
        assert history[name] == pytest.approx(expected[name], rel=1e-5)


def test_train_step_with_the_line_that_the_message_gives_acts(capsys):
    [text], line = told(of_kind(PastComputeLoss), capsys)
    assert "does not act in training" in text
    assert "none of it penalty. The penalty does not act in training" in line
    codes = code_in(text)
    assert all(code in line for code in codes)

    class Mended(MendedStep):
        pass

    Mended.codes = codes
    model, stock = of_kind(Mended), of_kind(keras.Model)
    with pytest.warns(UserWarning, match="cannot tell data cost from penalty"):
        fit(model, X, Y, CostMonitor(), validation_data=(X, Y))
    fit(stock, X, Y)
    for one, other in zip(model.get_weights(), stock.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


class Listing(PastComputeLoss):
    """As in Keras's examples of GANs: lists its metrics itself, and logs no loss."""

    @property
    def metrics(self):
        return []

    def train_step(self, *arguments):
        result = super().train_step(*arguments)
        logs = result[0] if BACKEND == "jax" else result
        logs["d_loss"] = logs.pop("loss")
        return result


class ListingWeighed(Weighed):
    """Lists its metrics itself, in a step of Keras's own."""

    @property
    def metrics(self):
        return [self._loss_tracker]


def test_step_that_forgets_is_told_so_where_nothing_can_be_measured(capsys):
    model = of_kind(Listing)
    fit(model, X, Y, ApplyL2(), epochs=1)
    line = capsys.readouterr().out
    total = C * sum(squares(of_kind(Listing)))
    start = f"penalty at the start {total:.4g}. The penalty does not act in training"
    assert start in line
    assert "cost at the start" not in line
    with pytest.raises(ValueError, match=r"super\(\)\.metrics"):
        fit(model, X, Y, CostMonitor())


def test_line_of_apply_is_silent_of_what_cannot_be_measured(capsys):
    model, bare = of_kind(ListingWeighed), of_kind(Weighed)
    history = fit(model, X, Y, ApplyL2(), epochs=1, batch_size=8)
    line = capsys.readouterr().out
    assert "cost at the start" in line
    assert "of it penalty" not in line
    assert history == fit(bare, X, Y, epochs=1, batch_size=8)


if BACKEND == "tensorflow":
    import tensorflow as tf

    class MendedStep(keras.Model):
        """A step of its own, into which the code of the message is put."""

        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                names = {"self": self, "loss": mean_square(y, self(x, training=True))}
                [code] = self.codes
                exec(code, names)
            weights = self.trainable_variables
            self.optimizer.apply(tape.gradient(names["loss"], weights), weights)
            return {"loss": names["loss"]}

    class Sharp(keras.Model):
        """Sharpness-aware: the gradient at weights that are moved uphill."""

        logged = 0

        def train_step(self, data):
            x, y = data
            losses, weights = [], self.trainable_variables
            with tf.GradientTape() as tape:
                losses.append(self.compute_loss(x=x, y=y, y_pred=self(x)))
            uphill = [0.3 * g for g in tape.gradient(losses[0], weights)]
            for weight, move in zip(weights, uphill, strict=True):
                weight.assign_add(move)
            with tf.GradientTape() as tape:
                losses.append(self.compute_loss(x=x, y=y, y_pred=self(x)))
            gradient = tape.gradient(losses[1], weights)
            for weight, move in zip(weights, uphill, strict=True):
                weight.assign_sub(move)
            self.optimizer.apply(gradient, weights)
            logged = [*losses, sum(losses) / 2][self.logged]
            self._loss_tracker.update_state(logged, sample_weight=tf.shape(x)[0])
            return self.get_metrics_result()

elif BACKEND == "torch":
    import torch

    class MendedStep(keras.Model):
        """A step of its own, into which the code of the message is put."""

        def train_step(self, data):
            x, y = data
            self.zero_grad()
            names = {"self": self, "loss": mean_square(y, self(x, training=True))}
            [code] = self.codes
            exec(code, names)
            names["loss"].backward()
            weights = self.trainable_variables
            with torch.no_grad():
                self.optimizer.apply([v.value.grad for v in weights], weights)
            return {"loss": names["loss"]}

    class Sharp(keras.Model):
        """Sharpness-aware: the gradient at weights that are moved uphill."""

        logged = 0

        def train_step(self, data):
            x, y = data
            weights = list(self.trainable_variables)

            def loss_and_gradient():
                self.zero_grad()
                loss = self.compute_loss(x=x, y=y, y_pred=self(x))
                loss.backward()
                return loss.detach(), [v.value.grad.clone() for v in weights]

            first, gradient = loss_and_gradient()
            with torch.no_grad():
                for weight, g in zip(weights, gradient, strict=True):
                    weight.assign_add(0.3 * g)
            second, moved = loss_and_gradient()
            with torch.no_grad():
                for weight, g in zip(weights, gradient, strict=True):
                    weight.assign_sub(0.3 * g)
                self.optimizer.apply(moved, weights)
            logged = [first, second, (first + second) / 2][self.logged]
            self._loss_tracker.update_state(logged, sample_weight=len(x))
            return self.get_metrics_result()

else:
    import jax

    class MendedStep(keras.Model):
        """A step of its own, into which the code of the message is put."""

        def train_step(self, state, data):
            trainable, non_trainable, optimizer, metrics = state
            x, y = data

            def own_loss(trainable):
                names = {
                    "self": self,
                    "trainable_variables": trainable,
                    "non_trainable_variables": non_trainable,
                    "x": x,
                }
                forward, add = self.codes
                exec(forward, names)
                names["loss"] = mean_square(y, names["y_pred"])
                exec(add, names)
                return names["loss"]

            loss, gradient = jax.value_and_grad(own_loss)(trainable)
            trainable, optimizer = self.optimizer.stateless_apply(
                optimizer, gradient, trainable
            )
            return {"loss": loss}, (trainable, non_trainable, optimizer, metrics)

    class Guide(keras.Model):
        """As in Keras's guide, with the call that it has or the one of the message."""

        call_of_the_message = None

        def train_step(self, state, data):
            trainable, non_trainable, optimizer, metrics = state
            x, y = data

            def own_loss(trainable):
                y_pred, _ = self.stateless_call(
                    trainable, non_trainable, x, training=True
                )
                if self.call_of_the_message is None:
                    return self.compute_loss(x, y, y_pred)
                names = {
                    "self": self,
                    "trainable_variables": trainable,
                    "non_trainable_variables": non_trainable,
                    "metrics_variables": metrics,
                }
                names |= {"x": x, "y": y, "y_pred": y_pred}
                loss, _ = eval(self.call_of_the_message, names)
                return loss

            loss, gradient = jax.value_and_grad(own_loss)(trainable)
            trainable, optimizer = self.optimizer.stateless_apply(
                optimizer, gradient, trainable
            )
            return {"loss": loss}, (trainable, non_trainable, optimizer, metrics)

    def test_guides_compute_loss_is_an_error_with_the_call_that_acts():
        def model(kind):
            model = of_kind(kind, None)
            attach(model, ScaledL2(C, per=1))
            return model

        failing, mended, stock = model(Guide), model(Guide), of_kind(keras.Model)
        before = failing.get_weights()
        with pytest.raises(ValueError, match="taken the weights out") as caught:
            fit(failing, X, Y)
        for one, other in zip(failing.get_weights(), before, strict=True):
            np.testing.assert_array_equal(one, other)
        [code] = re.findall(r"self.stateless_compute_loss\(.*?\)", str(caught.value))
        mended.call_of_the_message = code
        fit(mended, X, Y)
        fit(stock, X, Y)
        for one, other in zip(mended.get_weights(), stock.get_weights(), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)

    class Asking(keras.Model):
        """Asks for the penalties, and adds, logs or drops what it is given."""

        makes_of_them = "drops"

        def train_step(self, state, data):
            trainable, non_trainable, optimizer, metrics = state
            x, y = data

            def own_loss(trainable):
                y_pred, _, losses = self.stateless_call(
                    trainable, non_trainable, x, training=True, return_losses=True
                )
                added = sum(losses) if self.makes_of_them == "adds" else 0.0
                return mean_square(y, y_pred) + added, sum(losses)

            own_loss = jax.value_and_grad(own_loss, has_aux=True)
            (loss, total), gradient = own_loss(trainable)
            trainable, optimizer = self.optimizer.stateless_apply(
                optimizer, gradient, trainable
            )
            logs = {"loss": loss}
            if self.makes_of_them == "logs":
                logs["total"] = total
            return logs, (trainable, non_trainable, optimizer, metrics)

    def asking(makes_of_them, penalty=C):
        model = of_kind(Asking, penalty)
        model.makes_of_them = makes_of_them
        return model

    @pytest.mark.parametrize("makes_of_them", ["drops", "logs"])
    def test_step_that_drops_what_it_asks_for_is_told_so(
        makes_of_them, tmp_path, capsys
    ):
        model, free = asking(makes_of_them), asking(makes_of_them, None)
        norms = [np.linalg.norm(g) for g in gradients(free, X, Y)]
        with pytest.warns(UserWarning, match="does not act in training") as caught:
            fit(model, X, Y, ApplyL2(), CostMonitor(tmp_path), batch_size=len(X))
        assert len([w for w in caught if w.category is UserWarning]) == 1
        assert "none of it penalty. The penalty does not act" in capsys.readouterr().out
        fit(free, X, Y, batch_size=len(X))
        for one, other in zip(model.get_weights(), free.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)
        found = scalars(tmp_path)
        [(_, data), *_] = found["global/gradient_norm/data"]
        assert data == pytest.approx(np.hypot.reduce(norms), rel=1e-5)
        assert {value for _, value in found["global/gradient_norm/penalty"]} == {0.0}

    def test_step_that_adds_what_it_asks_for_is_not_told_that_it_drops(capsys):
        [text], line = told(asking("adds"), capsys)
        assert "cannot tell data cost from penalty" in text
        assert "act" not in text + line

    class Sharp(keras.Model):
        """Sharpness-aware: the gradient at weights that are moved uphill."""

        logged = 0

        def train_step(self, state, data):
            trainable, non_trainable, optimizer, metrics = state
            x, y = data
            own_loss = jax.value_and_grad(self.compute_loss_and_updates, has_aux=True)

            def at(trainable, metrics):
                (loss, (_, y_pred, _, metrics)), gradient = own_loss(
                    trainable,
                    non_trainable,
                    metrics,
                    x,
                    y,
                    None,
                    training=True,
                    optimizer_variables=optimizer,
                )
                return loss, y_pred, gradient, metrics

            first, y_pred, gradient, metrics = at(trainable, metrics)
            moved = [w + 0.3 * g for w, g in zip(trainable, gradient, strict=True)]
            second, y_pred, gradient, metrics = at(moved, metrics)
            trainable, optimizer = self.optimizer.stateless_apply(
                optimizer, gradient, trainable
            )
            logged = [first, second, (first + second) / 2][self.logged]
            logs, metrics = self._update_metrics_variables(
                metrics, logged, x, y, y_pred, None
            )
            return logs, (trainable, non_trainable, optimizer, metrics)


if BACKEND == "tensorflow":

    def own_logs(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x=x, y=y, y_pred=self(x, training=True))
        weights = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, weights), weights)
        return {"loss": loss}

elif BACKEND == "torch":

    def own_logs(self, data):
        x, y = data
        self.zero_grad()
        loss = self.compute_loss(x=x, y=y, y_pred=self(x, training=True))
        loss.backward()
        weights = self.trainable_variables
        with torch.no_grad():
            self.optimizer.apply([v.value.grad for v in weights], weights)
        return {"loss": loss}

else:

    def own_logs(self, state, data):
        trainable, non_trainable, optimizer, metrics = state
        x, y = data

        def loss_at(trainable):
            y_pred, _ = self.stateless_call(trainable, non_trainable, x, training=True)
            return self.stateless_compute_loss(
                trainable, non_trainable, metrics, x=x, y=y, y_pred=y_pred
            )[0]

        loss, gradient = jax.value_and_grad(loss_at)(trainable)
        trainable, optimizer = self.optimizer.stateless_apply(
            optimizer, gradient, trainable
        )
        return {"loss": loss}, (trainable, non_trainable, optimizer, metrics)


def test_step_that_returns_its_own_logs_is_told_so():
    model = of_kind(type("OwnLogs", (keras.Model,), {"train_step": own_logs}))
    with pytest.warns(UserWarning, match="no data_loss and no penalty.*self.metrics"):
        history = fit(model, X, Y, CostMonitor(), validation_data=(X, Y), epochs=2)
    assert np.isnan([*history["data_loss"], *history["penalty"]]).all()
    assert len(history["data_loss"]) == len(history["val_data_loss"]) == 2
    total = np.add(history["val_data_loss"], history["val_penalty"])
    np.testing.assert_allclose(total, history["val_loss"], rtol=1e-5)


if BACKEND == "jax":

    def own_test_step(self, state, data):
        """Sums the loss itself, and returns the results of all metrics."""
        trainable, non_trainable, metrics = state
        x, y = data
        y_pred, non_trainable = self.stateless_call(trainable, non_trainable, x)
        logs, left, new = {}, list(metrics), []
        for metric in self.metrics:
            held = [left.pop(0) for _ in metric.variables]
            if metric.name == "loss":
                held = metric.stateless_update_state(held, mean_square(y, y_pred))
            logs[metric.name] = metric.stateless_result(held)
            new += held
        return logs, (trainable, non_trainable, new)

else:

    def own_test_step(self, data):
        """Sums the loss itself, and returns the results of all metrics."""
        x, y = data
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(mean_square(y, self(x)))
        return {metric.name: metric.result() for metric in self.metrics}


def test_test_step_past_compute_loss_is_told_so():
    model = of_kind(type("OwnTest", (keras.Model,), {"test_step": own_test_step}))
    stock = of_kind(keras.Model)
    with pytest.warns(UserWarning, match="in validation: the test_step") as caught:
        history = fit(model, X, Y, CostMonitor(), validation_data=(X, Y), epochs=2)
    assert len([w for w in caught if "CostMonitor" in str(w.message)]) == 1
    expected = fit(stock, X, Y, CostMonitor(), epochs=2)
    for name in ("loss", "data_loss", "penalty"):
        assert history[name] == pytest.approx(expected[name], rel=1e-5)
    assert np.isnan([*history["val_data_loss"], *history["val_penalty"]]).all()
    assert np.isfinite(history["val_loss"]).all()


@pytest.mark.parametrize("logged", [0, 1, 2], ids=["first", "second", "mean"])
def test_parts_of_a_step_with_two_losses_are_those_of_the_one_it_logs(logged, tmp_path):
    model = of_kind(Sharp)
    model.logged = logged
    with pytest.warns(UserWarning, match="measures no gradients.*more than once"):
        history = fit(model, X, Y, CostMonitor(tmp_path), validation_data=(X, Y))
    total = np.add(history["data_loss"], history["penalty"])
    np.testing.assert_allclose(total, history["loss"], rtol=1e-5)
    total = np.add(history["val_data_loss"], history["val_penalty"])
    np.testing.assert_allclose(total, history["val_loss"], rtol=1e-5)
    last = C * sum(squares(model))
    assert history["val_penalty"][-1] == pytest.approx(last, rel=1e-5)
    assert min(history["penalty"]) > 0
    found = scalars(tmp_path)
    assert not [tag for tag in found if tag.startswith(("gradient_norm", "global"))]
