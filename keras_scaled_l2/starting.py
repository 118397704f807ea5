"""What ``ApplyL2`` says as a fit begins: what was done, is inert, is not counted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import keras

from keras_scaled_l2.attaching import Counts, CountsByWeight, penalized, resolved
from keras_scaled_l2.costs import FirstStep, tell_first_step
from keras_scaled_l2.counts import elements
from keras_scaled_l2.efolds import Reach, inert_sentence, reach
from keras_scaled_l2.findings import text_of_dropped, text_of_forgotten
from keras_scaled_l2.fitting import plain_optimizer
from keras_scaled_l2.parts import penalty_of
from keras_scaled_l2.rule import Rule, effective_coefficient


class StartingLine:
    """Made when training starts; complete once the first step has told its loss."""

    def __init__(
        self, model: keras.Model, samples: int | None = None, more: int = 0
    ) -> None:
        """Notes what the penalties of a built and compiled model are.

        Args:
            model: The model.
            samples: Examples that were counted.
            more: How many more there may be.
        """
        self._summary = _summary(model)
        if more and any(_needs_samples(rule) for _, _, rule in penalized(model)):
            self._summary += f", {samples:,} examples counted, at most {more} more"
        self._penalty = penalty_of(model)
        self._dropped, self._forgotten = (
            text_of_dropped(model),
            text_of_forgotten(model),
        )
        # By construction, unless the model has a loss or a step of its own.
        self._in_loss: float | None = self._penalty
        self._is_forgotten = self._told = False
        self._steps = model.steps_per_execution
        if tell_first_step(model, self._tell):
            self._in_loss = None
        self._model = model
        self._begun = False
        self._reaching: tuple[list[float], Reach] | None = None

    def guidance(self, epoch: int, params: Mapping[str, Any]) -> str | None:
        """That the penalties do nothing over the fit, where it is known as it begins.

        Args:
            epoch: The first that the fit trains: others may have been trained before,
                by ``initial_epoch`` or a backup.
            params: What Keras tells callbacks of the fit.
        """
        if self._begun:
            return None
        self._begun = True
        steps = (params.get("epochs", 1) - epoch) * (params.get("steps") or 0)
        # Now, since Keras on JAX takes the weights away once steps run.
        self._reaching = _reaching(self._model, steps)
        return None if self._in_loss is None else self._inert()

    def late_guidance(self) -> str | None:
        """The same where it takes the weight of the penalty in the first step's loss.

        Call it once the first step has told its loss.
        """
        total, found = self._penalty, self._in_loss
        if not self._told or not found or not total:
            return None
        factor = found / total
        text = self._inert(factor)
        if text is None or abs(factor - 1.0) < 1e-3:
            return text
        return f"{text} That is, as long as the loss counts it {factor:.3g} times."

    def _inert(self, factor: float = 1.0) -> str | None:
        if self._reaching is None:
            return None
        return inert_sentence(*self._reaching, factor)

    def _tell(self, first: FirstStep) -> None:
        self._in_loss, self._is_forgotten = first.penalty, first.forgotten
        self._told = True

    def text(self, cost: float | None) -> str:
        """The line.

        Args:
            cost: The loss of the first step, the penalty at its weight in it; ``None``
                if the step logs none.
        """
        total, found = self._penalty, self._in_loss
        line = f"{self._summary}; penalty at the start {total:.4g}"
        cost_line = "" if cost is None else f"; cost at the start {cost:.4g}"
        if found is None:
            return line + cost_line
        if found == 0 and total != 0:
            why = self._forgotten if self._is_forgotten else self._dropped
            none = ", none of it penalty" if cost_line else ""
            return f"{line}{cost_line}{none}. {why}"
        if abs(found - total) > 1e-3 * abs(total):
            line += f", {found:.4g} as the loss weighs it"
        return line + cost_line + self._share(found, cost)

    def _share(self, found: float, cost: float | None) -> str:
        """How much of the cost is penalty, which cannot be more than all of it."""
        if cost is None or not 0 < cost < math.inf:  # also one that is no number
            return ""
        if found <= 1.01 * cost:
            return f", {found / cost:.0%} of it penalty"
        if self._steps > 1:  # a mean, of steps that the penalty fell in
            return ""
        return (
            ", less than the penalty. Unless the data cost is negative, the training "
            "step was compiled for another penalty, and this one does not act: "
            "model.compile(...) after a regularizer is changed by hand."
        )


def _needs_samples(rule: object) -> bool:
    return isinstance(rule, Rule) and "samples" in rule.needs


def _summary(model: keras.Model) -> str:
    """What a model's penalties are, in words."""
    weights = penalized(model)
    found = [effective_coefficient(rule, v.shape) for _, v, rule in weights]
    coefficients = [float(c) for c in found if c is not None]
    count = sum(elements(v.shape) for _, v, _ in weights)
    line = f"ApplyL2: {len(weights)} tensors, {count:,} weights"
    if coefficients:
        low, high = min(coefficients), max(coefficients)
        ends = dict.fromkeys((f"{low:.3g}", f"{high:.3g}"))  # both may read the same
        line += f", c = {' to '.join(ends)}"
    others = len(found) - len(coefficients)
    if others:
        line += f", {others} under a penalty other than c * sum(w**2)"
    return line


def _reaching(
    model: keras.Model, steps: int | None
) -> tuple[list[float], Reach] | None:
    """Coefficients and their reach in so many steps to come, if that is known."""
    optimizer = plain_optimizer(model)
    if optimizer is None or not steps:
        return None
    weights = penalized(model)
    found = [effective_coefficient(rule, v.shape) for _, v, rule in weights]
    if any(c is None for c in found):
        return None
    count = sum(elements(v.shape) for _, v, _ in weights)
    return [float(c) for c in found], reach(optimizer, steps, weights=count)


def check_counted(model: keras.Model, counts: Counts, own: CountsByWeight) -> None:
    """Refuses a count that the data do not tell, with the argument that gives it."""
    rules = [rule for _, rule in resolved(model, counts, own) if isinstance(rule, Rule)]
    for name in counts:
        lacking = [rule for rule in rules if name in rule.missing]
        if lacking:
            raise ValueError(
                f"{lacking[0]!r} needs {lacking[0].inferable[name]}, which the data "
                "given to fit do not tell (a generator, or a data set of unknown "
                f"length). Pass it: ApplyL2({name}=<number>)."
            )
