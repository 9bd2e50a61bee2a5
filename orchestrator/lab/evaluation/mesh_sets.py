"""Meshes with the prompts that they were made for, read back from the files that a user gets."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from jobs.errors import InputError
from nerf3d.mesh import Mesh
from orchestrator.exports.reading import read_glb

__all__ = ["MadeMesh", "read_mesh"]


@dataclass(frozen=True, eq=False)
class MadeMesh:
    """mesh: as in the file, so centred and of the size that it was exported with. prompt: from the run's manifest.

    seconds: of all stages and attempts, None where the manifest does not say.
    """

    mesh: Mesh
    prompt: str
    name: str
    seconds: float | None = None


def read_mesh(folder: Path) -> MadeMesh:
    """`mesh.glb` and the manifest of a run of `dreamkiln text-to-3d`.

    Raises:
        InputError: it is not such a folder, or its job is not finished or left no GLB.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        kind, prompt = manifest["kind"], manifest["spec"]["prompt"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"{folder} is not a run folder: its manifest.json cannot be read ({error}); give folders of 'dreamkiln text-to-3d'."
        ) from error
    if kind != "text-to-3d":
        raise InputError(f"{folder} holds a run of {kind!r}, but one of 'text-to-3d' was expected.")
    path = folder / "mesh.glb"
    if not path.exists():
        raise InputError(
            f"{folder} has no mesh.glb (its state is {manifest.get('state')!r}); repeat its command, with glb among the "
            "formats."
        )
    timings = manifest.get("timings") or {}
    return MadeMesh(read_glb(path), prompt, folder.name, round(sum(timings.values()), 1) if timings else None)
