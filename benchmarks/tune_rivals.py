"""Searches that others publish, at as many training steps as ``tune`` takes.

Both search the logarithm of the coefficient between the ends of the plain grid, on one
split of the data, by the lowest validation data loss of a training; like ``tune`` they
stop a training after 4 epochs without a lower one. Only the sampling and the pruning
are theirs: the trainings go through our engine, which changes neither.

A search ends when its steps are used up; what it was training then does not count.
"""

import contextlib
import dataclasses
import math
import tempfile
from collections.abc import Callable

PARAMETER = "strength"


class OutOfStepsError(Exception):
    """The budget is used up."""


@dataclasses.dataclass
class Budget:
    """Trains at most so many steps.

    Args:
        train: ``(strength, epochs, told)`` -> ``(validation data losses, steps)``;
            ``told`` hears of the losses after each epoch and says whether to stop.
        steps: Steps that are left.
    """

    train: Callable
    steps: int

    def run(self, strength, epochs, stop=None, free_epochs=0):
        """Validation data losses by epoch; epochs that were trained before are free."""

        def told(losses, per_epoch):
            used = per_epoch * max(0, len(losses) - free_epochs)
            if used > self.steps:
                raise OutOfStepsError
            return stop is not None and stop(losses)

        losses, per_epoch = self.train(strength, epochs, told)
        self.steps -= per_epoch * max(0, len(losses) - free_epochs)
        return losses


def optuna_hyperband(budget, low, high, epochs, seed):
    """The strength that Optuna's TPE with its Hyperband pruner ends with."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=seed),
        pruner=optuna.pruners.HyperbandPruner(min_resource=1, max_resource=epochs),
    )

    def objective(trial):
        pruned = []

        def stop(losses):
            trial.report(losses[-1], len(losses))
            if trial.should_prune():
                pruned.append(True)
            return bool(pruned)

        strength = trial.suggest_float(PARAMETER, low, high, log=True)
        losses = budget.run(strength, epochs, stop)
        if pruned:
            raise optuna.TrialPruned
        return min(losses)

    with contextlib.suppress(OutOfStepsError):
        study.optimize(objective)
    return study.best_params[PARAMETER]


def keras_tuner_hyperband(budget, low, high, epochs, seed):
    """The strength that KerasTuner's Hyperband ends with.

    It goes on from a checkpoint where it promotes a trial: the same losses as training
    from the start, of which only the new epochs are counted.
    """
    from keras_tuner import HyperParameters, Objective
    from keras_tuner.oracles import HyperbandOracle

    space = HyperParameters()
    space.Float(PARAMETER, low, high, sampling="log")
    oracle = HyperbandOracle(
        Objective("val_data_loss", "min"),
        max_epochs=epochs,
        factor=3,
        hyperband_iterations=None,
        seed=seed,
        hyperparameters=space,
    )
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(OutOfStepsError):
        oracle._set_project_dir(folder, "search")
        oracle.verbose = 0
        while True:
            trial = oracle.create_trial("tuner0")
            values = trial.hyperparameters.values
            losses = budget.run(
                values[PARAMETER],
                values["tuner/epochs"],
                free_epochs=values["tuner/initial_epoch"],
            )
            # It refuses what is not finite; a large loss is as bad.
            finite = [v for v in losses if math.isfinite(v)]
            oracle.update_trial(
                trial.trial_id, {"val_data_loss": min(finite, default=1e9)}
            )
            trial.status = "COMPLETED"
            oracle.end_trial(trial)
    return oracle.get_best_trials(1)[0].hyperparameters.values[PARAMETER]


RIVALS = {
    "Optuna TPE + Hyperband": optuna_hyperband,
    "KerasTuner Hyperband": keras_tuner_hyperband,
}
