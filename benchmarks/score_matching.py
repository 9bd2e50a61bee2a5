"""Points drawn by score-based models beside points of the mixture that they were trained on, as one picture.

dreamkiln train objective=sliced_score_matching data=mixture2d --out DIR
python -m benchmarks.score_matching DIR [DIR ...] --out docs/pictures/models/score_matching.webp
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

import numpy as np

from benchmarks.pictures import write_small_webp
from diffusion.models.base import SampleRequest
from jobs.errors import DreamKilnError
from orchestrator.family.data import MixturePoints
from orchestrator.family.folder import load_model

NUM_POINTS = 1500
MAX_BYTES = 60_000


def scatter(panels: dict[str, np.ndarray]) -> np.ndarray:
    """Points (N, 2) by title -> (H, W, 3) uint8, side by side on the same axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from PIL import Image

    figure, axes = plt.subplots(1, len(panels), figsize=(2.6 * len(panels), 2.9), layout="constrained", squeeze=False)
    for plot, (title, points) in zip(axes[0], panels.items(), strict=True):
        plot.scatter(points[:, 0], points[:, 1], s=2, alpha=0.4, linewidths=0)
        plot.set(xlim=(-1.8, 1.8), ylim=(-1.8, 1.8), aspect="equal", xticks=[], yticks=[])
        plot.set_title(title, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    buffer.seek(0)
    with Image.open(buffer) as image:
        return np.asarray(image.convert("RGB"))


def main(arguments: list[str] | None = None) -> int:
    """Draws from each model and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, help="folders of `dreamkiln train objective=… data=mixture2d`")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures/models/score_matching.webp"))
    options = parser.parse_args(arguments)
    panels = {"the mixture": MixturePoints.draw(NUM_POINTS).points.numpy()}
    try:
        for folder in options.models:
            model, card = load_model(folder)
            panels[card.model.replace("_", " ")] = model.sample(SampleRequest(tuple(range(NUM_POINTS)))).numpy()
    except DreamKilnError as error:
        print(f"score_matching: {error}", file=sys.stderr)
        return error.exit_code
    print(write_small_webp(scatter(panels), options.out, max_bytes=MAX_BYTES))
    return 0


if __name__ == "__main__":
    sys.exit(main())
