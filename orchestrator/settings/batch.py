"""How a table of prompts is drawn; what shapes its pictures is in `jobs.batch_images`."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.errors import InputError

__all__ = ["FAILURES", "SHARD_WORKER_BYTES", "BatchSettings"]

FAILURES = "_failures.jsonl"
"""In the job's folder: every row without a picture."""
MAX_WORKERS = 1024
SHARD_WORKER_BYTES = 500_000_000
"""Of each process that draws shards: an estimate, not a measurement."""


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """Where a batch job finds its rows, and with what it works.

    Args:
        prompts: path, folder, glob or URL of the table.
        num_workers: shards in flight at once, each in an actor of its own.
        price_per_hour: of the machine, in any currency, for the cost in the report.
        retry_failed: also draw the rows that failed before, or were added.
    """

    prompts: str
    num_workers: int = 4
    price_per_hour: float | None = None
    retry_failed: bool = False

    def __post_init__(self) -> None:
        if self.price_per_hour is not None and not 0 <= self.price_per_hour < 1e6:
            raise InputError(f"--price-per-hour is {self.price_per_hour:g}, but a price from 0 to 1,000,000 was expected.")
        if not 1 <= self.num_workers <= MAX_WORKERS:
            raise InputError(f"--num-workers is {self.num_workers}, but 1 to {MAX_WORKERS:,} is allowed.")
