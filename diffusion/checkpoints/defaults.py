"""How a prior's owners draw with it: a table by family, overruled by what its folder or file says of itself.

Only configurations, names and the header of a safetensors file are read, so that a command can ask before anything is
loaded; nothing here imports torch.
"""

import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from diffusion.checkpoints.source import Source

SETTINGS = ("num_steps", "guidance_scale", "guidance_rescale", "sampler", "timestep_spacing")

_FAMILY = "the family's usual value"
# Steps, guidance, rescale, sampler and spacing as the owners of each family expect them; None is the schedule's own spacing.
_STABLE_DIFFUSION = (25, 7.5, 0.0, "dpmpp_2m", "karras")
KLEIN = "FLUX.2 klein"
_FLOWS = ("Stable Diffusion 3", "Stable Diffusion 3.5", "Z-Image", KLEIN)
FAMILIES: dict[str, tuple[int, float, float, str, str | None]] = {
    "Stable Diffusion 1.x": _STABLE_DIFFUSION,
    "Stable Diffusion 2.x": _STABLE_DIFFUSION,
    "Stable Diffusion XL": (50, 5.0, 0.0, "euler", "leading"),
    "MVDream": _STABLE_DIFFUSION,
    "Stable Diffusion 3": (28, 7.0, 0.0, "euler", None),
    "Stable Diffusion 3.5": (40, 4.5, 0.0, "euler", None),
    # Its pipeline says 5 and guides with positive + 5 (positive - negative).
    "Z-Image": (50, 6.0, 0.0, "euler", None),
    KLEIN: (50, 4.0, 0.0, "euler", None),
    "Stable Diffusion": _STABLE_DIFFUSION,
}
# Of a single file, whose configuration is its family's; Stable Diffusion 2.x was published at 512 and, with v-prediction, 768.
IMAGE_SIZES = {
    "Stable Diffusion 1.x": 512,
    "Stable Diffusion 2.x": 512,
    "Stable Diffusion XL": 1024,
    "MVDream": 256,
    "Stable Diffusion 3": 1024,
    "Stable Diffusion 3.5": 1024,
    "Z-Image": 1024,
    KLEIN: 1024,
}
TURBO_SIZE = 512
"""Of the models distilled from Stable Diffusion 2.1 and XL alike."""
CLIP_LAYERS = {
    **dict.fromkeys(("Stable Diffusion 2.x", "Stable Diffusion XL", *_FLOWS), "last but one"),
    KLEIN: "ninth, eighteenth and twenty-seventh",
    "Stable Diffusion": "family's",
}
"""The layer of the text towers that a family was trained with; the others take the last. `?clip_skip=` counts back from it."""
RECIPES = {"MVDream": "mvdream-sd21", **dict.fromkeys(_FLOWS, "rfds-sd3")}
"""How objects are distilled from a family: a name of `orchestrator.settings.recipes`; the others take USUAL_RECIPE."""
USUAL_RECIPE = "dreamfusion-sd"
# Distilled models: no classifier-free guidance (1), and runs that begin at the last timestep.
DISTILLED: dict[str, tuple[int, float, float, str, str | None]] = {
    "turbo": (4, 1.0, 0.0, "euler_ancestral", "trailing"),
    "lightning": (4, 1.0, 0.0, "euler", "trailing"),
    "hyper": (8, 1.0, 0.0, "ddim", "trailing"),
    "lcm": (4, 8.5, 0.0, "lcm", None),
    "lcm-lora": (4, 1.5, 0.0, "lcm", None),
    "steps": (4, 1.0, 0.0, "euler", None),
}
Z_IMAGE_TURBO = (8, *DISTILLED["turbo"][1:])
"""Eight evaluations of the network; upstream's nine steps end in one that is skipped."""
Z_IMAGE_TURBO_SHIFT = 3.0
"""Of its scheduler_config.json, by which a folder of another name is known; the base model's is 6."""
_MARKS = (
    ("lightning", re.compile(r"lightning", re.IGNORECASE)),
    ("turbo", re.compile(r"turbo", re.IGNORECASE)),
    ("hyper", re.compile(r"hyper[-_ ]?sd", re.IGNORECASE)),
    ("lcm-lora", re.compile(r"(?<![a-z])lcm(?![a-z])", re.IGNORECASE)),
)
_STEPS_IN_NAME = re.compile(r"(?<!\d)([1-9]\d?)[-_ ]?steps?(?![a-z])", re.IGNORECASE)
# diffusers' scheduler classes -> our samplers, the longer names first.
_SAMPLERS = {
    "DPMSolverMultistep": "dpmpp_2m",
    "EulerAncestral": "euler_ancestral",
    "UniPC": "unipc",
    "Euler": "euler",
    "Heun": "heun",
    "PNDM": "pndm",
    "DDIM": "ddim",
    "LCM": "lcm",
}
_PIPELINE_STEPS = 50
"""What diffusers' pipelines take unless told otherwise; multistep solvers need half of it."""


