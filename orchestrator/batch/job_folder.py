"""What a batch job has already done in a place, and what is left: decided from the manifest and the shards' markers.

::

    OUT/manifest.json          what was asked, by which versions, every attempt, the report
    OUT/_shards/00007.json     commit marker of a shard, with its statistics and failures
    OUT/_grids/00007.png       a few of its pictures
    OUT/_failures.jsonl        every row without a picture
    OUT/index.html, grid.png   for people
    OUT/preview.png            unfinished pictures, where they are asked for; gone at the end
    OUT/...                    the shards, see `sinks`
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from diffusion.checkpoints.errors import PriorError
from diffusion.checkpoints.lora_files import lora_hash
from jobs.batch_images import BatchImagesSpec, Row, batched, row_digest, shard_range
from jobs.batch_images.cells import ADAPTERS
from jobs.codec import from_plain
from jobs.errors import InputError, JobFailed, OutputError
from jobs.prior_client import PriorInfo
from orchestrator.batch import preview
from orchestrator.batch.contact_sheet import GRID, PAGE
from orchestrator.batch.records import column_types
from orchestrator.batch.shard import Committed, ShardTask
from orchestrator.batch.sinks import make_sink
from orchestrator.batch.storage import markers
from orchestrator.batch.storage.stores import Store
from orchestrator.batch.tables.source import TableSource
from orchestrator.run.artefacts import PREVIEW
from orchestrator.run.manifest import MANIFEST, another_job, end_attempt, first_difference, new_manifest, read_manifest
from orchestrator.settings.batch import FAILURES

__all__ = ["MANIFEST", "JobFolder", "Mode", "read_spec"]

SHARDS_PER_REMOVAL = 16

Mode = Literal["resume", "overwrite", "retry-failed"]


class JobFolder:
    """One job's place, held by the caller.

    Args:
        mode: "resume" draws the shards that are not committed; "retry-failed" also the rows that failed in those that
            are, and takes a table whose other rows are unchanged; "overwrite" starts anew.

    Raises:
        InputError: the place belongs to another job, or the table has changed.
        OutputError: it holds files of our names that no job of ours has written.
    """

    def __init__(self, store: Store, spec: BatchImagesSpec, mode: Mode = "resume") -> None:
        self._store = store
        self.spec = spec
        self._retry = mode == "retry-failed"
        self._begin = time.monotonic()
        self._clean()
        manifest = _manifest_of(store)
        if manifest is not None and (mode == "overwrite" or manifest.get("state") == "clearing"):
            self._clear(manifest)
            manifest = None
        if manifest is None:
            self._check_nothing_in_the_way()
        else:
            self._check_same_job(manifest)
        self.manifest: dict[str, Any] = manifest or {}
        self.finished = markers.marked_shards(store, spec)
        self._is_same_table = self.manifest.get("fingerprint") == spec.fingerprint()

    @property
    def is_complete(self) -> bool:
        """Nothing is left to draw or to write."""
        return (
            self.manifest.get("state") == "succeeded"
            and len(self.finished) == self.spec.num_shards
            and self._is_same_table
            and not (self._retry and self.report.get("num_failed"))
        )

    @property
    def seconds(self) -> float:
        """Since this attempt took hold of the place."""
        return time.monotonic() - self._begin

    @property
    def report(self) -> dict[str, Any]:
        """Of the last finished attempt."""
        return self.manifest.get("report", {})

    def check_rows(self, source: TableSource) -> None:
        """Of a table that has changed, look at every row before anything is written.

        Raises:
            InputError: rows whose pictures exist have changed, or a LoRA or textual inversion has with which some were drawn.
        """
        if self.manifest and ADAPTERS.keys() & self.spec.table.columns.keys():
            self._check_adapters()
        if self.manifest and not self._is_same_table:
            for shard, rows in enumerate(batched(source.rows(), self.spec.shard_size)):
                self._kept(shard, rows)

    def begin(self, info: PriorInfo, *, device: str, settings: Mapping[str, Any]) -> None:
        """Write the manifest of a running job.

        Raises:
            InputError: an earlier attempt drew with other weights.
        """
        where, or_else = self._store.location, ", or --overwrite"
        manifest = new_manifest(
            self.manifest,
            self.spec,
            info,
            device=device,
            settings=settings,
            where=where,
            or_else=or_else,
            seconds=self.seconds,
        )
        self.manifest = {**manifest, "report": self.report}
        self._write_manifest()

    def tasks(self, source: TableSource) -> Iterator[ShardTask | Committed]:
        """Every shard, in order: to be drawn, or as it is where nothing is to be done.

        Raises:
            InputError: rows whose pictures exist have changed. JobFailed: the table changed while it was read.
        """
        num_rows = 0
        for shard, rows in enumerate(batched(source.rows(), self.spec.shard_size)):
            num_rows += len(rows)
            if num_rows > self.spec.table.num_rows:
                break
            found = self._kept(shard, rows)
            if found is None:
                yield ShardTask(shard, tuple(rows))
                continue
            marker, kept = found
            yield Committed(marker) if len(kept) == len(rows) else ShardTask(shard, tuple(rows), kept)
        if num_rows != self.spec.table.num_rows:
            raise JobFailed(
                f"The table {self.spec.table.name} changed while it was read ({num_rows:,} rows, not "
                f"{self.spec.table.num_rows:,}); start again when nobody writes to it."
            )

    def committed(self) -> Iterator[Committed]:
        """The shards whose marker stood when this attempt began, in order."""
        for shard in sorted(self.finished):
            yield Committed(markers.read_marker(self._store, shard))

    def finish(self, report: Mapping[str, Any]) -> None:
        """All shards are committed."""
        self._store.remove([PREVIEW])
        self._clean()  # what a worker left that died meanwhile
        self.manifest["report"] = dict(report)
        self._end("succeeded", report)

    def stop(self, state: Literal["failed", "interrupted"], reason: str, report: Mapping[str, Any]) -> None:
        """The job is not done; what cannot be written must not hide why."""
        if self.manifest.get("state") == "running":
            with contextlib.suppress(OutputError):
                self._store.remove([PREVIEW])
                self._end(state, report, reason)

    def attempts(self) -> list[Mapping[str, Any]]:
        """Those that could say how they ended."""
        return [attempt for attempt in self.manifest.get("attempts", ()) if "ended" in attempt]

    def _clean(self) -> None:
        for folder in ("", markers.FOLDER, preview.FOLDER):
            self._store.clean(folder)

    def _kept(self, shard: int, rows: list[Row]) -> tuple[dict[str, Any], frozenset[int]] | None:
        """A shard's marker and the rows whose pictures stay, all of them where nothing is to be done; None without a marker."""
        if shard not in self.finished:
            return None
        marker = markers.read_marker(self._store, shard)
        if not self._retry and marker["num_rows"] == len(rows):
            return marker, frozenset(row.index for row in rows)
        missing = {failure["index"] for failure in marker["failures"]}
        known = set(range(marker["first_index"], marker["first_index"] + marker["num_rows"])) - missing
        drawn = [row for row in rows if row.index in known]
        if len(drawn) != len(known) or row_digest(drawn) != marker["rows_sha256"]:
            raise InputError(
                f"Rows {rows[0].place} to {rows[-1].place} changed since their pictures were drawn (shard {shard} of "
                f"{self._store.location}); --retry-failed keeps pictures, so change failed rows only, append rows, or use "
                "--overwrite."
            )
        return marker, frozenset(known)

    def _check_adapters(self) -> None:
        now: dict[str, str] = {}
        for shard in sorted(self.finished):
            for file, sha256 in markers.read_marker(self._store, shard).get("loras", {}).items():
                if file not in now:
                    with contextlib.suppress(PriorError):  # its rows say so, if any are left
                        now[file] = lora_hash(Path(file))
                if now.get(file, sha256) != sha256:
                    raise InputError(
                        f"The file {file} of a row's LoRA or textual inversion has changed since pictures of shard {shard} of "
                        f"{self._store.location} were drawn with it (sha256 {sha256[:12]}, now {now[file][:12]}); put the "
                        "first one back, or give --overwrite."
                    )

    def _check_same_job(self, manifest: Mapping[str, Any]) -> None:
        if manifest.get("fingerprint") == self.spec.fingerprint():
            return
        where = self._store.location
        theirs, ours = ({**spec, "table": None} for spec in (manifest["spec"], self.spec.to_json()))
        if first_difference(theirs, ours):
            raise another_job(theirs, ours, where, or_else=", or give --overwrite")
        before = _spec_of(manifest)
        if not self._retry:
            raise InputError(
                f"The table {self.spec.table.name} has changed since {where} was begun; --retry-failed draws the rows that had "
                "failed or were added and keeps the others, --overwrite draws all of them again."
            )
        if column_types(before) != column_types(self.spec) or before.table.num_rows > self.spec.table.num_rows:
            raise InputError(
                f"The table {self.spec.table.name} has other columns or fewer rows than when {where} was begun; choose another "
                "--out, or give --overwrite."
            )

    def _check_nothing_in_the_way(self) -> None:
        ours = {MANIFEST, GRID, PAGE, *make_sink(self.spec, self._store).names(0, shard_range(self.spec, 0))}
        folders = {name.rsplit("/", 1)[0] for name in ours if "/" in name}
        found = {*self._store.names(), *(f"{f}/{name}" for f in folders for name in self._store.names(f))} & ours
        if found or markers.marked_shards(self._store, self.spec):
            raise OutputError(
                f"{self._store.location} holds {min(found, default=markers.FOLDER)} but no {MANIFEST}, so its files would be "
                "overwritten; choose another --out."
            )

    def _clear(self, manifest: Mapping[str, Any]) -> None:
        """Delete what the manifest's job wrote, and nothing else. Killed in between, the next attempt goes on with it."""
        if manifest.get("kind") != self.spec.kind:
            raise InputError(
                f"{self._store.location} belongs to a job of another kind, which --overwrite does not delete; choose another "
                "--out."
            )
        old = _spec_of(manifest)
        self.manifest = {**manifest, "state": "clearing"}
        self._write_manifest()
        sink = make_sink(old, self._store)
        for some in batched(range(old.num_shards), SHARDS_PER_REMOVAL):
            names = [name for shard in some for name in sink.names(shard, shard_range(old, shard))]
            own = [name for shard in some for name in (preview.grid_name(shard), markers.marker_name(shard))]
            for shard in some:
                self._store.clean(f"{shard:05d}")
            self._store.remove([*names, *own])
        self._store.remove([GRID, PAGE, PREVIEW, FAILURES, MANIFEST])

    def _end(self, state: str, report: Mapping[str, Any], reason: str | None = None) -> None:
        figures = {name: report[name] for name in ("num_drawn_by_last_attempt", "cpu_seconds") if name in report}
        end_attempt(self.manifest, state, seconds=self.seconds, reason=reason, **figures)
        self._write_manifest()

    def _write_manifest(self) -> None:
        text = json.dumps(self.manifest, indent=2, ensure_ascii=False, default=dataclasses.asdict)
        self._store.put({MANIFEST: text.encode() + b"\n"})


def read_spec(store: Store) -> BatchImagesSpec:
    """What the job that wrote there draws. Raises OutputError where there is none."""
    manifest = _manifest_of(store)
    if manifest is None or manifest["kind"] != BatchImagesSpec.kind:
        raise OutputError(f"{store.location} holds no job of a table of prompts; give the --out of one.")
    return _spec_of(manifest)


def _manifest_of(store: Store) -> dict[str, Any] | None:
    def load() -> bytes:
        with store.open(MANIFEST) as file:
            return file.read()

    return read_manifest(load, store.location)


def _spec_of(manifest: Mapping[str, Any]) -> BatchImagesSpec:
    return from_plain(BatchImagesSpec, {name: value for name, value in manifest["spec"].items() if name != "kind"})
