"""Data that do not fit the model: what a report and its command say of them."""

import re

import keras
import numpy as np
import pytest
from keras import layers
from models import compiled, data, linear

from keras_scaled_l2 import (
    ApplyL2,
    CostMonitor,
    ScaledL2,
    attach,
    bind,
    cli,
    cost_report,
    detach,
    penalized,
    suggest,
)
from keras_scaled_l2.evidence import evidence_strengths
from keras_scaled_l2.experiments import load_problem
from keras_scaled_l2.experiments.architectures import architecture
from keras_scaled_l2.experiments.errors import InputError

X, Y = data(6)
LABELS = np.array([0, 1, 2, 2, 1, 0])


def classifier(loss="sparse_categorical_crossentropy", units=3):
    activation = "softmax" if units > 1 else "sigmoid"
    network = [keras.Input((4,)), layers.Dense(units, activation, True)]
    network[1].kernel_regularizer = keras.regularizers.L2(0.1)
    return compiled(keras.Sequential(network), loss=loss)


def with_value(array, value):
    found = np.array(array, "float32")
    found.flat[1] = value
    return found


@pytest.mark.parametrize("form", ["csr_matrix", "coo_matrix", "csr_array"])
def test_report_of_a_sparse_matrix_is_that_of_the_same_numbers(form):
    import scipy.sparse

    model = linear(keras.regularizers.L2(0.5))
    x = X * (X > 0)
    found = cost_report(model, getattr(scipy.sparse, form)(x), Y, batch_size=4)
    assert found == cost_report(model, x, Y, batch_size=4)
    assert found.cost["data"] == pytest.approx(
        model.evaluate(x, Y, verbose=0) - (found.cost["penalty"]), rel=1e-5
    )


def test_report_of_a_data_frame_is_that_of_its_rows_by_position():
    import pandas

    model = linear(keras.regularizers.L2(0.5))
    index = np.linspace(0.0, 2.5, len(X))[::-1]
    frames = pandas.DataFrame(X, index), pandas.DataFrame(Y, index)
    found = cost_report(model, *frames, batch_size=4)
    plain = cost_report(model, X, Y, batch_size=4)
    # Its columns lie apart in memory, so a product may be rounded otherwise.
    assert found.cost == pytest.approx(plain.cost, rel=1e-5)
    ratios = [report.weights[0].gradient_ratio for report in (found, plain)]
    assert ratios[0] == pytest.approx(ratios[1], rel=1e-5)


def numbered(text, y):
    """The labels after the code that a message gives."""
    names = {"np": np, "y": y}
    exec(re.search(r"classes, y = np\.unique\(.*?\)", text)[0], names)
    return names["y"]


@pytest.mark.parametrize(
    ("loss", "units", "y", "said"),
    [
        ("sparse_categorical_crossentropy", 3, LABELS + 7, "label 7: .*of 0 to 2"),
        (keras.losses.SparseCategoricalCrossentropy(), 3, LABELS - 1, "label -1: "),
        ("binary_crossentropy", 1, 2 * (LABELS > 0) - 1, "label -1: .*expects 0 and 1"),
        ("binary_crossentropy", 1, np.array(["a", "b"] * 3), "y holds .* dtype <U1"),
        ("sparse_categorical_crossentropy", 3, LABELS.astype(str), "dtype <U"),
    ],
)
def test_labels_that_are_no_classes_are_an_error_whose_code_mends_them(
    loss, units, y, said
):
    model = classifier(loss, units)
    with pytest.raises(ValueError, match=said) as caught:
        cost_report(model, X, y)
    mended = numbered(str(caught.value), y)
    assert cost_report(model, X, mended).cost["data"] == pytest.approx(
        model.evaluate(X, mended, verbose=0) - cost_report(model).cost["penalty"],
        rel=1e-5,
    )


def test_label_that_the_loss_ignores_is_none_of_the_classes():
    ignoring = keras.losses.SparseCategoricalCrossentropy(ignore_class=9)
    y = np.where(LABELS == 1, 9, LABELS)
    assert cost_report(classifier(ignoring), X, y).cost["data"] > 0


@pytest.mark.parametrize("form", [list, dict])
def test_labels_by_name_are_those_of_the_output_of_that_name(form):
    """Outputs in another order than that of their names."""
    inputs = keras.Input((4,))
    outputs = {
        "value": layers.Dense(1, name="value", kernel_regularizer="l2")(inputs),
        "kind": layers.Dense(3, "softmax", name="kind")(inputs),
    }
    given = outputs if form is dict else list(outputs.values())
    loss = {"kind": "sparse_categorical_crossentropy", "value": "mse"}
    model = compiled(keras.Model(inputs, given), loss=loss)
    assert_labels_are_checked(model, {"kind": LABELS, "value": Y})


def test_labels_are_checked_where_another_output_has_no_loss():
    inputs = keras.Input((4,))
    kind = layers.Dense(3, "softmax", name="kind", kernel_regularizer="l2")(inputs)
    model = keras.Model(inputs, {"rest": layers.Dense(1)(inputs), "kind": kind})
    compiled(model, loss={"kind": "sparse_categorical_crossentropy"})
    assert_labels_are_checked(model, {"kind": LABELS})


