"""What is kept of jobs that have ended: their rows in the ledger, their logs, the copies of the pictures they started from.

Nothing is removed but files that the orchestrator made itself, one by one and by their full names, inside its own state
folder: run folders stay, and so does whatever else lies in the state folder.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.ledger import Ledger
from orchestrator.host.state_folder import StateFolder
from orchestrator.run.edit_pictures import INIT_IMAGE, MASK

__all__ = ["Pruned", "Retention"]

GRACE_SECONDS = 3600.0
"""Copies of pictures are laid down before their job is submitted; younger ones are left."""


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """What was forgotten, or would be. jobs: their numbers, oldest first. num_bytes: of the files that went with them."""

    jobs: tuple[int, ...] = ()
    num_logs: int = 0
    num_pictures: int = 0
    num_bytes: int = 0


class Retention:
    """Forgets ended jobs of a ledger, and removes their logs and pictures from the state folder."""

    def __init__(self, ledger: Ledger, folder: StateFolder) -> None:
        self._ledger, self._folder = ledger, folder

    def prune(self, *, seconds: float, user: str | None = None, limit: int | None = None, is_trial: bool = False) -> Pruned:
        """Forget jobs that ended at least `seconds` ago, at most `limit` of them, the oldest first.

        Their files go first, so that what a full stop in the middle leaves is found again. The newest job is always kept, so
        that no number is given twice, and so is every job of a group that is not decided.

        Args:
            user: of this user alone. is_trial: say what would go, and keep it.
        """
        before = self._ledger.now() - seconds
        jobs = self._ledger.jobs.ended_before(before, user=user, limit=limit)
        logs = [log for log in map(self._folder.job_log, jobs) if log.is_file()]
        pictures = list(self._pictures(jobs))
        num_bytes = sum(_remove(file, is_trial=is_trial) for file in (*logs, *pictures))
        if not is_trial:
            self._ledger.jobs.forget(jobs, before=before)
        return Pruned(jobs=tuple(jobs), num_logs=len(logs), num_pictures=len(pictures), num_bytes=num_bytes)

    def _pictures(self, jobs: Sequence[int]) -> Iterator[Path]:
        """Copies of pictures from which these jobs alone started."""
        for folder in map(Path, sorted(self._ledger.jobs.pictures_of_none_but(jobs))):
            is_ours = folder.parent == self._folder.path / "pictures" and folder.is_dir() and not folder.is_symlink()
            if is_ours and folder.stat().st_mtime < time.time() - GRACE_SECONDS:
                yield from (file for name in (INIT_IMAGE, MASK) if (file := folder / name).is_file())


def _remove(file: Path, *, is_trial: bool) -> int:
    """Its bytes. A folder that is empty then goes as well, if it is one of pictures."""
    try:
        num_bytes = file.stat().st_size
        if not is_trial:
            file.unlink()
    except OSError:
        return 0
    if not is_trial and file.name in (INIT_IMAGE, MASK):
        with contextlib.suppress(OSError):
            file.parent.rmdir()
    return num_bytes
