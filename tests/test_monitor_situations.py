"""CostMonitor in every situation of training: right, and without a trace.

Each situation is trained with the monitor and without it; its gradient norms are
compared with a second backward pass through a model that has no penalty at all.
"""

import dataclasses
import inspect
import pathlib
import warnings
import zipfile

import h5py
import keras
import numpy as np
import pytest
from event_files import scalars
from models import run_python
from second_pass import gradients
from situations import BACKEND, SITUATIONS, C, X, Y, network

from keras_scaled_l2 import CostMonitor
from keras_scaled_l2.gradient_norms import measure_gradients

EPOCHS = 2


@dataclasses.dataclass
class Trained:
    """A situation, trained without the monitor and with it."""

    situation: object
    bare: keras.Model
    bare_history: dict
    model: keras.Model
    history: dict
    curves: dict
    snapshots: "Snapshots"
    before: "Trace"


class Trace:
    """What a monitor could leave behind in a model."""

    def __init__(self, model):
        self.attributes = set(vars(model))
        self.of_optimizer = set(vars(model.optimizer))
        self.metrics = [metric.name for metric in model.metrics]
        self.methods = (model.compute_loss, model.train_step, model.optimizer.apply)


class Snapshots(keras.callbacks.Callback):
    """Keeps of each epoch the weights at its beginning and the first measured step."""

    def __init__(self):
        super().__init__()
        self.weights, self.scales, self.records = [], [], []
        self.due = False

    def on_epoch_begin(self, epoch, logs=None):
        self.weights.append(self.model.get_weights())
        scale = getattr(self.model.optimizer, "dynamic_scale", None)
        self.scales.append(None if scale is None else float(scale))
        self.due = True
        measure_gradients(self.model, self.params).watch(self.is_due, self.keep)

    def is_due(self):
        return self.due

    def keep(self, record):
        self.due = False
        self.records.append(record)


def train(situation, log_dir):
    penalty = keras.regularizers.L2(C)
    bare, model = situation.build(penalty), situation.build(penalty)
    before = Trace(model)
    snapshots = Snapshots()
    bare_history = bare.fit(epochs=EPOCHS, **situation.arguments).history
    history = model.fit(
        epochs=EPOCHS,
        callbacks=[CostMonitor(log_dir), snapshots],
        **situation.arguments,
    ).history
    return Trained(
        situation,
        bare,
        bare_history,
        model,
        history,
        scalars(log_dir),
        snapshots,
        before,
    )


@pytest.fixture(scope="module", params=SITUATIONS.values(), ids=SITUATIONS)
def trained(request, tmp_path_factory):
    situation = request.param
    with warnings.catch_warnings(), situation.context():
        if situation.warning:
            warnings.filterwarnings("ignore", situation.warning)
        return train(situation, tmp_path_factory.mktemp(situation.name))


def expected_norms(trained, epoch):
    """Path -> (data gradient, penalty gradient, weight), in float64."""
    situation = trained.situation
    unpenalized = situation.build(penalty=None)
    unpenalized.set_weights(trained.snapshots.weights[epoch])
    if situation.step:
        stepped = dataclasses.replace(situation, step=0).build(keras.regularizers.L2(C))
        stepped.steps_per_execution = 1
        stepped.set_weights(trained.snapshots.weights[epoch])
        for step in range(situation.step):
            stepped.train_on_batch(*dataclasses.replace(situation, step=step).batch())
        unpenalized.set_weights(stepped.get_weights())
    scale = trained.snapshots.scales[epoch] or situation.scale
    of_data = gradients(unpenalized, *situation.batch(), scale=scale)
    values = [np.asarray(w.numpy(), "float64") for w in unpenalized.trainable_weights]
    return {
        variable.path: (
            np.linalg.norm(gradient),
            0.0 if variable.regularizer is None else 2 * C * np.linalg.norm(value),
            np.linalg.norm(value),
        )
        for variable, gradient, value in zip(
            trained.model.trainable_weights, of_data, values, strict=True
        )
    }


