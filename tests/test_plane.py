"""The search over strength and learning rate, on surfaces that are known."""

import pytest

from keras_scaled_l2.experiments.plane import (
    Plane,
    Point,
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


def test_points_are_on_half_decades_and_in_a_plane_or_not():
    assert [half_decades(k) for k in (-6, -5, 0, 1)] == [1e-3, 0.00316, 1.0, 3.16]
    assert Point(-10, -3, 0) in PLANE
    assert Point(None, -3, 0) in PLANE
    assert Point(-11, -3, 0) not in PLANE
