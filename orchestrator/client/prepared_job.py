"""A job as a command line describes it: everything checked, ready to be run here or to be queued."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast, get_args

from jobs import codec
from jobs.batch_images import BatchImagesSpec
from jobs.errors import InputError
from jobs.extensions import absolute_name, is_extension, load_extension
from jobs.specs import ImagesSpec, TextTo3DSpec
from jobs.texture.spec import TextureSpec
from jobs.words.prompts import check_prompt
from orchestrator.batch.job_folder import JobFolder, Mode
from orchestrator.batch.perform import BatchOutcome, perform_batch
from orchestrator.batch.storage.stores import open_store
from orchestrator.batch.storage.urls import absolute
from orchestrator.batch.tables.source import TableSource
from orchestrator.host.atomic import clear_output_errors
from orchestrator.host.progress_display import Display
from orchestrator.prior.source import absolute_source, check_clip, check_prior, scored_by
from orchestrator.run.edit_pictures import EditPictures
from orchestrator.run.given_mesh import GivenMesh
from orchestrator.run.perform import Outcome, perform
from orchestrator.run.texturing import texture_mesh
from orchestrator.settings.batch import BatchSettings
from orchestrator.settings.compose import Settings, compose
from orchestrator.settings.groups import RuntimeKind
from orchestrator.settings.job import JobSettings

__all__ = ["PreparedJob", "compose_here", "prepare_images", "prepare_table", "prepare_text_to_3d", "prepare_texture"]


@dataclass(frozen=True, kw_only=True)
class PreparedJob:
    """What to make, how, and where.

    Args:
        out: run folder as the user named it; of a table also a URL.
        pictures: what an editing job starts from. mesh: what a texture job paints.
        source, mode: of a table of prompts: where it lies, and what to do with what is in `out` already.
    """

    spec: TextTo3DSpec | ImagesSpec | BatchImagesSpec | TextureSpec
    settings: JobSettings
    out: str
    pictures: EditPictures | None = None
    mesh: GivenMesh | None = None
    source: TableSource | None = None
    mode: Mode = "resume"

    def with_runtime(self, kind: str | None) -> PreparedJob:
        """The same with another `runtime.kind`. Raises InputError for one that there is not."""
        if kind is None:
            return self
        if kind not in (kinds := get_args(RuntimeKind)):
            raise InputError(
                f"There is no runtime {kind!r}{codec.near_matches(kind, kinds)}; choose one of {', '.join(kinds)}."
            )
        runtime = replace(self.settings.runtime, kind=cast(RuntimeKind, kind))
        return replace(self, settings=replace(self.settings, runtime=runtime))

    def perform(self, *, display: Display) -> Outcome | BatchOutcome:
        """Run it in this process, or on a Ray of its own. Raises what `perform` and `perform_batch` raise."""
        runtime = self.settings.runtime
        if isinstance(self.spec, BatchImagesSpec):
            batch = self.settings.batch
            assert batch is not None and self.source is not None
            return perform_batch(
                self.spec,
                self.source,
                out=self.out,
                mode=self.mode,
                runtime=runtime,
                num_workers=batch.num_workers,
                price_per_hour=batch.price_per_hour,
                display=display,
            )
        export = self.settings.export
        if isinstance(self.spec, TextureSpec):
            assert self.mesh is not None
            return texture_mesh(self.spec, self.mesh, out=Path(self.out), export=export, runtime=runtime, display=display)
        return perform(self.spec, out=self.out, export=export, runtime=runtime, display=display, pictures=self.pictures)

    def request(self, *, state: Path, **others: Any) -> dict[str, Any]:
        """JSON of an `orchestrator.daemon.job_request.JobRequest`; `others` are its other fields.

        What --overwrite asks for is done now, once, because every attempt at the job begins where the one before ended.

        Args:
            state: the orchestrator's folder, where copies of the pictures are left.

        Raises:
            OutputError: a place that cannot be written, or that is in use.
        """
        settings = self.settings
        if self.mode == "overwrite" and isinstance(self.spec, BatchImagesSpec):
            store = open_store(self.out)
            with store.hold():
                JobFolder(store, self.spec, "overwrite")
        if self.pictures is not None:
            names = "-".join(name[:16] for name in self.pictures.hashes.values() if name)
            folder = state / "pictures" / names
            with clear_output_errors(folder, option="--state"):
                folder.mkdir(parents=True, exist_ok=True)
            self.pictures.write(folder)
            settings = replace(settings, pictures=str(folder))
        return {"spec": self.spec.to_json(), "out": absolute(self.out), "settings": codec.to_plain(settings), **others}


def compose_here(overrides: Sequence[str], options: Mapping[str, Any]) -> Settings:
    """The settings, with paths of the prior and of code of one's own made absolute, so that every process understands them.

    Raises:
        InputError: a setting that is not allowed, a prior that is nowhere, or code of one's own that cannot be loaded.
    """
    settings = compose(overrides, options=options)
    if not settings.prior.source:
        raise InputError("--prior is empty; give 'toybox', a folder, a file or a name on the hub, or leave it out.")
    check_prior(settings.prior.source)
    clip = check_clip(settings.prior.clip)
    form, field = absolute_name(settings.distillation.form), settings.fit.field
    return replace(
        settings,
        prior=replace(settings.prior, source=absolute_source(settings.prior.source), clip=clip),
        distillation=replace(settings.distillation, form=_loadable(form)),
        fit=replace(settings.fit, field=replace(field, kind=_loadable(absolute_name(field.kind)))),
    )


def _loadable(name: str) -> str:
    """The name, once code of one's own behind it could be loaded. Raises InputError."""
    if is_extension(name):
        load_extension(name)
    return name


