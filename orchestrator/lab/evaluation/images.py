"""R-Precision of a set of pictures, read from run folders or drawn for the purpose."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from diffusion.text.image_text import ImageTextModel
from jobs.events import Progress
from nerf3d.toybox.heldout import held_out_prompts
from orchestrator.exports.png_metadata import write_png
from orchestrator.host.progress_display import Display, SilentDisplay
from orchestrator.lab.evaluation import r_precision
from orchestrator.lab.evaluation.captions import CaptionPool, caption_pool, held_out, taught_prompts
from orchestrator.lab.evaluation.image_sets import Picture, as_tensor, draw_pictures, read_pictures
from orchestrator.lab.evaluation.judge import judge_of
from orchestrator.lab.evaluation.mesh_views import photograph_truth, scattered
from orchestrator.lab.evaluation.picture import enlarge, labelled_sheet, ranked_tile
from orchestrator.lab.evaluation.r_precision import RPrecision
from orchestrator.lab.evaluation.report import TRUE_OBJECTS, ImageScore, ImagesReport, Ranked, Setting
from orchestrator.lab.evaluation.settings import EvaluationSettings
from orchestrator.prior import local
from orchestrator.runtimes.base import resolve_device

__all__ = ["evaluate_images", "score_images"]

TILE_SIZE = 96
NUM_COLUMNS = 8


def evaluate_images(
    runs: Sequence[Path],
    settings: EvaluationSettings | None = None,
    *,
    display: Display | None = None,
    keep: Path | None = None,
) -> tuple[ImagesReport, np.ndarray]:
    """The report on the pictures of some run folders and its page of pictures (H, W, 3) uint8.

    Without runs, `settings.num_prompts` pictures are drawn here, one a prompt, and kept as PNG files in `keep`.

    Raises:
        InputError: a run folder, the prior or the judge cannot be used.
        PriorFailed: the prior stopped answering.
    """
    settings, display = settings or EvaluationSettings(), display or SilentDisplay()
    judge = judge_of(settings)
    if runs:
        pictures = [picture for run in runs for picture in read_pictures(run)]
        return score_images(pictures, judge, num_captions=settings.num_captions)
    display.event(Progress(stage="start", step=0, total=1))
    prior = local.load_prior(settings.prior, resolve_device(settings.device))
    info = prior.info()
    display.event(Progress(stage="start", step=1, total=1))
    prompts = (held_out_prompts if settings.held_out else taught_prompts)(settings.num_prompts, settings.seed)
    pictures = []
    for chunk in draw_pictures(prior, prompts, source=settings.prior, seed=settings.seed):
        for picture in chunk:
            if keep is not None:
                seed = str(settings.seed + len(pictures))
                metadata = {"prompt": picture.prompt, "seed": seed, "prior_hash": info.weights_hash}
                write_png(picture.pixels, keep / f"{len(pictures):09d}.png", metadata)
            pictures.append(picture)
        display.event(Progress(stage="draw", step=len(pictures), total=len(prompts)))
    return score_images(pictures, judge, num_captions=settings.num_captions, prior=info.name, prior_hash=info.weights_hash)


def score_images(
    pictures: Sequence[Picture], judge: ImageTextModel, *, num_captions: int, prior: str = "", prior_hash: str = ""
) -> tuple[ImagesReport, np.ndarray]:
    """Ranks every picture's prompt among a pool of captions; see `evaluate_images`."""
    pool = caption_pool([picture.prompt for picture in pictures], num_captions=num_captions)
    embedded = judge.embed_images(as_tensor(pictures, judge.image_size))
    captions = judge.embed_texts(pool.captions)
    found = r_precision.retrieve(embedded, captions, torch.tensor(pool.truths))
    items = tuple(
        ImageScore(name=picture.name, prompt=picture.prompt, held_out=held_out(picture.prompt), judged=judged)
        for picture, judged in zip(pictures, Ranked.rows(found, pool), strict=True)
    )
    precision = r_precision.by_teaching(found, pool, [item.held_out for item in items], name="all")
    report = ImagesReport(
        setting=Setting.of(judge, pool, prior=prior, prior_hash=prior_hash),
        precision=precision | _true_objects(pictures, judge, captions, pool),
        items=items,
    )
    tiles = [
        ranked_tile([enlarge(picture.pixels, TILE_SIZE)], item.prompt, item.judged.rank, item.judged.taken_for)
        for picture, item in zip(pictures, items, strict=True)
    ]
    return report, labelled_sheet(tiles, num_columns=NUM_COLUMNS)


def _true_objects(
    pictures: Sequence[Picture], judge: ImageTextModel, captions: torch.Tensor, pool: CaptionPool
) -> dict[str, RPrecision]:
    """The judge's own ceiling: one rendering of each true object, as far as the prompts are the toybox's."""
    cameras = scattered(len(pictures))
    views = [photograph_truth(p.prompt, cameras[n], size=judge.image_size) for n, p in enumerate(pictures)]
    rows = [number for number, view in enumerate(views) if view is not None]
    if not rows:
        return {}
    embedded = judge.embed_images(torch.cat([view for view in views if view is not None]))
    truths = [pool.truths[row] for row in rows]
    found = r_precision.retrieve(embedded, captions, torch.tensor(truths))
    return {TRUE_OBJECTS: r_precision.summarise(found, pool, truths)}
