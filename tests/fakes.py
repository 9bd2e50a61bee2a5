"""Stand-ins that make whole jobs fast: a prior that sees a coloured ball, and a real one with random weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from diffusion import requests
from diffusion.checkpoints.lora import modules
from diffusion.networks.autoencoder_tiny import AutoencoderTiny, AutoencoderTinyConfig
from diffusion.networks.unet import UNet2DCondition, UNetConfig
from diffusion.parameterisation import Prediction
from diffusion.prior import Prior, PriorCard
from diffusion.prior_folder import save_prior
from diffusion.schedule import NoiseSchedule
from diffusion.text.clip import TextConfig, TextEncoder
from diffusion.text.tokenizer import Tokenizer
from nerf3d.fields import FieldConfig
from nerf3d.fit import FitConfig
from nerf3d.mesh import MeshConfig
from orchestrator.prior.local import LocalPrior

COLOURS = {"red": (0.9, 0.1, 0.1), "green": (0.1, 0.8, 0.2), "blue": (0.1, 0.2, 0.9)}
TINY_VOCABULARY = ("a", "red", "blue", "table", "with", "legs", ",", "front", "view")
VOCABULARY = ("a", "ball", *COLOURS)

FAST_FIT = FitConfig(
    num_steps=30,
    num_views=4,  # a group of the toybox prior
    render_sizes=((0.0, 16),),
    guide_size=16,
    num_samples=24,
    occupancy_resolution=16,
    patience=1.0,
    density_rate=0.2,
    field=FieldConfig(resolutions=(4, 12)),
)
FAST_MESH = MeshConfig(resolution=32, max_faces=1000, texture_size=0)
FAST_OVERRIDES = (
    "fit.num_steps=30",
    "fit.num_views=4",
    "fit.render_sizes=[[0.0,16]]",
    "fit.guide_size=16",
    "fit.num_samples=24",
    "fit.occupancy_resolution=16",
    "fit.patience=1",
    "fit.density_rate=0.2",
    "field.resolutions=[4,12]",
    "mesh.resolution=32",
    "mesh.max_faces=1000",
    "mesh.texture_size=0",
)


@dataclasses.dataclass
class FakePrior:
    """The surface of `diffusion.prior.Prior`; whatever the noise, it sees a ball in the prompt's colour.

    Latents are the pictures shrunk four times, in [-1, 1].
    """

    image_size: int = 16
    size_multiple: int = 4
    name: str = "fake"
    weights_hash: str = "f" * 64
    device: torch.device = torch.device("cpu")
    schedule: NoiseSchedule = dataclasses.field(default_factory=NoiseSchedule)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.latent_shape_of((self.image_size, self.image_size))

    def latent_shape_of(self, size: tuple[int, int]) -> tuple[int, int, int]:
        return (3, size[0] // 4, size[1] // 4)

    def unknown_words(self, prompt: str) -> list[str]:
        return [word for word in prompt.lower().split() if word not in VOCABULARY]

    def condition(self, prompts: Sequence[str], negative_prompts: Sequence[str] | None = None) -> requests.Condition:
        colours = [next((rgb for word, rgb in COLOURS.items() if word in p), (0.5, 0.5, 0.5)) for p in prompts]
        tokens = torch.tensor(colours)[:, None]
        # It has no unconditional side, so guidance changes nothing.
        return requests.Condition(tokens, tokens)

    def has_condition(self, prompt: str, negative_prompt: str = "") -> bool:
        return True

    def predict(self, x_t: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        return self._denoise(x_t, t, requests.Condition(tokens)).as_kind(self.schedule.prediction_type)

    def answer(self, request: requests.Request) -> Any:
        match request:
            case requests.DenoiseRequest(x_t, t, condition, _):
                return self._denoise(x_t, t, condition)
            case requests.EncodeRequest(images):
                return F.avg_pool2d(images, 4) * 2 - 1
            case requests.DecodeRequest(latents) | requests.PreviewRequest(latents):
                return F.interpolate((latents + 1) / 2, scale_factor=4, mode="bilinear").clamp(0, 1)
            case requests.EncodeGradientRequest(_, latent_gradient):
                return F.interpolate(latent_gradient, scale_factor=4) / 16
        raise TypeError(request)

    def _denoise(self, x_t: Tensor, t: Tensor, condition: requests.Condition) -> Prediction:
        rows, columns = ((torch.arange(side) + 0.5) / side * 2 - 1 for side in x_t.shape[-2:])
        inside = (rows[:, None] ** 2 + columns[None] ** 2 < 0.6**2).float()
        ball = condition.tokens[:, 0, :, None, None] * 2 - 1
        x0 = ball * inside + 0.8 * (1 - inside)
        return Prediction.from_output(x0, x_t, self.schedule.alpha(t), self.schedule.sigma(t), kind="sample")


def load_fake_prior(source: str, device: str = "cpu") -> LocalPrior:
    """What tests put in the place of `orchestrator.prior.local.load_prior`."""
    return LocalPrior(FakePrior())


def save_tiny_prior(folder: Path) -> Path:
    """A prior of the product's own classes with random weights: it draws noise, but through every part of the real path."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.for_words(TINY_VOCABULARY, 12)
    unet = UNetConfig(
        sample_size=4,
        in_channels=8,
        out_channels=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
    )
    vae = AutoencoderTinyConfig(
        encoder_block_out_channels=(16,) * 3,
        decoder_block_out_channels=(16,) * 3,
        num_encoder_blocks=(0, 1, 1),
        num_decoder_blocks=(1, 1, 0),
        latent_channels=8,
        scaling_factor=1.3,
    )
    save_prior(
        folder,
        card=PriorCard("tiny", 16, TINY_VOCABULARY, view_words=True),
        unet=UNet2DCondition(unet),
        autoencoder=AutoencoderTiny(vae),
        text_encoder=TextEncoder(TextConfig(tokenizer.vocab_size, context_length=12, width=32, heads=2, layers=2)),
        tokenizer=tokenizer,
        schedule=NoiseSchedule(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", timestep_spacing="trailing"),
    )
    return folder


LORA_RANK = 2
LORA_MODULES = (
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
    "unet.down_blocks.0.resnets.0.conv1",
    "text_encoder.text_model.encoder.layers.1.self_attn.v_proj",
)


def lora_tensors(prior: Prior, *names: str, seed: int = 0, rank: int = LORA_RANK) -> dict[str, Tensor]:
    """A LoRA of random factors for these modules, in diffusers' layout."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name in names:
        weight = modules(prior)[name].weight
        assert weight is not None
        window = weight.shape[2:]
        found[f"{name}.lora_A.weight"] = torch.randn(rank, *weight.shape[1:], generator=generator) * 0.3
        found[f"{name}.lora_B.weight"] = torch.randn(len(weight), rank, *(1 for _ in window), generator=generator) * 0.3
    return found


def save_tiny_lora(path: Path, folder: Path, *, seed: int = 0) -> Path:
    """A LoRA for `save_tiny_prior`'s folder: attention, a convolution and the text tower."""
    save_file(lora_tensors(Prior.load(folder), *LORA_MODULES, seed=seed), path)
    return path
