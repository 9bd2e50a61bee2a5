"""A texture job from the mesh's file to a run folder, in this process."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from jobs.errors import InputError
from jobs.events import Message, Progress
from jobs.texture import TextureResult, TextureSpec, texture
from orchestrator.exports import MESH_WRITERS, Placement, write_contact_sheet, write_turntable
from orchestrator.exports.check import check_file
from orchestrator.host.progress_display import Display, SilentDisplay
from orchestrator.host.threads import use_threads
from orchestrator.prior.source import PriorLoader, check_prior, loading
from orchestrator.run.folder import RunFolder, default_folder
from orchestrator.run.given_mesh import GivenMesh
from orchestrator.run.manifest import noting_the_end
from orchestrator.run.perform import Outcome, artefact_order, shaping
from orchestrator.runtimes.base import resolve_device
from orchestrator.settings.groups import ExportSettings, RuntimeSettings

__all__ = ["texture_mesh"]


def texture_mesh(
    spec: TextureSpec,
    given: GivenMesh,
    *,
    out: Path | None = None,
    export: ExportSettings | None = None,
    runtime: RuntimeSettings | None = None,
    display: Display | None = None,
    load_prior: PriorLoader | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Paint the mesh and write it where it stands and as large as it is, with a preview and a turntable.

    Args:
        spec: of this mesh. out: the run folder; `runs/<slug>-<hash>` by default.

    Raises:
        InputError: the mesh is not the spec's, the folder belongs to another job, or the prior cannot be loaded.
        OutputError: a file cannot be written.
        JobFailed: the job could not be finished.
        Interrupted: Ctrl-C or SIGTERM; the same call begins anew.
    """
    from orchestrator.prior import local

    export, runtime, display = export or ExportSettings(), runtime or RuntimeSettings(), display or SilentDisplay()
    check_prior(spec.prior)
    if given.digest != spec.mesh_sha256:
        raise InputError(f"The mesh {given.path} has changed since the job was made; make another one of it.")
    turntable = ("turntable.mp4|turntable.webp",) if export.turntable_frames else ()
    expected = (*(f"mesh.{name}" for name in spec.formats), "preview.png", *turntable)
    path = default_folder(spec) if out is None else out
    with RunFolder(path, spec, expected) as folder:
        if folder.plan.action == "nothing to do":
            names = artefact_order(folder.manifest.get("artefacts", {}))
            return Outcome(path, names, "nothing to do", {}, folder.manifest.get("metrics", {}))
        device = resolve_device(runtime.device)
        use_threads(runtime.num_threads)
        begin = clock()
        display.event(loading(spec.prior))
        prior = (load_prior or local.load_prior)(spec.prior, device)
        info = prior.info()
        folder.begin(info, device=device, settings={"export": shaping(export), "mesh_file": str(given.path.resolve())})
        display.event(Progress(stage="start", step=1, total=1))
        seconds = {"start": clock() - begin}
        messages: list[str] = []

        def say(text: str, level: str = "info") -> None:
            messages.append(text)
            display.message(text, level)

        stopped = f"Stopped in {path}; the same command begins anew."
        with noting_the_end(folder.stop, lambda: stopped):
            for note in given.mesh.notes:
                say(note.text, "warning" if note.is_warning else "info")
            result = _painted(spec, given, prior, device, folder, display, say, clock)
            begin = clock()
            written = _write(result, given, folder, spec, export, prior_hash=info.weights_hash)
        seconds |= {**result.seconds, "export": clock() - begin}
        folder.finish(seconds=seconds, metrics=result.metrics())
        return Outcome(path, artefact_order(written), folder.plan.action, seconds, result.metrics(), tuple(messages))


def _painted(spec, given, prior, device, folder, display, say, clock) -> TextureResult:
    """The recipe's result, its events shown and logged."""
    steps = texture(spec, replace(given.mesh, notes=()), prior, device=device, clock=clock)
    while True:
        try:
            event = next(steps)
        except StopIteration as finished:
            return finished.value
        if isinstance(event, Progress):
            folder.log(event)
            display.event(event)
        elif isinstance(event, Message):
            say(event.text, event.level)


def _write(
    result: TextureResult, given: GivenMesh, folder: RunFolder, spec: TextureSpec, export: ExportSettings, *, prior_hash: str
) -> list[str]:
    """Every file that is missing; returns the names of all that were written."""
    longest = float(np.asarray(given.mesh.extents, np.float64).max())
    placement = Placement(size_metres=longest, print_millimetres=export.print_millimetres, origin="kept")
    names: list[str] = []

    def record(paths: list[Path], found: dict | None = None) -> None:
        folder.record(paths, found)
        names.extend(one.name for one in paths)

    missing = folder.plan.missing
    for name in (name for name in missing if name.startswith("mesh.")):
        paths = MESH_WRITERS[Path(name).suffix[1:]](result.mesh, folder.file(name), placement, prompt=spec.prompt)
        record(paths, check_file(paths[0], result.mesh, placement))
    metadata = {"prompt": spec.prompt, "seed": str(spec.seed), "prior_hash": prior_hash}
    record([write_contact_sheet(result.mesh, folder.file("preview.png"), size=export.preview_size, metadata=metadata)])
    if export.turntable_frames:
        target = folder.file("turntable.mp4")
        record([write_turntable(result.mesh, target, num_frames=export.turntable_frames, size=export.turntable_size)])
    return names
