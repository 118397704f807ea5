"""Every way out that an error of the experiments names is gone, as it is written there.

The code that is run is taken out of the message.
"""

import configparser
import dataclasses
import functools
import pathlib
import re
import sys
import types

import keras
import numpy as np
import pytest

from keras_scaled_l2 import HalfLifeL2, PriorL2, ScaledL2, cli
from keras_scaled_l2.experiments import Arm, compare, load_problem, with_dropout
from keras_scaled_l2.experiments.arrays import checked
from keras_scaled_l2.experiments.errors import EXTRA, DataWarning, InputError, require
from keras_scaled_l2.experiments.plan import make_plan
from keras_scaled_l2.experiments.problems import Source

L = keras.layers


def message(call, *arguments, **options):
    """What an error says; one line."""
    with pytest.raises(InputError) as error:
        call(*arguments, **options)
    text = str(error.value)
    assert "\n" not in text
    assert "where=" not in text, "the experiments have no such argument"
    assert "ApplyL2" not in text, "nobody calls fit here"
    return text


def found(pattern, text):
    """The part of a message that is code."""
    match = re.search(pattern, text)
    assert match, text
    return match[1] if match.groups() else match[0]


def run(code, **names):
    """The value of code that a message gives."""
    return eval(code, {"numpy": np, "keras": keras, **names})


# --- arrays -------------------------------------------------------------------------

X = np.random.default_rng(0).normal(size=(40, 3))
UNIQUE = r"numpy\.unique\(y, return_inverse=True\)\[1\]"
AS_TARGETS = r"\((task='regression')\)"

LABELS = {
    "text": (np.array(["a", "b"] * 20), UNIQUE),
    "labels from 1": (np.arange(40) % 2 + 1, UNIQUE),
    "labels with holes": (np.arange(40) % 2 * 7, UNIQUE),
    "float labels": (np.arange(40) % 2.0, UNIQUE),
    "float labels -1, 1": (np.arange(40) % 2 * 2.0 - 1, UNIQUE),
    "shares": (np.tile([[0.25, 0.75], [0.75, 0.25]], (20, 1)), r"y\.argmax\(axis=1\)"),
    "multi-label": (np.tile([[1, 1], [0, 0]], (20, 1)), r"y\[:, 0\]"),
}


@pytest.mark.parametrize("what", LABELS)
def test_labels_become_what_the_message_makes_of_them(what):
    y, pattern = LABELS[what]
    text = message(checked, {"x_train": X, "y_train": y}, name="mine")
    arrays = {"x_train": X, "y_train": run(found(pattern, text), y=y)}
    made = checked(arrays, name="mine")
    assert (made.task, made.classes) == ("binary", 2)
    assert made.y_train.tolist() == [0, 1] * 20 or what in ("shares", "multi-label")


@pytest.mark.parametrize(
    "y",
    [
        np.arange(40) % 2.0,
        np.tile([[0.25, 0.75], [0.75, 0.25]], (20, 1)),
        np.tile([[1, 1], [0, 0]], (20, 1)),
        np.arange(80).reshape(40, 2),
    ],
)
def test_targets_are_taken_as_the_message_says(y):
    arrays = {"x_train": X, "y_train": y}
    text = message(checked, arrays, name="mine")
    options = run(f"dict({found(AS_TARGETS, text)})")
    assert checked(arrays, name="mine", **options).task == "regression"


def test_values_that_are_no_labels_are_targets_as_the_message_says():
    arrays = {"x_train": X, "y_train": np.linspace(0, 1, 40)}
    text = message(checked, arrays, name="mine", task="classes")
    options = run(f"dict({found(AS_TARGETS, text)})")
    assert checked(arrays, name="mine", **options).task == "regression"


def test_task_that_does_not_fit_is_left_out():
    arrays = {"x_train": X, "y_train": np.arange(40) % 3}
    text = message(checked, arrays, name="mine", task="binary")
    assert "Leave the task out" in text
    assert checked(arrays, name="mine").classes == 3


def test_single_feature_gets_its_dimension():
    x = X[:, 0]
    y = np.arange(40) % 2
    text = message(checked, {"x_train": x, "y_train": y}, name="mine")
    x = run(found(r"x\[:, None\]", text), x=x)
    assert checked({"x_train": x, "y_train": y}, name="mine").x_train.shape == (40, 1)


