"""What a job may ask of a diffusion prior, wherever it lives: in this process, in a Ray actor, behind a server.

Requests name their prompts and their noise instead of carrying embeddings and random tensors, so a query is little more
than its pictures as they were rendered (48 KB for one of 64x64) and the same query always has the same answer.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from torch import Tensor

from diffusion.checkpoints.lora_files import AdapterFile
from diffusion.distillation import Distilled, Form, Weighting
from diffusion.process import Schedule
from diffusion.requests import Guidance
from diffusion.samplers import Spacing
from diffusion.seeding import Key
from jobs.errors import InputError

__all__ = ["DistillationQuery", "GenerateRequest", "LossQuery", "PicturePreview", "PriorClient", "PriorInfo", "with_adapters"]


@dataclass(frozen=True, kw_only=True)
class PriorInfo:
    """What the caller needs to know about a prior without holding it.

    Args:
        name: short name, or the folder it was loaded from.
        weights_hash: sha256 over all weights and the schedule; two priors with one hash answer alike.
        image_size: pixels per side of the pictures it was trained on.
        size_multiple: widths and heights of its pictures are multiples of so many pixels.
        schedule: the noise schedule it was trained with.
        vocabulary: the words it knows, or None where it takes any.
        notes: sentences for whoever asks it about what was passed over or assumed when it was read.
        distilled: how it was distilled to few steps, such as "turbo"; "" for a prior that was not.
        device: where it computes, as torch writes it ("cpu", "cuda:0").
        num_views: views of one object that it draws together, told their cameras; None for a prior that takes view words.
        elevation_jitter: degrees by which the views of a group differed in elevation in its training.
        view_words: whether it was taught view words, such as "back view".
        picture_suffix: what its prompts end in where it draws pictures with cameras.
    """

    name: str
    weights_hash: str
    image_size: int
    schedule: Schedule
    vocabulary: tuple[str, ...] | None = None
    device: str = "cpu"
    notes: tuple[str, ...] = ()
    num_views: int | None = None
    elevation_jitter: float = 0.0
    view_words: bool = False
    picture_suffix: str = ""
    size_multiple: int = 1
    distilled: str = ""

    def size_of(self, width: int | None, height: int | None) -> tuple[int, int] | None:
        """(height, width) of a picture of which a job says so much, None for the prior's own size.

        Raises:
            InputError: a size that this prior does not draw.
        """
        size = (height or self.image_size, width or self.image_size)
        if size == (self.image_size, self.image_size):
            return None
        if any(side % self.size_multiple for side in size):
            near = (max(1, round(side / self.size_multiple)) * self.size_multiple for side in reversed(size))
            raise InputError(
                f"The size is {size[1]}x{size[0]}, but the prior {self.name!r} draws widths and heights in multiples of "
                f"{self.size_multiple}; give {'x'.join(map(str, near))}, for instance."
            )
        if self.num_views is not None:
            raise InputError(
                f"The size is {size[1]}x{size[0]}, but the prior {self.name!r} takes cameras and draws "
                f"{self.image_size}x{self.image_size} alone; leave the size out."
            )
        return size

    def size_like(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) at which a given picture is drawn anew: its own aspect, about as many pixels as the prior's own.

        A prior of few words and one that takes cameras draw squares alone, as they were trained.
        """
        if self.vocabulary is not None or self.num_views is not None:
            return (self.image_size, self.image_size)
        factor = self.image_size / math.sqrt(height * width)
        sides = (max(1, round(side * factor / self.size_multiple)) * self.size_multiple for side in (height, width))
        return (next(sides), next(sides))

    @property
    def tells_sides_apart(self) -> bool:
        """Whether it was taught from where its pictures were taken, by cameras or by words."""
        return self.num_views is not None or self.view_words


