"""The object turning once, as a video that every browser plays."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.exports.contact_sheet import BACKGROUND, to_uint8
from orchestrator.exports.transform import fill_frame
from orchestrator.host.atomic import atomic_path

if TYPE_CHECKING:
    from nerf3d.mesh.mesh import Mesh

logger = logging.getLogger(__name__)

ELEVATION_DEGREES = 15.0


def turntable_frames(mesh: Mesh, *, num_frames: int = 60, size: int = 320) -> Iterator[np.ndarray]:
    """num_frames pictures (size, size, 3) uint8, the camera going once round by the object's left from its front."""
    from nerf3d.cameras import Cameras
    from nerf3d.mesh.raster import draw_mesh

    framed = fill_frame(mesh)
    for frame in range(num_frames):
        camera = Cameras.orbit(360 * frame / num_frames, ELEVATION_DEGREES)
        yield to_uint8(draw_mesh(framed, camera, size, background=BACKGROUND)[0])[0]


def write_turntable(
    mesh: Mesh, path: str | os.PathLike[str], *, num_frames: int = 60, size: int = 320, frames_per_second: int = 20
) -> Path:
    """Write a looping-ready turn of the mesh; returns the path written.

    H.264 with 4:2:0 colour in .mp4; where ffmpeg is missing or fails, an animated .webp of the same name instead.
    size: pixels, even, because 4:2:0 halves it. Raises ValueError for an odd size, OutputError for an unwritable path.
    """
    if size % 2:
        raise ValueError(f"the turntable's size is {size} pixels; give an even one, because H.264 halves the colours.")
    path = Path(path)
    frames = list(turntable_frames(mesh, num_frames=num_frames, size=size))
    if path.suffix != ".webp":
        try:
            with atomic_path(path) as temporary:
                _write_mp4(frames, temporary, frames_per_second)
            return path
        except (ImportError, RuntimeError) as error:  # imageio-ffmpeg raises RuntimeError without a working binary
            logger.warning("no mp4 (%s); writing an animated webp instead", str(error).splitlines()[0] if str(error) else error)
        path = path.with_suffix(".webp")
    with atomic_path(path) as temporary:
        _write_webp(frames, temporary, frames_per_second)
    return path


def _write_mp4(frames: list[np.ndarray], path: Path, frames_per_second: int) -> None:
    import imageio_ffmpeg

    height, width, _ = frames[0].shape
    writer = imageio_ffmpeg.write_frames(
        str(path),
        (width, height),
        fps=frames_per_second,
        codec="libx264",
        pix_fmt_out="yuv420p",
        quality=None,
        macro_block_size=2,
        output_params=["-crf", "20", "-preset", "medium", "-movflags", "+faststart", "-f", "mp4"],
    )
    try:
        writer.send(None)
        for frame in frames:
            writer.send(np.ascontiguousarray(frame))
    except OSError as error:  # a broken pipe: ffmpeg has died
        raise RuntimeError(str(error)) from error
    finally:
        writer.close()
    if not path.stat().st_size:
        raise RuntimeError("ffmpeg wrote an empty file")


def _write_webp(frames: list[np.ndarray], path: Path, frames_per_second: int) -> None:
    from PIL import Image

    first, *rest = (Image.fromarray(frame) for frame in frames)
    first.save(
        path,
        format="WEBP",
        save_all=True,
        append_images=rest,
        duration=round(1000 / frames_per_second),
        loop=0,
        quality=80,
    )
