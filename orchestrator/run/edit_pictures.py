"""The picture and the mask that an editing job starts from: read, checked, kept in the run folder, brought to size."""

from __future__ import annotations

import hashlib
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from jobs.errors import InputError
from jobs.images import EditSource
from jobs.prior_client import PriorInfo
from jobs.specs import PictureSettings

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["INIT_IMAGE", "MASK", "EditPictures", "expected_of_edit"]

INIT_IMAGE, MASK = "init.png", "mask.png"
MAX_PIXELS = 64_000_000
_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


@dataclass(frozen=True, eq=False)
class EditPictures:
    """The pixels as they were given.

    Args:
        image: uint8 (H, W, 3), sRGB.
        mask: uint8 (H, W), 255 where the image is repainted, 0 where it is kept; None repaints all.
    """

    image: np.ndarray
    mask: np.ndarray | None = None

    @classmethod
    def read(cls, image: Path, mask: Path | None = None) -> EditPictures:
        """Read both from files of any kind that pillow knows; what is transparent is white in the image, black in the mask.

        Raises:
            InputError: a file is missing or not a picture, the mask has another size, or it is black everywhere.
        """
        pixels = _read(image, "RGB", background="white")
        if mask is None:
            return cls(pixels)
        marks = _read(mask, "L", background="black")
        if marks.shape != pixels.shape[:2]:
            raise InputError(
                f"The mask {mask} has {marks.shape[1]}x{marks.shape[0]} pixels, but the picture {image} has "
                f"{pixels.shape[1]}x{pixels.shape[0]}; give both the same size."
            )
        if not marks.any():
            raise InputError(f"The mask {mask} is black everywhere, so nothing would be repainted; paint the place white.")
        return cls(pixels, marks)

    @classmethod
    def read_from(cls, folder: Path) -> EditPictures:
        """What `write` left in a folder. Raises InputError like `read`."""
        mask = folder / MASK
        return cls.read(folder / INIT_IMAGE, mask if mask.exists() else None)

    @property
    def hashes(self) -> dict[str, str | None]:
        """The fields `init_image` and `mask` of `jobs.specs.ImagesSpec`: sha256 of the pixels, whatever file held them."""
        return {"init_image": _hash(self.image), "mask": None if self.mask is None else _hash(self.mask)}

    def write(self, folder: Path) -> list[Path]:
        """Leave copies in a run folder, without loss; returns their paths."""
        from orchestrator.exports import write_png

        paths = [write_png(self.image, folder / INIT_IMAGE)]
        if self.mask is not None:
            paths.append(write_png(np.repeat(self.mask[..., None], 3, axis=2), folder / MASK))
        return paths

    def size_in(self, spec: PictureSettings, info: PriorInfo) -> tuple[int, int]:
        """(height, width) that they are drawn in: what the job says, else their own aspect. Raises InputError."""
        if spec.width is None and spec.height is None:
            return info.size_like(*self.image.shape[:2])
        return info.size_of(spec.width, spec.height) or (info.image_size, info.image_size)

    def at_size(self, spec: PictureSettings, info: PriorInfo) -> EditSource:
        """What a job starts from. Raises InputError for a size that the prior does not draw."""
        return self.fit(self.size_in(spec, info), feather=spec.mask_feather)

    def fit(self, size: tuple[int, int], *, feather: float = 0.0) -> EditSource:
        """The largest centred part of this aspect, at this size.

        Pixels of a picture that already has this size are untouched. The mask's edge is blurred inwards only: what was
        black in it stays 0.

        Args:
            size: (H, W), pixels.
            feather: standard deviation of the blur in pixels of that size.
        """
        image = _to_size(self.image, size)
        if self.mask is None:
            return EditSource(image, hashes=self.hashes)
        mask = _feathered(_to_size(self.mask[..., None], size), feather)
        return EditSource(image, mask, self.hashes)


def expected_of_edit(*, mask: bool) -> tuple[str, ...]:
    """Names of the copies in the run folder."""
    return (INIT_IMAGE, MASK) if mask else (INIT_IMAGE,)


def _read(path: Path, mode: str, *, background: str) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
            with Image.open(path) as file:
                width, height = file.size
                if width * height > MAX_PIXELS:
                    raise InputError(f"{path} has {width}x{height} pixels; give a picture of at most {MAX_PIXELS:,} pixels.")
                if file.mode not in _MODES:
                    raise InputError(f"{path} has pixels of the kind {file.mode}; save it with 8 bits a channel.")
                picture = ImageOps.exif_transpose(file).convert("RGBA")
    except FileNotFoundError:
        raise InputError(f"There is no picture {path}.") from None
    except InputError:
        raise
    except _UNREADABLE as error:
        sentence = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise InputError(f"{path} could not be read as a picture ({sentence}); give a PNG file.") from error
    return np.asarray(Image.alpha_composite(Image.new("RGBA", picture.size, background), picture).convert(mode))


def _hash(pixels: np.ndarray) -> str:
    return hashlib.sha256(f"{pixels.shape} ".encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def _to_size(pixels: np.ndarray, size: tuple[int, int]) -> Tensor:
    """uint8 (H, W, C) -> the largest centred part of that aspect, (C, *size) in [0, 1]."""
    import torch

    scale = min(pixels.shape[0] / size[0], pixels.shape[1] / size[1])
    height, width = (max(1, round(side * scale)) for side in size)
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    part = torch.tensor(pixels[top : top + height, left : left + width]).permute(2, 0, 1) / 255
    if (height, width) == size:
        return part
    from kornia.geometry.transform import resize

    return resize(part[None], size, interpolation="bilinear", antialias=True)[0].clamp(0, 1)


def _feathered(mask: Tensor, sigma: float) -> Tensor:
    """(1, S, S) with its edge blurred inwards; traces below one grey level count as black."""
    import torch

    mask = torch.where(mask < 1 / 255, 0.0, mask)
    if sigma == 0:
        return mask
    from kornia.filters import gaussian_blur2d

    width = 2 * int(3 * sigma + 0.5) + 1
    return torch.minimum(mask, gaussian_blur2d(mask[None], (width, width), (sigma, sigma), border_type="replicate")[0])
