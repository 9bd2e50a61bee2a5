"""The recipe of a batch image job: one picture per row of a prompt table, in shards that never change.

Row r of the table (counted over all its files) is picture r. Unless the row says otherwise it is drawn from seed + r with
the job's settings. Rows r = k N ... k N + N - 1 are shard k, the unit that is written, resumed and repeated; which rows
share a forward pass follows from the shard alone, so a shard drawn again has the same bytes.

A row that cannot be drawn is an answer too (`Failed`): it never stops the others.

`table` is what there is to generate, `spec` how, `cells` what one row asks for, `generating` the way from rows to pictures.
"""

from __future__ import annotations

from jobs.batch_images.cells import (
    ALIASES,
    SETTINGS,
    Failed,
    FindAdapters,
    Picture,
    extra_columns,
    extra_values,
    read_row,
    read_size,
)
from jobs.batch_images.generating import EditSource, Generated, Generation, LoadSource, generate_rows
from jobs.batch_images.spec import OUTPUT_FORMATS, BatchImagesSpec, shard_range
from jobs.batch_images.table import COLUMN_TYPES, Row, Table, TableFile, batched, row_digest

__all__ = [
    "ALIASES",
    "COLUMN_TYPES",
    "OUTPUT_FORMATS",
    "SETTINGS",
    "BatchImagesSpec",
    "EditSource",
    "Failed",
    "FindAdapters",
    "Generated",
    "Generation",
    "LoadSource",
    "Picture",
    "Row",
    "Table",
    "TableFile",
    "batched",
    "extra_columns",
    "extra_values",
    "generate_rows",
    "read_row",
    "read_size",
    "row_digest",
    "shard_range",
]
