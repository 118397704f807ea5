"""Remedies of the library's messages: the code in the message's own text is run.

Those of losses and training steps are run by test_monitor_losses.py, of weight decay by
test_monitor_reuse.py and test_half_life.py, of data by test_report_data.py, of the
experiments by test_experiment_remedies.py.
"""

import dataclasses
import re

import keras
import numpy as np
import pytest
from keras import layers
from models import compiled, data, linear

import keras_scaled_l2
from keras_scaled_l2 import (
    ApplyL2,
    CostMonitor,
    PriorL2,
    SampleL2,
    ScaledL2,
    attach,
    bind,
    convert,
    cost_report,
    grams,
    penalized,
    suggest,
)
from keras_scaled_l2.evidence import MOST_ROWS, evidence_strengths, output_rows

X, Y = data(8)


def message(action, *arguments, **options):
    with pytest.raises((TypeError, ValueError)) as caught:
        action(*arguments, **options)
    return str(caught.value)


def found(pattern, text):
    match = re.search(pattern, text)
    assert match, f"{pattern!r} is not in: {text}"
    return match.group(match.lastindex or 0)


def run(code, **names):
    """Evaluates code that a message gives, ``<number>`` as 8 and ``...`` left out."""
    code = code.replace("<number>", "8").replace("..., ", "").replace("...", "0.5")
    known = {
        **vars(keras_scaled_l2),
        "keras": keras,
        "keras_scaled_l2": keras_scaled_l2,
    }
    known |= {name: getattr(keras_scaled_l2, name) for name in keras_scaled_l2.__all__}
    return eval(code, {**known, **names})


def fit(model, *callbacks, x=X, y=Y, **options):
    return model.fit(x, y, verbose=0, callbacks=list(callbacks), **options)


def samples_of(model):
    [(_, variable, rule)] = penalized(model)
    return rule.coefficient(variable.shape) * 2  # 1 / m


def test_unresolved_rule_is_resolved_in_each_way_that_is_named():
    text = message(fit, linear(SampleL2(1.0)))
    rule = run(found(r"pass (SampleL2\(.*?\))", text).replace("...", "1.0"))
    assert samples_of(linear(rule)) == 1 / 8
    model = linear(SampleL2(1.0))
    fit(model, *run(found(r"callbacks=(\[.*?\])", text)))
    assert samples_of(model) == 1 / 8
    model = linear(SampleL2(1.0))
    run(found(r"keras_scaled_l2\.bind\(.*?\)", text).replace("...", "8"), model=model)
    assert samples_of(model) == 1 / 8
    assert np.isfinite(fit(model).history["loss"][0])


def test_count_that_the_data_do_not_tell_is_given_to_the_callback():
    def batches():
        while True:
            yield X, Y

    model, given = (
        linear(SampleL2(1.0)),
        {"y": None, "steps_per_epoch": 1, "shuffle": False},
    )
    text = message(fit, model, ApplyL2(), x=batches(), **given)
    fit(model, run(found(r"ApplyL2\(.*?\)", text)), x=batches(), **given)
    assert samples_of(model) == 1 / 8


def test_callback_without_anything_to_resolve_is_given_a_rule_or_layers_with_one():
    text = message(fit, linear(), ApplyL2())
    model = linear()
    fit(model, run(found(r"ApplyL2\(ScaledL2\(1\.0\)\)", text)))
    assert len(penalized(model)) == 1
    option = found(r"with (\w+)=\.\.\.", text)
    network = [keras.Input((4,)), layers.Dense(1, **{option: ScaledL2(1.0)})]
    fit(compiled(keras.Sequential(network)), ApplyL2())


@pytest.mark.parametrize("action", [cost_report, bind, penalized])
def test_unbuilt_model_is_built_by_the_call_that_is_named(action):
    model = keras.Sequential([layers.Dense(1)])
    code = found(r"model\.build\(input_shape\)", message(action, model))
    run(code, model=model, input_shape=(None, 4))
    action(model)


def test_rule_of_another_kind_is_one_of_those_that_are_named():
    text = message(attach, linear(), 0.01)
    for rule in re.findall(r"\w+L2\([\d.]+\)", text):
        assert attach(linear(), run(rule))


def test_choice_that_matches_nothing_is_made_with_the_predicate_that_is_named():
    model = keras.Sequential([keras.Input((4,)), layers.BatchNormalization()])
    text = message(attach, model, ScaledL2(1.0))
    where = run(found(r"where=(lambda .*\.\.\.)", text).replace("...", "True"))
    assert len(attach(model, ScaledL2(1.0), where)) == 2
    model = linear()
    model.trainable = False
    code = found(r"Set layer\.(.*?) first", message(attach, model, ScaledL2(1.0)))
    exec(f"model.{code}", {"model": model})
    assert attach(model, ScaledL2(1.0))
    assert suggest(model, samples=8, batch_size=4, epochs=2).strength > 0


