"""Records: what is written can be read, whole or not at all, and says no more than
the seeds allow."""

import dataclasses
import json
import math
import os
import pathlib
import re

import numpy as np
import pytest
from comparisons import made_arm, made_comparison, made_run, rule, six_arms
from scipy import stats

from keras_scaled_l2.experiments.errors import InputError
from keras_scaled_l2.experiments.results import records
from keras_scaled_l2.experiments.results.comparison import Comparison
from keras_scaled_l2.experiments.results.files import (
    read_json,
    write_json,
    write_text,
)
from keras_scaled_l2.experiments.results.records import (
    ArmRecord,
    Cost,
    Hyperparameters,
    RunRecord,
    Score,
)
from keras_scaled_l2.experiments.results.spread import mean_std
from keras_scaled_l2.experiments.results.summary import summarize

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "compare.md"


def conclusions(comparison):
    return summarize(comparison).conclusions


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
        split="given",
        epochs=2,
        batch_size=32,
        optimizer={
            "class_name": "SGD",
            "config": {"learning_rate": 0.1, "nesterov": False},
        },
        arms=arms,
    )


def keys(value):
    """The nested keys of a dictionary; of a list, those of its first entry.

    What follows from the user's network or its rules is one entry, under "...".
    """
    if isinstance(value, dict):
        free = any("/" in key for key in value) or "module" in value
        if free or value.keys() & {"keras", "learning_rate"}:
            value = {"...": next(iter(value.values()))}
        return {key: keys(item) for key, item in value.items()}
    return [keys(value[0])] if isinstance(value, list) and value else None


