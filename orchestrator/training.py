"""`dreamkiln train`: trains the parts of the toybox prior, each resumable after any interruption.

Order: `autoencoder` and `clip` (independent), then `denoiser`, which reads both; `judge` any time; `assemble` writes
the folder that ships.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from diffusion.networks.autoencoder_tiny import AutoencoderTiny, AutoencoderTinyConfig
from diffusion.networks.unet import UNet2DCondition, UNetConfig
from diffusion.prior import PriorCard
from diffusion.prior_folder import save_prior
from diffusion.schedule import NoiseSchedule
from diffusion.text.clip import Clip, ClipConfig, TextConfig, save_clip
from diffusion.text.tokenizer import Tokenizer, empty_tokens
from diffusion.training.autoencoder import reconstruction_loss
from diffusion.training.contrastive import clip_loss
from diffusion.training.denoiser import denoising_loss
from diffusion.training.loop import LoopConfig, TrainProgress, TrainState, train
from nerf3d.toybox.shards import read_shards
from nerf3d.toybox.words import vocabulary

CONTEXT_LENGTH = 24
IMAGE_SIZE = 64

AUTOENCODER = AutoencoderTinyConfig(
    encoder_block_out_channels=(32, 32, 32),
    decoder_block_out_channels=(32, 32, 32),
    num_encoder_blocks=(0, 1, 2),
    num_decoder_blocks=(2, 1, 0),
    latent_channels=8,
)
UNET = UNetConfig(
    sample_size=16,
    in_channels=8,
    out_channels=8,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    block_out_channels=(64, 192, 224),
    layers_per_block=1,
    cross_attention_dim=192,
    attention_head_dim=(1, 3, 4),
    use_linear_projection=True,
    addition_embed_type="text",
    addition_embed_type_num_heads=3,
)
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "squaredcos_cap_v2",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
}


def text_config(tokenizer: Tokenizer, **changes: int) -> TextConfig:
    """The conditioning tower's sizes."""
    return replace(TextConfig(vocab_size=tokenizer.vocab_size, context_length=CONTEXT_LENGTH), **changes)


def clip_config(tokenizer: Tokenizer) -> ClipConfig:
    """The towers whose text half conditions the prior."""
    vision = {"image_size": IMAGE_SIZE, "patch_size": 16, "layers": 4, "width": 192, "head_width": 64}
    return ClipConfig(192, text_config(tokenizer), vision)


def judge_config(tokenizer: Tokenizer) -> ClipConfig:
    """Another architecture for the judge: a ResNet and a narrower text tower."""
    vision = {"image_size": IMAGE_SIZE, "layers": [1, 1, 1, 1], "width": 24, "head_width": 64}
    return ClipConfig(128, text_config(tokenizer, width=128, heads=2, layers=2), vision)


@dataclass
class Pictures:
    """A rendered data set in memory."""

    images: Tensor  # (N, 3, H, W) uint8
    captions: list[str]
    prompts: list[str]

    @classmethod
    def load(cls, folder: Path) -> "Pictures":
        """Reads every finished shard of `dreamkiln toybox render`."""
        shards = list(read_shards(folder))
        rows = [row for _, captions in shards for row in captions]
        return cls(torch.cat([images for images, _ in shards]), [r["caption"] for r in rows], [r["prompt"] for r in rows])

    def batch(self, rows: Tensor) -> Tensor:
        """(B, 3, H, W) float32 in [0, 1], channels last."""
        return (self.images[rows].float() / 255).contiguous(memory_format=torch.channels_last)

    def __len__(self) -> int:
        return len(self.images)


def save_json(path: Path, value: object) -> None:
    """Writes an indented JSON file."""
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


@dataclass(frozen=True)
class Part:
    """One part in training: its state and the means to go on."""

    state: TrainState
    config: LoopConfig
    steps: Iterator[TrainProgress]


