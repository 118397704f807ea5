"""data_loss + penalty == loss: in every epoch, on every kind of model."""

import keras
import numpy as np
import pytest
from autodiff import numpy, numpy64
from keras import layers, ops
from models import compiled, data, hidden, linear, losses
from reference import count, mean_squared_error, penalty, train_linear

from keras_scaled_l2 import CostMonitor, SampleL2, ScaledL2, attach, penalized
from keras_scaled_l2.costs import is_split, split_cost

EPOCHS = 2
# Ten examples in batches of four: the last one is partial, also in validation.
BATCH = 4


def fit(model, x, y, *callbacks, **options):
    """The history of a fit with a last partial batch."""
    options = {"epochs": EPOCHS, "batch_size": BATCH, "verbose": 0} | options
    return model.fit(x, y, callbacks=list(callbacks), **options).history


def monitored(model, x, y, **options):
    """The history of a fit with validation under CostMonitor, checked to split."""
    validation = {"validation_data": (x, y)} if "validation_data" not in options else {}
    history = fit(model, x, y, CostMonitor(), **validation, **options)
    assert_split(history, options.get("epochs", EPOCHS))
    return history


def assert_split(history, epochs):
    """The contract, in every epoch, for train and validation."""
    for prefix in ("", "val_"):
        loss, data_loss, penalties = (
            np.array(history[prefix + name], dtype=np.float64)
            for name in ("loss", "data_loss", "penalty")
        )
        assert len(loss) == len(data_loss) == len(penalties) == epochs
        assert np.all(np.isfinite(loss))
        np.testing.assert_allclose(data_loss + penalties, loss, rtol=1e-5, atol=1e-9)


def quadratic(weights):
    """Sum of c * sum(w**2) by the reference, for pairs (c, weight)."""
    return sum(penalty(c, numpy64(w)) for c, w in weights)


# ------------------------------------------------------------ one kind of model each


def plain():
    model = linear(ScaledL2(2.0))
    return model, {}, lambda: [(0.5, model.layers[0].kernel)]


def without_penalty():
    return linear(None), {}, lambda: []


def keras_l2():
    model = linear(keras.regularizers.L2(0.3))
    return model, {}, lambda: [(0.3, model.layers[0].kernel)]


def rules_and_biases():
    rule = SampleL2(3.0, samples=10)
    inputs = keras.Input((4,))
    first = layers.Dense(3, kernel_regularizer=rule, bias_regularizer=rule)
    last = layers.Dense(1, kernel_regularizer=keras.regularizers.L2(0.1))
    model = compiled(keras.Model(inputs, last(first(inputs))))
    weights = [(0.15, first.kernel), (0.15, first.bias), (0.1, last.kernel)]
    return model, {}, lambda: weights


def activity_regularizer():
    inputs = keras.Input((4,))
    first = layers.Dense(
        3,
        kernel_regularizer=ScaledL2(2.0, per=1),
        activity_regularizer=keras.regularizers.L2(0.7),
    )
    model = compiled(keras.Model(inputs, layers.Dense(1)(first(inputs))))
    return model, {}, lambda: [(2.0, first.kernel)]


def add_loss():
    class Adds(keras.Layer):
        def call(self, x):
            self.add_loss(0.3 * ops.mean(ops.square(x)))
            return x

    inputs = keras.Input((4,))
    last = layers.Dense(1, kernel_regularizer=ScaledL2(2.0, per=1))
    model = compiled(keras.Model(inputs, last(Adds()(inputs))))
    return model, {}, lambda: [(2.0, last.kernel)]


def only_penalty_and_add_loss():
    class Adds(keras.Layer):
        def call(self, x):
            self.add_loss(0.3 * ops.mean(ops.square(x)))
            return x

    inputs = keras.Input((4,))
    last = layers.Dense(1, kernel_regularizer=ScaledL2(2.0, per=1))
    model = compiled(keras.Model(inputs, Adds()(last(inputs))), loss=None)
    return model, {}, lambda: [(2.0, last.kernel)]