def test_file_has_exactly_the_keys_that_the_page_names():
    made = six_arms(2, tuned=True, patience=3)
    arm = dataclasses.replace(made["sample"], grid=(Hyperparameters(rule(6.0)),))
    found = json.loads(json.dumps(made_comparison(arm, *made.arms).to_dict()))
    (block,) = re.findall(r"```json\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert keys(found) == keys(json.loads(block))
    assert found["format"] == json.loads(block)["format"] == 1


def test_statistics_in_the_file_are_the_differences_and_the_sentences(tmp_path):
    comparison = six_arms(10)
    write_json(tmp_path / "c.json", comparison.to_dict())
    found = read_json(tmp_path / "c.json")["statistics"]
    assert found["conclusions"] == list(conclusions(comparison))
    by_loss = found["test_data_loss"]
    means = {arm.name: np.mean(arm.test("data_loss")) for arm in comparison.arms}
    assert by_loss["best"] == min(means, key=means.get)
    first = by_loss["differences"][0]
    reference = stats.ttest_rel(
        comparison["l2"].test("data_loss"), comparison["none"].test("data_loss")
    ).confidence_interval(0.95)
    assert (first["arm"], first["versus"], first["seeds"]) == ("l2", "none", 10)
    assert (first["low"], first["high"]) == pytest.approx(tuple(reference))
    pairs = {(d["arm"], d["versus"]) for d in by_loss["differences"]}
    assert len(pairs) == len(by_loss["differences"]) == 15


def test_statistics_of_a_regression_and_of_nothing_are_there_and_empty():
    nothing = {"best": None, "diverged": [], "differences": []}
    assert six_arms(2, regression=True).to_dict()["statistics"]["test_accuracy"] == (
        nothing
    )
    assert comparison().to_dict()["statistics"]["test_data_loss"] == nothing


def test_statistics_are_made_anew_and_not_read():
    data = six_arms(3).to_dict()
    data["statistics"] = {"conclusions": ["all is well"]}
    again = Comparison.from_dict(data)
    assert again.to_dict()["statistics"] == six_arms(3).to_dict()["statistics"]


def test_comparison_comes_back_from_its_file(tmp_path):
    original = comparison(arm("none", 0.9, 0.8), arm("l2", 0.7), arm("dropout"))
    write_json(tmp_path / "c.json", original.to_dict())
    again = Comparison.from_dict(read_json(tmp_path / "c.json"))
    assert again == original
    assert again["l2"].runs[0].test.accuracy == 0.7


def test_comparison_with_every_field_comes_back_from_its_file(tmp_path):
    original = six_arms(2, tuned=True, patience=3)
    write_json(tmp_path / "c.json", original.to_dict())
    again = Comparison.from_dict(read_json(tmp_path / "c.json"))
    assert again == original
    assert again.table() == original.table()


def test_fields_of_a_later_version_are_passed_over():
    data = comparison(arm("none", 0.9)).to_dict()
    data["later"] = 1
    data["arms"][0]["later"] = 2
    data["arms"][0]["runs"] = [{**data["arms"][0]["runs"][0], "later": 3}]
    assert Comparison.from_dict(data) == comparison(arm("none", 0.9))


def test_another_format_is_refused():
    with pytest.raises(InputError, match="format 2"):
        Comparison.from_dict({**comparison().to_dict(), "format": 2})


def summary_of(arm):
    return comparison(arm).to_dict()["arms"][0]["summary"]


def test_summary_is_mean_and_sample_deviation():
    summary = summary_of(arm("l2", 0.9, 0.7, 0.8, losses=[1.0, 2.0, 4.0]))
    assert summary["test_accuracy"]["mean"] == pytest.approx(0.8)
    assert summary["test_accuracy"]["std"] == pytest.approx(
        np.std([0.9, 0.7, 0.8], ddof=1)
    )
    assert summary["test_data_loss"]["std"] == pytest.approx(np.std([1, 2, 4], ddof=1))
    low, high = stats.ttest_1samp([1, 2, 4], 0).confidence_interval(0.95)
    assert summary["test_data_loss"]["low"] == pytest.approx(low)
    assert summary["test_data_loss"]["high"] == pytest.approx(high)


def test_one_seed_has_no_spread_and_a_regression_no_accuracy():
    one = summary_of(arm("l2", None, losses=[2.0]))
    nothing = dict.fromkeys(["std", "low", "high"])
    assert one["test_data_loss"] == {"mean": 2.0, **nothing}
    assert one["test_accuracy"] == {"mean": None, **nothing}


def test_diverged_run_is_null_in_the_file_and_not_left_out_of_the_mean(tmp_path):
    original = comparison(arm("l2", 0.1, 0.9, losses=[math.nan, 1.0]))
    write_json(tmp_path / "c.json", original.to_dict())
    assert "NaN" not in (tmp_path / "c.json").read_text()
    data = read_json(tmp_path / "c.json")
    assert data["arms"][0]["runs"][0]["test"]["data_loss"] is None
    summary = data["arms"][0]["summary"]["test_data_loss"]
    assert summary == dict.fromkeys(["mean", "std", "low", "high"])
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


def test_mean_of_nothing_is_none():
    assert mean_std([]).mean is None


SURE = [[0.99, 0.98] * 4, [0.90, 0.91] * 4]


@pytest.mark.parametrize(
    ("arms", "expected"),
    [
        (
            [arm("none", *SURE[1]), arm("l2", *SURE[0])],
            "l2 won with 0.9850: over 8 seeds it is significantly different from none "
            "(corrected p 0.00781).",
        ),
        (
            # The intervals leave out 0, but three seeds cannot be enough.
            [arm("none", 0.9, 0.91, 0.9), arm("l2", 0.99, 0.989, 0.991)],
            "l2 is ahead with 0.9900, but over 3 seeds it is not significantly",
        ),
        (
            [arm("none", 0.90, 0.95, 0.85), arm("l2", 0.92, 0.90, 0.91)],
            "not significantly different from none [-0.1483, 0.1283]; the differences "
            "to l2 in brackets remain possible.",
        ),
        ([arm("none", 0.9), arm("l2", 0.99)], "0.9900; one seed may be luck."),
        (
            [arm("none", 0.9, 0.8), arm("l2", 0.8, 0.9)],
            "no arm won: none and l2 are level with 0.8500, but",
        ),
        (
            [arm("none", *SURE[1]), arm("l2", *SURE[1]), arm("scaled", *SURE[0])],
            "scaled won with 0.9850: over 8 seeds it is significantly different from "
            "none and l2 (corrected p 0.0234 at most).",
        ),
        (
            [arm("l2", *SURE[1]), arm("sample", *SURE[0])],
            "sample won with 0.9850",
        ),
        ([arm("none", 0.9, 0.8)], "nothing to compare"),
        ([arm("none", 0.9), arm("l2", 0.9, seeds=[1])], "nothing to compare"),
        ([arm("none"), arm("l2")], "No run is finished yet"),
    ],
)
def test_conclusion_claims_what_the_seeds_support(arms, expected):
    assert any(expected in line for line in conclusions(comparison(*arms)))


def test_conclusion_by_loss_looks_for_the_smallest():
    worse, better = [0.30, 0.31] * 4, [0.10, 0.11] * 4
    arms = [arm("none", *[0.9] * 8, losses=worse), arm("l2", *[0.9] * 8, losses=better)]
    by_loss, by_accuracy, *_ = conclusions(comparison(*arms))
    assert "By test data loss l2 won with 0.1050" in by_loss
    assert "By test accuracy no arm won: none and l2 are level" in by_accuracy


def test_conclusion_says_which_arms_are_significantly_different():
    (line, *_) = conclusions(six_arms(10))
    assert "it is not significantly different from l2 [-0.0017, 0.0169], " in line
    assert line.endswith("It is significantly different from none and scaled.")


def test_conclusion_against_none_says_better_worse_and_open():
    noise = np.random.default_rng(0).normal(0, 0.001, (4, 10))
    means = {"none": 0.3, "l2": 0.1, "scaled": 0.5, "sample": 0.3}
    arms = [
        arm(name, *[0.9] * 10, losses=list(mean + noise[i]))
        for i, (name, mean) in enumerate(means.items())
    ]
    line = conclusions(comparison(*arms))[1]
    assert line.startswith(
        "By test data loss against none: l2 is significantly better; scaled is "
        "significantly worse; no significant difference of sample [-0.0"
    )


@pytest.mark.parametrize(
    ("seeds", "expected"),
    [
        (1, "1 seed is too few: among 6 arms"),
        (9, "cannot show a difference, however large it is; from 10 seeds on it can"),
        (10, None),
    ],
)
def test_conclusion_says_when_the_seeds_are_too_few_for_any(seeds, expected):
    found = [line for line in conclusions(six_arms(seeds)) if "too few" in line]
    assert len(found) == (expected is not None)
    assert all(expected in line for line in found)


def test_conclusion_tells_of_arms_that_diverged():
    arms = [
        arm("none", 0.9, 0.8, losses=[0.3, 0.2]),
        arm("l2", 0.8, 0.8, losses=[0.4, 0.5]),
        # The accuracy of numbers that are none is no accuracy.
        arm("sample", 0.99, 0.99, losses=[math.nan, 1.0]),
    ]
    by_loss, by_accuracy, *_ = conclusions(comparison(*arms))
    assert "(without sample, which diverged)" in by_loss
    assert "(without sample, which diverged) no arm won: none" in by_accuracy
    row = next(x for x in comparison(*arms).table().splitlines() if x[:6] == "sample")
    assert row.split().count("diverged") == 3


@pytest.mark.parametrize("losses", [[0.3, 0.2], [math.nan, math.nan]])
def test_where_too_few_arms_are_left_nothing_is_awaited(losses):
    lost = [math.nan, 0.3]
    arms = [arm("none", 0.9, 0.8, losses=losses), arm("l2", 0.8, 0.8, losses=lost)]
    line, *_ = conclusions(comparison(*arms))
    assert "which diverged) there is nothing to compare." in line
    # Here a seed is still to come.
    arms = [arm("none", 0.9), arm("l2", 0.9, seeds=[1])]
    line, *_ = conclusions(comparison(*arms))
    assert "there is nothing to compare yet." in line


def test_conclusion_says_what_was_tuned():
    given = six_arms(2)
    assert "not tuned" in conclusions(given)[-1]
    tuned = dataclasses.replace(
        given["l2"], grid=(Hyperparameters(), Hyperparameters(), Hyperparameters())
    )
    found = conclusions(made_comparison(given["none"], tuned))[-1]
    assert found == (
        "Tuned for each seed on its validation data: l2 (3 trials); as given: none."
    )


def test_setup_says_early_stopping_and_split():
    flat = " ".join(six_arms(2, patience=3).table().split())
    assert "each seed draws its own split; at most 6 epochs" in flat
    assert "stopped early after 3 epochs without a lower validation data loss" in flat
    other = " ".join(six_arms(2, split="given").table().split())
    assert "the same split for all seeds" in other
    assert "6 epochs of batches of 64; 2 seeds (0, 1); tensorflow" in other


@pytest.mark.parametrize("noise", ["normal", "standard_exponential"])
def test_chance_is_called_significant_in_at_most_a_twentieth_of_the_cases(noise):
    random = np.random.default_rng(0)
    names = ("none", "l2", "scaled", "sample", "dropout", "sample+dropout")
    draws, claims = 300, 0
    for _ in range(draws):
        losses = 0.3 + 0.01 * getattr(random, noise)(size=(len(names), 10))
        arms = [
            arm(name, *[None] * 10, losses=list(row))
            for name, row in zip(names, losses, strict=True)
        ]
        said = " ".join(conclusions(comparison(*arms))[:-1])
        words = (" won with ", "It is sign", "ly better", "ly worse")
        claims += any(word in said for word in words)
    assert claims / draws <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / draws)