def test_norms_equal_those_of_a_second_backward_pass(trained):
    assert len(trained.snapshots.records) == EPOCHS
    rounding = trained.situation.rounding
    for epoch, record in enumerate(trained.snapshots.records):
        expected = expected_norms(trained, epoch)
        assert list(record.norms) == list(expected)
        for path, (data, penalty, weight) in expected.items():
            found = record.norms[path]
            assert abs(found.data - data) <= max(rounding * data, 2e-7 * penalty), path
            assert found.penalty == pytest.approx(penalty, rel=1e-6)
            assert found.weight == pytest.approx(weight, rel=1e-6)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_norms_are_those_of_the_gradient_that_moved_the_weights(policy):
    # One step of SGD at rate 1 tells its gradient, in whichever precision it was made.
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = network(
            keras.regularizers.L2(C), keras.optimizers.SGD(1.0), jit_compile=False
        )
    finally:
        keras.config.set_dtype_policy(before)
    snapshots = Snapshots()
    model.fit(X, Y, batch_size=len(X), epochs=1, verbose=0, callbacks=[snapshots])
    [norms] = [record.norms for record in snapshots.records]
    for weight, variable in zip(
        snapshots.weights[0], model.trainable_weights, strict=True
    ):
        old = np.asarray(weight, "float64")
        c = 0.0 if variable.regularizer is None else C
        gradient = old - np.asarray(variable.numpy(), "float64") - 2 * c * old
        expected = np.linalg.norm(gradient)
        assert norms[variable.path].data == pytest.approx(expected, rel=1e-5)


def test_event_files_hold_the_norms_of_the_step(trained):
    for epoch, record in enumerate(trained.snapshots.records):
        penalized = [path for path, norms in record.norms.items() if norms.penalty]
        assert penalized
        expected = {
            f"{kind}/{path}": getattr(record.norms[path], name)
            for path in penalized
            for kind, name in (
                ("gradient_norm/data", "data"),
                ("gradient_norm/penalty", "penalty"),
                ("weight_norm", "weight"),
            )
        }
        for kind in ("data", "penalty"):
            norms = [getattr(norms, kind) for norms in record.norms.values()]
            expected[f"global/gradient_norm/{kind}"] = np.linalg.norm(norms)
        for tag, value in expected.items():
            assert trained.curves[tag][epoch][1] == pytest.approx(value, rel=1e-6), tag


def test_data_loss_and_penalty_add_up_to_the_loss(trained):
    history = trained.history
    for prefix in ("", "val_"):
        total = np.add(history[f"{prefix}data_loss"], history[f"{prefix}penalty"])
        np.testing.assert_allclose(total, history[f"{prefix}loss"], rtol=1e-6)


def test_losses_are_those_of_a_training_without_the_monitor(trained):
    assert set(trained.history) == set(trained.bare_history) | {
        "data_loss",
        "penalty",
        "val_data_loss",
        "val_penalty",
    }
    for name, values in trained.bare_history.items():
        np.testing.assert_allclose(trained.history[name], values, rtol=1e-5)


def test_last_penalty_is_that_of_the_weights_after_training(trained):
    squares = [
        np.sum(np.square(w.numpy(), dtype="float64"))
        for w in trained.model.trainable_weights
        if w.regularizer is not None
    ]
    assert trained.history["val_penalty"][-1] == pytest.approx(
        C * sum(squares), rel=1e-6
    )


def is_bit_for_bit(situation, model):
    """XLA fuses a step with more outputs anew, and may round another way."""
    compiles = BACKEND == "jax" or model.jit_compile
    return situation.exact and not compiles


def test_weights_are_those_of_a_training_without_the_monitor(trained):
    for with_it, without in (
        (trained.model.weights, trained.bare.weights),
        (trained.model.optimizer.variables, trained.bare.optimizer.variables),
    ):
        assert [v.path for v in with_it] == [v.path for v in without]
        for a, b in zip(with_it, without, strict=True):
            if is_bit_for_bit(trained.situation, trained.model):
                np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)
            else:
                np.testing.assert_allclose(
                    a.numpy(), b.numpy(), rtol=1e-5, atol=1e-7, err_msg=a.path
                )