@dataclass(frozen=True, kw_only=True, eq=False)
class _ViewsQuery:
    images: Tensor
    prompts: tuple[str, ...]
    t: Tensor
    noise_keys: tuple[tuple[Key, ...], ...]
    cameras: Tensor | None = None
    group_views: int = 1
    strict: bool = False
    adapters: tuple[AdapterFile, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class DistillationQuery(_ViewsQuery):
    """Asks how V rendered pictures should change to look more like their prompts at noise level t.

    Args:
        images: (V, 3, H, W) float32 in [0, 1]; nothing flows back through it. The prior brings them to its own size, and its
            gradient back to theirs (`diffusion.distillation.at_own_size`).
        prompts: V prompts, view words included where the prior takes them.
        t: (V,) timesteps of the prior's schedule, long or float64.
        noise_keys: V random streams (seed, *keys), one a view, that the noise is drawn from.
        cameras: (V, 16) of a prior that takes them, see `nerf3d.cameras.Cameras.pose_vectors`.
        group_views: so many neighbouring views are of one object and judged together.
        strict: the answer is bit-identical whatever else the prior is asked meanwhile; otherwise its last bits may differ.
        adapters: what is put into the prior's networks for this query.
        negative_prompt: one for all views.
        guidance: classifier-free guidance of every view.
        form, weighting: see `diffusion.distillation`.
    """

    negative_prompt: str = ""
    guidance: Guidance = field(default_factory=Guidance)
    form: str | Form = "x0"
    weighting: Weighting = "uniform"


@dataclass(frozen=True, kw_only=True, eq=False)
class LossQuery(_ViewsQuery):
    """Asks how badly the prior denoises V pictures under their prompts: the lower, the likelier it finds them.

    Its fields are those of these names of `DistillationQuery`.
    """


@dataclass(frozen=True, kw_only=True, eq=False)
class GenerateRequest:
    """Asks for one image per seed, each from its own random stream, or for views of one object drawn together.

    Args:
        prompts: N prompts.
        seeds: N seeds; image n depends on prompts[n], seeds[n] and the settings below, and on nothing else.
        num_steps: sampler steps.
        sampler: a name in `diffusion.samplers.SAMPLERS`. timestep_spacing: see `diffusion.samplers.timesteps_for`.
        guidance: classifier-free guidance of every image.
        negative_prompt: one for all images.
        size: (height, width) of the images in pixels; None for the prior's own.
        init_images: (N, 3, H, W) in [0, 1] of that size: draw these anew instead of from noise alone.
        masks: (N, 1, H, W) in [0, 1], 1 where init_images are repainted, 0 where they stay to the last bit.
        strength: of the change, 0 (none) to 1 (init_images matter only through the masks); see
            `diffusion.samplers.image_to_image`. Unused without init_images.
        strict: each image is bit-identical whatever else the prior is asked, and whichever images are asked for with it.
        cameras: (N, 16) of a prior that takes them; None for pictures without a camera.
        group_views: so many neighbouring images are views of one object: one prompt, one seed, noise of their own.
        adapters: what is put into the prior's networks for these images.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    adapters: tuple[AdapterFile, ...] = ()
    cameras: Tensor | None = None
    group_views: int = 1
    num_steps: int = 30
    sampler: str = "ddim"
    timestep_spacing: Spacing | None = None
    guidance: Guidance = field(default_factory=Guidance)
    negative_prompt: str = ""
    size: tuple[int, int] | None = None
    init_images: Tensor | None = None
    masks: Tensor | None = None
    strength: float = 1.0
    strict: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class PicturePreview:
    """What some pictures of a request look like before they are finished.

    Args:
        first: index of the first of them in the request.
        steps: how often the network has been asked for them; a second-order sampler asks twice a step.
        images: uint8 (n, h, w, 3), not larger than the finished ones.
    """

    first: int
    steps: int
    images: np.ndarray


class PriorClient(Protocol):
    """A prior, near or far. Every method blocks until the answer is there and raises `jobs.errors.PriorFailed`."""

    def info(self) -> PriorInfo:
        """Name, weights and sizes."""
        ...

    def prompt_warnings(self, prompts: Sequence[str]) -> list[str]:
        """A sentence for each prompt of which something is cut or not understood."""
        ...

    def unknown_words(self, prompts: Sequence[str]) -> list[str]:
        """Words of the prompts that the prior was never trained on, in order, without repeats."""
        ...

    def distill(self, query: DistillationQuery) -> Distilled:
        """One step of score distillation."""
        ...

    def losses(self, query: LossQuery) -> Tensor:
        """The denoising loss of each picture, (V,) float32; see `diffusion.denoising_loss`."""
        ...

    def generate(self, request: GenerateRequest) -> np.ndarray:
        """uint8 images (N, H, W, 3)."""
        ...

    def generate_with_previews(self, request: GenerateRequest, *, every: int) -> Generator[PicturePreview, None, np.ndarray]:
        """`generate`, with a preview of the pictures each time the network has been asked `every` times more."""
        ...


def with_adapters(prior: PriorClient, adapters: tuple[AdapterFile, ...]) -> PriorClient:
    """The prior as one job sees it, all of whose requests have these LoRAs and words; the prior itself for none."""
    return _WithAdapters(prior, adapters) if adapters else prior


@dataclass(frozen=True)
class _WithAdapters:
    prior: PriorClient
    adapters: tuple[AdapterFile, ...]

    def info(self) -> PriorInfo:
        return self.prior.info()

    def prompt_warnings(self, prompts: Sequence[str]) -> list[str]:
        return self.prior.prompt_warnings(prompts)

    def unknown_words(self, prompts: Sequence[str]) -> list[str]:
        return self.prior.unknown_words(prompts)

    def distill(self, query: DistillationQuery) -> Distilled:
        return self.prior.distill(replace(query, adapters=self.adapters))

    def losses(self, query: LossQuery) -> Tensor:
        return self.prior.losses(replace(query, adapters=self.adapters))

    def generate(self, request: GenerateRequest) -> np.ndarray:
        return self.prior.generate(replace(request, adapters=self.adapters))

    def generate_with_previews(self, request: GenerateRequest, *, every: int) -> Generator[PicturePreview, None, np.ndarray]:
        return (yield from self.prior.generate_with_previews(replace(request, adapters=self.adapters), every=every))
