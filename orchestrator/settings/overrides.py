"""key=value texts of the command line, put into frozen configurations."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from diffusion.errors import DiffusionError
from jobs.codec import from_plain, near_matches, to_plain
from jobs.errors import InputError

T = TypeVar("T")


def parse(text: str) -> Any:
    """A JSON value where the text is one (numbers, true, null, lists), else the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def override(config: T, settings: Mapping[str, Any], *, path: str = "") -> T:
    """A frozen dataclass with some fields changed.

    Args:
        settings: dotted field names -> values; `network.hidden` reaches into the field `network`.
        path: what comes before the names in messages.

    Raises:
        InputError: a field that is not there (with near matches), or a value that it does not take.
    """
    plain = to_plain(config)
    nested: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        name, dot, rest = key.partition(".")
        if name in plain and dot and dataclasses.is_dataclass(getattr(config, name)):
            nested.setdefault(name, {})[rest] = value
        elif dot and name in plain:
            raise InputError(f"There is no setting {path + key!r}: {path + name} is a plain value.")
        elif name not in plain:
            raise InputError(
                f"There is no setting {path + key!r}{near_matches(name, plain)}; the settings here are: "
                f"{', '.join(path + field for field in plain)}."
            )
        else:
            plain[name] = value
    for name, inner in nested.items():
        plain[name] = override(getattr(config, name), inner, path=f"{path}{name}.")
    return from_plain(type(config), plain, path=path.rstrip("."))


def whole_number(settings: Mapping[str, str], name: str, default: int | None, *, least: int) -> int | None:
    """An integer setting. Raises InputError for anything else, or one below `least`."""
    if name not in settings:
        return default
    value = parse(settings[name])
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name} is {settings[name]!r}, but a whole number of at least {least} was expected.")
    return value


@contextlib.contextmanager
def diffusion_errors_are_input() -> Iterator[None]:
    """A value that diffusion/ refuses came from the command line: exit code 2 and its sentence."""
    try:
        yield
    except DiffusionError as error:
        raise InputError(f"{str(error).rstrip('.')}.") from error
