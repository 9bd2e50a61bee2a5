"""How a table is drawn: everything that shapes the pictures and the files that hold them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from jobs import codec
from jobs.batch_images.table import Table
from jobs.errors import InputError
from jobs.specs import PictureSettings, PictureSpec, Spec

__all__ = ["OUTPUT_FORMATS", "BatchImagesSpec", "shard_range"]

OUTPUT_FORMATS = ("png", "webdataset", "parquet")
MAX_SHARD_SIZE = 100_000


@dataclass(frozen=True, kw_only=True)
class BatchImagesSpec(PictureSettings, Spec):
    """Every row of a table to one picture; row r is drawn from seed + r. The settings are those of rows that say nothing else.

    Args:
        table: the prompts and what comes with them.
        prompt_column: the column that holds the prompts.
        shard_size: rows per shard, 1 to 100,000.
        output_format: "png", "webdataset" or "parquet".
        clip: folder of a CLIP, see `diffusion.text.image_text`, that says of each picture how well it fits its prompt, the
            column `clip_score`; "": none. clip_hash: sha256 of its weights.
        min_clip_score: pictures below it are marked, `is_kept` false, and stay; None marks none.
        phash: whether each picture gets a hash that near-duplicates share, the column `phash`.

    Raises:
        InputError: a value that is not allowed, named.
    """

    kind: ClassVar[str] = "batch-images"

    table: Table
    prompt_column: str = "prompt"
    shard_size: int = 1000
    output_format: str = "png"
    clip: str = field(default="", metadata=codec.NOT_IN_FINGERPRINT)
    clip_hash: str = field(default="", metadata=codec.IN_FINGERPRINT_IF_SET)
    min_clip_score: float | None = field(default=None, metadata=codec.IN_FINGERPRINT_IF_SET)
    phash: bool = field(default=False, metadata=codec.IN_FINGERPRINT_IF_SET)

    def __post_init__(self) -> None:
        if not 1 <= self.shard_size <= MAX_SHARD_SIZE:
            raise InputError(f"shard_size is {self.shard_size:,}, but 1 to {MAX_SHARD_SIZE:,} is allowed.")
        if self.output_format not in OUTPUT_FORMATS:
            hint = codec.near_matches(self.output_format, OUTPUT_FORMATS)
            raise InputError(
                f"There is no output format {self.output_format!r}{hint}; choose one of {', '.join(OUTPUT_FORMATS)}."
            )
        if self.min_clip_score is not None and not self.clip_hash:
            raise InputError("--min-clip-score marks pictures by their CLIP score; give --clip FOLDER too.")
        if self.min_clip_score is not None and not -1 <= self.min_clip_score <= 1:
            raise InputError(f"--min-clip-score is {self.min_clip_score:g}, but a cosine from -1 to 1 was expected.")
        if not self.table.num_rows:
            raise InputError(f"{self.table.name} holds no rows; give a table with at least one prompt.")
        super().__post_init__()
        self.picture("any", seed=self.seed + self.table.num_rows - 1)

    def picture(self, prompt: str, **changes: Any) -> PictureSpec:
        """The settings of one row's picture, checked. Raises InputError naming the value that is not allowed."""
        shared = {item.name: getattr(self, item.name) for item in dataclasses.fields(PictureSettings)}
        return PictureSpec(**{"prompt": prompt, **shared, **changes})

    @property
    def num_shards(self) -> int:
        """The last one may be shorter."""
        return math.ceil(self.table.num_rows / self.shard_size)

    @property
    def title(self) -> str:
        """The table's name."""
        return self.table.name


def shard_range(spec: BatchImagesSpec, shard: int) -> range:
    """The rows of a shard."""
    start = shard * spec.shard_size
    return range(start, min(start + spec.shard_size, spec.table.num_rows))
