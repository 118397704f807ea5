"""``transfer``: what is trained at which size, and what the result says of it."""

import dataclasses
import math
import sys

import keras
import numpy as np
import pytest

from keras_scaled_l2.experiments import TransferResult, families, transfer
from keras_scaled_l2.experiments.arrays import checked
from keras_scaled_l2.experiments.engine import Engine
from keras_scaled_l2.experiments.errors import InputError, RecordWarning
from keras_scaled_l2.experiments.families import NAMES, member, width_for
from keras_scaled_l2.experiments.jobs import Trained
from keras_scaled_l2.experiments.problems import Source
from keras_scaled_l2.experiments.results.files import read_json
from keras_scaled_l2.experiments.results.scaling import Interval
from keras_scaled_l2.experiments.results.transfer_records import Regret, RuleTransfer
from keras_scaled_l2.experiments.results.transfer_text import findings

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    x = np.random.default_rng(0).normal(size=(80, 3)).astype("float32")
    path = tmp_path_factory.mktemp("data") / "data.npz"
    np.savez(path, x_train=x, y_train=(x[:, 0] > 0).astype(int))
    return str(path)


@pytest.fixture
def trained(monkeypatch):
    """What the engine is asked to train, without training it: a surface."""
    jobs = []

    def train(self, asked, **options):
        for place, job in enumerate(asked):
            jobs.append(job)
            yield place, _surface(job)

    monkeypatch.setattr(Engine, "train", train)
    monkeypatch.setattr(Engine, "__init__", lambda self, *a, **k: None)
    return jobs


def _surface(job):
    """Best at c = 1e-3 (a decay of 3e-2), learning rate 0.03, at every size."""
    c = np.mean(list(job.coefficients.values())) if job.coefficients else 0.0
    strength = c or job.weight_decay / 30
    loss = 2.0
    if strength:
        loss = 1 + 0.1 * (math.log10(strength) + 3) ** 2
    loss += 0.05 * (math.log10(job.learning_rate) + 1.5) ** 2 + 0.01 * job.seed
    curves = {"val_data_loss": [loss], "val_accuracy": [1 - loss / 10]}
    return Trained(curves, {}, 1, 1, 7, 0.0, {}, None, [])


def made(data, **options):
    given = {"sizes": (30, 300), "seeds": 2, "epochs": 1, "progress": False}
    return transfer(problem=data, **(given | options))


def test_rules_constant_within_a_model_follow_from_one_sweep(data, trained):
    found = made(data)
    small, large = found.sizes
    # Penalized weights, biases left out: 3-3-3-1 and 3-15-15-1.
    assert (small.width, large.width) == (3, 15)
    ratio = (3 * 3 + 9 + 3) / (3 * 15 + 225 + 15)
    curve = {}
    for point in large.points:
        if point.rule == "l2":
            loss = np.mean([job.data_loss for job in point.jobs])
            curve.setdefault(point.strength, []).append(loss)
    none = min(curve.pop(0.0))
    places = [math.log10(c) for c in sorted(curve)]
    losses = [min(curve[c]) for c in sorted(curve)]
    # Straight between the strengths of the sweep; a decade below all is none.
    line = [places[0] - 1, *places], [none, *losses]
    for power in (0.25, 0.5, 1):
        rule = found[f"model-{power:g}", "data_loss"]
        assert rule.regrets[1].strength == pytest.approx(1e-3 * ratio**power)
        there = np.interp(math.log10(1e-3 * ratio**power), *line)
        expected = there / min(losses) - 1
        assert rule.regrets[1].value == pytest.approx(expected, abs=1e-3)
        assert expected > 0.003
        assert rule.strength == pytest.approx(1e-3 * 21**power)
    for rule in ("l2", "sample"):
        assert found[rule, "data_loss"].regrets[1].value == pytest.approx(0, abs=1e-9)
    assert found["sample", "data_loss"].strength == pytest.approx(2 * 48 * 1e-3)
    assert found.exponents["data_loss"].value == pytest.approx(0, abs=1e-6)
    assert small.best["data_loss"].value == pytest.approx(1e-3, rel=0.02)


