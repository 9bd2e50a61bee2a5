"""Every metric of ours. docs/cluster.md lists them, docs/cluster/grafana_dashboard.json draws them."""

from __future__ import annotations

from orchestrator.metrics.instruments import Counter, Gauge, Histogram, Instrument

__all__ = ["METRICS"]

JOBS = Gauge("dreamkiln_jobs", "Jobs in the ledger.", ("state",))
JOBS_ENDED = Counter("dreamkiln_jobs_ended_total", "Jobs that ended since the orchestrator started.", ("outcome",))
LONGEST_WAIT = Gauge("dreamkiln_queue_longest_wait_seconds", "How long the job that waits longest has been ready to start.")
FIT_STEPS = Counter("dreamkiln_fit_steps_total", "Optimisation steps of 3D jobs.")

PRIOR_ROWS = Counter(
    "dreamkiln_prior_rows_total", "Rows that went through the network, guidance's unconditional ones included.", ("prior",)
)
PRIOR_BATCH_ROWS = Histogram(
    "dreamkiln_prior_batch_rows", "Rows of each forward, padding included.", ("prior",), buckets=(1, 2, 4, 8, 16, 32, 64, 128)
)
PRIOR_STAGE_SECONDS = Counter(
    "dreamkiln_prior_stage_seconds_total", "Time that the prior spent in each of its stages.", ("prior", "stage")
)
PRIOR_REQUEST_SECONDS = Histogram(
    "dreamkiln_prior_request_seconds",
    "From a request's arrival at the prior to its answer, waiting included.",
    ("prior", "request"),
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)
PRIOR_REQUEST_FAILURES = Counter("dreamkiln_prior_request_failures_total", "Requests that ended with an error.", ("prior",))
PRIOR_OUT_OF_MEMORY = Counter(
    "dreamkiln_prior_out_of_memory_total", "Batches that did not fit; each halved the cap.", ("prior",)
)
PRIOR_WEIGHTS_BYTES = Gauge("dreamkiln_prior_weights_bytes", "Size of a loaded prior's weights.", ("prior",))

SHARDS = Counter("dreamkiln_shards_total", "Shards of batch image jobs that were committed.")
SHARD_ROWS = Counter("dreamkiln_shard_rows_total", "Rows of committed shards.", ("outcome",))
SHARD_SECONDS = Histogram(
    "dreamkiln_shard_seconds", "From a shard's start to its commit.", buckets=(1, 5, 15, 60, 300, 900, 3600, 14400)
)

METRICS: tuple[Instrument, ...] = tuple(metric for metric in list(vars().values()) if isinstance(metric, Instrument))
