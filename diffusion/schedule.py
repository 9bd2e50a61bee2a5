"""Noise schedules: the one table that the forward process, the samplers and score distillation share.

Forward process (2006.11239 eq. 4), variance preserving::

    x_t = alpha_t x_0 + sigma_t eps,     alpha_t^2 = abar_t,     sigma_t^2 = 1 - abar_t

The table is float64 (diffusers keeps float32: equal to about 1e-7 in abar). Names and defaults are those of diffusers'
scheduler_config.json. CompVis calls `linear` what diffusers, and so this file, calls `scaled_linear`.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from diffusion.errors import DiffusionError
from diffusion.process import Schedule, check_num_steps, check_timesteps

BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]
PredictionType = Literal["epsilon", "v_prediction", "sample"]
TimestepSpacing = Literal["leading", "trailing", "linspace"]

# What diffusers assumes where a scheduler_config.json is silent; it differs from class to class.
_LINSPACE_BY_DEFAULT = ("Euler", "Heun", "DPMSolver", "LMS", "KDPM2", "UniPC", "DEIS", "SASolver")
_ALPHA_ONE_BY_DEFAULT = ("DDIM", "LCM", "TCD")
_STABLE_DIFFUSION_BY_DEFAULT = ("LCM", "TCD")

# The beginnings of those classes of diffusers whose process is this file's, whatever their sampler.
_THIS_PROCESS = ("DDIM", "DDPM", "PNDM", "TCD", "LCM", *_LINSPACE_BY_DEFAULT)

# diffusers' stand-in for abar = 0 where a sampler or an interpolation needs a finite signal-to-noise ratio.
_SMALLEST_ALPHAS_CUMPROD = 2.0**-24


@dataclass(frozen=True)
class NoiseSchedule(Schedule):
    """A discrete variance-preserving schedule over timesteps 0 .. num_train_timesteps - 1.

    The defaults are Stable Diffusion's (2112.10752, as published in its scheduler_config.json).

    Args:
        num_train_timesteps: T, the length of the table.
        beta_schedule: "linear" (2006.11239), "scaled_linear" (square of a line in sqrt(beta)), "squaredcos_cap_v2"
            (2102.09672 eq. 17, beta at most 0.999; ignores the two ends), or "sigmoid" (GeoDiff).
        beta_start, beta_end: the ends of the line.
        trained_betas: T explicit betas in (0, 1) that replace the named schedule.
        prediction_type: what the network was trained to output.
        steps_offset: added to "leading" timesteps.
        set_alpha_to_one: whether DDIM and PNDM end on abar = 1 or on abar_0.
        timestep_spacing: default of `timesteps` (2305.08891 table 2).
        rescale_betas_zero_snr: shift and scale sqrt(abar) so that abar_{T-1} = 0 (2305.08891 algorithm 1).

    Raises:
        DiffusionError: an unknown name, a value out of range, or a table that does not fall strictly.
    """

    num_train_timesteps: int = 1000
    beta_schedule: BetaSchedule = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    trained_betas: tuple[float, ...] | None = None
    prediction_type: PredictionType = "epsilon"
    steps_offset: int = 1
    set_alpha_to_one: bool = False
    timestep_spacing: TimestepSpacing = "leading"
    rescale_betas_zero_snr: bool = False
    _tables: dict[torch.device, Tensor] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        _check_name("beta_schedule", self.beta_schedule, get_args(BetaSchedule))
        _check_name("prediction_type", self.prediction_type, get_args(PredictionType))
        _check_name("timestep_spacing", self.timestep_spacing, get_args(TimestepSpacing))
        if self.num_train_timesteps < 1:
            raise DiffusionError.explained(
                f"num_train_timesteps is {self.num_train_timesteps}",
                expected="at least 1",
                fix="use 1000 as the published models do",
            )
        if self.rescale_betas_zero_snr and self.prediction_type == "epsilon":
            raise DiffusionError.explained(
                "rescale_betas_zero_snr is set with prediction_type 'epsilon'",
                expected="'v_prediction' or 'sample'",
                fix="switch rescale_betas_zero_snr off or train with v-prediction",
                why="at zero signal-to-noise ratio x_t is the noise, so predicting it says nothing about x_0",
            )
        betas = self._betas()
        if not bool(((betas > 0) & (betas < 1)).all()):
            raise DiffusionError.explained(
                f"the betas run from {betas.min().item():g} to {betas.max().item():g}",
                expected="every beta strictly between 0 and 1, so that alphas_cumprod falls strictly",
                fix="check beta_start, beta_end or trained_betas",
            )
        table = torch.cumprod(1 - betas, dim=0)
        if self.rescale_betas_zero_snr:
            table = _rescaled_to_zero_snr(table)
        if not bool((table.diff() < 0).all()):
            raise DiffusionError.explained(
                "alphas_cumprod does not fall strictly",
                expected="a strictly decreasing table",
                fix="use larger betas or fewer timesteps",
                why="its values have run into the limits of float64",
            )
        self._tables[torch.device("cpu")] = table

    def _betas(self) -> Tensor:
        total, start, end = self.num_train_timesteps, self.beta_start, self.beta_end
        if self.trained_betas is not None:
            if len(self.trained_betas) != total:
                raise DiffusionError.explained(
                    f"trained_betas has {len(self.trained_betas)} entries",
                    expected=f"num_train_timesteps = {total}",
                    fix="make the two agree",
                )
            return torch.tensor(self.trained_betas, dtype=torch.float64)
        match self.beta_schedule:
            case "linear":
                return torch.linspace(start, end, total, dtype=torch.float64)
            case "scaled_linear":
                return torch.linspace(max(start, 0) ** 0.5, max(end, 0) ** 0.5, total, dtype=torch.float64).square()
            case "sigmoid":
                ramp = torch.sigmoid(torch.linspace(-6, 6, total, dtype=torch.float64))
                return start + (end - start) * ramp
            case "squaredcos_cap_v2":
                # 2102.09672 eq. 17: abar is proportional to cos^2 of (u + .008)/1.008 quarter turns.
                u = torch.arange(total + 1, dtype=torch.float64) / total
                curve = torch.cos((u + 0.008) / 1.008 * (math.pi / 2)).square()
                return (1 - curve[1:] / curve[:-1]).clamp(max=0.999)

    # -- published configurations ------------------------------------------------------------------------------------

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "NoiseSchedule":
        """Read the contents of a diffusers scheduler_config.json.

        Absent fields take the defaults of the diffusers class named by `_class_name`, but for a zero-SNR table's spacing,
        which is "trailing". What belongs to a sampler (Karras levels, clipping, solver orders) is passed over: clipping was
        never meant for latents, and a sampler is chosen elsewhere.

        Raises:
            DiffusionError: the class stands for another process, such as flow matching or EDM.
        """
        name = str(config.get("_class_name", ""))
        if (name and not name.startswith(_THIS_PROCESS)) or config.get("use_flow_sigmas"):
            raise DiffusionError.explained(
                f"the scheduler is a {name or 'flow sampler'}{' with flow sigmas' * bool(config.get('use_flow_sigmas'))}",
                expected="a scheduler of DDPM's forward process, such as DDIMScheduler or EulerDiscreteScheduler",
                fix="use a Stable Diffusion 1.x, 2.x or SDXL model",
                why="it stands for another process (flow matching, EDM, ...), whose networks are asked otherwise",
            )
        betas = config.get("trained_betas")
        line = ("scaled_linear", 0.00085, 0.012) if name.startswith(_STABLE_DIFFUSION_BY_DEFAULT) else ("linear", 1e-4, 0.02)
        zero_snr = bool(config.get("rescale_betas_zero_snr", False))
        spacing = "trailing" if zero_snr else "linspace" if name.startswith(_LINSPACE_BY_DEFAULT) else "leading"
        return cls(
            num_train_timesteps=int(config.get("num_train_timesteps", 1000)),
            beta_schedule=config.get("beta_schedule", line[0]),
            beta_start=float(config.get("beta_start", line[1])),
            beta_end=float(config.get("beta_end", line[2])),
            trained_betas=None if betas is None else tuple(float(beta) for beta in betas),
            prediction_type=config.get("prediction_type", "epsilon"),
            steps_offset=int(config.get("steps_offset", 0)),
            set_alpha_to_one=bool(config.get("set_alpha_to_one", name.startswith(_ALPHA_ONE_BY_DEFAULT))),
            timestep_spacing=config.get("timestep_spacing", spacing),
            rescale_betas_zero_snr=zero_snr,
        )

    def to_config(self) -> dict[str, Any]:
        """The scheduler_config.json that diffusers' DDIMScheduler reads; `from_config` gives this schedule back."""
        return {
            "_class_name": "DDIMScheduler",
            "num_train_timesteps": self.num_train_timesteps,
            "beta_schedule": self.beta_schedule,
            "beta_start": self.beta_start,
            "beta_end": self.beta_end,
            "trained_betas": None if self.trained_betas is None else list(self.trained_betas),
            "prediction_type": self.prediction_type,
            "steps_offset": self.steps_offset,
            "set_alpha_to_one": self.set_alpha_to_one,
            "timestep_spacing": self.timestep_spacing,
            "rescale_betas_zero_snr": self.rescale_betas_zero_snr,
            "clip_sample": False,
            "thresholding": False,
        }

    def differences(self) -> dict[str, Any]:
        """The settings that are not Stable Diffusion's, which a schedule's identity consists of."""
        own, usual = self.to_config(), NoiseSchedule().to_config()
        return {name: value for name, value in own.items() if value != usual[name]}

    # -- the table ---------------------------------------------------------------------------------------------------

    @property
    def alphas_cumprod(self) -> Tensor:
        """abar, (T,) float64 on the CPU, strictly decreasing. Do not write into it."""
        return self._tables[torch.device("cpu")]

    @property
    def ratios(self) -> Tensor:
        """sigma / alpha of each timestep, (T,) float64 on the CPU, strictly increasing and finite also at zero SNR."""
        abar = self.alphas_cumprod.clamp(min=_SMALLEST_ALPHAS_CUMPROD)
        return ((1 - abar) / abar).sqrt()

    @property
    def final_alphas_cumprod(self) -> float:
        """abar after the last step of DDIM and PNDM: 1, or abar_0 where set_alpha_to_one is false."""
        return 1.0 if self.set_alpha_to_one else float(self.alphas_cumprod[0])

    def abar(self, t: Tensor) -> Tensor:
        """abar at each timestep.

        Args:
            t: (B,) integer timesteps in [0, T-1], looked up; or float ones, interpolated linearly in log-SNR between
                the two neighbours (abar = 0, of a zero-SNR table, counts as 2^-24 there).

        Returns:
            (B,) float64 on t's device.

        Raises:
            DiffusionError: t outside [0, T-1] (checked on the CPU only: on a GPU the check would wait for the device).
        """
        check_timesteps(t, self.last)
        table = self._on(t.device)
        if not t.is_floating_point():
            return table[t]
        below = t.floor().long()
        above = (below + 1).clamp(max=self.last)
        log_snr = torch.logit(table.clamp(min=_SMALLEST_ALPHAS_CUMPROD))
        return torch.sigmoid(torch.lerp(log_snr[below], log_snr[above], t.double() - below))

    def alpha(self, t: Tensor) -> Tensor:
        """Signal scale sqrt(abar_t): (B,) float64 for t (B,), see `abar`."""
        return self.abar(t).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        """Noise scale sqrt(1 - abar_t): (B,) float64 for t (B,), see `abar`."""
        return (1 - self.abar(t)).sqrt()

    def snr(self, t: Tensor) -> Tensor:
        """Signal-to-noise ratio abar_t / (1 - abar_t): (B,) float64 for t (B,), see `abar`."""
        abar = self.abar(t)
        return abar / (1 - abar)

    # -- timesteps ---------------------------------------------------------------------------------------------------

    @property
    def last(self) -> int:
        """The noisiest timestep, T - 1."""
        return self.num_train_timesteps - 1

    def timesteps(self, num_steps: int, *, spacing: TimestepSpacing | None = None) -> Tensor:
        """The timesteps at which a sampler of `num_steps` steps calls the network (2305.08891 table 2).

        "leading" takes multiples of T // num_steps plus steps_offset (the offset is cut where it would leave the
        table), "trailing" counts back from T - 1 in strides of T / num_steps, "linspace" includes both ends.

        Returns:
            (num_steps,) long, strictly decreasing: the list of diffusers' DDIM, DDPM and PNDM for the same settings. (Its
            Euler and Heun do not round "linspace", its DPM-Solver spaces "leading" and "linspace" otherwise.)

        Raises:
            DiffusionError: num_steps below 1 or above T; an unknown spacing.
        """
        total = self.num_train_timesteps
        spacing = self.timestep_spacing if spacing is None else spacing
        _check_name("timestep_spacing", spacing, get_args(TimestepSpacing))
        check_num_steps(num_steps, total)
        k = torch.arange(num_steps, dtype=torch.float64)
        match spacing:
            case "leading":
                multiples = (k * (total // num_steps)).long()
                ascending = multiples + min(self.steps_offset, self.last - int(multiples[-1]))
            case "trailing":
                ascending = (total - k * (total / num_steps)).round().long().flip(0) - 1
            case "linspace":
                # One step of "linspace" is the low end in numpy and so in diffusers.
                ascending = (k * (self.last / max(num_steps - 1, 1))).round().long()
        return ascending.flip(0)

    def timesteps_at(self, fractions: Tensor) -> Tensor:
        """Fractions of T, (B,) float64 in [0, 1] -> (B,) long in [0, T - 1]."""
        return (fractions * self.num_train_timesteps).floor().long().clamp(0, self.last)

    def __getstate__(self) -> dict[str, Any]:
        """Without the copies on other devices: a process without a GPU must be able to read a schedule used on one."""
        return vars(self) | {"_tables": {torch.device("cpu"): self.alphas_cumprod}}

    def _on(self, device: torch.device) -> Tensor:
        if device not in self._tables:
            self._tables[device] = self.alphas_cumprod.to(device)
        return self._tables[device]


def _check_name(setting: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise DiffusionError.explained(
            f"{setting} is {value!r}", expected="one of " + ", ".join(map(repr, allowed)), fix="use one of these"
        )


def _rescaled_to_zero_snr(alphas_cumprod: Tensor) -> Tensor:
    """2305.08891 algorithm 1: keep sqrt(abar_0), bring sqrt(abar_{T-1}) to 0, affine in between."""
    root = alphas_cumprod.sqrt()
    first, last = root[0].clone(), root[-1].clone()
    return ((root - last) * (first / (first - last))).square()
