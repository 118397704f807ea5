"""gamma and the coefficients of the evidence, against float64 and scikit-learn."""

import keras
import numpy as np
import pytest
from autodiff import numpy64
from keras import layers
from models import compiled
from sklearn.linear_model import ARDRegression, BayesianRidge

from keras_scaled_l2 import ScaledL2
from keras_scaled_l2.evidence import (
    evidence_strengths,
    gamma_by_dual,
    gamma_by_hutchinson,
    gamma_dense,
    output_rows,
)
from keras_scaled_l2.grams import RowFinder, Rows, gamma_of_all

EXACT = {"alpha_1": 0, "alpha_2": 0, "lambda_1": 0, "lambda_2": 0, "tol": 1e-12}


def l2(c):
    return ScaledL2(c, per=1)


def regression(m=60, features=5, seed=0):
    random = np.random.default_rng(seed)
    x = random.normal(size=(m, features))
    y = x @ random.normal(size=features) + 3 + random.normal(size=m)
    return x.astype("float32"), y.astype("float32")


def unit(c, activation=None, loss="mse", features=5):
    model = keras.Sequential(
        [
            keras.Input((features,)),
            layers.Dense(1, activation, kernel_regularizer=l2(c), name="unit"),
        ]
    )
    return compiled(model, loss=loss)


def put(model, w, b):
    model.layers[-1].set_weights([w.reshape(-1, 1), np.reshape(b, (1,))])


def ridge(x, y, c):
    """Minimum of mean((x w + b - y)**2) + sum(c w**2), in float64."""
    x, y = x.astype("float64"), y.astype("float64")
    xc, yc = x - x.mean(0), y - y.mean()
    c = np.broadcast_to(c, x.shape[1])
    w = np.linalg.solve(xc.T @ xc / len(x) + np.diag(c), xc.T @ yc / len(x))
    return w, y.mean() - x.mean(0) @ w


def test_fixed_point_of_a_linear_model_is_bayesian_ridge():
    x, y = regression()
    oracle = BayesianRidge(**EXACT, max_iter=2000).fit(x, y)
    c = 0.1
    for _ in range(8):
        model = unit(c)
        w, b = ridge(x, y, c)
        put(model, w, b)
        [(c, gamma)] = evidence_strengths(model, x, y).values()
    assert c == pytest.approx(oracle.lambda_ / (len(x) * oracle.alpha_), rel=1e-3)
    np.testing.assert_allclose(w, oracle.coef_, rtol=1e-3)
    noise = np.sum((x @ w + b - y) ** 2) / (len(x) - gamma)
    assert 1 / noise == pytest.approx(oracle.alpha_, rel=1e-3)


def test_one_coefficient_by_feature_is_ard_regression():
    x, y = regression(features=2)
    oracle = ARDRegression(**EXACT, max_iter=2000, threshold_lambda=1e12).fit(x, y)
    c = np.array([0.1, 0.1])
    for _ in range(20):
        inputs = keras.Input((2,))
        parts = [
            layers.Dense(1, use_bias=not j, kernel_regularizer=l2(c[j]))(
                inputs[:, j : j + 1]
            )
            for j in range(2)
        ]
        model = compiled(keras.Model(inputs, layers.add(parts)))
        w, b = ridge(x, y, c)
        dense = [la for la in model.layers if isinstance(la, layers.Dense)]
        dense[0].set_weights([w[:1, None], np.reshape(b, (1,))])
        dense[1].set_weights([w[1:, None]])
        found = evidence_strengths(model, x, y)
        c = np.array([s.coefficient for s in found.values()])
    expected = oracle.lambda_ / (len(x) * oracle.alpha_)
    np.testing.assert_allclose(c, expected, rtol=1e-3)


def logistic(x, y, c):
    """Newton's method for mean cross-entropy + c sum(w**2), and gamma, in float64."""
    a = np.c_[x, np.ones(len(x))].astype("float64")
    prior = np.diag([2 * c] * x.shape[1] + [0.0])
    w = np.zeros(a.shape[1])
    for _ in range(30):
        p = 1 / (1 + np.exp(-a @ w))
        hessian = (a.T * (p * (1 - p))) @ a / len(x)
        w -= np.linalg.solve(hessian + prior, a.T @ (p - y) / len(x) + prior @ w)
    inverse = np.linalg.inv(hessian + prior)
    return w, np.diag(hessian @ inverse)[:-1].sum()


