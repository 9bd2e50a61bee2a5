"""How far pictures are from what a guide would rather see."""

from __future__ import annotations

from torch import Tensor

LIGHTNESS_SHARE = 0.5
"""Weight of the lightness beside the two axes of colour: a guide knows an object's colour better than the light that falls on
it in our pictures."""

_SMALLEST = 8


def image_loss(pictures: Tensor, targets: Tensor, *, levels: int = 3) -> Tensor:
    """The mean squared difference in CIELAB over the levels of a Gaussian pyramid, a scalar.

    The coarse levels are where a guide's pictures agree from step to step: what they say about an object's colours is not
    drowned by what the finest one says about its edges.

    Args:
        pictures, targets: (V, 3, H, W) sRGB in [0, 1]; gradients flow to pictures alone.
        levels: of the pyramid, the pictures themselves included; fewer where it would get smaller than 8 pixels.
    """
    from kornia.color import rgb_to_lab
    from kornia.geometry.transform import build_pyramid

    levels = max(1, min(levels, (min(pictures.shape[-2:]) // _SMALLEST).bit_length()))
    ours, theirs = rgb_to_lab(pictures.clamp(0, 1)) / 100, rgb_to_lab(targets.detach().clamp(0, 1)) / 100
    difference = ours - theirs
    weight = difference.new_tensor([LIGHTNESS_SHARE, 1.0, 1.0])[:, None, None]
    pyramid = build_pyramid(difference, levels)
    return sum(((level.square() * weight).mean() for level in pyramid), start=difference.new_zeros(())) / levels