def test_two_fan_ins_of_one_config_are_distinguished_in_both_ways_that_are_named():
    def model():
        x = keras.Input((4, 3))
        return keras.Model(x, layers.MultiHeadAttention(3, 3)(x, x))

    text = message(attach, model(), PriorL2(1.0, samples=8))
    option = found(r"pass (\w+) to the rule", text)
    assert len(attach(model(), PriorL2(1.0, samples=8, **{option: 3}))) == 4
    choice = found(r"with (\w+)=\.\.\.", text)
    one = model()
    chosen = {choice: [one.trainable_weights[0]]}
    with pytest.warns(UserWarning, match="will not hold it"):
        assert len(attach(one, PriorL2(1.0, samples=8), **chosen)) == 1


def test_finding_without_a_penalty_is_mended_by_attach():
    model = linear()
    [finding] = cost_report(model).findings
    run(found(r"attach\(.*?\)", finding.text), model=model, rule=ScaledL2(1.0))
    assert cost_report(model).penalized == 4


def test_double_decay_ends_with_the_exclusion_that_is_named():
    model = linear()
    model.compile(keras.optimizers.AdamW(0.1, weight_decay=0.1), "mse")
    with pytest.warns(UserWarning, match="Decayed twice") as told:
        attach(model, ScaledL2(1.0))
    text = " ".join(str(warning.message) for warning in told)
    code = found(r"optimizer\.exclude_from_weight_decay\(.*?\)", text)
    code = code.replace("...", "var_list=[kernel]")
    kernel = model.trainable_variables[0]
    run(code, optimizer=model.optimizer, kernel=kernel)
    assert not model.optimizer._use_weight_decay(kernel)
    assert "double_decay" not in [f.name for f in cost_report(model).findings]


def double_decays(model):
    found = cost_report(model).findings
    return [finding.text for finding in found if finding.name == "double_decay"]


def test_exclusion_that_is_named_reaches_an_optimizer_that_is_wrapped():
    # As mixed_float16 wraps every optimizer.
    adam = keras.optimizers.AdamW(0.1, weight_decay=0.1)
    model = linear()
    model.compile(keras.optimizers.LossScaleOptimizer(adam), "mse")
    with pytest.warns(UserWarning, match="Decayed twice") as told:
        attach(model, ScaledL2(1.0))
    text = " ".join(str(warning.message) for warning in told)
    code = found(r"them with (optimizer\S*\(...\))", text)
    kernel = model.trainable_variables[0]
    code = code.replace("...", "var_list=[kernel]")
    run(code, optimizer=model.optimizer, kernel=kernel)
    assert not adam._use_weight_decay(kernel)
    assert double_decays(model) == []


@pytest.mark.skipif(
    not hasattr(keras.optimizers, "MultiOptimizer"), reason="not in this Keras"
)
def test_part_of_an_optimizer_that_decays_is_named_with_arguments_that_it_takes():
    def decayed(optimizer):
        parts = keras.optimizers.OptimizerMap(
            keras.optimizers.Adam(), {".*unit.*": optimizer}
        )
        model = linear(ScaledL2(1.0))
        model.compile(keras.optimizers.MultiOptimizer(parts), "mse")
        return model, double_decays(model)

    adam = keras.optimizers.AdamW(weight_decay=0.1)
    model, [text] = decayed(adam)
    code = found(r"twice: .*two: (\w+\(.*?\))", text).replace("..., ", "")
    assert decayed(eval(code, vars(keras.optimizers)))[1] == []
    with pytest.warns(UserWarning, match="of that AdamW") as told:
        attach(model, ScaledL2(2.0))
    text = " ".join(str(warning.message) for warning in told)
    code = found(r"them with (optimizer\S*\(...\))", text)
    code = code.replace("...", "var_list=[kernel]")
    run(code, optimizer=adam, kernel=model.trainable_variables[0])
    assert double_decays(model) == []


def test_model_that_is_not_compiled_is_compiled_for_report_and_suggestion():
    def model():
        return keras.Sequential([keras.Input((4,)), layers.Dense(1)])

    unit, counts = model(), {"samples": 8, "batch_size": 4, "epochs": 2}
    code = found(r"model\.compile\(.*?\)", message(cost_report, unit, X, Y))
    run(code, model=unit, optimizer="sgd", loss="mse")
    assert cost_report(unit, X, Y).cost["data"] > 0
    text = message(suggest, model(), **counts)
    optimizer = run(found(r"optimizer=(keras\.optimizers\.SGD\(...\))", text))
    assert suggest(model(), optimizer=optimizer, **counts).strength > 0
    text = message(suggest, unit, rule=ScaledL2(0.0), **counts)
    for rule in re.findall(r"(?:keras\.regularizers\.)?\w*L2\([\d.]+\)", text)[1:]:
        assert suggest(unit, rule=run(rule), **counts).strength > 0


