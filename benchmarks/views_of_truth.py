"""Does a multi-view prior draw the views that it is asked for? Outlines of its strips against those of the true objects.

    python -m benchmarks.views_of_truth [--prior toybox]

One strip (`dreamkiln images --views 4`) of each of sixteen kinds, none picked. What differs from the border's colour is the
object; the truth is drawn from the same four cameras. A sentence leaves size and proportions free: of the true objects that
training may show, the one that agrees best in the mean of the four views counts.
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
from jobs.events import ImageReady
from jobs.images import images
from jobs.specs import ImagesSpec
from nerf3d.cameras import Cameras
from nerf3d.metrics import silhouette_iou
from nerf3d.toybox.items import SIZE_JITTER
from nerf3d.toybox.render import render_object
from orchestrator.host.threads import use_threads
from orchestrator.lab.evaluation.proportions import NUM_PROPORTIONS, best_numbers, object_of
from orchestrator.lab.evaluation.r_precision import interval_of_mean
from orchestrator.prior.local import load_prior

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


def outline(pictures: Tensor) -> Tensor:
    """(V, 1, H, W) in {0, 1} of pictures (V, 3, H, W): what differs from the median colour of the border."""
    edge = torch.cat([pictures[..., 0, :], pictures[..., -1, :], pictures[..., 0], pictures[..., -1]], dim=-1)
    background = edge.median(dim=-1).values[..., None, None]
    return ((pictures - background).abs().amax(dim=1, keepdim=True) > OBJECT_DIFFERENCE).float()


def agreement(pictures: Tensor, prompt: str, spec: ImagesSpec) -> float:
    """Mean outline IoU over the views with the true object that agrees best."""
    azimuths = [spec.azimuth_of(view) for view in range(spec.num_views)]
    cameras = Cameras.orbit(azimuths, spec.elevation_degrees)
    ours = outline(pictures)

    def iou(numbers: list[float]) -> float:
        parts = object_of(prompt, numbers[1:], size=1 - SIZE_JITTER * numbers[0])
        return silhouette_iou(ours, (render_object(parts, cameras, pictures.shape[-1])[1] > 0.5).float())

    return iou(best_numbers(1 + NUM_PROPORTIONS, iou))


def main(arguments: list[str] | None = None) -> int:
    """Prints a line a prompt and the mean, and saves both and the strips."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="toybox")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    options = parser.parse_args(arguments)
    use_threads(0)
    prior = load_prior(options.prior)
    info = prior.info()
    rows, strips = {}, []
    for prompt in PROMPTS:
        spec = ImagesSpec(prompt=prompt, num_images=info.num_views or 1, num_views=info.num_views or 1, azimuth_degrees=30.0)
        drawn = [torch.from_numpy(event.image) for event in images(spec, prior) if isinstance(event, ImageReady)]
        pictures = torch.stack(drawn).permute(0, 3, 1, 2) / 255
        rows[prompt] = round(agreement(pictures, prompt, spec), 3)
        strips.append(torch.cat(list(pictures), dim=-1))
        print(prompt, rows[prompt], flush=True)
    mean = sum(rows.values()) / len(rows)
    low, high = interval_of_mean(list(rows.values()))
    print(f"mean {mean:.3f} ({low:.3f} to {high:.3f})")
    half = len(strips) // 2
    page = torch.cat([torch.cat(strips[:half], dim=-2), torch.cat(strips[half:], dim=-2)], dim=-1)
    write_small_webp((page.permute(1, 2, 0) * 255).round().byte().numpy(), options.picture, max_bytes=120_000, max_width=1024)
    settings = {"prior": info.name, "weights_hash": info.weights_hash, "num_views": info.num_views}
    machine = describe_machine()
    print(one_line(machine))
    save_run(options.out, machine, settings, {"silhouette_iou": round(mean, 3), "interval": [low, high], "prompts": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