def test_file_is_written_as_the_message_writes_it(tmp_path):
    path = tmp_path / "mine.npz"
    path.write_text("x,y")
    text = message(load_problem, path)
    code = found(r"numpy\.savez\(.*?\)", text).replace("...", "{}")
    run(code.format("x", "y"), path=path, x=X, y=np.arange(40) % 2)
    assert load_problem(path).task == "binary"


def test_too_few_examples_become_as_many_as_the_message_asks_for():
    def source(count):
        x, y = np.arange(2.0 * count)[:, None], np.arange(2 * count) % 2
        return Source("few", checked({"x_train": x, "y_train": y}, name="few"))

    text = message(source(1).split, 0)
    count = int(found(r"expected (\d+) of each class", text))
    assert source(count).split(0).samples["test"] == 2


@pytest.mark.parametrize(
    "call",
    [
        lambda source, n: dataclasses.replace(source, samples=n).split(0),
        lambda source, n: source.folds(n, 0),
    ],
)
def test_range_that_a_message_gives_holds_at_both_ends(call):
    y = np.array([0] * 30 + [1] * 10)
    source = Source("mine", checked({"x_train": X, "y_train": y}, name="mine"))
    low, high = map(
        int, re.search(r"from (\d+) to (\d+)", message(call, source, 1)).groups()
    )
    for n in (low, high):
        call(source, n)
    for n in (low - 1, high + 1):
        assert f"from {low} to {high}" in message(call, source, n)


def test_label_noise_is_what_the_message_shows():
    text = message(load_problem, "digits", label_noise=20)
    share = float(found(r"as (0\.\d)", text))
    assert load_problem("digits", label_noise=share).source.label_noise == share


# --- problems -----------------------------------------------------------------------


def test_name_that_is_suggested_is_known():
    name = found(r"did you mean '(.*?)'", message(load_problem, "digit"))
    assert load_problem(name).name == name


def test_option_that_is_to_be_left_out_is_all_that_was_wrong(tmp_path):
    text = message(load_problem, "digits", data_dir=tmp_path)
    option = found(r"Leave it out \(--data-dir, (\w+)=\)", text)
    assert load_problem("digits", **{option: None}).name == "digits"
    np.savez(tmp_path / "r.npz", x_train=X, y_train=X[:, 0])
    text = message(load_problem, tmp_path / "r.npz", label_noise=0.1)
    option = found(r"Leave it out \(--label-noise, (\w+)=\)", text)
    assert load_problem(tmp_path / "r.npz", **{option: 0.0}).task == "regression"


def test_failed_download_leaves_files_and_problems_of_packages(monkeypatch, tmp_path):
    from test_problems import idx_bytes

    def fail():
        raise Exception("no network")

    monkeypatch.setattr(keras.datasets.mnist, "load_data", fail)
    text = message(load_problem, "mnist")
    for name in found(r"comes with packages: (.*)\.", text).split(", "):
        assert load_problem(name).name == name
    option = found(r"\(--data-dir, (\w+)=\)", text)
    # The files' names are those that the message about missing ones gives.
    text = message(load_problem, "mnist", **{option: tmp_path})
    for name in found(r"expected (.*), packed", text).split(", "):
        shape = (12, 28, 28) if "images" in name else (12,)
        array = np.resize(np.arange(2, dtype="uint8"), shape)
        (tmp_path / name).write_bytes(idx_bytes(array))
    assert load_problem("mnist", **{option: tmp_path}).samples["test"] == 12


def test_extra_that_is_to_be_installed_exists_and_holds_what_is_required():
    text = message(require, "no_such_module_of_mine", "this test")
    extra = found(r'pip install "keras_scaled_l2\[(\w+)\]"', text)
    assert EXTRA in text
    setup = configparser.ConfigParser()
    setup.read(pathlib.Path(__file__).parent.parent / "setup.cfg")
    packages = setup["options.extras_require"][extra]
    folder = pathlib.Path(sys.modules["keras_scaled_l2.experiments"].__file__).parent
    source = "".join(path.read_text() for path in folder.glob("*.py"))
    of = {"sklearn": "scikit-learn", "scipy": "scikit-learn"}  # which needs SciPy
    for module in set(re.findall(r'require\(\s*"(\w+)', source)) - {"mnist1d"}:
        assert of.get(module, module) in packages


