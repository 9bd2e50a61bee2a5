"""`dreamkiln images`: one sentence becomes many pictures, or changes a given one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.errors import InputError
from orchestrator.cli import common

NAME = "images"
HELP = "Draw images from a sentence, or change a picture by one."


def command(
    prompt: common.Prompt,
    overrides: common.Overrides = None,
    num_images: Annotated[int | None, typer.Option(help="How many; image i is drawn from seed + i.")] = None,
    out: common.Out = None,
    seed: common.Seed = 0,
    steps: Annotated[int | None, typer.Option(help="Sampler steps.")] = None,
    sampler: Annotated[str | None, typer.Option(help="ddpm, ddim, pndm, euler, euler_ancestral, heun or dpmpp_2m.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="s of uncond + s (cond - uncond).")] = None,
    guidance_rescale: Annotated[float | None, typer.Option(help="0 (off) to 1: tames the colours of high scales.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What the pictures should keep away from.")] = None,
    init_image: Annotated[
        Path | None, typer.Option(help="A picture or coloured strokes to start from; its centred square is used.")
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(help="How far from --init-image: 0 returns it, 1 ignores it. 0.6, or 1 with a mask, unless told."),
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="White where --init-image is repainted; its black pixels stay exactly as they are.")
    ] = None,
    prior: common.PriorName = None,
    preset: common.Preset = None,
    runtime: common.RuntimeName = None,
    json: common.Json = False,
) -> None:
    """Compose the settings, then run the job."""
    from jobs.prompts import check_prompt

    check_prompt(prompt)  # before anything slow is imported
    if init_image is None:
        for option, value in {"--mask": mask, "--strength": strength}.items():
            if value is not None:
                raise InputError(f"{option} {value} says how to change a picture, but there is none; give --init-image too.")
    from orchestrator.compose import compose

    options = {
        "preset": preset,
        "prior.source": prior,
        "runtime": runtime,
        "images.num_images": num_images,
        "images.num_steps": steps,
        "images.sampler": sampler,
        "images.guidance_scale": guidance_scale,
        "images.guidance_rescale": guidance_rescale,
        "images.negative_prompt": negative_prompt,
        "images.strength": strength,
    }
    settings = compose(overrides or (), options=options)
    if init_image is None:
        common.run_job(settings.image_job(prompt, seed=seed), settings, out=out, as_json=json)
        return
    from orchestrator.edit_pictures import EditPictures

    pictures = EditPictures.read(init_image, mask)
    spec = settings.image_job(prompt, seed=seed, **pictures.hashes)
    common.run_job(spec, settings, out=out, as_json=json, pictures=pictures)
