"""Trains what a tuning asks for, round by round, and makes its result."""

from __future__ import annotations

import functools
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from keras_scaled_l2.counts import elements
from keras_scaled_l2.experiments.axis import HIGHEST_RATE
from keras_scaled_l2.experiments.engine import Engine, make_engine
from keras_scaled_l2.experiments.results.curve import Block
from keras_scaled_l2.experiments.results.files import finite
from keras_scaled_l2.experiments.results.tuning import (
    Measured,
    TuningResult,
    make_result,
)
from keras_scaled_l2.experiments.results.tuning_records import TuningJob
from keras_scaled_l2.experiments.results.words import places
from keras_scaled_l2.experiments.search import (
    Finished,
    Place,
    is_hopeless,
    lacking,
    next_jobs,
)
from keras_scaled_l2.experiments.storage import TUNING, lock_directory
from keras_scaled_l2.experiments.trials import EVIDENCE, Key, Trials
from keras_scaled_l2.experiments.tuning_jobs import (
    apart,
    make_job,
    make_record,
    proposal,
)
from keras_scaled_l2.experiments.tuning_pages import write_pages
from keras_scaled_l2.experiments.tuning_plan import (
    DROPOUT,
    TuningPlan,
)
from keras_scaled_l2.experiments.workers import AT_ONCE, Workers
from keras_scaled_l2.experiments.writes import Writes
from keras_scaled_l2.interrupts import kept_interrupt

Say = Callable[[str], None]
PAUSE = 1.0
"""Seconds between two looks at a study while other workers train."""


