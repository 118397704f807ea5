"""``TransferResult``: what a transfer found, and the ways to look at it."""

from __future__ import annotations

from keras_scaled_l2.experiments.results import transfer_text
from keras_scaled_l2.experiments.results.transfer_records import TransferRecord


class TransferResult(TransferRecord):
    """What a transfer found, as text and as plain data.

    ``result["sample", "data_loss"]`` is the transfer of a rule by a criterion; for the
    fields, which are those of transfer.json, see ``TransferRecord``.
    """

    def table(self) -> str:
        """Best strengths and regrets as text, with the findings."""
        return transfer_text.as_text(self)

    def to_markdown(self) -> str:
        """The same as Markdown."""
        return transfer_text.as_markdown(self)
