"""Value and gradient of a function of one tensor, on the backend in use."""

import contextlib

import keras
import numpy as np
from keras import ops

if keras.config.backend() == "tensorflow":
    import tensorflow as tf

    def _value_and_gradient(function, tensor):
        with tf.GradientTape() as tape:
            tape.watch(tensor)
            value = function(tensor)
        return value, tape.gradient(value, tensor)

    def compiled(function):
        return tf.function(function, jit_compile=True)

    with_float64 = contextlib.nullcontext

elif keras.config.backend() == "jax":
    import jax

    def _value_and_gradient(function, tensor):
        return jax.value_and_grad(function)(tensor)

    def compiled(function):
        return jax.jit(function)

    def with_float64():
        """JAX makes float32 of float64 unless it is told not to."""
        # Up to 0.7 it stood among the experiments.
        if hasattr(jax, "enable_x64"):
            return jax.enable_x64(True)
        from jax import experimental

        return experimental.enable_x64(True)

else:

    def _value_and_gradient(function, tensor):
        leaf = tensor.detach().requires_grad_(True)
        value = function(leaf)
        value.backward()
        return value.detach(), leaf.grad

    def compiled(function):
        # Keras runs torch without a compiler unless the user asks for one.
        return function

    with_float64 = contextlib.nullcontext


def value_and_gradient(function, tensor):
    """(value, gradient) as tensors of the backend; the value must be a scalar."""
    value, gradient = _value_and_gradient(function, tensor)
    assert tuple(value.shape) == ()
    assert gradient is not None
    assert tuple(gradient.shape) == tuple(tensor.shape)
    return value, gradient


def numpy(tensor):
    """A tensor or variable as a NumPy array of its own dtype."""
    # NumPy warns when it is given a Keras variable.
    return ops.convert_to_numpy(ops.convert_to_tensor(tensor))


def numpy64(tensor):
    """A tensor or variable of any dtype as float64 NumPy, without rounding."""
    tensor = ops.convert_to_tensor(tensor)
    if keras.backend.standardize_dtype(tensor.dtype) != "float64":
        tensor = ops.cast(tensor, "float32")
    return np.asarray(ops.convert_to_numpy(tensor), dtype=np.float64)
