"""`dreamkiln images`: one sentence becomes many pictures, or changes a given one; a table of prompts becomes one each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.errors import InputError
from orchestrator.cli import common

NAME = "images"
HELP = "Draw images from a sentence, change a picture by one, or draw a whole table of prompts."


def command(
    prompt: Annotated[str | None, typer.Argument(help="What to make, in quotes.", show_default=False)] = None,
    overrides: common.Overrides = None,
    num_images: Annotated[int | None, typer.Option(help="How many; image i is drawn from seed + i.")] = None,
    out: Annotated[
        str | None,
        typer.Option(
            help="Run folder, or with --prompts a URL such as s3://…. By default runs/<name>-<hash>: repeat to continue."
        ),
    ] = None,
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
    prompts: Annotated[
        str | None, typer.Option(help="Table of prompts: txt, csv, jsonl or parquet; a folder, a glob or a URL of them.")
    ] = None,
    prompt_column: Annotated[str | None, typer.Option(help="With --prompts: the column that holds them.")] = None,
    shard_size: Annotated[int | None, typer.Option(help="With --prompts: rows per shard; 1000.")] = None,
    output_format: Annotated[str | None, typer.Option(help="With --prompts: png, webdataset or parquet.")] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="With --prompts: the same bits whatever else is drawn meanwhile; slower.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="With --prompts: draw what is missing, as is the default.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="With --prompts: delete the job's files, start anew.")] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="With --prompts: also draw rows that failed, or were added.")
    ] = False,
    num_workers: Annotated[int | None, typer.Option(help="With --prompts: shards in flight at once; 4.")] = None,
    price_per_hour: Annotated[float | None, typer.Option(help="With --prompts: of this machine, to report the cost.")] = None,
) -> int | None:
    """Compose the settings, then run the job. With --prompts the exit code is 3 if rows failed."""
    batch = {"prompt_column": prompt_column, "shard_size": shard_size, "output_format": output_format, "strict": strict or None}
    how = {"resume": resume, "overwrite": overwrite, "retry_failed": retry_failed}
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
    if prompts is not None:
        from orchestrator.batch import command as batch_command

        common.refuse(
            {"--num-images": num_images, "--init-image": init_image, "--mask": mask},
            because="--prompts draws one picture a row; say it in the table's columns",
        )
        return batch_command.run(
            prompts,
            overrides=[*([prompt] if prompt is not None else []), *(overrides or ())],
            options=options,
            batch=batch,
            seed=seed,
            out=out,
            mode=batch_command.choose_mode(**how),
            num_workers=num_workers if num_workers is not None else batch_command.DEFAULT_WORKERS,
            price_per_hour=price_per_hour,
            as_json=json,
        )
    given = {
        **batch,
        **{name: flag or None for name, flag in how.items()},
        "num_workers": num_workers,
        "price_per_hour": price_per_hour,
    }
    common.refuse(
        {f"--{name.replace('_', '-')}": value for name, value in given.items()},
        because="it belongs to a table of prompts; give --prompts too",
    )
    if prompt is None:
        raise InputError('There is no prompt; give one in quotes, such as "a red mushroom", or a table of them: --prompts.')
    if out is not None and "://" in out:
        raise InputError(f"--out {out} is a URL, which only --prompts writes to; give a folder.")
    from jobs.prompts import check_prompt

    check_prompt(prompt)  # before anything slow is imported
    if init_image is None:
        for option, value in {"--mask": mask, "--strength": strength}.items():
            if value is not None:
                raise InputError(f"{option} {value} says how to change a picture, but there is none; give --init-image too.")
    from orchestrator.compose import compose

    folder = None if out is None else Path(out)
    settings = compose(overrides or (), options=options)
    if init_image is None:
        common.run_job(settings.image_job(prompt, seed=seed), settings, out=folder, as_json=json)
        return None
    from orchestrator.edit_pictures import EditPictures

    pictures = EditPictures.read(init_image, mask)
    spec = settings.image_job(prompt, seed=seed, **pictures.hashes)
    common.run_job(spec, settings, out=folder, as_json=json, pictures=pictures)
    return None