class Tuner:
    """A plan that only needs to be trained.

    Raises:
        InputError: If the storage cannot be used.
    """

    def __init__(
        self, plan: TuningPlan, say: Say, workers: Workers | None = None
    ) -> None:
        self.plan = plan
        self._say = say
        self._workers = workers
        self._shared = plan.storage is not None
        self._engine: Engine | None = None
        self._trials: Trials

    def run(self) -> TuningResult:
        """Train what is not finished yet, and write what was found.

        Raises:
            InputError: If another process tunes in the directory.
            WriteError: If the study or the pages cannot be written.
        """
        plan = self.plan
        own = None if self._shared else plan.directory
        with lock_directory(own, TUNING), kept_interrupt() as check:
            self._trials = self._open()
            try:
                with self._trials.writing():
                    if not self._shared:
                        self._trials.requeue_running()
                    self._train_rounds(check)
                    result = self.result(self._trials.finished())
            finally:
                self._trials.close()
            folder = plan.directory
            if folder is not None:
                writes = Writes(folder)
                writes.do("the pages", lambda: write_pages(result, folder))
                writes.finish(result)
        return result

    def result(self, finished: Mapping[Key, Mapping[str, Any]]) -> TuningResult:
        """What the trainings that are finished come to."""
        plan, axis = self.plan, self.plan.axis
        finished, proposed = apart(finished)
        by_strength: dict[float, list[TuningJob]] = {}
        stopped = set()
        for (strength, seed, fold), record in sorted(finished.items()):
            job = {n: record[n] for n in ("accuracy", "best_epoch", "steps")}
            loss = record["data_loss"]
            by_strength.setdefault(strength, []).append(
                TuningJob(seed, fold, math.nan if loss is None else loss, **job)
            )
            if record["stopped"]:
                stopped.add(strength)
        base = plan.base
        return make_result(
            [
                Measured(
                    strength,
                    axis.regularization(strength).span,
                    axis.e_folds(strength),
                    axis.is_inert(strength),
                    tuple(jobs),
                )
                for strength, jobs in by_strength.items()
            ],
            exact=axis.exact,
            inert_below=axis.inert_below,
            notes=self._notes(stopped),
            evidence=None if proposed is None else proposal(plan, proposed),
            dropout=plan.axis.rate if self._beside else None,
            problem=base.problem.name,
            architecture=base.architecture.name,
            weights=sum(elements(v.shape) for v in base.network.trainable_weights),
            rule=plan.rule,
            method=plan.method,
            criterion=plan.criterion,
            optimizer=base.optimizer.to_dict(),
            samples=plan.data(plan.blocks[0]).samples,
            epochs=base.epochs,
            batch_size=base.batch_size,
        )

    @property
    def _beside(self) -> bool:
        """Whether dropout stands beside the penalty."""
        return self.plan.rule.endswith(f"+{DROPOUT}")

    def _notes(self, stopped: set[float]) -> list[str]:
        plan, notes = self.plan, []
        inert = [s for s in plan.grid or () if s and plan.axis.is_inert(s)]
        if inert:
            notes.append(
                "Inert over this training, so the same as none, and not trained apart: "
                f"{', '.join(f'{s:g}' for s in inert)}."
            )
        if stopped:
            notes.append(
                "Stopped early, since another strength was better by far: some "
                f"trainings of {', '.join(f'{s:g}' for s in sorted(stopped))}; their "
                "losses are upper bounds."
            )
        if self._beside:
            rate = plan.axis.rate
            end = " It is the highest that was tried." if rate >= HIGHEST_RATE else ""
            notes.append(f"Dropout rate {rate:g} at every strength.{end}")
        if not plan.axis.exact:
            notes.append(
                "E-folds are a stand-in under this optimizer, which divides the "
                "penalty's gradient by the RMS of the whole: no half-life."
            )
        return notes

    def _open(self) -> Trials:
        plan = self.plan
        where: str | os.PathLike[str] | None = plan.storage
        if where is None:
            folder = plan.directory
            where = "sqlite:///:memory:" if folder is None else folder / "study.db"
        name = f"{plan.base.problem.name} {plan.rule} {plan.method}"
        return Trials(where, name, plan.configuration(), shared=self._shared)

    def _train_rounds(self, check: Callable[[], None]) -> None:
        trials = self._trials
        while True:
            check()
            finished, rounds = trials.finished(), trials.rounds()
            now = rounds[-1] if rounds else []
            left = [k for k in now if k not in finished]
            if not left:
                now = left = self._next_round(finished)
                if not left:
                    return
                strengths = sorted({strength for strength, *_ in left})
                what = f"strengths {', '.join(f'{s:g}' for s in strengths)}"
                if strengths == [EVIDENCE]:
                    what = "the evidence proposes a strength"
                self._say(f"round {len(rounds) + 1}: {len(left)} trainings, {what}")
                trials.add_round(left)
            trials.enqueue(left)
            most = AT_ONCE * self.plan.workers if self._shared else len(left)
            claimed = trials.claim(most)
            if claimed:
                earlier = {k for keys in rounds for k in keys} - set(now)
                known = {k: r for k, r in finished.items() if k in earlier}
                self._train(claimed, known, check)
            else:
                # Others train; one of them may have died.
                time.sleep(PAUSE)

    def _next_round(self, finished: Mapping[Key, Mapping[str, Any]]) -> list[Key]:
        """The next trainings, from what is finished alone."""
        plan = self.plan
        if plan.grid is not None:
            places: dict[Place, float] = {}
            for i, strength in enumerate(plan.grid):
                inert = plan.axis.is_inert(strength)
                places[None if inert else i] = 0.0 if inert else strength
            # All of it, in one round.
            jobs = lacking(places, plan.blocks, self._measured(finished, places))
            return [(places[place], *block) for place, block in jobs]
        space, at = plan.space, plan.axis.strength
        finished, proposed = apart(finished)
        if plan.method == "evidence":
            if proposed is None:
                return [(EVIDENCE, *plan.evidence_block)]
            center = proposal(plan, proposed).strength
            at = functools.partial(plan.axis.around, center)
        lattice: list[Place] = [None, *range(space.lowest, space.highest + 1)]
        places = {place: at(place) for place in lattice}
        jobs = next_jobs(self._measured(finished, places), space)
        return [(places[place], *block) for place, block in jobs]

    def _measured(
        self, finished: Mapping[Key, Mapping[str, Any]], places: Mapping[Place, float]
    ) -> dict[Place, dict[Block, float]]:
        place_of = {strength: place for place, strength in places.items()}
        found: dict[Place, dict[Block, float]] = {}
        for (strength, seed, fold), record in finished.items():
            values = found.setdefault(place_of[strength], {})
            values[seed, fold] = self._value(record)
        return found

    def _value(self, record: Mapping[str, Any]) -> float:
        """The criterion, lower is better."""
        loss, accuracy = record["data_loss"], record["accuracy"]
        if loss is None:
            return math.inf
        if self.plan.criterion == "accuracy":
            return 1.0 - float(accuracy)
        return float(loss)

    def _train(
        self,
        claimed: Sequence[tuple[int, Key]],
        known: Mapping[Key, Mapping[str, Any]],
        check: Callable[[], None],
    ) -> None:
        """Train, and write each result down as soon as it is there."""
        # Neighbors in the engine share their data.
        claimed = sorted(claimed, key=lambda item: (item[1][1:], item[1][0]))
        keys = [key for _, key in claimed]
        if self._workers is None:
            results = self.trainings(keys, known, check)
        else:
            results = self._workers.trainings(keys, known, check)
        for place, record in results:
            number, (strength, seed, fold) = claimed[place]
            # A database holds no infinity.
            value = min(self._value(record), 1e300)
            self._trials.finish(number, record, value)
            loss = record["curve"][record["kept_epoch"] - 1]
            what = f"strength {strength:g}"
            if strength == EVIDENCE:
                what = f"the evidence proposes {proposal(self.plan, record).strength:g}"
            self._say(
                f"  {what}, seed {seed}, fold {fold}: validation data "
                f"loss {math.nan if loss is None else loss:.{places([loss])}f}"
            )

    def trainings(
        self,
        keys: Sequence[Key],
        known: Mapping[Key, Mapping[str, Any]],
        check: Callable[[], None],
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Train as one batch in this process.

        Args:
            keys: What to train.
            known: Records of earlier rounds, by which hopeless ones are told.
            check: Called after each epoch.

        Yields:
            ``(place of the key, its record)``.
        """
        stopped: set[int] = set()

        def stop(place: int, curves: Mapping[str, Sequence[float]]) -> bool:
            check()
            if self._is_hopeless(keys[place], curves["val_data_loss"], known):
                stopped.add(place)
            return place in stopped

        jobs = [make_job(self.plan, key) for key in keys]
        for place, trained in self._made_engine().train(jobs, stop=stop):
            record = make_record(jobs[place], trained, place in stopped)
            yield place, finite(record)

    def _is_hopeless(
        self,
        key: Key,
        losses: Sequence[float],
        known: Mapping[Key, Mapping[str, Any]],
    ) -> bool:
        """Whether a training may stop; decided by earlier rounds alone.

        Otherwise the order in which workers finish would decide. Only on the blocks of
        the screening: what goes on to the others may be the best, and is measured.
        """
        axis, plan = self.plan.axis, self.plan
        strength, *block = key
        if strength == EVIDENCE:
            return False
        if plan.criterion != "data_loss" or axis.kind == DROPOUT or plan.grid:
            return False
        if tuple(block) not in plan.space.first:
            return False
        others = [
            Finished(
                axis.e_folds(s), [math.nan if v is None else v for v in r["curve"]]
            )
            for (s, *b), r in known.items()
            if b == block and s not in (strength, EVIDENCE) and not r["stopped"]
        ]
        return is_hopeless(axis.e_folds(strength), losses, others)

    def _made_engine(self) -> Engine:
        if self._engine is None:
            axis = self.plan.axis
            self._engine = make_engine(
                self.plan.base,
                drops=axis.kind == DROPOUT or axis.rate > 0,
                decays=axis.kind == "decay",
                # Several workers keep the cores busy by themselves.
                threads=None if self.plan.workers == 1 else 1,
            )
        return self._engine


def print_line(line: str) -> None:
    """Says a line on standard error."""
    print(line, file=sys.stderr, flush=True)


def say_nothing(line: str) -> None:
    """Says nothing."""
