"""LoRA files (2106.09685) and their relatives, added to the weights of a checkpoint: W + scale (alpha / rank) up down.

Three layouts are in use. kohya's writes module names with underscores, those of the folders or, for SDXL, of the single
files; diffusers and PEFT write them with dots, in several spellings over the years; ComfyUI writes those of the single files.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion.checkpoints.adapter_methods import OTHER_METHODS, ROLES, Adapter
from diffusion.checkpoints.checkpoint import Checkpoint
from diffusion.checkpoints.errors import PriorError, making_sense_of
from diffusion.checkpoints.lora_files import lora_file
from diffusion.checkpoints.text_keys import folder_text
from diffusion.checkpoints.textual_inversion import check_words, teach
from diffusion.checkpoints.transformer_keys import folder_transformer, original_flux2
from diffusion.checkpoints.unet_keys import original_unet
from diffusion.checkpoints.weights import Weights, read_json
from diffusion.checkpoints.z_image_keys import folder_z_image
from diffusion.networks.flux2 import Flux2Transformer
from diffusion.networks.joint_transformer import JointTransformer
from diffusion.networks.z_image import ZImageTransformer

# Spellings of module names in files of diffusers' early years -> today's.
SPELLINGS = (
    (re.compile(r"^base_model\.model\."), ""),
    # ComfyUI's: the original names of the UNet, transformers' of the towers.
    (re.compile(r"^(model\.)?diffusion_model\."), "unet."),
    (re.compile(r"^text_encoders\.clip_l\.(transformer\.)?"), "text_encoder."),
    (re.compile(r"^text_encoders\.clip_g\.(transformer\.)?"), "text_encoder_2."),
    (re.compile(r"\.processor\.(to_[qkv])_lora\.(down|up)\."), r".\1.lora.\2."),
    (re.compile(r"\.processor\.to_out_lora\.(down|up)\."), r".to_out.0.lora.\1."),
    (re.compile(r"\.self_attn\.to_([qkv])_lora\.(down|up)\."), r".self_attn.\1_proj.lora.\2."),
    (re.compile(r"\.self_attn\.to_out_lora\.(down|up)\."), r".self_attn.out_proj.lora.\1."),
)
KOHYA = {"lora_unet": "unet", "lora_te": "text_encoder", "lora_te1": "text_encoder", "lora_te2": "text_encoder_2"}
# Words that some trainers bundle with an adapter: `bundle_emb.WORD.string_to_param.*`, or `.clip_l` and `.clip_g`.
BUNDLED = re.compile(r"bundle_emb\.(?P<word>.+?)\.(?P<tower>string_to_param\.\*|clip_l|clip_g)")
BUNDLED_TOWERS = {"string_to_param.*": "text_encoder", "clip_l": "text_encoder", "clip_g": "text_encoder_2"}


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


@dataclass(frozen=True)
class Module:
    """A module's weight and bias, views into the checkpoint; None where it has none."""

    weight: Tensor | None = None
    bias: Tensor | None = None


@dataclass(frozen=True, eq=False)
class LoraFile:
    """A LoRA as it was read.

    Args:
        adapters: module -> its tensors, in whatever spelling `modules` knows. settings: by component.
        words: that the file bundles -> tower -> vectors (n, width).
    """

    file: Path
    adapters: dict[str, Adapter]
    settings: dict[str, Settings]
    words: dict[str, dict[str, Tensor]]

    @classmethod
    def read(cls, path: Path) -> "LoraFile":
        """Reads a `.safetensors` file or an old pickle, or a folder that PEFT or diffusers wrote.

        Raises:
            PriorError: it is missing, damaged, of another method, or holds none.
        """
        file = lora_file(path)
        weights = Weights([file])
        read = cls(file, adapters_by_module(weights, file), peft_settings(weights, file), bundled_words(weights))
        if not read.adapters and not read.words:
            raise PriorError(f"{file} holds no LoRA: its first names are {sorted(weights)[:3]}; give a LoRA file")
        return read

    def check(self, targets: Mapping[str, Module], base: str) -> None:
        """Checks that the model has every module that is changed.

        Args:
            targets: see `modules`. base: the model's name, for the message.

        Raises:
            PriorError: it has not.
        """
        for name in self.adapters:
            if name not in targets:
                raise PriorError(
                    f"the LoRA {self.file} changes {name}, which {base} does not have; use one that was trained for the same "
                    "base model"
                )

    def options(self, name: str) -> dict[str, Any]:
        """What the configuration says of a module's factors, as the methods of `Adapter` take it."""
        component, _, module = name.partition(".")
        settings = self.settings.get(component, Settings())
        return {"alpha": settings.alpha_of(module), "rank_stabilised": settings.rank_stabilised}

    @contextmanager
    def clear_misfits(self, name: str, weight: Tensor | None) -> Iterator[None]:
        """Turns what `Adapter` raises of a module's tensors into a sentence. Raises PriorError."""
        try:
            yield
        except KeyError as error:
            raise PriorError(
                f"the LoRA {self.file} has only a part of the factors of {name}: {error} is missing; copy it again"
            ) from None
        except (ValueError, RuntimeError) as error:
            shape = "nothing" if weight is None else f"{weight.shape[0]} x {weight[0].numel()}"
            raise PriorError(
                f"the LoRA {self.file} changes {name} as {error}, and the model has it as {shape}; use one that was trained "
                "for the same base model"
            ) from None

    @torch.no_grad()
    def merge(self, name: str, module: Module, scale: float, *, apply: bool = True) -> None:
        """One module's change in place, made where `apply` says so. Raises PriorError where it does not fit."""
        adapter, options = self.adapters[name], self.options(name)
        with self.clear_misfits(name, module.weight):
            changed = None if module.weight is None else adapter.change(module.weight, scale, **options)
            bias = adapter.bias_change(**options)
        if bias is not None and (module.bias is None or bias.shape != module.bias.shape):
            there = "has none there" if module.bias is None else f"has one of {len(module.bias)} there"
            raise PriorError(
                f"the LoRA {self.file} changes {name}'s bias ({len(bias)} numbers), and the model {there}; use one that was "
                "trained for the same base model, or without biases"
            )
        if apply and changed is not None and module.weight is not None:
            # The sum is rounded once where the weights are in half precision.
            module.weight.copy_(changed)
        if apply and bias is not None and module.bias is not None:
            module.bias.copy_(module.bias.float() + scale * bias.to(module.bias.device))


