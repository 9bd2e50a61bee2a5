"""Where a prior comes from, in one line: a path or a hub name, and options behind a question mark.

    models/sd15                                         a folder
    v2-1_768-ema-pruned.safetensors?prediction_type=v_prediction
    stable-diffusion-v1-5/stable-diffusion-v1-5@COMMIT?lora=ink.safetensors:0.8&vae=models/taesd

One line travels unchanged from the command line through specs, manifests and actors.
"""

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args
from urllib.parse import unquote

import torch

from diffusion.checkpoints.autoencoders import replace_autoencoder
from diffusion.checkpoints.checkpoint import Checkpoint
from diffusion.checkpoints.errors import PriorError
from diffusion.checkpoints.folder import read_folder
from diffusion.checkpoints.hub import HubName, fetch
from diffusion.checkpoints.lora import merge_lora
from diffusion.checkpoints.single_file import read_single_file
from diffusion.checkpoints.textual_inversion import add_words
from diffusion.checkpoints.weights import hash_files
from diffusion.schedule import PredictionType

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Source:
    """A prior's location and what is changed in it.

    Args:
        location: a folder, a weight file, or OWNER/NAME[/FILE][@REVISION] on the hub.
        prediction_type: "epsilon" or "v_prediction", for single files that do not say; otherwise it is read.
        dtype: of UNet and text towers: "float32", "float16" or "bfloat16".
        averaged: a training file's averaged UNet instead of its last one.
        loras: (location, scale), merged in this order.
        embeddings: (location, word or None), textual inversion.
        vae: location of another autoencoder.
        offline: use no network.
    """

    location: str
    prediction_type: PredictionType | None = None
    dtype: str = "float32"
    averaged: bool = False
    loras: tuple[tuple[str, float], ...] = ()
    embeddings: tuple[tuple[str, str | None], ...] = ()
    vae: str | None = None
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
        for option in query.split("&") if mark else ():
            name, _, value = (unquote(part) for part in option.partition("="))
            match name:
                case "prediction_type":
                    options[name] = _one_of(name, value, get_args(PredictionType))
                case "dtype":
                    options[name] = _one_of(name, value, tuple(DTYPES))
                case "averaged" | "offline":
                    options[name] = _one_of(name, value, ("true", "false")) == "true"
                case "lora":
                    options["loras"] += (_with_scale(value),)
                case "embedding":
                    file, _, word = value.rpartition(":")
                    options["embeddings"] += ((file, word) if file else (value, None),)
                case "vae":
                    options[name] = value
                case _:
                    known = "prediction_type, dtype, averaged, lora, embedding, vae, offline"
                    raise PriorError(f"the prior {text!r} has the option {name!r}; expected one of {known}")
        return cls(location, **options)


def read(source: Source) -> Checkpoint:
    """The checkpoint of a source, with its LoRAs, words and autoencoder in it.

    Raises:
        PriorError: it is not there, damaged, or one of the parts does not fit.
    """
    path, name = locate(source.location, offline=source.offline)
    options: dict[str, Any] = {"prediction_type": source.prediction_type, "dtype": DTYPES[source.dtype]}
    if path.is_dir():
        if source.averaged:
            raise PriorError(f"'averaged' was asked of the folder {path}; only single files of training hold such a copy")
        checkpoint = read_folder(path, name=name, **options)
    else:
        checkpoint = read_single_file(path, averaged=source.averaged, **options)
        checkpoint.card = dataclasses.replace(checkpoint.card, name=name or path.stem)
        if source.averaged:
            _changed(checkpoint, "averaged", [])
    for location, scale in source.loras:
        file, _ = locate(location, offline=source.offline)
        merge_lora(checkpoint, file, scale)
        _changed(checkpoint, f"lora {scale:g}", sorted(file.glob("*.safetensors")) if file.is_dir() else [file])
    for location, word in source.embeddings:
        file, _ = locate(location, offline=source.offline)
        words = add_words(checkpoint, file, word)
        _changed(checkpoint, f"embedding {words}", [file])
    if source.vae is not None:
        _changed(checkpoint, "vae", replace_autoencoder(checkpoint, locate(source.vae, offline=source.offline)[0]))
    return checkpoint


def locate(location: str, *, offline: bool) -> tuple[Path, str | None]:
    """The path of a location, and for one on the hub its name with the commit.

    Raises:
        PriorError: it is neither a path that exists nor a name that can be had.
    """
    path = Path(location).expanduser()
    if path.exists():
        return path, None
    name = HubName.parse(location)
    if name is None or location.startswith((".", "/", "~")):
        raise PriorError(
            f"the prior {location!r} is neither 'toybox' nor a folder, a file or a name on the hub; give a folder with a "
            "model_index.json, a .safetensors file, or OWNER/NAME"
        )
    fetched = fetch(name, offline=offline)
    return fetched.path, str(dataclasses.replace(name, revision=fetched.commit[:12]))


def _changed(checkpoint: Checkpoint, how: str, files: list[Path]) -> None:
    """The hash of weights that were changed: whatever changed them goes into it."""
    text = f"{checkpoint.weights_hash} {how} {hash_files(files)}"
    checkpoint.weights_hash = hashlib.sha256(text.encode()).hexdigest()


def _with_scale(value: str) -> tuple[str, float]:
    file, _, scale = value.rpartition(":")
    try:
        return (file, float(scale)) if file else (value, 1.0)
    except ValueError:
        return value, 1.0


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise PriorError(f"the prior's {name} is {value!r}; expected one of {', '.join(allowed)}")
    return value
