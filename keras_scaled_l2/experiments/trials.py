"""The trainings of a tuning as trials of an Optuna study: what is finished stays so.

A round is written down before any of its trials is enqueued, so that a search that was
cut short goes on with the same round. Any number of workers may share a study: each
trial is taken by one of them, a trial whose worker died is run again, and of two trials
of the same training the first counts.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import logging
import os
import random
import sqlite3
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from keras_scaled_l2.experiments.errors import (
    InputError,
    WriteError,
    one_line,
    require,
)
from keras_scaled_l2.experiments.heartbeats import Heartbeats
from keras_scaled_l2.experiments.results.files import finite
from keras_scaled_l2.experiments.storage import differences

Key = tuple[float, int, int]
"""Strength, seed and fold."""

EVIDENCE = -1.0
"""In place of a strength: the training that has the evidence propose one."""

HEARTBEAT = 10
"""Seconds between the signs of life of a worker."""
GRACE = 60
"""Seconds without one after which a worker is taken to be dead."""
ATTEMPTS = 3
"""How often a shared storage is tried before it is called unreachable."""

_CONFIGURATION = "configuration"
_PLANNED = "planned"
_RECORD = "record"


class Trials:
    """A study that holds one trial for each training.

    Args:
        storage: URL of a database, as ``sqlite:///study.db`` or ``postgresql://...``;
            or the path of a file, which may hold what means something in a URL.
        name: Name of the study.
        configuration: Everything that the numbers follow from, as plain data.
        shared: Whether other processes may work on it; then trials have heartbeats.

    Raises:
        InputError: If the storage cannot be reached, or holds a study of this name of
            another configuration.
    """

    def __init__(
        self,
        storage: str | os.PathLike[str],
        name: str,
        configuration: Mapping[str, Any],
        *,
        shared: bool = False,
    ) -> None:
        self._optuna = require("optuna", "a tuning")
        self._states = self._optuna.trial.TrialState
        self._shared = shared
        self._url = (
            storage if isinstance(storage, str) else f"sqlite:///{os.fspath(storage)}"
        )
        self._taken: set[int] = set()
        for attempt in range(ATTEMPTS if shared else 1):
            try:
                with self._quiet():
                    self._open(storage, name)
                break
            except InputError:
                raise
            except Exception as error:
                # Whatever a database or its driver may raise; of workers that start
                # together all but one may find its tables half made.
                if shared and attempt + 1 < ATTEMPTS:
                    time.sleep(random.uniform(0.2, 1.0))
                    continue
                raise InputError(
                    f"storage {_without_password(self._url)!r} cannot be used "
                    f"({_first_line(error)}): expected the URL of a database that "
                    "answers, as sqlite:///study.db or postgresql://user@host/name."
                ) from error
        self._study_id = self._storage.get_study_id_from_name(name)
        self._check(name, json.loads(json.dumps(finite(configuration))))
        self._beats = Heartbeats(self._storage, HEARTBEAT) if shared else None

    def _open(self, storage: str | os.PathLike[str], name: str) -> None:
        url, options = self._url, {}
        if not isinstance(storage, str):
            # Whether a ? or % of a path has to be escaped differs by SQLAlchemy's
            # version: it opens what it is given.
            url = "sqlite:///study.db"
            options["creator"] = functools.partial(
                sqlite3.connect, os.fspath(storage), check_same_thread=False
            )
        self._storage = self._optuna.storages.RDBStorage(
            url,
            engine_kwargs=options,
            heartbeat_interval=HEARTBEAT if self._shared else None,
            grace_period=GRACE if self._shared else None,
        )
        names = [study.study_name for study in self._storage.get_all_studies()]
        if not self._shared and names and name not in names:
            # Nobody would find back to it once this one had written its pages.
            raise InputError(
                f"storage {_without_password(self._url)!r} holds the tuning "
                f"{names[0]!r} (problem, rule and method): expected {name!r}. Give "
                "another directory."
            )
        self._study = self._optuna.create_study(
            storage=self._storage,
            study_name=name,
            load_if_exists=True,
            # Every point is enqueued: nothing is ever sampled.
            sampler=self._optuna.samplers.RandomSampler(seed=0),
        )

    def rounds(self) -> list[list[Key]]:
        """The rounds that were written down."""
        attributes = self._study.user_attrs
        found: list[list[Key]] = []
        while f"round_{len(found)}" in attributes:
            found.append([_key(k) for k in attributes[f"round_{len(found)}"]])
        return found

    def add_round(self, keys: Sequence[Key]) -> None:
        """Write down the next round; two workers write the same."""
        number = len(self.rounds())
        self._study.set_user_attr(f"round_{number}", [list(k) for k in keys])

    def finished(self) -> dict[Key, dict[str, Any]]:
        """What is finished, each training once: the first of its trials."""
        found: dict[Key, dict[str, Any]] = {}
        for trial in self._trials(self._states.COMPLETE):
            key = _key(trial.user_attrs[_PLANNED])
            found.setdefault(key, json.loads(trial.user_attrs[_RECORD]))
        return found

    def enqueue(self, keys: Sequence[Key]) -> None:
        """Enqueue the trainings that no trial waits for, runs or has finished."""
        with self._quiet():
            if self._shared:
                self._optuna.storages.fail_stale_trials(self._study)
        alive = {key for _, key in self._living()}
        for key in keys:
            if key not in alive:
                self._study.enqueue_trial(
                    dict(zip(("strength", "seed", "fold"), key, strict=True)),
                    user_attrs={_PLANNED: list(key)},
                )

    def requeue_running(self) -> None:
        """Give up the trials that run: their process, the only one, has died."""
        for trial in self._trials(self._states.RUNNING):
            self._study.tell(trial.number, state=self._states.FAIL)

    def claim(self, most: int) -> list[tuple[int, Key]]:
        """Take up to so many waiting trials: ``(number, training)``."""
        taken: list[tuple[int, Key]] = []
        distributions = self._distributions()
        self._touch(2 * most)
        while len(taken) < most and list(self._trials(self._states.WAITING)):
            with self._quiet():
                trial = self._study.ask(fixed_distributions=distributions)
            if _PLANNED not in trial.user_attrs:
                # Another worker took the last one first: Optuna made one up.
                self._study.tell(trial.number, state=self._states.FAIL)
                continue
            key = _key(trial.user_attrs[_PLANNED])
            # Whether an earlier trial of the same training lives.
            if any(n < trial.number and k == key for n, k in self._living()):
                self._study.tell(trial.number, state=self._states.FAIL)
                continue
            if self._beats is not None:
                self._beats.begin(trial.number, self._id(trial.number))
            self._taken.add(trial.number)
            taken.append((trial.number, key))
        return taken

    def _touch(self, most: int) -> None:
        """Give a sign of life for trials that are about to be taken.

        Optuna takes a running trial without any for alive: of a worker that was killed
        right after it took one, before the first sign, nobody would hear again.
        """
        if self._beats is not None:
            waiting = self._trials(self._states.WAITING)
            for trial in itertools.islice(waiting, most):
                self._storage.record_heartbeat(self._id(trial.number))

    def finish(self, number: int, record: Mapping[str, Any], value: float) -> None:
        """Write down what a training came to; once for each trial."""
        trial_id = self._id(number)
        with contextlib.suppress(self._optuna.exceptions.UpdateFinishedTrialError):
            # It is finished already where this worker was taken to be dead.
            self._storage.set_trial_user_attr(
                trial_id, _RECORD, json.dumps(finite(record))
            )
            self._storage.set_trial_state_values(
                trial_id, self._states.COMPLETE, [value]
            )
        self._taken.discard(number)
        if self._beats is not None:
            self._beats.end(number)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """While the study is worked on: its database may be full, or go away.

        Raises:
            WriteError: If it does; what was written before stays.
        """
        sqlalchemy = require("sqlalchemy", "a tuning")
        optuna = self._optuna.exceptions
        try:
            yield
        except (optuna.StorageInternalError, sqlalchemy.exc.SQLAlchemyError) as error:
            # Optuna's own message guesses at the cause.
            reason = _first_line(error.__cause__ or error)
            raise WriteError(
                f"storage {_without_password(self._url)!r} cannot be written "
                f"({reason}): expected room, and a database that answers. What it "
                "holds stays: the same command goes on from there."
            ) from error

    def close(self) -> None:
        """Close the connections, and give up what was taken and not finished."""
        if self._beats is not None:
            self._beats.stop()
        # Who goes on with a shared study would wait for them as for a dead worker's.
        # A database that went away has been told of.
        with contextlib.suppress(Exception):
            for number in sorted(self._taken):
                self._study.tell(number, state=self._states.FAIL)
        self._storage.remove_session()
        self._storage.engine.dispose()

    def _id(self, number: int) -> int:
        """The storage's name of a trial."""
        found: int = self._storage.get_trial_id_from_study_id_trial_number(
            self._study_id, number
        )
        return found

    def _trials(self, *states: Any) -> Iterator[Any]:
        for trial in self._study.get_trials(deepcopy=False, states=states):
            if _PLANNED in trial.user_attrs:
                yield trial

    def _living(self) -> Iterator[tuple[int, Key]]:
        """Number and training of each trial that waits, runs or is finished."""
        states = self._states
        for trial in self._trials(states.WAITING, states.RUNNING, states.COMPLETE):
            yield trial.number, _key(trial.user_attrs[_PLANNED])

    def _distributions(self) -> dict[str, Any]:
        made = self._optuna.distributions
        return {
            "strength": made.FloatDistribution(EVIDENCE, 1e300),
            "seed": made.IntDistribution(0, 2**31 - 1),
            "fold": made.IntDistribution(0, 2**31 - 1),
        }

    def _check(self, name: str, configuration: dict[str, Any]) -> None:
        before = self._study.user_attrs.get(_CONFIGURATION)
        if before is None:
            self._study.set_user_attr(_CONFIGURATION, configuration)
            return
        found = differences(before, configuration)
        if found:
            self._storage.engine.dispose()
            raise InputError(
                f"study {name!r} is of another configuration: {found}. Give another "
                "directory or storage."
            )

    @contextlib.contextmanager
    def _quiet(self) -> Iterator[None]:
        """Without Optuna's lines for each trial, and its notes on what is new."""
        logger = logging.getLogger("optuna")
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            logger.setLevel(level)


def _key(values: Sequence[Any]) -> Key:
    strength, seed, fold = values
    return float(strength), int(seed), int(fold)


def _first_line(error: BaseException) -> str:
    cause = error.__cause__ or error
    return one_line(cause)[:200]


def _without_password(url: str) -> str:
    head, at, tail = url.rpartition("@")
    scheme, colon, user = head.partition("://")
    return f"{scheme}{colon}{user.partition(':')[0]}{at}{tail}" if at else url
