"""From a client's form to a job: composed here, on the orchestrator's machine, as the command line composes its own."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException

from jobs import codec
from jobs.batch_images import BatchImagesSpec
from jobs.batch_images.cells import ADAPTERS
from jobs.errors import Conflict, InputError
from jobs.extensions import is_extension
from jobs.kinds import AnySpec, spec_from_json
from jobs.ledger import JobRecord, Ledger, Submission
from jobs.specs import ExportSpec, TextTo3DSpec
from jobs.states import State
from jobs.texture.spec import TextureSpec
from jobs.words.prompts import slug
from orchestrator.batch.storage.urls import is_url
from orchestrator.batch.tables.source import TableSource
from orchestrator.daemon.http.forms import (
    AgainForm,
    BestOfForm,
    ExportForm,
    ImagesForm,
    JobForm,
    PromptForm,
    TableForm,
    TextTo3DForm,
    TextureForm,
)
from orchestrator.daemon.http.meanings import settings_schema
from orchestrator.daemon.http.tokens import Principal
from orchestrator.daemon.http.uploads import Uploads
from orchestrator.daemon.job_request import JobRequest
from orchestrator.host.atomic import clear_output_errors
from orchestrator.prior.source import absolute_source, scored_by
from orchestrator.run.edit_pictures import EditPictures
from orchestrator.run.export import FinishedRun
from orchestrator.run.given_mesh import GivenMesh
from orchestrator.settings.batch import BatchSettings
from orchestrator.settings.compose import Settings, compose, setting_names
from orchestrator.settings.job import JobSettings

__all__ = ["Maker", "composed"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
REMOTE_RUNTIME = ("runtime.preview_every", "runtime.score_every", "runtime.checkpoint_every")
"""What somebody else may say of how a job runs: not where, nor on what."""
CODE = ("field.kind", "distillation.form")
"""Settings that may name code of one's own."""
_LOOKED_AT = {"runtime.preview_every": 40}
"""Of a try, so that one that is ended early leaves a picture."""
EXPORT_GROUPS = ("mesh", "export")


