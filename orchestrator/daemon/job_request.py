"""What a client sends to submit jobs; `jobs.codec` checks it on both sides."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.errors import InputError
from jobs.ledger import Submission
from jobs.specs import ImagesSpec, TextTo3DSpec, spec_from_json

__all__ = ["GroupRequest", "JobRequest", "SubmitRequest"]

# Estimates, not measurements: generous for the toybox prior.
MEMORY_BYTES = {"text-to-3d": 1_500_000_000, "images": 900_000_000}


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """One job; see `jobs.ledger.Submission`. spec: as `JobSpec.to_json` writes it. settings: {"export": …, "runtime": …}."""

    spec: dict[str, Any]
    out: str
    settings: dict[str, Any] = field(default_factory=dict)
    user: str = "me"
    priority: int = 0
    idempotency_key: str | None = None
    max_failures: int = 4
    is_paused: bool = False
    memory_bytes: int | None = None

    def to_submission(self) -> Submission:
        """The same, with everything checked. Raises InputError."""
        from orchestrator.daemon.job_process import job_settings

        spec = spec_from_json(self.spec)
        job_settings(self.settings)
        if not Path(self.out).is_absolute():
            raise InputError(f"The run folder {self.out!r} is not a full path, and the orchestrator runs in another folder.")
        if isinstance(spec, ImagesSpec) and spec.init_image is not None:
            raise InputError("Jobs that start from a picture cannot be queued yet; run 'dreamkiln images' without submit.")
        needed = MEMORY_BYTES["text-to-3d" if isinstance(spec, TextTo3DSpec) else "images"]
        return Submission.of(
            spec,
            out=self.out,
            settings=self.settings,
            user=self.user,
            priority=self.priority,
            idempotency_key=self.idempotency_key,
            max_failures=self.max_failures,
            is_paused=self.is_paused,
            memory_bytes=self.memory_bytes if self.memory_bytes is not None else needed,
        )


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
