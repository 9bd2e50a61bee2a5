"""`dreamkiln text-to-3d`: one sentence becomes one mesh."""

from __future__ import annotations

from orchestrator.cli import common

NAME = "text-to-3d"
HELP = "Make a 3D mesh from a sentence."


def command(
    prompt: common.Prompt,
    overrides: common.Overrides = None,
    out: common.Out = None,
    seed: common.Seed = 0,
    formats: common.Formats = None,
    steps: common.FitSteps = None,
    guidance_scale: common.FitGuidanceScale = None,
    negative_prompt: common.FitNegativePrompt = None,
    preview_every: common.FitPreviewEvery = None,
    prior: common.PriorName = None,
    strict: common.Strict = False,
    preset: common.Preset = None,
    runtime: common.RuntimeName = None,
    local: common.Local = False,
    state: common.State = None,
    json: common.Json = False,
) -> int:
    """Compose the settings, then run the job."""
    from jobs.words.prompts import check_prompt

    check_prompt(prompt)  # before anything slow is imported
    from orchestrator.client.prepared_job import compose_here, prepare_text_to_3d

    options = {
        "preset": preset,
        "prior.source": prior,
        "prior.strict": strict or None,
        "export.formats": common.chosen_formats(formats),
        **common.fit_options(steps, guidance_scale, negative_prompt, preview_every),
    }
    job = prepare_text_to_3d(prompt, compose_here(overrides or (), options), seed=seed, out=out)
    return common.run_job(job, runtime=runtime, is_local=local, state=state, as_json=json)
