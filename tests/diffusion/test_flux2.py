"""FLUX.2 klein's transformer, autoencoder, levels and key maps against diffusers' own classes on the same random weights."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from diffusion.checkpoints.autoencoder_keys import folder_autoencoder_kl, original_autoencoder_kl
from diffusion.checkpoints.transformer_keys import folder_transformer, original_flux2
from diffusion.checkpoints.weights import fill, skeleton
from diffusion.networks.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from diffusion.networks.flux2 import Flux2Config, Flux2Transformer
from diffusion.networks.strips import decode_in_strips, encode_in_strips
from tests.diffusion.checkpoints.published import (
    KLEIN,
    KLEIN_VAE,
    REDUCED_KLEIN,
    random_klein_autoencoder,
    random_klein_transformer,
)

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")]
SIZES = [(8, 8), (6, 10), (2, 4)]


def widened_rotation(x: Tensor, freqs: tuple[Tensor, Tensor], **_: Any) -> Tensor:
    """diffusers' `apply_rotary_emb` of neighbouring pairs, which would round float64 to float32."""
    cos, sin = (table[None, :, None, :].to(x) for table in freqs)
    real, imaginary = x.unflatten(-1, (-1, 2)).unbind(-1)
    return x * cos + torch.stack([-imaginary, real], dim=-1).flatten(3) * sin


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Flux2Transformer]:
    """Theirs and ours in float64."""
    from diffusers.models.transformers import transformer_flux2

    monkeypatch.setattr(transformer_flux2, "apply_rotary_emb", widened_rotation)
    theirs = random_klein_transformer().double()
    ours = skeleton(lambda: Flux2Transformer(Flux2Config.from_dict({**KLEIN, **REDUCED_KLEIN})))
    fill(ours, folder_transformer, theirs.state_dict(), Path("theirs"), dtype=torch.float64)
    return theirs, ours


def packed(x: Tensor) -> Tensor:
    """Latents (B, 32, h, w) as its pipeline packs them: 2x2 patches by channel, row and column, (B, L, 128)."""
    from diffusers import Flux2KleinPipeline

    return Flux2KleinPipeline._pack_latents(Flux2KleinPipeline._patchify_latents(x))


