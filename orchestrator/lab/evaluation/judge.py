"""The judge: a CLIP of its own architecture and seed that lies beside a prior and never conditions or guides it.

A prior must not grade itself: distillation climbs its own text tower's preferences, right or wrong (the point of Park et al.
2021 and Dream Fields, section 4.1, who score with other towers than those that guided).
"""

from __future__ import annotations

from pathlib import Path

from diffusion.checkpoints.errors import PriorError
from diffusion.checkpoints.source import Source
from diffusion.prior import TOYBOX
from diffusion.text.image_text import ImageTextModel
from jobs.errors import InputError
from orchestrator.lab.evaluation.settings import EvaluationSettings
from orchestrator.runtimes.base import resolve_device

__all__ = ["judge_folder", "judge_of", "load_judge"]


def judge_folder(prior: str) -> Path:
    """Where a prior ("toybox" or a folder, with or without options) keeps its judge."""
    location = Source.parse(prior).location
    return (TOYBOX if location == "toybox" else Path(location)) / "judge"


def judge_of(settings: EvaluationSettings) -> ImageTextModel:
    """The judge that the settings name. Raises as `load_judge` does."""
    folder = Path(settings.judge) if settings.judge else judge_folder(settings.prior)
    return load_judge(folder, device=resolve_device(settings.device))


def load_judge(folder: Path, *, device: str = "cpu") -> ImageTextModel:
    """Reads a judge: what training wrote beside a prior, or any of open_clip's models.

    Raises:
        InputError: the folder or one of its files is missing or damaged.
    """
    try:
        return ImageTextModel.read(folder, device=device)
    except PriorError as error:
        raise InputError(f"There is no judge to score with: {error}, or choose another with judge=FOLDER.") from error
