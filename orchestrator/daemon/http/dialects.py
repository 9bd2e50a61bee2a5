"""Two foreign tongues for the same jobs: OpenAI's images API, and the server of Hunyuan3D that Blender add-ons call.

Both wait for pictures or a mesh, or ask for them later, and both are answered out of the queue: what they make is a job like
any other, with the same bytes for the same seed.
"""

from __future__ import annotations

import asyncio
import base64
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from fastapi.exceptions import RequestValidationError
from PIL import Image
from pydantic import BeforeValidator, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from jobs.batch_images.cells import read_size
from jobs.errors import InputError, JobFailed, NotFound
from jobs.ledger import JobRecord, Ledger, Submission
from jobs.states import FailureKind, State
from orchestrator.daemon.http import answers
from orchestrator.daemon.http.files import media_type
from orchestrator.daemon.http.forms import SAFE, Body, Guidance, ImagesForm, NegativePrompt, Prompt, Seed, TextTo3DForm
from orchestrator.daemon.http.guard import PICTURES
from orchestrator.daemon.http.making import Maker
from orchestrator.daemon.http.tokens import Principal
from orchestrator.daemon.http.uploads import Uploads
from orchestrator.prior.card import prior_card

__all__ = ["Dialects"]

MAX_PICTURES = 16
SECONDS_BETWEEN_LOOKS = 0.25
MAX_WAIT_SECONDS = 3600.0
OPENAI_STATUSES = (400, 401, 403, 404, 405, 408, 409, 413, 415, 421, 422, 429, 500, 503)
MESH_TYPES = ("model/gltf-binary", "model/obj", "model/ply", "model/stl")


class OpenAIForm(Body):
    """A body of POST /v1/images/generations. seed, steps, guidance_scale and negative_prompt are extensions of ours."""

    model_config = ConfigDict(extra="ignore")

    prompt: Prompt = Field(examples=["a blue chair"])
    model: Annotated[str, Field(max_length=2000, pattern=SAFE)] | None = None
    n: int = Field(1, ge=1, le=MAX_PICTURES)
    size: Annotated[str, Field(max_length=20)] | None = Field(None, description="auto, or what the prior draws: 512x768.")
    response_format: Literal["url", "b64_json"] | None = None
    seed: Seed = 0
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    guidance_scale: Guidance | None = None
    negative_prompt: NegativePrompt | None = None
    strength: Annotated[float, Field(ge=0, le=1)] | None = None


def _no_picture(value: Any) -> Any:
    if value is not None:
        raise InputError("Only sentences can be made into meshes here, no pictures; give 'text' and leave 'image' out.")
    return value


class HunyuanForm(Body):
    """A body of POST /generate and /send: `text` alone, because no prior here reads pictures."""

    model_config = ConfigDict(extra="ignore")

    text: Prompt
    image: Annotated[None, BeforeValidator(_no_picture)] = None
    seed: Seed = 1234
    texture: bool = True
    num_inference_steps: Annotated[int, Field(ge=1, le=100_000)] | None = Field(None, description="Steps of the fit.")
    face_count: Annotated[int, Field(ge=100, le=10_000_000)] | None = None
    type: Literal["glb", "obj", "ply", "stl"] = "glb"


def _caller(request: Request) -> Principal:
    found: Principal = request.scope["principal"]
    return found


Who = Annotated[Principal, Depends(_caller)]


def _of_a_form(properties: dict[str, Any]) -> dict[str, Any]:
    """Without null, which no part of a form is."""
    found = {}
    for name, schema in properties.items():
        options = [one for one in schema.get("anyOf", ()) if one != {"type": "null"}]
        found[name] = {key: value for key, value in schema.items() if key not in ("anyOf", "default")} | dict(*options)
    return found


_PICTURE = {"type": "string", "format": "binary", "contentMediaType": "image/png"}
_EDIT: dict[str, Any] = {
    "schema": {
        "type": "object",
        "required": ["image", "prompt"],
        "properties": {"image": _PICTURE, "mask": _PICTURE, **_of_a_form(OpenAIForm.model_json_schema()["properties"])},
    },
    "encoding": {"image": {"contentType": ", ".join(PICTURES)}, "mask": {"contentType": ", ".join(PICTURES)}},
}


