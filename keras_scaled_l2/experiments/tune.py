"""A strength by hold-out or by cross-validation, in few training steps."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from keras_scaled_l2.experiments.axis import RULES
from keras_scaled_l2.experiments.errors import unknown
from keras_scaled_l2.experiments.plan import DEFAULT_MEMORY, Model
from keras_scaled_l2.experiments.problems import Problem
from keras_scaled_l2.experiments.results.tuning import TuningResult
from keras_scaled_l2.experiments.tuner import Say, Tuner, print_line, say_nothing
from keras_scaled_l2.experiments.tuning_plan import (
    DROPOUT,
    check_evidence,
    make_tuning_plan,
)
from keras_scaled_l2.experiments.workers import Workers


def tune(
    model: Model = "dense",
    problem: str | os.PathLike[str] | Problem = "mnist5k",
    rule: str | keras.Regularizer = "l2",
    *,
    grid: Sequence[float] | None = None,
    method: str = "holdout",
    folds: int | None = None,
    seeds: int | Sequence[int] = 5,
    criterion: str = "data_loss",
    epochs: int | None = None,
    batch_size: int | None = None,
    hidden: Sequence[int] | None = None,
    optimizer: str | keras.optimizers.Optimizer = "sgd",
    learning_rate: float | None = None,
    patience: int | None = None,
    memory: float = DEFAULT_MEMORY,
    storage: str | None = None,
    workers: int = 1,
    directory: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> TuningResult:
    """Find a strength on validation data, and say how sure that is.

    Without a grid the strengths are found: no penalty and whole decades of e-folds
    (see ``efolds``) on few seeds, on beyond an end that is best, then half decades
    around the best, and all seeds for the strengths that may be it.

    Args:
        model: As in ``compare``.
        problem: As in ``compare``.
        rule: ``l2``, ``scaled``, ``sample``, ``prior``, ``half-life``, ``decay`` (the
            optimizer's decoupled weight decay) or ``dropout``; one of them with
            ``+dropout`` tunes first the rate, then the strength at that rate. Or a
            rule such as ``ScaledL2(1.0, per="model")``, whose strength is tuned.
        grid: Strengths to try, 0 for no penalty; ``None`` to find them.
        method: ``"holdout"``: each seed draws a validation set, and training stops
            early by its data loss. ``"kfold"``: cross-validation, repeated for each
            seed; all epochs are trained unless ``patience`` is given. ``"evidence"``:
            one training under ``EvidenceL2`` (SGD only) proposes a strength for the
            penalty, and hold-out tries it, at most four around it, and no penalty.
        folds: Folds of the cross-validation, 5 by default.
        seeds: Number of seeds, or seeds: of split, initial weights and batch order,
            shared by all strengths.
        criterion: ``"data_loss"`` or ``"accuracy"``, of the validation data.
        epochs: Epochs of a training, at most; as in ``compare`` by default.
        batch_size: Examples of a step; likewise.
        hidden: Units of the hidden layers of ``dense``; likewise.
        optimizer: As in ``compare``.
        learning_rate: As in ``compare``.
        patience: Epochs without a lower validation data loss after which a training
            stops and goes back to the best; 4 for hold-out by default.
        memory: As in ``compare``.
        storage: URL of the database for the study; ``None`` for one in the directory.
        workers: Processes that train.
        directory: Where study, result, figure and page go; the same call goes on where
            it was stopped. ``None`` writes nothing.
        progress: Whether to say on standard error what is being trained.

    Raises:
        InputError: Before any training, if something that was asked for cannot be
            done, or the study is of another configuration.
        WriteError: If the study cannot be written, as on a full disk, or at the end
            the pages cannot; its ``result`` is then the tuning.

    Example:
        ``print(tune(problem="digits", hidden=(32,)).table())``
    """
    say: Say = print_line if progress else say_nothing
    arguments: dict[str, Any] = {
        "model": model,
        "problem": problem,
        "rule": rule,
        "grid": grid,
        "method": method,
        "folds": folds,
        "seeds": seeds,
        "criterion": criterion,
        "epochs": epochs,
        "batch_size": batch_size,
        "hidden": hidden,
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "patience": patience,
        "memory": memory,
        "storage": storage,
        "workers": workers,
        "directory": directory,
    }
    if method == "evidence":
        check_evidence(rule, grid, folds)
    if isinstance(rule, str) and "+" in rule:
        if rule not in RULES:
            raise unknown("rule", rule, RULES)
        penalty = rule.removesuffix(f"+{DROPOUT}")
        below = None if directory is None else os.path.join(directory, DROPOUT)
        # What is wrong with the second tuning is said before the first is trained.
        make_tuning_plan(**arguments | {"rule": penalty, "rate": 0.5})
        alone = {"rule": DROPOUT, "grid": None, "directory": below}
        rate = _run(say, arguments | alone).best["strength"] or 0.0
        say(f"dropout rate {rate:g}: now {penalty}")
        arguments |= {"rule": penalty, "rate": rate}
    return _run(say, arguments)


def _run(say: Say, arguments: Mapping[str, Any]) -> TuningResult:
    """Plan and train; with the workers that were asked for."""
    plan = make_tuning_plan(**arguments)
    if plan.workers == 1:
        return Tuner(plan, say).run()
    with Workers(arguments, plan.workers) as workers:
        return Tuner(plan, say, workers).run()
