"""From checkpoints to the folder that ships, and back."""

import json
from pathlib import Path

from diffusion.checkpoints.errors import PriorError
from diffusion.networks.unet import UNet2DCondition
from diffusion.prior import Prior, PriorCard
from diffusion.prior_folder import save_prior
from diffusion.text.clip import Clip, load_clip, save_clip
from diffusion.training.denoiser import TextConditionedDenoiser
from diffusion.training.loop import TrainState
from jobs.errors import InputError
from nerf3d.toybox.words import vocabulary
from orchestrator.host.atomic import clear_output_errors, write_text
from orchestrator.lab.training import recipe
from orchestrator.lab.training.parts import CHECKPOINT, joint_denoiser, load_averaged, trained_autoencoder, view_denoiser
from orchestrator.prior.source import refusal


def assemble(root: Path, folder: Path) -> None:
    """Writes the averaged weights of every trained part: the prior, its image tower, and the judge if there is one.

    The denoiser is that of the views, which is told its cameras, where it has been trained.
    """
    has_views = (root / "views" / CHECKPOINT).exists()
    tokenizer = recipe.toybox_tokenizer()
    denoiser = load_averaged(*((view_denoiser(), root / "views") if has_views else (joint_denoiser(), root / "denoiser")))
    save_prior(
        folder,
        card=PriorCard("toybox", recipe.IMAGE_SIZE, vocabulary(), view_words=True, first_order_from_noise=True),
        unet=denoiser.unet,
        autoencoder=trained_autoencoder(root),
        text_encoder=denoiser.clip.text,
        tokenizer=tokenizer,
        schedule=recipe.SCHEDULE,
    )
    save_clip(denoiser.clip, tokenizer, folder / "clip", with_text=False)
    if (root / "judge" / CHECKPOINT).exists():
        judge = load_averaged(Clip(recipe.judge_config(tokenizer)), root / "judge")
        save_clip(judge, tokenizer, folder / "judge", with_text=True)


def unpack(folder: Path, root: Path) -> None:
    """The way back: weights that ship become the starting point of more training; finished checkpoints are kept.

    Raises:
        InputError: the folder is missing, damaged, or not one that `assemble` wrote.
    """
    try:
        prior = Prior.load(folder)
    except PriorError as error:
        raise refusal(error) from error
    for name in ("clip", "judge"):
        if not (folder / name / "clip_config.json").exists():
            raise InputError(f"{folder} has no {name}/, so no 'dreamkiln train assemble' wrote it; give one that it wrote.")
    ((_, text, _),) = prior.towers
    towers = load_clip(folder / "clip", text=text)
    assert isinstance(prior.unet, UNet2DCondition)  # a prior of ours, as the towers show
    denoiser = "denoiser" if prior.num_views is None else "views"
    modules = {
        "autoencoder": prior.autoencoder,
        "clip": towers,
        "judge": load_clip(folder / "judge"),
        denoiser: TextConditionedDenoiser(prior.unet, towers),
    }
    for name, module in modules.items():
        path = root / name / CHECKPOINT
        if not path.exists():
            with clear_output_errors(path):
                TrainState(module.requires_grad_(True), recipe.LOOPS[name]).save(path)
    scaling = {"scaling_factor": prior.autoencoder.config.scaling_factor}
    write_text(root / "autoencoder/scaling.json", json.dumps(scaling))
