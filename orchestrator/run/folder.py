"""A run folder: what a job leaves on the disk.

It is written so that a process killed at any instant loses no more than the steps since its last checkpoint, and so that two
different jobs never mix their files.

::

    OUT/manifest.json            what was asked, by which versions, what came out (bytes and sha256 of every file)
    OUT/progress.jsonl           one line per logged step
    OUT/checkpoint.safetensors   resume point of a 3D job
    OUT/...                      the artefacts

The program never deletes an artefact. What goes is its own scaffolding: files that a killed process left half-written, the page
of unfinished pictures (preview.png) and a cluster's sentinel files (`orchestrator.host.shared_disk`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TextIO

from jobs.errors import OutputError
from jobs.events import Checkpoint, Progress
from jobs.prior_client import PriorInfo
from jobs.specs import JobSpec
from jobs.texture import TextureSpec
from orchestrator.host.atomic import atomic_path, clear_output_errors, remove_half_written, write_bytes, write_text
from orchestrator.run.manifest import (
    MANIFEST,
    PriorName,
    another_job,
    end_attempt,
    first_difference,
    new_manifest,
    read_manifest,
)

__all__ = ["Plan", "RunFolder", "default_folder", "plan_attempt"]

PROGRESS = "progress.jsonl"
CHECKPOINT = "checkpoint.safetensors"
SHARDS = "_shards"
UNFINISHED = "preview.png"
"""Written while a fit is under way, and at its end as an artefact."""

RunSpec = JobSpec | TextureSpec
Action = Literal["start", "resume", "nothing to do"]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What an attempt has to do. missing: expected artefacts that are not there. changed: those edited since.

    is_cut_otherwise: the job is finished, its mesh cut with other settings; only an export cuts it again.
    """

    action: Action
    missing: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    is_cut_otherwise: bool = False


def default_folder(spec: RunSpec) -> Path:
    """runs/<slug>-<hash>: the same command finds its own folder again; no prompt can lead out of runs/."""
    return Path("runs") / spec.name


def plan_attempt(
    manifest: Mapping[str, Any] | None, spec: RunSpec, expected: Iterable[str], present: Mapping[str, int], *, where: str
) -> Plan:
    """Decide what to do in a folder; pure.

    Args:
        manifest: the folder's manifest, None where there is none.
        expected: artefacts of `spec`; of names that share a stem and differ in suffix ("turntable.mp4|turntable.webp")
            any one will do.
        present: file name -> bytes of what is in the folder.
        where: the folder, for messages.

    Raises:
        InputError: the folder belongs to another job.
        OutputError: the folder holds files of those names that no job of ours has written.
    """
    if manifest is not None and UNFINISHED not in manifest.get("artefacts", {}):
        present = {name: size for name, size in present.items() if name != UNFINISHED}  # what a killed fit last showed
    missing = tuple(choice for choice in expected if not any(name in present for name in choice.split("|")))
    if manifest is None:
        in_the_way = [name for choice in expected for name in choice.split("|") if name in present]
        if in_the_way:
            raise OutputError(
                f"{where} holds {in_the_way[0]} but no {MANIFEST}, so it is no run folder and its files would be "
                "overwritten; choose another --out."
            )
        return Plan("start", missing)
    theirs = manifest.get("spec", {})
    ours = spec.identity() if "identity" in manifest else spec.fingerprint()  # a manifest of an earlier version
    if manifest.get("identity", manifest.get("fingerprint")) != ours:
        raise another_job(theirs, spec.to_json(), where)
    written = manifest.get("artefacts", {})
    changed = tuple(n for n, entry in written.items() if n in present and present[n] != entry.get("bytes"))
    if manifest.get("state") != "succeeded":
        return Plan("resume", missing, changed)
    if first_difference(theirs.get("mesh", {}), spec.to_json().get("mesh", {})):
        return Plan("nothing to do", changed=changed, is_cut_otherwise=True)
    return Plan("resume" if missing else "nothing to do", missing, changed)


