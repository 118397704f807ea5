"""The test metrics by which arms are compared, and what the statistics say of them."""

from __future__ import annotations

import dataclasses

from keras_scaled_l2.experiments.results.paired import MultipleComparison, compare_arms
from keras_scaled_l2.experiments.results.records import ComparisonRecord
from keras_scaled_l2.experiments.results.words import places


@dataclasses.dataclass(frozen=True)
class Metric:
    """A test metric by which arms are compared."""

    key: str
    name: str
    higher_is_better: bool


METRICS = (
    Metric("data_loss", "test data loss", False),
    Metric("accuracy", "test accuracy", True),
)


@dataclasses.dataclass(frozen=True)
class Analysis:
    """All arms by one metric, and what the statistics say of them."""

    metric: Metric
    arms: MultipleComparison

    @property
    def spec(self) -> str:
        """Format of a value or a difference."""
        share = self.metric.key == "accuracy"
        return f".{4 if share else places(self.arms.means.values())}f"


def analyze(record: ComparisonRecord) -> list[Analysis]:
    """The arms by each metric that the task has, once a run is finished."""
    return [
        Analysis(metric, _compared(record, metric))
        for metric in METRICS
        if any(arm.by_seed(metric.key) for arm in record.arms)
    ]


def _compared(record: ComparisonRecord, metric: Metric) -> MultipleComparison:
    values = {arm.name: arm.by_seed(metric.key) for arm in record.arms}
    share = metric.key == "accuracy"
    return compare_arms(
        {name: by_seed for name, by_seed in values.items() if by_seed},
        higher_is_better=metric.higher_is_better,
        resolution=1 / record.samples["test"] if share else 0.0,
    )
