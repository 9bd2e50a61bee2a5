"""`dreamkiln evaluate`: how good are these pictures and meshes? The work is done in `orchestrator.lab.evaluation`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli import common

NAME = "evaluate"
HELP = "Score pictures and meshes: R-Precision with the judge, and geometry against the toybox's true objects."


def command(
    folders: Annotated[
        list[str], typer.Argument(help="images or meshes, then run folders, then settings (key=value).", show_default=False)
    ],
    num_prompts: Annotated[int | None, typer.Option(help="Pictures to draw where no run is given; 64.")] = None,
    held_out: Annotated[
        bool | None, typer.Option("--held-out/--taught", help="Draw combinations that training never saw, or may have.")
    ] = None,
    num_views: Annotated[int | None, typer.Option(help="Views of each mesh; 8.")] = None,
    prior: common.PriorName = None,
    judge: Annotated[str | None, typer.Option(help="Another judge's folder than the prior's own.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where the table and the picture go.")] = None,
    json: common.Json = False,
) -> int:
    """Splits folders from settings and hands them over."""
    from orchestrator.lab.evaluation import evaluate

    settings = [item for item in folders if "=" in item and not Path(item).exists()]
    chosen = [Path(item) for item in folders if item not in settings]
    options = {"num_prompts": num_prompts, "held_out": held_out, "num_views": num_views, "prior": prior, "judge": judge}
    overrides = common.split_overrides(settings) | {key: value for key, value in options.items() if value is not None}
    return evaluate.main(chosen, out=out, as_json=json, overrides=overrides)