@pytest.mark.filterwarnings("error::keras_scaled_l2.experiments.errors.DataWarning")
def test_raw_features_and_large_targets_are_scaled_as_the_message_says(tmp_path):
    path = tmp_path / "mine.npz"
    x = 127 + 50 * np.random.default_rng(0).normal(size=(80, 30))
    y = 500 + 90 * x[:, 0]
    np.savez(path, x_train=x, y_train=y)
    plan = functools.partial(make_plan, arms=["none"], hidden=(16,))
    with pytest.warns(DataWarning) as warned:
        plan(problem=path)
    features, targets = (str(w.message) for w in warned if w.category is DataWarning)
    y = run(found(r"Save them as (.*)\.$", targets), y=y)
    np.savez(path, x_train=x, y_train=y)
    call = found(r"load_problem\(\.\.\., (.*)\)\)", features)
    plan(problem=load_problem(path, **run(f"dict({call})")))


# --- networks -----------------------------------------------------------------------


def tiny(shape=(6,), classes=2):
    x = np.random.default_rng(0).normal(size=(80, *shape))
    arrays = {"x_train": x, "y_train": np.arange(80) % classes}
    return Source("tiny", checked(arrays, name="tiny")).split(0)


def planned(problem=None, **options):
    """A comparison that is checked in every part, and trained in none."""
    from keras_scaled_l2.experiments.compare import Experiment

    problem = tiny() if problem is None else problem
    return Experiment(make_plan(problem=problem, **{"arms": ["none"], **options}))


def chain(*layers, start=None):
    start = keras.Input((6,)) if start is None else start
    return keras.Sequential([start, *layers])


def test_model_of_another_name_or_kind_is_what_the_message_says():
    name = found(r"did you mean '(.*?)'", message(planned, model="dens"))
    planned(model=name)
    name = found(r"Use '(.*?)'", message(planned, model="conv"))
    planned(model=name)


def test_hidden_units_are_written_as_the_message_writes_them(tmp_path):
    text = found(r"as ([\d,]+)\.", message(planned, hidden=[8.5]))
    options = "compare --problem digits --arms none --seeds 1 --epochs 1 --quiet "
    arguments = [*options.split(), "--hidden", text, "--directory", str(tmp_path)]
    assert cli.main(arguments) == 0


def test_inputs_and_outputs_are_those_of_the_message():
    wrong = chain(L.Dense(1), start=keras.Input((5,)))
    start = run(found(r"keras\.Input\(.*\)\)", message(planned, model=wrong)))
    end = found(
        r"keras\.layers\.Dense\(\d\)", message(planned, model=chain(L.Dense(3)))
    )
    planned(model=chain(run(end), start=start))
    text = message(planned, tiny(classes=3), model=chain(L.Dense(1)))
    planned(tiny(classes=3), model=chain(run(found(r"keras\.layers\.\w+\(3\)", text))))


def test_output_activations_are_those_of_the_message():
    text = message(planned, model=chain(L.Dense(2, activation="sigmoid")))
    options = run(f"dict({found(r'activation=.softmax.', text)})")
    planned(model=chain(L.Dense(2, **options)))
    text = message(planned, model=chain(L.Dense(1, activation="softmax")))
    options = run(f"dict({found(r'activation=.sigmoid.', text)})")
    planned(model=chain(L.Dense(1, **options)))
    assert "or two units" in text
    planned(model=chain(L.Dense(2, activation="softmax")))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.one, self.two = L.Dense(3, activation="relu"), L.Dense(1)

    def call(self, x):
        return self.two(self.one(x))


def subclassed():
    model = Subclassed()
    model(np.zeros((1, 6), "float32"))
    return model


def functional(dropped=False):
    x = keras.Input((6,))
    hidden = L.Dense(3, activation="relu")(x)
    return keras.Model(x, L.Dense(1)(L.Dropout(0.5)(hidden) if dropped else hidden))


