"""What a score-distillation query costs on its way: four views of 64x64 to the prior, gradient and target back.

Two tables, each measured in turns, so that a busy machine slows all rows alike. "query": the real prior, alone in this process,
then through the engine, the engine's thread and the actor. What sharing costs is each round's time less that of the engine's
own steps, so that a network that happens to be slower in another process does not count as transport. "transport": the query
and an answer of the real size through a plain Ray actor and through a Ray Serve handle, nothing computed; and through an actor
that first computes for as long as a query takes, after which caches hold other things and the caller's core has gone to sleep.

Serve is measured where its extra packages are installed (pip install "ray[serve]").
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import describe_machine, one_line
from diffusion import requests
from diffusion.distillation import Distilled, score_distillation
from diffusion.prior import Prior
from diffusion.requests import Guidance
from diffusion.seeding import normal_rows, stream
from jobs.prior_client import DistillationQuery
from orchestrator.host.threads import available_cores, use_threads
from orchestrator.prior.actor import MAX_CONCURRENCY
from orchestrator.prior.local import LocalPrior, load_prior
from orchestrator.prior.resident import ResidentPrior
from orchestrator.prior.wire import Wire
from orchestrator.runtimes.ray_runtime import RayRuntime

RESULTS = Path(__file__).parent / "results"
SIDES = ("front", "back", "left side", "right side")
Timings = dict[str, list[float]]


class Echo:
    """Answers a query with a gradient and a target of the right size."""

    def __init__(self) -> None:
        self._matrix = torch.zeros(1500, 1500)
        self._worked = 0.0

    def call(self, query: Wire, work_seconds: float = 0.0) -> Wire:
        """At once, or after so much arithmetic."""
        images = query.open().images
        begin = time.perf_counter()
        while time.perf_counter() - begin < work_seconds:
            self._matrix = self._matrix @ self._matrix
        self._worked += time.perf_counter() - begin
        return Wire(Distilled(gradient=images, target=images))

    def worked(self) -> float:
        """Seconds of arithmetic so far."""
        return self._worked


class AsyncEcho(Echo):
    """As a Serve replica's event loop wants it."""

    async def __call__(self, query: Wire) -> Wire:
        return self.call(query)


def example(prior: LocalPrior, *, views: int = 4) -> DistillationQuery:
    """A query as the default recipe sends it."""
    size = prior.info().image_size
    return DistillationQuery(
        images=normal_rows((3, size, size), [stream(0, "picture", view) for view in range(views)]).sigmoid(),
        prompts=tuple(f"a red mushroom with a white stem, {side} view" for side in SIDES[:views]),
        t=torch.tensor([150, 400, 650, 850])[:views],
        noise_keys=tuple((0, "noise", view) for view in range(views)),
        guidance=Guidance(scale=7.0, rescale=0.5, rescale_on="x0"),
    )


def in_turns(
    ways: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    warm_up: int = 5,
    inside: Mapping[str, Callable[[], float]] | None = None,
) -> tuple[Timings, Timings]:
    """Seconds of each way, `rounds` times one after the other; and those less the seconds spent inside.

    Args:
        inside: way -> seconds so far that are not to be counted.
    """
    seconds: Timings = {name: [] for name in ways}
    added: Timings = {name: [] for name in inside or {}}
    for turn in range(warm_up + rounds):
        for name, way in ways.items():
            before = inside[name]() if inside and name in inside else 0.0
            begin = time.perf_counter()
            way()
            taken = time.perf_counter() - begin
            if turn < warm_up:
                continue
            seconds[name].append(taken)
            if inside and name in inside:
                added[name].append(taken - (inside[name]() - before))
    return seconds, added


