"""A transfer in words: findings, table and Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from keras_scaled_l2.experiments.results.scaling import Interval
from keras_scaled_l2.experiments.results.transfer_records import (
    Regret,
    RuleTransfer,
    TransferRecord,
)
from keras_scaled_l2.experiments.results.words import counted, interval, listed

GOAL = 0.02
"""A rule that loses no more than 2 % is called one that transfers."""
_WORDS = {"data_loss": "validation data loss", "accuracy": "validation accuracy"}
_LOST = {"data_loss": "2 %", "accuracy": "2 percentage points"}


def findings(result: TransferRecord) -> list[str]:
    """What the intervals support, the answer first."""
    lines = []
    for criterion, exponent in result.exponents.items():
        lines.append(_rules(result, criterion))
        lines.append(_exponent(criterion, exponent))
    weak = [size for size in result.sizes if size.gain["data_loss"] < GOAL]
    if weak:
        lines.append(
            f"At {_sizes([size.weights for size in weak])} the best penalty gains less "
            "than 2 % of the validation data loss over none: there the strength hardly "
            "matters."
        )
    return lines


def _rules(result: TransferRecord, criterion: str) -> str:
    given = [rule for rule in result.rules if rule.criterion == criterion]
    same = [rule for rule in given if rule.strength == 0]
    rules = [rule for rule in given if rule.strength != 0]
    if not rules:
        return _same_network(same, criterion)
    good = [rule.rule for rule in rules if _transfers(rule)]
    bad = [rule.rule for rule in rules if _fails(rule)]
    by = _WORDS[criterion]
    what = _LOST[criterion]
    if good:
        text = (
            f"By {by} these lose at most {what} at every larger size, the upper ends "
            f"of the 95 % intervals included: {', '.join(good)}."
        )
    else:
        text = (
            f"By {by} of no rule it is shown that the strength of the smallest size "
            f"loses at most {what} at every larger size: tune anew."
        )
    if bad:
        text += f" More than {what} is lost for sure somewhere by: {', '.join(bad)}."
    return f"{text} {_same_network(same, criterion)}" if same else text


def _same_network(rules: Sequence[RuleTransfer], criterion: str) -> str:
    """Of rules that chose no penalty: all of them train the one network without."""
    what = _LOST[criterion]
    text = (
        f"By {_WORDS[criterion]} no penalty is best at the smallest size under "
        f"{listed([rule.rule for rule in rules])}: "
    )
    text += "all are" if len(rules) > 1 else "this is"
    text += " the network without one at every size, and nothing is told of how "
    text += "strengths transfer."
    if _transfers(rules[0]):
        return f"{text} It loses at most {what} at every larger size."
    if _fails(rules[0]):
        return f"{text} It loses more than {what} for sure somewhere: tune anew."
    return text


def _transfers(rule: RuleTransfer) -> bool:
    return all(
        r.high is not None and r.high <= GOAL and not r.beyond for r in rule.regrets[1:]
    )


def _fails(rule: RuleTransfer) -> bool:
    return any(r.low is not None and r.low > GOAL for r in rule.regrets[1:])


def _exponent(criterion: str, exponent: Interval) -> str:
    text = f"By {_WORDS[criterion]} the best c goes with N to the power "
    # Never -0.00.
    text += f"{exponent.value:z.2f}{interval(exponent.low, exponent.high, 'z.2f')}"
    if exponent.low is not None and exponent.high is not None:
        zero = exponent.low <= 0 <= exponent.high
        text += ", not significantly different from 0" if zero else ""
    if exponent.edge:
        text += "; at some size the best lies at an end of the sweep or is no penalty"
    return f"{text}."


def as_text(result: TransferRecord) -> str:
    """Table and findings for a terminal."""
    rows = list(_rows(result))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * w for w in widths))
    words = [
        textwrap.fill(line, 88, initial_indent="- ", subsequent_indent="  ")
        for line in result.findings
    ]
    return "\n".join([textwrap.fill(_description(result), 88), "", *lines, "", *words])


def as_markdown(result: TransferRecord) -> str:
    """The same as Markdown."""
    head, *rows = _rows(result)
    lines = [head, ["---"] * len(head), *rows]
    table = [f"| {' | '.join(row)} |" for row in lines]
    words = [f"- {line}" for line in result.findings]
    return "\n".join([_description(result), "", *table, "", *words, ""])


def _rows(result: TransferRecord) -> Iterator[Sequence[str]]:
    yield ["", "criterion", *(f"{size.weights:,}" for size in result.sizes)]
    for name in result.exponents:
        best = [_best(size.best[name]) for size in result.sizes]
        yield ["best c", name, *best]
        gains = [f"{100 * size.gain[name]:z.1f} %" for size in result.sizes]
        yield ["gain over none", name, *gains]
    for rule in result.rules:
        cells = [_regret(regret) for regret in rule.regrets]
        yield [f"regret of {rule.rule}", rule.criterion, *cells]


def _best(best: Interval) -> str:
    mark = " at the edge" if best.edge else ""
    return f"{best.value:.2g}{interval(best.low, best.high, '.2g')}{mark}"


def _regret(regret: Regret) -> str:
    more = "more than " if regret.beyond else ""
    text = f"{more}{100 * regret.value:z.1f} %"
    if regret.low is None or regret.high is None:
        return text
    return f"{text} [{100 * regret.low:z.1f}, {100 * regret.high:z.1f}]"


def _description(result: TransferRecord) -> str:
    samples = result.samples["train"]
    return (
        f"{result.problem}, {samples:,} training examples, {result.model}, "
        f"{result.optimizer['class_name']} with the learning rate tuned beside each "
        f"strength, at most {counted(result.epochs, 'epoch')} of batches of "
        f"{result.batch_size}, {counted(len(result.seeds), 'seed')}, "
        f"{result.steps:,} steps. Regrets are those of the strength that is best at "
        "the smallest size, against the best of a sweep at each size, with 95 % "
        "intervals: shares of the data loss, percentage points of the accuracy."
    )


def _sizes(weights: Sequence[int]) -> str:
    return f"{', '.join(f'{n:,}' for n in weights)} weights"
