"""Orbit cameras around the origin: the one place that turns azimuth and elevation into rays.

World frame: right-handed, +Y up, metres; an object's named front faces +Z. Azimuth 0 stands in front (on +Z) and grows
toward +X, so azimuth 90 sees the object's own left side. Camera axes follow OpenGL: x right, y up, looking along -z.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

_BLENDER_FROM_OURS = torch.tensor([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])


@dataclasses.dataclass(frozen=True)
class Cameras:
    """V pinhole cameras that look at the origin, with square pixels.

    camera_to_world: (V, 4, 4) float32, rigid; column 3 is the camera centre in metres.
    fov_degrees: (V,) vertical field of view. azimuth_degrees, elevation_degrees: (V,). radius: (V,) metres.
    """

    camera_to_world: Tensor
    fov_degrees: Tensor
    azimuth_degrees: Tensor
    elevation_degrees: Tensor
    radius: Tensor

    @classmethod
    def orbit(
        cls,
        azimuth_degrees,
        elevation_degrees,
        *,
        radius=2.7,
        fov_degrees=40.0,
        device: torch.device | str | None = None,
    ) -> Cameras:
        """Cameras at radius * (cos el sin az, sin el, cos el cos az), looking at the origin.

        Each argument is a number or a sequence of V numbers; numbers are repeated. Raises ValueError for an elevation
        of 90 degrees or steeper, a radius that is not positive, a field of view outside (0, 180), or unequal lengths.
        """
        named = {"azimuth_degrees": azimuth_degrees, "elevation_degrees": elevation_degrees}
        named |= {"radius": radius, "fov_degrees": fov_degrees}
        values = {k: torch.as_tensor(v, dtype=torch.float32, device=device).reshape(-1) for k, v in named.items()}
        num_views = max(len(v) for v in values.values())
        for name, value in values.items():
            if len(value) not in (1, num_views):
                raise ValueError(
                    f"{name} has {len(value)} values but another argument has {num_views}; give one value or "
                    f"{num_views}, because every camera needs all four."
                )
        values = {k: v.expand(num_views).contiguous() for k, v in values.items()}
        _check_orbit(values["elevation_degrees"], values["radius"], values["fov_degrees"])
        azimuth, elevation = values["azimuth_degrees"].deg2rad(), values["elevation_degrees"].deg2rad()
        sin_a, cos_a, sin_e, cos_e = azimuth.sin(), azimuth.cos(), elevation.sin(), elevation.cos()
        backward = torch.stack([cos_e * sin_a, sin_e, cos_e * cos_a], -1)
        right = torch.stack([cos_a, torch.zeros_like(sin_a), -sin_a], -1)
        up = torch.linalg.cross(backward, right)
        camera_to_world = torch.eye(4, device=backward.device).repeat(num_views, 1, 1)
        centre = values["radius"][:, None] * backward
        camera_to_world[:, :3] = torch.stack([right, up, backward, centre], -1)
        return cls(camera_to_world=camera_to_world, **values)

    def rays(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Origins and unit directions through pixel centres (at +0.5, row 0 at the top), both (V, height, width, 3)."""
        tan_half = (self.fov_degrees.deg2rad() / 2).tan()[:, None, None]
        device = self.camera_to_world.device
        x = ((torch.arange(width, device=device) + 0.5) * 2 - width) / height
        y = (height - (torch.arange(height, device=device) + 0.5) * 2) / height
        x = (tan_half * x).expand(-1, height, -1)
        y = (tan_half * y[:, None]).expand(-1, -1, width)
        local = torch.nn.functional.normalize(torch.stack([x, y, -torch.ones_like(x)], -1), dim=-1)
        directions = torch.einsum("vij,vhwj->vhwi", self.camera_to_world[:, :3, :3], local)
        return self.camera_to_world[:, None, None, :3, 3].expand_as(directions), directions

    def pose_vectors(self) -> Tensor:
        """(V, 16): what multi-view priors are told of each camera, as MVDream does (arXiv:2308.16512, section 3.1).

        The camera-to-world matrix in Blender's frame (z up; our front, +Z, is its -y), its translation scaled to length
        1, row by row.
        """
        matrices = _BLENDER_FROM_OURS.to(self.camera_to_world) @ self.camera_to_world
        matrices[:, :3, 3] /= matrices[:, :3, 3].norm(dim=-1, keepdim=True)
        return matrices.flatten(1)

    def __len__(self) -> int:
        return len(self.radius)

    def __getitem__(self, index) -> Cameras:
        """A subset of the views; an integer index gives one camera that still has V = 1."""
        if isinstance(index, int):
            index = [index]
        return self._map(lambda value: value[index])

    def to(self, device: torch.device | str) -> Cameras:
        """A copy on the device, or this one where it is there already."""
        return self._map(lambda value: value.to(device))

    def _map(self, function) -> Cameras:
        return Cameras(**{f.name: function(getattr(self, f.name)) for f in dataclasses.fields(self)})


def _check_orbit(elevation: Tensor, radius: Tensor, fov: Tensor) -> None:
    if not (elevation.abs() < 90).all():
        raise ValueError(
            f"elevation_degrees reaches {float(elevation.abs().max()):g}; stay under 90 in size, because straight "
            "above or below the origin the camera has no upright direction."
        )
    if not (radius > 0).all():
        raise ValueError(f"radius is {float(radius.min()):g}; give a positive distance to the origin in metres.")
    if not ((fov > 0) & (fov < 180)).all():
        worst = float(fov[(fov - 90).abs().argmax()])
        raise ValueError(f"fov_degrees is {worst:g}; a pinhole camera needs one between 0 and 180 degrees.")
