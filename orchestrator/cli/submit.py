"""`dreamkiln submit`: queue jobs on the running orchestrator."""

from __future__ import annotations

import getpass
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.errors import InputError
from orchestrator.cli import common, image_options

if TYPE_CHECKING:
    from orchestrator.prepared_job import PreparedJob

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
    out: Annotated[
        Path | None,
        typer.Option(
            parser=common.folder, metavar="<path>", help="Run folder; with --prompts or --best-of the folder of run folders."
        ),
    ] = None,
    seed: common.Seed = 0,
    best_of: Annotated[int, typer.Option(help="So many jobs with seeds from --seed on; see --metric.")] = 1,
    metric: Annotated[str | None, typer.Option(help="With --best-of: largest wins; without it the first to finish.")] = None,
    formats: common.Formats = None,
    prior: common.PriorName = None,
    strict: common.Strict = False,
    preset: common.Preset = None,
    user: User = None,
    priority: Priority = 0,
    key: Key = None,
    paused: Paused = False,
    state: common.State = None,
    json: common.Json = False,
) -> None:
    """Compose the specs here, where their mistakes can be shown, then send them."""
    client = _client(state)
    options = {
        "preset": preset,
        "prior.source": prior,
        "prior.strict": strict or None,
        "export.formats": common.chosen_formats(formats),
    }
    fields = {"user": user or getpass.getuser(), "is_paused": paused, "priority": priority}
    folder = client.folder.path
    if prompts is not None:
        if best_of != 1 or metric is not None or key is not None:
            raise InputError("--best-of, --metric and --key go with one prompt; a table says seeds and keys row by row.")
        words = [*([prompt] if prompt is not None else []), *(overrides or ())]
        _send(client, _from_table(prompts, words, options, seed=seed, out=out, state=folder, fields=fields), None, as_json=json)
        return
    if prompt is None:
        raise InputError('There is no prompt; give one in quotes, such as "a red mushroom", or a table: --prompts.')
    if best_of < 1:
        raise InputError(f"--best-of is {best_of}; give at least 1.")
    if best_of == 1 and metric is not None:
        raise InputError("--metric chooses among the jobs of --best-of; give that too.")
    from orchestrator.prepared_job import compose_here, prepare_text_to_3d

    settings = compose_here(overrides or (), options)
    jobs = [prepare_text_to_3d(prompt, settings, seed=seed + number, out=out) for number in range(best_of)]
    if best_of == 1:
        _send(client, [jobs[0].request(state=folder, **fields, idempotency_key=key)], None, as_json=json)
        return
    requests = []
    for job in jobs:
        if out is not None:
            job = replace(job, out=str(out / job.spec.name))
        own = None if key is None else f"{key} seed {job.spec.seed}"
        requests.append(job.request(state=folder, **fields, idempotency_key=own))
    _send(client, requests, {"name": f"{prompt}, best of {best_of}", "metric": metric}, as_json=json)


@app.command(name="images", help="Queue images from a sentence or from a picture, or with --prompts from a table of prompts.")
@common.with_options_of(image_options.prepare)
def images(
    prepare: Callable[[], PreparedJob],
    user: User = None,
    priority: Priority = 0,
    key: Key = None,
    paused: Paused = False,
    state: common.State = None,
    json: common.Json = False,
) -> None:
    """Likewise."""
    client = _client(state)
    job = prepare()
    if job.mode == "overwrite" and key is not None:
        raise InputError("--overwrite and --key exclude each other: the files would go, and the same key makes no new job.")
    fields = {"user": user or getpass.getuser(), "priority": priority, "is_paused": paused, "idempotency_key": key}
    _send(client, [job.request(state=client.folder.path, **fields)], None, as_json=json)


def _client(state: Path | None) -> Any:
    """Before anything slow is imported, whether there is somebody to submit to."""
    from orchestrator.daemon.client import Client
    from orchestrator.daemon.state_folder import StateFolder

    client = Client(StateFolder.find(state))
    client.get("/health")
    return client


def _from_table(
    prompts: str,
    overrides: Sequence[str],
    options: Mapping[str, Any],
    *,
    seed: int,
    out: Path | None,
    state: Path,
    fields: Mapping[str, Any],
) -> list[dict[str, Any]]:
    from orchestrator.daemon.prompt_table import read_jobs
    from orchestrator.prepared_job import compose_here, prepare_text_to_3d

    requests = []
    for row in read_jobs(prompts, lambda own: compose_here([*overrides, *own], options), seed=seed):
        job = prepare_text_to_3d(row.prompt, row.settings, seed=row.seed, out=row.out)
        if row.out is None and out is not None:
            job = replace(job, out=str(out / job.spec.name))
        own = {"idempotency_key": row.key, **({} if row.priority is None else {"priority": row.priority})}
        requests.append(job.request(state=state, **{**fields, **own}))
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