def several_outputs():
    inputs = keras.Input((4,))
    first = layers.Dense(3, kernel_regularizer=ScaledL2(2.0, per=1))
    shared = first(inputs)
    outputs = {name: layers.Dense(1, name=name)(shared) for name in ("left", "right")}
    model = compiled(
        keras.Model(inputs, outputs),
        loss={"left": "mse", "right": "mae"},
        loss_weights={"left": 0.2, "right": 3.0},
        metrics={"left": ["mae"]},
    )
    _, y = data()
    return model, {"y": {"left": y, "right": -y}}, lambda: [(2.0, first.kernel)]


def frozen_layer():
    model = hidden(ScaledL2(2.0, per=1), ScaledL2(3.0, per=1))
    model.layers[0].trainable = False
    return compiled(model), {}, lambda: [(3.0, model.layers[2].kernel)]


def dropout_and_batchnorm():
    last = layers.Dense(1, kernel_regularizer=ScaledL2(2.0, per=1))
    inner = [layers.BatchNormalization(), layers.Dropout(0.5, seed=3), last]
    model = compiled(keras.Sequential([keras.Input((4,)), *inner]))
    return model, {}, lambda: [(2.0, last.kernel)]


def nested_and_shared():
    shared = layers.Dense(4, kernel_regularizer=ScaledL2(2.0, per=1))
    inner = keras.Sequential([keras.Input((4,)), shared])
    inputs = keras.Input((4,))
    model = compiled(keras.Model(inputs, layers.Dense(1)(inner(shared(inputs)))))
    return model, {}, lambda: [(2.0, shared.kernel)]


def eager():
    model = linear(ScaledL2(2.0), run_eagerly=True)
    return model, {}, lambda: [(0.5, model.layers[0].kernel)]


def several_steps_per_execution():
    model = linear(ScaledL2(2.0), steps_per_execution=2)
    return model, {}, lambda: [(0.5, model.layers[0].kernel)]


def of_precision(policy):
    def make():
        kernel = {"kernel_regularizer": ScaledL2(2.0), "dtype": policy}
        last = layers.Dense(1, **kernel)
        model = compiled(keras.Sequential([keras.Input((4,)), last]))
        return model, {}, lambda: [(0.5, last.kernel)]

    make.__name__ = policy
    return make


