"""The output formats: one file each, all of one shape (`base.Sink`)."""

from __future__ import annotations

from jobs.batch_images import BatchImagesSpec
from orchestrator.batch.sinks.base import Sink, Written
from orchestrator.batch.storage.stores import Store

__all__ = ["Sink", "Written", "make_sink"]


def make_sink(spec: BatchImagesSpec, store: Store) -> Sink:
    """The sink that the spec names; each module is loaded only if it is used."""
    match spec.output_format:
        case "png":
            from orchestrator.batch.sinks.png import PngSink

            return PngSink(spec, store)
        case "webdataset":
            from orchestrator.batch.sinks.webdataset import WebDatasetSink

            return WebDatasetSink(spec, store)
        case _:
            from orchestrator.batch.sinks.parquet import ParquetSink

            return ParquetSink(spec, store)
