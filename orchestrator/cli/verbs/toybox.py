"""`dreamkiln toybox render`: the procedural objects as previews and as training shards."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from jobs.errors import InputError
from orchestrator.cli import common

NAME = "toybox"
HELP = "The procedural objects that train and judge the default prior."
PREVIEW_ITEMS = 64

app = typer.Typer(no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})


@app.callback()
def toybox() -> None:
    """A group with one verb today."""


@app.command(help="Render captioned items as training shards, or with --preview as one picture.")
def render(
    out: Annotated[Path, typer.Option(help="Folder of the shards.")] = Path("training/shards"),
    num_items: Annotated[int, typer.Option(help="How many items, 1 to 1,000,000,000.")] = 4096,
    start: Annotated[int, typer.Option(help="Index of the first one, from 0.")] = 0,
    seed: common.Seed = 0,
    size: Annotated[int, typer.Option(help="Pixels per side, 8 to 1,024.")] = 64,
    shard_size: Annotated[int, typer.Option(help="Items per shard.")] = 4096,
    views: Annotated[int, typer.Option(help="Pictures of each item, from cameras evenly spaced around it, 1 to 64.")] = 1,
    workers: Annotated[int, typer.Option(help="Processes; 0 for one per core.")] = 0,
    preview: Annotated[bool, typer.Option("--preview", help=f"Only OUT/preview.png with {PREVIEW_ITEMS} items.")] = False,
) -> None:
    """Finished shards are kept, so a repeated command goes on."""
    bounds = {
        "--num-items": (num_items, 1, 10**9),
        "--start": (start, 0, 10**12),
        "--seed": (seed, 0, 2**63 - 1),
        "--size": (size, 8, 1024),
        "--shard-size": (shard_size, 1, 10**6),
        "--views": (views, 1, 64),
        "--workers": (workers, 0, 1024),
    }
    for name, (value, least, most) in bounds.items():
        if not least <= value <= most:
            raise InputError(f"{name} is {value:,}; give {least:,} to {most:,}.")
    from orchestrator.host.atomic import clear_output_errors
    from orchestrator.host.signals import stop_signals_interrupt

    with stop_signals_interrupt(), clear_output_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        if preview:
            print(_write_preview(out, start=start, seed=seed, size=size))
        else:
            _write_shards(out, num_items, start, seed, size, shard_size, views, workers or len(os.sched_getaffinity(0)))


def _write_preview(out: Path, *, start: int, seed: int, size: int) -> Path:
    from nerf3d.toybox.items import make_item
    from nerf3d.toybox.render import render_items
    from orchestrator.exports import write_image_grid
    from orchestrator.exports.contact_sheet import to_uint8

    items = [make_item(index, seed=seed) for index in range(start, start + PREVIEW_ITEMS)]
    rgb, _ = render_items(items, size=size)
    return write_image_grid(to_uint8(rgb), out / "preview.png", metadata={"seed": str(seed), "start": str(start)})


def _write_shards(
    out: Path, num_items: int, start: int, seed: int, size: int, shard_size: int, views: int, workers: int
) -> None:
    from jobs.events import Progress
    from jobs.pace import Pace
    from nerf3d.toybox.shards import write_shards
    from orchestrator.host.progress_display import make_display

    total = -(-num_items // shard_size)
    pace = Pace()
    try:
        with make_display() as display:
            display.event(Progress(stage="render", step=0, total=total))
            shards = write_shards(
                out, num_items, shard_size=shard_size, start=start, seed=seed, size=size, workers=workers, views=views
            )
            for number, _ in enumerate(shards, 1):
                left = pace.lap(left=total - number)
                display.event(Progress(stage="render", step=number, total=total, seconds_left=left))
    except ValueError as error:
        raise InputError(f"{error}") from error
    print(out)
