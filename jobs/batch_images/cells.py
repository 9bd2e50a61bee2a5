"""What one row asks for: its cells, read as settings of its picture, or the reason why they cannot be."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from diffusion.checkpoints.lora_files import AdapterFile
from jobs.batch_images.spec import BatchImagesSpec
from jobs.batch_images.table import Row
from jobs.errors import InputError
from jobs.prior_client import PriorInfo
from jobs.specs import PictureSpec
from jobs.words.prompts import check_prompt

__all__ = [
    "ADAPTERS",
    "ALIASES",
    "SETTINGS",
    "AdapterColumn",
    "Cause",
    "Failed",
    "FindAdapters",
    "Picture",
    "extra_columns",
    "extra_values",
    "failed",
    "read_row",
    "read_size",
]

AdapterColumn = Literal["lora", "textual_inversion"]
SETTINGS = (
    "seed",
    "negative_prompt",
    "num_steps",
    "guidance_scale",
    "guidance_rescale",
    "sampler",
    "timestep_spacing",
    "size",
    "width",
    "height",
    "init_image",
    "mask",
    "strength",
    "lora",
    "textual_inversion",
)
"""Columns that set something for their row; an empty cell leaves the job's own value. The others are kept as they are."""
ALIASES = {"steps": "num_steps"}
"""Other names of these columns."""
WHOLE_LIMIT = 2**64
SHOWN_CHARACTERS = 60

ADAPTERS: Mapping[AdapterColumn, str] = {"lora": "loras", "textual_inversion": "embeddings"}
"""Columns of adapter files, FILE:SCALE and FILE:WORD with ";" between them, and the settings that they set."""
NO_ADAPTER = "none"
"""In a cell: not even the job's own."""

Cause = Literal["unreadable", "prompt", "setting", "initial image", "lora", "textual_inversion", "prior"]
"""Why a row has no picture."""

FindAdapters = Callable[[AdapterColumn, Sequence[str], Row], tuple[AdapterFile, ...]]
"""(column, files as its cell says them, its row) -> those adapters; raises InputError."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What a row asks for.

    Args:
        row: where it comes from.
        image: prompt, seed and settings. Its init_image and mask are paths or URLs, as the cells say.
        camera: (azimuth, elevation) in degrees of a view; None for a picture without a camera.
    """

    row: Row
    image: PictureSpec
    camera: tuple[float, float] | None = None

    @property
    def together(self) -> tuple[Any, ...]:
        """Pictures for which this is equal can share a forward pass."""
        image = self.image
        guidance = (image.guidance_scale, image.guidance_rescale, image.negative_prompt)
        size = (image.width, image.height)
        sampling = (image.num_steps, image.sampler, image.timestep_spacing)
        settings = (*sampling, *guidance, *size, image.adapters, self.camera is None)
        return settings if image.init_image is None else (*settings, image.strength, image.mask is not None)


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A row without a picture. message: one sentence that names file and row."""

    row: Row
    cause: Cause
    message: str


def failed(row: Row, cause: Cause, words: str) -> Failed:
    """The row's failure, its place put before the words."""
    return Failed(row=row, cause=cause, message=f"{row.place}: {words.rstrip('.')}.")


