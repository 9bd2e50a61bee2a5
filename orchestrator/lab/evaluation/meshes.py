"""R-Precision of meshes from their views, coloured and as white clay, and their geometry against the true objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffusion.text.image_text import ImageTextModel
from jobs.errors import InputError
from jobs.events import Progress
from orchestrator.exports.contact_sheet import to_uint8
from orchestrator.host.progress_display import Display, SilentDisplay
from orchestrator.lab.evaluation import r_precision
from orchestrator.lab.evaluation.captions import CaptionPool, caption_pool, clay_pool, held_out
from orchestrator.lab.evaluation.geometry import GeometryScore, compare, surface_of, true_mesh
from orchestrator.lab.evaluation.judge import judge_of
from orchestrator.lab.evaluation.mesh_sets import MadeMesh, differences, read_mesh
from orchestrator.lab.evaluation.mesh_views import SHADINGS, orbit, photograph, photograph_truth
from orchestrator.lab.evaluation.picture import Tile, enlarge, labelled_sheet, ranked_tile
from orchestrator.lab.evaluation.proportions import nearest_proportions
from orchestrator.lab.evaluation.r_precision import RPrecision
from orchestrator.lab.evaluation.report import TRUE_OBJECTS, MeshesReport, MeshScore, Ranked, Setting, geometry_means
from orchestrator.lab.evaluation.settings import EvaluationSettings

__all__ = ["evaluate_meshes", "score_meshes"]

TILE_SIZE = 96
NUM_COLUMNS = 3


@dataclass(frozen=True, eq=False)
class _Measured:
    """One mesh: its views (V, 3, H, W) by shading, and where the true object is known its views and the geometry."""

    views: dict[str, Tensor]
    true_views: dict[str, Tensor] | None
    geometry: GeometryScore | None
    nearest: GeometryScore | None
    true_components: int | None


def evaluate_meshes(
    runs: Sequence[Path], settings: EvaluationSettings | None = None, *, display: Display | None = None
) -> tuple[MeshesReport, np.ndarray]:
    """The report on the meshes of some run folders and its page of pictures (H, W, 3) uint8.

    Raises:
        InputError: no runs, or a run folder or the judge cannot be used.
    """
    if not runs:
        raise InputError("There are no meshes to score; give run folders of 'dreamkiln text-to-3d'.")
    settings, display = settings or EvaluationSettings(), display or SilentDisplay()
    judge = judge_of(settings)
    meshes = [read_mesh(run) for run in runs]
    return score_meshes(meshes, judge, num_captions=settings.num_captions, num_views=settings.num_views, display=display)


def score_meshes(
    meshes: Sequence[MadeMesh], judge: ImageTextModel, *, num_captions: int, num_views: int, display: Display | None = None
) -> tuple[MeshesReport, np.ndarray]:
    """Ranks every mesh's prompt from its views and measures it against the true object; see `evaluate_meshes`."""
    display = display or SilentDisplay()
    measured = []
    for number, made in enumerate(meshes):
        display.event(Progress(stage="score", step=number, total=len(meshes)))
        measured.append(_measure(made, num_views=num_views, size=judge.image_size))
    display.event(Progress(stage="score", step=len(meshes), total=len(meshes)))

    prompts = [made.prompt for made in meshes]
    pool = caption_pool(prompts, num_captions=num_captions)
    pools = {"coloured": pool, "textureless": clay_pool(prompts)}
    flags = [held_out(prompt) for prompt in prompts]
    ranked: dict[str, list[Ranked]] = {}
    precision: dict[str, RPrecision] = {}
    for shading in SHADINGS:
        captions = judge.embed_texts(pools[shading].captions)
        views = judge.embed_images(torch.cat([m.views[shading] for m in measured]))
        ranked[shading], figures = _rank(views.view(len(meshes), num_views, -1), captions, pools[shading], flags, name=shading)
        true_views = [None if m.true_views is None else m.true_views[shading] for m in measured]
        name = TRUE_OBJECTS if shading == "coloured" else f"{TRUE_OBJECTS}, {shading}"
        precision |= figures | _true_objects(true_views, judge, captions, pools[shading], name=name)
    told_apart = differences(meshes)
    items = tuple(
        MeshScore(
            name=made.name,
            prompt=made.prompt,
            held_out=flags[n],
            coloured=ranked["coloured"][n],
            textureless=ranked["textureless"][n],
            geometry=measured[n].geometry,
            nearest=measured[n].nearest,
            differs_in=told_apart[n],
            num_faces=len(made.mesh.faces),
            num_components=made.mesh.num_components,
            true_components=measured[n].true_components,
            is_watertight=made.mesh.is_watertight,
            seconds=made.seconds,
        )
        for n, made in enumerate(meshes)
    )
    report = MeshesReport(
        setting=Setting.of(judge, pool, num_views=num_views),
        precision=precision,
        geometry=geometry_means(items),
        nearest=geometry_means(items, "nearest"),
        items=items,
    )
    tiles = [_tile(item, m) for item, m in zip(items, measured, strict=True)]
    return report, labelled_sheet(tiles, num_columns=NUM_COLUMNS)


