"""The data of a report: checks, and what they make of the cost and the gradients."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_scaled_l2 import _keras
from keras_scaled_l2.gradients import (
    Tensor,
    loss_gradients,
    sum_of_squares,
    to_numpy,
)
from keras_scaled_l2.parts import Parts, split_loss, weighs_penalties

_LOSS_SCALES = (2.0**15, 2.0**10, 2.0**5, 1.0)
"""Below 6e-8 float16 has only 0; Keras's LossScaleOptimizer starts at the first."""
_NUMBERED = "classes, y = np.unique(y, return_inverse=True)"


def check_given(model: keras.Model, x: Any, y: Any) -> None:
    """Refuse half of the data, and a model that has no loss for them."""
    if x is None or y is None:
        named = {"x": x, "y": y, "sample_weight": None}
        missing = " and ".join(n for n in ("x", "y") if named[n] is None)
        raise ValueError(
            f"Data are given, but {missing} not: expected x and y, to compute the "
            "data cost, or no data."
        )
    if not getattr(model, "compiled", False):
        raise ValueError(
            f"The model {model.name!r} is not compiled, and the data cost needs "
            "its loss: call model.compile(optimizer, loss) first, or report without "
            "data."
        )


def as_arrays(x: Any, y: Any, sample_weight: Any) -> tuple[Any, Any, Any]:
    """The data as arrays of rows, all of one length.

    Args:
        x: Arrays, tensors, data frames, sparse matrices, or lists or dicts of them.
        y: Likewise.
        sample_weight: Likewise, or ``None``.

    Raises:
        TypeError: If they are of another kind.
        ValueError: If there are none, their lengths differ, or they are no numbers.
    """
    for name, data in (("x", x), ("y", y)):
        if not keras.tree.flatten(data):
            raise ValueError(f"{name}={data!r} holds no array: expected at least one.")
    given = {"x": x, "y": y, "sample_weight": sample_weight}
    arrays = {
        name: keras.tree.map_structure(lambda leaf, name=name: _array(name, leaf), data)
        for name, data in given.items()
    }
    leaves = _leaves(arrays.values())
    lengths = {int(leaf.shape[0]) for leaf in leaves}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            f"x, y and sample_weight have {sorted(lengths)} examples: expected the "
            "same number in each, 1 or more."
        )
    return arrays["x"], arrays["y"], arrays["sample_weight"]


def rows(array: Any, start: int, stop: int) -> Any:
    """Some rows of an array, dense: the model computes the same of them."""
    part = array[start:stop]
    return part.toarray() if hasattr(part, "toarray") else part


def check_labels(model: keras.Model, y: Any, y_pred: Any) -> None:
    """Refuse labels that are no class of the model, which backends take differently.

    TensorFlow raises on a processor and gives NaN elsewhere, JAX counts no loss.

    Raises:
        ValueError: With the label, and the labels that the loss expects.
    """
    if weighs_penalties(model):  # a loss of its own need not be the compiled one
        return
    named = y_pred if isinstance(y_pred, dict) else getattr(model, "output_names", ())
    losses, labels, outputs = (
        _in_order(given, named) for given in (model.loss, y, y_pred)
    )
    if not len(losses) == len(labels) == len(outputs):
        return
    for loss, label, output in zip(losses, labels, outputs, strict=True):
        if loss is not None and label is not None:
            _check_labels(model, loss, label, output)


def check_finite(model: keras.Model, cost: float, arrays: tuple[Any, Any, Any]) -> None:
    """Refuse a data cost that is no number, with where it comes from.

    Raises:
        ValueError: With the array or weight that holds NaN or infinite values.
    """
    if math.isfinite(cost):
        return
    for name, data in zip(("x", "y", "sample_weight"), arrays, strict=True):
        found = sum(_not_finite(leaf) for leaf in _leaves([data]))
        if found:
            raise ValueError(
                f"{name} holds {found} NaN or infinite {_values(found)}, and the data "
                f"cost is {cost}: expected numbers. Leave such examples out, or "
                f"replace the values as {name} = np.nan_to_num({name}) does."
            )
    check_weights(model)
    raise ValueError(
        f"The data cost of {model.name!r} is {cost}, though x and y are finite: "
        "expected data of a size that the model's layers and loss can take. Scale "
        "them, as x = (x - x.mean(axis=0)) / x.std() does."
    )


