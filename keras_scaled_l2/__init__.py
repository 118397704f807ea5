"""Count-aware L2 regularizers for Keras 3, and the numbers that explain them."""

import importlib as _importlib
import typing as _typing

from keras_scaled_l2._registration import register_rules as _register_rules

__version__ = "0.1.0"

if _typing.TYPE_CHECKING:
    from keras_scaled_l2.applying import ApplyL2 as ApplyL2
    from keras_scaled_l2.attaching import attach as attach
    from keras_scaled_l2.attaching import bind as bind
    from keras_scaled_l2.attaching import detach as detach
    from keras_scaled_l2.attaching import penalized as penalized
    from keras_scaled_l2.callbacks import CostMonitor as CostMonitor
    from keras_scaled_l2.regularizers import EvidenceL2 as EvidenceL2
    from keras_scaled_l2.regularizers import HalfLifeL2 as HalfLifeL2
    from keras_scaled_l2.regularizers import PriorL2 as PriorL2
    from keras_scaled_l2.regularizers import SampleL2 as SampleL2
    from keras_scaled_l2.regularizers import ScaledL2 as ScaledL2
    from keras_scaled_l2.report import cost_report as cost_report
    from keras_scaled_l2.suggesting import suggest as suggest
    from keras_scaled_l2.units import convert as convert

# Loaded when they are asked for (PEP 562): the command checks its arguments, and
# answers `--help`, before Keras and its backend take seconds to load.
_MODULE_OF = {
    "attach": "attaching",
    "bind": "attaching",
    "detach": "attaching",
    "penalized": "attaching",
    "ApplyL2": "applying",
    "CostMonitor": "callbacks",
    "EvidenceL2": "regularizers",
    "HalfLifeL2": "regularizers",
    "PriorL2": "regularizers",
    "SampleL2": "regularizers",
    "ScaledL2": "regularizers",
    "cost_report": "report",
    "suggest": "suggesting",
    "convert": "units",
}

__all__ = ["__version__", *_MODULE_OF]  # noqa: PLE0604 names, all of them strings


def __getattr__(name: str) -> object:
    """A public name, from the module that defines it."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _importlib.import_module(f"{__name__}.{_MODULE_OF[name]}")
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])


_register_rules()
