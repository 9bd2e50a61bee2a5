"""A text-conditioned latent diffusion prior: the toybox's, or any Stable Diffusion that `diffusion.checkpoints` reads.

One class holds them all. It answers the requests of samplers and of score distillation.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from diffusion.checkpoints.checkpoint import Checkpoint, PriorCard
from diffusion.checkpoints.errors import PriorError
from diffusion.checkpoints.read import read
from diffusion.checkpoints.source import TOYBOX, Source
from diffusion.checkpoints.weights import hash_files
from diffusion.guidance import guided_prediction
from diffusion.lanes import in_lanes
from diffusion.networks.layout import channels_last
from diffusion.parameterisation import Prediction
from diffusion.requests import Condition, DecodeRequest, DenoiseRequest, EncodeGradientRequest, EncodeRequest, Request
from diffusion.text.packing import pack, unpack

__all__ = ["TOYBOX", "Prior", "PriorCard", "PriorError", "hash_files"]

# Encoded prompts kept in memory, the least recently used dropped: 60 MB for Stable Diffusion 1.x.
MAX_CACHED_PROMPTS = 256


@dataclass
class Prior(Checkpoint):
    """A checkpoint that answers requests.

    Attributes:
        latent_shape: (C, h, w) of one picture.
    """

    text_cache: dict[tuple[str, tuple[int, int]], Tensor] = field(default_factory=dict)

    @classmethod
    def load(cls, source: str | Path | Source = "toybox", *, device: str | torch.device = "cpu") -> "Prior":
        """Reads "toybox" (the prior in this package), a folder, a single file, or a name on the Hugging Face hub.

        Args:
            source: as on the command line, options included; see `diffusion.checkpoints.source.Source`.

        Raises:
            PriorError: a file is missing, damaged or does not fit the others, or the name cannot be had.
        """
        return cls.of(read(source if isinstance(source, Source) else Source.parse(str(source))), device=device)

    @classmethod
    def of(cls, checkpoint: Checkpoint, *, device: str | torch.device = "cpu") -> "Prior":
        """The prior of a checkpoint, which moves to the device and must not be used otherwise afterwards."""
        parts = {f.name: getattr(checkpoint, f.name) for f in fields(Checkpoint)}
        target = torch.device(device)
        for name, module in parts.items():
            if isinstance(module, nn.Module):
                parts[name] = module.eval().requires_grad_(False).to(target)
        parts |= {name: channels_last(parts[name]) for name in ("unet", "autoencoder")}
        return cls(**{**parts, "device": target})

    @property
    def name(self) -> str:
        """The prior's name, for manifests."""
        return self.card.name

    @property
    def image_size(self) -> int:
        """Side of its pictures in pixels."""
        return self.card.image_size

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one picture's latents."""
        side = self.image_size // self.autoencoder.config.spatial_factor
        return (self.unet.config.in_channels, side, side)

    def unknown_words(self, prompt: str) -> list[str]:
        """Words of a prompt that this prior never saw in training; empty where it may know any word."""
        if self.card.vocabulary is None:
            return []
        known = set(self.card.vocabulary)
        return [word for word in dict.fromkeys(re.findall(r"[^\W_]+", prompt.lower())) if word not in known]

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str], *, size: tuple[int, int] | None = None) -> Tensor:
        """(B, S, D) text as the UNet reads it; each distinct prompt is encoded once, alone, so neighbours never matter.

        SDXL's rows hold pooled text and sizes too, see `diffusion.text.packing`.

        Args:
            size: (height, width) of the pictures in pixels, which SDXL is told; the prior's own by default.
        """
        size = size or (self.image_size, self.image_size)
        rows = []
        for prompt in prompts:
            # Taken out and put back, so that the dictionary is ordered by last use.
            row = self.text_cache.pop((prompt, size), None)
            self.text_cache[prompt, size] = self._encode(prompt, size) if row is None else row
            rows.append(self.text_cache[prompt, size])
            if len(self.text_cache) > MAX_CACHED_PROMPTS:
                del self.text_cache[next(iter(self.text_cache))]
        return torch.stack(rows)

    def _encode(self, prompt: str, size: tuple[int, int]) -> Tensor:
        ids = [tokenizer([prompt]).to(self.device) for _, _, tokenizer in self.towers]
        if self.text_encoder_2 is None:
            return at_least_float32(self.text_encoder(ids[0]))[0]
        first, _ = self.text_encoder.penultimate_and_pooled(ids[0])
        second, pooled = self.text_encoder_2.penultimate_and_pooled(ids[1])
        states = at_least_float32(torch.cat([first, second], dim=-1))
        return pack(states, self._added(at_least_float32(cast(Tensor, pooled)), size))[0]

    def _added(self, pooled: Tensor, size: tuple[int, int]) -> Tensor:
        """SDXL's vector condition: pooled text, original size, crop's corner, target size (2307.01952 section 2.2)."""
        return torch.cat([pooled, pooled.new_tensor([[*size, 0, 0, *size]])], dim=1)

    def _without_text(self, row: Tensor, size: tuple[int, int]) -> Tensor:
        """SDXL's condition for no text at all: zeros, but for the sizes."""
        states, _ = unpack(row[None], self.unet.config.added_dim)
        pooled = states.new_zeros(1, self.unet.config.pooled_dim)
        return pack(torch.zeros_like(states), self._added(pooled, size))[0]

    def condition(
        self,
        prompts: Sequence[str],
        negative_prompts: Sequence[str] | None = None,
        *,
        size: tuple[int, int] | None = None,
    ) -> Condition:
        """Prompts and, per prompt, a negative one ("" by default); for `size` see `encode_text`."""
        negative_prompts = [""] * len(prompts) if negative_prompts is None else negative_prompts
        tokens, negative = self.encode_text(prompts, size=size), self.encode_text(negative_prompts, size=size)
        if self.zeros_for_empty_negative:
            size = size or (self.image_size, self.image_size)
            rows = zip(negative_prompts, negative, strict=True)
            negative = torch.stack([row if prompt else self._without_text(row, size) for prompt, row in rows])
        return Condition(tokens, negative)

    def answer(self, request: Request) -> Any:
        """Answers one request of a generator; see `diffusion.requests` for what each is answered with."""
        match request:
            case DenoiseRequest():
                return self.denoise(request)
            case EncodeRequest(images):
                return self.encode(images)
            case DecodeRequest(latents):
                return self.decode(latents)
            case EncodeGradientRequest(images, latent_gradient):
                return self.encoder_gradient(images, latent_gradient)
        raise TypeError(f"a prior cannot answer {type(request).__name__}")

    @torch.no_grad()
    def denoise(self, request: DenoiseRequest) -> Prediction:
        """The guided prediction; rows whose guidance needs no unconditional half cost one forward."""
        return guided_prediction(self.predict, request, self.schedule)

    def predict(self, x_t: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """The network's raw output for (B, C, h, w) latents at timesteps (B,) under `encode_text`'s rows (B, S, D)."""
        return in_lanes(self.predict_together, x_t.to(self.device), t.to(self.device), tokens.to(self.device))

    def predict_together(self, x_t: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """`predict` in a single forward of the network; everything is on the prior's device already."""
        dtype = self.unet.conv_in.weight.dtype
        states, added = unpack(tokens, self.unet.config.added_dim)
        return self.unet(x_t.to(dtype), t, states.to(dtype), added).to(x_t.dtype)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> scaled latents (B, C, h, w)."""
        return in_lanes(self.autoencoder.encode, images.to(self.device))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents -> images (B, 3, H, W) clamped to [0, 1]."""
        return in_lanes(self.autoencoder.decode, latents).clamp(0, 1)

    def encoder_gradient(self, images: Tensor, latent_gradient: Tensor) -> Tensor:
        """Vector-Jacobian product of the encoder, (B, 3, H, W)."""
        return in_lanes(self._encoder_gradient, images.to(self.device), latent_gradient)

    def _encoder_gradient(self, images: Tensor, latent_gradient: Tensor) -> Tensor:
        images = images.detach().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(self.autoencoder.encode(images), images, latent_gradient)
        return gradient


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half precision widened, anything else as it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
