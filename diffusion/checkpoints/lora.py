"""LoRA files (2106.09685), added to the weights of a checkpoint: W + scale (alpha / rank) up down.

Two layouts are in use. kohya's writes module names with underscores, those of the folders or, for SDXL, of the single
files; diffusers and PEFT write them with dots, in several spellings over the years.
"""

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion.checkpoints.checkpoint import Checkpoint
from diffusion.checkpoints.errors import PriorError, making_sense_of
from diffusion.checkpoints.text_keys import folder_text
from diffusion.checkpoints.unet_keys import original_unet
from diffusion.checkpoints.weights import Weights, read_json

# How names end -> what the tensor is. What is before the ending is the module.
ENDINGS = (
    (re.compile(r"\.lora_down\.weight$|\.lora_A(\.default)?\.weight$|\.lora(_linear_layer)?\.down\.weight$"), "down"),
    (re.compile(r"\.lora_up\.weight$|\.lora_B(\.default)?\.weight$|\.lora(_linear_layer)?\.up\.weight$"), "up"),
    (re.compile(r"\.alpha$"), "alpha"),
)
# Spellings of module names in files of diffusers' early years -> today's.
SPELLINGS = (
    (re.compile(r"^base_model\.model\."), ""),
    (re.compile(r"\.processor\.(to_[qkv])_lora\.(down|up)\."), r".\1.lora.\2."),
    (re.compile(r"\.processor\.to_out_lora\.(down|up)\."), r".to_out.0.lora.\1."),
    (re.compile(r"\.self_attn\.to_([qkv])_lora\.(down|up)\."), r".self_attn.\1_proj.lora.\2."),
    (re.compile(r"\.self_attn\.to_out_lora\.(down|up)\."), r".self_attn.out_proj.lora.\1."),
)
KOHYA = {"lora_unet": "unet", "lora_te": "text_encoder", "lora_te1": "text_encoder", "lora_te2": "text_encoder_2"}
# Other methods that share the file format.
OTHER_METHODS = {
    "hada_w1_a": "LoHa",
    "lokr_w1": "LoKr",
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "lora_mid": "a Tucker LoCon",
    "diff": "full differences",
    "oft_diag": "OFT",
    "oft_blocks": "OFT",
}


@dataclass
class Factors:
    """One module's two factors: down (r, I, ...), up (O, r, ...), and alpha, r where the file gives none."""

    down: Tensor | None = None
    up: Tensor | None = None
    alpha: float | None = None


@dataclass(frozen=True)
class Settings:
    """What a PEFT configuration adds to the factors: alpha where the file has no tensor for it, and rsLoRA's root.

    `alphas` replace alpha for some modules: patterns of the ends of their names, as PEFT reads its `alpha_pattern`.
    """

    alpha: float | None = None
    alphas: dict[str, float] = field(default_factory=dict)
    rank_stabilised: bool = False

    def alpha_of(self, module: str) -> float | None:
        """The alpha of the first pattern that ends at the module's name or a dot in it, otherwise the general one."""
        matching = (alpha for pattern, alpha in self.alphas.items() if re.match(rf"(.*\.)?({pattern})$", module))
        return next(matching, self.alpha)


def merge_lora(checkpoint: Checkpoint, path: Path, scale: float = 1.0) -> None:
    """Adds a LoRA to the UNet and the text towers, in place.

    Args:
        path: a `.safetensors` file or an old pickle, or the folder that PEFT writes.
        scale: 1 as it was trained, 0 nothing.

    Raises:
        PriorError: it is damaged, of another method, or was trained for another base; nothing is changed then.
    """
    file = path / "adapter_model.safetensors" if path.is_dir() else path
    weights = Weights([file])
    targets = modules(checkpoint)
    settings = peft_settings(weights, file)
    merges = []
    for name, factors in factors_by_module(weights, file).items():
        target = targets.get(name)
        if target is None:
            raise PriorError(
                f"the LoRA {file} changes {name}, which {checkpoint.card.name} does not have; use one that was trained for "
                "the same base model"
            )
        if factors.down is None or factors.up is None:
            raise PriorError(f"the LoRA {file} has only one of the two factors of {name}; copy it again")
        up, down = factors.up.float().flatten(1), factors.down.float().flatten(1)
        if (up.shape[0], down.shape[1], down.shape[0]) != (target.shape[0], target[0].numel(), up.shape[1]):
            raise PriorError(
                f"the LoRA {file} changes {name} as {up.shape[0]} x {down.shape[1]}, and {checkpoint.card.name} has it as "
                f"{target.shape[0]} x {target[0].numel()}; use one that was trained for the same base model"
            )
        component = name.partition(".")[0]
        merges.append((target, up, down, scale * strength(factors, settings.get(component, Settings()), name)))
    if not merges:
        raise PriorError(f"{file} holds no LoRA: its first names are {sorted(weights)[:3]}; give a LoRA file")
    with torch.no_grad():
        for target, up, down, factor in merges:
            delta = (factor * (up @ down)).reshape(target.shape).to(target.device)
            # The sum is rounded once where the weights are in half precision.
            target.copy_(target.to(torch.promote_types(target.dtype, delta.dtype)) + delta)


