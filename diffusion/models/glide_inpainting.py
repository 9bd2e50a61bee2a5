"""GLIDE's inpainting model: told which pixels are known, and what they are (2112.10741 section 2.5).

"Random regions of training examples are erased, and the remaining portions are fed into the model along with a mask
channel as additional conditioning information": the network's input is [x_t, mask * picture, mask]. It starts from a
trained base model, whose new input channels are zero, so that it begins where the base model ended.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffusion.models.base import Batch, Model, SampleRequest
from diffusion.models.glide import NUM_STEPS, SAMPLER, Glide
from diffusion.models.text_to_pixels import GUIDANCE_OPTIONS, PICTURE_OPTIONS, KnownPart, TextToPixels, split_options
from diffusion.seeding import uniform

NOTHING_KNOWN = 0.1
"""Share of training pictures with everything erased, so that the model still draws from a caption alone."""


class GlideInpainting(TextToPixels):
    """p(x | known pixels, caption)."""

    name = "glide_inpainting"
    num_extra_channels: ClassVar[int] = 4

    def start_from(self, trained: Model) -> None:
        """As `Model.start_from`; from a base model, what it says whatever is known, until training goes on."""
        weights = trained.state_dict()
        if isinstance(trained, Glide):
            entrance = weights["network.conv_in.weight"]
            # Each extra channel enters as one for every pixel of a patch, behind those of the picture.
            num_told = self.num_extra_channels * self.config.network.patch_size**2
            told = entrance.new_zeros(len(entrance), num_told, *entrance.shape[2:])
            weights["network.conv_in.weight"] = torch.cat([entrance, told], dim=1)
        self.take_weights(trained, weights)

    def preview_request(self, batch: Batch) -> Mapping[str, Any]:
        """Pictures of the data whose right half is drawn again."""
        mask = torch.ones(1, *self.shape[1:])
        mask[..., self.shape[-1] // 2 :] = 0
        return {"num_steps": 50, "options": {"image": batch.x, "mask": mask}}

    def training_extra(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """[mask * picture, mask] with a mask of its own for each picture, (B, 4, H, W)."""
        mask = random_masks(len(batch), batch.x.shape[-1], generator).to(batch.x)
        return torch.cat([mask * batch.x, mask], dim=1)

    def sample(self, request: SampleRequest) -> Tensor:
        """Pictures that keep the known pixels and match them, as `Glide.sample`; without a picture, all is drawn.

        Options, beside the sampler's: PICTURE_OPTIONS and GUIDANCE_OPTIONS.
        """
        options, rest = split_options(request, {**GUIDANCE_OPTIONS, **PICTURE_OPTIONS})
        count = len(request.seeds)
        known = KnownPart.of(options, self.shape, count)
        extra = torch.zeros(count, self.num_extra_channels, *self.shape[1:])
        if known is not None:
            extra = torch.cat([known.mask * known.picture, known.mask], dim=1)
        return self.drawn(rest, extra=extra, guidance=options, known=known, sampler=SAMPLER, num_steps=NUM_STEPS)


def random_masks(count: int, size: int, generator: torch.Generator) -> Tensor:
    """(count, 1, size, size) masks, 1 where known: a random rectangle is erased or, as often, alone is kept.

    Its sides are a quarter of the picture to all of it; of NOTHING_KNOWN of the masks everything is erased.
    """
    u = uniform((6, count, 1, 1), generator)
    height, width = ((0.25 + 0.75 * side) * size for side in u[:2])
    top, left = u[2] * (size - height), u[3] * (size - width)
    row, column = torch.arange(size)[:, None] + 0.5, torch.arange(size) + 0.5
    inside = (row > top) & (row < top + height) & (column > left) & (column < left + width)
    known = torch.where(u[4] < 0.5, inside, ~inside) & (u[5] >= NOTHING_KNOWN)
    return known[:, None].float()
