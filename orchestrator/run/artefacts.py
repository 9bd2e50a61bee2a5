"""Which files each kind of job leaves, and their writing."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.events import ImageReady
from jobs.specs import ImagesSpec, TextTo3DSpec
from orchestrator.host.atomic import write_bytes, write_text
from orchestrator.run.edit_pictures import expected_of_edit
from orchestrator.run.picture_metadata import commit_marker, encode_picture, picture_metadata
from orchestrator.settings.groups import ExportSettings

if TYPE_CHECKING:
    import numpy as np

    from nerf3d.mesh import Mesh

__all__ = [
    "expected_of_images",
    "expected_of_text_to_3d",
    "image_name",
    "images_on_disk",
    "write_image",
    "write_images_summary",
    "write_mesh_files",
]

GRID = "grid.png"
PREVIEW = "preview.png"
SHARD_MARKER = "_shards/00000.json"
MAX_GRID_IMAGES = 64


def expected_of_text_to_3d(spec: TextTo3DSpec, export: ExportSettings) -> tuple[str, ...]:
    """Names of the files; "a|b" where either will do."""
    turntable = ("turntable.mp4|turntable.webp",) if export.turntable_frames else ()
    return (*_mesh_files(spec), "preview.png", *turntable)


def _mesh_files(spec: TextTo3DSpec) -> dict[str, int]:
    """Name -> level of detail, 0 the mesh itself; the formats of the mesh before those of its lighter versions."""
    levels = range(len(spec.mesh.lods) + 1)
    return {f"mesh{f'_lod{level}' if level else ''}.{name}": level for level in levels for name in spec.formats}


def expected_of_images(spec: ImagesSpec) -> tuple[str, ...]:
    """Every picture, the grid, the commit marker of the one shard, and copies of what an editing job started from."""
    copies = expected_of_edit(mask=spec.mask is not None) if spec.init_image is not None else ()
    return (*(image_name(index) for index in range(spec.num_images)), GRID, SHARD_MARKER, *copies)


def image_name(index: int) -> str:
    """Image 7 is 000000007.png."""
    return f"{index:09d}.png"


def of_another_cut(recorded: Iterable[str], written: Iterable[str]) -> list[str]:
    """The mesh files in a manifest that are not among those just written, so that they show another mesh."""
    return [name for name in recorded if name.startswith("mesh") and name not in set(written)]


def write_mesh_files(
    mesh: Mesh, folder: Path, spec: TextTo3DSpec, export: ExportSettings, *, prior_hash: str, only: tuple[str, ...]
) -> Iterator[tuple[list[Path], dict[str, Any]]]:
    """Writes the files named in `only`, most wanted first, and reads each mesh file back.

    Yields the paths of each as soon as they are there, with what the first of them was found to hold; nothing for pictures.
    Raises OutputError where a file does not hold the mesh.
    """
    from orchestrator.exports import MESH_WRITERS, Placement, write_contact_sheet, write_turntable
    from orchestrator.exports.check import check_file

    placement = Placement(size_metres=export.size_metres, print_millimetres=export.print_millimetres, origin=export.origin)
    for name, level in _mesh_files(spec).items():
        if name in only:
            version = mesh.lods[level - 1] if level else mesh
            paths = MESH_WRITERS[Path(name).suffix[1:]](version, folder / name, placement, prompt=spec.prompt)
            yield paths, check_file(paths[0], version, placement)
    if "preview.png" in only:
        metadata = {"prompt": spec.prompt, "seed": str(spec.seed), "prior_hash": prior_hash}
        yield [write_contact_sheet(mesh, folder / "preview.png", size=export.preview_size, metadata=metadata)], {}
    if any(name.startswith("turntable") for name in only):
        path = folder / "turntable.mp4"
        yield [write_turntable(mesh, path, num_frames=export.turntable_frames, size=export.turntable_size)], {}


def write_image(event: ImageReady, folder: Path, spec: ImagesSpec, *, prior_hash: str) -> Path:
    """One picture with the settings that drew it in its text chunks."""
    index = event.index
    camera = (spec.azimuth_of(index), spec.elevation_degrees) if spec.num_views else None
    png = encode_picture(spec.picture(index), event.image, prior_hash=prior_hash, index=index, camera=camera)
    return write_bytes(folder / image_name(index), png)


def write_preview(images: Mapping[int, np.ndarray], folder: Path) -> Path:
    """A page of the unfinished pictures, uint8 (h, w, 3) by index, in place of the page that was there."""
    import numpy as np

    from orchestrator.exports import write_image_grid

    return write_image_grid(np.stack([image for _, image in sorted(images.items())]), folder / PREVIEW)


def remove_preview(folder: Path) -> None:
    """Unfinished pictures are of no use once nobody draws them."""
    with contextlib.suppress(OSError):
        (folder / PREVIEW).unlink()


def images_on_disk(folder: Path, spec: ImagesSpec) -> frozenset[int]:
    """Indices of the pictures that are there. They were written atomically, so what is there is whole."""
    return frozenset(index for index in range(spec.num_images) if (folder / image_name(index)).exists())


def write_images_summary(folder: Path, spec: ImagesSpec, *, prior_hash: str, seconds: float, num_drawn: int) -> list[Path]:
    """The grid of the first pictures, and last the commit marker: where it stands, the shard is complete."""
    from orchestrator.exports import write_image_grid

    pictures = _read_pictures(folder, min(spec.num_images, MAX_GRID_IMAGES))
    metadata = {**picture_metadata(spec, prior_hash=prior_hash), "seed": str(spec.seed)}
    grid = write_image_grid(pictures, folder / GRID, num_columns=spec.num_views or None, metadata=metadata)
    marker = folder / SHARD_MARKER
    marker.parent.mkdir(exist_ok=True)
    content = commit_marker(
        0, range(spec.num_images), num_failed=0, num_drawn=num_drawn, seconds=seconds, prior_hash=prior_hash
    )
    return [grid, write_text(marker, json.dumps(content, indent=2) + "\n")]


def _read_pictures(folder: Path, num: int) -> np.ndarray:
    import numpy as np
    from PIL import Image

    return np.stack([np.asarray(Image.open(folder / image_name(index)).convert("RGB")) for index in range(num)])
