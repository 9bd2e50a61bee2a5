"""What the façade adds to the packages below: jobs from Python values, and the recipes in memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from jobs.errors import InputError
from jobs.events import Event, ImageReady
from jobs.extensions import name_of
from jobs.prior_client import PriorClient
from jobs.text_to_3d import TextTo3DResult
from nerf3d.mesh import Mesh
from orchestrator.batch.job_folder import Mode
from orchestrator.batch.perform import BatchOutcome
from orchestrator.client.client import Client
from orchestrator.client.prepared_job import PreparedJob, compose_here, prepare_images, prepare_table, prepare_text_to_3d
from orchestrator.client.remote import RemoteClient
from orchestrator.client.waiting_client import SubmittedJob, submit_job
from orchestrator.exports import MESH_WRITERS, Placement
from orchestrator.host.progress_display import SilentDisplay, make_display
from orchestrator.host.state_folder import StateFolder
from orchestrator.host.user import user_name
from orchestrator.lab.evaluation.evaluate import evaluate as evaluate_runs
from orchestrator.lab.evaluation.report import ImagesReport, MeshesReport
from orchestrator.prior import local
from orchestrator.prior.local import LocalPrior
from orchestrator.run.perform import Outcome
from orchestrator.runtimes.base import resolve_device
from orchestrator.settings.batch import BatchSettings
from orchestrator.settings.compose import Settings

Values = Mapping[str, Any]
"""{"group.key": value}, as `dreamkiln settings` lists them; {"preset": name} and {"group": name} choose."""
Result = TypeVar("Result")


def mesh_job(
    prompt: str,
    settings: Values | None = None,
    *,
    overrides: Sequence[str] = (),
    seed: int = 0,
    out: str | Path | None = None,
) -> PreparedJob:
    """One mesh from a sentence, checked and ready to be run or submitted.

    Args:
        settings: {"group.key": value}. `distillation.form` and `field.kind` also take a function or class of one's own.
        overrides: more settings as texts, "group.key=value", as a command line has them.
        out: the run folder; by default runs/<slug>-<hash>, so that the same job continues.

    Raises:
        InputError: a setting or the prompt is not allowed.
    """
    return prepare_text_to_3d(prompt, _compose(settings, overrides), seed=seed, out=None if out is None else Path(out))


def images_job(
    prompt: str,
    settings: Values | None = None,
    *,
    overrides: Sequence[str] = (),
    seed: int = 0,
    out: str | Path | None = None,
    init_image: str | Path | None = None,
    mask: str | Path | None = None,
) -> PreparedJob:
    """Pictures of one sentence, or with `init_image` of what is to become of a picture; picture i is drawn from seed + i.

    Raises:
        InputError: a setting, the prompt or a picture is not allowed.
    """
    if mask is not None and init_image is None:
        raise InputError(f"There is a mask ({mask}) but no picture that it belongs to; give init_image as well.")
    paths = {"init_image": init_image, "mask": mask, "out": out}
    return prepare_images(
        prompt,
        _compose(settings, overrides),
        seed=seed,
        **{name: None if path is None else Path(path) for name, path in paths.items()},
    )


def table_job(
    prompts: str | Path,
    settings: Values | None = None,
    *,
    overrides: Sequence[str] = (),
    seed: int = 0,
    out: str | Path | None = None,
    mode: Mode = "resume",
    num_workers: int = 4,
    prompt_column: str | None = None,
    shard_size: int | None = None,
    output_format: str | None = None,
) -> PreparedJob:
    """One picture for each row of a table; see docs/batch_images.md.

    Args:
        prompts: a txt, csv, jsonl or parquet file, a folder, a glob or a URL of them.
        mode: "resume", "overwrite" or "retry-failed". num_workers: shards in flight at once.

    Raises:
        InputError: the table or a setting is not allowed.
    """
    shaping = {"prompt_column": prompt_column, "shard_size": shard_size, "output_format": output_format}
    batch = BatchSettings(prompts=str(prompts), num_workers=num_workers)
    where = None if out is None else str(out)
    return prepare_table(batch, _compose(settings, overrides), seed=seed, out=where, shaping=shaping, mode=mode)


def run(job: PreparedJob, *, show_progress: bool = False) -> Outcome | BatchOutcome:
    """Do the job here and now; repeated, it continues where it stopped.

    Args:
        show_progress: bars or lines on stderr.

    Raises:
        InputError, OutputError: it cannot be done as it is. JobFailed: it could not be finished.
    """
    with make_display() if show_progress else SilentDisplay() as display:
        return job.perform(display=display)


def text_to_3d(prompt: str, settings: Values | None = None, *, show_progress: bool = False, **others: Any) -> Outcome:
    """`run(mesh_job(...))`, as `dreamkiln text-to-3d --local` does."""
    outcome = run(mesh_job(prompt, settings, **others), show_progress=show_progress)
    assert isinstance(outcome, Outcome)
    return outcome


def images(prompt: str, settings: Values | None = None, *, show_progress: bool = False, **others: Any) -> Outcome:
    """`run(images_job(...))`, as `dreamkiln images --local` does."""
    outcome = run(images_job(prompt, settings, **others), show_progress=show_progress)
    assert isinstance(outcome, Outcome)
    return outcome


def load_prior(source: str = "toybox", device: str = "auto") -> LocalPrior:
    """A prior in this process, for one thread: "toybox", a folder, a file or a hub name (docs/checkpoints.md).

    Args:
        device: "auto" (CUDA where there is one), or a torch device.

    Raises:
        InputError: it is missing, damaged or does not fit together, or there is no such device.
    """
    return local.load_prior(source, resolve_device(device))


def generate(
    prior: PriorClient,
    prompt: str,
    settings: Values | None = None,
    *,
    overrides: Sequence[str] = (),
    num_images: int = 1,
    seed: int = 0,
) -> np.ndarray:
    """Pictures in memory, the same as those of `images` with these settings.

    Returns:
        uint8 (num_images, H, W, 3).

    Raises:
        InputError: a setting or the prompt is not allowed. PriorFailed: the prior stopped answering.
    """
    from jobs.images import images as recipe

    spec = _compose({**(settings or {}), "images.num_images": num_images}, overrides).image_job(prompt, seed=seed)
    pictures: dict[int, np.ndarray] = {}

    def keep(event: Event) -> None:
        if isinstance(event, ImageReady):
            pictures[event.index] = event.image

    _drive(recipe(spec, prior), keep)
    return np.stack([pictures[index] for index in range(num_images)])


def fit(
    prior: PriorClient,
    prompt: str,
    settings: Values | None = None,
    *,
    overrides: Sequence[str] = (),
    seed: int = 0,
    device: str = "auto",
    on_event: Callable[[Event], None] = lambda event: None,
) -> TextTo3DResult:
    """Distil a field from a prior and cut it to a mesh, in memory.

    Args:
        on_event: told of progress, messages and checkpoints (`jobs.events`) as they come.

    Raises:
        InputError: a setting or the prompt is not allowed. JobFailed: nothing came of it, or the prior failed.
    """
    from jobs.text_to_3d import text_to_3d as recipe

    spec = _compose(settings, overrides).text_to_3d(prompt, seed=seed)
    return _drive(recipe(spec, prior, device=resolve_device(device)), on_event)


def write_mesh(mesh: Mesh, path: str | Path, placement: Placement | None = None, *, prompt: str = "") -> list[Path]:
    """Write a mesh as .glb, .gltf, .obj, .ply, .stl, .3mf or .usdz; returns every file that was written.

    Args:
        placement: how large it is and where it stands; a metre long, around the origin, unless told.
        prompt: kept in the file where the format can.

    Raises:
        InputError: another suffix. OutputError: the place cannot be written.
    """
    path = Path(path)
    write = MESH_WRITERS.get(path.suffix.removeprefix(".").lower())
    if write is None:
        raise InputError(f"{path} has none of the suffixes of a mesh file; give one of .{', .'.join(MESH_WRITERS)}.")
    return write(mesh, path, placement or Placement(), prompt=prompt)


def evaluate(runs: Sequence[str | Path] = (), *, out: str | Path | None = None, **settings: Any) -> ImagesReport | MeshesReport:
    """Score pictures or meshes, as `dreamkiln evaluate`; without runs, pictures that the prior draws now.

    Args:
        runs: run folders of one kind. out: where report.json and report.png go.
        settings: fields of `orchestrator.lab.evaluation.settings.EvaluationSettings`.

    Raises:
        InputError: a run, a setting, the prior or its judge cannot be used.
    """
    report, _ = evaluate_runs(list(runs) or ["images"], out=None if out is None else Path(out), overrides=settings)
    return report


def connect(state: str | Path | None = None, *, token: str | None = None) -> Client:
    """A running orchestrator: of a state folder ($DREAMKILN_STATE or ~/.dreamkiln), or at a URL on another machine.

    Args:
        state: the folder, or "http://HOST:PORT" or "https://HOST". token: of a URL; $DREAMKILN_TOKEN unless told.

    Raises:
        NotRunningError: nobody answers. InputError: a URL without a token.
    """
    if isinstance(state, str) and "://" in state:
        client: Client = RemoteClient(state, token or os.environ.get("DREAMKILN_TOKEN"))
    else:
        client = Client(StateFolder.find(None if state is None else Path(state)))
    client.get("/health")
    return client


def submit(job: PreparedJob, *, client: Client | None = None, priority: int = 0, key: str | None = None) -> SubmittedJob:
    """Queue a job on a running orchestrator, which goes on with it whatever becomes of this process.

    Args:
        priority: larger goes first, -1000 to 1000. key: submitting it again gives the same job.

    Raises:
        NotRunningError: there is no orchestrator. InputError: it refuses the job.
    """
    return submit_job(job, client or connect(), user=user_name(), priority=priority, idempotency_key=key)


def _compose(settings: Values | None, overrides: Sequence[str]) -> Settings:
    values = {key: name_of(value) if callable(value) else value for key, value in (settings or {}).items()}
    return compose_here(overrides, values)


def _drive(recipe: Generator[Event, None, Result], on_event: Callable[[Event], None]) -> Result:
    while True:
        try:
            on_event(next(recipe))
        except StopIteration as finished:
            return finished.value
