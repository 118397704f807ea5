"""The test that decides on the evidence: its protocol stands in docs/evidence.md.

One training under the evidence against the best of a sweep of 14 strengths, and beside
`suggest`'s starting strength, for each setting of data x label noise x size x optimizer
and each seed. What is finished stands in --results, one JSON file for each setting, and
is not trained again: stop it with Ctrl-C or a signal, and start it again. While a file
PAUSE is in that folder it waits before the next training.

    python benchmarks/evidence_cost.py [--fashion FOLDER] [--only TEXT] [--report]
"""

import argparse
import itertools
import json
import math
import pathlib
import time

import keras
import numpy as np
from keras import ops

from keras_scaled_l2 import ApplyL2, EvidenceL2, attach, penalized, suggest
from keras_scaled_l2.experiments.architectures import dense, initial_weights
from keras_scaled_l2.experiments.arrays import checked
from keras_scaled_l2.experiments.engine import Engine
from keras_scaled_l2.experiments.jobs import Job
from keras_scaled_l2.experiments.problems import Source, load_problem
from keras_scaled_l2.experiments.program import make_parts
from keras_scaled_l2.grams import RowFinder, gamma_of_all

SAMPLES, BATCH, EPOCHS, SEEDS, BURN_IN = 1000, 64, 30, 5, 5
SIZES = {"20k": (25, 25), "200k": (200, 200), "630k": (490, 490)}
GRIDS = {
    "sgd": [10 ** (-5 + k / 3) for k in range(14)],
    "adamw": [10 ** (-2 + k / 3) for k in range(14)],
}
SETTINGS = [
    (data, noise, size, optimizer)
    for optimizer in GRIDS
    for size in SIZES
    for data, noise in itertools.product(("mnist5k", "fashion5k"), (0.0, 0.2))
]
ROWS = 1000


def problem_of(data, noise, seed, fashion):
    if data == "mnist5k":
        arrays = load_problem("mnist5k").source.arrays
    else:
        whole = load_problem("fashion_mnist", data_dir=fashion).source.arrays
        first = {"x_train": whole.x_train[:5000], "y_train": whole.y_train[:5000]}
        arrays = checked(first, name=data)
    return Source(data, arrays, samples=SAMPLES, label_noise=noise).split(seed)


def make_optimizer(name, decay=0.0):
    if name == "sgd":
        return keras.optimizers.SGD(0.03, momentum=0.9)
    return keras.optimizers.AdamW(1e-3, weight_decay=decay)


def compiled(problem, size, seed, optimizer, decay=0.0):
    model = dense(problem, SIZES[size]).build(seed)
    optimizer = make_optimizer(optimizer, decay)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss)
    return model


def fit(model, problem, seed, *callbacks):
    """Validation data loss, and processor seconds of the training."""
    keras.utils.set_random_seed(seed)
    clock = time.process_time()
    x, y = problem.x_train, problem.y_train
    options = {"batch_size": BATCH, "epochs": EPOCHS, "verbose": 0}
    model.fit(x, y, callbacks=list(callbacks), **options)
    seconds = time.process_time() - clock
    return data_loss(model, problem), seconds


def data_loss(model, problem):
    logits = ops.convert_to_numpy(model(problem.x_validation)).astype("float64")
    top = logits.max(axis=1, keepdims=True)
    logs = logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
    return float(-np.mean(logs[np.arange(len(logs)), problem.y_validation]))


