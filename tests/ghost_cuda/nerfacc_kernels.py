"""nerfacc's compiled module for ghosts: the same answers, computed by torch on the CPU."""

import sys
import types

import torch

from tests.ghost_cuda.device import Ghost


class RaySegmentsSpec:
    vals = chunk_starts = chunk_cnts = ray_indices = is_left = is_right = is_valid = None


def _in(x, dtype=torch.float32):
    assert isinstance(x, Ghost) and x.is_cuda, f"must be a CUDA tensor, is {x.device}"
    assert x.is_contiguous(), "must be contiguous"
    assert x.dtype == dtype, (x.dtype, dtype)
    return x.inner.detach()


def ray_aabb_intersect(rays_o, rays_d, aabbs, near, far, miss):
    o, d, box = _in(rays_o), _in(rays_d), _in(aabbs)
    a, b = ((corner[None] - o[:, None]) / d[:, None] for corner in (box[:, :3], box[:, 3:]))
    lo, hi = torch.minimum(a, b).amax(-1), torch.maximum(a, b).amin(-1)
    hit = (lo <= hi) & (hi > 0)
    lo, hi = lo.clamp_min(near), hi.clamp_max(far)
    return [Ghost(torch.where(hit, lo, miss)), Ghost(torch.where(hit, hi, miss)), Ghost(hit)]


def traverse_grids(
    rays_o, rays_d, mask, binaries, aabbs, t_sorted, t_indices, hits, near, far, step, cone, i, s, p, limit, over
):
    o, d, grid, box, ts = _in(rays_o), _in(rays_d), _in(binaries, torch.bool)[0], _in(aabbs)[0], _in(t_sorted)
    near, far, hit = _in(near), _in(far), _in(hits, torch.bool)[:, 0]
    _in(mask, torch.bool), _in(t_indices, torch.int64)
    assert cone == 0 and limit <= 0 and not over and len(binaries) == 1
    assert not (near.isnan().any() or far.isnan().any()), "the kernel would march for ever"
    tmin, tmax = torch.maximum(ts[:, 0], near), torch.minimum(ts[:, 1], far)
    num = int(((tmax - near) / step).clamp_min(0).nan_to_num(0, 0, 0).max().ceil()) + 2
    starts = near[:, None] + torch.arange(num) * step
    mid = starts + step / 2
    keep = hit[:, None] & (mid >= tmin[:, None]) & (mid < tmax[:, None]) & (tmin < tmax)[:, None]
    rays, k = keep.nonzero(as_tuple=True)
    res = torch.tensor(grid.shape)
    at = o[rays] + mid[rays, k, None] * d[rays]
    cell = ((at - box[:3]) / (box[3:] - box[:3]) * res).long().clamp(torch.zeros(3).long(), res - 1)
    full = grid[cell[:, 0], cell[:, 1], cell[:, 2]]
    rays, k = rays[full], k[full]
    left, right = starts[rays, k], starts[rays, k] + step
    counts = torch.bincount(rays, minlength=len(o))
    first = counts.cumsum(0) - counts
    samples, intervals = RaySegmentsSpec(), RaySegmentsSpec()
    samples.vals, samples.ray_indices, samples.chunk_starts, samples.chunk_cnts = map(
        Ghost, ((left + right) / 2, rays, first, counts)
    )
    samples.is_valid = Ghost(torch.ones_like(rays, dtype=torch.bool))
    intervals.vals = Ghost(torch.stack([left, right], -1).reshape(-1))
    is_left = torch.tensor([True, False]).repeat(len(left))
    intervals.is_left, intervals.is_right = Ghost(is_left), Ghost(~is_left)
    intervals.ray_indices, intervals.chunk_starts, intervals.chunk_cnts = (
        Ghost(rays.repeat_interleave(2)),
        Ghost(2 * first),
        Ghost(2 * counts),
    )
    return intervals, samples, Ghost(tmax.clone())


def _sums(starts, counts, x, exclusive, backward):
    starts, counts, x = _in(starts, torch.int64), _in(counts, torch.int64), _in(x)
    y = x.flip(0) if backward else x
    if backward:
        starts, counts = (len(x) - starts - counts).flip(0), counts.flip(0)
    total = y.double().cumsum(0)
    before = torch.cat([total.new_zeros(1), total])[starts].repeat_interleave(counts)
    out = (total - before - (y if exclusive else 0)).float()
    return Ghost(out.flip(0) if backward else out)


def inclusive_sum(s, c, x, normalize, backward):
    return _sums(s, c, x, False, backward)


def exclusive_sum(s, c, x, normalize, backward):
    return _sums(s, c, x, True, backward)


def install():
    """Hands these to nerfacc as its compiled kernels."""
    import nerfacc

    module = types.ModuleType("nerfacc_cuda")
    for name, value in globals().items():
        if callable(value) and not name.startswith("_"):
            setattr(module, name, value)
    nerfacc.csrc = sys.modules["nerfacc.csrc"] = module