class Dialects:
    """The calls of both.

    Args:
        submit: queues a submission and returns its job.
    """

    def __init__(
        self, ledger: Ledger, maker: Maker, uploads: Uploads, submit: Callable[[Submission], JobRecord], priors: tuple[str, ...]
    ) -> None:
        self._ledger, self._maker, self._uploads, self._submit, self._priors = ledger, maker, uploads, submit, priors

    def routes(self) -> APIRouter:
        """Where each is found."""
        api = APIRouter(tags=["dialects"])
        faults = {status: {"model": answers.OpenAIProblem, "description": "In OpenAI's shape."} for status in OPENAI_STATUSES}
        openai: dict[str, Any] = {"response_model": None, "responses": faults}
        api.add_api_route("/v1/images/generations", self.generations, methods=["POST"], **openai)
        edit = {"requestBody": {"required": True, "content": {"multipart/form-data": _EDIT}}}
        api.add_api_route("/v1/images/edits", self.edits, methods=["POST"], openapi_extra=edit, **openai)
        api.add_api_route("/v1/models", self.models, methods=["GET"], **openai)
        meshes: dict[str, Any] = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in MESH_TYPES}
        made: dict[int | str, dict[str, Any]] = {200: {"content": meshes, "description": "The mesh."}}
        api.add_api_route(
            "/generate", self.generate, methods=["POST"], response_model=None, response_class=Response, responses=made
        )
        api.add_api_route("/send", self.send, methods=["POST"], response_model=None)
        api.add_api_route("/status/{uid}", self.uid_status, methods=["GET"], response_model=None)
        return api

    # OpenAI's images

    def models(self) -> dict[str, Any]:
        """The priors as models."""
        data = [{"id": source, "object": "model", "created": 0, "owned_by": "dreamkiln"} for source in self._priors]
        return {"object": "list", "data": data}

    async def generations(self, request: Request, form: OpenAIForm, who: Who) -> JSONResponse:
        """Pictures of a prompt, once they are drawn."""
        return await self._draw(request, form, who, {})

    async def edits(self, request: Request, who: Who) -> JSONResponse:
        """Pictures from a picture, with or without a mask: multipart, as OpenAI's client sends it."""
        pictures: dict[str, str] = {}
        async with request.form(max_files=4, max_fields=30, max_part_size=1024**2) as form:
            plain: dict[str, Any] = {name: value for name, value in form.items() if isinstance(value, str)}
            for ours, names in {"init_image": ("image", "image[]"), "mask": ("mask",)}.items():
                for name in names:
                    if not isinstance(file := form.get(name), (str, type(None))):
                        data = await file.read()
                        if ours == "mask":
                            data = await asyncio.to_thread(_white_where_transparent, data)
                        pictures[ours] = await self._kept(who, f"{name.removesuffix('[]')}.png", data)
        if "init_image" not in pictures:
            raise InputError("There is no picture to edit; send one as the part 'image'.")
        try:
            asked = OpenAIForm.model_validate(plain, strict=False)  # a form's parts are all text
        except ValidationError as error:
            raise RequestValidationError([{**one, "loc": ("body", *one["loc"])} for one in error.errors()]) from error
        return await self._draw(request, asked, who, pictures)

    async def _kept(self, who: Principal, name: str, data: bytes) -> str:
        async def parts() -> Any:
            yield data

        return (await self._uploads.take(who, name, parts())).id

    async def _draw(self, request: Request, asked: OpenAIForm, who: Principal, pictures: dict[str, str]) -> JSONResponse:
        prior = None if asked.model in (None, "", *_FOREIGN) else asked.model
        form = ImagesForm.model_validate(
            {
                "prompt": asked.prompt,
                "num_images": asked.n,
                "prior": prior,
                "seed": asked.seed,
                "num_steps": asked.steps,
                "guidance_scale": asked.guidance_scale,
                "negative_prompt": asked.negative_prompt,
                "strength": asked.strength if pictures else None,
                "settings": _size_settings(asked.size, prior or "toybox"),
                **pictures,
            }
        )
        job = await asyncio.to_thread(lambda: self._submit(self._maker.images(form, who, None)))
        job = await self._end_of(job.id, request)
        names = [f"{index:09d}.png" for index in range(asked.n)]
        if asked.response_format == "url":
            base = f"{request.url.scheme}://{request.headers['host']}"
            data = [{"url": f"{base}/v1/jobs/{job.id}/files/{name}"} for name in names]
        else:
            read = await asyncio.to_thread(lambda: [_bytes_of(job, name) for name in names])
            data = [{"b64_json": base64.b64encode(one).decode()} for one in read]
        return JSONResponse({"created": int(time.time()), "data": data, "output_format": "png", "job": job.id})

    # Hunyuan3D's server

    async def generate(self, request: Request, form: HunyuanForm, who: Who) -> Any:
        """A mesh of a sentence, as bytes, once it is made."""
        job = await self._end_of((await self._queued(form, who)).id, request)
        data = await asyncio.to_thread(_bytes_of, job, f"mesh.{form.type}")
        return Response(data, media_type=media_type(f"mesh.{form.type}"))

    async def send(self, form: HunyuanForm, who: Who) -> dict[str, str]:
        """Queue it; /status/UID has the mesh when it is made."""
        return {"uid": str((await self._queued(form, who)).id)}

    def uid_status(self, uid: int) -> dict[str, Any]:
        """processing, completed with the mesh in base64, or error."""
        job = self._ledger.jobs.get(uid)
        if job.state == State.SUCCEEDED:
            formats = job.spec.get("formats") or ["glb"]
            data = _bytes_of(job, f"mesh.{formats[0]}")
            return {"status": "completed", "model_base64": base64.b64encode(data).decode()}
        if job.is_terminal:
            return {"status": "error", "message": job.reason}
        return {"status": "processing", "message": f"{job.stage} {job.step} of {job.total}" if job.stage else job.state}

    async def _queued(self, form: HunyuanForm, who: Principal) -> JobRecord:
        settings: dict[str, Any] = {} if form.texture else {"mesh.texture_size": 0}
        if form.face_count is not None:
            settings["mesh.max_faces"] = form.face_count
        asked = TextTo3DForm.model_validate(
            {
                "prompt": form.text,
                "seed": form.seed,
                "formats": [form.type],
                "num_steps": form.num_inference_steps,
                "settings": settings,
            }
        )
        return await asyncio.to_thread(lambda: self._submit(self._maker.text_to_3d(asked, who, None)))

    async def _end_of(self, job_id: int, request: Request) -> JobRecord:
        """The job once it has succeeded. One that nobody waits for any more goes on. Raises JobFailed, HTTPException."""
        begin = time.monotonic()
        while True:
            job = await asyncio.to_thread(self._ledger.jobs.get, job_id)
            if job.state == State.SUCCEEDED:
                return job
            if job.is_terminal:
                kind = InputError if job.failure_kind == FailureKind.BAD_INPUT else JobFailed
                raise kind(f"Job {job_id} {job.state}: {job.reason}")
            waited = time.monotonic() - begin
            if waited > MAX_WAIT_SECONDS or await request.is_disconnected():
                raise HTTPException(503, f"Job {job_id} is not finished yet; it goes on, see /v1/jobs/{job_id}.")
            await asyncio.sleep(min(2.0, max(SECONDS_BETWEEN_LOOKS, waited / 10)))


