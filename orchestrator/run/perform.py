"""One job from spec to finished run folder: the runtime computes, this module watches, writes and reports.

It is the same for both runtimes, which is why they leave the same files.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.batch_images import BatchImagesSpec
from jobs.codec import to_plain
from jobs.errors import InputError, JobFailed, OutputError
from jobs.events import Checkpoint, Event, Finished, ImageReady, ImagesPreview, Message, Progress, ViewsPreview
from jobs.images import EditSource
from jobs.prior_client import PriorInfo
from jobs.specs import ImagesSpec, JobSpec, TextTo3DSpec
from orchestrator.host.atomic import clear_output_errors
from orchestrator.host.progress_display import Display, SilentDisplay
from orchestrator.host.signals import stopping_after_checkpoint
from orchestrator.prior.source import PriorLoader, check_prior, loading
from orchestrator.run import artefacts, cost
from orchestrator.run.curves import PICTURE, TensorBoard, fit_curves, write_progress_picture
from orchestrator.run.edit_pictures import INIT_IMAGE, MASK, EditPictures, expected_of_edit
from orchestrator.run.folder import PROGRESS, RunFolder, default_folder
from orchestrator.run.manifest import first_difference, noting_the_end
from orchestrator.runtimes.base import Attempt, Runtime, leaves_to_device, resolve_device, with_settled_prior
from orchestrator.settings.groups import ExportSettings, RuntimeSettings

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Outcome", "artefact_order", "entered", "make_runtime", "perform", "shaping"]


@dataclass(frozen=True)
class Outcome:
    """A finished job.

    Args:
        folder: the run folder. artefacts: names of the files that were asked for.
        did: "start", "resume" or "nothing to do".
        seconds: stage -> wall-clock seconds of this attempt. metrics: of the finished work.
        messages: sentences for the user.
    """

    folder: Path
    artefacts: tuple[str, ...]
    did: str
    seconds: Mapping[str, float]
    metrics: Mapping[str, Any] = field(default_factory=dict)
    messages: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "folder": str(self.folder),
            "artefacts": {name: str(self.folder / name) for name in self.artefacts},
            "did": self.did,
            "seconds": {stage: round(value, 3) for stage, value in self.seconds.items()},
            "metrics": dict(self.metrics),
            "messages": list(self.messages),
        }


def perform(
    spec: JobSpec,
    *,
    out: Path | str | None = None,
    export: ExportSettings | None = None,
    runtime: RuntimeSettings | None = None,
    display: Display | None = None,
    load_prior: PriorLoader | None = None,
    pictures: EditPictures | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Run `spec` to its end, or go on from where an earlier attempt in the same folder stopped.

    Args:
        out: the run folder; `runs/<slug>-<hash>` by default.
        load_prior: what loads the prior; `orchestrator.prior.local.load_prior` by default.
        pictures: what an editing job starts from; by default the copies that an earlier attempt left in the folder.

    Raises:
        InputError: the folder belongs to another job, or the prior cannot be loaded.
        OutputError: the folder cannot be written.
        JobFailed: the job could not be finished.
        Interrupted: Ctrl-C or SIGTERM; the same call continues.
    """
    export, runtime, display = export or ExportSettings(), runtime or RuntimeSettings(), display or SilentDisplay()
    folder_path = Path(out) if out is not None else default_folder(spec)
    check_prior(spec.prior)
    spec = _settled(spec, runtime)
    with RunFolder(folder_path, spec, _expected(spec, export)) as folder:
        if folder.manifest.get("settings", {}).get("export", shaping(export)) != shaping(export):
            display.message(
                f"The files in {folder_path} were written with other export settings and are left as they are; choose "
                "another --out for files with these.",
                "warning",
            )
        for name in folder.plan.changed:
            display.message(f"{folder.file(name)} was changed since it was written; it is left as it is.", "warning")
        if folder.plan.is_cut_otherwise:
            display.message(_cut_otherwise(folder))
        if folder.plan.action == "nothing to do":
            return Outcome(folder_path, _artefacts(folder), "nothing to do", {}, folder.manifest.get("metrics", {}))
        device = resolve_device(runtime.device, is_elsewhere=bool(runtime.address))
        begin = clock()
        made = make_runtime(spec, runtime, device, load_prior)
        with noting_the_end(folder.stop, lambda: _stopped(folder)), entered(made, runtime, display) as running:
            before = {"ray": clock() - begin} if runtime.kind == "ray" else {}
            return _Attempt(spec, folder, export, runtime, display, pictures, clock).run(running, before)


