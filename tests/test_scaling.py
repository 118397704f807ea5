"""Exponents and regrets: their intervals cover the truth where it is known."""

import math

import numpy as np
import pytest

from keras_scaled_l2.experiments.results.scaling import (
    Interval,
    Sweep,
    at,
    exponent,
    optimum,
    regret,
)

PLACES = np.arange(-5, 0.01, 0.5)
SIZES = (20_000, 70_000, 200_000, 670_000)


def loss(x, best, gain=0.12, steep=0.3):
    """Slowly up to the loss without penalty below the best, steeply above it."""
    d = np.asarray(x) - best
    return np.where(d < 0, 1 + gain * (1 - np.exp(-(d**2))), 1 + steep * d**2)


def sweep(weights, best, seeds=1, *, random=None, noise=0.0, shift=0.0, level=0.0):
    """A sweep whose curve is ``loss``; each seed has its own optimum and level."""
    values = {float(10**x): {} for x in PLACES} | {0.0: {}}
    for seed in range(seeds):
        own, factor = best, 1.0
        if random is not None:
            own += shift * random.normal()
            factor += level * random.normal()
        curve = [*loss(PLACES, own), 1.12]
        for c, value in zip(values, curve, strict=True):
            extra = noise * random.normal() if random is not None else 0.0
            values[c][seed] = factor * value + extra
    return Sweep(weights, values)


def drawn(random, power, seeds=5):
    """Sweeps of a family whose best c goes with this power of the size."""
    offset = random.uniform(-0.25, 0.25)
    spread = {"noise": 0.01, "shift": 0.15, "level": 0.05}
    return [
        sweep(
            n,
            -2.5 + offset + power * math.log10(n / SIZES[0]),
            seeds,
            random=random,
            **spread,
        )
        for n in SIZES
    ], offset


@pytest.mark.parametrize("power", [0.0, -0.4])
def test_exponent_is_covered_by_its_interval(power):
    random = np.random.default_rng(0)
    found = [exponent(drawn(random, power)[0]) for _ in range(150)]
    covered = np.mean([e.low <= power <= e.high for e in found])
    # 95 %; three standard errors of 150 draws are 5.3 %.
    assert covered >= 0.897
    # And is no wider than needed: it separates 0 from -0.4.
    assert np.median([e.high - e.low for e in found]) < 0.6


def test_regret_is_covered_by_its_interval():
    random, held, shift = np.random.default_rng(1), [], 0.15
    own = np.random.default_rng(2).normal(0, shift, 2000)
    for _ in range(150):
        sweeps, offset = drawn(random, -0.4)
        first, last = sweeps[0], sweeps[-1]
        chosen = min(
            first.values, key=lambda c: np.mean(list(first.values[c].values()))
        )
        center = -2.5 + offset - 0.4 * math.log10(SIZES[-1] / SIZES[0])
        means = {float(10**x): loss(x, center + own).mean() for x in PLACES}
        true = means[chosen] / min(means.values()) - 1
        found = regret(last, at(last, chosen)[0], share=True)
        held.append(found.low - 1e-9 <= true <= found.high)
    assert np.mean(held) >= 0.897


def test_regret_of_what_looks_best_is_not_said_to_be_none():
    values = {0.01: {0: 1.0, 1: 1.0, 2: 1.0}, 0.1: {0: 1.2, 1: 0.9, 2: 0.95}}
    found = regret(Sweep(1, values), values[0.01], share=True)
    assert found.value == 0
    assert found.high > 0.02


def test_one_example_less_on_every_seed_does_not_show_a_regret():
    # Errors of 24 examples: one more on both of two seeds, no spread by chance.
    values = {0.01: {0: 5 / 24, 1: 3 / 24}, 0.1: {0: 4 / 24, 1: 2 / 24}}
    made = Sweep(1, values, resolution=1 / 24)
    found = regret(made, values[0.01], share=False)
    # t of one degree of freedom, 12.706.
    half = 12.706 / 2**0.5
    assert found.value == pytest.approx(1 / 24)
    assert 24 * found.low == pytest.approx(1 - half, rel=1e-4)
    assert 24 * found.high == pytest.approx(1 + half, rel=1e-4)
    assert regret(Sweep(1, values), values[0.01], share=False).low > 0
    # The best against itself, and what the other may be better by.
    best = regret(made, values[0.1], share=False)
    assert (best.value, best.low) == (0, 0)
    assert 24 * best.high == pytest.approx(half - 1, rel=1e-4)


def test_regret_without_noise_is_the_difference():
    made = sweep(100, -2.0, seeds=3)
    far, _ = at(made, 1e-3)
    found = regret(made, far, share=True)
    expected = float(loss(-3.0, -2.0)) - 1
    for value in (found.value, found.low, found.high):
        assert value == pytest.approx(expected)
    assert regret(made, far, share=False).value == pytest.approx(expected)


def test_optimum_is_the_lowest_point_of_a_parabola_between_strengths():
    values = {10.0**x: {0: (x + 2.1) ** 2 + 1} for x in (-4, -3, -2.5, -2, -1.5, -1)}
    found = optimum(Sweep(1, values))
    assert found.value == pytest.approx(10**-2.1)
    assert (found.low, found.high, found.edge) == (None, None, False)


@pytest.mark.parametrize("best", [0.0, 1e-3, 1e-1])
def test_optimum_at_an_end_or_without_a_penalty_is_said(best):
    values = {c: {0: 1.0, 1: 1.1} for c in (0.0, 1e-3, 1e-2, 1e-1)}
    values[best] = {0: 0.5, 1: 0.5}
    assert optimum(Sweep(1, values)).edge


def test_between_strengths_the_loss_is_straight_in_the_logarithm():
    values = {0.0: {0: 1.0}, 0.01: {0: 3.0}, 0.1: {0: 4.0}}
    made = Sweep(1, values)
    assert at(made, 10**-1.5) == ({0: pytest.approx(3.5)}, False)
    # A decade below the weakest is none.
    assert at(made, 10**-2.5) == ({0: pytest.approx(2.0)}, False)
    assert at(made, 1e-9) == ({0: 1.0}, False)
    assert at(made, 0.0) == ({0: 1.0}, False)
    assert at(made, 1.0) == ({0: 4.0}, True)


def test_exponent_needs_two_sizes():
    with pytest.raises(ValueError, match="1 sizes: expected two different ones"):
        exponent([sweep(100, -2.0)])


def test_exponent_of_exact_curves_is_exact():
    parabolas = [
        Sweep(n, {10.0**x: {0: 1 + (x + 2 + 0.5 * k) ** 2} for x in range(-6, 1)})
        for k, n in enumerate((1000, 10_000, 100_000))
    ]
    assert exponent(parabolas) == Interval(pytest.approx(-0.5), None, None)
