"""Figures: what is drawn is what the records say, and nothing that they lack."""

import dataclasses
import math
import pathlib
import re
import sys

import numpy as np
import pytest
from comparisons import PATHS, made_arm, made_comparison, made_run, six_arms
from scipy import stats

from keras_scaled_l2.experiments.errors import InputError
from keras_scaled_l2.experiments.results import drawing, gradient_plots, plots

NAMES = ["learning_curves", "metrics_by_arm", "cost_split", "gradient_ratios"]
NAMES.append("gradient_ratio_by_epoch")


def lines(axes):
    """Label -> the x and y of a line."""
    return {
        line.get_label(): (np.array(line.get_xdata()), np.array(line.get_ydata()))
        for line in axes.lines
    }


def text_of(figure):
    return " ".join(figure.get_supxlabel().split())


def with_runs(comparison, **fields):
    """The comparison with these fields in all of its runs."""
    arms = [
        dataclasses.replace(
            arm, runs=tuple(dataclasses.replace(run, **fields) for run in arm.runs)
        )
        for arm in comparison.arms
    ]
    return dataclasses.replace(comparison, arms=tuple(arms))


def lost_run(seed):
    nan = math.nan
    return made_run(
        seed,
        data_loss=nan,
        accuracy=0.1,
        curves={
            "data_loss": [2.0, nan, nan],
            "penalty": [1.0, nan, nan],
            "val_data_loss": [2.0, nan, nan],
            "val_accuracy": [0.2, 0.1, 0.1],
        },
        gradient_ratios={"start": {PATHS[0]: 0.5}, "end": {PATHS[0]: nan}},
    )


def test_learning_curves_are_the_means_of_the_runs():
    comparison = six_arms(5)
    loss, accuracy, *enlarged = plots.learning_curves(comparison).axes
    for arm in comparison.arms:
        for axes, name in ((loss, "val_data_loss"), (accuracy, "val_accuracy")):
            expected = np.mean([run.curves[name] for run in arm.runs], axis=0)
            epochs, values = lines(axes)[arm.name]
            assert epochs.tolist() == [1, 2, 3, 4, 5, 6]
            np.testing.assert_allclose(values, expected)
        training = np.mean([run.curves["data_loss"] for run in arm.runs], axis=0)
        np.testing.assert_allclose(lines(loss)[f"{arm.name}, training"][1], training)
        late = np.mean([run.curves["val_data_loss"][3:] for run in arm.runs], axis=0)
        np.testing.assert_allclose(lines(enlarged[0])[arm.name], [[4, 5, 6], late])
    dashed = {x.get_label() for x in loss.lines if x.get_linestyle() == "--"}
    assert dashed == {f"{arm.name}, training" for arm in comparison.arms}


@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_band_is_an_interval_from_three_seeds_on(seeds):
    arm = six_arms(seeds).arms[1]
    figure = plots.learning_curves(made_comparison(arm))
    values = np.array([run.curves["val_data_loss"] for run in arm.runs])
    low, high = values.min(axis=0), values.max(axis=0)
    if seeds >= 3:
        half = stats.t.ppf(0.975, seeds - 1) * stats.sem(values)
        low, high = values.mean(axis=0) - half, values.mean(axis=0) + half
    drawn = figure.axes[0].collections[0].get_paths()[0].vertices
    for epoch in range(1, 7):
        ends = drawn[drawn[:, 0] == epoch, 1]
        np.testing.assert_allclose(
            [ends.min(), ends.max()], [low[epoch - 1], high[epoch - 1]]
        )
    said = "95 % t interval" if seeds >= 3 else "lowest to highest seed"
    assert f"Band: {said}" in text_of(figure)


def test_runs_that_stopped_early_count_up_to_their_end():
    runs = [made_run(i, epochs=epochs) for i, epochs in enumerate((3, 5, 8))]
    runs[2] = dataclasses.replace(
        runs[2], curves={k: [9.0] * 8 for k in runs[2].curves}
    )
    figure = plots.learning_curves(made_comparison(made_arm("l2", runs)))
    values = lines(figure.axes[0])["l2"][1]
    curves = [run.curves["val_data_loss"] for run in runs]
    np.testing.assert_allclose(values[2], np.mean([c[2] for c in curves]))
    np.testing.assert_allclose(values[3], np.mean([c[3] for c in curves[1:]]))
    np.testing.assert_allclose(values[5:], curves[2][5:])
    assert "stopped early" in text_of(figure)
    assert "stopped early" not in text_of(plots.learning_curves(six_arms(3)))


