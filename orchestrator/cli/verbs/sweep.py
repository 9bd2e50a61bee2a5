"""`dreamkiln sweep`: one 3D job for each combination of settings, and a page that compares them."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.errors import DreamKilnError, JobFailed
from orchestrator.cli import common
from orchestrator.cli.verbs.compare import write_page

NAME = "sweep"
HELP = "Make a mesh for each combination of settings (Hydra's multirun: KEY=1,2 seed=0,1) and compare them on one page."
EPILOG = "prompt=… and seed=… vary too. A running orchestrator makes them all; --local makes them here, one after the other."

Settings = Annotated[
    list[str], typer.Argument(metavar="GROUP.KEY=VALUE,VALUE", help="See 'dreamkiln settings'.", show_default=False)
]
Out = Annotated[Path | None, typer.Option(help="Folder of the run folders and compare.html; sweeps/<slug>-<hash>.")]


@common.with_options_of(common.mesh_options)
def command(
    options: Callable[[], dict[str, Any]],
    prompt: common.Prompt,
    overrides: Settings,
    out: Out = None,
    seed: common.Seed = 0,
    local: common.Local = False,
    state: common.State = None,
    json: common.Json = False,
) -> int:
    """Check every run, make them, write the page."""
    from jobs.words.prompts import check_prompt

    check_prompt(prompt)  # before anything slow is imported
    from orchestrator.client.sweep import default_sweep_folder, prepare_sweep, run_here, run_queued
    from orchestrator.host.progress_display import make_display
    from orchestrator.host.signals import stop_signals_interrupt
    from orchestrator.host.state_folder import StateFolder

    folder = out or default_sweep_folder(prompt, overrides)
    jobs = prepare_sweep(prompt, overrides, options(), seed=seed, out=folder)
    client = None if local else common.orchestrator_in(state)
    with stop_signals_interrupt(), make_display(stream=sys.stderr) as display:
        if client is None:
            results = list(run_here(jobs, display=display))
        else:
            where, user = StateFolder.find(state).path, common.user_name()
            results = list(run_queued(jobs, client, state=where, user=user, display=display))
    made = [Path(job.out) for job, _ in results if (Path(job.out) / "manifest.json").exists()]
    page = write_page(made, folder / "compare.html") if made else None
    failures = [result for _, result in results if isinstance(result, DreamKilnError)]
    if json:
        runs = [{"folder": job.out, **_told(result)} for job, result in results]
        print(json_module.dumps({"ok": not failures, "page": str(page) if page else None, "runs": runs}, ensure_ascii=False))
    elif page:
        print(f"{len(results) - len(failures)} of {len(results)} runs are done; open {page} in a browser.")
    if failures:
        raise JobFailed(f"{len(failures)} of {len(results)} runs failed, the first because: {failures[0]}")
    return 0


def _told(result: Any) -> dict[str, Any]:
    return {"error": str(result)} if isinstance(result, DreamKilnError) else {"metrics": dict(result.metrics)}
