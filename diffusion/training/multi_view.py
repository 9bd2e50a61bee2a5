"""Denoising objective of a network that is told its cameras: groups of views of one object, and single pictures.

A prior that has learned pictures learns where the camera is, as MVDream does (arXiv:2308.16512, section 3.2: mostly groups,
some single pictures). What decides whether it does is the noise: left and right are told apart at high noise only, where
the recipe of single pictures has few timesteps.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.networks.multi_view import MultiViewConfig, is_multi_view_key
from diffusion.networks.unet import UNet2DCondition
from diffusion.schedule import NoiseSchedule
from diffusion.seeding import normal, uniform
from diffusion.text.clip import contrastive_loss, end_of_text
from diffusion.training.denoiser import TEXT_DROPOUT, TextConditionedDenoiser, stratified_timesteps
from diffusion.training.figures import by_noise
from diffusion.training.loop import Loss

GROUP_SHARE = 0.7
"""Share of the steps that show groups; the others show single pictures."""

CAMERALESS_SHARE = 0.5
"""Share of the single pictures that come with view words instead of a camera: 15 % of all pictures."""

HIGH_SHARE, HIGH_FROM = 0.6, 0.6
"""So many timesteps are uniform above this part of the schedule; the others as for single pictures."""

COMMON_SHARE = 0.5
"""Share of the group steps in which the views of a group have one timestep."""

CONTRASTIVE_WEIGHT = 0.1


@dataclass(frozen=True)
class ViewData:
    """Pictures of objects, each from the same number of views. A picture's index is object * num_views + view.

    Args:
        num_objects, num_views: how many there are.
        latents: picture indices (B,) -> scaled latents (B, C, h, w).
        cameras: (N, 16), see `diffusion.networks.multi_view`.
        prompt_ids: (num_objects, S) token ids without view words.
        caption_ids, mirrored_ids: (N, S) with view words, and with those of the other side.
        empty_ids: (S,) of the empty prompt.
        images: picture indices (B,) -> pictures (B, 3, H, W) in [0, 1].
    """

    num_objects: int
    num_views: int
    latents: Callable[[Tensor], Tensor]
    cameras: Tensor
    prompt_ids: Tensor
    caption_ids: Tensor
    mirrored_ids: Tensor
    empty_ids: Tensor
    images: Callable[[Tensor], Tensor]


@torch.no_grad()
def with_views(unet: UNet2DCondition, config: MultiViewConfig, *, pooled: Tensor | None = None) -> UNet2DCondition:
    """A network with the weights of `unet` that takes cameras and groups, and answers as `unet` does until it is trained.

    The camera's embedding begins at zero; the position features begin small, because what is zero everywhere learns late.

    Args:
        pooled: (B, temb_dim), what the text adds to the time embedding, of many prompts (`UNet2DCondition.embed_context`).
            If given, the branch that computes it is dropped, and its mean becomes part of the time embedding.
    """
    addition = unet.config.addition_embed_type if pooled is None else None
    grown = UNet2DCondition(replace(unet.config, multi_view=config, addition_embed_type=addition))
    kept = {name: w for name, w in unet.state_dict().items() if pooled is None or not name.startswith("add_embedding.")}
    added = set(grown.load_state_dict(kept, strict=False).missing_keys)
    assert all(map(is_multi_view_key, added)), added
    if pooled is not None:
        grown.time_embedding.linear_2.bias.add_(pooled.mean(dim=0))
    for name, parameter in grown.named_parameters():
        if name.startswith("camera_embed.2."):
            nn.init.zeros_(parameter)
        elif "to_position" in name:
            nn.init.normal_(parameter, std=0.02) if parameter.ndim == 2 else nn.init.zeros_(parameter)
    return grown


def timesteps_of_views(batch: int, num_views: int, schedule: NoiseSchedule, generator: torch.Generator) -> Tensor:
    """(B,) int64 timesteps, most of them high; in `COMMON_SHARE` of the calls one for all views of a group."""
    num = schedule.num_train_timesteps
    spread = stratified_timesteps(batch, num, generator)
    high = (HIGH_FROM + (1 - HIGH_FROM) * uniform((batch,), generator)) * num
    t = torch.where(uniform((batch,), generator) < HIGH_SHARE, high.long().clamp(max=num - 1), spread)
    if num_views > 1 and float(uniform((), generator)) < COMMON_SHARE:
        t = t[::num_views].repeat_interleave(num_views)
    return t


def multi_view_loss(denoiser: TextConditionedDenoiser, schedule: NoiseSchedule, data: ViewData) -> Loss:
    """E || v - v_theta(x_t, t, text, cameras) ||^2 over groups in `GROUP_SHARE` of the steps, over single pictures else.

    Rows are objects. A step of groups takes as many of them as make the same number of pictures, and their prompts carry
    no view words. Of the single pictures half have a camera, half a caption with view words; those steps also hold the
    text tower to telling a caption from the one of the other side (`contrastive_loss`).
    """

    def loss(rows: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        if float(uniform((), generator)) < GROUP_SHARE:
            return _groups(denoiser, schedule, data, rows, generator)
        return _singles(denoiser, schedule, data, rows, generator)

    return loss


def _groups(
    denoiser: TextConditionedDenoiser, schedule: NoiseSchedule, data: ViewData, rows: Tensor, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    objects, views = rows[: max(1, len(rows) // data.num_views)], data.num_views
    pictures = (objects[:, None] * views + torch.arange(views)).flatten()
    dropped = uniform((len(objects),), generator) < TEXT_DROPOUT
    states = denoiser.clip.text(torch.cat((data.prompt_ids[objects].long(), data.empty_ids[None])))
    context = torch.where(dropped[:, None, None].to(states.device), states[-1:], states[:-1]).repeat_interleave(views, 0)
    squared, t = _errors(denoiser, schedule, data, pictures, context, data.cameras[pictures], views, generator)
    return squared.mean(), by_noise(squared.detach(), t, schedule.num_train_timesteps, prefix="groups_")


def _singles(
    denoiser: TextConditionedDenoiser, schedule: NoiseSchedule, data: ViewData, rows: Tensor, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    pictures = rows * data.num_views + torch.randint(data.num_views, (len(rows),), generator=generator)
    worded = uniform((len(rows),), generator) < CAMERALESS_SHARE
    dropped = uniform((len(rows),), generator) < TEXT_DROPOUT
    captions = data.caption_ids[pictures].long()
    prompts, mirrored = data.prompt_ids[rows].long(), data.mirrored_ids[pictures].long()
    states = denoiser.clip.text(torch.cat((captions, prompts, mirrored, data.empty_ids[None])))
    with_words, without, other_side, empty = states.split([len(rows)] * 3 + [1])
    device = states.device
    context = torch.where(worded[:, None, None].to(device), with_words, without)
    context = torch.where(dropped[:, None, None].to(device), empty, context)
    cameras = torch.where(worded[:, None], 0.0, data.cameras[pictures])
    squared, t = _errors(denoiser, schedule, data, pictures, context, cameras, 1, generator)
    contrast = contrastive_loss(
        denoiser.clip.encode_image(data.images(pictures)),
        denoiser.clip.project_text(end_of_text(with_words, captions)),
        denoiser.clip.logit_scale,
        distractors_DE=denoiser.clip.project_text(end_of_text(other_side, mirrored)),
    )
    figures = by_noise(squared.detach(), t, schedule.num_train_timesteps, prefix="single_")
    return squared.mean() + CONTRASTIVE_WEIGHT * contrast, figures | {"contrast": contrast.item()}


def _errors(
    denoiser: TextConditionedDenoiser,
    schedule: NoiseSchedule,
    data: ViewData,
    pictures: Tensor,
    context: Tensor,
    cameras: Tensor,
    num_views: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Squared errors (B,) of the predicted v, and the timesteps that were drawn."""
    x0 = data.latents(pictures)
    t = timesteps_of_views(len(pictures), num_views, schedule, generator).to(x0.device)
    eps = normal(x0.shape, generator, device=x0.device)
    return _squared(denoiser.unet, schedule, x0, eps, t, context, cameras.to(x0.device), num_views), t