def strength(factors: Factors, settings: Settings, name: str) -> float:
    """alpha / r, or alpha / sqrt(r) for rsLoRA (2312.03732)."""
    assert factors.down is not None
    rank = len(factors.down)
    module = name.partition(".")[2]
    alpha = factors.alpha if factors.alpha is not None else settings.alpha_of(module)
    divisor = math.sqrt(rank) if settings.rank_stabilised else rank
    return 1.0 if alpha is None else alpha / divisor


def factors_by_module(weights: Weights, path: Path) -> dict[str, Factors]:
    """The file's factors by module, in whatever spelling `modules` knows.

    Raises:
        PriorError: a tensor is of another method or unknown.
    """
    found: dict[str, Factors] = {}
    for name in weights:
        spelling = name
        for old, new in SPELLINGS:
            spelling = old.sub(new, spelling)
        for ending, role in ENDINGS:
            match = ending.search(spelling)
            if match:
                factors = found.setdefault(spelling[: match.start()], Factors())
                setattr(factors, role, float(weights[name]) if role == "alpha" else weights[name])
                break
        else:
            last = next((method for part, method in OTHER_METHODS.items() if part in name.split(".")), None)
            reason = f"it is {last}, which is not supported" if last else "it belongs to no LoRA"
            raise PriorError(f"the LoRA {path} holds {name}: {reason}; use a plain LoRA of the same style")
    # An adapter that PEFT saved names no component.
    return {_with_component(module): factors for module, factors in found.items()}


def _with_component(module: str) -> str:
    if module.startswith(("unet.", "text_encoder.", "text_encoder_2.", *(f"{prefix}_" for prefix in KOHYA))):
        return module
    return f"text_encoder.{module}" if module.startswith("text_model.") else f"unet.{module}"


def modules(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Weights that a LoRA may change by the names that files use for their modules; views into the checkpoint."""
    unet = checkpoint.unet.state_dict()
    named = {"unet": [unet, original_unet(checkpoint.unet.config, unet).to_published(unet)]}
    for component, encoder, _ in checkpoint.towers:
        tower = encoder.tower.state_dict()
        published = folder_text(tower).to_published(tower)
        named[component] = [published, {name.removeprefix("text_model."): tensor for name, tensor in published.items()}]
    targets = {}
    for component, layouts in named.items():
        prefixes = [kohya for kohya, ours in KOHYA.items() if ours == component]
        for name, tensor in (item for layout in layouts for item in layout.items()):
            if name.endswith(".weight") and tensor.ndim > 1:
                module = name.removesuffix(".weight")
                targets[f"{component}.{module}"] = tensor
                targets |= {f"{prefix}_{module.replace('.', '_')}": tensor for prefix in prefixes}
    return targets


def peft_settings(weights: Weights, path: Path) -> dict[str, Settings]:
    """Settings by component, from diffusers' metadata in the file or PEFT's `adapter_config.json` beside it."""
    raw = weights.metadata.get("lora_adapter_metadata")
    settings: dict[str, dict[str, Any]] = {}
    if raw is not None:
        with making_sense_of(path):
            for key, value in json.loads(raw).items():
                component, _, name = key.partition(".")
                settings.setdefault(component, {})[name] = value
    beside = path.parent / "adapter_config.json"
    if raw is None and path.name == "adapter_model.safetensors" and beside.exists():
        settings = dict.fromkeys(("unet", "text_encoder"), read_json(beside))
    return {
        component: Settings(
            alpha=values.get("lora_alpha"),
            alphas=values.get("alpha_pattern") or {},
            rank_stabilised=bool(values.get("use_rslora")),
        )
        for component, values in settings.items()
    }
