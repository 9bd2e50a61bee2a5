"""A table of 3D jobs: one row, one mesh.

Columns: `prompt`, and where wanted `seed`, `out`, `priority`, `key` (an idempotency key), and settings by their dotted names
such as `fit.num_steps` or `distillation.guidance_scale`; an empty cell leaves the command's own value. Other columns are for
the reader's own use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.errors import InputError
from jobs.ledger.records import MAX_PRIORITY
from orchestrator.batch.tables.source import TableSource
from orchestrator.settings.compose import Settings

__all__ = ["TableJob", "read_jobs"]

MAX_NAMED = 20


@dataclass(frozen=True, kw_only=True)
class TableJob:
    """What a row asks for, where it says so."""

    prompt: str
    settings: Settings
    seed: int
    out: Path | None = None
    priority: int | None = None
    key: str | None = None


def read_jobs(location: str, compose: Callable[[Sequence[str]], Settings], *, seed: int) -> list[TableJob]:
    """Every row as a job.

    Args:
        location: file, folder, glob or URL of txt, csv, jsonl or parquet.
        compose: settings from a row's overrides.
        seed: of rows without one.

    Raises:
        InputError: no such table, or rows that cannot be used, each with its file and number. Nothing is submitted then.
    """
    faults: list[InputError] = []
    jobs = list(_read(TableSource.find(location), compose, seed, faults))
    if len(faults) == 1:
        raise faults[0]
    if faults:
        rest = f" … and {len(faults) - MAX_NAMED:,} more." if len(faults) > MAX_NAMED else ""
        said = " ".join(str(fault) for fault in faults[:MAX_NAMED])
        raise InputError(f"{len(faults):,} rows of {location} cannot be used, so none is queued: {said}{rest}")
    if not jobs:
        raise InputError(f"{location} holds no prompts.")
    return jobs


def _read(
    source: TableSource, compose: Callable[[Sequence[str]], Settings], seed: int, faults: list[InputError]
) -> Iterator[TableJob]:
    """The rows that can be used; what is wrong with the others is added to `faults`."""
    composed: dict[tuple[str, ...], Settings] = {}
    for row in source.rows():
        try:
            if row.problem:
                raise InputError(row.problem)
            cells = {name.strip(): value for name, value in row.values.items() if value is not None and value != ""}
            if "prompt" not in cells:
                raise InputError("it has no prompt")
            overrides = tuple(f"{name}={value}" for name, value in cells.items() if "." in name)
            if overrides not in composed:
                composed[overrides] = compose(overrides)
            job = TableJob(
                prompt=str(cells["prompt"]),
                settings=composed[overrides],
                seed=_whole("seed", cells.get("seed", seed)),
                out=Path(str(cells["out"])) if "out" in cells else None,
                priority=_priority(cells["priority"]) if "priority" in cells else None,
                key=str(cells["key"]) if "key" in cells else None,
            )
            job.settings.text_to_3d(job.prompt, seed=job.seed)  # raises what it cannot be, while the row is known
        except InputError as error:
            words = str(error).rstrip(".")
            faults.append(InputError(f"{row.place}: {words}."))
        else:
            yield job


def _priority(value: Any) -> int:
    priority = _whole("priority", value)
    if abs(priority) > MAX_PRIORITY:
        raise InputError(f"the priority is {priority:,}, but -{MAX_PRIORITY:,} to {MAX_PRIORITY:,} is allowed")
    return priority


def _whole(name: str, value: Any) -> int:
    try:
        number = float(value)
        if not number.is_integer():
            raise ValueError
        return int(value) if isinstance(value, (int, str)) and str(value).strip().lstrip("+-").isdigit() else int(number)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"the {name} is {value!r}, but a whole number was expected") from None
