"""A comparison as text: tables by arm, and what they allow to say."""

from __future__ import annotations

import dataclasses
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from keras_scaled_l2.experiments.answer import answer
from keras_scaled_l2.experiments.paired import (
    EXACT_SEEDS,
    RANDOM_FLIPS,
    Contest,
    Difference,
    contest,
    least_seeds,
)
from keras_scaled_l2.experiments.spread import mean_std

if TYPE_CHECKING:
    from keras_scaled_l2.experiments.records import (
        ArmRecord,
        Comparison,
        Cost,
        RunRecord,
    )

WIDTH = 120
NOTHING = "-"


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
class Column:
    """A column of a table: its header, a cell for each arm, and what it means."""

    header: str
    cells: tuple[str, ...]
    note: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether no arm has anything to show here."""
        return all(cell == NOTHING for cell in self.cells)


def text(comparison: Comparison) -> str:
    """The tables, the conclusions, and what the columns mean, 120 columns wide."""
    names, results, penalties = _columns(comparison)
    contests = _contests(comparison)
    parts = [*map(_wrapped, first_screen(comparison)), _wrapped(setting(comparison))]
    for title, columns in (
        ("Results", results),
        ("What the penalty was and did", penalties),
    ):
        if columns:
            parts += [f"{title}:", *_plain(names, columns)]
    for title, columns in _differences(comparison, contests):
        parts += [_wrapped(f"{title}:"), *_plain(names, columns)]
    parts += [
        "\n".join(_wrapped(line, "- ") for line in _sentences(comparison, contests)),
        "\n".join(map(_wrapped, _notes([*results, *penalties], contests))),
    ]
    return "\n\n".join(parts)


def markdown(comparison: Comparison) -> str:
    """The page: the same tables, with everything that is needed to run it again."""
    names, results, penalties = _columns(comparison)
    contests = _contests(comparison)
    versions = ", ".join(f"{k} {v}" for k, v in comparison.versions.items())
    title = f"{comparison.problem}: {', '.join(arm.name for arm in comparison.arms)}"
    parts = [
        f"# {_safe(title)}",
        *map(_safe, first_screen(comparison)),
        _safe(setting(comparison)),
        _marked([names, *results, *penalties]),
    ]
    for title, columns in _differences(comparison, contests):
        parts += [f"{_safe(title)}:", _marked([names, *columns])]
    parts += [
        _bullets(_sentences(comparison, contests)),
        _bullets(_notes([*results, *penalties], contests)),
        _safe(f"Optimizer: {optimizer(comparison.optimizer)}."),
        _safe(f"Ran on {comparison.device} with {versions}."),
    ]
    return "\n\n".join(parts) + "\n"


def first_screen(comparison: Comparison) -> list[str]:
    """The answer by test data loss, in sentences for somebody who reads no more."""
    metric = METRICS[0]
    return answer(comparison, _contest(comparison, metric), metric.name)


def statistics(comparison: Comparison) -> dict[str, Any]:
    """The differences between the arms, by metric, and the conclusions in words."""
    contests = _contests(comparison)
    by_metric = {f"test_{m.key}": found.to_dict() for m, found in contests.items()}
    return {
        **by_metric,
        "answer": first_screen(comparison),
        "conclusions": _sentences(comparison, contests),
    }


def setting(comparison: Comparison) -> str:
    """What was trained, in one line."""
    samples = comparison.samples
    seeds = max((len(arm.runs) for arm in comparison.arms), default=0)
    split = "each seed draws its own split; " if comparison.split == "by seed" else ""
    epochs, patience = comparison.epochs, comparison.patience
    most = "" if patience is None else "at most "
    stop = "" if patience is None else _stopping(patience)
    return (
        f"{comparison.problem}: {comparison.architecture}, {comparison.weights:,} "
        f"weights; {samples['train']} / {samples['validation']} / {samples['test']} "
        f"examples to train / validate / test; {split}{most}{_count(epochs, 'epoch')} "
        f"of batches of {comparison.batch_size}{stop}; {_count(seeds, 'seed')}; "
        f"{comparison.backend}"
    )


def strength(rule: Mapping[str, Any] | None) -> str:
    """What the user set of a rule: its strength, else its first argument."""
    if rule is None:
        return NOTHING
    config = rule["config"]
    if "strength" in config:
        return f"{config['strength']:.4g}"
    return next((f"{k}={v}" for k, v in config.items()), NOTHING)


def conclusions(comparison: Comparison) -> list[str]:
    """What the test metrics allow to say, and what they do not, in sentences."""
    return _sentences(comparison, _contests(comparison))


def _sentences(comparison: Comparison, contests: Mapping[Metric, Contest]) -> list[str]:
    if not any(arm.runs for arm in comparison.arms):
        return ["No run is finished yet."]
    lines = [
        line
        for metric, found in contests.items()
        if any(arm.test(metric.key) for arm in comparison.arms)
        for line in _about_metric(metric, found)
    ]
    # Of two metrics by which the same arms are compared, once.
    limits = dict.fromkeys(filter(None, map(_too_few, contests.values())))
    return [*lines, *limits, _tuning(comparison)]


def _contests(comparison: Comparison) -> dict[Metric, Contest]:
    return {metric: _contest(comparison, metric) for metric in METRICS}


def _contest(comparison: Comparison, metric: Metric) -> Contest:
    values = {arm.name: _by_seed(arm, metric.key) for arm in comparison.arms}
    share = metric.key == "accuracy"
    return contest(
        {name: by_seed for name, by_seed in values.items() if by_seed},
        higher_is_better=metric.higher_is_better,
        resolution=1 / comparison.samples["test"] if share else 0.0,
    )


def _by_seed(arm: ArmRecord, key: str) -> dict[int, float]:
    """A test metric by seed: NaN where the loss is not finite, whatever it counts."""
    if not arm.test(key):
        return {}
    seeds = [run.seed for run in arm.runs]
    return dict(zip(seeds, arm.test(key), strict=True))


def _about_metric(metric: Metric, found: Contest) -> Iterable[str]:
    lost = found.diverged
    prefix = f"(without {', '.join(lost)}, which diverged) " if lost else ""
    start = f"By {metric.name} {prefix}"
    if found.best is None:
        yield f"{start}there is nothing to compare yet."
        return
    places = _contest_places(metric, found)
    yield start + _about_best(found, places)
    to_none = found.family("none")
    # Of two arms the first sentence has said it all.
    if found.seeds > 1 and len(found.means) > 2 and to_none:
        yield f"{start}{_about_none(to_none, metric.higher_is_better, places)}"


def _about_best(found: Contest, places: int) -> str:
    best, others = found.level[0], found.family("best")
    mean = f"{found.means[best]:.{places}f}"
    clear = [d.arm for d in others if d.is_clear and d.arm not in found.level]
    if len(clear) == len(others):
        p = max(d.p_corrected for d in others)
        return (
            f"{best} won with {mean}: over {found.seeds} seeds it is told apart from "
            f"{_listed(clear)} (corrected p {_p(p)}{' at most' * (len(clear) > 1)})."
        )
    if len(found.level) > 1:
        head = f"no arm won: {_listed(found.level)} are level with {mean}"
    else:
        head = f"no arm won: {best} is ahead with {mean}"
    if found.seeds == 1:
        return f"{head}; one seed may be luck."
    open_ = [d for d in others if d.arm not in clear]
    also = f" It is told apart from {_listed(clear)}." if clear else ""
    return (
        f"{head}, but over {found.seeds} seeds {best} is not told apart from "
        f"{_possible(open_, places)}; the differences to {best} in brackets remain "
        f"possible.{also}"
    )


def _about_none(differences: list[Difference], higher: bool, places: int) -> str:
    clear = [d for d in differences if d.is_clear]
    better = [d.arm for d in clear if (d.mean > 0) == higher]
    worse = [d.arm for d in clear if d.arm not in better]
    open_ = [d for d in differences if not d.is_clear]
    parts = [
        f"{_listed(better)} {_are(better)} better" if better else "",
        f"{_listed(worse)} {_are(worse)} worse" if worse else "",
        f"not told apart {_are(open_)} {_possible(open_, places)}" if open_ else "",
    ]
    return f"against none: {'; '.join(filter(None, parts))}."


def _possible(differences: Sequence[Difference], places: int) -> str:
    return _listed([f"{d.arm} ({_interval(d, places)}{_but(d)})" for d in differences])


def _but(d: Difference) -> str:
    """What speaks against a difference whose interval leaves out 0."""
    if d.low_corrected is None or d.high_corrected is None:
        return ""
    outside = d.low_corrected > 0 or d.high_corrected < 0
    return f", but corrected p {_p(d.p_corrected)}" if outside else ""


def _too_few(found: Contest) -> str:
    """A sentence if no difference, however large, could have been shown."""
    if found.best is None:
        return ""
    needed = least_seeds(found.comparisons)
    if found.seeds >= needed:
        return ""
    return (
        f"{_count(found.seeds, 'seed')} {'is' if found.seeds == 1 else 'are'} too few: "
        f"among {len(found.means)} arms the sign-flip test cannot show a difference, "
        f"however large it is; from {needed} seeds on it can."
    )


def _tuning(comparison: Comparison) -> str:
    tuned = [
        f"{arm.name} ({_count(len(arm.grid), 'trial')})"
        for arm in comparison.arms
        if arm.grid
    ]
    if not tuned:
        return (
            "Strengths, dropout rates and weight decay are as given, not tuned: this "
            "says how these settings did, not which method is better."
        )
    given = [arm.name for arm in comparison.arms if not arm.grid]
    rest = f"; as given: {_listed(given)}" if given else ""
    return f"Tuned for each seed on its validation data: {_listed(tuned)}{rest}."


def _stopping(patience: int) -> str:
    return (
        f", stopped early after {_count(patience, 'epoch')} without a lower validation "
        f"data loss, weights of the best epoch kept"
    )


def _columns(comparison: Comparison) -> tuple[Column, list[Column], list[Column]]:
    """The names of the arms, the columns of the results and those of the penalty."""
    arms = comparison.arms
    losses = [mean_std(arm.test("data_loss")).mean for arm in arms]
    places = _places(losses)
    classes = all(run.test.accuracy is not None for arm in arms for run in arm.runs)
    gap = "train - test accuracy" if classes else "test - train data loss"
    half = "± half the 95 % interval of the mean over the seeds (Student's t)"

    def column(header: str, cell: Callable[[ArmRecord], str], note: str = "") -> Column:
        return Column(header, tuple(cell(arm) for arm in arms), note)

    results = [
        column("strength", _strength),
        column("dropout", lambda arm: _knob(arm, "dropout")),
        column("weight decay", lambda arm: _knob(arm, "weight_decay")),
        column(
            "test data loss",
            lambda arm: _with_interval(arm, "data_loss", places),
            f"without the penalty, dropout off; {half}",
        ),
        column(
            "test accuracy",
            lambda arm: _with_interval(arm, "accuracy", 4),
            "± likewise",
        ),
        column(
            "ECE",
            lambda arm: _mean(_by_seed(arm, "calibration_error").values(), ".4f"),
            "expected calibration error on the test set",
        ),
        column(
            "gap",
            lambda arm: _mean(map(_gap, arm.runs), f"+.{4 if classes else places}f"),
            gap,
        ),
        column(
            "best epoch",
            lambda arm: _mean((run.best_epoch for run in arm.runs), ".1f"),
            "of the lowest validation data loss",
        ),
        column(
            "ms per step",
            lambda arm: _mean(map(_step_time, arm.runs), ".2f"),
            "training, compilation left out",
        ),
    ]
    penalties = [
        column("coefficient c", _coefficients, "keras.regularizers.L2(c) is the same"),
        column(
            "starting cost = data + penalty",
            _starting_cost,
            "before the first step, whole training set, dropout off",
        ),
        column(
            "penalty share %",
            _shares,
            "penalty / cost, start -> end (with the weights that were kept)",
        ),
        column(
            "gradient ratio",
            _ratios,
            "norm of the penalty's gradient / of the data gradient, one batch, start "
            "-> end; median over the weights",
        ),
        column(
            "weight norm end",
            lambda arm: _mean((run.weight_norms.get("end") for run in arm.runs), ".4g"),
            "of all weights that a penalty would be put on",
        ),
    ]
    names = column("arm", lambda arm: arm.name)
    return names, _filled(results), _filled(penalties)


def _differences(
    comparison: Comparison, contests: Mapping[Metric, Contest]
) -> list[tuple[str, list[Column]]]:
    """For each metric a title and the differences to ``none`` and to the best arm."""
    arms = [arm.name for arm in comparison.arms]
    return [
        (
            f"Differences in {metric.name}, {_count(found.seeds, 'seed')}, "
            f"{'positive' if metric.higher_is_better else 'negative'} is better",
            [
                *_family(found.family("none"), arms, "", places),
                # Of two arms there is one difference.
                *(
                    _family(found.family("best"), arms, " (best)", places)
                    if len(found.means) > 2 or not found.family("none")
                    else []
                ),
            ],
        )
        for metric, found in contests.items()
        if found.best is not None
        for places in [_contest_places(metric, found)]
    ]


def _family(
    differences: Sequence[Difference], arms: Sequence[str], mark: str, places: int
) -> list[Column]:
    if not differences:
        return []
    by_arm = {d.arm: d for d in differences}
    means = [_cell(by_arm[a], places) if a in by_arm else NOTHING for a in arms]
    p = [_p(by_arm[a].p_corrected) if a in by_arm else NOTHING for a in arms]
    return [
        Column(f"minus {differences[0].versus}{mark}", tuple(means)),
        Column("corrected p", tuple(p)),
    ]


def _notes(columns: Iterable[Column], contests: Mapping[Metric, Contest]) -> list[str]:
    notes = [f"{c.header}: {c.note}." for c in columns if c.note]
    seeds = max(found.seeds for found in contests.values())
    if not seeds:
        return notes
    flips = "all sign flips" if seeds <= EXACT_SEEDS else f"{RANDOM_FLIPS:,} sign flips"
    return [
        *notes,
        "Differences: arm - other arm, paired by seed; in brackets the 95 % interval "
        "that holds for all pairs of arms together (Student's t, Bonferroni).",
        f"Corrected p: permutation test with {flips}, corrected for all pairs of arms "
        "(Holm), since the best was picked by looking.",
        "Told apart: corrected p at most 0.05, and the interval leaves out 0. Each "
        "metric holds its 5 % by itself.",
    ]


def _plain(names: Column, columns: Sequence[Column]) -> list[str]:
    """The columns as tables of at most 120 characters, the names before each."""
    blocks: list[list[Column]] = []
    for column in columns:
        if blocks and len(_lines([names, *blocks[-1], column])[1]) <= WIDTH:
            blocks[-1].append(column)
        else:
            blocks.append([column])
    return ["\n".join(_lines([names, *block])) for block in blocks]


def _lines(columns: Sequence[Column]) -> list[str]:
    texts = [(column.header, *column.cells) for column in columns]
    widths = [max(map(len, cells)) for cells in texts]
    header, *rows = zip(*texts, strict=True)
    return [
        "  ".join(map(str.ljust, line, widths)).rstrip()
        for line in (header, ["-" * width for width in widths], *rows)
    ]


def _marked(columns: Sequence[Column]) -> str:
    header, *rows = zip(*((c.header, *c.cells) for c in columns), strict=True)
    lines = [header, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(_safe, line))} |" for line in lines)


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {_safe(line)}" for line in lines)


def _safe(line: str) -> str:
    """The text as Markdown shows it: names may hold what Markdown takes for its own."""
    escaped = re.sub(r"[\\`*<|\[\]]|(?<!\w)_|_(?!\w)", r"\\\g<0>", line)
    return " ".join(escaped.split())


def _wrapped(line: str, bullet: str = "") -> str:
    return textwrap.fill(
        bullet + line,
        WIDTH,
        subsequent_indent=" " * len(bullet),
        break_long_words=False,
        break_on_hyphens=False,
    )


def optimizer(spec: Mapping[str, Any]) -> str:
    """The optimizer as a call, without what is switched off."""
    config = spec["config"]
    off = () if config.get("use_ema") else ("ema_momentum",)
    set_ = {k: v for k, v in config.items() if v and k not in off}
    arguments = ", ".join(f"{name}={value}" for name, value in set_.items())
    return f"{spec['class_name']}({arguments})"


def _filled(columns: Iterable[Column]) -> list[Column]:
    return [column for column in columns if not column.is_empty]


def _strength(arm: ArmRecord) -> str:
    rules = [run.setting.rule for run in arm.runs] if arm.grid else [arm.rule]
    found = list(dict.fromkeys(map(strength, rules))) or [NOTHING]
    try:
        low, *_, high = sorted([*found, *found], key=float)
    except ValueError:
        return ", ".join(found)
    return low if low == high else f"{low} .. {high}"


def _knob(arm: ArmRecord, name: str) -> str:
    """The dropout rate or the weight decay; nothing where it is switched off."""
    sources = [run.setting for run in arm.runs] if arm.grid else [arm]
    values = [getattr(source, name) for source in sources]
    return _range(values) if any(values) else NOTHING


def _coefficients(arm: ArmRecord) -> str:
    tuned = [c for run in arm.runs for c in run.coefficients.values()]
    return _range(tuned or list(arm.coefficients.values()))


def _starting_cost(arm: ArmRecord) -> str:
    costs = [run.starting_cost for run in arm.runs]
    if not costs:
        return NOTHING
    total, data, penalty = (
        _mean((getattr(cost, part) for cost in costs), ".4g")
        for part in ("total", "data", "penalty")
    )
    return f"{total} = {data} + {penalty}"


def _shares(arm: ArmRecord) -> str:
    if not any(run.starting_cost.penalty for run in arm.runs):
        return NOTHING
    return _start_to_end(
        [_share(run.starting_cost) for run in arm.runs],
        [_share(run.final_cost) for run in arm.runs],
        ".3g",
    )


def _share(cost: Cost | None) -> float | None:
    """The penalty's share of the cost in %, where there is something to share."""
    if cost is None or cost.total <= 0:
        return None
    return 100 * cost.penalty / cost.total


