"""Every kind of model: what is penalized, counted, kept, and told to be lost."""

import importlib
import importlib.util
import math

import keras
import numpy as np
import pytest
from autodiff import numpy, numpy64
from keras import layers
from models import compiled, losses
from reference import penalty

from keras_scaled_l2 import PriorL2, SampleL2, ScaledL2, attach, bind, detach, penalized
from keras_scaled_l2.fan_in import fan_in

KERNELS = {
    "kernel",
    "recurrent_kernel",
    "depthwise_kernel",
    "pointwise_kernel",
    "embeddings",
    "lora_kernel_a",
    "lora_kernel_b",
    "lora_embeddings_a",
    "lora_embeddings_b",
}
"""Names of the weights that a penalty is for, in Keras's own layers."""


def kernels(model):
    """The weights to be penalized by default, found by their names alone."""
    return [v for v in model.trainable_variables if v.name in KERNELS]


def sequence(*parts, shape=(4, 5), dtype="float32"):
    return keras.Sequential([keras.Input(shape, dtype=dtype), *parts])


MODELS = {}


def model(build):
    MODELS[build.__name__] = build
    return build


@model
def sequential():
    return sequence(layers.Dense(3), layers.BatchNormalization(), layers.Dense(1))


@model
def functional():
    inputs = keras.Input((5,))
    left, right = layers.Dense(3)(inputs), layers.Dense(3, use_bias=False)(inputs)
    return keras.Model(inputs, layers.Dense(2)(layers.concatenate([left, right])))


@model
def nested():
    inner = sequence(layers.Dense(4), layers.Dense(3), shape=(5,))
    inputs = keras.Input((5,))
    return keras.Model(inputs, sequence(inner, layers.Dense(2), shape=(5,))(inputs))


@model
def shared():
    inputs = keras.Input((5,))
    twice = layers.Dense(5)
    return keras.Model(inputs, layers.Dense(1)(twice(twice(inputs))))


@model
def bidirectional():
    return sequence(
        layers.Bidirectional(layers.LSTM(3, return_sequences=True)),
        layers.Bidirectional(
            layers.GRU(3), backward_layer=layers.GRU(3, go_backwards=True)
        ),
    )


@model
def stacked_cells():
    cells = [layers.LSTMCell(3), layers.GRUCell(2), layers.SimpleRNNCell(4)]
    return sequence(layers.RNN(cells))


@model
def convolutional_recurrent():
    return sequence(layers.ConvLSTM1D(2, 2), shape=(2, 5, 3))


@model
def time_distributed():
    return sequence(layers.TimeDistributed(layers.Dense(3)))


@model
def convolutions():
    return sequence(
        layers.Conv2D(4, 2, groups=2),
        layers.DepthwiseConv2D(2),
        layers.SeparableConv2D(3, 2),
        layers.Conv2DTranspose(2, 2, strides=2),
        shape=(6, 6, 2),
    )


@model
def attention():
    inputs = keras.Input((4,), dtype="int32")
    x = layers.Embedding(7, 6)(inputs)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 3)(x, x))
    x = x + layers.GroupQueryAttention(3, 4, 2)(x, x)
    return keras.Model(inputs, layers.EinsumDense("abc,cd->abd", (None, 2))(x))


@model
def low_rank():
    model = sequence(
        layers.Embedding(7, 6),
        layers.Dense(3),
        layers.EinsumDense("abc,cd->abd", (None, 2)),
        shape=(4,),
        dtype="int32",
    )
    for layer in model.layers:
        layer.enable_lora(2)
        # Of LoRA's two factors one is made of zeros.
        for variable in layer.trainable_weights:
            variable.assign(np.random.default_rng(1).normal(size=variable.shape))
    return model