def _settled(spec: JobSpec, runtime: RuntimeSettings) -> JobSpec:
    if not leaves_to_device(spec):
        return spec
    device = resolve_device(runtime.device, is_elsewhere=bool(runtime.address))
    return with_settled_prior(spec, device, is_elsewhere=bool(runtime.address))


def make_runtime(
    spec: JobSpec | BatchImagesSpec, settings: RuntimeSettings, device: str, load_prior: PriorLoader | None = None
) -> Runtime:
    """The runtime that the settings name, not yet started."""
    from orchestrator.prior import local

    load_prior = load_prior or local.load_prior
    if settings.kind == "inline":
        from orchestrator.runtimes.inline import InlineRuntime

        return InlineRuntime(load_prior, spec.prior, device=device, num_threads=settings.num_threads)
    from orchestrator.runtimes.ray_runtime import RayRuntime

    # torch's optimisers import torch._dynamo at their first step, a second's work that can be done early.
    modules = ("jobs.text_to_3d", "nerfacc", "skimage.measure", "trimesh", "torch._dynamo")
    return RayRuntime(
        load_prior,
        spec.prior,
        device=device,
        num_threads=settings.num_threads,
        modules=modules if isinstance(spec, TextTo3DSpec) else (),
        address=settings.address,
        runs_jobs=isinstance(spec, (TextTo3DSpec, ImagesSpec)),  # a table's shards have actors of their own
    )


@contextlib.contextmanager
def entered(runtime: Runtime, settings: RuntimeSettings, display: Display) -> Iterator[Runtime]:
    """The runtime, entered; that Ray is being started is shown, which may take half a minute."""
    if settings.kind == "ray":
        display.event(Progress(stage="ray", step=0, total=1))
    with runtime as running:
        if settings.kind == "ray":
            display.event(Progress(stage="ray", step=1, total=1))
        yield running


