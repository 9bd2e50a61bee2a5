"""The work of a disturbed night: small jobs of every kind, and what each of them leaves when nothing disturbs it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.batch_images import BatchImagesSpec
from jobs.codec import to_plain
from orchestrator.batch.perform import perform_batch
from orchestrator.batch.storage.markers import TIMINGS
from orchestrator.batch.tables.source import TableSource
from orchestrator.host.atomic import TEMPORARY_PREFIX
from orchestrator.run.perform import perform
from orchestrator.settings.compose import compose
from tests.fakes import FAST_OVERRIDES

CHECKPOINT_EVERY = 10
NUM_FIT_STEPS = 100
NUM_IMAGES = 24
NUM_ROWS = 240
SHARD_SIZE = 12
BAD_ROWS = {17: {"sampler": "dimm"}, 101: {"prompt": ""}}
NOT_COMPARED = ("manifest.json", "progress.jsonl", "checkpoint.safetensors")
"""Times are in them, or (safetensors) a header whose order is left to chance."""


@dataclass(frozen=True)
class Kind:
    """Jobs of one kind.

    Args:
        name: for the report. spec: of every such job. settings: its export, runtime and batch settings, as the API takes them.
        num_at_once: how many are always queued or running.
    """

    name: str
    spec: Any
    settings: Mapping[str, Any]
    num_at_once: int = 1

    def request(self, out: Path, *, user: str) -> dict[str, Any]:
        """One element of what POST /v1/jobs takes."""
        # Judged is that nothing is lost, not when a job should be given up.
        more = {"user": user, "max_failures": 100}
        return {"spec": self.spec.to_json(), "out": str(out), "settings": dict(self.settings), **more}


def kinds_of_work(prior: Path, table: Path) -> list[Kind]:
    """3D jobs of two seeds, a job of some images and a table with two bad rows, all strict, so batch-invariant."""
    settings = compose(
        [
            *FAST_OVERRIDES,
            f"fit.num_steps={NUM_FIT_STEPS}",
            f"runtime.checkpoint_every={CHECKPOINT_EVERY}",
            "runtime.num_threads=1",
            "runtime.device=cpu",
            "export.turntable_frames=0",
            "export.preview_size=16",
        ],
        options={
            "prior.source": str(prior),
            "prior.strict": True,
            "images.num_images": NUM_IMAGES,
            "images.num_steps": 10,
            "images.chunk_size": 4,
        },
    )
    plain = {"export": to_plain(settings.export), "runtime": to_plain(settings.runtime)}
    batch = {"prompts": str(write_table(table)), "num_workers": 2}
    return [
        Kind("text-to-3d", settings.text_to_3d("a red table", seed=0), plain),
        Kind("text-to-3d", settings.text_to_3d("a blue table", seed=1), plain),
        Kind("images", settings.image_job("a red table with legs", seed=2), plain),
        Kind("table", _batch_spec(table, prior), {**plain, "batch": batch}),
    ]


def write_table(path: Path) -> Path:
    """Prompts with ids, and `BAD_ROWS` among them."""
    rows = [
        {"prompt": f"a {'red' if row % 2 else 'blue'} table", "id": row, **BAD_ROWS.get(row, {})} for row in range(NUM_ROWS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run_undisturbed(kind: Kind, out: Path) -> dict[str, str]:
    """A job of that kind alone, in this process, without Ray; returns its `digests`."""
    settings = compose(["runtime.num_threads=1", "runtime.device=cpu", "runtime=inline"], options={})
    if isinstance(kind.spec, BatchImagesSpec):
        source = TableSource.find(kind.settings["batch"]["prompts"])
        perform_batch(kind.spec, source, out=str(out), runtime=settings.runtime)
    else:
        export = dataclasses.replace(settings.export, turntable_frames=0, preview_size=16)
        perform(kind.spec, out=out, export=export, runtime=settings.runtime)
    return digests(out)


def digests(folder: Path) -> dict[str, str]:
    """name -> sha256 of every file that has to be the same in each run; of a shard's marker all but its timings."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: hashlib.sha256(_content(path)).hexdigest() for name, path in files.items() if name not in NOT_COMPARED}


def differences(folder: Path, expected: Mapping[str, str]) -> list[str]:
    """What is lost, doubled or different in a finished job's folder, in words."""
    found = digests(folder)
    said = [f"{folder.name} lacks {name}" for name in sorted(expected.keys() - found.keys())]
    said += [f"{folder.name}/{name} differs" for name in sorted(found) if name in expected and found[name] != expected[name]]
    more = sorted(found.keys() - expected.keys())
    half = [name for name in more if name.rpartition("/")[2].startswith(TEMPORARY_PREFIX)]
    said += [f"{folder.name} holds a half-written {name}" for name in half]
    return said + [f"{folder.name} has {name}, which an undisturbed run has not" for name in more if name not in half]


def _batch_spec(table: Path, prior: Path) -> BatchImagesSpec:
    return BatchImagesSpec(
        table=TableSource.find(str(table)).scan(),
        prior=str(prior),
        strict=True,
        num_steps=5,
        chunk_size=4,
        shard_size=SHARD_SIZE,
        output_format="webdataset",
    )


def _content(path: Path) -> bytes:
    data = path.read_bytes()
    if path.parent.name != "_shards":
        return data
    marker = {name: value for name, value in json.loads(data).items() if name not in (*TIMINGS, "num_drawn_by_last_attempt")}
    return json.dumps(marker, sort_keys=True).encode()
