"""Pictures through the published autoencoder in strips and as a whole: how far apart they are, and how much longer it takes.

    python -m benchmarks.strips [--size 192x320]

Random weights in Stable Diffusion's published structure. Differences are of pictures over 0 to 1, of latents of about unit
variance; times are ratios in one run.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from diffusion import seeding
from diffusion.checkpoints.architectures import SD1
from diffusion.checkpoints.footprint import coding_bytes
from diffusion.networks.autoencoder_kl import AutoencoderKL
from diffusion.networks.layers import channels_last
from diffusion.networks.strips import decode_in_strips, encode_in_strips


@torch.no_grad()
def main() -> None:
    """Prints a line a precision."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="192x320", help="width x height in pixels, multiples of 8")
    width, height = (int(side) // 8 for side in parser.parse_args().size.split("x"))
    torch.manual_seed(0)
    model = AutoencoderKL(SD1.autoencoder).eval()
    for parameter in model.parameters():
        parameter.add_(0.02 * torch.randn_like(parameter))
    latents = seeding.normal_rows((4, height, width), [seeding.stream(1)])
    whole, strips = (coding_bytes(SD1.autoencoder.decoder_widths, (height, width), tiled=tiled) for tiled in (False, True))
    print(f"{8 * width}x{8 * height}: {whole / 1e6:.0f} MB as a whole, {strips / 1e6:.0f} MB in strips")
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        channels_last(model.to(dtype))
        picture, seconds = timed(AutoencoderKL.decode, model, latents.to(dtype))
        in_strips, strip_seconds = timed(decode_in_strips, model, latents.to(dtype))
        read = (encode_in_strips(model, picture) - model.encode(picture)).abs().max()
        apart = (in_strips.clamp(0, 1) - picture.clamp(0, 1)).abs().max()
        print(f"{dtype}: decoded {float(apart):.1e}, encoded {float(read):.1e}, {strip_seconds / seconds:.1f} times the time")


def timed(function: Callable[..., Tensor], *args: object) -> tuple[Tensor, float]:
    """What a function gives, and the processor's seconds it takes."""
    start = time.process_time()
    return function(*args), time.process_time() - start


if __name__ == "__main__":
    main()
