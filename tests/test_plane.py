"""The search over strength and learning rate, on surfaces that are known."""

import dataclasses

import pytest

from keras_scaled_l2.experiments.plane import (
    Plane,
    best_pair,
    half_decades,
    means,
    next_points,
)

PLANE = Plane(rates=(-4, -3, -2), rate_bounds=(-6, 0), seeds=5, screening=2)


def searched(surface, plane=PLANE):
    """Everything that is trained where ``surface(place, rate, seed)`` is the loss."""
    records = {}
    while points := next_points(records, plane):
        for point in points:
            assert point not in records
            value = surface(*point)
            records[point] = {"loss": value, "accuracy": 1 - value / 10}
        assert len(records) < 2000
    return records


def bowl(place_, rate_, none=3.0, steep=0.03):
    def surface(place, rate, seed):
        if place is None:
            return none + 0.02 * (rate + 3) ** 2 + seed
        # A stronger penalty wants another learning rate.
        return 1 + 0.05 * (place - place_) ** 2 + steep * (rate - rate_) ** 2 + seed

    return surface


@pytest.mark.parametrize("best", [(-9, -5), (-5, -3), (1, 0), (-2, -1)])
def test_optimum_is_found_with_its_learning_rate(best):
    records = searched(bowl(*best))
    whole = means(records, "loss", range(5))
    assert best_pair(whole) == best
    # And its neighbors in strength have all seeds: an interval needs them.
    assert {best[0] - 1, best[0] + 1} <= {place for place, _ in whole}


def test_every_strength_gets_the_learning_rate_that_suits_it():
    # By loss the stronger the higher, by accuracy one above: far from what both
    # optima, at -5 and -3, want.
    def record(place, rate, seed):
        k = -12 if place is None else place
        suits = round(0.5 * (k + 5)) - 3
        return {
            "loss": 1 + 0.2 * (k + 5) ** 2 + 0.03 * (rate - suits) ** 2 + seed,
            "accuracy": 0.5 - 0.01 * abs(k + 4) - 0.01 * abs(rate - suits - 1),
        }

    records = {}
    while points := next_points(records, PLANE):
        records |= {p: record(*p) for p in points}
    places = {place for place, _, _ in records}
    assert {None, -8, -2} < places
    for criterion, above in (("loss", 0), ("accuracy", 1)):
        whole = means(records, criterion, range(5))
        for place in places:
            k = -12 if place is None else place
            suits = min(0, max(-6, round(0.5 * (k + 5)) - 3 + above))
            own = {pair: v for pair, v in whole.items() if pair[0] == place}
            assert best_pair(own) == (place, suits)


def test_what_is_not_compared_has_its_learning_rates_followed_at_the_optimum():
    surface = bowl(-5, 0, steep=0.3)
    narrow = dataclasses.replace(PLANE, tuned=())
    few, all_ = searched(surface, narrow), searched(surface)
    assert best_pair(means(few, "loss", range(5))) == (-5, 0)
    assert len(few) < len(all_)


def test_every_strength_gets_all_seeds_and_few_more_are_trained():
    # Learning rates that are closer than CLOSE get all seeds too.
    records = searched(bowl(-5, -3, steep=0.3))
    places = {place for place, _, _ in records}
    assert {place for place, _ in means(records, "loss", range(5))} == places
    grid = len(places) * len({rate for _, rate, _ in records}) * 5
    assert len(records) < 0.7 * grid


def test_a_single_strength_has_only_its_learning_rate_tuned():
    plane = Plane(
        rates=(-4, -3, -2),
        rate_bounds=(-6, 0),
        seeds=3,
        screening=2,
        coarse=(-5,),
        bounds=(-5, -5),
    )
    records = searched(bowl(-5, -1), plane)
    assert {place for place, _, _ in records} == {-5}
    assert best_pair(means(records, "loss", range(3))) == (-5, -1)


def test_criteria_are_followed_each_by_itself():
    def record(place, rate, seed):
        k = -99 if place is None else place
        return {"loss": (k + 7) ** 2 + rate**2, "accuracy": 1 - (k + 3) ** 2 / 1e4}

    records = {}
    while points := next_points(records, PLANE):
        records |= {p: record(*p) for p in points}
    assert best_pair(means(records, "loss", range(5)))[0] == -7
    assert best_pair(means(records, "accuracy", range(5)))[0] == -3


def test_diverged_trainings_are_never_the_best():
    def surface(place, rate, seed):
        if rate >= -2:
            return float("nan")
        return bowl(-5, -3)(place, rate, seed)

    assert best_pair(means(searched(surface), "loss", range(5))) == (-5, -3)


def test_places_are_half_decades():
    assert [half_decades(k) for k in (-6, -5, 0, 1)] == [1e-3, 0.00316, 1.0, 3.16]
