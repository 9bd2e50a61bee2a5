"""Frozen dataclasses to plain JSON values and back, with the checks that a user's file or override needs.

Specs are trees of frozen dataclasses owned by several packages. This module is the only place that walks such a tree,
so a config class needs nothing but type annotations: no base class, no `to_json` of its own.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from jobs.errors import InputError

__all__ = ["canonical_json", "fingerprint", "from_plain", "near_matches", "to_plain"]

T = TypeVar("T")
NOT_IN_FINGERPRINT = {"fingerprint": False}
IN_FINGERPRINT_IF_SET = {"fingerprint": "if set"}
"""Of a field that a later version added: specs that do not use it keep the fingerprint that they had."""


def to_plain(value: Any, *, for_fingerprint: bool = False) -> Any:
    """Dataclasses become dicts, tuples become lists; everything else must already be a JSON value.

    Args:
        value: a dataclass instance, or a value inside one.
        for_fingerprint: leave out fields whose metadata says `NOT_IN_FINGERPRINT`, and what is empty in those of
            `IN_FINGERPRINT_IF_SET`.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: to_plain(getattr(value, field.name), for_fingerprint=for_fingerprint)
            for field in dataclasses.fields(value)
            if field.init and (not for_fingerprint or _counts(field, getattr(value, field.name)))
        }
    if isinstance(value, Mapping):
        return {str(key): to_plain(item, for_fingerprint=for_fingerprint) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_plain(item, for_fingerprint=for_fingerprint) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{value!r} of type {type(value).__name__} cannot be written as JSON; use plain values in specs")


def _counts(field: dataclasses.Field[Any], value: Any) -> bool:
    counts = field.metadata.get("fingerprint", True)
    if counts == "if set":
        return not (value is None or value is False or value == "" or value == ())
    return bool(counts)


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def fingerprint(value: Any) -> str:
    """sha256 (hex) of the canonical JSON of everything in `value` that can change the result."""
    plain = {"class": type(value).__name__, "value": to_plain(value, for_fingerprint=True)}
    return hashlib.sha256(canonical_json(plain).encode()).hexdigest()


def from_plain(cls: type[T], data: Any, *, path: str = "") -> T:
    """Build the dataclass `cls` from JSON values, checking every key and type on the way.

    Args:
        cls: a dataclass type; its annotations are the schema.
        data: a mapping, as from `to_plain`. Absent keys take the dataclass's defaults.
        path: dotted name of `data` in the user's configuration, for messages.

    Raises:
        InputError: an unknown key (named, with near matches), a value of the wrong type, or a value that the
            dataclass's own validation refuses.
    """
    if not isinstance(data, Mapping):
        raise InputError(f"{path or cls.__name__} is {_short(data)}, but a table of settings was expected.")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    for key in data:
        if key not in fields:
            raise InputError(
                f"There is no setting {_join(path, str(key))!r}{near_matches(str(key), fields)}; "
                f"{path or cls.__name__} has: {', '.join(fields)}."
            )
    hints = _hints(cls)  # type: ignore[arg-type]
    values = {key: _convert(hints[key], item, _join(path, key)) for key, item in data.items()}
    try:
        return cls(**values)
    except InputError:
        raise
    except TypeError as error:
        raise InputError(f"{path or cls.__name__} is incomplete: {error}.") from error
    except ValueError as error:
        raise InputError(f"{path or cls.__name__} was refused: {error}") from error


def near_matches(name: str, candidates: Any) -> str:
    """`' (did you mean a or b?)'` or an empty string."""
    found = difflib.get_close_matches(name, [str(item) for item in candidates], n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(found)}?)" if found else ""


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """The annotations as types. Kept, because evaluating them takes longer than all the rest."""
    return typing.get_type_hints(cls)


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value, path)
    if origin is typing.Literal:
        if value in arguments:
            return value
        raise InputError(
            f"{path} is {_short(value)}{near_matches(str(value), arguments)}; "
            f"it must be one of {', '.join(map(str, arguments))}."
        )
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else _convert_dataclass(hint, value, path)  # type: ignore[arg-type]
    if origin in (tuple, list):
        return _convert_sequence(origin, arguments, value, path)
    if origin in (dict, Mapping):
        if isinstance(value, Mapping):
            return {key: _convert(arguments[1], item, _join(path, str(key))) for key, item in value.items()}
        raise InputError(f"{path} is {_short(value)}, but a table of settings was expected.")
    return _convert_scalar(hint, value, path)


def _convert_union(arguments: tuple, value: Any, path: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    errors = []
    for option in arguments:
        if option is type(None):
            continue
        try:
            return _convert(option, value, path)
        except InputError as error:
            errors.append(error)
    raise errors[0]


def _convert_dataclass(hint: type, value: Any, path: str) -> Any:
    """A bare value stands for a table with one required setting: `sparsity=0.5` is `sparsity={start: 0.5}`."""
    if not isinstance(value, Mapping):
        required = [
            field.name
            for field in dataclasses.fields(hint)  # type: ignore[arg-type]
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        ]
        if len(required) == 1:
            return from_plain(hint, {required[0]: value}, path=path)
    return from_plain(hint, value, path=path)


def _convert_sequence(origin: type, arguments: tuple, value: Any, path: str) -> Any:
    if not isinstance(value, (list, tuple)):
        raise InputError(f"{path} is {_short(value)}, but a list such as [1,2] was expected.")
    fixed = origin is tuple and arguments and arguments[-1] is not Ellipsis
    if fixed and len(value) != len(arguments):
        raise InputError(f"{path} has {len(value)} values {_short(value)}, but {len(arguments)} were expected.")
    hints = arguments if fixed else [arguments[0] if arguments else Any] * len(value)
    return origin(_convert(hint, item, f"{path}[{i}]") for i, (hint, item) in enumerate(zip(hints, value, strict=True)))


_WORDS = {bool: "true or false", int: "a whole number", float: "a finite number", str: "text"}


def _convert_scalar(hint: Any, value: Any, path: str) -> Any:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is float and is_number and math.isfinite(value):
        return float(value)
    if hint is int and is_number and float(value).is_integer():
        return int(value)
    if hint in (bool, str) and isinstance(value, hint):
        return value
    expected = _WORDS.get(hint, getattr(hint, "__name__", str(hint)))
    raise InputError(f"{path} is {_short(value)}, but {expected} was expected.")


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
