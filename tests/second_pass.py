"""The gradient of a model's loss on one batch, by a backward pass of its own."""

import keras
import numpy as np
from keras import ops

if keras.config.backend() == "tensorflow":
    import tensorflow as tf

    def _gradients(model, loss):
        with tf.GradientTape() as tape:
            value = loss()
        return tape.gradient(value, [v.value for v in model.trainable_variables])

    def _dense(gradient):
        if not isinstance(gradient, tf.IndexedSlices):
            return ops.convert_to_numpy(gradient)
        whole = np.zeros(tuple(gradient.dense_shape), "float64")
        # A row that stands twice counts twice.
        np.add.at(whole, gradient.indices.numpy(), gradient.values.numpy())
        return whole

elif keras.config.backend() == "jax":
    import jax

    def _gradients(model, loss):
        def of_values(values):
            mapping = zip(model.trainable_variables, values, strict=True)
            with keras.StatelessScope(list(mapping), collect_losses=True):
                return loss()

        return jax.grad(of_values)([v.value for v in model.trainable_variables])

    _dense = np.asarray

else:
    import torch

    def _gradients(model, loss):
        return torch.autograd.grad(
            loss(), [v.value for v in model.trainable_variables], allow_unused=True
        )

    _dense = ops.convert_to_numpy


def gradients(model, x, y=None, sample_weight=None, *, scale=1.0):
    """Gradients of the loss by the trainable weights, in their order, as float64.

    The gradient is zero where the loss does not reach. A loss multiplied by ``scale``
    (a loss scale) is divided by it again afterwards, in float64.
    """
    x, y, sample_weight = (
        keras.tree.map_structure(
            lambda leaf: None if leaf is None else ops.convert_to_tensor(leaf), data
        )
        for data in (x, y, sample_weight)
    )

    def loss():
        y_pred = model(x, training=True)
        return scale * model.compute_loss(
            x=x, y=y, y_pred=y_pred, sample_weight=sample_weight
        )

    return [
        np.zeros(tuple(v.shape))
        if gradient is None
        else np.asarray(_dense(gradient), dtype="float64") / scale
        for v, gradient in zip(
            model.trainable_variables, _gradients(model, loss), strict=True
        )
    ]
