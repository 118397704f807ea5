"""The rules are known to Keras as soon as both packages are imported, in any order.

A saved model names its rules, and Keras finds only what is registered when it loads the
file. Registering needs Keras; importing Keras takes seconds, which ``import
keras_scaled_l2`` must not cost a command that only prints its help.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

_RULES = "keras_scaled_l2.regularizers"


def register_rules() -> None:
    """Register the rules now if Keras is there, else right after it is imported."""
    if "keras" in sys.modules:
        importlib.import_module(_RULES)
    else:
        sys.meta_path.insert(0, _AfterKeras())


class _AfterKeras(importlib.abc.MetaPathFinder):
    """Finds ``keras`` as the others do, and has the rules imported after it."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "keras":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            _run_after(spec.loader)
        return spec


def _run_after(loader: importlib.abc.Loader) -> None:
    """Have a loader import the rules once it has run its module."""
    run = loader.exec_module

    def run_and_register(module: ModuleType) -> None:
        run(module)
        importlib.import_module(_RULES)

    vars(loader)["exec_module"] = run_and_register
