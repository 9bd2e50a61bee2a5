"""A prior in this process, answering what jobs ask. Both runtimes use it: inline directly, Ray inside the prior actor."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from diffusion import requests, seeding
from diffusion.distillation import score_distillation
from diffusion.samplers import SAMPLERS, image_to_image
from diffusion.schedule import NoiseSchedule
from jobs.errors import InputError, PriorFailed
from jobs.prior_client import DistillationQuery, Distilled, DrawRequest, PriorInfo

__all__ = ["AnswersRequests", "LocalPrior", "load_prior"]


class AnswersRequests(Protocol):
    """What `LocalPrior` needs of `diffusion.prior.Prior`."""

    schedule: NoiseSchedule
    weights_hash: str
    device: torch.device

    @property
    def name(self) -> str: ...
    @property
    def image_size(self) -> int: ...
    @property
    def latent_shape(self) -> tuple[int, int, int]: ...

    def condition(self, prompts: Sequence[str], negative_prompts: Sequence[str] | None = None) -> requests.Condition: ...
    def answer(self, request: requests.Request) -> Any: ...
    def unknown_words(self, prompt: str) -> list[str]: ...


class LocalPrior:
    """`jobs.prior_client.PriorClient` over a loaded prior: each request is one generator, driven alone."""

    def __init__(self, prior: AnswersRequests) -> None:
        self._prior = prior

    def info(self) -> PriorInfo:
        """Name, weights and sizes."""
        prior = self._prior
        card = getattr(prior, "card", None)
        return PriorInfo(
            name=prior.name,
            weights_hash=prior.weights_hash,
            image_size=prior.image_size,
            schedule=prior.schedule,
            vocabulary=getattr(card, "vocabulary", None),
            device=str(prior.device),
        )

    def unknown_words(self, prompts: Sequence[str]) -> list[str]:
        """Words of the prompts that the prior was never trained on, in order, without repeats."""
        return list(dict.fromkeys(word for prompt in prompts for word in self._prior.unknown_words(prompt)))

    def distill(self, query: DistillationQuery) -> Distilled:
        """One step of score distillation; see `diffusion.distillation`.

        Raises:
            PriorFailed: the answer holds a number that is not finite.
        """
        generator = score_distillation(
            query.images.to(self._prior.device),
            condition=self._condition(query.prompts, query.negative_prompt),
            guidance=query.guidance,
            schedule=self._prior.schedule,
            t=query.t,
            noise=self._noise(query.noise_keys),
            form=query.form,
            weighting=query.weighting,
        )
        answer = requests.run(generator, self._prior.answer)
        _check_finite(answer.gradient, "the gradient", query.prompts)
        return Distilled(gradient=answer.gradient, target=answer.target)

    @torch.no_grad()
    def draw(self, request: DrawRequest) -> np.ndarray:
        """uint8 images (N, H, W, 3); image n starts from the stream (seeds[n], "image").

        Raises:
            PriorFailed: a picture holds a number that is not finite.
        """
        pictures = requests.run(self._drawing(request), self._prior.answer)
        _check_finite(pictures, "a picture", request.prompts)
        return (pictures.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()

    def _drawing(self, request: DrawRequest) -> Generator[requests.Request, Any, Tensor]:
        """Pictures (N, 3, H, W) in [0, 1], everything asked of the networks as requests."""
        names = [(seed, "image") for seed in request.seeds]
        sampler, noise = SAMPLERS[request.sampler], self._noise(names)
        sampling: dict[str, Any] = {
            "schedule": self._prior.schedule,
            "timesteps": self._prior.schedule.timesteps(request.num_steps),
            "condition": self._condition(request.prompts, request.negative_prompt),
            "guidance": request.guidance,
            "noise": seeding.step_noise(names, self._prior.latent_shape),
        }
        if request.init_images is None:
            latents = yield from sampler(noise, **sampling)
            return (yield requests.DecodeRequest(latents))
        return (
            yield from image_to_image(
                request.init_images,
                sampler=sampler,
                strength=request.strength,
                start_noise=noise,
                masks=request.masks,
                **sampling,
            )
        )

    def _condition(self, prompts: Sequence[str], negative_prompt: str) -> requests.Condition:
        return self._prior.condition(prompts, [negative_prompt] * len(prompts))

    def _noise(self, names: Sequence[Sequence[seeding.Key]]) -> Tensor:
        streams = [seeding.stream(int(name[0]), *name[1:]) for name in names]
        return seeding.normal_rows(self._prior.latent_shape, streams, device=self._prior.device)


def load_prior(source: str, device: str = "cpu") -> LocalPrior:
    """The prior "toybox" or a folder's, on that device.

    Raises:
        InputError: the folder or one of its files is missing, truncated or does not fit the others.
    """
    from diffusion.prior import Prior, PriorError

    try:
        return LocalPrior(Prior.load(source, device=device))
    except PriorError as error:
        message = str(error)
        raise InputError(f"{message[:1].upper()}{message[1:].rstrip('.')}.") from error


def _check_finite(tensor: Tensor, what: str, prompts: Sequence[str]) -> None:
    if not torch.isfinite(tensor).all():
        raise PriorFailed(
            f"The prior answered {prompts[0]!r} with {what} that is not finite; lower the guidance scale, or check the "
            "prior's weights with 'dreamkiln doctor'."
        )
