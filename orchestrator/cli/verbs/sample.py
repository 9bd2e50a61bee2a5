"""`dreamkiln sample`: draw from a model of the diffusion family that `dreamkiln train objective=…` trained."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from diffusion.models import MODELS
from orchestrator.cli import common

NAME = "sample"
HELP = "Draw pictures or points from a trained model of the diffusion family: dreamkiln sample model=FOLDER …"
EPILOG = (
    f"Models: {', '.join(sorted(MODELS))}. Settings: model=FOLDER, sampler=NAME, num_steps=N, guidance_scale=S, "
    "labels=KIND,… or prompt=SENTENCE, num_samples=N, seed=N (sample i has seed + i), and options.NAME=VALUE for what a "
    "sampler or model takes, such as options.eta=1; a value that names a model's folder or a picture is read. "
    "Without sampler and num_steps a model draws as its paper does."
)


def command(
    settings: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="See below.", show_default=False)] = None,
    out: Annotated[Path, typer.Option(help="The PNG to write; for points also .csv.")] = Path("samples.png"),
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Draws, with its progress on stderr and the file's name on stdout."""
    given = common.split_overrides(settings or ())
    from orchestrator.host.progress_display import make_display
    from orchestrator.host.signals import stop_signals_interrupt
    from orchestrator.lab.family.sample import sample_family
    from orchestrator.runtimes.base import resolve_device

    with stop_signals_interrupt():
        print(sample_family(given, out, device=resolve_device(device), display=make_display(stream=sys.stderr)))