class HalfOfLoss(keras.Model):
    """Overrides compute_loss, without the argument that Keras 3.3 added."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        return 0.5 * super().compute_loss(x, y, y_pred, sample_weight)


class OwnLoss(keras.Model):
    """Overrides compute_loss and weighs the penalties itself."""

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        return ops.mean(ops.abs(y - y_pred)) + 3.0 * sum(self.losses)


def own_compute_loss(kind, times):
    """The penalty counts with the weight with which it is in the loss."""

    def make():
        inputs = keras.Input((4,))
        last = layers.Dense(1, kernel_regularizer=ScaledL2(2.0, per=1))
        model = compiled(kind(inputs, last(inputs)))
        return model, {}, lambda: [(times * 2.0, last.kernel)]

    make.__name__ = kind.__name__
    return make


def sample_weights():
    model, _, weights = plain()
    return model, {"sample_weight": np.arange(10.0, dtype="float32")}, weights


def class_weights():
    inputs = keras.Input((4,))
    last = layers.Dense(
        1, activation="sigmoid", kernel_regularizer=ScaledL2(2.0, per=1)
    )
    model = compiled(keras.Model(inputs, last(inputs)), loss="binary_crossentropy")
    y = (data()[1] > 0).astype("float32")
    return (
        model,
        {"y": y, "class_weight": {0: 0.3, 1: 5.0}},
        lambda: [(2.0, last.kernel)],
    )


def accumulated_gradients():
    last = layers.Dense(1, kernel_regularizer=ScaledL2(2.0, per=1))
    model = keras.Sequential([keras.Input((4,)), last])
    model.compile(keras.optimizers.SGD(0.05, gradient_accumulation_steps=2), loss="mse")
    return model, {}, lambda: [(2.0, last.kernel)]


KINDS = [
    plain,
    without_penalty,
    keras_l2,
    rules_and_biases,
    activity_regularizer,
    add_loss,
    only_penalty_and_add_loss,
    several_outputs,
    frozen_layer,
    dropout_and_batchnorm,
    nested_and_shared,
    eager,
    of_precision("mixed_float16"),
    of_precision("mixed_bfloat16"),
    own_compute_loss(HalfOfLoss, 0.5),
    own_compute_loss(OwnLoss, 3.0),
    sample_weights,
    class_weights,
    accumulated_gradients,
]
if keras.config.backend() != "torch":
    # Keras refuses it on torch.
    KINDS.append(several_steps_per_execution)
if keras.config.backend() != "jax":
    # JAX has no float64 unless it is started with it.
    KINDS.append(of_precision("float64"))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_data_and_penalty_add_up_to_the_loss(kind):
    model, options, weights = kind()
    x, y = data()
    y = options.pop("y", y)
    history = monitored(model, x, y, **options)
    # The last validation saw the weights that the model has now.
    expected = quadratic(weights())
    assert history["val_penalty"][-1] == pytest.approx(expected, rel=1e-5, abs=0)
    assert bool(expected > 0) is bool(weights())
    assert history["val_data_loss"][-1] == pytest.approx(
        history["val_loss"][-1] - expected, rel=1e-4
    )


if keras.config.backend() == "tensorflow":

    def test_data_and_penalty_add_up_to_the_loss_under_xla():
        model = linear(ScaledL2(2.0), jit_compile=True)
        history = monitored(model, *data(8))
        expected = penalty(0.5, numpy64(model.layers[0].kernel))
        assert history["val_penalty"][-1] == pytest.approx(expected, rel=1e-5)

    def test_data_and_penalty_add_up_to_the_loss_of_a_tf_dataset():
        import tensorflow as tf

        batches = tf.data.Dataset.from_tensor_slices(data()).batch(BATCH)
        options = {"batch_size": None, "shuffle": False, "validation_data": batches}
        history = monitored(linear(ScaledL2(2.0)), batches, None, **options)
        assert history["penalty"][0] > 0


if keras.config.backend() == "torch":

    def test_data_and_penalty_add_up_to_the_loss_of_a_data_loader():
        import torch

        tensors = torch.utils.data.TensorDataset(*map(torch.tensor, data()))
        batches = torch.utils.data.DataLoader(tensors, batch_size=BATCH)
        options = {"batch_size": None, "shuffle": False, "validation_data": batches}
        history = monitored(linear(ScaledL2(2.0)), batches, None, **options)
        assert history["penalty"][0] > 0


def test_data_and_penalty_add_up_to_the_loss_of_a_generator():
    x, y = data()

    def batches():
        while True:
            for start in range(0, len(x), BATCH):
                yield x[start : start + BATCH], y[start : start + BATCH]

    options = {"batch_size": None, "shuffle": False, "validation_data": (x, y)}
    steps = {"steps_per_epoch": -(-len(x) // BATCH)}
    model, stock = linear(ScaledL2(2.0)), linear(ScaledL2(2.0))
    stock.set_weights(model.get_weights())
    history = monitored(model, batches(), None, **options, **steps)
    expected = monitored(stock, x, y, shuffle=False)
    for name in ("data_loss", "penalty"):
        assert history[name] == pytest.approx(expected[name], rel=1e-6)


def test_means_are_those_at_the_weights_before_each_step():
    x, y = data()
    model = linear(ScaledL2(2.0), learning_rate=0.1)
    w, b = (numpy64(v) for v in model.layers[0].weights)
    w, b, expected = train_linear(
        x, y, w, b, c=0.5, learning_rate=0.1, batch_size=BATCH, epochs=3
    )

    history = monitored(model, x, y, epochs=3, shuffle=False)

    np.testing.assert_allclose(numpy(model.layers[0].kernel), w, rtol=1e-5, atol=1e-7)
    assert history["data_loss"] == pytest.approx([d for d, _ in expected], rel=1e-5)
    assert history["penalty"] == pytest.approx([p for _, p in expected], rel=1e-5)
    # The weights move enough to tell the mean from the penalty at the end.
    assert history["penalty"][0] != pytest.approx(history["val_penalty"][0], rel=0.05)
    cost, _, _ = mean_squared_error(x, y, w, b)
    assert history["val_data_loss"][-1] == pytest.approx(cost, rel=1e-5)


@pytest.mark.parametrize("times", [1e-6, 1e6])
def test_data_loss_is_exact_beside_a_penalty_of_another_size(times):
    x, y = data()
    bare = linear(None, learning_rate=0.0)
    alone = bare.evaluate(x, y, verbose=0)
    squares = penalty(1.0, numpy64(bare.layers[0].kernel))
    model = linear(ScaledL2(times * alone / squares, per=1), learning_rate=0.0)

    history = monitored(model, x, y, shuffle=False)

    for prefix in ("", "val_"):
        assert history[f"{prefix}data_loss"] == pytest.approx([alone] * 2, rel=1e-5)
        expected = pytest.approx([times * alone] * 2, rel=1e-5)
        assert history[f"{prefix}penalty"] == expected


@pytest.mark.parametrize("rule", [None, ScaledL2(2.0)], ids=str)
def test_monitor_changes_nothing_of_the_training(rule):
    x, y = data(50)
    weights, costs = [], []
    for callbacks in ([], [CostMonitor()]):
        model = linear(rule)
        history = fit(model, x, y, *callbacks, shuffle=False, epochs=3)
        weights.append([numpy(v) for v in model.weights])
        costs.append(history["loss"])
    for alone, beside in zip(*weights, strict=True):
        if keras.config.backend() == "jax":
            # XLA may round the same step another way.
            np.testing.assert_allclose(beside, alone, rtol=1e-5, atol=1e-7)
        else:
            np.testing.assert_array_equal(beside, alone)
    assert costs[1] == pytest.approx(costs[0], rel=1e-6)


def test_every_fit_has_its_own_means():
    x, y = data()
    model = linear(ScaledL2(2.0), learning_rate=0.0)
    first = monitored(model, x, y)
    second = monitored(model, x, y, epochs=1)
    again = fit(model, x, y, epochs=1)
    attach(model, ScaledL2(6.0))
    third = monitored(model, x, y, epochs=1)
    assert "data_loss" not in again
    assert second["data_loss"] == pytest.approx(first["data_loss"][:1], rel=1e-6)
    assert second["penalty"] == pytest.approx(first["penalty"][:1], rel=1e-6)
    assert third["penalty"][0] == pytest.approx(3 * first["penalty"][0], rel=1e-5)
    assert third["data_loss"] == pytest.approx(first["data_loss"][:1], rel=1e-5)


def test_parts_follow_a_layer_that_is_frozen_between_fits():
    x, y = data()
    model = compiled(hidden(ScaledL2(2.0, per=1), ScaledL2(3.0, per=1)), 0.01)
    first = monitored(model, x, y)
    model.layers[0].trainable = False
    compiled(model, 0.01)
    second = monitored(model, x, y)
    before = quadratic([(2.0, model.layers[0].kernel), (3.0, model.layers[2].kernel)])
    after = quadratic([(3.0, model.layers[2].kernel)])
    assert second["val_penalty"][-1] == pytest.approx(after, rel=1e-5)
    assert after < before
    assert first["val_penalty"][-1] > after


# ---------------------------------------------------------- installing and removing


def state(model):
    """All of a model that the split may touch."""
    return (
        sorted(vars(model)),
        [m.name for m in model.metrics],
        [id(m) for m in model._metrics],
        sorted(vars(model.optimizer)),
        [v.path for v in model.weights],
        [v.regularizer for v in model.weights],
        [v.path for v in model.metrics_variables],
    )


def test_split_reports_its_parts_in_evaluate_until_it_is_removed():
    x, y = data()
    model = linear(ScaledL2(2.0))
    before = model.evaluate(x, y, batch_size=BATCH, verbose=0, return_dict=True)
    assert not is_split(model)
    split = split_cost(model)
    assert is_split(model)
    found = model.evaluate(x, y, batch_size=BATCH, verbose=0, return_dict=True)
    assert set(found) == {"loss", "data_loss", "penalty"}
    assert found["loss"] == pytest.approx(before["loss"], rel=1e-6)
    assert found["penalty"] == pytest.approx(losses(model)[0], rel=1e-6)
    assert found["data_loss"] + found["penalty"] == pytest.approx(found["loss"])
    split.remove()
    assert not is_split(model)
    after = model.evaluate(x, y, batch_size=BATCH, verbose=0, return_dict=True)
    assert after == pytest.approx(before, rel=1e-6)


def test_split_twice_is_one_split_and_found_without_an_attribute_of_its_own():
    model = linear(ScaledL2(2.0))
    assert split_cost(model) is split_cost(model)
    assert len(model._metrics) == 1
    assert not [name for name in vars(model) if "keras_scaled_l2" in name]


def test_split_removed_twice_leaves_what_was_put_on_in_between():
    model = linear(ScaledL2(2.0))
    split = split_cost(model)
    split.remove()
    vars(model)["compute_loss"] = theirs = model.compute_loss
    split.remove()
    assert vars(model)["compute_loss"] is theirs


def test_split_removed_leaves_the_model_as_it_was_found():
    model = linear(ScaledL2(2.0))
    model.build((None, 4))
    before = state(model)
    split = split_cost(model)
    assert state(model) != before
    split.remove()
    assert state(model) == before
    split.remove()
    assert state(model) == before


def test_split_of_a_loss_set_on_the_instance_gives_it_back():
    x, y = data()
    model = linear(ScaledL2(2.0, per=1), learning_rate=0.0)

    def compute_loss(x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return 7.0 * ops.mean(ops.square(y - y_pred)) + sum(model.losses)

    model.compute_loss = compute_loss
    alone = fit(model, x, y)["loss"]
    history = monitored(model, x, y)
    assert vars(model)["compute_loss"] is compute_loss
    assert history["loss"] == pytest.approx(alone, rel=1e-5)
    assert history["penalty"] == pytest.approx(losses(model) * EPOCHS, rel=1e-5)
    assert fit(model, x, y)["loss"] == pytest.approx(alone, rel=1e-5)


def test_split_of_a_model_that_is_not_compiled_is_an_error():
    with pytest.raises(ValueError, match=r"not compiled.*model.compile"):
        split_cost(hidden())


@pytest.mark.parametrize("name", ["data_loss", "penalty"])
@pytest.mark.parametrize("where", ["metric", "output"])
def test_split_beside_a_name_that_is_taken_is_an_error(name, where):
    inputs = keras.Input((4,))
    output = name.removesuffix("_loss")
    if where == "metric":
        model = compiled(
            keras.Model(inputs, layers.Dense(1)(inputs)),
            metrics=[keras.metrics.MeanAbsoluteError(name=name)],
        )
    else:
        if name == "penalty":
            name, output = "data_loss", "data"
        outputs = {n: layers.Dense(1, name=n)(inputs) for n in (output, "other")}
        model = compiled(keras.Model(inputs, outputs), loss="mse")
    x, y = data()
    y = y if where == "metric" else {output: y, "other": y}
    model.fit(x, y, verbose=0)
    before = state(model)
    with pytest.raises(ValueError, match=rf"{name}.*Rename"):
        model.fit(x, y, verbose=0, callbacks=[CostMonitor()])
    assert state(model) == before


def test_model_without_any_loss_stays_an_error():
    x, y = data()
    if keras.config.backend() == "jax":
        # Keras on JAX trains such a model on the cost 0.
        model = compiled(
            keras.Sequential([keras.Input((4,)), layers.Dense(1)]), 0.1, None
        )
        history = fit(model, x, y, CostMonitor())
        assert history["loss"] == history["data_loss"] == history["penalty"] == [0, 0]
        return
    for callbacks in ([], [CostMonitor()]):
        model = compiled(
            keras.Sequential([keras.Input((4,)), layers.Dense(1)]), 0.1, None
        )
        with pytest.raises(ValueError, match="No loss to compute"):
            fit(model, x, y, *callbacks)


# ------------------------------------------------- models that do more by themselves


class OwnMetrics(keras.Model):
    """As in Keras's own example of compute_loss: it lists its metrics itself."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.tracker = keras.metrics.Mean(name="loss")

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        loss = ops.mean(ops.square(y_pred - y)) + ops.sum(self.losses)
        self.tracker.update_state(loss)
        return loss

    @property
    def metrics(self):
        return [self.tracker]