def test_metrics_property_returns_what_the_message_says():
    text = None

    class Own(keras.Sequential):
        @property
        def metrics(self):
            if text is None:
                return [self.loss_tracker]
            names = {"self": self, "super": lambda: super(Own, self)}
            return eval(found(r"return (super\(\)\.metrics)", text), names)

    def model():
        unit = Own([keras.Input((4,)), layers.Dense(1)])
        unit.loss_tracker = keras.metrics.Mean(name="own")
        return compiled(unit)

    text = message(fit, model(), CostMonitor())
    assert "penalty" in fit(model(), CostMonitor()).history


def test_strength_that_lacks_counts_is_converted_with_those_that_are_named():
    text = message(convert, 0.1, "keras", "half_life")
    counts = re.findall(r"(\w+)=\.\.\.", text)
    given = dict.fromkeys(counts, 8) | {"momentum": 0.5}
    assert convert(0.1, "keras", "half_life", **given) > 0


def test_evidence_of_too_many_examples_takes_a_part_and_their_number():
    x, y = data(6000)
    # Dense layers alone are known by Kronecker factors, however many there are.
    convolution = layers.Conv1D(1, 4, kernel_regularizer=keras.regularizers.L2(0.1))
    network = [keras.Input((4,)), layers.Reshape((4, 1)), convolution, layers.Flatten()]
    model = compiled(keras.Sequential(network))
    option = found(r"(\w+)=<number of all", message(evidence_strengths, model, x, y))
    strengths = evidence_strengths(model, x[:20], y[:20], **{option: 6000})
    assert all(s.coefficient > 0 for s in strengths.values())


def test_rows_that_are_too_long_are_written_out_of_fewer_examples(monkeypatch):
    rule = keras.regularizers.L2(0.1)
    table = layers.Embedding(50, 2, embeddings_regularizer=rule)
    network = [keras.Input((1,), dtype="int32"), table, layers.Flatten()]
    model = compiled(keras.Sequential([*network, layers.Dense(1)]))
    x = np.arange(40)[:, None]
    y = np.linspace(-1.0, 1.0, 40, dtype="float32")[:, None]
    monkeypatch.setattr(grams, "_MOST_NUMBERS", 50 * 2 * 20)
    text = message(evidence_strengths, model, x, y)
    assert "Pass fewer examples" in text
    option = found(r"(\w+)=<number of all", text)
    strengths = evidence_strengths(model, x[:20], y[:20], **{option: 40})
    assert all(s.coefficient > 0 for s in strengths.values())


def test_rows_of_all_outputs_are_written_out_of_fewer_examples():
    model = linear(SampleL2(1.0, samples=8))
    x = np.ones((MOST_ROWS + 1, 4), "float32")
    assert "Pass a subset of the examples" in message(output_rows, model, x)
    assert all(len(rows) == 8 for rows in output_rows(model, x[:8]).values())


def test_gamma_of_a_list_of_inputs_is_that_of_examples_as_an_array():
    inputs = keras.Input((4,))
    unit = layers.Dense(1, kernel_regularizer=SampleL2(1.0, samples=8))
    model = compiled(keras.Model([inputs], unit(inputs)))
    text = message(cost_report, model, [X], Y, gamma=True)
    names = re.findall(r"(?:examples|targets) as (\w)", text)
    x, y = ({"x": X, "y": Y}[name] for name in names)
    [weight] = cost_report(model, x, y, gamma=True).weights
    assert weight.gamma > 0


def test_suggestion_for_an_optimizer_that_learns_nothing_takes_another():
    model = linear(SampleL2(1.0))
    counts = {"samples": 8, "batch_size": 4, "epochs": 3}
    text = message(suggest, model, **counts, optimizer=keras.optimizers.SGD(0.0))
    option = found(r"Pass (\w+)=\.\.\.", text)
    assert suggest(model, **counts, **{option: keras.optimizers.SGD(0.1)}).strength > 0


def test_config_of_another_version_is_loaded_by_one_that_knows_it():
    @dataclasses.dataclass(frozen=True, repr=False)
    class Newer(SampleL2):
        half: bool = False

    config = Newer(2.0, samples=8, half=True).get_config()
    text = message(SampleL2.from_config, config)
    assert "['half']" in text
    assert "a newer one to load it" in text
    assert Newer.from_config(config).half
