"""Training examples and batch size as ``fit`` knows them, through the real ``fit``."""

import contextlib
import io

import keras
import numpy as np
import pytest
from keras import layers
from models import compiled, data, linear, losses

from keras_scaled_l2 import (
    ApplyL2,
    CostMonitor,
    SampleL2,
    ScaledL2,
    _keras,
    attach,
    bind,
    penalized,
)
from keras_scaled_l2.fitting import data_of_running_fit
from keras_scaled_l2.steps import rebuild_steps


class Counter(keras.callbacks.Callback):
    """Asks what the running ``fit`` knows, and stops before any step is compiled."""

    class Found(Exception):
        """Carries the answer out of ``fit``."""

    def on_train_begin(self, logs=None):
        raise self.Found(data_of_running_fit(self.model)[:2])


def counted(model, *arguments, **options):
    """(samples, batch_size) that a callback finds in this call of ``fit``."""
    with pytest.raises(Counter.Found) as caught:
        model.fit(
            *arguments, verbose=0, callbacks=[Counter()], shuffle=False, **options
        )
    return caught.value.args[0]


def two_inputs(names=("a", "b")):
    inputs = [keras.Input((4,), name=name) for name in names]
    model = keras.Model(inputs, layers.Dense(1)(layers.add(inputs)))
    return compiled(model)


@pytest.mark.parametrize("samples", [1, 3, 4, 8, 9, 10])
def test_samples_of_arrays_are_their_rows(samples):
    assert counted(linear(), *data(samples), batch_size=4) == (samples, 4)


def test_batch_size_defaults_to_that_of_keras():
    assert counted(linear(), *data(70)) == (70, 32)


def test_samples_smaller_than_one_batch_are_counted():
    assert counted(linear(), *data(5), batch_size=32) == (5, 32)


def test_samples_held_out_for_validation_do_not_count():
    found = counted(linear(), *data(10), batch_size=4, validation_split=0.3)
    assert found == (7, 4)


def test_samples_of_validation_data_do_not_count():
    found = counted(linear(), *data(10), batch_size=4, validation_data=data(50))
    assert found == (10, 4)


def test_samples_of_a_list_of_inputs_are_their_rows():
    x, y = data(10)
    assert counted(two_inputs(), [x, x], y, batch_size=4) == (10, 4)


def test_samples_of_a_dict_of_inputs_are_their_rows():
    x, y = data(10)
    assert counted(two_inputs(), {"a": x, "b": x}, y, batch_size=4) == (10, 4)


def test_samples_with_weights_are_rows_all_the_same():
    found = counted(linear(), *data(10), batch_size=4, sample_weight=np.zeros(10))
    assert found == (10, 4)


@pytest.mark.parametrize("steps", [1, 2])
def test_steps_per_epoch_do_not_change_the_samples_of_arrays(steps):
    found = counted(linear(), *data(10), batch_size=4, steps_per_epoch=steps)
    assert found == (10, 4)


def test_samples_of_a_generator_are_unknown():
    def batches():
        while True:
            yield data(4)

    samples, _ = counted(linear(), batches(), steps_per_epoch=3)
    assert samples is None


class Batches(keras.utils.PyDataset):
    """Ten examples in batches of four, four and two."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return data(2 if index == 2 else 4)


class Endless(Batches):
    """Does not tell how many batches there are."""

    @property
    def num_batches(self):
        return None


def test_samples_of_a_py_dataset_are_those_of_its_batches():
    assert counted(linear(), Batches()) == (10, 4)
    assert counted(linear(), Endless(), steps_per_epoch=2)[0] is None


class Growing(Batches):
    """Batches of several sizes."""

    def __getitem__(self, index):
        return data(4 * (index + 1))


def test_py_dataset_of_batches_that_differ_is_not_guessed_at():
    assert counted(linear(), Growing()) == (None, None)


class Recorded(Batches):
    """Writes down what it is asked for."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def __getitem__(self, index):
        self.asked.append(index)
        return super().__getitem__(index)