def read_row(spec: BatchImagesSpec, row: Row, info: PriorInfo, find_adapters: FindAdapters | None = None) -> Picture | Failed:
    """What the row asks for, or why that cannot be drawn.

    Args:
        info: the prior's, whose sizes are checked. find_adapters: without it rows with a LoRA or a textual inversion of
            their own fail.
    """
    if row.problem is not None:
        return failed(row, "unreadable", row.problem)
    cells = {ALIASES.get(name, name): value for name, value in row.values.items() if not _is_empty(value)}
    try:
        prompt = check_prompt(cells.get(spec.prompt_column, ""))
    except InputError as error:
        return failed(row, "prompt", str(error))
    try:
        changes = {name: convert(name, cells[name]) for name, convert in _CONVERTERS.items() if name in cells}
        if "mask" in changes and "init_image" not in changes:
            raise InputError("There is a mask but no init_image; give the picture that the mask belongs to.")
        if "size" in cells:
            if both := [name for name in ("width", "height") if name in cells]:
                raise InputError(f"There are a size and a {both[0]}; give one of them.")
            changes["width"], changes["height"] = read_size(cells["size"])
        image = spec.picture(prompt, **{"seed": spec.seed + row.index, **changes})
        info.size_of(image.width, image.height)
    except InputError as error:
        return failed(row, "setting", str(error))
    for column, setting in ADAPTERS.items():
        try:
            if column in cells:
                found: dict[str, Any] = {setting: _adapters(column, _text(column, cells[column]), row, find_adapters)}
                image = replace(image, **found)
        except InputError as error:
            return failed(row, column, str(error))
    return Picture(row=row, image=image)


def _adapters(column: AdapterColumn, cell: str, row: Row, find_adapters: FindAdapters | None) -> tuple[AdapterFile, ...]:
    if cell.lower() == NO_ADAPTER:
        return ()
    if find_adapters is None:
        raise InputError(f"The row has a {column}, but files cannot be read here.")
    return find_adapters(column, [one.strip() for one in cell.split(";") if one.strip()], row)


def extra_values(spec: BatchImagesSpec, row: Row) -> dict[str, Any]:
    """The cells that mean nothing to us and are kept, by column, as JSON values."""
    return {name: row.values.get(name) for name in extra_columns(spec)}


def extra_columns(spec: BatchImagesSpec) -> list[str]:
    """The table's columns that are kept as they are."""
    return [name for name in spec.table.columns if name != spec.prompt_column and ALIASES.get(name, name) not in SETTINGS]


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip()) or (isinstance(value, float) and math.isnan(value))


def _number(name: str, value: Any) -> float:
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not _is_finite(value):
        raise InputError(f"{name} is {_shown(value)}, but a number was expected.")
    return value


def _whole(name: str, value: Any) -> int:
    number = value
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            number = int(value)  # not through a float, which would round a large seed
    if not isinstance(number, int) or isinstance(number, bool):
        number = _number(name, number)
        if not float(number).is_integer():
            raise InputError(f"{name} is {value!r}, but a whole number was expected.")
    if abs(number) >= WHOLE_LIMIT:
        raise InputError(f"{name} is {_shown(value)}, but a whole number of at most 64 bits was expected.")
    return int(number)


def _is_finite(number: float) -> bool:
    """An integer may be larger than any float."""
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


def _shown(value: Any) -> str:
    """The value as a message shows it: Python writes out no integers of thousands of digits, and nobody reads them."""
    if isinstance(value, int) and abs(value) >= WHOLE_LIMIT:
        return f"a number of {value.bit_length():,} bits"
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InputError(f"{name} is {value!r}, but text was expected.")
    return value.strip()


_CONVERTERS: dict[str, Callable[[str, Any], Any]] = {
    "seed": _whole,
    "num_steps": _whole,
    "guidance_scale": _number,
    "guidance_rescale": _number,
    "sampler": _text,
    "timestep_spacing": _text,
    "negative_prompt": _text,
    "init_image": _text,
    "mask": _text,
    "strength": _number,
    "width": _whole,
    "height": _whole,
}


def read_size(value: Any) -> tuple[int, int]:
    """(width, height) of "512x768", or of one number for a square.

    Raises:
        InputError: it is neither.
    """
    sides = value.lower().replace(" ", "").split("x") if isinstance(value, str) else [value]
    try:
        wanted = [_whole("size", side) for side in sides]
    except InputError:
        wanted = []
    if len(wanted) not in (1, 2):
        raise InputError(f"size is {_shown(value)}, but width and height such as 512x768, or one number, were expected.")
    return wanted[0], wanted[-1]