class Maker:
    """Makes submissions.

    Args:
        outputs: the folder of folders of users. pictures: where copies of what editing jobs start from are kept.
        priors: that everybody may ask; None: any. urls: where cells of others' tables may point, see `DaemonOptions`.
    """

    def __init__(
        self,
        ledger: Ledger,
        uploads: Uploads,
        *,
        outputs: Path,
        pictures: Path,
        priors: Collection[str] | None,
        urls: tuple[str, ...] = (),
    ) -> None:
        self._ledger, self._uploads, self._outputs, self._pictures = ledger, uploads, outputs, pictures
        self._priors, self._urls = priors, urls

    def text_to_3d(self, form: TextTo3DForm, who: Principal, key: str | None) -> Submission:
        """One mesh. Raises InputError."""
        spec, settings = self._fit(form, who)
        return self._submission(spec, settings, form, who, key)

    def _fit(self, form: TextTo3DForm, who: Principal) -> tuple[TextTo3DSpec, JobSettings]:
        options = {
            "fit.num_steps": form.num_steps,
            "distillation.guidance_scale": form.guidance_scale,
            "distillation.negative_prompt": form.negative_prompt,
            "export.formats": form.formats,
        }
        settings = self._composed(form, options, who)
        spec = settings.text_to_3d(form.prompt, seed=form.seed)
        return spec, JobSettings(export=settings.export, runtime=settings.runtime)

    def texture(self, form: TextureForm, who: Principal, key: str | None) -> Submission:
        """An uploaded mesh or that of a finished job, painted. Raises InputError."""
        options = {
            "texture.num_steps": form.num_steps,
            "distillation.guidance_scale": form.guidance_scale,
            "distillation.negative_prompt": form.negative_prompt,
            "export.formats": form.formats,
        }
        settings = self._composed(form, options, who)
        given = GivenMesh.read(self._mesh(form.mesh, who), up=form.up)
        spec = settings.texture_job(form.prompt, seed=form.seed, mesh_sha256=given.digest, up=given.up)
        job = JobSettings(export=settings.export, runtime=settings.runtime, mesh=str(given.path))
        return self._submission(spec, job, form, who, key)

    def _mesh(self, mesh: str | int, who: Principal) -> Path:
        if isinstance(mesh, str):
            return self._uploads.find(who, mesh)
        job = self._ledger.jobs.get(mesh)
        path = Path(job.out) / "mesh.glb"
        if job.state != State.SUCCEEDED or not path.is_file():
            raise Conflict(f"Job {mesh} is {job.state} and has no mesh.glb; name a finished job that has one.")
        return path

    def best_of(self, form: BestOfForm, who: Principal, key: str | None) -> list[Submission]:
        """One mesh a seed, each in a folder of its own. Raises InputError."""
        self._check_quota(who, form.num_seeds)
        spec, settings = self._fit(form.model_copy(update={"settings": {**_LOOKED_AT, **form.settings}}), who)
        made = []
        for seed in range(form.seed, form.seed + form.num_seeds):
            one = form.model_copy(update={"out": form.out and f"{form.out}-seed-{seed}"})
            own_key = key and f"{key} seed {seed}"
            made.append(self._submission(dataclasses.replace(spec, seed=seed), settings, one, who, own_key))
        return made

    def images(self, form: ImagesForm, who: Principal, key: str | None) -> Submission:
        """Pictures of one prompt, perhaps from a picture. Raises InputError."""
        options = {**_image_options(form), "images.num_images": form.num_images, "images.strength": form.strength}
        settings = self._composed(form, options, who)
        job = JobSettings(export=settings.export, runtime=settings.runtime)
        if form.init_image is None:
            if form.mask is not None or form.strength is not None:
                raise InputError("mask and strength say how to change a picture, but there is none; give init_image too.")
            return self._submission(settings.image_job(form.prompt, seed=form.seed), job, form, who, key)
        mask = None if form.mask is None else self._uploads.find(who, form.mask)
        with self._uploads.called_by_name(who):
            pictures = EditPictures.read(self._uploads.find(who, form.init_image), mask)
        spec = settings.image_job(form.prompt, seed=form.seed, **pictures.hashes)
        return self._submission(spec, dataclasses.replace(job, pictures=self._kept(pictures)), form, who, key)

    def table(self, form: TableForm, who: Principal, key: str | None) -> Submission:
        """A picture for each row of an uploaded table. Raises InputError."""
        path = self._uploads.find(who, form.table)
        settings = self._composed(form, _image_options(form), who)
        source = TableSource.find(str(path), prompt_column=form.prompt_column)
        with self._uploads.called_by_name(who):
            table = source.scan()
            if not who.is_owner and (places := {"init_image", "mask", *ADAPTERS} & set(table.columns)):
                self._check_places(source, places)
        known = {field.name for field in dataclasses.fields(BatchImagesSpec)}
        shaping: dict[str, Any] = {"shard_size": form.shard_size, "output_format": form.output_format, "phash": form.phash}
        shaping |= {"min_clip_score": form.min_clip_score, **scored_by(settings.prior.clip)}
        plain = {
            **{name: value for name, value in settings.images.items() if name in known},
            **{name: value for name, value in shaping.items() if value is not None},
            "seed": form.seed,
            **settings.prior_of_job,
            "prompt_column": form.prompt_column,
            "table": table,
        }
        spec = codec.from_plain(BatchImagesSpec, plain, path="images")
        batch = BatchSettings(prompts=str(path), num_workers=form.num_workers)
        job = JobSettings(export=settings.export, runtime=settings.runtime, batch=batch)
        return self._submission(spec, job, form, who, key)

    def _check_places(self, source: TableSource, columns: Collection[str]) -> None:
        """Others' cells name pictures below an allowed URL alone: no file of this machine, no host that nobody has named."""
        for row in source.rows():
            for column in sorted(columns):
                place = row.values.get(column)
                if place is not None and not (isinstance(place, str) and self._is_allowed(place)):
                    allowed = " and ".join(self._urls) or "none; 'dreamkiln up --allow-url' names some"
                    raise HTTPException(
                        403,
                        f"The table's column {column} names files, and {row.place} has {str(place)[:100]!r}: only the "
                        f"owner's own jobs may read files, others those below the URLs that are allowed here: {allowed}.",
                    )

    def _is_allowed(self, url: str) -> bool:
        is_plain = url.isascii() and url.isprintable() and not set(url) & set(" \\@%") and "::" not in url
        return is_plain and "/.." not in url and any(url.startswith(prefix) for prefix in self._urls)

    def export(self, form: ExportForm, who: Principal, key: str | None) -> Submission:
        """Other files of a finished 3D job. Raises InputError."""
        job = self._ledger.jobs.get(form.job)
        settings = {name: _as_word(value) for name, value in form.settings.items()}
        if form.formats is not None:
            settings["export.formats"] = _as_word(form.formats)
        for name in settings:
            if name.partition(".")[0] not in EXPORT_GROUPS:
                raise InputError(f"{name} cannot be changed by an export, only {' and '.join(EXPORT_GROUPS)} settings can.")
        try:
            run = FinishedRun.read(Path(job.out))
        except InputError as error:
            raise Conflict(str(error)) from error
        run.changed(settings)
        spec = ExportSpec(run=job.out, settings=settings)
        return self._submission(spec, JobSettings(), form, who, key)

    def again(self, job: JobRecord, form: AgainForm, who: Principal, key: str | None) -> Submission:
        """A job like another one but for what the form names. Raises InputError."""
        if job.kind == ExportSpec.kind:
            raise Conflict(f"Job {job.id} is an export; make another one with POST /v1/exports.")
        is_anothers = job.user != who.user and job.kind in (BatchImagesSpec.kind, TextureSpec.kind)
        if not who.is_owner and (is_anothers or _reads_files(job.spec)):
            raise HTTPException(403, f"Job {job.id} reads files or code of {job.user}'s, so only {job.user} may repeat it.")
        self._check_settings(form.settings, who)
        for name in form.settings:
            if name not in settings_schema()["properties"]:
                raise InputError(
                    f"There is no setting {name[:100]!r}{codec.near_matches(name[:100], _known())}; see /v1/settings."
                )
        spec, settings = codec.to_plain(dict(job.spec)), codec.to_plain(dict(job.settings))
        for name, value in {"prompt": form.prompt, "seed": form.seed}.items():
            if value is not None:
                _put(spec, (name,), value, f"{name}")
        for name, value in form.settings.items():
            group, _, rest = name.partition(".")
            tree, path = {
                "field": (spec, ("fit", "field", rest)),
                "images": (spec, (rest,)),
                "prior": (spec, (rest,)),
                "export": (settings, ("export", rest)),
                "runtime": (settings, ("runtime", rest)),
            }.get(group, (spec, (group, rest)))
            _put(tree, path, value, name)
            if name == "export.formats" and "formats" in spec:
                spec["formats"] = value
        made = spec_from_json(spec)
        self._check_prior(made.prior, who)
        return self._submission(made, JobSettings.read(settings), form, who, key)

    def _composed(self, form: PromptForm, options: Mapping[str, Any], who: Principal) -> Settings:
        self._check_settings(form.settings, who)
        source = form.prior
        if source is not None:
            self._check_prior(source, who)
            source = absolute_source(source)
        own = {**options, "preset": form.preset, "prior.source": source, "prior.strict": form.strict or None}
        return composed({**form.settings, **{name: value for name, value in own.items() if value is not None}})

    def _check_settings(self, settings: Mapping[str, Any], who: Principal) -> None:
        for name, value in settings.items():
            group = name.partition(".")[0]
            if name == "prior.source":
                raise InputError("The prior is no setting here; say it as 'prior'.")
            if name in CODE and is_extension(str(value)) and not who.is_owner:
                raise HTTPException(403, f"{name} names code of one's own, which only the owner may run here.")
            if group in ("runtime", "prior") and name not in (*REMOTE_RUNTIME, "prior.strict") and not who.is_owner:
                raise HTTPException(403, f"{name} says how the orchestrator's machine works, which only its owner does.")

    def _check_prior(self, source: str, who: Principal) -> None:
        if self._priors is not None and source not in self._priors and not who.is_owner:
            raise HTTPException(403, f"The prior {source[:100]!r} is not among those allowed here: {', '.join(self._priors)}.")

    def _submission(self, spec: AnySpec, settings: JobSettings, form: JobForm, who: Principal, key: str | None) -> Submission:
        self._check_quota(who)
        request = JobRequest(
            spec=spec.to_json(),
            out=self._place(form.out, spec.name, who),
            settings=settings,
            user=who.user,
            priority=form.priority,
            idempotency_key=key,
            is_paused=form.paused,
        )
        return request.to_submission()

    def _check_quota(self, who: Principal, num_more: int = 1) -> None:
        if who.max_jobs is not None and (num := self._ledger.jobs.num_live(who.user)) + num_more > who.max_jobs:
            most = f"and {who.max_jobs} are allowed"
            raise HTTPException(429, f"{who.user} has {num} jobs that have not ended, {most}; wait for some.")

    def _place(self, out: str | None, name: str, who: Principal) -> str:
        """A folder of the user's own; of the owner any path."""
        if out is not None and who.is_owner and (Path(out).is_absolute() or is_url(out)):
            return out
        if out is not None and out.startswith("/"):
            raise HTTPException(403, f"The run folder {out[:60]!r} is a path, which only the owner may name; give a name.")
        if out is not None and not NAME.fullmatch(out):
            raise InputError(
                f"The run folder {out[:60]!r} is no name; 1 to 100 letters, digits, dots, dashes and underscores were "
                "expected, the first a letter or digit: it is made inside your output folder."
            )
        folder = self._outputs / slug(who.user)
        with clear_output_errors(folder, option="--state"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return str(folder / (out or name))

    def _kept(self, pictures: EditPictures) -> str:
        names = "-".join(name[:16] for name in pictures.hashes.values() if name)
        folder = self._pictures / names
        with clear_output_errors(folder, option="--state"):
            folder.mkdir(parents=True, exist_ok=True)
        pictures.write(folder)
        return str(folder)


def composed(settings: Mapping[str, Any]) -> Settings:
    """What 'compose' makes of settings by their dotted names, with or without a preset. Raises InputError."""
    known = _known()
    for name in settings:
        if "." in name and name not in known:
            raise InputError(f"There is no setting {name[:100]!r}{codec.near_matches(name[:100], known)}; see /v1/settings.")
        if name.count(".") > 1:
            raise InputError(f"{name} is part of a value; give {name.rpartition('.')[0]} as a whole.")
    return compose([], options=settings)


@cache
def _known() -> tuple[str, ...]:
    return tuple(setting_names())


def _image_options(form: PromptForm) -> dict[str, Any]:
    return {
        "images.num_steps": form.num_steps,
        "images.guidance_scale": form.guidance_scale,
        "images.negative_prompt": form.negative_prompt,
        "images.sampler": getattr(form, "sampler", None),
    }


def _reads_files(spec: Mapping[str, Any]) -> bool:
    """Whether a job has LoRAs or textual inversions, or a 3D job's loss or field is code of one's own."""
    if spec.get("loras") or spec.get("embeddings"):
        return True
    names = (spec.get("distillation", {}).get("form", ""), spec.get("fit", {}).get("field", {}).get("kind", ""))
    return any(map(is_extension, names))


def _as_word(value: Any) -> str:
    """As it stands on a command line."""
    return value if isinstance(value, str) else codec.canonical_json(value)


def _put(tree: dict[str, Any], path: tuple[str, ...], value: Any, name: str) -> None:
    for key in path[:-1]:
        tree = tree.get(key) or {}
    if not isinstance(tree, dict) or path[-1] not in tree:
        raise Conflict(f"There is no setting {name!r} in this job{codec.near_matches(path[-1], tree)}.")
    tree[path[-1]] = value
