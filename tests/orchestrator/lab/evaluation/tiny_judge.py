"""A judge of random weights: it knows nothing, but everything around it can be tested."""

from __future__ import annotations

from pathlib import Path

import torch

from diffusion.text.clip import Clip, ClipConfig, TextConfig, save_clip
from diffusion.text.tokenizer import Tokenizer
from nerf3d.toybox.words import vocabulary


def save_tiny_judge(folder: Path, *, image_size: int = 32) -> Path:
    """Writes `folder` as `orchestrator.lab.training.assemble` writes a prior's `judge/`; returns it."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.for_words(vocabulary(), 24)
    text = TextConfig(vocab_size=tokenizer.vocab_size, context_length=24, width=32, heads=1, layers=1)
    vision = {"image_size": image_size, "patch_size": 16, "layers": 1, "width": 32, "head_width": 32}
    save_clip(Clip(ClipConfig(16, text, vision)), tokenizer, folder, with_text=True)
    return folder
