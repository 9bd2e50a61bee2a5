"""A text-conditioned latent diffusion prior, read from the published folder layout.

The folder is the one that diffusers' `StableDiffusionPipeline.from_pretrained` reads (`model_index.json`, `unet/`,
`vae/`, `text_encoder/`, `tokenizer/`, `scheduler/`); `dreamkiln.json` beside them names the prior and, where it knows
few words, lists them.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from diffusion.guidance import guided_prediction
from diffusion.networks.autoencoder_tiny import AutoencoderTiny, AutoencoderTinyConfig
from diffusion.networks.layout import channels_last
from diffusion.networks.unet import UNet2DCondition, UNetConfig
from diffusion.parameterisation import Prediction
from diffusion.requests import Condition, DecodeRequest, DenoiseRequest, EncodeGradientRequest, EncodeRequest, Request
from diffusion.schedule import NoiseSchedule
from diffusion.text.clip import TextConfig, TextEncoder
from diffusion.text.published_keys import from_published
from diffusion.text.tokenizer import Tokenizer

TOYBOX = Path(__file__).parent / "toybox_prior"
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


class PriorError(ValueError):
    """A prior's folder is missing, incomplete or damaged; the message names the file and the fix."""


@dataclass(frozen=True)
class PriorCard:
    """`dreamkiln.json`: what a user should know about a prior. `vocabulary` is None where any word may be used."""

    name: str
    image_size: int
    vocabulary: tuple[str, ...] | None = None
    view_words: bool = False

    @classmethod
    def load(cls, folder: Path, unet: UNetConfig, factor: int) -> "PriorCard":
        """Reads the card, or derives one for a published folder that has none."""
        path = folder / "dreamkiln.json"
        if not path.exists():
            return cls(folder.name, unet.sample_size * factor)
        card = read_json(path)
        words = card.get("vocabulary")
        return cls(card["name"], card["image_size"], None if words is None else tuple(words), card.get("view_words", False))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of the folder.

    Raises:
        PriorError: missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PriorError(f"the prior lacks {path.name} in {path.parent}; copy the folder again, with all its files") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise PriorError(f"{path} is not readable JSON ({error}); copy the folder again") from None


def weight_files(folder: Path, stem: str) -> list[Path]:
    """The safetensors files of one part: one, or the shards that its index names.

    Raises:
        PriorError: there is none, or a shard is missing.
    """
    single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if index.exists():
        files = [folder / name for name in sorted(set(read_json(index)["weight_map"].values()))]
    else:
        files = [single]
    for path in files:
        if not path.exists():
            raise PriorError(f"the prior lacks {path.name} in {path.parent}; copy the folder again, with all its files")
    return files


def load_weights(files: Sequence[Path]) -> dict[str, Tensor]:
    """All tensors of some safetensors files, as float32.

    Raises:
        PriorError: a file is truncated or not safetensors.
    """
    tensors: dict[str, Tensor] = {}
    for path in files:
        try:
            tensors |= load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise PriorError(
                f"{path} ({path.stat().st_size} bytes) is truncated or not a safetensors file ({error}); copy it again"
            ) from None
    return {name: tensor.float() for name, tensor in tensors.items()}


