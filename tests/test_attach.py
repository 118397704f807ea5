"""Putting rules on built models, resolving them, and taking them off again."""

import json
import warnings

import h5py
import keras
import numpy as np
import pytest
from autodiff import numpy
from keras import layers
from models import compiled, data, hidden, linear, losses, run_python
from reference import count, penalty

from keras_scaled_l2 import (
    HalfLifeL2,
    PriorL2,
    SampleL2,
    ScaledL2,
    attach,
    bind,
    detach,
    penalized,
)

PENALIZED_LAYERS = {
    "dense": ((6,), lambda: layers.Dense(3)),
    "einsum": ((5, 6), lambda: layers.EinsumDense("abc,cd->abd", (None, 3))),
    "conv": ((8, 8, 2), lambda: layers.Conv2D(3, 3)),
    "depthwise": ((8, 8, 2), lambda: layers.DepthwiseConv2D(3)),
    "separable": ((8, 8, 2), lambda: layers.SeparableConv2D(3, 3)),
    "transposed": ((8, 8, 2), lambda: layers.Conv2DTranspose(3, 3)),
    "embedding": ((5,), lambda: layers.Embedding(7, 3)),
    "lstm": ((5, 4), lambda: layers.LSTM(3)),
    "gru": ((5, 4), lambda: layers.GRU(3)),
    "bidirectional": ((5, 4), lambda: layers.Bidirectional(layers.SimpleRNN(3))),
    "attention": ((5, 4), lambda: SelfAttention(2, 3)),
}


@keras.saving.register_keras_serializable("keras_scaled_l2_tests")
class SelfAttention(layers.MultiHeadAttention):
    """Attention of a sequence to itself, so that it fits into a Sequential."""

    def build(self, shape):
        super().build(shape, shape)

    def call(self, x):
        return super().call(x, x)

    def compute_output_spec(self, x):
        return super().compute_output_spec(x, x)


def of_layer(name):
    shape, make = PENALIZED_LAYERS[name]
    return keras.Sequential([keras.Input(shape), make()])


def kernels(model):
    """The weights that have a penalty by default, found by what they are not."""
    norms = ("gamma", "beta", "bias")
    return [v for v in model.trainable_weights if v.name not in norms]


def expected_losses(model, coefficient):
    """Penalties by the reference; ``coefficient`` is a function of the shape."""
    return [penalty(coefficient(v.shape), numpy(v)) for v in kernels(model)]


def snapshot(model):
    """All that attach may touch: regularizers, configs, values, attributes."""
    return (
        [v.regularizer for v in model.weights],
        json.dumps(model.get_config(), sort_keys=True, default=str),
        sorted(vars(model)),
        [sorted(vars(layer)) for layer in model._flatten_layers()],
    )


def saved_keys(path):
    """Every group and data set of the weights in a .keras file."""
    import zipfile

    found = []
    with zipfile.ZipFile(path) as archive, archive.open("model.weights.h5") as file:
        h5py.File(file).visit(found.append)
    return sorted(found)


# ------------------------------------------------------------------- what it does


def test_attach_penalizes_kernels_and_tells_their_paths():
    model = hidden()
    found = attach(model, ScaledL2(2.0))
    assert found == [model.layers[0].kernel.path, model.layers[2].kernel.path]
    expected = expected_losses(model, lambda shape: 2.0 / count(shape))
    assert len(expected) == 2
    assert losses(model) == pytest.approx(expected, rel=1e-6)


def test_attach_leaves_the_values_alone():
    model = hidden()
    before = [numpy(v) for v in model.weights]
    attach(model, ScaledL2(2.0))
    for was, variable in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(numpy(variable), was)


def test_attach_never_chooses_biases_or_normalizations():
    model = keras.Sequential(
        [
            keras.Input((4, 6)),
            layers.GRU(3, return_sequences=True, reset_after=True),
            SelfAttention(2, 3),
            layers.LayerNormalization(axis=[1, 2]),
            layers.GroupNormalization(3),
            layers.PReLU(),
            layers.Dense(1),
        ]
    )
    attach(model, ScaledL2(1.0))
    names = [v.name for _, v, _ in penalized(model)]
    assert names == ["kernel", "recurrent_kernel", *["kernel"] * 5]


