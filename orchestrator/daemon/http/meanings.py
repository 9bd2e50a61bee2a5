"""Settings with what they mean, read from the docstrings that explain them."""

from __future__ import annotations

import inspect
import re
from typing import Any

from jobs import codec
from orchestrator.settings.compose import Settings, choices

__all__ = ["explained"]

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
