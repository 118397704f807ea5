"""The statistics of a tuning on simulated curves, and its format."""

import ast
import dataclasses
import json
import math
import re
import statistics

import keras
import numpy as np
import pytest
from scipy import stats

from keras_scaled_l2.experiments import tuning_pages
from keras_scaled_l2.experiments.errors import InputError
from keras_scaled_l2.experiments.results import tuning_text
from keras_scaled_l2.experiments.results.curve import Sample, curve
from keras_scaled_l2.experiments.results.tuning import (
    Measured,
    TuningResult,
    make_result,
)
from keras_scaled_l2.experiments.results.tuning_records import TuningJob
from keras_scaled_l2.experiments.results.tuning_text import LEGEND
from keras_scaled_l2.gradients import to_numpy

E_FOLDS = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0)
DRAWS = 400


def samples(losses, *, blocks=5):
    """Strengths equal to e-folds; ``losses(i)`` gives an array over the blocks."""
    return [
        Sample(e, {(b, 0): float(v) for b, v in enumerate(losses(i)[:blocks])})
        for i, e in enumerate(E_FOLDS)
    ]


def draw(random, shape, noise=0.01, blocks=5):
    """A curve of this shape; blocks differ much, their differences little."""
    luck = random.normal(0.5, 0.1, blocks)
    means = [0.5 * (f - 1) for f in shape]
    noisy = [luck + m + 0.5 * random.normal(0, noise, blocks) for m in means]
    return samples(lambda i: noisy[i], blocks=blocks)


def parabola(optimum, width=0.08):
    """Relative loss by point; no penalty is as bad as 0.03 e-folds."""
    logs = [math.log(max(e, 0.03) / optimum) for e in E_FOLDS]
    return [1 + width * x**2 for x in logs]


@pytest.mark.parametrize("blocks", [3, 5, 15])
def test_without_effect_no_penalty_is_as_good_in_95_percent(blocks):
    random = np.random.default_rng(blocks)
    said = [
        curve(draw(random, [1.0] * 6, blocks=blocks)).none_is_as_good
        for _ in range(DRAWS)
    ]
    assert np.mean(said) >= 0.95


@pytest.mark.parametrize("noise", [0.003, 0.02])
@pytest.mark.parametrize("optimum", [0.3, 0.7, 2.0])
def test_plateau_covers_a_known_optimum_in_95_percent(optimum, noise):
    random = np.random.default_rng(1)
    shape = parabola(optimum)
    plateaus = [curve(draw(random, shape, noise)).plateau for _ in range(DRAWS)]
    assert np.mean([low <= optimum <= high for low, high in plateaus]) >= 0.95


def test_effect_is_found():
    found = curve(draw(np.random.default_rng(0), parabola(1.0)))
    assert (found.best, found.none_is_as_good, found.none_is_within) == (
        3,
        False,
        False,
    )
    assert not found.edge
    low, high = found.plateau
    # 2 % of 0.5 on a parabola of 8 % for each squared e-fold: half an e-fold.
    assert 0.3 < low < 1 < high < 3


def test_intervals_are_those_of_a_paired_t_test():
    found = curve(draw(np.random.default_rng(3), parabola(1.0)))
    given = draw(np.random.default_rng(3), parabola(1.0))
    best = np.array([*given[3].values.values()])
    for sample, estimate in zip(given, found.estimates, strict=True):
        values = np.array([*sample.values.values()])
        assert estimate.mean == pytest.approx(values.mean())
        if sample is not given[3]:
            interval = stats.ttest_rel(values, best).confidence_interval(0.95)
            ends = best.mean() + np.array([interval.low, interval.high])
            assert [estimate.low, estimate.high] == pytest.approx(ends.tolist())