def test_model_that_lists_its_own_metrics_is_split_or_refused():
    inputs = keras.Input((4,))
    last = layers.Dense(1, kernel_regularizer=ScaledL2(2.0, per=1))
    model = compiled(OwnMetrics(inputs, last(inputs)))
    x, y = data(8)
    try:
        history = fit(model, x, y, CostMonitor(), validation_data=(x, y))
    except ValueError as error:
        assert "metrics" in str(error)
    else:
        assert_split(history, EPOCHS)


if keras.config.backend() == "tensorflow":
    import tensorflow as tf

    class OwnStep(keras.Model):
        """As in Keras's guide to a custom train_step."""

        def train_step(self, batch):
            x, y = batch
            with tf.GradientTape() as tape:
                y_pred = self(x, training=True)
                loss = self.compute_loss(y=y, y_pred=y_pred)
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply(gradients, self.trainable_variables)
            for metric in self.metrics:
                if metric.name == "loss":
                    metric.update_state(loss)
                else:
                    metric.update_state(y, y_pred)
            return {m.name: m.result() for m in self.metrics}

elif keras.config.backend() == "torch":

    class OwnStep(keras.Model):
        """As in Keras's guide to a custom train_step."""

        def train_step(self, batch):
            x, y = batch
            self.zero_grad()
            y_pred = self(x, training=True)
            loss = self.compute_loss(y=y, y_pred=y_pred)
            loss.backward()
            weights = list(self.trainable_weights)
            gradients = [v.value.grad for v in weights]
            import torch

            with torch.no_grad():
                self.optimizer.apply(gradients, weights)
            for metric in self.metrics:
                if metric.name == "loss":
                    metric.update_state(loss)
                else:
                    metric.update_state(y, y_pred)
            return {m.name: m.result() for m in self.metrics}


if keras.config.backend() in ("tensorflow", "torch"):

    def test_model_with_the_train_step_of_kerass_guide_is_split():
        inputs = keras.Input((4,))
        last = layers.Dense(1, kernel_regularizer=ScaledL2(2.0, per=1))
        model = compiled(OwnStep(inputs, last(inputs)))
        # Whole batches: the guide's step does not weigh its mean by their size.
        x, y = data(8)
        history = fit(model, x, y, CostMonitor(), validation_data=(x, y))
        assert_split(history, EPOCHS)


def test_penalized_weights_of_the_split_are_those_of_the_model():
    model = linear(ScaledL2(2.0))
    split_cost(model)
    [(path, variable, rule)] = penalized(model)
    assert variable is model.layers[0].kernel
    assert path == variable.path
    assert rule.coefficient(variable.shape) == 2.0 / count(variable.shape)
