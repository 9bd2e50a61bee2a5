"""One shard: its rows drawn, encoded, written, and committed by its marker."""

from __future__ import annotations

import functools
import os
import posixpath
import socket
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from diffusion.checkpoints.lora_files import AdapterFile
from jobs.batch_images import BatchImagesSpec, Failed, Generated, Row, generate_rows, read_row, row_digest, shard_range
from jobs.batch_images.cells import ADAPTERS, AdapterColumn
from jobs.errors import OutputError
from jobs.events import ImagesPreview
from jobs.prior_client import PriorClient, PriorInfo
from orchestrator.batch.preview import Preview, grid_name
from orchestrator.batch.records import Finished, encode, failed, keep
from orchestrator.batch.scores import PictureScores, score_columns
from orchestrator.batch.sinks import make_sink
from orchestrator.batch.storage import markers
from orchestrator.batch.storage.stores import Store, open_store
from orchestrator.batch.tables.adapters import RowAdapters
from orchestrator.batch.tables.initial_images import InitialImages
from orchestrator.batch.tables.source import TableSource
from orchestrator.exports.image_grid import image_grid
from orchestrator.exports.png_metadata import encode_png
from orchestrator.run.artefacts import PREVIEW
from orchestrator.run.picture_metadata import adapters_of, commit_marker, pixels_of

__all__ = ["Committed", "ShardJob", "ShardTask", "ShardWriter"]

ROWS_PER_WRITE = 64
SECONDS_BETWEEN_REPORTS = 0.5


@dataclass(frozen=True)
class ShardJob:
    """What all shards of a job share; picklable.

    Args:
        held: the token of the job's hold on its place. preview_every: sampler steps between two versions of preview.png; 0
            for none.
    """

    spec: BatchImagesSpec
    source: TableSource
    location: str
    info: PriorInfo
    held: str
    preview_every: int = 0


@dataclass(frozen=True)
class ShardTask:
    """One shard to draw.

    Args:
        rows: all of its rows. kept: indices of those whose pictures exist and stay as they are.
    """

    shard: int
    rows: Sequence[Row]
    kept: frozenset[int] = field(default_factory=frozenset)


@dataclass(frozen=True)
class Committed:
    """A shard whose marker stands.

    Args:
        marker: see `markers`. worker: the process that drew it; "" for one that was committed before.
        num_attempts: processes that began it, those that died over it among them.
    """

    marker: Mapping[str, Any]
    worker: str = ""
    num_attempts: int = 0


