"""Public names, the arrows between the modules, and what importing brings along."""

import ast
import configparser
import functools
import json
import pathlib
import re
import sys

import keras
import pytest
from models import run_python

import keras_scaled_l2

pytestmark = pytest.mark.once
PACKAGE = pathlib.Path(keras_scaled_l2.__file__).parent
NAME = "keras_scaled_l2"
BACKENDS = {"tensorflow", "jax", "jaxlib", "torch", "flax"}
LIBRARY_NEEDS = {"keras", "numpy", "tensorboard"}
# Import name -> the distribution that setup.cfg names.
DISTRIBUTIONS = {"sklearn": "scikit-learn"}
PUBLIC = {
    *("ScaledL2", "SampleL2", "PriorL2", "HalfLifeL2", "EvidenceL2"),
    *("attach", "detach", "bind", "penalized"),
    *("ApplyL2", "CostMonitor", "cost_report", "convert", "suggest"),
}
# Names with an underscore that are neither of Keras nor of the package.
NOT_OF_KERAS = {
    *("_replace", "_getframe"),  # public: of a NamedTuple, of sys
    *(
        "_batch_size",
        "_batch_sizes",
        "_input_dataset",
        "_inputs",
        "_map_func",
        "_func",
    ),  # of tf.data
}
# The commands stand above both halves.
COMMANDS = {
    *("cli", "cli_words", "cli_numbers", "cli_transfer", "cli_tune", "__main__"),
}


def modules():
    """Name of each module below the package ("experiments.arms") -> its source."""
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path.read_text()
        for path in sorted(PACKAGE.rglob("*.py"))
    }


@functools.cache
def nodes(source, type_only=False):
    """Every node that is ever run; if asked for, also what type checkers alone read."""
    waiting, found = [ast.parse(source)], []
    while waiting:
        node = waiting.pop()
        found.append(node)
        skipped = (
            not type_only
            and isinstance(node, ast.If)
            and ast.unparse(node.test).endswith("TYPE_CHECKING")
        )
        waiting.extend(node.orelse if skipped else ast.iter_child_nodes(node))
    return found


def imports(source, type_only=False):
    """Every absolute name that a source imports, wherever in it."""
    for node in nodes(source, type_only):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            # "from package import module" imports the module as well.
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def asks_for_the_backend(source):
    """Whether a source calls something named backend()."""
    return any(
        isinstance(node, ast.Call)
        and getattr(node.func, "attr", getattr(node.func, "id", "")) == "backend"
        for node in nodes(source)
    )


def underscored(source):
    """Names that begin with one underscore and are asked of others, not of the own."""
    own = {
        getattr(node, "name", getattr(node, "attr", None))
        for node in nodes(source)
        if isinstance(node, ast.FunctionDef)
        or (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and ast.unparse(node.value) == "self"
        )
    }
    for node in nodes(source):
        if isinstance(node, ast.Attribute):
            mine = ast.unparse(node.value) in ("self", "cls") or node.attr in own
            name = "" if mine else node.attr
        elif isinstance(node, ast.Call) and len(node.args) > 1:
            if getattr(node.func, "id", None) not in ("getattr", "hasattr", "setattr"):
                continue
            name = getattr(node.args[1], "value", "")
        else:
            continue
        if re.match(r"_[a-z]", str(name)) and name not in NOT_OF_KERAS:
            yield name


def inside(source, names, type_only=False):
    """The modules of the package that a source imports."""
    found = {i.removeprefix(f"{NAME}.") for i in imports(source, type_only)}
    return found & set(names)


def from_init(source, names):
    """What a source imports from an __init__ and not from the module it lives in."""
    homes = [NAME, f"{NAME}.experiments"]
    for node in nodes(source):
        if isinstance(node, ast.ImportFrom) and node.module in homes:
            for alias in node.names:
                full = f"{node.module}.{alias.name}".removeprefix(f"{NAME}.")
                if full not in names and alias.name != "__version__":
                    yield full


