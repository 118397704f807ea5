"""gamma by Kronecker factors: where it is exact, its bound, and beside the others."""

import keras
import numpy as np
import pytest
from keras import layers
from models import compiled

from keras_scaled_l2 import evidence, kronecker
from keras_scaled_l2.evidence import determined_parameters, gamma_dense, output_rows
from keras_scaled_l2.kronecker import gamma_by_kronecker, gamma_of_factors


def network(units, loss="mse", activation=None, bias=True, seed=0):
    parts = [layers.Dense(n, "tanh", use_bias=bias) for n in units[:-1]]
    last = layers.Dense(units[-1], activation, use_bias=bias)
    model = keras.Sequential([keras.Input((5,)), *parts, last])
    random = np.random.default_rng(seed)
    for v in model.trainable_variables:
        v.assign(random.normal(size=tuple(v.shape), scale=0.7))
    return compiled(model, loss=loss)


def examples(n=30, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 5)).astype("float32")


def kernels(model, c):
    return {v.path: c for v in model.trainable_variables if len(v.shape) == 2}


@pytest.mark.parametrize("bias", [True, False])
def test_one_layer_under_a_squared_error_is_exact(bias, monkeypatch):
    monkeypatch.setattr(kronecker, "BATCH", 12)  # 12, 12 and 6 examples
    model, x = network([3], bias=bias), examples() + 0.5
    c = kernels(model, 0.03)
    found = gamma_by_kronecker(model, x, c, len(x))
    assert found == pytest.approx(gamma_dense(output_rows(model, x), c), rel=1e-4)


def test_sum_stays_within_the_rank_that_the_examples_allow():
    model, x = network([8, 4], "categorical_crossentropy", "softmax"), examples(6)
    # Next to no penalty: each weight would count.
    c = kernels(model, 1e-9)
    found = gamma_by_kronecker(model, x, c, samples=6)
    assert sum(found.values()) == pytest.approx(6 * 3)
    assert sum(gamma_by_kronecker(model, x, c, samples=10**6).values()) > 6 * 3


def test_it_lies_below_the_diagonal_of_its_own_factors():
    for seed in range(5):
        model = network([6, 3], "categorical_crossentropy", "softmax", seed=seed)
        for inputs, gradients in kronecker.kronecker_factors(
            model, examples(seed=seed)
        ).values():
            diagonals = np.diag(np.diag(inputs)), np.diag(np.diag(gradients))
            exact = gamma_of_factors(inputs, gradients, 0.01)
            whole = np.kron(inputs, gradients)
            inverse = np.linalg.inv(whole + 0.02 * np.eye(len(whole)))
            assert exact == pytest.approx(np.trace(whole @ inverse), rel=1e-6)
            assert exact < gamma_of_factors(*diagonals, 0.01)


def test_it_lies_between_exact_and_diagonal_on_random_models():
    # Seen, not proven, but for what the test above has.
    for seed in range(3):
        model = network([6, 3], "categorical_crossentropy", "softmax", seed=seed)
        x, c = examples(seed=seed), kernels(model, 0.01)
        rows = output_rows(model, x)
        squares = [np.sum(rows[path] ** 2, axis=0) for path in c]
        diagonal = sum(np.sum(s / (s + 0.02)) for s in squares)
        found = sum(gamma_by_kronecker(model, x, c, len(x)).values())
        assert sum(gamma_dense(rows, c).values()) < found < diagonal


def test_more_rows_than_can_be_inverted_are_counted_by_it(monkeypatch):
    monkeypatch.setattr(evidence, "MOST_ROWS", 20)
    model, x = network([3]), examples()
    for layer in model.layers:
        layer.kernel.regularizer = keras.regularizers.L2(0.03)
    expected = gamma_dense(output_rows_of_all(model, x), kernels(model, 0.03))
    assert determined_parameters(model, x) == pytest.approx(expected, rel=1e-4)
    inputs = keras.Input((5, 1))
    hidden = layers.Flatten()(layers.Conv1D(2, 3, kernel_regularizer="l2")(inputs))
    model = compiled(keras.Model(inputs, layers.Dense(3)(hidden)))
    with pytest.raises(ValueError, match=r"conv1d.*kernels of Dense layers alone"):
        determined_parameters(model, x[:, :, None])


def output_rows_of_all(model, x):
    """In parts, none of which is refused."""
    parts = [output_rows(model, x[i : i + 6]) for i in range(0, 30, 6)]
    return {p: np.concatenate([r[p] for r in parts]) / 5**0.5 for p in parts[0]}
