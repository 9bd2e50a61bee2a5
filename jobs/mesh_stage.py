"""The last stages of a 3D job: the field is cut into a mesh, which is all of an export, and the prior says what it sees."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from jobs.errors import CollapsedError, InputError
from jobs.events import Checkpoint, Event, Message, Progress
from jobs.extensions import is_extension, own_field
from jobs.opinion import Opinion, clip_score, opinion_of
from jobs.prior_client import PriorClient, PriorInfo
from jobs.specs import CLIP_METRIC, TextTo3DSpec
from nerf3d.errors import StateMismatch
from nerf3d.fields import FIELDS, Field, FieldConfig
from nerf3d.fit import saved_field
from nerf3d.mesh import Mesh, MeshConfig, MeshError, Quality, extract_mesh

__all__ = ["TextTo3DResult", "cut", "export_mesh", "judge", "reaches_edge"]

REACH = 0.97
"""Share of the field's radius. A surface that is cut off there comes out at 0.98 to 1.02 of it."""


@dataclass(frozen=True)
class TextTo3DResult:
    """The mesh, the field it was cut from (None once it has crossed a process border), and seconds per stage.

    reaches_bounds: the surface comes to the edge of the field's sphere, where it may be cut off.
    quality: what was measured on the mesh as it was cut.
    opinion: of the prior on the object as it was fitted, if it was asked.
    turned_degrees: by how much the mesh was then turned, so that it faces the front.
    scores: by the name of the figure, what `jobs.opinion.score_of_views` said while the fit was under way, and a CLIP of the
        mesh.
    """

    mesh: Mesh
    field: Field | None
    seconds: dict[str, float]
    reaches_bounds: bool
    quality: Quality | None = None
    opinion: Opinion | None = None
    turned_degrees: float = 0.0
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def judged(self, opinion: Opinion, config: MeshConfig) -> TextTo3DResult:
        """With an opinion, and turned to the front where it is clear about another one and the settings allow it."""
        turned = -opinion.facing_degrees % 360 if config.face_front else 0.0
        mesh = self.mesh.turned(turned) if turned else self.mesh
        return replace(self, mesh=mesh, opinion=opinion, turned_degrees=turned)

    def quality_flags(self) -> list[str]:
        """Names of everything that makes the mesh no plain success; empty for a good one."""
        flags = list(self.quality.flags()) if self.quality else []
        others = {"cut off": self.reaches_bounds, "two faces": self.opinion is not None and self.opinion.has_two_faces}
        return [*flags, *(name for name, is_so in others.items() if is_so)]

    def metrics(self) -> dict[str, float | int | bool | list[str]]:
        """Figures of the mesh for the manifest, and its quality flags."""
        mesh, quality = self.mesh, self.quality
        measured = ("fill", "thin_share", "num_self_intersections")
        return {
            "num_vertices": len(mesh.vertices),
            "num_faces": len(mesh.faces),
            "num_components": mesh.num_components,
            "is_watertight": mesh.is_watertight,
            "volume": round(mesh.volume, 6),
            "reaches_bounds": self.reaches_bounds,
            **({name: getattr(quality, name) for name in measured} if quality else {}),
            "turned_degrees": self.turned_degrees,
            **(self.opinion.metrics() if self.opinion else {}),
            **self.scores,
            "quality_flags": self.quality_flags(),
        }


def cut(
    field: Field, spec: TextTo3DSpec, seconds: dict[str, float], *, device: torch.device | str, clock: Callable[[], float]
) -> Generator[Event, None, TextTo3DResult]:
    """The stage `mesh`: cuts the field of a job, says what the user should know, and adds to `seconds`.

    Raises:
        CollapsedError: the field has no surface.
    """
    begin = clock()
    yield Progress(stage="mesh", step=0, total=1)
    try:
        mesh = extract_mesh(field, spec.mesh, device=device)
    except MeshError as error:
        raise CollapsedError(str(error), kind=error.kind, step=spec.fit.num_steps, job=spec.name) from error
    for remark in mesh.notes:
        yield Message(text=remark.text, level="warning" if remark.is_warning else "info")
    quality = Quality.of(mesh)
    for name, sentence in quality.flags().items():
        if name != "open":  # which the mesh's own notes say
            yield Message(text=sentence, level="warning")
    yield Progress(stage="mesh", step=1, total=1)
    seconds["mesh"] = clock() - begin
    result = TextTo3DResult(mesh, field, seconds, reaches_edge(mesh, spec.fit.field), quality)
    if result.reaches_bounds:
        text = "The object reaches the edge of the scene and may be cut off there; try another seed."
        yield Message(text=text, level="warning")
    return result


def judge(
    result: TextTo3DResult, prior: PriorClient, info: PriorInfo, spec: TextTo3DSpec, *, clock: Callable[[], float]
) -> Generator[Event, None, TextTo3DResult]:
    """The stage `judge`: the prior says what it takes the mesh for, and the mesh is turned to the front.

    Raises:
        PriorFailed: the prior stopped answering. InputError: the CLIP that the spec names cannot be read.
    """
    begin = clock()
    yield Progress(stage="judge", step=0, total=1)
    opinion = opinion_of(result.mesh, prior, info, spec.prompt, seed=spec.seed, strict=spec.strict)
    if spec.clip:
        score = clip_score(result.mesh, spec.clip, spec.prompt)
        result = replace(result, scores={**result.scores, CLIP_METRIC: round(score, 4)})
    result = result.judged(opinion, spec.mesh)
    facing = f"azimuth {opinion.facing_degrees:.0f} degrees"
    if result.turned_degrees:
        yield Message(text=f"The object faced {facing} and was turned to the front; mesh.face_front=false leaves it.")
    elif opinion.facing_degrees:
        yield Message(text=f"The object seems to face {facing}.", level="warning")
    if opinion.has_two_faces:
        yield Message(text="The object's back looks like a front (two faces); try another seed.", level="warning")
    yield Progress(stage="judge", step=1, total=1)
    result.seconds["judge"] = clock() - begin
    return result


def export_mesh(
    spec: TextTo3DSpec,
    checkpoint: Checkpoint,
    *,
    opinion: Opinion | None = None,
    device: torch.device | str = "cpu",
    clock: Callable[[], float] = time.monotonic,
) -> Generator[Event, None, TextTo3DResult]:
    """A recipe without a prior and without a fit: the mesh of a saved field, cut as spec.mesh says.

    Args:
        opinion: the prior's when the field was fitted, by which the mesh is turned again.

    Raises:
        InputError: the checkpoint does not hold the field of this spec.
        CollapsedError: the field has no surface.
    """
    kind = spec.fit.field.kind
    if is_extension(kind):
        FIELDS[kind] = own_field(kind)
    tensors = {name: torch.from_numpy(array) for name, array in checkpoint.tensors.items()}
    try:
        field = saved_field(spec.fit.field, tensors, seed=spec.seed).to(device)
    except StateMismatch as error:
        raise InputError(str(error)) from error
    result = yield from cut(field, spec, {}, device=device, clock=clock)
    return result if opinion is None else result.judged(opinion, spec.mesh)


def reaches_edge(mesh: Mesh, field: FieldConfig) -> bool:
    """Whether an extracted mesh, still in the scene's metres, comes to the edge of the sphere outside which no density is."""
    return bool(np.linalg.norm(mesh.vertices, axis=1).max() > REACH * field.radius)
