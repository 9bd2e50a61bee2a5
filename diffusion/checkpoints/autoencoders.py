"""Another autoencoder for a checkpoint: a tiny one (TAESD) or another KL one, from a folder or from original files."""

from pathlib import Path

from diffusion.checkpoints.autoencoder_keys import (
    folder_autoencoder_kl,
    original_autoencoder_kl,
    original_autoencoder_tiny,
)
from diffusion.checkpoints.checkpoint import Autoencoder, Checkpoint
from diffusion.checkpoints.errors import PriorError
from diffusion.checkpoints.folder import read_autoencoder_folder
from diffusion.checkpoints.keymap import identity
from diffusion.checkpoints.weights import PICKLES, Weights, fill, skeleton
from diffusion.networks.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from diffusion.networks.autoencoder_tiny import AutoencoderTiny, AutoencoderTinyConfig


def replace_autoencoder(checkpoint: Checkpoint, path: Path) -> list[Path]:
    """Gives a checkpoint another autoencoder and returns the files it came from.

    Args:
        path: a folder with `config.json`; a folder with TAESD's two original files; or one file, of a tiny autoencoder
            in the folders' names or of a KL one in either.

    Raises:
        PriorError: a file is missing or damaged, or its latents have another number of channels.
    """
    autoencoder, files = read_autoencoder(path, checkpoint.autoencoder.config)
    ours, theirs = autoencoder.config.latent_channels, checkpoint.unet.config.out_channels
    if ours != theirs:
        raise PriorError(
            f"the autoencoder {path} has {ours} latent channels and {checkpoint.card.name} has {theirs}; use the one that "
            "was made for this family"
        )
    if autoencoder.config.spatial_factor != checkpoint.autoencoder.config.spatial_factor:
        raise PriorError(
            f"the autoencoder {path} shrinks pictures {autoencoder.config.spatial_factor} times and "
            f"{checkpoint.card.name}'s {checkpoint.autoencoder.config.spatial_factor} times; use the one that was made for it"
        )
    checkpoint.autoencoder = autoencoder
    return files


def read_autoencoder(path: Path, family: AutoencoderKLConfig | AutoencoderTinyConfig) -> tuple[Autoencoder, list[Path]]:
    """An autoencoder and its files; a KL file without a configuration takes the family's.

    Raises:
        PriorError: a file is missing or damaged.
    """
    if (path / "config.json").exists():
        return read_autoencoder_folder(path)
    if path.is_dir():
        return _original_tiny(path)
    weights = Weights([path])
    tensors = weights.under("first_stage_model.") or dict(weights)
    if "encoder.layers.0.weight" in tensors:
        channels = tensors["decoder.layers.0.weight"].shape[1]
        tiny = AutoencoderTinyConfig(latent_channels=channels)
        return fill(skeleton(lambda: AutoencoderTiny(tiny)), identity, tensors, path), [path]
    if not isinstance(family, AutoencoderKLConfig):
        raise PriorError(
            f"{path} is a KL autoencoder without a configuration, and the prior's own is a tiny one; give a folder"
        )
    config = family
    original = "encoder.norm_out.weight" in tensors
    return (
        fill(
            skeleton(lambda: AutoencoderKL(config)),
            (lambda keys: original_autoencoder_kl(config, keys)) if original else folder_autoencoder_kl,
            {name: tensor for name, tensor in tensors.items() if not name.startswith(("loss.", "model_ema."))},
            path,
        ),
        [path],
    )


def _original_tiny(folder: Path) -> tuple[AutoencoderTiny, list[Path]]:
    halves = {}
    for half in ("encoder", "decoder"):
        files = [p for p in sorted(folder.glob(f"*{half}*")) if p.suffix in (".safetensors", *PICKLES)]
        if len(files) != 1:
            raise PriorError(
                f"the folder {folder} holds {len(files)} files of a tiny {half}; expected a config.json with its weights, "
                "or one *encoder* and one *decoder* file"
            )
        halves[half] = files[0]
    tensors = {f"{half}.{name}": tensor for half, file in halves.items() for name, tensor in Weights([file]).items()}
    first = tensors.get("decoder.1.weight")
    config = AutoencoderTinyConfig(latent_channels=4 if first is None else first.shape[1])
    return fill(skeleton(lambda: AutoencoderTiny(config)), original_autoencoder_tiny, tensors, folder), list(halves.values())
