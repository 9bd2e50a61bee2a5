"""`dreamkiln text-to-3d`: one sentence becomes one mesh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from orchestrator.cli import common

NAME = "text-to-3d"
HELP = "Make a 3D mesh from a sentence."


@common.with_options_of(common.mesh_options)
def command(
    options: Callable[[], dict[str, Any]],
    prompt: common.Prompt,
    overrides: common.Overrides = None,
    out: common.Out = None,
    seed: common.Seed = 0,
    runtime: common.RuntimeName = None,
    local: common.Local = False,
    state: common.State = None,
    json: common.Json = False,
) -> int:
    """Compose the settings, then run the job."""
    from jobs.words.prompts import check_prompt

    check_prompt(prompt)  # before anything slow is imported
    from orchestrator.client.prepared_job import compose_here, prepare_text_to_3d

    job = prepare_text_to_3d(prompt, compose_here(overrides or (), options()), seed=seed, out=out)
    return common.run_job(job, runtime=runtime, is_local=local, state=state, as_json=json)
