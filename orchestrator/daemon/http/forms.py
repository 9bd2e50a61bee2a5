"""What clients send, as JSON. Nothing here is trusted: what a job may be is decided by its spec, in `making`."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from diffusion.samplers import SAMPLERS
from jobs.specs import BEST_METRIC, CLIP_METRIC, MESH_FORMATS, MESH_METRICS
from jobs.words.prompts import check_prompt

__all__ = [
    "MAX_NUMBER",
    "NEGATIVE_PROMPT",
    "SAFE",
    "AgainForm",
    "BestOfForm",
    "Body",
    "ChangesForm",
    "ExportForm",
    "Formats",
    "Guidance",
    "ImagesForm",
    "JobForm",
    "LoginForm",
    "NegativePrompt",
    "Prompt",
    "PromptForm",
    "Seed",
    "TableForm",
    "TextTo3DForm",
]

_CONTROLS = r"\u0000-\u001f\u007f-\u009f"
SAFE = rf"^[^{_CONTROLS}\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]*$"
"""What `jobs.words.safe_text.check_stored` lets pass, as a pattern."""
_SPOKEN = r"[^\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f]*"
_SENTENCE = rf"{_SPOKEN}[\p{{L}}\p{{N}}]{_SPOKEN}"
"""What `check_prompt` lets pass: no control characters, and a letter or a digit somewhere."""
MAX_NUMBER = 2**63 - 1024
"""The largest that a database counts with and that the schema, which holds floats, can say."""
MAX_SEED = 2**63 - 2**20
"""So that the last of a million pictures has one too."""


def _sentence(value: Any) -> Any:
    """In our own words where it cannot be one. Raises InputError."""
    if isinstance(value, str):
        check_prompt(value)
    return value


def _negative(value: Any) -> Any:
    if isinstance(value, str):
        check_prompt(value, name="negative prompt", allow_empty=True)
    return value


Seed = Annotated[int, Field(ge=0, le=MAX_SEED, description="Where all randomness comes from.")]
Prompt = Annotated[str, Field(min_length=1, max_length=2000, pattern=f"^{_SENTENCE}$"), BeforeValidator(_sentence)]
NEGATIVE_PROMPT = f"^({_SENTENCE})?$"
NegativePrompt = Annotated[str, Field(max_length=2000, pattern=NEGATIVE_PROMPT), BeforeValidator(_negative)]
Guidance = Annotated[float, Field(ge=-100, le=1000, description="s of uncond + s (cond - uncond).")]
WRITABLE = tuple(one for one in MESH_FORMATS if one != "usdz" or importlib.util.find_spec("pxr"))
if TYPE_CHECKING:
    Formats = list[str]
else:
    Formats = Annotated[list[Literal[WRITABLE]], Field(min_length=1, max_length=len(MESH_FORMATS))]
Prior = Annotated[str, Field(min_length=1, max_length=2000, pattern=SAFE, description="One of GET /v1/priors.")]
Settings = Annotated[
    dict[str, Any],
    Field(
        description='What \'dreamkiln settings\' lists, by dotted names: {"fit.num_steps": 200, "field": "hash_grid"}.',
        examples=[{"fit.num_steps": 200}],
    ),
]
ExportSettings = Annotated[dict[str, Any], Field(description="Those of mesh and export.", examples=[{"mesh.max_faces": 5000}])]
Upload = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="The id of an upload, which is its sha256.")]


def _name(most: int) -> Any:
    """The schema of a run folder's name of at most so many characters, or of a path."""
    return Field(
        min_length=1,
        max_length=1000,
        description="A name inside your output folder; of the owner also a path.",
        json_schema_extra={"pattern": rf"^([A-Za-z0-9][A-Za-z0-9._-]{{0,{most - 1}}}|/{SAFE[1:-1]})$"},
    )


