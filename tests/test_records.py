"""Records: what is written can be read, whole or not at all, and says no more than
the seeds allow."""

import json
import math
import os

import numpy as np
import pytest
from scipy import stats

from keras_scaled_l2.experiments.errors import InputError
from keras_scaled_l2.experiments.records import (
    ArmRecord,
    Comparison,
    Cost,
    RunRecord,
    Score,
    read_json,
    write_json,
    write_text,
)
from keras_scaled_l2.experiments.spread import mean_std, paired_difference
from keras_scaled_l2.experiments.tables import conclusions


def run(seed, accuracy=0.9, data_loss=0.3, penalty=0.5):
    return RunRecord(
        seed=seed,
        starting_cost=Cost(2.5, 2.0, penalty),
        train=Score(0.1, None if accuracy is None else 1.0),
        validation=Score(0.2, accuracy),
        test=Score(data_loss, accuracy),
        seconds=1.25,
    )


def arm(name, *accuracies, losses=None, seeds=None):
    losses = losses or [0.3] * len(accuracies)
    seeds = seeds or range(len(accuracies))
    runs = [run(s, a, b) for s, a, b in zip(seeds, accuracies, losses, strict=True)]
    rule = {"class_name": "ScaledL2", "config": {"strength": 2.5e-4, "per": 1}}
    return ArmRecord(
        name, None if name == "none" else rule, 0.0, {"a": 0.1, "b": 0.2}, tuple(runs)
    )


def comparison(*arms):
    return Comparison(
        problem="digits",
        architecture="dense 64-2 (relu)",
        weights=130,
        backend="jax",
        device="a processor",
        versions={"keras": "3.15.1"},
        samples={"train": 60, "validation": 20, "test": 1000},
        split_seed=0,
        epochs=2,
        batch_size=32,
        optimizer={
            "class_name": "SGD",
            "config": {"learning_rate": 0.1, "nesterov": False},
        },
        arms=arms,
    )


def keys(value):
    """The nested keys of a dictionary; of a list, those of its first entry."""
    if isinstance(value, dict):
        return {key: keys(item) for key, item in value.items()}
    return [keys(value[0])] if isinstance(value, list) and value else None


def test_comparison_has_exactly_the_fields_of_format_1(tmp_path):
    write_json(tmp_path / "c.json", comparison(arm("l2", 0.9, 0.8)).to_dict())
    data = read_json(tmp_path / "c.json")
    score = dict.fromkeys(["data_loss", "accuracy"])
    spread = dict.fromkeys(["mean", "std"])
    # Format 1 as issue 2 has it, and split_seed, which is new.
    plain = "format problem architecture weights backend device epochs batch_size"
    assert keys(data) == {
        **dict.fromkeys([*plain.split(), "split_seed"]),
        "versions": {"keras": None},
        "samples": dict.fromkeys(["train", "validation", "test"]),
        "optimizer": keys(data["optimizer"]),
        "arms": [
            {
                "name": None,
                "rule": keys(data["arms"][0]["rule"]),
                "dropout": None,
                "coefficients": {"a": None, "b": None},
                "runs": [
                    {
                        "seed": None,
                        "starting_cost": dict.fromkeys(["total", "data", "penalty"]),
                        "train": score,
                        "validation": score,
                        "test": score,
                        "seconds": None,
                    }
                ],
                "summary": {"test_accuracy": spread, "test_data_loss": spread},
            }
        ],
    }
    assert data["format"] == 1


def test_comparison_comes_back_from_its_file(tmp_path):
    original = comparison(arm("none", 0.9, 0.8), arm("l2", 0.7), arm("dropout"))
    write_json(tmp_path / "c.json", original.to_dict())
    again = Comparison.from_dict(read_json(tmp_path / "c.json"))
    assert again == original
    assert again["l2"].runs[0].test.accuracy == 0.7


def test_fields_of_a_later_version_are_passed_over():
    data = comparison(arm("none", 0.9)).to_dict()
    data["later"] = 1
    data["arms"][0]["later"] = 2
    data["arms"][0]["runs"] = [{**data["arms"][0]["runs"][0], "later": 3}]
    assert Comparison.from_dict(data) == comparison(arm("none", 0.9))


def test_another_format_is_refused():
    with pytest.raises(InputError, match="format 2"):
        Comparison.from_dict({**comparison().to_dict(), "format": 2})


def test_summary_is_mean_and_sample_deviation():
    summary = arm("l2", 0.9, 0.7, 0.8, losses=[1.0, 2.0, 4.0]).to_dict()["summary"]
    assert summary["test_accuracy"]["mean"] == pytest.approx(0.8)
    assert summary["test_accuracy"]["std"] == pytest.approx(
        np.std([0.9, 0.7, 0.8], ddof=1)
    )
    assert summary["test_data_loss"]["std"] == pytest.approx(np.std([1, 2, 4], ddof=1))


def test_one_seed_has_no_spread_and_a_regression_no_accuracy():
    one = arm("l2", None, losses=[2.0]).to_dict()["summary"]
    assert one["test_data_loss"] == {"mean": 2.0, "std": None}
    assert one["test_accuracy"] == {"mean": None, "std": None}


