"""What a job is: frozen, validated, written as JSON and read back, and known by its fingerprint.

A spec holds what shapes the result and nothing else: not where the files go, nor on which machine it runs. Two specs
with one fingerprint give the same pictures and the same mesh (on one machine, with one prior; on CUDA up to rounding).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, get_args

from diffusion.checkpoints.errors import PriorError
from diffusion.checkpoints.lora_files import AdapterFile, Embedding, Lora
from diffusion.distillation import DistillationConfig
from diffusion.samplers import SAMPLERS, Spacing
from jobs import codec
from jobs.errors import InputError
from jobs.words.prompts import check_prompt, slug
from nerf3d.fit import FitConfig
from nerf3d.mesh import MeshConfig

__all__ = [
    "BEST_METRIC",
    "MESH_FORMATS",
    "MESH_METRICS",
    "ExportSpec",
    "ImagesSpec",
    "JobSpec",
    "PictureSettings",
    "PictureSpec",
    "Spec",
    "TextTo3DSpec",
    "find_embeddings",
    "find_loras",
]

MESH_FORMATS = ("glb", "gltf", "obj", "ply", "stl", "3mf", "usdz")
MESH_METRICS = (
    "num_vertices",
    "num_faces",
    "num_components",
    "is_watertight",
    "volume",
    "reaches_bounds",
    "fill",
    "thin_share",
    "num_self_intersections",
    "turned_degrees",
    "prior_score",
    "facing_degrees",
    "has_two_faces",
    "prior_score_25",
    "prior_score_50",
)
"""What a manifest says of a finished mesh."""

CLIP_METRIC = "clip_score"
"""Of a mesh that a CLIP was to score, too."""

BEST_METRIC = "prior_score"
"""By what the best of several seeds is chosen unless another metric is named: it needs no truth."""
MAX_SEED = 2**63 - 1
MAX_IMAGES = 1_000_000
MAX_SIDE = 16_384


class Spec:
    """What all kinds of job share."""

    kind: ClassVar[str]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, with the kind of job beside the fields."""
        return {"kind": self.kind, **codec.to_plain(self)}

    def fingerprint(self) -> str:
        """sha256 (hex) of everything that can change the result."""
        return codec.fingerprint(self)

    def identity(self) -> str:
        """sha256 (hex) of what the work that a folder keeps depends on: everything, unless a kind of job says otherwise."""
        return self.fingerprint()

    @property
    def title(self) -> str:
        """What the job is about, in words."""
        raise NotImplementedError

    @property
    def name(self) -> str:
        """A safe, readable, practically unique name: slug of the title and eight digits of the identity."""
        return f"{slug(self.title)}-{self.identity()[:8]}"


