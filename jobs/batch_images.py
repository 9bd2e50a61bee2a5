"""The recipe of a batch image job: one picture per row of a prompt table, in shards that never change.

Row r of the table (counted over all its files) is picture r. Unless the row says otherwise it is drawn from seed + r with
the job's settings. Rows r = k N ... k N + N - 1 are shard k, the unit that is written, resumed and repeated; which rows
share a forward pass follows from the shard alone, so a shard drawn again has the same bytes.

A row that cannot be drawn is an answer too (`Failed`): it never stops the others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch

from diffusion.requests import Guidance
from jobs import codec
from jobs.errors import InputError, JobFailed
from jobs.images import EditSource
from jobs.prior_client import DrawRequest, PriorClient, PriorInfo
from jobs.prompts import check_prompt, slug
from jobs.specs import ImagesSpec

__all__ = [
    "COLUMN_TYPES",
    "OUTPUT_FORMATS",
    "SETTINGS",
    "BatchImagesSpec",
    "Drawn",
    "Failed",
    "Picture",
    "Row",
    "Table",
    "TableFile",
    "batched",
    "draw_rows",
    "extra_values",
    "row_digest",
    "shard_range",
]

OUTPUT_FORMATS = ("png", "webdataset", "parquet")
COLUMN_TYPES = ("bool", "int", "float", "text", "json")
SETTINGS = (
    "seed",
    "negative_prompt",
    "num_steps",
    "guidance_scale",
    "guidance_rescale",
    "sampler",
    "size",
    "init_image",
    "mask",
    "strength",
)
"""Columns that set something for their row; an empty cell leaves the job's own value. The others are kept as they are."""
ALIASES = {"steps": "num_steps"}
MAX_SHARD_SIZE = 100_000
LEAST_ROWS_TO_BLAME_THE_PRIOR = 16
CHUNKS_PER_WINDOW = 16

Cause = Literal["unreadable", "prompt", "setting", "initial image", "prior"]
LoadSource = Callable[["Picture", int], EditSource]
"""(a picture with an initial image, pixels per side) -> what it starts from; raises InputError."""
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class TableFile:
    """One file of a prompt table: its name within the table, its content's size and sha256, and its rows."""

    name: str
    num_bytes: int
    sha256: str
    num_rows: int


@dataclass(frozen=True, kw_only=True)
class Table:
    """What a prompt table holds; two tables with one content are equal wherever they lie.

    Args:
        files: in the order in which their rows are counted.
        columns: name -> one of `COLUMN_TYPES`, in order of first appearance.
    """

    files: tuple[TableFile, ...]
    columns: Mapping[str, str]

    @property
    def num_rows(self) -> int:
        """Of all files, unreadable ones included."""
        return sum(file.num_rows for file in self.files)

    @property
    def name(self) -> str:
        """The first file's, and how many more there are."""
        return self.files[0].name + (f"-and-{len(self.files) - 1}-more" if len(self.files) > 1 else "")


