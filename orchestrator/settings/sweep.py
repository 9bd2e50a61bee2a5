"""Hydra's multirun grammar: settings with several values become every combination of them."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString, Transformer
from hydra.errors import HydraException

from jobs.errors import InputError

__all__ = ["Member", "members"]

OWN = ("prompt", "seed")
"""What no setting holds but a sweep may vary."""
MOST = 1000


@dataclasses.dataclass(frozen=True)
class Member:
    """One run of a sweep.

    Args:
        name: a safe name for its folder: its place in the sweep and what it differs in.
        overrides: settings as they stand on a command line, with one value each. own: of `OWN`, those that were given.
    """

    name: str
    overrides: tuple[str, ...]
    own: Mapping[str, Any]


def members(words: Sequence[str]) -> list[Member]:
    """Every combination, the last setting changing fastest.

    Args:
        words: as Hydra's multirun takes them: `key=1,2`, `key=choice(1,2)`, `key=range(1,10,3)`, `key=value`; keys are
            settings, or one of `OWN`.

    Raises:
        InputError: what Hydra does not understand, an interval or a pattern, no setting with several values, or more than
            1,000 runs.
    """
    try:
        parsed = OverridesParser.create().parse_overrides(list(words))
        axes = [(one, _values(one)) for one in parsed]
    except HydraException as error:
        sentence = " ".join(str(error).split("\n")[0].split())
        raise InputError(f"The sweep {' '.join(words)!r} could not be read: {sentence}.") from error
    varied = [one.get_key_element() for one, values in axes if len(values) > 1]
    if not varied:
        raise InputError(
            "Nothing varies in this sweep; give a setting several values, such as distillation.guidance_scale=5,7."
        )
    num = 1
    for _, values in axes:
        num *= len(values)
    if num > MOST:
        raise InputError(f"The sweep has {num:,} runs, but at most {MOST:,} are allowed; give fewer values.")
    found = []
    for number, chosen in enumerate(itertools.product(*(values for _, values in axes))):
        pairs = [(one.get_key_element(), value) for (one, _), value in zip(axes, chosen, strict=True)]
        told = "-".join(f"{key.rpartition('.')[2]}={_text(value)}" for key, value in pairs if key in varied)
        name = re.sub(r"[^A-Za-z0-9.=_-]+", "-", f"{number:0{len(str(num - 1))}d}-{told}")[:80].rstrip("-.")
        settings = tuple(f"{key}={Transformer.encode(value)}" for key, value in pairs if key not in OWN)
        found.append(Member(name, settings, {key: _plain(value) for key, value in pairs if key in OWN}))
    return found


def _values(one: Override) -> list[Any]:
    if one.is_interval_sweep() or (one.is_sweep_override() and one.value_type is not None and "GLOB" in one.value_type.name):
        raise InputError(
            f"{one.input_line!r} names no single values, which a sweep needs; list them, such as {one.key_or_group}=1,2,3."
        )
    if one.is_sweep_override():
        return list(one.sweep_iterator(transformer=Transformer.identity))
    return [one._value]


def _plain(value: Any) -> Any:
    return value.text if isinstance(value, QuotedString) else value


def _text(value: Any) -> str:
    return str(_plain(value))