def load_into(module: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Strict loading with every misfit named.

    Raises:
        PriorError: missing, unexpected or mis-shaped keys.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    problems = [f"missing {name} {shape}" for name, shape in expected.items() if name not in given]
    problems += [f"unexpected {name}" for name in given if name not in expected]
    problems += [
        f"{name} is {given[name]}, expected {shape}"
        for name, shape in expected.items()
        if name in given and given[name] != shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise PriorError(
            f"the weights in {source} do not fit its config.json: {'; '.join(problems[:3])}{more}; "
            "take both from the same model"
        )
    module.load_state_dict(tensors)


def hash_files(files: Sequence[Path]) -> str:
    """sha256 over the names and contents of weight files: two priors with one hash draw the same pictures."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode())
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


@dataclass
class Prior:
    """The prior in memory, answering the requests of samplers and of score distillation.

    Attributes:
        weights_hash: sha256 of all weight files. card: name, image size, vocabulary.
        latent_shape: (C, h, w) of one picture.
    """

    card: PriorCard
    schedule: NoiseSchedule
    unet: UNet2DCondition
    autoencoder: AutoencoderTiny
    text_encoder: TextEncoder
    tokenizer: Tokenizer
    weights_hash: str
    device: torch.device
    text_cache: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def load(cls, source: str | Path = "toybox", *, device: str | torch.device = "cpu") -> "Prior":
        """Reads "toybox" (the prior in this package) or a folder.

        Raises:
            PriorError: the folder or one of its files is missing, damaged, or does not fit the others.
        """
        folder = TOYBOX if str(source) == "toybox" else Path(source)
        if not folder.is_dir():
            raise PriorError(
                f"the prior {str(source)!r} is neither 'toybox' nor a folder; give a folder with a model_index.json"
            )
        read_json(folder / "model_index.json")
        for part in PARTS:
            if not (folder / part).is_dir():
                raise PriorError(f"the prior lacks the folder {part} in {folder}; copy it again, with all its files")
        unet = UNet2DCondition(UNetConfig.from_dict(read_json(folder / "unet/config.json")))
        autoencoder = AutoencoderTiny(AutoencoderTinyConfig.from_dict(read_json(folder / "vae/config.json")))
        text_encoder = TextEncoder(TextConfig.from_published(read_json(folder / "text_encoder/config.json")))
        unet_files = weight_files(folder / "unet", "diffusion_pytorch_model")
        vae_files = weight_files(folder / "vae", "diffusion_pytorch_model")
        text_files = weight_files(folder / "text_encoder", "model")
        load_into(unet, load_weights(unet_files), folder / "unet")
        load_into(autoencoder, load_weights(vae_files), folder / "vae")
        text_weights = from_published(load_weights(text_files), text_encoder.config.layers)
        load_into(text_encoder.tower, text_weights, folder / "text_encoder")
        try:
            tokenizer = Tokenizer.load(folder / "tokenizer")
        except FileNotFoundError as error:
            raise PriorError(f"the prior lacks {error.filename}; copy the folder again, with all its files") from None
        target = torch.device(device)
        for module in (unet, autoencoder, text_encoder):
            module.eval().requires_grad_(False).to(target)
        return cls(
            card=PriorCard.load(folder, unet.config, autoencoder.config.spatial_factor),
            schedule=NoiseSchedule.from_config(read_json(folder / "scheduler/scheduler_config.json")),
            unet=channels_last(unet),
            autoencoder=channels_last(autoencoder),
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            weights_hash=hash_files([*unet_files, *vae_files, *text_files]),
            device=target,
        )

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
    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """(B, S, D) states of the text tower; each distinct prompt is encoded once, alone, so neighbours never matter."""
        for prompt in dict.fromkeys(prompts):
            if prompt not in self.text_cache:
                self.text_cache[prompt] = self.text_encoder(self.tokenizer([prompt]).to(self.device))[0]
        return torch.stack([self.text_cache[prompt] for prompt in prompts])

    def condition(self, prompts: Sequence[str], negative_prompts: Sequence[str] | None = None) -> Condition:
        """Prompts and, per prompt, a negative one ("" by default)."""
        return Condition(self.encode_text(prompts), self.encode_text(negative_prompts or [""] * len(prompts)))

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
        """The network's raw output for (B, C, h, w) latents at timesteps (B,) under text states (B, S, D)."""
        return self.unet(x_t.to(self.device), t.to(self.device), tokens)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> scaled latents (B, C, h, w)."""
        return self.autoencoder.encode(images.to(self.device))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents -> images (B, 3, H, W) clamped to [0, 1]."""
        return self.autoencoder.decode(latents).clamp(0, 1)

    def encoder_gradient(self, images: Tensor, latent_gradient: Tensor) -> Tensor:
        """Vector-Jacobian product of the encoder, (B, 3, H, W)."""
        images = images.to(self.device).detach().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(self.autoencoder.encode(images), images, latent_gradient)
        return gradient
