"""The page: well-formed, on its own, and it says what the comparison says."""

import dataclasses
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from comparisons import made_arm, made_comparison, made_run, rule, six_arms
from scipy import stats

from keras_scaled_l2.experiments.results import drawing, page, plots
from keras_scaled_l2.experiments.results.comparison import Comparison
from keras_scaled_l2.experiments.results.files import read_json, write_json
from keras_scaled_l2.experiments.results.records import Hyperparameters
from keras_scaled_l2.experiments.results.summary import summarize

VOID = {"meta", "br"}


class Reader(HTMLParser):
    """Reads a page, and fails on a tag that closes what is not open."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.tables, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += f" {data.strip()}"

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    @property
    def table(self):
        """Arm -> heading -> what stands in its cell of any table, the first if two."""
        found = {}
        for table in self.tables:
            (_, *head), *rows = [[cell.strip() for cell in row] for row in table]
            for name, *row in rows:
                for heading, cell in zip(head, row, strict=True):
                    found.setdefault(name, {}).setdefault(heading, cell)
        return found


@pytest.fixture(scope="module")
def made():
    comparison = six_arms(5)
    return comparison, page.html(comparison)


@pytest.fixture
def no_figures(monkeypatch):
    """For tests of the text: drawing takes most of the time."""
    monkeypatch.setattr(plots, "figures", lambda comparison: {})


def test_page_is_well_formed_and_has_unique_ids(made):
    tags = Reader(made[1]).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    headings = [tag for tag, _ in tags if tag in ("h1", "h2", "h3")]
    assert headings.count("h1") == 1
    assert headings[:2] == ["h1", "h2"]
    assert headings.count("h3") == len(made[0].arms) + 5


def test_page_refers_to_nothing_outside_of_itself(made):
    _, text = made
    tags = Reader(text).tags
    ids = {attributes.get("id") for _, attributes in tags}
    referred = [
        attributes[key]
        for _, attributes in tags
        for key in ("src", "href", "xlink:href", "srcset", "data")
        if key in attributes
    ]
    assert referred
    assert {target.lstrip("#") for target in referred} <= ids
    assert all(target.startswith("#") for target in referred)
    clips = re.findall(r"url\(#([^)]+)\)", text)
    assert clips
    assert set(clips) <= ids
    assert "http" not in text
    assert "@import" not in text
    assert {tag for tag, _ in tags}.isdisjoint({"script", "link", "img", "iframe"})


def test_the_answer_stands_first_then_the_tables_then_what_follows(made):
    comparison, text = made
    read, summary = Reader(text), summarize(comparison)
    shown = [*summary.answer, *(table.title for table in summary.tables)]
    places = [read.text.index(" ".join(x.split())) for x in shown]
    assert places == sorted(places)
    after = [read.text.index(" ".join(x.split())) for x in summary.conclusions]
    assert max(places) < min(after) <= max(after) < read.text.index("Figures")
    assert set(read.table) == {arm.name for arm in comparison.arms}


def test_page_markdown_text_and_json_have_the_same_differences(no_figures, tmp_path):
    comparison = six_arms(10)
    write_json(tmp_path / "c.json", comparison.to_dict())
    table = Reader(page.html(comparison)).table
    by_loss = read_json(tmp_path / "c.json")["statistics"]["test_data_loss"]
    shown = 0
    for d in by_loss["differences"]:
        if d["versus"] == "none":
            ends = f"[{d['low_corrected']:.4f}, {d['high_corrected']:.4f}]"
            cell = f"{d['mean']:+.4f} {ends}"
            assert table[d["arm"]]["minus none"] == cell
            assert table[d["arm"]]["corrected p"] == f"{d['p_corrected']:.3g}"
            assert f"{cell}  " in comparison.table()
            assert f"| {cell} | " in comparison.to_markdown()
            shown += 1
    assert shown == 5


def test_an_arm_that_diverged_reads_the_same_everywhere(no_figures, tmp_path):
    first, second, *rest = six_arms(3).arms
    # The accuracy of outputs that are no numbers, which says nothing.
    lost = made_run(1, data_loss=float("nan"), accuracy=0.1)
    second = dataclasses.replace(second, runs=(second.runs[0], lost, second.runs[2]))
    comparison = made_comparison(first, second, *rest)
    write_json(tmp_path / "c.json", comparison.to_dict())
    saved = read_json(tmp_path / "c.json")
    arm, statistics = saved["arms"][1], saved["statistics"]
    assert arm["diverged"] == [1]
    for metric in ("test_data_loss", "test_accuracy", "test_calibration_error"):
        assert arm["summary"][metric] == dict.fromkeys(["mean", "std", "low", "high"])
    assert statistics["test_data_loss"]["diverged"] == ["l2"]
    assert statistics["test_accuracy"]["diverged"] == ["l2"]
    for shown in (comparison, Comparison.from_dict(saved)):
        headings = ("test data loss", "test accuracy", "ECE", "gap", "minus none")
        row = Reader(page.html(shown)).table["l2"]
        assert [row[h] for h in headings] == ["diverged"] * len(headings)
        text = [x for x in shown.table().splitlines() if x.startswith("l2  ")]
        marked = [x for x in shown.to_markdown().splitlines() if x.startswith("| l2 |")]
        for lines in (text, marked):
            assert lines[0].count("diverged") == 4
            assert all("diverged" in line for line in lines[-2:])
        assert "0.6" not in " ".join(text[:1] + marked[:1])


def test_page_says_what_was_compared_and_how_to_repeat_it(made):
    text = Reader(made[1]).text
    for part in (
        "mnist5k",
        "dense 784-512-512-10 (relu), 669,706 weights",
        "3,000 to train, 1,000 to validate, 1,000 to test",
        "each seed draws its own split",
        "6 epochs of batches of 64",
        "SGD(learning_rate=0.05, momentum=0.9)",
        "5 seeds (0, 1, 2, 3, 4)",
        "initial weights",
        "as given, not tuned",
        "python 3.11.7, keras 3.15.1",
        "tensorflow",
        "a processor, 2 cores",
        "comparison.json",
    ):
        assert part in text


def test_figures_are_inline_named_and_each_says_how_to_read_it(made):
    comparison, text = made
    read = Reader(text)
    drawings = [attributes for tag, attributes in read.tags if tag == "svg"]
    assert len(drawings) == len(plots.figures(comparison)) == 5
    for attributes, (heading, reading) in zip(
        drawings, page.READING.values(), strict=True
    ):
        assert attributes["role"] == "img"
        assert heading in attributes["aria-label"]
        assert reading in read.text


def test_table_holds_means_and_intervals(made):
    comparison, text = made
    table = Reader(text).table
    for arm in comparison.arms:
        for heading, key in (
            ("test data loss", "data_loss"),
            ("test accuracy", "accuracy"),
        ):
            values = arm.test(key)
            half = stats.t.ppf(0.975, 4) * stats.sem(values)
            mean = np.mean(values)
            expected = f"{mean:.4f} [{mean - half:.4f}, {mean + half:.4f}]"
            assert table[arm.name][heading] == expected
    assert table["l2"]["penalty"] == "SampleL2(6)"
    assert table["none"]["penalty"] == "-"
    assert table["dropout"]["dropout"] == "0.5"


@pytest.mark.parametrize("field", ["problem", "architecture", "device", "arm"])
def test_what_the_user_named_is_escaped(field):
    bad = "<script>alert('\"&')</script>"
    arm = made_arm(bad if field == "arm" else "none", [made_run(0)])
    options = {} if field == "arm" else {field: bad}
    text = page.html(made_comparison(arm, **options))
    read = Reader(text)
    assert "script" not in {tag for tag, _ in read.tags}
    assert bad in read.text
    assert "<script" not in text


def test_colors_follow_the_page_but_texts_stay(made):
    _, text = made
    drawings = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    assert not re.search(r'style="[^"]*#[0-9a-f]{6}', drawings)
    defined = set(re.findall(r"(--\w+):", text))
    assert set(re.findall(r"var\((--\w+)\)", text)) <= defined
    named = page.html(made_comparison(made_arm(drawing.INK, [made_run(0)])))
    assert f">{drawing.INK}</text>" in named


def test_dark_colors_stand_out_from_the_dark_page():
    paper = luminance(page.DARK[drawing.PAPER])
    for color in drawing.COLORS:
        assert contrast(luminance(color), luminance(drawing.PAPER)) >= 3
        assert contrast(luminance(page.DARK[color]), paper) >= 3


def luminance(color):
    """Relative luminance as WCAG 2.2 defines it."""
    shares = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(
        shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4
    )
    return linear @ [0.2126, 0.7152, 0.0722]


def contrast(a, b):
    return (max(a, b) + 0.05) / (min(a, b) + 0.05)


def test_tuned_strengths_are_told_with_their_range(no_figures):
    runs = [
        made_run(i, hyperparameters=Hyperparameters(rule(strength), 0.5, 0.0))
        for i, strength in enumerate((3.0, 6.0, 6.0))
    ]
    grid = [Hyperparameters(rule(strength), 0.5, 0.0) for strength in (3.0, 6.0)]
    tuned = made_arm("sample", runs, grid=grid)
    given = made_arm("none", [made_run(i, penalty=0.0) for i in range(3)], penalty=0.0)
    read = Reader(page.html(made_comparison(tuned, given)))
    assert read.table["sample"]["penalty"] == "SampleL2(3 .. 6)"
    assert read.table["sample"]["dropout"] == "0.5"
    assert "sample (2 trials); as given: none" in read.text
    assert "not tuned" not in read.text


def test_regression_has_no_column_of_accuracy(no_figures):
    read = Reader(page.html(six_arms(3, regression=True)))
    row = read.table["l2"]
    assert {"test accuracy", "ECE", "weight decay"}.isdisjoint(row)
    assert "test data loss" in row
    assert "in a regression test - train data loss" in read.text


def test_early_stopping_is_told(no_figures):
    text = Reader(page.html(six_arms(1, patience=4))).text
    assert "at most 6 epochs" in text
    assert "stopped early after 4 epochs without a lower validation data loss" in text


def test_older_records_and_none_at_all_make_a_page():
    runs = [
        made_run(
            0, curves={}, gradient_ratios={}, norms={}, final_cost=None, steps=None
        )
    ]
    read = Reader(page.html(made_comparison(made_arm("l2", runs))))
    assert {"gradient ratio", "ms per step"}.isdisjoint(read.table["l2"])
    assert read.text.count("Test results, seed by seed") == 1
    assert "Learning curves" not in read.text
    empty = Reader(page.html(made_comparison(made_arm("l2", []))))
    assert "no run is finished yet" in empty.text
    assert empty.table == {"l2": {"penalty": "SampleL2(6)", "coefficient c": "0.001"}}
    assert "svg" not in {tag for tag, _ in empty.tags}


def test_missing_seeds_are_told(no_figures):
    first, second = six_arms(3).arms[:2]
    cut = dataclasses.replace(second, runs=second.runs[:1])
    text = Reader(page.html(made_comparison(first, cut))).text
    assert "not every arm has finished all of them" in text
