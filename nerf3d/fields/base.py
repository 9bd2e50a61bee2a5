"""What a field is: density and albedo at points, and a prepared query of one step's parameters."""

from __future__ import annotations

import abc
import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nerf3d.errors import check_settings

FIELD_KINDS = ("dense_pyramid", "hash_grid")


@dataclasses.dataclass(frozen=True)
class FieldConfig:
    """Both kinds of field. Lengths in metres of the scene box [-1, 1]^3.

    Args:
        kind: "dense_pyramid" (fast on CPU), "hash_grid" (for CUDA), or a class of one's own as module:name.
        radius: density is 0 outside this sphere; the toybox's objects lie within 0.8.
        density_scale: density (1/m) per unit of softplus.
        density_bias, blob_scale, blob_radius: the initial pre-activation density is
            density_bias + blob_scale * max(0, 1 - |x| / blob_radius) (Magic3D, Lin et al. 2022, section 4.1).
        resolutions: the pyramid's grids, vertices per side.
        num_levels, features_per_level, log2_table_size, base_resolution, finest_resolution: as in Instant-NGP, table 1.
        hidden_width: of the hash grid's one hidden layer.

    Raises:
        ValueError: a value out of range, named.
    """

    kind: str = "dense_pyramid"
    radius: float = 0.95
    density_scale: float = 30.0
    density_bias: float = -5.2
    blob_scale: float = 5.0
    blob_radius: float = 0.7
    resolutions: tuple[int, ...] = (16, 32, 64)
    num_levels: int = 12
    features_per_level: int = 2
    log2_table_size: int = 17
    base_resolution: int = 16
    finest_resolution: int = 256
    hidden_width: int = 32

    def __post_init__(self):
        """Raises ValueError for a value out of range, named."""
        checks = {
            "kind": (
                self.kind in FIELD_KINDS or ":" in self.kind,
                f"one of {', '.join(FIELD_KINDS)}, or a class of your own as module:name",
            ),
            "radius": (0 < self.radius <= 1, "metres over 0 and at most 1, the scene box"),
            "density_scale": (self.density_scale > 0, "a density over 0"),
            "blob_radius": (0 < self.blob_radius <= 1, "metres over 0 and at most 1"),
            "resolutions": (
                bool(self.resolutions) and all(2 <= side <= 512 for side in self.resolutions),
                "at least one grid, each with 2 to 512 vertices a side (a trilinear read needs two neighbours)",
            ),
            "num_levels": (1 <= self.num_levels <= 32, "1 to 32 levels"),
            "features_per_level": (1 <= self.features_per_level <= 8, "1 to 8 features"),
            "log2_table_size": (4 <= self.log2_table_size <= 24, "4 to 24"),
            "base_resolution": (2 <= self.base_resolution <= 512, "2 to 512 cells a side"),
            "finest_resolution": (
                self.base_resolution <= self.finest_resolution <= 8192,
                "base_resolution to 8192 cells a side",
            ),
            "hidden_width": (1 <= self.hidden_width <= 1024, "1 to 1024"),
        }
        check_settings(self, checks)


class FieldSamples(NamedTuple):
    """What a field holds at N points.

    Args:
        density: (N,) 1/m, at least 0.
        colour: (N, 3) albedo in [0, 1].
        normals: (N, 3) pointing out of the surface, at most unit length; None where they were not asked for.
    """

    density: Tensor
    colour: Tensor
    normals: Tensor | None


class FieldQuery(abc.ABC):
    """The field with this step's parameters worked out once, to be asked many times."""

    @abc.abstractmethod
    def density(self, points: Tensor) -> Tensor:
        """(N, 3) -> (N,) 1/m; 0 outside the field's sphere. No gradient flows to the points."""

    @abc.abstractmethod
    def samples(self, points: Tensor) -> FieldSamples:
        """Density, albedo and, if the query was prepared with them, normals at points (N, 3), to which no gradient flows."""

    @abc.abstractmethod
    def total_variation(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Mean absolute difference of neighbours, two scalars: of the density before its activation, and of the albedo."""

    @abc.abstractmethod
    def density_beyond(self, radius: float, generator: torch.Generator) -> Tensor:
        """Mean density (1/m) over the scene box, counting only what lies outside a sphere of this radius."""


class Field(nn.Module, abc.ABC):
    """A radiance field without view dependence: density (N,) 1/m and albedo (N, 3) in [0, 1] over [-1, 1]^3."""

    config: FieldConfig

    @property
    def spacing(self) -> float | None:
        """Scene units between neighbouring vertices of the finest grid that density is read from; None without one."""
        return None

    @abc.abstractmethod
    def query(self, *, normals: bool = False) -> FieldQuery:
        """This moment's field; gradients flow from its answers to the parameters."""

    @abc.abstractmethod
    def density_parameters(self) -> list[nn.Parameter]:
        """The parameters that shape the density (all shared ones included)."""

    @abc.abstractmethod
    def colour_parameters(self) -> list[nn.Parameter]:
        """The parameters that only colour depends on."""

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """points (N, 3) -> density (N,) and albedo (N, 3)."""
        samples = self.query().samples(points)
        return samples.density, samples.colour

    def density(self, points: Tensor) -> Tensor:
        """points (N, 3) -> (N,) 1/m."""
        return self.query().density(points)

    def colour(self, points: Tensor) -> Tensor:
        """points (N, 3) -> albedo (N, 3) in [0, 1]."""
        return self.query().samples(points).colour


def initial_density(points: Tensor, config: FieldConfig) -> Tensor:
    """The pre-activation density that a field starts from: a cone-shaped blob on a floor; (N, 3) -> (N,)."""
    cone = (1 - points.norm(dim=-1) / config.blob_radius).clamp_min(0)
    return config.density_bias + config.blob_scale * cone
