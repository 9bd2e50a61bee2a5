"""From a field to pictures: occupancy, volume rendering, shading, background."""

from nerf3d.rendering.background import LearnedBackground, sample_backgrounds
from nerf3d.rendering.nerfacc_backend import build_cuda_kernels, needs_compiling
from nerf3d.rendering.occupancy import Occupancy
from nerf3d.rendering.shading import SHADINGS, Lights, Shading, headlights, lights_around, sample_lights
from nerf3d.rendering.volume import RaySamples, RenderOutput, render, render_views

__all__ = [
    "SHADINGS",
    "LearnedBackground",
    "Lights",
    "Occupancy",
    "RaySamples",
    "RenderOutput",
    "Shading",
    "build_cuda_kernels",
    "headlights",
    "lights_around",
    "needs_compiling",
    "render",
    "render_views",
    "sample_backgrounds",
    "sample_lights",
]