class RunFolder:
    """One job's folder, held by one process at a time.

    Use it as a context manager: the hold ends with the block, or with the process. Nothing is left behind that a next
    attempt would have to clean up.
    """

    def __init__(self, path: Path, spec: RunSpec, expected: Iterable[str]) -> None:
        """Create the folder, take hold of it, and decide what is to do.

        Raises:
            OutputError: it cannot be created, written, or is held by another process.
            InputError: it belongs to another job.
        """
        self.path = path
        self.spec = spec
        self.expected = tuple(expected)
        self._begin = time.monotonic()
        self._progress: TextIO | None = None
        self._new_folders = tuple(folder for folder in (path, *path.parents) if not folder.exists())
        self._handle = hold_folder(path)
        try:
            for folder in (path, path / SHARDS):
                remove_half_written(folder)
            self.manifest: dict[str, Any] = read_manifest(self.file(MANIFEST).read_bytes, str(path)) or {}
            self.plan = plan_attempt(self.manifest or None, spec, self.expected, self._present(), where=str(path))
        except BaseException:
            os.close(self._handle)
            raise

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            with contextlib.suppress(OSError):
                self._progress.close()
        os.close(self._handle)
        if not self.manifest:
            self._remove_new_folders()

    def file(self, name: str) -> Path:
        """The path of a file in this folder."""
        return self.path / name

    def begin(self, info: PriorInfo | PriorName, *, device: str, settings: Mapping[str, Any] | None = None) -> None:
        """Write the manifest of a running job.

        Raises:
            InputError: an earlier attempt used other weights, so that its checkpoint and files do not belong together.
        """
        kept = {name: dict(self.manifest.get(name, {})) for name in ("timings", "metrics", "artefacts")}
        self.manifest = {
            **new_manifest(
                self.manifest,
                self.spec,
                info,
                device=device,
                settings=settings or {},
                where=str(self.path),
                seconds=time.monotonic() - self._begin,
            ),
            "identity": self.spec.identity(),
            "seed": self.spec.seed,
            **kept,
        }
        self._write_manifest()

    def log(self, event: Progress) -> None:
        """Append one line to progress.jsonl."""
        line = {
            "attempt": len(self.manifest.get("attempts", ())),
            "seconds": round(time.monotonic() - self._begin, 3),
            "stage": event.stage,
            "step": event.step,
            "total": event.total,
            **{name: float(f"{value:.6g}") for name, value in event.metrics.items()},
        }
        with clear_output_errors(self.file(PROGRESS)):
            if self._progress is None:
                self._progress = _open_for_append(self.file(PROGRESS))
            self._progress.write(json.dumps(line) + "\n")
            self._progress.flush()

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Replace the resume point, in one instant."""
        from safetensors.numpy import save

        meta = {
            "fingerprint": self.spec.identity(),
            "prior": self.manifest["prior"]["weights_hash"],
            "step": str(checkpoint.step),
            "meta": json.dumps(dict(checkpoint.meta)),
        }
        # safetensors' own writing to a file turns a full disk into an error without a number.
        write_bytes(self.file(CHECKPOINT), save(dict(checkpoint.tensors), metadata=meta))

    def load_checkpoint(self) -> Checkpoint | None:
        """The resume point, or None where there is none that belongs to this job and these weights."""
        found = read_checkpoint(self.file(CHECKPOINT))
        weights = self.manifest.get("prior", {}).get("weights_hash")
        if found is None or found[1] != {"fingerprint": self.spec.identity(), "prior": weights}:
            return None
        return found[0]

    def record(self, paths: Iterable[Path], found: Mapping[str, Any] | None = None) -> None:
        """Note finished files with their size and sha256; they are in the manifest from its next writing on.

        found: what the first of them was found to hold when it was read back.
        """
        for path in paths:
            with clear_output_errors(path):
                data = path.read_bytes()
            name = path.relative_to(self.path).as_posix()
            holds = {"holds": dict(found)} if found else {}
            self.manifest["artefacts"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), **holds}
            found = None

    def finish(self, *, seconds: Mapping[str, float], metrics: Mapping[str, Any]) -> None:
        """The job is done; timings of several attempts are summed stage by stage."""
        self._add_timings(seconds)
        self.manifest["metrics"].update(metrics)
        self._end("succeeded")

    def stop(self, state: Literal["failed", "interrupted"], reason: str) -> None:
        """The job is not done; a full disk must not hide why, so what cannot be written is left."""
        if self.manifest.get("state") == "running":
            with contextlib.suppress(OutputError):
                self._end(state, reason)

    def _remove_new_folders(self) -> None:
        """A job that was refused before it began leaves no folders; one that holds anything stays."""
        with contextlib.suppress(OSError):
            for folder in self._new_folders:
                folder.rmdir()

    def _end(self, state: str, reason: str | None = None) -> None:
        end_attempt(self.manifest, state, seconds=time.monotonic() - self._begin, reason=reason)
        self._write_manifest()

    def _add_timings(self, seconds: Mapping[str, float]) -> None:
        timings = self.manifest["timings"]
        for stage, value in seconds.items():
            timings[stage] = round(timings.get(stage, 0.0) + value, 3)

    def _write_manifest(self) -> None:
        write_text(self.file(MANIFEST), json.dumps(self.manifest, indent=2, ensure_ascii=False) + "\n")

    def _present(self) -> dict[str, int]:
        return {p.relative_to(self.path).as_posix(): p.stat().st_size for p in self.path.rglob("*") if p.is_file()}


def read_checkpoint(path: Path) -> tuple[Checkpoint, dict[str, str | None]] | None:
    """A saved resume point and whose it is: the job's "fingerprint" and the "prior"'s weights. None where none can be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            meta = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        checkpoint = Checkpoint(step=int(meta["step"]), tensors=tensors, meta=json.loads(meta.get("meta", "{}")))
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
    return checkpoint, {name: meta.get(name) for name in ("fingerprint", "prior")}


def hold_folder(path: Path) -> int:
    """Create `path` and lock the folder itself: the lock leaves no file and ends with the process."""
    with clear_output_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        refusal = OutputError(f"{path} is in use by another dreamkiln process; wait for it, or choose another --out.")
        refusal.is_in_use = True
        raise refusal from None
    except OSError:
        pass  # a file system without locks; the fingerprint still keeps different jobs apart
    try:
        # Found out now rather than after minutes of work.
        with atomic_path(path / "probe") as temporary:
            temporary.write_bytes(b"\0" * 4096)
            raise _ProbeDoneError
    except _ProbeDoneError:
        return handle
    except BaseException:
        os.close(handle)
        raise


@contextlib.contextmanager
def held_folder(path: Path) -> Iterator[None]:
    """Inside the block no other process holds `path`. Raises as `hold_folder` does."""
    handle = hold_folder(path)
    try:
        yield
    finally:
        os.close(handle)


class _ProbeDoneError(Exception):
    """Leaves `atomic_path` before it renames anything."""


def _open_for_append(path: Path) -> TextIO:
    """Opens with a fresh line, even after a process that was killed in the middle of one."""
    with path.open("ab+") as file:
        if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
            file.write(b"\n")
    return path.open("a", encoding="utf-8")
