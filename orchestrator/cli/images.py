"""`dreamkiln images`: one sentence becomes many pictures."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli import common

NAME = "images"
HELP = "Draw images from a sentence."


def command(
    prompt: common.Prompt,
    overrides: common.Overrides = None,
    num_images: Annotated[int | None, typer.Option(help="How many; image i is drawn from seed + i.")] = None,
    out: common.Out = None,
    seed: common.Seed = 0,
    steps: Annotated[int | None, typer.Option(help="Sampler steps.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="s of uncond + s (cond - uncond).")] = None,
    sampler: Annotated[str | None, typer.Option(help="ddpm, ddim, pndm, euler, euler_ancestral, heun or dpmpp_2m.")] = None,
    prior: common.PriorName = None,
    preset: common.Preset = None,
    runtime: common.RuntimeName = None,
    json: common.Json = False,
) -> None:
    """Compose the settings, then run the job."""
    from jobs.prompts import check_prompt

    check_prompt(prompt)  # before anything slow is imported
    from orchestrator.compose import compose

    options = {
        "preset": preset,
        "prior.source": prior,
        "runtime": runtime,
        "images.num_images": num_images,
        "images.num_steps": steps,
        "images.guidance_scale": guidance_scale,
        "images.sampler": sampler,
    }
    settings = compose(overrides or (), options=options)
    common.run_job(settings.image_job(prompt, seed=seed), settings, out=out, as_json=json)
