"""The arms of a comparison, as plain data: what each adds to the same network."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from keras_scaled_l2.experiments.errors import InputError, several, unknown

if TYPE_CHECKING:
    import keras

DEFAULT_ARMS = ("none", "l2", "scaled", "sample", "dropout", "sample+dropout")
DEFAULT_DROPOUT = 0.5
"""Rate for hidden units in Srivastava et al. (2014), appendix A.4: keep one half."""

_PACKAGE = "keras_scaled_l2"
_RULES: Mapping[str, tuple[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "l2": ("ScaledL2", {"per": 1, "power": 1.0}),
        "scaled": ("ScaledL2", {"per": "tensor", "power": 1.0}),
        "sample": ("SampleL2", {"samples": None}),
    }
)

EVIDENCE = "evidence"
"""Name of the arm that finds a strength for each layer while it trains."""
_EVIDENCE = {"initial": 1.0, "samples": None, "burn_in": 5, "temperature": 1.0}

DECAY = "decay"
"""Name of the arm with decoupled weight decay in the optimizer instead of a penalty."""

DEFAULT_L2 = 2.5e-4
"""Coefficient of ``l2``: the weight decay 5e-4 of many published networks.

In PyTorch's convention, which is 2 c; 24 thousand to 138 million weights, without a
trend with size.
"""
DEFAULT_DECAY = 5e-3
"""The optimizer's ``weight_decay`` of ``decay``.

It shrinks weights as fast as ``l2`` does under SGD: decoupled decay is
2 c / (1 - momentum), at momentum 0.9. Keras's AdamW has 4e-3.
"""
DEFAULT_SAMPLE = 6.0
"""Lambda of ``sample``, in lambda / (2 m).

