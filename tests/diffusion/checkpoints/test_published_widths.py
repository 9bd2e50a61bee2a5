"""The published widths themselves, with random weights, where memory allows: widths of heads and norms as in the real files.

The reduced networks of `test_stable_diffusion` cover all families and whole pictures; these take gigabytes.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion.checkpoints.autoencoder_keys import folder_autoencoder_kl
from diffusion.checkpoints.folder import build_tower
from diffusion.checkpoints.text_keys import folder_text
from diffusion.checkpoints.weights import fill, skeleton
from diffusion.networks.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from diffusion.networks.unet import UNet2DCondition, UNetConfig
from diffusion.seeding import normal, stream
from diffusion.text.clip import TextConfig
from tests.diffusion.checkpoints.published import PUBLISHED

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")]
RANDOM = Path("random weights")


def close(ours: Tensor, theirs: Tensor) -> None:
    unit = theirs.abs().max()
    # Kernels of float32 sum in orders of their own: from float64's answer oneDNN's decoder is 6e-6 away, MKL's 1e-6.
    torch.testing.assert_close(ours / unit, theirs / unit, rtol=0, atol=1e-5)


@pytest.mark.parametrize("model", ["sd15", "sd2-v"])
@torch.no_grad()
def test_unet(model: str) -> None:
    import diffusers

    config = PUBLISHED[model]["unet"]
    torch.manual_seed(0)
    theirs = diffusers.UNet2DConditionModel.from_config(config).eval()
    ours = skeleton(lambda: UNet2DCondition(UNetConfig.from_dict(config)))
    # Shared, not copied: 3.4 GB.
    ours.load_state_dict(theirs.state_dict(), assign=True)
    x, t = normal((1, 4, 16, 16), stream(0, "x")), torch.tensor([700])
    states = normal((1, 77, config["cross_attention_dim"]), stream(0, "states"))
    close(ours.eval()(x, t, states), theirs(x, t, states).sample)


@torch.no_grad()
def test_autoencoder() -> None:
    import diffusers

    config = PUBLISHED["sd15"]["vae"]
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderKL.from_config(config).eval()
    autoencoder = skeleton(lambda: AutoencoderKL(AutoencoderKLConfig.from_dict(config)))
    ours = fill(autoencoder, folder_autoencoder_kl, theirs.state_dict(), RANDOM)
    x = normal((1, 4, 12, 8), stream(0, "x"))
    close(2 * ours.decode(x) - 1, theirs.decode(x / theirs.config.scaling_factor).sample)
    images = normal((1, 3, 64, 96), stream(0, "images")).sigmoid()
    close(ours.encode(images) / theirs.config.scaling_factor, theirs.encode(2 * images - 1).latent_dist.mean)


@pytest.mark.parametrize("model", ["sd15", "sd2-base"])
@torch.no_grad()
def test_text_tower(model: str) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    config: dict[str, Any] = PUBLISHED[model]["text_encoder"]
    torch.manual_seed(0)
    theirs = CLIPTextModel(CLIPTextConfig(**config)).eval()
    ours = build_tower(TextConfig.from_published(config), folder_text, theirs.state_dict(), RANDOM)
    ids = torch.randint(49406, (2, 77), generator=stream(0, "ids"))
    ids[:, 0], ids[:, 20:] = 49406, 49407
    close(ours(ids), theirs(ids)[0])