@pytest.mark.parametrize(
    "apply",
    [
        lambda: ApplyL2(ScaledL2(1.0)),
        lambda: ApplyL2(SampleL2(1.0), samples=10),
        lambda: ApplyL2(SampleL2(1.0, samples=10)),
        lambda: ApplyL2(keras.regularizers.L2(0.1)),
    ],
)
def test_py_dataset_is_not_read_for_a_count_that_no_rule_needs(apply):
    asked = []
    for callbacks in ([], [apply()]):
        batches = Recorded()
        linear().fit(batches, shuffle=False, verbose=0, callbacks=callbacks)
        asked.append(batches.asked)
    assert asked[0] == asked[1]


def test_samples_outside_of_fit_are_unknown():
    assert data_of_running_fit(linear()) == (None, None, 0)


def test_samples_are_those_of_the_models_own_fit():
    inner = linear()

    class Outer(Counter):
        def on_train_begin(self, logs=None):
            found = counted(inner, *data(6), batch_size=2)
            raise self.Found((found, data_of_running_fit(inner)[:2]))

    with pytest.raises(Counter.Found) as caught:
        linear().fit(*data(10), batch_size=4, verbose=0, callbacks=[Outer()])
    assert caught.value.args[0] == ((6, 2), (None, None))


def test_samples_are_found_behind_a_fit_of_a_subclass():
    class Subclass(keras.Sequential):
        def fit(self, x, y, **options):
            return super().fit(x[:6], y[:6], **options)

    model = compiled(Subclass([keras.Input((4,)), layers.Dense(1)]))
    assert counted(model, *data(10), batch_size=4) == (6, 4)