def violations(sources):
    """What breaks the arrows of DESIGN.md, one line each."""
    found = []
    for module, source in sources.items():
        roots = {name.split(".")[0] for name in imports(source)} - {NAME, "__future__"}
        outside = roots - set(sys.stdlib_module_names)
        within = inside(source, sources)
        experiment = module.split(".")[0] == "experiments"
        library = not experiment and module not in COMMANDS
        room = module.split(".")[0] == "backends"
        if not room and roots & BACKENDS:
            found.append(f"{module} imports the backend {sorted(roots & BACKENDS)}")
        if library and not room and asks_for_the_backend(source):
            found.append(f"{module} asks for the backend")
        if library and outside - LIBRARY_NEEDS - BACKENDS:
            found.append(f"{module} imports {sorted(outside - LIBRARY_NEEDS)}")
        if library and any(name.split(".")[0] == "experiments" for name in within):
            found.append(f"{module} imports the experiments")
        if not module.endswith("__init__") and list(from_init(source, sources)):
            found.append(f"{module} imports from __init__")
        private = {name for name in imports(source) if name.startswith("keras.src")}
        private |= set(underscored(source))
        if module != "_keras" and private:
            found.append(f"{module} touches {sorted(private)}, which is Keras's")
        if library and module != "__init__" and "regularizers" in within:
            found.append(f"{module} knows which rule made the coefficient")
        if (
            module in ("experiments.results.records", "experiments.errors")
            and "keras" in roots
        ):
            found.append(f"{module} imports Keras")
        if module in ("tensorboard", "validation", "counts") and within - {
            *("validation", "_keras")
        }:
            found.append(f"{module} imports {sorted(within)}")
        if module == "regularizers" and within & {
            *(
                "attaching",
                "costs",
                "callbacks",
                "report",
                "units",
                "tensorboard",
                "gradient_norms",
            )
        }:
            found.append("regularizers imports what reads its coefficients")
    return found + [f"imports in a cycle: {cycle}" for cycle in cycles(sources)]


def cycles(sources):
    """Chains of imports that come back to where they began, type-only ones included."""
    arrows = {name: inside(source, sources, True) for name, source in sources.items()}
    done, found = set(), []

    def follow(module, chain):
        if module in chain:
            found.append(" -> ".join([*chain[chain.index(module) :], module]))
        elif module not in done:
            for other in sorted(arrows[module]):
                follow(other, [*chain, module])
            done.add(module)

    for module in arrows:
        follow(module, [])
    return found


def test_arrows_between_the_modules_are_those_of_the_design():
    assert len(modules()) > 10
    assert violations(modules()) == []


PLANTED = {
    "counts": ("import torch", "counts imports the backend"),
    "callbacks": ("from tensorflow import io", "callbacks imports the backend"),
    "costs": (
        "import keras\nif keras.config.backend() == 'jax': pass",
        "costs asks for the backend",
    ),
    "attaching": (
        "def f():\n    import pandas",
        r"attaching imports \['pandas'\]",
    ),
    "report": (
        "from keras_scaled_l2.experiments.arms import Arm",
        "report imports the experiments",
    ),
    "units": (
        "from keras_scaled_l2 import ScaledL2",
        "units imports from __init__",
    ),
    "rule": ("from keras.src import ops", "rule touches .*keras.src.ops"),
    "saving": ("for child in layer._layers: pass", "saving touches .*_layers"),
    "experiments.plan": (
        "def f(model): return getattr(model, '_loss_tracker', None)",
        "experiments.plan touches .*_loss_tracker",
    ),
    "gradient_norms": (
        "from keras_scaled_l2.regularizers import SampleL2",
        "gradient_norms knows which rule",
    ),
    "experiments.results.records": ("import keras", "records imports Keras"),
    "experiments.arms": ("import jax", "arms imports the backend"),
    "tensorboard": (
        "from keras_scaled_l2.costs import NAMES",
        r"tensorboard imports \['costs'\]",
    ),
    "regularizers": (
        "from keras_scaled_l2.attaching import attach",
        "regularizers imports what reads",
    ),
    "validation": (
        "from keras_scaled_l2 import counts",
        r"validation imports \['counts'\]",
    ),
}


