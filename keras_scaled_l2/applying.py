"""ApplyL2: puts a rule on as a training begins, and counts what rules lack."""

from __future__ import annotations

import copy
from typing import Any, Self

import keras

from keras_scaled_l2.adapters import UNKNOWN
from keras_scaled_l2.attached import nothing_changed_if_refused
from keras_scaled_l2.attaching import (
    Counts,
    CountsByWeight,
    Where,
    attach_to,
    bind_each,
    checked_counts,
    penalized,
    warn_of_double_decay,
    warn_of_unsaved,
)
from keras_scaled_l2.compiled import steps_kept
from keras_scaled_l2.costs import remove_temporary_split
from keras_scaled_l2.counts import penalized_weights
from keras_scaled_l2.fitting import (
    build_from_running_fit,
    callbacks_of_running_fit,
    data_of_running_fit,
    examples_of_running_fit,
)
from keras_scaled_l2.learned import finish_learning
from keras_scaled_l2.learning import Learning, learns
from keras_scaled_l2.rule import Rule
from keras_scaled_l2.scalars import evidence_logs
from keras_scaled_l2.starting import StartingLine, check_counted
from keras_scaled_l2.steps import refresh_steps
from keras_scaled_l2.validation import check_is_model

Logs = dict[str, Any]

_COUNTS = ("samples", "batch_size")


def _asks(model: keras.Model, given: Counts, own: CountsByWeight) -> bool:
    """Whether a rule needs a count that nobody gave."""
    for weight in penalized_weights(model):
        rule = weight.variable.regularizer
        known = {*given, *own.get(id(weight.variable), ())}
        if isinstance(rule, Rule) and rule.needs & set(_COUNTS) - known:
            return True
    return False


