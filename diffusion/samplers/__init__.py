"""Samplers: one method, one file, one signature (`chain.Sampler`).

Three know other things than timesteps of a schedule and have a signature of their own: `annealed_langevin` (noise levels
sigma), `bit_diffusion` (continuous time, self-conditioning) and `ddim_inversion` (from the picture to its noise).
"""

from diffusion.samplers.chain import Noise, Sampler, Sampling
from diffusion.samplers.ddim import ddim
from diffusion.samplers.ddpm import ddpm
from diffusion.samplers.dpmpp_2m import dpmpp_2m
from diffusion.samplers.euler import euler
from diffusion.samplers.euler_ancestral import euler_ancestral
from diffusion.samplers.heun import heun
from diffusion.samplers.image_to_image import image_to_image
from diffusion.samplers.pndm import pndm
from diffusion.samplers.sdedit import sdedit

SAMPLERS: dict[str, Sampler] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "pndm": pndm,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
}
"""By their names on the command line."""

STOCHASTIC = frozenset({"ddpm", "euler_ancestral"})
"""Those that draw fresh noise on the way with their default options."""

__all__ = ["SAMPLERS", "STOCHASTIC", "Noise", "Sampler", "Sampling", "image_to_image", "sdedit", *SAMPLERS]