def rows(text, header):
    """The rows of the plain table that has this in its header, by arm."""
    lines = text.splitlines()
    start = next(i for i, x in enumerate(lines) if x[:3] == "arm" and header in x)
    found = {}
    for line in lines[start + 2 :]:
        if not line:
            break
        found[line.split()[0]] = line
    return lines[start], found


def cells_of(line):
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_table_shows_every_column():
    runs = [
        made_run(0, data_loss=0.2, accuracy=0.9, best_epoch=4),
        made_run(1, data_loss=0.3, accuracy=0.8, best_epoch=5),
    ]
    table = made_comparison(made_arm("l2", runs, dropout=0.25)).table()
    header, results = rows(table, "test accuracy")
    cells = "SampleL2(6) | 0.25 | 0.2500 [-0.3853, 0.8853] | 0.8500 [0.2147, 1.4853]"
    assert cells_of(results["l2"]) == ["l2", *cells.split(" | "), "0.0300", "+0.1500"]
    assert header.split("  ")[-1].strip() == "gap"
    half = stats.t.ppf(0.975, 1) * np.std([0.2, 0.3], ddof=1) / math.sqrt(2)
    assert f"[{0.25 - half:.4f}, {0.25 + half:.4f}]" in results["l2"]
    header, penalties = rows(table, "coefficient c")
    # Shares: 0.5 / 2.5 at the start; 0.25 / 0.35 and 0.25 / 0.4 at the end. Ratios:
    # the medians of 0.5, 1, 1.5 and three times that.
    cells = "0.001 | 2.5 = 2 + 0.5 | 20 -> 67 | 1 -> 3 | 20"
    assert cells_of(penalties["l2"])[:6] == ["l2", *cells.split(" | ")]
    shown = [rows(table, header)[1]["l2"] for header in ("best epoch", "ms per step")]
    assert "4.5" in cells_of(shown[0])
    assert cells_of(shown[1])[-1] == "4.43"