def _ratios(arm: ArmRecord) -> str:
    start, end = (
        [
            median(ratios.values())
            if (ratios := run.gradient_ratios.get(when))
            else None
            for run in arm.runs
        ]
        for when in ("start", "end")
    )
    return _start_to_end(start, end, ".3g")


def _gap(run: RunRecord) -> float:
    if not math.isfinite(run.test.data_loss):
        return math.nan
    if run.train.accuracy is not None and run.test.accuracy is not None:
        return run.train.accuracy - run.test.accuracy
    return run.test.data_loss - run.train.data_loss


def _step_time(run: RunRecord) -> float | None:
    return 1000 * run.seconds / run.steps if run.steps else None


def _start_to_end(
    start: Iterable[float | None], end: Iterable[float | None], spec: str
) -> str:
    first, last = _mean(start, spec), _mean(end, spec)
    return NOTHING if first == last == NOTHING else f"{first} -> {last}"


def _mean(values: Iterable[float | None], spec: str) -> str:
    known = [value for value in values if value is not None]
    return _number(fmean(known), spec) if known else NOTHING


def _range(values: Sequence[float]) -> str:
    if not values:
        return NOTHING
    low, high = min(values), max(values)
    return f"{low:.3g}" if low == high else f"{low:.3g} .. {high:.3g}"


