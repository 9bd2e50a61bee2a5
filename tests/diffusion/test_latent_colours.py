"""Pictures of latents without a decoder."""

from dataclasses import replace

import torch
from torch.nn import functional as F

from diffusion.latent_colours import LatentColours
from diffusion.networks.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from diffusion.prior import Prior
from diffusion.requests import PreviewRequest
from diffusion.seeding import normal_rows, stream
from nerf3d.toybox.items import make_item
from nerf3d.toybox.render import render_items
from tests.fakes import save_tiny_prior


def test_colours_that_are_kept_linearly_are_found_exactly() -> None:
    mix = torch.tensor([[0.7, -1.2, 0.4], [0.1, 0.9, -0.3], [-0.8, 0.2, 1.5], [0.3, 0.3, 0.3]])
    offset = torch.tensor([0.1, -0.2, 0.3, 0.4])

    def encode(images: torch.Tensor) -> torch.Tensor:
        return torch.einsum("cd,bdhw->bchw", mix, F.avg_pool2d(images, 4)) + offset[:, None, None]

    colours = LatentColours.fit(encode, factor=4, device=torch.device("cpu"))
    pictures = normal_rows((3, 32, 32), [stream(1, row) for row in range(2)]).sigmoid()
    torch.testing.assert_close(colours(encode(pictures)), F.avg_pool2d(pictures, 4), rtol=0, atol=1e-5)
    assert colours(-10 * encode(pictures)).min() == 0 and colours(10 * encode(pictures)).max() == 1


def test_a_preview_of_a_large_autoencoders_latents_is_one_pixel_a_latent(tmp_path) -> None:
    prior = Prior.load(save_tiny_prior(tmp_path))
    latents = normal_rows(prior.latent_shape, [stream(0, row) for row in range(2)])
    torch.testing.assert_close(prior.answer(PreviewRequest(latents)), prior.decode(latents))
    config = AutoencoderKLConfig(block_out_channels=(32, 32), layers_per_block=1, latent_channels=8)
    torch.manual_seed(0)
    large = replace(prior, autoencoder=AutoencoderKL(config).eval().requires_grad_(False))
    seen = large.answer(PreviewRequest(latents))
    assert seen.shape == (2, 3, 4, 4) and seen.min() >= 0 and seen.max() <= 1


def test_the_toyboxs_latents_keep_colours_nearly_linearly() -> None:
    prior = Prior.load("toybox")
    factor = prior.autoencoder.config.spatial_factor
    colours = LatentColours.fit(prior.encode, factor=factor, device=torch.device("cpu"))
    items = [make_item(index) for index in range(4)]
    pictures, _ = render_items(items, size=prior.image_size)
    error = colours(prior.encode(pictures)) - F.avg_pool2d(pictures, factor)
    assert -10 * error.square().mean().log10() > 15
