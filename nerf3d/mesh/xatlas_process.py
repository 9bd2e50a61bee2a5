"""What `nerf3d.mesh.unwrap` runs as a process: SIZE PADDING SECONDS; vertices and faces come in and charts go out as npz.

It imports nothing of this project, so that it starts in a fraction of a second.
"""

from __future__ import annotations

import contextlib
import io
import math
import sys

import numpy as np
import xatlas

ROOM = 1.5
"""xatlas only estimates its picture's size; what it makes too large is scaled down, and the padding with it."""


def main() -> None:
    """Unwrap what standard input holds. The kernel ends the process when its processor time is used up."""
    size, padding, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    with contextlib.suppress(ImportError):  # Windows; the caller's timeout remains
        import resource

        limit = max(1, math.ceil(seconds))
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
    given = np.load(io.BytesIO(sys.stdin.buffer.read()))
    atlas = xatlas.Atlas()
    atlas.add_mesh(given["vertices"], given["faces"])
    packing = xatlas.PackOptions()
    packing.resolution, packing.padding = size, math.ceil(padding * ROOM)
    packing.bilinear = packing.blockAlign = True
    atlas.generate(xatlas.ChartOptions(), packing)
    if atlas.atlas_count != 1:
        sys.exit(f"xatlas made {atlas.atlas_count} pictures")
    vertices, faces, uvs = atlas[0]
    uvs = uvs * (atlas.width, atlas.height) / max(atlas.width, atlas.height)  # square texels
    np.savez(sys.stdout.buffer, vertices=vertices, faces=faces, uvs=uvs.astype(np.float32))


if __name__ == "__main__":
    main()
