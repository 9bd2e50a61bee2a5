"""The options that say which images to make; `dreamkiln images` and `dreamkiln submit images` share them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.errors import InputError
from orchestrator.cli import common

if TYPE_CHECKING:
    from orchestrator.client.prepared_job import PreparedJob

__all__ = ["prepare"]

NumImages = Annotated[int | None, typer.Option(help="How many; image i is drawn from seed + i.")]
Out = Annotated[
    str | None,
    typer.Option(help="Run folder, or with --prompts a URL such as s3://…. By default runs/<name>-<hash>: repeat to continue."),
]
Steps = Annotated[int | None, typer.Option(help="Sampler steps.")]
Sampler = Annotated[
    str | None, typer.Option(help="ddim, pndm, euler, heun, dpmpp_2m, unipc, lcm, …: a wrong name lists them all.")
]
TimestepSpacing = Annotated[
    str | None, typer.Option(help="leading, trailing, linspace, karras, exponential or beta; the prior's own unless told.")
]
GuidanceScale = Annotated[float | None, typer.Option(help="s of uncond + s (cond - uncond).")]
GuidanceRescale = Annotated[float | None, typer.Option(help="0 (off) to 1: tames the colours of high scales.")]
Width = Annotated[int | None, typer.Option(help="Of the pictures, in pixels; the prior's own unless told.")]
Height = Annotated[int | None, typer.Option(help="Of the pictures, in pixels; the prior's own unless told.")]
Size = Annotated[str | None, typer.Option(help="Width and height at once, such as 512x768.")]
NegativePrompt = Annotated[str | None, typer.Option(help="What the pictures should keep away from.")]
InitImage = Annotated[
    Path | None, typer.Option(help="A picture or coloured strokes to start from, in its own aspect unless --size says another.")
]
Strength = Annotated[
    float | None,
    typer.Option(help="How far from --init-image: 0 returns it, 1 ignores it. 0.6, or 1 with a mask, unless told."),
]
Mask = Annotated[
    Path | None, typer.Option(help="White where --init-image is repainted; its black pixels stay exactly as they are.")
]
Views = Annotated[
    int | None, typer.Option(help="So many views of one object, from a prior that takes cameras; images.azimuth_degrees turns.")
]
PreviewEvery = Annotated[
    int | None, typer.Option(help="Sampler steps between two looks at the unfinished pictures, in preview.png; 0, none.")
]
Prompts = Annotated[
    str | None, typer.Option(help="Table of prompts: txt, csv, jsonl or parquet; a folder, a glob or a URL of them.")
]
PromptColumn = Annotated[str | None, typer.Option(help="With --prompts: the column that holds them.")]
ShardSize = Annotated[int | None, typer.Option(help="With --prompts: rows per shard; 1000.")]
OutputFormat = Annotated[str | None, typer.Option(help="With --prompts: png, webdataset or parquet.")]
Clip = Annotated[
    str | None, typer.Option("--clip", help="With --prompts: folder of a CLIP that scores each picture, the column clip_score.")
]
MinClipScore = Annotated[
    float | None, typer.Option(help="With --clip: pictures below it are marked, is_kept false; they are not deleted.")
]
Phash = Annotated[bool, typer.Option("--phash", help="With --prompts: a 64-bit hash that near-duplicates share, beside each.")]
Resume = Annotated[bool, typer.Option("--resume", help="With --prompts: draw what is missing, as is the default.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="With --prompts: delete the job's files, start anew.")]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="With --prompts: also draw rows that failed, or were added.")]
NumWorkers = Annotated[int | None, typer.Option(help="With --prompts: shards in flight at once; 4.")]
PricePerHour = Annotated[float | None, typer.Option(help="With --prompts: of this machine, to report the cost.")]


def prepare(
    prompt: common.OptionalPrompt = None,
    overrides: common.Overrides = None,
    num_images: NumImages = None,
    out: Out = None,
    seed: common.Seed = 0,
    steps: Steps = None,
    sampler: Sampler = None,
    timestep_spacing: TimestepSpacing = None,
    guidance_scale: GuidanceScale = None,
    guidance_rescale: GuidanceRescale = None,
    negative_prompt: NegativePrompt = None,
    width: Width = None,
    height: Height = None,
    size: Size = None,
    init_image: InitImage = None,
    strength: Strength = None,
    mask: Mask = None,
    views: Views = None,
    preview_every: PreviewEvery = None,
    prior: common.PriorName = None,
    lora: common.Loras = None,
    embedding: common.Embeddings = None,
    strict: common.Strict = False,
    preset: common.Preset = None,
    prompts: Prompts = None,
    prompt_column: PromptColumn = None,
    shard_size: ShardSize = None,
    output_format: OutputFormat = None,
    clip: Clip = None,
    min_clip_score: MinClipScore = None,
    phash: Phash = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    retry_failed: RetryFailed = False,
    num_workers: NumWorkers = None,
    price_per_hour: PricePerHour = None,
) -> PreparedJob:
    """Check that the options go together, then compose the job.

    Raises:
        InputError: what does not, or is not allowed.
    """
    if size is not None:
        from jobs.batch_images import read_size

        common.refuse({"--width": width, "--height": height}, because="--size says both; give one or the other")
        width, height = read_size(size)
    options = {
        "preset": preset,
        "prior.source": prior,
        "prior.strict": strict or None,
        "prior.loras": lora,
        "prior.embeddings": embedding,
        "images.num_images": views if num_images is None else num_images,
        "images.num_views": views,
        "images.num_steps": steps,
        "images.sampler": sampler,
        "images.timestep_spacing": timestep_spacing,
        "images.guidance_scale": guidance_scale,
        "images.guidance_rescale": guidance_rescale,
        "images.negative_prompt": negative_prompt,
        "images.strength": strength,
        "images.width": width,
        "images.height": height,
        "runtime.preview_every": preview_every,
    }
    shaping = {
        "prompt_column": prompt_column,
        "shard_size": shard_size,
        "output_format": output_format,
        "clip": clip,
        "min_clip_score": min_clip_score,
        "phash": phash,
    }
    how = {"resume": resume, "overwrite": overwrite, "retry_failed": retry_failed}
    working = {"num_workers": num_workers, "price_per_hour": price_per_hour}
    if prompts is not None:
        common.refuse(
            {"--num-images": num_images, "--views": views, "--init-image": init_image, "--mask": mask},
            because="--prompts draws one picture a row; say it in the table's columns",
        )
        words = common.settings_beside_table(prompts, prompt, overrides)
        return _of_table(prompts, words, options, seed=seed, out=out, shaping=shaping, how=how, working=working)
    common.refuse(
        {f"--{name.replace('_', '-')}": value for name, value in {**shaping, **how, **working}.items() if value is not False},
        because="it belongs to a table of prompts; give --prompts too",
    )
    for option, value in {"--mask": mask, "--strength": strength}.items():
        if value is not None and init_image is None:
            raise InputError(f"{option} {value} says how to change a picture, but there is none; give --init-image too.")
    prompt = common.needed_prompt(prompt)  # before anything slow is imported
    return _of_prompt(prompt, overrides or [], options, seed=seed, out=out, init_image=init_image, mask=mask)


def _of_prompt(
    prompt: str,
    overrides: list[str],
    options: Mapping[str, Any],
    *,
    seed: int,
    out: str | None,
    init_image: Path | None,
    mask: Path | None,
) -> PreparedJob:
    if out is not None and "://" in out:
        raise InputError(f"--out {out} is a URL, which only --prompts writes to; give a folder.")
    from orchestrator.client.prepared_job import compose_here, prepare_images

    settings = compose_here(overrides, options)
    folder = None if out is None else Path(out)
    return prepare_images(prompt, settings, seed=seed, out=folder, init_image=init_image, mask=mask)


def _of_table(
    prompts: str,
    overrides: list[str],
    options: Mapping[str, Any],
    *,
    seed: int,
    out: str | None,
    shaping: Mapping[str, Any],
    how: Mapping[str, bool],
    working: Mapping[str, Any],
) -> PreparedJob:
    from orchestrator.batch.command import choose_mode
    from orchestrator.settings.batch import BatchSettings

    mode = choose_mode(**how)
    batch = BatchSettings(prompts=prompts, **{name: value for name, value in working.items() if value is not None})
    from orchestrator.client.prepared_job import compose_here, prepare_table

    return prepare_table(batch, compose_here(overrides, options), seed=seed, out=out, shaping=shaping, mode=mode)