def test_one_standard_error_is_the_strongest_that_is_close():
    losses = [1.0, 0.9, 0.8, 0.7, 0.74, 0.9]
    spread = np.array([-0.1, 0.0, 0.1])
    given = samples(lambda i: losses[i] + spread, blocks=3)
    error = statistics.stdev(spread) / math.sqrt(3)
    assert 0.04 < error < 0.2
    assert curve(given).one_standard_error == 4
    # By accuracy the same curve upside down.
    turned = [
        dataclasses.replace(s, values={b: 1 - v for b, v in s.values.items()})
        for s in given
    ]
    found = curve(turned, higher_is_better=True)
    assert (found.best, found.one_standard_error) == (3, 4)
    assert found.estimates[3].mean == pytest.approx(0.3)
    worse = found.estimates[0]
    assert worse.low <= worse.mean <= worse.high < 0.3


def test_points_with_fewer_blocks_are_compared_on_those_they_share():
    luck = np.array([0.1, 0.2, 0.9, 1.0])
    given = samples(lambda i: luck + 0.01 * i, blocks=4)
    # Only the easy blocks: its plain mean, 0.15, would look best by far.
    given[3] = dataclasses.replace(given[3], values={(0, 0): 0.13, (1, 0): 0.23})
    found = curve(given)
    assert found.best == 0
    assert found.estimates[3].mean == pytest.approx(luck.mean() + 0.03)


def test_two_blocks_recommend_nothing_that_is_not_within_two_percent():
    given = samples(lambda i: np.array([1.0, 1.01, 0.99, 1.02, 0.98]) + 0.1 * i)
    # 10 % worse in the mean; two blocks that differ much could tell nothing.
    given[1] = dataclasses.replace(given[1], values={(0, 0): 1.0, (1, 0): 1.21})
    found = curve(given)
    assert found.estimates[1].low < found.estimates[0].mean
    assert found.plateau == (0.0, 0.0)


def test_edge_is_said_where_nothing_lies_beyond():
    falling = samples(lambda i: np.array([1.0, 1.1]) - 0.1 * i)
    rising = samples(lambda i: np.array([1.0, 1.1]) + 0.1 * i)
    assert curve(falling).edge
    assert not curve(rising).edge
    assert curve(rising[1:]).edge


def test_diverged_strength_is_never_best():
    given = samples(lambda i: np.array([1.0, 1.1]) + 0.1 * i)
    given[0] = dataclasses.replace(given[0], values={(0, 0): 0.0, (1, 0): math.nan})
    found = curve(given)
    assert found.best == 1
    assert math.isnan(found.estimates[0].mean)
    with pytest.raises(ValueError, match="finite"):
        curve([dataclasses.replace(s, values={(0, 0): math.inf}) for s in given])


FIELDS = {
    "problem": "digits",
    "architecture": "dense 64-10 (relu)",
    "weights": 650,
    "rule": "l2",
    "method": "holdout",
    "criterion": "data_loss",
    "optimizer": {
        "class_name": "SGD",
        "config": {"learning_rate": 0.05, "momentum": 0.9},
    },
    "samples": {"train": 1000, "validation": 200, "test": 200},
    "epochs": 10,
    "batch_size": 50,
}


def made(shape=(1.2, 1.19, 1.1, 1.0, 1.01, 1.4), seeds=3, **options):
    measured = []
    for i, e in enumerate(E_FOLDS):
        jobs = tuple(
            TuningJob(s, 0, shape[i] + 0.01 * s + 1e-3 * ((i + s) % 3), 0.9, 4, 200)
            for s in range(seeds)
        )
        measured.append(Measured(e / 100, (e / 100, e / 100), e, e < 0.02, jobs))
    return make_result(measured[::-1], **(FIELDS | options))


