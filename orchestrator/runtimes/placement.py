"""What our actors ask of Ray to find a place: shares of one machine, or whole cores of some node of a cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.errors import InputError
from orchestrator.host.gpus import device_in_actor, gpu_share

__all__ = ["ClusterSizes", "Placement", "cluster_device", "on_cluster", "on_this_machine"]

GPU_MEMORY = "gpu_memory_gb"
"""The resource by which a node of a cluster says how many gigabytes its GPUs have together, which Ray does not find out."""
PRIOR_SHARE = 0.25
"""Of one machine's cores, for priors; jobs share the rest."""
MAX_PRIORS = 4


@dataclass(frozen=True, kw_only=True)
class ClusterSizes:
    """Of the actors on a cluster, in cores and GPUs of one node; GPUs count where the device is cuda.

    Args:
        job_cpus, job_gpus: of each job. prior_cpus: of each replica of a prior.
        prior_gpus: of each replica; None: a whole one for a large prior and where there are several replicas, which Ray would
            otherwise put beside each other, else a half.
    """

    job_cpus: float = 1.0
    job_gpus: float = 0.25
    prior_cpus: float = 1.0
    prior_gpus: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is None:
                continue
            least = 0.0 if name.endswith("gpus") else 0.01
            if not least <= value <= 1024:
                raise InputError(f"--{name.replace('_', '-')} is {value:g}; give {least:g} to 1024.")
            if name.endswith("gpus") and value > 1 and value != int(value):
                raise InputError(f"--{name.replace('_', '-')} is {value:g}; Ray gives parts of one GPU, or several whole ones.")


