"""Arms: what a name stands for, and the variant of a network with dropout."""

import keras
import numpy as np
import pytest

from keras_scaled_l2 import EvidenceL2, SampleL2, ScaledL2
from keras_scaled_l2.experiments.arms import (
    DEFAULT_ARMS,
    DEFAULT_L2,
    PARTS,
    Arm,
    named_arms,
)
from keras_scaled_l2.experiments.coefficients import coefficients
from keras_scaled_l2.experiments.dropout_variant import (
    VariableDropout,
    derive,
    matching_weights,
    with_dropout,
)
from keras_scaled_l2.experiments.errors import InputError

L = keras.layers


def rule_of(arm):
    return keras.saving.deserialize_keras_object(arm.config)


def named(*names, **options):
    return {arm.name: arm for arm in named_arms(names, **options)}


def test_names_stand_for_these_rules():
    arms = named(*DEFAULT_ARMS)
    assert list(arms) == list(DEFAULT_ARMS)
    assert arms["none"].rule is None
    assert rule_of(arms["l2"]) == ScaledL2(2.5e-4, per=1)
    assert rule_of(arms["scaled"]) == ScaledL2(2.5e-4 * 512 * 512)
    assert rule_of(arms["sample"]) == rule_of(arms["sample+dropout"]) == SampleL2(6.0)
    assert arms["dropout"].rule is None
    assert [arms[n].dropout for n in DEFAULT_ARMS] == [0, 0, 0, 0, 0.5, 0.5]


def test_named_rule_is_the_config_that_keras_writes():
    rules = [part for part in PARTS if part not in ("none", "decay", "dropout")]
    for arm in named_arms(rules):
        written = keras.saving.serialize_keras_object(rule_of(arm))
        assert arm.config == written


def test_dropout_joins_with_any_penalty_in_any_order():
    arms = named("dropout+l2", "scaled+dropout", dropout=0.2)
    assert rule_of(arms["dropout+l2"]) == ScaledL2(DEFAULT_L2, per=1)
    assert arms["scaled+dropout"].dropout == 0.2


def test_scaled_penalizes_the_largest_kernel_as_l2_does():
    model = keras.Sequential([keras.Input((8,)), L.Dense(16), L.Dense(2)])
    (arm,) = named_arms(["scaled"], largest=128)
    found = list(coefficients(model, arm, samples=10, batch_size=2).values())
    assert found == [pytest.approx(DEFAULT_L2), pytest.approx(DEFAULT_L2 * 128 / 32)]


def test_strength_of_a_whole_name_goes_before_that_of_its_penalty():
    arms = named(
        "sample", "sample+dropout", "l2", strengths={"sample": 2, "sample+dropout": 3}
    )
    assert rule_of(arms["sample"]) == SampleL2(2.0)
    assert rule_of(arms["sample+dropout"]) == SampleL2(3.0)
    assert rule_of(arms["l2"]) == ScaledL2(DEFAULT_L2, per=1)
    both = named("sample", "sample+dropout", strengths={"sample": 2})
    assert rule_of(both["sample+dropout"]) == SampleL2(2.0)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], "no arms"),
        (["none", "l3"], "unknown arm 'l3': did you mean 'l2'"),
        (["l2+dropuot"], "did you mean 'l2\\+dropout'"),
        (["l2+sample"], "at most one penalty"),
        (["l2+l2"], "no part twice"),
        (["none+dropout"], "cannot be joined"),
        ([""], "unknown arm ''"),
    ],
)
def test_names_without_meaning_are_refused(names, expected):
    with pytest.raises(InputError, match=expected):
        named_arms(names)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), True, "1"])
def test_strength_out_of_range_is_refused(value):
    with pytest.raises(InputError, match="expected a finite number, 0 or more"):
        named_arms(["l2"], {"l2": value})


