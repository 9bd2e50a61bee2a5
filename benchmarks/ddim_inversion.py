"""Pictures that a model did not see, inverted to their noise by DDIM and drawn again: what is lost, by the number of steps.

dreamkiln train objective=improved_ddpm preset=small network.num_classes=auto … --out training/kinds
python -m benchmarks.ddim_inversion training/kinds
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks.glide import MAX_BYTES, NUM_SHOWN, Unseen, psnr, sheet
from benchmarks.pictures import write_small_webp
from diffusion.models.base import SampleRequest
from jobs.errors import DreamKilnError
from orchestrator.lab.family.folder import load_model
from orchestrator.settings.overrides import diffusion_errors_are_input

WAYS = ((10, 0), (25, 0), (50, 0), (50, 1))
"""Steps, and corrections of each in the inversion."""


def main(arguments: list[str] | None = None) -> int:
    """Prints the likeness of each way in decibels and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of a ddpm or improved_ddpm of toybox pictures")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures/models/ddim_inversion.webp"))
    options = parser.parse_args(arguments)
    try:
        model, card = load_model(options.model)
        unseen = Unseen.read(None, card, NUM_SHOWN)
        rows = {"real pictures": unseen.x}
        with diffusion_errors_are_input():
            for num_steps, num_corrections in WAYS:
                told: dict[str, Any] = {"invert": unseen.x, "num_corrections": num_corrections}
                again = model.sample(SampleRequest(tuple(range(NUM_SHOWN)), sampler="ddim", num_steps=num_steps, options=told))
                corrected = f", {num_corrections} correction" if num_corrections else ""
                rows[f"{num_steps} steps{corrected}"] = again
                print(f"{num_steps} steps{corrected}: {psnr(again, unseen.x)} dB")
    except DreamKilnError as error:
        print(f"ddim_inversion: {error}", file=sys.stderr)
        return error.exit_code
    print(write_small_webp(sheet(rows, [""] * NUM_SHOWN), options.out, max_bytes=MAX_BYTES))
    return 0


if __name__ == "__main__":
    sys.exit(main())
