"""Few steps with timesteps that leave the noise out are said, never drawn in silence."""

from dataclasses import replace

import pytest

from diffusion.schedule import NoiseSchedule
from jobs.errors import InputError
from jobs.late_start import warn_of_late_start
from jobs.prior_client import PriorInfo
from jobs.specs import ImagesSpec

SPEC = ImagesSpec(prompt="a cat", num_steps=4, sampler="euler")
INFO = PriorInfo(name="any", weights_hash="", image_size=512, schedule=NoiseSchedule())


def test_four_leading_steps_are_said_to_begin_late() -> None:
    (message,) = warn_of_late_start(SPEC, INFO)
    assert "4 steps of euler with 'leading' timesteps begin at t = 751 of 999" in message.text
    assert "timestep_spacing=trailing" in message.text and message.level == "warning"


@pytest.mark.parametrize(
    "changes", [{"timestep_spacing": "trailing"}, {"num_steps": 20}, {"sampler": "lcm"}, {"timestep_spacing": "karras"}]
)
def test_others_are_not(changes: dict) -> None:
    assert not list(warn_of_late_start(replace(SPEC, **changes), INFO))


def test_steps_that_a_sampler_cannot_take_are_refused_before_anything_is_drawn() -> None:
    with pytest.raises(InputError, match="'pndm' was given 'karras' noise levels"):
        list(warn_of_late_start(replace(SPEC, sampler="pndm", timestep_spacing="karras"), INFO))
    with pytest.raises(InputError, match="no timestep_spacing 'karas' \\(did you mean karras"):
        replace(SPEC, timestep_spacing="karas")
