"""The engine against a bare PyTorch loop, and mixed load: one image job beside eight streams of text-to-3D queries.

Three tables. "curve": rows per second of the network by batch size, and the knee that the engine takes as its cap. "overhead":
images drawn by the engine, as one request and as one request each, against the same sampler in a bare loop; repeats take
turns. "mixed": row-steps per second of the same nine jobs (a) in nine processes, each with its own prior, (b) on one prior
with a static batch per job, forwarded in turn, and through the engine, with every job's share of its fair part.

A row-step is one row through the network once; a guided sample takes two. Everything runs alike on CUDA (--device cuda).
Beside the rate stands the rate per second of processor time, which on a CPU that others use too is the one to compare.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import describe_machine, one_line
from diffusion import requests
from diffusion.distillation import score_distillation
from diffusion.engine import EngineConfig
from diffusion.prior import Prior
from diffusion.requests import Guidance
from diffusion.samplers import SAMPLERS
from diffusion.seeding import normal_rows, stream
from jobs.prior_client import DistillationQuery, DrawRequest
from orchestrator.prior_service import LocalPrior, Pending
from orchestrator.runtimes.threads import available_cores, use_threads

RESULTS = Path(__file__).parent / "results"
IMAGE_GUIDANCE = Guidance(scale=4.0, rescale=0.5)
QUERY_GUIDANCE = Guidance(scale=7.0, rescale=0.5, rescale_on="x0")
PROMPT = "a red mushroom with a white stem"


def images_request(seeds: range, *, num_steps: int) -> DrawRequest:
    """The image job's next request."""
    return DrawRequest(
        prompts=(PROMPT,) * len(seeds), seeds=tuple(seeds), num_steps=num_steps, sampler="ddim", guidance=IMAGE_GUIDANCE
    )


def query_request(size: int, job: int, turn: int, *, views: int) -> DistillationQuery:
    """A 3D job's next query."""
    return DistillationQuery(
        images=normal_rows((3, size, size), [stream(job, "picture", view) for view in range(views)]).sigmoid(),
        prompts=(f"{PROMPT}, front view",) * views,
        t=(torch.arange(views) * 211 + turn * 37) % 900 + 50,
        noise_keys=tuple((job, "noise", turn, view) for view in range(views)),
        guidance=QUERY_GUIDANCE,
    )


# -- the same work without the engine ------------------------------------------------------------------------------------


class Bare:
    """A prior driven as a script would: each request alone, by the two-line driver; counts row-steps."""

    def __init__(self, prior: Prior) -> None:
        self._prior = prior
        self.rows = 0

    @torch.no_grad()
    def draw(self, request: DrawRequest) -> Any:
        """One request of the image job."""
        return requests.run(self.drawing(request), self.answer)

    @torch.no_grad()
    def distill(self, query: DistillationQuery) -> Any:
        """One query of a 3D job."""
        prior = self._prior
        generator = score_distillation(
            query.images.to(prior.device),
            condition=prior.condition(query.prompts, [query.negative_prompt] * len(query.prompts)),
            guidance=query.guidance,
            schedule=prior.schedule,
            t=query.t,
            noise=self._noise(query.noise_keys),
        )
        return requests.run(generator, self.answer)

    def drawing(self, request: DrawRequest) -> Any:
        """The generator of `draw`."""
        prior = self._prior
        latents = yield from SAMPLERS[request.sampler](
            self._noise([(seed, "image") for seed in request.seeds]),
            schedule=prior.schedule,
            timesteps=prior.schedule.timesteps(request.num_steps),
            condition=prior.condition(request.prompts, [request.negative_prompt] * len(request.prompts)),
            guidance=request.guidance,
        )
        return (yield requests.DecodeRequest(latents))

    def answer(self, request: Any) -> Any:
        """The prior's answer; both guidances double every row."""
        if isinstance(request, requests.DenoiseRequest):
            self.rows += 2 * len(request.x_t)
        return self._prior.answer(request)

    def _noise(self, names: Any) -> torch.Tensor:
        streams = [stream(int(name[0]), *name[1:]) for name in names]
        return normal_rows(self._prior.latent_shape, streams, device=self._prior.device)


# -- overhead ------------------------------------------------------------------------------------------------------------