In the project's pilot on MNIST c = 3e-3 was best for m = 1000 examples, hence
2 m c = 6. At MNIST's 60 000 examples it is c = 5e-5, the weak end of what is
published.
"""
TYPICAL_KERNEL = 512 * 512


def default_strength(penalty: str, largest: int = TYPICAL_KERNEL) -> float:
    """The strength of a named penalty, from settings published before or a pilot.

    ``scaled`` divides by the weights of each tensor, so no one strength fits two
    networks: at the order of 1 that its name suggests it would be no penalty at all
    on a hidden layer of some size, and at 64 it would crush a small network. It gets
    ``DEFAULT_L2`` times the weights of the largest kernel: there it is ``l2``,
    and on smaller kernels stronger. That is what the division does, and
    what the arm is there to show.

    None of these was tuned on a test set; ``DEFAULT_SAMPLE`` is from a pilot on MNIST,
    and has an advantage there. They are places to start from: a comparison at these
    says how the settings do, not how the methods do.

    Args:
        penalty: ``l2``, ``scaled``, ``sample`` or ``decay``.
        largest: Weights of the largest kernel of the network.
    """
    defaults = {
        "l2": DEFAULT_L2,
        "scaled": DEFAULT_L2 * largest,
        "sample": DEFAULT_SAMPLE,
        DECAY: DEFAULT_DECAY,
    }
    return defaults[penalty]


PARTS = ("none", *_RULES, DECAY, EVIDENCE, "dropout")
"""What the name of an arm is made of."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]*")
# File systems take 255 bytes; a run's file adds its seed and its kind.
_LONGEST = 200


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to train the network of a comparison.

    Args:
        name: Name in tables, files and TensorBoard.
        rule: The penalty: a rule such as ``ScaledL2(1.0)``, or its config as
            ``keras.saving.serialize_keras_object`` makes it, which is what is kept.
            ``None`` for no penalty.
        dropout: Rate of the Dropout after each hidden non-linearity, 0 for none.
        weight_decay: Decoupled weight decay of the optimizer, as Keras's
            ``weight_decay=`` has it, on the weights that a rule is put on by default:
            ``w`` becomes ``w - learning_rate * weight_decay * w`` before each update.
            0 for none.

    Raises:
        InputError: If a value is outside its range.
    """

    name: str
    rule: Mapping[str, Any] | keras.Regularizer | None = None
    dropout: float = 0.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        """Checks the values and turns a rule into its config."""
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise InputError(
                f"arm name {self.name!r}: expected letters, digits and . _ + = - only, "
                "since files are named after it."
            )
        if len(self.name) > _LONGEST:
            raise InputError(
                f"arm name {self.name[:20]}... has {len(self.name)} characters: "
                f"expected at most {_LONGEST}, since files are named after it."
            )
        object.__setattr__(self, "dropout", check_rate(self.dropout))
        decay = self.weight_decay
        if not _is_number(decay) or not math.isfinite(decay) or decay < 0:
            raise InputError(
                f"arm {self.name!r}: weight_decay {decay!r}: expected a finite number, "
                "0 or more."
            )
        object.__setattr__(self, "weight_decay", float(decay))
        if self.rule is not None:
            object.__setattr__(self, "rule", _config(self.rule))

    @property
    def config(self) -> dict[str, Any] | None:
        """The config of the rule."""
        return None if self.rule is None else _config(self.rule)


def listed(arms: Any) -> tuple[str | Arm, ...]:
    """The arms that were asked for, each a name or an ``Arm``; an iterator yields once.

    Raises:
        InputError: If one is neither.
    """
    if isinstance(arms, str | Arm):
        return (arms,)
    found = several("arms", arms, "['none', 'l2']")
    wrong = [arm for arm in found if not isinstance(arm, str | Arm)]
    if wrong:
        raise InputError(
            f"arm {wrong[0]!r} of type {type(wrong[0]).__name__}: expected a name such "
            "as 'l2', or Arm('name', rule)."
        )
    return found


def make_arms(
    arms: Sequence[str | Arm],
    strengths: Mapping[str, float] | None,
    dropout: float,
    largest: int = TYPICAL_KERNEL,
) -> tuple[Arm, ...]:
    """Those that are names made to arms; see ``named_arms``.

    Raises:
        InputError: As ``named_arms``; if the strengths are none, or an arm comes twice.
    """
    if not isinstance(strengths, Mapping | None):
        raise InputError(
            f"strengths {strengths!r}: expected a dict of names and numbers, as "
            "{'l2': 0.001}."
        )
    names = [arm for arm in arms if isinstance(arm, str)]
    named: dict[str, Arm] = {}
    if strengths and arms and not names:
        raise InputError(
            f"strengths {dict(strengths)}: expected none, since every arm is an Arm "
            "with a rule of its own."
        )
    if names or not arms:
        made = named_arms(names, strengths, dropout, largest=largest)
        named = {arm.name: arm for arm in made}
    result = tuple(named[arm] if isinstance(arm, str) else arm for arm in arms)
    taken = [arm.name for arm in result]
    doubled = sorted({name for name in taken if taken.count(name) > 1})
    if doubled:
        raise InputError(f"arm {doubled[0]!r} is given more than once.")
    return result


def named_arms(
    names: Iterable[str],
    strengths: Mapping[str, float] | None = None,
    dropout: float = DEFAULT_DROPOUT,
    *,
    largest: int = TYPICAL_KERNEL,
) -> tuple[Arm, ...]:
    """The arms of these names.

    Args:
        names: Of ``none``, ``l2``, ``scaled``, ``sample``, ``decay``, ``evidence`` and
            ``dropout``; joined by ``+`` for a penalty with dropout, as
            ``sample+dropout``.
        strengths: Name -> strength. A whole name (``sample+dropout``) goes before
            the name of its penalty (``sample``), which is for all arms that have it.
        dropout: Rate of the arms with dropout.
        largest: Weights of the network's largest kernel; see ``default_strength``.

    Raises:
        InputError: If a name is unknown, a combination has no meaning, or a strength
            is not a finite number of 0 or more, or is for no arm.
    """
    names = list(names)
    strengths = dict(strengths or {})
    if not names:
        raise InputError(f"no arms: expected some of {', '.join(DEFAULT_ARMS)}.")
    parts = {name: _parts(name) for name in names}
    takers = {n: penalty for n, (penalty, _) in parts.items() if penalty is not None}
    for name, value in strengths.items():
        _check_strength(name, value, takers)
    rate = check_rate(dropout)
    arms = []
    for name, (penalty, drops) in parts.items():
        rule, decay = None, 0.0
        if penalty == EVIDENCE:
            rule = _serialized("EvidenceL2", **_EVIDENCE)
        elif penalty is not None:
            default = default_strength(penalty, largest)
            strength = strengths.get(name, strengths.get(penalty, default))
            if penalty == DECAY:
                decay = strength
            else:
                class_name, options = _RULES[penalty]
                rule = _serialized(class_name, strength=float(strength), **options)
        arms.append(Arm(name, rule, rate if drops else 0.0, decay))
    return tuple(arms)


def check_rate(rate: Any) -> float:
    """A dropout rate as a float: 0 or more, below 1.

    Raises:
        InputError: If it is not.
    """
    if not _is_number(rate) or not 0 <= rate < 1:
        raise InputError(f"dropout rate {rate!r}: expected a number from 0 to below 1.")
    return float(rate)


def _parts(name: str) -> tuple[str | None, bool]:
    """``(penalty or None, whether there is dropout)`` of an arm's name."""
    known = [*_RULES, DECAY, EVIDENCE]
    parts = name.split("+")
    for part in parts:
        if part not in PARTS:
            combined = [f"{rule}+dropout" for rule in known]
            raise unknown("arm", name, [*PARTS, *combined])
    penalties = [part for part in parts if part in known]
    if "none" in parts and len(parts) > 1:
        raise InputError(f"arm {name!r}: 'none' cannot be joined with another.")
    if len(penalties) > 1 or len(set(parts)) < len(parts):
        raise InputError(
            f"arm {name!r}: expected at most one penalty, and no part twice."
        )
    return (penalties[0] if penalties else None), "dropout" in parts


