"""The pictures of a textured mesh, for the formats that hold them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.exports.png_metadata import encode_png
from orchestrator.host.atomic import write_bytes

if TYPE_CHECKING:
    from nerf3d.mesh.texture import Texture


def texture_pictures(texture: Texture | None) -> dict[str, bytes]:
    """Name -> PNG, "base_colour" first and "normal" after it; empty without a texture."""
    if texture is None:
        return {}
    pictures = {"base_colour": texture.base_colour, "normal": texture.normal_map}
    return {name: encode_png(picture) for name, picture in pictures.items() if picture is not None}


def write_texture(texture: Texture | None, path: Path) -> dict[str, Path]:
    """Write mesh_base_colour.png and mesh_normal.png beside mesh.*; returns the files by name. Raises OutputError.

    Formats that lie side by side share them.
    """
    return {
        name: write_bytes(path.with_name(f"{path.stem}_{name}.png"), data) for name, data in texture_pictures(texture).items()
    }
