"""`dreamkiln submit`: queue jobs on the running orchestrator."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.errors import InputError
from orchestrator.cli import common
from orchestrator.cli.up import State

if TYPE_CHECKING:
    from orchestrator.compose import Settings

NAME = "submit"
HELP = "Queue jobs on the running orchestrator; prints their numbers."

User = Annotated[str | None, typer.Option(help="Whose share they take; you.")]
Priority = Annotated[int, typer.Option(help="Larger goes first, -1000 to 1000.")]
Key = Annotated[str | None, typer.Option(help="Idempotency key: submitting it again gives the same job.")]
Paused = Annotated[bool, typer.Option("--paused", help="Queue without starting; 'jobs resume' starts it.")]

app = typer.Typer(no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})


@app.callback()
def submit() -> None:
    """A group: one verb per kind of job."""


@app.command(name="text-to-3d", help="Queue a mesh from a sentence, or with --prompts a table of them.")
def text_to_3d(
    prompt: Annotated[str | None, typer.Argument(help="What to make, in quotes.", show_default=False)] = None,
    overrides: common.Overrides = None,
    prompts: Annotated[
        str | None, typer.Option(help="Table with a column 'prompt'; also seed, out, priority, key, and settings by name.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; with --prompts or --best-of the folder of run folders.")] = None,
    seed: common.Seed = 0,
    best_of: Annotated[int, typer.Option(help="So many jobs with seeds from --seed on; see --metric.")] = 1,
    metric: Annotated[str | None, typer.Option(help="With --best-of: largest wins; without it the first to finish.")] = None,
    formats: Annotated[str | None, typer.Option("--format", help="Mesh files: glb,obj,ply,stl.")] = None,
    prior: common.PriorName = None,
    preset: common.Preset = None,
    user: User = None,
    priority: Priority = 0,
    key: Key = None,
    paused: Paused = False,
    state: State = None,
    json: common.Json = False,
) -> None:
    """Compose the specs here, where their mistakes can be shown, then send them."""
    client = _client(state)
    chosen = None if formats is None else [name.strip().lower() for name in formats.split(",") if name.strip()]
    options = {"preset": preset, "prior.source": _absolute(prior), "export.formats": chosen}
    common_fields = {"user": user or getpass.getuser(), "is_paused": paused}
    group = None
    if prompts is not None:
        if best_of != 1 or metric is not None or key is not None:
            raise InputError("--best-of, --metric and --key go with one prompt; a table says seeds and keys row by row.")
        requests = _from_table(
            prompts,
            overrides=[*([prompt] if prompt is not None else []), *(overrides or ())],
            options=options,
            seed=seed,
            out=out,
            fields={**common_fields, "priority": priority},
        )
    else:
        if prompt is None:
            raise InputError('There is no prompt; give one in quotes, such as "a red mushroom", or a table: --prompts.')
        if best_of < 1:
            raise InputError(f"--best-of is {best_of}; give at least 1.")
        settings = _compose(overrides or (), options)
        specs = [settings.text_to_3d(prompt, seed=seed + number) for number in range(best_of)]
        fields = {**common_fields, "priority": priority}
        requests = [
            _request(
                spec,
                settings,
                out if best_of == 1 or out is None else out / spec.name,
                **fields,
                idempotency_key=key if key is None or best_of == 1 else f"{key} seed {spec.seed}",
            )
            for spec in specs
        ]
        if best_of > 1:
            group = {"name": f"{specs[0].prompt}, best of {best_of}", "metric": metric}
        elif metric is not None:
            raise InputError("--metric chooses among the jobs of --best-of; give that too.")
    _send(client, requests, group, as_json=json)


@app.command(name="images", help="Queue images from a sentence.")
def images(
    prompt: common.Prompt,
    overrides: common.Overrides = None,
    num_images: Annotated[int | None, typer.Option(help="How many; image i is drawn from seed + i.")] = None,
    out: common.Out = None,
    seed: common.Seed = 0,
    steps: Annotated[int | None, typer.Option(help="Sampler steps.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="s of uncond + s (cond - uncond).")] = None,
    sampler: Annotated[str | None, typer.Option(help="ddpm, ddim, pndm, euler, euler_ancestral, heun or dpmpp_2m.")] = None,
    prior: common.PriorName = None,
    preset: common.Preset = None,
    user: User = None,
    priority: Priority = 0,
    key: Key = None,
    paused: Paused = False,
    state: State = None,
    json: common.Json = False,
) -> None:
    """Likewise."""
    client = _client(state)
    options = {
        "preset": preset,
        "prior.source": _absolute(prior),
        "images.num_images": num_images,
        "images.num_steps": steps,
        "images.guidance_scale": guidance_scale,
        "images.sampler": sampler,
    }
    settings = _compose(overrides or (), options)
    spec = settings.image_job(prompt, seed=seed)
    fields = {"user": user or getpass.getuser(), "priority": priority, "is_paused": paused, "idempotency_key": key}
    _send(client, [_request(spec, settings, out, **fields)], None, as_json=json)


def _client(state: Path | None) -> Any:
    """Before anything slow is imported."""
    from orchestrator.daemon.client import Client
    from orchestrator.daemon.state_folder import StateFolder

    client = Client(StateFolder.find(state))
    client.get("/health")
    return client


def _compose(overrides: Any, options: dict[str, Any]) -> Settings:
    from orchestrator.compose import compose

    return compose(overrides, options=options)


def _absolute(prior: str | None) -> str | None:
    """A folder as the orchestrator finds it, wherever it was started."""
    return str(Path(prior).absolute()) if prior not in (None, "toybox") and Path(str(prior)).is_dir() else prior


def _request(spec: Any, settings: Settings, out: Path | None, **fields: Any) -> dict[str, Any]:
    from jobs.codec import to_plain
    from orchestrator.run_folder import default_folder

    return {
        "spec": spec.to_json(),
        "out": str((out if out is not None else default_folder(spec)).absolute()),
        "settings": {"export": to_plain(settings.export), "runtime": to_plain(settings.runtime)},
        **fields,
    }


def _from_table(
    prompts: str, *, overrides: list[str], options: dict[str, Any], seed: int, out: Path | None, fields: dict[str, Any]
) -> list[dict[str, Any]]:
    from orchestrator.daemon.prompt_table import read_jobs

    requests = []
    for spec, settings, row in read_jobs(prompts, lambda own: _compose([*overrides, *own], options), seed=seed):
        folder = Path(row["out"]) if "out" in row else None if out is None else out / spec.name
        own = {"idempotency_key": row.get("key"), **({"priority": row["priority"]} if "priority" in row else {})}
        requests.append(_request(spec, settings, folder, **{**fields, **own}))
    return requests


def _send(client: Any, requests: list[dict[str, Any]], group: dict[str, Any] | None, *, as_json: bool) -> None:
    answer = client.post("/v1/jobs", {"jobs": requests, **({"group": group} if group else {})})
    if as_json:
        import json as json_module

        print(json_module.dumps({"ok": True, **answer}))
        return
    jobs = answer["jobs"]
    for job in jobs[:10]:
        print(f"Job {job['id']}: {job['out']}" + ("" if job["is_new"] else " (submitted before)"))
    if len(jobs) > 10:
        print(f"… up to job {jobs[-1]['id']}, {len(jobs)} in all")
    which = f" {jobs[0]['id']}" if len(jobs) == 1 else ""
    print(f"  dreamkiln jobs watch{which}")
