"""Where a prior comes from, in one line: a path or a hub name, and options behind a question mark.

    models/sd15                                         a folder
    toybox?dtype=bfloat16                               the prior in this package, in half precision
    v2-1_768-ema-pruned.safetensors?prediction_type=v_prediction
    stable-diffusion-v1-5/stable-diffusion-v1-5@COMMIT?lora=ink.safetensors:0.8&vae=models/taesd

One line travels unchanged from the command line through specs, manifests and actors. Nothing here imports torch, so that
a command can refuse a bad line at once; `diffusion.checkpoints.read` reads what it names.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from diffusion.checkpoints.errors import PriorError

if TYPE_CHECKING:
    from diffusion.schedule import PredictionType

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
DISTILLED = ("none", "turbo", "lightning", "hyper", "lcm", "lcm-lora", "steps")
NOT_HERE = {
    "controlnet": "ControlNets are not here; give a picture with --init-image and --strength",
    "ip_adapter": "IP-Adapters are not here; give a picture with --init-image and --strength",
    "refiner": "SDXL's refiner is not here; take more --steps, or draw the picture again with --init-image and --strength 0.3",
    "freeu": "FreeU is not here; leave it out",
    "pag": "perturbed-attention guidance (PAG) is not here; use --guidance-scale",
}
"""What other programs offer beside a model, and what to do instead."""
DTYPES = ("float32", "float16", "bfloat16", "auto")
DECODINGS = ("auto", "plain", "tiled")
STRICT_ROWS = 16
"""Rows of a strict forward, unless the source says another number."""
TOYBOX = Path(__file__).parents[1] / "toybox_prior"

_NAME = re.compile(
    r"(?P<repository>[\w.-]+/[\w.-]+?)(?:/(?P<file>.+\.(?:safetensors|gguf|ckpt|bin|pt|pth)))?(?:@(?P<revision>[\w./-]+))?"
)


@dataclass(frozen=True)
class HubName:
    """OWNER/NAME, a file in it or the whole folder, and the revision: a commit, a tag or a branch."""

    repository: str
    file: str | None = None
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> "HubName | None":
        """OWNER/NAME[/FILE][@REVISION]; None where the text is not of that form."""
        match = _NAME.fullmatch(text)
        return None if match is None else cls(match["repository"], match["file"], match["revision"])

    def __str__(self) -> str:
        text = self.repository + (f"/{self.file}" if self.file else "")
        return f"{text}@{self.revision}" if self.revision else text


@dataclass(frozen=True)
class Source:
    """A prior's location and what is changed in it.

    Args:
        location: "toybox", a folder, a weight file, or OWNER/NAME[/FILE][@REVISION] on the hub.
        prediction_type: "epsilon" or "v_prediction", for single files that do not say; otherwise it is read.
        dtype: of UNet and text towers: "float32", "float16", "bfloat16" (of the autoencoder too), or "auto", see `settled`.
        averaged: a training file's averaged UNet instead of its last one.
        loras: (location, scale), merged in this order.
        embeddings: (location, word or None), textual inversion.
        vae: location of another autoencoder. unet: of a file with the denoising network alone, in place of a folder's.
        plain_prompts: prompts are words alone, cut at the towers' length; otherwise they may be of any length, with
            (word:1.2), [word] and BREAK.
        clip_skip: 1 for the text towers' own layer, 2 for the one before.
        decoding: "tiled" decodes pictures in strips, with a third of the memory; "auto" where memory is short, but for
            strict requests.
        strict_rows: of every forward of a strict request; strict results hold for one value of it.
        distilled: a kind of DISTILLED, "none" for a model whose name only looks like one; None follows the name.
        offline: use no network.
    """

    location: str
    prediction_type: "PredictionType | None" = None
    dtype: str = "float32"
    averaged: bool = False
    loras: tuple[tuple[str, float], ...] = ()
    embeddings: tuple[tuple[str, str | None], ...] = ()
    vae: str | None = None
    unet: str | None = None
    plain_prompts: bool = False
    clip_skip: int = 1
    distilled: str | None = None
    decoding: str = "auto"
    strict_rows: int = STRICT_ROWS
    offline: bool = False

    @classmethod
    def parse(cls, text: str) -> "Source":
        """LOCATION[?OPTION=VALUE&...]; `lora` and `embedding` may be repeated, as FILE:SCALE and FILE:WORD.

        Raises:
            PriorError: an unknown option or a value that it cannot have.
        """
        # A path may hold a question mark itself.
        location, mark, query = (text, "", "") if Path(text).exists() else text.partition("?")
        options: dict[str, Any] = {"loras": (), "embeddings": ()}
        # A path may hold an "&", too: what has no "=" belongs to the value before it.
        for option in re.split("&(?=[^&]*=)", query) if mark else ():
            name, _, value = (unquote(part) for part in option.partition("="))
            match name:
                case "prediction_type":
                    options[name] = _one_of(name, value, PREDICTION_TYPES)
                case "dtype":
                    options[name] = _one_of(name, value, DTYPES)
                case "averaged" | "offline":
                    options[name] = _one_of(name, value, ("true", "false")) == "true"
                case "lora":
                    options["loras"] += (with_scale(value),)
                case "embedding":
                    file, _, word = value.rpartition(":")
                    options["embeddings"] += ((file, word) if file else (value, None),)
                case "vae" | "unet":
                    options[name] = value
                case "prompt":
                    options["plain_prompts"] = _one_of(name, value, ("plain", "weighted")) == "plain"
                case "decode":
                    options["decoding"] = _one_of(name, value, DECODINGS)
                case "strict_rows":
                    options[name] = int(_one_of(name, value, ("2", "4", "8", "16", "32", "64")))
                case "distilled":
                    options[name] = _one_of(name, value, DISTILLED)
                case "clip_skip":
                    options[name] = int(_one_of(name, value, tuple(map(str, range(1, 13)))))
                case _:
                    wanted = name.lower().replace("-", "_")
                    if (there := next((word for word in NOT_HERE if wanted.startswith(word)), None)) is not None:
                        raise PriorError(f"the prior {text!r} has the option {name!r}: {NOT_HERE[there]}")
                    known = (
                        "prediction_type, dtype, averaged, lora, embedding, vae, unet, decode, prompt, clip_skip, distilled, "
                        "strict_rows, offline"
                    )
                    raise PriorError(f"the prior {text!r} has the option {name!r}; expected one of {known}")
        return cls(location, **options)

    def settled(self, device_type: str, *, strict: bool = False) -> "Source":
        """The same, with "auto" decided: bfloat16 on a device that is fast at it, float32 elsewhere and for strict requests."""
        if self.dtype != "auto":
            return self
        from diffusion.precision import has_fast_bfloat16

        return replace(self, dtype="bfloat16" if not strict and has_fast_bfloat16(device_type) else "float32")

    def check(self) -> None:
        """Checks that everything named is a path that exists or could be a name on the hub, without asking the hub.

        Raises:
            PriorError: naming the one that is neither.
        """
        for location in self.locations:
            resolve(location)

    @property
    def locations(self) -> tuple[str, ...]:
        """Everything that is named."""
        adapters = (location for location, _ in (*self.loras, *self.embeddings))
        return (self.location, *adapters, *(part for part in (self.vae, self.unet) if part))


def resolve(location: str) -> Path | HubName:
    """The path of "toybox" or of a location that exists, or else its name on the hub.

    Raises:
        PriorError: it is neither.
    """
    path = TOYBOX if location == "toybox" else Path(location).expanduser()
    if path.exists():
        return path
    name = HubName.parse(location)
    if name is None or location.startswith((".", "/", "~")):
        raise PriorError(
            f"the prior {location!r} is neither 'toybox' nor a folder, a file or a name on the hub; give a folder with a "
            "model_index.json, a .safetensors file, or OWNER/NAME"
        )
    return name


def with_scale(value: str) -> tuple[str, float]:
    """FILE:SCALE as (file, scale), 1 without one. Raises PriorError for a decimal comma."""
    file, _, scale = value.rpartition(":")
    if file and re.fullmatch(r"[+-]?\d+,\d+", scale):
        raise PriorError(f"the scale of the LoRA {file} is {scale!r}; write it with a point, {scale.replace(',', '.')}")
    try:
        return (file, float(scale)) if file else (value, 1.0)
    except ValueError:
        return value, 1.0


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise PriorError(f"the prior's {name} is {value!r}; expected one of {', '.join(allowed)}")
    return value