def test_diverged_seed_ends_the_line_and_is_counted():
    runs = [made_run(0, epochs=3), made_run(1, epochs=3), lost_run(2)]
    comparison = made_comparison(made_arm("l2", runs), six_arms(3).arms[0])
    figure = plots.learning_curves(comparison)
    values = lines(figure.axes[0])["l2"][1]
    assert np.isfinite(values).tolist() == [True, False, False]
    assert "A line ends where a seed diverged." in text_of(figure)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "l2 (1 of 3 diverged)" in labels
    metrics = lines(plots.metrics_by_arm(comparison).axes[0])
    assert "l2, mean" not in metrics
    for axes in plots.metrics_by_arm(comparison).axes:
        assert np.isnan(lines(axes)["l2"][0]).tolist() == [False, False, True]
    drawn = lines(gradient_plots.gradient_ratios(comparison).axes[0])
    assert np.isnan(drawn["l2, end"][0]).tolist() == [True, False, False]


def test_metrics_show_every_seed_its_pairs_and_the_interval():
    comparison = six_arms(5)
    for axes, metric in zip(
        plots.metrics_by_arm(comparison).axes, ("data_loss", "accuracy"), strict=True
    ):
        drawn = lines(axes)
        for place, arm in enumerate(comparison.arms):
            values = arm.test(metric)
            np.testing.assert_allclose(drawn[arm.name], [values, [place] * 5])
            mean, below = drawn[f"{arm.name}, mean"]
            np.testing.assert_allclose(mean, [np.mean(values)])
            low, high = drawn[f"{arm.name}, interval"][0]
            half = stats.t.ppf(0.975, 4) * stats.sem(values)
            np.testing.assert_allclose([low, high], [mean[0] - half, mean[0] + half])
            assert place < below < place + 0.5
        for seed in range(5):
            paired = [arm.test(metric)[seed] for arm in comparison.arms]
            np.testing.assert_allclose(drawn[f"seed {seed}"], [paired, range(6)])


def test_metrics_join_by_seed_not_by_position():
    first, second = six_arms(3).arms[:2]
    second = dataclasses.replace(second, runs=second.runs[1:])
    drawn = lines(plots.metrics_by_arm(made_comparison(first, second)).axes[0])
    pair = [arm.runs[i].test.data_loss for arm, i in ((first, 2), (second, 1))]
    np.testing.assert_allclose(drawn["seed 2"][0], pair)
    assert np.isnan(drawn["seed 0"][0]).tolist() == [False, True]


def test_cost_split_starts_before_the_first_step():
    comparison = six_arms(3)
    panels = plots.cost_split(comparison).axes
    for axes, arm in zip(panels, comparison.arms, strict=True):
        assert axes.get_title(loc="left") == arm.name
        for part, curve in (("data", "data_loss"), ("penalty", "penalty")):
            rows = [
                [getattr(run.starting_cost, part), *run.curves[curve]]
                for run in arm.runs
            ]
            label = "data cost" if part == "data" else "penalty"
            epochs, values = lines(axes)[label]
            texts = [text.get_text() for text in axes.texts]
            if np.any(rows):
                np.testing.assert_allclose(values, np.mean(rows, axis=0))
                assert epochs.tolist() == list(range(7))
            else:
                assert len(values) == 0
                assert texts == ["no penalty"]
        assert axes.get_ylim() == panels[0].get_ylim()
        assert axes.get_xlim() == panels[0].get_xlim()


def test_cost_split_is_logarithmic_when_parts_are_far_apart():
    small = made_arm("small", [made_run(0, penalty=1e-4)], penalty=1e-4)
    large = made_arm("large", [made_run(0, penalty=50.0)], penalty=50.0)
    panels = plots.cost_split(made_comparison(small, large)).axes
    assert [axes.get_yscale() for axes in panels] == ["log", "log"]
    assert plots.cost_split(six_arms(2)).axes[0].get_yscale() == "linear"


def test_every_tick_of_a_log_axis_has_a_number():
    small = made_arm("small", [made_run(0, penalty=1e-4)], penalty=1e-4)
    large = made_arm("large", [made_run(0, penalty=50.0)], penalty=50.0)
    axis = plots.cost_split(made_comparison(small, large)).axes[0].yaxis
    assert len(axis.get_majorticklocs()) > 2
    assert len(axis.get_minorticklocs()) == 0


