"""`dreamkiln images`: one sentence becomes many pictures, or changes a given one; a table of prompts becomes one each."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.errors import InputError
from orchestrator.cli import common, image_options

if TYPE_CHECKING:
    from orchestrator.client.prepared_job import PreparedJob

NAME = "images"
Verify = Annotated[
    bool,
    typer.Option("--verify", help="With --prompts: read a finished job's shards, draw nothing, name what is broken."),
]
Repair = Annotated[bool, typer.Option("--repair", help="With --prompts: --verify, then draw again what is missing or broken.")]
HELP = "Draw images from a sentence, change a picture by one, or draw a whole table of prompts."


@common.with_options_of(image_options.prepare)
def command(
    prepare: Callable[[], PreparedJob],
    runtime: common.RuntimeName = None,
    local: common.Local = False,
    state: common.State = None,
    json: common.Json = False,
    verify: Verify = False,
    repair: Repair = False,
) -> int:
    """Prepare the job, then run it. The exit code is 3 if rows of a table failed, and 1 if --verify finds a broken shard."""
    job = prepare()
    if verify or repair:
        from jobs.batch_images import BatchImagesSpec
        from orchestrator.batch.command import verify_place

        if not isinstance(job.spec, BatchImagesSpec):
            raise InputError("--verify and --repair look at the shards of a table; give --prompts and its --out.")
        broken = verify_place(str(job.out), as_json=json and not repair, fix="the same command with --repair draws them again")
        if not repair:
            return int(bool(broken))
        if broken:
            from orchestrator.batch.verify import discard

            discard(str(job.out), broken)
    return common.run_job(job, runtime=runtime, is_local=local, state=state, as_json=json)