def test_gradient_ratio_is_the_median_over_paths_and_the_mean_over_seeds():
    ratios = [
        {"start": {"a": 1.0, "b": 2.0, "c": 90.0}, "end": {"a": 4.0, "b": 8.0}},
        {"start": {"a": 4.0, "b": 4.0, "c": 0.0}, "end": {"a": 0.0, "b": 0.0}},
    ]
    runs = [made_run(i, gradient_ratios=r) for i, r in enumerate(ratios)]
    _, found = rows(made_comparison(made_arm("l2", runs)).table(), "gradient ratio")
    assert "  3 -> 3  " in found["l2"]


def test_table_shows_the_range_of_what_was_tuned():
    strengths = (2.0, 24.0, 1e-3)
    runs = [
        made_run(
            i,
            hyperparameters=Hyperparameters(
                {"class_name": "L2", "config": {"strength": s}}, s / 100
            ),
            coefficients={"a": s, "b": 2 * s},
        )
        for i, s in enumerate(strengths)
    ]
    grid = tuple(run.hyperparameters for run in runs)
    table = made_comparison(made_arm("l2", runs, grid=grid)).table()
    assert "  L2(0.001 .. 24)  1e-05 .. 0.24  " in rows(table, "penalty")[1]["l2"]
    assert "  0.001 .. 48  " in rows(table, "coefficient c")[1]["l2"]


def test_columns_with_nothing_are_left_out():
    header, _ = rows(six_arms(2, regression=True).table(), "gap")
    assert "accuracy" not in header
    assert "ECE" not in header
    assert "weight decay" not in header
    # As a comparison of an earlier version, which has none of the newer fields.
    old = comparison(arm("none", 0.9, 0.8), arm("l2", 0.95, 0.85)).table()
    for gone in ("ECE", "dropout  ", "best epoch", "ms per", "ratio", "norm"):
        assert gone not in old
    assert "2.5 = 2 + 0.5" in rows(old, "starting cost")[1]["l2"]
    assert "0.1 .. 0.2" in rows(old, "starting cost")[1]["l2"]