def assert_labels_are_checked(model, y):
    """Those of the output ``kind``: right ones pass, wrong ones do not."""
    cost = model.evaluate(X, y, verbose=0, return_dict=True)["loss"]
    assert cost_report(model, X, y).cost["total"] == pytest.approx(cost, rel=1e-5)
    with pytest.raises(ValueError, match=r"label 7: .*of 0 to 2"):
        cost_report(model, X, {**y, "kind": LABELS + 7})


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["x", "y"])
def test_data_that_are_no_numbers_are_an_error_whose_code_mends_them(name, value):
    given = {"x": X, "y": Y}
    given[name] = with_value(given[name], value)
    model = linear(keras.regularizers.L2(0.5))
    with pytest.raises(ValueError, match=f"{name} holds 1 NaN or infinite") as caught:
        cost_report(model, **given)
    code = re.search(rf"{name} = np\.nan_to_num\(\w\)", str(caught.value))[0]
    exec(code, {"np": np}, given)
    given[name] = np.clip(given[name], -1e9, 1e9)  # infinity becomes the largest number
    assert np.isfinite(cost_report(model, **given).cost["total"])


def test_data_too_large_for_the_loss_are_an_error_that_says_so():
    with pytest.raises(ValueError, match=r"is inf, though x and y are finite.*Scale"):
        cost_report(linear(keras.regularizers.L2(0.5)), X * np.float32(1e30), Y)


@pytest.mark.parametrize("arrays", [(), (X, Y)], ids=["no data", "data"])
def test_weights_of_a_diverged_training_are_an_error_that_names_them(arrays):
    model = linear(keras.regularizers.L2(0.5))
    kernel = model.trainable_variables[0]
    kernel.assign(with_value(np.ones((4, 1)), np.nan))
    with pytest.raises(ValueError, match=r"unit/kernel' of .* 1 NaN or .* diverged"):
        cost_report(model, *arrays)


def images():
    network = [keras.Input((4, 4, 1)), layers.Conv2D(2, 3), layers.Flatten()]
    return compiled(keras.Sequential([*network, layers.Dense(1)]))


@pytest.mark.parametrize(
    ("make", "arrays", "said"),
    [
        (classifier, (X, np.array(list("abcabc"))), "np.unique"),
        (classifier, (X, LABELS + 7), "label 7"),
        (classifier, (with_value(X, np.nan), LABELS), "x holds 1 NaN"),
        (classifier, (X[:, :3], LABELS), "3"),
        (images, (np.ones((6, 8, 8, 1), "float32"), Y), "8, 8, 1"),
        (images, (np.ones((6, 400), "float32"), Y), "400"),
        (linear, (X.astype(str), Y), "of <U"),
        (linear, (X, Y[:, 0].astype("datetime64[D]")), "datetime64"),
    ],
    ids=["text", "range", "NaN", "width", "size", "flat", "text x", "dates"],
)
def test_command_says_in_one_line_what_is_wrong_with_data(
    make, arrays, said, tmp_path, capsys
):
    model, path = tmp_path / "model.keras", tmp_path / "data.npz"
    make().save(model)
    np.savez(path, x=arrays[0], y=arrays[1])
    assert cli.main(["report", str(model), "--data", str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    [line] = printed.err.splitlines()
    assert said in line
    assert len(line) < 700


@pytest.mark.parametrize("kept", [0, 3, 60, 0.5, 0.9])
def test_command_says_that_a_data_file_is_cut_off(kept, tmp_path, capsys):
    model, path = tmp_path / "model.keras", tmp_path / "data.npz"
    linear(keras.regularizers.L2(0.5)).save(model)
    np.savez_compressed(path, x=X, y=Y)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if 0 < kept < 1 else kept])
    assert cli.main(["report", str(model), "--data", str(path)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "data.npz' cannot be read as .npz: " in line


def test_command_reports_on_a_file_whose_loss_keras_cannot_load(tmp_path, capsys):
    """HDF5, as Keras 2 wrote it: Keras 3 does not find "mse" when it compiles."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    attach(model, ScaledL2(1.0))
    model.compile("sgd", "mse")
    path = str(tmp_path / "old.h5")
    model.save(path)
    with pytest.raises(Exception, match="mse"):
        keras.saving.load_model(path)
    assert cli.main(["report", path]) == 0
    assert "4 of 5 weights, in 1 tensor" in capsys.readouterr().out
    np.savez(tmp_path / "data.npz", x=X, y=Y)
    data = str(tmp_path / "data.npz")
    assert cli.main(["report", path, "--data", data]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "report without data" in line


# ----------------------------------------------------------------------------- Keras 2


def legacy():
    """A model of Keras 2, as far as its class tells."""
    kind = type("Sequential", (), {"__call__": lambda self: self, "fit": None})
    kind.__module__ = "tf_keras.src.engine.sequential"
    return kind()


WITH_MODEL = {
    "attach": lambda model: attach(model, ScaledL2(1.0)),
    "detach": detach,
    "bind": bind,
    "penalized": penalized,
    "cost_report": cost_report,
    "suggest": lambda model: suggest(model, samples=8, batch_size=4, epochs=2),
    "evidence_strengths": lambda model: evidence_strengths(model, X, Y),
    "experiments": lambda model: architecture(model, load_problem("digits")),
    "model function": lambda model: architecture(lambda: model, load_problem("digits")),
}


@pytest.mark.parametrize("entry", WITH_MODEL)
def test_model_of_keras_2_is_told_the_way_out(entry):
    with pytest.raises((TypeError, InputError), match=r"Keras 2\. .*`import keras`"):
        WITH_MODEL[entry](legacy())
    if entry != "model function":
        with pytest.raises((TypeError, InputError)) as caught:
            WITH_MODEL[entry](3)
        assert "Keras 2" not in str(caught.value)


@pytest.mark.parametrize("make", [ApplyL2, CostMonitor])
def test_callback_in_a_fit_of_keras_2_tells_the_way_out(make):
    # The first thing that Keras 2 does with a callback; the next is an AttributeError.
    with pytest.raises(TypeError, match=r"Keras 2\. .*`import keras`"):
        make().set_model(legacy())
