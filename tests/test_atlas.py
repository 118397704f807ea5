"""The atlas: its page says what its files say, and its files are what it trains."""

import math
import pathlib
import sys

import numpy as np
import pytest

from keras_scaled_l2 import suggesting
from keras_scaled_l2.experiments.plane import RATES

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def benchmarks():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import atlas
    import atlas_tables

    yield atlas, atlas_tables
    sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def results(benchmarks):
    return benchmarks[1].load()


def test_page_is_what_the_files_say(benchmarks, results):
    tables = benchmarks[1]
    page = tables.PAGE.read_text(encoding="utf-8")
    made = tables.tables(results)
    assert all(f"<!-- atlas: {name} -->" in page for name in made)
    assert tables.render(page, made) == page


def test_numbers_of_a_cell_are_those_of_its_rows(benchmarks, results):
    # By hand, from the rows alone.
    tables = benchmarks[1]
    result = next(r for r in results if r.group[:4] == ("mnist", 1000, 0.0, "sgd"))
    rows = {}
    for (place, rate, _), record in result.l2.items():
        rows.setdefault((place, rate), []).append(record["loss"])
    whole = {k: np.mean(v) for k, v in rows.items() if len(v) == 5}
    best = min(whole, key=whole.get)
    none = min(v for (place, _), v in whole.items() if place is None)
    assert result.gain(result.l2, "loss") == pytest.approx(1 - whole[best] / none)
    c, rate = 10 ** (best[0] / 2), 10 ** (best[1] / 2)
    folds = 2 * c * 20 * math.ceil(1000 / 64) * rate / 0.1
    assert result.folds() == pytest.approx(folds, rel=0.01)
    assert tables.optimum(result.sweep("loss")).value == pytest.approx(c, rel=0.8)


def test_finished_cells_lack_nothing(benchmarks):
    atlas = benchmarks[0]
    cells = {cell.name: cell for cell in atlas.cells()}
    for path in atlas.FOLDER.glob("*.json"):
        head, records = atlas.read(path)
        cell = cells[path.stem]
        assert head["command"].endswith(cell.name)
        assert math.isclose(head["weights"], cell.size, rel_tol=0.05)
        if head["finished"]:
            assert atlas.lacking(cell, records) == []


def test_cell_that_was_killed_goes_on(benchmarks, tmp_path, monkeypatch):
    atlas = benchmarks[0]
    monkeypatch.setattr(atlas, "FOLDER", tmp_path)
    monkeypatch.setattr(atlas, "_head", lambda *a, finished: {"finished": finished})
    cell = atlas.Cell("mnist1d", 1000, 0.0, "sgd", "dense", 20_000)
    asked = []

    class Trainer:
        def train(self, cell, points):
            for point in points:
                asked.append(point)
                distance = abs((-20 if point.place is None else point.place) + 5)
                loss = 1 + distance + abs(point.rate + 3)
                names = ("loss", "accuracy", "last_loss", "last_accuracy")
                record = dict.fromkeys((*names, "test_loss", "test_accuracy"), loss)
                yield point, record | {"best_epoch": 3}

    # The budget is over after the first training.
    for _ in range(40):
        assert not atlas.train_cell(Trainer(), cell, "", until=0)
    assert len(asked) == len(set(asked)) == 40
    assert atlas.train_cell(Trainer(), cell, "", until=math.inf)
    assert len(asked) == len(set(asked))
    head, records = atlas.read(tmp_path / f"{cell.name}.json")
    assert (head["finished"], set(records)) == (True, set(asked))
    assert {p.rate for p in asked} > set(RATES["sgd"])


def test_suggest_names_the_sizes_that_the_atlas_has(results):
    weights = [r.weights for r in results if r.head["optimizer"] == "sgd"]
    assert (
        round(min(weights), -4),
        round(max(weights), -4),
    ) == suggesting.MEASURED
