"""The original single files of CompVis and Stability: UNet, autoencoder and text towers under one roof."""

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from diffusion.checkpoints.architectures import ARCHITECTURES, Architecture, multi_view
from diffusion.checkpoints.autoencoder_keys import original_autoencoder_kl
from diffusion.checkpoints.autoencoders import read_autoencoder
from diffusion.checkpoints.checkpoint import Autoencoder, Checkpoint, PriorCard, inpainting_channels, kind_of_input
from diffusion.checkpoints.errors import PriorError
from diffusion.checkpoints.folder import build_tower
from diffusion.checkpoints.keymap import KeyMap
from diffusion.checkpoints.stable_diffusion_3 import MARK, read_stable_diffusion_3_file
from diffusion.checkpoints.unet_keys import original_unet
from diffusion.checkpoints.weights import Weights, fill, hash_files, skeleton
from diffusion.networks.autoencoder_kl import AutoencoderKL
from diffusion.networks.unet import UNet2DCondition
from diffusion.schedule import NoiseSchedule, PredictionType, TimestepSpacing
from diffusion.text.tokenizer import Tokenizer, full_merges

CAMERA_MARK = "model.diffusion_model.camera_embed.0.weight"
UNET, AUTOENCODER, AVERAGED = "model.diffusion_model.", "first_stage_model.", "model_ema."

# Names that carry no weights of ours: schedule tables, training state, other copies.
IGNORED = re.compile(
    r"(betas|alphas_cumprod|alphas_cumprod_prev|sqrt_.*|log_one_minus_.*|posterior_.*|logvar|lvlb_weights|scale_factor"
    r"|denoiser\.sigmas|v_pred|ztsnr|model_ema\..*|first_stage_model\.loss\..*"
    # The last layer and the projection of SD 2's tower, which it does not read.
    r"|cond_stage_model\.model\.(transformer\.resblocks\.23\..*|text_projection(\.weight)?))"
)
# The same, where it is worth a word: other programs and trainings leave it, and nothing that is drawn here reads it.
UNREAD = re.compile(
    r"(safety_checker\..*|model\.betas|.*\.(logit_scale|position_ids|attn_mask)|model_ema\.(decay|num_updates)"
    r"|(cond_stage_model|conditioner\.embedders\.0)\.transformer\.(text_model\.)?text_projection(\.weight)?)"
)
# Keys that files of another process are marked with.
OTHER_PROCESSES = {
    "edm_vpred.sigma_max": "an EDM model with v-prediction, as CosXL is",
    "edm_mean": "an EDM model, as Playground 2.5 is",
}
# What the merging tools write beside a model whose configuration differs from the published one.
V_PREDICTION_MARK, ZERO_SNR_MARK = "v_pred", "ztsnr"