class ShardWriter:
    """Draws and commits shards, one after another.

    Args:
        store: by default the one at the job's location.
    """

    def __init__(self, job: ShardJob, prior: PriorClient, store: Store | None = None) -> None:
        self._spec = job.spec
        self._info = job.info
        self._prior = prior
        self._held = job.held
        self._preview_every = job.preview_every
        self._store = store or open_store(job.location)
        self._sink = make_sink(job.spec, self._store)
        self._initial_images = InitialImages(job.source)
        self._find_adapters = RowAdapters(job.source)
        self._scores = PictureScores(job.spec)

    def run(self, task: ShardTask) -> Iterator[int | Committed]:
        """Yields now and then how many more rows of the shard are done, and at last that it is committed.

        Raises:
            OutputError: the shard cannot be written, pictures that are to be kept were moved away, or another process has taken
                the place over. JobFailed: the prior is gone.
        """
        if task.kept:
            self._require_kept(task)
        begin = last = time.monotonic()
        preview = Preview(len(task.rows))
        before = markers.read_marker(self._store, task.shard).get("loras", {}) if task.kept else {}
        tally = _Tally(task.shard, before)
        waiting: list[Finished] = []
        num_unsaid = 0
        # From here to the new marker the shard counts as unfinished: a process killed in between leaves it to be redrawn.
        self._store.remove([markers.marker_name(task.shard)])
        with self._sink.open(task.shard) as file:
            for position, (row, answer) in enumerate(zip(task.rows, self._answers(task), strict=True)):
                finished = self._finish(answer)
                tally.add(row, answer, finished)
                preview.offer(position, finished)
                waiting.append(finished)
                num_unsaid += 1
                if len(waiting) >= ROWS_PER_WRITE:
                    file.add(waiting)
                    waiting.clear()
                if time.monotonic() - last >= SECONDS_BETWEEN_REPORTS:
                    yield num_unsaid
                    num_unsaid, last = 0, time.monotonic()
            file.add(waiting)
        yield num_unsaid
        marker = self._commit(task.shard, file.written, tally, preview, time.monotonic() - begin)
        yield Committed(marker, worker=f"process {os.getpid()} on {socket.gethostname()}", num_attempts=1)

    def _require_kept(self, task: ShardTask) -> None:
        """Raises OutputError where the file that holds the kept pictures is not there: its marker must not be lost over it."""
        names = list(self._sink.names(task.shard, sorted(task.kept)))
        folder = posixpath.dirname(names[0])
        if folder:
            there = {f"{folder}/{name}" for name in self._store.names(folder)}
            missing = [name for name in names if name not in there]
        else:
            try:
                self._store.open(names[0]).close()
                missing = []
            except FileNotFoundError:
                missing = names
        if missing:
            raise OutputError(
                f"Shard {task.shard} has rows to draw again, but {missing[0]}, which holds its other pictures, is no longer "
                f"in {self._store.location}; bring it back and repeat the command, or draw the mended rows "
                "as a table of their own."
            )

    def _answers(self, task: ShardTask) -> Iterator[Generated | Failed | Finished]:
        """One answer a row: drawn now, failed, or taken over."""
        fresh = [row for row in task.rows if row.index not in task.kept]
        drawn = self._drawn(fresh)
        existing = self._sink.read(task.shard) if task.kept else iter(())
        for row in task.rows:
            if row.index not in task.kept:
                yield next(drawn)
                continue
            png = next((png for index, png in existing if index == row.index), None)
            drawn_with = adapters_of(png) if png and ADAPTERS.keys() & self._spec.table.columns.keys() else {}
            picture = read_row(self._spec, row, self._info, functools.partial(_as_drawn, drawn_with))
            if png is None or isinstance(picture, Failed):
                raise OutputError(
                    f"Picture {row.index} is not in shard {task.shard} of {self._store.location}, where it was written; repeat "
                    "the same command, and the shard is drawn again."
                )
            size = struct.unpack(">II", png[16:24])
            scores = self._scores.of(pixels_of(png), picture.image.prompt) if score_columns(self._spec) else {}
            yield keep(self._spec, picture, png, size, prior_hash=self._info.weights_hash, is_new=False, scores=scores)

    def _drawn(self, rows: Sequence[Row]) -> Iterator[Generated | Failed]:
        """The rows' answers; unfinished pictures are shown meanwhile."""
        answers = generate_rows(
            self._spec,
            rows,
            self._prior,
            info=self._info,
            load_source=self._initial_images,
            find_adapters=self._find_adapters,
            preview_every=self._preview_every,
        )
        for answer in answers:
            if isinstance(answer, ImagesPreview):
                self._store.put({PREVIEW: encode_png(image_grid(answer.images))})
            else:
                yield answer

    def _finish(self, answer: Generated | Failed | Finished) -> Finished:
        match answer:
            case Finished():
                return answer
            case Generated():
                scores = self._scores.of(answer.image, answer.picture.image.prompt)
                return encode(self._spec, answer, prior_hash=self._info.weights_hash, index=answer.row.index, scores=scores)
            case Failed():
                return failed(self._spec, answer)

    def _commit(self, shard: int, written: Any, tally: _Tally, preview: Preview, seconds: float) -> dict[str, Any]:
        page = preview.png()
        if page is not None:
            self._store.put({grid_name(shard): page})
        content = {
            **commit_marker(
                shard,
                shard_range(self._spec, shard),
                num_failed=len(tally.failures),
                num_drawn=tally.num_drawn,
                seconds=seconds,
                prior_hash=self._info.weights_hash,
            ),
            "file": {"name": written.name, "bytes": written.num_bytes, "sha256": written.sha256},
            "rows_sha256": row_digest(tally.succeeded),
            "preview": preview.captions,
            "failures": tally.failures,
            **({"loras": tally.adapters} if tally.adapters else {}),
            **({"num_not_kept": tally.num_not_kept} if "is_kept" in score_columns(self._spec) else {}),
        }
        self._store.require_held(self._held)
        return markers.write_marker(self._store, shard, content)


def _as_drawn(
    found: Mapping[AdapterColumn, tuple[AdapterFile, ...]], column: AdapterColumn, texts: Sequence[str], row: Row
) -> tuple[AdapterFile, ...]:
    """A `FindAdapters` of a picture that is there: what its own file says."""
    del texts, row
    return found[column]


class _Tally:
    """What the marker says about a shard's rows. adapters: file -> sha256 of those that pictures were drawn with before."""

    def __init__(self, shard: int, adapters: Mapping[str, str]) -> None:
        self._shard = shard
        self.adapters = dict(adapters)
        self.succeeded: list[Row] = []
        self.failures: list[dict[str, Any]] = []
        self.num_drawn = self.num_not_kept = 0

    def add(self, row: Row, answer: Generated | Failed | Finished, finished: Finished) -> None:
        if not isinstance(answer, Failed):
            self.succeeded.append(row)
            self.num_drawn += finished.is_new
            self.num_not_kept += finished.record.get("is_kept") is False
            if isinstance(answer, Generated):
                self.adapters |= {one.file: one.sha256 for one in answer.picture.image.adapters}
            return
        self.failures.append(
            {
                "index": row.index,
                "shard": self._shard,
                "file": row.file,
                "row": row.number,
                "line": row.line,
                "cause": answer.cause,
                "message": answer.message,
                "prompt": finished.record["prompt"],
            }
        )
