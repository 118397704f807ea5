"""``EvidenceL2``: the rule whose strength training finds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import keras

from keras_scaled_l2.rule import PACKAGE, Rule, check_optional
from keras_scaled_l2.validation import positive, positive_count


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
