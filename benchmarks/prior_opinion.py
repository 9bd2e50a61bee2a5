"""How well a prior says which way an object faces and whether it has two faces, on objects that are known.

    python -m benchmarks.prior_opinion [--prior toybox]

Views of true objects, turned to each of four azimuths, go to the vote of `jobs/opinion.py`; so do the same objects with their
front put on their back. Right is the direction that the object was turned to. The score is compared with that of the same
views under the sentence of another kind.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from torch import Tensor

from benchmarks.machine import describe_machine, one_line
from benchmarks.saving import save_run
from jobs.opinion import BACKGROUND, ELEVATION_DEGREES, NUM_TURNS, Asking, Opinion, opinion_from, turned_losses
from nerf3d.cameras import Cameras
from nerf3d.toybox.render import render_object
from nerf3d.toybox.truth import object_from_prompt
from orchestrator.host.threads import use_threads
from orchestrator.prior.local import load_prior

RESULTS = Path(__file__).parent / "results" / "prior_opinion.json"
PROMPTS = (
    "a red teapot",
    "an orange duck",
    "a white plane",
    "a blue car",
    "a brown chair",
    "a green truck",
    "a yellow robot",
    "a pink house with a blue roof",
    "a gray sofa",
    "a purple bed",
)
TURNS = (0, 90, 180, 270)
STEP = 360 // NUM_TURNS


def views(prompt: str, facing: float, size: int) -> Tensor:
    """(NUM_TURNS, 3, size, size) of the true object, its front turned to that azimuth."""
    truth = object_from_prompt(prompt)
    assert truth is not None
    azimuths = [(view * STEP - facing) % 360 for view in range(NUM_TURNS)]
    return render_object(truth.parts, Cameras.orbit(azimuths, ELEVATION_DEGREES), size, background=BACKGROUND)[0]


def with_two_faces(pictures: Tensor) -> Tensor:
    """The three views from behind replaced by their mirror images from the front."""
    half = NUM_TURNS // 2
    pictures = pictures.clone()
    for offset in (-1, 0, 1):
        pictures[half + offset] = pictures[-offset % NUM_TURNS]
    return pictures


def opinion(pictures: Tensor, ask: Asking, prompt: str) -> Opinion:
    """As `jobs.opinion.opinion_of` has it, of pictures instead of a mesh."""
    without = float(ask.losses(pictures, ("",) * len(pictures), None).mean())
    return opinion_from(turned_losses(pictures, ask, prompt), without)


def main(arguments: list[str] | None = None) -> int:
    """Prints a line a prompt and the shares, and saves them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="toybox")
    parser.add_argument("--first", type=int, default=len(PROMPTS), help="so many of the prompts")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    use_threads(0)
    prior = load_prior(options.prior)
    info = prior.info()
    ask, rows = Asking(prior, info), []
    begin = time.process_time()
    for number, prompt in enumerate(PROMPTS[: options.first]):
        turned = [opinion(views(prompt, facing, info.image_size), ask, prompt) for facing in TURNS]
        own = views(prompt, 0, info.image_size)
        row = {
            "prompt": prompt,
            "faces": [found.facing_degrees for found in turned],
            "score": turned[0].score,
            "score_as_another_kind": opinion(own, ask, PROMPTS[number - 1]).score,
            "two_faces_found": opinion(with_two_faces(own), ask, prompt).has_two_faces,
            "two_faces_imagined": sum(found.has_two_faces for found in turned),
        }
        rows.append(row)
        print(row, flush=True)
    seconds = (time.process_time() - begin) / (len(rows) * (len(TURNS) + 2))
    shares = {
        f"right_at_{facing}": sum(row["faces"][index] == facing for row in rows) / len(rows)
        for index, facing in enumerate(TURNS)
    }
    shares |= {
        "own_kind_scores_higher": sum(row["score"] > row["score_as_another_kind"] for row in rows) / len(rows),
        "two_faces_found": sum(row["two_faces_found"] for row in rows) / len(rows),
        "two_faces_imagined": sum(row["two_faces_imagined"] for row in rows) / (len(rows) * len(TURNS)),
        "cpu_seconds_an_opinion": round(seconds, 2),
    }
    print(shares)
    settings = {"prior": info.name, "weights_hash": info.weights_hash, "num_views": info.num_views, "prompts": len(rows)}
    machine = describe_machine()
    print(one_line(machine))
    save_run(options.out, machine, settings, {**shares, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
