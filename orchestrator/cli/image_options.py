"""The options that say which images to make; `dreamkiln images` and `dreamkiln submit images` share them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.errors import InputError
from orchestrator.cli import common

if TYPE_CHECKING:
    from orchestrator.prepared_job import PreparedJob

__all__ = ["prepare"]


def prepare(
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
    strict: common.Strict = False,
    preset: common.Preset = None,
    prompts: Annotated[
        str | None, typer.Option(help="Table of prompts: txt, csv, jsonl or parquet; a folder, a glob or a URL of them.")
    ] = None,
    prompt_column: Annotated[str | None, typer.Option(help="With --prompts: the column that holds them.")] = None,
    shard_size: Annotated[int | None, typer.Option(help="With --prompts: rows per shard; 1000.")] = None,
    output_format: Annotated[str | None, typer.Option(help="With --prompts: png, webdataset or parquet.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="With --prompts: draw what is missing, as is the default.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="With --prompts: delete the job's files, start anew.")] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="With --prompts: also draw rows that failed, or were added.")
    ] = False,
    num_workers: Annotated[int | None, typer.Option(help="With --prompts: shards in flight at once; 4.")] = None,
    price_per_hour: Annotated[float | None, typer.Option(help="With --prompts: of this machine, to report the cost.")] = None,
) -> PreparedJob:
    """Check that the options go together, then compose the job.

    Raises:
        InputError: what does not, or is not allowed.
    """
    if out is not None:
        common.folder(out)
    options = {
        "preset": preset,
        "prior.source": prior,
        "prior.strict": strict or None,
        "images.num_images": num_images,
        "images.num_steps": steps,
        "images.sampler": sampler,
        "images.guidance_scale": guidance_scale,
        "images.guidance_rescale": guidance_rescale,
        "images.negative_prompt": negative_prompt,
        "images.strength": strength,
    }
    shaping = {"prompt_column": prompt_column, "shard_size": shard_size, "output_format": output_format}
    how = {"resume": resume, "overwrite": overwrite, "retry_failed": retry_failed}
    working = {"num_workers": num_workers, "price_per_hour": price_per_hour}
    if prompts is not None:
        common.refuse(
            {"--num-images": num_images, "--init-image": init_image, "--mask": mask},
            because="--prompts draws one picture a row; say it in the table's columns",
        )
        if not prompts.strip():
            raise InputError("--prompts is empty; name a table, or leave the option out for a prompt in quotes.")
        if prompt is not None and "=" not in prompt:
            raise InputError(f"There is a prompt ({prompt!r}) and a table of them ({prompts}); give one of the two.")
        words = [*([prompt] if prompt is not None else []), *(overrides or ())]
        return _table(prompts, words, options, seed=seed, out=out, shaping=shaping, how=how, working=working)
    common.refuse(
        {f"--{name.replace('_', '-')}": value or None for name, value in {**shaping, **how}.items()}
        | {f"--{name.replace('_', '-')}": value for name, value in working.items()},
        because="it belongs to a table of prompts; give --prompts too",
    )
    if prompt is None:
        raise InputError('There is no prompt; give one in quotes, such as "a red mushroom", or a table of them: --prompts.')
    if out is not None and "://" in out:
        raise InputError(f"--out {out} is a URL, which only --prompts writes to; give a folder.")
    if init_image is None:
        for option, value in {"--mask": mask, "--strength": strength}.items():
            if value is not None:
                raise InputError(f"{option} {value} says how to change a picture, but there is none; give --init-image too.")
    from jobs.prompts import check_prompt

    check_prompt(prompt)  # before anything slow is imported
    from orchestrator.prepared_job import compose_here, prepare_images

    settings = compose_here(overrides or (), options)
    folder = None if out is None else Path(out)
    return prepare_images(prompt, settings, seed=seed, out=folder, init_image=init_image, mask=mask)


def _table(
    prompts: str,
    overrides: list[str],
    options: dict[str, Any],
    *,
    seed: int,
    out: str | None,
    shaping: dict[str, Any],
    how: dict[str, bool],
    working: dict[str, Any],
) -> PreparedJob:
    from orchestrator.batch.command import choose_mode
    from orchestrator.batch.settings import BatchSettings

    mode = choose_mode(**how)
    batch = BatchSettings(prompts=prompts, **{name: value for name, value in working.items() if value is not None})
    from orchestrator.prepared_job import compose_here, prepare_table

    return prepare_table(batch, compose_here(overrides, options), seed=seed, out=out, shaping=shaping, mode=mode)