@pytest.mark.parametrize("name", PENALIZED_LAYERS)
def test_attach_to_a_layer_is_kept_by_a_clone(name):
    model = of_layer(name)
    attach(model, ScaledL2(2.0))
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    expected = expected_losses(model, lambda shape: 2.0 / count(shape))
    assert len(expected) > 0
    assert sorted(losses(model)) == pytest.approx(sorted(expected), rel=1e-6)
    assert sorted(losses(clone)) == pytest.approx(sorted(expected), rel=1e-6)


@pytest.mark.parametrize("name", PENALIZED_LAYERS)
@pytest.mark.parametrize("per", ["layer", "model"])
def test_attach_to_a_layer_is_kept_by_a_saved_file(name, per, tmp_path):
    model = of_layer(name)
    attach(model, ScaledL2(2.0, per))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert len(losses(loaded)) == len(kernels(model)) > 0
    assert sorted(losses(loaded)) == pytest.approx(sorted(losses(model)), rel=1e-6)


def test_attach_of_what_a_weight_has_already_is_in_the_config_too():
    model = hidden()
    for layer in (model.layers[0], model.layers[-1]):
        layer.kernel.regularizer = SampleL2(1.0, samples=60)
    attach(model, SampleL2(1.0, samples=60))
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    assert len(losses(model)) == 2
    assert losses(clone) == losses(model)


class Tied(keras.layers.Layer):
    """Embeds, and holds the table for its output as well."""

    def __init__(self, **options):
        super().__init__(**options)
        self.embed = layers.Embedding(1000, 4, name="embed")

    def build(self, shape):
        self.embed.build(shape)
        self.table = self.embed.embeddings

    def call(self, x):
        return keras.ops.matmul(self.embed(x), keras.ops.transpose(self.table))


@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.SpectralNormalization(layers.Embedding(1000, 4)),
        Tied,
    ],
    ids=["SpectralNormalization", "tied within a layer"],
)
def test_weight_that_a_layer_around_its_owner_holds_is_the_owners(make):
    model = keras.Sequential([keras.Input((5,), dtype="int32"), make()])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the config of Tied does not hold the table's
        attach(model, PriorL2(1.0, samples=40))
    [(_, table, rule)] = penalized(model)
    # An embedding takes one row: fan-in 1, not 1000.
    assert rule.coefficient(table.shape) == pytest.approx(1 / (2 * 40))


def test_normalized_layer_keeps_what_was_bound(tmp_path):
    dense = layers.Dense(3, kernel_regularizer=SampleL2(1.0))
    model = keras.Sequential(
        [keras.Input((4,)), layers.SpectralNormalization(dense), layers.Dense(1)]
    )
    bind(compiled(model), samples=60)
    attach(model, ScaledL2(1.0), where=[model.layers[-1]])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert losses(loaded) == pytest.approx(losses(model))
    assert len(losses(model)) == 2


def test_attach_replaces_the_regularizer_that_was_there():
    model = hidden(keras.regularizers.L2(5.0))
    attach(model, ScaledL2(2.0))
    expected = expected_losses(model, lambda shape: 2.0 / count(shape))
    assert losses(model) == pytest.approx(expected, rel=1e-6)


def test_attach_takes_keras_regularizers_too():
    model = hidden()
    attach(model, keras.regularizers.L2(0.25))
    assert losses(model) == pytest.approx(
        expected_losses(model, lambda shape: 0.25), rel=1e-6
    )
    detach(model)
    assert losses(model) == []


def test_attach_reaches_shared_and_nested_layers_once():
    shared, last = layers.Dense(4), layers.Dense(1)
    inner = keras.Sequential([keras.Input((4,)), shared])
    inputs = keras.Input((4,))
    model = keras.Model(inputs, last(inner(shared(inputs))))
    found = attach(model, ScaledL2(1.0, "model"))
    assert found == [shared.kernel.path, last.kernel.path]
    assert losses(model) == pytest.approx(
        expected_losses(model, lambda shape: 1.0 / 20), rel=1e-6
    )


