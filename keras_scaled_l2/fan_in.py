"""How many inputs a unit sums, from a weight's shape and from its layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras

Shape = tuple[int, ...]


def fan_in_of_shape(shape: Sequence[int]) -> int:
    """Fan-in as Keras's initializers read it from a shape.

    All dimensions but the last (the units): ``(in, out)`` gives ``in``, a convolution's
    ``(..., in, out)`` the receptive field times ``in``. A vector gives its length, a
    scalar 1.
    """
    sizes = tuple(shape)
    return math.prod(sizes[:-1]) if len(sizes) > 1 else math.prod(sizes)


def fan_in(layer: keras.Layer, variable: keras.Variable) -> float:
    """Number of inputs that one unit of the layer sums through this weight.

    Where the shape alone misleads, the layer tells: a depthwise convolution sums its
    window and no channels; a transposed one all input channels, over the part of its
    window that the strides leave to an output (the mean over outputs, at least one
    input in each direction); an einsum the dimensions of its kernel that the output
    lacks, which is what attention's kernels are; an embedding looks up one row; what a
    wrapped torch module holds is stored ``(out, in, ...)``; a bias,
    a scale and an offset take one input each.

    Args:
        layer: The layer that owns the weight.
        variable: The weight.

    Returns:
        The fan-in, 1 or more for a weight that has elements.
    """
    shape = tuple(int(d) for d in variable.shape)
    layers = keras.layers
    if isinstance(layer, layers.TorchModuleWrapper):
        return _fan_in_of_torch(layer.module, variable.value, shape)
    if is_per_unit(layer, variable) or _looks_up(layer, variable):
        return 1
    if variable.name == "depthwise_kernel" or isinstance(
        layer, (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
    ):
        return math.prod(shape[:-2])
    if variable.name == "kernel" and isinstance(
        layer,
        (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose),
    ):
        strides: Shape = layer.strides
        window = zip(shape[:-2], strides, strict=True)
        return shape[-1] * math.prod(max(k / s, 1) for k, s in window)
    # The first factor of LoRA has the kernel's dimensions but for the last.
    if variable.name in ("kernel", "lora_kernel_a") and isinstance(
        layer, layers.EinsumDense
    ):
        return _fan_in_of_einsum(layer.equation, shape)
    return fan_in_of_shape(shape)


def _fan_in_of_torch(module: Any, parameter: Any, shape: Shape) -> float:
    """Of a torch module's weight, which torch stores as ``(out, in, ...)``.

    A transposed convolution has ``(in, out, ...)``, and leaves the part of its window
    that the strides leave; an embedding looks up one row.
    """
    path, owner = _place_in_torch(module, parameter)
    kind = type(owner).__name__
    if len(shape) < 2 or "Embedding" in kind or _is_per_unit_in_torch(path, kind):
        return 1
    if "Transpose" in kind:
        window = zip(shape[2:], owner.stride, strict=True)
        inputs = shape[0] / owner.groups
        return float(inputs * math.prod(max(k / s, 1) for k, s in window))
    return math.prod(shape[1:])


def _place_in_torch(module: Any, parameter: Any) -> tuple[str, Any]:
    """The path of a parameter in a torch module, and the module that owns it."""
    # Not always there: pruning and other hooks put new parameters in their place.
    paths = (path for path, own in module.named_parameters() if own is parameter)
    path = next(paths, "")
    # A parametrization keeps what it makes a weight of in a module below the owner.
    below, found, _ = path.partition("parametrizations.")
    prefix = below.rstrip(".") if found else path.rpartition(".")[0]
    return path, module.get_submodule(prefix) if path else None


def _is_per_unit_in_torch(path: str, kind: str) -> bool:
    # Of several dimensions too: LayerNorm((3, 4)) scales each element by itself.
    # And the norms that weight normalization makes of a weight.
    return "Norm" in kind or path.endswith(("bias", "weight_g", ".original0"))


def is_per_unit(layer: keras.Layer, variable: keras.Variable) -> bool:
    """Whether a weight is a bias, a scale or an offset, by the names Keras gives.

    The number of dimensions does not tell: GRU's bias has two, attention's biases too.
    What a wrapped torch module or ``FlaxLayer`` holds is called as it calls it.

    Args:
        layer: The layer that owns the weight.
        variable: The weight.
    """
    if isinstance(layer, keras.layers.TorchModuleWrapper):
        path, owner = _place_in_torch(layer.module, variable.value)
        return _is_per_unit_in_torch(path, type(owner).__name__)
    name = _name(layer, variable)
    return "bias" in name or name in ("gamma", "beta", "alpha", "scale")


def _looks_up(layer: keras.Layer, variable: keras.Variable) -> bool:
    """Whether a weight is a table of which each example takes rows."""
    if isinstance(layer, keras.layers.JaxLayer):
        return _name(layer, variable) == "embedding"
    return isinstance(layer, keras.layers.Embedding) and variable.name in (
        "embeddings",
        "lora_embeddings_a",
    )


def _name(layer: keras.Layer, variable: keras.Variable) -> str:
    """What a layer calls a weight: Keras numbers those in the tree of a JaxLayer."""
    if isinstance(layer, keras.layers.JaxLayer):
        for path, leaf in keras.tree.flatten_with_path(layer.params):
            if leaf is variable and path:
                return str(path[-1])
    return str(variable.name)


def format_fan_ins(fan_ins: Mapping[Shape, float]) -> str | None:
    """Fan-ins by shape as a string, for those that the shape alone does not tell."""
    told = {s: f for s, f in fan_ins.items() if f != fan_in_of_shape(s)}
    parts = ("x".join(map(str, s)) + f":{f:.17g}" for s, f in sorted(told.items()))
    return " ".join(parts) or None


def parse_fan_ins(text: str) -> dict[Shape, float]:
    """The inverse of ``format_fan_ins``.

    Raises:
        ValueError: If the text has another form.
    """
    try:
        if not isinstance(text, str):  # bytes split too, and no file can hold them
            raise TypeError(f"a string, got {type(text).__name__}")
        pairs = (part.split(":") for part in text.split())
        return {tuple(map(int, s.split("x"))): float(f) for s, f in pairs}
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"inferred_fan_in={text!r}: expected shapes and their fan-in such as "
            "'8x2x4:8', as attach and bind write it."
        ) from error


def _fan_in_of_einsum(equation: str, shape: Shape) -> int:
    operands, output = equation.replace(" ", "").split("->")
    kernel = operands.split(",")[1]
    sizes = zip(kernel.replace(".", ""), shape, strict=True)
    return math.prod(size for label, size in sizes if label not in output)
