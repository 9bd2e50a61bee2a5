"""Does the prior's own score pick the better of several tries, and may the worse ones be ended early?

    python -m benchmarks.best_of [--first N] [--tries 4]

Twelve prompts of objects whose sides differ, so many seeds of each, through the product itself with the draft preset; an
interrupted run goes on when it is repeated. The pick of `prior_score` is held against the mean of its tries, by the true
object's silhouettes (of the nearest proportions, which the sentence leaves free); the interval is over the prompts. Beside
it: how the scores at a quarter and at half of the steps order the tries, and what the scheduler's margins would have ended.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import describe_machine, one_line
from benchmarks.saving import save_run
from jobs.errors import DreamKilnError, JobFailed
from jobs.states import State
from jobs.words.prompts import slug
from orchestrator.lab.evaluation.meshes import evaluate_meshes
from orchestrator.lab.evaluation.r_precision import interval_of_mean
from orchestrator.lab.evaluation.settings import EvaluationSettings
from orchestrator.run.manifest import MANIFEST
from orchestrator.scheduling.groups import Member, hopeless

RESULTS = Path(__file__).parent / "results" / "best_of.json"
PROMPTS = (
    "a red teapot",
    "an orange duck",
    "a yellow plane",
    "a purple chair",
    "a blue car",
    "an orange truck",
    "a cyan robot",
    "a pink house with a blue roof",
    "a gray hammer with a brown handle",
    "a green boat with a yellow sail",
    "a yellow penguin",
    "a black mug",
)
LOOKS = ("prior_score_25", "prior_score_50", "prior_score")


@dataclass(frozen=True)
class Try:
    """One seed of a prompt. metrics: of its manifest. iou: of its silhouettes."""

    seed: int
    metrics: dict[str, float]
    iou: float


def make(prompt: str, *, tries: int, prior: str, preset: str, runs: Path) -> list[Path]:
    """Folders of the tries that came to a mesh; finished ones are kept."""
    from orchestrator.host.progress_display import make_display
    from orchestrator.host.signals import stop_signals_interrupt
    from orchestrator.run.perform import perform
    from orchestrator.settings.compose import compose

    settings = compose([], options={"preset": preset, "runtime": "inline", "prior.source": prior})
    folders = []
    for seed in range(tries):
        folder = runs / f"{slug(prompt)}-{seed}"
        try:
            with stop_signals_interrupt(), make_display(stream=sys.stderr) as display:
                spec = settings.text_to_3d(prompt, seed=seed)
                perform(spec, out=folder, export=settings.export, runtime=settings.runtime, display=display)
            folders.append(folder)
        except JobFailed as error:
            print(f"{folder}: {error}", file=sys.stderr)
    return folders


def measured(folders: list[Path], prior: str) -> list[Try]:
    """Every try with its scores and its agreement with the truth."""
    from orchestrator.host.progress_display import make_display

    with make_display(stream=sys.stderr) as display:
        report, _ = evaluate_meshes(folders, EvaluationSettings(prior=prior), display=display)
    found = {item.name: item.nearest.silhouette_iou for item in report.items if item.nearest is not None}
    return [
        Try(seed, json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["metrics"], found[folder.name])
        for seed, folder in enumerate(folders)
        if folder.name in found
    ]


def gained(tries: list[Try]) -> float:
    """Silhouette IoU of the pick minus the mean of all tries."""
    pick = max(tries, key=lambda one: one.metrics["prior_score"])
    return pick.iou - statistics.mean(one.iou for one in tries)


def ended_early(tries: list[Try]) -> set[int]:
    """The seeds that the scheduler would have ended, had all run side by side."""
    members = [
        Member(id=one.seed, state=State.RUNNING, metrics={name: one.metrics[name] for name in LOOKS[:2]}) for one in tries
    ]
    return set(hopeless(members, num_wanted=1))


def rank_agreement(tries: list[list[Try]], name: str) -> float:
    """Mean over the prompts of Spearman's rank correlation of a score with the agreement with the truth."""
    from scipy.stats import spearmanr

    return statistics.mean(
        float(spearmanr([one.metrics[name] for one in group], [one.iou for one in group]).statistic) for group in tries
    )


def main(arguments: list[str] | None = None) -> int:
    """Prints a line a prompt and the means, and saves them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=len(PROMPTS), metavar="N", help="only the first N prompts")
    parser.add_argument("--tries", type=int, default=4)
    parser.add_argument("--preset", default="draft")
    parser.add_argument("--prior", default="toybox")
    parser.add_argument("--runs", type=Path, default=Path("runs") / "best_of")
    options = parser.parse_args(arguments)
    groups: dict[str, list[Try]] = {}
    try:
        for prompt in PROMPTS[: options.first]:
            folders = make(prompt, tries=options.tries, prior=options.prior, preset=options.preset, runs=options.runs)
            groups[prompt] = tries = measured(folders, options.prior)
            ious = ", ".join(f"{one.metrics['prior_score']:.3f}: {one.iou:.3f}" for one in tries)
            print(
                f"{prompt}: pick {gained(tries):+.3f}; score: IoU {ious}; ended early {sorted(ended_early(tries))}", flush=True
            )
    except DreamKilnError as error:
        print(f"best_of: {error}", file=sys.stderr)
        return error.exit_code
    gains = [gained(tries) for tries in groups.values()]
    picks = {prompt: max(tries, key=lambda one: one.metrics["prior_score"]).seed for prompt, tries in groups.items()}
    early = {prompt: ended_early(tries) for prompt, tries in groups.items()}
    figures = {
        "mean_gain": round(statistics.mean(gains), 4),
        "interval": interval_of_mean(gains),
        "mean_iou": round(statistics.mean(one.iou for tries in groups.values() for one in tries), 4),
        "rank_agreement": {name: round(rank_agreement(list(groups.values()), name), 3) for name in LOOKS},
        "ended_early": sum(map(len, early.values())),
        "picks_ended_early": sum(picks[prompt] in seeds for prompt, seeds in early.items()),
        "of_prompts": {
            prompt: [{"iou": round(t.iou, 4), **{name: t.metrics[name] for name in LOOKS}} for t in tries]
            for prompt, tries in groups.items()
        },
    }
    print({name: value for name, value in figures.items() if name != "of_prompts"})
    machine = describe_machine()
    print(one_line(machine))
    settings = {"preset": options.preset, "tries": options.tries, "prompts": len(groups), "prior": options.prior}
    save_run(RESULTS, machine, settings, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
