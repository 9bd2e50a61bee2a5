"""What becomes of a job whose attempt failed: the rules of `orchestrator.scheduling.retries`, with what its files show."""

from __future__ import annotations

from pathlib import Path

from jobs.batch_images import BatchImagesSpec
from jobs.ledger import JobRecord, Ledger
from jobs.states import FailureKind
from orchestrator.run.artefacts import image_name
from orchestrator.run.folder import CHECKPOINT
from orchestrator.scheduling.retries import RetryDecision, after_failure

__all__ = ["retry_decision"]


def retry_decision(ledger: Ledger, job: JobRecord, kind: FailureKind, *, since: float) -> RetryDecision:
    """Decide after a failure of the job's last attempt.

    Args:
        since: when that attempt began, seconds since 1970.
    """
    return after_failure(
        kind,
        job_id=job.id,
        num_failures=job.num_failures,
        max_failures=job.max_failures,
        now=ledger.now(),
        has_advanced=_has_advanced(ledger, job, since=since),
    )


def _has_advanced(ledger: Ledger, job: JobRecord, *, since: float) -> bool:
    """The attempt left what the next one need not do again: a shard, a checkpoint, or a picture."""
    if job.kind == BatchImagesSpec.kind:  # its files may lie behind a URL
        return ledger.shards.has_any_of(job.id, job.fence)
    folder = Path(job.out)
    return any(_is_newer(path, since) for path in (folder / CHECKPOINT, folder / image_name(max(0, job.step - 1))))


def _is_newer(file: Path, since: float) -> bool:
    try:
        return file.stat().st_mtime > since
    except OSError:
        return False