@pytest.mark.parametrize("module", PLANTED)
def test_a_planted_violation_is_found(module):
    line, expected = PLANTED[module]
    sources = modules()
    assert module in sources
    sources[module] += f"\n{line}\n"
    found = violations(sources)
    assert any(re.search(expected, text) for text in found), found


def test_an_import_for_type_checkers_only_is_no_violation():
    sources = modules()
    before = violations(sources)
    sources["counts"] += "\nif TYPE_CHECKING:\n    import torch\n"
    assert violations(sources) == before


@pytest.mark.parametrize("indent", ["", "if TYPE_CHECKING:\n    "])
def test_a_planted_cycle_is_found(indent):
    sources = modules()
    sources["counts"] += f"\n{indent}from keras_scaled_l2.callbacks import ApplyL2\n"
    assert any("cycle" in text and "counts" in text for text in violations(sources))


def setup_cfg():
    config = configparser.ConfigParser()
    read = config.read(PACKAGE.parent / "setup.cfg")
    assert read
    return config


def requirements(text):
    """Names of the distributions in a list of requirements."""
    return {re.match(r"[\w.-]+", line).group() for line in text.split("\n") if line}


def test_experiments_import_only_what_their_extra_installs():
    config = setup_cfg()
    declared = requirements(config["options"]["install_requires"]) | requirements(
        config["options.extras_require"]["experiments"]
    )
    used = {
        name.split(".")[0]
        for module, source in modules().items()
        if module.startswith("experiments") or module in COMMANDS
        for name in imports(source)
    }
    used -= {NAME, "__future__", *sys.stdlib_module_names}
    assert {"keras", "numpy"} <= used
    assert {DISTRIBUTIONS.get(name, name) for name in used} <= declared


def test_library_declares_what_it_imports_and_no_more():
    needed = requirements(setup_cfg()["options"]["install_requires"])
    assert needed == LIBRARY_NEEDS


def test_public_names_are_those_of_the_design():
    assert {*keras_scaled_l2.__all__} - {"__version__"} == PUBLIC
    assert {*dir(keras_scaled_l2)} >= PUBLIC
    with pytest.raises(AttributeError, match="no attribute 'L3'"):
        _ = keras_scaled_l2.L3


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_public_name_has_a_docstring_of_its_own(name):
    exported = getattr(keras_scaled_l2, name)
    assert exported.__module__.startswith(f"{NAME}.")
    assert len(exported.__doc__.splitlines()) > 3


def test_package_is_typed_and_has_a_version():
    assert (PACKAGE / "py.typed").is_file()
    assert "py.typed" in setup_cfg()["options.package_data"][NAME]
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", keras_scaled_l2.__version__)


LOADED = """
import sys
sys.modules.pop("keras_scaled_l2", None)
import {first}
import {second}
for path in sys.argv[1:]:
    print(keras.saving.load_model(path).layers[-1].kernel_regularizer)
"""


@pytest.mark.parametrize("first", ["keras", "keras_scaled_l2"])
def test_importing_is_enough_to_load_a_saved_model(first, tmp_path):
    rule = keras_scaled_l2.ScaledL2(2.0)
    layer = keras.layers.Dense(1, kernel_regularizer=rule)
    paths = [tmp_path / "model.keras", tmp_path / "model.h5"]
    for path in paths:
        keras.Sequential([keras.Input((4,)), layer]).save(path)
    second = ({"keras", "keras_scaled_l2"} - {first}).pop()
    printed = run_python(LOADED.format(first=first, second=second), *paths)
    assert printed.split("\n")[:2] == [repr(rule)] * 2


FIRST = """
import importlib, sys
import keras
_, name, *modules = sys.argv
for module in modules:
    # As in a new process, but for what makes importing Keras slow.
    for loaded in [x for x in sys.modules if x == "keras" or x.startswith(name)]:
        del sys.modules[loaded]
    try:
        importlib.import_module(f"{name}.{module}")
    except ImportError as error:
        print(module, error)
    import keras
    loaded = sys.modules.get(f"{name}.regularizers")
    rule = keras.saving.get_registered_object(f"{name}>ScaledL2")
    if loaded is None or rule is not loaded.ScaledL2:
        print(module, "leaves the rules unknown to Keras")
"""


