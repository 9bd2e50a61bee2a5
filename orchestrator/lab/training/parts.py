"""The parts in training: what module, what data, what objective."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from diffusion.networks.autoencoder_tiny import AutoencoderTiny
from diffusion.networks.layers import channels_last
from diffusion.networks.unet import UNet2DCondition
from diffusion.text.clip import Clip
from diffusion.text.tokenizer import empty_tokens
from diffusion.training.autoencoder import decoder_loss, reconstruction_loss
from diffusion.training.contrastive import clip_loss
from diffusion.training.denoiser import TextConditionedDenoiser, denoising_loss
from diffusion.training.loop import LoopConfig, TrainProgress, TrainState, load_average, train
from diffusion.training.multi_view import ViewData, multi_view_loss, with_views
from jobs.errors import InputError
from nerf3d.toybox.captions import mirrored, near_miss
from orchestrator.host.atomic import write_text
from orchestrator.lab.training import recipe
from orchestrator.lab.training.latents import all_latents
from orchestrator.lab.training.pictures import Pictures
from orchestrator.settings.overrides import diffusion_errors_are_input

CHECKPOINT = "checkpoint.pt"
Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Part:
    """One part on its way: its state and the steps still to come."""

    state: TrainState
    steps: Iterator[TrainProgress]


def load_or_create_state(module: nn.Module, folder: Path, config: LoopConfig) -> TrainState:
    """The state at the folder's checkpoint, or at the beginning.

    Raises:
        InputError: the checkpoint belongs to another optimiser or text tower.
    """
    state = TrainState(module, config)
    if (folder / CHECKPOINT).exists():
        with diffusion_errors_are_input():
            state.load(folder / CHECKPOINT)
    return state


def load_averaged(module: Module, folder: Path) -> Module:
    """A trained part with its averaged weights, frozen.

    Raises:
        InputError: the part has not been trained.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        raise InputError(f"{path} does not exist; train the {folder.name} first ('dreamkiln train {folder.name}').")
    load_average(module, path)
    return module.eval().requires_grad_(False)


def autoencoder(data: Pictures, root: Path, config: LoopConfig, device: str) -> Part:
    """The autoencoder, on pictures alone."""
    torch.manual_seed(config.seed)
    module = channels_last(AutoencoderTiny(recipe.AUTOENCODER)).to(device)
    state = load_or_create_state(module, root / "autoencoder", config)
    loss = reconstruction_loss(module, lambda rows: data.batch(rows).to(device))
    return Part(state, train(state, loss, config, num_rows=len(data), device=device))


def decoder(data: Pictures, root: Path, config: LoopConfig, device: str) -> Part:
    """The autoencoder's decoder, trained on with the encoder as it is and for the object's pixels."""
    torch.manual_seed(config.seed)
    whole = channels_last(trained_autoencoder(root)).to(device)
    whole.decoder.requires_grad_(True)
    state = load_or_create_state(whole.decoder, root / "decoder", config)
    loss = decoder_loss(whole, lambda rows: data.batch(rows).to(device), lambda rows: data.masks(rows).to(device))
    return Part(state, train(state, loss, config, num_rows=len(data), device=device))


def clip(data: Pictures, root: Path, config: LoopConfig, device: str) -> Part:
    """The towers of the prior, on captions with view words."""
    return _towers(recipe.clip_config, data, data.captions, root / "clip", config, device)


def judge(data: Pictures, root: Path, config: LoopConfig, device: str) -> Part:
    """The judge, on prompts without view words: it says what is in a picture, not from where.

    It learns to tell each prompt from the one with its colours exchanged, which R-Precision asks of it.
    """
    wrong = [near_miss(prompt) for prompt in data.prompts]
    return _towers(recipe.judge_config, data, data.prompts, root / "judge", config, device, distractors=wrong)


def _towers(
    sizes: Callable,
    data: Pictures,
    texts: list[str],
    folder: Path,
    config: LoopConfig,
    device: str,
    distractors: list[str] | None = None,
) -> Part:
    torch.manual_seed(config.seed)
    tokenizer = recipe.toybox_tokenizer()
    module = Clip(sizes(tokenizer)).to(device)
    state = load_or_create_state(module, folder, config)
    table = tokenizer(texts).to(torch.int16)
    wrong = tokenizer(distractors).to(torch.int16) if distractors else None
    loss = clip_loss(
        module,
        lambda rows: data.batch(rows).to(device),
        lambda rows, _: table[rows].long().to(device),
        None if wrong is None else lambda rows: wrong[rows].long().to(device),
    )
    return Part(state, train(state, loss, config, num_rows=len(data), device=device))


def joint_denoiser() -> TextConditionedDenoiser:
    """The UNet and the towers, untrained."""
    unet = channels_last(UNet2DCondition(recipe.UNET))
    return TextConditionedDenoiser(unet, Clip(recipe.clip_config(recipe.toybox_tokenizer())))


