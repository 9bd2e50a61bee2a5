"""Multi-resolution hash grid with a small network: the field for CUDA.

Müller, Evans, Schied and Keller 2022 (Instant-NGP), section 3; pure torch, so that nothing needs to be compiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nerf3d.fields.base import Field, FieldConfig, FieldQuery, FieldSamples, initial_density
from nerf3d.streams import fit_stream, global_stream, sent, stream_seed, uniform

_PRIMES = (1, 2_654_435_761, 805_459_861)
"""Equation 4 of the paper; the first is 1 for cache coherence."""

_STEP = 0.01
"""Metres between the points of a finite difference (stable-dreamfusion's epsilon)."""


class Read(NamedTuple):
    """Levels that are read together. table: (R, F), theirs below each other."""

    levels: slice
    table: Tensor


class HashGrid(Field):
    """L tables of features over [-1, 1]^3, concatenated, then one hidden layer -> density and albedo.

    `cells` (L,) are cells per side of each level, `firsts` (L,) the place of its table's first row among the rows of all,
    `is_dense` (L,) whether each vertex has a row of its own, and `corners` (8, 3) those of a cell.
    """

    cells: Tensor
    firsts: Tensor
    is_dense: Tensor
    corners: Tensor

    def __init__(self, config: FieldConfig, *, seed: int = 0):
        super().__init__()
        self.config = config
        self.resolutions = level_resolutions(config)
        size = 2**config.log2_table_size
        lengths = [min(size, (r + 1) ** 3) for r in self.resolutions]
        draws = fit_stream(seed, "hash_grid")
        self.tables = nn.ParameterList(
            [nn.Parameter(uniform((n, config.features_per_level), draws, -1e-4, 1e-4)) for n in lengths]
        )
        cells, rows = torch.tensor(self.resolutions), torch.tensor(lengths)
        kept = {"cells": cells, "firsts": rows.cumsum(0) - rows, "is_dense": (cells + 1) ** 3 <= rows}
        for name, tensor in {**kept, "corners": torch.cartesian_prod(*[torch.arange(2)] * 3)}.items():
            self.register_buffer(name, tensor, persistent=False)
        width = config.num_levels * config.features_per_level
        with global_stream(stream_seed(seed, "hash_grid", "network")):
            self.trunk = nn.Linear(width, config.hidden_width)
            self.density_head = nn.Linear(config.hidden_width, 1)
            self.colour_head = nn.Linear(config.hidden_width, 3)
        nn.init.zeros_(self.density_head.bias)
        nn.init.zeros_(self.colour_head.bias)

    def density_parameters(self) -> list[nn.Parameter]:
        """The parameters that shape the density."""
        return [*self.tables, *self.trunk.parameters(), *self.density_head.parameters()]

    def colour_parameters(self) -> list[nn.Parameter]:
        """The parameters that only colour depends on."""
        return list(self.colour_head.parameters())

    def reads(self) -> list[Read]:
        """What answers the points of one moment: on a GPU all levels at once, on a CPU one by one.

        A GPU pays by the launch, and a CPU's cache holds one level's rows.
        """
        if self.tables[0].device.type == "cpu":
            return [Read(slice(level, level + 1), table) for level, table in enumerate(self.tables)]
        return [Read(slice(0, len(self.tables)), torch.cat(list(self.tables)))]

    def encode(self, points: Tensor, reads: Sequence[Read]) -> Tensor:
        """(N, L * F): trilinear reads of every level (figure 3 of the paper). points: (N, 3)."""
        unit = ((points + 1) / 2).clamp(0, 1)
        found = [self._read(unit, read) for read in reads]
        return found[0] if len(found) == 1 else torch.cat(found, -1)

    def _read(self, unit: Tensor, read: Read) -> Tensor:
        """unit (N, 3) in [0, 1] -> (N, l * F) of l levels."""
        cells = self.cells[read.levels, None]
        scaled = unit[:, None] * cells
        low = torch.minimum(scaled.floor(), cells - 1)
        fraction = (scaled - low)[:, :, None]
        weights = torch.where(self.corners.bool(), fraction, 1 - fraction).prod(-1)
        rows = self._rows(low.long()[:, :, None] + self.corners, read.levels)
        features = read.table.index_select(0, rows.flatten()).view(*weights.shape, self.config.features_per_level)
        return (weights[..., None] * features).sum(2).flatten(1)

    def _rows(self, vertices: Tensor, levels: slice) -> Tensor:
        """Where l levels have their vertices (N, l, 8, 3), integers, among their own rows: (N, l, 8).

        Every vertex has a row of its own where all of them fit; else the spatial hash of equation 4 gives it one.
        """
        x, y, z = vertices.unbind(-1)
        side = self.cells[levels, None] + 1
        hashed = ((x * _PRIMES[0]) ^ (y * _PRIMES[1]) ^ (z * _PRIMES[2])) & (2**self.config.log2_table_size - 1)
        firsts = self.firsts[levels, None] - self.firsts[levels.start]
        return torch.where(self.is_dense[levels, None], (z * side + y) * side + x, hashed) + firsts

    def raw(self, points: Tensor, reads: Sequence[Read]) -> tuple[Tensor, Tensor]:
        """Pre-activation density (N,) and hidden features (N, hidden_width)."""
        hidden = F.relu(self.trunk(self.encode(points, reads)))
        return self.density_head(hidden)[:, 0] + initial_density(points, self.config), hidden

    def query(self, *, normals: bool = False) -> HashGridQuery:
        """This moment's field: its tables joined once where that pays; the network is asked anew each time."""
        return HashGridQuery(self, normals)


class HashGridQuery(FieldQuery):
    """Asks the network each time; normals are finite differences of six more densities."""

    def __init__(self, field: HashGrid, normals: bool):
        self.field, self.normals = field, normals
        self._reads = field.reads()

    def density(self, points: Tensor) -> Tensor:
        """Density (N,) in 1/m at points (N, 3); 0 outside the sphere. No gradient flows to the points."""
        return self._density(self._raw(points)[0], points)

    def samples(self, points: Tensor) -> FieldSamples:
        """Density (N,), albedo (N, 3) and perhaps normals (N, 3) at points (N, 3)."""
        raw, hidden = self._raw(points)
        colour = self.field.colour_head(hidden).sigmoid()
        return FieldSamples(self._density(raw, points), colour, self._normals(points) if self.normals else None)

    def total_variation(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Two scalars, between 8,192 random points and a neighbour of each, one coarse voxel away."""
        spacing = 2 / 63
        points = uniform((8192, 3), generator, -1, 1)
        offset = torch.eye(3)[torch.randint(3, (8192,), generator=generator)] * spacing
        raw, hidden = self._raw(sent(torch.cat([points, points + offset]), self.field.cells.device))
        colour = self.field.colour_head(hidden).sigmoid()
        here, there = raw.chunk(2)
        here_colour, there_colour = colour.chunk(2)
        return 3 * (here - there).abs().mean(), 3 * (here_colour - there_colour).abs().mean()

    def density_beyond(self, radius: float, generator: torch.Generator) -> Tensor:
        """Mean density (1/m) over the scene box, a scalar that counts only what lies outside a sphere of this radius."""
        points = sent(uniform((8192, 3), generator, -1, 1), self.field.cells.device)
        outside = points.norm(dim=-1) > radius
        return self.field.config.density_scale * (F.softplus(self._raw(points)[0]) * outside).mean()

    def _raw(self, points: Tensor) -> tuple[Tensor, Tensor]:
        return self.field.raw(points, self._reads)

    def _normals(self, points: Tensor) -> Tensor:
        axes = torch.eye(3, device=points.device)
        offsets = torch.cat([axes, -axes]) * _STEP
        raw = self._raw((points + offsets[:, None]).reshape(-1, 3))[0].view(2, 3, -1)
        slope = (raw[0] - raw[1]).T / (2 * _STEP)
        return -slope / (slope.square().sum(-1, keepdim=True) + 1e-4).sqrt()

    def _density(self, raw: Tensor, points: Tensor) -> Tensor:
        config = self.field.config
        return config.density_scale * F.softplus(raw) * (points.square().sum(-1) < config.radius**2)


def level_resolutions(config: FieldConfig) -> list[int]:
    """Geometric progression from base to finest, in cells per side: equations 2 and 3."""
    if config.num_levels == 1:
        return [config.base_resolution]
    growth = (config.finest_resolution / config.base_resolution) ** (1 / (config.num_levels - 1))
    return [int(config.base_resolution * growth**level + 1e-6) for level in range(config.num_levels)]
