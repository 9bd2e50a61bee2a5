"""The fit of colours to a guide on a surface that does not move. Written as a generator, as `nerf3d.fit.fit`.

Colours live on grids over the scene box and are read where the surface is, so that the two sides of a seam in the texture
are one place here and show one colour.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Generator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nerf3d.errors import FitCollapsed, check_settings
from nerf3d.fields.dense_pyramid import read
from nerf3d.fit import FitConfig, draw_scene
from nerf3d.guide import Guide
from nerf3d.mesh.mesh import Mesh
from nerf3d.rendering.shading import shade
from nerf3d.streams import fit_stream
from nerf3d.surface.losses import image_loss
from nerf3d.surface.raster import composite, rasterise

_PLACES_TO_AVOID = 1024


@dataclasses.dataclass(frozen=True)
class PaintConfig:
    """How a mesh is painted.

    num_steps, num_views: optimisation steps and pictures per step.
    resolutions: of the grids that colours live on, vertices per side.
    supersample: samples per pixel and side.
    rate: Adam's. rate_decay: it falls to this share along a cosine in the last half.
    pyramid_levels: of the image loss.
    smoothness: weight of the mean difference between neighbouring vertices of the grids.
    texture_size: texels per side of the texture.
    unwrap_seconds: processor time to lay a surface without a usable UV map flat; past it a plain projection does.
    keep_texture: whether the mesh's own texture is painted over rather than begun anew from grey.
    """

    num_steps: int = 150
    num_views: int = 4
    resolutions: tuple[int, ...] = (8, 16, 32, 64)
    supersample: int = 2
    rate: float = 0.05
    rate_decay: float = 0.1
    pyramid_levels: int = 3
    smoothness: float = 0.01
    texture_size: int = 1024
    unwrap_seconds: float = 20.0
    keep_texture: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range, named."""
        checks = {
            "num_steps": (1 <= self.num_steps <= 100_000, "1 to 100,000"),
            "num_views": (1 <= self.num_views <= 1024, "1 to 1024 pictures a step"),
            "resolutions": (
                bool(self.resolutions) and all(2 <= side <= 512 for side in self.resolutions),
                "at least one grid, each with 2 to 512 vertices a side",
            ),
            "supersample": (1 <= self.supersample <= 4, "1 to 4 samples per pixel and side"),
            "rate": (0 < self.rate <= 10, "a learning rate over 0 and at most 10"),
            "rate_decay": (0 <= self.rate_decay <= 1, "a share, 0 to 1"),
            "pyramid_levels": (1 <= self.pyramid_levels <= 8, "1 to 8 levels"),
            "smoothness": (self.smoothness >= 0, "a weight of at least 0"),
            "texture_size": (
                self.texture_size in (64, 128, 256, 512, 1024, 2048, 4096),
                "a power of two from 64 to 4096 texels",
            ),
            "unwrap_seconds": (0 < self.unwrap_seconds <= 3600, "seconds over 0 and at most 3600"),
        }
        check_settings(self, checks)


class Paint(nn.Module):
    """A change of colour over the scene box [-1, 1]^3: grids summed into one volume, of which each place reads its own."""

    def __init__(self, resolutions: tuple[int, ...]):
        super().__init__()
        self.grids = nn.ParameterList([nn.Parameter(torch.zeros(1, 3, side, side, side)) for side in sorted(resolutions)])

    def volume(self) -> Tensor:
        """(1, 3, R, R, R), indexed [channel, z, y, x]."""
        first, *rest = self.grids
        total: Tensor = first
        for grid in rest:
            total = grid + F.interpolate(total, size=(grid.shape[-1],) * 3, mode="trilinear", align_corners=True)
        return total

    @staticmethod
    def over(base: Tensor, volume: Tensor, points: Tensor) -> Tensor:
        """Colours (N, 3) in [0, 1]: the base colours (N, 3) of the points (N, 3), changed as the volume says."""
        return (torch.logit(base, eps=1e-3) + read(volume, points)).sigmoid()


@dataclasses.dataclass(frozen=True)
class PaintProgress:
    """After each step. step: steps done, 1 to num_steps. metrics: loss, gradient_norm, and seconds per stage."""

    step: int
    num_steps: int
    metrics: dict[str, float]


