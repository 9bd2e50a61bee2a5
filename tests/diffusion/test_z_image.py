"""Z-Image's transformer against diffusers on the same random weights, trap by trap."""

from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion.checkpoints.z_image_keys import folder_z_image, original_z_image
from diffusion.networks.projected_context import ProjectedContext
from diffusion.networks.z_image import RUN, ZImageConfig, ZImageTransformer
from tests.diffusion.checkpoints.published import REDUCED_Z_IMAGE, Z_IMAGE, widened

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning"),
]

TINY = {**Z_IMAGE, **REDUCED_Z_IMAGE}


@pytest.fixture(scope="module")
def both() -> tuple[Any, ZImageTransformer]:
    """diffusers' own in float64, whose rotation alone would round queries and keys to float32."""
    from diffusers.models.transformers import transformer_z_image

    torch.manual_seed(0)
    theirs = widened(transformer_z_image, **{"x_in.float()": "x_in.double()"}).ZImageTransformer2DModel(**TINY).double().eval()
    for name, weight in theirs.named_parameters():
        weight.data.normal_(mean=float("norm" in name), std=0.2)
    ours = ZImageTransformer(ZImageConfig.from_dict(TINY)).double().eval()
    ours.load_state_dict(folder_z_image(ours.state_dict()).to_ours(theirs.state_dict()))
    return theirs, ours


def inputs(lengths: tuple[int, ...], size: tuple[int, int] = (8, 12)) -> tuple[Tensor, Tensor, list[Tensor]]:
    generator = torch.manual_seed(1)
    x = torch.randn(len(lengths), 16, *size, generator=generator).double()
    texts = [torch.randn(length, 48, generator=generator).double() for length in lengths]
    return x, torch.tensor([900.5, 30.0, 500.0, 999.0]).double()[: len(lengths)], texts


def published(theirs: Any, x: Tensor, t: Tensor, texts: list[Tensor]) -> Tensor:
    """As its pipeline asks: the level is (1000 - t) / 1000, and the answer is negated."""
    return -torch.stack(theirs(list(x[:, :, None]), (1000 - t) / 1000, texts).sample)[:, :, 0]


def context(ours: ZImageTransformer, texts: list[Tensor], num_runs: int | None = None) -> ProjectedContext:
    rows = [ours.project_context(text[None]).packed()[0] for text in texts]
    num_runs = num_runs or max(len(row) for row in rows) // RUN
    packed = torch.stack([ours.lengthened(row, num_runs) for row in rows])
    return ProjectedContext.unpacked(packed, embedding_dim=0)


@pytest.mark.parametrize("lengths", [(9, 20), (32, 1), (33, 64), (9, 40, 70), (70, 32)])
@pytest.mark.parametrize("size", [(8, 12), (16, 16), (2, 2)])
@torch.no_grad()
def test_the_network_equals_diffusers(lengths: tuple[int, ...], size: tuple[int, int], both: Any) -> None:
    """Captions and patches at and around multiples of 32, of one length and of several in a forward, each with its timestep."""
    theirs, ours = both
    x, t, texts = inputs(lengths, size)
    expected = published(theirs, x, t, texts)
    torch.testing.assert_close(ours(x, t, context(ours, texts)), expected, rtol=0, atol=1e-10)


@torch.no_grad()
def test_fillings_are_learned_and_attended_to_and_only_the_rest_is_masked(both: Any) -> None:
    _, ours = both
    x, t, texts = inputs((9, 40))
    before = ours(x, t, context(ours, texts))
    for token in (ours.x_pad_token, ours.cap_pad_token):
        kept = token.clone()
        token.zero_()
        changed = (ours(x, t, context(ours, texts)) - before).abs().amax(dim=(1, 2, 3))
        assert bool((changed > 1e-4).all())
        token.copy_(kept)
    # What lies behind a row's own filling changes nothing: the row alone, and with masked rows of any number behind it.
    alone = ours(x[:1], t[:1], context(ours, texts[:1]))
    for num_runs in (2, 4):
        row = context(ours, texts[:1], num_runs)
        torch.testing.assert_close(ours(x[:1], t[:1], row), alone, rtol=0, atol=1e-12)
        garbage = row.keys_values.clone()
        garbage[:, RUN:-1] = 7.0
        torch.testing.assert_close(ours(x[:1], t[:1], ProjectedContext(garbage)), alone, rtol=0, atol=1e-12)


