"""The engine against a bare PyTorch loop, and what company does to a picture.

Four tables. "curve": rows per second of the network by batch size, and the knee that the engine takes as its cap. "cores": the
same on a CPU with torch's own threads, and data parallel over the cores (`diffusion.data_parallel`). "overhead":
images drawn by the engine, as one request and as one request each, against the same sampler in a bare loop; repeats take
turns. "company": pictures drawn alone and among strangers, fast and strict, compared, and what strict costs.

A row-step is one row through the network once; a guided sample takes two. Everything runs alike on CUDA (--device cuda).
`benchmarks.mixed_load` measures what sharing brings to many jobs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.bare_prior import BarePrior, images_request, query_request, synchronise
from benchmarks.machine import describe_machine, one_line
from benchmarks.saving import save_run
from diffusion.engine import EngineConfig
from diffusion.prior import Prior
from orchestrator.host.threads import available_cores, use_threads
from orchestrator.prior.local import LocalPrior, Pending

RESULTS = Path(__file__).parent / "results" / "engine.json"


def cores(prior: Prior, *, repeats: int, sizes: Sequence[int] = (2, 8, 32)) -> dict[int, dict[str, float]]:
    """Rows -> rows per second with torch's threads and data parallel, in turns; the median repeat counts."""
    rates: dict[int, dict[str, float]] = {}
    for size in sizes:
        x_t = torch.zeros((size, *prior.latent_shape))
        t, tokens = torch.full((size,), 500), prior.condition([""] * size).tokens
        seconds: dict[str, list[float]] = {"torch's threads": [], "data parallel": []}
        for repeat in range(repeats + 1):
            for name, network in (("torch's threads", prior.predict_together), ("data parallel", prior.predict)):
                begin = time.perf_counter()
                with torch.no_grad():
                    network(x_t, t, tokens)
                if repeat:
                    seconds[name].append(time.perf_counter() - begin)
        rates[size] = {name: size / statistics.median(times) for name, times in seconds.items()}
    return rates


