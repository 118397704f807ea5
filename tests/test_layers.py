"""Every Keras layer that takes regularizers, under every rule, against float64."""

import keras
import numpy as np
import pytest
from discovery import (
    CASES,
    LAYERS,
    RULES,
    SOME_RULES,
    expected_coefficients,
    model_of,
    name_in_case,
    randomize,
    telling_rule,
    values,
)
from keras import ops
from models import losses
from penalty_gradients import penalty_gradients
from reference import penalty, penalty_gradient

from keras_scaled_l2 import attach, bind, detach

every_layer = pytest.mark.parametrize("name", LAYERS)


def everything(layer, variable):
    return True


def assert_penalized(model, rule, chosen):
    """The chosen weights, and no others, have float64's penalty and gradient."""
    expected = expected_coefficients(rule, chosen)
    weights = values(model.trainable_weights)
    gradients = penalty_gradients(model)
    assert len(expected) == len(chosen) > 0
    assert sum(losses(model)) == pytest.approx(
        sum(penalty(c, weights[path]) for path, c in expected.items()), rel=1e-6
    )
    for path, gradient in gradients.items():
        c = expected.get(path, 0.0)
        np.testing.assert_allclose(
            gradient,
            penalty_gradient(c, weights[path]),
            rtol=3e-7,
            err_msg=path,
        )


def test_discovery_finds_layers_and_rules():
    assert {"Dense", "Conv3DTranspose", "GRUCell", "MultiHeadAttention"} <= set(LAYERS)
    assert len(LAYERS) >= 25
    assert {type(rule) for rule in SOME_RULES} == set(RULES)
    assert len(telling_rule.args[1]) == 2


@every_layer
def test_layer_has_a_case_with_a_fan_in_for_each_weight(name):
    model = model_of(name)
    case = CASES[name]
    names = {name_in_case(v)[1] for v in model.trainable_weights}
    assert names == set(case.fan_in)


def test_layer_without_a_case_is_a_failure_that_says_what_to_add(monkeypatch):
    monkeypatch.delitem(CASES, "Dense")
    with pytest.raises(pytest.fail.Exception, match=r"Dense.*kernel_.*no case.*CASES"):
        model_of("Dense")


@every_layer
@telling_rule
def test_layer_made_with_a_rule_has_its_penalty_and_gradient(name, rule):
    model = model_of(name, rule)
    bind(model)
    assert_penalized(model, rule, model.trainable_weights)


@pytest.fixture(scope="module")
def free_models():
    """A model of each layer without penalties, made once."""
    return {name: model_of(name) for name in LAYERS}


@pytest.fixture
def free_model(name, free_models):
    """One of them, freed again after the test."""
    yield free_models[name]
    detach(free_models[name])
    assert free_models[name].losses == []


@every_layer
@telling_rule
def test_layer_given_a_rule_has_its_penalty_and_gradient(name, rule, free_model):
    paths = attach(free_model, rule, where=everything)
    assert paths == [v.path for v in free_model.trainable_weights]
    assert_penalized(free_model, rule, free_model.trainable_weights)


@every_layer
def test_layer_given_a_rule_has_it_on_kernels_and_embeddings_only(name, free_model):
    kernels = [
        v
        for v in free_model.trainable_weights
        if v.name.endswith("kernel") or v.name == "embeddings"
    ]
    rule = SOME_RULES[0]
    if kernels:
        attach(free_model, rule)
        assert_penalized(free_model, rule, kernels)
    else:
        with pytest.raises(ValueError, match="Nothing to penalize"):
            attach(free_model, rule)


@every_layer
@telling_rule
@pytest.mark.parametrize("by", ["constructor", "attach"])
def test_layer_keeps_its_penalty_in_a_file_and_a_clone(name, rule, by, tmp_path):
    model = model_of(name, rule if by == "constructor" else None)
    if by == "attach":
        attach(model, rule, where=everything)
    else:
        bind(model)
    model.save(tmp_path / "it.keras")
    loaded = keras.models.load_model(tmp_path / "it.keras")
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    for again in (loaded, clone):
        assert not {id(v) for v in model.weights} & {id(v) for v in again.weights}
        assert_penalized(again, rule, again.trainable_weights)


class Zoo(keras.Model):
    """All layers, none of them run: their penalties are all that there is to learn."""

    def __init__(self):
        super().__init__()
        self.inhabitants = [model_of(name) for name in LAYERS]

    def call(self, inputs):
        # Gradients of zero, since Keras warns of weights without any.
        return 0.0 * inputs * sum(ops.sum(w) for w in self.trainable_weights)


@pytest.fixture(scope="module")
def fitted_zoo():
    zoo = Zoo()
    zoo.compile(keras.optimizers.SGD(0.1), "mse")
    zoo.fit(NOTHING, NOTHING, verbose=0)
    return zoo


NOTHING = np.zeros((1, 1), "float32")


@telling_rule
@pytest.mark.filterwarnings("ignore:The penalty of .* a saved file")
def test_layers_of_a_fitted_model_follow_the_rule_in_the_next_fit(rule, fitted_zoo):
    randomize(fitted_zoo)
    before = values(fitted_zoo.trainable_weights)
    attach(fitted_zoo, rule, where=everything)
    expected = expected_coefficients(rule, fitted_zoo.trainable_weights)
    history = fitted_zoo.fit(NOTHING, NOTHING, verbose=0).history
    penalties = [penalty(expected[path], w) for path, w in before.items()]
    assert history["loss"] == pytest.approx([sum(penalties)], rel=1e-6)
    after = values(fitted_zoo.trainable_weights)
    assert len(expected) == len(before) > 2 * len(LAYERS)
    for path, w in before.items():
        stepped = w - 0.1 * penalty_gradient(expected[path], w)
        np.testing.assert_allclose(after[path], stepped, rtol=1e-5, err_msg=path)
