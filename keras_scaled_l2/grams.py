"""Gram matrices of the outputs' gradients, at a cost that few weights change.

A row is the gradient of one output of one example. For a dense layer it is an outer
product, so that two rows have the inner product ``(a_i . a_j) (d_i . d_j)`` of the
layer's inputs ``a`` and of the gradients ``d`` before its activation.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_scaled_l2 import _keras
from keras_scaled_l2.counts import elements
from keras_scaled_l2.curvature import directions, rows_per_example, transformed
from keras_scaled_l2.gradients import (
    Tensor,
    gradient_function,
    shift_gradients,
    to_numpy,
)
from keras_scaled_l2.handles import shadow

# Rows are float32: what is smaller is rounding, such as a shift of all logits.
RANK = 1e-5
_MOST_FREE = 0.1
_MOST_NUMBERS = 2**28


class Rows(NamedTuple):
    """What the gradients of some examples say of each weight."""

    grams: dict[str, Any]
    """Path of a weight -> ``R R^T``, of (rows, rows)."""
    free: list[Any]
    """Rows of weights without a prior, of (rows, elements)."""


class RowFinder:
    """Finds the Gram matrices of a model's weights, as often as it is asked.

    Args:
        model: A built and compiled model of one output.
        x: Examples; as many are taken in each call.
        penalized: Paths of the weights with a prior.

    Attributes:
        unknown: Paths of the weights that it cannot do: the rows of all others but
            dense layers are written out, and those of these are too long.
    """

    def __init__(self, model: keras.Model, x: Any, penalized: Collection[str]) -> None:
        self._model = model
        rows = len(x) * rows_per_example(model)
        self._layers = _factorized(model, x[:1])
        kernels = {id(_keras.kernel_variable(layer)) for layer in self._layers}
        biases = {id(la.bias) for la in self._layers if la.bias is not None}
        self._free = _free(model, rows, penalized)
        self._written = [
            v
            for v in model.trainable_variables
            if id(v) not in kernels | biases and v.path in {*penalized, *self._free}
        ]
        self._grams = set(penalized)
        long = {
            v.path for v in self._written if elements(v.shape) * rows > _MOST_NUMBERS
        }
        self.unknown = sorted(long & {*penalized})
        self._written = [v for v in self._written if v.path not in long]
        self._gradients = shift_gradients(model, self._shifted, directions(model))
        self._explicit = written_rows(model) if self._written else None

    def _shifted(self, x: Tensor, shifts: Sequence[Tensor]) -> tuple[Tensor, Any]:
        with _shifts(self._layers, shifts) as seen:
            outputs = self._model(x, training=False)
        # A model may have half precision inside.
        z = transformed(self._model)(ops.cast(outputs, "float32"))
        return z, [ops.cast(a, "float32") for a in seen]

    @property
    def layers(self) -> list[Any]:
        """The dense layers whose rows are outer products."""
        return self._layers

    def factors(self, x: Any) -> tuple[Any, list[tuple[Any, Any, Any]]]:
        """What the rows of dense layers are outer products of.

        Returns:
            The transformed outputs; and of each layer itself, its inputs, and the
            gradients before its activation (examples x rows, units), divided by the
            root of the examples.
        """
        n = len(x)
        shifts = [np.zeros((n, la.units), "float32") for la in self._layers]
        z, inputs, found = self._gradients(x, shifts)
        # (rows, examples, units) -> (examples x rows, units).
        flat = [np.swapaxes(d, 0, 1).reshape(-1, d.shape[-1]) / n**0.5 for d in found]
        return z, list(zip(self._layers, inputs, flat, strict=True))

    def __call__(self, x: Any) -> Rows:
        """The Gram matrices for as many examples as were given before."""
        n = len(x)
        z, parts = self.factors(x)
        grams: dict[str, Any] = {}
        rows_of: dict[str, Any] = {}
        for layer, a, flat in parts:
            kernel = _keras.kernel_variable(layer).path
            if kernel in self._grams:
                grams[kernel] = _outer_gram(a, flat)
            elif kernel in self._free:
                each = np.repeat(a, len(flat) // n, axis=0)
                outer = each[:, :, None] * flat[:, None, :]
                rows_of[kernel] = outer.reshape(len(flat), -1)
            if layer.bias is not None:
                rows_of[layer.bias.path] = flat
        if self._explicit is not None:
            along = np.swapaxes(directions_of(self._model, z), 0, 1)
            rows_of |= self._explicit(x, along, self._written)
        for path in self._grams & rows_of.keys():
            grams[path] = rows_of[path] @ rows_of[path].T
        return Rows(grams, [rows_of[p] for p in self._free if p in rows_of])


def directions_of(model: keras.Model, z: Any) -> Any:
    """``directions`` of outputs that are NumPy arrays already."""
    return to_numpy(directions(model)(ops.convert_to_tensor(z)))


def gamma_by_grams(
    grams: Mapping[str, Any], free: Sequence[Any], coefficients: Mapping[str, float]
) -> dict[str, float]:
    """Gamma of each weight, in the space of the rows.

    Formula: ``gamma_l = tr (I + G)^-1 G_l`` with ``G_l = R_l R_l^T / (2 c_l)`` and
    ``G`` their sum. What the rows of free weights span is projected out, the limit of
    a coefficient that goes to 0.

    Args:
        grams: Path -> ``R_l R_l^T``.
        free: Rows of weights without a coefficient.
        coefficients: Path -> ``c_l``, above 0.
    """
    size = len(next(iter(grams.values())))
    basis = span(free, size)
    parts = {p: _without(g, basis) / (2.0 * coefficients[p]) for p, g in grams.items()}
    total = np.eye(size)
    for part in parts.values():
        total += part
    inverse = np.linalg.inv(total)
    return {p: float(np.sum(inverse * part)) for p, part in parts.items()}


def gamma_of_all(
    rows: Rows, coefficients: Mapping[str, float], examples: int, m: int
) -> dict[str, float]:
    """Gamma of ``m`` examples by the rows of a few of them.

    Few examples have a low rank, and so a low gamma. ``1 / gamma = a / s + b`` holds
    for ``s`` examples where each has rows of its own (``b = 2 c / kappa``), and where
    all share a space that they have filled (``b = 1 / rank``). The examples and half
    of them give ``a`` and ``b`` for the sum over the weights.

    Args:
        rows: Of the examples, as from ``RowFinder``.
        coefficients: Path -> ``c_l``, above 0.
        examples: How many there are.
        m: How many there are in all.
    """
    found = gamma_by_grams(rows.grams, rows.free, coefficients)
    half = examples // 2
    if m <= examples or not half:
        return found
    size = half * (len(next(iter(rows.grams.values()))) // examples)
    scale = examples / half
    part = {p: scale * g[:size, :size] for p, g in rows.grams.items()}
    fewer = gamma_by_grams(part, [f[:size] for f in rows.free], coefficients)
    whole, less = sum(found.values()), sum(fewer.values())
    if not 0 < less < whole:
        return found
    a = (1 / less - 1 / whole) / (1 / half - 1 / examples)
    share = min(a / examples * whole, 1.0)
    factor = 1 / (1 - share * (1 - examples / m))
    return {p: factor * g for p, g in found.items()}


def span(free: Sequence[Any], size: int) -> Any:
    """An orthonormal basis of what the rows of free weights span."""
    if not free:
        return np.zeros((size, 0))
    left, values, _ = np.linalg.svd(
        np.concatenate([np.asarray(f, "float64") for f in free], axis=1),
        full_matrices=False,
    )
    least = RANK * max(values.max(initial=0.0), 1e-12)
    return left[:, values > least]


def _without(gram: Any, basis: Any) -> Any:
    gram = np.asarray(gram, "float64")
    if not basis.shape[1]:
        return gram
    gram = gram - basis @ (basis.T @ gram)
    return gram - (gram @ basis) @ basis.T


def _outer_gram(a: Any, d: Any) -> Any:
    """Inner products of outer products, of examples ``a`` and of their rows ``d``."""
    rows = len(d) // len(a)
    return np.repeat(np.repeat(a @ a.T, rows, 0), rows, 1) * (d @ d.T)


def _free(model: keras.Model, rows: int, penalized: Collection[str]) -> set[str]:
    """Weights without a prior whose flat prior the rows can bear.

    Of few examples many free weights would explain all, and leave no gamma: the
    largest of them are taken for given.
    """
    others = [v for v in model.trainable_variables if v.path not in penalized]
    left = _MOST_FREE * rows
    found = set()
    for variable in sorted(others, key=lambda v: elements(v.shape)):
        left -= elements(variable.shape)
        if left < 0:
            break
        found.add(variable.path)
    return found


def _factorized(model: keras.Model, x: Any) -> list[Any]:
    """Dense layers that are called once, on one vector for each example."""
    layers = [
        layer
        for layer in _keras.layers_within(model)
        if type(layer) is keras.layers.Dense
        and layer.quantization_mode is None
        and not layer.lora_enabled
        and layer.trainable
    ]
    calls: dict[int, list[int]] = {id(layer): [] for layer in layers}

    def noted(layer: Any) -> Any:
        call = layer.call

        def counted(inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            calls[id(layer)].append(len(inputs.shape))
            return call(inputs, *args, **kwargs)

        return counted

    with contextlib.ExitStack() as stack:
        for layer in layers:
            stack.enter_context(shadow(layer, "call", noted(layer)))
        model(ops.convert_to_tensor(x), training=False)
    return [layer for layer in layers if calls[id(layer)] == [2]]


@contextlib.contextmanager
def _shifts(
    layers: Sequence[Any], shifts: Sequence[Tensor]
) -> Iterator[list[Tensor | None]]:
    """Adds to what each layer activates; its inputs are in the list that is given."""
    seen: list[Tensor | None] = [None] * len(layers)

    def cover(place: int, layer: Any, shift: Tensor) -> None:
        call, activation = layer.call, layer.activation

        def noted(inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            seen[place] = inputs
            return call(inputs, *args, **kwargs)

        def shifted(z: Tensor) -> Tensor:
            return activation(z + ops.cast(shift, z.dtype))

        stack.enter_context(shadow(layer, "call", noted))
        stack.enter_context(shadow(layer, "activation", shifted))

    with contextlib.ExitStack() as stack:
        for place, (layer, shift) in enumerate(zip(layers, shifts, strict=True)):
            cover(place, layer, shift)
        yield seen


def written_rows(
    model: keras.Model,
) -> Callable[[Any, Any, Sequence[keras.Variable]], dict[str, Any]]:
    """Rows that are written out, one backward pass for each.

    Returns:
        A function of examples, the directions of each (rows, units), and the weights
        that are wanted: path -> (examples x rows, elements).
    """

    def chosen(inputs: Tensor, direction: Tensor) -> Tensor:
        outputs = ops.cast(model(inputs, training=False), "float32")
        return ops.sum(transformed(model)(outputs) * direction)

    gradients = gradient_function(model, chosen)

    def rows(x: Any, along: Any, wanted: Sequence[keras.Variable]) -> dict[str, Any]:
        found: dict[str, list[Any]] = {v.path: [] for v in wanted}
        for example, vectors in enumerate(along):
            inputs = ops.convert_to_tensor(x[example : example + 1])
            for direction in vectors:
                every = gradients(inputs, ops.convert_to_tensor(direction))
                pairs = zip(model.trainable_variables, every, strict=True)
                for variable, gradient in pairs:
                    if variable.path in found:
                        found[variable.path].append(_flat(variable, gradient))
        return {p: np.stack(f) / len(x) ** 0.5 for p, f in found.items()}

    return rows


def _flat(variable: keras.Variable, gradient: Tensor | None) -> Any:
    if gradient is None:
        return np.zeros(elements(variable.shape))
    return np.asarray(to_numpy(ops.cast(gradient, "float32")), "float64").reshape(-1)