@pytest.mark.parametrize("logits", [False, True])
def test_fixed_point_of_a_logistic_model_is_that_of_float64(logits):
    x, y = regression()
    y = (y > 3).astype("float32")
    expected = c = 0.1
    for _ in range(12):
        model = unit(
            c,
            None if logits else "sigmoid",
            keras.losses.BinaryCrossentropy(from_logits=logits),
        )
        w, _ = logistic(x, y, c)
        put(model, w[:-1], w[-1])
        [(c, gamma)] = evidence_strengths(model, x, y).values()
        w, by_numpy = logistic(x, y, expected)
        expected = by_numpy / (2 * len(x) * np.sum(w[:-1] ** 2))
    assert c == pytest.approx(expected, rel=1e-3)
    assert gamma == pytest.approx(by_numpy, rel=1e-3)
    assert c * np.sum(w[:-1] ** 2) == pytest.approx(gamma / (2 * len(x)), rel=2e-3)


def network(kind):
    sizes = {"dense": (6,), "conv": (6, 2), "embedding": (4,)}
    first = {
        "dense": [layers.Dense(4, "tanh", kernel_regularizer=l2(0.02))],
        "conv": [
            layers.Conv1D(3, 3, activation="tanh", kernel_regularizer=l2(0.02)),
            layers.Flatten(),
        ],
        "embedding": [
            layers.Embedding(7, 2, embeddings_regularizer=l2(0.02)),
            layers.Flatten(),
        ],
    }[kind]
    last = layers.Dense(3, "softmax", kernel_regularizer=l2(0.005))
    inputs = keras.Input(sizes[kind], dtype="int32" if kind == "embedding" else None)
    model = keras.Sequential([inputs, *first, last])
    random = np.random.default_rng(1)
    for v in model.trainable_variables:
        v.assign(random.normal(size=tuple(v.shape)))
    x = random.normal(size=(15, *sizes[kind])).astype("float32")
    if kind == "embedding":
        x = random.integers(0, 7, size=(15, 4)).astype("int32")
    return compiled(model, loss="sparse_categorical_crossentropy"), x


@pytest.mark.parametrize("kind", ["dense", "conv", "embedding"])
def test_dual_is_dense_and_no_more_than_blocks_or_diagonal(kind):
    model, x = network(kind)
    rows = output_rows(model, x)
    c = {
        v.path: v.regularizer.strength
        for v in model.trainable_variables
        if v.regularizer is not None
    }
    dual, dense = gamma_by_dual(rows, c), gamma_dense(rows, c)
    assert dual == pytest.approx(dense, rel=1e-4)
    for path, (mean, error) in gamma_by_hutchinson(rows, c, probes=400).items():
        assert abs(mean - dense[path]) < 4 * error
        assert 0 < error < 0.05 * dense[path]
    exact = sum(dual.values())
    assert 0 < exact < 2 * len(x)
    blocks = sum(gamma_dense({p: rows[p]}, {p: c[p]})[p] for p in c)
    squares = {p: np.sum(rows[p] ** 2, axis=0) for p in c}
    diagonal = sum(np.sum(s / (s + 2 * c[p])) for p, s in squares.items())
    assert exact <= blocks <= diagonal
    assert diagonal > 1.05 * exact


def test_rows_give_the_hessian_of_softmax_by_definition():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, "softmax")])
    compiled(model, loss="categorical_crossentropy")
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    kernel = model.layers[0].kernel
    r = output_rows(model, x)[kernel.path]
    p = numpy64(model(x))
    expected = sum(
        np.kron(np.outer(a, a), np.diag(q) - np.outer(q, q))
        for a, q in zip(x.astype("float64"), p, strict=True)
    ) / len(x)
    np.testing.assert_allclose(r.T @ r, expected, atol=1e-5)


