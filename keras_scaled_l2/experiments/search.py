"""Which strengths to train next: a pure function of what has been measured.

Strengths lie on a lattice: ``None`` is no penalty, a whole number ``k`` a strength that
the space gives to it, half a decade of e-folds apart (a tenth for dropout rates). The
search begins in the middle, goes a decade to both sides, on while the best lies at an
end, and then to the neighbors of the best; first on few blocks (seeds and folds), then
with the rest of the blocks on those that may be the best, and on no penalty. It ends
when nothing that was tried looks better than the best, block by block.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence

from keras_scaled_l2.experiments.results.curve import Block

Place = int | None
"""Of a strength on the lattice; ``None`` is no penalty."""

CLOSE = 0.06
"""The better neighbor of the best is measured on all blocks if it is within 6 %."""
HOPELESS = 0.25
"""A training 25 % above another strength's end is not going to be the best."""
PATIENCE = 2
"""So many epochs after that strength's best one."""


@dataclasses.dataclass(frozen=True)
class Space:
    """Where the search may go.

    Args:
        blocks: All blocks, in the order in which they are used.
        middle: Where the search begins.
        step: How far it goes to both sides, and each time that it widens.
        lowest: Weakest place that is not inert.
        highest: Strongest place.
        screening: Blocks that decide where to look closer.
    """

    blocks: tuple[Block, ...]
    middle: int = 0
    step: int = 2
    lowest: int = -3
    highest: int = 10
    screening: int = 2

    @property
    def first(self) -> tuple[Block, ...]:
        """The blocks of the screening."""
        return self.blocks[: self.screening]


Measurements = Mapping[Place, Mapping[Block, float]]
"""Place -> block -> value of the criterion, lower is better; inf if diverged."""


def next_jobs(measured: Measurements, space: Space) -> list[tuple[Place, Block]]:
    """The jobs of the next round; empty when the search has ended."""
    for places, blocks in _stages(measured, space):
        jobs = lacking(places, blocks, measured)
        if jobs:
            return jobs
    return []


def _stages(
    measured: Measurements, space: Space
) -> Iterator[tuple[Sequence[Place], Sequence[Block]]]:
    """Places and the blocks that they need; each stage follows from those before it."""
    low = max(space.lowest, space.middle - space.step)
    high = min(space.highest, space.middle + space.step)
    yield [None, space.middle], space.first
    yield [low, high], space.first
    penalized = [k for k in measured if k is not None]
    first = min(penalized, key=lambda k: (_screened(measured, k, space), k))
    yield _around(first, measured, space), space.first
    best, seen = _best(measured, space.first), set[Place]()
    while best not in seen:
        seen.add(best)
        yield [best, None], space.blocks
        if best is not None:
            yield _around(best, measured, space), space.first
        yield _rival(best, measured), space.blocks
        # Few blocks may have been unlucky for what all of them favor: nothing that
        # looks better than the choice is left unmeasured.
        while ahead := _ahead(measured, space):
            yield [ahead[0]], space.blocks
        best = _complete_best(measured, space)


def _screened(measured: Measurements, place: Place, space: Space) -> float:
    """Mean over the blocks of the screening; infinite for one that lacks some."""
    values = measured[place]
    whole = all(b in values for b in space.first)
    return _mean(values, space.first) if whole else math.inf


def _around(best: int, measured: Measurements, space: Space) -> list[Place]:
    """Beyond the best where it lies at an end, else its neighbors on the lattice."""
    known = [k for k in measured if k is not None]
    if best == max(known) and best < space.highest:
        return [min(space.highest, best + space.step)]
    lower, higher = best - 1, best + 1
    if best == min(known) and _best(measured, space.first) is None:
        # Below it the curve only goes back to no penalty, which is better.
        lower = best
    return [k for k in (lower, higher) if space.lowest <= k <= space.highest]


def _neighbors(best: Place, measured: Measurements) -> list[Place]:
    known = sorted(k for k in measured if k is not None)
    order: list[Place] = [None, *known]
    i = order.index(best)
    return [order[j] for j in (i - 1, i + 1) if 0 <= j < len(order)]


def _rival(best: Place, measured: Measurements) -> list[Place]:
    """The better of the neighbors, if it is within 6 % of the best."""
    excess = {}
    for place in _neighbors(best, measured):
        # On the blocks that both have.
        shared = sorted(measured[place].keys() & measured[best].keys())
        ours, theirs = (_mean(measured[k], shared) for k in (place, best))
        if ours <= theirs + CLOSE * abs(theirs):
            excess[place] = ours - theirs
    return [min(excess, key=lambda k: excess[k])] if excess else []


def _complete_best(measured: Measurements, space: Space) -> Place:
    complete = {k: v for k, v in measured.items() if len(v) == len(space.blocks)}
    return _best(complete, space.blocks)


def _ahead(measured: Measurements, space: Space) -> list[Place]:
    """Places with few blocks that are ahead of the best on those, the best first."""
    best = measured[_complete_best(measured, space)]
    excess = {
        place: _mean(values, sorted(values)) - _mean(best, sorted(values))
        for place, values in measured.items()
        if len(values) < len(space.blocks)
    }
    return sorted((k for k, v in excess.items() if v < 0), key=lambda k: excess[k])


def _best(measured: Measurements, blocks: Sequence[Block]) -> Place:
    whole = [k for k in measured if all(b in measured[k] for b in blocks)]
    # No penalty first, then the weaker one: of equals the simpler.
    whole.sort(key=lambda k: -math.inf if k is None else k)
    return min(whole, key=lambda k: _mean(measured[k], blocks))


def _mean(values: Mapping[Block, float], blocks: Sequence[Block]) -> float:
    found = [values[b] for b in blocks]
    return statistics.fmean(found) if all(map(math.isfinite, found)) else math.inf


def lacking(
    places: Iterable[Place], blocks: Sequence[Block], measured: Measurements
) -> list[tuple[Place, Block]]:
    """The jobs of these places on these blocks that were not measured yet."""
    places = dict.fromkeys(places)
    # Block by block: neighbors in the engine share their data.
    return [
        (place, block)
        for block in blocks
        for place in places
        if block not in measured.get(place, {})
    ]


@dataclasses.dataclass(frozen=True)
class Finished:
    """A training of another strength on the same block: its losses by epoch."""

    e_folds: float
    losses: Sequence[float]

    @property
    def turned(self) -> int | None:
        """Epoch (from 1) of its lowest loss, if the loss has turned up since."""
        lowest = min(range(len(self.losses)), key=lambda i: self.losses[i])
        return lowest + 1 if lowest + 1 < len(self.losses) else None


def is_hopeless(
    e_folds: float, losses: Sequence[float], others: Sequence[Finished]
) -> bool:
    """Whether a training may stop since it will not be the best on its block.

    It is compared with trainings of the same block that have ended: hopeless is a
    lowest loss that is 25 % above another's, two epochs after that one had its lowest
    loss. Stronger penalties learn later, so a stronger one is compared
    with a weaker one only if the weaker one's loss has turned up, and after that.
    """
    lowest = min(losses)
    for other in others:
        if not all(map(math.isfinite, other.losses)):
            continue
        reached = other.turned
        if reached is None:
            # It was still learning when it ended: one that is weaker tells nothing.
            if other.e_folds < e_folds:
                continue
            reached = len(other.losses)
        end = min(other.losses)
        if len(losses) >= reached + PATIENCE and lowest > end + HOPELESS * abs(end):
            return True
    return False
