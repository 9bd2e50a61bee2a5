"""The fit of a field to a guide: its settings, its state, a step's scene, the loss's terms, collapse, and the loop."""

from __future__ import annotations

from nerf3d.fit.collapse import sphere_share
from nerf3d.fit.config import PRESETS, FitConfig
from nerf3d.fit.loop import FitProgress, FitResult, fit
from nerf3d.fit.preview import look_around, preview_views
from nerf3d.fit.scene import Scene, draw_scene, object_colours
from nerf3d.fit.state import FitState, saved_field

__all__ = [
    "PRESETS",
    "FitConfig",
    "FitProgress",
    "FitResult",
    "FitState",
    "Scene",
    "draw_scene",
    "fit",
    "look_around",
    "object_colours",
    "preview_views",
    "saved_field",
    "sphere_share",
]
