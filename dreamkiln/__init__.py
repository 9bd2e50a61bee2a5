"""Sentences into 3D assets and large sets of images.

Whole jobs, as the command line runs them: each leaves a run folder and continues when it is repeated.

    dreamkiln.text_to_3d("a red house", {"preset": "draft"}, out="house")
    dreamkiln.images("a red house", {"images.num_images": 4}, out="houses")

In memory, with a prior that stays loaded:

    prior = dreamkiln.load_prior("toybox")
    pictures = dreamkiln.generate(prior, "a red house", num_images=4)
    result = dreamkiln.fit(prior, "a red house", {"preset": "draft"})
    dreamkiln.write_mesh(result.mesh, "house.glb")

On a running orchestrator (`dreamkiln up`):

    submitted = dreamkiln.submit(dreamkiln.mesh_job("a red house"))
    outcome = submitted.wait()

Settings are those of `dreamkiln settings`, as {"group.key": value}. A loss or a field of one's own goes where a form's or a
field's name goes; see docs/python.md. Everything is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dreamkiln._packages import check_packages

if TYPE_CHECKING:
    from diffusion.distillation import Denoised as Denoised
    from diffusion.distillation import DistillationConfig as DistillationConfig
    from diffusion.distillation import Distilled as Distilled
    from diffusion.requests import DecodeRequest as DecodeRequest
    from diffusion.requests import DenoiseRequest as DenoiseRequest
    from diffusion.requests import EncodeGradientRequest as EncodeGradientRequest
    from diffusion.requests import EncodeRequest as EncodeRequest
    from diffusion.requests import Guidance as Guidance
    from dreamkiln.making import connect as connect
    from dreamkiln.making import evaluate as evaluate
    from dreamkiln.making import fit as fit
    from dreamkiln.making import generate as generate
    from dreamkiln.making import images as images
    from dreamkiln.making import images_job as images_job
    from dreamkiln.making import load_prior as load_prior
    from dreamkiln.making import mesh_job as mesh_job
    from dreamkiln.making import run as run
    from dreamkiln.making import submit as submit
    from dreamkiln.making import table_job as table_job
    from dreamkiln.making import text_to_3d as text_to_3d
    from dreamkiln.making import write_mesh as write_mesh
    from jobs.batch_images import BatchImagesSpec as BatchImagesSpec
    from jobs.errors import DreamKilnError as DreamKilnError
    from jobs.errors import InputError as InputError
    from jobs.errors import Interrupted as Interrupted
    from jobs.errors import JobFailed as JobFailed
    from jobs.errors import OutputError as OutputError
    from jobs.events import Checkpoint as Checkpoint
    from jobs.events import Event as Event
    from jobs.events import Message as Message
    from jobs.events import Progress as Progress
    from jobs.prior_client import DistillationQuery as DistillationQuery
    from jobs.prior_client import PriorClient as PriorClient
    from jobs.specs import ImagesSpec as ImagesSpec
    from jobs.specs import TextTo3DSpec as TextTo3DSpec
    from jobs.text_to_3d import TextTo3DResult as TextTo3DResult
    from nerf3d.fields import DensePyramid as DensePyramid
    from nerf3d.fields import Field as Field
    from nerf3d.fields import FieldConfig as FieldConfig
    from nerf3d.fields import FieldQuery as FieldQuery
    from nerf3d.fields import FieldSamples as FieldSamples
    from nerf3d.fields import HashGrid as HashGrid
    from nerf3d.fit import FitConfig as FitConfig
    from nerf3d.mesh import Mesh as Mesh
    from nerf3d.mesh import MeshConfig as MeshConfig
    from nerf3d.mesh import extract_mesh as extract_mesh
    from orchestrator.batch.perform import BatchOutcome as BatchOutcome
    from orchestrator.client.client import Client as Client
    from orchestrator.client.prepared_job import PreparedJob as PreparedJob
    from orchestrator.client.waiting_client import SubmittedJob as SubmittedJob
    from orchestrator.exports.transform import Placement as Placement
    from orchestrator.lab.evaluation.report import ImagesReport as ImagesReport
    from orchestrator.lab.evaluation.report import MeshesReport as MeshesReport
    from orchestrator.prior.local import LocalPrior as LocalPrior
    from orchestrator.run.perform import Outcome as Outcome

_HOMES = {
    "diffusion.distillation": ("Denoised", "Distilled", "DistillationConfig"),
    "diffusion.requests": ("DecodeRequest", "DenoiseRequest", "EncodeGradientRequest", "EncodeRequest", "Guidance"),
    "dreamkiln.making": (
        "connect",
        "evaluate",
        "fit",
        "generate",
        "images",
        "images_job",
        "load_prior",
        "mesh_job",
        "run",
        "submit",
        "table_job",
        "text_to_3d",
        "write_mesh",
    ),
    "jobs.batch_images": ("BatchImagesSpec",),
    "jobs.errors": ("DreamKilnError", "InputError", "Interrupted", "JobFailed", "OutputError"),
    "jobs.events": ("Checkpoint", "Event", "Message", "Progress"),
    "jobs.prior_client": ("DistillationQuery", "PriorClient"),
    "jobs.specs": ("ImagesSpec", "TextTo3DSpec"),
    "jobs.text_to_3d": ("TextTo3DResult",),
    "nerf3d.fields": ("DensePyramid", "Field", "FieldConfig", "FieldQuery", "FieldSamples", "HashGrid"),
    "nerf3d.fit": ("FitConfig",),
    "nerf3d.mesh": ("Mesh", "MeshConfig", "extract_mesh"),
    "orchestrator.batch.perform": ("BatchOutcome",),
    "orchestrator.client.client": ("Client",),
    "orchestrator.client.prepared_job": ("PreparedJob",),
    "orchestrator.client.waiting_client": ("SubmittedJob",),
    "orchestrator.exports.transform": ("Placement",),
    "orchestrator.lab.evaluation.report": ("ImagesReport", "MeshesReport"),
    "orchestrator.prior.local": ("LocalPrior",),
    "orchestrator.run.perform": ("Outcome",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)

check_packages()


def __getattr__(name: str) -> Any:
    """Imports what is asked for when it is first used."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'dreamkiln' has no attribute {name!r}; it has: {', '.join(__all__)}")
    found = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
