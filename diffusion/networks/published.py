"""Configurations as they are published (JSON in the layout of diffusers) as dataclasses."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

Config = TypeVar("Config")


def from_published(cls: type[Config], config: Mapping[str, Any]) -> Config:
    """A dataclass from the fields of that name; others are passed over, null is the default, lists become tuples."""
    known = {field.name for field in fields(cls)}  # type: ignore[arg-type]
    values = {name: value for name, value in config.items() if name in known and value is not None}
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
