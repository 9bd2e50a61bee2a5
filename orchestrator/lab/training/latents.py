"""The latents of the whole data set: encoded once, and kept in a file until the pictures or the autoencoder are others."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from diffusion.networks.autoencoder_tiny import AutoencoderTiny
from diffusion.precision import autocast
from jobs.events import Progress
from orchestrator.host.atomic import write_bytes
from orchestrator.lab.training.pictures import Pictures

LATENTS = "latents.safetensors"
CHUNK = 256


def source_of(data: Pictures, autoencoder: AutoencoderTiny) -> str:
    """sha256 (hex) of what the latents are made of: pixels, the encoder's weights, the scale; no names or dates of files."""
    digest = hashlib.sha256(f"{data.sha256} {autoencoder.config}".encode())
    for name, weight in sorted(autoencoder.encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def encode(data: Pictures, autoencoder: AutoencoderTiny, root: Path, *, device: str) -> Iterator[Progress]:
    """Writes ROOT/latents.safetensors, with a step a picture; nothing where the file is there and of this source.

    Raises:
        OutputError: it cannot be written.
    """
    path, source = root / LATENTS, source_of(data, autoencoder)
    if _source_in(path) == source:
        return
    module, started, encoded = autoencoder.to(device), time.monotonic(), []
    yield Progress(stage="latents", step=0, total=len(data))
    for rows in torch.arange(len(data)).split(CHUNK):
        with torch.no_grad(), autocast(torch.device(device).type):
            encoded.append(module.encode(data.batch(rows).to(device)).half().cpu().contiguous())
        done = int(rows[-1]) + 1
        left = (time.monotonic() - started) / done * (len(data) - done)
        yield Progress(stage="latents", step=done, total=len(data), seconds_left=left)
    write_bytes(path, save({"latents": torch.cat(encoded)}, metadata={"source": source}))
    (root / "latents.pt").unlink(missing_ok=True)  # as large, of an earlier version, and read by none


def all_latents(data: Pictures, autoencoder: AutoencoderTiny, root: Path, *, device: str) -> Tensor:
    """Latents (N, C, h, w) fp16 of the whole set, encoded first where that has not been done."""
    for _ in encode(data, autoencoder, root, device=device):
        pass
    with safe_open(root / LATENTS, framework="pt") as file:
        return file.get_tensor("latents")


def _source_in(path: Path) -> str | None:
    """What the file says that it was made of; None where there is none that can be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("source")
    except (FileNotFoundError, SafetensorError):
        return None