def _measure(made: MadeMesh, *, num_views: int, size: int) -> _Measured:
    truth = true_mesh(made.prompt)
    nearest = None if truth is None else surface_of(nearest_proportions(made.mesh, made.prompt))
    true_views = {shading: photograph_truth(made.prompt, orbit(num_views), size=size, shading=shading) for shading in SHADINGS}
    return _Measured(
        {shading: photograph(made.mesh, num_views=num_views, size=size, shading=shading) for shading in SHADINGS},
        {shading: views for shading, views in true_views.items() if views is not None} or None,
        None if truth is None else compare(made.mesh, truth, num_views=num_views),
        None if nearest is None else compare(made.mesh, nearest, num_views=num_views),
        None if truth is None else truth.num_components,
    )


def _rank(
    views_OVE: Tensor, captions: Tensor, pool: CaptionPool, flags: Sequence[bool | None], *, name: str
) -> tuple[list[Ranked], dict[str, RPrecision]]:
    """Each object by its mean embedding and each view alone."""
    num_objects, num_views, _ = views_OVE.shape
    truths = torch.tensor(pool.truths)
    each = truths.repeat_interleave(num_views)
    alone = r_precision.retrieve(views_OVE.flatten(0, 1), captions, each)
    whole = r_precision.retrieve(r_precision.mean_embedding(views_OVE), captions, truths)
    precision = r_precision.by_teaching(whole, pool, flags, name=name)
    precision[f"{name}, views"] = r_precision.summarise(alone, pool, each.tolist())
    return Ranked.rows(whole, pool, alone.ranks.view(num_objects, num_views).tolist()), precision


def _true_objects(
    views: Sequence[Tensor | None], judge: ImageTextModel, captions: Tensor, pool: CaptionPool, *, name: str
) -> dict[str, RPrecision]:
    """The judge's own ceiling: the true objects from the same sides."""
    rows = [number for number, view in enumerate(views) if view is not None]
    if not rows:
        return {}
    known = torch.stack([view for view in views if view is not None])
    embedded = judge.embed_images(known.flatten(0, 1)).view(len(rows), known.shape[1], -1)
    truths = [pool.truths[row] for row in rows]
    found = r_precision.retrieve(r_precision.mean_embedding(embedded), captions, torch.tensor(truths))
    return {name: r_precision.summarise(found, pool, truths)}


def _tile(item: MeshScore, measured: _Measured) -> Tile:
    """Front left and back right as the judge saw them, the front left as clay, and the true object."""
    coloured, textureless = measured.views["coloured"], measured.views["textureless"]
    num_views = len(coloured)
    front, back = round(num_views / 8) % num_views, round(num_views * 5 / 8) % num_views
    truth = textureless[back] if measured.true_views is None else measured.true_views["coloured"][front]
    shown = torch.stack([coloured[front], coloured[back], textureless[front], truth])
    figures = [f"clay {item.textureless.rank}"]
    if item.geometry is not None:
        figures.append(f"silhouette {item.geometry.silhouette_iou:.2f}")
    images = [enlarge(image, TILE_SIZE) for image in to_uint8(shown)]
    return ranked_tile(images, item.prompt, item.coloured.rank, item.coloured.taken_for, *figures)