class Body(BaseModel):
    """No value is taken for one of another type, but 7.0 is 7, as in JSON's schemas."""

    model_config = ConfigDict(strict=True)

    @model_validator(mode="before")
    @classmethod
    def _with_whole_numbers(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {name: int(value) if isinstance(value, float) and value.is_integer() else value for name, value in given.items()}


class Form(Body):
    """No field is ignored."""

    model_config = ConfigDict(extra="forbid")


class JobForm(Form):
    """What every kind of job may be told."""

    out: Annotated[str, _name(100)] | None = None
    priority: int = Field(0, ge=-1000, le=1000, description="Larger goes first.")
    paused: bool = Field(False, description="Queue it without starting it.")


class PromptForm(JobForm):
    """What draws, and how."""

    seed: Seed = 0
    prior: Prior | None = None
    strict: bool = Field(False, description="The same to the last bit whatever else the prior is asked meanwhile; slower.")
    preset: Literal["draft", "default", "fine"] | None = None
    negative_prompt: NegativePrompt | None = Field(None, description="What to keep away from.")
    guidance_scale: Guidance | None = None
    num_steps: Annotated[int, Field(ge=1, le=1000)] | None = Field(None, description="Sampler steps.")
    settings: Settings = {}


class TextTo3DForm(PromptForm):
    """A sentence to a mesh."""

    prompt: Prompt = Field(examples=["a red mushroom with a white stem"])
    num_steps: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(None, description="Steps of the fit.")
    formats: Formats | None = None


class TextureForm(PromptForm):
    """A mesh to the same mesh painted as a sentence says."""

    prompt: Prompt = Field(examples=["a red mushroom with a white stem"])
    mesh: Upload | Annotated[int, Field(ge=1, le=MAX_NUMBER)] = Field(
        description="The id of an upload (GLB or PLY), or the number of a finished job with a GLB."
    )
    up: Literal["y", "z"] | None = Field(None, description="The file's upward axis; null: z for PLY, y for GLB.")
    num_steps: Annotated[int, Field(ge=1, le=100_000)] | None = Field(None, description="Steps of the fit of the colours.")
    formats: Formats | None = None


class BestOfForm(TextTo3DForm):
    """A sentence to several meshes, of which the one with the best figure is kept as the winner."""

    out: Annotated[str, _name(75)] | None = None
    """Each seed's folder has `-seed-` and its number behind it."""
    num_seeds: int = Field(ge=2, le=1000, description="From `seed` on.")
    metric: Literal[(*MESH_METRICS, CLIP_METRIC)] | None = Field(  # type: ignore[valid-type]
        BEST_METRIC, description="Whose largest value wins; null: the first to finish, and the others are cancelled."
    )


class ImagesForm(PromptForm):
    """A sentence to pictures; image i is drawn from seed + i."""

    model_config = ConfigDict(
        json_schema_extra={
            "allOf": [
                {
                    "if": {"required": [name], "properties": {name: {"not": {"type": "null"}}}},
                    "then": {"required": ["init_image"], "properties": {"init_image": {"type": "string"}}},
                }
                for name in ("mask", "strength")
            ]
        }
    )

    prompt: Prompt = Field(examples=["a red mushroom with a white stem"])
    num_images: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    sampler: Literal[tuple(SAMPLERS)] | None = None  # type: ignore[valid-type]
    init_image: Upload | None = None
    mask: Upload | None = None
    strength: float | None = Field(None, ge=0, le=1, description="How far from the initial image.")


class TableForm(PromptForm):
    """A table of prompts to one picture a row."""

    table: Upload
    prompt_column: str = Field("prompt", min_length=1, max_length=200, pattern=SAFE)
    shard_size: Annotated[int, Field(ge=1, le=100_000)] | None = None
    output_format: Literal["png", "webdataset", "parquet"] | None = None
    num_workers: int = Field(4, ge=1, le=1024)
    phash: bool = Field(False, description="A hash that near-duplicates share, beside each picture.")
    min_clip_score: float | None = Field(None, ge=-1, le=1, description="Below it: is_kept false; with the setting prior.clip.")


class ExportForm(JobForm):
    """A finished 3D job to other files, without a prior."""

    job: int = Field(ge=1, le=MAX_NUMBER, description="The finished 3D job.")
    formats: Formats | None = None
    settings: ExportSettings = {}


class AgainForm(JobForm):
    """The same job with changes."""

    prompt: Prompt | None = None
    seed: Seed | None = None
    settings: Settings = {}


class ChangesForm(Form):
    """What may change in a job that is there."""

    priority: int = Field(ge=-1000, le=1000)


class LoginForm(Form):
    """A token for a cookie."""

    token: str = Field(max_length=1000)
