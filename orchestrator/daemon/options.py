"""How an orchestrator runs: what `dreamkiln up` says to the process that it starts."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field

from jobs.errors import InputError
from orchestrator.runtimes.placement import ClusterSizes
from orchestrator.scheduling import Capacity

__all__ = ["DaemonOptions"]


@dataclass(frozen=True, kw_only=True)
class DaemonOptions:
    """How an orchestrator runs.

    Args:
        state: its folder. ledger: URL of its database; a SQLite file in the folder by default.
        address: of a running Ray cluster; by default it starts a Ray of its own.
        num_workers: jobs at once; 0: one for every two cores, at least 2, or as many as the cluster has room for now.
        memory_gb: for workers and priors; 0: 80 % of what this machine has, or all that the cluster's nodes have now.
        sizes: of the actors on a cluster.
        host, port: of its HTTP API; port 0 takes a free one. metrics_port: of its own Ray's Prometheus endpoint, likewise.
        device, num_threads: of the priors, as in the runtime's settings.
        keep_days: ended jobs and their logs are forgotten after so many days; 0: never.
        outputs: where the folders of jobs that name none are made, a folder a user; STATE/outputs unless told.
        priors: that everybody with a token may ask; the owner of the state folder may ask any.
        urls: where the cells of others' tables may point, each the beginning of a URL up to a slash: https://HOST/PATH/.
        hosts: names under which others reach the HTTP API, beside its addresses.
        prior_replicas: processes that hold the same prior; jobs are spread over them, and go on with another if one dies.
    """

    state: str
    ledger: str | None = None
    address: str | None = None
    num_workers: int = 0
    memory_gb: float = 0.0
    host: str = "127.0.0.1"
    port: int = 0
    device: str = "auto"
    num_threads: int = 0
    prior_replicas: int = 1
    sizes: ClusterSizes = field(default_factory=ClusterSizes)
    metrics_port: int = 0
    keep_days: float = 0.0
    outputs: str = ""
    priors: tuple[str, ...] = ("toybox",)
    hosts: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.num_workers <= 10_000:
            raise InputError(f"--num-workers is {self.num_workers}; give 1 to 10,000, or 0 to count the cores.")
        if not 1 <= self.prior_replicas <= 1000:
            raise InputError(f"--prior-replicas is {self.prior_replicas}; give 1 to 1,000.")
        if not 0 <= self.memory_gb <= 1e6:
            raise InputError(f"--memory is {self.memory_gb:g}; give gigabytes, or 0 to take 80 % of this machine's.")
        if not 0 <= self.keep_days <= 1e6:
            raise InputError(f"--keep-days is {self.keep_days:g}; give days, or 0 to keep ended jobs for ever.")
        for name, port in (("--port", self.port), ("--metrics-port", self.metrics_port)):
            if not 0 <= port < 65536:
                raise InputError(f"{name} is {port}; give 1 to 65535, or 0 for a free one.")
        for url in self.urls:
            if not re.fullmatch(r"[a-z][a-z0-9+]*://[^/\s@?#]+/([^\s?#]*/)?", url) or ".." in url:
                raise InputError(
                    f"--allow-url is {url!r}; give the beginning of URLs up to a slash, such as https://HOST/PATH/."
                )
        if self.metrics_port and self.address:
            raise InputError("--metrics-port is for a Ray of our own; on a cluster give 'ray start' its --metrics-export-port.")

    def capacity(self) -> Capacity:
        """Of this machine, with what was left open filled in."""
        from orchestrator.host.threads import available_cores

        here = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return self.capacity_within(num_workers=max(2, available_cores() // 2), memory_bytes=int(0.8 * here))

    def capacity_within(self, *, num_workers: int, memory_bytes: int, gpus: tuple[int, ...] = ()) -> Capacity:
        """What was asked for, and these where nothing was; see `Capacity`."""
        return Capacity(
            num_workers=self.num_workers or num_workers,
            memory_bytes=int(self.memory_gb * 1e9) or memory_bytes,
            gpus=gpus,
            are_gpus_shared_out=not self.address,
        )
