"""The rules are known to Keras as soon as both packages are imported, in any order.

A saved model names its rules, and Keras finds only what is registered when it loads the
file. Registering needs Keras; importing Keras takes seconds, which ``import
keras_scaled_l2`` must not cost a command that only prints its help.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

_PACKAGE = "keras_scaled_l2"
_RULES = f"{_PACKAGE}.regularizers"


def register_rules() -> None:
    """Register the rules now if Keras is there, else right after it is imported."""
    if "keras" in sys.modules:
        importlib.import_module(_RULES)
    else:
        sys.meta_path.insert(0, _AfterKeras())


class _AfterKeras(importlib.abc.MetaPathFinder):
    """Finds ``keras`` as the others do, and has the rules imported after it.

    Where a module of this package imports Keras, after that module: the rules need
    others of the package, which cannot be imported while they are running.
    """

    def __init__(self) -> None:
        self._running = 0

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "keras" and not name.startswith(f"{_PACKAGE}."):
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(name, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            self._watch(spec.loader)
        return spec

    def _watch(self, loader: importlib.abc.Loader) -> None:
        """Have a loader import the rules once all that it is part of has run."""
        run = loader.exec_module

        def run_and_register(module: ModuleType) -> None:
            self._running += 1
            try:
                run(module)
            finally:
                self._running -= 1
            if not self._running and "keras" in sys.modules and self in sys.meta_path:
                sys.meta_path.remove(self)
                importlib.import_module(_RULES)

        vars(loader)["exec_module"] = run_and_register