@dataclass(frozen=True, kw_only=True)
class BatchImagesSpec:
    """Every row of a table to one picture.

    Args:
        table: the prompts and what comes with them.
        prompt_column: the column that holds the prompts.
        seed: row r is drawn from seed + r.
        prior, num_steps, guidance_scale, guidance_rescale, guidance_interval, sampler, negative_prompt, strength,
            mask_feather, chunk_size: see `ImagesSpec`; of the rows that say nothing else.
        strict: each picture is bit-identical whatever else the prior is asked meanwhile, which costs speed.
        shard_size: rows per shard, 1 to 100,000.
        output_format: "png", "webdataset" or "parquet".

    Raises:
        InputError: a value that is not allowed, named.
    """

    kind: ClassVar[str] = "batch-images"

    table: Table
    prompt_column: str = "prompt"
    seed: int = 0
    prior: str = ImagesSpec.prior
    num_steps: int = ImagesSpec.num_steps
    guidance_scale: float = ImagesSpec.guidance_scale
    guidance_rescale: float = ImagesSpec.guidance_rescale
    guidance_interval: tuple[int, int] = ImagesSpec.guidance_interval
    sampler: str = ImagesSpec.sampler
    negative_prompt: str = ImagesSpec.negative_prompt
    strength: float | None = ImagesSpec.strength
    mask_feather: float = ImagesSpec.mask_feather
    chunk_size: int = ImagesSpec.chunk_size
    strict: bool = False
    shard_size: int = 1000
    output_format: str = "png"

    def __post_init__(self) -> None:
        if not 1 <= self.shard_size <= MAX_SHARD_SIZE:
            raise InputError(f"shard_size is {self.shard_size:,}, but 1 to {MAX_SHARD_SIZE:,} is allowed.")
        if self.output_format not in OUTPUT_FORMATS:
            hint = codec.near_matches(self.output_format, OUTPUT_FORMATS)
            raise InputError(
                f"There is no output format {self.output_format!r}{hint}; choose one of {', '.join(OUTPUT_FORMATS)}."
            )
        if not self.table.num_rows:
            raise InputError(f"{self.table.name} holds no rows; give a table with at least one prompt.")
        self.image("any", seed=self.seed + self.table.num_rows - 1)

    def image(self, prompt: str, **changes: Any) -> ImagesSpec:
        """The settings of one row's picture, checked. Raises InputError naming the value that is not allowed."""
        shared = {name: getattr(self, name) for name in _SHARED}
        return ImagesSpec(**{"prompt": prompt, "num_images": 1, **shared, **changes})

    @property
    def num_shards(self) -> int:
        """The last one may be shorter."""
        return math.ceil(self.table.num_rows / self.shard_size)

    @property
    def name(self) -> str:
        """A safe, readable, practically unique name: the table's and eight digits of the fingerprint."""
        return f"{slug(self.table.name)}-{self.fingerprint()[:8]}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, with the kind of job beside the fields."""
        return {"kind": self.kind, **codec.to_plain(self)}

    def fingerprint(self) -> str:
        """sha256 (hex) of everything that can change the result, the table's content included."""
        return codec.fingerprint(self)


_SHARED = tuple(
    item.name for item in dataclasses.fields(ImagesSpec) if item.name in {f.name for f in dataclasses.fields(BatchImagesSpec)}
)


def shard_range(spec: BatchImagesSpec, shard: int) -> range:
    """The rows of a shard."""
    start = shard * spec.shard_size
    return range(start, min(start + spec.shard_size, spec.table.num_rows))


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the table.

    Args:
        index: over the whole table, from 0. file, number: which file, and which of its rows, from 1. line: of a text file.
        values: column -> cell. problem: why the row could not be read; then `values` is empty.
    """

    index: int
    file: str
    number: int
    line: int | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None

    @property
    def place(self) -> str:
        """'prompts.csv, row 517 (line 518)'"""
        return f"{self.file}, row {self.number:,}" + (f" (line {self.line:,})" if self.line is not None else "")


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What a row asks for.

    Args:
        row: where it comes from.
        image: prompt, seed and settings. Its init_image and mask are paths or URLs, as the cells say.
    """

    row: Row
    image: ImagesSpec

    @property
    def together(self) -> tuple[Any, ...]:
        """Pictures for which this is equal can share a forward pass."""
        image = self.image
        settings = (image.num_steps, image.sampler, image.guidance_scale, image.guidance_rescale, image.negative_prompt)
        return settings if image.init_image is None else (*settings, image.strength, image.mask is not None)


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """A picture that was drawn: uint8 (H, W, 3)."""

    picture: Picture
    image: np.ndarray

    @property
    def row(self) -> Row:
        """Where it comes from."""
        return self.picture.row


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A row without a picture. message: one sentence that names file and row."""

    row: Row
    cause: Cause
    message: str


def draw_rows(
    spec: BatchImagesSpec,
    rows: Iterable[Row],
    prior: PriorClient,
    *,
    info: PriorInfo,
    load_source: LoadSource | None = None,
) -> Iterator[Drawn | Failed]:
    """Draw the rows and yield one answer a row, in their order.

    Rows with the same settings are drawn together, at most `chunk_size` at once, within windows of 16 chunks: what is held
    does not grow with the number of rows. When a forward pass fails, its rows are tried one by one, so that a poisonous
    row fails alone.

    Args:
        info: the prior's; fetched once by the caller.
        load_source: reads initial images and masks; without it such rows fail.

    Raises:
        JobFailed: the prior itself is gone, or failed at every one of many rows.
    """
    reached = failed = 0
    for window in batched(rows, spec.chunk_size * CHUNKS_PER_WINDOW):
        for answer in _draw_window(spec, window, prior, info, load_source):
            yield answer
            blamed = isinstance(answer, Failed) and answer.cause == "prior"
            reached += blamed or isinstance(answer, Drawn)
            failed += blamed
            if isinstance(answer, Failed) and failed == reached >= LEAST_ROWS_TO_BLAME_THE_PRIOR:
                raise JobFailed(f"The prior failed at each of the first {failed} rows that reached it; {answer.message}")


def extra_values(spec: BatchImagesSpec, row: Row) -> dict[str, Any]:
    """The cells that mean nothing to us and are kept, by column, as JSON values."""
    return {name: row.values.get(name) for name in extra_columns(spec)}


def extra_columns(spec: BatchImagesSpec) -> list[str]:
    """The table's columns that are kept as they are."""
    return [name for name in spec.table.columns if name != spec.prompt_column and ALIASES.get(name, name) not in SETTINGS]