def test_rules_by_tensor_keep_their_strength_and_not_their_mean(data, trained):
    found = made(data, rules=["scaled", "prior"])
    small, large = found.sizes
    for rule in ("scaled", "prior"):
        points = [p for p in large.points if p.rule == rule]
        # One strength, at several learning rates.
        strengths = {p.strength for p in points}
        assert strengths <= {p.strength for p in small.points if p.rule == rule}
        assert len(strengths) == 1 < len(points)
    scaled = next(p for p in large.points if p.rule == "scaled")
    low, high = scaled.coefficient
    # strength / elements of the largest and of the smallest kernel.
    assert (low, high) == pytest.approx((scaled.strength / 225, scaled.strength / 15))


def test_half_life_and_decay_go_with_the_learning_rate(data, trained):
    found = made(data, rules=["half-life", "decay"])
    half_life = found["half-life", "data_loss"]
    # Best at c = 1e-3 and a rate of 0.0316; 48 examples are one step of an epoch.
    expected = math.log(2) * 0.1 / (2 * 1e-3 * 10**-1.5)
    assert half_life.strength == pytest.approx(expected, rel=0.01)
    assert half_life.regrets[1].value == pytest.approx(0, abs=1e-9)
    decays = [p for p in found.sizes[1].points if p.rule == "decay"]
    products = {round(p.weight_decay * p.learning_rate, 5) for p in decays}
    assert len(products) == 1 < len(decays)
    assert found["decay", "data_loss"].strength == pytest.approx(
        math.log(2) / products.pop(), rel=0.02
    )


def test_what_one_rule_trains_changes_nothing_for_another(data, trained, monkeypatch):
    # A larger network wants a higher learning rate: kept, the half-life is trained
    # there at weaker c, each at one learning rate, which does not suit it.
    own = _surface

    def surface(job):
        large = sum(np.size(w) for w in keras.tree.flatten(job.initial)) > 1000
        rate = job.learning_rate / (30 if large else 1)
        # Five times as steep as that in the logarithm of the rate.
        steep = 10 ** (-1.5 + 5 * (math.log10(rate) + 1.5))
        return own(dataclasses.replace(job, learning_rate=steep))

    monkeypatch.setattr(sys.modules[__name__], "_surface", surface)
    options = {"sizes": (30, 3000), "epochs": 1}
    alone = made(data, rules=["l2", "model-1"], **options)
    beside = made(data, rules=["l2", "model-1", "half-life"], **options)
    weakest = [
        min(p.coefficient[1] for p in found.sizes[1].points if p.coefficient[1])
        for found in (alone, beside)
    ]
    assert weakest[1] < weakest[0]
    for rule in ("l2", "model-1"):
        assert alone[rule, "data_loss"] == beside[rule, "data_loss"]
    assert alone.exponents == beside.exponents


def test_stopped_transfer_goes_on_and_is_the_same(data, trained, tmp_path):
    options = {"rules": ["l2"], "directory": tmp_path}
    whole = made(data, **options)
    journal = tmp_path / "trainings.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    # Killed in the middle of a line.
    journal.write_text("".join(lines[:40]) + lines[40][:9])
    before = len(trained)
    assert made(data, **options) == whole
    assert len(trained) - before == len(lines) - 40
    assert TransferResult.from_dict(read_json(tmp_path / "transfer.json")) == whole
    with pytest.raises(InputError, match=r"another configuration \(epochs is .* 2"):
        made(data, **options, epochs=2)


