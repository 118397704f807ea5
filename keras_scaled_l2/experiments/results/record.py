"""Plain data as frozen dataclasses, to JSON and back."""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from keras_scaled_l2.experiments.errors import InputError


class Record:
    """Plain data as a frozen dataclass, which JSON can hold."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The record of a dictionary that ``to_dict`` made.

        Fields of a later version are passed over; a number that JSON could not hold,
        and that is null there, is NaN.
        """
        record: Self = _build(cls, data)
        return record

    def to_dict(self) -> dict[str, Any]:
        """The record as it stands in a file."""
        fields: Any = self
        return dataclasses.asdict(fields)


class FileRecord(Record):
    """A record that is a file of its own, which tells its format.

    Fields may be added to a format, never renamed.
    """

    kind: ClassVar[str]
    """What it is, for the error."""
    format: ClassVar[int] = 1

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """What ``to_dict`` made; fields that are not known are left out.

        Raises:
            InputError: If it is of another format.
        """
        if data.get("format") != cls.format:
            raise InputError(
                f"{cls.kind} of format {data.get('format')!r}: expected format "
                f"{cls.format}, which this version of keras_scaled_l2 reads. Use the "
                "version that wrote it."
            )
        return super().from_dict(data)

    def to_dict(self) -> dict[str, Any]:
        """What stands in the file."""
        return {"format": self.format, **_plain(super().to_dict())}


_hints = functools.cache(typing.get_type_hints)


def _build(kind: Any, value: Any) -> Any:
    """Plain data as a value of this type."""
    if dataclasses.is_dataclass(kind):
        made: Any = kind
        fields = {field.name for field in dataclasses.fields(made)}
        known = {n: of for n, of in _hints(made).items() if n in fields and n in value}
        built = {name: _build(of, value[name]) for name, of in known.items()}
        return made(**built)
    origin, of = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return None if value is None else _build(of[0], value)
    if origin in (dict, collections.abc.Mapping):
        return {key: _build(of[1], item) for key, item in value.items()}
    if origin in (list, tuple):
        return origin(_build(of[0], item) for item in value)
    return math.nan if kind is float and value is None else value


def _plain(value: Any) -> Any:
    """As JSON has it: lists for tuples."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
