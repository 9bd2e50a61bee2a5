"""`dreamkiln train`: train the parts of the toybox prior. The work itself is in `orchestrator.training`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.errors import InputError
from orchestrator.cli import common

NAME = "train"
HELP = "Train the toybox prior, part by part; resumable at any time."
PARTS = ("autoencoder", "clip", "judge", "denoiser", "assemble")


def command(
    part: Annotated[str, typer.Argument(help=f"One of {', '.join(PARTS)}, or 'all'.")] = "all",
    overrides: common.Overrides = None,
    data: Annotated[Path, typer.Option(help="Shards of 'dreamkiln toybox render'.")] = Path("training/shards"),
    out: Annotated[Path, typer.Option(help="Where checkpoints, logs and plots go.")] = Path("training/toybox"),
    start_from: Annotated[Path | None, typer.Option(help="Go on from a prior's folder that 'assemble' wrote.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Trains one part, or all in order; a repeated command goes on from the last checkpoint."""
    if part != "all" and part not in PARTS:
        from jobs.codec import near_matches

        raise InputError(f"There is no part {part!r}{near_matches(part, PARTS)}; choose all or {', '.join(PARTS)}.")
    from orchestrator.progress_display import make_display
    from orchestrator.runtimes.base import resolve_device
    from orchestrator.signals import stop_signals_interrupt
    from orchestrator.training.assemble import unpack
    from orchestrator.training.run import train_parts

    with stop_signals_interrupt():
        if start_from is not None:
            unpack(start_from, out)
        train_parts(
            PARTS if part == "all" else [part],
            data,
            out,
            device=resolve_device(device),
            overrides=common.split_overrides(overrides or ()),
            display=make_display(),
        )