def test_attach_reaches_a_subclassed_model():
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.blocks = [layers.Dense(3), layers.Dense(1)]

        def call(self, x):
            for block in self.blocks:
                x = block(x)
            return x

    model = Subclassed()
    model(np.zeros((2, 4), "float32"))
    # Its config does not hold its layers.
    with pytest.warns(UserWarning, match="saved file or a clone"):
        assert len(attach(model, ScaledL2(2.0))) == 2
    assert losses(model) == pytest.approx(
        expected_losses(model, lambda shape: 2.0 / count(shape)), rel=1e-6
    )


@pytest.mark.parametrize(
    "before", [None, keras.regularizers.L2(5.0)], ids=["bare", "with L2"]
)
def test_attach_after_a_fit_acts_in_the_next_fit(before):
    x, y = data()
    model = linear(before, learning_rate=0.0)
    arguments = {"batch_size": 10, "verbose": 0, "validation_data": (x, y)}
    first = model.fit(x, y, **arguments).history
    plain = first["loss"][0] - sum(losses(model))

    attach(model, ScaledL2(2.0))
    second = model.fit(x, y, **arguments).history
    [expected] = expected_losses(model, lambda shape: 2.0 / count(shape))
    assert expected > 0.1
    assert second["loss"][0] == pytest.approx(plain + expected, rel=1e-5)
    assert second["val_loss"][0] == pytest.approx(plain + expected, rel=1e-5)

    detach(model)
    third = model.fit(x, y, **arguments).history
    assert third["loss"] == pytest.approx(first["loss"], rel=1e-5)
    assert third["val_loss"] == pytest.approx(first["val_loss"], rel=1e-5)


def test_attach_changes_the_weights_that_training_gives():
    x, y = data()
    model = linear(None, learning_rate=0.1)
    model.fit(x, y, batch_size=10, verbose=0)
    w, b = (numpy(v).astype("float64") for v in model.layers[0].weights)
    attach(model, ScaledL2(4.0, per=1))
    model.fit(x, y, batch_size=10, verbose=0)
    by_w = 2 * x.T @ (x @ w + b - y) / 10
    np.testing.assert_allclose(
        numpy(model.layers[0].kernel), w * (1 - 0.8) - 0.1 * by_w, rtol=1e-4, atol=1e-6
    )


def test_attach_resolves_what_the_model_tells():
    model = hidden()
    attach(model, ScaledL2(6.0, "model"))
    assert [rule.inferred_per for _, _, rule in penalized(model)] == [15, 15]
    attach(model, ScaledL2(6.0, "layer"))
    assert [rule.inferred_per for _, _, rule in penalized(model)] == [12, 3]
    assert losses(model) == pytest.approx(
        expected_losses(model, lambda shape: 6.0 / count(shape)), rel=1e-6
    )


def test_attach_of_the_same_rule_again_changes_nothing():
    model = hidden()
    attach(model, ScaledL2(6.0, "model"))
    before = snapshot(model), losses(model)
    assert len(attach(model, ScaledL2(6.0, "model"))) == 2
    assert (snapshot(model), losses(model)) == before


def test_attach_of_a_second_rule_recounts_the_first():
    model = hidden()
    attach(model, ScaledL2(6.0, "model"), where=[model.layers[0]])
    assert [rule.inferred_per for _, _, rule in penalized(model)] == [12]
    attach(model, keras.regularizers.L2(1.0), where=[model.layers[2]])
    assert penalized(model)[0][2].inferred_per == 15


# ---------------------------------------------------------------------------- where


def test_where_as_a_predicate_sees_layer_and_variable():
    model = hidden()
    found = attach(
        model,
        ScaledL2(1.0),
        where=lambda layer, v: layer.name == "second" and v.name == "bias",
    )
    assert found == [model.layers[2].bias.path]
    assert [v.path for _, v, _ in penalized(model)] == found


def test_where_as_layers_means_their_kernels():
    model = hidden()
    found = attach(model, ScaledL2(1.0), where=[model.layers[2]])
    assert found == [model.layers[2].kernel.path]
    assert attach(model, ScaledL2(1.0), where=model.layers[0]) == [
        model.layers[0].kernel.path
    ]


def test_where_as_a_nested_model_means_all_its_kernels():
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.Dense(2)])
    model = keras.Sequential([keras.Input((4,)), inner, layers.Dense(1)])
    assert len(attach(model, ScaledL2(1.0), where=[inner])) == 2
    assert len(penalized(model)) == 2


