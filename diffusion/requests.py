"""What the generators of this package ask for, and the driver that answers.

Samplers and score distillation never call a network. They *yield* one of these requests and are *sent* the answer, so
that the same code runs alone (`run`), or in lockstep with many others whose rows share one forward pass.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from diffusion.errors import DiffusionError

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Condition:
    """Encoded text, one row a sample.

    Args:
        tokens: (B, S, K) of the prompts, whatever the network takes: the text tower's states, or with `Prior` the keys and
            values that its UNet projects from them once a prompt (`ProjectedContext.packed`).
        negative: (B, S, K) of the negative (or empty) prompts; None where guidance is off.
        cameras: (B, 16), see `diffusion.networks.multi_view`, of both halves of the guidance; None without cameras.
        num_views: so many neighbouring rows are a group, views of one object that are denoised together; 1 for pictures
            that know nothing of each other.
        channels: (B, C', h, w) that the network takes beside x_t, such as an inpainting model's mask and masked picture;
            None where it takes x_t alone.
    """

    tokens: Tensor
    negative: Tensor | None = None
    cameras: Tensor | None = None
    num_views: int = 1
    channels: Tensor | None = None

    def __post_init__(self) -> None:
        if self.negative is not None and self.negative.shape != self.tokens.shape:
            raise DiffusionError.explained(
                f"the negative prompts are encoded as {tuple(self.negative.shape)}",
                expected=f"the prompts' shape {tuple(self.tokens.shape)}",
                fix="encode one negative prompt for each prompt",
            )
        if self.num_views < 1 or len(self.tokens) % self.num_views:
            raise DiffusionError.explained(
                f"{len(self.tokens)} rows in groups of {self.num_views} views",
                expected="whole groups",
                fix="give a multiple of num_views rows",
            )
        if self.cameras is not None and len(self.cameras) != len(self.tokens):
            raise DiffusionError.explained(
                f"{len(self.cameras)} cameras for {len(self.tokens)} rows", expected="one each", fix="give as many"
            )

    def __getitem__(self, rows: slice | Tensor) -> "Condition":
        """Some of the rows, whole groups."""
        parts = (self.negative, self.cameras, self.channels)
        negative, cameras, channels = (None if part is None else part[rows] for part in parts)
        return Condition(self.tokens[rows], negative, cameras, self.num_views, channels)

    def seen_from(self, cameras: Tensor | None, num_views: int) -> "Condition":
        """The same texts with cameras (B, 16), in groups of num_views."""
        return replace(self, cameras=cameras, num_views=num_views)


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance, see diffusion/guidance.py.

    Args:
        scale: s in uncond + s (cond - uncond); 1 is conditional, 0 unconditional. threestudio's w is s - 1.
        rescale: phi in [0, 1], how far the guided prediction is brought back to the conditional one's standard
            deviation (2305.08891 eq. 15-16).
        interval: guidance holds for timesteps in this closed interval, elsewhere the conditional prediction is used
            (2404.07724).
        rescale_on: "output" as diffusers' pipelines, or "x0" as MVDream's score distillation.
        rescale_over: the values whose deviation is taken: those of a "row", or of all views of a "group" (MVDream).
    """

    scale: float = 7.0
    rescale: float = 0.0
    interval: tuple[int, int] = (0, 1000)
    rescale_on: str = "output"
    rescale_over: str = "row"

    def __post_init__(self) -> None:
        if not 0 <= self.rescale <= 1:
            raise DiffusionError.explained(
                f"the guidance rescale is {self.rescale}", expected="0 to 1", fix="use 0 (off) or about 0.5 to 0.7"
            )
        if self.rescale_on not in ("output", "x0"):
            raise DiffusionError.explained(
                f"rescale_on is {self.rescale_on!r}", expected="'output' or 'x0'", fix="use one of these"
            )
        if self.rescale_over not in ("row", "group"):
            raise DiffusionError.explained(
                f"rescale_over is {self.rescale_over!r}", expected="'row' or 'group'", fix="use one of these"
            )
        if self.interval[0] > self.interval[1]:
            raise DiffusionError.explained(
                f"the guidance interval is {self.interval}",
                expected="its low end first",
                fix=f"use ({self.interval[1]}, {self.interval[0]})",
            )


@dataclass(frozen=True, eq=False)
class DenoiseRequest:
    """Asks for the guided prediction at x_t; the answer is a `Prediction` without gradient.

    Args:
        x_t: (B, C, h, w) scaled latents. condition: B rows.
        t: (B,) one timestep a row, long or float64; best on the CPU, where it says without waiting for a GPU which rows are
            guided.
    """

    x_t: Tensor
    t: Tensor
    condition: Condition
    guidance: Guidance

    def network_input(self, rows: Tensor | None = None) -> Tensor:
        """x_t with the condition's channels beside it, of these rows or of all: (R, C + C', h, w)."""
        parts = [self.x_t] if self.condition.channels is None else [self.x_t, self.condition.channels.to(self.x_t)]
        parts = parts if rows is None else [part[rows] for part in parts]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


@dataclass(frozen=True, eq=False)
class EncodeRequest:
    """Asks for the scaled latents (B, C, h, w) of images (B, 3, H, W) in [0, 1], without gradient.

    is_pulled_back: an EncodeGradientRequest with this very tensor follows, so that what the encoder computed may be kept.
    tiled: in strips, with a third of the memory and equal up to rounding; see `diffusion.networks.strips`.
    """

    images: Tensor
    is_pulled_back: bool = field(default=False, kw_only=True)
    tiled: bool = field(default=False, kw_only=True)


@dataclass(frozen=True, eq=False)
class DecodeRequest:
    """Asks for the images (B, 3, H, W), clamped to [0, 1], of scaled latents (B, C, h, w).

    tiled: see `EncodeRequest`.
    """

    latents: Tensor
    tiled: bool = field(default=False, kw_only=True)


@dataclass(frozen=True, eq=False)
class PreviewRequest:
    """Asks for small pictures (B, 3, h', w') in [0, 1] that show cheaply what scaled latents (B, C, h, w) hold."""

    latents: Tensor


@dataclass(frozen=True, eq=False)
class EncodeGradientRequest:
    """Asks for the encoder's vector-Jacobian product.

    The answer is (d latents / d images)^T latent_gradient, (B, 3, H, W), at these images (B, 3, H, W) in [0, 1], for
    latent_gradient (B, C, h, w).

    checkpointed: with 0.4 of the memory, half as much work again, and the same bits; see `AutoencoderKL.encode`.
    """

    images: Tensor
    latent_gradient: Tensor
    checkpointed: bool = field(default=False, kw_only=True)


Request = DenoiseRequest | EncodeRequest | DecodeRequest | PreviewRequest | EncodeGradientRequest


def run(generator: Generator[Any, Any, Result], answer: Callable[[Any], Any]) -> Result:
    """Drive one generator alone: answer each request until it returns, and return its result."""
    reply = None
    while True:
        try:
            request = generator.send(reply)
        except StopIteration as finished:
            return finished.value
        reply = answer(request)
