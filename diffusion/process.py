"""What samplers, guidance and score distillation know of a forward process, whichever it is.

Each makes x_t = alpha_t x_0 + sigma_t eps from clean data and noise: `diffusion.schedule.NoiseSchedule`, variance preserving
over a table of timesteps, and `diffusion.flow_schedule.FlowSchedule`, the straight line of rectified flow over a continuous
time. A timestep is what the network is told; what a sampler needs beside it is alpha and sigma.
"""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from diffusion.errors import DiffusionError
from diffusion.parameterisation import per_row


class Schedule(ABC):
    """A forward process and where along it a network is asked.

    Attributes:
        num_train_timesteps: T; timesteps lie in [0, T].
        prediction_type: what the network was trained to output, a name of `diffusion.parameterisation.KINDS`.
        timestep_spacing: default of `timesteps`.
    """

    num_train_timesteps: Any
    prediction_type: Any
    timestep_spacing: Any

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Signal scale: (B,) float64 for timesteps t (B,), long or float."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Noise scale: (B,) float64 for timesteps t (B,), long or float."""

    @abstractmethod
    def timesteps(self, num_steps: int, *, spacing: Any = None) -> Tensor:
        """(num_steps,) strictly decreasing timesteps at which a sampler calls the network."""

    @abstractmethod
    def timesteps_at(self, fractions: Tensor) -> Tensor:
        """The timesteps (B,) at fractions (B,) float64 in [0, 1] of the process, as score distillation draws them."""

    @abstractmethod
    def to_config(self) -> dict[str, Any]:
        """The scheduler_config.json that diffusers reads."""

    @abstractmethod
    def differences(self) -> dict[str, Any]:
        """The settings that are not the usual ones, which a schedule's identity consists of."""

    @property
    @abstractmethod
    def last(self) -> int:
        """The noisiest timestep."""

    @property
    @abstractmethod
    def final_alphas_cumprod(self) -> float:
        """alpha^2 after the last step of DDIM and PNDM."""

    def fitted(self, latents: tuple[int, int], *, patch: int, num_steps: int) -> "Schedule":
        """This schedule for pictures of these latents (h, w), of which a network sees patches of so many numbers a side."""
        return self

    def snr(self, t: Tensor) -> Tensor:
        """Signal-to-noise ratio alpha^2 / sigma^2: (B,) float64 for t (B,)."""
        return (self.alpha(t) / self.sigma(t)).square()

    def add_noise(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t = alpha_t x_0 + sigma_t eps (2006.11239 eq. 4; 2209.03003 eq. 1 for rectified flow).

        Args:
            x0, eps: (B, ...) of one shape, on one device.
            t: (B,) timesteps, one a row, on that device or on the CPU.

        Returns:
            (B, ...) in x0's dtype, on its device; gradients flow to x0 and eps.
        """
        return per_row(self.alpha(t), x0) * x0 + per_row(self.sigma(t), x0) * eps


def check_num_steps(num_steps: int, total: int) -> None:
    """Raises DiffusionError unless 1 <= num_steps <= total."""
    if not 1 <= num_steps <= total:
        raise DiffusionError.explained(
            f"num_steps is {num_steps}", expected=f"1 to {total}", fix="use 20 to 50 for a finished picture"
        )


def check_timesteps(t: Tensor, highest: float) -> None:
    """Raises DiffusionError for timesteps outside [0, highest]; on the CPU only: on a GPU the check would wait for it."""
    if t.device.type == "cpu" and t.numel() and not (t.min().item() >= 0 and t.max().item() <= highest):
        raise DiffusionError.explained(
            f"timesteps run from {t.min().item()} to {t.max().item()}",
            expected=f"0 to {highest:g}",
            fix="take them from schedule.timesteps(...)",
        )
