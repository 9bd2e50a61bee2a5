"""What a step draws at random: cameras, lights, backgrounds and the shading."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from nerf3d.cameras import Cameras
from nerf3d.fields import Field
from nerf3d.fit.config import FitConfig
from nerf3d.rendering import Lights, Shading, lights_around, sample_backgrounds, sample_lights
from nerf3d.streams import fit_stream, sent, uniform


@dataclasses.dataclass(frozen=True)
class Scene:
    """What is drawn at random for one step: cameras, their lights and backgrounds (V, 3), and the shading.

    Learned backgrounds take the place of those that are drawn.
    """

    cameras: Cameras
    lights: Lights
    background: Tensor
    shading: Shading

    def to(self, device: torch.device | str) -> Scene:
        """The scene on that device, in one transfer."""
        tensors = [*vars(self.cameras).values(), *vars(self.lights).values(), self.background]
        flat = sent(torch.cat([tensor.flatten() for tensor in tensors]), device).split([tensor.numel() for tensor in tensors])
        *cameras, direction, ambient, background = (part.view(tensor.shape) for part, tensor in zip(flat, tensors, strict=True))
        return Scene(Cameras(*cameras), Lights(direction, ambient), background, self.shading)

    def parts(self, number: int) -> list[Scene]:
        """The views in so many equal groups, in order."""
        size = len(self.cameras) // number
        groups = [slice(first, first + size) for first in range(0, len(self.cameras), size)]
        return [Scene(self.cameras[g], self.lights[g], self.background[g], self.shading) for g in groups]


def draw_scene(config: FitConfig, *, seed: int, step: int, avoid: Tensor | None = None) -> Scene:
    """The scene of a step, on CPU: always the same for the same arguments.

    avoid: (N, 3) colours that backgrounds keep away from; cameras and lights do not depend on them.
    """
    draws = fit_stream(seed, "scene", step)
    num_views, together = config.num_views, config.group_views
    azimuth, elevation = _directions(config, num_views // together, draws)
    if together > 1:
        azimuth = (azimuth[:, None] + torch.arange(together) * (360 / together)).flatten() % 360
        jitter = config.group_jitter * uniform((num_views,), draws, -1, 1)
        elevation = (elevation.repeat_interleave(together) + jitter).clamp(config.elevations[0], config.elevations[2])
    ranges = (config.radius_range, config.radius), (config.fov_range, config.fov_degrees)
    radius, fov = (
        only if between is None else uniform((num_views // together,), draws, *between).repeat_interleave(together)
        for between, only in ranges
    )
    if config.radius_by_fov:
        radius = torch.as_tensor(radius) / torch.as_tensor(fov / 2).deg2rad().tan()
    cameras = Cameras.orbit(azimuth, elevation, radius=radius, fov_degrees=fov)
    shading: Shading = "albedo"
    if step >= config.lit_from * config.num_steps and (config.lit_share == 1 or float(uniform((), draws)) < config.lit_share):
        shading = "textureless" if float(uniform((), draws)) < config.textureless_share else "lambert"
    lights = (sample_lights if config.lights == "studio" else lights_around)(cameras, generator=draws)
    if config.backgrounds == "studio":
        background = sample_backgrounds(num_views // together, generator=draws, avoid=avoid)
    else:
        background = uniform((num_views // together, 3), draws)
    return Scene(cameras, lights, background.repeat_interleave(together, dim=0), shading)


def _directions(config: FitConfig, num: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Azimuths and elevations in degrees of `num` groups, (num,) each; a group of one view goes all the way round."""
    # One in each azimuth slice, and all of them turned together: no side is missed.
    azimuth = (torch.arange(num) + uniform((num,), draws)) * (360 / num / config.group_views)
    azimuth = (azimuth + uniform((1,), draws, 0, 360)) % 360
    low, middle, high = config.elevations
    elevation = torch.where(
        uniform((num,), draws) < config.low_view_share,
        uniform((num,), draws, low, middle),
        uniform((num,), draws, middle, high),
    )
    if config.sphere_share:
        # The area between two elevations is the difference of their sines; threestudio draws the sine between those of a
        # range that is evenly divided over the half circle.
        bottom, top = (2 * (angle + 90) / 180 - 1 for angle in (low, high))
        on_sphere = uniform((num,), draws, bottom, top).asin() * (180 / math.pi)
        elevation = torch.where(uniform((num,), draws) < config.sphere_share, on_sphere, elevation)
    return azimuth, elevation


@torch.no_grad()
def object_colours(field: Field, *, generator: torch.Generator, num_points: int = 2048, density: float = 5.0) -> Tensor:
    """(N, 3) on CPU: albedo at those of num_points random places that are at least this dense (1/m), and its shade.

    The toybox never shows an object before a background of its own lit or shaded colour, so neither should a fit.
    """
    points = sent(uniform((num_points, 3), generator, -1, 1), next(field.parameters()).device)
    values = field.query().samples(points)
    found = torch.cat([values.colour, values.density[:, None]], -1).cpu()  # one read: a GPU's host waits for it
    albedo = found[found[:, 3] > density, :3]
    return torch.cat([albedo, 0.75 * albedo])
