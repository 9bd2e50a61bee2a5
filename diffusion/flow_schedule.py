"""Rectified flow: the straight line from data to noise over a continuous time (2209.03003; 2403.03206 section 2).

    x_t = (1 - sigma) x_0 + sigma eps,     sigma = t / T,     velocity u = dx/dsigma = eps - x_0

What is tuned is not the process but where along it a sampler steps: a shift s moves all levels towards the noise
(2403.03206 eq. 23), by one number or by the size of the picture::

    sigma' = s sigma / (1 + (s - 1) sigma)

Names and defaults are those of diffusers' FlowMatchEulerDiscreteScheduler.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from diffusion.errors import DiffusionError
from diffusion.process import Schedule, check_num_steps, check_timesteps

FlowSpacing = Literal["linspace", "trailing"]

# diffusers' classes whose process is this file's.
FLOW_CLASSES = ("FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete")
# Settings of theirs that would change the result and that none of the models here uses.
_FIXED = {"invert_sigmas": False, "shift_terminal": None, "time_shift_type": "exponential", "stochastic_sampling": False}


@dataclass(frozen=True)
class ResolutionShift:
    """A shift e^mu whose mu grows in a line with the number of patches that a picture has (as FLUX.1 has it).

    Args:
        base_image_seq_len, max_image_seq_len: numbers of patches. base_shift, max_shift: mu there.
    """

    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096
    base_shift: float = 0.5
    max_shift: float = 1.15

    def shift(self, num_patches: int, num_steps: int) -> float:
        """e^mu of a picture of so many patches, whatever the number of steps."""
        del num_steps
        slope = (self.max_shift - self.base_shift) / (self.max_image_seq_len - self.base_image_seq_len)
        return math.exp(self.base_shift + slope * (num_patches - self.base_image_seq_len))


@dataclass(frozen=True)
class EmpiricalShift:
    """A shift e^mu whose mu depends on the patches of a picture and on the steps that are taken (as FLUX.2 has it).

    mu is a line in the number of steps through two measured points, each a line in the number of patches; beyond
    `max_image_seq_len` patches it is that of 200 steps.

    Args:
        at_10_steps, at_200_steps: slope and offset of mu over the number of patches.
    """

    at_10_steps: tuple[float, float] = (8.73809524e-05, 1.89833333)
    at_200_steps: tuple[float, float] = (0.00016927, 0.45666666)
    max_image_seq_len: int = 4300

    def shift(self, num_patches: int, num_steps: int) -> float:
        """e^mu of a picture of so many patches in so many steps."""
        few, many = (slope * num_patches + offset for slope, offset in (self.at_10_steps, self.at_200_steps))
        if num_patches > self.max_image_seq_len:
            return math.exp(many)
        return math.exp(few + (many - few) / 190 * (num_steps - 10))


@dataclass(frozen=True)
class FlowSchedule(Schedule):
    """Rectified flow over timesteps in [0, T]; every real number of them is one.

    Args:
        num_train_timesteps: T, which the network's timesteps are told in: t = T sigma.
        shift: s > 0; 1 leaves the levels where they are.
        resolution_shift: instead of `shift`, one by the size of the picture; see `fitted`.
        timestep_spacing: "linspace", equal steps from sigma = 1 down to the level of t = 1, both ends included, as
            diffusers' class takes them; or "trailing", 1, (N-1)/N, ... 1/N, as FLUX's and Z-Image's pipelines tell it. The
            shift comes after both.
        low_end_is_shifted: of "linspace": whether its low end is shifted before all levels are, and so twice, as diffusers'
            class has it with a shift of one number.

    Raises:
        DiffusionError: an unknown spacing, a shift that is not positive, or no timesteps.
    """

    num_train_timesteps: int = 1000
    shift: float = 1.0
    resolution_shift: ResolutionShift | EmpiricalShift | None = None
    timestep_spacing: FlowSpacing = "linspace"
    low_end_is_shifted: bool = True

    prediction_type: str = field(default="velocity", init=False)

    def __post_init__(self) -> None:
        if self.num_train_timesteps < 1:
            raise DiffusionError.explained(
                f"num_train_timesteps is {self.num_train_timesteps}", expected="at least 1", fix="use 1000"
            )
        if not (self.shift > 0 and math.isfinite(self.shift)):
            raise DiffusionError.explained(
                f"the shift is {self.shift}", expected="a positive number", fix="use 1, or 3 as SD 3"
            )
        _check_spacing(self.timestep_spacing)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "FlowSchedule":
        """Read the scheduler_config.json of diffusers' FlowMatchEulerDiscreteScheduler or its Heun.

        Karras, exponential and beta levels belong to the sampler and are passed over.

        Raises:
            DiffusionError: a setting that would change the result and is not offered.
        """
        for name, value in _FIXED.items():
            if config.get(name, value) != value:
                raise DiffusionError.explained(
                    f"the flow scheduler's {name} is {config[name]!r}", expected=repr(value), fix="use another model"
                )
        resolution_shift = None
        if config.get("use_dynamic_shifting"):
            known = ResolutionShift()
            given = {name: config[name] for name in vars(known) if config.get(name) is not None}
            resolution_shift = replace(known, **given)
        return cls(
            num_train_timesteps=int(config.get("num_train_timesteps", 1000)),
            shift=float(config.get("shift", 1.0)),
            resolution_shift=resolution_shift,
            low_end_is_shifted=resolution_shift is None,
        )

    def to_config(self) -> dict[str, Any]:
        """The scheduler_config.json that diffusers' FlowMatchEulerDiscreteScheduler reads."""
        mu = {} if self.resolution_shift is None else vars(self.resolution_shift)
        return {
            "_class_name": "FlowMatchEulerDiscreteScheduler",
            "num_train_timesteps": self.num_train_timesteps,
            "shift": self.shift,
            "use_dynamic_shifting": self.resolution_shift is not None,
            **mu,
        }

    def differences(self) -> dict[str, Any]:
        """What a flow's identity consists of: all that it says of itself, since Stable Diffusion's process is another."""
        return self.to_config() | {"timestep_spacing": self.timestep_spacing}

    def alpha(self, t: Tensor) -> Tensor:
        """1 - t / T: (B,) float64 for t (B,) in [0, T].

        Raises:
            DiffusionError: t outside (checked on the CPU only).
        """
        return 1 - self.sigma(t)

    def sigma(self, t: Tensor) -> Tensor:
        """t / T: (B,) float64 for t (B,) in [0, T].

        Raises:
            DiffusionError: t outside (checked on the CPU only).
        """
        check_timesteps(t, self.num_train_timesteps)
        return t.double() / self.num_train_timesteps

    def shifted(self, sigmas: Tensor) -> Tensor:
        """sigma' = s sigma / (1 + (s - 1) sigma) (2403.03206 eq. 23); 0 and 1 stay where they are."""
        return self.shift * sigmas / (1 + (self.shift - 1) * sigmas)

    @property
    def last(self) -> int:
        """T: noise alone."""
        return self.num_train_timesteps

    @property
    def final_alphas_cumprod(self) -> float:
        """1: a flow ends on data."""
        return 1.0

    def timesteps(self, num_steps: int, *, spacing: FlowSpacing | None = None) -> Tensor:
        """The timesteps of `num_steps` steps, shifted.

        Returns:
            (num_steps,) float64, strictly decreasing from T: with "linspace" those of diffusers' scheduler that is told
            nothing but their number, with "trailing" those of one that is told sigmas 1, (N-1)/N, ... 1/N.

        Raises:
            DiffusionError: num_steps below 1 or above T; an unknown spacing.
        """
        check_num_steps(num_steps, self.num_train_timesteps)
        spacing = self.timestep_spacing if spacing is None else spacing
        _check_spacing(spacing)
        low = torch.tensor(1 / self.num_train_timesteps, dtype=torch.float64)
        if spacing == "trailing":
            low = low.new_tensor(1 / num_steps)
        elif self.low_end_is_shifted:
            low = self.shifted(low)
        return self.num_train_timesteps * self.shifted(torch.linspace(1, float(low), num_steps, dtype=torch.float64))

    @property
    def ends(self) -> tuple[float, float]:
        """(1, sigma of the lowest timestep 1, shifted): between these lie Karras and other named levels."""
        return 1.0, float(self.shifted(torch.tensor(1 / self.num_train_timesteps, dtype=torch.float64)))

    def timesteps_at(self, fractions: Tensor) -> Tensor:
        """Levels before the shift, (B,) in [0, 1] -> timesteps after it, (B,) float64 in [0, T], as RFDS draws them."""
        return self.num_train_timesteps * self.shifted(fractions.double())

    def fitted(self, latents: tuple[int, int], *, patch: int, num_steps: int) -> "FlowSchedule":
        """With a `resolution_shift`, the schedule of pictures with latents (h, w) in patches of so many numbers a side."""
        if self.resolution_shift is None:
            return self
        shift = self.resolution_shift.shift((latents[0] // patch) * (latents[1] // patch), num_steps)
        return replace(self, shift=shift, resolution_shift=None)


def _check_spacing(spacing: str) -> None:
    if spacing not in get_args(FlowSpacing):
        raise DiffusionError.explained(
            f"the timestep spacing of a flow is {spacing!r}",
            expected="'linspace' or 'trailing'",
            fix="use one of these",
        )