def test_diverged_run_is_null_in_the_file_and_not_left_out_of_the_mean(tmp_path):
    original = comparison(arm("l2", 0.1, 0.9, losses=[math.nan, 1.0]))
    write_json(tmp_path / "c.json", original.to_dict())
    assert "NaN" not in (tmp_path / "c.json").read_text()
    data = read_json(tmp_path / "c.json")
    assert data["arms"][0]["runs"][0]["test"]["data_loss"] is None
    assert data["arms"][0]["summary"]["test_data_loss"] == {"mean": None, "std": None}
    again = Comparison.from_dict(data)
    assert math.isnan(again["l2"].runs[0].test.data_loss)
    assert "diverged" in again.table()


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    write_text(tmp_path / "c.json", "old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_text(tmp_path / "c.json", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["c.json"]
    assert (tmp_path / "c.json").read_text() == "old"


def test_text_is_on_the_disk_before_it_takes_the_place(tmp_path, monkeypatch):
    order = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *a, real=real, name=name: order.append(name) or real(*a)
        )
    write_text(tmp_path / "c.json", "text")
    assert order == ["fsync", "replace"]


@pytest.mark.parametrize("content", ["", "{", "[1]"])
def test_damaged_json_is_told(content, tmp_path):
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(InputError, match=r"c\.json"):
        read_json(tmp_path / "c.json")


def test_paired_difference_is_students_interval():
    a, b = [0.9, 0.8, 0.95, 0.7], [0.7, 0.75, 0.8, 0.6]
    found = paired_difference(a, b)
    low, high = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert found.mean - found.margin == pytest.approx(low)
    assert found.mean + found.margin == pytest.approx(high)
    wider = paired_difference(a, b, comparisons=5)
    low, high = stats.ttest_rel(a, b).confidence_interval(1 - 0.05 / 5)
    assert wider.mean - wider.margin == pytest.approx(low)


def test_seeds_that_agree_by_chance_prove_nothing():
    # Both seeds differ by exactly one example of 1000.
    found = paired_difference([0.901, 0.902], [0.900, 0.901], resolution=0.001)
    assert not found.is_clear
    assert paired_difference([1.0], [0.0]).margin is None


def test_mean_of_nothing_is_none():
    assert mean_std([]).mean is None


@pytest.mark.parametrize(
    ("arms", "expected"),
    [
        (
            [arm("none", 0.9, 0.91, 0.9), arm("l2", 0.99, 0.989, 0.991)],
            "By test accuracy l2 won with 0.9900, 0.0867 ±",
        ),
        (
            [arm("none", 0.90, 0.95, 0.85), arm("l2", 0.92, 0.90, 0.91)],
            "no arm won: l2 is ahead with 0.9100, 0.0100 ±",
        ),
        (
            [arm("none", 0.9), arm("l2", 0.99)],
            "0.0900 above none; one seed may be luck",
        ),
        (
            [arm("none", 0.9, 0.8), arm("l2", 0.8, 0.9)],
            "none and l2 are level with 0.8500",
        ),
        ([arm("none", 0.9, 0.8)], "nothing to compare"),
        ([arm("none", 0.9), arm("l2", 0.9, seeds=[1])], "nothing to compare"),
        ([arm("none"), arm("l2")], "No run is finished yet"),
    ],
)
def test_conclusion_claims_what_the_seeds_support(arms, expected):
    assert expected in conclusions(comparison(*arms))[0]


def test_conclusion_by_loss_looks_for_the_smallest():
    arms = [
        arm("none", 0.9, 0.9, 0.9, losses=[0.30, 0.31, 0.30]),
        arm("l2", 0.9, 0.9, 0.9, losses=[0.10, 0.11, 0.10]),
    ]
    by_accuracy, by_loss = conclusions(comparison(*arms))
    assert "level with 0.9000" in by_accuracy
    assert "By test data loss l2 won with 0.1033, 0.2000 ± " in by_loss
    assert "below none" in by_loss


def test_conclusion_tells_of_arms_that_diverged():
    arms = [
        arm("none", 0.9, 0.8, losses=[0.3, 0.2]),
        arm("l2", 0.8, 0.8, losses=[0.4, 0.5]),
        arm("sample", 0.1, 0.1, losses=[math.nan, 1.0]),
    ]
    assert "(without sample, which diverged)" in conclusions(comparison(*arms))[1]


def test_no_winner_is_claimed_by_chance_in_more_than_a_twentieth_of_the_cases():
    rng = np.random.default_rng(0)
    claims = 0
    for _ in range(1000):
        arms = [
            arm(name, *[0.9] * 3, losses=list(rng.normal(0.3, 0.01, 3)))
            for name in ("none", "l2", "scaled", "sample", "dropout", "sample+dropout")
        ]
        claims += " won with " in conclusions(comparison(*arms))[1]
    assert claims <= 50


def test_table_shows_every_column():
    shown = comparison(arm("none", 0.9, 0.8), arm("l2", 0.95, 0.85)).table()
    rows = {line.split()[0]: line for line in shown.splitlines() if line}
    assert "2.5 = 2 + 0.5" in rows["l2"]
    assert "0.00025" in rows["l2"]
    assert "0.1 .. 0.2" in rows["l2"]
    assert "0.9000 ± 0.0707" in rows["l2"]
    assert "+0.1000" in rows["l2"]
    assert "1.25" in rows["l2"]


def test_markdown_table_has_a_row_for_each_arm():
    page = comparison(arm("none", 0.9), arm("l2", 0.95)).to_markdown()
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert len(rows) == 4
    assert len({row.count("|") for row in rows}) == 1
    assert "SGD(learning_rate=0.1)" in page


def test_json_is_what_other_programs_read(tmp_path):
    write_json(tmp_path / "c.json", {"a": (1, float("inf"))})
    assert json.loads((tmp_path / "c.json").read_text()) == {"a": [1, None]}
