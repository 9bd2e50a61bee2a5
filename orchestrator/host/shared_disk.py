"""Whether a worker on another node sees the folder that it is to write to.

Workers write a job's files themselves, so their folder must be on a disk that all nodes share. A node that does not see it
would make a folder of that name on its own disk, and the files would seem lost: hence a file that one side lays down and the
other looks for.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
from pathlib import Path

from jobs.errors import InputError

__all__ = ["remove_sentinel", "require_sentinel", "write_sentinel"]

_PREFIX = ".seen-"


def write_sentinel(folder: str) -> str:
    """Put a hidden file there, to be found by a worker; "" where it cannot be, which the worker will find out too.

    A ledger lets one job at a time into a folder, and gives it one worker, so what an orchestrator that was killed has left
    there goes.
    """
    sentinel = Path(folder) / f"{_PREFIX}{secrets.token_hex(8)}"
    try:
        sentinel.parent.mkdir(parents=True, exist_ok=True)
        for left in sentinel.parent.glob(f"{_PREFIX}*"):
            remove_sentinel(str(left))
        sentinel.touch()
    except OSError:
        return ""
    return str(sentinel)


def remove_sentinel(sentinel: str) -> None:
    """Take it away; nothing happens if it is gone."""
    with contextlib.suppress(OSError):
        Path(sentinel).unlink(missing_ok=True)


def require_sentinel(sentinel: str) -> None:
    """Raises InputError where the file is not seen; "" is always seen."""
    if sentinel and not Path(sentinel).exists():
        raise InputError(
            f"{Path(sentinel).parent} on this node ({socket.gethostname()}) is not the folder that the job was started with; "
            "give a folder on a disk that every node of the cluster mounts, or, for a table of prompts, a URL such as "
            "s3://bucket/images."
        )