class _Attempt:
    """Turns the events of one attempt into files and a display."""

    def __init__(
        self,
        spec: JobSpec,
        folder: RunFolder,
        export: ExportSettings,
        settings: RuntimeSettings,
        display: Display,
        pictures: EditPictures | None,
        clock: Callable[[], float],
    ) -> None:
        self._spec = spec
        self._folder = folder
        self._export = export
        self._settings = settings
        self._display = display
        self._pictures = pictures
        self._clock = clock
        self._unfinished: dict[int, np.ndarray] = {}
        self._progress = Progress(stage="draw", step=0, total=1)
        self._messages: list[str] = []
        self._begun_at = 0
        self._tensorboard: TensorBoard | None = None
        self._did = folder.plan.action

    def run(self, runtime: Runtime, before: Mapping[str, float]) -> Outcome:
        """Run the recipe to its end and write what came out. before: stage -> seconds of what was done already."""
        folder, begin = self._folder, self._clock()
        self._display.event(loading(self._spec.prior))
        info = runtime.prior_info()
        self._info, self._prior_hash = info, info.weights_hash
        settings = {"runtime": to_plain(self._settings), "export": shaping(self._export)}
        folder.begin(info, device=info.device, settings=settings)
        if self._spec.prior != "toybox":
            self._say(cost.sentence(self._spec, info))
        attempt = self._attempt(info)
        self._tensorboard = self._begin_tensorboard()
        self._display.event(Progress(stage="start", step=1, total=1))
        seconds = {**before, "start": self._clock() - begin}
        try:
            with stopping_after_checkpoint(runtime.ask_for_checkpoint, is_useful=lambda: self._progress.stage == "fit") as stop:
                for event in runtime.run(attempt):
                    if isinstance(event, Finished):
                        break
                    self._handle(event)
                    if isinstance(event, Checkpoint):
                        stop.reached()
                else:
                    raise JobFailed(f"The job {self._spec.name} ended without a result.", job=self._spec.name)
            return self._finish(event, seconds)
        finally:
            self._close_curves()
            if artefacts.PREVIEW not in folder.manifest.get("artefacts", {}):
                artefacts.remove_preview(folder.path)

    def _attempt(self, info: PriorInfo) -> Attempt:
        """What the recipe needs to know of earlier attempts."""
        if isinstance(self._spec, ImagesSpec):
            done = artefacts.images_on_disk(self._folder.path, self._spec)
            self._folder.record(self._folder.file(artefacts.image_name(index)) for index in sorted(done))
            if done and len(done) < self._spec.num_images:
                self._say(f"Continuing: {len(done)} of {self._spec.num_images} images are there.")
            every = self._settings.preview_every
            return Attempt(self._spec, done=done, source=self._edit_source(info), preview_every=every)
        checkpoint = self._folder.load_checkpoint() if self._did == "resume" else None
        if checkpoint is not None:
            self._say(f"Continuing from step {checkpoint.step} of {self._spec.fit.num_steps}.")
            self._begun_at = checkpoint.step
        settings = self._settings
        return Attempt(
            self._spec,
            checkpoint=checkpoint,
            checkpoint_every=settings.checkpoint_every,
            preview_every=settings.preview_every,
            score_every=settings.score_every,
        )

    def _begin_tensorboard(self) -> TensorBoard | None:
        if not self._settings.tensorboard or not isinstance(self._spec, TextTo3DSpec):
            return None
        with clear_output_errors(self._folder.path):
            return TensorBoard(self._folder.path, begun_at=self._begun_at)

    def _close_curves(self) -> None:
        """The curves of a fit that has ended in whatever way, where they are not drawn yet."""
        if self._tensorboard is not None:
            self._tensorboard.close()
        if isinstance(self._spec, TextTo3DSpec) and PICTURE not in self._folder.manifest.get("artefacts", {}):
            with contextlib.suppress(OutputError):  # what ended the fit is the news
                self._draw_curves()

    def _draw_curves(self) -> list[Path]:
        curves = fit_curves(self._folder.file(PROGRESS))
        path = write_progress_picture(curves, self._folder.file(PICTURE), title=self._spec.title)
        return [] if path is None else [path]

    def _edit_source(self, info: PriorInfo) -> EditSource | None:
        """What an editing job starts from, with a copy of it in the folder."""
        spec, folder = self._images, self._folder
        if spec.init_image is None:
            return None
        mask = None if spec.mask is None else folder.file(MASK)
        pictures = self._pictures or EditPictures.read(folder.file(INIT_IMAGE), mask)
        if pictures.hashes != {"init_image": spec.init_image, "mask": spec.mask}:
            names = " and ".join(expected_of_edit(mask=spec.mask is not None))
            raise InputError(f"{names} in {folder.path} are not what the job was begun with; give it --init-image again.")
        source, (height, width, _) = pictures.at_size(spec, info), pictures.image.shape
        if (drawn := tuple(source.image.shape[1:])) != (height, width):
            part = "its centred square is used" if drawn[0] == drawn[1] else f"it is drawn anew at {drawn[1]}x{drawn[0]}"
            if height != width or drawn[0] != drawn[1]:
                self._say(f"The picture has {width}x{height} pixels; {part}.")
        folder.record(pictures.write(folder.path))
        return source

    def _handle(self, event: Event) -> None:
        match event:
            case Progress():
                self._progress = event
                self._folder.log(event)
                if self._tensorboard is not None:
                    self._tensorboard.log(event)
                self._display.event(event)
            case Message(text=text, level=level):
                self._say(text, level)
            case Checkpoint():
                self._folder.save_checkpoint(event)
            case ImageReady(index=index):
                if not self._folder.file(artefacts.image_name(index)).exists():
                    path = artefacts.write_image(event, self._folder.path, self._images, prior_hash=self._prior_hash)
                    self._folder.record([path])
                self._unfinished.pop(index, None)
            case ViewsPreview(images=images):
                is_first = not self._folder.file(artefacts.PREVIEW).exists()
                path = artefacts.write_preview(dict(enumerate(images)), self._folder.path)
                if is_first:
                    self._display.message(f"{path} shows the unfinished object from four sides.")
            case ImagesPreview(indices=indices, images=images, steps=steps):
                self._unfinished |= dict(zip(indices, images, strict=True))
                is_first = not self._folder.file(artefacts.PREVIEW).exists()
                path = artefacts.write_preview(self._unfinished, self._folder.path)
                if is_first:
                    self._display.message(f"{path} shows the unfinished images; it goes when they are finished.")
                self._handle(replace(self._progress, metrics={"denoising_steps": steps}))

    def _finish(self, event: Finished, seconds: dict[str, float]) -> Outcome:
        begin, folder = self._clock(), self._folder
        seconds |= event.seconds
        self._display.event(Progress(stage="export", step=0, total=1))
        if isinstance(self._spec, TextTo3DSpec):
            written = artefacts.write_mesh_files(
                event.result.mesh,
                folder.path,
                self._spec,
                self._export,
                prior_hash=self._prior_hash,
                only=folder.plan.missing,
            )
            for paths, found in written:
                folder.record(paths, found)
            folder.record(self._draw_curves())
            if printed := [name for name in folder.plan.missing if name.endswith((".stl", ".3mf"))]:
                size = f"{self._export.print_millimetres:g} mm on the longest side (export.print_millimetres)"
                self._say(f"For a printer: {' and '.join(printed)}, {size}.")
        else:
            num_drawn, drawing = event.result.num_drawn, event.seconds["draw"]
            paths = artefacts.write_images_summary(
                folder.path, self._images, prior_hash=self._prior_hash, seconds=drawing, num_drawn=num_drawn
            )
            folder.record(paths)
        seconds["export"] = self._clock() - begin
        if self._spec.prior != "toybox":
            self._remember_pace({**event.seconds, "export": seconds["export"]}, event.result)
        self._display.event(Progress(stage="export", step=1, total=1))
        folder.finish(seconds=seconds, metrics=event.metrics)
        return Outcome(folder.path, _artefacts(folder), self._did, seconds, event.metrics, tuple(self._messages))

    def _remember_pace(self, seconds: Mapping[str, float], result: Any) -> None:
        """What the whole of this attempt's work took, for the next job of its kind."""
        if isinstance(self._spec, ImagesSpec):
            working, rest, share = seconds["draw"], 0.0, result.num_drawn / self._spec.num_images
        else:
            working, share = seconds["fit"], 1 - self._begun_at / self._spec.fit.num_steps
            rest = sum(seconds.values()) - working
        if share > 0:
            cost.remember(self._spec, self._info, working, share=share, rest=rest)

    @property
    def _images(self) -> ImagesSpec:
        assert isinstance(self._spec, ImagesSpec)
        return self._spec

    def _say(self, text: str, level: str = "info") -> None:
        self._messages.append(text)
        self._display.message(text, level)


