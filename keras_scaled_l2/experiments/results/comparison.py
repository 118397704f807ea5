"""A comparison: what was recorded, and the ways to look at it."""

from __future__ import annotations

import dataclasses
from typing import Any

from keras_scaled_l2.experiments.results import text
from keras_scaled_l2.experiments.results.records import ArmRecord, ComparisonRecord
from keras_scaled_l2.experiments.results.spread import mean_std
from keras_scaled_l2.experiments.results.summary import summarize


class Comparison(ComparisonRecord):
    """What ``compare`` gives: the records of all arms, as tables and as plain data.

    ``comparison["l2"]`` is the arm of that name; for the fields see
    ``ComparisonRecord``.

    Example:
        ``print(Comparison.from_dict(json.load(open("comparison.json"))).table())``
    """

    def table(self) -> str:
        """The answer, the tables and what follows from them, as plain text."""
        return text.plain(summarize(self))

    def to_markdown(self) -> str:
        """The page comparison.md."""
        return text.markdown(summarize(self))

    def to_dict(self) -> dict[str, Any]:
        """What comparison.json holds; summaries and statistics follow from the runs."""
        arms = [{**arm.to_dict(), **_summary(arm)} for arm in self.arms]
        statistics = summarize(self).to_dict()
        return {**super().to_dict(), "arms": arms, "statistics": statistics}


def _summary(arm: ArmRecord) -> dict[str, Any]:
    """Seeds that diverged; mean, spread and 95 % interval by test metric."""
    metrics = ("accuracy", "data_loss", "calibration_error")
    return {
        "diverged": list(arm.diverged),
        "summary": {
            f"test_{name}": dataclasses.asdict(mean_std(arm.test(name)))
            for name in metrics
        },
    }
