"""A trained model as a folder: model.json (which model, its configuration, its data) and model.safetensors (weights)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from diffusion.errors import DiffusionError
from diffusion.models import model_class
from diffusion.models.base import Model
from jobs.codec import from_plain, to_plain
from jobs.errors import InputError
from orchestrator.host.atomic import write_bytes, write_text

CARD, WEIGHTS = "model.json", "model.safetensors"


@dataclass(frozen=True)
class Card:
    """model.json.

    Args:
        model: its name. config: of its `Config`. data: what `Data.describe` said.
    """

    model: str
    config: Mapping[str, Any]
    data: Mapping[str, Any]

    @classmethod
    def of(cls, model: Model, data: Mapping[str, Any]) -> Card:
        """The card of a model in memory."""
        return cls(model.name, to_plain(model.config), data)

    @classmethod
    def read(cls, folder: Path) -> Card:
        """The card of a folder.

        Raises:
            InputError: missing, or not what this program writes.
        """
        path = folder / CARD
        if not path.is_file():
            raise InputError(
                f"{folder} is no trained model: it has no {CARD}; give the --out folder of a 'dreamkiln train objective=…'."
            )
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return cls(str(found["model"]), dict(found["config"]), dict(found["data"]))
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path} is damaged ({type(error).__name__}: {error}); restore it, or train the model again."
            ) from error

    def write(self, folder: Path) -> None:
        """Writes model.json atomically."""
        values = {"model": self.model, "config": self.config, "data": self.data}
        write_text(folder / CARD, json.dumps(values, indent=2, ensure_ascii=False) + "\n")

    def build(self) -> Model:
        """The untrained model.

        Raises:
            InputError: an unknown model, or a configuration that does not fit it.
        """
        try:
            cls = model_class(self.model)
            return cls(from_plain(cls.Config, self.config, path="config"))
        except DiffusionError as error:
            raise InputError(f"{CARD} cannot be used: {error}.") from error
        except InputError as error:
            raise InputError(f"{CARD} does not fit this version's {self.model!r}: {error}") from error

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels."""
        return tuple(self.data.get("classes", ()))


def save_weights(model: Model, folder: Path) -> None:
    """Writes model.safetensors atomically, float32."""
    tensors: dict[str, Tensor] = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_bytes(folder / WEIGHTS, save(tensors, metadata={"format": "pt"}))  # save_file hides that a disk is full


def load_model(folder: Path, *, device: str = "cpu") -> tuple[Model, Card]:
    """A trained model, frozen.

    Raises:
        InputError: no such folder, or a missing, truncated or misfitting file in it.
    """
    card = Card.read(folder)
    path = folder / WEIGHTS
    if not path.is_file():
        raise InputError(f"{folder} has no {WEIGHTS} yet; let its training reach a checkpoint, or repeat the training command.")
    model = card.build()
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{path} ({path.stat().st_size} bytes) is truncated or no safetensors file ({error}); copy it again, or repeat the "
            "training command, which writes it anew from the checkpoint."
        ) from error
    if misfits := _misfits(model.state_dict(), tensors):
        raise InputError(f"{path} does not fit {CARD} beside it: {misfits}; take both from the same training.")
    model.load_state_dict(tensors)
    return model.to(torch.device(device)).eval().requires_grad_(False), card


def _misfits(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """What is missing, unexpected or of another shape; the first three of them."""
    found = [f"{name} is missing" for name in expected if name not in given]
    found += [f"{name} is unexpected" for name in given if name not in expected]
    for name, tensor in expected.items():
        if name in given and given[name].shape != tensor.shape:
            found.append(f"{name} is {tuple(given[name].shape)}, expected {tuple(tensor.shape)}")
    return "; ".join(found[:3]) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")


def weights_hash(folder: Path) -> str:
    """sha256 (hex) of model.safetensors."""
    with (folder / WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