class DecoupledEvidence(keras.callbacks.Callback):
    """The evidence for AdamW: an experiment of this benchmark, not of the package.

    A decoupled decay w acts on a weight like the coefficient w sqrt(v) / 2, with
    Adam's mean square gradient v. Their mean over all kernels, weighted by the squared
    weights, is kept at gamma / (2 m ||w||^2).
    """

    def __init__(self, problem):
        super().__init__()
        places = np.random.default_rng(0).permutation(SAMPLES)[: ROWS // 9]
        self.x = problem.x_train[places]
        self.history = []

    def on_train_begin(self, logs=None):
        kernels = [v for v in self.model.trainable_variables if v.name == "kernel"]
        self.kernels = {v.path: v for v in kernels}
        self.finder = RowFinder(self.model, self.x, list(self.kernels))

    def on_epoch_end(self, epoch, logs=None):
        if epoch + 1 < BURN_IN:
            return
        adam = self.model.optimizer
        steps = int(ops.convert_to_numpy(adam.iterations))
        unbiased = 1 - adam.beta_2**steps
        decay = float(ops.convert_to_numpy(adam.weight_decay))
        squares, pulls = {}, {}
        for path, kernel in self.kernels.items():
            place = next(
                i for i, v in enumerate(adam._trainable_variables) if v is kernel
            )
            w2 = ops.convert_to_numpy(kernel).astype("float64") ** 2
            v = ops.convert_to_numpy(adam._velocities[place]) / unbiased
            squares[path], pulls[path] = w2.sum(), (w2 * np.sqrt(v)).sum()
        c = {p: max(decay * pulls[p] / squares[p] / 2, 1e-12) for p in squares}
        if (epoch + 1 - BURN_IN) % 5 == 0:
            found = gamma_of_all(self.finder(self.x), c, len(self.x), SAMPLES)
            self.gamma = sum(found.values())
        gamma = self.gamma
        wanted = gamma / SAMPLES / sum(pulls.values())
        step = 0.5 * math.log(max(wanted, 1e-9) / decay)
        step = max(-math.log(2), min(math.log(2), step))
        adam.weight_decay.assign(decay * math.exp(step))
        self.history.append([decay, gamma])


def evidence(problem, size, seed, optimizer, start):
    if optimizer == "sgd":
        model = compiled(problem, size, seed, optimizer)
        loss, seconds = fit(model, problem, seed, ApplyL2(EvidenceL2(burn_in=BURN_IN)))
        history = model.history.history
        found = [float(r.coefficient(v.shape)) for _, v, r in penalized(model)]
        gamma = [v[-1] for k, v in history.items() if k.startswith("gamma/")]
        return {"loss": loss, "seconds": seconds, "found": found, "gamma": gamma}
    model = compiled(problem, size, seed, optimizer, start)
    model.optimizer.build(model.trainable_variables)
    model.optimizer.weight_decay = model.optimizer.add_variable(
        shape=(), initializer=keras.initializers.Constant(start), name="decay"
    )
    watch = DecoupledEvidence(problem)
    loss, seconds = fit(model, problem, seed, watch)
    decay, gamma = watch.history[-1]
    return {"loss": loss, "seconds": seconds, "found": [decay], "gamma": [gamma]}


def suggested(problem, size, seed, optimizer):
    model = compiled(problem, size, seed, optimizer)
    counts = {"samples": SAMPLES, "batch_size": BATCH, "epochs": EPOCHS}
    found = suggest(model, **counts)
    strength = found.strength if optimizer == "sgd" else found.weight_decay
    decay = 0.0 if optimizer == "sgd" else strength
    model = compiled(problem, size, seed, optimizer, decay)
    if optimizer == "sgd":
        attach(model, keras.regularizers.L2(strength))
    loss, seconds = fit(model, problem, seed)
    return {"loss": loss, "seconds": seconds, "found": [strength]}


def sweep(engine, problem, size, seed, optimizer):
    """Validation data loss of the last epoch, for each strength."""
    model = dense(problem, SIZES[size]).build(seed)
    initial = initial_weights(model)
    losses = []
    for strength in GRIDS[optimizer]:
        sgd = optimizer == "sgd"
        job = Job(
            problem,
            initial,
            dict.fromkeys(engine.names, strength) if sgd else {},
            seed=seed,
            epochs=EPOCHS,
            weight_decay=0.0 if sgd else strength,
        )
        ((_, trained),) = engine.train([job])
        losses.append(trained.curves["val_data_loss"][-1])
    return losses


def make_engine(problem, size, optimizer):
    sgd = optimizer == "sgd"

    def parts():
        network = dense(problem, SIZES[size]).build(0)
        plain = make_optimizer("sgd") if sgd else keras.optimizers.Adam(1e-3)
        return make_parts(network, plain, drops=False)

    return Engine(parts, problem=problem, batch_size=BATCH, decays=not sgd)


def measure(setting, path, fashion, pause):
    data, noise, size, optimizer = setting
    found = json.loads(path.read_text()) if path.exists() else {"seeds": {}}
    engine = None
    for seed in range(SEEDS):
        kept = found["seeds"].setdefault(str(seed), {})
        problem = problem_of(data, noise, seed, fashion)
        while pause.exists():
            time.sleep(5)
        if "sweep" not in kept:
            engine = engine or make_engine(problem, size, optimizer)
            kept["sweep"] = sweep(engine, problem, size, seed, optimizer)
            save(path, found)
        if "suggest" not in kept:
            kept["suggest"] = suggested(problem, size, seed, optimizer)
            save(path, found)
        if "evidence" not in kept:
            start = kept["suggest"]["found"][0]
            kept["evidence"] = evidence(problem, size, seed, optimizer, start)
            save(path, found)
            print(setting, seed, kept, flush=True)


def save(path, found):
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(found, indent=1))
    partial.replace(path)