def test_json_has_the_names_of_the_format_and_comes_back():
    result = made()
    data = result.to_dict()
    assert [*data] == [
        *("format", "problem", "architecture", "weights", "rule", "method"),
        *("criterion", "optimizer", "samples", "epochs", "batch_size", "steps"),
        *("points", "best", "one_standard_error", "plateau", "findings", "evidence"),
    ]
    point = data["points"][0]
    assert [*point] == [
        *("strength", "coefficient", "e_folds", "inert", "mean", "low", "high", "jobs")
    ]
    assert [*point["jobs"][0]] == [
        *("seed", "fold", "data_loss", "accuracy", "best_epoch", "steps")
    ]
    assert ([*data["best"]], [*data["one_standard_error"]], [*data["plateau"]]) == (
        ["strength", "half_life_epochs"],
        ["strength"],
        ["low", "high"],
    )
    assert data["steps"] == 6 * 3 * 200
    again = TuningResult.from_dict(json.loads(json.dumps(data)))
    assert again == result
    with pytest.raises(InputError, match="expected format 1"):
        TuningResult.from_dict({**data, "format": 2})


def test_findings_say_what_the_curve_says():
    text = " ".join(made(inert_below=2e-4).findings)
    assert "The best strength of l2 is 0.01." in text
    assert "Any value from 0.00" in text
    assert "Below 0.0002 nothing happens" in text
    assert "edge" not in text
    assert "No penalty" not in text
    assert "at the edge" in " ".join(made([1.5, 1.4, 1.3, 1.2, 1.1, 1.0]).findings)
    assert "nothing that was tried is better" in " ".join(made([1.0] * 6).findings)
    worse = [1, 1.1, 1.2, 1.3, 1.4, 2]
    assert "No penalty is best" in " ".join(made(worse).findings)
    dropped = made(worse, rule="dropout")
    assert "No dropout is best" in " ".join(dropped.findings)
    assert "To use it: no dropout" in dropped.table()


@pytest.mark.parametrize("e_folds", [0.0, 1.0])
def test_strength_that_was_trained_alone_is_compared_with_nothing(e_folds):
    jobs = tuple(TuningJob(s, 0, 1.0 + 0.01 * s, 0.9, 4, 200) for s in range(3))
    c = e_folds / 100
    alone = Measured(c, (c, c), e_folds, e_folds < 0.02, jobs)
    first, *others = make_result([alone], **FIELDS).findings
    assert first.endswith("the only one that was trained: nothing to compare it with.")
    assert not any("best" in line for line in others)


@pytest.mark.parametrize(("none", "behind"), [(1.2, "20.0 %"), (1.01, "1.0 %")])
def test_one_training_does_not_tell_whether_no_penalty_is_worse(none, behind):
    result = made((none, 1.19, 1.1, 1.0, 1.01, 1.4), seeds=1, epochs=1)
    text = " ".join(result.findings)
    assert f"cannot tell whether no penalty is as good: here it is {behind} be" in text
    assert "worse" not in text
    assert "at most 1 epoch, " in " ".join(result.table().split())
    assert "1 trainings" not in text
    assert "cannot tell" not in " ".join(made(seeds=2).findings)
    # Nothing is said of no penalty where it was not tried.
    jobs = (TuningJob(0, 0, 1.0, 0.9, 4, 200),)
    tried = [Measured(c, (c, c), c, False, jobs) for c in (0.01, 0.1)]
    assert "no penalty" not in " ".join(make_result(tried, **FIELDS).findings)