def summary(seconds: Timings, *, added: Timings | None = None) -> dict[str, dict[str, float]]:
    """Milliseconds per way: quantiles, and the median of what the way added."""

    def row(name: str) -> dict[str, float]:
        ordered = sorted(seconds[name])
        figures = {
            "p10": ordered[len(ordered) // 10],
            "p50": statistics.median(ordered),
            "p90": ordered[len(ordered) * 9 // 10],
        }
        if added and name in added:
            figures["added_p50"] = statistics.median(added[name])
        return {key: round(1e3 * value, 3) for key, value in figures.items()}

    return {name: row(name) for name in seconds}


def bare(prior: Prior, query: DistillationQuery) -> Callable[[], Any]:
    """The query without engine, thread or actor: the two-line driver."""
    condition = prior.condition(query.prompts, [query.negative_prompt] * len(query.prompts))
    noise = normal_rows(prior.latent_shape, [stream(int(key[0]), *key[1:]) for key in query.noise_keys])

    def answer() -> Any:
        generator = score_distillation(
            query.images, condition=condition, guidance=query.guidance, schedule=prior.schedule, t=query.t, noise=noise
        )
        return requests.run(generator, prior.answer)

    return answer


def transport(query: DistillationQuery, *, rounds: int, work_seconds: float) -> tuple[Timings, Timings]:
    """Actor and, where it is installed, Serve, and what was added to the work; Ray must be running."""
    import ray

    actor: Any = ray.remote(Echo)
    actor = actor.options(num_cpus=0.01, max_concurrency=MAX_CONCURRENCY).remote()
    message = Wire(query)
    ways: dict[str, Callable[[], Any]] = {
        "actor": lambda: ray.get(actor.call.remote(message)),
        "actor that has worked": lambda: ray.get(actor.call.remote(message, work_seconds)),
    }
    if importlib.util.find_spec("grpc_reflection") and importlib.util.find_spec("uvicorn"):
        from ray import serve

        deployment: Any = serve.deployment(
            AsyncEcho, max_ongoing_requests=MAX_CONCURRENCY, ray_actor_options={"num_cpus": 0.01}, num_replicas=1
        )
        handle = serve.run(deployment.bind(), name="latency", route_prefix=None)
        ways["Serve handle"] = lambda: handle.remote(message).result()
    else:
        print('Serve is left out; pip install "ray[serve]" for its row.', file=sys.stderr)
    inside = {"actor that has worked": lambda: ray.get(actor.worked.remote())}
    timings = in_turns(ways, rounds=rounds, inside=inside)
    if "Serve handle" in ways:
        serve.shutdown()
    ray.kill(actor)
    return timings


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--prior", default="toybox")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--num-threads", type=int, default=0, help="of torch, for every way; 0 for all cores")
    parser.add_argument("--out", type=Path, default=RESULTS / "service_latency.json")
    options = parser.parse_args(arguments)
    machine = describe_machine()
    use_threads(options.num_threads)
    prior = Prior.load(options.prior, device=options.device)
    local, resident = LocalPrior(prior), ResidentPrior(LocalPrior(prior), num_threads=options.num_threads)
    query = example(local)
    tables: dict[str, dict[str, dict[str, float]]] = {}
    with RayRuntime(load_prior, options.prior, device=options.device, num_threads=options.num_threads) as runtime:
        runtime.prior_info()  # waits until it is loaded
        actor = runtime.prior()
        ways = {
            "bare": bare(prior, query),
            "engine": lambda: local.distill(query),
            "engine's thread": lambda: resident.distill(query),
            "actor": lambda: actor.distill(query),
        }
        import ray  # RayRuntime sets what it reads when it is imported

        replica = runtime._replicas[0]

        def in_the_actor() -> float:
            figures = ray.get(replica.figures.remote())
            return sum(figures["seconds"].values())

        inside = {"engine's thread": lambda: sum(resident.figures.seconds.values()), "actor": in_the_actor}
        seconds, added = in_turns(ways, rounds=options.rounds, inside=inside)
        tables["query"] = summary(seconds, added=added)
        work_seconds = statistics.median(seconds["bare"])
        seconds, added = transport(query, rounds=options.rounds, work_seconds=work_seconds)
        tables["transport"] = summary(seconds, added=added)
    resident.close()
    print(one_line(machine))
    for title, rows in tables.items():
        print(f"\n{title:<18}{'p10 ms':>10}{'p50 ms':>10}{'p90 ms':>10}{'added p50 ms':>14}")
        for name, row in rows.items():
            cost = f"{row['added_p50']:.2f}" if "added_p50" in row else ""
            print(f"{name:<18}{row['p10']:>10.2f}{row['p50']:>10.2f}{row['p90']:>10.2f}{cost:>14}")
    settings = {"rounds": options.rounds, "device": options.device, "num_threads": options.num_threads or available_cores()}
    document = {
        "measured": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine,
        "settings": settings,
        "milliseconds": tables,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(f"\n{options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