def test_where_as_variables_means_just_these():
    model = hidden()
    chosen = [model.layers[0].bias, model.layers[1].gamma]
    found = attach(model, ScaledL2(1.0), where=chosen)
    assert sorted(found) == sorted(v.path for v in chosen)
    assert losses(model) == pytest.approx([0.0, 1.0])


@pytest.mark.parametrize(
    "where",
    [lambda layer, variable: False, [], [layers.Dense(3)], [keras.Variable([1.0])]],
    ids=["predicate", "empty", "foreign layer", "foreign variable"],
)
def test_where_that_matches_nothing_is_an_error_and_changes_nothing(where):
    model = hidden(keras.regularizers.L2(0.5))
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"(?s)where.*matches none.*where="):
        attach(model, ScaledL2(1.0), where=where)
    assert snapshot(model) == before


@pytest.mark.parametrize(
    ("where", "named"),
    [(3, "int"), ("kernel", "str"), (["first"], "str"), ([None], "NoneType")],
    ids=repr,
)
def test_where_of_a_wrong_type_is_an_error_that_names_it(where, named):
    with pytest.raises(TypeError, match=rf"where.*{named}.*expected"):
        attach(hidden(), ScaledL2(1.0), where=where)


# --------------------------------------------------------------------------- errors


def test_attach_without_any_kernel_is_an_error_that_tells_the_choice():
    model = keras.Sequential([keras.Input((4,)), layers.BatchNormalization()])
    with pytest.raises(ValueError, match=r"Nothing to penalize.*where="):
        attach(model, ScaledL2(1.0))


def test_attach_to_a_frozen_model_is_an_error_with_the_remedy():
    model = hidden()
    model.trainable = False
    with pytest.raises(ValueError, match=r"trainable = True"):
        attach(model, ScaledL2(1.0))


@pytest.mark.parametrize(
    "function",
    [lambda model: attach(model, ScaledL2(1.0)), bind, penalized],
    ids=["attach", "bind", "penalized"],
)
def test_unbuilt_model_is_an_error_with_the_remedy(function):
    with pytest.raises(ValueError, match=r"not built.*build\(input_shape\)"):
        function(hidden(build=False))


@pytest.mark.parametrize("model", [None, "model", 3, keras.Model], ids=str)
def test_what_is_no_model_is_an_error(model):
    with pytest.raises(TypeError, match=r"model=.*expected a Keras model"):
        attach(model, ScaledL2(1.0))


@pytest.mark.parametrize("rule", [None, 0.01, "l2", ScaledL2], ids=str)
def test_what_is_no_rule_is_an_error(rule):
    with pytest.raises(TypeError, match=r"rule=.*expected a regularizer"):
        attach(hidden(), rule)


def test_attach_where_a_file_cannot_hold_it_warns():
    class Bare(keras.Layer):
        def build(self, shape):
            self.kernel = self.add_weight(shape=(shape[-1], 2), name="kernel")

        def call(self, x):
            return x @ self.kernel

    model = keras.Sequential([keras.Input((4,)), Bare()])
    with pytest.warns(UserWarning, match="saved file or a clone"):
        attach(model, ScaledL2(1.0))
    assert len(losses(model)) == 1


def test_attach_beside_weight_decay_warns_of_double_decay():
    model = hidden()
    model.compile(optimizer=keras.optimizers.AdamW(weight_decay=0.004), loss="mse")
    with pytest.warns(UserWarning, match=r"twice.*weight_decay=0.004"):
        attach(model, ScaledL2(1.0))


# ----------------------------------------------------------------------------- bind


def test_bind_fills_in_the_number_of_samples():
    model = hidden(SampleL2(1.0), SampleL2(3.0, samples=7))
    assert len(bind(model, samples=50)) == 2
    first, second = (rule for _, _, rule in penalized(model))
    assert (first.inferred_samples, first.samples) == (50, None)
    assert second == SampleL2(3.0, samples=7)
    coefficients = iter([1 / 100, 3 / 14])
    assert losses(model) == pytest.approx(
        expected_losses(model, lambda shape: next(coefficients)), rel=1e-6
    )


def test_bind_infers_anew_for_another_data_set():
    model = hidden(SampleL2(1.0), SampleL2(1.0))
    bind(model, samples=50)
    bind(model, samples=80)
    assert {rule.inferred_samples for _, _, rule in penalized(model)} == {80}
    bind(model)
    assert {rule.inferred_samples for _, _, rule in penalized(model)} == {80}


