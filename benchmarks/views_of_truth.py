"""Does a multi-view prior draw the views that it is asked for? Outlines of its strips against those of the true objects.

    python -m benchmarks.views_of_truth [--prior toybox]

One strip (`dreamkiln images --views 4`) of each of sixteen kinds, none picked. What differs from the border's colour is the
object. The truth is drawn from the same four cameras over the same backgrounds, and its outline is found in the same way: at 64
pixels a fringe of half-covered pixels is a tenth of an object, and an outline by coverage would hold even true pictures at
`fringe`. A sentence leaves size and proportions free: of the true objects that training may show, the one that agrees best in
the mean of the four views counts. `coded` is what the truth scores once it has been through the prior's autoencoder.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.machine import describe_machine, one_line
from benchmarks.pictures import write_small_webp
from benchmarks.saving import save_run
from diffusion.prior import Prior
from jobs.events import ImageReady
from jobs.images import images
from jobs.specs import ImagesSpec
from nerf3d.cameras import Cameras
from nerf3d.metrics import silhouette_iou
from nerf3d.toybox.items import SIZE_JITTER
from nerf3d.toybox.primitives import Parts
from nerf3d.toybox.render import render_object
from orchestrator.host.threads import use_threads
from orchestrator.lab.evaluation.proportions import NUM_PROPORTIONS, best_numbers, object_of
from orchestrator.lab.evaluation.r_precision import interval_of_mean
from orchestrator.prior.local import LocalPrior

RESULTS = Path(__file__).parent / "results" / "views_of_truth.json"
PICTURE = Path(__file__).parents[1] / "docs" / "pictures" / "strips.webp"
PROMPTS = (
    "a red teapot",
    "a yellow plane",
    "an orange duck",
    "a cyan robot",
    "a blue car",
    "a pink house with a blue roof",
    "a brown chair",
    "a red table",
    "a green truck",
    "a yellow penguin",
    "a green boat with a yellow sail",
    "a gray hammer with a brown handle",
    "a purple sofa",
    "a blue mushroom with a yellow stem",
    "a green rocket",
    "a black mug",
)
OBJECT_DIFFERENCE = 0.1
"""Largest difference of a channel from the background, 0 to 1, over which a pixel belongs to the object."""


def backgrounds(pictures: Tensor) -> Tensor:
    """(V, 3, 1, 1), the median colour of each picture's border."""
    edge = torch.cat([pictures[..., 0, :], pictures[..., -1, :], pictures[..., 0], pictures[..., -1]], dim=-1)
    return edge.median(dim=-1).values[..., None, None]


def outline(pictures: Tensor) -> Tensor:
    """(V, 1, H, W) in {0, 1} of pictures (V, 3, H, W): what differs from the colour of the border."""
    return ((pictures - backgrounds(pictures)).abs().amax(dim=1, keepdim=True) > OBJECT_DIFFERENCE).float()


def true_pictures(parts: Parts, cameras: Cameras, behind: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The truth over the backgrounds (V, 3, 1, 1): (V, 3, size, size), and its coverage (V, 1, size, size)."""
    over_white, alpha = render_object(parts, cameras, size)
    return over_white + (1 - alpha) * (behind - 1), alpha


def agreement(pictures: Tensor, prompt: str, spec: ImagesSpec, prior: Prior) -> dict[str, float]:
    """Mean outline IoU over the views with the true object that agrees best, and what the truth itself comes to."""
    cameras = Cameras.orbit([spec.azimuth_of(view) for view in range(spec.num_views)], spec.elevation_degrees)
    ours, behind, size = outline(pictures), backgrounds(pictures), pictures.shape[-1]

    def truth(numbers: list[float]) -> tuple[Tensor, Tensor]:
        parts = object_of(prompt, numbers[1:], size=1 - SIZE_JITTER * numbers[0])
        return true_pictures(parts, cameras, behind, size)

    best = best_numbers(1 + NUM_PROPORTIONS, lambda numbers: silhouette_iou(ours, outline(truth(numbers)[0])))
    true, alpha = truth(best)
    with torch.no_grad():
        coded = prior.decode(prior.encode(true)).clamp(0, 1)
    return {
        "iou": round(silhouette_iou(ours, outline(true)), 3),
        "coded": round(silhouette_iou(outline(coded), outline(true)), 3),
        "fringe": round(silhouette_iou(outline(true), (alpha > 0.5).float()), 3),
    }


def main(arguments: list[str] | None = None) -> int:
    """Prints a line a prompt and the mean, and saves both and the strips."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="toybox")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    options = parser.parse_args(arguments)
    use_threads(0)
    prior = Prior.load(options.prior)
    asked = LocalPrior(prior)
    info = asked.info()
    rows, strips = {}, []
    for prompt in PROMPTS:
        spec = ImagesSpec(prompt=prompt, num_images=info.num_views or 1, num_views=info.num_views or 1, azimuth_degrees=30.0)
        drawn = [torch.from_numpy(event.image) for event in images(spec, asked) if isinstance(event, ImageReady)]
        pictures = torch.stack(drawn).permute(0, 3, 1, 2) / 255
        rows[prompt] = agreement(pictures, prompt, spec, prior)
        strips.append(torch.cat(list(pictures), dim=-1))
        print(prompt, rows[prompt], flush=True)
    means = {name: round(sum(row[name] for row in rows.values()) / len(rows), 3) for name in ("iou", "coded", "fringe")}
    low, high = interval_of_mean([row["iou"] for row in rows.values()])
    print(f"means {means}, the first {low:.3f} to {high:.3f}")
    half = len(strips) // 2
    page = torch.cat([torch.cat(strips[:half], dim=-2), torch.cat(strips[half:], dim=-2)], dim=-1)
    write_small_webp((page.permute(1, 2, 0) * 255).round().byte().numpy(), options.picture, max_bytes=120_000, max_width=1024)
    settings = {"prior": info.name, "weights_hash": info.weights_hash, "num_views": info.num_views}
    machine = describe_machine()
    print(one_line(machine))
    save_run(options.out, machine, settings, {"means": means, "interval": [low, high], "prompts": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
