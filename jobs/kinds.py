"""Every kind of job, and the way back from JSON."""

from __future__ import annotations

import json
from typing import Any

from jobs import codec
from jobs.batch_images import BatchImagesSpec
from jobs.errors import InputError
from jobs.specs import ExportSpec, ImagesSpec, TextTo3DSpec
from jobs.texture.spec import TextureSpec

__all__ = ["KINDS", "AnySpec", "spec_from_json"]

AnySpec = TextTo3DSpec | ImagesSpec | BatchImagesSpec | ExportSpec | TextureSpec
KINDS: dict[str, type[AnySpec]] = {
    spec.kind: spec for spec in (TextTo3DSpec, ImagesSpec, BatchImagesSpec, ExportSpec, TextureSpec)
}


def spec_from_json(data: str | dict[str, Any]) -> AnySpec:
    """The inverse of a spec's `to_json`, from the text or from the parsed value.

    Raises:
        InputError: not JSON, an unknown kind, an unknown key, or a value that is not allowed.
    """
    if isinstance(data, str):
        try:
            data = json.loads(data)
        except json.JSONDecodeError as error:
            raise InputError(f"The job description is not JSON ({error}).") from None
    if not isinstance(data, dict) or data.get("kind") not in KINDS:
        kind = data.get("kind") if isinstance(data, dict) else data
        raise InputError(f"The job description is of kind {kind!r}; it must be one of {', '.join(KINDS)}.")
    fields = {key: value for key, value in data.items() if key != "kind"}
    return codec.from_plain(KINDS[data["kind"]], fields)