def resume(state: TrainState, folder: Path) -> None:
    """Loads the part's checkpoint if there is one."""
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        state.load(checkpoint)
        print(f"resumed {folder.name} at step {state.step}", flush=True)


def autoencoder_part(data: Pictures, folder: Path, config: LoopConfig, device: str) -> Part:
    """The autoencoder on pictures alone."""
    torch.manual_seed(config.seed)
    module = AutoencoderTiny(AUTOENCODER).to(device, memory_format=torch.channels_last)
    state = TrainState(module, weight_decay=config.weight_decay)
    resume(state, folder)
    loss = reconstruction_loss(module, lambda rows: data.batch(rows).to(device))
    return Part(state, config, train(state, loss, config, num_rows=len(data), device=device))


def clip_part(data: Pictures, folder: Path, config: LoopConfig, device: str, *, judge: bool) -> Part:
    """The towers; the judge reads prompts without view words, the conditioning tower reads captions."""
    torch.manual_seed(config.seed + (1000 if judge else 0))
    tokenizer = Tokenizer.for_words(vocabulary(), CONTEXT_LENGTH)
    module = Clip((judge_config if judge else clip_config)(tokenizer)).to(device)
    state = TrainState(module, weight_decay=config.weight_decay)
    resume(state, folder)
    table = tokenizer(data.prompts if judge else data.captions).to(torch.int16)
    loss = clip_loss(module, lambda rows: data.batch(rows).to(device), lambda rows, _: table[rows].long().to(device))
    return Part(state, config, train(state, loss, config, num_rows=len(data), device=device))


def load_averaged(module: torch.nn.Module, folder: Path) -> torch.nn.Module:
    """A trained part with its averaged weights."""
    state = TrainState(module, weight_decay=0.0)
    state.load(folder / "checkpoint.pt")
    state.averaged().swap()
    return module.eval().requires_grad_(False)


def trained_autoencoder(root: Path) -> AutoencoderTiny:
    """The autoencoder with its latents scaled to unit variance."""
    scaling = json.loads((root / "autoencoder" / "scaling.json").read_text())["scaling_factor"]
    return load_averaged(AutoencoderTiny(replace(AUTOENCODER, scaling_factor=scaling)), root / "autoencoder")


def measure_scaling(data: Pictures, root: Path) -> float:
    """1 / standard deviation of the latents, over 2,048 pictures (Rombach et al. 2022, appendix G)."""
    module = load_averaged(AutoencoderTiny(AUTOENCODER), root / "autoencoder")
    with torch.no_grad():
        latents = torch.cat([module.encode(data.batch(torch.arange(i, i + 128))) for i in range(0, 2048, 128)])
    scaling = 1 / latents.std().item()
    save_json(root / "autoencoder" / "scaling.json", {"scaling_factor": scaling})
    return scaling


def encode_all(data: Pictures, autoencoder: AutoencoderTiny, path: Path, *, chunk: int = 256) -> Tensor:
    """Latents (N, C, h, w) of the whole set in fp16, kept in a file beside the checkpoints."""
    if path.exists():
        latents = torch.load(path, weights_only=True)
        if len(latents) == len(data):
            return latents
    parts = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for i in range(0, len(data), chunk):
            parts.append(autoencoder.encode(data.batch(torch.arange(i, min(i + chunk, len(data))))).half())
    latents = torch.cat(parts)
    torch.save(latents, path)
    return latents


