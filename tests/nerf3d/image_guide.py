"""Guides that know the true object: exact, or as blurred and inconsistent as a diffusion prior's estimate."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional as F

from nerf3d.cameras import Cameras
from nerf3d.fit import FitConfig, draw_scene
from nerf3d.guide import GuideReply
from nerf3d.rendering import Lights
from nerf3d.streams import fit_stream, uniform
from nerf3d.toybox.primitives import Parts
from nerf3d.toybox.render import render_object


@dataclasses.dataclass(frozen=True)
class ImageGuide:
    """Replies with pictures of the true object from the same views over the same backgrounds.

    config, seed: of the fit, from which the guide learns the lights, unless it is told them. own_light: lights of its
    own instead, which disagree with the fit's. blur (pixels), shift (pixels), tint (share): a diffusion prior's blur and
    inconsistency.
    """

    parts: Parts
    config: FitConfig
    seed: int
    own_light: bool = False
    blur: float = 0.0
    shift: float = 0.0
    tint: float = 0.0
    noise: float = 0.0
    with_target: bool = True
    lights: Lights | None = None

    def __call__(self, rgb: Tensor, views: Cameras, *, background: Tensor, step: int, num_steps: int) -> GuideReply:
        scene = draw_scene(self.config, seed=self.seed + (1000 if self.own_light else 0), step=step)
        lights = self.lights or scene.lights
        pictures = []
        for view in range(len(views)):
            picture, alpha = render_object(
                self.parts,
                views[view],
                rgb.shape[-1],
                shading=scene.shading,
                background=background[view].tolist(),
                ambient=float(lights.ambient[view]),
                light=lights.direction[view].tolist(),
            )
            pictures.append(torch.cat([picture, alpha], 1))
        target = self._spoil(torch.cat(pictures), background, fit_stream(self.seed, "image guide", step))
        gradient = 2 * (rgb - target)
        return GuideReply(gradient, target if self.with_target else None)

    def _spoil(self, pictures: Tensor, background: Tensor, draws: torch.Generator) -> Tensor:
        picture, alpha = pictures[:, :3], pictures[:, 3:]
        num_views, side = len(picture), picture.shape[-1]
        if self.tint:
            object_only = picture - (1 - alpha) * background[:, :, None, None]
            object_only = object_only * (1 + uniform((num_views, 3, 1, 1), draws, -self.tint, self.tint))
            picture = object_only + (1 - alpha) * background[:, :, None, None]
        if self.shift:
            theta = torch.eye(2, 3).repeat(num_views, 1, 1)
            theta[:, :, 2] = uniform((num_views, 2), draws, -self.shift, self.shift) * 2 / side
            grid = F.affine_grid(theta, [num_views, 3, side, side], align_corners=False)
            picture = F.grid_sample(picture, grid, padding_mode="border", align_corners=False)
        if self.blur:
            reach = round(3 * self.blur)
            kernel = torch.exp(-torch.arange(-reach, reach + 1).square() / (2 * self.blur**2))
            kernel = (kernel / kernel.sum()).repeat(3, 1)
            padded = F.pad(picture, (reach,) * 4, mode="replicate")
            picture = F.conv2d(padded, kernel[:, None, :, None], groups=3)
            picture = F.conv2d(picture, kernel[:, None, None, :], groups=3)
        if self.noise:
            picture = picture + self.noise * torch.empty_like(picture).normal_(generator=draws)
        return picture.clamp(0, 1)
