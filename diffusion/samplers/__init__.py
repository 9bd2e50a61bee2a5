"""Samplers: one method, one file, one signature (`chain.Sampler`).

Three know other things than timesteps of a schedule and have a signature of their own: `annealed_langevin` (noise levels
sigma), `bit_diffusion` (continuous time, self-conditioning) and `ddim_inversion` (from the picture to its noise).
"""

from diffusion.samplers.chain import Noise, Sampler, Sampling
from diffusion.samplers.ddim import ddim
from diffusion.samplers.ddpm import ddpm
from diffusion.samplers.dpmpp_2m import dpmpp_2m
from diffusion.samplers.dpmpp_2m_sde import dpmpp_2m_sde
from diffusion.samplers.euler import euler
from diffusion.samplers.euler_ancestral import euler_ancestral
from diffusion.samplers.flow_heun import flow_heun
from diffusion.samplers.heun import heun
from diffusion.samplers.image_to_image import image_to_image, with_mask
from diffusion.samplers.lcm import lcm
from diffusion.samplers.pndm import pndm, pndm_prk
from diffusion.samplers.sdedit import sdedit
from diffusion.samplers.timesteps import Spacing, timesteps_for
from diffusion.samplers.unipc import unipc

SAMPLERS: dict[str, Sampler] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "pndm": pndm,
    "pndm_prk": pndm_prk,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "flow_heun": flow_heun,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "unipc": unipc,
    "lcm": lcm,
}
"""By their names on the command line."""

STOCHASTIC = frozenset({"ddpm", "euler_ancestral", "dpmpp_2m_sde", "lcm"})
"""Those that draw fresh noise on the way with their default options."""

SECOND_ORDER_FROM_NOISE = frozenset({"heun", "pndm", "pndm_prk"})
"""Those with the option `first_order_from_noise`, which networks take whose schedule begins with almost no signal."""

__all__ = [
    "SAMPLERS",
    "SECOND_ORDER_FROM_NOISE",
    "STOCHASTIC",
    "Noise",
    "Sampler",
    "Sampling",
    "Spacing",
    "image_to_image",
    "sdedit",
    "timesteps_for",
    "with_mask",
    *SAMPLERS,
]
