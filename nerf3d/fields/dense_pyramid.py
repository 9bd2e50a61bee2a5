"""Dense grids of several resolutions, summed into one volume and sampled once: the field for CPU.

A voxel field in the manner of DVGO (Sun et al. 2022, equation 6: interpolate, then activate). The coarse grids play the
part of a preconditioner: one step of Adam moves whole regions through them and single voxels through the finest.
Summing first makes a query cost one trilinear read, however many grids there are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nerf3d.fields.base import Field, FieldConfig, FieldQuery, FieldSamples, initial_density

_READS = 2
"""Points are read in this many slices, which torch runs on as many threads; fixed, so that sums never depend on threads."""


class DensePyramid(Field):
    """config.resolutions grids of density and albedo over [-1, 1]^3, vertices on the corners. No network.

    `start` (1, 1, R, R, R) and `distance` (R, R, R), at the vertices of the finest grid, are the initial density before its
    activation and the distance from the centre.
    """

    start: Tensor
    distance: Tensor

    def __init__(self, config: FieldConfig, *, seed: int = 0):
        super().__init__()
        del seed  # it starts from zeros
        self.config = config
        sides = sorted(config.resolutions)
        self.density_grids = nn.ParameterList([nn.Parameter(torch.zeros(1, 1, s, s, s)) for s in sides])
        self.colour_grids = nn.ParameterList([nn.Parameter(torch.zeros(1, 3, s, s, s)) for s in sides])
        vertices = grid_vertices(sides[-1])
        self.register_buffer("start", initial_density(vertices, config)[None, None], persistent=False)
        self.register_buffer("distance", vertices.norm(dim=-1), persistent=False)
        self._beyond: tuple[float, Tensor] | None = None

    @property
    def spacing(self) -> float:
        """Scene units between neighbouring vertices of the finest grid."""
        return 2 / (max(self.config.resolutions) - 1)

    def density_parameters(self) -> list[nn.Parameter]:
        """The parameters that shape the density."""
        return list(self.density_grids)

    def colour_parameters(self) -> list[nn.Parameter]:
        """The parameters that only colour depends on."""
        return list(self.colour_grids)

    def volume(self) -> Tensor:
        """(1, 4, R, R, R) indexed [channel, z, y, x]: pre-activation density and 3 albedo channels, all grids summed."""
        total = None
        for density, colour in zip(self.density_grids, self.colour_grids, strict=True):
            level = torch.cat([density, colour], 1)
            if total is not None:
                side = level.shape[-1]
                level = level + F.interpolate(total, size=(side,) * 3, mode="trilinear", align_corners=True)
            total = level
        assert total is not None
        return torch.cat([total[:, :1] + self.start, total[:, 1:]], 1)

    def query(self, *, normals: bool = False) -> DensePyramidQuery:
        """This moment's field: its grids summed up once."""
        return DensePyramidQuery(self, self.volume(), normals)

    def beyond(self, radius: float) -> Tensor:
        """Indices of the vertices outside a sphere, (K,) long; kept, because a GPU's host waits for their number."""
        if self._beyond is None or self._beyond[0] != radius or self._beyond[1].device != self.distance.device:
            self._beyond = radius, (self.distance > radius).flatten().nonzero().squeeze(-1)
        return self._beyond[1]


class DensePyramidQuery(FieldQuery):
    """One step's summed volume; with normals, its gradient is three more channels of the same read."""

    def __init__(self, field: DensePyramid, volume: Tensor, normals: bool):
        self.field, self.volume, self.normals = field, volume, normals
        self._table = torch.cat([volume, volume_gradient(volume[:, :1])], 1) if normals else volume

    def density(self, points: Tensor) -> Tensor:
        """Density (N,) in 1/m at points (N, 3); 0 outside the sphere. No gradient flows to the points."""
        return self._density(read(self.volume[:, :1], points)[:, 0], points)

    def samples(self, points: Tensor) -> FieldSamples:
        """Density (N,), albedo (N, 3) and perhaps normals (N, 3) at points (N, 3)."""
        raw = read(self._table, points)
        normals = None
        if self.normals:
            slope = raw[:, 4:]
            # Density falls on the way out. The constant keeps the gradient bounded where the density is flat.
            normals = -slope / (slope.square().sum(-1, keepdim=True) + 1e-4).sqrt()
        return FieldSamples(self._density(raw[:, 0], points), raw[:, 1:4].sigmoid(), normals)

    def total_variation(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Two scalars over the whole volume, so nothing is drawn. Rudin, Osher and Fatemi 1992, anisotropic."""
        volume = torch.cat([self.volume[:, :1], self.volume[:, 1:].sigmoid()], 1)
        steps = [volume.diff(dim=axis).abs().mean((0, 2, 3, 4)) for axis in (2, 3, 4)]
        mean = steps[0] + steps[1] + steps[2]
        return mean[0], mean[1:].mean()

    def density_beyond(self, radius: float, generator: torch.Generator) -> Tensor:
        """Mean density (1/m) over the scene box, a scalar that counts only what lies outside a sphere of this radius."""
        outside = self.volume[0, 0].flatten().index_select(0, self.field.beyond(radius))
        return self.field.config.density_scale * F.softplus(outside).sum() / self.volume[0, 0].numel()

    def _density(self, raw: Tensor, points: Tensor) -> Tensor:
        config = self.field.config
        inside = points.square().sum(-1) < config.radius**2
        return config.density_scale * F.softplus(raw) * inside


def grid_vertices(side: int) -> Tensor:
    """(side, side, side, 3) positions (x, y, z) of the vertices, indexed [z, y, x] as `grid_sample` wants."""
    axis = torch.linspace(-1, 1, side)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    return torch.stack([x, y, z], -1)


def read(volume: Tensor, points: Tensor) -> Tensor:
    """Trilinear read: volume (1, C, D, H, W), points (N, 3) in [-1, 1] -> (N, C). Gradient flows to the volume only."""
    num_points = len(points)
    per_slice = max(1, -(-num_points // _READS))
    sliced = F.pad(points, (0, 0, 0, per_slice * _READS - num_points)).view(_READS, 1, 1, per_slice, 3)
    shared = volume.expand(_READS, -1, -1, -1, -1)
    values = F.grid_sample(shared, sliced, mode="bilinear", padding_mode="border", align_corners=True)
    return values.movedim(1, -1).reshape(_READS * per_slice, -1)[:num_points]


def volume_gradient(volume: Tensor) -> Tensor:
    """Central differences (1, 1, R, R, R) -> (1, 3, R, R, R) as (d/dx, d/dy, d/dz), per metre; the border is one-sided."""
    spacing = 2 / (volume.shape[-1] - 1)
    padded = F.pad(volume, (1,) * 6, mode="replicate")
    middle = slice(1, -1)
    along_x = padded[..., middle, middle, 2:] - padded[..., middle, middle, :-2]
    along_y = padded[..., middle, 2:, middle] - padded[..., middle, :-2, middle]
    along_z = padded[..., 2:, middle, middle] - padded[..., :-2, middle, middle]
    return torch.cat([along_x, along_y, along_z], 1) / (2 * spacing)
