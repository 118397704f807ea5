"""The same strength at other sizes: what each rule loses by it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from keras_scaled_l2.experiments import architectures
from keras_scaled_l2.experiments.engine import Engine, make_engine
from keras_scaled_l2.experiments.families import Family
from keras_scaled_l2.experiments.jobs import Job, Trained
from keras_scaled_l2.experiments.journal import Journal
from keras_scaled_l2.experiments.plane import Plane, Point, followed, half_decades
from keras_scaled_l2.experiments.problems import Problem
from keras_scaled_l2.experiments.results.files import write_json, write_text
from keras_scaled_l2.experiments.results.transferring import TransferResult
from keras_scaled_l2.experiments.runs import validation_score
from keras_scaled_l2.experiments.storage import TRANSFER, lock_directory
from keras_scaled_l2.experiments.transfer_lines import SWEEP, Line
from keras_scaled_l2.experiments.transfer_plan import TransferPlan, make_transfer_plan
from keras_scaled_l2.experiments.transfer_result import (
    best_places,
    check_trained,
    make_result,
    points_of,
)
from keras_scaled_l2.experiments.tuner import Say, print_line, say_nothing
from keras_scaled_l2.experiments.writes import Writes
from keras_scaled_l2.interrupts import kept_interrupt


def transfer(
    model: Family = "dense",
    problem: str | os.PathLike[str] | Problem = "mnist5k",
    rules: Sequence[str] | None = None,
    *,
    sizes: Sequence[int] | None = None,
    widths: Sequence[int] | None = None,
    seeds: int | Sequence[int] | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    optimizer: str = "sgd",
    patience: int | None = None,
    directory: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> TransferResult:
    """Tune a strength on a small network, and say what it loses on larger ones.

    Strength and learning rate are tuned together (see ``plane``) on the smallest
    network of a family under each rule. The strength is taken to the larger ones, where
    the learning rate is tuned anew, and compared with the best of a sweep over the
    coefficient at that size. One sweep serves all rules that are constant within a
    model, since those differ by a factor that is known beforehand; between two of its
    coefficients the loss is taken to be straight in log c. Data loss and accuracy are
    each tuned and judged by themselves.

    Args:
        model: ``"dense"``, ``"conv"`` or ``"residual"`` (with batch normalization),
            ``"module:function"``, or a function of a width that makes a built model.
        problem: As in ``compare``.
        rules: Of ``l2`` (the same coefficient), ``model-0.25``, ``model-0.5`` and
            ``model-1`` (divided by this power of the model's penalized weights),
            ``sample`` (``SampleL2``, the same as ``l2`` where the number of examples
            stays), ``half-life`` (``HalfLifeL2``: the coefficient goes with the
            reciprocal of the learning rate; SGD only), ``scaled`` (``ScaledL2`` by
            tensor), ``prior`` (``PriorL2``, by fan-in) and ``decay`` (the optimizer's
            decoupled decay, of the same half-life). Default: all that fit.
        sizes: Trainable weights of the networks, about, from the smallest to the
            largest; 20 000, 70 000, 200 000 and 670 000 by default.
        widths: Their widths instead, for a function of your own.
        seeds: Number of seeds, or seeds, at least 2; 3 by default.
        epochs: Epochs of a training, at most; as in ``compare`` by default.
        batch_size: Examples of a step; likewise.
        optimizer: ``"sgd"`` (with momentum 0.9) or ``"adam"``; the learning rate is
            tuned.
        patience: Epochs without a lower validation data loss after which a training
            stops and goes back to the best; 4 by default.
        directory: Where trainings and result go; the same call goes on where it was
            stopped. ``None`` writes nothing.
        progress: Whether to say on standard error what is being trained.

    Raises:
        InputError: Before any training, if something that was asked for cannot be
            done, or the directory holds a transfer of another configuration. After
            the trainings of a size, if all of them diverged.
        WriteError: At the end, if not everything could be written, as on a full disk;
            its ``result`` is the result.

    Example:
        ``print(transfer(problem="digits", sizes=(2000, 8000)).table())``
    """
    plan = make_transfer_plan(
        model,
        problem,
        rules,
        sizes=sizes,
        widths=widths,
        seeds=seeds,
        epochs=epochs,
        batch_size=batch_size,
        optimizer=optimizer,
        patience=patience,
        directory=directory,
    )
    say: Say = print_line if progress else say_nothing
    with lock_directory(plan.directory, TRANSFER), kept_interrupt() as check:
        writes = Writes(plan.directory)
        result = _Transfer(plan, say, check, writes).run()
        folder = plan.directory
        if folder is not None:
            data, text = result.to_dict(), result.to_markdown()
            writes.do(
                "transfer.json", lambda: write_json(folder / "transfer.json", data)
            )
            writes.do("transfer.md", lambda: write_text(folder / "transfer.md", text))
        writes.finish(result)
    return result


class _Transfer:
    """A plan that only needs to be trained."""

    def __init__(
        self, plan: TransferPlan, say: Say, check: Callable[[], None], writes: Writes
    ) -> None:
        self.plan, self._say, self._check = plan, say, check
        self._journal = Journal(plan, writes)

    def run(self) -> TransferResult:
        """Train what is not finished yet; the smallest size chooses the strengths."""
        plan = self.plan
        chosen: dict[str, dict[str, Any]] = {}
        for size, member in enumerate(plan.members):
            self._say(f"{member.architecture.name}: {member.weights:,} weights")
            engine: list[Engine] = []
            for rule in plan.lines:
                line = plan.line(rule, size)
                for plane in self._planes(line, size, chosen.get(rule)):
                    self._search(line, size, plane, engine)
                if line.rule == SWEEP:
                    check_trained(plan, size, self._journal.of(size))
                if size == 0:
                    records = self._journal.of(size)
                    chosen[rule] = best_places(plan, line, records)
        return make_result(plan, [self._journal.of(i) for i in range(len(plan.plans))])

    def _planes(
        self, line: Line, size: int, chosen: Mapping[str, Any] | None
    ) -> list[Plane]:
        if chosen is None or line.rule == SWEEP:
            return [self.plan.plane(line)]
        return [self.plan.at(place) for place in dict.fromkeys(chosen.values())]

    def _search(
        self, line: Line, size: int, plane: Plane, engine: list[Engine]
    ) -> None:
        seeds = self.plan.seeds
        while True:
            self._check()
            finished = dict(points_of(line, self._journal.of(size), seeds))
            _, missing = followed(finished, plane)
            if not missing:
                return
            self._say(f"  {line.rule}: {len(missing)} trainings")
            self._train(line, size, missing, engine)

    def _train(
        self, line: Line, size: int, points: Sequence[Point], engine: list[Engine]
    ) -> None:
        if not engine:
            # Not compiled where everything is finished.
            decays = "decay" in self.plan.rules
            own = self.plan.plans[size]
            engine.append(make_engine(own, drops=False, decays=decays))
        jobs = [self._job(line, size, point) for point in points]

        def stop(place: int, curves: Any) -> bool:
            self._check()
            return False

        for place, trained in engine[0].train(jobs, stop=stop):
            point = points[place]
            key = line.key(point.place, point.rate)
            seed = self.plan.seeds[point.seed]
            self._journal.add(size, key, seed, _record(trained))

    def _job(self, line: Line, size: int, point: Point) -> Job:
        plan, seed = self.plan.plans[size], self.plan.seeds[point.seed]
        chosen = line.regularization(point.place, point.rate)
        return Job(
            problem=self.plan.data(seed),
            initial=architectures.initial_weights(plan.architecture.build(seed)),
            coefficients=chosen.coefficients,
            seed=seed,
            epochs=plan.epochs,
            weight_decay=chosen.weight_decay,
            learning_rate=half_decades(point.rate),
            patience=plan.patience,
        )


def _record(trained: Trained) -> dict[str, Any]:
    score = validation_score(trained)
    return {
        "loss": score.data_loss,
        "accuracy": score.accuracy,
        "best_epoch": trained.best_epoch,
        "steps": trained.steps,
    }
