"""The rules: each turns counts into the coefficient ``c`` of ``c * sum(w**2)``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import keras

from keras_scaled_l2.counts import elements
from keras_scaled_l2.fan_in import fan_in_of_shape, parse_fan_ins
from keras_scaled_l2.half_life import check_half_life, is_usable
from keras_scaled_l2.rule import PACKAGE, Rule, check_optional
from keras_scaled_l2.validation import fraction, non_negative, positive, positive_count


@keras.saving.register_keras_serializable(package=PACKAGE)
@dataclasses.dataclass(frozen=True, repr=False)
class ScaledL2(Rule):
    """L2 penalty divided by a power of the number of weights.

    Formula: ``c = strength / n**power``, penalty ``c * sum(w**2)``, gradient
    ``2 * c * w``. With ``power=1`` the penalty is ``strength`` times the mean square
    of the ``n`` weights, so its value does not grow with the model; its gradient
    on each weight falls as ``1/n``. ``power=0`` is ``keras.regularizers.L2``. In
    docs/atlas.md the best plain coefficient hardly moves with the count: a full
    division is rarely what a larger network wants.

    Args:
        strength: Penalty per mean square weight; finite, 0 or more.
        per: What ``n`` counts: the weights of the ``"tensor"``, of the ``"layer"``
            that owns it, of the whole ``"model"`` (trainable weights that carry a
            penalty, each once), or a number to divide by.
        power: Exponent of ``n``; finite, 0 or more.
        inferred_per: What ``bind`` counted for ``"layer"`` or ``"model"``; not for
            the user to set.

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> from keras_scaled_l2 import ScaledL2
        >>> ScaledL2(0.5).coefficient((10, 5))
        0.01
    """

    strength: float
    per: Literal["tensor", "layer", "model"] | float = "tensor"
    power: float = 1.0
    _: dataclasses.KW_ONLY
    inferred_per: int | None = None

    inferable: ClassVar[Mapping[str, str]] = {
        "per": "the number of weights to divide by"
    }

    def __post_init__(self) -> None:
        """Checks the arguments and makes them plain Python numbers."""
        set_ = object.__setattr__
        set_(self, "strength", non_negative("strength", self.strength))
        set_(self, "power", non_negative("power", self.power))
        if isinstance(self.per, str):
            if self.per not in ("tensor", "layer", "model"):
                raise ValueError(
                    f"per={self.per!r}: expected 'tensor', 'layer', 'model' or a "
                    "number to divide by."
                )
        else:
            set_(self, "per", positive("per", self.per))
        if self.inferred_per is not None:
            set_(
                self, "inferred_per", positive_count("inferred_per", self.inferred_per)
            )

    @property
    def needs(self) -> frozenset[str]:
        """``layer`` and ``model`` need a count that the tensor does not tell."""
        return frozenset({"per"} if self.per in ("layer", "model") else ())

    def resolve(self, counts: Mapping[str, Any]) -> Self:
        """A copy that knows its layer's or model's count of weights."""
        return super().resolve({"per": counts.get(f"{self.per}_weights")})

    def coefficient(self, shape: Sequence[int | None]) -> float:
        """``strength / n**power``; see ``Rule.coefficient``."""
        if self.per == "tensor":
            # An empty tensor has a penalty of 0 under any coefficient.
            n: float = max(elements(shape), 1)
        elif isinstance(self.per, str):
            if self.inferred_per is None:
                raise self._missing_error(
                    "per", f"per=<number of weights in the {self.per}>"
                )
            n = self.inferred_per
        else:
            n = self.per
        try:
            divisor: float = float(n) ** self.power
        except OverflowError:
            return 0.0
        return self._finite(self.strength / divisor if divisor else math.inf)


@keras.saving.register_keras_serializable(package=PACKAGE)
@dataclasses.dataclass(frozen=True, repr=False)
class SampleL2(Rule):
    """The textbook's L2 penalty, ``lambda / (2 m) * sum(w**2)``.

    Formula: ``c = strength / (2 * samples)``, gradient ``strength / samples * w``.
    With a cost that is a mean over the examples this is the negative logarithm of
    a fixed Gaussian prior (variance ``1 / strength``) divided by ``m``: the more
    data, the less it weighs. ``strength=1/C`` is scikit-learn's
    ``LogisticRegression(C=C)``.

    Args:
        strength: The textbook's lambda; finite, 0 or more.
        samples: Number of training examples ``m``; counted by ``ApplyL2`` or
            ``bind`` when left out.
        inferred_samples: What ``bind`` counted; not for the user to set.

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> from keras_scaled_l2 import SampleL2
        >>> SampleL2(1.0, samples=50).coefficient((10, 5))
        0.01

    Source: Goodfellow, Bengio and Courville, Deep Learning (2016), 7.1.1, with the
    mean over ``m`` examples written out; Hastie, Tibshirani and Friedman, Elements
    of Statistical Learning (2009), eq. 3.41.
    """

    strength: float
    samples: int | None = None
    _: dataclasses.KW_ONLY
    inferred_samples: int | None = None

    inferable: ClassVar[Mapping[str, str]] = {
        "samples": "the number of training examples"
    }

    def __post_init__(self) -> None:
        """Checks the arguments and makes them plain Python numbers."""
        object.__setattr__(self, "strength", non_negative("strength", self.strength))
        check_optional(self, positive_count, "samples")

    def coefficient(self, shape: Sequence[int | None]) -> float:
        """``strength / (2 * samples)``, the same for every shape."""
        samples: int = self._count("samples")
        return self.strength / (2.0 * samples)


@keras.saving.register_keras_serializable(package=PACKAGE)
@dataclasses.dataclass(frozen=True, repr=False)
class PriorL2(Rule):
    """L2 penalty of a Gaussian prior whose scale follows the fan-in.

    Formula: ``c = fan_in / (2 * std**2 * samples)``: the negative logarithm of the
    prior ``w ~ Normal(0, std**2 / fan_in)``, per example, beside a cost that is the
    mean negative log-likelihood. With it a unit's input has the same prior variance
    whatever its number of inputs, as under He's or LeCun's initialization.

    Args:
        std: Standard deviation of the prior on ``w * sqrt(fan_in)``; above 0.
        samples: Number of training examples ``m``; counted when left out.
        fan_in: Number of inputs that one unit sums. Default: what the layer tells
            (``attach`` and ``bind`` look), else the shape as Keras's initializers
            read it.
        inferred_samples: What ``bind`` counted; not for the user to set.
        inferred_fan_in: What ``bind`` found, by shape; not for the user to set.

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> from keras_scaled_l2 import PriorL2
        >>> PriorL2(1.0, samples=500).coefficient((10, 5))
        0.01

    Source: Neal, Bayesian Learning for Neural Networks (1996), 2.1; MacKay, A
    Practical Bayesian Framework for Backpropagation Networks (1992).
    """

    std: float = 1.0
    samples: int | None = None
    fan_in: float | None = None
    _: dataclasses.KW_ONLY
    inferred_samples: int | None = None
    inferred_fan_in: str | None = None

    inferable: ClassVar[Mapping[str, str]] = {
        "samples": "the number of training examples",
        "fan_in": "the number of inputs of a unit",
    }
    optional: ClassVar[frozenset[str]] = frozenset({"fan_in"})

    def __post_init__(self) -> None:
        """Checks the arguments and makes them plain Python numbers."""
        object.__setattr__(self, "std", float(positive("std", self.std)))
        check_optional(self, positive_count, "samples")
        if self.fan_in is not None:
            object.__setattr__(self, "fan_in", positive("fan_in", self.fan_in))
        if self.inferred_fan_in is not None:
            parse_fan_ins(self.inferred_fan_in)

    def coefficient(self, shape: Sequence[int | None]) -> float:
        """``fan_in / (2 * std**2 * samples)``; see ``Rule.coefficient``."""
        samples: int = self._count("samples")
        fan_in = self.fan_in
        if fan_in is None:
            elements(shape)  # refuses unknown dimensions
            sizes = tuple(int(d) for d in shape if d is not None)
            known = parse_fan_ins(self.inferred_fan_in or "")
            fan_in = known.get(sizes, fan_in_of_shape(sizes))
        # Divided by std twice: its square may not be a float.
        return self._finite(fan_in / (2.0 * samples) / self.std / self.std)


@keras.saving.register_keras_serializable(package=PACKAGE)
@dataclasses.dataclass(frozen=True, repr=False)
class HalfLifeL2(Rule):
    """L2 penalty under which a weight that nothing drives halves in some epochs.

    Formula: ``c = ln 2 * b * (1 - mu) / (2 * lr * epochs * m)`` for gradient descent
    with learning rate ``lr``, momentum ``mu``, batch size ``b`` and ``m`` examples:
    each step multiplies the weight by ``1 - 2 c lr / (1 - mu)``, and an epoch has
    ``m / b`` steps. Exact for ``keras.optimizers.SGD`` in the limit of small steps (the
    half-life is many steps); docs/rules.md has what moves it.

    Under a learning-rate schedule it holds at the rate of the moment when the rule was
    bound, and grows as the rate falls: pass the mean rate as ``learning_rate`` to fix
    the total decay of a run. Under gradient accumulation ``b`` is the examples per
    update. A batch with room for more than all examples counts as ``m``.

    Args:
        epochs: Half-life in epochs; above 0.
        samples: Training examples ``m``; counted when left out.
        batch_size: Examples per update ``b``; counted when left out.
        learning_rate: Learning rate; read from the compiled optimizer when left out.
        momentum: Momentum; read from the compiled optimizer when left out.
        inferred_samples: What ``bind`` counted; not for the user to set. So are
            ``inferred_batch_size``, ``inferred_learning_rate``, ``inferred_momentum``.

    Raises:
        ValueError: If an argument is outside its range, or (when bound) if the
            optimizer is adaptive (it divides the penalty's gradient by the gradient's
            size; the error gives the decoupled ``weight_decay`` to use instead), or
            its learning rate, where it is to be read, is 0 at this moment.

    Example:
        >>> from keras_scaled_l2 import HalfLifeL2
        >>> data = {"samples": 5000, "batch_size": 50}
        >>> rule = HalfLifeL2(5, **data, learning_rate=0.1, momentum=0.9)
        >>> round(rule.coefficient((10, 5)), 6)
        0.000693

    Source: the recursion of gradient descent on ``c * sum(w**2)``; for the time scale
    under momentum, Goh, Why Momentum Really Works, Distill (2017).
    """

    epochs: float
    samples: int | None = None
    batch_size: float | None = None
    learning_rate: float | None = None
    momentum: float | None = None
    _: dataclasses.KW_ONLY
    inferred_samples: int | None = None
    inferred_batch_size: float | None = None
    inferred_learning_rate: float | None = None
    inferred_momentum: float | None = None

    inferable: ClassVar[Mapping[str, str]] = {
        "samples": "the number of training examples",
        "batch_size": "the number of examples per update",
        "learning_rate": "the learning rate",
        "momentum": "the momentum",
    }

    def __post_init__(self) -> None:
        """Checks the arguments and makes them plain Python numbers."""
        object.__setattr__(self, "epochs", float(positive("epochs", self.epochs)))
        check_optional(self, positive_count, "samples")
        check_optional(self, positive, "batch_size", "learning_rate")
        check_optional(self, fraction, "momentum")

    def check_optimizer(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Refuses all but ``keras.optimizers.SGD``; see ``Rule.check_optimizer``."""
        check_half_life(self, optimizer, self._count)

    def resolve(self, counts: Mapping[str, Any]) -> Self:
        """A copy that knows its counts; a learning rate of 0 is none."""
        rate = counts.get("learning_rate")
        if rate is None or is_usable(rate):
            return super().resolve(counts)
        # No error, as nobody may ask; nor the rate of an optimizer from before.
        bare = dataclasses.replace(self, inferred_learning_rate=None)
        return bare.resolve({**counts, "learning_rate": None})

    def coefficient(self, shape: Sequence[int | None]) -> float:
        """``ln 2 * b * (1 - mu) / (2 * lr * epochs * m)``, the same for every shape."""
        updates = self._count("samples") / self._count("batch_size")
        decay = math.log(2.0) / self.epochs / self._count("learning_rate")
        return self._finite(decay / updates * (1.0 - self._count("momentum")) / 2.0)


