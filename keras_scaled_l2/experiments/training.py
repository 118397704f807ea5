"""A batch of jobs while it trains."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_scaled_l2.backends.loop import Data, State
from keras_scaled_l2.experiments.jobs import (
    NORMS,
    Evaluation,
    Gradients,
    Job,
    Stop,
    Trained,
    Watch,
)
from keras_scaled_l2.experiments.program import Program

EVALUATION_BATCH = 1000
CALL_SECONDS = 0.5
"""How long one call of a program may take: so long Ctrl-C waits for an answer."""


class Training:
    """A batch of jobs of one problem while it trains; nothing else moves its state."""

    def __init__(
        self,
        program: Program,
        jobs: Mapping[int, Job],
        stop: Stop | None = None,
        watch: Watch | None = None,
    ) -> None:
        self._program, self._loop = program, program.loop
        self._watch = watch or Watch()
        self._places, self._jobs = list(jobs), list(jobs.values())
        self._stop = stop
        self._problem = self._jobs[0].problem
        self._loop.seed(self._jobs[0].seed)
        values = [program.values(job) for job in self._jobs]
        # After each epoch; those before the first step come first.
        self._c = [np.stack([v.coefficients for v in values]).astype(np.float64)]
        n = len(self._jobs)
        self._idle = program.rows(n) - n
        self._state: State = self._loop.start(values + values[-1:] * self._idle)
        self._kept: Any = None
        self._curves: list[dict[str, list[float]]] = [{} for _ in range(n)]
        self._squares: list[list[np.ndarray]] = [[] for _ in range(n)]
        self._best, self._best_epoch = np.full(n, math.inf), np.zeros(n, int)
        self._epoch = 0
        self._active = np.array([job.epochs > 0 for job in self._jobs])
        self._steps = np.zeros(n, int)
        self._seconds = np.zeros(n)

    def train(self) -> None:
        """All epochs of all jobs."""
        for place in self._places:
            self._watch.begin(place)
        while self._active.any():
            clock = time.perf_counter()
            self.epoch()
            self.validate()
            self._look_at_losses()
            self._adapt()
            self._seconds[self._active] += time.perf_counter() - clock
            for k in np.flatnonzero(self._active).tolist():
                self._watch.epoch(
                    self._places[k], self._curves[k], self._norms(k, self._epoch - 1)
                )
            for k in np.flatnonzero(self._active).tolist():
                self._active[k] = not self._ends(k)
        if self._kept is not None:
            self._state = self._loop.go_back(self._state, self._kept)
        self._penalize(
            np.stack([self._c[self._kept_epoch(k)][k] for k in range(len(self._jobs))])
        )

    def epoch(self, steps: int | None = None) -> None:
        """One pass over the training data, measured at its first step."""
        size = self._program.batch_size
        data = self._program.put(self._problem, "train")
        n = len(self._problem.y_train)
        order = self._order(n)
        whole = n // size if steps is None else min(steps, n // size)
        batches = order[:, : n // size * size].reshape(len(order), -1, size)
        rest = order[:, n // size * size :]
        first = batches[:, 0] if whole else rest
        sums, squares = self._step(data, first)
        if whole > 1:
            sums = sums + self._many(data, batches, 1, whole)
        if whole and rest.shape[1]:
            # Of another size: a program of its own, as Keras's last step is.
            sums = sums + self._step(data, rest)[0]
        self._steps[self._active] += -(-n // size)
        measured = self._each(squares)
        for k in np.flatnonzero(self._active):
            self._squares[k].append(measured[k].astype(np.float64))
        self._append("", self._each(sums), n)
        self._c.append(self._c[-1].copy())
        self._epoch += 1

    def validate(self) -> None:
        """Validation losses of the jobs that train."""
        sums, _ = self._evaluate("validation")
        self._append("val_", sums, len(self._problem.y_validation))

    def results(
        self, evaluate: Sequence[str], gradients: bool, weights: bool
    ) -> list[Trained]:
        """What each job left."""
        names = self._program.names
        evaluations = {part: self._evaluations(part) for part in evaluate}
        squares = self._gradient_squares() if gradients else None
        kept_weights = self._current_weights() if weights else None
        found = []
        for k in range(len(self._jobs)):
            kept = self._kept_epoch(k)
            trained = Trained(
                curves=self._curves[k],
                norms=self._all_norms(k),
                best_epoch=self._first_best(k),
                kept_epoch=kept,
                steps=int(self._steps[k]),
                seconds=float(self._seconds[k]),
                evaluations={part: of_all[k] for part, of_all in evaluations.items()},
                gradients=None if squares is None else self._gradients(squares[k]),
                weights=kept_weights[k] if kept_weights else None,
                coefficients=dict(zip(names, self._c[kept][k].tolist(), strict=True)),
            )
            found.append(trained)
        return found

    def _first_best(self, k: int) -> int:
        """The best epoch, the first if all diverged, 0 without any."""
        last = len(self._curves[k].get("val_data_loss", ()))
        return int(self._best_epoch[k]) or min(1, last)

    def _kept_epoch(self, k: int) -> int:
        """The epoch whose weights are kept, 0 without any."""
        last = len(self._curves[k].get("val_data_loss", ()))
        return last if self._jobs[k].patience is None else self._first_best(k)

    def _ends(self, k: int) -> bool:
        job = self._jobs[k]
        waited = self._epoch - self._best_epoch[k]
        if self._epoch >= job.epochs or (
            job.patience is not None and waited >= job.patience
        ):
            return True
        place = self._places[k]
        return self._stop is not None and self._stop(place, self._curves[k])

    def _order(self, n: int) -> np.ndarray:
        """The order of the examples, which follows from seed and epoch alone."""
        return np.stack(
            [
                np.random.default_rng([job.seed, self._epoch]).permutation(n)
                for job in self._jobs
            ]
        ).astype(np.int32)

    def _look_at_losses(self) -> None:
        """Remembers the best epoch, and its weights where they are to be kept."""
        losses = np.array([c["val_data_loss"][-1] for c in self._curves])
        # A loss that is not a number is no best one, wherever it stands.
        better = self._active & (losses < self._best)
        self._best = np.where(better, losses, self._best)
        self._best_epoch = np.where(better, self._epoch, self._best_epoch)
        stopping = np.array([job.patience is not None for job in self._jobs])
        if not stopping.any():
            return
        # Jobs without patience keep their last weights.
        keep = np.where(stopping, better, self._active)
        if self._epoch == 1 or keep.any():
            self._kept = self._loop.keep(self._state, self._mask(keep), self._kept)

    def _adapt(self) -> None:
        """The coefficients of the next epoch, of the jobs that learn them."""
        c = self._c[-1]
        names = self._program.names
        active = {k: self._jobs[k].adapt for k in np.flatnonzero(self._active).tolist()}
        adapts = {k: adapt for k, adapt in active.items() if adapt is not None}
        weights = self._current_weights() if adapts else []
        for k, adapt in adapts.items():
            found = adapt(self._epoch, weights[k])
            c[k] = [found.coefficients.get(name, 0.0) for name in names]
            for name, value in found.curves.items():
                self._curves[k].setdefault(name, []).append(value)
        self._penalize(c)

    def _penalize(self, c: np.ndarray) -> None:
        """Have the steps read these, where there is anything that changes them."""
        if any(job.adapt is not None for job in self._jobs):
            rows = self._padded(c.astype(np.float32))
            self._state = self._loop.penalize(self._state, rows)

    def _step(self, data: Data, chosen: np.ndarray) -> tuple[Any, Any]:
        self._state, sums, squares = self._loop.step(
            self._state, data, self._some(chosen), self._mask(self._active)
        )
        return sums, squares

    def _many(self, data: Data, order: np.ndarray, start: int, stop: int) -> Any:
        """Steps in calls short enough for Ctrl-C to be answered."""
        total: Any = 0.0
        order, active = self._some(order), self._mask(self._active)
        while start < stop:
            pace = self._program.seconds_per_step
            # Before the first measurement few steps at once, and waited for.
            n = 2 if pace is None else max(1, int(CALL_SECONDS / pace))
            end = min(start + n, stop)
            clock = time.perf_counter()
            self._state, sums = self._loop.steps(
                self._state, data, order, (start, end), active
            )
            total = total + sums
            self._watch.tick()
            if pace is None or end < stop:
                self._loop.fetch(sums)
                seconds = (time.perf_counter() - clock) / (end - start)
                self._program.seconds_per_step = max(seconds, 1e-6)
            start = end
        return total

    def _some(self, array: np.ndarray) -> np.ndarray:
        """An array with a row for each job, as the loop takes it."""
        return self._padded(array) if self._program.batched else array[0]

    def _padded(self, array: np.ndarray) -> np.ndarray:
        """With the last row again for each row of the state that trains no job."""
        return np.concatenate([array, *[array[-1:]] * self._idle])

    def _mask(self, jobs: np.ndarray) -> np.ndarray:
        """Which rows of the state these jobs are."""
        return np.append(jobs, np.zeros(self._idle, bool))

    def _each(self, tensor: Any) -> np.ndarray:
        """A result with a row for each job."""
        found = self._loop.fetch(tensor)
        return found[: len(self._jobs)] if self._program.batched else found[None]

    def _evaluate(self, part: str) -> tuple[np.ndarray, list[Any]]:
        data = self._program.put(self._problem, part)
        n = len(getattr(self._problem, f"y_{part}"))
        total, outputs = None, []
        for start in range(0, n, EVALUATION_BATCH):
            chosen = np.arange(start, min(start + EVALUATION_BATCH, n), dtype=np.int32)
            sums, output = self._loop.evaluate(self._state, data, chosen)
            total = sums if total is None else total + sums
            outputs.append(output)
        return self._each(total), outputs

    def _evaluations(self, part: str) -> list[Evaluation]:
        sums, outputs = self._evaluate(part)
        n = len(getattr(self._problem, f"y_{part}"))
        each = np.concatenate([self._each(output) for output in outputs], axis=1)
        return [
            Evaluation(
                data_loss=float(loss),
                penalty=float(penalty),
                accuracy=None if self._program.right is None else float(right),
                outputs=each[k],
            )
            for k, (loss, penalty, right) in enumerate(sums.astype(np.float64) / n)
        ]

    def _gradient_squares(self) -> np.ndarray:
        data = self._program.put(self._problem, "train")
        n = min(EVALUATION_BATCH, len(self._problem.y_train))
        chosen = np.arange(n, dtype=np.int32)
        return self._each(self._loop.gradient_squares(self._state, data, chosen))

    def _gradients(self, squares: np.ndarray) -> Gradients:
        weights, gradients = np.sqrt(squares.astype(np.float64)).tolist()
        names = self._program.names
        return Gradients(
            dict(zip(names, weights, strict=True)),
            dict(zip(names, gradients, strict=True)),
        )

    def _append(self, prefix: str, sums: np.ndarray, n: int) -> None:
        names = ["data_loss", "penalty", "accuracy"]
        if self._program.right is None:
            names = names[:2]
        for k in np.flatnonzero(self._active):
            for name, value in zip(names, sums[k], strict=False):
                curve = self._curves[k].setdefault(prefix + name, [])
                curve.append(float(value) / n)

    def _norms(self, k: int, epoch: int) -> dict[str, dict[str, float]]:
        """Norms at the first step of an epoch: kind -> weight -> norm."""
        weights, gradients = np.sqrt(self._squares[k][epoch])
        with np.errstate(invalid="ignore"):  # no penalty, and weights that diverged
            columns = (weights, gradients, 2.0 * self._c[epoch][k] * weights)
        return {
            kind: dict(zip(self._program.names, column.tolist(), strict=True))
            for kind, column in zip(NORMS, columns, strict=True)
        }

    def _all_norms(self, k: int) -> dict[str, dict[str, list[float]]]:
        """``_norms`` of all epochs: kind -> weight -> norm by epoch."""
        epochs = [self._norms(k, epoch) for epoch in range(len(self._squares[k]))]
        return {
            kind: {name: [norms[kind][name] for norms in epochs] for name in names}
            for kind in NORMS
            if (names := self._program.names) and epochs
        }

    def _current_weights(self) -> list[list[np.ndarray]]:
        """Of each job, fetched from the device once for all."""
        network = self._program.network
        variables = (*network.trainable_variables, *network.non_trainable_variables)
        place = {id(v): i for i, v in enumerate(variables)}
        places = [place[id(v)] for v in self._program.weights]
        return [[row[i] for i in places] for row in self._loop.weights(self._state)]
