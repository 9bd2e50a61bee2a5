"""`dreamkiln train`: the parts of a toybox prior, or one model of the diffusion family; see `orchestrator.lab`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from diffusion.models import MODELS
from jobs.errors import InputError
from orchestrator.cli import common

NAME = "train"
HELP = "Train the toybox prior, part by part, or a model of the diffusion family; resumable at any time."
EPILOG = (
    f"Objectives of the family: {', '.join(sorted(MODELS))}. Their settings: data=toybox|mixture2d (of rectified_flow "
    "also toybox_latents, for a prior), data.KEY, network.KEY, loop.KEY and the model's own, such as data.kinds=car,mushroom "
    "network.num_classes=auto loop.num_steps=2000; "
    "preset=small is a problem that one CPU core learns in minutes."
)
PARTS = ("autoencoder", "decoder", "clip", "judge", "denoiser", "views", "assemble")
SHARDS, PRIOR_OUT = Path("training/shards"), Path("training/toybox")


def command(
    part: Annotated[
        str, typer.Argument(metavar="PART|objective=NAME", help=f"One of {', '.join(PARTS)}, 'all', or an objective (below).")
    ] = "all",
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Of an objective: below. Of a part: PART.KEY, such as denoiser.num_steps=200.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option(help=f"Shards of 'dreamkiln toybox render'; by default {SHARDS}.")] = None,
    out: Annotated[
        Path | None, typer.Option(help=f"Where everything goes; by default {PRIOR_OUT}, or training/OBJECTIVE.")
    ] = None,
    start_from: Annotated[Path | None, typer.Option(help="Go on from a prior's folder that 'assemble' wrote.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Trains one part, all in order, or one objective; a repeated command goes on from the last checkpoint."""
    settings = common.split_overrides([part] if "=" in part else [])
    settings |= common.split_overrides(overrides or ())
    if "objective" in settings:
        if "=" not in part and part != "all":
            raise InputError(f"{part!r} and objective={settings['objective']} were given; train one of the two.")
        if start_from is not None:
            raise InputError("--start-from belongs to the parts of the toybox prior; leave it out with objective=….")
        return _train_family(settings, data, out, device)
    _train_parts("all" if "=" in part else part, settings, data or SHARDS, out or PRIOR_OUT, start_from, device)


def _train_family(settings: dict[str, str], data: Path | None, out: Path | None, device: str) -> None:
    if settings["objective"] not in MODELS:  # before anything slow is imported
        from jobs.codec import near_matches

        name = settings["objective"]
        raise InputError(
            f"There is no objective {name!r}{near_matches(name, MODELS)}; choose one of {', '.join(sorted(MODELS))}."
        )
    if data is not None:
        settings["data.folder"] = str(data)
    from orchestrator.host.progress_display import make_display
    from orchestrator.host.signals import stop_signals_interrupt
    from orchestrator.lab.family.train import next_command, train_family
    from orchestrator.runtimes.base import resolve_device

    folder = out if out is not None else Path("training") / settings["objective"]
    with stop_signals_interrupt():
        train_family(settings, folder, device=resolve_device(device), display=make_display(stream=sys.stderr))
    print(folder)
    print(f"Use it: {next_command(settings['objective'], folder)}", file=sys.stderr)


def _train_parts(part: str, settings: dict[str, str], data: Path, out: Path, start_from: Path | None, device: str) -> None:
    if part != "all" and part not in PARTS:
        from jobs.codec import near_matches

        raise InputError(
            f"There is no part {part!r}{near_matches(part, PARTS)}; choose all or {', '.join(PARTS)}, or objective=NAME."
        )
    from orchestrator.host.progress_display import make_display
    from orchestrator.host.signals import stop_signals_interrupt
    from orchestrator.lab.training.assemble import unpack
    from orchestrator.lab.training.run import train_parts
    from orchestrator.runtimes.base import resolve_device

    with stop_signals_interrupt():
        if start_from is not None:
            unpack(start_from, out)
        train_parts(
            PARTS if part == "all" else [part],
            data,
            out,
            device=resolve_device(device),
            overrides=settings,
            display=make_display(),
        )
