"""Many trainings of one architecture by one compiled program."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from keras_scaled_l2.experiments.jobs import Job, Stop, Trained, Watch
from keras_scaled_l2.experiments.plan import DEFAULT_MEMORY, Plan
from keras_scaled_l2.experiments.problems import Problem
from keras_scaled_l2.experiments.program import (
    DataOnDevice,
    Parts,
    Program,
    make_parts,
)
from keras_scaled_l2.experiments.threads import Group, Results, side_by_side
from keras_scaled_l2.experiments.training import Training

MEMORY = int(DEFAULT_MEMORY * 2**30)
"""Bytes that the jobs which train at the same time may take by default."""


class Engine:
    """One network, compiled once, that trains any number of jobs.

    Penalty coefficients, dropout rate, decay, learning rate and seeds are inputs of the
    program, not constants of its trace. How many jobs train at the same time:

    - on an accelerator as many in one program as ``memory`` holds (eight copies of the
      weights each: themselves, the best, gradients, momenta, what steps need);
    - on a processor, up to a million weights, one for each core, each in a thread of
      its own: several cores gain little on the small matrices of one training;
    - one, for larger networks, which keep all cores busy, and on PyTorch, whose loop
      runs in Python.

    A job's numbers do not depend on what trains beside it, in a batch but for rounding.

    Args:
        make: Makes a network with its optimizer. Called once, or for each thread where
            the backend keeps a training's state in the network's variables.
        problem: Tells the task; the data of each job is its own.
        batch_size: Examples per step; the last step of an epoch has what is left.
        decays: Whether jobs may have weight decay; it costs a pass over the weights.
        memory: Bytes that the jobs which train at the same time may take.
        batched: Whether to batch jobs; by default where the device gains by it.
        threads: Exactly so many; by default as above. Where each thread needs a program
            of its own it is compiled once the engine has trained for as long as that
            takes, so that it pays.
    """

    def __init__(
        self,
        make: Callable[[], Parts],
        *,
        problem: Problem,
        batch_size: int,
        decays: bool = False,
        memory: int = MEMORY,
        batched: bool | None = None,
        threads: int | None = None,
    ) -> None:
        def compiled(data: DataOnDevice | None = None) -> Program:
            return Program(
                make(),
                problem=problem,
                batch_size=batch_size,
                decays=decays,
                batched=batched,
                data=data,
            )

        first = self._first = compiled()
        self.jobs_at_once, most = first.at_once(memory)
        self._threads = most if threads is None else threads
        self._another = functools.partial(compiled, first.data)
        self._programs = [first]
        self._problem, self._seconds = problem, 0.0
        self._compiled_in = math.inf if threads is None else -1.0
        self.names, self.batch_size = first.names, batch_size
        self.probabilities = first.probabilities
        self.learning_rate = first.learning_rate
        self._busy = False

    def train(
        self,
        jobs: Iterable[Job],
        *,
        stop: Stop | None = None,
        watch: Watch | None = None,
        evaluate: Sequence[str] = (),
        gradients: bool = False,
        weights: bool = False,
    ) -> Iterator[tuple[int, Trained]]:
        """Train jobs; each result is given as soon as its batch has ended.

        Args:
            jobs: What to train. Neighbors with the same problem may share a batch.
            stop: ``(place of the job, its curves so far)`` -> whether it is to stop;
                asked after each epoch, perhaps in a thread.
            watch: Hears of the beginning and of the epochs of each job, in the calling
                thread.
            evaluate: Sets to evaluate at the end: ``"train"``, ``"test"``.
            gradients: Whether to measure gradients at the end, on one batch.
            weights: Whether to fetch the weights that were kept.

        Yields:
            ``(place of the job, what it left)``.
        """
        groups = list(self._groups(list(jobs)))
        watch = watch or Watch()

        def train(
            program: Program, group: Group, stop: Stop | None, watch: Watch
        ) -> Results:
            training = Training(program, group, stop, watch)
            training.train()
            found = training.results(evaluate, gradients, weights)
            return list(zip(group, found, strict=True))

        with self._alone():
            if len(groups) > 1:
                self._grow()
            programs = self._programs[: len(groups)]
            clock = time.perf_counter()
            if len(programs) > 1:
                trains = [functools.partial(train, program) for program in programs]
                yield from side_by_side(trains, groups, stop, watch)
            else:
                for group in groups:
                    yield from train(self._first, group, stop, watch)
            self._seconds += time.perf_counter() - clock

    def _grow(self) -> None:
        """A program for each thread, as soon as it pays."""
        first, lacking = self._first, self._threads - len(self._programs)
        if not first.loop.keeps_state:
            self._programs += [first] * lacking
        elif lacking > 0 and self._seconds > self._compiled_in:
            # The data are on the device once, whatever trains.
            more = [self._another() for _ in range(lacking)]
            self._compile(more)
            self._programs += more

    def _compile(self, programs: Sequence[Program]) -> None:
        """In threads: much of it leaves Python's lock to others."""

        def compile_all(program: Program, *_: object) -> Results:
            job = Job(self._problem, program.own_initial(), {}, seed=0, epochs=1)
            training = Training(program, {0: job})
            training.epoch(steps=2)
            training.validate()
            training.results(["train", "test"], gradients=True, weights=True)
            return []

        trains = [functools.partial(compile_all, program) for program in programs]
        list(side_by_side(trains, [{}] * len(trains), None, Watch()))

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Where the state lies in variables, another training would write over it."""
        if self._busy:
            raise RuntimeError(
                "This engine is training: expected a call before or after, not from a "
                "watch or a stop."
            )
        self._busy = True
        try:
            yield
        finally:
            self._busy = False

    def start(self, problem: Problem, initial: Sequence[np.ndarray]) -> Trained:
        """Evaluation of the training set and gradients before any step."""
        job = Job(problem, initial, {}, seed=0, epochs=0)
        ((_, found),) = self.train([job], evaluate=["train"], gradients=True)
        return found

    def warm_up(self, problem: Problem) -> None:
        """Compile everything, so that no job's seconds hold the compilation."""
        with self._alone():
            self._problem, clock = problem, time.perf_counter()
            self._compile([self._first])
            if self._compiled_in == math.inf:
                self._compiled_in = time.perf_counter() - clock

    def _groups(self, jobs: Sequence[Job]) -> Iterator[dict[int, Job]]:
        """Neighbors with the same data, as many as train at once."""
        for _, same in itertools.groupby(
            enumerate(jobs), key=lambda item: id(item[1].problem)
        ):
            numbered = list(same)
            for first in range(0, len(numbered), self.jobs_at_once):
                yield dict(numbered[first : first + self.jobs_at_once])


def make_engine(
    plan: Plan, *, drops: bool, decays: bool, threads: int | None = None
) -> Engine:
    """The engine of a plan's network, for jobs that may have dropout, or decay."""

    def parts() -> Parts:
        network = plan.architecture.build(plan.seeds[0])
        return make_parts(network, plan.optimizer.make(), drops=drops)

    return Engine(
        parts,
        problem=plan.problem,
        batch_size=plan.batch_size,
        decays=decays,
        memory=plan.memory,
        threads=threads,
    )