def test_function_that_keeps_its_model_is_told_both_ways_out():
    model = functional()
    text = message(planned, model=lambda: model)
    assert "Make or load it in there, or hand in the model" in text
    planned(model=functional)
    planned(model=model)


def test_penalty_of_the_models_own_becomes_an_arm():
    text = message(planned, model=chain(L.Dense(1, kernel_regularizer="l2")))
    assert "give it as an Arm" in text
    arm = Arm("mine", keras.regularizers.get("l2"))
    planned(model=chain(L.Dense(1)), arms=[arm])


def test_nothing_to_penalize_is_mended_by_the_layers_that_are_named():
    class Mean(L.Layer):
        def call(self, x):
            return keras.ops.mean(x, axis=-1, keepdims=True)

    def make(*layers):
        return chain(L.BatchNormalization(), *layers, Mean())

    text = message(planned, model=make)
    layer = run(found(r"keras\.layers\.\w+", text))
    planned(model=lambda: make(layer(4)))


def test_dropout_that_has_no_place_is_left_out_or_given_one(tmp_path):
    text = message(planned, hidden=(), arms=["none", "l2", "dropout"])
    planned(hidden=(), **run(f"dict({found(r'arms=.*?]', text)})"))
    arms = found(r"(--arms \S+)\)", text).split()
    options = "compare --problem digits --hidden 4 --seeds 1 --epochs 1 --quiet "
    arguments = [*options.split(), *arms, "--directory", str(tmp_path)]
    assert cli.main(arguments) == 0
    assert "add a hidden layer with an activation" in text
    planned(hidden=(4,), arms=["none", "l2", "dropout"])
    relu = chain(L.Dense(3, activation="relu"), L.Dense(1))
    with pytest.raises(InputError, match="where matches no layer of model") as error:
        with_dropout(relu, 0.5, where=[L.Dense(3)])
    name = found(r"it has '(.*?)'", str(error.value))
    with_dropout(relu, 0.5, where=lambda layer: layer.name == name)


def test_model_that_cannot_have_dropout_is_written_in_both_ways_that_are_named():
    text = message(planned, model=subclassed, arms=["none", "dropout"])
    assert "Write it as a functional model, or put Dropout in by hand" in text
    planned(model=functional, arms=["none", "dropout"])
    planned(model=lambda: functional(dropped=True))


def test_layers_of_another_shape_each_time_are_drawn_as_the_message_says():
    sizes = iter(range(3, 10))
    text = message(planned, model=lambda: chain(L.Dense(next(sizes)), L.Dense(1)))
    assert "draw nothing but weights in there" in text
    planned(model=lambda: chain(L.Dense(3), L.Dense(1)))


# --- arms, optimizers, directories --------------------------------------------------


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"arms": ["l3"]}, "arms"),
        ({"arms": ["sample+dropot"]}, "arms"),
        ({"optimizer": "sdg"}, "optimizer"),
    ],
)
def test_name_of_an_arm_or_optimizer_that_is_suggested_is_known(options, argument):
    name = found(r"did you mean '(.*?)'", message(planned, **options))
    planned(**{argument: [name] if argument == "arms" else name})


def test_strength_of_dropout_is_given_as_the_message_says():
    text = message(planned, arms=["dropout"], strengths={"dropout": 0.3})
    option = found(r"\((\w+)=\.\.\.\)", text)
    planned(arms=["dropout"], **{option: 0.3})


def test_no_arms_are_some_of_those_that_are_named():
    names = found(r"some of (.*)\.", message(planned, arms=[])).split(", ")
    planned(arms=names)


def test_optimizer_without_decay_has_an_arm_with_it():
    text = message(planned, arms=["decay"], optimizer=keras.optimizers.AdamW())
    assert "expected an optimizer without" in text
    planned(arms=["decay"], optimizer=keras.optimizers.Adam())


def test_optimizer_that_undoes_decay_has_no_arm_with_it():
    text = message(planned, arms=["decay"], optimizer=keras.optimizers.Ftrl())
    other = getattr(keras.optimizers, found(r"such as (\w+)\.", text))
    planned(arms=["decay"], optimizer=other(weight_decay=0.0))
    planned(arms=["l2"], optimizer=keras.optimizers.Ftrl())


