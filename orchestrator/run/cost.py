"""What a job costs, said before it begins: steps, rows of the network, memory, and time where this machine has measured it.

Measurements are kept in STATE/pace.json as [seconds a row, seconds of all else], one for each prior, device and kind of work.
"""

from __future__ import annotations

import contextlib
import json
import math
import platform
from dataclasses import dataclass

from diffusion.checkpoints.errors import PriorError
from diffusion.checkpoints.footprint import footprint
from jobs.batch_images import BatchImagesSpec
from jobs.prior_client import PriorInfo
from jobs.specs import ImagesSpec, JobSpec, TextTo3DSpec
from orchestrator.host.atomic import write_text
from orchestrator.host.progress_display import duration
from orchestrator.host.state_folder import StateFolder

__all__ = ["Cost", "remember", "sentence"]

PACE = "pace.json"
MOST_REMEMBERED = 500
CALLS_A_STEP = {"heun": 2}
"""Of the network, of samplers that call it more than once."""


@dataclass(frozen=True)
class Cost:
    """steps: of the fit, or of all pictures' sampling. rows: of the network. kind: what work of one pace has in common."""

    steps: int
    rows: int
    kind: str

    @classmethod
    def of(cls, spec: JobSpec | BatchImagesSpec) -> Cost:
        """What is asked of the prior by a job that nothing of is done yet; of a table by its job's own settings."""
        if isinstance(spec, TextTo3DSpec):
            fit, steps = spec.fit, spec.fit.num_steps
            calls = steps * fit.num_views
            # What else takes time in a step: the field's part grows with rays and samples.
            shown = [fit.render_sizes, fit.num_samples, fit.num_views, fit.guide_size, fit.field.kind, spec.distillation.form]
            return cls(steps, calls * _halves(spec.distillation.guidance_scale), f"3d {json.dumps(shown)}")
        pictures = spec.num_images if isinstance(spec, ImagesSpec) else spec.table.num_rows
        share = 1.0 if spec.strength is None else spec.strength
        steps = pictures * math.ceil(spec.num_steps * share)
        rows = steps * CALLS_A_STEP.get(spec.sampler, 1) * _halves(spec.guidance_scale)
        size = f"{spec.width or ''}x{spec.height or ''}"
        return cls(steps, rows, f"images {size} {spec.chunk_size} {'strict' if spec.strict else ''}")


def _halves(guidance_scale: float) -> int:
    """Rows that classifier-free guidance makes of one."""
    return 1 if guidance_scale in (0, 1) else 2


def sentence(spec: JobSpec | BatchImagesSpec, info: PriorInfo) -> str:
    """What the whole job costs."""
    cost = Cost.of(spec)
    pace, rest = _paces().get(_key(cost, info), (0.0, 0.0))
    time = (
        f"about {duration(pace * cost.rows + rest)}, at the pace of the last such job on {info.device}"
        if pace
        else f"unknown, because nothing like it has been measured on {info.device} yet"
    )
    with contextlib.suppress(PriorError, OSError):
        memory = f"about {footprint(spec.prior).total / 1e9:.1f} GB of memory for the prior"
        return f"This job takes {cost.steps:,} steps, {cost.rows:,} rows of the prior's network and {memory}; time: {time}."
    return f"This job takes {cost.steps:,} steps and {cost.rows:,} rows of the prior's network; memory: unknown; time: {time}."


def remember(spec: JobSpec | BatchImagesSpec, info: PriorInfo, seconds: float, *, share: float, rest: float = 0.0) -> None:
    """Keep the pace of work that is done, for the next job of its kind; where it cannot be written, nothing is kept.

    Args:
        seconds: that this share of the job's steps, over 0 to 1, took. rest: that took what comes once, as the mesh of a fit.
    """
    cost = Cost.of(spec)
    paces = {**_paces(), _key(cost, info): (seconds / max(1.0, cost.rows * share), rest)}
    kept = dict(list(paces.items())[-MOST_REMEMBERED:])
    with contextlib.suppress(Exception):
        folder = StateFolder.find().path
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_text(folder / PACE, json.dumps(kept, indent=0))


def _paces() -> dict[str, tuple[float, float]]:
    """Earlier versions kept the seconds a row alone."""
    with contextlib.suppress(Exception):
        found = json.loads((StateFolder.find().path / PACE).read_text(encoding="utf-8"))
        both = {name: pace if isinstance(pace, list) else (pace, 0.0) for name, pace in found.items()}
        return {name: (float(pace), float(rest)) for name, (pace, rest) in both.items()}
    return {}


def _key(cost: Cost, info: PriorInfo) -> str:
    where = (platform.node(), info.device, info.weights_hash[:16], info.image_size)
    return " ".join(map(str, (*where, cost.kind)))
