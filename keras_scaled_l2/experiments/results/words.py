"""Numbers and names as people read them, the same wherever they stand."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

NOTHING = "-"
DIVERGED = "diverged"


def number(value: float | None, spec: str) -> str:
    """A number; what is NaN or infinite belongs to a run that diverged."""
    if value is None:
        return NOTHING
    return format(value, spec) if math.isfinite(value) else DIVERGED


def mean(values: Iterable[float | None], spec: str) -> str:
    """The mean of those that are there."""
    known = [value for value in values if value is not None]
    return number(fmean(known), spec) if known else NOTHING


def span(values: Sequence[float], spec: str = ".3g") -> str:
    """The smallest and the largest, or the only one."""
    if not values:
        return NOTHING
    low, high = (format(value, spec) for value in (min(values), max(values)))
    return low if low == high else f"{low} .. {high}"


def interval(low: float | None, high: float | None, spec: str) -> str:
    """An interval in brackets, with a space before it; nothing if it is not known."""
    if low is None or high is None or not math.isfinite(low + high):
        return ""
    return f" [{low:{spec}}, {high:{spec}}]"


def places(values: Iterable[float | None]) -> int:
    """Decimals for numbers of this size: 4 around one, fewer above, more below."""
    sizes = [abs(v) for v in values if v and math.isfinite(v)]
    if not sizes:
        return 4
    exponent = math.floor(math.log10(min(sizes)))
    return min(max(4 - exponent if exponent >= 0 else 3 - exponent, 0), 9)


def percent(share: float, decimals: int = 0) -> str:
    """A share, as the field's journals set it: ``2 %``."""
    return f"{100 * share:,.{decimals}f} %"


def p_value(p: float) -> str:
    """A p-value with three digits."""
    return f"{p:.3g}" if p >= 0.001 else "< 0.001"


def counted(number_: int, noun: str) -> str:
    """``1 seed``, ``3 seeds``."""
    return f"{number_} {noun}{'s' * (number_ != 1)}"


def are(names: Sequence[object]) -> str:
    """``is`` of one, ``are`` of several."""
    return "is" if len(names) == 1 else "are"


def listed(names: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def call(spec: Mapping[str, Any]) -> str:
    """An optimizer's class and config as a call, without what is switched off."""
    config = spec["config"]
    off = () if config.get("use_ema") else ("ema_momentum",)
    set_ = {k: v for k, v in config.items() if v and k not in off}
    arguments = ", ".join(f"{name}={value}" for name, value in set_.items())
    return f"{spec['class_name']}({arguments})"


def penalty(rules: Iterable[Mapping[str, Any] | None]) -> str:
    """Rules of one class as ``SampleL2(6)``, with the range of what was set of it.

    What was set is the strength, else the first argument; and what ``ScaledL2`` divides
    by, where it is not the tensor: without it the call would make another penalty. With
    1 it is Keras's ``L2``.
    """
    known = [rule for rule in rules if rule is not None]
    if not known:
        return NOTHING
    configs = [rule["config"] for rule in known]
    name = known[0].get("class_name", "")
    key = next((k for k in ("strength", *configs[0]) if k in configs[0]), None)
    if key is None:
        return f"{name}()"
    values = list(dict.fromkeys(config[key] for config in configs))
    numbers = all(isinstance(value, int | float) for value in values)
    shown = span(values, ".4g") if numbers else ", ".join(map(str, values))
    if configs[0].get("per") == 1:
        return f"L2({shown})"
    parts = [shown if key == "strength" else f"{key}={shown}"]
    for option, usual in (("per", "tensor"), ("power", 1.0)):
        value = configs[0].get(option, usual)
        parts += [f"{option}={value!r}"] * (value != usual)
    return f"{name}({', '.join(parts)})"