def overhead(prior: Prior, *, num_images: int, num_steps: int, repeats: int) -> dict[str, Any]:
    """Row-steps per second of the same images, drawn three ways; the engine's as a share of the bare loop's."""
    whole = images_request(range(num_images), num_steps=num_steps)
    local = LocalPrior(prior, config=EngineConfig(row_cap=2 * num_images, max_rows=2 * num_images))
    bare = BarePrior(prior)

    def one_each() -> None:
        pending = [local.begin_generate(images_request(range(n, n + 1), num_steps=num_steps)) for n in range(num_images)]
        while not all(each.finished for each in pending):
            local.engine.step()

    clock = _processor_clock(prior)
    ways: dict[str, Callable[[], Any]] = {
        "bare loop": lambda: bare.generate(whole),
        "engine, one request": lambda: local.generate(whole),
        "engine, one request an image": one_each,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, way in ways.items():
            begin = clock()
            way()
            synchronise(prior)
            if repeat:
                seconds[name].append(clock() - begin)
    rows = 2 * num_images * num_steps
    rates = {name: rows / statistics.median(times) for name, times in seconds.items()}
    shares = {
        name: statistics.median(base / mine for base, mine in zip(seconds["bare loop"], times, strict=True))
        for name, times in seconds.items()
    }
    return {"batch_rows": 2 * num_images, "row_steps_per_second": rates, "share_of_bare": shares}


def company(prior: Prior, *, num_steps: int, strangers: int = 15) -> dict[str, Any]:
    """Decibels between a picture (and a query's gradient) alone and among strangers, and the rates of fast and strict."""
    figures: dict[str, Any] = {}
    for mode, strict in (("fast", False), ("strict", True)):
        request = images_request(range(7, 8), num_steps=num_steps, strict=strict)
        query = query_request(prior.image_size, 3, 0, views=4, strict=strict)
        alone = LocalPrior(prior)
        picture, gradient = alone.generate(request)[0], alone.distill(query).gradient
        crowd = LocalPrior(prior)
        begin = _processor_clock(prior)()
        mine = [crowd.begin_generate(request, job="mine"), crowd.begin_distill(query, job="mesh")]
        others = [
            crowd.begin_generate(images_request(range(n, n + 1), num_steps=num_steps, strict=strict), job=f"other {n}")
            for n in range(100, 100 + strangers)
        ]
        _finish(crowd, [*mine, *others])
        synchronise(prior)
        seconds = _processor_clock(prior)() - begin
        picture_there, gradient_there = mine[0].result()[0], mine[1].result().gradient
        figures[mode] = {
            "picture_identical": bool(np.array_equal(picture, picture_there)),
            "gradient_identical": bool(torch.equal(gradient, gradient_there)),
            "picture_psnr": _psnr(torch.from_numpy(picture) / 255.0, torch.from_numpy(picture_there) / 255.0, peak=1.0),
            "gradient_psnr": _psnr(gradient, gradient_there, peak=float(gradient.abs().max())),
            "seconds": seconds,
        }
    return figures


def _finish(local: LocalPrior, pending: list[Pending]) -> None:
    while not all(each.finished for each in pending):
        local.engine.step()


def _psnr(a: torch.Tensor, b: torch.Tensor, *, peak: float) -> float | None:
    """Decibels; None for equal tensors."""
    error = float((a.double() - b.double()).square().mean())
    return None if error == 0 else round(10 * float(np.log10(peak**2 / error)), 1)


def _processor_clock(prior: Prior) -> Callable[[], float]:
    """With one thread a process's processor time is what a quiet machine's clock would show."""
    return time.process_time if prior.device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def show(machine: dict[str, Any], figures: dict[str, Any]) -> None:
    """The tables on stdout."""
    curve, knee, above, beside = (figures[name] for name in ("rows_per_second", "knee", "overhead", "company"))
    print(one_line(machine))
    print("\ncurve     rows   rows/s")
    for size, rate in curve.items():
        print(f"{size:>14}{rate:>9.1f}{'   <- knee' if size == knee else ''}")
    if figures["cores"]:
        print("\ncores     rows   torch's threads   data parallel")
        for size, rates in figures["cores"].items():
            print(f"{size:>14}" + "".join(f"{rate:>14.1f}" for rate in rates.values()))
    print(f"\n{'overhead, ' + str(above['batch_rows']) + ' rows':<32}{'row-steps/s':>12}{'of bare':>10}")
    for name, rate in above["row_steps_per_second"].items():
        print(f"{name:<32}{rate:>12.1f}{above['share_of_bare'][name]:>10.1%}")
    print(f"\n{'company: alone against a crowd':<32}{'picture':>12}{'gradient':>12}{'seconds':>10}")
    for name, row in beside.items():
        differences = [
            "identical" if row[f"{what}_identical"] else f"{row[f'{what}_psnr']} dB" if row[f"{what}_psnr"] else "-"
            for what in ("picture", "gradient")
        ]
        print(f"{name:<32}{differences[0]:>12}{differences[1]:>12}{row['seconds']:>10.2f}")


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="toybox", help="with ?dtype=bfloat16 in half precision")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=5, help="of each way of drawing")
    parser.add_argument("--num-images", type=int, default=8, help="images of a request")
    parser.add_argument("--num-steps", type=int, default=10)
    parser.add_argument("--num-threads", type=int, default=0, help="of torch; 0 for all cores")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    machine = describe_machine()
    use_threads(options.num_threads)
    prior = Prior.load(options.prior, device=options.device)
    profile = LocalPrior(prior).measure()
    above = overhead(prior, num_images=options.num_images, num_steps=options.num_steps, repeats=options.repeats)
    beside = company(prior, num_steps=options.num_steps)
    settings = {name: value for name, value in vars(options).items() if name != "out"}
    figures = {
        "rows_per_second": dict(profile.rows_per_second),
        "knee": profile.knee(),
        "cores": cores(prior, repeats=options.repeats) if prior.device.type == "cpu" else {},
        "overhead": above,
        "company": beside,
    }
    show(machine, figures)
    save_run(options.out, machine, {**settings, "num_threads": options.num_threads or available_cores()}, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
