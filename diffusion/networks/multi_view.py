"""Views of one object drawn together, by a network that is told their cameras (MVDream, arXiv:2308.16512, section 3.1).

Two things are added to a UNet, both by configuration: an embedding of each view's camera, which joins the embedding of the
timestep, and self-attention that runs over the tokens of all views of a group. A third is ours: where a network is small
or pictures are few, features of the places that each token looks at, added where its transformer begins, teach it the
cameras many times sooner than the embedding alone (docs/benchmarks.md, "Cameras").

A camera is 16 numbers, as published: the camera-to-world matrix in Blender's frame (x right, y back, z up), its translation
scaled to length 1, row by row. Sixteen zeros stand for a picture without a camera.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from diffusion.networks.layers import Linear
from diffusion.networks.published import from_published

NUM_CAMERA = 16
"""Numbers that tell a camera."""

NUM_POSITION = 18
"""Numbers that tell where a token looks: two points, and the sines and cosines of their coordinates."""


@dataclass(frozen=True)
class MultiViewConfig:
    """What a UNet has beyond the published one.

    Args:
        num_views: views of a group in training, evenly spaced around the object.
        attention_levels: levels (0 is the finest) whose self-attention joins the views of a group; None for all.
        position_levels: levels whose transformers are told where each token looks; none as published.
        distance: of the cameras from the origin, in metres; read by the position features alone.
        fov_degrees: vertical field of view, read by the position features alone.
        object_radius: of the sphere around the origin that the position features meet, in metres.
        elevation_jitter: degrees by which the views of a group differed from its elevation in training.
    """

    num_views: int = 4
    attention_levels: tuple[int, ...] | None = None
    position_levels: tuple[int, ...] = ()
    distance: float = 2.7
    fov_degrees: float = 40.0
    object_radius: float = 0.8
    elevation_jitter: float = 0.0

    def __post_init__(self) -> None:
        if self.num_views < 1:
            raise ValueError(f"num_views of a multi-view network is {self.num_views}; expected at least 1")
        if not self.distance > self.object_radius > 0 or not 0 < self.fov_degrees < 180:
            raise ValueError(
                f"distance {self.distance}, object_radius {self.object_radius} and fov_degrees {self.fov_degrees} make no "
                "camera; expected distance > object_radius > 0 and 0 < fov_degrees < 180"
            )

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> "MultiViewConfig":
        """Reads `multi_view/config.json`; fields that it does not know are passed over.

        Raises:
            ValueError: a value out of range.
        """
        return from_published(cls, config)

    def joins(self, level: int) -> bool:
        """Whether self-attention at this level runs over all views of a group."""
        return self.attention_levels is None or level in self.attention_levels


def is_multi_view_key(name: str) -> bool:
    """Whether a UNet's parameter of this name is one that the published UNet lacks."""
    return name.startswith("camera_embed.") or ".to_position." in name


def split_keys(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """A UNet's parameters: those of the published class, and those beside it."""
    names = list(names)
    return [name for name in names if not is_multi_view_key(name)], [name for name in names if is_multi_view_key(name)]


class CameraEmbedding(nn.Sequential):
    """Sixteen numbers in the width of the time embedding; zeros for rows without a camera."""

    def __init__(self, dim: int) -> None:
        super().__init__(Linear(NUM_CAMERA, dim), nn.SiLU(), Linear(dim, dim))

    def forward(self, cameras_BM: Tensor) -> Tensor:
        """(B, 16) -> (B, dim)."""
        embedded = super().forward(cameras_BM.to(next(self.parameters()).dtype))
        return embedded * has_camera(cameras_BM)[:, None].to(embedded.dtype)


def has_camera(cameras_BM: Tensor) -> Tensor:
    """(B,) whether a row's 16 numbers are a camera and not zeros."""
    return (cameras_BM != 0).any(dim=-1)


@dataclass(frozen=True, eq=False)
class Views:
    """How the rows of one forward belong together.

    Args:
        config: of the network.
        cameras_BM: (B, 16), or None where no row has a camera.
        num_views: rows n * num_views to (n + 1) * num_views - 1 are the views of one object.
    """

    config: MultiViewConfig
    cameras_BM: Tensor | None
    num_views: int
    _features: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def with_positions(self, x_BCHW: Tensor, project: nn.Linear) -> Tensor:
        """A feature map plus what its tokens' places become in its channels; rows without a camera stay as they are."""
        if self.cameras_BM is None:
            return x_BCHW
        height, width = size = (x_BCHW.shape[-2], x_BCHW.shape[-1])
        if size not in self._features:
            self._features[size] = position_features(self.cameras_BM, height, width, self.config)
        places = project(self._features[size].to(project.weight.dtype))
        places = places * has_camera(self.cameras_BM)[:, None, None].to(places.dtype)
        return x_BCHW + places.transpose(1, 2).unflatten(-1, size)

    def group(self, tokens_BLD: Tensor) -> Tensor:
        """The tokens of a group's views side by side, (B / V, V * L, D)."""
        return tokens_BLD.reshape(-1, self.num_views * tokens_BLD.shape[1], tokens_BLD.shape[2])


def position_features(cameras_BM: Tensor, height: int, width: int, config: MultiViewConfig) -> Tensor:
    """Where the tokens of a map look, in the frame of the cameras.

    Two points of each token's ray, in units of the object's radius: where it crosses the plane through the origin that
    faces the camera, and where it enters the sphere around the object, or comes closest to it. With their sines and
    cosines at one wave a diameter.

    Args:
        cameras_BM: (B, 16).

    Returns:
        (B, height * width, 18) float32, row by row; of no use where there is no camera.
    """
    matrices = cameras_BM.float().unflatten(-1, (4, 4))
    axes, origin = matrices[:, :3, :3], matrices[:, :3, 3] * config.distance
    tan_half = math.tan(math.radians(config.fov_degrees) / 2)
    device = cameras_BM.device
    x = ((torch.arange(width, device=device) + 0.5) * 2 - width) / height * tan_half
    y = (height - (torch.arange(height, device=device) + 0.5) * 2) / height * tan_half
    local = torch.stack(
        [x.expand(height, -1), y[:, None].expand(-1, width), torch.full((height, width), -1.0, device=device)], -1
    )
    # Local z is -1, so a ray reaches the plane through the origin after `distance` of its own lengths.
    rays = local.reshape(-1, 3) @ axes.transpose(1, 2)
    plane = origin[:, None] + config.distance * rays
    unit = nn.functional.normalize(rays, dim=-1)
    along = (origin[:, None] * unit).sum(dim=-1, keepdim=True)
    inside = along.square() - origin.square().sum(dim=-1)[:, None, None] + config.object_radius**2
    sphere = origin[:, None] + unit * (-along - inside.clamp_min(0).sqrt())
    points = torch.cat([plane, sphere], dim=-1) / config.object_radius
    return torch.cat([points, (math.pi * points).sin(), (math.pi * points).cos()], dim=-1)