@dataclass(frozen=True)
class Defaults:
    """How to draw with a prior unless told otherwise.

    Args:
        family: a name of FAMILIES, or "" for priors of this project, whose values are those of `jobs.specs.ImagesSpec` unless
            their card says others.
        values: by the names in SETTINGS. origins: where each value comes from, in a few words.
        note: a sentence about what was assumed; "" for nothing.
        distilled: how it was distilled to few steps, a name of DISTILLED; "" for a model that was not.
        recipe: how objects are distilled from it; a prior of this project may name its own in `dreamkiln.json`, and values
            there under "defaults".
        image_size: side of its pictures in pixels, where a configuration or the family says so.
    """

    family: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    note: str = ""
    distilled: str = ""
    recipe: str = "toybox"
    image_size: int | None = None

    @property
    def clip_layer(self) -> str:
        """The layer of the text towers that prompts are read from, in words."""
        return CLIP_LAYERS.get(self.family, "last")

    def changed(self, origin: str, **values: Any) -> "Defaults":
        """These defaults with some values replaced; `origin` says for each of them where it comes from."""
        return replace(self, values=self.values | values, origins=self.origins | dict.fromkeys(values, origin))


def defaults_of(source: Source) -> Defaults:
    """The defaults of a prior that need not be loaded, and not even be here."""
    path = Path(source.location).expanduser()
    if source.location == "toybox":
        return Defaults()
    if (path / "dreamkiln.json").exists():
        card = _json(path / "dreamkiln.json")
        found = Defaults(recipe=str(card.get("recipe", "toybox")))
        told = card.get("defaults")
        known = {name: told[name] for name in SETTINGS if name in told} if isinstance(told, dict) else {}
        return found.changed("dreamkiln.json", **known)
    if path.is_dir():
        found = _of_folder(path)
    else:
        found = _usual(_family_of_file(path))
        size = IMAGE_SIZES.get(found.family) if path.is_file() else None
        v = found.family == "Stable Diffusion 2.x" and source.prediction_type == "v_prediction"
        found = replace(found, image_size=768 if v else size)
    return _distilled(source, path, found)


def _usual(family: str) -> Defaults:
    values = dict(zip(SETTINGS, FAMILIES[family], strict=True))
    recipe = RECIPES.get(family, USUAL_RECIPE)
    return Defaults(family, values, dict.fromkeys(SETTINGS, f"{_FAMILY}, {family}"), recipe=recipe)


