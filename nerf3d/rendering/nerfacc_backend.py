"""The only door to nerfacc (Li et al. 2023): occupancy estimator, weights along rays, sums along rays.

nerfacc 0.5.3 computes batched (rays, samples) tensors in plain torch on any device; flattened samples and the traversal
of the occupancy grid need its CUDA kernels, which are compiled at first use. It is float32 only and checks neither
devices nor dtypes, so that is done here.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import sys
import sysconfig
from pathlib import Path

import torch
from torch import Tensor

from nerf3d.errors import BackendUnavailable
from nerf3d.streams import global_stream

_LERP_FIX = "#pragma once\n#include <cmath>\n#include <math.h>\n#define lerp nerfacc_lerp\n"
"""nerfacc defines a global `lerp`; in C++20, which new torch builds extensions as, it clashes with the standard one."""

_unbuilt: dict[Path, str] = {}
"""Folder -> why its kernels did not build, so a compiler is not asked twice."""


def make_estimator(resolution: int, radius: float):
    """nerfacc.OccGridEstimator with one level over the cube [-radius, radius]^3."""
    import nerfacc

    return nerfacc.OccGridEstimator([-radius] * 3 + [radius] * 3, resolution=resolution, levels=1)


def refresh_estimator(estimator, density_times_step, *, threshold: float, decay: float, seed: int) -> None:
    """Evaluates every cell at one random point of it and thresholds the decayed maximum (Instant-NGP, appendix C).

    A cell is occupied above `threshold`, or above the mean of all cells where that is lower (nerfacc's rule).
    density_times_step: (N, 3) -> (N,), about the opacity of one sample. nerfacc draws from the global generator: with
    global_stream a refresh is a function of the field and the seed.
    """
    with global_stream(seed, estimator.occs.device), torch.no_grad():
        estimator.train()
        estimator.update_every_n_steps(
            step=0,
            occ_eval_fn=lambda points: density_times_step(points)[:, None],
            occ_thre=threshold,
            ema_decay=decay,
            warmup_steps=1,
            n=1,
        )


def ray_weights(
    starts: Tensor, ends: Tensor, density: Tensor, *, ray_indices: Tensor | None = None, num_rays: int | None = None
) -> Tensor:
    """Weights w_i = T_i (1 - exp(-sigma_i delta_i)) of the samples of a ray (NeRF, Mildenhall et al. 2020, equation 3).

    starts, ends, density: batched (R, S), or flattened (K,) with ray_indices (K,) sorted and num_rays (CUDA only).
    Returns the same shape. Gradient flows to the density only.
    """
    import nerfacc

    if density.numel() == 0:
        return density * 1.0
    with torch.autocast(density.device.type, enabled=False):
        weights, _, _ = nerfacc.render_weight_from_density(
            starts.float(), ends.float(), density.float(), ray_indices=ray_indices, n_rays=num_rays
        )
    return weights


def sum_along_rays(weights: Tensor, values: Tensor | None, *, ray_indices: Tensor, num_rays: int) -> Tensor:
    """Sums weights (K,) times values (K, D) over the samples of each ray: (num_rays, D), or (num_rays, 1) without values."""
    import nerfacc

    with torch.autocast(weights.device.type, enabled=False):
        return nerfacc.accumulate_along_rays(
            weights.float(), None if values is None else values.float(), ray_indices=ray_indices, n_rays=num_rays
        )


def march(estimator, origins: Tensor, directions: Tensor, *, num_steps: int) -> tuple[Tensor, Tensor]:
    """Middles of the occupied steps of rays that run from 0 to 1, flattened (CUDA only, with kernels that are built).

    origins, directions: (R, 3); the point at t is origin + t * direction, so a direction is as long as its ray's piece and
    never 0. num_steps: equal ones from 0 to 1. Returns ray_indices (K,), sorted, and t (K,); K may be 0.
    """
    from nerfacc.grid import traverse_grids

    if origins.device.type != "cuda" or estimator.occs.device != origins.device:
        raise ValueError(
            f"Rays are on {origins.device} and the occupancy grid on {estimator.occs.device}; put both on one CUDA device, "
            "because nerfacc's traversal runs there only and does not check."
        )
    # The estimator's own `sampling` finds both ends of each interval with two masks, at each of which the host would wait.
    ends = torch.zeros_like(origins[:, 0]), torch.ones_like(origins[:, 0])
    with torch.autocast("cuda", enabled=False), torch.no_grad():
        _, samples, _ = traverse_grids(
            origins.detach().float(),
            directions.detach().float(),
            estimator.binaries,
            estimator.aabbs,
            near_planes=ends[0],
            far_planes=ends[1],
            step_size=1 / num_steps,
        )
    return samples.ray_indices, samples.vals


def has_cuda_kernels() -> bool:
    """Whether nerfacc's kernels are loaded; `build_cuda_kernels` does that."""
    import nerfacc

    return hasattr(nerfacc, "csrc")


def needs_compiling(device: torch.device | str) -> bool:
    """Whether a render on `device` would first compile nerfacc's kernels, which takes minutes."""
    if torch.device(device).type != "cuda" or "nerfacc.csrc" in sys.modules:
        return False
    return not (_extensions_folder() / "nerfacc_cuda" / "nerfacc_cuda.so").exists()


def build_cuda_kernels() -> None:
    """Compiles nerfacc's kernels once per environment, or loads them; called before the first step of a fit.

    nerfacc's own builder deletes an empty build folder, which processes that start together trip over, and fails in C++20.
    So they are built here, behind a file lock, in a folder of this environment (TORCH_EXTENSIONS_DIR if that is set),
    and handed to nerfacc as its compiled module. Raises BackendUnavailable with the compiler's reason, which this process
    remembers: the renderer then goes through torch (`nerf3d.rendering.volume`).
    """
    import nerfacc

    if hasattr(nerfacc, "csrc"):
        return
    from torch.utils import cpp_extension

    folder = _extensions_folder() / "nerfacc_cuda"
    if folder in _unbuilt:
        raise BackendUnavailable(_unbuilt[folder])
    folder.mkdir(parents=True, exist_ok=True)
    header = folder / "lerp_fix.h"
    source = Path(nerfacc.__file__).parent / "cuda" / "csrc"
    _show_ninja()
    forced = ["-O3", "-include", str(header)]
    with open(folder.parent / "nerfacc_cuda.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if hasattr(nerfacc, "csrc"):  # another thread had the lock; a module's types can be registered only once
            return
        # torch's own lock outlives a builder that was killed, and torch would wait for it for ever; under ours it is stale.
        (folder / "lock").unlink(missing_ok=True)
        if not header.exists() or header.read_text() != _LERP_FIX:  # a new time of change would build everything anew
            header.write_text(_LERP_FIX)
        try:
            nerfacc.csrc = cpp_extension.load(
                name="nerfacc_cuda",
                sources=[str(p) for p in sorted([*source.glob("*.cu"), *source.glob("*.cpp")])],
                build_directory=str(folder),
                extra_cflags=forced,
                extra_cuda_cflags=forced,
                extra_include_paths=_cuda_headers(),
            )
        except (OSError, RuntimeError, ImportError, IndexError) as error:
            # The IndexError is torch's where it sees no GPU whose architecture it could ask.
            said = str(error).strip().rstrip(".")
            reason = "torch sees no GPU to build for" if isinstance(error, IndexError) else said
            _unbuilt[folder] = (
                f"nerfacc's CUDA kernels did not build in {folder}: {reason}. Put nvcc of CUDA {torch.version.cuda} and a "
                "C++ compiler on PATH and set CUDA_HOME; until then torch cuts the rays, at the same samples in more and "
                "smaller operations."
            )
            raise BackendUnavailable(_unbuilt[folder]) from error
    sys.modules["nerfacc.csrc"] = nerfacc.csrc


def _show_ninja() -> None:
    """torch starts ninja by name, but it lies beside Python, which is not on PATH where no environment is activated."""
    folders = [*os.environ.get("PATH", os.defpath).split(os.pathsep), sysconfig.get_path("scripts")]
    os.environ["PATH"] = os.pathsep.join(dict.fromkeys(folders))


def _extensions_folder() -> Path:
    """One folder for each (environment, torch, CUDA, kind of GPU).

    Environments that share one freeze each other (nerfacc issue 164), and kernels of one architecture do not run on another.
    """
    if chosen := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return Path(chosen)
    kind = torch.cuda.get_device_capability() if torch.cuda.is_available() else None
    key = hashlib.sha256(f"{sys.prefix} {torch.__version__} {torch.version.cuda} {kind}".encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "dreamkiln" / f"torch_extensions-{key}"
    os.environ["TORCH_EXTENSIONS_DIR"] = str(folder)
    return folder


def _cuda_headers() -> list[str]:
    """Header folders of the nvidia wheels beside torch: cuBLAS, cuSPARSE and others are not always in CUDA_HOME."""
    site = Path(torch.__file__).parent.parent
    return [str(p) for p in sorted((site / "nvidia").glob("*/include"))]
