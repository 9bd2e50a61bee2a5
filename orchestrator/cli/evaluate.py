"""`dreamkiln evaluate`: how good are these pictures and meshes? The work itself is in `orchestrator.evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli import common

NAME = "evaluate"
HELP = "Score run folders: R-Precision with the judge, and geometry against the toybox's true objects."


def command(
    folders: Annotated[
        list[str], typer.Argument(help="images or meshes, then run folders, then settings (key=value).", show_default=False)
    ],
    out: Annotated[Path | None, typer.Option(help="Where the table and the picture go.")] = None,
    json: common.Json = False,
) -> int:
    """Splits folders from settings and hands them over."""
    from orchestrator import evaluate

    settings = [item for item in folders if "=" in item and not Path(item).exists()]
    chosen = [Path(item) for item in folders if item not in settings]
    result = evaluate.main(chosen, out=out, as_json=json, overrides=common.split_overrides(settings))
    return result if isinstance(result, int) else 0
