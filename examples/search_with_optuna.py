"""A search of your own: ScaledL2 tuned by val_data_loss with Optuna, hopeless ones cut.

`loss` holds the penalty, so it cannot rank strengths: a strength of 0 would win. What
counts is val_data_loss, which CostMonitor puts into Keras's logs. No penalty and the
suggested strength are tried first, then Optuna's sampler goes on.

    python examples/search_with_optuna.py [trials]
"""

import sys

import keras
import optuna
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from keras_scaled_l2 import CostMonitor, ScaledL2, attach, suggest

TRIALS = int(sys.argv[1]) if len(sys.argv) > 1 else 20
EPOCHS, BATCH = 15, 32

x, y = load_digits(return_X_y=True)
x_train, x_val, y_train, y_val = train_test_split(
    x / 16, y, test_size=0.5, stratify=y, random_state=0
)


def make_model():
    keras.utils.set_random_seed(0)  # the same start for all strengths
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss)
    return model


class Prune(keras.callbacks.Callback):
    """Report val_data_loss each epoch, and stop a trial that Optuna gives up."""

    def __init__(self, trial):
        super().__init__()
        self.trial = trial

    def on_epoch_end(self, epoch, logs=None):
        self.trial.report(logs["val_data_loss"], step=epoch)
        if self.trial.should_prune():
            raise optuna.TrialPruned


def objective(trial):
    strength = trial.suggest_float("strength", 0.0, 1e3)
    model = make_model()
    if strength:
        attach(model, ScaledL2(strength))
    history = model.fit(
        x_train,
        y_train,
        batch_size=BATCH,
        epochs=EPOCHS,
        validation_data=(x_val, y_val),
        callbacks=[CostMonitor(), Prune(trial)],  # the monitor first: it fills the logs
        verbose=0,
    ).history
    return min(history["val_data_loss"])


start = suggest(
    make_model(),
    samples=len(x_train),
    batch_size=BATCH,
    epochs=EPOCHS,
    rule=ScaledL2(1.0),
)
print(start)

optuna.logging.set_verbosity(optuna.logging.WARNING)
# Stronger penalties learn later: no trial is cut before half of its epochs.
pruner = optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=EPOCHS // 2)
study = optuna.create_study(
    sampler=optuna.samplers.TPESampler(seed=0), pruner=pruner, direction="minimize"
)
for strength in (0.0, *start.grid):
    study.enqueue_trial({"strength": strength})
study.optimize(objective, n_trials=TRIALS)

for trial in study.trials:
    shown = "pruned" if trial.value is None else f"{trial.value:.4f}"
    print(f"ScaledL2({trial.params['strength']:.4g}): val_data_loss {shown}")
print(f"best: ScaledL2({study.best_params['strength']:.4g}), {study.best_value:.4f}")