def test_best_strength_in_other_conventions_and_as_code():
    result = made()
    assert result.best["half_life_epochs"] == pytest.approx(math.log(2) * 10)
    found = result.equivalents()
    assert found["torch"] == pytest.approx(0.02)
    assert found["textbook"] == pytest.approx(2 * 1000 * 0.01)
    # E = 2 c T lr / (1 - mu) = 2 of 200 steps, from the conversion as from the curve.
    assert found["half_life"] == pytest.approx(
        math.log(2) * 10 / (2 * 0.01 * 200 * 0.05 / 0.1)
    )
    # Two steps to an update are half the updates, each of twice the examples.
    sgd = {"gradient_accumulation_steps": 2, **FIELDS["optimizer"]["config"]}
    twice = made(optimizer={"class_name": "SGD", "config": sgd}).equivalents()
    changed = {n: pytest.approx(2 * found[n]) for n in ("half_life", "sklearn_mlp")}
    assert twice == found | changed
    # Keras averages over k targets as well; the result does not know how many.
    assert "Ridge (squared error; k targets: k times): alpha = 10\n" in result.table()
    assert result.code() == "kernel_regularizer=keras.regularizers.L2(0.01)"
    assert made(exact=False).best["half_life_epochs"] is None
    assert "with the largest c:" not in result.table()
    jobs = (TuningJob(0, 0, 1.0, 0.9, 4, 200),)
    by_layer = [Measured(1.0, (0.01, 0.1), 1.0, False, jobs)]
    assert "with the largest c: " in make_result(by_layer, **FIELDS).table()


def test_figure_of_one_strength_beside_none_has_an_axis():
    jobs = (TuningJob(0, 0, 1.0, 0.9, 4, 200),)
    tried = [Measured(c, (c, c), 100 * c, False, jobs) for c in (0.0, 0.1)]
    (axes,) = tuning_pages.draw(make_result(tried, **FIELDS)).axes
    low, high = axes.get_xlim()
    assert low < 0.1 < high


def test_text_and_markdown_show_every_point():
    result = made()
    for text in (result.table(), result.to_markdown()):
        for point in result.points:
            assert f"{point.mean:.4f}" in text
        assert "validation data loss" in " ".join(text.split())
        assert "L2(0.01)" in text
        assert "one standard error" in text


@pytest.mark.parametrize(
    ("factor", "shown"), [(1.0, "1.0010"), (1e-4, "0.0001001"), (1e3, "1001.0")]
)
def test_losses_have_the_decimals_of_their_size(factor, shown):
    measured = [
        Measured(i, (i, i), i, False, (TuningJob(0, 0, loss, 0.9, 4, 200),))
        for i, loss in enumerate([1.2 * factor, 1.001 * factor, 4e11])
    ]
    text = make_result(measured, **FIELDS).table()
    assert f" {shown} " in text
    assert "4.000e+11" in text


def test_strength_that_is_far_behind_is_named_though_too_few_can_tell():
    losses = {0.01: (1.0, 1.1, 1.2), 0.1: (1.01, 1.1, 1.2), 1000.0: (2.0, 4.0, 9000.0)}
    measured = [
        Measured(
            c, (c, c), c, False, tuple(TuningJob(s, 0, v, 0.9, 4, 9) for s, v in e)
        )
        for c, e in ((c, enumerate(values)) for c, values in losses.items())
    ]
    for given, named in ((measured, True), (measured[:2], False)):
        text = make_result(given, **FIELDS).findings[0]
        assert ("the mean at 1e+03 is 272,809 % worse" in text) == named, text


def test_line_is_broken_neither_in_a_name_nor_before_a_percent_sign():
    rule = "half-life" + " half-life" * 40
    lines = made(rule=rule, inert_below=2e-4).table().splitlines()
    assert not any(line.endswith("half-") for line in lines)
    assert not any(line.lstrip().startswith("%") for line in lines)
    words = "".join(tuning_text._wrapped("x" * n + " 2 % over") for n in range(60, 80))
    assert "\n%" not in words


def test_decay_is_put_to_use_on_what_was_decayed():
    text = made(rule="decay").table()
    assert "To use it: weight_decay=0.01\nKernels alone were decayed" in text
    call = re.search(r"optimizer\.(exclude_\w+)\(var_names=(\[.*\])\)", text)
    layers = [keras.layers.Dense(3), keras.layers.BatchNormalization()]
    network = keras.Sequential([keras.Input((2,)), *layers])
    optimizer = keras.optimizers.SGD(0.5, weight_decay=0.5)
    getattr(optimizer, call[1])(var_names=ast.literal_eval(call[2]))
    weights = network.trainable_variables
    before = [to_numpy(w) for w in weights]
    optimizer.apply([keras.ops.zeros(w.shape) for w in weights], weights)
    for weight, old in zip(weights, before, strict=True):
        share = 0.75 if weight.name == "kernel" else 1.0
        np.testing.assert_allclose(to_numpy(weight), share * old, rtol=1e-6)
    assert "Kernels" not in made().table()