def check_weights(model: keras.Model) -> None:
    """Refuse weights that a training has made NaN or infinite."""
    for variable in model.weights:
        found = _not_finite(variable)
        if found:
            raise ValueError(
                f"The weight {variable.path!r} of {model.name!r} holds {found} NaN or "
                f"infinite {_values(found)}: expected numbers. The training that made "
                "them diverged; report on a model from before that, or train again at "
                "a smaller learning rate."
            )


def _array(name: str, leaf: Any) -> Any:
    """A leaf as something with rows that can be sliced."""
    if leaf is None:
        return None
    if hasattr(leaf, "tocsr"):  # SciPy's sparse matrices: not all of them slice
        leaf = leaf.tocsr()
    elif hasattr(leaf, "iloc"):  # pandas slices by label where it can
        leaf = leaf.to_numpy()
    if not len(getattr(leaf, "shape", ())) or not hasattr(leaf, "__getitem__"):
        raise TypeError(
            f"x, y and sample_weight hold an object of type {type(leaf).__name__}: "
            "expected arrays or tensors, or lists or dicts of them. Of a data set "
            "or a generator pass one batch."
        )
    kind = getattr(leaf.dtype, "kind", "S" if "string" in str(leaf.dtype) else "f")
    # Features may be text, for the layers that read it.
    if kind in ("OMmc" if name == "x" else "OMmcUS"):
        remedy = f" Text becomes numbers with {_NUMBERED}." if name == "y" else ""
        raise ValueError(
            f"{name} holds values of dtype {leaf.dtype}: expected numbers.{remedy}"
        )
    return leaf


def _in_order(given: Any, names: Iterable[str]) -> list[Any]:
    """What was given for each output, in the order of the outputs."""
    # Flattened, a dict is in the order of its keys.
    if isinstance(given, dict) and names:
        given = [given.get(name) for name in names]
    found: list[Any] = keras.tree.flatten(given)
    return found


def _check_labels(model: keras.Model, given: Any, y: Any, output: Any) -> None:
    loss = keras.losses.get(given) if isinstance(given, str) else given
    is_object = isinstance(loss, keras.losses.Loss)
    config = loss.get_config() if is_object else {}
    name = type(loss).__name__ if is_object else getattr(loss, "__name__", "")
    name = name.replace("_", "").lower()
    labels = to_numpy(y)
    if name == "sparsecategoricalcrossentropy":
        units = int(output.shape[config.get("axis", -1)])
        wrong = (labels < 0) | (labels >= units)
        ignored = config.get("ignore_class")
        if ignored is not None:
            wrong &= labels != ignored
        expected = f"whole numbers of 0 to {units - 1}, a class for each output"
    elif name in ("binarycrossentropy", "binaryfocalcrossentropy"):
        wrong = (labels < 0) | (labels > 1)
        expected = "0 and 1"
    else:
        return
    if wrong.any():
        raise ValueError(
            f"y holds the label {labels[wrong].flat[0]:g}: the loss of {model.name!r}, "
            f"{name}, expects {expected}. Number the classes from 0, as {_NUMBERED} "
            "does."
        )


def _leaves(data: Iterable[Any]) -> list[Any]:
    return [leaf for leaf in keras.tree.flatten(list(data)) if leaf is not None]


def _not_finite(leaf: Tensor) -> int:
    """How many values of an array, tensor or variable are NaN or infinite."""
    stored = leaf.data if hasattr(leaf, "toarray") else leaf
    values = stored if isinstance(stored, np.ndarray) else to_numpy(stored)
    if values.dtype.kind in "biuUS":
        return 0
    if values.dtype.kind == "V":  # bfloat16, which NumPy does not know
        values = values.astype("float32")
    return int(np.count_nonzero(~np.isfinite(values)))


def _values(count: int) -> str:
    return "value" if count == 1 else "values"