@pytest.mark.parametrize(
    ("strengths", "expected"),
    [
        ({"sample": 1.0}, "unknown arm in a strength 'sample'"),
        ({"dropout": 0.5}, "no penalty. Give the rate with --dropout"),
        ({"none": 1.0}, "no penalty"),
        ({"l3": 1.0}, "did you mean 'l2'"),
    ],
)
def test_strength_for_no_arm_is_refused(strengths, expected):
    with pytest.raises(InputError, match=expected):
        named_arms(["none", "l2", "dropout"], strengths)


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan"), "half", True])
def test_dropout_rate_out_of_range_is_refused(rate):
    with pytest.raises(InputError, match="dropout rate"):
        named_arms(["dropout"], dropout=rate)


def test_arm_keeps_a_rule_as_its_config():
    arm = Arm("mine", ScaledL2(3.0, per="model"), dropout=0.1)
    assert arm == Arm(
        "mine", keras.saving.serialize_keras_object(ScaledL2(3.0, "model")), 0.1
    )
    assert rule_of(arm) == ScaledL2(3.0, per="model")


@pytest.mark.parametrize(
    "rule",
    [ScaledL2(2.0, per="model"), SampleL2(3.0, samples=50), keras.regularizers.L2(0.1)],
)
def test_config_is_that_of_keras_without_loading_tensorflow(rule, monkeypatch):
    expected = keras.saving.serialize_keras_object(rule)
    monkeypatch.delattr(keras.saving, "serialize_keras_object")
    assert Arm("a", rule).config == expected


@pytest.mark.parametrize(
    "name", ["", "a/b", "../up", ".hidden", "two words", 3, "x" * 201]
)
def test_arm_name_that_is_no_file_name_is_refused(name):
    with pytest.raises(InputError, match="arm name"):
        Arm(name)


def test_arm_with_something_else_for_a_rule_is_refused():
    with pytest.raises(InputError, match="expected a regularizer"):
        Arm("mine", rule="l2")


def test_coefficient_beyond_single_precision_is_refused():
    model = keras.Sequential([keras.Input((3,)), L.Dense(4)])
    # c = strength / (2 m): the strength alone says nothing.
    arm = Arm("x", SampleL2(1e40))
    found = coefficients(model, arm, samples=1000, batch_size=5)
    assert list(found.values()) == [pytest.approx(5e36)]
    with pytest.raises(InputError, match=r"arm 'x': a coefficient or decay of 5e\+38"):
        coefficients(model, arm, samples=10, batch_size=5)


def test_coefficients_leave_the_model_as_it_was():
    model = keras.Sequential([keras.Input((3,)), L.Dense(4), L.Dense(2)])
    found = coefficients(model, Arm("x", SampleL2(6.0)), samples=30, batch_size=5)
    assert list(found.values()) == [0.1, 0.1]
    assert [v.regularizer for v in model.weights] == [None] * 4
    assert model.layers[0].kernel_regularizer is None
    assert coefficients(model, Arm("none"), samples=30, batch_size=5) == {}


def test_rule_that_is_no_multiple_of_the_sum_of_squares_is_refused():
    model = keras.Sequential([keras.Input((3,)), L.Dense(4)])
    with pytest.raises(InputError, match="not of the form"):
        coefficients(
            model, Arm("x", keras.regularizers.L1(0.1)), samples=3, batch_size=1
        )
    # It would be trained with the strength that it only starts from.
    with pytest.raises(InputError, match=r"EvidenceL2 finds its strength while it"):
        coefficients(model, Arm("x", EvidenceL2()), samples=3, batch_size=1)


def sequential():
    return keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            L.Conv2D(4, 3, activation="relu", name="conv"),
            L.BatchNormalization(name="norm"),
            L.Activation("tanh", name="tanh"),
            L.Flatten(name="flatten"),
            L.Dense(5, name="linear"),
            L.Dense(5, activation="gelu", name="gelu"),
            L.Dense(3, activation="softmax", name="output"),
        ]
    )


def residual():
    """Branches, a shared layer, a residual sum with its own activation."""
    x = keras.Input((4,), name="x")
    shared = L.Dense(4, activation="relu", name="shared")
    first = shared(x)
    second = shared(first)
    total = L.Add(name="sum")([first, second])
    joined = L.ReLU(name="joined")(total)
    return keras.Model(x, L.Dense(2, name="output")(joined))


def values(model):
    return [np.array(keras.ops.convert_to_numpy(v.value)) for v in model.weights]


