"""Points drawn by score-based models beside points of the mixture that they were trained on, as one picture.

dreamkiln train objective=sliced_score_matching data=mixture2d --out DIR
python -m benchmarks.score_matching DIR [DIR ...] --out docs/pictures/models/score_matching.webp
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.pictures import write_small_webp
from diffusion.models.base import SampleRequest
from jobs.errors import DreamKilnError
from orchestrator.lab.family.data import MixturePoints
from orchestrator.lab.family.folder import load_model
from orchestrator.lab.family.pictures import scatter

NUM_POINTS = 1500
MAX_BYTES = 60_000
LIMIT, SIZE = 1.8, 2.6
"""Of a panel's axes, and its inches."""


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
    print(write_small_webp(scatter(panels, limit=LIMIT, size=SIZE), options.out, max_bytes=MAX_BYTES))
    return 0


if __name__ == "__main__":
    sys.exit(main())