def denoiser_part(data: Pictures, root: Path, config: LoopConfig, device: str) -> Part:
    """The UNet on the latents of the trained autoencoder and the states of the trained text tower."""
    torch.manual_seed(config.seed)
    tokenizer = Tokenizer.for_words(vocabulary(), CONTEXT_LENGTH)
    clip = load_averaged(Clip(clip_config(tokenizer)), root / "clip")
    latents = encode_all(data, trained_autoencoder(root), root / "latents.pt")
    ids = tokenizer(data.captions).to(torch.int16)
    module = UNet2DCondition(UNET).to(device, memory_format=torch.channels_last)
    state = TrainState(module, weight_decay=config.weight_decay)
    resume(state, root / "denoiser")
    loss = denoising_loss(
        module,
        NoiseSchedule.from_config(SCHEDULER),
        clip.text.to(device),
        latents=lambda rows: latents[rows].float().to(device).contiguous(memory_format=torch.channels_last),
        ids=lambda rows: ids[rows].long().to(device),
        empty_ids=empty_tokens(tokenizer, 1)[0].to(device),
    )
    return Part(state, config, train(state, loss, config, num_rows=len(data), device=device))


PARTS: dict[str, Callable[[Pictures, Path, LoopConfig, str], Part]] = {
    "autoencoder": lambda data, root, config, device: autoencoder_part(data, root / "autoencoder", config, device),
    "clip": lambda data, root, config, device: clip_part(data, root / "clip", config, device, judge=False),
    "judge": lambda data, root, config, device: clip_part(data, root / "judge", config, device, judge=True),
    "denoiser": denoiser_part,
}
DEFAULTS = {
    "autoencoder": LoopConfig(num_steps=3000, batch_size=24, learning_rate=1.5e-3, ema_decay=0.998),
    "clip": LoopConfig(num_steps=1200, batch_size=192, learning_rate=1e-3, ema_decay=0.995),
    "judge": LoopConfig(num_steps=1200, batch_size=192, learning_rate=1e-3, ema_decay=0.995, seed=7),
    "denoiser": LoopConfig(num_steps=20_000, batch_size=48, learning_rate=7e-4),
}


def run_part(name: str, data: Pictures, root: Path, config: LoopConfig, device: str, *, checkpoint_seconds: float = 120) -> None:
    """Trains one part to its end, with progress, a log of every step and a checkpoint every two minutes."""
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    part = PARTS[name](data, root, config, device)
    saved = reported = time.monotonic()
    with (folder / "log.jsonl").open("a") as log:
        for progress in part.steps:
            log.write(json.dumps({"step": progress.step, "seconds": progress.seconds, **progress.metrics}) + "\n")
            now, last = time.monotonic(), progress.step == progress.num_steps
            if now - reported > 10 or last:
                log.flush()
                figures = "  ".join(f"{k} {v:.4g}" for k, v in progress.metrics.items())
                rate = config.batch_size / progress.seconds
                left = progress.seconds_left / 60
                print(f"{name} {progress.step}/{progress.num_steps}  {rate:.0f} images/s  {left:.1f} min left  {figures}", flush=True)
                reported = now
            if now - saved > checkpoint_seconds or last:
                part.state.save(folder / "checkpoint.pt")
                saved = time.monotonic()
    if name == "autoencoder":
        print(f"scaling factor {measure_scaling(data, root):.4f}", flush=True)


def assemble(root: Path, folder: Path, *, with_judge: bool = True) -> None:
    """Writes the prior that ships: averaged weights of every trained part, the image tower, and the judge."""
    tokenizer = Tokenizer.for_words(vocabulary(), CONTEXT_LENGTH)
    clip = load_averaged(Clip(clip_config(tokenizer)), root / "clip")
    save_prior(
        folder,
        card=PriorCard("toybox", IMAGE_SIZE, vocabulary(), view_words=True),
        unet=load_averaged(UNet2DCondition(UNET), root / "denoiser"),
        autoencoder=trained_autoencoder(root),
        text_encoder=clip.text,
        tokenizer=tokenizer,
        schedule=NoiseSchedule.from_config(SCHEDULER),
    )
    save_clip(clip, tokenizer, folder / "clip", with_text=False)
    if with_judge:
        judge = load_averaged(Clip(judge_config(tokenizer)), root / "judge")
        save_clip(judge, tokenizer, folder / "judge", with_text=True)