def test_learning_rate_is_given_to_the_object():
    adam = keras.optimizers.Adam
    text = message(planned, optimizer=adam(), learning_rate=0.1)
    assert "give it to the object" in text
    planned(optimizer=adam(learning_rate=0.1))


def test_rule_that_no_penalty_can_be_made_of_is_replaced_as_the_message_says():
    text = message(planned, arms=[Arm("x", keras.regularizers.L1(0.1))])
    rule = run(found(r"keras\.regularizers\.L2", text))
    planned(arms=[Arm("x", rule(0.1))])


def test_rule_without_a_fan_in_is_given_one():
    def make():
        x = keras.Input((4, 3))
        return keras.Model(x, L.Dense(1)(L.Flatten()(L.MultiHeadAttention(3, 3)(x, x))))

    problem = tiny((4, 3))
    text = message(planned, problem, model=make, arms=[Arm("x", PriorL2(1.0))])
    options = run(f"dict({found(r'fan_in=', text)}3)")
    planned(problem, model=make, arms=[Arm("x", PriorL2(1.0, **options))])


def test_half_life_takes_what_it_needs_from_the_optimizer_of_the_comparison():
    # Nothing to remedy: it once asked for a callback that nobody could give.
    # A batch has room for 64, and an epoch of 48 is one step of 48.
    rate, momentum, epochs, batch = 0.2, 0.5, 3.0, 48
    sgd = keras.optimizers.SGD(rate, momentum=momentum)
    experiment = planned(arms=[Arm("h", HalfLifeL2(epochs))], optimizer=sgd)
    (arm,) = experiment.result().arms
    expected = np.log(2) * batch * (1 - momentum) / (2 * rate * epochs * 48)
    assert list(arm.coefficients.values()) == pytest.approx([expected] * 3, rel=1e-6)
    text = message(planned, arms=[Arm("h", HalfLifeL2(3.0))], optimizer="adam")
    decay = float(found(r"weight_decay=([\d.e-]+)", text))
    planned(arms=[Arm("h", weight_decay=decay)], optimizer="adam")


def test_rule_of_a_users_own_is_registered_as_the_message_says():
    class Mine(ScaledL2):
        pass

    text = message(planned, arms=[Arm("x", Mine(1.0))])
    register = run(found(r"keras\.saving\.register_keras_serializable\(\)", text))
    planned(arms=[Arm("x", register(Mine)(1.0))])


def test_strengths_of_arms_with_rules_are_in_the_rules():
    text = message(planned, arms=[Arm("x", ScaledL2(1.0))], strengths={"x": 2.0})
    assert "a rule of its own" in text
    planned(arms=[Arm("x", ScaledL2(2.0))])


@pytest.mark.parametrize("way", ["another directory", "remove that one"])
def test_directory_of_another_comparison_is_left_or_removed(way, tmp_path):
    import shutil

    def small(folder, epochs):
        options = {"arms": ["none"], "seeds": 1, "hidden": (2,), "progress": False}
        compare(problem=tiny(), epochs=epochs, directory=folder, **options)

    folder = tmp_path / "one"
    small(folder, 1)
    assert way in message(small, folder, 2)
    if way == "remove that one":
        shutil.rmtree(folder)
        small(folder, 2)
    else:
        small(tmp_path / "two", 2)


def test_arm_is_named_in_the_letters_that_are_allowed():
    text = message(Arm, "ä b")
    letters = found(r"and (\. _ \+ = -) only", text).split()
    Arm("a1" + "".join(letters))


def test_lambda_is_written_as_a_function():
    model = chain(L.Dense(3, activation=lambda x: keras.ops.relu(2 * x)), L.Dense(1))
    with pytest.warns(UserWarning, match="includes a `lambda`"):
        text = message(with_dropout, model, 0.5)
    keyword = found(r"with a name \((def)\)", text)
    names = {"keras": keras}
    exec(f"{keyword} relu(x): return keras.ops.relu(x)", names)
    assert isinstance(names["relu"], types.FunctionType)
    with_dropout(chain(L.Dense(3, activation=names["relu"]), L.Dense(1)), 0.5)
