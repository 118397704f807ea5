"""The page: well-formed, on its own, and it says what the comparison says."""

import dataclasses
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from comparisons import made_arm, made_comparison, made_run, rule, six_arms
from scipy import stats

from keras_scaled_l2.experiments import page, plots, tables
from keras_scaled_l2.experiments.records import Setting

VOID = {"meta", "br"}


class Reader(HTMLParser):
    """Reads a page, and fails on a tag that closes what is not open."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.rows, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
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
            self.rows[-1][-1] += f" {data.strip()}"

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    @property
    def table(self):
        """Arm -> heading -> what stands in the cell."""
        (_, *head), *rows = [[cell.strip() for cell in row] for row in self.rows]
        return {name: dict(zip(head, row, strict=True)) for name, *row in rows}


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
    assert headings.count("h3") == 4


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


def test_every_sentence_and_every_arm_is_there_and_the_sentences_first(made):
    comparison, text = made
    read = Reader(text)
    sentences = tables.conclusions(comparison)
    places = [read.text.index(" ".join(sentence.split())) for sentence in sentences]
    assert places == sorted(places)
    assert max(places) < read.text.index("What was compared")
    assert set(read.table) == {arm.name for arm in comparison.arms}


def test_page_says_what_was_compared_and_how_to_repeat_it(made):
    text = Reader(made[1]).text
    for part in (
        "mnist5k",
        "dense 784-512-512-10 (relu), 669,706 weights",
        "3,000 to train, 1,000 to validate, 1,000 to test",
        "each seed draws its own split",
        "6 epochs of batches of 64",
        "SGD(learning_rate=0.05, momentum=0.9)",
        "5 (0, 1, 2, 3, 4)",
        "initial weights",
        "nothing was tuned",
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
    assert len(drawings) == len(plots.figures(comparison)) == 4
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
            ("ECE", "calibration_error"),
        ):
            values = arm.test(key)
            half = stats.t.ppf(0.975, 4) * stats.sem(values)
            mean = np.mean(values)
            expected = f"{mean:.4f} {mean - half:.4f} to {mean + half:.4f}"
            assert table[arm.name][heading] == expected
    assert table["l2"]["strength"] == "6 SampleL2"
    assert table["none"]["strength"] == "-"
    assert table["dropout"]["dropout"] == "0.5"
    run = comparison.arms[3].runs[0]
    assert table["sample"]["ms per step"].startswith(f"{1250 / run.steps:.2f} ")
    shares = [x.final_cost.penalty / x.final_cost.total for x in comparison["l2"].runs]
    assert table["l2"]["penalty share"].startswith(f"{np.mean(shares):.1%} ")
    assert table["none"]["penalty share"] == "-"
    gaps = [1.0 - x.test.accuracy for x in comparison["l2"].runs]
    assert table["l2"]["gap"].startswith(f"{np.mean(gaps):+.4f} ")


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
    named = page.html(made_comparison(made_arm(plots.INK, [made_run(0)])))
    assert f">{plots.INK}</text>" in named


def test_dark_colors_stand_out_from_the_dark_page():
    paper = luminance(page.DARK[plots.PAPER])
    for color in plots.COLORS:
        assert contrast(luminance(color), luminance(plots.PAPER)) >= 3
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


def test_tuned_strengths_are_told_by_seed(no_figures):
    runs = [
        made_run(i, setting=Setting(rule(strength), 0.5, 0.0))
        for i, strength in enumerate((3.0, 6.0, 6.0))
    ]
    grid = [Setting(rule(strength), 0.5, 0.0) for strength in (3.0, 6.0)]
    tuned = made_arm("sample", runs, grid=grid)
    given = made_arm("none", [made_run(i, penalty=0.0) for i in range(3)], penalty=0.0)
    read = Reader(page.html(made_comparison(tuned, given)))
    assert read.table["sample"]["strength"] == "3 SampleL2 (1 of 3) 6 SampleL2 (2 of 3)"
    assert read.table["sample"]["dropout"] == "0.5"
    assert "sample (2 trials); given beforehand for none" in read.text
    assert "nothing was tuned" not in read.text


def test_regression_has_no_column_of_accuracy(no_figures):
    read = Reader(page.html(six_arms(3, regression=True)))
    row = read.table["l2"]
    assert {"test accuracy", "ECE", "weight decay"}.isdisjoint(row)
    assert "test data loss" in row
    assert "gap: test - train data loss" in read.text


def test_early_stopping_is_told(no_figures):
    text = Reader(page.html(six_arms(1, patience=4))).text
    assert "at most 6 epochs" in text
    assert "after 4 epochs without a lower validation data loss" in text


def test_older_records_and_none_at_all_make_a_page():
    runs = [made_run(0, curves={}, gradient_ratios={}, final_cost=None, steps=None)]
    read = Reader(page.html(made_comparison(made_arm("l2", runs))))
    assert {"penalty share", "ms per step"}.isdisjoint(read.table["l2"])
    assert read.text.count("Test results, seed by seed") == 1
    assert "Learning curves" not in read.text
    empty = Reader(page.html(made_comparison(made_arm("l2", []))))
    assert "no run is finished yet" in empty.text
    assert empty.table["l2"]["test data loss"] == "-"
    assert "svg" not in {tag for tag, _ in empty.tags}


def test_diverged_arm_and_missing_seeds_are_told(no_figures):
    first, second = six_arms(3).arms[:2]
    lost = dataclasses.replace(second, runs=(made_run(0, data_loss=float("nan")),))
    read = Reader(page.html(made_comparison(first, lost)))
    assert read.table["l2"]["test data loss"] == "diverged"
    assert "not every arm has finished all of them" in read.text
