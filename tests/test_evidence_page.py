"""The test that decides on the evidence: its page says what its files say."""

import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PAGE = ROOT / "docs" / "evidence.md"


@pytest.fixture(scope="module")
def benchmark():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import evidence_cost

    yield evidence_cost
    sys.path.remove(str(ROOT / "benchmarks"))


def results(benchmark):
    return benchmark.report(ROOT / "benchmarks" / "results" / "evidence")


def test_page_is_what_the_files_say(benchmark):
    page = PAGE.read_text(encoding="utf-8")
    start, end = "<!-- evidence: results -->\n", "\n<!-- end -->"
    assert page.split(start)[1].split(end)[0] == "\n".join(results(benchmark))


def test_every_setting_of_the_protocol_has_its_five_seeds(benchmark):
    rows = [line.split(" | ") for line in results(benchmark) if line.startswith("| ")]
    names = [benchmark.name_of(setting) for setting in benchmark.SETTINGS]
    assert [(row[0].strip("| "), row[1]) for row in rows[2:]] == [
        (n, "5") for n in names
    ]


def test_regret_is_that_of_the_mean_losses(benchmark):
    # By hand, from the file of one setting.
    setting = ("mnist5k", 0.2, "200k", "sgd")
    path = ROOT / "benchmarks/results/evidence" / f"{benchmark.name_of(setting)}.json"
    seeds = benchmark.json.loads(path.read_text())["seeds"].values()
    sweeps = [
        sum(column) / 5 for column in zip(*[s["sweep"] for s in seeds], strict=True)
    ]
    found = sum(s["evidence"]["loss"] for s in seeds) / 5
    expected = found / min(sweeps) - 1
    assert benchmark.row(setting, path)["evidence"] == pytest.approx(expected)
