"""Does a network heed where the camera is? Printed and plotted while it trains; the truth says where left and right differ.

A denoising classifier: the loss of a picture under its own camera (or view words) against that under the camera on the
object's other side. A case counts where the object, seen from there, looks different.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from diffusion.networks.autoencoder_tiny import AutoencoderTiny
from diffusion.precision import autocast
from diffusion.schedule import NoiseSchedule
from diffusion.seeding import stream
from diffusion.text.tokenizer import Tokenizer
from diffusion.training.denoiser import TextConditionedDenoiser
from diffusion.training.multi_view import denoising_errors
from nerf3d.cameras import Cameras
from nerf3d.toybox.items import Item, make_views
from nerf3d.toybox.render import render_items
from nerf3d.view_words import mirrored_phrase, view_phrase

LEVELS = (0.8, 0.93)
"""Noise levels at which it is asked, as fractions of the schedule."""

DIFFERENT = 0.02
"""Mean difference of two unlit renders, 0 to 1, from which two sides of an object count as different."""


@dataclasses.dataclass(frozen=True)
class Gate:
    """Pictures of objects that training never shows, in groups of views, and which of their sides differ.

    Args:
        latents: (N, C, h, w) of pictures from cameras (N, 16); prompt_ids (N, S) without view words.
        worded_ids, mirrored_ids: (N, S) with view words, and with those of the other side.
        mirrored, opposite: (N, 16) cameras on the other side left and right, and front and back.
        sides_differ, ends_differ: (N,) bool, whether the object looks different from these.
        num_views: pictures of each object, one after the other.
    """

    latents: Tensor
    cameras: Tensor
    mirrored: Tensor
    opposite: Tensor
    prompt_ids: Tensor
    worded_ids: Tensor
    mirrored_ids: Tensor
    sides_differ: Tensor
    ends_differ: Tensor
    num_views: int

    @classmethod
    def make(cls, autoencoder: AutoencoderTiny, tokenizer: Tokenizer, *, num_objects: int = 64, num_views: int = 4) -> Gate:
        """Renders and encodes the first held-out objects whose sides differ from at least one of their views."""
        items = [view for index in range(4 * num_objects) for view in make_views(index, num_views, held_out=True)]
        lopsided = _differ(items, lambda a: -a).view(-1, num_views).any(dim=1).nonzero().flatten()[:num_objects]
        items = [items[number * num_views + view] for number in lopsided.tolist() for view in range(num_views)]
        phrases = [view_phrase(item.azimuth_degrees, item.elevation_degrees) for item in items]
        with torch.no_grad():
            latents = torch.cat([autoencoder.encode(part) for part in render_items(items)[0].split(128)])
        return cls(
            latents,
            _cameras(items, lambda a: a),
            _cameras(items, lambda a: -a),
            _cameras(items, lambda a: 180 - a),
            tokenizer([item.prompt for item in items]),
            tokenizer([f"{item.prompt}, {phrase}" for item, phrase in zip(items, phrases, strict=True)]),
            tokenizer([f"{item.prompt}, {mirrored_phrase(phrase)}" for item, phrase in zip(items, phrases, strict=True)]),
            _differ(items, lambda a: -a),
            _differ(items, lambda a: 180 - a),
            num_views,
        )

    def figures(self, denoiser: TextConditionedDenoiser, schedule: NoiseSchedule) -> dict[str, float]:
        """Shares of the cases in which the truth has the lower loss, and losses with and without cameras.

        Names are groups_left_right@0.8, single_front_back@0.93, words_left_right@0.8, groups_loss@0.8 and so on.
        """
        found: dict[str, float] = {}
        nowhere = torch.zeros_like(self.cameras)
        for level in LEVELS:
            for name, num_views in (("groups", self.num_views), ("single", 1)):
                ask = functools.partial(self._errors, denoiser, schedule, level, num_views, self.prompt_ids)
                true, mirrored, opposite, without = (
                    ask(cameras) for cameras in (self.cameras, self.mirrored, self.opposite, nowhere)
                )
                sides, ends = (flags.view(-1, num_views).any(dim=1) for flags in (self.sides_differ, self.ends_differ))
                found[f"{name}_left_right@{level}"] = _share(true < mirrored, sides)
                found[f"{name}_front_back@{level}"] = _share(true < opposite, ends)
                found[f"{name}_loss@{level}"] = float(true.mean())
                found[f"{name}_loss_without@{level}"] = float(without.mean())
            right, wrong = (
                self._errors(denoiser, schedule, level, 1, ids, nowhere) for ids in (self.worded_ids, self.mirrored_ids)
            )
            found[f"words_left_right@{level}"] = _share(right < wrong, self.sides_differ)
        return {name: round(value, 4) for name, value in found.items()}

    def _errors(
        self,
        denoiser: TextConditionedDenoiser,
        schedule: NoiseSchedule,
        level: float,
        num_views: int,
        ids: Tensor,
        cameras: Tensor,
    ) -> Tensor:
        """Mean loss of each group of num_views pictures."""
        device = next(denoiser.parameters()).device
        with autocast(device.type):
            errors = denoising_errors(
                denoiser,
                schedule,
                latents=self.latents.to(device),
                ids=ids.to(device),
                cameras=cameras.to(device),
                level=level,
                num_views=num_views,
                generator=stream(0, "gate"),
            )
        return errors.view(-1, num_views).mean(dim=1).cpu()


def plot_gates(folder: Path) -> None:
    """gate.png beside gate.jsonl: the shares that are right over the steps, at the first noise level."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [json.loads(line) for line in (folder / "gate.jsonl").read_text(encoding="utf-8").splitlines()]
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    for name in (
        f"{who}@{LEVELS[0]}" for who in ("groups_left_right", "groups_front_back", "single_left_right", "words_left_right")
    ):
        axes.plot([row["step"] for row in rows], [row[name] for row in rows], marker=".", label=name)
    axes.axhline(0.5, color="gray", linewidth=0.8, linestyle="--")
    axes.set(xlabel="step", ylabel="share right", ylim=(0.3, 1.0), title=folder.name)
    axes.legend(fontsize=7)
    figure.savefig(folder / "gate.png", dpi=110)
    plt.close(figure)


def _differ(items: list[Item], turn: Callable[[float], float]) -> Tensor:
    """(N,) bool, whether an item looks different from the azimuth that its own becomes."""
    turned = [dataclasses.replace(item, azimuth_degrees=turn(item.azimuth_degrees)) for item in items]
    here, there = (render_items(some, shading="albedo")[0] for some in (items, turned))
    return (here - there).abs().mean(dim=(1, 2, 3)) > DIFFERENT


def _cameras(items: list[Item], turn: Callable[[float], float]) -> Tensor:
    azimuths = [turn(item.azimuth_degrees) for item in items]
    return Cameras.orbit(azimuths, [item.elevation_degrees for item in items]).pose_vectors()


def _share(is_right: Tensor, counts: Tensor) -> float:
    return float(is_right[counts].float().mean())
