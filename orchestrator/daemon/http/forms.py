"""What clients send, as JSON. Nothing here is trusted: what a job may be is decided by its spec, in `making`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "AgainForm",
    "ChangesForm",
    "ExportForm",
    "ImagesForm",
    "JobForm",
    "LoginForm",
    "PromptForm",
    "TableForm",
    "TextTo3DForm",
]

Seed = Annotated[int, Field(ge=0, le=2**63 - 1, description="Where all randomness comes from.")]
Settings = Annotated[
    dict[str, Any],
    Field(
        description='What \'dreamkiln settings\' lists, by dotted names: {"fit.num_steps": 200, "field": "hash_grid"}.',
        examples=[{"fit.num_steps": 200}],
    ),
]
Upload = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="The id of an upload, which is its sha256.")]
Name = Annotated[
    str,
    Field(min_length=1, max_length=1000, description="A name inside your output folder; of the owner also a path."),
]


class Form(BaseModel):
    """No field is ignored."""

    model_config = ConfigDict(extra="forbid")


class JobForm(Form):
    """What every kind of job may be told."""

    out: Name | None = None
    priority: int = Field(0, ge=-1000, le=1000, description="Larger goes first.")
    paused: bool = Field(False, description="Queue it without starting it.")


class PromptForm(JobForm):
    """What draws, and how."""

    seed: Seed = 0
    prior: str | None = Field(None, max_length=2000, description="One of GET /v1/priors.")
    strict: bool = Field(False, description="The same to the last bit whatever else the prior is asked meanwhile; slower.")
    preset: Literal["draft", "default", "fine"] | None = None
    negative_prompt: str | None = Field(None, max_length=2000, description="What to keep away from.")
    guidance_scale: float | None = Field(None, description="s of uncond + s (cond - uncond).")
    num_steps: int | None = Field(None, description="Sampler steps; of a 3D job steps of the fit.")
    settings: Settings = {}


class TextTo3DForm(PromptForm):
    """A sentence to a mesh."""

    prompt: str = Field(max_length=2000, examples=["a red mushroom with a white stem"])
    formats: list[str] | None = Field(None, max_length=7, description="Among glb, gltf, obj, ply, stl, 3mf, usdz.")


class ImagesForm(PromptForm):
    """A sentence to pictures; image i is drawn from seed + i."""

    prompt: str = Field(max_length=2000, examples=["a red mushroom with a white stem"])
    num_images: int | None = Field(None, ge=1, le=1_000_000)
    sampler: str | None = Field(None, max_length=100)
    init_image: Upload | None = None
    mask: Upload | None = None
    strength: float | None = Field(None, ge=0, le=1, description="How far from the initial image.")


class TableForm(PromptForm):
    """A table of prompts to one picture a row."""

    table: Upload
    prompt_column: str = Field("prompt", max_length=200)
    shard_size: int | None = Field(None, ge=1, le=100_000)
    output_format: Literal["png", "webdataset", "parquet"] | None = None
    num_workers: int = Field(4, ge=1, le=1024)


class ExportForm(JobForm):
    """A finished 3D job to other files, without a prior."""

    job: int = Field(ge=1, le=2**63 - 1, description="The finished 3D job.")
    formats: list[str] | None = Field(None, max_length=7)
    settings: Settings = {}


class AgainForm(JobForm):
    """The same job with changes."""

    prompt: str | None = Field(None, max_length=2000)
    seed: Seed | None = None
    settings: Settings = {}


class ChangesForm(Form):
    """What may change in a job that is there."""

    priority: int = Field(ge=-1000, le=1000)


class LoginForm(Form):
    """A token for a cookie."""

    token: str = Field(max_length=1000)