def test_rule_of_the_users_own_is_code_with_the_best_strength():
    own = "ScaledL2(strength=1.0, per='model', power=1.0)"
    expected = "ApplyL2(ScaledL2(strength=0.01, per='model', power=1.0))"
    assert made(rule=own).code() == made(rule=f"{own}+dropout").code() == expected


def test_line_to_paste_has_the_dropout_that_every_training_had():
    result = made(rule="l2+dropout", dropout=0.5)
    line = "kernel_regularizer=keras.regularizers.L2(0.01)"
    assert result.code() == f"{line}, with keras.layers.Dropout(0.5)"
    assert f"To use it: {result.code()}" in result.table()
    assert read_back(result).best["dropout"] == 0.5
    none = made((1.0, 1.01, 1.02, 1.1, 1.2, 1.4), rule="l2+dropout", dropout=0.5)
    assert none.code() == "no penalty, with keras.layers.Dropout(0.5)"
    assert made(rule="l2+dropout", dropout=0.0).code() == line
    assert "dropout" not in made().best


def read_back(result):
    return type(result).from_dict(json.loads(json.dumps(result.to_dict())))


def test_accuracy_of_nothing_is_0_and_not_minus_0():
    measured = [
        Measured(
            *(c, (c, c), 100 * c, False),
            tuple(TuningJob(s, 0, 0.5, 0.0, 4, 200) for s in range(2)),
        )
        for c in (0.0, 0.1)
    ]
    result = make_result(measured, **{**FIELDS, "criterion": "accuracy"})
    assert "-0.0000" not in result.table()


@pytest.mark.parametrize(("power", "right"), [(1.0, False), (-2.0, True)])
def test_figure_shows_curve_plateau_and_the_inert_side(power, right):
    given = made()
    points = [
        dataclasses.replace(p, strength=(p.e_folds / 100) ** (1 / power))
        if p.strength
        else p
        for p in given.points
    ]
    best = {**given.best, "strength": points[3].strength}
    plateau = dict(
        zip(("low", "high"), sorted(p.strength for p in points[2:4]), strict=True)
    )
    result = dataclasses.replace(given, points=points, best=best, plateau=plateau)
    figure = tuning_pages.draw(result)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    labels = axes.get_legend_handles_labels()[1]
    assert {"no penalty", "best", "inert", "any of these will do"} <= {*labels}
    (inert,) = [p for p in axes.patches if p.get_label() == "inert"]
    edge = (0.02 / 100) ** (1 / power)
    ends = sorted((inert.get_x(), inert.get_x() + inert.get_width()))
    assert ends[0 if right else 1] == pytest.approx(edge)
    ticks = [t.get_text() for t in axes.get_xticklabels()]
    assert ticks
    assert all(float(text) > 0 for text in ticks)


def test_plateau_of_a_half_life_reaches_from_its_shortest_up_to_no_penalty():
    measured = [
        Measured(
            *(strength, (folds, folds), folds, False),
            tuple(TuningJob(s, 0, m + 0.01 * s, 0.9, 4, 200) for s in range(3)),
        )
        for strength, folds, m in [
            *((0.0, 0.0, 1.0), (25.0, 0.2, 0.999), (5.0, 1.0, 1.5), (1.0, 5.0, 2.0))
        ]
    ]
    result = make_result(measured, **{**FIELDS, "rule": "half-life"})
    high = result.plateau["high"]
    assert result.plateau["low"] == 0 and 5.0 < high < 25.0
    expected = f"Any value of {high:.3g} or more, and none, will do: all are within 2 %"
    assert expected in result.findings[0]
    (axes,) = tuning_pages.draw(result).axes
    (span,) = [p for p in axes.patches if p.get_label() == "any of these will do"]
    found = (span.get_x(), span.get_x() + span.get_width())
    assert found == pytest.approx((high, 25.0))


