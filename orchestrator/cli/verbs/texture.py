"""`dreamkiln texture`: a mesh that is there already is painted as a sentence says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli import common

if TYPE_CHECKING:
    from orchestrator.client.prepared_job import PreparedJob

NAME = "texture"
HELP = "Paint a mesh (GLB, OBJ, PLY) as a sentence says; it keeps its shape, its size and, if usable, its UV map."
EPILOG = (
    "It stands upright, its front towards +Z (in a PLY towards -Y). Settings: texture.*, distillation.*, export.*, runtime.*"
)

MeshFile = Annotated[Path, typer.Argument(help="GLB, glTF, OBJ or PLY.", show_default=False)]
Up = Annotated[str | None, typer.Option(help="The file's upward axis, y or z; z for PLY, y for the others.")]
Steps = Annotated[int | None, typer.Option("--steps", help="Steps of the fit of the colours.")]


def prepare(
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
    lora: common.Loras = None,
    embedding: common.Embeddings = None,
    strict: common.Strict = False,
) -> PreparedJob:
    """The job with its mesh, everything checked. Raises InputError."""
    from jobs.words.prompts import check_prompt

    check_prompt(prompt)  # before anything slow is imported
    from orchestrator.client.prepared_job import compose_here, prepare_texture
    from orchestrator.run.given_mesh import GivenMesh

    options: dict[str, Any] = {
        "prior.source": prior,
        "prior.strict": strict or None,
        "prior.loras": lora,
        "prior.embeddings": embedding,
        "export.formats": common.chosen_formats(formats),
        "texture.num_steps": steps,
        "distillation.guidance_scale": guidance_scale,
        "distillation.negative_prompt": negative_prompt,
    }
    settings = compose_here(overrides or (), options)
    return prepare_texture(GivenMesh.read(mesh, up=up), prompt, settings, seed=seed, out=out)


@common.with_options_of(prepare)
def command(
    prepare: Callable[[], PreparedJob], local: common.Local = False, state: common.State = None, json: common.Json = False
) -> int:
    """Check everything, then paint: on a running orchestrator, or in this process."""
    return common.run_job(prepare(), runtime=None, is_local=local, state=state, as_json=json)
