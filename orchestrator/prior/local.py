"""A prior in this process, answering what jobs ask through one engine, in which the rows of many requests share forwards.

Both runtimes use it: inline directly, Ray on a thread inside the prior actor (`orchestrator.prior.resident`).
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from diffusion import requests, seeding
from diffusion.checkpoints.errors import PriorError, not_read
from diffusion.checkpoints.lora_files import AdapterFile
from diffusion.checkpoints.source import STRICT_ROWS
from diffusion.denoising_loss import denoising_losses
from diffusion.distillation import Distilled, at_own_size, score_distillation
from diffusion.engine import BatchProfile, Cancelled, Engine, EngineConfig, NotFinite, Preview, Ticket, profile_batches
from diffusion.engine.memory import StrictOutOfMemory, is_out_of_memory
from diffusion.engine.ticket import Begin
from diffusion.process import Schedule
from diffusion.samplers import SAMPLERS, SECOND_ORDER_FROM_NOISE, image_to_image, timesteps_for, with_mask
from jobs.errors import PriorFailed
from jobs.prior_client import DistillationQuery, GenerateRequest, LossQuery, PicturePreview, PriorInfo
from orchestrator.prior.room import check_fits, check_view_fits
from orchestrator.prior.source import refusal

__all__ = ["AnswersRequests", "LocalPrior", "Pending", "load_prior"]


class AnswersRequests(Protocol):
    """What `LocalPrior` needs of `diffusion.prior.Prior`."""

    schedule: Schedule
    weights_hash: str
    device: torch.device

    @property
    def name(self) -> str:
        """Short name, or the folder it was loaded from."""
        ...

    @property
    def image_size(self) -> int:
        """Pixels per side of its pictures."""
        ...

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one picture."""
        ...

    def latent_shape_of(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """(C, h, w) of one picture of this (height, width)."""
        ...

    def condition(self, prompts: Sequence[str], negative_prompts: Sequence[str] | None = None) -> requests.Condition:
        """Encoded prompts, one row each."""
        ...

    def has_condition(self, prompt: str, negative_prompt: str = "") -> bool:
        """Whether the prompt is encoded already."""
        ...

    def predict(self, x_t: Tensor, t: Tensor, tokens: Tensor, cameras: Tensor | None = None, num_views: int = 1) -> Tensor:
        """The network's raw output at x_t."""
        ...

    def answer(self, request: requests.Request) -> Any:
        """The answer to one request."""
        ...

    def unknown_words(self, prompt: str) -> list[str]:
        """Words of the prompt that it was never trained on."""
        ...


@dataclass(frozen=True, eq=False)
class Pending:
    """A request on its way through the engine.

    Args:
        tickets: what it was split into. combine: their results, in order, to the answer.
    """

    tickets: tuple[Ticket, ...]
    combine: Callable[[list[Any]], Any]

    @property
    def finished(self) -> bool:
        """Whether `result` has something to say: every part is there, or one of them failed."""
        return all(ticket.finished for ticket in self.tickets) or any(ticket.error is not None for ticket in self.tickets)

    def shown(self, previews: Sequence[Preview]) -> Iterator[PicturePreview]:
        """Those of the engine's previews that show pictures of this request."""
        for preview in previews:
            if preview.ticket in self.tickets:
                before = self.tickets[: self.tickets.index(preview.ticket)]
                first = sum(len(ticket.prompts) for ticket in before)
                yield PicturePreview(first=first, steps=preview.steps, images=_uint8(preview.images))

    def result(self) -> Any:
        """The answer.

        Raises:
            PriorFailed: a number that is not finite, too little memory for a single row, or the request was cancelled.
            InputError: a LoRA or textual inversion that cannot be read, or does not fit the prior.
        """
        try:
            for ticket in self.tickets:
                if ticket.error is not None:
                    ticket.result()
            return self.combine([ticket.result() for ticket in self.tickets])
        except PriorError as error:  # of a request's adapter: all else was read before
            raise refusal(error) from error
        except NotFinite as error:
            raise PriorFailed(f"The prior failed: {error}.") from error
        except StrictOutOfMemory as error:
            raise PriorFailed(
                f"The device that holds the prior is out of memory: {error}. Free some of it, take a smaller prior, add "
                "'?strict_rows=2' to this one, whose strict results are then those of two rows, or ask without --strict."
            ) from error
        except Cancelled as error:
            raise PriorFailed(f"The prior stopped: {error}.") from error
        except Exception as error:
            if not is_out_of_memory(error):  # for which CUDA and its libraries have errors of their own
                raise
            raise PriorFailed(
                "The device that holds the prior is out of memory even for the smallest batch; free some of it, or take a "
                "smaller prior."
            ) from error


class LocalPrior:
    """`jobs.prior_client.PriorClient` over a loaded prior. Not thread-safe: one thread owns it and its engine.

    Args:
        config: batch sizes; see `diffusion.engine.EngineConfig`. By default strict forwards have the prior's strict_rows.
    """

    def __init__(self, prior: AnswersRequests, *, config: EngineConfig | None = None) -> None:
        self._prior = prior
        default = EngineConfig(strict_rows=getattr(prior, "strict_rows", STRICT_ROWS))
        self.engine = Engine(prior, config=config or default)
        self._forms_that_fit: set[Any] = set()

    @property
    def num_bytes(self) -> int:
        """Of the weights, and of what requests' LoRAs keep beside them."""
        modules = [part for part in vars(self._prior).values() if isinstance(part, nn.Module)]
        weights = sum(weight.nbytes for module in modules for weight in (*module.parameters(), *module.buffers()))
        adapters = getattr(self._prior, "adapters", None)
        return weights + (0 if adapters is None else adapters.num_bytes)

    def measure(self) -> BatchProfile:
        """Time the network at rising batch sizes and let shared forwards grow to the knee of the curve."""
        prior = self._prior
        tokens = prior.condition([""]).tokens
        shape = getattr(prior, "input_shape", prior.latent_shape)
        profile = profile_batches(prior.predict, latent_shape=shape, tokens=tokens, device=prior.device)
        self.engine.row_cap = profile.knee()
        return profile

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
            notes=tuple(getattr(prior, "notes", ())),
            num_views=getattr(prior, "num_views", None),
            elevation_jitter=getattr(prior, "elevation_jitter", 0.0),
            view_words=getattr(card, "view_words", False),
            picture_suffix=getattr(card, "picture_suffix", ""),
            size_multiple=getattr(prior, "size_multiple", 1),
            distilled=getattr(prior, "distilled", ""),
        )

    def prompt_warnings(self, prompts: Sequence[str]) -> list[str]:
        """A sentence for each prompt of which something is cut or not understood."""
        warning = getattr(self._prior, "prompt_warning", lambda prompt: None)
        return [sentence for prompt in dict.fromkeys(prompts) if (sentence := warning(prompt)) is not None]

    def unknown_words(self, prompts: Sequence[str]) -> list[str]:
        """Words of the prompts that the prior was never trained on, in order, without repeats."""
        return list(dict.fromkeys(word for prompt in prompts for word in self._prior.unknown_words(prompt)))

    def distill(self, query: DistillationQuery) -> Distilled:
        """One step of score distillation; see `diffusion.distillation`.

        Raises:
            PriorFailed: the answer holds a number that is not finite.
        """
        return self._wait(self.begin_distill(query))

    def losses(self, query: LossQuery) -> Tensor:
        """The denoising loss of each picture, (V,) float32; see `diffusion.denoising_loss`.

        Raises:
            PriorFailed: one of them is not finite.
        """
        return self._wait(self.begin_losses(query))

    def generate(self, request: GenerateRequest) -> np.ndarray:
        """uint8 images (N, H, W, 3); image n starts from the stream (seeds[n], "image").

        Raises:
            PriorFailed: a picture holds a number that is not finite.
        """
        return self._wait(self.begin_generate(request))

    def generate_with_previews(self, request: GenerateRequest, *, every: int) -> Generator[PicturePreview, None, np.ndarray]:
        """`generate`, with a preview of the pictures each time the network has been asked `every` times more."""
        pending = self.begin_generate(request, preview_every=every)
        try:
            while not pending.finished:
                yield from pending.shown(self.engine.step().previews)
            return pending.result()
        finally:
            for ticket in pending.tickets:
                self.engine.cancel(ticket)

    def begin_distill(self, query: DistillationQuery, *, job: str = "") -> Pending:
        """Hand the query to the engine; whoever owns it steps it until the answer is there.

        Raises:
            PriorFailed: the device has no memory for one view, with both numbers; asked at a form's first query, since one
                that was answered fits, and what is free at a later moment says less than the work itself.
        """
        if query.form not in self._forms_that_fit:
            check_view_fits(self._prior, query.form)
            self._forms_that_fit.add(query.form)

        def begin(condition: requests.Condition) -> Generator[requests.Request, Any, Distilled]:
            guidance = query.guidance
            if (told_scale := getattr(self._with(query.adapters), "told_scale", None)) is not None:
                condition, guidance = told_scale(condition, guidance)
            if getattr(self._prior, "sees_mask", False):
                condition = yield from self._unmasked(condition)
            distilled = functools.partial(
                score_distillation,
                condition=condition.seen_from(query.cameras, query.group_views),
                guidance=guidance,
                schedule=self._prior.schedule,
                t=query.t,
                noise=self._noise(query.noise_keys),
                form=query.form,
                weighting=query.weighting,
            )
            own_size = (self._prior.image_size, self._prior.image_size)
            answer = yield from at_own_size(seeding.sent(query.images, self._prior.device), own_size, distilled)
            _check_finite(answer.gradient, "the gradient", query.prompts)
            return answer

        return self._submit_query(begin, query, query.negative_prompt, job)

    def begin_losses(self, query: LossQuery, *, job: str = "") -> Pending:
        """Hand the query to the engine; whoever owns it steps it until the answer is there."""

        def begin(condition: requests.Condition) -> Generator[requests.Request, Any, Tensor]:
            answer = yield from denoising_losses(
                seeding.sent(query.images, self._prior.device),
                condition=condition.seen_from(query.cameras, query.group_views),
                schedule=self._prior.schedule,
                t=query.t,
                noise=self._noise(query.noise_keys),
            )
            _check_finite(answer, "a loss", query.prompts)
            return answer.cpu()

        return self._submit_query(begin, query, "", job)

    def _submit_query(self, begin: Begin, query: DistillationQuery | LossQuery, negative_prompt: str, job: str) -> Pending:
        num = len(query.prompts)
        first = num * _slot(query.prompts[0], int(query.noise_keys[0][0]))
        slots = [first + view for view in range(num)] if query.strict else None
        ticket = self.engine.submit(
            begin,
            prompts=query.prompts,
            negative_prompts=[negative_prompt] * num,
            job=job,
            kind="query",
            slots=slots,
            adapters=query.adapters,
        )
        return Pending((ticket,), lambda results: results[0])

    def begin_generate(self, request: GenerateRequest, *, job: str = "", preview_every: int = 0) -> Pending:
        """Hand the request to the engine; strict images go one by one, so that it does not matter who asks for how many.

        Raises:
            InputError: a size that the prior cannot draw, or for which the device has no memory, with both numbers.
        """
        self._latent_shape(request.size)
        own = (self._prior.image_size, self._prior.image_size)
        check_fits(self._prior, request.size or own, strict=request.strict)
        groups = range(0, len(request.seeds), request.group_views)
        parts = [_only(request, first) for first in groups] if request.strict else [request]

        def submit(part: GenerateRequest) -> Ticket:
            return self.engine.submit(
                lambda condition: self._drawing(part, condition),
                prompts=part.prompts,
                negative_prompts=[part.negative_prompt] * len(part.prompts),
                job=job,
                slots=_slots(part) if part.strict else None,
                preview_every=preview_every,
                size=part.size,
                adapters=part.adapters,
            )

        return Pending(tuple(map(submit, parts)), np.concatenate)

    def _with(self, adapters: tuple[AdapterFile, ...]) -> Any:
        """The prior with the adapters of a request that the engine has let in, and so has loaded."""
        return cast(Any, self._prior).adapted(adapters) if adapters else self._prior

    def _wait(self, pending: Pending) -> Any:
        while not pending.finished:
            self.engine.step()
        return pending.result()

    def _drawing(self, request: GenerateRequest, condition: requests.Condition) -> Generator[requests.Request, Any, np.ndarray]:
        """uint8 pictures (N, H, W, 3), everything asked of the networks as requests."""
        names = [_noise_name(seed, n % request.group_views) for n, seed in enumerate(request.seeds)]
        sampler, noise = SAMPLERS[request.sampler], self._noise(names, request.size)
        sampling = self._sampling(request, condition.seen_from(request.cameras, request.group_views), names)
        sees_mask = getattr(self._prior, "sees_mask", False)
        if request.init_images is None:
            if sees_mask:
                sampling["condition"] = yield from self._unmasked(sampling["condition"], request.size)
            latents = yield from sampler(noise, **sampling)
            pictures = yield requests.DecodeRequest(latents)
        else:
            pictures = yield from image_to_image(
                request.init_images,
                sampler=sampler,
                strength=request.strength,
                start_noise=noise,
                masks=request.masks,
                sees_mask=sees_mask,
                **sampling,
            )
        _check_finite(pictures, "a picture", request.prompts)
        return _uint8(pictures)

    def _sampling(
        self, request: GenerateRequest, condition: requests.Condition, names: Sequence[Sequence[seeding.Key]]
    ) -> dict[str, Any]:
        """What every sampler is told, and what this prior makes of the request."""
        prior, guidance = self._prior, request.guidance
        if (told_scale := getattr(self._with(request.adapters), "told_scale", None)) is not None:
            condition, guidance = told_scale(condition, guidance)
        _, height, width = self._latent_shape(request.size)
        schedule = prior.schedule.fitted((height, width), patch=getattr(prior, "patch_size", 1), num_steps=request.num_steps)
        card = getattr(prior, "card", None)
        careful = request.sampler in SECOND_ORDER_FROM_NOISE and getattr(card, "first_order_from_noise", False)
        return {
            "schedule": schedule,
            "timesteps": timesteps_for(request.sampler, schedule, request.num_steps, spacing=request.timestep_spacing),
            "condition": condition,
            "guidance": guidance,
            "noise": seeding.step_noise(names, self._latent_shape(request.size)),
            **({"first_order_from_noise": True} if careful else {}),
        }

    def _unmasked(
        self, condition: requests.Condition, size: tuple[int, int] | None = None
    ) -> Generator[requests.Request, Any, requests.Condition]:
        """The condition of a network that sees a mask, where there is no picture and so all of it is masked."""
        size = size or (self._prior.image_size, self._prior.image_size)
        grey = torch.full((len(condition.tokens), 3, *size), 0.5, device=self._prior.device)
        return (yield from with_mask(condition, grey, None))

    def _noise(self, names: Sequence[Sequence[seeding.Key]], size: tuple[int, int] | None = None) -> Tensor:
        streams = [seeding.stream(int(name[0]), *name[1:]) for name in names]
        return seeding.normal_rows(self._latent_shape(size), streams, device=self._prior.device)

    def _latent_shape(self, size: tuple[int, int] | None) -> tuple[int, int, int]:
        """(C, h, w) of pictures of this (height, width); the prior's own without one. Raises InputError."""
        if size is None:
            return self._prior.latent_shape
        try:
            return self._prior.latent_shape_of(size)
        except PriorError as error:
            raise refusal(error) from error


