"""The code in docstrings, in the README, in docs/ and in examples/ is run."""

import doctest
import importlib
import os
import pathlib
import pkgutil
import re
import subprocess
import sys

import pytest

import keras_scaled_l2

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULES = [
    module.name
    for module in pkgutil.walk_packages(keras_scaled_l2.__path__, "keras_scaled_l2.")
    if not module.name.endswith("__main__")
]
EXAMPLES = {
    "search_with_optuna.py": ["3"],
    "starting_cost.py": [],
    "watch_the_penalty.py": ["64"],
}
SHOWN = {"search_with_optuna.py": "best: ScaledL2("}
"""What an example prints; the others compare SampleL2(1.0) with something."""


def _blocks(page: pathlib.Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.once
@pytest.mark.parametrize("name", MODULES)
def test_docstrings_print_what_they_say(name):
    results = doctest.testmod(importlib.import_module(name))
    assert results.failed == 0


def _marked(pages):
    """All pages; what is long, or the same everywhere, runs on one backend."""
    once = pytest.mark.once("tensorflow")
    long = {"attach.md", "choosing.md", "compare.md", "evidence.md"}
    return [
        pytest.param(page, marks=[once] if page.name in long else []) for page in pages
    ]


def test_docstrings_have_examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    modules = map(importlib.import_module, MODULES)
    examples = [e for m in modules for t in finder.find(m) for e in t.examples]
    assert len(examples) > 10


@pytest.mark.parametrize("page", _marked(PAGES), ids=lambda page: page.name)
def test_code_on_pages_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in _blocks(page):
        exec(compile(block, str(page), "exec"), names)


def test_pages_have_code():
    assert len(_blocks(ROOT / "README.md")) >= 2
    assert sum(len(_blocks(page)) for page in PAGES) >= 8


def test_every_example_is_run():
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == set(EXAMPLES)


@pytest.mark.once("tensorflow")
@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_example_runs(name, tmp_path):
    result = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *EXAMPLES[name]],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert SHOWN.get(name, "SampleL2(1.0)") in result.stdout
