"""What shapes a fit, and its presets."""

# ruff: noqa: RUF009 - Schedule and FieldConfig are frozen, so they are safe as defaults.
from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from nerf3d.errors import check_settings
from nerf3d.fields import FieldConfig
from nerf3d.regularisers import Schedule

PRESETS = ("draft", "default", "fine")
LightKind = Literal["studio", "around"]
BackgroundKind = Literal["studio", "random", "learned"]
Reduction = Literal["mean", "sum"]


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """Everything that shapes a fit besides the guide, the seed and the device.

    num_steps, num_views: optimisation steps and pictures per step. guide_parts: a step's pictures are rendered and shown to
    the guide in so many equal parts, each judged while the next is rendered: worth it where the guide computes on another
    device. render_sizes: (progress, pixels) pairs; from that
    progress on, pictures are rendered at this size. guide_size: pixels per side that the guide is shown (smaller renders
    are enlarged bilinearly, larger ones shrunk with antialiasing), unless it resizes them itself. num_samples: per ray.
    elevations (degrees), low_view_share, radius, fov_degrees: of the cameras, as in the toybox's training pictures: that
    share of the views lies between the first two elevations, the others between the last two.
    radius_range (metres), fov_range (degrees): from which each view's distance and field of view are drawn; previews keep
    radius and fov_degrees. None for these two alone. radius_by_fov: distances are in units of 1 / tan(fov / 2), at which
    the half height of the picture is one metre, as MVDream's.
    sphere_share: of the views, those whose direction is uniform over the zone of a sphere between the lowest and the
    highest elevation, as threestudio draws half of its views.
    group_views: so many views are drawn as a group, evenly spaced around the object, for a guide that judges them together;
    group_jitter: degrees by which their elevations differ from the group's.
    lit_from: progress from which pictures are shaded by random lights; unlit albedo before. textureless_share: of the lit
    steps that show white material. lit_share: of the steps from lit_from on that are lit.
    lights: "studio", as in the toybox's training pictures, or "around" the camera with ambient 0.1, as in DreamFusion.
    backgrounds: "studio" colours as in the toybox's training pictures, any "random" colour a view, or a "learned" colour
    for every direction, which a small network is taught at background_rate (DreamFusion, section 3.1).
    density_rate, colour_rate: Adam's. rate_decay: the rates fall to this share along a cosine in the last half.
    guide_reduction: the guide's loss is the "mean" over all values of its pictures, or the "sum" over a picture and the mean
    over views, as in threestudio, against whose size the other terms' published factors are.
    guide_weight and the others: factors of the loss terms, each a Schedule over the fit's progress.
    occupancy_*: cells per side, steps between refreshes, threshold on opacity per sample.
    patience: share of the steps for which pictures may be empty or full before the fit counts as collapsed.
    """

    num_steps: int = 400
    num_views: int = 4
    guide_parts: int = 1
    render_sizes: tuple[tuple[float, int], ...] = ((0.0, 32), (0.4, 64))
    guide_size: int = 64
    num_samples: int = 48
    elevations: tuple[float, float, float] = (-10.0, 40.0, 65.0)
    low_view_share: float = 0.78
    radius: float = 2.7
    fov_degrees: float = 40.0
    radius_range: tuple[float, float] | None = None
    fov_range: tuple[float, float] | None = None
    radius_by_fov: bool = False
    sphere_share: float = 0.0
    group_views: int = 1
    group_jitter: float = 0.0
    lit_from: float = 0.3
    lit_share: float = 1.0
    textureless_share: float = 0.0
    lights: LightKind = "studio"
    backgrounds: BackgroundKind = "studio"
    background_rate: float = 1e-3
    density_rate: float = 0.12
    colour_rate: float = 0.03
    rate_decay: float = 0.1
    guide_reduction: Reduction = "mean"
    guide_weight: Schedule = Schedule(1.0)
    sparsity: Schedule = Schedule(0.0)
    opaqueness: Schedule = Schedule(0.0, 0.3, 0.3, 1.0)
    background: Schedule = Schedule(0.1)
    orientation: Schedule = Schedule(0.0, 0.02, 0.3, 1.0)
    depth_variance: Schedule = Schedule(0.0, 4.0, 0.3, 0.6)
    density_variation: Schedule = Schedule(0.01)
    colour_variation: Schedule = Schedule(0.01)
    outer_density: Schedule = Schedule(0.01)
    outer_radius: float = 0.85
    occupancy_resolution: int = 64
    occupancy_every: int = 8
    occupancy_threshold: float = 0.004
    patience: float = 0.15
    field: FieldConfig = FieldConfig()

    def __post_init__(self):
        """Raises ValueError for a value out of range, named."""
        begins = [begin for begin, _ in self.render_sizes]
        a_share = "a share, 0 to 1"
        checks = {
            "num_steps": (1 <= self.num_steps <= 1_000_000, "1 to 1,000,000: a step takes tens of milliseconds at best"),
            "num_views": (1 <= self.num_views <= 1024, "1 to 1024 pictures a step"),
            "guide_parts": (
                1 <= self.guide_parts <= self.num_views and self.num_views % self.guide_parts == 0,
                f"a number that divides num_views, {self.num_views}",
            ),
            "group_views": (
                self.group_views >= 1 and self.num_views // max(1, self.guide_parts) % self.group_views == 0,
                f"whole groups: a number that divides the {self.num_views} views of a step, or of each of its guide_parts",
            ),
            "group_jitter": (0 <= self.group_jitter <= 45, "0 to 45 degrees"),
            "render_sizes": (
                begins[:1] == [0] and begins == sorted(begins) and all(4 <= pixels <= 1024 for _, pixels in self.render_sizes),
                "pairs such as [[0.0,32],[0.4,64]] that begin with the size of the first step, in order, 4 to 1024 pixels each",
            ),
            "guide_size": (8 <= self.guide_size <= 2048, "8 to 2048 pixels"),
            "num_samples": (1 <= self.num_samples <= 4096, "1 to 4096 samples a ray"),
            "elevations": (
                -90 < self.elevations[0] <= self.elevations[1] <= self.elevations[2] < 90,
                "three ascending angles between -90 and 90 degrees",
            ),
            "low_view_share": (0 <= self.low_view_share <= 1, a_share),
            "radius": (1 < self.radius <= 100, "a distance over 1 metre, outside the object, and at most 100"),
            "fov_degrees": (1 <= self.fov_degrees <= 150, "1 to 150 degrees"),
            "radius_range": (
                self.radius_range is None
                or (0 if self.radius_by_fov else 1) < self.radius_range[0] <= self.radius_range[1] <= 100,
                "two ascending distances over 1 metre, outside the object, and at most 100; with radius_by_fov over 0",
            ),
            "fov_range": (
                self.fov_range is None or 1 <= self.fov_range[0] <= self.fov_range[1] <= 150,
                "two ascending angles from 1 to 150 degrees",
            ),
            "sphere_share": (0 <= self.sphere_share <= 1, a_share),
            "lit_from": (0 <= self.lit_from <= 1, a_share),
            "lit_share": (0 <= self.lit_share <= 1, a_share),
            "lights": (self.lights in get_args(LightKind), f"one of {', '.join(get_args(LightKind))}"),
            "backgrounds": (self.backgrounds in get_args(BackgroundKind), f"one of {', '.join(get_args(BackgroundKind))}"),
            "background_rate": (0 < self.background_rate <= 10, "a learning rate over 0 and at most 10"),
            "guide_reduction": (self.guide_reduction in get_args(Reduction), f"one of {', '.join(get_args(Reduction))}"),
            "textureless_share": (0 <= self.textureless_share <= 1, a_share),
            "density_rate": (0 < self.density_rate <= 10, "a learning rate over 0 and at most 10"),
            "colour_rate": (0 < self.colour_rate <= 10, "a learning rate over 0 and at most 10"),
            "rate_decay": (0 <= self.rate_decay <= 1, a_share),
            "outer_radius": (0 < self.outer_radius <= 2, "metres over 0 and at most 2"),
            "occupancy_resolution": (2 <= self.occupancy_resolution <= 512, "2 to 512 cells a side"),
            "occupancy_every": (self.occupancy_every >= 1, "at least 1 step"),
            "occupancy_threshold": (0 <= self.occupancy_threshold < 1, "an opacity from 0 to under 1"),
            "patience": (0 <= self.patience <= 1, a_share),
        }
        check_settings(self, checks)

    @classmethod
    def preset(cls, name: str, **changes) -> FitConfig:
        """The preset named draft (160 steps), default (400) or fine (1,200, one more grid), with changes to its fields.

        A hash grid gets learning rates of 0.01 (threestudio's dreamfusion-sd), because its network would break at those
        of plain grids. Raises ValueError for another name.
        """
        if name not in PRESETS:
            raise ValueError(f"There is no fit preset {name!r}; choose one of {', '.join(PRESETS)}.")
        if name == "draft":
            changes = {"num_steps": 160} | changes
        if name == "fine":
            fine = FieldConfig(resolutions=(16, 32, 64, 96))
            changes = {"num_steps": 1200, "num_samples": 64, "occupancy_resolution": 96, "field": fine} | changes
        if changes.get("field", FieldConfig()).kind == "hash_grid":
            changes = {"density_rate": 0.01, "colour_rate": 0.01} | changes
        return cls(**changes)

    def render_size(self, progress: float) -> int:
        """Pixels per side at this progress in [0, 1)."""
        return [size for begin, size in self.render_sizes if progress >= begin][-1]
