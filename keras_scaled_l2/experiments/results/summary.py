"""What follows from a comparison, made once: text, Markdown and page only show it."""

from __future__ import annotations

import dataclasses
from typing import Any

from keras_scaled_l2.experiments.results.analysis import METRICS, Analysis, analyze
from keras_scaled_l2.experiments.results.answer import answer
from keras_scaled_l2.experiments.results.columns import Table, tables
from keras_scaled_l2.experiments.results.conclusions import conclusions, method
from keras_scaled_l2.experiments.results.paired import compare_arms
from keras_scaled_l2.experiments.results.records import ComparisonRecord
from keras_scaled_l2.experiments.results.words import call, counted

TASKS = {
    "binary": "two classes",
    "classes": "several classes",
    "regression": "regression",
}
SPLITS = {
    "by seed": "each seed draws its own split",
    "given": "the same split for all seeds",
}


@dataclasses.dataclass(frozen=True)
class Summary:
    """Everything that people see of a comparison, but for the figures.

    Args:
        title: Problem and arms.
        answer: The answer in a few sentences, for somebody who reads no more.
        conclusions: What each metric allows to say.
        tables: Tables by arm.
        notes: What the columns mean, and how differences were judged.
        facts: What was compared and on what, by name.
        analyses: The arms by each metric.
    """

    title: str
    answer: tuple[str, ...]
    conclusions: tuple[str, ...]
    tables: tuple[Table, ...]
    notes: tuple[str, ...]
    facts: dict[str, str]
    analyses: tuple[Analysis, ...]

    @property
    def setup(self) -> str:
        """What was trained, in one line."""
        problem, *rest = ("Problem", "Network", "Samples", "Training", "Seeds")
        shown = "; ".join(self.facts[name] for name in (*rest, "Backend"))
        return f"{self.facts[problem]}: {shown}"

    def to_dict(self) -> dict[str, Any]:
        """What stands in comparison.json under ``statistics``."""
        by_metric = {f"test_{m.key}": compare_arms({}) for m in METRICS}
        by_metric |= {f"test_{a.metric.key}": a.arms for a in self.analyses}
        return {
            **{name: arms.to_dict() for name, arms in by_metric.items()},
            "answer": list(self.answer),
            "conclusions": list(self.conclusions),
        }


def summarize(record: ComparisonRecord) -> Summary:
    """Columns, differences and sentences, from the runs that are finished."""
    analyses = analyze(record)
    found = tables(record, analyses)
    notes = [note for table in found for note in table.notes]
    return Summary(
        title=f"{record.problem}: {', '.join(arm.name for arm in record.arms)}",
        answer=tuple(answer(record, *analyses)) if analyses else (),
        conclusions=tuple(conclusions(record, analyses)),
        tables=tuple(found),
        notes=(*notes, *method(analyses)),
        facts=_facts(record),
        analyses=tuple(analyses),
    )


def _facts(record: ComparisonRecord) -> dict[str, str]:
    samples = record.samples
    facts = {
        "Problem": f"{record.problem} ({TASKS.get(record.task, record.task)})",
        "Network": f"{record.architecture}, {record.weights:,} weights",
        "Samples": f"{samples['train']:,} to train, {samples['validation']:,} to "
        f"validate, {samples['test']:,} to test; "
        f"{SPLITS.get(record.split, record.split)}",
        "Training": _training(record),
        "Optimizer": call(record.optimizer),
        "Seeds": _seeds(record),
        "The same for all arms": "for each seed the split, the initial weights and the "
        "order of the batches; network, epochs and optimizer. The arms differ in "
        "penalty, dropout and weight decay only.",
        "Test set": "looked at once for each run, after its training",
        "Backend": record.backend,
        "Device": record.device,
        "Versions": ", ".join(f"{k} {v}" for k, v in record.versions.items()),
    }
    command = {"Command": record.command} if record.command else {}
    return facts | command


def _training(record: ComparisonRecord) -> str:
    text = f"{counted(record.epochs, 'epoch')} of batches of {record.batch_size}"
    if record.patience is None:
        return text
    return (
        f"at most {text}, stopped early after {counted(record.patience, 'epoch')} "
        "without a lower validation data loss, weights of the best epoch kept"
    )


def _seeds(record: ComparisonRecord) -> str:
    seeds = record.seeds
    if not seeds:
        return "no run is finished yet"
    text = f"{counted(len(seeds), 'seed')} ({', '.join(map(str, seeds))})"
    if any({run.seed for run in arm.runs} != set(seeds) for arm in record.arms):
        text += "; not every arm has finished all of them"
    return text
