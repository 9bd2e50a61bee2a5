"""What a client sends to submit jobs; `jobs.codec` checks it on both sides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs import codec
from jobs.batch_images import BatchImagesSpec
from jobs.errors import InputError
from jobs.kinds import AnySpec, spec_from_json
from jobs.ledger import Submission
from jobs.specs import ExportSpec, ImagesSpec, TextTo3DSpec
from jobs.texture.spec import TextureSpec
from jobs.words.safe_text import check_stored
from orchestrator.batch.storage.urls import is_url
from orchestrator.runtimes.base import leaves_to_device, resolve_device, with_settled_prior
from orchestrator.settings.batch import SHARD_WORKER_BYTES
from orchestrator.settings.job import JobSettings

__all__ = ["GroupRequest", "JobRequest", "SubmitRequest", "bytes_of_its_own_process"]

# Estimates, not measurements: generous for the toybox prior.
TEXT_TO_3D_BYTES = 1_500_000_000
IMAGES_BYTES = 900_000_000


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """One job; see `jobs.ledger.Submission`.

    Args:
        spec: as its `to_json` writes it. settings: see `JobSettings`.
        out: a full path; of a batch job also a URL.
    """

    spec: dict[str, Any]
    out: str
    settings: JobSettings = field(default_factory=JobSettings)
    user: str = "me"
    priority: int = 0
    idempotency_key: str | None = None
    max_failures: int = 4
    is_paused: bool = False
    memory_bytes: int | None = None

    def to_submission(self) -> Submission:
        """The same, with everything checked. Raises InputError."""
        spec = spec_from_json(self.spec)
        if leaves_to_device(spec):
            spec = with_settled_prior(spec, resolve_device("auto"))
        self._check_places(spec)
        return Submission.of(
            spec,
            out=self.out,
            settings=codec.to_plain(self.settings),
            user=self.user,
            priority=self.priority,
            idempotency_key=self.idempotency_key,
            max_failures=self.max_failures,
            is_paused=self.is_paused,
            memory_bytes=self.memory_bytes if self.memory_bytes is not None else self._estimate(spec),
        )

    def _check_places(self, spec: AnySpec) -> None:
        """The orchestrator runs in another folder, so relative paths would mean something else there."""
        is_batch, batch = isinstance(spec, BatchImagesSpec), self.settings.batch
        mesh = self.settings.mesh or ""
        places = {"table": batch.prompts if batch else "", "folder of pictures": self.settings.pictures or "", "mesh": mesh}
        for what, text in places.items():
            check_stored(what, text)
        if not (Path(self.out).is_absolute() or (is_batch and is_url(self.out))):
            raise InputError(f"The run folder {self.out!r} is not a full path, and the orchestrator runs in another folder.")
        if is_batch and batch is None:
            raise InputError("A batch job's settings must say where its table lies: batch.prompts.")
        if batch is not None and not (Path(batch.prompts).is_absolute() or is_url(batch.prompts)):
            raise InputError(f"The table {batch.prompts!r} is not a full path, and the orchestrator runs in another folder.")
        if isinstance(spec, ExportSpec):
            check_stored("run folder", spec.run)
        if isinstance(spec, TextureSpec) and not Path(mesh).is_absolute():
            raise InputError(f"A texture job's settings must say at which full path its mesh lies: mesh, which is {mesh!r}.")
        if isinstance(spec, ImagesSpec) and spec.init_image is not None and self.settings.pictures is None:
            raise InputError("The job starts from a picture, so its settings must say in which folder that lies: pictures.")

    def _estimate(self, spec: AnySpec) -> int:
        if isinstance(spec, (TextTo3DSpec, ExportSpec, TextureSpec)):
            return TEXT_TO_3D_BYTES
        if self.settings.batch is None or self.settings.batch.num_workers == 1:
            return IMAGES_BYTES
        return IMAGES_BYTES + SHARD_WORKER_BYTES * self.settings.batch.num_workers


def bytes_of_its_own_process(settings: Mapping[str, Any], memory_bytes: int) -> int:
    """The part of a job's memory that its actor asks of one node.

    The shard workers of a table ask for theirs themselves, each where there is room, because all of it together would fit on
    no node.

    Args:
        settings, memory_bytes: of the job's row.
    """
    num_workers = (settings.get("batch") or {}).get("num_workers", 1)
    return min(memory_bytes, IMAGES_BYTES) if num_workers > 1 else memory_bytes


@dataclass(frozen=True, kw_only=True)
class GroupRequest:
    """Best of N: see `jobs.ledger.GroupRecord`."""

    name: str
    num_wanted: int = 1
    metric: str | None = None
    largest_is_best: bool = True


@dataclass(frozen=True, kw_only=True)
class SubmitRequest:
    """Jobs to queue together, all or none."""

    jobs: tuple[JobRequest, ...]
    group: GroupRequest | None = None