@dataclass(frozen=True, kw_only=True)
class Placement:
    """For every actor of an orchestrator or a command.

    Args:
        device: of torch, as actors call it. job, prior: `num_cpus` and `num_gpus`, as Ray takes them.
        is_prior_sized: a large prior takes a whole GPU, whatever `prior` says.
        job_threads, prior_threads: of torch in an actor that was not told how many; 0: every core of its node.
        num_jobs: jobs that find a place beside the priors. memory_bytes: of all nodes, as Ray counts it.
        gpu_bytes: of each GPU of the cluster, where every node with GPUs declares them as GPU_MEMORY; of these priors ask Ray.
        is_memory_asked: jobs and shard workers say how much memory they need, so that Ray places them where it is.
    """

    device: str
    job: Mapping[str, float]
    prior: Mapping[str, float]
    is_prior_sized: bool = False
    job_threads: int = 0
    prior_threads: int = 0
    num_jobs: int = 1
    memory_bytes: int = 0
    gpu_bytes: tuple[int, ...] = ()
    is_memory_asked: bool = False

    def job_options(self, memory_bytes: int = 0) -> dict[str, Any]:
        """Options of a job's actor."""
        return {**self.job, **({"memory": memory_bytes} if self.is_memory_asked and memory_bytes else {})}

    def settings_there(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """A job's settings as they hold in its actor: it joins nothing, sees one GPU, has its own threads if none are set."""
        runtime = {**settings.get("runtime", {}), "address": ""}
        if "device" in runtime:
            runtime["device"] = device_in_actor(runtime["device"])
        return {**settings, "runtime": runtime | {"num_threads": runtime.get("num_threads") or self.job_threads}}

    def prior_options(self, num_bytes: int = 0) -> dict[str, Any]:
        """Options of a replica's actor. num_bytes: that the prior takes of a GPU at ease; 0: not known."""
        options: dict[str, Any] = dict(self.prior)
        if self.is_prior_sized and num_bytes:
            share = gpu_share(num_bytes, min(self.gpu_bytes, default=0))
            options["num_gpus"] = max(share, self.prior["num_gpus"])
        if self.gpu_bytes and num_bytes and options["num_gpus"]:
            options["resources"] = {GPU_MEMORY: min(num_bytes, *self.gpu_bytes) / 1e9}
        return options


def on_this_machine(*, num_cpus: float, num_workers: int, device: str, num_threads: int = 0) -> Placement:
    """Shares of one machine: its jobs and priors take turns on all its cores, so each may use them all.

    Of GPUs they ask Ray for none: which one an actor gets is `orchestrator.host.gpus.Gpus`'s choice.
    """
    return Placement(
        device=device_in_actor(device),
        job={"num_cpus": num_cpus * (1 - PRIOR_SHARE) / num_workers, "num_gpus": 0.0},
        prior={"num_cpus": num_cpus * PRIOR_SHARE / MAX_PRIORS, "num_gpus": 0.0},
        prior_threads=num_threads,
        num_jobs=num_workers,
    )


def on_cluster(
    nodes: Sequence[Mapping[str, float]],
    *,
    sizes: ClusterSizes | None = None,
    device: str = "auto",
    num_threads: int = 0,
    num_priors: int = 1,
) -> Placement:
    """Whole cores of some node for each actor, and as many threads.

    Args:
        nodes: per living node its resources by Ray's names: CPU, GPU, memory.
        device: "auto" is cuda where any node has a GPU: this machine may have none.
        num_threads: of torch in each prior; 0: as many as it has cores. num_priors: replicas of the prior.
    """
    sizes = sizes or ClusterSizes()
    device = cluster_device(nodes) if device == "auto" else device
    on_gpu = device.startswith("cuda")
    is_sized = on_gpu and sizes.prior_gpus is None
    prior_gpus = (1.0 if num_priors > 1 else 0.5) if sizes.prior_gpus is None else sizes.prior_gpus
    job = {"num_cpus": sizes.job_cpus, "num_gpus": sizes.job_gpus if on_gpu else 0.0}
    prior = {"num_cpus": sizes.prior_cpus, "num_gpus": prior_gpus if on_gpu else 0.0}
    return Placement(
        device=device_in_actor(device),
        is_prior_sized=is_sized,
        job=job,
        prior=prior,
        job_threads=max(1, int(sizes.job_cpus)),
        prior_threads=num_threads or max(1, int(sizes.prior_cpus)),
        num_jobs=_room(nodes, job, prior, num_priors),
        memory_bytes=int(sum(node.get("memory", 0) for node in nodes)),
        gpu_bytes=_gpu_bytes(nodes) if on_gpu else (),
        is_memory_asked=True,
    )


def cluster_device(nodes: Sequence[Mapping[str, float]]) -> str:
    """ "cuda" where any node has a GPU, else "cpu"."""
    return "cuda" if any(node.get("GPU", 0) > 0 for node in nodes) else "cpu"


def _gpu_bytes(nodes: Sequence[Mapping[str, float]]) -> tuple[int, ...]:
    """Of each GPU, if every node that has some says how much memory they have."""
    with_gpus = [node for node in nodes if node.get("GPU", 0) >= 1]
    if not all(node.get(GPU_MEMORY) for node in with_gpus):
        return ()
    return tuple(int(1e9 * node[GPU_MEMORY] / node["GPU"]) for node in with_gpus for _ in range(int(node["GPU"])))


def _room(nodes: Sequence[Mapping[str, float]], job: Mapping[str, float], prior: Mapping[str, float], num_priors: int) -> int:
    """Jobs that fit beside the priors, each of which goes where it costs the fewest of them; at least 1: a cluster may grow."""
    left = [dict(node) for node in nodes]
    for _ in range(num_priors):
        homes = [node for node in left if _fitting(node, prior)]
        if homes:
            home = min(homes, key=lambda node: _fitting(node, job) - _fitting(_less(node, prior), job))
            home.update(_less(home, prior))
    return max(1, sum(_fitting(node, job) for node in left))


_NAMES = {"num_cpus": "CPU", "num_gpus": "GPU"}


def _fitting(node: Mapping[str, float], actor: Mapping[str, float]) -> int:
    """How many of an actor a node holds."""
    asked = [name for name in _NAMES if actor[name] > 0]
    return max(0, min(int(node.get(_NAMES[name], 0.0) / actor[name] + 1e-9) for name in asked))


def _less(node: Mapping[str, float], actor: Mapping[str, float]) -> dict[str, float]:
    """What the node has left beside that actor."""
    return {**node, **{theirs: node.get(theirs, 0.0) - actor[ours] for ours, theirs in _NAMES.items()}}
