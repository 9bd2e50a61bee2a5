"""A model of points that knows no labels, guided to one of them by a classifier, beside that label's own points.

dreamkiln train objective=ddpm data=mixture2d --out MODEL
dreamkiln train objective=noisy_classifier data=mixture2d --out CLASSIFIER
python -m benchmarks.classifier_guidance MODEL CLASSIFIER
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.pictures import write_small_webp
from benchmarks.score_matching import LIMIT, MAX_BYTES, NUM_POINTS, SIZE
from diffusion.models.base import SampleRequest
from jobs.errors import DreamKilnError
from orchestrator.lab.family.data import MIXTURE, MixturePoints
from orchestrator.lab.family.folder import load_model
from orchestrator.lab.family.pictures import scatter

LABEL = 1
SCALES = (1.0, 5.0)
NUM_STEPS = 200


def share_at(points: Tensor, label: int) -> float:
    """Of points (N, 2): how many are nearest to the label's mean."""
    return float((torch.cdist(points, torch.tensor(MIXTURE.means)).argmin(dim=1) == label).float().mean())


def main(arguments: list[str] | None = None) -> int:
    """Prints the shares of points in the right mode and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("classifier", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/pictures/models/classifier_guidance.webp"))
    options = parser.parse_args(arguments)
    data = MixturePoints.draw(8 * NUM_POINTS)
    seeds = tuple(range(NUM_POINTS))
    try:
        model, classifier = load_model(options.model)[0], load_model(options.classifier)[0]
        drawn = {"unguided": model.sample(SampleRequest(seeds, num_steps=NUM_STEPS))}
        for scale in SCALES:
            told = {"classifier": classifier, "classifier_scale": scale}
            request = SampleRequest(seeds, num_steps=NUM_STEPS, labels=(LABEL,) * NUM_POINTS, options=told)
            drawn[f"guided to {LABEL}, s = {scale:g}"] = model.sample(request)
    except DreamKilnError as error:
        print(f"classifier_guidance: {error}", file=sys.stderr)
        return error.exit_code
    panels = {"the mixture": data.points[:NUM_POINTS], f"its label {LABEL}": data.points[data.labels == LABEL][:NUM_POINTS]}
    for title, points in (panels | drawn).items():
        own = points[torch.cdist(points, torch.tensor(MIXTURE.means)).argmin(dim=1) == LABEL]
        deviation = float((own - own.mean(dim=0)).square().mean().sqrt())
        print(f"{title}: {share_at(points, LABEL):.1%} at label {LABEL}, deviation there {deviation:.3f}")
    pages: dict[str, np.ndarray] = {title: points.numpy() for title, points in (panels | drawn).items()}
    print(write_small_webp(scatter(pages, limit=LIMIT, size=SIZE), options.out, max_bytes=MAX_BYTES))
    return 0


if __name__ == "__main__":
    sys.exit(main())
