"""What a job's row says beside its spec: which files to leave, how to run, where its inputs lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jobs import codec
from orchestrator.settings.batch import BatchSettings
from orchestrator.settings.groups import ExportSettings, RuntimeSettings

__all__ = ["JobSettings"]


@dataclass(frozen=True, kw_only=True)
class JobSettings:
    """Settings that are no part of the spec.

    Args:
        batch: of a table of prompts, which has to have one.
        pictures: of an editing job, the folder with init.png and perhaps mask.png.
        mesh: of a texture job, the full path of the mesh's file.
    """

    export: ExportSettings = field(default_factory=ExportSettings)
    runtime: RuntimeSettings = field(default_factory=RuntimeSettings)
    batch: BatchSettings | None = None
    pictures: str | None = None
    mesh: str | None = None

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> JobSettings:
        """From a row's JSON. Raises InputError for what is not allowed."""
        return codec.from_plain(cls, settings, path="settings")
