"""The toybox prior in float32 and in bfloat16 by turns: CPU seconds on one thread, and how far the answers lie apart.

    python -m benchmarks.half_precision

Writes benchmarks/results/half_precision.json.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import describe_machine
from diffusion.requests import Guidance
from jobs.prior_client import DistillationQuery, GenerateRequest
from orchestrator.prior.local import LocalPrior, load_prior

RESULTS = Path(__file__).parent / "results" / "half_precision.json"
PROMPTS = ("a red house", "a blue duck", "a green chair", "a yellow car")


def by_turns(
    priors: dict[str, LocalPrior], ask: Callable[[LocalPrior, int], Any], rounds: int
) -> tuple[dict[str, float], list]:
    """Median seconds of each precision, and the answers of each round; the first round warms up and does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in priors}
    answers = []
    for turn in range(rounds + 1):
        answer = {}
        for name in sorted(priors, reverse=turn % 2 == 0):
            begin = time.thread_time()
            answer[name] = ask(priors[name], turn)
            seconds[name].append(time.thread_time() - begin)
        answers.append(answer)
    medians = {f"seconds_{name}": round(statistics.median(times[1:]), 4) for name, times in seconds.items()}
    return medians | {"ratio": round(medians["seconds_float32"] / medians["seconds_bfloat16"], 3)}, answers[1:]


def main() -> None:
    torch.set_num_threads(1)
    priors = {name: load_prior(f"toybox?dtype={name}") for name in ("float32", "bfloat16")}

    def draw(prior: LocalPrior, turn: int) -> np.ndarray:
        seeds = tuple(range(4 * turn, 4 * turn + 4))
        return prior.generate(GenerateRequest(prompts=PROMPTS, seeds=seeds, num_steps=20, guidance=Guidance(scale=5.0)))

    figures: dict[str, Any] = {}
    figures["draw"], drawn = by_turns(priors, draw, rounds=6)
    apart = [np.square(pair["float32"].astype(float) - pair["bfloat16"]).mean((1, 2, 3)) for pair in drawn]
    decibels = 10 * np.log10(255**2 / np.concatenate(apart))
    figures["draw"]["psnr_decibels"] = {"least": round(decibels.min(), 1), "median": round(float(np.median(decibels)), 1)}
    views = torch.from_numpy(drawn[0]["float32"]).permute(0, 3, 1, 2).float() / 255
    guidance = Guidance(scale=7.0, rescale=0.5, rescale_on="x0")
    for form in ("x0", "sds"):

        def distill(prior: LocalPrior, turn: int, form: str = form) -> torch.Tensor:
            return prior.distill(
                DistillationQuery(
                    images=views,
                    prompts=PROMPTS,
                    t=torch.tensor([200, 450, 700, 900]),
                    noise_keys=tuple((turn, view) for view in range(4)),
                    guidance=guidance,
                    form=form,
                )
            ).gradient

        figures[form], gradients = by_turns(priors, distill, rounds=10)
        pairs = [(pair["float32"].flatten(), pair["bfloat16"].flatten()) for pair in gradients]
        figures[form]["least_cosine"] = round(min(float(a @ b / (a.norm() * b.norm())) for a, b in pairs), 5)
    RESULTS.write_text(json.dumps({"machine": describe_machine(), **figures}, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