def prepare_text_to_3d(prompt: str, settings: Settings, *, seed: int, out: Path | None) -> PreparedJob:
    """One mesh. Raises InputError."""
    return _prepared(settings.text_to_3d(prompt, seed=seed), settings, out)


def prepare_images(
    prompt: str, settings: Settings, *, seed: int, out: Path | None, init_image: Path | None = None, mask: Path | None = None
) -> PreparedJob:
    """Pictures of one prompt, perhaps from a picture. Raises InputError."""
    if init_image is None:
        return _prepared(settings.image_job(check_prompt(prompt), seed=seed), settings, out)
    pictures = EditPictures.read(init_image, mask)
    spec = settings.image_job(check_prompt(prompt), seed=seed, **pictures.hashes)
    return replace(_prepared(spec, settings, out), pictures=pictures)


def prepare_texture(mesh: GivenMesh, prompt: str, settings: Settings, *, seed: int, out: Path | None) -> PreparedJob:
    """A mesh to be painted, whose file stays where it is until the job has ended. Raises InputError."""
    job = _prepared(settings.texture_job(prompt, seed=seed, mesh_sha256=mesh.digest, up=mesh.up), settings, out)
    return replace(job, mesh=mesh, settings=replace(job.settings, mesh=str(mesh.path.resolve())))


def prepare_table(
    batch: BatchSettings, settings: Settings, *, seed: int, out: str | None, shaping: Mapping[str, Any], mode: Mode
) -> PreparedJob:
    """One picture for each row of a table.

    Args:
        shaping: fields of `BatchImagesSpec` that no setting holds, such as shard_size; None is skipped, and so is a clip_hash,
            which is that of the folder `clip`.

    Raises:
        InputError: the table cannot be read or has no prompts, or a value is not allowed.
    """
    given = {name: value for name, value in shaping.items() if value is not None} | scored_by(shaping.get("clip") or "")
    source = TableSource.find(batch.prompts, prompt_column=given.get("prompt_column", "prompt"))
    known = {field.name for field in fields(BatchImagesSpec)}
    shared = {name: value for name, value in settings.images.items() if name in known}
    plain = {**shared, "seed": seed, **settings.prior_of_job, **given, "table": source.scan()}
    spec = codec.from_plain(BatchImagesSpec, plain, path="images")
    batch = replace(batch, prompts=absolute(batch.prompts), retry_failed=mode == "retry-failed")
    job = JobSettings(export=settings.export, runtime=settings.runtime, batch=batch)
    return PreparedJob(spec=spec, settings=job, out=out or str(Path("runs") / spec.name), source=source, mode=mode)


def _prepared(spec: Any, settings: Settings, out: Path | None) -> PreparedJob:
    job = JobSettings(export=settings.export, runtime=settings.runtime)
    return PreparedJob(spec=spec, settings=job, out=str(out if out is not None else Path("runs") / spec.name))