def _with_interval(arm: ArmRecord, key: str, places: int) -> str:
    value = mean_std(list(_by_seed(arm, key).values()))
    mean = _number(value.mean, f".{places}f")
    if value.mean is None or value.high is None or not math.isfinite(value.mean):
        return mean
    return f"{mean} ± {value.high - value.mean:.{places}f}"


def _cell(difference: Difference, places: int) -> str:
    mean = f"{difference.mean:+.{places}f}"
    interval = _interval(difference, places)
    return f"{mean} ({interval})" if interval else mean


def _interval(difference: Difference, places: int) -> str:
    low, high = difference.low_corrected, difference.high_corrected
    if low is None or high is None:
        return ""
    return f"{low:+.{places}f} .. {high:+.{places}f}"


def _contest_places(metric: Metric, found: Contest) -> int:
    return 4 if metric.key == "accuracy" else _places(found.means.values())


def _places(values: Iterable[float | None]) -> int:
    """Decimals for numbers of this size: 4 around one, fewer above, more below."""
    sizes = [abs(v) for v in values if v and math.isfinite(v)]
    if not sizes:
        return 4
    exponent = math.floor(math.log10(min(sizes)))
    return min(max(4 - exponent if exponent >= 0 else 3 - exponent, 0), 9)


def _p(p: float) -> str:
    return f"{p:.3g}" if p >= 0.001 else "< 0.001"


def _number(value: float | None, spec: str) -> str:
    if value is None:
        return NOTHING
    return format(value, spec) if math.isfinite(value) else "diverged"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _are(names: Sequence[object]) -> str:
    return "is" if len(names) == 1 else "are"


def _listed(names: Sequence[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
