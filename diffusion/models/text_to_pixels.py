"""What GLIDE's models share: pictures in pixels, denoised under a caption, with extra input channels in some (2112.10741).

Text enters twice, as in section 3.1: its states are attended to at every level with attention, and pooled they are added
to the timestep's embedding. For classifier-free guidance (section 2.3) some captions are replaced by the empty one in
training.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusion.classifier_guidance import Guide, check_same_schedule, gradient_of, guided_by
from diffusion.errors import DiffusionError
from diffusion.guidance import classifier_free
from diffusion.models.base import Batch, Model, SampleRequest, described, pictures_for
from diffusion.models.noisy_clip import NoisyClip
from diffusion.models.sampling import Predict, draw
from diffusion.models.schedules import GLIDE
from diffusion.networks.build import with_channels
from diffusion.networks.pixel_unet import PixelUNet, PixelUNetConfig
from diffusion.networks.projected_context import ProjectedContext
from diffusion.parameterisation import Prediction, training_target
from diffusion.schedule import NoiseSchedule
from diffusion.seeding import normal, uniform
from diffusion.text.frozen_tower import FrozenTower
from diffusion.training.figures import by_noise


@dataclass(frozen=True)
class TextToPixelsConfig:
    """Sizes of the network (its extra input channels and its text width are the model's to add), schedule, dropout.

    Args:
        text_dropout: share of the captions that training replaces by the empty one (section 3.1: 20 %).
    """

    network: PixelUNetConfig = field(default_factory=PixelUNetConfig)
    schedule: NoiseSchedule = GLIDE
    text_dropout: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.text_dropout <= 1:
            raise DiffusionError.explained(f"text_dropout is {self.text_dropout}", expected="0 to 1", fix="use 0.1 to 0.2")


class TextToPixels(Model):
    """A PixelUNet that reads [x_t, extra channels], t and a caption."""

    Config = TextToPixelsConfig
    num_extra_channels: ClassVar[int]

    def __init__(self, config: TextToPixelsConfig) -> None:
        super().__init__(config)
        self.text = FrozenTower()
        channels = config.network.in_channels
        sizes = with_channels(config.network, inputs=channels + self.num_extra_channels, outputs=channels)
        self.network = PixelUNet(replace(sizes, context_dim=self.text.width))  # type: ignore[type-var,arg-type]

    @property
    def condition(self) -> Literal["captions"]:
        """A sample may be conditioned on a caption."""
        return "captions"

    @abstractmethod
    def training_extra(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """The extra channels of a training batch, (B, num_extra_channels, H, W)."""

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """E || target - network(x_t, t, caption, extra) ||^2 at uniform timesteps (2006.11239 eq. 14).

        Raises:
            DiffusionError: a batch without captions.
        """
        if batch.captions is None:
            raise DiffusionError.explained("the batch has no captions", expected="one for every picture", fix="use data=toybox")
        x0, schedule, device = batch.x, self.config.schedule, batch.x.device
        t = torch.randint(schedule.num_train_timesteps, (len(batch),), generator=generator).to(device)
        eps = normal(x0.shape, generator, device=device)
        dropped = (uniform((len(batch),), generator) < self.config.text_dropout).tolist()
        captions = ["" if drop else caption for caption, drop in zip(batch.captions, dropped, strict=True)]
        extra = self.training_extra(batch, generator)
        output = self.output(schedule.add_noise(x0, eps, t), t, self.text(captions).tokens, extra)
        target = training_target(x0, eps, schedule.alpha(t), schedule.sigma(t), schedule.prediction_type)
        squared = F.mse_loss(output.float(), target, reduction="none").mean(dim=(1, 2, 3))
        return squared.mean(), by_noise(squared.detach(), t, schedule.num_train_timesteps)

    def output(self, x_t: Tensor, t: Tensor, text: Tensor | ProjectedContext, extra: Tensor) -> Tensor:
        """What the network says, of the schedule's prediction_type.

        Args:
            x_t: (B, C, H, W). t: (B,). text: states (B, S, D), or what the network's `project_context` made of them.
            extra: (B, num_extra_channels, H, W).
        """
        return self.network(torch.cat([x_t, extra.to(x_t.dtype)], dim=1), t, context=text)

    def predictor(self, prompts: Sequence[str], scale: float, extra: Tensor, negative_prompt: str = "") -> Predict:
        """(x_t, t) -> the prediction with classifier-free guidance uncond + s (cond - uncond), one forward for both halves.

        Args:
            prompts: B captions. scale: s. extra: (B, num_extra_channels, H, W).
            negative_prompt: what takes the empty caption's place.
        """
        schedule, cond = self.config.schedule, self.text(prompts).tokens
        halves = 1 if scale == 1 else 2
        states = cond if halves == 1 else torch.cat([self.text([negative_prompt] * len(prompts)).tokens, cond])
        with torch.no_grad():
            text = self.network.project_context(states)
        extra = extra.to(self.device).repeat(halves, 1, 1, 1)

        def predict(x_t: Tensor, t: Tensor) -> Prediction:
            said = self.output(x_t.repeat(halves, 1, 1, 1), t.repeat(halves), text, extra)
            guided = said if halves == 1 else classifier_free(said[: len(x_t)], said[len(x_t) :], scale)
            return Prediction.from_output(guided, x_t, schedule.alpha(t), schedule.sigma(t), schedule.prediction_type)

        return predict

    def drawn(
        self,
        request: SampleRequest,
        *,
        extra: Tensor,
        guidance: Mapping[str, Any],
        known: "KnownPart | None" = None,
        sampler: str,
        num_steps: int,
    ) -> Tensor:
        """Pictures (B, C, H, W) in [-1, 1] for a request whose options are the sampler's alone.

        Args:
            extra: (B, num_extra_channels, H, W). guidance: values of GUIDANCE_OPTIONS.
            known: pixels that each prediction is overwritten with, and the result.
            sampler, num_steps: the model's own, where the request names none.
        """
        prompts, schedule = captions_of(request), self.config.schedule
        predict = self.predictor(prompts, request.guidance_scale, extra, guidance["negative_prompt"])
        pictures = draw(
            request,
            shape=self.shape,
            schedule=schedule,
            predict=predict if known is None else known.over(predict),
            sampler=sampler,
            num_steps=num_steps,
            device=self.device,
            defaults={"clip_x0": True},
            guide=_clip_guide(guidance["clip"], guidance["clip_scale"], prompts, self),
        ).clamp(-1, 1)
        return pictures if known is None else torch.lerp(pictures, known.picture.to(pictures), known.mask.to(pictures))


GUIDANCE_OPTIONS: Mapping[str, Any] = {"negative_prompt": "", "clip": None, "clip_scale": 3.0}
"""Options of every sampling here: what takes the empty caption's place; a `NoisyClip` whose gradient guides, or None; and
its s (section 2.4), 3 in the authors' notebook."""

PICTURE_OPTIONS: Mapping[str, Any] = {"image": None, "mask": None}
"""A picture (C, H, W) in [-1, 1] and the mask (1, H, W) of it, 1 where it is kept; each may come one a sample."""


@dataclass(frozen=True, eq=False)
class KnownPart:
    """Pictures (B, C, H, W) in [-1, 1] of which the pixels where mask (B, 1, H, W) is 1 are known."""

    picture: Tensor
    mask: Tensor

    @classmethod
    def of(cls, options: Mapping[str, Any], shape: tuple[int, ...], count: int) -> "KnownPart | None":
        """From the values of PICTURE_OPTIONS, for `count` samples of `shape`; None where neither is given.

        Raises:
            DiffusionError: one without the other, a wrong shape, or a mask that is not in [0, 1].
        """
        if options["image"] is None and options["mask"] is None:
            return None
        if options["image"] is None or options["mask"] is None:
            given, absent = ("mask", "image") if options["image"] is None else ("image", "mask")
            raise DiffusionError.explained(
                f"options.{given} is given without options.{absent}", expected="both or neither", fix=f"add options.{absent}"
            )
        mask = pictures_for(options["mask"], (1, *shape[1:]), count, option="mask")
        if not bool(((mask >= 0) & (mask <= 1)).all()):
            raise DiffusionError.explained(
                f"options.mask runs from {float(mask.min()):g} to {float(mask.max()):g}",
                expected="0 (to be drawn) to 1 (kept)",
                fix="scale it",
            )
        return cls(pictures_for(options["image"], shape, count, option="image"), mask)

    def over(self, predict: Predict) -> Predict:
        """Predictions whose x0 is the picture where it is known (`denoised_fn` of the authors' notebook)."""

        def overwritten(x_t: Tensor, t: Tensor) -> Prediction:
            answer = predict(x_t, t)
            x0 = torch.lerp(answer.x0, self.picture.to(x_t), self.mask.to(x_t).expand_as(x_t))
            return Prediction.from_output(x0, x_t, answer.alpha, answer.sigma, "sample")

        return overwritten


def split_options(request: SampleRequest, own: Mapping[str, Any]) -> tuple[dict[str, Any], SampleRequest]:
    """The values of a model's own options, and the request with the others, which are its sampler's.

    Raises:
        DiffusionError: a value of another type than its default.
    """
    mine = {name: value for name, value in request.options.items() if name in own}
    rest = {name: value for name, value in request.options.items() if name not in own}
    return replace(request, options=mine).options_over(own), replace(request, options=rest)


def _clip_guide(clip: Any, scale: float, prompts: Sequence[str], model: TextToPixels) -> Guide | None:
    """CLIP guidance towards the prompts; None without a CLIP."""
    if clip is None:
        return None
    if not isinstance(clip, NoisyClip):
        raise DiffusionError.explained(
            f"options.clip is {described(clip)}",
            expected="a noisy_clip",
            fix="give the folder of one, trained with objective=noisy_clip",
        )
    check_same_schedule(clip.config.schedule, model.config.schedule, name="noisy_clip")
    if clip.shape != model.shape:
        raise DiffusionError.explained(
            f"the noisy_clip looks at pictures {clip.shape}",
            expected=f"the model's {model.shape}",
            fix="train it with network.sample_size set to the model's",
        )
    return guided_by(gradient_of(clip.to(model.device).log_prob(prompts)), scale=scale, schedule=model.config.schedule)


def captions_of(request: SampleRequest) -> tuple[str, ...]:
    """The prompts of a request; empty ones, for an unconditional picture, where it has none.

    Raises:
        DiffusionError: labels, or guidance without prompts.
    """
    if request.labels is not None:
        raise DiffusionError.explained(
            "this model was given labels", expected="prompts or nothing", fix="use prompt=...", why="it reads text"
        )
    if request.prompts is None and request.guidance_scale != 1:
        raise DiffusionError.explained(
            f"the guidance scale is {request.guidance_scale:g} without a prompt",
            expected="1",
            fix="give a prompt or leave the scale out",
        )
    return request.prompts or ("",) * len(request.seeds)