def paint(
    mesh: Mesh,
    guide: Guide,
    config: PaintConfig,
    *,
    scenes: FitConfig,
    seed: int,
    device: torch.device | str = "cpu",
) -> Generator[PaintProgress, None, Paint]:
    """Optimises the colours of a mesh until a guide likes its pictures from all sides.

    Args:
        mesh: in the scene frame and box, as large as the guide's objects; its texture, else its vertex colours, are the start
            where config.keep_texture says so, else middle grey is.
        scenes: which cameras, lights and backgrounds are drawn, and guide_size, the pictures' size.
        seed: every random number of the fit follows from it.

    Raises:
        FitCollapsed: a number is not finite.
    """
    paint_ = Paint(config.resolutions).to(device)
    optimiser = torch.optim.Adam(paint_.parameters(), lr=config.rate, betas=(0.9, 0.99), eps=1e-12, fused=True)
    vertices = torch.from_numpy(mesh.vertices).to(device)
    faces = torch.from_numpy(mesh.faces).long().to(device)
    normals = torch.from_numpy(mesh.normals).to(device)
    for step in range(config.num_steps):
        began = time.perf_counter()
        volume = paint_.volume()
        scene = draw_scene(scenes, seed=seed, step=step, avoid=_own_colours(mesh, config, volume, vertices, seed, step))
        fragments = rasterise(vertices, faces, scene.cameras, scenes.guide_size * config.supersample)
        points = fragments.interpolate(vertices, faces)
        base = start_colours(mesh, fragments.faces, fragments.weights, keep=config.keep_texture)
        albedo = Paint.over(base, volume, points)
        view = fragments.view_of()
        lights = scene.lights.to(device)
        colours = shade(
            albedo,
            F.normalize(fragments.interpolate(normals, faces), dim=-1),
            shading=scene.shading,
            direction=lights.direction[view],
            ambient=lights.ambient[view],
        )
        pictures = composite(fragments, colours, scene.background.to(device), supersample=config.supersample)
        rendered = time.perf_counter()
        reply = guide(
            pictures.detach().clamp(0, 1), scene.cameras, background=scene.background, step=step, num_steps=config.num_steps
        )
        guided = time.perf_counter()
        if reply.target is not None:
            loss = image_loss(pictures, reply.target, levels=config.pyramid_levels)
        else:
            loss = (pictures * reply.gradient.detach()).mean()  # DreamFusion, equation 3
        if config.smoothness:
            shown = volume.sigmoid()
            loss = loss + config.smoothness * sum(shown.diff(dim=axis).abs().mean() for axis in (2, 3, 4))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        _set_rate(optimiser, config, step / config.num_steps)
        gradients = [grid.grad.norm() for grid in paint_.grids if grid.grad is not None]
        optimiser.step()
        metrics = {"loss": float(loss.detach()), "gradient_norm": float(torch.stack(gradients).norm())}
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise FitCollapsed("not_finite", step, f"{name} is {value}")
        seconds = {"render": rendered - began, "guide": guided - rendered, "backward": time.perf_counter() - guided}
        yield PaintProgress(step + 1, config.num_steps, metrics | {f"seconds_{k}": v for k, v in seconds.items()})
    return paint_


def start_colours(mesh: Mesh, faces: Tensor, weights: Tensor, *, keep: bool) -> Tensor:
    """(K, 3) in [0, 1]: what the mesh shows at weights (K, 3) of faces (K,) before it is painted."""
    if not keep:
        return torch.full((len(faces), 3), 0.5, device=weights.device)
    rows, mix = faces.cpu().numpy(), weights.detach().cpu().numpy()
    if mesh.texture is not None:
        found = mesh.texture.sample(mesh.texture.base_colour, rows, mix)
    else:
        found = (mix[..., None] * mesh.colours[mesh.faces[rows]]).sum(1)
    return torch.from_numpy(found).to(weights)


@torch.no_grad()
def _own_colours(mesh: Mesh, config: PaintConfig, volume: Tensor, vertices: Tensor, seed: int, step: int) -> Tensor:
    """(N, 3) on the CPU: colours of some vertices and their shades, which backgrounds keep away from."""
    draws = fit_stream(seed, "paint", step)
    rows = torch.randint(len(mesh.faces), (min(_PLACES_TO_AVOID, len(mesh.faces)),), generator=draws)
    weights = torch.full((len(rows), 3), 1 / 3)
    middles = vertices[torch.from_numpy(mesh.faces).long().to(vertices.device)[rows.to(vertices.device)]].mean(1)
    base = start_colours(mesh, rows, weights, keep=config.keep_texture).to(vertices.device)
    albedo = Paint.over(base, volume, middles).cpu()
    return torch.cat([albedo, 0.75 * albedo])


def _set_rate(optimiser: torch.optim.Optimizer, config: PaintConfig, progress: float) -> None:
    late = max(0.0, 2 * progress - 1)
    for group in optimiser.param_groups:
        group["lr"] = config.rate * (config.rate_decay + (1 - config.rate_decay) * 0.5 * (1 + math.cos(math.pi * late)))