def dropouts(model):
    """Name of each Dropout -> name of the layer before it."""
    found = {}
    for layer in all_layers(model):
        if isinstance(layer, L.Dropout):
            found[layer.name] = layer.input._keras_history.operation.name
    return found


def all_layers(model):
    for layer in model.layers:
        yield layer
        if isinstance(layer, keras.Model):
            yield from all_layers(layer)


def backbone(name="backbone"):
    """A functional model whose output is a non-linearity."""
    x = keras.Input((4,), name=f"{name}_in")
    inside = L.Dense(3, activation="relu", name="inside")(x)
    return keras.Model(x, L.Dense(4, activation="relu", name="last")(inside), name=name)


def nested():
    """A functional model that calls a functional and a Sequential one, one twice."""
    x = keras.Input((4,), name="x")
    inner = backbone()
    chain = keras.Sequential(
        [keras.Input((4,)), L.Dense(5, name="linear"), L.Activation("tanh", name="a")],
        name="chain",
    )
    total = L.Add(name="sum")([inner(x), inner(L.ReLU(name="first")(x))])
    return keras.Model(x, L.Dense(2, name="output")(chain(total)))


def nested_at_the_end():
    """The inner model ends in the output layer, which has a non-linearity."""
    return keras.Sequential([keras.Input((4,)), L.Dense(4, name="linear"), backbone()])


def outputs_of_many_kinds():
    """An inner model's output is an output of the outer one as well, in a dict."""
    x = keras.Input((4,), name="x")
    features = backbone()(x)
    head = L.Dense(2, name="head")(features)
    return keras.Model(x, {"features": features, "head": head})


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (sequential, {"conv", "tanh", "gelu"}),
        (residual, {"shared", "joined"}),
        (nested, {"first", "inside", "last", "a"}),
        (nested_at_the_end, {"inside"}),
        (outputs_of_many_kinds, {"inside", "last"}),
    ],
)
def test_variant_has_dropout_after_hidden_non_linearities_only(make, expected):
    variant = with_dropout(make(), 0.3)
    assert set(dropouts(variant).values()) == expected
    for layer in all_layers(variant):
        assert not isinstance(layer, L.Dropout) or layer.rate == 0.3


def binary():
    return keras.Sequential(
        [
            keras.Input((4,)),
            L.Dense(3, activation="relu", name="hidden"),
            L.Dense(1, activation="sigmoid", name="output"),
        ]
    )


def scaled_output():
    """The last weights are followed by a non-linearity and a layer without weights."""
    x = keras.Input((4,))
    hidden = L.Dense(3, activation="relu", name="hidden")(x)
    output = L.Dense(2, activation="relu", name="output")(hidden)
    return keras.Model(x, L.Rescaling(2.0, name="scale")(output))


@pytest.mark.parametrize("make", [binary, scaled_output])
def test_output_layer_with_a_non_linearity_gets_no_dropout(make):
    assert set(dropouts(with_dropout(make(), 0.5)).values()) == {"hidden"}


def test_each_call_of_a_shared_layer_gets_dropout_of_its_own():
    found = dropouts(with_dropout(residual(), 0.3))
    assert list(found.values()).count("shared") == 2


def test_layer_that_is_hidden_and_output_keeps_its_output_whole():
    x = keras.Input((3,))
    shared = L.Dense(3, activation="relu", name="shared")
    variant = with_dropout(keras.Model(x, shared(shared(x))), 0.5)
    assert len(dropouts(variant)) == 1
    assert variant.output._keras_history.operation.name == "shared"


ALL = [sequential, residual, nested, nested_at_the_end, outputs_of_many_kinds]