def read_single_file(
    path: Path,
    *,
    prediction_type: PredictionType | None = None,
    averaged: bool = False,
    architecture: Architecture | None = None,
    vae: Path | None = None,
    dtype: torch.dtype = torch.float32,
) -> Checkpoint:
    """Reads a `.safetensors` or, without running what is in it, a `.ckpt` file of SD 1.x, 2.x, SDXL base or 3.

    Args:
        prediction_type: what the UNet was trained to output. It is not in the weights; where it is None it is taken from
            the file's metadata (`modelspec.prediction_type`), its marks, a configuration `NAME.yaml` beside the file, or
            from the family where only one type was ever published. SD 2.x has two.
        averaged: take the averaged copy of the UNet (`model_ema`) that training files hold beside the last one.
        architecture: instead of the one that the file's names tell.
        vae: of a file that holds no autoencoder; see `replace_autoencoder` for what it may be.
        dtype: of UNet and text towers.

    Raises:
        PriorError: the file is missing, damaged, of another family, or its prediction type is unknown.
    """
    weights = Weights([path])
    if any(name.startswith(MARK) for name in weights):
        if prediction_type is not None or averaged:
            raise PriorError(
                f"{path} is a Stable Diffusion 3, which predicts a velocity and holds no averaged copy; leave out "
                "'prediction_type' and 'averaged'"
            )
        return read_stable_diffusion_3_file(path, weights, vae=vae, dtype=dtype)
    refuse_other_processes(weights, path)
    architecture = architecture or family(weights, path)
    prediction_type = prediction_type or known_prediction_type(weights, path, architecture)
    schedule = schedule_of(weights, path, prediction_type)
    size = architecture.image_sizes.get(prediction_type, max(architecture.image_sizes.values()))
    unet_config = replace(
        architecture.unet,
        sample_size=size // architecture.autoencoder.spatial_factor,
        in_channels=input_channels(weights, architecture, path),
    )
    unet = fill(
        skeleton(lambda: UNet2DCondition(unet_config)),
        lambda keys: original_unet(unet_config, keys),
        averaged_copy(weights, path) if averaged else part(weights, UNET),
        path,
        prefix=UNET,
        dtype=dtype,
    )
    autoencoder, vae_files = autoencoder_of(weights, architecture, path, vae)
    towers = [
        build_tower(tower.config, tower.layout, part(weights, tower.prefix), path, prefix=tower.prefix, dtype=dtype)
        for tower in architecture.towers
    ]
    tokenizers = [Tokenizer(full_merges(), 77, pad_with_end=tower.pad_with_end) for tower in architecture.towers]
    refuse_unknown(weights, architecture, path)
    second = len(towers) == 2
    checkpoint = Checkpoint(
        card=PriorCard(path.stem, size, picture_suffix=architecture.picture_suffix),
        schedule=schedule,
        unet=unet,
        autoencoder=autoencoder,
        text_encoder=towers[0],
        tokenizer=tokenizers[0],
        weights_hash=hash_files([path, *vae_files]),
        text_encoder_2=towers[1] if second else None,
        tokenizer_2=tokenizers[1] if second else None,
        zeros_for_empty_negative=second,
        notes=notes_on(weights, path),
    )
    checkpoint.check(path)
    return checkpoint


def autoencoder_of(
    weights: Weights, architecture: Architecture, path: Path, vae: Path | None
) -> tuple[Autoencoder, list[Path]]:
    """The file's autoencoder, or the one at `vae` where it has none, with the other files that it came from.

    Raises:
        PriorError: there is neither, or it does not fit.
    """
    tensors = part(weights, AUTOENCODER)
    if tensors:
        network = skeleton(lambda: AutoencoderKL(architecture.autoencoder))
        layout = functools.partial(original_autoencoder_kl, architecture.autoencoder)
        return fill(network, layout, tensors, path, prefix=AUTOENCODER), []
    if vae is None:
        raise PriorError(
            f"{path} holds no autoencoder, as files for programs with one of their own do; add the family's with '?vae=PATH', "
            "a .safetensors file or a folder"
        )
    return read_autoencoder(vae, architecture.autoencoder)


def notes_on(names: Iterable[str], path: Path) -> list[str]:
    """What was passed over, in one sentence, or nothing."""
    unread = [name for name in names if UNREAD.fullmatch(name)]
    if not unread:
        return []
    some = f"{unread[0]}{f' and {len(unread) - 1} more' if len(unread) > 1 else ''}"
    return [f"{path.name} holds tensors that change no picture, which were passed over: {some}."]


def refuse_other_processes(names: Iterable[str], path: Path) -> None:
    """Files that are marked as made for another process than the forward process of `NoiseSchedule`.

    Raises:
        PriorError: it is one.
    """
    for mark in OTHER_PROCESSES.keys() & set(names):
        raise PriorError(
            f"{path} is {OTHER_PROCESSES[mark]}, which is another process; use a model of one of the families here"
        )


def write_single_file(checkpoint: Checkpoint, architecture: Architecture, path: Path) -> None:
    """Writes a checkpoint in the original layout, as fp16 safetensors."""
    tensors = {name: tensor.half().contiguous() for name, tensor in original_tensors(checkpoint, architecture).items()}
    save_file(tensors, path, metadata={"format": "pt", "modelspec.prediction_type": checkpoint.schedule.prediction_type})