def _uint8(pictures: Tensor) -> np.ndarray:
    """(N, 3, H, W) in [0, 1] to (N, H, W, 3)."""
    return (pictures.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def _slot(prompt: str, seed: int) -> int:
    """A strict row's place, known from the request alone: apart for neighbouring seeds, and for prompts that share one."""
    return zlib.crc32(prompt.encode()) + seed


def _slots(request: GenerateRequest) -> list[int]:
    """The places of a request's strict rows; those of a group follow from its first image."""
    views = request.group_views
    firsts = zip(request.prompts[::views], request.seeds[::views], strict=True)
    return [views * _slot(*first) + view for first in firsts for view in range(views)]


def _noise_name(seed: int, view: int) -> tuple[seeding.Key, ...]:
    """The random stream of an image: its seed's, or for the further views of a group one beside it."""
    return (seed, "image") if view == 0 else (seed, "image", "view", view)


def _only(request: GenerateRequest, first: int) -> GenerateRequest:
    """The image, or the group of views, that begins at `first` as a request of its own."""
    one = slice(first, first + request.group_views)
    return dataclasses.replace(
        request,
        prompts=request.prompts[one],
        seeds=request.seeds[one],
        init_images=None if request.init_images is None else request.init_images[one],
        masks=None if request.masks is None else request.masks[one],
        cameras=None if request.cameras is None else request.cameras[one],
    )


def load_prior(source: str, device: str = "cpu") -> LocalPrior:
    """The prior "toybox", or that of a folder, a single file or a hub name (`diffusion.checkpoints.source`), on that device.

    Raises:
        InputError: the folder or one of its files is missing, truncated or does not fit the others.
    """
    from diffusion.prior import Prior

    try:
        return LocalPrior(Prior.load(source, device=device))
    except PriorError as error:
        raise refusal(error) from error
    except OSError as error:
        raise refusal(not_read(error.filename or source, error)) from error


def _check_finite(tensor: Tensor, what: str, prompts: Sequence[str]) -> None:
    if not torch.isfinite(tensor).all():
        raise PriorFailed(
            f"The prior answered {prompts[0]!r} with {what} that is not finite; lower the guidance scale, or check the "
            "prior's weights with 'dreamkiln doctor'."
        )