def needed_by(module):
    """A module and all of the package that it needs to be imported."""
    needed, waiting = set(), [module]
    while waiting:
        present = waiting.pop()
        if present not in needed:
            needed.add(present)
            waiting.extend(inside(modules()[present], modules()))
    return needed


def test_each_module_can_be_the_first_that_is_imported():
    # The rules are imported once Keras is, which may be in the midst of these.
    backend = keras.config.backend()
    rooms = [f"backends.{room}{backend}" for room in ("", "loop_")]
    names = [*needed_by("regularizers"), "backends", "attaching", *rooms]
    assert {"counts", "rule", "fitting", "gradients"} <= {*names}
    assert run_python(FIRST, NAME, *sorted(names)) == ""


def test_a_name_is_a_function_though_a_module_has_loaded_its_home():
    text = "from keras_scaled_l2 import ApplyL2, attach, report, units; print(attach)"
    assert "function attach" in run_python(text)


def test_command_converts_without_loading_keras():
    text = (
        "import sys; from keras_scaled_l2.cli import main; "
        "main('convert 1.0 --from textbook --to torch --samples 50'.split()); "
        "print('keras' in sys.modules)"
    )
    assert run_python(text).split() == ["0.02", "False"]


TRAINED = """
import json, sys
import keras, numpy as np, tensorboard
before = set(sys.modules)
import keras_scaled_l2 as ours
print(json.dumps(sorted(set(sys.modules) - before)))
x = np.linspace(-1, 1, 40, dtype="float32").reshape(10, 4)
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
callbacks = [ours.ApplyL2(ours.SampleL2(1.0)), ours.CostMonitor(log_dir=sys.argv[1])]
given = {"verbose": 0, "validation_data": (x, x[:, :1])}
history = model.fit(x, x[:, :1], batch_size=4, callbacks=callbacks, **given).history
assert history["val_penalty"][0] > 0
print(json.dumps(sorted(sys.modules)))
"""


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    """(modules that the import added, modules after training, its log directory)."""
    log_dir = tmp_path_factory.mktemp("logs")
    first, *_, last = run_python(TRAINED, log_dir).strip().splitlines()
    added, after = (
        {name.split(".")[0] for name in json.loads(line)} for line in (first, last)
    )
    return added, after, log_dir


@pytest.mark.everywhere
def test_importing_brings_nothing_along_that_keras_does_not(process):
    added, _, _ = process
    assert NAME in added
    # TensorBoard's own, and what it uses if it is there.
    allowed = {NAME, "tensorboard", "google", "numpy", "fsspec"}
    assert added - set(sys.stdlib_module_names) <= allowed


@pytest.mark.everywhere
def test_training_with_event_files_works_in_a_new_process(process):
    _, after, log_dir = process
    assert {"keras", "tensorboard", keras.config.backend()} <= after
    written = list(log_dir.rglob("events.out.tfevents.*"))
    assert {path.parent.name for path in written} == {"train", "validation"}


if keras.config.backend() != "tensorflow":

    def test_training_with_event_files_does_not_import_tensorflow(process):
        _, after, _ = process
        assert "tensorflow" not in after


def test_no_file_of_the_package_is_longer_than_400_lines():
    lines = {
        path.relative_to(PACKAGE).as_posix(): len(path.read_text("utf-8").splitlines())
        for path in PACKAGE.rglob("*.py")
    }
    assert len(lines) > 100
    assert {name: n for name, n in lines.items() if n > 400} == {}


def test_development_names_every_file_of_the_package():
    page = (PACKAGE.parent / "docs" / "development.md").read_text(encoding="utf-8")
    files = {path.name for path in PACKAGE.rglob("*.py")} - {"__init__.py"}
    assert files <= set(re.findall(r"\w+\.py", page))
