"""A job's files over HTTP: by name, in ranges, all at once, and the look at what is unfinished."""

from __future__ import annotations

import hashlib
import json
import mimetypes
import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, MalformedRangeHeader, RangeNotSatisfiable, Response, StreamingResponse

from jobs.errors import NotFound
from jobs.ledger import JobRecord, Ledger
from jobs.words.safe_text import check_stored
from orchestrator.batch.storage.urls import is_url
from orchestrator.host.atomic import TEMPORARY_PREFIX
from orchestrator.run.manifest import MANIFEST

__all__ = ["JobFile", "JobFiles"]

MEDIA_TYPES = {
    ".glb": "model/gltf-binary",
    ".gltf": "model/gltf+json",
    ".obj": "model/obj",
    ".mtl": "model/mtl",
    ".ply": "model/ply",
    ".stl": "model/stl",
    ".3mf": "model/3mf",
    ".usdz": "model/vnd.usdz+zip",
    ".jsonl": "application/x-ndjson",
    ".parquet": "application/vnd.apache.parquet",
    ".webp": "image/webp",
}
SHOWN = ("image/png", "image/webp", "image/jpeg", "video/mp4", "model/gltf-binary")
"""Media types that a browser may show; everything else is a download, so that no file becomes a page of ours."""
LOOKS = ("preview.png", "grid.png", "000000000.png")
INTERNAL = ("checkpoint", TEMPORARY_PREFIX)
MAX_WALKED = 100_000
PART_BYTES = 256 * 1024
HASHES = 4096


@dataclass(frozen=True, kw_only=True)
class JobFile:
    """A file of a job; sha256 is empty where nobody has written it down."""

    name: str
    num_bytes: int
    media_type: str
    sha256: str = ""


class JobFiles:
    """Over the folders that the ledger names, and none of their files that is not a job's."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def all(self, job: JobRecord) -> list[JobFile]:
        """Finished files by name, also of a job that is at work. Raises NotFound where they lie behind a URL."""
        folder = _folder(job)
        hashes = _recorded(folder) or {found.name: found.sha256 for found in self._ledger.attempts.artefacts(job.id)}
        names = hashes or dict.fromkeys(_walked(folder), "")
        found = []
        for name, digest in sorted(names.items()):
            path = _inside(folder, name)
            if path is not None and path.is_file():
                found.append(JobFile(name=name, num_bytes=path.stat().st_size, media_type=media_type(name), sha256=digest))
        return found

    def one(self, job: JobRecord, name: str, request: Request) -> Response:
        """The file, or the range of it that is asked for; 304 where the client has it. Raises NotFound."""
        check_stored("file's name", name)
        file = next((file for file in self.all(job) if file.name == name), None)
        if file is None:
            raise NotFound(f"Job {job.id} has no file {name[:100]!r}; GET /v1/jobs/{job.id}/files lists them.")
        path = _folder(job) / name
        found = path.stat()
        digest = file.sha256 or _sha256(str(path), found.st_mtime_ns, found.st_size)
        return _sent(path, f'"{digest}"', file.media_type, request, "private, max-age=0, must-revalidate")

    def look(self, job: JobRecord, request: Request) -> Response:
        """The newest picture of the job: of what is unfinished while it is at work; 204 without one. Raises NotFound."""
        for name in LOOKS:
            path = _folder(job) / name
            if path.is_file():
                found = path.stat()
                return _sent(path, f'"{found.st_mtime_ns:x}-{found.st_size:x}"', media_type(name), request, "no-cache")
        return Response(status_code=204, headers={"Cache-Control": "no-cache"})

    def zipped(self, job: JobRecord) -> Response:
        """Every file, as they are, in an archive that is made while it is sent. Raises NotFound."""
        files = self.all(job)
        if not files:
            raise NotFound(f"Job {job.id} has no files yet.")
        headers = {"Content-Disposition": f'attachment; filename="{_ascii(job.name)}.zip"'}
        return StreamingResponse(_archive(_folder(job), files), media_type="application/zip", headers=headers)


def media_type(name: str) -> str:
    """By the name's ending."""
    suffix = Path(name).suffix.lower()
    return MEDIA_TYPES.get(suffix) or mimetypes.guess_type(f"x{suffix}")[0] or "application/octet-stream"


def _folder(job: JobRecord) -> Path:
    if is_url(job.out):
        raise NotFound(f"The files of job {job.id} are at {job.out}, not on the orchestrator's disk; fetch them from there.")
    return Path(job.out)


def _recorded(folder: Path) -> Mapping[str, str]:
    """Name -> sha256 of what the run folder's manifest lists; empty without one, as of a table."""
    try:
        artefacts = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["artefacts"]
        return {str(name): str(entry["sha256"]) for name, entry in artefacts.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def _walked(folder: Path) -> Iterator[str]:
    """Names of files that a table has left, by folder; only of a folder that is a job's."""
    if not (folder / MANIFEST).is_file():
        return
    num = 0
    for place, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            if not name.startswith((".", *INTERNAL)) and (num := num + 1) <= MAX_WALKED:
                yield str((Path(place) / name).relative_to(folder))


def _inside(folder: Path, name: str) -> Path | None:
    """The path, unless it leads out of the folder."""
    path = folder / name
    return path if path.resolve().is_relative_to(folder.resolve()) else None


def _sent(path: Path, etag: str, kind: str, request: Request, caching: str) -> Response:
    headers = {"ETag": etag, "Cache-Control": caching, "Content-Security-Policy": "default-src 'none'; sandbox"}
    asked = [part.strip().removeprefix("W/") for part in request.headers.get("if-none-match", "").split(",")]
    if etag in asked or "*" in asked:
        return Response(status_code=304, headers=headers)
    disposition = "inline" if kind in SHOWN else "attachment"
    return _File(path, headers=headers, media_type=kind, filename=path.name, content_disposition_type=disposition)


class _File(FileResponse):
    """A file whose impossible ranges are refused in the shape of every error of ours."""

    @classmethod
    def _parse_range_header(cls, http_range: str, file_size: int) -> list[tuple[int, int]]:
        try:
            return super()._parse_range_header(http_range, file_size)
        except RangeNotSatisfiable:
            sentence = f"The range {http_range[:60]!r} lies outside the file, which has {file_size:,} bytes."
            raise HTTPException(416, sentence, {"Content-Range": f"bytes */{file_size}"}) from None
        except MalformedRangeHeader as error:
            raise HTTPException(400, f"The range {http_range[:60]!r} is none ({error.content}).") from None


@lru_cache(maxsize=HASHES)
def _sha256(path: str, modified_ns: int, num_bytes: int) -> str:
    """Of a file that nobody has hashed; computed again when it changes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Pipe:
    """A file that cannot go back: what zipfile writes is taken out part by part."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def flush(self) -> None: ...

    def take(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)


def _archive(folder: Path, files: list[JobFile]) -> Iterator[bytes]:
    """Stored, not compressed: pictures, meshes and shards are compressed already."""
    pipe: Any = _Pipe()  # which zipfile takes for a stream, as it cannot tell its place
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for file in files:
            with (folder / file.name).open("rb") as source, archive.open(file.name, "w", force_zip64=True) as target:
                while part := source.read(PART_BYTES):
                    target.write(part)
                    yield pipe.take()
    yield pipe.take()


def _ascii(name: str) -> str:
    return "".join(letter if letter.isascii() and (letter.isalnum() or letter in "-_.") else "-" for letter in name)
