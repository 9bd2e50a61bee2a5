"""Fields: one file each. `make_field` is the registry."""

from __future__ import annotations

from collections.abc import Callable

from nerf3d.fields.base import Field, FieldConfig, FieldQuery, FieldSamples
from nerf3d.fields.dense_pyramid import DensePyramid
from nerf3d.fields.hash_grid import HashGrid

FIELDS: dict[str, Callable[..., Field]] = {"dense_pyramid": DensePyramid, "hash_grid": HashGrid}


def make_field(config: FieldConfig, *, seed: int = 0) -> Field:
    """The field that config.kind names, with its initial blob.

    Args:
        config: kind and sizes of the field.
        seed: of its first weights, where they are random.

    Raises:
        ValueError: an unknown kind.
    """
    if config.kind not in FIELDS:
        raise ValueError(f"Field kind is {config.kind!r}; choose one of {', '.join(FIELDS)}.")
    return FIELDS[config.kind](config, seed=seed)


__all__ = ["FIELDS", "DensePyramid", "Field", "FieldConfig", "FieldQuery", "FieldSamples", "HashGrid", "make_field"]