def denoiser(data: Pictures, root: Path, config: LoopConfig, device: str) -> Part:
    """The UNet on the latents of the trained autoencoder, together with the towers, which begin as trained by `clip`."""
    tokenizer = recipe.toybox_tokenizer()
    torch.manual_seed(config.seed)
    module = joint_denoiser()
    if not (root / "denoiser" / CHECKPOINT).exists():
        module.clip.load_state_dict(load_averaged(Clip(recipe.clip_config(tokenizer)), root / "clip").state_dict())
    latents = all_latents(data, trained_autoencoder(root), root, device=device)
    ids = tokenizer(data.captions).to(torch.int16)
    state = load_or_create_state(module.to(device), root / "denoiser", config)
    loss = denoising_loss(
        module,
        recipe.SCHEDULE,
        latents=lambda rows: latents[rows].float().to(device).contiguous(memory_format=torch.channels_last),
        ids=lambda rows: ids[rows].long().to(device),
        empty_ids=empty_tokens(tokenizer, 1)[0].to(device),
        images=lambda rows: data.batch(rows).to(device),
    )
    return Part(state, train(state, loss, config, num_rows=len(data), device=device))


def view_denoiser() -> TextConditionedDenoiser:
    """The UNet that is told its cameras and the towers, untrained."""
    unet = channels_last(UNet2DCondition(replace(recipe.UNET, multi_view=recipe.MULTI_VIEW, addition_embed_type=None)))
    return TextConditionedDenoiser(unet, Clip(recipe.clip_config(recipe.toybox_tokenizer())))


def _grown(denoiser: TextConditionedDenoiser, data: Pictures) -> dict[str, Tensor]:
    """The weights that `view_denoiser` begins with: those of the denoiser, its pooled text at what it is on average."""
    tokenizer, unet = recipe.toybox_tokenizer(), denoiser.unet
    with torch.no_grad():
        states = denoiser.clip.text(tokenizer(data.captions[:512]))
        unet = with_views(unet, recipe.MULTI_VIEW, pooled=unet.embed_context(states, None))
    return TextConditionedDenoiser(unet, denoiser.clip).state_dict()


def views(data: Pictures, root: Path, config: LoopConfig, device: str) -> Part:
    """The trained denoiser with cameras, on groups of views of one object and on single pictures.

    Raises:
        InputError: the pictures are no groups of as many views as the recipe has.
    """
    if data.num_views != recipe.MULTI_VIEW.num_views:
        raise InputError(
            f"The pictures show each object from {data.num_views} sides, but the views are trained on "
            f"{recipe.MULTI_VIEW.num_views}; render them: 'dreamkiln toybox render --views {recipe.MULTI_VIEW.num_views}'."
        )
    tokenizer = recipe.toybox_tokenizer()
    torch.manual_seed(config.seed)
    module = view_denoiser()
    if not (root / "views" / CHECKPOINT).exists():
        module.load_state_dict(_grown(load_averaged(joint_denoiser(), root / "denoiser"), data))
    latents = all_latents(data, trained_autoencoder(root), root, device=device)
    view_data = ViewData(
        num_objects=len(data) // data.num_views,
        num_views=data.num_views,
        latents=lambda rows: latents[rows].float().to(device).contiguous(memory_format=torch.channels_last),
        cameras=data.cameras.to(device),
        prompt_ids=tokenizer(data.prompts[:: data.num_views]).to(torch.int16).to(device),
        caption_ids=tokenizer(data.captions).to(torch.int16).to(device),
        mirrored_ids=tokenizer([mirrored(caption) for caption in data.captions]).to(torch.int16).to(device),
        empty_ids=empty_tokens(tokenizer, 1)[0].to(device),
        images=lambda rows: data.batch(rows).to(device),
    )
    state = load_or_create_state(module.to(device), root / "views", config)
    loss = multi_view_loss(module, recipe.SCHEDULE, view_data)
    return Part(state, train(state, loss, config, num_rows=view_data.num_objects, device=device))


PARTS: dict[str, Callable[[Pictures, Path, LoopConfig, str], Part]] = {
    "autoencoder": autoencoder,
    "decoder": decoder,
    "clip": clip,
    "judge": judge,
    "denoiser": denoiser,
    "views": views,
}


def trained_autoencoder(root: Path) -> AutoencoderTiny:
    """The autoencoder with its latents scaled to unit variance, and with the decoder that was trained on, if there is one.

    Raises:
        InputError: it has not been trained to its end.
    """
    path = root / "autoencoder/scaling.json"
    if not path.exists():
        raise InputError(f"{path} does not exist; train the autoencoder first ('dreamkiln train autoencoder').")
    scaling = json.loads(path.read_text(encoding="utf-8"))["scaling_factor"]
    module = load_averaged(AutoencoderTiny(replace(recipe.AUTOENCODER, scaling_factor=scaling)), root / "autoencoder")
    if (root / "decoder" / CHECKPOINT).exists():
        load_averaged(module.decoder, root / "decoder")
    return module


def measure_scaling(data: Pictures, root: Path) -> float:
    """Writes and returns 1 / standard deviation of the latents of 2,048 pictures (2112.10752, appendix G)."""
    module = load_averaged(AutoencoderTiny(recipe.AUTOENCODER), root / "autoencoder")
    rows = torch.arange(min(2048, len(data)))
    with torch.no_grad():
        latents = torch.cat([module.encode(data.batch(part)) for part in rows.split(128)])
    scaling = 1 / latents.std().item()
    write_text(root / "autoencoder/scaling.json", json.dumps({"scaling_factor": scaling}))
    return scaling
