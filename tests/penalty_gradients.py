"""Gradients of a model's penalties alone, by the backend's own differentiation."""

import keras
import numpy as np
from autodiff import numpy64
from keras import ops

if keras.config.backend() == "tensorflow":
    import tensorflow as tf

    def _gradients(variables, function):
        with tf.GradientTape() as tape:
            value = function()
        return tape.gradient(value, [v.value for v in variables])

elif keras.config.backend() == "jax":
    import jax

    def _gradients(variables, function):
        def at(tensors):
            with keras.StatelessScope(list(zip(variables, tensors, strict=True))):
                return function()

        return jax.grad(at)([v.value for v in variables])

else:
    import torch

    def _gradients(variables, function):
        values = [v.value for v in variables]
        return torch.autograd.grad(function(), values, allow_unused=True)


def penalty_gradients(model):
    """Path of each trainable weight -> gradient of ``sum(model.losses)``, float64.

    Zeros where the penalties do not reach.
    """
    variables = model.trainable_variables
    gradients = _gradients(
        variables, lambda: sum(ops.cast(loss, "float32") for loss in model.losses)
    )
    return {
        v.path: np.zeros(tuple(v.shape)) if g is None else numpy64(g)
        for v, g in zip(variables, gradients, strict=True)
    }
