"""`dreamkiln submit`: queue jobs on the running orchestrator."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.errors import DreamKilnError, InputError
from jobs.words.safe_text import shown
from orchestrator.cli import common, image_options
from orchestrator.cli.verbs import export as export_verb
from orchestrator.cli.verbs import texture as texture_verb

if TYPE_CHECKING:
    from orchestrator.client.prepared_job import PreparedJob

NAME = "submit"
HELP = "Queue jobs on the running orchestrator; prints their numbers."
FIRST = "first"
"""Instead of a metric: whoever finishes first wins, and the others are cancelled."""

MAX_BEST_OF = 1000
JOBS_PER_REQUEST = 500

TRY_PREVIEW_EVERY = 40
"""Fit steps between two previews of a try of --best-of, so that one that is ended early leaves a picture."""

User = Annotated[str | None, typer.Option(help="Whose share they take; you.")]
Priority = Annotated[int, typer.Option(help="Larger goes first, -1000 to 1000.")]
Key = Annotated[str | None, typer.Option(help="Idempotency key: submitting it again gives the same job.")]
Paused = Annotated[bool, typer.Option("--paused", help="Queue without starting; 'jobs resume' starts it.")]

app = typer.Typer(no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})


@app.callback()
def submit() -> None:
    """A group: one verb per kind of job."""


@app.command(name="text-to-3d", help="Queue a mesh from a sentence, or with --prompts a table of them.")
@common.with_options_of(common.mesh_options)
def text_to_3d(
    options: Callable[[], dict[str, Any]],
    prompt: common.OptionalPrompt = None,
    overrides: common.Overrides = None,
    prompts: Annotated[
        str | None, typer.Option(help="Table with a column 'prompt'; also seed, out, priority, key, and settings by name.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; with --prompts or --best-of the folder of run folders.")] = None,
    seed: common.Seed = 0,
    best_of: Annotated[int, typer.Option(help="So many jobs with seeds from --seed on; see --metric.")] = 1,
    metric: Annotated[str | None, typer.Option(help="With --best-of: the largest wins, or 'first' to finish.")] = None,
    user: User = None,
    priority: Priority = 0,
    key: Key = None,
    paused: Paused = False,
    state: common.State = None,
    json: common.Json = False,
) -> None:
    """Compose the specs here, where their mistakes can be shown, then send them."""
    client = _client(state)
    fields = {"user": user or common.user_name(), "is_paused": paused, "priority": priority}
    if prompts is not None:
        if best_of != 1 or metric is not None or key is not None:
            raise InputError("--best-of, --metric and --key go with one prompt; a table says seeds and keys row by row.")
        words = common.settings_beside_table(prompts, prompt, overrides)
        jobs = _of_table(prompts, words, options(), seed=seed, out=out, client=client, fields=fields)
        _send(client, jobs, None, as_json=json)
        return
    prompt = common.needed_prompt(prompt)
    if not 1 <= best_of <= MAX_BEST_OF:
        raise InputError(f"--best-of is {best_of:,}; give 1 to {MAX_BEST_OF:,}.")
    if best_of == 1 and metric is not None:
        raise InputError("--metric chooses among the jobs of --best-of; give that too.")
    metric = _chosen_metric(metric, has_clip=bool(options().get("prior.clip")))
    seeds = range(seed, seed + best_of)
    jobs = _of_seeds(prompt, overrides or [], options(), seeds=seeds, out=out, key=key, client=client, fields=fields)
    group = {"name": f"{prompt}, best of {best_of}", "metric": metric} if best_of > 1 else None
    _send(client, jobs, group, as_json=json)


def _prepared(
    prepare: Callable[[], PreparedJob],
    user: User = None,
    priority: Priority = 0,
    key: Key = None,
    paused: Paused = False,
    state: common.State = None,
    json: common.Json = False,
) -> None:
    """Queue a job that is prepared here, where its faults can be shown."""
    client = _client(state)
    job = prepare()
    if job.mode == "overwrite" and key is not None:
        raise InputError("--overwrite and --key exclude each other: the files would go, and the same key makes no new job.")
    fields = {"user": user or common.user_name(), "priority": priority, "is_paused": paused, "idempotency_key": key}
    _send(client, [client.request_of(job, **fields)], None, as_json=json)


for _name, _prepare, _help in (
    (
        "images",
        image_options.prepare,
        "Queue images from a sentence, from a picture, or with --prompts from a table of prompts.",
    ),
    ("texture", texture_verb.prepare, "Queue a mesh to be painted as a sentence says; see 'dreamkiln texture'."),
):
    app.command(name=_name, help=_help)(common.with_options_of(_prepare)(_prepared))


@app.command(name="export", help="Queue finished 3D runs to be cut and written again; see 'dreamkiln export'.")
def export(
    runs_and_settings: export_verb.Runs,
    out: export_verb.Out = None,
    formats: common.Formats = None,
    user: User = None,
    priority: Priority = 0,
    key: Key = None,
    paused: Paused = False,
    state: common.State = None,
    json: common.Json = False,
) -> None:
    """A job a run; what cannot be exported is said here, before anything is queued."""
    client = _client(state)
    folders, settings = export_verb.split(runs_and_settings, formats)
    from jobs.specs import ExportSpec
    from orchestrator.run.export import FinishedRun

    if key is not None and len(folders) > 1:
        raise InputError(f"--key stands for one job, and there are {len(folders)} runs.")
    fields = {"user": user or common.user_name(), "priority": priority, "is_paused": paused, "idempotency_key": key}
    if (remote := common.remote_client()) is not None:
        fields = {"priority": priority, "is_paused": paused, "key": key}
        _send(remote, [remote.export_of(job, settings, **fields) for job in export_verb.numbers(folders)], None, as_json=json)
        return
    requests = []
    for folder in folders:
        FinishedRun.read(folder).changed(settings)
        spec = ExportSpec(run=str(folder.resolve()), settings=settings)
        target = export_verb.target_of(folder, out, num=len(folders)) or folder
        requests.append({"spec": spec.to_json(), "out": str(target.resolve()), **fields})
    _send(client, requests, None, as_json=json)


def _client(state: Path | None) -> Any:
    """Before anything slow is imported, whether there is somebody to submit to."""
    client = common.running_orchestrator(state)
    client.get("/health")
    return client


def _chosen_metric(metric: str | None, *, has_clip: bool) -> str | None:
    """By what the best of several seeds is chosen; None for the first to finish."""
    from jobs.codec import near_matches
    from jobs.specs import BEST_METRIC, CLIP_METRIC, MESH_METRICS

    known = (*MESH_METRICS, CLIP_METRIC) if has_clip else MESH_METRICS
    if metric is not None and metric not in (*known, FIRST):
        hint = near_matches(metric, known)
        raise InputError(f"There is no metric {metric!r}{hint}; choose one of {', '.join((FIRST, *known))}.")
    return None if metric == FIRST else metric or (CLIP_METRIC if has_clip else BEST_METRIC)


def _of_seeds(
    prompt: str,
    overrides: list[str],
    options: Mapping[str, Any],
    *,
    seeds: Sequence[int],
    out: Path | None,
    key: str | None,
    client: Any,
    fields: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """A request per seed; of several each has its own folder and key."""
    from orchestrator.client.prepared_job import compose_here, prepare_text_to_3d

    settings = compose_here(overrides, options)
    if len(seeds) > 1 and settings.runtime.preview_every == 0 and options.get("runtime.preview_every") is None:
        settings = replace(settings, runtime=replace(settings.runtime, preview_every=TRY_PREVIEW_EVERY))
    requests = []
    for seed in seeds:
        job, own = prepare_text_to_3d(prompt, settings, seed=seed, out=out), key
        if len(seeds) > 1:
            job = _inside(out, job)
            own = None if key is None else f"{key} seed {seed}"
        requests.append(client.request_of(job, **fields, idempotency_key=own))
    return requests


def _of_table(
    prompts: str,
    overrides: list[str],
    options: Mapping[str, Any],
    *,
    seed: int,
    out: Path | None,
    client: Any,
    fields: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """A request per row."""
    from orchestrator.client.prepared_job import compose_here, prepare_text_to_3d
    from orchestrator.client.prompt_table import read_jobs

    requests = []
    for row in read_jobs(prompts, lambda own: compose_here([*overrides, *own], options), seed=seed):
        job = prepare_text_to_3d(row.prompt, row.settings, seed=row.seed, out=row.out)
        if row.out is None:
            job = _inside(out, job)
        own = {"idempotency_key": row.key, **({} if row.priority is None else {"priority": row.priority})}
        requests.append(client.request_of(job, **{**fields, **own}))
    return requests


def _inside(out: Path | None, job: PreparedJob) -> PreparedJob:
    """The job in a folder of its own below --out, where that was given."""
    return job if out is None else replace(job, out=str(out / job.spec.name))


def _send(client: Any, requests: list[dict[str, Any]], group: dict[str, Any] | None, *, as_json: bool) -> None:
    for prior in sorted({request.get("spec", {}).get("prior", "toybox") for request in requests} - {"", "toybox"}):
        print(f"checking the prior {shown(prior)}", file=sys.stderr, flush=True)
    answer = _post(client, requests, group)
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


def _post(client: Any, requests: list[dict[str, Any]], group: dict[str, Any] | None) -> dict[str, Any]:
    """The answer to all of them, which are sent in parts unless they are a group: each is taken in within a second or so.

    Repeated after a failure, what was taken in before is the same jobs.
    """
    if group is not None:
        return client.submit(requests, group)
    jobs: list[dict[str, Any]] = []
    for begin in range(0, len(requests), JOBS_PER_REQUEST):
        try:
            jobs += client.submit(requests[begin : begin + JOBS_PER_REQUEST])["jobs"]
        except DreamKilnError as error:
            if not jobs:
                raise
            message = f"{error} The first {len(jobs):,} of {len(requests):,} jobs are queued; the same command queues the rest."
            raise type(error)(message) from error
        if len(requests) > JOBS_PER_REQUEST:
            print(f"queued {len(jobs):,} of {len(requests):,}", file=sys.stderr, flush=True)
    return {"jobs": jobs, "group": None}
