"""`dreamkiln compare`: runs side by side on one HTML page."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli import common

NAME = "compare"
HELP = "Put 3D runs side by side on one HTML page that opens from the disk: turntables, meshes to orbit, settings, curves."

Runs = Annotated[list[Path], typer.Argument(help="Run folders of text-to-3d, finished or not.", show_default=False)]
Out = Annotated[Path, typer.Option(help="The page.")]


def command(runs: Runs, out: Out = Path("compare.html"), json: common.Json = False) -> int:
    """One page of all of them."""
    page = write_page(runs, out)
    told = json_module.dumps({"ok": True, "page": str(page), "num_runs": len(runs)})
    print(told if json else f"{page}\nOpen it in a browser.")
    return 0


def write_page(runs: list[Path], out: Path, *, title: str | None = None) -> Path:
    """See `orchestrator.run.comparison.write_comparison`."""
    from orchestrator.daemon.http.page import STUDIO
    from orchestrator.run.comparison import write_comparison

    viewer = next((STUDIO / "assets").glob("viewer-*.js")).read_text(encoding="utf-8")
    return write_comparison(runs, out, viewer=viewer, title=title)