@dataclass(frozen=True, kw_only=True)
class TextTo3DSpec(Spec):
    """One sentence to one mesh.

    Args:
        prompt: the sentence, 1 to 2,000 characters.
        seed: every random number of the job follows from it; 0 to 2^63 - 1.
        prior: "toybox" or the folder of another prior.
        strict: on a CPU the mesh is the same to the last bit whatever else the shared prior is asked meanwhile, which costs
            speed. Otherwise a prior that serves several jobs at once shows in the last bits of its answers.
        recipe: the name of the recipe that the settings began with, for the manifest; like formats, it shapes nothing itself.
        formats: mesh files to write, among `MESH_FORMATS`; they do not change the mesh, so not the fingerprint either.
        clip: folder of a CLIP that scores the mesh, see `diffusion.text.image_text`; "": none. The mesh stays the same.
        loras: what is put into the prior's networks for this job, one after the other. embeddings: textual inversions, whose
            words its prompts may use.
        fit, distillation, mesh: the settings of the three packages that do the work.

    Raises:
        InputError: a value that is not allowed, named.
    """

    kind: ClassVar[str] = "text-to-3d"

    prompt: str
    seed: int = 0
    prior: str = "toybox"
    strict: bool = False
    recipe: str = field(default="toybox", metadata=codec.NOT_IN_FINGERPRINT)
    formats: tuple[str, ...] = field(default=("glb",), metadata=codec.NOT_IN_FINGERPRINT)
    clip: str = field(default="", metadata=codec.NOT_IN_FINGERPRINT)
    loras: tuple[Lora, ...] = field(default=(), metadata=codec.IN_FINGERPRINT_IF_SET)
    embeddings: tuple[Embedding, ...] = field(default=(), metadata=codec.IN_FINGERPRINT_IF_SET)
    fit: FitConfig = field(default_factory=FitConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", check_prompt(self.prompt))
        check_prompt(self.distillation.negative_prompt, name="negative prompt", allow_empty=True)
        object.__setattr__(self, "formats", check_formats(self.formats))
        check_seed(self.seed)

    @property
    def title(self) -> str:
        """The prompt."""
        return self.prompt

    @property
    def adapters(self) -> tuple[AdapterFile, ...]:
        """Its LoRAs, and after them its textual inversions."""
        return (*self.loras, *self.embeddings)

    def identity(self) -> str:
        """sha256 (hex) of everything but `mesh`: a finished fit can be cut in other ways and stays the same job."""
        return replace(self, mesh=MeshConfig()).fingerprint()


@dataclass(frozen=True, kw_only=True)
class PictureSettings:
    """How pictures are drawn: what one picture, many of one prompt and a table of prompts are all told.

    Args:
        seed: of the first picture; 0 to 2^63 - 1.
        prior: "toybox" or the folder of another prior.
        strict: each picture is the same to the last bit whatever else the shared prior is asked meanwhile, which costs speed.
        num_steps: sampler steps, 1 to 1,000. 20 of dpmpp_2m come as near to the exact flow as 30 of ddim.
        guidance_scale: s of uncond + s (cond - uncond).
        guidance_rescale: 0 (off) to 1.
        guidance_interval: timesteps from the first to the second are guided, the others only conditional.
        sampler: a name in `diffusion.samplers.SAMPLERS`.
        timestep_spacing: where along the schedule it calls the network; see `diffusion.samplers.timesteps_for`. None is the
            prior's own.
        negative_prompt: what the unconditional side is told instead of nothing.
        chunk_size: images that share a forward pass. Part of the fingerprint, because a batch's size shows in the last bit.
        strength: of the change to an initial image, 0 (none) to 1 (as if there were no picture). None is 0.6, or 1 with a
            mask.
        mask_feather: standard deviation of the blur of a mask's edge in the prior's pixels, 0 (hard) to 10.
        width, height: of a picture in pixels, 8 to 16,384; None is the prior's own, or of an edited picture what keeps its
            aspect.
        loras: what is put into the prior's networks for these pictures, one after the other. embeddings: textual inversions,
            whose words their prompts may use.

    Raises:
        InputError: a value that is not allowed, named.
    """

    seed: int = 0
    prior: str = "toybox"
    strict: bool = False
    num_steps: int = 20
    guidance_scale: float = 3.0
    guidance_rescale: float = 0.5
    guidance_interval: tuple[int, int] = (0, 1000)
    sampler: str = "dpmpp_2m"
    timestep_spacing: Spacing | None = None
    negative_prompt: str = ""
    chunk_size: int = 8
    strength: float | None = None
    mask_feather: float = 1.0
    width: int | None = None
    height: int | None = None
    loras: tuple[Lora, ...] = field(default=(), metadata=codec.IN_FINGERPRINT_IF_SET)
    embeddings: tuple[Embedding, ...] = field(default=(), metadata=codec.IN_FINGERPRINT_IF_SET)

    def __post_init__(self) -> None:
        check_prompt(self.negative_prompt, name="negative prompt", allow_empty=True)
        check_seed(self.seed)
        _check_range("num_steps", self.num_steps, 1, 1000)
        _check_range("guidance_scale", self.guidance_scale, -100, 1000)
        _check_range("guidance_rescale", self.guidance_rescale, 0, 1)
        _check_range("chunk_size", self.chunk_size, 1, 4096)
        if self.sampler not in SAMPLERS:
            hint = codec.near_matches(self.sampler, SAMPLERS)
            raise InputError(f"There is no sampler {self.sampler!r}{hint}; choose one of {', '.join(SAMPLERS)}.")
        _check_spacing(self.timestep_spacing)
        _check_interval("guidance_interval", self.guidance_interval, 0, 1000)
        _check_range("mask_feather", self.mask_feather, 0, 10)
        if self.strength is not None:
            _check_range("strength", self.strength, 0, 1)
        for name in ("width", "height"):
            if (side := getattr(self, name)) is not None:
                _check_range(name, side, 8, MAX_SIDE)

    @property
    def adapters(self) -> tuple[AdapterFile, ...]:
        """Its LoRAs, and after them its textual inversions."""
        return (*self.loras, *self.embeddings)


@dataclass(frozen=True, kw_only=True)
class PictureSpec(PictureSettings):
    """One picture, drawn from `seed`.

    Args:
        prompt: the sentence, 1 to 2,000 characters.
        init_image: sha256 of the pixels of a picture to draw anew instead of starting from noise alone; of a row of a table
            the path or URL in its cell. The pixels travel beside the spec (`jobs.images.EditSource`).
        mask: the same of its mask, white where it is repainted.

    Raises:
        InputError: a value that is not allowed, named.
    """

    prompt: str
    init_image: str | None = None
    mask: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", check_prompt(self.prompt))
        super().__post_init__()
        if self.init_image is None and self.mask is not None:
            raise InputError("There is a mask but no picture that it belongs to; give --init-image as well.")
        if self.init_image is not None and self.strength is None:
            object.__setattr__(self, "strength", 0.6 if self.mask is None else 1.0)


@dataclass(frozen=True, kw_only=True)
class ImagesSpec(PictureSpec, Spec):
    """N pictures of one prompt: a table of N equal rows, of which row i is drawn from seed + i.

    Args:
        num_images: 1 to a million.
        num_views: 0 for pictures without a camera. Otherwise so many neighbouring pictures are views of one object, evenly
            spaced around it, from a prior that takes cameras; object n is drawn from seed + n.
        azimuth_degrees, elevation_degrees: of the first view's camera, and of all views'.

    Raises:
        InputError: a value that is not allowed, named.
    """

    kind: ClassVar[str] = "images"

    num_images: int = 16
    num_views: int = 0
    azimuth_degrees: float = 0.0
    elevation_degrees: float = 15.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_range("num_images", self.num_images, 1, MAX_IMAGES)
        check_seed(self.seed + self.num_images - 1)
        _check_range("num_views", self.num_views, 0, 64)
        _check_range("azimuth_degrees", self.azimuth_degrees, -360, 360)
        _check_range("elevation_degrees", self.elevation_degrees, -80, 80)
        if self.num_views and self.num_images % self.num_views:
            raise InputError(
                f"{self.num_images} images make no whole objects of {self.num_views} views; give a multiple of "
                f"{self.num_views}."
            )
        if self.num_views and self.init_image is not None:
            raise InputError("A given picture cannot be drawn anew from several sides; leave out --views or --init-image.")

    @property
    def title(self) -> str:
        """The prompt."""
        return self.prompt

    def picture(self, index: int) -> PictureSpec:
        """Picture `index`, which is picture 0 of the seed that it has here; views of one object share its seed."""
        shared = {item.name: getattr(self, item.name) for item in fields(PictureSpec)}
        return PictureSpec(**shared | {"seed": self.seed + index // max(1, self.num_views)})

    def azimuth_of(self, index: int) -> float:
        """Degrees from the front of the camera that picture `index` is drawn from; of a job with `num_views`."""
        return (self.azimuth_degrees + index % self.num_views * 360 / self.num_views) % 360


@dataclass(frozen=True, kw_only=True)
class ExportSpec(Spec):
    """A finished 3D job cut and written again; it needs no prior.

    Args:
        run: full path of the finished job's run folder.
        settings: `mesh.…`, `export.…` and `runtime.…` that change, as they stand on a command line.

    Raises:
        InputError: a folder that is no full path.
    """

    kind: ClassVar[str] = "export"
    prior: ClassVar[str] = ""

    run: str
    settings: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not Path(self.run).is_absolute():
            raise InputError(f"The run folder {self.run!r} is not a full path; give one that begins with /.")

    @property
    def title(self) -> str:
        """Which run is exported."""
        return f"export {Path(self.run).name}"

    @property
    def name(self) -> str:
        """A safe, readable name: of the run folder and eight digits of the fingerprint."""
        return f"export-{slug(Path(self.run).name)}-{self.fingerprint()[:8]}"


JobSpec = TextTo3DSpec | ImagesSpec


def find_loras(texts: Sequence[str], folder: Path | None = None) -> tuple[Lora, ...]:
    """The LoRAs of FILE or FILE:SCALE, their files hashed.

    Args:
        folder: where relative paths begin; the working folder by default.

    Raises:
        InputError: one is missing, cannot be read, or its scale is none.
    """
    with _in_words_of_ours():
        return tuple(Lora.named(text, folder) for text in texts)


def find_embeddings(texts: Sequence[str], folder: Path | None = None) -> tuple[Embedding, ...]:
    """The textual inversions of FILE or FILE:WORD, their files hashed.

    Args:
        folder: where relative paths begin; the working folder by default.

    Raises:
        InputError: one is missing or cannot be read.
    """
    with _in_words_of_ours():
        return tuple(Embedding.named(text, folder) for text in texts)


@contextlib.contextmanager
def _in_words_of_ours() -> Iterator[None]:
    """Turns a PriorError into an InputError."""
    try:
        yield
    except PriorError as error:
        message = str(error).rstrip(".")
        raise InputError(f"{message[:1].upper()}{message[1:]}.") from error


def check_formats(formats: tuple[str, ...]) -> tuple[str, ...]:
    """Mesh formats without repetitions, in the order given. Raises InputError for none or an unknown one."""
    if isinstance(formats, str) or not formats:
        raise InputError(f"formats is {formats!r}, but a list with at least one of {', '.join(MESH_FORMATS)} was expected.")
    for name in formats:
        if name not in MESH_FORMATS:
            hint = codec.near_matches(name, MESH_FORMATS)
            raise InputError(f"There is no mesh format {name!r}{hint}; choose among {', '.join(MESH_FORMATS)}.")
    return tuple(dict.fromkeys(formats))


def _check_spacing(spacing: str | None) -> None:
    if spacing is not None and spacing not in get_args(Spacing):
        hint = codec.near_matches(spacing, get_args(Spacing))
        raise InputError(f"There is no timestep_spacing {spacing!r}{hint}; choose one of {', '.join(get_args(Spacing))}.")


def check_seed(seed: int) -> None:
    """Raises InputError for what is no whole number from 0 to 2^63 - 1."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
        raise InputError(f"The seed is {seed!r}, but a whole number from 0 to 2^63 - 1 was expected.")


def _check_interval(name: str, interval: tuple[int, int], low: int, high: int) -> None:
    if not low <= interval[0] <= interval[1] <= high:
        raise InputError(
            f"{name} is {list(interval)}, but two numbers from {low:,} to {high:,}, the smaller one first, are allowed."
        )


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InputError(f"{name} is {value:,}, but {low:,} to {high:,} is allowed.")
