"""What the family is trained on: toybox pictures, or points of a Gaussian mixture whose score is known."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusion.models.base import Batch
from diffusion.precision import autocast
from diffusion.seeding import normal, stream
from diffusion.text.frozen_tower import toybox
from jobs.codec import near_matches
from jobs.errors import InputError
from nerf3d.toybox.studio import PART_COLOURS, Look

DEFAULT_SHARDS = Path("training/shards")
RENDERED = "training/{look}-{size}{kinds}"
"""Where pictures that are rendered on demand are kept."""

SHARD_SIZE = 1024
"""Pictures a file of those."""


class Data(Protocol):
    """Items by number."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) or (D,) of one item."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels."""
        ...

    @property
    def palette(self) -> tuple[str, ...] | None:
        """The colours "#rrggbb" that are all there are in the pictures, or None."""
        ...

    def __len__(self) -> int: ...

    def batch(self, rows: Tensor) -> Batch:
        """The items of these numbers, (B,) long."""
        ...

    def describe(self) -> dict[str, Any]:
        """JSON values for model.json: what the labels mean, and from what the model was trained."""
        ...


@dataclass(frozen=True)
class DataSettings:
    """`data.…` on the command line.

    Args:
        folder: shards of `dreamkiln toybox render`; by default training/shards, or, where there are none, pictures
            rendered on demand.
        size: pixels a side; by default the network's.
        num_pictures: how many pictures, or points.
        kinds: the toybox kinds to learn, separated by commas; by default all that the toybox prior is taught.
        look: "scene", any camera, light and background; "studio", one of each and white; "parts", label maps.
    """

    folder: str | None = None
    size: int | None = None
    num_pictures: int = 16384
    kinds: str | None = None
    look: Look = "scene"

    def __post_init__(self) -> None:
        if self.folder is not None and self.look != "scene":
            raise ValueError(
                f"look is {self.look!r} and folder {self.folder!r}; leave out one: that look is rendered on demand."
            )
        if self.num_pictures < 1:
            raise ValueError(f"num_pictures is {self.num_pictures}; give at least 1.")
        if self.size is not None and not 8 <= self.size <= 512:
            raise ValueError(f"size is {self.size}; give 8 to 512.")


@dataclass(frozen=True)
class ToyboxPictures:
    """Renders of toybox objects.

    Attributes:
        images: (N, 3, H, W) uint8. labels: (N,) long, index of the kind in `classes`. captions: N sentences.
    """

    images: Tensor
    labels: Tensor
    captions: tuple[str, ...]
    classes: tuple[str, ...]
    look: Look = "scene"

    @classmethod
    def load(cls, settings: DataSettings, *, size: int, say: Callable[[str], None]) -> ToyboxPictures:
        """Reads shards, or renders them first where there are none.

        Raises:
            InputError: an unknown kind, or a named folder that holds no usable shards.
        """
        classes = _kinds(settings.kinds)
        folder = Path(settings.folder) if settings.folder is not None else DEFAULT_SHARDS
        look = settings.look
        if settings.folder is None and (look != "scene" or not _has_pictures(folder, size)):
            folder = _rendered(settings, classes, size=size, say=say)
        return cls._read(folder, classes, settings.num_pictures, size, look)

    @classmethod
    def _read(cls, folder: Path, classes: tuple[str, ...], num_pictures: int, size: int, look: Look) -> ToyboxPictures:
        from nerf3d.toybox.shards import read_shards

        number = {name: label for label, name in enumerate(classes)}
        images: list[Tensor] = []
        records: list[dict] = []
        try:
            for shard in read_shards(folder):
                rows = [row for row, record in enumerate(shard.records) if record["kind"] in number]
                rows = rows[: num_pictures - len(records)]
                images.append(_resized(shard.images[rows], size, folder))
                records += [shard.records[row] for row in rows]
                if len(records) >= num_pictures:
                    break
        except FileNotFoundError as error:
            raise InputError(
                f"{folder} holds no training shards; render them: 'dreamkiln toybox render --out {folder} --size {size}', "
                "or leave data.folder out."
            ) from error
        if not records:
            raise InputError(f"{folder} holds no picture of {', '.join(classes)}; choose other data.kinds or more pictures.")
        labels = torch.tensor([number[record["kind"]] for record in records])
        return cls(torch.cat(images), labels, tuple(record["caption"] for record in records), classes, look)

    @property
    def shape(self) -> tuple[int, ...]:
        """(3, H, W)."""
        return tuple(self.images.shape[1:])

    @property
    def palette(self) -> tuple[str, ...] | None:
        """One colour a part in label maps."""
        return PART_COLOURS if self.look == "parts" else None

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, rows: Tensor) -> Batch:
        """Pictures in [-1, 1] with labels and captions."""
        return Batch(self.images[rows].float() / 127.5 - 1, self.labels[rows], tuple(self.captions[row] for row in rows))

    def describe(self) -> dict[str, Any]:
        """Name, look, shape, number of items, kinds."""
        return {
            "name": "toybox",
            "look": self.look,
            "shape": list(self.shape),
            "num_items": len(self),
            "classes": list(self.classes),
        }


@dataclass(frozen=True)
class ToyboxLatents:
    """Renders of toybox objects as the toybox prior's autoencoder codes them."""

    pictures: ToyboxPictures

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, h, w)."""
        return toybox("cpu").latent_shape

    @property
    def classes(self) -> tuple[str, ...]:
        """The kinds."""
        return self.pictures.classes

    palette: ClassVar[None] = None

    def __len__(self) -> int:
        return len(self.pictures)

    def batch(self, rows: Tensor) -> Batch:
        """Scaled latents with labels and captions."""
        pictures = self.pictures.batch(rows)
        with autocast("cpu"):
            latents = toybox("cpu").encode((pictures.x + 1) / 2)
        return replace(pictures, x=latents)

    def describe(self) -> dict[str, Any]:
        """As of the pictures, and every word of the captions."""
        words = {word for caption in self.pictures.captions for word in re.findall(r"[^\W_]+|,", caption)}
        return self.pictures.describe() | {
            "name": "toybox_latents",
            "shape": list(self.shape),
            "vocabulary": sorted(words),
        }


@dataclass(frozen=True)
class Mixture:
    """sum_k weights[k] N(means[k], deviation^2 I) in the plane."""

    weights: tuple[float, ...]
    means: tuple[tuple[float, float], ...]
    deviation: float


MIXTURE = Mixture(
    weights=(0.3, 0.2, 0.2, 0.15, 0.15),
    means=tuple((math.cos(2 * math.pi * k / 5), math.sin(2 * math.pi * k / 5)) for k in range(5)),
    deviation=0.12,
)
"""Five unequal modes on the unit circle."""


@dataclass(frozen=True)
class MixturePoints:
    """Points of `MIXTURE`; labels are the components.

    Attributes:
        points: (N, 2) float32. labels: (N,) long.
    """

    points: Tensor
    labels: Tensor
    classes: tuple[str, ...] = tuple(map(str, range(len(MIXTURE.weights))))
    palette: None = None

    @classmethod
    def draw(cls, count: int) -> MixturePoints:
        """The first `count` points, always the same."""
        generator = stream(0, "mixture2d")
        weights = torch.tensor(MIXTURE.weights)
        labels = torch.multinomial(weights, count, replacement=True, generator=generator)
        points = torch.tensor(MIXTURE.means)[labels] + MIXTURE.deviation * normal((count, 2), generator)
        return cls(points, labels)

    @property
    def shape(self) -> tuple[int, ...]:
        """(2,)."""
        return (2,)

    def __len__(self) -> int:
        return len(self.points)

    def batch(self, rows: Tensor) -> Batch:
        """Points with labels."""
        return Batch(self.points[rows], self.labels[rows])

    def describe(self) -> dict[str, Any]:
        """Name, shape, number of items, labels."""
        return {"name": "mixture2d", "shape": [2], "num_items": len(self), "classes": list(self.classes)}


LATENTS = "toybox_latents"
DATA = ("toybox", LATENTS, "mixture2d")


def load_data(name: str, settings: DataSettings, *, size: int, say: Callable[[str], None]) -> Data:
    """A data set by name.

    Args:
        size: pixels a side of pictures, where the settings name none.
        say: is told what takes long.

    Raises:
        InputError: an unknown name, or what `ToyboxPictures.load` raises.
    """
    match name:
        case "toybox":
            return ToyboxPictures.load(settings, size=settings.size or size, say=say)
        case _ if name == LATENTS:
            own = toybox("cpu").image_size
            if settings.size not in (None, own):
                raise InputError(f"data.size is {settings.size}, and the toybox prior's pictures are {own} wide; leave it out.")
            return ToyboxLatents(ToyboxPictures.load(settings, size=own, say=say))
        case "mixture2d":
            return MixturePoints.draw(settings.num_pictures)
    raise InputError(f"There is no data {name!r}{near_matches(name, DATA)}; choose one of {', '.join(DATA)}.")


def class_numbers(text: str, classes: tuple[str, ...]) -> tuple[int, ...]:
    """'mushroom,3' -> labels: names of classes, or their numbers.

    Raises:
        InputError: neither.
    """
    labels = []
    for word in (part.strip() for part in text.split(",")):
        if word in classes:
            labels.append(classes.index(word))
        elif word.isdecimal() and int(word) < max(len(classes), 1):
            labels.append(int(word))
        else:
            known = f"; the labels are {', '.join(classes)}" if classes else ""
            raise InputError(f"There is no label {word!r}{near_matches(word, classes)}{known}.")
    return tuple(labels)


def _kinds(text: str | None) -> tuple[str, ...]:
    from nerf3d.toybox.kinds import KINDS

    if text is None:
        return tuple(KINDS)
    return tuple(tuple(KINDS)[label] for label in sorted(set(class_numbers(text, tuple(KINDS)))))


def _has_pictures(folder: Path, size: int) -> bool:
    """Whether there are shards from which pictures of this size can be made."""
    from safetensors import safe_open

    first = next(iter(sorted(folder.glob("items-*.safetensors"))), None)
    if first is None:
        return False
    with safe_open(first, framework="pt") as file:
        return file.get_slice("images").get_shape()[-1] % size == 0


def _resized(images: Tensor, size: int, folder: Path) -> Tensor:
    """(n, 3, S, S) uint8 -> (n, 3, size, size) uint8, the mean of whole blocks of pixels."""
    factor, rest = divmod(images.shape[-1], size)
    if rest or not factor:
        raise InputError(
            f"The pictures of {folder} are {images.shape[-1]} pixels wide, which is no multiple of {size}; "
            f"render them with --size {size}, or leave data.folder out."
        )
    if factor == 1 or not len(images):
        return images[..., :size, :size]
    return F.avg_pool2d(images.float(), factor).round().to(torch.uint8)


def _rendered(settings: DataSettings, kinds: tuple[str, ...], *, size: int, say: Callable[[str], None]) -> Path:
    """The folder of shards of the toybox's first items of these kinds; finished ones are kept."""
    from nerf3d.toybox.shards import write_shards

    only = None if settings.kinds is None else kinds
    names = "" if only is None else "-" + "-".join(kinds).replace(" ", "_")
    folder = Path(RENDERED.format(look=settings.look, size=size, kinds=names))
    missing = -(-settings.num_pictures // SHARD_SIZE)
    if len(list(folder.glob("items-*.safetensors"))) >= missing:
        return folder
    say(f"rendering {missing * SHARD_SIZE} pictures of {size}x{size} into {folder}; a repeated command goes on")
    shards = write_shards(folder, missing * SHARD_SIZE, shard_size=SHARD_SIZE, size=size, look=settings.look, kinds=only)
    try:
        for path in shards:
            say(f"rendered {path}")
    except ValueError as error:
        raise InputError(f"{error}") from error
    return folder