DAMAGES = {
    "garbage": b"garbage",
    "binary": bytes(range(128, 256)),
    "nothing": b"",
    "no list": b"1",
    "deep": b"[" * 200_000,
    "size": b'[2, ["l2", null, 0], 0, RECORD]',
    "rule": b'[0, ["l3", null, 0], 0, RECORD]',
    "place": b'[0, ["l2", "x", 0], 0, RECORD]',
    "rate": b'[0, ["l2", null, 1e9], 0, RECORD]',
    "seed": b'[0, ["l2", null, 0], 7, RECORD]',
    "record": b'[0, ["l2", null, 0], 0, {"loss": 1.0}]',
    "loss": b'[0, ["l2", null, 0], 0, {"loss": "x", "accuracy": 1}]',
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_lines_are_left_out_and_trained_again(damage, data, trained, tmp_path):
    options = {"rules": ["l2"], "directory": tmp_path}
    whole = made(data, **options)
    journal = tmp_path / "trainings.jsonl"
    lines = journal.read_bytes().splitlines()
    record = b'{"loss": 1.0, "accuracy": 0.5, "best_epoch": 1, "steps": 7}'
    lines[5] = DAMAGES[damage].replace(b"RECORD", record)
    damaged = b"\n".join(lines) + b"\n"
    journal.write_bytes(damaged)
    before = len(trained)
    with pytest.warns(RecordWarning, match=f"1 of {len(lines) - 1} lines are damaged"):
        assert made(data, **options) == whole
    assert len(trained) - before == 1
    assert (tmp_path / "trainings.damaged").read_bytes() == damaged
    # Mended: nothing is said, and nothing trained, any more.
    assert made(data, **options) == whole
    assert len(trained) - before == 1


@pytest.mark.parametrize("head", [b"", b"{", b"\xff\xfe", b"[" * 200_000])
def test_damaged_head_is_refused_in_one_line(head, data, trained, tmp_path):
    journal = tmp_path / "trainings.jsonl"
    journal.write_bytes(head)
    with pytest.raises(
        InputError, match=r"the first line of its train.* is damaged"
    ) as e:
        made(data, directory=tmp_path)
    assert "\n" not in str(e.value)
    assert trained == []
    assert journal.read_bytes() == head


@pytest.mark.parametrize("family", NAMES)
def test_weights_of_a_family_are_counted_without_making_it(family):
    x, y = np.zeros((60, 8, 9, 2)), np.arange(60) % 3
    arrays = checked({"x_train": x, "y_train": y}, name="noise")
    problem = Source("noise", arrays).split(0)
    for width in (1, 4):
        weights = member(family, problem, width).weights
        assert families._weights(family, (8, 9, 2), 3, width) == weights
        assert width_for(family, problem, weights + 1) == width


@pytest.mark.everywhere
def test_real_trainings_of_a_users_own_function(data):
    def net(width):
        return keras.Sequential(
            [keras.Input((3,)), keras.layers.Dense(width), keras.layers.Dense(1)]
        )

    found = made(data, model=net, sizes=None, widths=(1, 2), rules=["l2"])
    assert [size.weights for size in found.sizes] == [6, 11]
    assert found.model == "net"
    assert all(math.isfinite(r.value) for r in found["l2", "data_loss"].regrets)
    assert "regret of l2" in found.table()
    assert found.to_markdown().startswith(found.problem)


def test_trainings_that_all_diverge_end_with_one_line(tmp_path):
    x = np.random.default_rng(0).normal(size=(80, 3))
    path = tmp_path / "big.npz"
    np.savez(path, x_train=x, y_train=1e15 * x[:, 0])
    message = r"every training of dense .* on .*big\.npz. diverged"
    with (
        pytest.warns(match="targets of '.*big.npz'"),
        pytest.raises(InputError, match=message) as error,
    ):
        made(str(path), rules=["l2"], epochs=1, directory=tmp_path / "out")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rules": ["l3"]}, "unknown rule 'l3'"),
        ({"rules": []}, "expected one or more"),
        ({"rules": "l3"}, "unknown rule 'l3'"),
        (
            {"rules": ["half-life"], "optimizer": "adam"},
            "no half-life. Use 'decay'",
        ),
        ({"optimizer": "lion"}, "unknown optimizer 'lion'"),
        ({"sizes": (300, 30)}, "each larger than the one before"),
        ({"sizes": (300,)}, "expected two or more"),
        ({"sizes": ()}, "networks of no weights: expected two or more"),
        ({"sizes": 300}, "sizes 300: expected a sequence, as 20000,70000"),
        ({"sizes": None, "widths": 3}, "widths 3: expected a sequence"),
        ({"sizes": (1, 300)}, "at width 1. Expected a larger size"),
        ({"widths": (1, 2)}, "both sizes and widths: expected one"),
        ({"sizes": None, "widths": (0, 2)}, "width 0: expected a whole number"),
        ({"sizes": None, "widths": (2, 10**6)}, "width 1000000: the weights take 37"),
        ({"seeds": 1}, "expected 2 or more, since the intervals"),
        ({"model": "conv"}, "Use 'dense'"),
        ({"model": "mlp"}, "unknown model 'mlp'"),
    ],
)
def test_mistakes_are_told_before_any_training(data, trained, options, message):
    with pytest.raises(InputError, match=message):
        made(data, **options)
    assert trained == []