def original_tensors(checkpoint: Checkpoint, architecture: Architecture) -> dict[str, Tensor]:
    """All tensors of a checkpoint under the original names; views of its own."""
    unet, autoencoder = checkpoint.unet, checkpoint.autoencoder
    if not isinstance(autoencoder, AutoencoderKL):
        raise PriorError("a single file needs an AutoencoderKL, and the prior has a tiny one; write a folder instead")
    assert isinstance(unet, UNet2DCondition)  # Stable Diffusion 3 is written by a function of its own
    parts: list[tuple[str, KeyMap, Mapping[str, Tensor]]] = [
        (UNET, original_unet(unet.config, unet.state_dict()), unet.state_dict()),
        (AUTOENCODER, original_autoencoder_kl(autoencoder.config, autoencoder.state_dict()), autoencoder.state_dict()),
    ]
    for (_, encoder, _), tower in zip(checkpoint.towers, architecture.towers, strict=True):
        keys = encoder.tower.state_dict()
        parts.append((tower.prefix, tower.layout(keys), keys))
    return {f"{prefix}{name}": t for prefix, layout, own in parts for name, t in layout.to_published(own).items()}


def family(names: Iterable[str], path: Path) -> Architecture:
    """The architecture of a file with these names.

    Raises:
        PriorError: none of the three.
    """
    names = list(names)
    for architecture in ARCHITECTURES:
        if all(any(name.startswith(tower.prefix) for name in names) for tower in architecture.towers):
            return multi_view(architecture) if CAMERA_MARK in names else architecture
    beside = "without its text towers, which is given beside the folder of its pipeline as 'FOLDER?unet=FILE'"
    kinds = {
        "model.diffusion_model.cap_embedder.": f"a Z-Image's transformer {beside}",
        "cap_embedder.": f"a Z-Image's transformer {beside}",
        "conditioner.embedders.0.model.": "an SDXL refiner",
        "joint_blocks.": f"a Stable Diffusion 3's transformer {beside}",
        "input_blocks.": f"a UNet {beside}",
        "model.diffusion_model.double_stream_modulation_img.": f"a FLUX.2's transformer {beside}",
        "double_stream_modulation_img.": f"a FLUX.2's transformer {beside}",
        "model.diffusion_model.double_blocks.": "a FLUX model",
        "double_blocks.": "a FLUX model",
        "encoder.down.": "an autoencoder alone, which is given beside a model as '?vae=FILE'",
        "input_hint_block.": "a ControlNet",
        "controlnet_": "a ControlNet",
        "image_proj": "an IP-Adapter",
        "ip_adapter": "an IP-Adapter",
        "string_to_param": "a textual inversion, which is given beside a model as '?embedding=FILE'",
        "lora_unet_": "a LoRA, which is given beside a model as '?lora=FILE'",
        "control_model.": "a ControlNet",
        UNET: f"a UNet {beside}",
    }
    kind = next((kind for start, kind in kinds.items() if any(name.startswith(start) for name in names)), None)
    known = ", ".join(architecture.name for architecture in reversed(ARCHITECTURES))
    found = f"it looks like {kind}" if kind else f"its first names are {sorted(names)[:3]}"
    raise PriorError(f"{path} is no single file of {known}: {found}; use a full text-to-image checkpoint of one of these")


