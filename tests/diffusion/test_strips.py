"""Pictures through the autoencoder in strips: the whole one's up to rounding, and only where memory asks for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion.engine.autoencoder_stage import AutoencoderStage
from diffusion.networks.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from diffusion.networks.strips import STRIP_ROWS, decode_in_strips, encode_in_strips
from diffusion.requests import DecodeRequest, EncodeRequest

# Of pictures over 0 to 1; docs/checkpoints.md states them.
BOUNDS = {torch.float64: 1e-12, torch.float32: 2e-4}


def autoencoder(dtype: torch.dtype, **others: Any) -> AutoencoderKL:
    """The published structure at a quarter of its width, with norms that are none's beginning."""
    torch.manual_seed(0)
    model = AutoencoderKL(AutoencoderKLConfig(block_out_channels=(32, 64, 128, 128), **others))
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model.to(dtype).eval().requires_grad_(False)


@pytest.mark.parametrize("dtype", list(BOUNDS))
@pytest.mark.parametrize(("height", "width"), [(11, 6), (3, 9)])
def test_strips_are_the_whole_up_to_rounding(height: int, width: int, dtype: torch.dtype) -> None:
    """At a height that strips do not divide, on neighbours of other statistics, both ways."""
    model = autoencoder(dtype)
    assert (8 * height) % STRIP_ROWS
    latents = torch.randn(2, 4, height, width, generator=torch.manual_seed(1)).to(dtype)
    latents[:, :, height // 2 :] *= 5
    whole = model.decode(latents)
    torch.testing.assert_close(decode_in_strips(model, latents), whole, rtol=0, atol=BOUNDS[dtype])
    torch.testing.assert_close(encode_in_strips(model, whole), model.encode(whole), rtol=0, atol=BOUNDS[dtype])


def test_other_autoencoders() -> None:
    """SD 3's and FLUX.1's: sixteen channels, a shift, no quantisation layers, no attention."""
    others = {"use_quant_conv": False, "use_post_quant_conv": False, "mid_block_add_attention": False, "shift_factor": 0.1}
    model = autoencoder(torch.float64, latent_channels=16, **others)
    latents = torch.randn(1, 16, 5, 5, generator=torch.manual_seed(1)).double()
    whole = model.decode(latents)
    torch.testing.assert_close(decode_in_strips(model, latents), whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(encode_in_strips(model, whole), model.encode(whole), rtol=0, atol=1e-12)


class Counted:
    """Has room for so many pictures, and notes what it is asked for."""

    def __init__(self, room: int, decoding: str = "auto", whole: bool = True) -> None:
        self.room, self.decoding, self.whole = room, decoding, whole
        self.asked: list[tuple[int, bool]] = []

    def num_coded_at_once(self, request: Any, *, share: float = 1.0) -> int:
        return int(share * self.room)

    def answer(self, request: Any) -> Tensor:
        given = request.latents if isinstance(request, DecodeRequest) else request.images
        self.asked.append((len(given), request.tiled))
        if not request.tiled and not self.whole:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return given


@pytest.mark.parametrize(
    ("model", "strict", "asked"),
    [
        (Counted(9), False, [(4, False), (1, False)]),
        (Counted(2), False, [(2, False), (2, False), (1, False)]),
        (Counted(0), False, [(1, True)] * 5),
        (Counted(0), True, [(1, False)] * 5),
        (Counted(9, "tiled"), False, [(1, True)] * 5),
        (Counted(9, "tiled"), True, [(1, True)] * 5),
        (Counted(0, "plain"), False, [(4, False), (1, False)]),
        (Counted(1, whole=False), False, [(1, False), *[(1, True)] * 5]),
    ],
)
@pytest.mark.parametrize("kind", [DecodeRequest, EncodeRequest])
def test_memory_says_how_many_at_once_and_when_in_strips(model: Counted, strict: bool, asked: Any, kind: Any) -> None:
    """Strict pictures are coded as the option says, never as the moment's memory does."""
    model.asked.clear()
    pictures = torch.arange(5.0)[:, None, None, None]
    (answer,) = AutoencoderStage(model, rows=4).answer_all([kind(pictures)], strict=[strict])
    assert torch.equal(answer, pictures) and model.asked == asked
