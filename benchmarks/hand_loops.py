"""The limit: dense networks trained by loops written by hand, one for each backend.

Momentum SGD on softmax cross-entropy with an L2 penalty on the kernels; the data lie on
the device, each epoch is one program (on PyTorch a plain loop). No validation, no
metrics, no gradient norms, no Keras.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

RATE, MOMENTUM, C, BATCH = 0.05, 0.9, 1e-4, 64

Epoch = Callable[[np.ndarray], None]
"""Trains on batches in this order ``(steps, batch size)``, and waits for the end."""


def start(widths: list[int]) -> list[np.ndarray]:
    """Kernels and biases, He-normal and 0."""
    random = np.random.default_rng(0)
    found = []
    for fan_in, units in itertools.pairwise(widths):
        kernel = random.normal(0, (2 / fan_in) ** 0.5, (fan_in, units))
        found += [kernel.astype("float32"), np.zeros(units, "float32")]
    return found


def jax_loop(x: np.ndarray, y: np.ndarray, widths: list[int]) -> Epoch:
    import jax
    import jax.numpy as jnp

    def loss(weights: Any, x: Any, y: Any) -> Any:
        *hidden, last = zip(weights[::2], weights[1::2], strict=True)
        for kernel, bias in hidden:
            x = jax.nn.relu(x @ kernel + bias)
        logits = jax.nn.log_softmax(x @ last[0] + last[1])
        data = -jnp.mean(jnp.take_along_axis(logits, y[:, None], 1))
        return data + C * sum(jnp.sum(w**2) for w in weights[::2])

    def step(state: Any, chosen: Any) -> Any:
        weights, velocity, x, y = state
        gradients = jax.grad(loss)(weights, x[chosen], y[chosen])
        velocity = [
            MOMENTUM * v - RATE * g for v, g in zip(velocity, gradients, strict=True)
        ]
        weights = [w + v for w, v in zip(weights, velocity, strict=True)]
        return (weights, velocity, x, y), 0.0

    @jax.jit
    def epoch(weights: Any, velocity: Any, x: Any, y: Any, order: Any) -> Any:
        (weights, velocity, *_), _ = jax.lax.scan(
            step, (weights, velocity, x, y), order
        )
        return weights, velocity

    data = jnp.asarray(x), jnp.asarray(y)
    weights = [jnp.asarray(w) for w in start(widths)]
    state = [weights, [jnp.zeros_like(w) for w in weights]]

    def run(order: np.ndarray) -> None:
        state[:] = jax.block_until_ready(epoch(*state, *data, order))

    return run


def tensorflow_loop(x: np.ndarray, y: np.ndarray, widths: list[int]) -> Epoch:
    import tensorflow as tf

    weights = [tf.Variable(w) for w in start(widths)]
    velocity = [tf.Variable(tf.zeros_like(w)) for w in weights]
    data = tf.constant(x), tf.constant(y)

    def step(chosen: Any) -> None:
        x, labels = tf.gather(data[0], chosen), tf.gather(data[1], chosen)
        with tf.GradientTape() as tape:
            *hidden, last = zip(weights[::2], weights[1::2], strict=True)
            for kernel, bias in hidden:
                x = tf.nn.relu(x @ kernel + bias)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
                labels, x @ last[0] + last[1]
            )
            penalty = tf.add_n([tf.nn.l2_loss(w) for w in weights[::2]])
            loss = tf.reduce_mean(losses) + 2 * C * penalty
        for w, v, g in zip(
            weights, velocity, tape.gradient(loss, weights), strict=True
        ):
            v.assign(MOMENTUM * v - RATE * g)
            w.assign_add(v)

    @tf.function(jit_compile=True)
    def epoch(order: Any) -> None:
        for i in tf.range(len(order)):
            step(order[i])

    return lambda order: epoch(tf.constant(order)) or weights[0].numpy()[:1].sum()


def torch_loop(x: np.ndarray, y: np.ndarray, widths: list[int]) -> Epoch:
    import torch

    weights = [torch.tensor(w, requires_grad=True) for w in start(widths)]
    groups = [
        {"params": weights[::2], "weight_decay": 2 * C},
        {"params": weights[1::2]},
    ]
    optimizer = torch.optim.SGD(groups, lr=RATE, momentum=MOMENTUM)
    features, labels = torch.tensor(x), torch.tensor(y).long()

    def run(order: np.ndarray) -> None:
        for chosen in torch.as_tensor(order):
            hidden = features[chosen]
            for kernel, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
                hidden = torch.relu(hidden @ kernel + bias)
            logits = hidden @ weights[-2] + weights[-1]
            loss = torch.nn.functional.cross_entropy(logits, labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run


LOOPS = {"jax": jax_loop, "tensorflow": tensorflow_loop, "torch": torch_loop}