def data_cost(
    model: keras.Model,
    variables: Sequence[keras.Variable],
    arrays: tuple[Any, Any, Any],
    batch_size: int,
) -> tuple[float, list[float]]:
    """Mean data cost of all examples, batch by batch as ``evaluate`` takes it.

    And with how much each variable's penalty is in the loss, as a mean likewise.
    """
    leaves = (leaf for leaf in keras.tree.flatten(arrays) if leaf is not None)
    count = int(next(leaves).shape[0])
    total, factors = 0.0, [0.0] * len(variables)
    for start in range(0, count, batch_size):
        stop = min(start + batch_size, count)
        share = (stop - start) / count
        arguments = _arguments(model, arrays, start, stop)
        _check_has_loss(model)
        check_labels(model, arguments["y"], arguments["y_pred"])
        parts: Parts = split_loss(model, model.compute_loss, arguments)
        total += number(parts.data) * share
        for i, v in enumerate(variables):
            weight = 1.0 if parts.weights is None else number(parts.weights[id(v)])
            factors[i] += weight * share
    return total, [1.0 if parts.weights is None else factor for factor in factors]


def _check_has_loss(model: keras.Model) -> None:
    """Refuse, after a forward pass, a loss that holds nothing but penalties."""
    if weighs_penalties(model) or _keras.compiled_loss(model) is not None:
        return
    penalized = [v for v in model.trainable_weights if v.regularizer is not None]
    if len(model.losses) <= len(penalized):
        raise ValueError(
            f"The model {model.name!r} is compiled without a loss, and no layer adds "
            "one, so its data cost is unknown: expected model.compile(optimizer, loss) "
            "before, or no data. What a train_step of its own computes is not seen."
        )


def data_gradient_norms(
    model: keras.Model, arrays: tuple[Any, Any, Any], batch_size: int
) -> dict[int, float]:
    """``id`` of each variable -> norm of its gradient of one step, dropout off."""
    half = any(
        layer.compute_dtype == "float16" for layer in _keras.layers_within(model)
    )
    for scale in _LOSS_SCALES if half else (1.0,):
        norms = _scaled_norms(model, arrays, batch_size, scale)
        if all(map(math.isfinite, norms.values())):
            break
    return norms


def _scaled_norms(
    model: keras.Model, arrays: tuple[Any, Any, Any], batch_size: int, scale: float
) -> dict[int, float]:
    # The penalties are given as numbers here, so this is the data's gradient alone.
    gradients = loss_gradients(
        model,
        lambda: scale * model.compute_loss(**_arguments(model, arrays, 0, batch_size)),
    )
    return {
        id(v): 0.0 if g is None else math.sqrt(number(sum_of_squares(g))) / scale
        for v, g in zip(model.trainable_variables, gradients, strict=True)
    }


def _arguments(
    model: keras.Model, arrays: tuple[Any, Any, Any], start: int, stop: int
) -> dict[str, Tensor]:
    """What ``compute_loss`` takes of some examples, after the forward pass."""
    x, y, sample_weight = keras.tree.map_structure(
        lambda a: None if a is None else ops.convert_to_tensor(rows(a, start, stop)),
        arrays,
    )
    arguments = {"x": x, "y": y, "sample_weight": sample_weight}
    arguments["y_pred"] = (
        model(x, training=False) if _keras.passes_training(model) else model(x)
    )
    if _keras.loss_passes_training(model):
        arguments["training"] = False
    return arguments


@contextlib.contextmanager
def left_alone(model: keras.Model) -> Iterator[None]:
    """What a forward pass may change is as it was before: states, metrics, losses."""
    # Not the frozen weights: no forward pass changes them, and they may be many.
    frozen = {
        id(v)
        for layer in _keras.layers_within(model)
        for v in _keras.own_trainable(layer)
    }
    changing = (
        *model.non_trainable_variables,
        *model.metrics_variables,
        *_recurrent_states(model),
    )
    variables = [v for v in changing if id(v) not in frozen]
    before = [to_numpy(v) for v in variables]
    try:
        yield
    finally:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)
        # Keras makes some metrics when it first computes the loss.
        known = {id(v) for v in variables}
        for metric in model.metrics:
            if not known.issuperset(map(id, metric.variables)):
                metric.reset_state()
        _keras.forget_losses(model)


def _recurrent_states(model: keras.Model) -> list[keras.Variable]:
    """Those of stateful layers, which Keras does not count as their variables."""
    states = [
        layer.states
        for layer in _keras.layers_within(model)
        if isinstance(layer, keras.layers.RNN) and layer.stateful
    ]
    return [v for v in keras.tree.flatten(states) if v is not None]


def number(value: Any) -> float:
    """A float, or a scalar tensor, as a float."""
    return value if isinstance(value, float) else float(to_numpy(value))
