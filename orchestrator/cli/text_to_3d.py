"""`dreamkiln text-to-3d`: one sentence becomes one mesh."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli import common

NAME = "text-to-3d"
HELP = "Make a 3D mesh from a sentence."


def command(
    prompt: common.Prompt,
    overrides: common.Overrides = None,
    out: common.Out = None,
    seed: common.Seed = 0,
    formats: Annotated[str | None, typer.Option("--format", help="Mesh files: glb,obj,ply,stl.")] = None,
    prior: common.PriorName = None,
    preset: common.Preset = None,
    runtime: common.RuntimeName = None,
    json: common.Json = False,
) -> None:
    """Compose the settings, then run the job."""
    from jobs.prompts import check_prompt

    check_prompt(prompt)  # before anything slow is imported
    from orchestrator.compose import compose

    chosen = None if formats is None else [name.strip().lower() for name in formats.split(",") if name.strip()]
    options = {"preset": preset, "prior.source": prior, "runtime": runtime, "export.formats": chosen}
    settings = compose(overrides or (), options=options)
    common.run_job(settings.text_to_3d(prompt, seed=seed), settings, out=out, as_json=json)