@keras.saving.register_keras_serializable(package=PACKAGE)
@dataclasses.dataclass(frozen=True, repr=False)
class EvidenceL2(Rule):
    """L2 penalty whose strength follows from the training data while it trains.

    Formula: ``c = alpha / (2 m)``, the textbook's penalty. ``ApplyL2`` gives each layer
    an ``alpha`` of its own: from ``initial`` it moves it at the ends of epochs toward
    MacKay's ``alpha = gamma / sum(w**2)``, where ``gamma`` is the number of the layer's
    parameters that the data determine (docs/evidence). Without ``ApplyL2`` the strength
    stays as it is. Validation data are not needed. What the data cannot tell: a layer
    before a BatchNormalization, an interpolating network.

    Args:
        initial: The ``alpha`` to start from; above 0.
        samples: Number of training examples ``m``; counted when left out.
        burn_in: Epochs before the first update, 1 or more.
        temperature: What the data are worth: above 1 if the examples of an epoch are
            no independent ones. With augmentation that repeats each example it is
            the ratio of what is counted to what is independent.
        inferred_samples: What ``bind`` counted; not for the user to set.
        inferred_strength: The ``alpha`` that training found; not for the user to set.

    Raises:
        ValueError: If an argument is outside its range, or (when bound) if the
            optimizer is not ``keras.optimizers.SGD``: an adaptive one has another
            optimum than the loss, where the formula does not hold.

    Example:
        >>> from keras_scaled_l2 import EvidenceL2
        >>> EvidenceL2(1.0, samples=50).coefficient((10, 5))
        0.01

    Source: MacKay, Bayesian Interpolation (1992), eq. 4.9; A Practical Bayesian
    Framework for Backpropagation Networks (1992).
    """

    initial: float = 1.0
    samples: int | None = None
    burn_in: int = 5
    temperature: float = 1.0
    _: dataclasses.KW_ONLY
    inferred_samples: int | None = None
    inferred_strength: float | None = None

    inferable: ClassVar[Mapping[str, str]] = {
        "samples": "the number of training examples"
    }
    learns: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Checks the arguments and makes them plain Python numbers."""
        set_ = object.__setattr__
        for name in ("initial", "temperature"):
            set_(self, name, float(positive(name, getattr(self, name))))
        set_(self, "burn_in", positive_count("burn_in", self.burn_in))
        check_optional(self, positive_count, "samples")
        if self.inferred_strength is not None:
            strength = float(positive("inferred_strength", self.inferred_strength))
            set_(self, "inferred_strength", strength)

    @property
    def strength(self) -> float:
        """The ``alpha`` in force: what training found, else ``initial``."""
        found = self.inferred_strength
        return self.initial if found is None else found

    @property
    def sample_count(self) -> int:
        """The ``m`` in force: as given, else as counted."""
        return int(self._count("samples"))

    def with_strength(self, strength: float) -> Self:
        """A copy with the ``alpha`` that training found."""
        return dataclasses.replace(self, inferred_strength=strength)

    def check_optimizer(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Refuses all but ``keras.optimizers.SGD``; see ``Rule.check_optimizer``."""
        if isinstance(optimizer, keras.optimizers.SGD):
            return
        name = type(optimizer).__name__
        raise ValueError(
            f"{self!r} under {name}: expected keras.optimizers.SGD. {name} divides the "
            "penalty's gradient by the size of the gradient, so that the weights do "
            "not go to the optimum at which the evidence is known. Use SGD, or choose "
            "a decoupled weight_decay with validation data: none follows the evidence "
            "here, for the reasons in docs/evidence."
        )

    def coefficient(self, shape: Sequence[int | None]) -> float:
        """``alpha / (2 * samples)``, the same for every shape."""
        samples: int = self._count("samples")
        return self.strength / (2.0 * samples)