@pytest.mark.parametrize("make", ALL)
def test_variant_has_the_same_weights_and_leaves_the_model_alone(make):
    model = make()
    rng = np.random.default_rng(0)
    model.set_weights([rng.random(w.shape).astype("float32") for w in values(model)])
    before = values(model)
    config, names = model.get_config(), [layer.name for layer in model.layers]
    variant = with_dropout(model, 0.5)
    pairs = list(matching_weights(model, variant))
    assert len(pairs) == len(model.weights) == len(variant.weights)
    for source, target in pairs:
        assert source is not target
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(source.value),
            keras.ops.convert_to_numpy(target.value),
        )
    x = rng.random((8, *model.input_shape[1:])).astype("float32")
    for plain, same in zip(outputs(model, x), outputs(variant, x), strict=True):
        np.testing.assert_array_equal(plain, same)
    variant.set_weights([w + 1 for w in values(variant)])
    for old, new in zip(before, values(model), strict=True):
        np.testing.assert_array_equal(old, new)
    assert model.get_config() == config
    assert type(variant) is type(model)
    assert [layer.name for layer in model.layers] == names


def outputs(model, x, training=False):
    found = keras.tree.flatten(model(x, training=training))
    return [keras.ops.convert_to_numpy(y) for y in found]


@pytest.mark.parametrize("make", ALL[1:])
def test_variant_drops_in_training(make):
    variant = with_dropout(make(), 0.5)
    for found in outputs(variant, np.ones((64, 4), "float32"), training=True):
        assert len(np.unique(found.round(5), axis=0)) > 1


def test_output_of_a_nested_model_is_taken_after_its_dropout():
    model = keras.Sequential([keras.Input((4,)), backbone(), L.Dense(50, name="out")])
    inner = with_dropout(model, 0.5).get_layer("backbone")
    found = outputs(inner, np.ones((64, 4), "float32"), training=True)[0]
    plain = outputs(inner, np.ones((64, 4), "float32"))[0]
    alive = plain[0] != 0
    assert alive.any()
    # What is dropped is dropped at the very end, where the outer model takes it.
    assert np.all((found == 0).any(axis=0) == 1)


def test_variant_can_be_saved_and_loaded(tmp_path):
    variant = with_dropout(nested(), 0.5)
    variant.save(tmp_path / "variant.keras")
    again = keras.saving.load_model(tmp_path / "variant.keras")
    x = np.ones((2, 4), "float32")
    for a, b in zip(outputs(variant, x), outputs(again, x), strict=True):
        np.testing.assert_array_equal(a, b)
    assert dropouts(again) == dropouts(variant)


def test_seed_sets_the_masks_and_gives_each_dropout_its_own():
    seeds = [
        [
            x.seed
            for x in with_dropout(residual(), 0.5, seed=s).layers
            if hasattr(x, "seed")
        ]
        for s in (1, 1, 2)
    ]
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0] + seeds[2])) == 6


def test_where_chooses_the_layers():
    model = sequential()
    by_layer = with_dropout(model, 0.5, where=[model.get_layer("linear")])
    by_predicate = with_dropout(model, 0.5, where=lambda layer: layer.name == "linear")
    for variant in (by_layer, by_predicate):
        assert set(dropouts(variant).values()) == {"linear"}


def test_where_reaches_into_nested_models_and_after_them():
    model = nested()
    variant = with_dropout(model, 0.5, where=[model.get_layer("backbone")])
    assert set(dropouts(variant).values()) == {"backbone"}
    assert len(dropouts(variant)) == 2
    variant = with_dropout(model, 0.5, where=lambda layer: layer.name == "inside")
    assert set(dropouts(variant).values()) == {"inside"}


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = L.Dense(2)

    def call(self, inputs):
        return self.dense(inputs)


def test_models_that_cannot_be_rewritten_are_refused_with_a_remedy():
    subclassed = Subclassed()
    subclassed(np.ones((1, 3), "float32"))
    linear = keras.Sequential([keras.Input((3,)), L.Dense(4), L.Dense(2)])
    for model, expected in (
        (subclassed, "put Dropout in by hand"),
        (linear, "no hidden non-linearity"),
        (keras.Sequential([L.Dense(2)]), "expected a built"),
    ):
        with pytest.raises(InputError, match=expected):
            with_dropout(model, 0.5)


