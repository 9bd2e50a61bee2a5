"""An orchestrator on another machine: asked with a named token, sent what a job needs, and what it made fetched from it."""

from __future__ import annotations

import hashlib
import http.client
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from jobs import codec
from jobs.batch_images import BatchImagesSpec
from jobs.errors import DreamKilnError, InputError
from jobs.specs import TextTo3DSpec
from jobs.texture.spec import TextureSpec
from orchestrator.client.client import Client, NotRunningError, answer_of
from orchestrator.client.prepared_job import PreparedJob
from orchestrator.host.atomic import TEMPORARY_PREFIX, clear_output_errors
from orchestrator.host.state_folder import Endpoint
from orchestrator.run.edit_pictures import INIT_IMAGE, MASK
from orchestrator.run.given_mesh import WHOLE, GivenMesh
from orchestrator.settings.overrides import parse

__all__ = ["RemoteClient"]

PART_BYTES = 1024**2
UPLOAD_SECONDS = 600.0
TYPES = {".csv": "text/csv", ".txt": "text/plain", ".jsonl": "application/x-ndjson", ".png": "image/png"}
ADAPTERS = ("loras", "embeddings")
APART = ("kind", "prompt", "seed", "prior", "strict", *ADAPTERS, "init_image", "mask", "strength", "table", "prompt_column")
SHAPING = ("shard_size", "output_format", "phash")
CLIP = ("clip", "clip_hash", "min_clip_score")


