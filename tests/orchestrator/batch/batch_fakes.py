"""A small table, a quick prior, and what a finished job looks like."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jobs.batch_images import BatchImagesSpec
from jobs.errors import PriorFailed
from jobs.prior_client import GenerateRequest
from orchestrator.batch.job_folder import Mode
from orchestrator.batch.perform import BatchOutcome, perform_batch
from orchestrator.batch.storage.markers import TIMINGS
from orchestrator.batch.tables.source import TableSource
from orchestrator.prior.local import LocalPrior
from orchestrator.prior.source import PriorLoader
from orchestrator.settings.groups import RuntimeSettings
from tests.fakes import COLOURS, FakePrior

INLINE = RuntimeSettings(kind="inline", num_threads=1, device="cpu")
FORMATS = ("png", "webdataset", "parquet")


class PoisonedPrior(LocalPrior):
    """Fails at prompts with "poison", as a prior does at numbers that are not finite."""

    def generate(self, request: GenerateRequest) -> np.ndarray:
        if any("poison" in prompt for prompt in request.prompts):
            raise PriorFailed(f"The prior answered {request.prompts[0]!r} with a picture that is not finite.")
        return super().generate(request)


def load_poisoned_prior(source: str, device: str = "cpu") -> LocalPrior:
    return PoisonedPrior(FakePrior())


def load_slow_prior(source: str, device: str = "cpu", *, seconds: float = 0.01) -> LocalPrior:
    """Leaves time to kill it."""

    class SlowPrior(LocalPrior):
        def generate(self, request: GenerateRequest) -> np.ndarray:
            time.sleep(seconds)
            return super().generate(request)

    return SlowPrior(FakePrior())


def write_table(path: Path, num_rows: int, **changes: Mapping[int, Any]) -> Path:
    """num_rows prompts with ids. changes: column -> row -> cell."""
    lines = []
    for row in range(num_rows):
        cells: dict[str, Any] = {"prompt": f"a {list(COLOURS)[row % 3]} ball {row}", "id": row, "num_steps": 2 + row % 2}
        cells |= {column: cell[row] for column, cell in changes.items() if row in cell}
        lines.append(json.dumps(cells))
    path.write_text("\n".join(lines) + "\n")
    return path


def spec_of(table: Path | str, **changes: Any) -> tuple[BatchImagesSpec, TableSource]:
    source = TableSource.find(str(table))
    settings = {"num_steps": 2, "chunk_size": 4, "shard_size": 5, "output_format": "webdataset"} | changes
    return BatchImagesSpec(table=source.scan(), **settings), source


def run(
    table: Path | str,
    out: Path | str,
    *,
    mode: Mode = "resume",
    load_prior: PriorLoader = load_poisoned_prior,
    **changes: Any,
) -> BatchOutcome:
    """The whole job in this process."""
    options = {"runtime": INLINE} | {
        name: changes.pop(name) for name in ("display", "price_per_hour", "runtime", "num_workers") if name in changes
    }
    spec, source = spec_of(table, **changes)
    return perform_batch(spec, source, out=str(out), mode=mode, load_prior=load_prior, **options)


def contents(out: Path) -> dict[str, Any]:
    """name -> bytes of every file that has to be the same in each run; of a marker all but its timings."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if not path.is_file() or name == "manifest.json":
            continue
        found[name] = path.read_bytes()
        if name.startswith("_shards/"):
            marker = json.loads(found[name])
            found[name] = {key: value for key, value in marker.items() if key not in (*TIMINGS, "num_drawn_by_last_attempt")}
    return found


def manifest(out: Path) -> dict[str, Any]:
    return json.loads((out / "manifest.json").read_text())


def marker(out: Path, shard: int) -> dict[str, Any]:
    return json.loads((out / "_shards" / f"{shard:05d}.json").read_text())
