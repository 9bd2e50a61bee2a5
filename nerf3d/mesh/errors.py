"""Why a field gave no mesh. `jobs` turns these into its own tree; `nerf3d` does not import `jobs`."""

from __future__ import annotations

from typing import ClassVar

from nerf3d.errors import Nerf3DError


class MeshError(Nerf3DError):
    """A field that cannot become a mesh; the message is one sentence for the user. kind: its name for programs."""

    kind: ClassVar[str]


class EmptyMesh(MeshError):
    """The field has no surface: its density stays under every iso level that was tried."""

    kind = "empty_mesh"


class BrokenField(MeshError):
    """The field's density is not a number somewhere, or it fills the whole scene box."""

    kind = "broken_field"
