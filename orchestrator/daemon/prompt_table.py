"""A table of 3D jobs: one row, one mesh.

Columns: `prompt`, and where wanted `seed`, `out`, `priority`, `key` (an idempotency key), and settings by their dotted names
such as `fit.num_steps` or `distillation.guidance_scale`; an empty cell leaves the command's own value. Other columns are for
the reader's own use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jobs.errors import InputError
from jobs.specs import TextTo3DSpec
from orchestrator.batch.tables import TableSource
from orchestrator.compose import Settings

__all__ = ["TableJob", "read_jobs"]

TableJob = tuple[TextTo3DSpec, Settings, Mapping[str, Any]]
"""The spec, the settings it was made with, and what the row says of `out`, `priority` and `key`."""


def read_jobs(location: str, compose: Callable[[Sequence[str]], Settings], *, seed: int) -> list[TableJob]:
    """Every row as a job.

    Args:
        location: file, folder, glob or URL of txt, csv, jsonl or parquet.
        compose: settings from a row's overrides.
        seed: of rows without one.

    Raises:
        InputError: no such table, or a row that cannot be used, with its file and number. Nothing is submitted then.
    """
    source = TableSource.find(location)
    settings: dict[tuple[str, ...], Settings] = {}
    jobs: list[TableJob] = []
    for row in source.rows():
        try:
            if row.problem:
                raise InputError(row.problem)
            cells = {name.strip(): value for name, value in row.values.items() if value is not None and value != ""}
            if "prompt" not in cells:
                raise InputError("it has no prompt")
            overrides = tuple(f"{name}={value}" for name, value in cells.items() if "." in name)
            if overrides not in settings:
                settings[overrides] = compose(overrides)
            spec = settings[overrides].text_to_3d(str(cells["prompt"]), seed=_whole("seed", cells.get("seed", seed)))
            more: dict[str, Any] = {name: str(cells[name]) for name in ("out", "key") if name in cells}
            if "priority" in cells:
                more["priority"] = _whole("priority", cells["priority"])
            jobs.append((spec, settings[overrides], more))
        except InputError as error:
            raise InputError(f"{row.place}: {error}") from error
    if not jobs:
        raise InputError(f"{location} holds no prompts.")
    return jobs


def _whole(name: str, value: Any) -> int:
    try:
        number = float(value)
        if not number.is_integer():
            raise ValueError
        return int(value) if isinstance(value, (int, str)) and str(value).strip().lstrip("+-").isdigit() else int(number)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"the {name} is {value!r}, but a whole number was expected") from None
