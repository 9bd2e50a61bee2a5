"""The warning for runs of few steps that would begin with half a picture instead of noise."""

from __future__ import annotations

from collections.abc import Iterator

from diffusion.errors import DiffusionError
from diffusion.samplers import timesteps_for
from jobs.errors import InputError
from jobs.events import Message
from jobs.prior_client import PriorInfo
from jobs.specs import PictureSettings

__all__ = ["LATEST_SHARE", "warn_of_late_start"]

LATEST_SHARE = 0.8
"""Of the schedule: from a later first timestep on (four "leading" steps begin at 751 of 999), pictures stay noise or mush."""


def warn_of_late_start(spec: PictureSettings, info: PriorInfo) -> Iterator[Message]:
    """A warning that says where the run begins and what distilled models need, or nothing.

    Raises:
        InputError: the sampler cannot take these steps.
    """
    schedule = info.schedule
    try:
        first = float(timesteps_for(spec.sampler, schedule, spec.num_steps, spacing=spec.timestep_spacing)[0])
    except DiffusionError as error:
        raise InputError(f"{str(error)[:1].upper()}{str(error)[1:]}.") from error
    if first < LATEST_SHARE * schedule.last:
        spacing = spec.timestep_spacing or schedule.timestep_spacing
        steps = f"{spec.num_steps} step{'s' * (spec.num_steps > 1)} of {spec.sampler}"
        yield Message(
            text=f"{steps} with {spacing!r} timesteps begin at t = {first:g} of {schedule.last}, where the network expects "
            "half a picture and is given noise; models distilled to few steps want timestep_spacing=trailing, all others "
            "more steps.",
            level="warning",
        )
