"""Comparisons made of plain numbers, without any training."""

import numpy as np

from keras_scaled_l2.experiments.results.comparison import Comparison
from keras_scaled_l2.experiments.results.records import (
    ArmRecord,
    Cost,
    Hyperparameters,
    RunRecord,
    Score,
    Trial,
)

PATHS = ("network/hidden_1/kernel", "network/hidden_2/kernel", "network/output/kernel")


def rule(strength):
    """The config of an arm's rule, as keras.saving writes it."""
    return {
        "module": "keras_scaled_l2.regularizers",
        "class_name": "SampleL2",
        "config": {"strength": strength, "samples": None, "inferred_samples": 3000},
        "registered_name": "keras_scaled_l2>SampleL2",
    }


def made_run(seed, *, data_loss=0.3, accuracy=0.9, penalty=0.5, epochs=6, **options):
    """A run with every field filled in; accuracy None makes it a regression."""
    fall = np.exp(-np.arange(epochs) / 2.0)
    curves = {
        "data_loss": (data_loss / 2 + 1.8 * fall).tolist(),
        "penalty": (penalty * (0.4 + 0.6 * fall)).tolist(),
        "val_data_loss": (data_loss + 1.5 * fall).tolist(),
        "val_penalty": (penalty * (0.4 + 0.6 * fall)).tolist(),
    }
    if accuracy is not None:
        curves["accuracy"] = (1.0 - 0.9 * fall).tolist()
        curves["val_accuracy"] = (accuracy - 0.8 * fall).tolist()
    penalties = (
        {path: penalty * (1 + i) for i, path in enumerate(PATHS)} if penalty else {}
    )
    score = None if accuracy is None else 1.0
    return RunRecord(
        **{
            "seed": seed,
            "starting_cost": Cost(2.0 + penalty, 2.0, penalty),
            "train": Score(data_loss / 2, score),
            "validation": Score(data_loss, accuracy),
            "test": Score(data_loss, accuracy, None if accuracy is None else 0.03),
            "seconds": 1.25,
            "final_cost": Cost(data_loss / 2 + penalty / 2, data_loss / 2, penalty / 2),
            "hyperparameters": Hyperparameters(
                rule(6.0) if penalty else None, 0.0, 0.0
            ),
            "coefficients": {path: 0.001 for path in PATHS} if penalty else {},
            "gradient_ratios": {
                "start": penalties,
                "end": {path: 3 * value for path, value in penalties.items()},
            },
            "weight_norms": {"start": 30.0, "end": 20.0 if penalty else 32.0},
            "best_epoch": epochs - 1,
            "kept_epoch": epochs,
            "steps": epochs * 47,
            "curves": curves,
            "norms": {
                "weight": dict.fromkeys(PATHS, [30.0] * epochs),
                "data_gradient": dict.fromkeys(PATHS, [1.0] * epochs),
                "penalty_gradient": dict.fromkeys(PATHS, [penalty] * epochs),
            },
            **options,
        }
    )


def made_arm(name, runs, *, penalty=0.5, dropout=0.0, grid=(), weight_decay=0.0):
    """An arm of runs that are made; without a penalty it has no rule."""
    coefficients = dict.fromkeys(PATHS, 0.001) if penalty else {}
    config = rule(6.0) if penalty else None
    return ArmRecord(
        name, config, dropout, coefficients, tuple(runs), weight_decay, tuple(grid)
    )


def made_comparison(*arms, **options):
    """A comparison of arms that are made."""
    return Comparison(
        **{
            "problem": "mnist5k",
            "architecture": "dense 784-512-512-10 (relu)",
            "weights": 669_706,
            "backend": "tensorflow",
            "device": "a processor, 2 cores",
            "versions": {"python": "3.11.7", "keras": "3.15.1"},
            "samples": {"train": 3000, "validation": 1000, "test": 1000},
            "split": "by seed",
            "epochs": 6,
            "batch_size": 64,
            "optimizer": {
                "class_name": "SGD",
                "config": {"learning_rate": 0.05, "momentum": 0.9, "nesterov": False},
            },
            "arms": arms,
            **options,
        }
    )


def six_arms(seeds=5, seed=0, *, regression=False, tuned=False, **options):
    """Six arms of so many seeds, with differences that are small beside the spread."""
    random = np.random.default_rng(seed)
    luck = random.normal(0, 0.01, seeds)
    arms = []
    for name, loss, penalty, rate in (
        ("none", 0.23, 0.0, 0.0),
        ("l2", 0.22, 0.5, 0.0),
        ("scaled", 0.25, 1.0, 0.0),
        ("sample", 0.21, 2.0, 0.0),
        ("dropout", 0.215, 0.0, 0.5),
        ("sample+dropout", 0.212, 2.0, 0.5),
    ):
        runs = []
        for i in range(seeds):
            noise = luck[i] + random.normal(0, 0.004)
            extra = {}
            if tuned:
                config = rule(6.0) if penalty else None
                tried = [Hyperparameters(config, r, 0.0) for r in (rate / 2, rate)]
                extra["trials"] = tuple(
                    Trial(s, loss + noise + 0.01 * k, 4) for k, s in enumerate(tried)
                )
            runs.append(
                made_run(
                    i,
                    data_loss=loss + noise,
                    accuracy=None if regression else round(0.94 - noise, 3),
                    penalty=penalty,
                    hyperparameters=Hyperparameters(
                        rule(6.0) if penalty else None, rate, 0.0
                    ),
                    **extra,
                )
            )
        arms.append(made_arm(name, runs, penalty=penalty, dropout=rate))
    task = "regression" if regression else "classes"
    return made_comparison(*arms, task=task, **options)