@model
def half_frozen():
    model = functional()
    for layer in model.layers[: len(model.layers) // 2]:
        layer.trainable = False
    return model


class Subclassed(keras.Model):
    """Its config does not hold the layers that it makes."""

    def __init__(self):
        super().__init__()
        self.blocks = [layers.Dense(3), layers.Dense(2)]

    def call(self, x):
        return self.blocks[1](self.blocks[0](x))


@model
def subclassed():
    model = Subclassed()
    model(np.zeros((1, 5), "float32"))
    return model


every_model = pytest.mark.parametrize("name", MODELS)
loses_its_penalty = pytest.mark.filterwarnings("ignore:The penalty of")


def inputs_of(model):
    shape = (2, 5) if isinstance(model, Subclassed) else (2, *model.input_shape[1:])
    return np.random.default_rng(0).integers(0, 4, shape).astype("float32")


def sum_of_squares(variables):
    return sum(penalty(1.0, numpy64(v)) for v in variables)


@every_model
@loses_its_penalty
def test_model_has_kernels_penalized_each_once_and_counted_once(name):
    model = MODELS[name]()
    chosen = kernels(model)
    n = sum(math.prod(v.shape) for v in chosen)
    paths = attach(model, ScaledL2(0.5, "model"))
    assert paths == [v.path for v in chosen]
    assert [v.path for _, v, _ in penalized(model)] == paths
    assert [path for path, _, _ in penalized(model)] == paths
    assert {rule.inferred_per for _, _, rule in penalized(model)} == {n}
    assert sum(losses(model)) == pytest.approx(
        0.5 / n * sum_of_squares(chosen), rel=1e-6
    )


@every_model
@loses_its_penalty
def test_model_keeps_its_values_and_detach_leaves_it_as_it_was(name):
    model = MODELS[name]()
    values = [numpy(v) for v in model.variables]
    regularizers = [v.regularizer for v in model.variables]
    config = None if name == "subclassed" else model.get_config()
    paths = attach(model, PriorL2(2.0, samples=10))
    assert losses(model)
    assert detach(model) == paths
    assert losses(model) == []
    assert [v.regularizer for v in model.variables] == regularizers
    for value, variable in zip(values, model.variables, strict=True):
        np.testing.assert_array_equal(numpy(variable), value)
    assert name == "subclassed" or model.get_config() == config
    assert detach(model) == []


@every_model
@loses_its_penalty
def test_model_evaluated_before_has_the_penalty_in_its_loss_at_once(name):
    model = compiled(MODELS[name](), run_eagerly=False, jit_compile=False)
    x = inputs_of(model)
    y = np.zeros(model(x).shape, "float32")
    before = model.evaluate(x, y, verbose=0)
    attach(model, SampleL2(3.0))
    bind(model, samples=7)
    expected = 3.0 / 14 * sum_of_squares(kernels(model))
    assert expected > 0.05
    assert model.evaluate(x, y, verbose=0) == pytest.approx(before + expected, rel=1e-5)
    detach(model)
    assert model.evaluate(x, y, verbose=0) == pytest.approx(before, rel=1e-6)


@pytest.mark.parametrize("name", [n for n in MODELS if n != "subclassed"])
@pytest.mark.parametrize(
    "rule",
    [ScaledL2(0.5, "layer"), PriorL2(2.0, samples=10)],
    ids=lambda rule: type(rule).__name__,
)
def test_model_keeps_its_penalty_in_a_file_without_a_warning(name, rule, tmp_path):
    model = MODELS[name]()
    attach(model, rule)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    # LoRA is saved merged into the kernel and enabled anew.
    if name == "low_rank":
        for variable, value in zip(
            loaded.trainable_variables, model.trainable_variables, strict=True
        ):
            variable.assign(value)
    for again in (loaded, keras.models.clone_model(loaded)):
        again.set_weights(loaded.get_weights())
        assert losses(again) == pytest.approx(losses(model), rel=1e-6)
    assert len(losses(loaded)) == len(kernels(model)) > 0


# ----------------------------------------------------- what a file would not hold


@keras.saving.register_keras_serializable("keras_scaled_l2_tests")
class Bare(layers.Layer):
    """Takes no regularizer."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 2), name="kernel")

    def call(self, x):
        return x @ self.kernel


@keras.saving.register_keras_serializable("keras_scaled_l2_tests")
class Forgetful(layers.Layer):
    """Takes a regularizer, and leaves it out of its config."""

    def __init__(self, kernel_regularizer=None, **arguments):
        super().__init__(**arguments)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)

    def build(self, shape):
        self.kernel = self.add_weight(
            shape=(shape[-1], 2), name="kernel", regularizer=self.kernel_regularizer
        )

    def call(self, x):
        return x @ self.kernel

    def get_config(self):
        return super(layers.Layer, self).get_config() and {"name": self.name}


@keras.saving.register_keras_serializable("keras_scaled_l2_tests")
class Mindful(Forgetful):
    """Takes a regularizer, and writes it into its config."""

    def get_config(self):
        rule = keras.regularizers.serialize(self.kernel_regularizer)
        return {"name": self.name, "kernel_regularizer": rule}


@keras.saving.register_keras_serializable("keras_scaled_l2_tests")
class Block(layers.Layer):
    """Makes its inner layer itself."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.inner = layers.Dense(2)

    def build(self, shape):
        if not self.inner.built:
            self.inner.build(shape)

    def call(self, x):
        return self.inner(x)


@keras.saving.register_keras_serializable("keras_scaled_l2_tests")
class Wrapping(Block):
    """Is given its inner layer, and writes its config."""

    def __init__(self, inner, **arguments):
        super().__init__(**arguments)
        self.inner = inner

    def get_config(self):
        inner = keras.saving.serialize_keras_object(self.inner)
        return {"name": self.name, "inner": inner}

    @classmethod
    def from_config(cls, config):
        inner = keras.saving.deserialize_keras_object(config.pop("inner"))
        return cls(inner, **config)


@keras.saving.register_keras_serializable("keras_scaled_l2_tests")
class OwnDense(layers.Dense):
    """A user's class with the config of Keras's."""


@keras.saving.register_keras_serializable("keras_scaled_l2_tests")
class Attending(layers.MultiHeadAttention):
    """Attention of a sequence to itself, so that it fits into a Sequential."""

    def build(self, shape):
        super().build(shape, shape)

    def call(self, x):
        return super().call(x, x)

    def compute_output_spec(self, x):
        return super().compute_output_spec(x, x)


@keras.saving.register_keras_serializable("keras_scaled_l2_tests")
class OwnFunctional(keras.Model):
    """A functional model under a name of its own."""


def own_functional():
    inputs = keras.Input((4, 5))
    return OwnFunctional(inputs, layers.Dense(2)(inputs))


def untied_embedding():
    inputs = keras.Input((4,), dtype="int32")
    embedding = layers.ReversibleEmbedding(7, 3, tie_weights=False)
    return keras.Model(inputs, embedding(embedding(inputs), reverse=True))


def queries_only(layer, variable):
    return variable.path.endswith("query/kernel")


LOST = {
    "a layer that takes none": (lambda: sequence(Bare()), None, 1),
    "a layer that forgets it": (lambda: sequence(Forgetful()), None, 1),
    "a layer inside a custom one": (
        lambda: sequence(layers.Dense(3), Block()),
        None,
        1,
    ),
    "a layer inside two": (lambda: sequence(Wrapping(Block())), None, 1),
    "a subclassed model": (subclassed, None, 2),
    "some of attention's kernels": (attention, queries_only, 2),
    "the second half of an untied embedding": (untied_embedding, None, 1),
}
"""What -> model, ``where``, and how many penalties a file would not hold."""

KEPT = {
    "a layer that writes it": lambda: sequence(Mindful()),
    "a layer in a wrapper that writes it": lambda: sequence(Wrapping(OwnDense(2))),
    "a user's own Dense": lambda: sequence(OwnDense(2)),
    "a user's own attention": lambda: sequence(Attending(2, 3)),
    "a user's own functional model": own_functional,
}


@pytest.mark.parametrize("what", LOST)
def test_penalty_that_a_file_would_not_hold_is_told(what):
    build, where, lost = LOST[what]
    with pytest.warns(UserWarning, match=r"clone will not hold it.*Attach again") as w:
        attach(build(), ScaledL2(0.5), where)
    [warning] = w
    said = str(warning.message)
    assert f"penalty of {lost} weights such as" in said or lost == 1
    assert lost > 1 or "weights such as" not in said
    assert warning.filename == __file__


@loses_its_penalty
@pytest.mark.parametrize("what", [w for w in LOST if w != "a subclassed model"])
def test_penalty_that_is_told_to_be_lost_is_lost_indeed(what, tmp_path):
    build, where, _ = LOST[what]
    model = build()
    attach(model, ScaledL2(0.5), where)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert len(losses(loaded)) != len(losses(model)) > 0


@pytest.mark.parametrize("what", KEPT)
def test_penalty_that_is_not_told_to_be_lost_is_kept(what, tmp_path):
    model = KEPT[what]()
    attach(model, ScaledL2(0.5, "layer"))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert losses(loaded) == pytest.approx(losses(model), rel=1e-6)
    assert len(losses(model)) > 0


def test_penalty_on_some_of_attentions_kernels_leaves_the_other_weights_free():
    model = attention()
    with pytest.warns(UserWarning, match="for several weights that differ"):
        attach(model, ScaledL2(0.5), queries_only)
    chosen = [v for v in kernels(model) if queries_only(None, v)]
    assert [v for _, v, _ in penalized(model)] == chosen
    assert len(chosen) == 2


# --------------------------------------------------------------- LoRA, quantization


def test_lora_enabled_after_attach_moves_the_penalty_to_its_factors():
    model = sequence(layers.Dense(3))
    attach(model, ScaledL2(0.5, "model"))
    model.layers[0].enable_lora(2)
    assert bind(model) == [v.path for v in kernels(model)]
    assert [v.name for _, v, _ in penalized(model)] == [
        "lora_kernel_a",
        "lora_kernel_b",
    ]
    assert {rule.inferred_per for _, _, rule in penalized(model)} == {5 * 2 + 2 * 3}


def test_quantized_layer_drops_out_of_the_penalty_and_of_the_count():
    model = sequence(layers.Dense(3), layers.EinsumDense("abc,cd->abd", (None, 2)))
    attach(model, ScaledL2(0.5, "model"))
    model.quantize("int8", filters=lambda layer: isinstance(layer, layers.Dense))
    model.layers[0].trainable = True
    [kernel] = kernels(model)
    assert kernel.path == model.layers[1].kernel.path
    assert bind(model) == [kernel.path]
    assert losses(model) == pytest.approx(
        [0.5 / 6 * sum_of_squares([kernel])], rel=1e-6
    )
    assert attach(model, ScaledL2(0.5)) == [kernel.path]


def test_quantized_model_has_nothing_to_penalize():
    model = sequence(layers.Dense(3))
    attach(model, ScaledL2(0.5, "model"))
    model.layers[0].quantize("int8")
    assert losses(model) == []
    assert penalized(model) == bind(model) == []
    with pytest.raises(ValueError, match="Nothing to penalize"):
        attach(model, ScaledL2(0.5))


# ----------------------------------------------------------------------------- fan-in


def by_prior(model, variable):
    """The fan-in that a bound PriorL2 uses: c = fan_in / (2 m), with std 1."""
    return 20 * variable.regularizer.coefficient(variable.shape)


FAN_IN = {
    "dense": (layers.Dense(3), (5,), "kernel", 5),
    "dense of a sequence": (layers.Dense(3), (4, 5), "kernel", 5),
    "convolution": (layers.Conv2D(3, (2, 4)), (6, 6, 5), "kernel", 2 * 4 * 5),
    "convolution in groups": (
        layers.Conv2D(6, (2, 4), groups=3),
        (6, 6, 9),
        "kernel",
        2 * 4 * 3,
    ),
    "dilated convolution": (
        layers.Conv2D(3, 2, dilation_rate=2),
        (6, 6, 5),
        "kernel",
        2 * 2 * 5,
    ),
    "depthwise convolution": (
        layers.DepthwiseConv2D((2, 3), depth_multiplier=2),
        (6, 6, 5),
        "kernel",
        2 * 3,
    ),
    "transposed convolution": (layers.Conv1DTranspose(3, 2), (6, 5), "kernel", 2 * 5),
    "transposed convolution, stride that divides the window": (
        layers.Conv2DTranspose(3, 4, strides=2),
        (8, 8, 5),
        "kernel",
        2 * 2 * 5,
    ),
    "transposed convolution, stride that does not": (
        layers.Conv1DTranspose(3, 3, strides=2),
        (7, 5),
        "kernel",
        1.5 * 5,
    ),
    "einsum over one dimension": (
        layers.EinsumDense("abc,cd->abd", (None, 3)),
        (4, 5),
        "kernel",
        5,
    ),
    "einsum over two dimensions": (
        layers.EinsumDense("abc,bcd->ad", (3,)),
        (4, 5),
        "kernel",
        4 * 5,
    ),
    "einsum into heads": (
        layers.EinsumDense("abc,cde->abde", (None, 2, 3)),
        (4, 5),
        "kernel",
        5,
    ),
    "einsum with an ellipsis": (
        layers.EinsumDense("...c,cd->...d", 3),
        (4, 5),
        "kernel",
        5,
    ),
    "einsum of a transposed kernel": (
        layers.EinsumDense("abc,dc->abd", (None, 3)),
        (4, 5),
        "kernel",
        5,
    ),
    "einsum position by position": (
        layers.EinsumDense("abc,bcd->abd", (4, 3)),
        (4, 5),
        "kernel",
        5,
    ),
    "embedding": (layers.Embedding(7, 3), (4,), "embeddings", 1),
}
"""What -> layer, input shape, weight, and inputs of a unit by the definition."""


@pytest.mark.parametrize("what", FAN_IN)
def test_fan_in_is_the_number_of_inputs_that_a_unit_sums(what):
    layer, shape, name, expected = FAN_IN[what]
    model = sequence(layer, shape=shape)
    attach(model, PriorL2(1.0, samples=10))
    [variable] = [v for v in model.trainable_variables if v.name == name]
    assert by_prior(model, variable) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("what", FAN_IN)
def test_fan_in_is_what_ones_times_ones_sum_to(what):
    # Asks no formula: a unit that sums n ones through weights of one gives n.
    layer, shape, _, expected = FAN_IN[what]
    layer = type(layer).from_config(layer.get_config())
    ones = np.ones((1, *shape), "float32")
    layer.build(ones.shape)
    for variable in layer.weights:
        variable.assign(np.full(variable.shape, float("bias" not in variable.name)))
    output = numpy64(layer(ones))
    for axis in range(1, output.ndim - 1):
        # The edges of a transposed convolution see less; and with a stride of 2 the
        # others see more and less in turn.
        if "Transpose" in type(layer).__name__:
            middle = output.shape[axis] // 2
            output = np.take(output, [middle, middle + 1], axis)
    assert np.mean(output) == pytest.approx(expected, rel=1e-6)


def test_fan_in_of_lora_is_that_of_each_factor():
    model = low_rank()
    attach(model, PriorL2(1.0, samples=10))
    found = {v.path: by_prior(model, v) for _, v, _ in penalized(model)}
    assert list(found.values()) == pytest.approx(
        # A row looked up, 2 factors of it; 6 features, 2 of them; 3 features, 2.
        [1, 2, 6, 2, 3, 2],
        rel=1e-12,
    )


def test_fan_in_of_loras_heads_is_that_of_the_kernel():
    layer = layers.EinsumDense("abc,cde->abde", (None, 2, 3))
    model = sequence(layer)
    layer.enable_lora(4)
    attach(model, PriorL2(1.0, samples=10))
    assert by_prior(model, layer.lora_kernel_a) == pytest.approx(5, rel=1e-12)
    assert by_prior(model, layer.lora_kernel_b) == pytest.approx(4, rel=1e-12)


if keras.config.backend() == "torch":

    @pytest.mark.parametrize(
        ("make", "shape", "expected"),
        [
            (lambda nn: nn.Linear(4, 1), (4,), 4),
            (lambda nn: nn.Conv2d(6, 8, 3, groups=2), (6, 9, 9), 27),
            (lambda nn: nn.ConvTranspose2d(6, 4, 4, 2, groups=2), (6, 5, 5), 12),
            (lambda nn: nn.Sequential(nn.Linear(5, 3), nn.ReLU()), (5,), 5),
        ],
    )
    def test_fan_in_of_a_torch_module_is_what_it_sums(make, shape, expected):
        import torch

        layer = layers.TorchModuleWrapper(make(torch.nn))
        layer(torch.ones(2, *shape))
        kernel, bias = layer.trainable_variables
        assert fan_in(layer, kernel) == expected
        assert fan_in(layer, bias) == 1
        # By what it does: all weights one, an input of ones away from the border.
        with torch.no_grad():
            kernel.value.fill_(1.0)
            bias.value.fill_(0.0)
            found = layer(torch.ones(2, *shape))
        middle = found[(0, 0, *(n // 2 for n in found.shape[2:]))]
        assert float(middle) == expected
        with pytest.warns(UserWarning, match="will not hold it"):
            attach(layer, PriorL2(1.0, samples=10))
        [(_, v, rule)] = penalized(layer)
        assert rule.coefficient(v.shape) == expected / 20

    def test_scales_and_offsets_of_a_torch_module_are_not_penalized():
        import torch

        nn = torch.nn
        module = nn.Sequential(
            nn.Linear(4, 6),
            nn.Unflatten(1, (2, 3)),
            nn.LayerNorm((2, 3)),
            nn.Flatten(),
            torch.nn.utils.parametrizations.weight_norm(nn.Linear(6, 5)),
        )
        layer = layers.TorchModuleWrapper(module)
        with pytest.warns(UserWarning, match="will not hold it"):
            attach(layer, ScaledL2(0.5))
        shapes = [tuple(v.shape) for _, v, _ in penalized(layer)]
        # Not (2, 3) and (2, 3) of the normalization, nor (5, 1), the norms of (5, 6).
        assert shapes == [(6, 4), (5, 6)]

    def test_fan_in_behind_a_parametrization_is_that_of_the_module():
        import torch
        from torch.nn.utils import parametrizations, prune

        nn, normed = torch.nn, parametrizations.weight_norm
        modules = {
            # original0 is the norm of each unit's weights, original1 their direction.
            "linear": (normed(nn.Linear(4, 3)), [1, 1, 4]),
            "transposed": (normed(nn.ConvTranspose2d(6, 4, 4, stride=2)), [1, 1, 24]),
            "inside": (nn.Sequential(normed(nn.Linear(5, 3))), [1, 1, 5]),
            "embedding": (parametrizations.spectral_norm(nn.Embedding(9, 4)), [1]),
            "scale and offset": (nn.LayerNorm((3, 4)), [1, 1]),
            "pruned": (prune.identity(nn.Linear(4, 3), "weight"), [1, 4]),
        }
        for module, expected in modules.values():
            layer = layers.TorchModuleWrapper(module)
            assert [fan_in(layer, v) for v in layer.trainable_variables] == expected
        # One that came after Keras has taken the parameters.
        late = layers.TorchModuleWrapper(nn.Linear(4, 3))
        normed(late.module)
        assert sorted(fan_in(late, v) for v in late.trainable_variables) == [1, 4]


if keras.config.backend() == "jax":

    def test_weights_of_a_jax_layer_are_known_by_the_names_in_its_tree():
        import jax.numpy as jnp

        # As FlaxLayer has them, attention's biases of two dimensions among them.
        shapes = {
            "embed": {"embedding": (7, 4)},
            "norm": {"scale": (3, 4), "bias": (3, 4)},
            "query": {"kernel": (4, 2, 5), "bias": (2, 5)},
        }
        tree = {
            "params": {
                name: {key: jnp.ones(shape) for key, shape in below.items()}
                for name, below in shapes.items()
            }
        }
        layer = layers.JaxLayer(
            lambda params, inputs: inputs, init_fn=lambda rng, inputs: tree
        )
        model = sequence(layer)
        with pytest.warns(UserWarning, match="will not hold it"):
            attach(model, PriorL2(1.0, samples=10))
        found = {tuple(v.shape): by_prior(model, v) for _, v, _ in penalized(model)}
        assert found == {(7, 4): 1, (4, 2, 5): 8}


def test_fan_in_that_one_config_cannot_tell_is_an_error_with_the_remedies():
    inputs = keras.Input((4, 3))
    model = keras.Model(inputs, layers.MultiHeadAttention(3, 3)(inputs, inputs))
    with pytest.raises(
        ValueError, match=r"shape \(3, 3, 3\).*sums 3 .*9.*fan_in.*where"
    ):
        attach(model, PriorL2(1.0, samples=10))
    attach(model, PriorL2(1.0, samples=10, fan_in=3))
    attach(model, ScaledL2(0.5))
    assert len(losses(model)) == 4


def test_fan_in_from_the_layer_is_kept_by_a_file(tmp_path):
    model = convolutions()
    attach(model, PriorL2(1.0, samples=10))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    fan_ins = [by_prior(loaded, v) for _, v, _ in penalized(loaded)]
    assert fan_ins == pytest.approx([2 * 2 * 1, 2 * 2, 2 * 2, 4, 1 * 1 * 3], rel=1e-12)


# -------------------------------------------------------------- published networks

NETWORKS = {
    "ResNet50": {},
    "MobileNetV3Small": {"include_preprocessing": False},
    "EfficientNetB0": {},
    "ConvNeXtTiny": {"include_preprocessing": False},
}


@pytest.mark.once
@pytest.mark.parametrize("name", NETWORKS)
def test_published_network_is_counted_penalized_and_left_as_it_was(name):
    network = getattr(keras.applications, name)(
        weights=None, input_shape=(32, 32, 3), classes=3, **NETWORKS[name]
    )
    before = [numpy(v) for v in network.variables]
    n = sum(math.prod(v.shape) for v in kernels(network))
    assert 0.5 < n / network.count_params() < 1

    def check(n):
        assert {rule.inferred_per for _, _, rule in penalized(network)} == {n}
        assert len(penalized(network)) == len(kernels(network))
        assert sum(losses(network)) == pytest.approx(
            2.0 / n * sum_of_squares(kernels(network)), rel=1e-6
        )

    attach(network, ScaledL2(2.0, "model"))
    check(n)
    frozen = network.layers[: len(network.layers) // 2]
    for layer in frozen:
        layer.trainable = False
    bind(network)
    half = sum(math.prod(v.shape) for v in kernels(network))
    assert 0 < half < n
    check(half)
    for layer in frozen:
        layer.trainable = True
    bind(network)
    check(n)
    for value, variable in zip(before, network.variables, strict=True):
        np.testing.assert_array_equal(numpy(variable), value)
    clone = keras.models.clone_model(network)
    assert len(clone.losses) == len(network.losses)


@pytest.mark.skipif(
    importlib.util.find_spec("keras_hub") is None,
    reason="KerasHub is not among the requirements of the tests.",
)
@pytest.mark.filterwarnings("ignore")  # KerasHub's own, of which it has some
def test_transformer_of_keras_hub_is_penalized_and_told_to_lose_it_in_a_file():
    keras_hub = importlib.import_module("keras_hub")
    model = keras_hub.models.BertBackbone(
        vocabulary_size=100,
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
        max_sequence_length=16,
    )
    before = model.get_weights()
    with pytest.warns(UserWarning, match="a saved file or a clone will not hold it"):
        paths = attach(model, ScaledL2(1.0, per="model"))
    # Embeddings of tokens, positions and segments, six kernels a layer, the pooler.
    assert len(paths) == 3 + 2 * 6 + 1
    weights = [v for _, v, _ in penalized(model)]
    count = sum(math.prod(v.shape) for v in weights)
    assert losses(model) == pytest.approx(
        [penalty(1 / count, numpy64(v)) for v in weights], rel=1e-6
    )
    detach(model)
    assert model.losses == []
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
