"""From checkpoints to the folder that ships, and back."""

import json
from pathlib import Path

from diffusion.networks.unet import UNet2DCondition
from diffusion.prior import Prior, PriorCard
from diffusion.prior_folder import save_prior
from diffusion.text.clip import Clip, load_clip, save_clip
from diffusion.training.loop import TrainState
from nerf3d.toybox.words import vocabulary
from orchestrator.training import recipe
from orchestrator.training.parts import CHECKPOINT, load_averaged, trained_autoencoder


def assemble(root: Path, folder: Path) -> None:
    """Writes the averaged weights of every trained part: the prior, its image tower, and the judge if there is one."""
    tokenizer = recipe.toybox_tokenizer()
    towers = load_averaged(Clip(recipe.clip_config(tokenizer)), root / "clip")
    save_prior(
        folder,
        card=PriorCard("toybox", recipe.IMAGE_SIZE, vocabulary(), view_words=True),
        unet=load_averaged(UNet2DCondition(recipe.UNET), root / "denoiser"),
        autoencoder=trained_autoencoder(root),
        text_encoder=towers.text,
        tokenizer=tokenizer,
        schedule=recipe.SCHEDULE,
    )
    save_clip(towers, tokenizer, folder / "clip", with_text=False)
    if (root / "judge" / CHECKPOINT).exists():
        judge = load_averaged(Clip(recipe.judge_config(tokenizer)), root / "judge")
        save_clip(judge, tokenizer, folder / "judge", with_text=True)


def unpack(folder: Path, root: Path) -> None:
    """The way back: weights that ship become the starting point of more training; finished checkpoints are kept.

    Raises:
        PriorError: the folder is missing, damaged, or not one that `assemble` wrote.
    """
    prior = Prior.load(folder)
    modules = {
        "autoencoder": prior.autoencoder,
        "clip": load_clip(folder / "clip", text=prior.text_encoder),
        "judge": load_clip(folder / "judge"),
        "denoiser": prior.unet,
    }
    for name, module in modules.items():
        path = root / name / CHECKPOINT
        if not path.exists():
            TrainState(module.requires_grad_(True), weight_decay=0.0).save(path)
    scaling = {"scaling_factor": prior.autoencoder.config.scaling_factor}
    (root / "autoencoder/scaling.json").write_text(json.dumps(scaling), encoding="utf-8")