def _cut_otherwise(folder: RunFolder) -> str:
    """What to do about a finished run whose mesh was cut with other settings than are asked for now."""
    assert isinstance(folder.spec, TextTo3DSpec)
    theirs, ours = folder.manifest["spec"].get("mesh", {}), to_plain(folder.spec.mesh)
    wanted = " ".join(f"mesh.{key}={json.dumps(value)}" for key, value in ours.items() if theirs.get(key) != value)
    return (
        f"{folder.path} is finished, its mesh cut with other settings ({first_difference(theirs, ours, 'mesh.')}); its field "
        f"can be cut again in seconds: dreamkiln export {folder.path} {wanted}"
    )


def _expected(spec: JobSpec, export: ExportSettings) -> tuple[str, ...]:
    if isinstance(spec, TextTo3DSpec):
        return artefacts.expected_of_text_to_3d(spec, export)
    return artefacts.expected_of_images(spec)


def shaping(export: ExportSettings) -> dict[str, Any]:
    """The export settings that show inside a file."""
    return {name: value for name, value in to_plain(export).items() if name != "formats"}


def artefact_order(names: Iterable[str]) -> tuple[str, ...]:
    """Finished files for their user, the ones to look at first in front, our own left out."""
    names = list(names)
    first = [name for name in names if name.startswith(("mesh.", "grid.", "preview.", "turntable."))]
    return (*first, *(name for name in names if name not in first and not name.startswith("_")))


def _artefacts(folder: RunFolder) -> tuple[str, ...]:
    return artefact_order(folder.manifest.get("artefacts", {}))


def _stopped(folder: RunFolder) -> str:
    """The sentence after Ctrl-C."""
    if isinstance(folder.spec, ImagesSpec):
        num = len(artefacts.images_on_disk(folder.path, folder.spec))
        return f"Stopped with {num} of {folder.spec.num_images} images in {folder.path}; the same command draws the rest."
    try:
        last = json.loads(folder.file("progress.jsonl").read_text().splitlines()[-1])
        where = f" at step {last['step']} of {last['total']} of {last['stage']}"
    except (OSError, LookupError, ValueError):
        where = ""
    checkpoint = folder.load_checkpoint()
    origin = f"from step {checkpoint.step}" if checkpoint else "from the start"
    return f"Stopped{where} in {folder.path}; the same command continues {origin}."
