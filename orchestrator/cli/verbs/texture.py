"""`dreamkiln texture`: a mesh that is there already is painted as a sentence says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.cli import common

NAME = "texture"
HELP = "Paint a mesh (GLB, OBJ, PLY) as a sentence says; it keeps its shape, its size and, if usable, its UV map."
EPILOG = (
    "It stands upright, its front towards +Z (in a PLY towards -Y). Settings: texture.*, distillation.*, export.*, runtime.*"
)

MeshFile = Annotated[Path, typer.Argument(help="GLB, glTF, OBJ or PLY.", show_default=False)]
Up = Annotated[str | None, typer.Option(help="The file's upward axis, y or z; z for PLY, y for the others.")]
Steps = Annotated[int | None, typer.Option("--steps", help="Steps of the fit of the colours.")]


def command(
    mesh: MeshFile,
    prompt: common.Prompt,
    overrides: common.Overrides = None,
    out: common.Out = None,
    up: Up = None,
    seed: common.Seed = 0,
    formats: common.Formats = None,
    steps: Steps = None,
    guidance_scale: common.FitGuidanceScale = None,
    negative_prompt: common.FitNegativePrompt = None,
    prior: common.PriorName = None,
    strict: common.Strict = False,
    json: common.Json = False,
) -> int:
    """Check everything, then paint in this process."""
    from jobs.words.prompts import check_prompt

    check_prompt(prompt)  # before anything slow is imported
    from jobs.texture import TextureSpec
    from orchestrator.client.prepared_job import compose_here
    from orchestrator.host.progress_display import make_display
    from orchestrator.host.signals import stop_signals_interrupt
    from orchestrator.run.given_mesh import GivenMesh
    from orchestrator.run.texturing import texture_mesh

    options: dict[str, Any] = {
        "prior.source": prior,
        "prior.strict": strict or None,
        "export.formats": common.chosen_formats(formats),
        "texture.num_steps": steps,
        "distillation.guidance_scale": guidance_scale,
        "distillation.negative_prompt": negative_prompt,
    }
    settings = compose_here(overrides or (), options)
    given = GivenMesh.read(mesh, up=up)
    spec = TextureSpec(
        prompt=prompt,
        mesh_sha256=given.digest,
        up=given.up,
        seed=seed,
        prior=settings.prior.source,
        strict=settings.prior.strict,
        formats=settings.export.formats,
        texture=settings.texture,
        distillation=settings.distillation,
    )
    common.set_run_folder(out)
    with stop_signals_interrupt(), make_display(stream=sys.stderr) as display:
        outcome = texture_mesh(spec, given, out=out, export=settings.export, runtime=settings.runtime, display=display)
    common.say_outcome(outcome, as_json=json)
    return 0