def known_prediction_type(weights: Weights, path: Path, architecture: Architecture) -> PredictionType:
    """The prediction type that the file or its configuration states, or the only one that its family has.

    Raises:
        PriorError: nothing states it.
    """
    stated = weights.metadata.get("modelspec.prediction_type")
    if stated is not None:
        names: dict[str, PredictionType] = {"epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}
        if stated not in names:
            raise PriorError(
                f"{path} says modelspec.prediction_type = {stated!r}; expected one of {', '.join(names)}; "
                "add '?prediction_type=epsilon' or '?prediction_type=v_prediction' to its path"
            )
        return names[stated]
    if V_PREDICTION_MARK in weights:
        return "v_prediction"
    configuration = path.with_suffix(".yaml")
    if configuration.exists():
        # The one line that matters, `parameterization: "v"`; epsilon is the default of that code.
        v = re.search(r"""^\s*parameterization:\s*['"]?v\b""", configuration.read_text(encoding="utf-8"), re.MULTILINE)
        return "v_prediction" if v else "epsilon"
    if len(architecture.image_sizes) == 1:
        return next(iter(architecture.image_sizes))
    raise PriorError(
        f"{path} is a {architecture.name}, and whether it predicts noise or v is not in the file; add "
        "'?prediction_type=epsilon' (the 512-pixel base models) or '?prediction_type=v_prediction' (the 768-pixel ones) "
        "to its path, or put the model's NAME.yaml beside it"
    )


def schedule_of(weights: Iterable[str], path: Path, prediction_type: PredictionType) -> NoiseSchedule:
    """Stable Diffusion's schedule, with zero signal at its end where the file is marked so: then runs begin there.

    Raises:
        PriorError: the mark stands beside predicted noise, which says nothing where there is no signal.
    """
    zero_snr = ZERO_SNR_MARK in weights
    if zero_snr and prediction_type == "epsilon":
        raise PriorError(
            f"{path} has the mark '{ZERO_SNR_MARK}' of a schedule that ends without signal, and its prediction type is "
            "epsilon, which cannot be; add '?prediction_type=v_prediction' to its path, or use another file of the model"
        )
    spacing: TimestepSpacing = "trailing" if zero_snr else "leading"
    return NoiseSchedule(prediction_type=prediction_type, rescale_betas_zero_snr=zero_snr, timestep_spacing=spacing)


def averaged_copy(weights: Weights, path: Path) -> dict[str, Tensor]:
    """The averaged UNet, whose names have lost their dots.

    Raises:
        PriorError: the file has none.
    """
    names = [name.removeprefix(UNET) for name in weights if name.startswith(UNET)]
    tensors = {}
    for name in names:
        flat = AVERAGED + f"diffusion_model.{name}".replace(".", "")
        if flat not in weights:
            raise PriorError(f"{path} holds no averaged copy of the UNet ({flat} is missing); leave out 'averaged'")
        tensors[name] = weights[flat]
    return tensors


def input_channels(weights: Weights, architecture: Architecture, path: Path) -> int:
    """What the UNet takes: latents, or those of an inpainting model.

    Raises:
        PriorError: it is a depth model, or another with a first layer that is not supported.
    """
    latents = architecture.unet.in_channels
    first = weights.get(f"{UNET}input_blocks.0.0.weight")
    if first is None or first.shape[1] in (latents, inpainting_channels(latents)):
        return latents if first is None else first.shape[1]
    raise PriorError(
        f"the UNet of {path} takes {first.shape[1]} channels{kind_of_input(first.shape[1], latents)}; expected {latents}, or "
        f"{inpainting_channels(latents)} of an inpainting model; use one of these"
    )


def part(weights: Weights, prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix that are read."""
    return {name: tensor for name, tensor in weights.under(prefix).items() if not is_unread(prefix + name)}


def is_unread(name: str) -> bool:
    """Whether a tensor of that name changes no picture."""
    return bool(IGNORED.fullmatch(name) or UNREAD.fullmatch(name))


def refuse_unknown(names: Iterable[str], architecture: Architecture, path: Path) -> None:
    """Every name must belong to a part or be known to carry no weights.

    Raises:
        PriorError: naming those that do not.
    """
    prefixes = (UNET, AUTOENCODER, *(tower.prefix for tower in architecture.towers))
    unknown = [name for name in names if not name.startswith(prefixes) and not is_unread(name)]
    if unknown:
        raise PriorError(
            f"{path} holds {len(unknown)} tensors that a {architecture.name} does not have, such as {unknown[0]}; "
            "use the file as it was published, without additions"
        )