class RemoteClient(Client):
    """Talks to the orchestrator at a URL, as `Client` does to one of this machine.

    Args:
        url: http:// or https://, perhaps with a path that a proxy puts before ours. token: of 'dreamkiln token create'.

    Raises:
        InputError: the URL is none, or there is no token. NotRunningError: at any call, nobody answers.
    """

    def __init__(self, url: str, token: str | None, *, timeout_seconds: float = 60.0) -> None:
        address = urlsplit(url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise InputError(f"The orchestrator's address is {url!r}, but http://HOST:PORT or https://HOST was expected.")
        if not token:
            raise InputError(f"The orchestrator at {url} needs a token of 'dreamkiln token create'; set DREAMKILN_TOKEN.")
        self.endpoint = Endpoint(url=url.rstrip("/"), pid=0, ledger="")
        self._timeout, self._token, self._is_ours = timeout_seconds, token, True

    @property
    def where(self) -> str:
        """Its address."""
        return self.endpoint.url

    def reconnect(self) -> None:
        """It stays where it is."""

    def request_of(self, job: PreparedJob, **fields: Any) -> dict[str, Any]:
        """The call that queues a job there, with what it needs uploaded. Its `out` stays ours: the results come back to it."""
        spec, settings = job.spec, {f"export.{name}": value for name, value in codec.to_plain(job.settings.export).items()}
        settings["runtime.preview_every"] = job.settings.runtime.preview_every
        for option, files in (("--lora", spec.loras), ("--embedding", spec.embeddings)):
            if files:
                raise InputError(f"{option} names a file of this machine, which the orchestrator at --url does not see.")
        if getattr(spec, "clip", ""):
            raise InputError("--clip names a folder of this machine, which the orchestrator at --url does not see.")
        form: dict[str, Any] = {"seed": spec.seed, "strict": spec.strict, "settings": settings}
        form |= {"priority": fields.get("priority", 0), "paused": fields.get("is_paused", False)}
        if spec.prior != TextTo3DSpec.prior:
            form["prior"] = spec.prior
        plain = spec.to_json()
        if isinstance(spec, TextureSpec):
            form |= {"mesh": self.upload(_alone(job.mesh)), "up": spec.up}
            tables = {group: plain[group] for group in ("texture", "distillation")}
            settings |= {f"{group}.{name}": value for group, table in tables.items() for name, value in table.items()}
            path = "/v1/textures"
        elif isinstance(spec, TextTo3DSpec):
            field = plain["fit"].pop("field")
            tables = {"fit": plain["fit"], "field": field, "distillation": plain["distillation"], "mesh": plain["mesh"]}
            settings |= {f"{group}.{name}": value for group, table in tables.items() for name, value in table.items()}
            path = "/v1/text-to-3d"
        else:
            own = {name: value for name, value in plain.items() if name not in (*APART, *SHAPING, *CLIP) and value is not None}
            settings |= {f"images.{name}": value for name, value in own.items()}
            path = self._fill(form, job, plain)
        if path != "/v1/tables":
            form["prompt"] = plain["prompt"]
        return {"path": path, "form": form, "key": fields.get("idempotency_key")}

    def _fill(self, form: dict[str, Any], job: PreparedJob, plain: Mapping[str, Any]) -> str:
        """What belongs to pictures and tables; returns the call's path."""
        if isinstance(job.spec, BatchImagesSpec):
            assert job.settings.batch is not None
            table = Path(job.settings.batch.prompts)
            if not table.is_file():
                raise InputError(f"The table {table} is not one file here, so it cannot be sent; give one file of prompts.")
            form |= {name: plain[name] for name in ("prompt_column", *SHAPING)}
            form |= {"table": self.upload(table), "num_workers": job.settings.batch.num_workers}
            return "/v1/tables"
        if job.pictures is not None:
            import tempfile

            with tempfile.TemporaryDirectory() as folder:
                job.pictures.write(Path(folder))
                form["init_image"] = self.upload(Path(folder) / INIT_IMAGE)
                if job.pictures.mask is not None:
                    form["mask"] = self.upload(Path(folder) / MASK)
            if plain["strength"] is not None:
                form["strength"] = plain["strength"]
        return "/v1/images"

    def submit(self, jobs: Sequence[Mapping[str, Any]], group: Mapping[str, Any] | None = None) -> Any:
        """Queue what `request_of` has made: one by one, or seeds of one sentence as a group."""
        if group is not None:
            first = jobs[0]
            form = {**first["form"], "num_seeds": len(jobs), "metric": group["metric"]}
            key = first["key"] and first["key"].rpartition(" seed ")[0]
            return self._queue({"path": "/v1/best-of", "form": form, "key": key})
        made = [self._queue(job) for job in jobs]
        return {"jobs": [{name: job[name] for name in ("id", "is_new", "out")} for job in made], "group": None}

    def export_of(self, job: int, settings: Mapping[str, str], **fields: Any) -> dict[str, Any]:
        """The call that queues an export of a finished job there; see `request_of`."""
        given = {name: parse(value) for name, value in settings.items()}
        form = {"job": job, "settings": given, "priority": fields.get("priority", 0)}
        return {"path": "/v1/exports", "form": {**form, "paused": fields.get("is_paused", False)}, "key": fields.get("key")}

    def _queue(self, job: Mapping[str, Any]) -> Any:
        headers = {"Authorization": f"Bearer {self._token}", **({"Idempotency-Key": job["key"]} if job["key"] else {})}
        return answer_of(*self._ask("POST", job["path"], job["form"], headers))

    def upload(self, path: Path) -> str:
        """Send a file; returns its id there. Raises InputError for one that is not taken."""
        kind = TYPES.get(path.suffix.lower(), "application/octet-stream")
        headers = {"Content-Type": kind, "Content-Length": str(path.stat().st_size), "Authorization": f"Bearer {self._token}"}
        connection = self._connection(UPLOAD_SECONDS)
        try:
            with path.open("rb") as file:
                connection.request("POST", self._path(f"/v1/uploads?name={quote(path.name)}"), file, headers)
            response = connection.getresponse()
            return str(answer_of(response.status, response.read())["id"])
        except (OSError, http.client.HTTPException) as error:
            raise NotRunningError(f"{path} could not be sent to {self.where} ({error or type(error).__name__}).") from error
        finally:
            connection.close()

    def fetch(self, job: int, folder: Path) -> list[str]:
        """Bring a job's files into a folder; those that are there already are not fetched again. Returns their names.

        Raises:
            DreamKilnError: a file that is not what the orchestrator says. OutputError: it cannot be written.
        """
        names = []
        for file in self.get(f"/v1/jobs/{job}/files")["files"]:
            path = folder / file["name"]
            if not path.resolve().is_relative_to(folder.resolve()):
                raise DreamKilnError(f"{self.where} names the file {file['name']!r}, which lies outside the run folder.")
            names.append(file["name"])
            with clear_output_errors(path, option="--out"):
                if not (file["sha256"] and path.is_file() and _sha256(path) == file["sha256"]):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    self._download(f"/v1/jobs/{job}/files/{quote(file['name'])}", path)
        return names

    def _download(self, path: str, target: Path) -> None:
        connection = self._connection(UPLOAD_SECONDS)
        temporary = target.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(6)}")
        try:
            connection.request("GET", self._path(path), headers={"Authorization": f"Bearer {self._token}"})
            response = connection.getresponse()
            if response.status != 200:
                answer_of(response.status, response.read())
            with temporary.open("wb") as file:
                while part := response.read(PART_BYTES):
                    file.write(part)
            expected = (response.headers["etag"] or "").strip('"')
            if _sha256(temporary) != expected:
                raise DreamKilnError(f"{target.name} came from {self.where} with other bytes than it says; repeat the command.")
            os.replace(temporary, target)
        except http.client.HTTPException as error:
            raise NotRunningError(f"{target.name} could not be fetched from {self.where} ({error}).") from error
        finally:
            connection.close()
            temporary.unlink(missing_ok=True)


def _alone(mesh: GivenMesh | None) -> Path:
    """The mesh's file, if it is whole without others. Raises InputError."""
    assert mesh is not None
    if mesh.path.suffix.lower() not in WHOLE:
        raise InputError(f"{mesh.path} may need files beside it, and one file is sent; give a {' or '.join(WHOLE)} file.")
    return mesh.path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