if keras.config.backend() == "tensorflow":
    import tensorflow as tf

    def dataset(samples=10):
        return tf.data.Dataset.from_tensor_slices(data(samples))

    def test_samples_of_a_tf_dataset_of_whole_batches_are_counted():
        found = counted(linear(), dataset().batch(4, drop_remainder=True))
        assert found == (8, 4)

    def test_samples_of_a_repeated_tf_dataset_are_those_of_one_epoch():
        whole = dataset(12).batch(4, drop_remainder=True)
        assert counted(linear(), whole.repeat(20), steps_per_epoch=3) == (12, 4)
        assert counted(linear(), whole.take(2)) == (8, 4)
        # Keras goes on where the last epoch ended: all are seen.
        assert counted(linear(), whole, steps_per_epoch=2) == (12, 4)
        # Without steps an epoch of Keras sees all of them.
        assert counted(linear(), whole.repeat(2)) == (24, 4)

    @pytest.mark.parametrize("samples", [3, 9, 10, 12])
    def test_samples_of_a_tf_dataset_are_those_that_it_batches(samples):
        given = dataset(samples).shuffle(20).batch(4).prefetch(1)
        assert counted(linear(), given) == (samples, 4)
        assert counted(linear(), dataset(20).take(samples).batch(4)) == (samples, 4)

    @pytest.mark.parametrize("samples", [9, 10, 12])
    def test_last_batch_of_a_tf_dataset_leaves_open_how_many_more(samples):
        found = []
        apply = ApplyL2(SampleL2(1.0))
        given = known(dataset(samples).filter(lambda x, y: True).batch(4), 3)
        model = linear()
        ask = keras.callbacks.LambdaCallback(
            on_train_begin=lambda logs: found.append(data_of_running_fit(model))
        )
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            model.fit(given, shuffle=False, verbose=0, callbacks=[ask, apply])
        assert found == [(9, 4, 3)]
        assert "9 examples counted, at most 3 more" in printed.getvalue()
        assert penalized(model)[0][2].inferred_samples == 9

    @pytest.mark.parametrize(
        "make",
        [
            lambda: dataset().batch(4),
            lambda: dataset().batch(4).repeat(20),
            lambda: dataset().batch(4, drop_remainder=True).repeat(),
            lambda: dataset().batch(4).filter(lambda x, y: True),
        ],
        ids=["partial last batch", "repeated", "endless", "filtered"],
    )
    def test_samples_of_a_tf_dataset_that_does_not_tell_are_unknown(make):
        samples, _ = counted(linear(), make(), steps_per_epoch=2)
        assert samples is None

    def merged(x, y):
        return tf.reshape(x, (-1, 4)), tf.reshape(y, (-1, 1))

    def twice(x, y):
        return tf.data.Dataset.from_tensors((x[:1], y[:1])).repeat(2)

    def known(given, batches):
        """A data set whose length has been said, as Keras's guide has it."""
        return given.apply(tf.data.experimental.assert_cardinality(batches))

    def test_samples_of_a_tf_dataset_that_changes_its_batches_are_unknown():
        batches_of_batches = dataset(12).batch(2).batch(3).map(merged)
        assert counted(linear(), batches_of_batches) == (None, None)
        changed = known(dataset().batch(4).flat_map(twice), 6)
        assert counted(linear(), changed) == (None, None)
        same = known(dataset(12).batch(5), 3)
        assert counted(linear(), same) == (12, 5)

    def doubled(x, y):
        return tf.concat([x, x], 0), tf.concat([y, y], 0)

    def chosen(x, y):
        return tf.boolean_mask(x, x[:, 0] > 0), tf.boolean_mask(y, x[:, 0] > 0)

    def only_once():
        calls = []

        def function(x, y):
            calls.append(x)
            assert len(calls) == 1
            return x, y

        return function

    @pytest.mark.parametrize(
        "function",
        [doubled, lambda x, y: (x[::2], y[::2]), chosen, only_once()],
        ids=["more", "fewer", "unknown", "traced once"],
    )
    def test_samples_of_batches_mapped_to_another_size_are_unknown(function):
        given = dataset(12).batch(4).map(function).prefetch(1)
        assert counted(linear(), given) == (None, None)
        weighed = {"class_weight": {0: 1.0, 1: 2.0}}
        assert counted(linear(), given, **weighed) == (None, None)

    def test_samples_of_batches_mapped_by_layers_are_counted():
        scale, noise = layers.Rescaling(0.5), layers.GaussianNoise(0.1)
        given = dataset(12).batch(5).map(lambda x, y: (scale(x), y))
        given = given.map(lambda x, y: (noise(x, training=True), y))
        assert counted(linear(), given) == (12, 5)

    def test_samples_of_batches_mapped_in_parallel_are_counted():
        batches = dataset(10).batch(4, num_parallel_calls=2)
        mapped = batches.map(lambda x, y: (2 * x, y), num_parallel_calls=2)
        found = []
        model = linear()
        ask = keras.callbacks.LambdaCallback(
            on_train_begin=lambda logs: found.append(data_of_running_fit(model))
        )
        model.fit(mapped, verbose=0, shuffle=False, callbacks=[ask])
        assert found == [(10, 4, 0)]

    def test_samples_of_tensors_are_their_rows():
        x, y = map(tf.constant, data(10))
        assert counted(linear(), x, y, batch_size=4) == (10, 4)


if keras.config.backend() == "torch":
    import torch

    def loader(samples=10, **options):
        tensors = torch.utils.data.TensorDataset(*map(torch.tensor, data(samples)))
        return torch.utils.data.DataLoader(tensors, batch_size=4, **options)

    @pytest.mark.parametrize("samples", [3, 8, 9, 10])
    def test_samples_of_a_data_loader_are_counted(samples):
        assert counted(linear(), loader(samples)) == (samples, 4)

    @pytest.mark.parametrize(("samples", "seen"), [(8, 8), (10, 8), (11, 8)])
    def test_samples_that_a_data_loader_drops_do_not_count(samples, seen):
        assert counted(linear(), loader(samples, drop_last=True)) == (seen, 4)

    @pytest.mark.parametrize("drawn", [3, 4, 6, 8])
    def test_samples_that_a_sampler_leaves_out_do_not_count(drawn):
        sampler = torch.utils.data.SubsetRandomSampler(range(drawn))
        samples, _ = counted(linear(), loader(10, sampler=sampler))
        assert samples in (drawn, None)

    def test_samples_of_a_batch_sampler_are_counted_or_unknown():
        tensors = torch.utils.data.TensorDataset(*map(torch.tensor, data(10)))
        batches = torch.utils.data.BatchSampler(range(6), 4, drop_last=False)
        found = torch.utils.data.DataLoader(tensors, batch_sampler=batches)
        samples, _ = counted(linear(), found)
        assert samples in (6, None)

    def test_samples_of_an_iterable_data_set_are_unknown():
        class Stream(torch.utils.data.IterableDataset):
            def __iter__(self):
                yield from zip(*map(torch.tensor, data(10)), strict=True)

        found = torch.utils.data.DataLoader(Stream(), batch_size=4)
        samples, _ = counted(linear(), found)
        assert samples is None


