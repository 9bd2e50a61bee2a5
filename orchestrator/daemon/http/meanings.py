"""Settings with what they mean, read from the docstrings that explain them, and which values they take.

Types are those of the dataclasses. Bounds are asked of their own validation, by bisection, so they are told nowhere twice.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import struct
import types
import typing
from collections.abc import Callable
from functools import cache
from typing import Any

from diffusion.distillation import FORMS
from diffusion.samplers import SAMPLERS
from jobs import codec
from jobs.errors import InputError
from jobs.specs import MESH_FORMATS, ImagesSpec
from nerf3d.fields.base import FIELD_KINDS
from orchestrator.daemon.http.forms import NEGATIVE_PROMPT, SAFE
from orchestrator.settings.compose import Settings, choices, compose

__all__ = ["JOINT", "explained", "settings_schema"]

JOINT = frozenset(
    {
        *("recipe", "distillation", "field.base_resolution", "field.finest_resolution"),
        *("fit.num_views", "fit.guide_parts", "fit.group_views", "fit.render_sizes", "fit.elevations"),
        *("fit.radius_range", "fit.radius_by_fov", "fit.fov_range"),
        *(
            f"distillation.{name}"
            for name in ("t_min", "t_min_start", "t_max_start", "t_max_end", "anneal_from", "anneal_until")
        ),
        *("images.guidance_interval", "images.num_images", "images.num_views"),
    }
)
"""Settings that are judged together with others or in an order, so that no bounds of their own can be told."""
_WORDS = {
    "field.kind": tuple(FIELD_KINDS),
    "distillation.form": tuple(FORMS),
    "distillation.rescale_over": ("row", "group"),
    "images.sampler": tuple(SAMPLERS),
}
_MARKS = (0, 1, 2, 8, 10, 16, 100, 512, 1000, 1024, 4096, 100_000)
"""Where bounds mostly are, so that most need no bisection."""
_PLAIN: dict[Any, str] = {bool: "boolean", int: "integer", float: "number", str: "string"}

_NAME = r"[a-z_][a-z_0-9]*(?: \([a-z ]+\))?"
_ENTRY = re.compile(rf"(?:^|(?<=[.;] )|(?<=Args: ))(?P<names>{_NAME}(?:, {_NAME})*): ")


def explained(settings: Settings) -> dict[str, Any]:
    """Group -> what it is about, and its settings with their values, kinds and meanings; and what is chosen by name."""
    groups = {}
    for group, (owner, values) in settings.tables().items():
        meanings = _meanings(inspect.getdoc(owner) or "")
        groups[group] = {
            "about": " ".join((inspect.getdoc(owner) or "").split("\n\n")[0].split()),
            "settings": [
                {
                    "name": f"{group}.{name}",
                    "value": codec.to_plain(value),
                    "about": meanings.get(name, ""),
                    "origin": settings.origins.get(f"{group}.{name}"),
                }
                for name, value in values.items()
            ],
        }
    return {"groups": groups, "choices": choices()}


def _meanings(doc: str) -> dict[str, str]:
    """Name -> sentence, where a docstring says "name: sentence" or "name, other: sentence" of fields."""
    _, _, text = " ".join(doc.split("\n")).partition(".")
    text = " ".join(text.partition("Raises:")[0].split())
    entries = list(_ENTRY.finditer(text))
    meanings: dict[str, str] = {}
    for entry, following in zip(entries, [*entries[1:], None], strict=True):
        sentence = text[entry.end() : following.start() if following else None].strip()
        for name in entry["names"].split(", "):
            meanings.setdefault(name.partition(" ")[0], sentence)
    return meanings


@cache
def settings_schema(*groups: str) -> dict[str, Any]:
    """The JSON schema of settings by their dotted names, of these groups or of all with what is chosen by name."""
    if groups:
        every = settings_schema()["properties"].items()
        found = {name: schema for name, schema in every if "." in name and name.partition(".")[0] in groups}
    else:
        found = {name: {"enum": list(values)} for name, values in choices().items()}
        for group, (owner, values) in compose([]).tables().items():
            found |= {f"{group}.{name}": _setting(owner, group, name, value) for name, value in values.items()}
        del found["prior.source"]  # said as `prior`
    return {"type": "object", "properties": found, "additionalProperties": False}


def _setting(owner: type, group: str, name: str, value: Any) -> dict[str, Any]:
    dotted, needed = f"{group}.{name}", {"prompt": "any"} if owner is ImagesSpec else {}

    def accepts(given: Any) -> bool:
        try:
            codec.from_plain(owner, {**needed, name: given})
        except InputError:
            return False
        return True

    schema = _schema_of(typing.get_type_hints(owner)[name])
    if dotted in _WORDS:
        return {"enum": list(_WORDS[dotted])}
    if name == "texture_size":
        return {"enum": [size for size in (0, *(2**power for power in range(20))) if accepts(size)]}
    if name == "turntable_size":
        return {
            **schema,
            "multipleOf": 2,
            **_bounds(lambda n: accepts(n) or (accepts(n - 1) and accepts(n + 1)), value, is_whole=True),
        }
    if dotted == "export.formats":
        return {"type": "array", "minItems": 1, "items": {"enum": [one for one in MESH_FORMATS if accepts([one])]}}
    if name == "negative_prompt":
        return {"type": "string", "maxLength": 2000, "pattern": NEGATIVE_PROMPT}
    if dotted in JOINT:
        return schema
    return _bounded(schema, accepts, value)


def _bounded(schema: dict[str, Any], accepts: Callable[[Any], bool], value: Any) -> dict[str, Any]:
    """With the bounds of its numbers, or of a list's items."""
    if options := schema.get("anyOf"):
        return {"anyOf": [_bounded(option, accepts, value) for option in options]}
    kind = schema.get("type")
    if kind in ("integer", "number"):
        inside = next(one for one in (value, 0.5, 1, 64, 100) if one is not None and not isinstance(one, dict) and accepts(one))
        return {**schema, **_bounds(accepts, inside, is_whole=kind == "integer")}
    if kind == "array" and "items" in schema and "maxItems" not in schema:
        items = _bounds(lambda item: accepts([item]), (*value, 100)[0], is_whole=schema["items"]["type"] == "integer")
        return {**schema, "items": {**schema["items"], **items}, "minItems": int(not accepts([]))}
    return {**schema, "pattern": SAFE} if kind == "string" else schema