def regrets(*ends):
    return tuple(Regret(10**i, None, *end) for i, end in enumerate(ends))


def test_no_rule_is_recommended_that_the_intervals_do_not_support(data, trained):
    found = made(data, rules=["l2"])
    rules = (
        RuleTransfer("l2", "data_loss", 1, regrets((0, 0, 0), (0.0, 0.0, 0.03))),
        RuleTransfer("prior", "data_loss", 1, regrets((0, 0, 0), (0.2, 0.1, 0.3))),
    )
    exponents = {"data_loss": Interval(-0.2, -0.5, 0.1)}
    changed = dataclasses.replace(found, rules=rules, exponents=exponents)
    said = " ".join(findings(changed))
    assert "of no rule it is shown" in said
    assert "lost for sure somewhere by: prior." in said
    assert "-0.20 [-0.50, 0.10], not significantly different from 0" in said
    sure = RuleTransfer("l2", "data_loss", 1, regrets((0, 0, 0), (0.0, 0.0, 0.02)))
    said = " ".join(findings(dataclasses.replace(changed, rules=(sure,))))
    assert "intervals included: l2." in said
    beyond = dataclasses.replace(
        sure,
        regrets=(sure.regrets[0], dataclasses.replace(sure.regrets[1], beyond=True)),
    )
    said = " ".join(findings(dataclasses.replace(changed, rules=(beyond,))))
    assert "of no rule it is shown" in said


def test_rules_that_chose_no_penalty_are_told_to_be_one_network(data, trained):
    found = made(data, rules=["l2"])
    close = regrets((0, 0, 0), (0.0, 0.0, 0.01))
    far = regrets((0, 0, 0), (0.2, 0.1, 0.3))
    unclear = regrets((0, 0, 0), (0.01, 0.0, 0.3))

    def said(*rules):
        made_ = tuple(RuleTransfer(r, "data_loss", c, e) for r, c, e in rules)
        # Of an exponent that rounds to it, never -0.00.
        exponents = {"data_loss": Interval(-0.001, -0.004, 0.1)}
        return findings(dataclasses.replace(found, rules=made_, exponents=exponents))

    first, second, *_ = said(("l2", 0.0, close), ("sample", 0.0, close))
    assert "no penalty is best at the smallest size under l2 and sample: all a" in first
    assert first.endswith("It loses at most 2 % at every larger size.")
    assert "these lose" not in first
    assert "power 0.00 [0.00, 0.10]" in second
    first, *_ = said(("l2", 0.0, far))
    assert "under l2: this is the network without" in first
    assert first.endswith("It loses more than 2 % for sure somewhere: tune anew.")
    first, *_ = said(("l2", 0.0, unclear))
    assert first.endswith("of how strengths transfer.")
    first, *_ = said(("l2", 0.0, close), ("prior", 2.0, close))
    assert "intervals included: prior. By validation data loss no penalty" in first


def test_one_epoch_is_counted_as_one(data, trained):
    text = " ".join(made(data, rules=["l2"]).table().split())
    assert "at most 1 epoch of batches of 64, 2 seeds, " in text
