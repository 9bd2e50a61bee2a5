"""Models that are trained on x_t: the network is told the very timestep that its input was noised to, and the right target.

Two batches x and -x under one stream have the same t and eps, so that the difference of what the network sees is 2 alpha_t x
exactly: one timestep beside the right one shows.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion.models.base import Batch, Model
from diffusion.models.glide import Glide
from diffusion.models.noisy_classifier import NoisyClassifier, NoisyClassifierConfig
from diffusion.models.noisy_clip import NoisyClip, NoisyClipConfig
from diffusion.models.text_to_pixels import TextToPixelsConfig
from diffusion.networks.noisy_encoder import NoisyEncoderConfig
from diffusion.networks.pixel_unet import PixelUNetConfig
from diffusion.parameterisation import Prediction
from diffusion.seeding import normal, stream

pytestmark = pytest.mark.oracle

ENCODER = NoisyEncoderConfig(sample_size=8, block_out_channels=(16, 32))
CAPTIONS = ("a red ball", "a blue ball", "a green ball", "a white ball")


def classifier() -> NoisyClassifier:
    return NoisyClassifier(NoisyClassifierConfig(network=ENCODER, num_classes=3))


def clip() -> NoisyClip:
    return NoisyClip(NoisyClipConfig(network=ENCODER, embed_dim=16))


@pytest.mark.parametrize(("make", "reads"), [(classifier, "forward"), (clip, "encode_image")])
def test_a_guide_is_told_the_timestep_of_its_noise(
    make: Callable[[], Model], reads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = make(), []
    network: Any = getattr(model, reads)

    def recorded(x_t: Tensor, t: Tensor) -> Tensor:
        seen.append((x_t, t))
        return network(x_t, t)

    monkeypatch.setattr(model, reads, recorded)
    x, labels = normal((4, 3, 8, 8), stream(0, "pictures")), torch.tensor([0, 1, 2, 0])
    for sign in (1, -1):
        model.loss(Batch(sign * x, labels, CAPTIONS), stream(1))
    (plus, t), (minus, again) = seen
    assert torch.equal(t, again) and len(t.unique()) > 1
    alpha = model.config.schedule.alpha(t).float()[:, None, None, None]
    torch.testing.assert_close(plus - minus, 2 * alpha * x, rtol=0, atol=1e-6)


def test_the_pixel_models_loss_is_zero_for_the_perfect_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every batch holds one picture, so that x0 is known and eps or v follow from x_t and t."""
    network = PixelUNetConfig(sample_size=8, block_out_channels=(16, 16), attention_levels=(False, True))
    model = Glide(TextToPixelsConfig(network=network))
    x = normal((4, 3, 8, 8), stream(0, "pictures"))
    schedule = model.config.schedule

    def perfect(x_t: Tensor, t: Tensor, tokens: Tensor, extra: Tensor) -> Tensor:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return Prediction.from_output(x.double(), x_t.double(), alpha, sigma, "sample").as_kind(schedule.prediction_type)

    monkeypatch.setattr(model, "output", perfect)
    loss, _ = model.loss(Batch(x, captions=CAPTIONS), stream(1))
    assert loss.item() < 1e-6