def test_bind_without_the_count_is_an_error_that_names_it():
    with pytest.raises(ValueError, match=r"number of training examples.*samples="):
        bind(hidden(SampleL2(1.0)))


def test_bind_of_a_model_without_rules_does_nothing():
    model = hidden(keras.regularizers.L2(0.5))
    before = snapshot(model)
    assert bind(model, samples=50) == []
    assert snapshot(model) == before


@pytest.mark.parametrize("name", ["samples", "batch_size"])
@pytest.mark.parametrize("value", [0, -1, 2.5, "many", True], ids=repr)
def test_bind_refuses_a_bad_count_by_name(name, value):
    with pytest.raises(ValueError, match=rf"^{name}=.*expected"):
        bind(hidden(SampleL2(1.0)), **{name: value})


def test_bind_after_freezing_and_thawing_recounts():
    model = hidden(ScaledL2(1.0, "model"), ScaledL2(1.0, "model"))
    bind(model)
    assert [rule.inferred_per for _, _, rule in penalized(model)] == [15, 15]
    model.layers[0].trainable = False
    bind(model)
    assert [rule.inferred_per for _, _, rule in penalized(model)] == [3]
    model.layers[0].trainable = True
    bind(model)
    assert [rule.inferred_per for _, _, rule in penalized(model)] == [15, 15]


def test_bind_after_a_fit_acts_in_the_next_fit():
    x, y = data()
    model = linear(SampleL2(4.0), learning_rate=0.0)
    bind(model, samples=10)
    first = model.fit(x, y, batch_size=10, verbose=0).history["loss"][0]
    c_to_one = penalty(1.0, numpy(model.layers[0].kernel))
    bind(model, samples=1000)
    second = model.fit(x, y, batch_size=10, verbose=0).history["loss"][0]
    assert first - second == pytest.approx((0.2 - 0.002) * c_to_one, rel=1e-4)


def test_frozen_weights_carry_no_penalty_and_are_not_attached_to():
    model = hidden()
    model.layers[0].trainable = False
    assert attach(model, ScaledL2(6.0, "model")) == [model.layers[2].kernel.path]
    assert [rule.inferred_per for _, _, rule in penalized(model)] == [3]


def test_penalized_lists_rules_and_others_in_the_models_order():
    stock = keras.regularizers.L2(0.5)
    model = hidden(ScaledL2(1.0), stock)
    first, second = penalized(model)
    assert first == (model.layers[0].kernel.path, model.layers[0].kernel, ScaledL2(1.0))
    assert second[2] is stock


# --------------------------------------------------------------------------- detach


@pytest.mark.parametrize("name", PENALIZED_LAYERS)
def test_detach_leaves_every_layer_as_it_was(name):
    model = of_layer(name)
    before = snapshot(model)
    put_on = attach(model, ScaledL2(2.0, "layer"))
    assert snapshot(model) != before
    assert detach(model) == put_on
    assert snapshot(model) == before
    assert model.losses == []


def test_detach_restores_what_was_there_before_the_first_attach():
    stock = keras.regularizers.L2(0.5)
    model = hidden(stock, ScaledL2(3.0))
    before = snapshot(model)
    attach(model, ScaledL2(1.0, "model"))
    attach(model, SampleL2(1.0, samples=4), where=[model.layers[0]])
    assert len(detach(model)) == 2
    assert snapshot(model) == before
    assert model.layers[0].kernel.regularizer is stock
    assert model.layers[0].kernel_regularizer is stock


def weights_under_one_entry(name):
    """A model and two of its weights that one entry of a layer's config stands for."""
    if name == "attention":
        model = of_layer("attention")
        attention = model.layers[0]
        return model, attention._query_dense._kernel, attention._key_dense._kernel
    model = of_layer("dense")
    model.layers[0].enable_lora(2)
    return model, model.layers[0].lora_kernel_a, model.layers[0].lora_kernel_b


