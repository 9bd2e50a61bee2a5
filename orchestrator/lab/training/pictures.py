"""The rendered data set in memory."""

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from jobs.errors import InputError
from nerf3d.cameras import Cameras
from nerf3d.toybox.shards import read_shards

OBJECT_DIFFERENCE = 0.03
"""From the background's colour, in one channel; the toybox keeps the two farther apart, but for the pixels of an outline."""


@dataclass(frozen=True)
class Pictures:
    """N captioned pictures.

    Attributes:
        images: (N, 3, H, W) uint8. captions: with view words. prompts: without.
        cameras: (N, 16), see `Cameras.pose_vectors`.
        num_views: pictures of each object, one after the other.
        backgrounds: (N, 3) in [0, 1], the colour behind each object.
    """

    images: Tensor
    captions: list[str]
    prompts: list[str]
    cameras: Tensor
    num_views: int
    backgrounds: Tensor

    @classmethod
    def load(cls, folder: Path) -> "Pictures":
        """Every finished shard of `dreamkiln toybox render`.

        Raises:
            InputError: there is none.
        """
        try:
            shards = list(read_shards(folder))
        except FileNotFoundError as error:
            raise InputError(
                f"{folder} holds no training shards; render them: 'dreamkiln toybox render --out {folder} --num-items 200000'."
            ) from error
        records = [record for shard in shards for record in shard.records]
        images = torch.cat([shard.images for shard in shards])
        cameras = Cameras.orbit([r["azimuth_degrees"] for r in records], [r["elevation_degrees"] for r in records])
        num_views = sum(record["index"] == records[0]["index"] for record in records)
        captions, prompts = [r["caption"] for r in records], [r["prompt"] for r in records]
        backgrounds = torch.tensor([record["background"] for record in records])
        return cls(images, captions, prompts, cameras.pose_vectors(), num_views, backgrounds)

    def batch(self, rows: Tensor) -> Tensor:
        """(B, 3, H, W) float32 in [0, 1], channels last."""
        return (self.images[rows].float() / 255).contiguous(memory_format=torch.channels_last)

    def masks(self, rows: Tensor) -> Tensor:
        """(B, 1, H, W) in {0, 1}: the pixels that are not of the background's colour."""
        off = (self.batch(rows) - self.backgrounds[rows][:, :, None, None]).abs().amax(dim=1, keepdim=True)
        return (off > OBJECT_DIFFERENCE).float()

    @functools.cached_property
    def sha256(self) -> str:
        """Of all pixels (hex)."""
        digest = hashlib.sha256(str(tuple(self.images.shape)).encode())
        digest.update(self.images.contiguous().numpy().data)
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.images)