@pytest.mark.parametrize("draw", [plots.learning_curves, plots.cost_split])
def test_epochs_at_the_ticks_are_whole_numbers(draw):
    # Three epochs on one panel, and twelve on six, would have ticks at halves.
    short, six = [made_arm("short", [made_run(0, epochs=3)])], range(6)
    long = [made_arm(str(name), [made_run(0, epochs=12)]) for name in six]
    panels = [
        axes for arms in (short, long) for axes in draw(made_comparison(*arms)).axes
    ]
    for axes in panels:
        assert all(tick == int(tick) for tick in axes.get_xticks())


def test_figure_is_laid_out_once_and_files_do_not_move_it():
    figure = plots.cost_split(six_arms(2))
    places = [axes.get_position().bounds for axes in figure.axes]
    # Beside the labels of the panel, not where matplotlib begins.
    assert places[0][0] != pytest.approx(0.125)
    for kind in ("png", "svg"):
        drawing.render(figure, kind)
        assert [axes.get_position().bounds for axes in figure.axes] == places


def test_gradient_ratios_are_medians_at_start_and_end():
    ratios = [1.0, 5.0, 100.0]
    runs = [
        made_run(
            i,
            gradient_ratios={
                when: {path: factor * ratio for path in PATHS}
                for when, factor in (("start", 1.0), ("end", 0.01))
            },
        )
        for i, ratio in enumerate(ratios)
    ]
    none = six_arms(3).arms[0]
    figure = gradient_plots.gradient_ratios(made_comparison(none, made_arm("l2", runs)))
    axes = figure.axes[0]
    drawn = lines(axes)
    np.testing.assert_allclose(drawn["l2, start"][0], [5.0] * 3)
    np.testing.assert_allclose(drawn["l2, end"][0], [0.05] * 3)
    assert not any(label.startswith("none") for label in drawn)
    assert axes.get_xscale() == "log"
    ticks = [text.get_text() for text in axes.get_yticklabels()]
    assert ticks == ["hidden_1/kernel", "hidden_2/kernel", "output/kernel"]


def test_ratio_by_epoch_is_the_median_over_weights_and_the_mean_over_seeds():
    def run(seed, factor):
        rows = [np.array([1.0, 4.0]) * factor * n for n in (1, 2, 30)]
        norms = {
            "data_gradient": {path: [2.0, 4.0] for path in PATHS},
            "penalty_gradient": dict(zip(PATHS, map(list, rows), strict=True)),
        }
        return made_run(seed, norms=norms)

    none = six_arms(2).arms[0]
    l2 = made_arm("l2", [run(0, 1.0), run(1, 5.0)])
    figure = gradient_plots.gradient_ratio_by_epoch(made_comparison(none, l2))
    drawn = lines(figure.axes[0])
    np.testing.assert_allclose(drawn["l2"], [[1, 2], [3.0, 6.0]])
    assert set(drawn) == {"l2", "1"}
    assert figure.axes[0].get_yscale() == "log"
    assert gradient_plots.gradient_ratio_by_epoch(made_comparison(none)) is None


def test_an_arm_has_the_same_color_everywhere():
    comparison = six_arms(3)
    color = drawing.COLORS[3]
    curves, metrics, costs, ratios, by_epoch = plots.figures(comparison).values()
    for axes, label in (
        (curves.axes[0], "sample"),
        (metrics.axes[0], "sample"),
        (costs.axes[3], "penalty"),
        (ratios.axes[0], "sample, end"),
        (by_epoch.axes[0], "sample"),
    ):
        (line,) = [line for line in axes.lines if line.get_label() == label]
        assert line.get_color() == color


def test_twelve_arms_all_look_different():
    arms = [made_arm(f"arm-{i}", [made_run(0)]) for i in range(12)]
    every = drawing.styles(made_comparison(*arms))
    assert len({(x.color, x.marker) for x in every}) == 12
    unfinished = made_comparison(made_arm("none", []), *arms[1:])
    assert [x.color for x in drawing.styles(unfinished)] == [x.color for x in every[1:]]


def test_regression_has_no_accuracy():
    comparison = six_arms(3, regression=True)
    titles = [
        axes.get_title(loc="left")
        for axes in (
            *plots.learning_curves(comparison).axes,
            *plots.metrics_by_arm(comparison).axes,
        )
    ]
    assert len(titles) == 3
    assert not any("accuracy" in title for title in titles)


