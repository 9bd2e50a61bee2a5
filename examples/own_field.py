"""A field of one's own: a pyramid of grids that is the same left and right, so that whatever grows in it is symmetric.

python examples/own_field.py [GROUP.KEY=VALUE ...]
dreamkiln text-to-3d "a white lamp" --preset draft field.kind=own_field.py:MirroredPyramid
"""

import sys

from torch import Tensor

import dreamkiln
from dreamkiln import DensePyramid


class MirroredPyramid(DensePyramid):
    """The mean of the volume and its mirror image in the plane x = 0."""

    def volume(self) -> Tensor:
        """(1, 4, R, R, R) indexed [channel, z, y, x], as its parent's."""
        volume = super().volume()
        return (volume + volume.flip(-1)) / 2


if __name__ == "__main__":
    settings = {"preset": "draft", "runtime.kind": "inline", "field.kind": MirroredPyramid}
    outcome = dreamkiln.text_to_3d("a white lamp", settings, overrides=sys.argv[1:], out="lamp")
    print(f"{outcome.did}: {outcome.folder / 'mesh.glb'}")