@pytest.mark.parametrize("tuned", [False, True])
def test_text_is_at_most_120_columns_wide(tuned):
    arms = [
        dataclasses.replace(a, name=f"{a.name} with a name of {i} letters", grid=a.grid)
        for i, a in enumerate(six_arms(10, tuned=tuned, patience=2).arms)
    ]
    arms[1] = dataclasses.replace(arms[1], weight_decay=1e-4)
    table = made_comparison(*arms, patience=2).table()
    assert max(map(len, table.splitlines())) <= 120
    assert "weight decay" in table


def test_table_shows_differences_with_corrected_interval_and_p():
    made = six_arms(10)
    header, found = rows(made.table(), "minus none")
    assert header.split("  ")[-1].strip() == "corrected p"
    a, b = made["l2"].test("data_loss"), made["none"].test("data_loss")
    test = stats.ttest_rel(a, b).confidence_interval(1 - 0.05 / 15)
    mean = np.mean(np.subtract(a, b))
    assert f"{mean:+.4f} [{test.low:.4f}, {test.high:.4f}]" in found["l2"]
    first = made.to_dict()["statistics"]["test_data_loss"]["differences"][0]
    assert f"  {first['p_corrected']:.3g}  " in found["l2"]


@pytest.mark.parametrize(
    ("size", "shown"), [(1e-5, "0.00001000"), (0.2, "0.2000"), (5e4, "50000")]
)
def test_losses_of_any_size_can_be_told(size, shown):
    runs = [made_run(i, data_loss=size, accuracy=None) for i in range(2)]
    made = made_comparison(made_arm("l2", runs), task="regression")
    assert f" {shown} [" in rows(made.table(), "test data loss")[1]["l2"]


def cells(line):
    """The cells of a row of a Markdown table: a bar with a backslash is text."""
    return line.replace("\\|", "").count("|")


def test_markdown_has_a_table_with_a_row_for_each_arm():
    page = six_arms(3).to_markdown()
    tables = [
        [line for line in part.splitlines() if line.startswith("|")]
        for part in page.split("\n\n")
        if part.startswith("|")
    ]
    assert [len(table) for table in tables] == [8, 8, 8, 8]
    assert all(len({cells(row) for row in table}) == 1 for table in tables)
    assert "| penalty share % |" in page
    assert "SGD(learning_rate=0.05, momentum=0.9)" in page


def test_markdown_is_safe_from_names():
    name = "a|b *c* <i>\n_d_"
    arms = [dataclasses.replace(a, name=name) for a in six_arms(2).arms[:1]]
    page = made_comparison(*arms, *six_arms(2).arms[1:], problem="x|y").to_markdown()
    safe = r"a\|b \*c\* \<i> \_d\_"
    assert f"| {safe} | " in page
    assert f"# x\\|y: {safe}, l2" in page
    assert name not in page
    table = [line for line in page.splitlines() if line.startswith("|")][:8]
    assert len({cells(row) for row in table}) == 1


def test_json_is_what_other_programs_read(tmp_path):
    write_json(tmp_path / "c.json", {"a": (1, float("inf"))})
    assert json.loads((tmp_path / "c.json").read_text()) == {"a": [1, None]}


PARTS = (
    *("record", "files", "records", "spread", "paired", "calibration", "words"),
    *("analysis", "columns", "conclusions", "answer", "summary", "text", "drawing"),
    *("gradient_plots", "plots", "page", "comparison"),
)


def test_results_know_only_what_stands_below_them():
    """Imports for type checkers alone included."""
    folder = pathlib.Path(records.__file__).parent
    home = "keras_scaled_l2.experiments"
    for place, part in enumerate(PARTS):
        source = (folder / f"{part}.py").read_text()
        found = set(re.findall(rf"{home}\.results\.(\w+) import", source))
        several = re.findall(rf"{home}\.results import ([\w, ]+)", source)
        found |= {name.strip() for names in several for name in names.split(",")}
        assert found <= set(PARTS[:place]), part
        above = set(re.findall(rf"from {home}\.(\w+)", source)) - {"results", "errors"}
        assert above == set(), part
