r"""What a flow of the toybox draws, and the meshes that are distilled from it, before the toybox's judge.

    dreamkiln train objective=rectified_flow data=toybox_latents data.kinds=KINDS data.num_pictures=24576 \
        --out training/flow_toybox
    python -m benchmarks.flow_toybox [--prior training/flow_toybox/prior] [--first N]

The kinds are `KINDS`, joined by commas. Four pictures of each, then one mesh of each through the product itself with the draft
preset and seed 0; eight of the twelve sentences are combinations of kind and colours that training never drew. Nothing is
picked; an interrupted run goes on when it is repeated. The judge never met this prior. An object is recognised where the
caption that comes first of 256 names its kind.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks import model_pictures
from benchmarks.best_of import make
from benchmarks.machine import describe_machine
from benchmarks.pictures import write_small_webp
from benchmarks.prior_grid import draw_sheet, grid_prompts
from benchmarks.saving import save_run
from jobs.errors import DreamKilnError
from nerf3d.toybox.kinds import KINDS as CATALOGUE
from orchestrator.lab.evaluation.captions import kind_of
from orchestrator.lab.evaluation.meshes import evaluate_meshes
from orchestrator.lab.evaluation.settings import EvaluationSettings

RESULTS = Path(__file__).parent / "results" / "flow_toybox.json"
PROMPTS = (
    "a red table",
    "a purple chair",
    "a blue mushroom with a yellow stem",
    "a pink house with a blue roof",
    "a green rocket",
    "a blue car",
    "an orange duck",
    "a blue snowman",
    "a green boat with a yellow sail",
    "a pink cactus with a white pot",
    "a yellow penguin",
    "a black mug",
)
"""Those of the gallery and of `benchmarks.best_of` that are of `KINDS`, one of each."""

KINDS = tuple(map(kind_of, PROMPTS))
MAX_BYTES = 240_000


def main(arguments: list[str] | None = None) -> int:
    """Draws, distils, judges, saves the figures and the two pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="training/flow_toybox/prior")
    parser.add_argument("--first", type=int, default=len(PROMPTS), metavar="N", help="only the first N kinds")
    parser.add_argument("--preset", default="draft")
    parser.add_argument("--runs", type=Path, default=Path("runs") / "flow_toybox")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    options = parser.parse_args(arguments)
    prompts = PROMPTS[: max(1, options.first)]
    try:
        sheet = [prompt for kind in map(kind_of, prompts) for prompt in grid_prompts(CATALOGUE[kind])]
        page = draw_sheet(sheet, prior=options.prior, seed=0, num_columns=8, tile_size=80)
        print(write_small_webp(page, options.out / "flow_toybox.webp", max_bytes=model_pictures.MAX_BYTES))
        how = {"tries": 1, "prior": options.prior, "preset": options.preset, "runs": options.runs}
        folders = [folder for prompt in prompts for folder in make(prompt, **how)]
        report, page = evaluate_meshes(folders, EvaluationSettings())
    except DreamKilnError as error:
        print(f"flow_toybox: {error}", file=sys.stderr)
        return error.exit_code
    print(write_small_webp(page, options.out / "flow_toybox_meshes.webp", max_bytes=MAX_BYTES))
    rows: dict[str, dict[str, Any]] = {
        item.prompt: {
            "held_out": item.held_out,
            "taken_for": item.coloured.taken_for,
            "right_kind": kind_of(item.coloured.taken_for) == kind_of(item.prompt),
            "rank": item.coloured.rank,
            "clay_taken_for": item.textureless.taken_for,
            "silhouette_iou": None if item.nearest is None else round(item.nearest.silhouette_iou, 4),
            "seconds": item.seconds,
        }
        for item in report.items
    }
    for prompt, row in rows.items():
        print(f"{prompt}: {row}")
    ious = [row["silhouette_iou"] for row in rows.values() if row["silhouette_iou"] is not None]
    figures = {
        "meshes": len(rows),
        "right_kind": sum(row["right_kind"] for row in rows.values()),
        "right_caption": sum(row["rank"] == 1 for row in rows.values()),
        "right_kind_as_clay": sum(kind_of(row["clay_taken_for"]) == kind_of(prompt) for prompt, row in rows.items()),
        "mean_silhouette_iou": round(statistics.mean(ious), 4),
        "of_prompts": rows,
    }
    print(f"{figures['right_kind']} of {len(prompts)} recognised, the right caption for {figures['right_caption']}")
    trained = Path(options.prior).parent / "log.jsonl"
    steps = json.loads(trained.read_text(encoding="utf-8").splitlines()[-1])["step"] if trained.exists() else None
    settings = {"prompts": len(prompts), "preset": options.preset, "steps_of_training": steps}
    save_run(RESULTS, describe_machine(), settings, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
