"""Settings that say where and how a job runs and what files it leaves; what shapes its result is in `jobs.specs`."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from typing import Literal

from jobs.errors import InputError
from jobs.specs import MESH_FORMATS

__all__ = ["ExportSettings", "PriorSettings", "RuntimeSettings"]

RuntimeKind = Literal["ray", "inline"]


@dataclass(frozen=True, kw_only=True)
class PriorSettings:
    """Who judges and draws.

    Args:
        source: "toybox", or what `diffusion.checkpoints.source` reads: a folder, a file or a hub name, with options.
        strict: results are the same to the last bit whatever else the prior is asked meanwhile; slower.
        clip: folder of a CLIP that scores finished meshes beside the prior (`clip_score`): of open_clip's
            (open_clip_config.json and its weights, as the hub has them) or one that was trained here; "": none.
        loras: FILE or FILE:SCALE, put into the prior's networks for this job alone; other jobs share the same prior without.
        embeddings: FILE or FILE:WORD, textual inversions whose words the job's prompts may use, likewise.
    """

    source: str = "toybox"
    strict: bool = False
    clip: str = ""
    loras: tuple[str, ...] = ()
    embeddings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RuntimeSettings:
    """How a job is run on this machine.

    Args:
        kind: "ray" (a prior actor and a job actor) or "inline" (everything in this process).
        address: of a running Ray cluster, HOST:PORT or "auto"; "" starts a Ray on this machine that ends with the command.
        device: "auto" (CUDA where there is one), or a torch device such as "cpu" or "cuda:0".
        num_threads: torch threads of each actor; 0 takes every core this process may use. The fit and the prior take
            turns, so both may use all cores.
        checkpoint_every: fit steps between two resume points.
        preview_every: sampler steps, of a 3D job fit steps, between two versions of preview.png, which shows the unfinished
            images or the unfinished object from four sides and goes when they are finished; 0 writes none.
        score_every: fit steps between two scores of the unfinished object by the prior, which progress.png shows; 0 for none.
        tensorboard: whether a fit also leaves TensorBoard's events, in the run folder's `tensorboard`.
    """

    kind: RuntimeKind = "ray"
    address: str = ""
    device: str = "auto"
    num_threads: int = 0
    checkpoint_every: int = 25
    preview_every: int = 0
    score_every: int = 50
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.num_threads <= 4096:
            raise InputError(f"runtime.num_threads is {self.num_threads}; give 0 (all cores) or 1 to 4096 threads.")
        if self.checkpoint_every < 1:
            raise InputError(f"runtime.checkpoint_every is {self.checkpoint_every}; give at least 1 step.")
        if self.preview_every < 0:
            raise InputError(f"runtime.preview_every is {self.preview_every}; give 0 (no previews) or a number of steps.")
        if self.score_every < 0:
            raise InputError(f"runtime.score_every is {self.score_every}; give 0 (no scores) or a number of steps.")
        if self.tensorboard and importlib.util.find_spec("tensorboard") is None:
            raise InputError(
                "runtime.tensorboard=true needs the package tensorboard, which is not installed; install it with: pip install "
                "'dreamkiln[tensorboard]'."
            )


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """Which files a text-to-3D job leaves beside its manifest.

    Args:
        formats: mesh files, among glb, gltf, obj, ply, stl, 3mf and usdz.
        size_metres: longest side of the object in files for viewers and engines.
        print_millimetres: longest side of the object in files for printers, stl and 3mf.
        origin: "centre" (the middle of the object's box lies at the origin) or "base" (the box stands on the ground over it).
        preview_size: pixels per view of preview.png.
        turntable_frames: pictures of one turn; 0 writes no turntable.
        turntable_size: pixels per side, even.
    """

    formats: tuple[str, ...] = field(default=("glb",))
    size_metres: float = 1.0
    print_millimetres: float = 100.0
    origin: Literal["centre", "base"] = "centre"
    preview_size: int = 256
    turntable_frames: int = 60
    turntable_size: int = 320

    def __post_init__(self) -> None:
        if not set(self.formats) <= set(MESH_FORMATS):
            unknown = ", ".join(sorted(set(self.formats) - set(MESH_FORMATS)))
            raise InputError(f"There is no mesh format {unknown}; choose among {', '.join(MESH_FORMATS)}.")
        if not 0 < self.size_metres <= 1e4:
            raise InputError(f"export.size_metres is {self.size_metres}; give a positive size in metres.")
        if not 0 < self.print_millimetres <= 1e6:
            raise InputError(f"export.print_millimetres is {self.print_millimetres}; give a positive size in millimetres.")
        if "usdz" in self.formats and importlib.util.find_spec("pxr") is None:
            raise InputError(
                "The format usdz needs the package usd-core, which is not installed; install it with: pip install "
                "'dreamkiln[usd]'."
            )
        if self.turntable_size % 2 or not 16 <= self.turntable_size <= 4096:
            raise InputError(f"export.turntable_size is {self.turntable_size}; give an even number of pixels, 16 to 4096.")
        if not 16 <= self.preview_size <= 4096:
            raise InputError(f"export.preview_size is {self.preview_size}; give 16 to 4096 pixels.")
        if not 0 <= self.turntable_frames <= 3600:
            raise InputError(f"export.turntable_frames is {self.turntable_frames}; give 0 (none) to 3600.")