def merge_lora(checkpoint: Checkpoint, path: Path, scale: float = 1.0) -> list[str]:
    """Adds a LoRA, or another adapter of `adapter_methods`, to the UNet and the text towers, in place.

    Args:
        path: see `LoraFile.read`. scale: 1 as it was trained, 0 nothing.

    Returns:
        The words that the file bundles, which prompts may use from now on.

    Raises:
        PriorError: it is damaged, of another method, or was trained for another base; nothing is changed then.
    """
    lora = LoraFile.read(path)
    targets = modules(checkpoint)
    check_words(checkpoint, lora.words, lora.file)
    lora.check(targets, checkpoint.card.name)
    # All are tried before the first is applied.
    for apply in (False, True):
        for name in lora.adapters:
            lora.merge(name, targets[name], scale, apply=apply)
    teach(checkpoint, lora.words)
    return list(lora.words)


def bundled_words(weights: Weights) -> dict[str, dict[str, Tensor]]:
    """Word -> tower -> vectors (n, width) of the words that a file bundles."""
    words: dict[str, dict[str, Tensor]] = {}
    for name in weights:
        if match := BUNDLED.fullmatch(name):
            words.setdefault(match["word"], {})[BUNDLED_TOWERS[match["tower"]]] = torch.atleast_2d(weights[name])
    return words


def adapters_by_module(weights: Weights, path: Path) -> dict[str, Adapter]:
    """The file's adapters by module, in whatever spelling `modules` knows.

    Raises:
        PriorError: a tensor is of another method or unknown.
    """
    found: dict[str, Adapter] = {}
    for name in weights:
        if BUNDLED.fullmatch(name):
            continue
        spelling = name
        for old, new in SPELLINGS:
            spelling = old.sub(new, spelling)
        match, role = next(((m, role) for ending, role in ROLES if (m := ending.search(spelling))), (None, ""))
        if match is None:
            last = next((method for part, method in OTHER_METHODS.items() if part in name.split(".")), None)
            if name.startswith(("image_proj", "ip_adapter")):
                last = "an IP-Adapter"
            reason = f"it is {last}, which is not supported" if last else "it belongs to no LoRA"
            raise PriorError(f"the LoRA {path} holds {name}: {reason}; use a plain LoRA of the same style")
        adapter = found.setdefault(spelling[: match.start()], Adapter())
        if role == "alpha":
            adapter.alpha = float(weights[name])
        else:
            adapter.tensors[role] = weights[name]
    # An adapter that PEFT saved names no component.
    return {_with_component(module): adapter for module, adapter in found.items()}


def _with_component(module: str) -> str:
    if module.startswith(("unet.", "transformer.", "text_encoder.", "text_encoder_2.", *(f"{prefix}_" for prefix in KOHYA))):
        return module
    return f"text_encoder.{module}" if module.startswith("text_model.") else f"unet.{module}"


def modules(checkpoint: Checkpoint) -> dict[str, Module]:
    """What a LoRA may change by the names that files use for the modules; views into the checkpoint."""
    unet = checkpoint.unet.state_dict()
    if isinstance(checkpoint.unet, JointTransformer):
        named = {"transformer": [folder_transformer(unet).to_published(unet)]}
    elif isinstance(checkpoint.unet, Flux2Transformer):
        folder = folder_transformer(unet).to_published(unet)
        named = {"transformer": [folder], "unet": [folder, original_flux2(unet).to_published(unet)]}
    elif isinstance(checkpoint.unet, ZImageTransformer):
        folder = folder_z_image(unet).to_published(unet)
        # In ComfyUI's and kohya's files the single file's names, or the folder's under the prefix of those.
        named = {"transformer": [folder], "unet": [folder, unet]}
    else:
        # Of text pooled by attention, as this project's first priors have it, no single file knows a name.
        is_pooling = checkpoint.unet.config.addition_embed_type == "text"
        known = [name for name in unet if not (is_pooling and name.startswith("add_embedding."))]
        named = {"unet": [unet, original_unet(checkpoint.unet.config, known).to_published(unet)]}
    for component, encoder, _ in checkpoint.towers:
        tower = encoder.tower.state_dict()
        published = folder_text(tower).to_published(tower)
        named[component] = [published, {name.removeprefix("text_model."): tensor for name, tensor in published.items()}]
    targets: dict[str, Module] = {}
    for component, layouts in named.items():
        prefixes = [kohya for kohya, ours in KOHYA.items() if ours == component]
        for layout in layouts:
            for name in dict.fromkeys(name.rpartition(".")[0] for name in layout if name.endswith((".weight", ".bias"))):
                module = Module(layout.get(f"{name}.weight"), layout.get(f"{name}.bias"))
                targets[f"{component}.{name}"] = module
                targets |= {f"{prefix}_{name.replace('.', '_')}": module for prefix in prefixes}
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
