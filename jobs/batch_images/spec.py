"""How a table is drawn: everything that shapes the pictures and the files that hold them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar

from diffusion.samplers import Spacing
from jobs import codec
from jobs.batch_images.table import Table
from jobs.errors import InputError
from jobs.specs import ImagesSpec
from jobs.words.prompts import slug

__all__ = ["OUTPUT_FORMATS", "BatchImagesSpec", "shard_range"]

OUTPUT_FORMATS = ("png", "webdataset", "parquet")
MAX_SHARD_SIZE = 100_000


@dataclass(frozen=True, kw_only=True)
class BatchImagesSpec:
    """Every row of a table to one picture.

    Args:
        table: the prompts and what comes with them.
        prompt_column: the column that holds the prompts.
        seed: row r is drawn from seed + r.
        prior, num_steps, guidance_scale, guidance_rescale, guidance_interval, sampler, timestep_spacing,
            negative_prompt, strength,
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
    timestep_spacing: Spacing | None = ImagesSpec.timestep_spacing
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
