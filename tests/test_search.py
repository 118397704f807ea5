"""The search on curves that are known: where it goes, and what it costs."""

import math

import numpy as np
import pytest

from keras_scaled_l2.experiments.search import (
    Finished,
    Space,
    is_hopeless,
    lacking,
    next_jobs,
)

BLOCKS = tuple((seed, 0) for seed in range(5))
SPACE = Space(BLOCKS, lowest=-3, highest=6)


def searched(loss, space=SPACE):
    """(rounds, measurements) of a search over a curve ``loss(place, block)``."""
    measured, rounds = {}, []
    while jobs := next_jobs(measured, space):
        rounds.append(jobs)
        for place, block in jobs:
            values = measured.setdefault(place, {})
            assert block not in values
            values[block] = loss(place, block)
        assert len(rounds) < 40
    return rounds, measured


def valley(optimum, width=0.05, noise=0.0, none=1.0):
    """A parabola in half decades; blocks differ by far more than strengths."""
    random = np.random.default_rng(0)
    luck = dict(zip(BLOCKS, random.uniform(0.5, 2.0, 5), strict=True))

    def loss(place, block):
        extra = noise * random.normal()
        if place is None:
            return luck[block] * (none + extra)
        depth = min(1 + width * (place - optimum) ** 2, 3.0)
        return luck[block] * (depth + extra)

    return loss


def chosen(measured):
    whole = {k: sum(v.values()) for k, v in measured.items() if len(v) == len(BLOCKS)}
    return min(whole, key=whole.get)


@pytest.mark.parametrize("optimum", range(-3, 7))
def test_optimum_is_found_wherever_it_lies(optimum):
    _, measured = searched(valley(optimum, none=1.5))
    assert chosen(measured) == optimum
    # Both neighbors on the lattice were looked at, or there are none.
    assert {optimum - 1, optimum + 1} - {*measured} <= {-4, 7}


@pytest.mark.parametrize("optimum", [-1, 0, 1])
def test_search_takes_less_than_half_of_a_grid_of_twelve(optimum):
    rounds, measured = searched(valley(optimum, noise=0.002, none=1.2))
    assert sum(map(len, rounds)) <= 0.45 * 12 * len(BLOCKS)
    assert abs(chosen(measured) - optimum) <= 1


def test_first_round_has_no_penalty_and_the_middle_on_few_blocks():
    jobs = next_jobs({}, SPACE)
    assert {place for place, _ in jobs} == {None, 0}
    assert {block for _, block in jobs} == {*BLOCKS[:2]}


def test_no_penalty_and_the_best_get_all_blocks():
    for optimum in (-2, 3):
        _, measured = searched(valley(optimum, none=2.0))
        assert set(measured[None]) == set(measured[optimum]) == {*BLOCKS}


def test_nothing_is_left_that_looks_better_than_the_choice():
    for seed in range(20):
        random = np.random.default_rng(seed)
        noise = {}

        def loss(place, block, random=random, noise=noise):
            return noise.setdefault((place, block), random.lognormal(0, 0.3))

        _, measured = searched(loss)
        best = measured[chosen(measured)]
        for values in measured.values():
            assert sum(values.values()) >= sum(best[b] for b in values) or (
                len(values) == len(BLOCKS)
            )


def test_no_penalty_is_chosen_where_it_is_best():
    rounds, measured = searched(valley(-8, none=0.9))
    assert chosen(measured) is None
    assert sum(map(len, rounds)) <= 20


def test_search_widens_while_the_best_lies_at_the_end():
    rounds, _ = searched(valley(6, none=9.0))
    strongest = [max(p for p, _ in r if p is not None) for r in rounds[:4]]
    assert strongest == [0, 2, 4, 6]


def test_diverged_strengths_are_no_optimum():
    def loss(place, block):
        return math.nan if place is not None and place > 0 else valley(0)(place, block)

    _, measured = searched(loss)
    assert chosen(measured) in (None, 0)


def test_search_goes_on_where_it_stopped():
    loss = valley(1, none=1.5)
    rounds, measured = searched(loss)
    part = {}
    for place, block in [job for r in rounds[:2] for job in r] + rounds[2][:1]:
        part.setdefault(place, {})[block] = loss(place, block)
    assert next_jobs(part, SPACE) == rounds[2][1:]
    assert next_jobs(measured, SPACE) == []


def test_grid_is_taken_as_it_is():
    jobs = lacking([3, 1], BLOCKS[:2], {3: {BLOCKS[0]: 1.0}})
    assert jobs == [(1, BLOCKS[0]), (3, BLOCKS[1]), (1, BLOCKS[1])]


TURNED = Finished(1.0, [1.0, 0.5, 0.6, 0.7])
LEARNING = Finished(1.0, [1.0, 0.8, 0.6, 0.5])


@pytest.mark.parametrize(
    ("e_folds", "losses", "other", "expected"),
    [
        (10.0, [2.0, 2.0, 2.0], TURNED, False),  # before its best epoch + 2
        (10.0, [2.0, 2.0, 2.0, 2.0], TURNED, True),
        (10.0, [2.0, 0.6, 2.0, 2.0], TURNED, False),  # within 25 %
        (10.0, [2.0] * 20, LEARNING, False),  # the weaker one has not turned up
        (0.1, [2.0] * 6, LEARNING, True),  # a stronger one may judge a weaker one
        (0.1, [2.0] * 5, LEARNING, False),
        (10.0, [2.0] * 20, Finished(1.0, [math.nan, 0.1, 0.2]), False),
    ],
)
def test_hopeless_is_only_what_a_fair_comparison_says(e_folds, losses, other, expected):
    assert is_hopeless(e_folds, losses, [other]) is expected


def test_late_learner_survives_where_plain_halving_would_stop_it():
    # The stronger penalty is behind for 10 epochs, and ends lower.
    weak = [0.5 + 0.5 * 0.7**t for t in range(20)]
    strong = [0.3 + 1.2 * 0.9**t for t in range(40)]
    assert strong[10] > 1.25 * weak[10]
    for t in range(1, 40):
        assert not is_hopeless(2.0, strong[:t], [Finished(1.0, weak)])