def name_of(setting):
    data, noise, size, optimizer = setting
    return f"{data}-{'noisy' if noise else 'clean'}-{size}-{optimizer}"


def row(setting, path):
    """What the seeds of a setting that are finished say; None without any."""
    if not path.exists():
        return None
    seeds = [s for s in json.loads(path.read_text())["seeds"].values()]
    seeds = [s for s in seeds if "evidence" in s]
    if not seeds:
        return None
    means = np.mean([s["sweep"] for s in seeds], axis=0)
    best = int(np.argmin(means))
    regret = {
        kind: np.mean([s[kind]["loss"] for s in seeds]) / means[best] - 1
        for kind in ("evidence", "suggest")
    }
    seconds = [s["evidence"]["seconds"] / s["suggest"]["seconds"] for s in seeds]
    return {
        "setting": name_of(setting),
        "seeds": len(seeds),
        "best": GRIDS[setting[3]][best],
        "loss": float(means[best]),
        "found": np.mean([s["evidence"]["found"] for s in seeds], axis=0).tolist(),
        "gamma": float(np.mean([sum(s["evidence"]["gamma"]) for s in seeds])),
        **regret,
        "time": float(np.median(seconds)),
    }


def report(folder):
    """A table of what is finished, and the verdict by the rule of the protocol."""
    rows = [row(s, folder / f"{name_of(s)}.json") for s in SETTINGS]
    rows = [r for r in rows if r is not None]
    lines = [
        "| setting | seeds | best | its loss | found | gamma | evidence | `suggest` "
        "| time |",
        "| --- | ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for r in rows:
        found = ", ".join(f"{c:.2g}" for c in r["found"])
        lines.append(
            f"| {r['setting']} | {r['seeds']} | {r['best']:.2g} | {r['loss']:.3f} | "
            f"{found} | {r['gamma']:.0f} | {r['evidence']:+.1%} | {r['suggest']:+.1%} "
            f"| {r['time']:.1f} |"
        )
    for optimizer in ("sgd", "adamw", ""):
        chosen = [r for r in rows if r["setting"].endswith(optimizer)]
        regrets = [r["evidence"] for r in chosen]
        lines += [
            "",
            f"{optimizer or 'all'}, {len(chosen)} settings: regret median "
            f"{np.median(regrets):+.1%}, largest {max(regrets):+.1%}, above 5 % in "
            f"{sum(r > 0.05 for r in regrets)}; of `suggest` median "
            f"{np.median([r['suggest'] for r in chosen]):+.1%}, largest "
            f"{max(r['suggest'] for r in chosen):+.1%}; time, median "
            f"{np.median([r['time'] for r in chosen]):.1f}, largest "
            f"{max(r['time'] for r in chosen):.1f}.",
        ]
    return lines


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--fashion", help="folder with the IDX files")
    here = pathlib.Path(__file__).parent / "results" / "evidence"
    parser.add_argument("--results", type=pathlib.Path, default=here)
    parser.add_argument("--only", default="", help="a part of the settings' names")
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    for setting in () if options.report else SETTINGS:
        if options.only in name_of(setting):
            path = options.results / f"{name_of(setting)}.json"
            measure(setting, path, options.fashion, options.results / "PAUSE")
    print(*report(options.results), sep="\n")


if __name__ == "__main__":
    main()