def _squared(
    unet: UNet2DCondition,
    schedule: NoiseSchedule,
    x0: Tensor,
    eps: Tensor,
    t: Tensor,
    context: Tensor,
    cameras: Tensor,
    num_views: int,
) -> Tensor:
    alpha, sigma = (w.to(x0.dtype)[:, None, None, None] for w in (schedule.alpha(t), schedule.sigma(t)))
    output = unet(alpha * x0 + sigma * eps, t, context, cameras_BM=cameras, num_views=num_views).float()
    return F.mse_loss(output, alpha * eps - sigma * x0, reduction="none").mean(dim=(1, 2, 3))


@torch.no_grad()
def denoising_errors(
    denoiser: TextConditionedDenoiser,
    schedule: NoiseSchedule,
    *,
    latents: Tensor,
    ids: Tensor,
    cameras: Tensor,
    level: float,
    num_views: int,
    generator: torch.Generator,
    batch_size: int = 96,
) -> Tensor:
    """The loss of each picture at one noise level: the likelier a text and a camera, the lower (Li et al. 2023, 2303.16203).

    Args:
        latents: (B, C, h, w). ids: (B, S) token ids. cameras: (B, 16), zeros for none.
        level: of the noise, as a fraction of the schedule. num_views: as in `UNet2DCondition.forward`.
        generator: of the noise; the same one for every text and camera that shall be compared.

    Returns:
        (B,) float32.
    """
    eps = normal(latents.shape, generator, device=latents.device)
    t = torch.full((len(latents),), int(level * schedule.num_train_timesteps), device=latents.device)
    errors = []
    for part in torch.arange(len(latents)).split(batch_size // num_views * num_views):
        context = denoiser.clip.text(ids[part])
        errors.append(_squared(denoiser.unet, schedule, latents[part], eps[part], t[part], context, cameras[part], num_views))
    return torch.cat(errors)