def saved(model, path):
    """Names in a saved model's archive, and names and shapes of its arrays."""
    model.save(path)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        archive.extract("model.weights.h5", path.parent)
    arrays = {}
    with h5py.File(path.parent / "model.weights.h5") as file:
        file.visititems(
            lambda name, item: arrays.update({name: getattr(item, "shape", None)})
        )
    return names, arrays


def test_saved_file_does_not_tell_of_the_monitor(trained, tmp_path):
    assert saved(trained.model, tmp_path / "with.keras") == saved(
        trained.bare, tmp_path / "without.keras"
    )


def test_model_and_optimizer_are_left_as_they_were(trained):
    after, without = Trace(trained.model), Trace(trained.bare)
    assert after.attributes == without.attributes
    assert after.of_optimizer == without.of_optimizer
    assert after.metrics == without.metrics
    assert after.methods == trained.before.methods


def check(situation, directory):
    """All of the above, for a situation that needs a process of its own."""
    here = pathlib.Path(directory)
    trained = train(situation, here / "logs")
    for name, test in sorted(globals().items()):
        if not name.startswith("test_"):
            continue
        arguments = inspect.signature(test).parameters
        if set(arguments) == {"trained"}:
            test(trained)
        elif set(arguments) == {"trained", "tmp_path"}:
            test(trained, here)
        else:
            continue
        print(name)


NAMES = ["plain", "embedding_of_repeated_rows"]


def assert_checked(output):
    done = [name for name in output.split() if name.startswith("test_")]
    assert len(done) == 8 * len(NAMES), output


if BACKEND == "tensorflow":
    TWO_REPLICAS = """
import sys
import tensorflow as tf
sys.path.insert(0, sys.argv[1])
cpu = tf.config.list_physical_devices("CPU")[0]
two = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(cpu, two)
import dataclasses, situations, test_monitor_situations
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert strategy.num_replicas_in_sync == 2
for name in sys.argv[3:]:
    situation = situations.SITUATIONS[name]
    def make(penalty, make=situation.make):
        with strategy.scope():
            return make(penalty)
    situation = dataclasses.replace(situation, make=make)
    test_monitor_situations.check(situation, f"{sys.argv[2]}/{name}")
# A data set of the strategy's own tells no shape, and takes samples= all the same.
from keras_scaled_l2 import ApplyL2, SampleL2, penalized
with strategy.scope():
    model = situations.network(SampleL2(1.0))
given = tf.data.Dataset.from_tensor_slices((situations.X, situations.Y)).batch(4)
given = strategy.experimental_distribute_dataset(given)
apply = ApplyL2(samples=8)
model.fit(given, shuffle=False, verbose=0, callbacks=[apply])
assert {rule.inferred_samples for _, _, rule in penalized(model)} == {8}
"""

    def test_mirrored_strategy_on_two_devices(tmp_path):
        tests = pathlib.Path(__file__).parent
        assert_checked(run_python(TWO_REPLICAS, tests, tmp_path, *NAMES))


if BACKEND == "jax":
    TWO_DEVICES = """
import os
import sys
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
sys.path.insert(0, sys.argv[1])
import keras
keras.distribution.set_distribution(keras.distribution.DataParallel())
assert len(keras.distribution.list_devices()) == 2
import situations, test_monitor_situations
for name in sys.argv[3:]:
    situation = situations.SITUATIONS[name]
    test_monitor_situations.check(situation, f"{sys.argv[2]}/{name}")
"""

    def test_data_parallel_on_two_devices(tmp_path):
        tests = pathlib.Path(__file__).parent
        assert_checked(run_python(TWO_DEVICES, tests, tmp_path, *NAMES))
