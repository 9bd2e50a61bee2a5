"""The networks of the family, and its registry."""

from typing import Any

import pytest
import torch

from diffusion.errors import DiffusionError
from diffusion.models import MODELS, model_class
from diffusion.models.base import Model
from diffusion.networks.build import build_network, network_config_for, with_channels
from diffusion.networks.mlp import MLP, MLPConfig
from diffusion.networks.pixel_unet import PixelUNet, PixelUNetConfig
from diffusion.seeding import normal, stream

SMALL = PixelUNetConfig(
    sample_size=16, in_channels=2, out_channels=5, block_out_channels=(8, 24, 40), num_classes=3, layers_per_block=2
)


@pytest.fixture(scope="module")
def unet() -> PixelUNet:
    torch.manual_seed(0)
    return PixelUNet(SMALL).double().requires_grad_(False)


def test_every_row_has_its_own_time_and_label(unet: PixelUNet) -> None:
    x = normal((3, 2, 16, 16), stream(0), dtype=torch.float64)
    t, labels = torch.tensor([3.5, 700.0, 20.0]), torch.tensor([0, 2, 3])
    together = unet(x, t, labels=labels)
    assert together.shape == (3, 5, 16, 16)
    for row in range(3):
        one = slice(row, row + 1)
        torch.testing.assert_close(unet(x[one], t[one], labels=labels[one]), together[one], rtol=0, atol=1e-12)
    assert float((unet(x, t + 1, labels=labels) - together).abs().amax((1, 2, 3)).min()) > 1e-4
    assert float((unet(x, t, labels=labels.roll(1)) - together).abs().amax((1, 2, 3)).min()) > 1e-4


def test_the_label_one_past_the_last_means_none(unet: PixelUNet) -> None:
    x, t = normal((2, 2, 16, 16), stream(1), dtype=torch.float64), torch.tensor([1, 5])
    assert torch.equal(unet(x, t), unet(x, t, labels=torch.tensor([3, 3])))


def test_text_reaches_every_pixel() -> None:
    network = PixelUNet(
        PixelUNetConfig(sample_size=8, block_out_channels=(8, 16), attention_levels=(False, True), context_dim=6)
    )
    x, t = normal((1, 3, 8, 8), stream(2)), torch.tensor([10])
    a, b = (network(x, t, context=normal((1, 4, 6), stream(seed))) for seed in (3, 4))
    assert bool(((a - b).abs() > 0).all())
    with pytest.raises(ValueError, match="text context is missing"):
        network(x, t)


@pytest.mark.parametrize("network", [PixelUNet(SMALL), MLP(3, 8, 2, num_classes=4)], ids=["unet", "mlp"])
def test_gradients_reach_every_parameter(network: torch.nn.Module) -> None:
    x = normal((2, 2, 16, 16) if isinstance(network, PixelUNet) else (2, 3), stream(0))
    network(x, torch.tensor([1, 900]), labels=torch.tensor([0, 1])).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)] == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"attention_levels": (True,)}, "attention_levels has 1 entries for 3"),
        ({"sample_size": 30}, "sample_size is 30; give a multiple of 4"),
        ({"block_out_channels": (8, 9, 8)}, "give even numbers"),
        ({"patch_size": 0}, "patch_size is 0"),
        ({"sample_size": 12, "patch_size": 2}, "sample_size is 12; give a multiple of 8, for patches of 2"),
    ],
)
def test_impossible_sizes_are_named(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PixelUNetConfig(**config)


def test_patches_are_the_same_network_on_shuffled_pixels() -> None:
    sizes = {"block_out_channels": (8, 16), "attention_levels": (False, True)}
    torch.manual_seed(0)
    patched = PixelUNet(PixelUNetConfig(sample_size=16, in_channels=3, out_channels=2, patch_size=2, **sizes))  # type: ignore[arg-type]
    plain = PixelUNet(PixelUNetConfig(sample_size=8, in_channels=12, out_channels=8, **sizes))  # type: ignore[arg-type]
    plain.load_state_dict(patched.state_dict())
    x, t = normal((2, 3, 16, 16), stream(0)), torch.tensor([3, 700])
    blocks = x.unflatten(3, (8, 2)).unflatten(2, (8, 2)).permute(0, 1, 3, 5, 2, 4).flatten(1, 3)
    expected = plain(blocks, t).unflatten(1, (2, 2, 2)).permute(0, 1, 4, 2, 5, 3).reshape(2, 2, 16, 16)
    torch.testing.assert_close(patched(x, t), expected, rtol=0, atol=1e-6)


def test_conditions_that_a_network_does_not_have() -> None:
    with pytest.raises(ValueError, match="labels were given to a network without num_classes"):
        PixelUNet(PixelUNetConfig(sample_size=8, block_out_channels=(8,), attention_levels=(False,)))(
            torch.zeros(1, 3, 8, 8), torch.zeros(1), labels=torch.zeros(1, dtype=torch.long)
        )
    with pytest.raises(ValueError, match="a condition it has no weights for"):
        MLP(2, 4, 2)(torch.zeros(1, 2), torch.zeros(1), labels=torch.zeros(1, dtype=torch.long))
    with pytest.raises(ValueError, match="hidden is 0"):
        MLPConfig(hidden=0)


def test_a_configuration_fits_its_data() -> None:
    assert network_config_for((5,), PixelUNetConfig()) == MLPConfig(in_dim=5, out_dim=5)
    pictures = network_config_for((1, 64, 64), PixelUNetConfig(num_classes=4))
    assert pictures == PixelUNetConfig(sample_size=64, in_channels=1, out_channels=1, num_classes=4)
    assert pictures.shape == (1, 64, 64)
    wide = with_channels(PixelUNetConfig(), outputs=6)
    assert build_network(wide)(torch.zeros(1, 3, 32, 32), torch.zeros(1)).shape == (1, 6, 32, 32)
    assert build_network(with_channels(MLPConfig(), inputs=4))(torch.zeros(1, 4), torch.zeros(1)).shape == (1, 2)
    with pytest.raises(DiffusionError, match=r"shape \(3, 32, 16\); expected \(D,\) or a square"):
        network_config_for((3, 32, 16), PixelUNetConfig())


@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_registry_names_its_models(name: str) -> None:
    cls = model_class(name)
    assert issubclass(cls, Model) and cls.name == name


def test_an_unknown_model_is_named() -> None:
    with pytest.raises(DiffusionError, match=r"no model 'glow'; expected one of .*'improved_ddpm'"):
        model_class("glow")