# ------------------------------------------------- the same through ApplyL2 and rules


def test_rule_is_told_the_samples_of_fit_without_any_argument():
    model = linear(SampleL2(1.0))
    model.fit(
        *data(10), batch_size=4, validation_split=0.3, verbose=0, callbacks=[ApplyL2()]
    )
    [(_, _, rule)] = penalized(model)
    assert rule == SampleL2(1.0, inferred_samples=7)


def test_rule_that_cannot_be_told_is_an_error_with_both_remedies():
    def batches():
        while True:
            yield data(4)

    for unknown in (batches(), Endless()):
        with pytest.raises(ValueError, match=r"Pass it: ApplyL2\(samples="):
            linear(SampleL2(1.0)).fit(
                unknown,
                steps_per_epoch=2,
                shuffle=False,
                verbose=0,
                callbacks=[ApplyL2()],
            )


def test_rule_on_a_generator_uses_the_samples_given_to_the_callback():
    def batches():
        while True:
            yield data(4)

    model = linear(SampleL2(1.0))
    apply = ApplyL2(samples=1234)
    model.fit(batches(), steps_per_epoch=2, shuffle=False, verbose=0, callbacks=[apply])
    assert penalized(model)[0][2].inferred_samples == 1234


# ------------------------------------------------------- rules that nobody resolves


def unresolved(kind):
    """A model with an unresolved rule, on which calls have failed in this way."""
    model = linear(None if kind == "attach after fit" else SampleL2(1.0))
    calls = {
        "fit": [lambda: model.fit(*data(8), verbose=0)],
        "evaluate": [lambda: model.evaluate(*data(8), verbose=0)],
        "train_on_batch": [lambda: model.train_on_batch(*data(8))],
        "attach after fit": [lambda: model.fit(*data(8), verbose=0)],
        "callback that binds nothing": [
            lambda: model.fit(
                *data(8), verbose=0, callbacks=[keras.callbacks.LambdaCallback()]
            )
        ],
    }
    if kind == "attach after fit":
        model.fit(*data(8), verbose=0)
        attach(model, SampleL2(1.0))
    return model, calls[kind] * 3


@pytest.mark.parametrize(
    "kind",
    [
        *("fit", "evaluate", "train_on_batch"),
        *("attach after fit", "callback that binds nothing"),
    ],
)
def test_error_of_an_unresolved_rule_leaves_the_weights(kind, tmp_path):
    model, failing = unresolved(kind)
    before = model.get_weights()
    for call in failing:
        with pytest.raises(ValueError, match="number of training examples"):
            call()
        np.testing.assert_array_equal(model.get_weights()[0], before[0])
    model.save(tmp_path / "model.keras")
    # The remedy that the message names.
    model.fit(*data(8), verbose=0, callbacks=[ApplyL2()])
    assert penalized(model)[0][2].inferred_samples == 8
    assert not np.array_equal(model.get_weights()[0], before[0])
    assert np.isfinite(model.evaluate(*data(8), verbose=0))


def test_error_of_an_unresolved_rule_leaves_the_weights_beside_their_averages():
    model = linear(SampleL2(1.0))
    model.compile(keras.optimizers.SGD(0.1, use_ema=True), "mse")
    before = model.get_weights()
    for _ in range(2):
        with pytest.raises(ValueError, match="number of training examples"):
            model.fit(*data(8), verbose=0)
        np.testing.assert_array_equal(model.get_weights()[0], before[0])