@pytest.mark.filterwarnings("ignore:The penalty of")
@pytest.mark.parametrize("name", ["attention", "lora"])
def test_detach_restores_an_entry_that_stands_for_several_weights(name):
    model, first, second = weights_under_one_entry(name)
    before = snapshot(model)
    attach(model, ScaledL2(1.0), where=[first])
    attach(model, ScaledL2(2.0), where=[second])
    assert detach(model) == [first.path, second.path]
    assert snapshot(model) == before
    assert model.losses == []


@pytest.mark.parametrize("again", [False, True], ids=["once", "again"])
@pytest.mark.parametrize(
    "before", [None, keras.regularizers.L2(0.5)], ids=["bare", "with L2"]
)
def test_detach_reaches_weights_that_were_made_since(before, again):
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(3, kernel_regularizer=before)]
    )
    layer = model.layers[0]
    attach(model, ScaledL2(1.0))
    layer.enable_lora(2)
    factors = [layer.lora_kernel_a, layer.lora_kernel_b]
    if again:
        attach(model, ScaledL2(5.0))
    assert [v for _, v, _ in penalized(model)] == factors
    assert {v.path for v in factors} <= set(detach(model))
    assert [v.regularizer for v in factors] == [before, before]
    assert layer.kernel_regularizer is before
    assert len(model.losses) == (0 if before is None else 2)


@pytest.mark.filterwarnings("ignore:The penalty of")
def test_detach_leaves_weights_that_were_there_and_not_attached_to():
    model, first, second = weights_under_one_entry("attention")
    stock = keras.regularizers.L2(0.5)
    second.regularizer = stock
    attach(model, ScaledL2(1.0), where=[first])
    detach(model)
    assert [(v.path, r) for _, v, r in penalized(model)] == [(second.path, stock)]


def test_detach_recounts_the_rules_that_stay():
    model = hidden(ScaledL2(6.0, "model"))
    bind(model)
    attach(model, keras.regularizers.L2(1.0), where=[model.layers[2]])
    assert penalized(model)[0][2].inferred_per == 15
    detach(model)
    assert [rule.inferred_per for _, _, rule in penalized(model)] == [12]


def test_detach_without_attach_does_nothing():
    model = hidden(ScaledL2(1.0))
    before = snapshot(model)
    assert detach(model) == []
    assert snapshot(model) == before


def test_attached_model_saves_the_same_keys(tmp_path):
    model = hidden()
    model.save(tmp_path / "before.keras")
    attach(model, ScaledL2(1.0, "model"))
    model.save(tmp_path / "after.keras")
    keys = saved_keys(tmp_path / "before.keras")
    assert len(keys) > 8
    assert saved_keys(tmp_path / "after.keras") == keys


LOAD = """
import json, sys
import keras, numpy as np
import keras_scaled_l2
x = np.linspace(-1, 1, 40, dtype="float32").reshape(10, 4)
for path in sys.argv[1:]:
    model = keras.models.load_model(path)
    lost = [float(keras.ops.convert_to_numpy(loss)) for loss in model.losses]
    rules = [repr(rule) for _, _, rule in keras_scaled_l2.penalized(model)]
    print(json.dumps([lost, rules]))
# The last one goes on without a callback.
history = model.fit(x, x[:, :1], batch_size=10, verbose=0).history
print(json.dumps(history["loss"]))
"""


def test_saved_model_goes_on_in_a_new_process_with_the_same_penalty(tmp_path):
    rules = [
        ScaledL2(2.0, "layer"),
        ScaledL2(2.0, "model", 0.5),
        PriorL2(0.5),
        HalfLifeL2(3.0),
        SampleL2(2.0),
    ]
    paths, expected = [], []
    for i, rule in enumerate(rules):
        model = compiled(hidden(rule, rule))
        bind(model, samples=10, batch_size=10)
        paths.append(tmp_path / f"{i}.keras")
        model.save(paths[-1])
        bound = [repr(rule) for _, _, rule in penalized(model)]
        expected.append((losses(model), bound))
        assert len(expected[-1][0]) == 2

    printed = run_python(LOAD, *paths).strip().splitlines()

    *printed, trained = map(json.loads, printed)
    assert len(printed) == len(rules)
    for (lost, bound), (loaded_lost, loaded_bound) in zip(
        expected, printed, strict=True
    ):
        assert loaded_lost == pytest.approx(lost, rel=1e-6)
        assert loaded_bound == bound
    assert len(trained) == 1
    assert trained[0] > sum(expected[-1][0])