def test_figures_without_records_are_left_out():
    comparison = six_arms(2)
    assert list(plots.figures(comparison)) == NAMES
    older = with_runs(comparison, curves={}, gradient_ratios={}, norms={})
    assert list(plots.figures(older)) == ["metrics_by_arm"]
    assert plots.figures(made_comparison(made_arm("none", []))) == {}


@pytest.mark.filterwarnings("error")
def test_no_text_covers_another_or_leaves_the_figure(monkeypatch):
    """Twelve arms with long names, many seeds, runs of different length."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    random = np.random.default_rng(0)
    arms = []
    for i in range(12):
        name = f"sample+dropout=0.5_{'x' * 30}-{i}" if i % 2 else f"l2-{i}"
        runs = [
            made_run(
                seed, data_loss=random.uniform(0.2, 0.4), penalty=10.0 ** (i % 5 - 3),
                epochs=int(random.integers(8, 13)),
            )
            for seed in range(8)
        ]  # fmt: skip
        arms.append(made_arm(name, runs))
    drawn = []
    draw = Text.draw
    monkeypatch.setattr(
        Text, "draw", lambda text, renderer: (drawn.append(text), draw(text, renderer))
    )
    for name, figure in plots.figures(made_comparison(*arms)).items():
        canvas = FigureCanvasAgg(figure)
        drawn.clear()
        canvas.draw()
        boxes = [
            (text.get_text(), text.get_window_extent(canvas.get_renderer()))
            for text in drawn
            if text.get_text() and text.get_visible()
        ]
        assert len(boxes) > 15
        inside = figure.bbox.padded(1)
        for i, (text, box) in enumerate(boxes):
            assert inside.contains(box.x0, box.y0), (name, text)
            assert inside.contains(box.x1, box.y1), (name, text)
            for other, place in boxes[:i]:
                assert not box.padded(-1).overlaps(place.padded(-1)), (text, other)


def test_save_figures_writes_png_and_svg_and_takes_old_ones_away(tmp_path):
    written = plots.save_figures(six_arms(2), tmp_path)
    expected = [f"{name}.{kind}" for name in NAMES for kind in ("png", "svg")]
    assert [path.relative_to(tmp_path / "figures").name for path in written] == expected
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == sorted(expected)
    assert written[0].read_bytes().startswith(b"\x89PNG")
    older = with_runs(six_arms(2), curves={}, gradient_ratios={}, norms={})
    plots.save_figures(older, tmp_path)
    left = sorted(p.name for p in (tmp_path / "figures").iterdir())
    assert left == ["metrics_by_arm.png", "metrics_by_arm.svg"]


def test_save_figures_leaves_the_old_file_whole_when_it_fails(tmp_path, monkeypatch):
    folder = tmp_path / "figures"
    folder.mkdir()
    (folder / "learning_curves.png").write_text("old")

    def fail(source, target):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        plots.save_figures(six_arms(1), tmp_path)
    assert [path.name for path in folder.iterdir()] == ["learning_curves.png"]
    assert (folder / "learning_curves.png").read_text() == "old"


def test_svg_is_the_same_each_time_and_its_text_is_text():
    first, second = (
        drawing.render(plots.metrics_by_arm(six_arms(3)), "svg") for _ in range(2)
    )
    assert first == second
    svg = first.decode()
    assert re.search(r"<text[^>]*>sample\+dropout</text>", svg)
    assert "<dc:date>" not in svg


def test_a_dollar_in_a_name_is_a_dollar():
    comparison = made_comparison(made_arm("a$\\frac$b", [made_run(0)]))
    svg = drawing.render(plots.metrics_by_arm(comparison), "svg").decode()
    assert "a$\\frac$b" in svg


def test_drawing_leaves_matplotlib_as_it_was():
    import matplotlib

    before = dict(matplotlib.rcParams)
    drawing.render(plots.metrics_by_arm(six_arms(1)), "png")
    assert dict(matplotlib.rcParams) == before
    assert "import matplotlib" not in module_level()


def module_level():
    source = pathlib.Path(drawing.__file__).read_text(encoding="utf-8")
    return "\n".join(x for x in source.splitlines() if not x.startswith(" "))


def test_without_matplotlib_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.style", None)
    with pytest.raises(InputError, match=r"needs matplotlib.*pip install"):
        plots.figures(six_arms(1))