def called(network: Any, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
    """The velocity (B, 32, h, w) that diffusers' network gives, called as its pipeline calls it."""
    from diffusers import Flux2KleinPipeline

    patched = Flux2KleinPipeline._patchify_latents(x)
    ids = {"txt_ids": Flux2KleinPipeline._prepare_text_ids(text), "img_ids": Flux2KleinPipeline._prepare_latent_ids(patched)}
    told = {"encoder_hidden_states": text, "timestep": t / 1000, "guidance": None, "return_dict": False}
    out = network(hidden_states=packed(x), **told, **ids)[0]
    return Flux2KleinPipeline._unpatchify_latents(out.transpose(1, 2).unflatten(2, patched.shape[2:]))


def inputs(size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.manual_seed(1)
    x, text = torch.randn(2, 32, *size, generator=generator), torch.randn(2, 20, 144, generator=generator)
    return x.double(), torch.tensor([875.0, 31.25]).double(), text.double()


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_the_network_equals_diffusers(size: tuple[int, int], both: Any) -> None:
    """Shift before scale in blocks, scale before shift at the end; patches by channel; an axis for the text's places."""
    theirs, ours = both
    x, t, text = inputs(size)
    expected = called(theirs, x, t, text)
    torch.testing.assert_close(ours(x, t, text), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(ours(x, t, ours.project_context(text)), expected, rtol=0, atol=1e-9)
    assert float(expected.std()) > 0.1
    # Each row by itself, and another text, timestep or place are another velocity.
    torch.testing.assert_close(ours(x[:1], t[:1], text[:1]), expected[:1], rtol=0, atol=1e-12)
    for changed in ((x, t, text.flip(1)), (x, t.flip(0), text), (x.flip(3), t, text)):
        assert float((ours(*changed) - expected).abs().max()) > 1e-3


@torch.no_grad()
def test_float32_is_as_close_as_diffusers_is_to_itself(both: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours = both
    x, t, text = inputs((8, 8))
    exact = called(theirs, x, t, text)
    monkeypatch.undo()
    x, t, text = x.float(), t.float(), text.float()
    own = (called(theirs.float(), x, t, text) - exact).square().mean()
    assert float((ours.float()(x, t, text) - exact).square().mean()) <= 4 * float(own)


def test_key_maps_lose_nothing_in_either_direction(both: Any) -> None:
    """Folder -> ours -> single file -> diffusers' own conversion -> folder; the last norm's halves are swapped there."""
    from diffusers.loaders.single_file_utils import convert_flux2_transformer_checkpoint_to_diffusers

    theirs, ours = both
    own, folder = ours.state_dict(), theirs.state_dict()
    named = folder_transformer(own).to_published(own)
    assert named.keys() == folder.keys() and all(torch.equal(named[name], folder[name]) for name in folder)
    original = original_flux2(own).to_published(own)
    assert (
        original["double_blocks.1.img_attn.norm.query_norm.scale"] is not None and "single_blocks.2.linear1.weight" in original
    )
    assert torch.equal(original["final_layer.adaLN_modulation.1.weight"], own["norm_out.linear.weight"].roll(48, 0))
    converted = convert_flux2_transformer_checkpoint_to_diffusers(dict(original))
    assert converted.keys() == folder.keys() and all(torch.equal(converted[name], folder[name]) for name in folder)
    # ComfyUI's files call the norms' weights so.
    comfy = {name.replace("_norm.scale", "_norm.weight"): tensor for name, tensor in original.items()}
    for tensors in (original, comfy):
        back = original_flux2(own).read(tensors, own, Path("file"))
        assert back.keys() == own.keys() and all(torch.equal(back[name], own[name]) for name in own)


def test_the_published_structure_has_diffusers_keys_and_shapes() -> None:
    from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel

    with torch.device("meta"):
        ours, theirs = Flux2Transformer(Flux2Config()).state_dict(), Flux2Transformer2DModel(**KLEIN).state_dict()
        kl = AutoencoderKL(AutoencoderKLConfig.from_dict({**AutoencoderKLConfig.FLUX2, **KLEIN_VAE})).state_dict()
        vae = AutoencoderKLFlux2(**KLEIN_VAE).state_dict()
    assert Flux2Config.from_dict(KLEIN) == Flux2Config()
    named = folder_transformer(ours).to_published(ours)
    assert {name: tensor.shape for name, tensor in named.items()} == {name: tensor.shape for name, tensor in theirs.items()}
    assert round(sum(tensor.numel() for tensor in named.values()) / 1e9, 3) == 3.876
    del vae["bn.num_batches_tracked"]
    assert {name: tensor.shape for name, tensor in kl.items()} == {name: tensor.shape for name, tensor in vae.items()}


def test_settings_that_would_change_the_result_are_refused() -> None:
    for more, message in (
        ({"guidance_embeds": True}, "guidance_embeds is True; expected False, as klein has it"),
        ({"guidance_embeds": None}, "guidance_embeds is True; expected False"),
        ({"axes_dims_rope": [64, 32, 32]}, "expected four with the sum of attention_head_dim, 128"),
        ({"patch_size": 2}, "patch_size is 2, in_channels 128"),
        ({"out_channels": 64}, "out_channels 64; expected 1, and four times the latents' channels"),
    ):
        with pytest.raises(ValueError, match=message):
            Flux2Config.from_dict({**KLEIN, **more})
    small = Flux2Transformer(Flux2Config.from_dict({**KLEIN, **REDUCED_KLEIN}))
    with pytest.raises(ValueError, match=r"groups of 4 views for FLUX\.2; expected single pictures"):
        small(torch.zeros(4, 32, 2, 2), torch.zeros(4), torch.zeros(4, 3, 144), num_views=4)


# -- the autoencoder ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def autoencoders() -> tuple[Any, AutoencoderKL]:
    theirs = random_klein_autoencoder().double()
    config = AutoencoderKLConfig.from_dict({**AutoencoderKLConfig.FLUX2, **dict(theirs.config)})
    assert config.batch_norm_eps == 1e-4 and config.latent_channels == 32
    ours = fill(skeleton(lambda: AutoencoderKL(config)), folder_autoencoder_kl, theirs.state_dict(), Path("theirs"))
    return theirs, fill(ours, folder_autoencoder_kl, theirs.state_dict(), Path("theirs"), dtype=torch.float64)


def of_pipeline(vae: Any, latents: Tensor) -> Tensor:
    """Its pipeline's latents (B, 32, h, w) of the mean of an encoder."""
    from diffusers import Flux2KleinPipeline

    patched = Flux2KleinPipeline._patchify_latents(latents)
    mean, variance = (values.view(1, -1, 1, 1) for values in (vae.bn.running_mean, vae.bn.running_var))
    return Flux2KleinPipeline._unpatchify_latents((patched - mean) / torch.sqrt(variance + vae.config.batch_norm_eps))


@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
@torch.no_grad()
def test_the_autoencoder_equals_diffusers_with_its_statistics(size: tuple[int, int], autoencoders: Any) -> None:
    """The scale is a batch norm of 2x2 patches by channel, row and column; whole and in strips."""
    theirs, ours = autoencoders
    images = torch.rand(2, 3, *size, generator=torch.manual_seed(2)).double()
    expected = of_pipeline(theirs, theirs.encode(2 * images - 1).latent_dist.mode())
    latents = ours.encode(images)
    assert latents.shape == (2, 32, size[0] // 8, size[1] // 8)
    torch.testing.assert_close(latents, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(encode_in_strips(ours, images), expected, rtol=0, atol=1e-10)
    raw = theirs.encode(2 * images - 1).latent_dist.mode()
    decoded = (theirs.decode(raw).sample + 1) / 2
    torch.testing.assert_close(ours.decode(latents), decoded, rtol=0, atol=1e-10)
    torch.testing.assert_close(decode_in_strips(ours, latents), decoded, rtol=0, atol=1e-10)
    torch.testing.assert_close(
        F.batch_norm(F.pixel_unshuffle(raw, 2), theirs.bn.running_mean, theirs.bn.running_var, eps=1e-4),
        F.pixel_unshuffle(latents, 2),
        rtol=0,
        atol=1e-10,
    )


def test_the_autoencoder_s_gradient_is_diffusers(autoencoders: Any) -> None:
    """What score distillation pulls back through the encoder."""
    theirs, ours = autoencoders
    images = torch.rand(1, 3, 32, 48, generator=torch.manual_seed(3)).double().requires_grad_()
    weight = torch.randn(1, 32, 4, 6, generator=torch.manual_seed(4)).double()
    expected = of_pipeline(theirs, theirs.encode(2 * images - 1).latent_dist.mode())
    (exact,) = torch.autograd.grad(expected, images, weight)
    for checkpointed in (False, True):
        (found,) = torch.autograd.grad(ours.encode(images, checkpointed=checkpointed), images, weight)
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-10)


def test_its_original_keys_are_read(autoencoders: Any) -> None:
    _, ours = autoencoders
    own = ours.state_dict()
    layout = functools.partial(original_autoencoder_kl, ours.config)
    original = layout(own).to_published(own) | {"bn.num_batches_tracked": torch.tensor(7)}
    assert "bn.running_mean" in original and "encoder.down.0.block.0.conv1.weight" in original
    back = layout(own).read(original, own, Path("file"))
    assert all(torch.equal(back[name], own[name]) for name in own)
