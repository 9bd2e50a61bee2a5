"""Cut, clean, unwrap, bake and write a finished 3D job again from its checkpoint, without a prior and without a fit."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs.codec import from_plain, near_matches, to_plain
from jobs.errors import DreamKilnError, InputError
from jobs.events import Checkpoint, Message, Progress
from jobs.kinds import spec_from_json
from jobs.mesh_stage import TextTo3DResult, export_mesh
from jobs.opinion import Opinion
from jobs.specs import TextTo3DSpec
from orchestrator.host.progress_display import Display, SilentDisplay
from orchestrator.host.threads import use_threads
from orchestrator.run import artefacts
from orchestrator.run.folder import CHECKPOINT, RunFolder, read_checkpoint
from orchestrator.run.manifest import PriorName, manifest_of_mesh_run
from orchestrator.run.perform import Outcome, artefact_order, shaping
from orchestrator.runtimes.base import resolve_device
from orchestrator.settings.groups import ExportSettings, RuntimeSettings
from orchestrator.settings.overrides import override, parse

__all__ = ["FinishedRun", "export_run"]

GROUPS = ("mesh", "export", "runtime")


@dataclass(frozen=True)
class FinishedRun:
    """A 3D job whose fit is done.

    Args:
        spec, export: how its mesh was made last. checkpoint: its field. manifest: of its folder.
    """

    folder: Path
    spec: TextTo3DSpec
    export: ExportSettings
    checkpoint: Checkpoint
    manifest: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> FinishedRun:
        """Raises InputError: it is no folder of a 3D job, or its fit is not finished, or its checkpoint is gone."""
        manifest = manifest_of_mesh_run(folder)
        spec = spec_from_json(manifest["spec"])
        assert isinstance(spec, TextTo3DSpec)
        found = read_checkpoint(folder / CHECKPOINT)
        if found is None:
            origin = manifest.get("exported_from")
            fix = f"export {origin} instead, where it came from" if origin else "repeat its command"
            raise InputError(f"{folder} has no {CHECKPOINT} that can be read, so there is no field to cut; {fix}.")
        checkpoint, _ = found
        if checkpoint.step < spec.fit.num_steps:
            raise InputError(
                f"The fit in {folder} stands at step {checkpoint.step} of {spec.fit.num_steps}; repeat its command to "
                "finish it."
            )
        known = to_plain(ExportSettings())
        written = {key: value for key, value in manifest.get("settings", {}).get("export", {}).items() if key in known}
        export = from_plain(ExportSettings, {**written, "formats": list(spec.formats)}, path="export")
        return cls(folder, spec, export, checkpoint, manifest)

    def changed(self, settings: Mapping[str, str]) -> tuple[TextTo3DSpec, ExportSettings, RuntimeSettings]:
        """How it is to be cut and written now. settings: `mesh.…`, `export.…` and `runtime.…`, as they stand on a command line.

        Raises:
            InputError: another setting, which would need another fit, or a value that is not allowed.
        """
        grouped: dict[str, dict[str, Any]] = {group: {} for group in GROUPS}
        for key, value in settings.items():
            group, _, name = key.partition(".")
            if group not in grouped or not name:
                raise InputError(
                    f"{key} cannot be changed by an export{near_matches(group, GROUPS)}: the field is fitted, and only "
                    f"{', '.join(f'{group}.…' for group in GROUPS)} play a part in what is made of it."
                )
            grouped[group][name] = parse(value)
        export = override(self.export, grouped["export"], path="export.")
        mesh = override(self.spec.mesh, grouped["mesh"], path="mesh.")
        runtime = override(RuntimeSettings(), grouped["runtime"], path="runtime.")
        return replace(self.spec, mesh=mesh, formats=export.formats), export, runtime


def export_run(
    folder: Path,
    settings: Mapping[str, str] | None = None,
    *,
    out: Path | None = None,
    display: Display | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Make the files of a finished run again.

    Args:
        settings: see `FinishedRun.changed`; what is not named stays as the run's files were made.
        out: another folder for them; the run's own by default, whose files are replaced.

    Raises:
        InputError: as `FinishedRun` does; or a file that would be replaced was changed by the user.
        OutputError: a file cannot be written.
        CollapsedError: the field has no surface at these settings; no file was touched.
    """
    run, display = FinishedRun.read(folder), display or SilentDisplay()
    spec, export, runtime = run.changed(settings or {})
    use_threads(runtime.num_threads)
    device = resolve_device(runtime.device)
    target = folder if out is None else out
    expected = artefacts.expected_of_text_to_3d(spec, export)
    with RunFolder(target, spec, expected) as into:
        _refuse_edited(into)
        messages: list[str] = []

        def say(text: str, level: str = "info") -> None:
            messages.append(text)
            display.message(text, level)

        result = _cut(run, spec, device=device, display=display, say=say, clock=clock)
        begin = clock()
        display.event(Progress(stage="export", step=0, total=1))
        timings = dict(run.manifest.get("timings", {}))
        into.manifest.setdefault("timings", timings)
        into.begin(_prior(run), device=device, settings={"runtime": to_plain(runtime), "export": shaping(export)})
        if into.path.resolve() != folder.resolve():
            into.manifest["exported_from"] = str(folder.resolve())
        try:
            names = _write(result, into, spec, export, prior_hash=_prior(run).weights_hash)
        except (DreamKilnError, KeyboardInterrupt) as error:
            into.stop("failed", str(error) or "interrupted; repeat the export")
            raise
        for name in artefacts.of_another_cut(into.manifest["artefacts"], names):
            say(f"{into.file(name)} is of an earlier cut and was left as it is.", "warning")
        seconds = {**result.seconds, "export": clock() - begin}
        display.event(Progress(stage="export", step=1, total=1))
        into.finish(seconds={}, metrics=result.metrics())
        return Outcome(target, artefact_order(names), "start", seconds, result.metrics(), tuple(messages))


def _cut(
    run: FinishedRun, spec: TextTo3DSpec, *, device: str, display: Display, say: Callable[..., None], clock: Callable[[], float]
) -> TextTo3DResult:
    opinion = Opinion.from_metrics(run.manifest.get("metrics", {}))
    steps = export_mesh(spec, run.checkpoint, opinion=opinion, device=device, clock=clock)
    while True:
        try:
            event = next(steps)
        except StopIteration as finished:
            return finished.value
        if isinstance(event, Progress):
            display.event(event)
        elif isinstance(event, Message):
            say(event.text, event.level)


def _write(
    result: TextTo3DResult, into: RunFolder, spec: TextTo3DSpec, export: ExportSettings, *, prior_hash: str
) -> list[str]:
    """Every file anew; returns their names."""
    names: list[str] = []
    written = artefacts.write_mesh_files(result.mesh, into.path, spec, export, prior_hash=prior_hash, only=into.expected)
    for paths, found in written:
        into.record(paths, found)
        names += [path.name for path in paths]
    return names


def _refuse_edited(into: RunFolder) -> None:
    for name in into.plan.changed:
        if any(name in choice.split("|") for choice in into.expected):
            raise InputError(
                f"{into.file(name)} was changed since it was written and would be replaced; choose another --out, or move "
                "it away."
            )


def _prior(run: FinishedRun) -> PriorName:
    prior = run.manifest.get("prior", {})
    return PriorName(str(prior.get("name", "")), str(prior.get("weights_hash", "")))
