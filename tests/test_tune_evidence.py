"""``tune(method="evidence")``: a proposal, and hold-out around it."""

import dataclasses
import math

import keras
import numpy as np
import pytest
from keras import layers as L
from test_tune import counted, problem, small  # noqa: F401 (a fixture)

from keras_scaled_l2 import EvidenceL2, PriorL2
from keras_scaled_l2.experiments import TuningResult
from keras_scaled_l2.experiments.engine import Engine
from keras_scaled_l2.experiments.errors import InputError
from keras_scaled_l2.experiments.following import Follower
from keras_scaled_l2.experiments.results.files import read_json

pytestmark = pytest.mark.once

SIZES = {"hidden_0": 6 * 4, "output": 4 * 1}


def evident(**options):
    return small(**{"method": "evidence", "epochs": 4, **options})


def geometric_mean(coefficients):
    """Of all weights: each layer's counts as often as it has elements."""
    assert len(coefficients) == 2
    logs = [
        math.log(c) * (24 if size == max(SIZES.values()) else 4)
        for c, size in zip(coefficients.values(), SIZES.values(), strict=True)
    ]
    return math.exp(sum(logs) / 28)


@pytest.mark.everywhere
def test_evidence_proposes_and_holdout_tries_around_it(tmp_path):
    result = evident(directory=tmp_path)
    found = result.evidence
    assert found.strength == pytest.approx(geometric_mean(found.coefficients), rel=5e-3)
    assert len(set(found.coefficients.values())) == 2
    assert all(0 < gamma <= 24 for gamma in found.gammas.values())
    tried = [p.strength for p in result.points if p.strength]
    assert found.strength in tried
    assert 3 <= len(tried) <= 5
    steps = np.log10(np.array(tried) / found.strength)
    np.testing.assert_allclose(steps, np.round(2 * steps) / 2, atol=0.01)
    trainings = [job for p in result.points for job in p.jobs]
    assert result.steps == found.steps + sum(job.steps for job in trainings)
    text = " ".join(result.findings)
    assert f"proposed the strength {found.strength:.3g} of l2" in text
    assert f"Hold-out tried {len(tried)} strengths around it" in text
    assert "hold-out around what the evidence proposed" in " ".join(
        result.table().split()
    )
    assert TuningResult.from_dict(read_json(tmp_path / "tuning.json")) == result


def test_proposal_is_in_the_unit_of_the_rule():
    plain = evident().evidence
    prior = evident(rule=PriorL2(1.0)).evidence
    assert prior.coefficients == pytest.approx(plain.coefficients, rel=1e-6)
    # c = fan_in / (2 std^2 m), of 6 and of 4 inputs.
    mean_fan_in = math.exp((24 * math.log(6) + 4 * math.log(4)) / 28)
    m = problem().samples["train"]
    std = math.sqrt(mean_fan_in / (2 * m * geometric_mean(plain.coefficients)))
    assert prior.strength == pytest.approx(std, rel=5e-3)


def test_evidence_training_is_resumed_and_nothing_is_trained_twice(counted, tmp_path):  # noqa: F811
    seen, limit = counted
    whole = evident()
    total = len(seen)
    assert sum(isinstance(job.adapt, Follower) for job in seen) == 1
    seen.clear()
    for limit["jobs"] in (0, 1, 4):
        with pytest.raises(RuntimeError, match="cut short"):
            evident(directory=tmp_path)
        assert len(seen) == limit["jobs"]
    limit["jobs"] = math.inf
    assert evident(directory=tmp_path) == whole
    assert len(seen) == total
    old = dataclasses.replace(whole, evidence=None).to_dict()
    assert TuningResult.from_dict({**old, "evidence": None}).evidence is None
    del old["evidence"]
    assert TuningResult.from_dict(old).points == whole.points


def normalized():
    inputs = keras.Input((6,))
    hidden = L.BatchNormalization()(L.Dense(3)(inputs))
    return keras.Model(inputs, L.Dense(1, "sigmoid")(hidden))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 5}, "folds 5 and method 'evidence'"),
        ({"grid": [0.1]}, "grid and method 'evidence'"),
        ({"rule": "decay"}, "rule 'decay' and method 'evidence'"),
        ({"rule": "l2+dropout"}, r"rule 'l2\+dropout' and method"),
        ({"rule": EvidenceL2()}, "expected a rule of a fixed strength"),
        ({"optimizer": "adam"}, "under Adam: expected keras.optimizers.SGD"),
        ({"model": normalized}, "without BatchNormalization"),
        ({"epochs": 1}, "its strengths move after 1 epoch, and epochs is 1"),
    ],
)
def test_wrong_use_is_one_clear_line_before_training(options, message, monkeypatch):
    monkeypatch.setattr(Engine, "train", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(InputError, match=message) as caught:
        evident(**options)
    assert "\n" not in str(caught.value)