def test_what_the_evidence_cannot_do_is_refused_with_the_remedy():
    x, y = regression()
    with pytest.raises(ValueError, match=r"coefficient 0\.0: expected"):
        evidence_strengths(unit(0.0), x, y)
    with pytest.raises(ValueError, match=r"loss='mae': expected"):
        evidence_strengths(unit(0.1, loss="mae"), x, y)
    ignoring = keras.losses.SparseCategoricalCrossentropy(ignore_class=-1)
    with pytest.raises(ValueError, match=r"without label smoothing and ignore_class"):
        evidence_strengths(unit(0.1, loss=ignoring), x, y)
    summed = keras.losses.MeanSquaredError(reduction="sum")
    with pytest.raises(ValueError, match=r"reduction='sum': expected the mean"):
        evidence_strengths(unit(0.1, loss=summed), x, y)
    for weights in (0.1, [0.1]):
        weighted = unit(0.1)
        weighted.compile("sgd", "mse", loss_weights=weights)
        with pytest.raises(ValueError, match=r"0\.1\]?: expected none\. Compile"):
            evidence_strengths(weighted, x, y)
    with pytest.raises(ValueError, match=r"5001 examples.*subset"):
        output_rows(unit(0.1), np.zeros((5001, 5), "float32"))
    model = keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(1, kernel_regularizer=l2(0.1)),
            layers.BatchNormalization(),
        ]
    )
    with pytest.raises(ValueError, match=r"BatchNormalization; choose"):
        evidence_strengths(compiled(model), x, y)
    sequence = keras.Sequential(
        [keras.Input((3, 5)), layers.Dense(1, kernel_regularizer=l2(0.1))]
    )
    with pytest.raises(ValueError, match=r"one output of shape \(None, units\)"):
        evidence_strengths(compiled(sequence), np.zeros((2, 3, 5), "float32"), y)
    subclassed = Subclassed()
    subclassed(x)
    with pytest.raises(ValueError, match=r"expected a Sequential or functional model"):
        evidence_strengths(compiled(subclassed), x, y)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.unit = layers.Dense(1, kernel_regularizer=l2(0.1))

    def call(self, x):
        return self.unit(x)


def test_few_examples_tell_gamma_of_all_where_each_has_rows_of_its_own():
    # 40 examples of 2 rows, orthogonal, with squares 3 and 5; then all in one space.
    c, m, s = {"w": 0.1}, 400, 40
    squares = np.tile([3.0, 5.0], s) / s
    apart = Rows({"w": np.diag(squares)}, [])
    expected = sum(m * k / (k + m * 2 * c["w"]) for k in (3.0, 5.0))
    assert gamma_of_all(apart, c, s, m)["w"] == pytest.approx(expected, rel=0.01)
    whole = sum(s * k / (k + s * 2 * c["w"]) for k in (3.0, 5.0))
    assert gamma_of_all(apart, c, s, s)["w"] == pytest.approx(whole, rel=1e-9)
    r = np.tile(100 * np.eye(2), (s, 1)) / np.sqrt(s)
    together = Rows({"w": r @ r.T}, [])
    assert gamma_of_all(together, c, s, m)["w"] == pytest.approx(2.0, rel=1e-3)


@pytest.mark.parametrize("logits", [True, False])
def test_rows_of_examples_that_are_certain_are_numbers(logits):
    # float32 has no p between 1 - 6e-8 and 1: from a logit of 17 on it is 1.
    loss = keras.losses.BinaryCrossentropy(from_logits=logits)
    model = unit(0.1, None if logits else "sigmoid", loss, features=1)
    put(model, np.ones(1), 0.0)
    z = np.array([-40.0, -18.0, -8.0, 0.5, 8.0, 18.0, 40.0])
    path = model.layers[0].kernel.path
    rows = RowFinder(model, z[:, None].astype("float32"), [path])
    found = np.diag(rows(z[:, None].astype("float32")).grams[path])
    p = 1 / (1 + np.exp(-z))
    expected = z**2 * p * (1 - p) / len(z)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)