def test_wide_intervals_are_said_to_tell_nothing_in_words_and_in_the_figure():
    losses = {0.0: (3.0, 0.5, 0.4), 0.1: (0.5, 0.6, 0.4), 10.0: (9.0, 8.0, 9.5)}
    measured = [
        Measured(
            *(c, (c, c), c, False),
            tuple(TuningJob(s, 0, loss, 0.9, 4, 200) for s, loss in enumerate(values)),
        )
        for c, values in losses.items()
    ]
    result = make_result(measured, **FIELDS)
    assert result.plateau["low"] == 0 and result.best["strength"] == 0.1
    # (3.0 + 0.5 + 0.4) / 3 = 1.3, against 0.5.
    expected = "But the mean at none is 160 % worse than the best: these are too few"
    assert expected in result.findings[0]
    (axes,) = tuning_pages.draw(result).axes
    labels = axes.get_legend_handles_labels()[1]
    assert "too few trainings to tell" in labels
    assert "any of these will do" not in labels


def test_two_trainings_recommend_no_strength_that_is_far_from_the_best():
    # t is 12.7 with two: hardly any difference is significant.
    losses = {0.1: (0.50, 0.52), 1.0: (0.501, 0.52), 10.0: (0.8, 0.9)}
    found = curve(
        [Sample(c, dict(enumerate_blocks(values))) for c, values in losses.items()]
    )
    assert found.estimates[2].low < found.estimates[0].mean
    assert found.inside == (0, 1)
    assert found.plateau[1] < 2.0


def enumerate_blocks(values):
    return [((seed, 0), value) for seed, value in enumerate(values)]


def test_accuracies_that_differ_by_one_example_prove_nothing():
    # One example of 24 more, on both of two seeds: no spread, by chance.
    values = {0.0: (20 / 24, 18 / 24), 0.1: (21 / 24, 19 / 24)}
    given = [Sample(c, dict(enumerate_blocks(v))) for c, v in values.items()]
    found = curve(given, higher_is_better=True, resolution=1 / 24)
    assert found.none_is_as_good
    # t of one degree of freedom: 12.706 / sqrt(2) examples to both sides of 19.
    none, half = found.estimates[0], 12.706 / 2**0.5
    assert 24 * none.low == pytest.approx(19 - half, rel=1e-4)
    assert 24 * none.high == pytest.approx(19 + half, rel=1e-4)
    assert not curve(given, higher_is_better=True).none_is_as_good
    jobs = {
        c: tuple(TuningJob(s, 0, 0.5, v, 4, 200) for s, v in enumerate(pair))
        for c, pair in values.items()
    }
    result = make_result(
        [Measured(c, (c, c), 100 * c, False, jobs[c]) for c in values],
        **FIELDS
        | {"criterion": "accuracy", "samples": {"train": 96, "validation": 24}},
    )
    assert result[0.0].low == pytest.approx(none.low)
    assert any("as good" in line for line in result.findings)


def test_figure_of_an_adaptive_optimizer_calls_nothing_inert():
    adam = {"class_name": "Adam", "config": {"learning_rate": 0.001}}
    (axes,) = tuning_pages.draw(made(optimizer=adam, exact=False)).axes
    assert "inert" not in axes.get_legend_handles_labels()[1]


def test_page_explains_its_columns_and_names_the_code():
    text = tuning_pages.page(made(), "<?xml?><svg></svg>")
    assert "<svg></svg>" in text
    assert "keras.regularizers.L2(0.01)" in text
    assert text.count("<tr>") == 1 + len(E_FOLDS)
    for line in LEGEND:
        assert line in text
        assert line in made().to_markdown()