def _of_folder(folder: Path) -> Defaults:
    unet, scheduler = _json(folder / "unet/config.json"), _json(folder / "scheduler/scheduler_config.json")
    if (folder / "transformer").is_dir():
        unet = _json(folder / "transformer/config.json")
        family = "Stable Diffusion 3.5" if unet.get("qk_norm") else "Stable Diffusion 3"
        if "cap_feat_dim" in unet:
            family, unet = "Z-Image", {"sample_size": IMAGE_SIZES["Z-Image"] // 8, **unet}
        elif "num_single_layers" in unet:
            family, unet = KLEIN, {"sample_size": IMAGE_SIZES[KLEIN] // 8, **unet}
    elif (folder / "text_encoder_2").is_dir():
        family = "Stable Diffusion XL"
    else:
        family = "Stable Diffusion 2.x" if unet.get("cross_attention_dim") == 1024 else "Stable Diffusion 1.x"
    found = _usual(family)
    name = str(scheduler.get("_class_name", ""))
    sampler = next((ours for theirs, ours in _SAMPLERS.items() if name.startswith(theirs)), None)
    if sampler is not None:
        steps = 25 if sampler in ("dpmpp_2m", "unipc") else _PIPELINE_STEPS
        spacing = next((kind for kind in ("karras", "exponential", "beta") if scheduler.get(f"use_{kind}_sigmas")), None)
        found = found.changed(f"scheduler_config.json, {name}", sampler=sampler, num_steps=steps, timestep_spacing=spacing)
        if spacing is None:
            stated = scheduler.get("timestep_spacing")
            own = f"{stated} timesteps" if stated else "the usual timesteps of that class"
            found = found.changed(f"scheduler_config.json, {name}: {own}", timestep_spacing=None)
    if scheduler.get("rescale_betas_zero_snr"):
        found = found.changed("scheduler_config.json, zero terminal SNR", guidance_rescale=0.7)
    if unet.get("time_cond_proj_dim"):
        values = dict(zip(SETTINGS, DISTILLED["lcm"], strict=True))
        found = found.changed("unet/config.json, time_cond_proj_dim: a latent consistency model", **values)
        found = replace(found, distilled="lcm")
    levels = _json(folder / "vae/config.json").get("block_out_channels", range(4))
    side = unet.get("sample_size")
    return replace(found, image_size=side * 2 ** (len(levels) - 1)) if isinstance(side, int) else found


def _family_of_file(path: Path) -> str:
    """By the names in a safetensors header; other files and names on the hub tell nothing before they are read."""
    names = _header(path)
    if any(name.startswith("model.diffusion_model.joint_blocks.") for name in names):
        return "Stable Diffusion 3.5" if any(name.endswith(".ln_q.weight") for name in names) else "Stable Diffusion 3"
    if any("camera_embed." in name for name in names):
        return "MVDream"
    if any(name.startswith("conditioner.embedders.1.") for name in names):
        return "Stable Diffusion XL"
    if any(name.startswith("cond_stage_model.model.") for name in names):
        return "Stable Diffusion 2.x"
    if any(name.startswith("cond_stage_model.") for name in names):
        return "Stable Diffusion 1.x"
    if re.search(r"z[-_ ]?image", str(path), re.IGNORECASE):
        return "Z-Image"
    if re.search(r"flux[._-]?2.*klein", str(path), re.IGNORECASE):
        return KLEIN
    if third := re.search(r"(?:sd|stable[-_ ]?diffusion)[-_ ]?3(?P<half>[._]5)?(?!\d)", str(path), re.IGNORECASE):
        return "Stable Diffusion 3.5" if third["half"] else "Stable Diffusion 3"
    return "Stable Diffusion XL" if re.search(r"xl(?![a-z])", str(path), re.IGNORECASE) else "Stable Diffusion"


def _distilled(source: Source, path: Path, found: Defaults) -> Defaults:
    """What the option, or else a mark in a name, says of distillation."""
    kind, where, why = source.distilled, "?distilled=", "its name"
    others = [*(location for location, _ in source.loras), *([source.unet] if source.unet else [])]
    names = [source.location if not path.exists() else path.name, *(Path(location).name for location in others)]
    if kind is None and "time_cond_proj_dim" not in found.origins["sampler"]:
        marked = ((kind, name) for name in names for kind, mark in _MARKS if mark.search(name))
        kind, where = next(marked, (None, ""))
    shift = _json(path / "scheduler/scheduler_config.json").get("shift")
    if kind is None and found.family == "Z-Image" and shift == Z_IMAGE_TURBO_SHIFT:
        kind, where, why = "turbo", path.name, f"its scheduler's shift of {shift:g}"
    if kind is None and found.family == KLEIN:
        if path.is_dir() and _json(path / "model_index.json").get("is_distilled"):
            kind, where, why = "steps", path.name, "its model_index.json"
        elif not path.exists() and "base" not in source.location.lower():
            kind, where = "steps", source.location
    if kind is None or kind == "none":
        return found
    is_z_turbo = kind == "turbo" and found.family == "Z-Image"
    values = dict(zip(SETTINGS, Z_IMAGE_TURBO if is_z_turbo else DISTILLED[kind], strict=True))
    if found.family in _FLOWS:
        values |= {"sampler": "euler", "timestep_spacing": None}
    if steps := _STEPS_IN_NAME.search(where):
        values["num_steps"] = int(steps[1])
    note = ""
    if source.distilled is None:
        note = (
            f"{where} is taken for a model distilled to few steps ({kind}) by {why}: {values['num_steps']} steps, guidance "
            f"{values['guidance_scale']:g}; add '?distilled=none' if it is not."
        )
    changed = found.changed(f"distilled ({kind}), by {where}", **values)
    size = TURBO_SIZE if kind == "turbo" and path.is_file() and found.family not in _FLOWS else found.image_size
    return replace(changed, note=note, distilled=kind, image_size=size)


def _json(path: Path) -> dict[str, Any]:
    """A configuration file; a missing or damaged one says nothing here and is reported when the prior is read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _header(path: Path) -> list[str]:
    """The names of a safetensors file's tensors, from its first bytes."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            return list(json.loads(file.read(length))) if length < 2**28 else []
    except (OSError, ValueError, MemoryError):
        return []