def row_digest(rows: Iterable[Row]) -> str:
    """sha256 (hex) of where rows stand and what they hold."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(codec.canonical_json([row.index, dict(row.values)]).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


class _RowError(Exception):
    def __init__(self, cause: Cause, message: str) -> None:
        super().__init__(message)
        self.cause = cause


def read_row(spec: BatchImagesSpec, row: Row, info: PriorInfo) -> Picture | Failed:
    """What the row asks for, or why that cannot be drawn."""
    try:
        return _picture(spec, row, info)
    except _RowError as error:
        return _failed(row, error.cause, str(error))


def _picture(spec: BatchImagesSpec, row: Row, info: PriorInfo) -> Picture:
    if row.problem is not None:
        raise _RowError("unreadable", row.problem)
    cells = {ALIASES.get(name, name): value for name, value in row.values.items() if not _is_empty(value)}
    try:
        prompt = check_prompt(cells.get(spec.prompt_column, ""))
    except InputError as error:
        raise _RowError("prompt", str(error)) from error
    try:
        changes = {name: convert(name, cells[name]) for name, convert in _CONVERTERS.items() if name in cells}
        if "mask" in changes and "init_image" not in changes:
            raise InputError("There is a mask but no init_image; give the picture that the mask belongs to.")
        _check_size(cells.get("size"), info)
        return Picture(row=row, image=spec.image(prompt, **{"seed": spec.seed + row.index, **changes}))
    except InputError as error:
        raise _RowError("setting", str(error)) from error


def _draw_window(
    spec: BatchImagesSpec, rows: Sequence[Row], prior: PriorClient, info: PriorInfo, load_source: LoadSource | None
) -> Iterator[Drawn | Failed]:
    """Answers in the order of the rows, each as soon as those before it are there."""
    answers: dict[int, Drawn | Failed] = {}
    groups: dict[tuple[Any, ...], list[Picture]] = {}
    for row in rows:
        picture = read_row(spec, row, info)
        if isinstance(picture, Failed):
            answers[row.index] = picture
        else:
            groups.setdefault(picture.together, []).append(picture)
    waiting = deque(row.index for row in rows)
    for pictures in groups.values():
        for chunk in batched(pictures, spec.chunk_size):
            for answer in _draw_chunk(chunk, prior, info, load_source, strict=spec.strict):
                answers[answer.row.index] = answer
            while waiting and waiting[0] in answers:
                yield answers.pop(waiting.popleft())
    for index in waiting:
        yield answers[index]


def _draw_chunk(
    pictures: Sequence[Picture], prior: PriorClient, info: PriorInfo, load_source: LoadSource | None, *, strict: bool
) -> Iterator[Drawn | Failed]:
    ready: list[tuple[Picture, EditSource | None]] = []
    for picture in pictures:
        try:
            ready.append((picture, _source(picture, info, load_source)))
        except InputError as error:
            yield _failed(picture.row, "initial image", str(error))
    if not ready:
        return
    try:
        yield from _draw(ready, prior, strict=strict)
    except Exception:
        prior.info()  # raises where the prior is gone; then no row is to blame
        for one in ready:
            yield _draw_alone(one, prior, strict=strict)


def _draw_alone(one: tuple[Picture, EditSource | None], prior: PriorClient, *, strict: bool) -> Drawn | Failed:
    try:
        return _draw([one], prior, strict=strict)[0]
    except Exception as error:
        prior.info()
        words = str(error) if isinstance(error, (JobFailed, InputError)) else f"{type(error).__name__}: {error}"
        return _failed(one[0].row, "prior", words)


def _draw(ready: Sequence[tuple[Picture, EditSource | None]], prior: PriorClient, *, strict: bool) -> list[Drawn]:
    pictures = [picture for picture, _ in ready]
    sources = [source for _, source in ready if source is not None]
    masks = [source.mask for source in sources if source.mask is not None]
    image = pictures[0].image
    request = DrawRequest(
        prompts=tuple(picture.image.prompt for picture in pictures),
        seeds=tuple(picture.image.seed for picture in pictures),
        num_steps=image.num_steps,
        sampler=image.sampler,
        guidance=Guidance(scale=image.guidance_scale, rescale=image.guidance_rescale, interval=image.guidance_interval),
        negative_prompt=image.negative_prompt,
        init_images=torch.stack([source.image for source in sources]) if sources else None,
        masks=torch.stack(masks) if masks else None,
        strength=1.0 if image.strength is None else image.strength,
        strict=strict,
    )
    return [Drawn(picture=one, image=array) for one, array in zip(pictures, prior.draw(request), strict=True)]


def _source(picture: Picture, info: PriorInfo, load_source: LoadSource | None) -> EditSource | None:
    if picture.image.init_image is None:
        return None
    if load_source is None:
        raise InputError("The row has an init_image, but initial images cannot be read here.")
    return load_source(picture, info.image_size)


def _failed(row: Row, cause: Cause, words: str) -> Failed:
    return Failed(row=row, cause=cause, message=f"{row.place}: {words.rstrip('.')}.")


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip()) or (isinstance(value, float) and math.isnan(value))


def _number(name: str, value: Any) -> float:
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"{name} is {value!r}, but a number was expected.")
    return value


def _whole(name: str, value: Any) -> int:
    if isinstance(value, str) and value.strip().lstrip("+-").isdecimal():
        return int(value)  # not through a float, which would round a large seed
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    number = _number(name, value)
    if not float(number).is_integer():
        raise InputError(f"{name} is {value!r}, but a whole number was expected.")
    return int(number)


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
    "negative_prompt": _text,
    "init_image": _text,
    "mask": _text,
    "strength": _number,
}


def _check_size(value: Any, info: PriorInfo) -> None:
    """The prior draws one size; a row may say it, as 64 or 64x64."""
    if value is None:
        return
    sides = value.lower().replace(" ", "").split("x") if isinstance(value, str) else [value]
    try:
        wanted = {_whole("size", side) for side in sides}
    except InputError:
        wanted = set()
    if wanted != {info.image_size} or len(sides) > 2:
        raise InputError(
            f"size is {value!r}, but the prior {info.name!r} draws {info.image_size}x{info.image_size}; leave the cell empty "
            "or use a prior of that size."
        )
