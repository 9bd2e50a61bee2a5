"""When a fit has come to nothing."""

from __future__ import annotations

import functools
import math

from nerf3d.cameras import Cameras
from nerf3d.errors import FitCollapsed
from nerf3d.fit.config import FitConfig
from nerf3d.fit.state import FitState
from nerf3d.rendering.volume import ray_interval


def check_finite(step: int, **values: float) -> None:
    """Raises FitCollapsed for a value that is none, named."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise FitCollapsed("not_finite", step, f"{name} is {value}")


def check_collapse(state: FitState, opacity: float, occupied: float) -> None:
    """Counts suspicious steps in a row, and raises FitCollapsed when the fit's patience is over.

    Being full is normal at first, when the whole volume is fog.

    opacity: mean alpha of the step's pictures. occupied: share of the occupancy grid's cells.
    """
    patience = max(4, math.ceil(state.config.patience * state.config.num_steps))
    state.empty_steps = state.empty_steps + 1 if opacity < 0.005 else 0
    full = opacity > 0.95 * sphere_share(state.config) or (occupied > 0.9 and state.step > 2 * patience)
    state.full_steps = state.full_steps + 1 if full else 0
    if state.empty_steps >= patience:
        detail = f"mean opacity {opacity:.4f} stayed under 0.005 for {state.empty_steps} steps"
        raise FitCollapsed("empty", state.step, detail)
    if state.full_steps >= patience:
        detail = f"mean opacity {opacity:.2f} and {occupied:.0%} of the cells occupied, for {state.full_steps} steps"
        raise FitCollapsed("full", state.step, detail)


@functools.cache
def sphere_share(config: FitConfig) -> float:
    """The largest mean opacity that pictures can have: the share of their rays that meet the field's sphere."""
    cameras = Cameras.orbit(0, 0, radius=config.radius, fov_degrees=config.fov_degrees)
    origins, directions = (r.reshape(-1, 3) for r in cameras.rays(64, 64))
    near, far = ray_interval(origins, directions, radius=config.field.radius, bounds=None)
    return float((far > near).float().mean())
