"""`dreamkiln train`: train the parts of the toybox prior. The work itself is in `orchestrator.training_cli`."""

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
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Hands a plain dictionary over: parts, data, out, device, overrides (dotted key -> text)."""
    if part != "all" and part not in PARTS:
        from jobs.codec import near_matches

        raise InputError(f"There is no part {part!r}{near_matches(part, PARTS)}; choose all or {', '.join(PARTS)}.")
    from orchestrator import training_cli
    from orchestrator.runtimes.base import resolve_device
    from orchestrator.signals import stop_signals_interrupt

    with stop_signals_interrupt():
        training_cli.main(
            {
                "parts": list(PARTS) if part == "all" else [part],
                "data": data,
                "out": out,
                "device": resolve_device(device),
                "overrides": common.split_overrides(overrides or ()),
            }
        )
