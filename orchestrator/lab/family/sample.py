"""`dreamkiln sample model=DIR`: pictures, or points, from a trained model of the family."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion.models.base import Model, SampleRequest
from jobs.codec import near_matches
from jobs.errors import InputError
from jobs.events import Progress
from orchestrator.host.progress_display import Display
from orchestrator.lab.family.data import class_numbers
from orchestrator.lab.family.folder import CARD, Card, load_model, weights_hash
from orchestrator.lab.family.pictures import write_samples
from orchestrator.settings.overrides import diffusion_errors_are_input, parse, whole_number

SETTINGS = ("model", "sampler", "num_steps", "guidance_scale", "labels", "prompt", "num_samples", "seed")
NUM_SAMPLES = 16
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
CHUNK = {3: 16, 1: 4096}
"""Samples that are drawn together: pictures, points. The samples do not depend on it."""


def sample_family(settings: Mapping[str, str], out: Path, *, device: str, display: Display) -> Path:
    """Draws samples and writes them to `out`: a PNG, or for points also .csv.

    Args:
        settings: key=value texts; see `SETTINGS` and `options.NAME`.

    Raises:
        InputError: an unknown setting, sampler, option or label; more steps than the schedule has; a damaged model.
        JobFailed: the samples are not finite.
        OutputError: `out` cannot be written.
    """
    check_names(settings)
    if out.suffix.lower() not in (".png", ".csv"):
        raise InputError(f"--out is {str(out)!r}; give a file that ends in .png, or for points in .csv.")
    folder = Path(settings["model"])
    model, card = load_model(folder, device=device)
    request = build_request(settings, model, card)
    if out.suffix.lower() == ".csv" and len(model.shape) != 1:
        raise InputError(f"--out is {str(out)!r}, but {folder} draws pictures; give a file that ends in .png.")
    chunks, size = [], CHUNK[len(model.shape)]
    total = len(request.seeds)
    with display, diffusion_errors_are_input():
        display.event(Progress(stage="draw", step=0, total=total))
        for start in range(0, total, size):
            chunks.append(model.sample(_part(request, slice(start, start + size))))
            display.event(Progress(stage="draw", step=min(start + size, total), total=total))
    samples = torch.cat(chunks)
    if out.suffix.lower() == ".csv":
        return _write_csv(samples, out)
    return write_samples(samples, out, metadata=_metadata(settings, request, card, folder))


def build_request(settings: Mapping[str, str], model: Model, card: Card) -> SampleRequest:
    """The request that the command line describes; labels and the prompt are repeated as often as there are samples.

    Raises:
        InputError: a value of the wrong kind, or a condition that the model does not take.
    """
    num_samples = whole_number(settings, "num_samples", NUM_SAMPLES, least=1) or NUM_SAMPLES
    seed = whole_number(settings, "seed", 0, least=0) or 0
    labels = prompts = None
    for name, condition in (("labels", "labels"), ("prompt", "captions")):
        if name in settings and model.condition != condition and not (name == "labels" and "options.classifier" in settings):
            told = {"labels": "labels=…", "captions": "prompt=…", None: "neither labels nor a prompt"}[model.condition]
            raise InputError(f"{name}={settings[name]} was given, but this model takes {told}.")
    if "labels" in settings:
        given = class_numbers(settings["labels"], card.classes)
        labels = tuple(given[i % len(given)] for i in range(num_samples))
    if "prompt" in settings:
        prompts = (settings["prompt"],) * num_samples
    return SampleRequest(
        seeds=tuple(range(seed, seed + num_samples)),
        sampler=settings.get("sampler"),
        num_steps=whole_number(settings, "num_steps", None, least=1),
        labels=labels,
        prompts=prompts,
        guidance_scale=_number(settings, "guidance_scale", 1.0),
        options={name: _option(name, text, device=str(model.device)) for name, text in _option_texts(settings).items()},
    )


def _option_texts(settings: Mapping[str, str]) -> dict[str, str]:
    prefix = "options."
    return {key.removeprefix(prefix): text for key, text in settings.items() if key.startswith(prefix)}


def _option(name: str, text: str, *, device: str) -> Any:
    """An option's value: a trained model for its folder, a picture for its file, else a number, true, false or the text.

    Returns:
        For a picture (3, H, W) in [-1, 1]; for the option "mask" (1, H, W) in [0, 1], white being 1.
    """
    path = Path(text)
    if text and (path / CARD).is_file():
        return load_model(path, device=device)[0]
    if path.suffix.lower() in PICTURE_SUFFIXES:
        return _picture(path, "L" if name == "mask" else "RGB")
    return parse(text)


def _picture(path: Path, mode: str) -> torch.Tensor:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            pixels = torch.from_numpy(np.array(image.convert(mode), dtype=np.float32)).reshape(image.height, image.width, -1)
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"{path} is no readable picture ({error}); give a PNG, JPEG or WebP file.") from error
    pixels = pixels.permute(2, 0, 1) / 255
    return pixels if mode == "L" else 2 * pixels - 1


def check_names(settings: Mapping[str, str]) -> None:
    """Raises InputError for a setting that is not there, or no model."""
    for name in settings:
        if name not in SETTINGS and not (name.startswith("options.") and len(name) > len("options.")):
            raise InputError(
                f"There is no setting {name!r}{near_matches(name, SETTINGS)}; the settings are {', '.join(SETTINGS)} and "
                "options.NAME for the sampler's own."
            )
    if "model" not in settings:
        raise InputError("No model was named; write model=FOLDER, the --out of a 'dreamkiln train objective=…'.")


def _number(settings: Mapping[str, str], name: str, default: float) -> float:
    value = parse(settings[name]) if name in settings else default
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{name} is {settings[name]!r}, but a number was expected.")
    return float(value)


def _part(request: SampleRequest, rows: slice) -> SampleRequest:
    return dataclasses.replace(
        request,
        seeds=request.seeds[rows],
        labels=None if request.labels is None else request.labels[rows],
        prompts=None if request.prompts is None else request.prompts[rows],
    )


def _metadata(settings: Mapping[str, str], request: SampleRequest, card: Card, folder: Path) -> dict[str, str]:
    """What is needed to draw the same again."""
    chosen: dict[str, Any] = {
        "model": card.model,
        "weights_sha256": weights_hash(folder),
        "seed": request.seeds[0],
        "num_samples": len(request.seeds),
        "sampler": request.sampler or "the model's own",
        "steps": request.num_steps or "the model's own",
        "guidance_scale": request.guidance_scale,
        "prompt": settings.get("prompt", ""),
        "labels": settings.get("labels", ""),
        "options": json.dumps(_option_texts(settings)),
    }
    return {key: str(value) for key, value in chosen.items()}


def _write_csv(samples: torch.Tensor, path: Path) -> Path:
    from orchestrator.host.atomic import write_text

    header = ",".join("xyzw"[d] if samples.shape[1] <= 4 else f"x{d}" for d in range(samples.shape[1]))
    lines = [",".join(f"{value:.7g}" for value in row) for row in samples.tolist()]
    return write_text(path, "\n".join([header, *lines]) + "\n")
