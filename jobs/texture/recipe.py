"""Score distillation moves the colours of a surface that stays as it is.

Stages: `prepare` (ask the prior who it is), `paint`, `judge` (what the prior takes the mesh for, before and after).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace

import numpy as np
import torch

from jobs.errors import CollapsedError
from jobs.events import Event, Progress
from jobs.extensions import own_form
from jobs.fit_figures import GuideGradients
from jobs.opinion import cameras_of_opinion, lit_views, score_of_views
from jobs.pace import Pace
from jobs.prior_client import PriorClient, with_adapters
from jobs.text_to_3d import PriorGuide, in_the_priors_groups
from jobs.texture.spec import TextureSpec
from jobs.words.vocabulary import warn_of_prompts, warn_of_unknown_words
from nerf3d.errors import FitCollapsed
from nerf3d.fit import FitConfig
from nerf3d.mesh import Mesh
from nerf3d.surface import Paint, paint, painted_mesh

__all__ = ["SCENE_RADIUS", "TextureResult", "texture"]

SCENE_RADIUS = 0.75
"""Of the sphere around the mesh while it is painted: as large as the objects that priors were shown."""


@dataclass(frozen=True)
class TextureResult:
    """The painted mesh, where and as large as it was given; seconds per stage; the prior's score before and after."""

    mesh: Mesh
    seconds: dict[str, float]
    score_before: float
    score: float

    def metrics(self) -> dict[str, float | int | bool]:
        """Figures for the manifest."""
        return {
            "num_vertices": len(self.mesh.vertices),
            "num_faces": len(self.mesh.faces),
            "is_watertight": self.mesh.is_watertight,
            "prior_score_before": round(self.score_before, 4),
            "prior_score": round(self.score, 4),
        }


def texture(
    spec: TextureSpec,
    mesh: Mesh,
    prior: PriorClient,
    *,
    device: torch.device | str = "cpu",
    clock: Callable[[], float] = time.monotonic,
) -> Generator[Event, None, TextureResult]:
    """Paint a mesh, whatever its size and place, in the frame of a scene: +Y up, front +Z.

    Raises:
        CollapsedError: the fit of the colours came to nothing.
        PriorFailed: the prior stopped answering.
        JobFailed: the views of a step make no whole groups of the prior's.
    """
    seconds: dict[str, float] = {}
    begin = clock()
    yield Progress(stage="prepare", step=0, total=1)
    prior = with_adapters(prior, spec.adapters)
    info = prior.info()
    yield from warn_of_unknown_words(prior, spec.prompt)
    yield from warn_of_prompts(prior, spec.prompt, spec.distillation.negative_prompt)
    placed = _in_scene(mesh)
    # Lit from the first step on: the shape is known, and the prior's pictures are lit.
    scenes = FitConfig(
        num_steps=spec.texture.num_steps, num_views=spec.texture.num_views, guide_size=info.image_size, lit_from=0.0
    )
    scenes = in_the_priors_groups(scenes, info, job=spec.name)
    yield Progress(stage="prepare", step=1, total=1)
    seconds["prepare"] = clock() - begin

    begin = clock()
    form, gradients = own_form(spec.distillation.form), GuideGradients(info.schedule.num_train_timesteps)
    guide = PriorGuide(prior, info, spec.prompt, spec.seed, spec.distillation, form, spec.strict, None, gradients)
    painted = yield from _paint(spec, placed, guide, scenes, device, clock)
    whole = painted_mesh(placed, painted.cpu(), spec.texture)
    seconds["paint"] = clock() - begin

    begin = clock()
    yield Progress(stage="judge", step=0, total=1)
    before = placed if spec.texture.keep_texture else replace(placed, texture=None, colours=np.full_like(placed.colours, 0.5))
    cameras, size = cameras_of_opinion(), info.image_size
    ask = functools.partial(score_of_views, seed=spec.seed, strict=spec.strict)
    scores = [ask(lit_views(one, size), cameras, prior, info, spec.prompt) for one in (before, whole)]
    yield Progress(stage="judge", step=1, total=1)
    seconds["judge"] = clock() - begin
    given = replace(whole, vertices=mesh.vertices, normals=mesh.normals)
    return TextureResult(given, seconds, *scores)


def _paint(
    spec: TextureSpec, mesh: Mesh, guide: PriorGuide, scenes: FitConfig, device: torch.device | str, clock: Callable[[], float]
) -> Generator[Event, None, Paint]:
    yield Progress(stage="paint", step=0, total=spec.texture.num_steps)
    pace = Pace(clock=clock)
    steps = paint(mesh, guide, spec.texture, scenes=scenes, seed=spec.seed, device=device)
    try:
        while True:
            progress = next(steps)
            left = pace.lap(left=progress.num_steps - progress.step)
            figures = {} if guide.gradients is None else guide.gradients.take()
            yield Progress(
                stage="paint",
                step=progress.step,
                total=progress.num_steps,
                metrics={**progress.metrics, **figures},
                seconds_left=left,
            )
    except StopIteration as finished:
        return finished.value
    except FitCollapsed as error:
        raise CollapsedError(str(error), kind=error.kind, step=error.step, job=spec.name) from error


def _in_scene(mesh: Mesh) -> Mesh:
    """Centred on its bounding box and scaled into a sphere of SCENE_RADIUS."""
    low, high = mesh.bounds.astype(np.float64)
    offset = mesh.vertices - (low + high) / 2
    scale = SCENE_RADIUS / max(float(np.linalg.norm(offset, axis=1).max()), 1e-12)
    return replace(mesh, vertices=offset * scale)