def test_callback_of_ones_own_may_bind():
    model = linear(SampleL2(1.0))
    own = keras.callbacks.LambdaCallback(
        on_train_begin=lambda logs: bind(model, samples=40)
    )
    model.fit(*data(8), verbose=0, callbacks=[own])
    assert penalized(model)[0][2].inferred_samples == 40


def test_callback_that_resolves_may_be_inside_keras_own_list():
    model = linear(SampleL2(1.0))
    callbacks = keras.callbacks.CallbackList([ApplyL2()], add_history=True, model=model)
    model.fit(*data(8), verbose=0, callbacks=callbacks)
    assert penalized(model)[0][2].inferred_samples == 8


# -------------------------------------------------------------------- unbuilt models


class Summed(keras.Model):
    """A subclassed model of a dict of inputs, unbuilt until it is called."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(1, kernel_regularizer=SampleL2(1.0))

    def call(self, inputs):
        return self.dense(inputs["a"] + inputs["b"])


def test_unbuilt_sequential_is_counted_before_its_first_step():
    model = compiled(keras.Sequential([layers.Dense(3), layers.Dense(1)]))
    apply = ApplyL2(ScaledL2(1.0, "model"))
    model.fit(*data(10), batch_size=4, verbose=0, callbacks=[apply])
    assert [rule.inferred_per for _, _, rule in penalized(model)] == [15, 15]


def test_unbuilt_model_of_a_dict_of_inputs_is_counted_before_its_first_step():
    x, y = data(10)
    model = compiled(Summed())
    model.fit({"a": x, "b": x}, y, batch_size=4, verbose=0, callbacks=[ApplyL2()])
    assert [rule.inferred_samples for _, _, rule in penalized(model)] == [10]


def test_unbuilt_model_of_integers_is_built_for_integers():
    class Looked(keras.Model):
        def __init__(self):
            super().__init__()
            self.rows = layers.Embedding(7, 1, embeddings_regularizer=SampleL2(1.0))

        def call(self, x):
            return self.rows(x)[:, 0]

    model = compiled(Looked())
    x = np.arange(10, dtype="int32")[:, None] % 7
    model.fit(x, data(10)[1], batch_size=4, verbose=0, callbacks=[ApplyL2()])
    assert [rule.inferred_samples for _, _, rule in penalized(model)] == [10]


class Threes(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return data(4)


def endless():
    while True:
        yield data(4)


@pytest.mark.parametrize("made", [endless, Threes])
def test_unbuilt_model_is_built_of_what_the_fit_will_feed_it(made):
    model = compiled(keras.Sequential([layers.Dense(1)]))
    callbacks = [ApplyL2(SampleL2(1.0), samples=10), CostMonitor()]
    options = {"steps_per_epoch": 2, "shuffle": False, "verbose": 0}
    history = model.fit(made(), callbacks=callbacks, **options).history
    assert penalized(model)[0][2].inferred_samples == 10
    assert history["penalty"][0] > 0


# --------------------------------------------------------------------- rebuild_steps


def test_rebuild_before_any_fit_compiles_nothing():
    model = linear()
    rebuild_steps(model)
    assert model.train_function is None
    assert model.test_function is None


def test_rebuild_of_a_layer_that_is_no_model_is_harmless():
    layer = layers.Dense(3)
    layer.build((None, 4))
    attach(layer, ScaledL2(1.0))
    assert len(losses(layer)) == 1


def test_only_a_set_of_tf_data_is_taken_for_one():
    # Grain's adapter, which no test installs, keeps its set under the same name.
    class Adapter:
        def __init__(self, dataset):
            self._dataset = dataset

    class Other:
        pass

    class OfTensorFlow:
        element_spec = ()

    assert _keras.tf_dataset(Adapter(Other())) is None
    assert type(_keras.tf_dataset(Adapter(OfTensorFlow()))) is OfTensorFlow
    assert _keras.tf_dataset(Other()) is None
