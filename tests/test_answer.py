"""The first screen: which arm won, how sure that is, and what would decide it."""

import dataclasses

import numpy as np
import pytest
from comparisons import made_arm, made_comparison, made_run
from scipy import stats

from keras_scaled_l2 import PriorL2, ScaledL2
from keras_scaled_l2.experiments import Arm
from keras_scaled_l2.experiments.results.answer import seeds_to_decide
from keras_scaled_l2.experiments.results.paired import compare_arms
from keras_scaled_l2.experiments.results.summary import summarize
from keras_scaled_l2.experiments.results.words import penalty


def by_losses(command=None, **losses):
    """A comparison of arms with these test data losses, one a seed."""
    arms = []
    for name, values in losses.items():
        options = {"penalty": 0.0 if name == "none" else 0.5}
        runs = [
            made_run(seed, data_loss=loss, **options)
            for seed, loss in enumerate(values)
        ]
        arms.append(made_arm(name, runs, **options))
    return dataclasses.replace(made_comparison(*arms), command=command)


def first_screen(comparison):
    return summarize(comparison).answer


NOISE = np.random.default_rng(0).normal(scale=0.01, size=10)


def test_winner_is_told_with_size_certainty_and_strength():
    found = by_losses(none=0.5 + NOISE, l2=0.4 + NOISE[::-1])
    winner, certainty, strength = first_screen(found)
    assert winner.startswith("l2 won: its test data loss of 0.4")
    assert (
        "difference to none is -0.1 (20 %), with 95 % certainty within [-0.11, -0.0"
        in certainty
    )
    assert "is significant (corrected p 0.002)" in certainty
    assert "SampleL2(6) (as strong as kernel_regularizer=keras.reg" in strength
    assert "L2(0.001))" in strength


def test_best_arm_may_beat_none_and_not_its_neighbor():
    near = 0.4 + NOISE[::-1] + 0.001 * np.roll(NOISE, 3) / 0.01
    found = by_losses(none=0.5 + NOISE, l2=0.4 + NOISE[::-1], sample=near)
    winner = first_screen(found)[0]
    assert "and is better than none; it" in winner
    assert "it is not significantly different from sample." in winner
    assert "its difference to sample is as it looks, about" in first_screen(found)[3]
    found = by_losses(
        none=0.5 + NOISE, l2=0.4 + NOISE[::-1], sample=near, dropout=0.6 + NOISE
    )
    assert "and is better than none and dropout; it" in first_screen(found)[0]


def test_none_may_be_the_best():
    found = by_losses(none=0.4 + NOISE, l2=0.5 + NOISE[::-1])
    assert first_screen(found)[0].startswith("none won")
    assert "without penalty" in first_screen(found)[2]
    close = by_losses(none=0.4 + NOISE, l2=0.4001 + NOISE[::-1])
    assert first_screen(close)[0].startswith("No arm won: no other has a better")


def test_rule_is_told_with_what_it_divides_by():
    def told(*rules):
        return penalty([arm.config for arm in (Arm("x", rule) for rule in rules)])

    # As code, ScaledL2(0.001) is another penalty than the arm l2.
    assert told(ScaledL2(0.001, per=1), ScaledL2(0.1, per=1)) == "L2(0.001 .. 0.1)"
    assert told(ScaledL2(0.1, "model", 0.5), ScaledL2(0.2, "model", 0.5)) == (
        "ScaledL2(0.1 .. 0.2, per='model', power=0.5)"
    )
    assert told(ScaledL2(2.0)) == "ScaledL2(2)"
    assert told(PriorL2(2.0)) == "PriorL2(std=2)"


def test_best_arm_is_told_to_add_nothing_where_the_network_may_have_its_own():
    found = by_losses(none=0.4 + NOISE, l2=0.5 + NOISE[::-1])
    assert first_screen(found)[2] == (
        "none is the network as it was given, without penalty, decay or dropout added."
    )