@torch.no_grad()
def test_float32_is_as_close_as_diffusers_is_to_itself(both: Any) -> None:
    """Root mean squares of differences to float64."""
    from diffusers import ZImageTransformer2DModel

    theirs, ours = both
    x, t, texts = inputs((9, 40), (16, 16))
    exact = published(theirs, x, t, texts)
    single = ZImageTransformer2DModel(**TINY).eval()
    single.load_state_dict(theirs.state_dict())
    given = x.float(), t.float(), [text.float() for text in texts]
    own = (published(single, *given) - exact).square().mean()
    small = ZImageTransformer(ZImageConfig.from_dict(TINY)).eval()
    small.load_state_dict(ours.state_dict())
    found = small(given[0], given[1], context(small, given[2]))
    assert found.dtype == torch.float32 and float((found - exact).square().mean()) <= 4 * float(own)


@torch.no_grad()
def test_rotations_are_the_published_positions(both: Any) -> None:
    """Captions at 1 to their filled length, the picture's frame behind it, the picture's filling at the origin."""
    _, ours = both
    theta, dims = 256.0, (8, 4, 4)

    def rotation(*position: int) -> Tensor:
        angles = [p / theta ** (torch.arange(0, d, 2).double() / d) for p, d in zip(position, dims, strict=True)]
        return torch.stack([torch.cat(angles).cos(), torch.cat(angles).sin()], dim=-1)

    found = ours._picture_rotations(ours._tables(torch.device("cpu")), torch.tensor([33, 65]), 2, 3)
    assert found.shape == (2, 32, 8, 2)
    torch.testing.assert_close(found[0, 4].double(), rotation(33, 1, 1), rtol=0, atol=1e-5)
    torch.testing.assert_close(found[1, 5].double(), rotation(65, 1, 2), rtol=0, atol=1e-5)
    torch.testing.assert_close(found[1, 6:].double(), rotation(0, 0, 0).expand(26, -1, -1))
    with pytest.raises(ValueError, match="513 by 1 patches; expected at most 512 along a side"):
        ours(torch.zeros(1, 16, 1026, 2).double(), torch.ones(1), torch.zeros(1, 3, 48).double())


def test_key_maps_lose_nothing_in_either_direction(both: Any) -> None:
    """Folder -> ours, which is the single file -> diffusers' own conversion -> folder; one unread tensor is named."""
    from diffusers.loaders.single_file_utils import convert_z_image_transformer_checkpoint_to_diffusers

    theirs, ours = both
    own, folder = ours.state_dict(), theirs.state_dict()
    named = folder_z_image(own).to_published(own)
    assert named.keys() == folder.keys() and all(torch.equal(named[name], folder[name]) for name in folder)
    original = original_z_image(own).to_published(own) | {"norm_final.weight": torch.ones(48)}
    prefixed = {f"model.diffusion_model.{name}": tensor for name, tensor in original.items()}
    converted = convert_z_image_transformer_checkpoint_to_diffusers(prefixed)
    assert converted.keys() == folder.keys() and all(torch.equal(converted[name], folder[name]) for name in folder)
    assert "layers.2.attention.qkv.weight" in own
    back = original_z_image(own).read(original, own, __file__)  # type: ignore[arg-type]
    assert all(torch.equal(back[name], own[name]) for name in own)


def test_the_published_structure_has_diffusers_keys_and_shapes() -> None:
    from diffusers import ZImageTransformer2DModel

    with torch.device("meta"):
        ours = ZImageTransformer(ZImageConfig.from_dict(Z_IMAGE)).state_dict()
        theirs = ZImageTransformer2DModel(**Z_IMAGE).state_dict()
    named = folder_z_image(ours).to_published(ours)
    assert {name: tensor.shape for name, tensor in named.items()} == {name: tensor.shape for name, tensor in theirs.items()}
    assert round(sum(tensor.numel() for tensor in named.values()) / 1e9, 3) == 6.155


def test_settings_that_would_change_the_result_are_refused() -> None:
    for more, message in (
        ({"siglip_feat_dim": 1152}, "siglip_feat_dim is set, as Z-Image Omni has it"),
        ({"n_kv_heads": 10}, "n_kv_heads 10; expected true and n_heads, 30"),
        ({"all_patch_size": [2, 4], "all_f_patch_size": [1, 1]}, r"expected \[2\] and \[1\]"),
        ({"axes_dims": [16, 56, 48]}, "the sum of dim / n_heads, 128"),
    ):
        with pytest.raises(ValueError, match=message):
            ZImageConfig.from_dict({**Z_IMAGE, **more})
    small = ZImageTransformer(ZImageConfig.from_dict(TINY))
    with pytest.raises(ValueError, match="groups of 4 views for Z-Image"):
        small(torch.zeros(4, 16, 2, 2), torch.zeros(4), torch.zeros(4, 3, 48), num_views=4)