class ApplyL2(keras.callbacks.Callback):
    """Attach a rule when training starts, and resolve the rules that a model carries.

    Prints one line of what was done: tensors, weights, smallest and largest
    effective coefficient, and the penalty's share of the starting cost, as soon as
    the first batch tells the cost. Another line says so if the penalty is inert over
    the epochs that ``fit`` is about to train, with the coefficient that is not. The
    rule stays on the model after training, so that a saved model continues without
    the callback; ``detach`` takes it off.

    Args:
        rule: Rule to put on the weights that ``where`` chooses, as ``attach`` does.
            ``None`` leaves the model's own rules and only resolves them.
        where: As in ``attach``.
        samples: Number of training examples. Default: counted from what ``fit`` was
            given, where that tells it (arrays, sequences and data loaders of known
            length); where only a last partial batch leaves it open, the fewest there
            can be, and the line says how many more. What is given holds for the weights
            that this rule is put on, and for those that nothing else is given for: also
            where another ``ApplyL2`` of the same ``fit`` counts.
        batch_size: Examples per step, likewise. Default: as given to ``fit``.
        examples: Inputs and targets, for ``EvidenceL2``; a subset of what is trained
            on will do. Default: the arrays that ``fit`` was given.

    Raises:
        ValueError: When training starts, if nothing is penalized or a rule lacks a
            count that ``fit`` does not tell (a generator: pass ``samples``), or if the
            evidence has no meaning for the model that ``EvidenceL2`` is on. The model
            is then left as it was.

    With ``EvidenceL2`` the ``logs`` hold ``c/<path>``, ``gamma/<path>`` and
    ``gamma_share/<path>`` (gamma over the number of weights) for each layer and epoch.

    Example:
        ``model.fit(x, y, callbacks=[ApplyL2(SampleL2(1.0))])``
    """

    # Nothing after the first batch; JAX need not wait for this callback.
    async_safe = True

    def __init__(
        self,
        rule: keras.Regularizer | None = None,
        where: Where | None = None,
        samples: int | None = None,
        batch_size: int | None = None,
        examples: tuple[Any, Any] | None = None,
    ) -> None:
        super().__init__()
        self.examples = examples
        self._learning: Learning | None = None
        self.rule = rule
        self.where = where
        self.samples = samples
        self.batch_size = batch_size
        self._line: StartingLine | None = None
        self._first = 0
        self._attached: list[int] = []

    def set_model(self, model: keras.Model) -> None:
        """Refuses a model of Keras 2, whose fit would fail right after this."""
        check_is_model(model)
        super().set_model(model)

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Attaches, counts and resolves."""
        model = self.model
        finish_learning(model)  # of a fit that broke off
        build_from_running_fit(model)
        refresh_steps(model)
        with nothing_changed_if_refused(model):
            self._put_on(model)

    def _put_on(self, model: keras.Model) -> None:
        with steps_kept(model):
            if self.rule is not None:
                targets = attach_to(model, self.rule, self.where)
                self._attached = [id(weight.variable) for weight in targets]
                warn_of_unsaved(model, targets)
            if not penalized(model):
                raise ValueError(
                    f"ApplyL2() has nothing to resolve: no trainable weight of "
                    f"{model.name!r} carries a penalty. Pass a rule, "
                    "ApplyL2(ScaledL2(1.0)), or build the layers with "
                    "kernel_regularizer=..."
                )
            given, own = self._given_in_fit()
            # Not unless a rule asks: a PyDataset has to make batches for it.
            asked = _asks(model, given, own)
            counted = data_of_running_fit(model) if asked else UNKNOWN
            counts = {n: given.get(n, getattr(counted, n)) for n in _COUNTS}
            check_counted(model, counts, own)
            warn_of_double_decay(model, bind_each(model, counts, own))
        for other in self._others():
            # One follows the evidence of all weights: whoever comes last.
            other._learning = None
        self._learning = self._learn() if learns(model) else None
        more = 0 if "samples" in given else counted.more
        self._line = StartingLine(model, counts["samples"], more)
        self._first = model.steps_per_execution - 1

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Says of a penalty that is inert over the epochs from the first on."""
        if self._line is not None:
            _say(self._line.guidance(epoch, self.params or {}))

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """Prints the line once the first batch has told the starting cost."""
        # JAX dispatches batches to several threads: only the first one may print.
        if self._line is None or batch > self._first:
            return
        cost = (logs or {}).get("loss")  # a custom step may log others
        print(self._line.text(None if cost is None else float(cost)))
        _say(self._line.late_guidance())
        self._line = None

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Has the strengths that are learned follow the evidence, and logs them."""
        if self._learning is None:
            return
        self._learning.epoch(epoch + 1)
        if logs is not None:
            logs |= evidence_logs(self._learning.numbers())

    def on_train_end(self, logs: Logs | None = None) -> None:
        """Leaves of itself nothing but the rule."""
        remove_temporary_split(self.model)
        if self._learning is not None:
            self._learning.remove()
            self._learning = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy that means the same layers: they are a model's, not the callback's."""
        memo[id(self.where)] = self.where
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        for name, value in vars(self).items():
            setattr(copied, name, copy.deepcopy(value, memo))
        return copied

    @property
    def _given(self) -> dict[str, Any]:
        """The counts that the user gave."""
        counts = checked_counts({name: getattr(self, name) for name in _COUNTS})
        return {name: n for name, n in counts.items() if n is not None}

    def _given_in_fit(self) -> tuple[dict[str, Any], dict[int, dict[str, Any]]]:
        """What was given to one of the fit's ``ApplyL2``: for all, and by weight.

        What another one of them counts must not replace it.
        """
        for_all: dict[str, Any] = {}
        by_weight: dict[int, dict[str, Any]] = {}
        for other in [*self._others(), self]:
            for_all |= other._given
            by_weight |= dict.fromkeys(other._attached, other._given)
        return for_all, by_weight

    def _others(self) -> list[ApplyL2]:
        """The other ``ApplyL2`` of the running fit."""
        found = callbacks_of_running_fit(self.model)
        return [c for c in found if isinstance(c, ApplyL2) and c is not self]

    def _learn(self) -> Learning:
        found = examples_of_running_fit(self.model)  # refuses those that are weighted
        for one in [*self._others(), self]:
            if one.examples is not None:
                found = _pair(one.examples)
        if found is None:
            raise ValueError(
                "ApplyL2(EvidenceL2(...)) needs training examples, and what was given "
                "to fit is no array of inputs and one of targets. Pass some of a "
                "model with one input and one output: ApplyL2(..., examples=(x, y))."
            )
        learning = Learning(self.model, *found)
        if learning.unknown:
            print(
                f"ApplyL2: the strength of {', '.join(learning.unknown)} stays as it "
                "was given: gamma of such large layers is known for Dense only."
            )
        return learning


def _pair(examples: Any) -> tuple[Any, Any]:
    """Inputs and targets as the user gave them."""
    if not isinstance(examples, (tuple, list)) or len(examples) != 2:
        count = f" of {len(examples)}" if isinstance(examples, (tuple, list)) else ""
        raise ValueError(
            f"ApplyL2(examples=...) got a {type(examples).__name__}{count}: expected "
            "inputs and their targets, examples=(x, y)."
        )
    return examples[0], examples[1]


def _say(guidance: str | None) -> None:
    if guidance is not None:
        print(f"ApplyL2: {guidance}")
