"""Meshes with the prompts that they were made for, read back from the files that a user gets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.errors import InputError
from nerf3d.mesh import Mesh
from orchestrator.exports.reading import read_glb

__all__ = ["MadeMesh", "differences", "read_mesh"]


@dataclass(frozen=True, eq=False)
class MadeMesh:
    """mesh: as in the file, so centred and of the size that it was exported with. prompt: from the run's manifest.

    seconds: of all stages and attempts, None where the manifest does not say.
    settings: what the job was asked, such as "seed" -> 1 and "fit.num_steps" -> 400.
    """

    mesh: Mesh
    prompt: str
    name: str
    seconds: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


def differences(meshes: Sequence[MadeMesh]) -> list[str]:
    """Per mesh its folder's name and in what it differs from the others of its prompt; "" where it has the prompt alone."""
    texts = []
    for made in meshes:
        rivals = [other for other in meshes if other.prompt == made.prompt]
        names = dict.fromkeys(name for other in rivals for name in other.settings)
        differing = [name for name in names if any(other.settings.get(name) != made.settings.get(name) for other in rivals)]
        texts.append(", ".join([made.name, *(f"{name}={made.settings.get(name)}" for name in differing)]) if rivals[1:] else "")
    return texts


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"fit": {"num_steps": 400}} -> {"fit.num_steps": 400}."""
    flat: dict[str, Any] = {}
    for name, item in value.items():
        flat |= _flat(item, f"{prefix}{name}.") if isinstance(item, Mapping) else {f"{prefix}{name}": item}
    return flat


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
    seconds = round(sum(timings.values()), 1) if timings else None
    return MadeMesh(read_glb(path), prompt, folder.name, seconds, _flat(manifest["spec"]))