def test_arms_that_are_level_differ_by_0_and_not_by_minus_0():
    found = by_losses(none=0.5 + NOISE, l2=0.5 + NOISE)
    expected = "difference to l2 is +0 (0 %), with 95 % certainty within [0, 0]"
    assert expected in first_screen(found)[1]


def test_accuracy_that_prefers_another_arm_is_told():
    def by_both(better):
        losses, accuracies = (0.5, 0.4), (0.9 + better, 0.9)
        arms = [
            made_arm(
                name,
                [made_run(k, data_loss=a + n, accuracy=b) for k, n in enumerate(NOISE)],
            )
            for name, a, b in zip(("none", "l2"), losses, accuracies, strict=True)
        ]
        return first_screen(made_comparison(*arms))

    winner, _, accuracy, *_ = by_both(0.05)
    assert winner.startswith("l2 won: its test data loss")
    assert accuracy == (
        "Its test accuracy is 0.9000; none has the best, 0.9500, a difference that is "
        "significant (corrected p 0.002)."
    )
    assert not any("accuracy" in line for line in by_both(0.0))
    assert not any("accuracy" in line for line in by_both(-0.05))


def test_undecided_comparison_says_how_many_seeds_decide_and_the_command():
    command = "keras-scaled-l2 compare --problem x"
    found = by_losses(command, none=0.5 + NOISE, l2=0.4935 + NOISE[::-1])
    *_, last = first_screen(found)
    assert "seeds decide it: keras-scaled-l2 compare --problem x --seeds " in last
    assert int(last.rsplit(" ", 1)[1]) > 10
    called = by_losses(None, none=0.5 + NOISE, l2=0.4935 + NOISE[::-1])
    assert "compare(..., seeds=" in first_screen(called)[-1]


def test_undecided_comparison_still_names_what_is_sure():
    wide = 0.2 + np.array([0.5, 0.1, 0.1, 0.2, 0.1, 0.3, 0.1, 0.2, 0.1, 0.2])
    found = by_losses(none=0.5 + NOISE, l2=wide, sample=0.42 + NOISE[::-1])
    assert first_screen(found)[0].startswith("No arm won: l2 has the best")
    assert first_screen(found)[0].endswith(
        "; sample is significantly better than none."
    )


def test_difference_that_looks_like_none_is_said_to_take_too_many_seeds():
    found = by_losses(none=0.5 + NOISE, l2=0.5 + NOISE[::-1] + 1e-5)
    assert "takes more than 1000 seeds" in first_screen(found)[-1]


def test_one_seed_is_said_to_be_luck_and_one_arm_is_no_comparison():
    (line,) = first_screen(by_losses("command", none=[0.5], l2=[0.4]))
    assert "may be luck. 6 seeds can tell: command --seeds 6" in line
    assert first_screen(by_losses(none=[0.5])) == ()


def only_difference(values):
    found = compare_arms(
        {"none": dict(enumerate(values)), "l2": dict.fromkeys(range(9), 0)}
    )
    return found.versus("none")[0]


@pytest.mark.parametrize("comparisons", [1, 15])
def test_suggested_seeds_have_a_power_of_80_percent(comparisons):
    difference = dataclasses.replace(only_difference(range(9)), mean=0.5, std=1.0)
    n = seeds_to_decide(difference, comparisons)
    draws = np.random.default_rng(0).normal(0.5, 1.0, size=(4000, n))
    p = stats.ttest_1samp(draws, 0.0, axis=1).pvalue * comparisons
    assert np.mean(p <= 0.05) == pytest.approx(0.8, abs=0.025)
    # One seed fewer has less.
    fewer = stats.ttest_1samp(draws[:, :-3], 0.0, axis=1).pvalue * comparisons
    assert np.mean(fewer <= 0.05) < np.mean(p <= 0.05)


def test_suggested_seeds_are_never_too_few_for_the_sign_flip_test():
    large = dataclasses.replace(only_difference(range(9)), mean=9.0, std=1.0)
    assert seeds_to_decide(large, 1) == 6
    assert seeds_to_decide(large, 15) == 10
    assert seeds_to_decide(dataclasses.replace(large, mean=1e-3), 1) is None
