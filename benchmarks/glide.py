"""GLIDE trained small: what each guidance is worth to the judge, the upsampler against bicubic, what inpainting fills in.

dreamkiln train objective=glide preset=small --out BASE …                    (and noisy_clip, glide_upsampler,
dreamkiln train objective=glide_inpainting start_from=BASE preset=small …     all with the same data.… settings)
python -m benchmarks.glide --base BASE --clip CLIP --upsampler UPSAMPLER --inpainting INPAINTING

All pictures and captions are ones that training did not see; nothing is picked.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.machine import describe_machine
from benchmarks.pictures import write_small_webp
from diffusion.models.base import Model, SampleRequest
from diffusion.models.glide_upsampler import FACTOR
from diffusion.text.image_text import ImageTextModel
from jobs.errors import DreamKilnError
from orchestrator.host.atomic import write_text
from orchestrator.lab.evaluation.captions import CaptionPool, caption_pool, without_view_words
from orchestrator.lab.evaluation.judge import judge_folder, load_judge
from orchestrator.lab.evaluation.picture import Tile, enlarge, labelled_sheet
from orchestrator.lab.evaluation.r_precision import retrieve, summarise
from orchestrator.lab.family.data import DataSettings, ToyboxPictures
from orchestrator.lab.family.folder import Card, load_model
from orchestrator.lab.family.train import LOG

RESULTS = Path(__file__).parent / "results/glide.json"
PICTURE = Path("docs/pictures/models/glide.webp")
MAX_BYTES = 60_000
NUM_SHOWN, TILE_SIZE, CHUNK = 8, 64, 16
NUM_ENLARGED = 16


@dataclass(frozen=True)
class Unseen:
    """The first pictures after those of a training: x (N, 3, H, W) in [-1, 1], and their captions."""

    x: Tensor
    captions: tuple[str, ...]

    @classmethod
    def read(cls, folder: Path | None, card: Card, count: int) -> Unseen:
        """`count` pictures of the card's kinds, look and size, rendered where there is no folder of shards.

        Raises what `ToyboxPictures.load` does.
        """
        seen, size, look = int(card.data["num_items"]), int(card.data["shape"][-1]), card.data.get("look", "scene")
        given = None if folder is None else str(folder)
        settings = DataSettings(folder=given, num_pictures=seen + count, kinds=",".join(card.classes), look=look)
        batch = ToyboxPictures.load(settings, size=size, say=print).batch(torch.arange(seen, seen + count))
        return cls(batch.x, tuple(map(without_view_words, batch.captions or ())))


def drawn(model: Model, prompts: Sequence[str] | None, options: Mapping[str, Any], count: int, **request: Any) -> Tensor:
    """Pictures from seeds 0 ... count - 1, in chunks; options that are one picture a sample are cut with them."""
    pictures = []
    for start in range(0, count, CHUNK):
        rows = slice(start, min(start + CHUNK, count))
        part = {name: v[rows] if isinstance(v, Tensor) and len(v) == count else v for name, v in options.items()}
        given = None if prompts is None else tuple(prompts[rows])
        pictures.append(
            model.sample(SampleRequest(tuple(range(rows.start, rows.stop)), prompts=given, options=part, **request))
        )
    return torch.cat(pictures)


def judged(pictures: Tensor, pool: CaptionPool, judge: ImageTextModel) -> dict[str, float]:
    """R-Precision of pictures (N, 3, H, W) in [-1, 1]."""
    found = retrieve(judge.embed_images((pictures + 1) / 2), judge.embed_texts(pool.captions), torch.tensor(pool.truths))
    return {key: round(value, 4) for key, value in asdict(summarise(found, pool, pool.truths)).items()}


def psnr(pictures: Tensor, truth: Tensor) -> float:
    """Of pictures in [-1, 1], in decibels; the mean over pictures."""
    error = ((pictures - truth) / 2).square().mean(dim=(1, 2, 3))
    return round(float(-10 * error.log10().mean()), 2)


def guidance(
    base: Model, clip: Model | None, unseen: Unseen, *, num_steps: int, judge: ImageTextModel
) -> tuple[dict, dict[str, Tensor]]:
    """Figures and pictures of each guidance, and of the unseen pictures themselves."""
    count, pool = len(unseen.x), caption_pool(unseen.captions)
    ways: dict[str, tuple[float, dict[str, Any]]] = {"no guidance": (1.0, {}), "classifier-free, s = 3": (3.0, {})}
    if clip is not None:
        ways |= {f"CLIP, s = {s:g}": (1.0, {"clip": clip, "clip_scale": s}) for s in (3.0, 10.0)}
    pictures = {
        name: drawn(base, unseen.captions, options, count, num_steps=num_steps, guidance_scale=scale)
        for name, (scale, options) in ways.items()
    }
    figures = {name: judged(value, pool, judge) for name, value in ({"real pictures": unseen.x} | pictures).items()}
    return {"num_captions": len(pool.captions), "num_steps": num_steps, **figures}, pictures


def upsampling(upsampler: Model, unseen: Unseen) -> tuple[dict[str, float], Tensor]:
    """PSNR of one sample and of the mean of four, beside bicubic and bilinear, from small pictures in 8 bits."""
    small = ((F.avg_pool2d(unseen.x, FACTOR) + 1) * 127.5).round() / 127.5 - 1
    count, size = len(small), unseen.x.shape[-1]
    samples = [
        drawn(upsampler, [prompt] * 4, {"low_res": low.expand(4, -1, -1, -1)}, 4)
        for low, prompt in zip(small, unseen.captions, strict=True)
    ]
    first, mean = torch.stack([s[0] for s in samples]), torch.stack([s.mean(dim=0) for s in samples])
    plain = {
        mode: F.interpolate(small, size=(size, size), mode=mode, align_corners=False).clamp(-1, 1)
        for mode in ("bilinear", "bicubic")
    }
    figures = {f"{mode} PSNR": psnr(value, unseen.x) for mode, value in plain.items()}
    figures |= {"one sample PSNR": psnr(first, unseen.x), "mean of four PSNR": psnr(mean, unseen.x), "num_pictures": count}
    return figures, first


def filling(models: Mapping[str, Model], unseen: Unseen, *, num_steps: int) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Root mean square error in an erased square of half the side, of [-1, 1], and what each model drew."""
    size = unseen.x.shape[-1]
    mask = torch.ones(1, size, size)
    mask[:, size // 4 : 3 * size // 4, size // 2 :] = 0
    hole = (mask == 0).expand(3, -1, -1)
    rest = (unseen.x * mask).sum(dim=(2, 3), keepdim=True) / mask.sum()
    figures = {"mean colour of the rest": (rest.expand_as(unseen.x) - unseen.x)[:, hole].square().mean().sqrt()}
    pictures = {}
    for name, model in models.items():
        options = {"image": unseen.x, "mask": mask}
        pictures[name] = drawn(model, unseen.captions, options, len(unseen.x), num_steps=num_steps)
        kept = (mask == 1).expand_as(unseen.x)
        if not torch.equal(pictures[name][kept], unseen.x[kept]):
            raise RuntimeError(f"{name} changed pixels that it was told to keep")
        figures[name] = (pictures[name] - unseen.x)[:, hole].square().mean().sqrt()
    return {name: round(float(value), 4) for name, value in figures.items()}, {"erased": unseen.x * mask} | pictures


def training(folder: Path) -> dict[str, float]:
    """Steps and wall-clock seconds of a training, as its log says."""
    seconds = [json.loads(line)["seconds"] for line in (folder / LOG).read_text(encoding="utf-8").splitlines()]
    return {"steps": len(seconds), "seconds": round(sum(seconds))}


def sheet(rows: Mapping[str, Tensor], captions: Sequence[str]) -> np.ndarray:
    """One row of pictures for each way, with its name; the captions under the first."""
    strips = []
    for place, (name, pictures) in enumerate(rows.items()):
        labels = captions if place == 0 else [name] + [""] * (NUM_SHOWN - 1)
        pixels = ((pictures[:NUM_SHOWN].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        tiles = [Tile(enlarge(image, TILE_SIZE), (label,)) for image, label in zip(pixels, labels, strict=False)]
        strips.append(labelled_sheet(tiles, num_columns=NUM_SHOWN))
    return np.concatenate(strips)


def main(arguments: list[str] | None = None) -> int:
    """Measures, writes the figures and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("base", "clip", "upsampler", "inpainting"):
        parser.add_argument(f"--{name}", type=Path, required=name == "base", help="folder of its training")
    parser.add_argument("--data", type=Path, help="the shards that they were trained on; rendered where it is not given")
    parser.add_argument("--num-pictures", type=int, default=64)
    parser.add_argument("--num-steps", type=int, default=50, help="of the base and the inpainting model")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    options = parser.parse_args(arguments)
    folders = {name: getattr(options, name) for name in ("base", "clip", "upsampler", "inpainting") if getattr(options, name)}
    try:
        loaded = {name: load_model(folder) for name, folder in folders.items()}
        models = {name: model for name, (model, _) in loaded.items()}
        unseen = Unseen.read(options.data, loaded["base"][1], options.num_pictures)
        report: dict[str, Any] = {
            "measured": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "machine": describe_machine(),
            "kinds": list(loaded["base"][1].classes),
            "training": {name: training(folder) for name, folder in folders.items()},
        }
        judge = load_judge(judge_folder("toybox"))
        report["guidance"], rows = guidance(
            models["base"], models.get("clip"), unseen, num_steps=options.num_steps, judge=judge
        )
        rows = {"real pictures": unseen.x} | rows
        if "upsampler" in models:
            large = Unseen.read(options.data, loaded["upsampler"][1], min(options.num_pictures, NUM_ENLARGED))
            report["upsampling"], _ = upsampling(models["upsampler"], large)
            best = rows["classifier-free, s = 3"][:NUM_SHOWN]
            rows["enlarged"] = drawn(models["upsampler"], unseen.captions[: len(best)], {"low_res": best}, len(best))
        fillers = {"base, overwritten": models["base"]}
        if "inpainting" in models:
            fillers["inpainting model"] = models["inpainting"]
        report["inpainting error"], filled = filling(fillers, unseen, num_steps=options.num_steps)
    except DreamKilnError as error:
        print(f"glide: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(report, indent=2))
    options.results.parent.mkdir(parents=True, exist_ok=True)
    write_text(options.results, json.dumps(report, indent=2) + "\n")
    print(write_small_webp(sheet(rows | filled, unseen.captions), options.picture, max_bytes=MAX_BYTES))
    return 0


if __name__ == "__main__":
    sys.exit(main())