def _check_strength(name: str, value: Any, takers: Mapping[str, str]) -> None:
    if not _is_number(value) or not math.isfinite(value) or value < 0:
        raise InputError(
            f"strength {name}={value!r}: expected a finite number, 0 or more."
        )
    if takers.get(name, name) == EVIDENCE:
        raise InputError(
            f"strength of {name!r}: that arm finds its strengths while it trains. To "
            'start elsewhere: Arm("evidence", EvidenceL2(initial=...)).'
        )
    accepted = dict.fromkeys([*takers, *takers.values()])
    if name not in accepted:
        if name in ("none", "dropout"):
            hint = "Give the rate with --dropout (dropout=...)." * (name == "dropout")
            raise InputError(
                f"strength of {name!r}: that arm has no penalty. {hint}".strip()
            )
        raise unknown("arm in a strength", name, accepted)


def _serialized(class_name: str, **config: Any) -> dict[str, Any]:
    # As keras.saving.serialize_keras_object writes it: no Keras is loaded for a name.
    return {
        "module": f"{_PACKAGE}.regularizers",
        "class_name": class_name,
        "config": config,
        "registered_name": f"{_PACKAGE}>{class_name}",
    }


def _config(rule: Any) -> dict[str, Any]:
    if isinstance(rule, Mapping):
        return dict(rule)
    import keras

    if not isinstance(rule, keras.Regularizer):
        raise InputError(
            f"rule {rule!r} is of type {type(rule).__name__}: expected a regularizer "
            "such as ScaledL2(1.0), its config, or None."
        )
    return _plain_config(rule) or keras.saving.serialize_keras_object(rule)


def _plain_config(rule: keras.Regularizer) -> dict[str, Any] | None:
    """What Keras's serialization gives, which loads TensorFlow under every backend.

    ``None`` for a rule that may hold more than plain values.
    """
    import keras

    from keras_scaled_l2.rule import Rule

    kind = type(rule)
    if isinstance(rule, Rule) and kind.__module__.startswith(f"{_PACKAGE}."):
        module, registered = kind.__module__, keras.saving.get_registered_name(kind)
    elif kind is keras.regularizers.L2:
        module, registered = "keras.regularizers", None
    else:
        return None
    return {
        "module": module,
        "class_name": kind.__name__,
        "config": rule.get_config(),
        "registered_name": registered,
    }


def check_decay_acts(optimizer: keras.optimizers.Optimizer) -> None:
    """Refuse decoupled decay under an optimizer that undoes it in the same update.

    Raises:
        InputError: If it makes the weights anew.
    """
    from keras_scaled_l2.half_life import decay_acts

    if not decay_acts(optimizer):
        raise InputError(
            f"optimizer {type(optimizer).__name__} and decoupled weight decay: it "
            "makes the weights anew from a state of its own, which the decay does not "
            "reach. Expected another one, such as AdamW."
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