def _bounds(accepts: Callable[[Any], bool], inside: Any, *, is_whole: bool) -> dict[str, Any]:
    """minimum and maximum, or those that are not reached, of a number whose allowed values are one interval."""
    found: dict[str, Any] = {}
    for name, exclusive, far in (
        ("minimum", "exclusiveMinimum", -(2.0**63)),
        ("maximum", "exclusiveMaximum", 2.0**63),
    ):
        good, bad = (int(inside), int(far)) if is_whole else (_rank(inside), _rank(far * 1e289))
        number: Callable[[int], Any] = (lambda rank: rank) if is_whole else _number
        if accepts(number(bad)):
            continue
        marks = [int(mark) if is_whole else _rank(mark) for mark in _MARKS]
        good, bad = _edge(lambda place: accepts(number(place)), good, bad, marks)  # noqa: B023 - called at once
        is_reached = is_whole or len(repr(number(good))) <= len(repr(number(bad)))
        found[name if is_reached else exclusive] = number(good if is_reached else bad)
    return found


def _edge(accepts: Callable[[int], bool], good: int, bad: int, marks: list[int]) -> tuple[int, int]:
    """The last place that is accepted on the way from `good` to `bad`, and the one after it: marks are tried before halves."""
    step = 1 if bad > good else -1

    def narrow(place: int) -> None:
        nonlocal good, bad
        if (place - good) * step > 0 and (bad - place) * step > 0:
            good, bad = (place, bad) if accepts(place) else (good, place)

    for mark in marks:
        narrow(mark)
    narrow(good + step)
    narrow(bad - step)
    while abs(bad - good) > 1:
        narrow((good + bad) // 2)
    return good, bad


def _rank(number: float) -> int:
    """Of a double among all doubles, in their order."""
    (bits,) = struct.unpack("<q", struct.pack("<d", number))
    return bits if bits >= 0 else -(bits & (2**63 - 1))


def _number(rank: int) -> float:
    (found,) = struct.unpack("<d", struct.pack("<q", abs(rank)))
    return math.copysign(found, rank) + 0.0


def _schema_of(hint: Any) -> dict[str, Any]:
    """Of what a dataclass's annotation says."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in _PLAIN:
        return {"type": _PLAIN[hint]}
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [{"type": "null"} if one is type(None) else _schema_of(one) for one in arguments]}
    if origin is tuple and arguments[-1] is Ellipsis:
        return {"type": "array", "items": _schema_of(arguments[0])}
    if origin is tuple:
        size = {"minItems": len(arguments), "maxItems": len(arguments)}
        return {"type": "array", "prefixItems": [_schema_of(one) for one in arguments], **size}
    if dataclasses.is_dataclass(hint):
        return _table(typing.cast(type, hint))
    return {}


def _table(owner: type) -> dict[str, Any]:
    """A table of settings, for which a bare value of the first may stand."""
    hints = typing.get_type_hints(owner)
    fields = {field.name: _schema_of(hints[field.name]) for field in dataclasses.fields(owner)}
    needed = [field.name for field in dataclasses.fields(owner) if field.default is dataclasses.MISSING]
    for name, schema in fields.items():
        others = {one: 0.0 for one in needed if one != name}

        def accepts(given: Any, name: str = name, others: dict[str, float] = others) -> bool:
            try:
                codec.from_plain(owner, {**others, name: given})
            except InputError:
                return False
            return True

        fields[name] = _bounded(schema, accepts, 0.5)
    table = {"type": "object", "properties": fields, "required": needed, "additionalProperties": False}
    return {"anyOf": [fields[needed[0]], table]}