_FOREIGN = ("dall-e-2", "dall-e-3", "gpt-image-1", "dreamkiln")
"""Names that programs send unless told otherwise; they mean the prior that is there."""


def _size_settings(size: str | None, prior: str) -> dict[str, int]:
    """None is the prior's own; one of few words draws no other, as it was taught. Raises InputError."""
    card = prior_card(prior)
    side = card["image_size"]
    if size in (None, "auto") or (side and size == f"{side}x{side}"):
        return {}
    if card["vocabulary"]:
        raise InputError(f"The size is {size!r}, but the prior {prior!r} draws {side}x{side}; leave it out, or say so.")
    width, height = read_size(size)
    return {"images.width": width, "images.height": height}


def _bytes_of(job: JobRecord, name: str) -> bytes:
    """Of a finished job's file. Raises NotFound."""
    try:
        return (Path(job.out) / name).read_bytes()
    except OSError as error:
        raise NotFound(f"Job {job.id} has no file {name} ({error.strerror}).") from error


def _white_where_transparent(data: bytes) -> bytes:
    """OpenAI's masks are transparent where the picture changes; ours are white there."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            if "A" not in picture.getbands() or picture.size[0] * picture.size[1] > 64_000_000:
                return data
            alpha = picture.getchannel("A").point(lambda value: 255 - value)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"The mask could not be read as a picture ({error}); give a PNG file.") from error
    buffer = io.BytesIO()
    alpha.save(buffer, "PNG")
    return buffer.getvalue()
