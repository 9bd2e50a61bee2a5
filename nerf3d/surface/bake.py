"""Put paint into a mesh's texture."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from nerf3d.mesh.bake import texel_places
from nerf3d.mesh.mesh import Mesh, to_bytes
from nerf3d.mesh.texture import Texture, UvMap, read_bilinear
from nerf3d.mesh.unwrap import unwrap
from nerf3d.surface.paint import Paint, PaintConfig, start_colours

_SIZE_PER_PADDING = 128
_TEXELS_PER_CHUNK = 1 << 18


@torch.no_grad()
def painted_mesh(mesh: Mesh, paint: Paint, config: PaintConfig) -> Mesh:
    """The mesh with a texture of config.texture_size that shows its start colours under the paint.

    Its own UV map is used where it has one, and its normal map is kept; else it is laid flat, and a note says if that needed
    more seams. Vertex colours become those of the texture.
    """
    size = config.texture_size
    padding = max(2, size // _SIZE_PER_PADDING)
    notes = mesh.notes
    if mesh.texture is not None:
        uv_map: UvMap = mesh.texture.uv_map
    else:
        uv_map, note = unwrap(mesh.vertices, mesh.faces, size=size, padding=padding, seconds=config.unwrap_seconds)
        notes = (*notes, note) if note else notes
    texels, faces, weights, nearest = texel_places(uv_map, size, ring=padding)
    volume = paint.volume()
    picture = np.zeros((size * size, 3), np.uint8)
    for first in range(0, len(texels), _TEXELS_PER_CHUNK):
        part = slice(first, first + _TEXELS_PER_CHUNK)
        mix = torch.from_numpy(weights[part].astype(np.float32))
        rows = torch.from_numpy(faces[part].astype(np.int64))
        points = torch.from_numpy(np.einsum("kc,kci->ki", mix.numpy(), mesh.vertices[mesh.faces[faces[part]]]))
        if mesh.texture is not None and config.keep_texture:
            place = np.stack([texels[part] % size + 0.5, texels[part] // size + 0.5], 1) / size
            base = torch.from_numpy(read_bilinear(mesh.texture.base_colour, place))
        else:
            base = start_colours(mesh, rows, mix.clamp(0, 1), keep=config.keep_texture)
        colours = Paint.over(base.to(volume.device), volume, points.to(volume.device).clamp(-1, 1))
        picture[texels[part]] = to_bytes(colours.cpu().numpy())
    base_colour = picture[nearest].reshape(size, size, 3)
    normal_map = None if mesh.texture is None else mesh.texture.normal_map
    texture = Texture(uv_map, base_colour, normal_map)
    colours_of_vertices = np.full_like(mesh.colours, 0.5)
    colours_of_vertices[uv_map.vertices] = read_bilinear(base_colour, uv_map.uvs)
    return dataclasses.replace(mesh, texture=texture, colours=colours_of_vertices, notes=notes)