def recurrent(state=False):
    """Tokens, two recurrent layers; the first may hand its state to the second."""
    x = keras.Input((5,))
    embedded = L.Embedding(4, 3, mask_zero=True, name="embedding")(x)
    if state:
        first = L.GRU(2, return_sequences=True, return_state=True, name="first")
        sequence, last = first(embedded)
        second = L.GRU(2, name="second")(sequence, initial_state=last)
    else:
        first = L.LSTM(2, return_sequences=True)
        sequence = L.Bidirectional(first, name="first")(embedded)
        second = L.SimpleRNN(2, name="second")(sequence)
    return keras.Model(x, L.Dense(1, name="output")(second))


def wrapped():
    inner = L.TimeDistributed(L.Dense(3, activation="relu"), name="each")
    linear = L.TimeDistributed(L.Dense(3), name="linear")
    cell = L.RNN(L.LSTMCell(2), name="cell")
    return keras.Sequential([keras.Input((5, 2)), inner, linear, cell, L.Dense(1)])


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (recurrent, {"first", "second"}),
        (lambda: recurrent(state=True), {"first", "second"}),
        (wrapped, {"each", "cell"}),
    ],
)
def test_recurrent_and_wrapped_layers_get_dropout_after_their_output(make, expected):
    model = make()
    variant = with_dropout(model, 0.5)
    assert set(dropouts(variant).values()) == expected
    data = np.array([[[1, 2], [3, 1], [2, 2], [0, 1], [1, 0]]], "float32")
    data = data[..., 0] if len(model.input_shape) == 2 else data
    whole, same = (
        np.array(keras.ops.convert_to_numpy(m(data))) for m in (model, variant)
    )
    np.testing.assert_array_equal(whole, same)
    dropped = keras.ops.convert_to_numpy(variant(data, training=True))
    assert np.any(np.array(dropped) != whole)


def test_state_of_a_recurrent_layer_is_never_dropped():
    variant = with_dropout(recurrent(state=True), 0.5)
    second = variant.get_layer("second")
    histories = [t._keras_history for t in second._inbound_nodes[0].input_tensors]
    sources = [(h.operation.name, h.tensor_index) for h in histories]
    assert sources == [("first_dropout", 0), ("first", 1)]


def relu_twice(x):
    return keras.ops.relu(2 * x)


def class_of(name, sign):
    def call(self, x):
        return keras.ops.relu(sign * (x @ self.kernel))

    return type(name, (L.Dense,), {"call": call})


@pytest.mark.parametrize(
    "layers",
    [
        [class_of("Block", 1)(4, "relu"), class_of("Block", -1)(4, "relu")],
        [class_of("Dense", -1)(4, "relu"), L.Dense(4, "relu")],
        [class_of("Dropout", 1)(4, "relu"), L.Dense(4, "relu")],
        [class_of("Größe", -1)(4, "relu"), class_of("A1_b", 1)(4, "relu")],
        [L.Dense(4, relu_twice), L.Dense(4, "relu")],
        [L.Dense(4, "relu", name="a"), L.Dense(4, "relu", name="a_dropout")],
    ],
)
@pytest.mark.parametrize("kind", [L.Dropout, VariableDropout])
def test_variant_is_made_of_the_same_classes_whatever_they_are_called(layers, kind):

    model = keras.Sequential([keras.Input((6,)), *layers, L.Dense(1)])
    variant = derive(model, 0.5, dropout=kind)
    for layer in model.layers:
        assert type(variant.get_layer(layer.name)) is type(layer)
    assert sum(isinstance(layer, kind) for layer in variant.layers) >= 2
    x = np.random.default_rng(0).normal(size=(3, 6)).astype("float32")
    np.testing.assert_array_equal(
        *(keras.ops.convert_to_numpy(m(x, training=False)) for m in (model, variant))
    )


def test_lambda_is_refused_with_its_remedy_and_without_its_config():
    def build(activation):
        return keras.Sequential([keras.Input((6,)), L.Dense(4, activation), L.Dense(1)])

    with (
        pytest.warns(UserWarning, match="includes a `lambda`"),
        pytest.raises(InputError, match=r"as a function with a name \(def\)") as error,
    ):
        with_dropout(build(lambda x: keras.ops.relu(2 * x)), 0.5)
    assert len(str(error.value)) < 500
    assert len(dropouts(with_dropout(build(relu_twice), 0.5))) == 1
