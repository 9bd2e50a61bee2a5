"""A prior driven as a script would, one request after another: what the engine is measured against; and the requests."""

from __future__ import annotations

from typing import Any

import torch

from diffusion import requests
from diffusion.distillation import score_distillation
from diffusion.prior import Prior
from diffusion.requests import Guidance
from diffusion.samplers import SAMPLERS
from diffusion.seeding import normal_rows, stream
from jobs.prior_client import DistillationQuery, GenerateRequest

IMAGE_GUIDANCE = Guidance(scale=4.0, rescale=0.5)
QUERY_GUIDANCE = Guidance(scale=7.0, rescale=0.5, rescale_on="x0")
PROMPT = "a red mushroom with a white stem"


def images_request(seeds: range, *, num_steps: int, strict: bool = False) -> GenerateRequest:
    """The image job's next request."""
    return GenerateRequest(
        prompts=(PROMPT,) * len(seeds),
        seeds=tuple(seeds),
        num_steps=num_steps,
        sampler="ddim",
        guidance=IMAGE_GUIDANCE,
        strict=strict,
    )


def query_request(size: int, job: int, turn: int, *, views: int, strict: bool = False) -> DistillationQuery:
    """A 3D job's next query."""
    return DistillationQuery(
        images=normal_rows((3, size, size), [stream(job, "picture", view) for view in range(views)]).sigmoid(),
        prompts=(f"{PROMPT}, front view",) * views,
        t=(torch.arange(views) * 211 + turn * 37) % 900 + 50,
        noise_keys=tuple((job, "noise", turn, view) for view in range(views)),
        guidance=QUERY_GUIDANCE,
        strict=strict,
    )


class BarePrior:
    """A prior driven as a script would: each request alone, by the two-line driver; counts row-steps."""

    def __init__(self, prior: Prior) -> None:
        self._prior = prior
        self.rows = 0

    @torch.no_grad()
    def generate(self, request: GenerateRequest) -> Any:
        """One request of the image job."""
        return requests.run(self.drawing(request), self.answer)

    @torch.no_grad()
    def distill(self, query: DistillationQuery) -> Any:
        """One query of a 3D job."""
        prior = self._prior
        generator = score_distillation(
            query.images.to(prior.device),
            condition=prior.condition(query.prompts, [query.negative_prompt] * len(query.prompts)),
            guidance=query.guidance,
            schedule=prior.schedule,
            t=query.t,
            noise=self._noise(query.noise_keys),
        )
        return requests.run(generator, self.answer)

    def drawing(self, request: GenerateRequest) -> Any:
        """The generator of `draw`."""
        prior = self._prior
        latents = yield from SAMPLERS[request.sampler](
            self._noise([(seed, "image") for seed in request.seeds]),
            schedule=prior.schedule,
            timesteps=prior.schedule.timesteps(request.num_steps),
            condition=prior.condition(request.prompts, [request.negative_prompt] * len(request.prompts)),
            guidance=request.guidance,
        )
        return (yield requests.DecodeRequest(latents))

    def answer(self, request: Any) -> Any:
        """The prior's answer; both guidances double every row."""
        if isinstance(request, requests.DenoiseRequest):
            self.rows += 2 * len(request.x_t)
        return self._prior.answer(request)

    def _noise(self, names: Any) -> torch.Tensor:
        streams = [stream(int(name[0]), *name[1:]) for name in names]
        return normal_rows(self._prior.latent_shape, streams, device=self._prior.device)


def synchronise(prior: Prior) -> None:
    """Wait for what the device still has to do."""
    if prior.device.type == "cuda":
        torch.cuda.synchronize(prior.device)