def overhead(prior: Prior, *, num_images: int, num_steps: int, repeats: int) -> dict[str, Any]:
    """Row-steps per second of the same images, drawn three ways; the engine's as a share of the bare loop's."""
    whole = images_request(range(num_images), num_steps=num_steps)
    local = LocalPrior(prior, config=EngineConfig(row_cap=2 * num_images, max_rows=2 * num_images))
    bare = Bare(prior)

    def one_each() -> None:
        pending = [local.begin_draw(images_request(range(n, n + 1), num_steps=num_steps)) for n in range(num_images)]
        while not all(each.finished for each in pending):
            local.engine.step()

    # With one thread its processor time is what a quiet machine's clock would show.
    clock = time.process_time if prior.device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    ways: dict[str, Callable[[], Any]] = {
        "bare loop": lambda: bare.draw(whole),
        "engine, one request": lambda: local.draw(whole),
        "engine, one request an image": one_each,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, way in ways.items():
            begin = clock()
            way()
            _synchronise(prior)
            if repeat:
                seconds[name].append(clock() - begin)
    rows = 2 * num_images * num_steps
    rates = {name: rows / statistics.median(times) for name, times in seconds.items()}
    shares = {
        name: statistics.median(base / mine for base, mine in zip(seconds["bare loop"], times, strict=True))
        for name, times in seconds.items()
    }
    return {"batch_rows": 2 * num_images, "row_steps_per_second": rates, "share_of_bare": shares}


# -- mixed load ----------------------------------------------------------------------------------------------------------


class Load:
    """The nine jobs: what each asks next."""

    def __init__(self, size: int, *, streams: int, chunk: int, views: int, num_steps: int) -> None:
        self.names = ("images", *(f"mesh {n}" for n in range(streams)))
        self._size, self._chunk, self._views, self._num_steps = size, chunk, views, num_steps
        self._turns: Counter[str] = Counter()

    def next(self, job: str) -> DrawRequest | DistillationQuery:
        """The job's next request."""
        turn = self._turns[job]
        self._turns[job] += 1
        if job == "images":
            return images_request(range(turn * self._chunk, (turn + 1) * self._chunk), num_steps=self._num_steps)
        return query_request(self._size, self.names.index(job), turn, views=self._views)


def through_the_engine(prior: Prior, load: Load, *, seconds: float, row_cap: int) -> dict[str, Any]:
    """Each 3D job asks again as soon as it is answered; the image job keeps four requests under way."""
    local = LocalPrior(prior, config=EngineConfig(row_cap=row_cap, max_rows=max(64, row_cap)))
    rows: Counter[str] = Counter()
    under_way: dict[str, list[Pending]] = {name: [] for name in load.names}
    waits: list[float] = []
    begin, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() - begin < seconds:
        for job, pending in under_way.items():
            while len(pending) < (4 if job == "images" else 1):
                request = load.next(job)
                if isinstance(request, DrawRequest):
                    pending.append(local.begin_draw(request, job=job))
                else:
                    pending.append(local.begin_distill(request, job=job))
        report = local.engine.step()
        rows.update(report.rows)
        waits += [t.finished_at - t.submitted_at for t in report.finished if t.kind == "query" and t.finished_at]
        under_way = {job: [each for each in pending if not each.finished] for job, pending in under_way.items()}
    _synchronise(prior)
    elapsed, cpu = time.perf_counter() - begin, time.process_time() - cpu
    return _mixed(rows, elapsed, cpu, load, copies=1, query_seconds=statistics.median(waits or [0.0]))


def static_batches(prior: Prior, load: Load, *, seconds: float) -> dict[str, Any]:
    """One prior; every job's batch is forwarded by itself, one forward a job in turn."""
    bare = Bare(prior)
    rows: Counter[str] = Counter()
    drawing: Any = None
    reply: Any = None
    begin, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() - begin < seconds:
        for job in load.names:
            before = bare.rows
            request = None if job == "images" and drawing is not None else load.next(job)
            if isinstance(request, DistillationQuery):
                bare.distill(request)
            else:
                if isinstance(request, DrawRequest):
                    drawing, reply = bare.drawing(request), None
                try:
                    with torch.no_grad():
                        reply = bare.answer(drawing.send(reply))
                except StopIteration:
                    drawing = None
            rows[job] += bare.rows - before
    _synchronise(prior)
    return _mixed(rows, time.perf_counter() - begin, time.process_time() - cpu, load, copies=1)


def nine_processes(source: str, device: str, load: Load, *, seconds: float, num_threads: int) -> dict[str, Any]:
    """Each job in a process with its own prior; they share the device as the system lets them."""
    context = multiprocessing.get_context("spawn")
    ready, answers = context.Barrier(len(load.names) + 1), context.SimpleQueue()
    processes = [
        context.Process(target=_alone, args=(job, source, device, load, seconds, num_threads, ready, answers), daemon=True)
        for job in load.names
    ]
    for process in processes:
        process.start()
    ready.wait(timeout=600)
    measured = [answers.get() for _ in processes]
    for process in processes:
        process.join()
    rows = Counter({job: rows for job, rows, _, _ in measured})
    elapsed, cpu = max(row[2] for row in measured), sum(row[3] for row in measured)
    return _mixed(rows, elapsed, cpu, load, copies=len(processes))


def _alone(job: str, source: str, device: str, load: Load, seconds: float, num_threads: int, ready: Any, answers: Any) -> None:
    use_threads(num_threads)
    prior = Prior.load(source, device=device)
    bare = Bare(prior)
    ready.wait(timeout=600)
    begin, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() - begin < seconds:
        request = load.next(job)
        if isinstance(request, DistillationQuery):
            bare.distill(request)
            continue
        # Step by step, so that a long drawing does not run past the end.
        generator, reply = bare.drawing(request), None
        while time.perf_counter() - begin < seconds:
            try:
                with torch.no_grad():
                    reply = bare.answer(generator.send(reply))
            except StopIteration:
                break
    _synchronise(prior)
    answers.put((job, bare.rows, time.perf_counter() - begin, time.process_time() - cpu))


def _mixed(rows: Counter[str], seconds: float, cpu: float, load: Load, *, copies: int, **more: Any) -> dict[str, Any]:
    total = sum(rows.values())
    least = min(rows[job] for job in load.names) / (total / len(load.names)) if total else 0.0
    return {
        "row_steps_per_second": total / seconds,
        "row_steps_per_cpu_second": total / cpu,
        "least_share_of_fair": least,
        "images_share": rows["images"] / max(total, 1),
        "copies_of_the_prior": copies,
        **more,
    }


def _synchronise(prior: Prior) -> None:
    if prior.device.type == "cuda":
        torch.cuda.synchronize(prior.device)


# -- the report ----------------------------------------------------------------------------------------------------------


def show(machine: dict[str, Any], curve: dict[int, float], knee: int, above: dict[str, Any], mixed: dict[str, Any]) -> None:
    """The tables on stdout."""
    print(one_line(machine))
    print("\ncurve     rows   rows/s")
    for size, rate in curve.items():
        print(f"{size:>14}{rate:>9.1f}{'   <- knee' if size == knee else ''}")
    print(f"\n{'overhead, ' + str(above['batch_rows']) + ' rows':<32}{'row-steps/s':>12}{'of bare':>10}")
    for name, rate in above["row_steps_per_second"].items():
        print(f"{name:<32}{rate:>12.1f}{above['share_of_bare'][name]:>10.1%}")
    header = f"{'row-steps/s':>12}{'engine is':>10}{'per CPU s':>11}{'engine is':>10}{'least share':>13}{'priors':>8}"
    print(f"\n{'mixed load':<32}{header}")
    keys = ("row_steps_per_second", "row_steps_per_cpu_second")
    for name, figures in mixed.items():
        (rate, ratio), (per_cpu, cpu_ratio) = ((figures[key], mixed["engine"][key] / figures[key]) for key in keys)
        least, copies = figures["least_share_of_fair"], figures["copies_of_the_prior"]
        print(f"{name:<32}{rate:>12.1f}{ratio:>9.2f}x{per_cpu:>11.1f}{cpu_ratio:>9.2f}x{least:>13.0%}{copies:>8}")


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="toybox")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each way of mixed load")
    parser.add_argument("--repeats", type=int, default=5, help="of each way of drawing")
    parser.add_argument("--num-images", type=int, default=8, help="images of a request of the image job")
    parser.add_argument("--num-steps", type=int, default=10)
    parser.add_argument("--streams", type=int, default=8, help="text-to-3D jobs")
    parser.add_argument("--views", type=int, default=4, help="of each query")
    parser.add_argument("--num-threads", type=int, default=0, help="of torch in one process; 0 for all cores")
    parser.add_argument("--process-threads", type=int, default=1, help="of torch in each of the nine processes")
    parser.add_argument("--row-cap", type=int, default=0, help="of the engine's forwards; 0 for the knee of the curve")
    parser.add_argument("--out", type=Path, default=RESULTS / "engine.json")
    options = parser.parse_args(arguments)
    machine = describe_machine()
    use_threads(options.num_threads)
    prior = Prior.load(options.prior, device=options.device)
    local = LocalPrior(prior)
    profile = local.measure()
    above = overhead(prior, num_images=options.num_images, num_steps=options.num_steps, repeats=options.repeats)

    def load() -> Load:
        return Load(
            prior.image_size,
            streams=options.streams,
            chunk=options.num_images,
            views=options.views,
            num_steps=options.num_steps,
        )

    mixed = {
        "(a) a process and a prior each": nine_processes(
            options.prior, options.device, load(), seconds=options.seconds, num_threads=options.process_threads
        ),
        "(b) static batch per job": static_batches(prior, load(), seconds=options.seconds),
        "engine": through_the_engine(prior, load(), seconds=options.seconds, row_cap=options.row_cap or profile.knee()),
    }
    show(machine, dict(profile.rows_per_second), profile.knee(), above, mixed)
    settings = {name: value for name, value in vars(options).items() if name != "out"}
    document = {
        "measured": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine,
        "settings": {**settings, "num_threads": options.num_threads or available_cores()},
        "rows_per_second": profile.rows_per_second,
        "knee": profile.knee(),
        "overhead": above,
        "mixed": mixed,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(f"\n{options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
