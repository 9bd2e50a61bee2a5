"""Another autoencoder for a checkpoint: TAESD in both layouts, a fine-tuned KL one as a single file."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffusion.checkpoints.autoencoder_keys import original_autoencoder_kl, original_autoencoder_tiny
from diffusion.networks.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from diffusion.networks.autoencoder_tiny import AutoencoderTiny
from diffusion.prior import Prior, PriorError
from tests.diffusion.checkpoints.published import Saved, reduced

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")


@pytest.mark.parametrize("layout", ["diffusers", "two files", "one file"])
@torch.no_grad()
def test_taesd_replaces_the_autoencoder(layout: str, saved: Saved, tmp_path: Path) -> None:
    from diffusers import AutoencoderTiny as Theirs

    torch.manual_seed(0)
    theirs = Theirs().eval()
    path = tmp_path / "taesd"
    if layout == "diffusers":
        theirs.save_pretrained(path)
    elif layout == "one file":
        path = tmp_path / "taesd.safetensors"
        save_file(theirs.state_dict(), path)
    else:
        path.mkdir()
        tensors = original_autoencoder_tiny(theirs.state_dict()).to_published(theirs.state_dict())
        for half in ("encoder", "decoder"):
            names = {name.removeprefix(f"{half}."): t for name, t in tensors.items() if name.startswith(half)}
            torch.save(names, path / f"taesd_{half}.pth")
    folder = saved("sd15")[1]
    prior = Prior.load(f"{folder}?vae={path}")
    assert isinstance(prior.autoencoder, AutoencoderTiny)
    assert prior.latent_shape == (4, 8, 8)
    assert prior.weights_hash != Prior.load(folder).weights_hash
    images = torch.rand(1, 3, 32, 32)
    latents = prior.encode(images)
    torch.testing.assert_close(latents, theirs.encode(2 * images - 1).latents, rtol=0, atol=3e-6)
    decoded = (theirs.decode(latents).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(prior.decode(latents), decoded, rtol=0, atol=3e-6)


@pytest.mark.parametrize("original", [True, False])
def test_a_fine_tuned_autoencoder_in_one_file(original: bool, saved: Saved, tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = AutoencoderKLConfig.from_dict(reduced("sd15")["vae"])
    ours = AutoencoderKL(config).state_dict()
    tensors = original_autoencoder_kl(config, ours).to_published(ours) if original else ours
    path = tmp_path / "vae.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    prior = Prior.load(f"{saved('sd15')[1]}?vae={path}")
    given = prior.autoencoder.state_dict()
    assert all(torch.equal(given[name], tensor) for name, tensor in ours.items())


def test_an_autoencoder_of_another_family_is_refused(saved: Saved, tmp_path: Path) -> None:
    from diffusers import AutoencoderTiny as Theirs

    folder = saved("sd15")[1]
    Theirs(latent_channels=16).save_pretrained(tmp_path / "taesd3")
    with pytest.raises(PriorError, match=r"taesd3 has 16 latent channels and .* has 4; use the one that was made for"):
        Prior.load(f"{folder}?vae={tmp_path / 'taesd3'}")
    Theirs(encoder_block_out_channels=(64,) * 3, decoder_block_out_channels=(64,) * 3, num_encoder_blocks=(1, 1, 1),
           num_decoder_blocks=(1, 1, 1)).save_pretrained(tmp_path / "half")  # fmt: skip
    with pytest.raises(PriorError, match=r"half shrinks pictures 4 times and .* 8 times"):
        Prior.load(f"{folder}?vae={tmp_path / 'half'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PriorError, match=r"empty holds 0 files of a tiny encoder; expected a config.json"):
        Prior.load(f"{folder}?vae={tmp_path / 'empty'}")
