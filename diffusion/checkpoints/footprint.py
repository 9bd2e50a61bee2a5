"""How much memory a prior takes, read from the headers of its files before anything is loaded.

Weights count in the precision that they are loaded in, which is not the file's. Activations are those of the larger of two
stages that never run at once: the network's forward at the row cap, and the autoencoder's decoding of so many pictures.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import torch
from safetensors import safe_open

from diffusion.checkpoints.errors import PriorError, making_sense_of, not_read
from diffusion.checkpoints.folder import TEXT_STEMS, UNET_STEMS, VAE_STEMS, parts_of
from diffusion.checkpoints.read import locate
from diffusion.checkpoints.single_file import AUTOENCODER, UNET, family
from diffusion.checkpoints.source import Source
from diffusion.checkpoints.stable_diffusion_3 import AUTOENCODER_CONFIG, CLIP_G, CLIP_L, MARK, config_of
from diffusion.checkpoints.weights import PICKLES, read_json, weight_files
from diffusion.networks.autoencoder_kl import AutoencoderKLConfig
from diffusion.networks.joint_transformer import JointTransformerConfig
from diffusion.networks.strips import STRIP_ROWS
from diffusion.networks.unet import UNetConfig, per_level
from diffusion.text.t5 import T5_ROWS

__all__ = ["Footprint", "activation_bytes", "coding_bytes", "footprint"]

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "auto": 4}
AUTOENCODER_BYTES = {**BYTES, "float16": 4}
"""SDXL's overflows in float16, and so none is loaded in it."""
PROCESS_BYTES = 300 * 10**6
"""Of Python and torch, before any weight is read."""
MAX_TEXT_BYTES = 512 * 2**20
"""What `diffusion.prior.Prior` keeps of encoded prompts at most."""
MAPS_OF_TRANSFORMER, MAPS_OF_RESNET = 20, 8
"""Feature maps that are alive within a block at its widest moment: the gated feed-forward of a transformer holds twice four
times its width, beside queries, keys, values and the residual. Attention counts as computed in pieces, without its matrix."""
MAPS_OF_JOINT, TEXT_ROWS = 12, 77 + T5_ROWS
"""The same of a block of joint attention, for each patch and each of so many rows of text."""
MAPS_OF_DECODER = 3
"""Feature maps of full size that the decoder's last level holds, of the width that comes in from below. A test compares these
numbers with what the published networks allocate."""
MAPS_OF_STRIPS, MAPS_OF_A_STRIP = 2, 3
"""In strips: maps of the picture's size that are kept whole, of the last level's own width, and those of the strip at work,
of the width that comes in from below."""


@dataclass(frozen=True)
class Footprint:
    """Bytes of memory. weights: in the precision they are loaded in. text: encoded prompts, at most. activations: at work."""

    weights: int
    text: int
    activations: int

    @property
    def total(self) -> int:
        """All of it, and the process around it."""
        return PROCESS_BYTES + self.weights + self.text + self.activations


def footprint(source: str, *, rows: int = 16, pictures: int = 8) -> Footprint:
    """The memory of a prior by its files' headers; a name on the hub counts once its files are in the cache.

    Args:
        source: as on the command line, options included.
        rows: network rows of a forward. pictures: that are decoded at once.

    Raises:
        PriorError: a file is missing or damaged, or the name is not in the cache.
    """
    given = Source.parse(source)
    path, _ = locate(given.location, offline=True)
    measure = _folder if path.is_dir() else _single_file
    unet, autoencoder, weights, vae_weights = measure(path, BYTES[given.dtype], AUTOENCODER_BYTES[given.dtype])
    if given.vae is not None:
        other, _ = locate(given.vae, offline=True)
        vae_weights = _bytes([other] if other.is_file() else weight_files(other, *VAE_STEMS), AUTOENCODER_BYTES[given.dtype])
    latents = (unet.sample_size, unet.sample_size)
    activations = activation_bytes(unet, autoencoder, latents, rows=rows, pictures=pictures)
    return Footprint(weights + vae_weights, MAX_TEXT_BYTES, activations)


def activation_bytes(
    unet: UNetConfig | JointTransformerConfig,
    autoencoder: Sequence[int],
    latents: tuple[int, int],
    *,
    rows: int,
    pictures: int,
    tiled: bool = False,
) -> int:
    """Bytes that work holds at its widest, of pictures whose latents are (h, w).

    Args:
        autoencoder: widths of its levels. rows: of a forward. pictures: that are decoded at once. tiled: in strips.
    """
    return max(4 * rows * _network_row(unet, latents), pictures * coding_bytes(autoencoder, latents, tiled=tiled))


def coding_bytes(autoencoder: Sequence[int], latents: tuple[int, int], *, tiled: bool = False) -> int:
    """Bytes that the decoder of a picture holds at its widest, in float32; the encoder holds less.

    Args:
        autoencoder: widths of its levels. latents: (h, w). tiled: in strips, see `diffusion.networks.strips`.
    """
    factor = 2 ** (len(autoencoder) - 1)
    height, width = (factor * side for side in latents)
    from_below = autoencoder[min(1, len(autoencoder) - 1)]
    if tiled:
        strip = MAPS_OF_A_STRIP * from_below * min(height, STRIP_ROWS) * width
        return 4 * (MAPS_OF_STRIPS * autoencoder[0] * height * width + strip)
    return 4 * MAPS_OF_DECODER * from_below * height * width


Measured = tuple[UNetConfig | JointTransformerConfig, tuple[int, ...], int, int]
"""The network's configuration, the widths of the autoencoder's levels, and bytes: of network and towers, of the autoencoder."""


def _folder(path: Path, width: int, vae_width: int) -> Measured:
    towers = [part for part in parts_of(path) if part.startswith("text_encoder")]
    network = "transformer" if (path / "transformer").is_dir() else "unet"
    weights = _bytes(weight_files(path / network, *UNET_STEMS), width)
    weights += sum(_bytes(weight_files(path / part, *TEXT_STEMS), width) for part in towers)
    vae = read_json(path / "vae/config.json")
    widths = vae.get("block_out_channels") or vae.get("decoder_block_out_channels") or AutoencoderKLConfig.block_out_channels
    return (
        _config(path / network / "config.json"),
        tuple(widths),
        weights,
        _bytes(weight_files(path / "vae", *VAE_STEMS), vae_width),
    )


def _single_file(path: Path, width: int, vae_width: int) -> Measured:
    if path.suffix in PICKLES:
        raise PriorError(f"{path} is a pickle, whose parts cannot be told apart without reading it; convert it to safetensors")
    header = _header(path)
    if any(name.startswith(MARK) for name in header):
        return _single_joint_file(path, header, width, vae_width)
    kind = family(header, path)

    def numbers(*prefixes: str) -> int:
        return sum(size for name, size in header.items() if name.startswith(prefixes))

    weights = numbers(UNET, *(tower.prefix for tower in kind.towers)) * width
    # SD 2 was published for two sizes of picture; the larger one is counted.
    side = max(kind.image_sizes.values()) // kind.autoencoder.spatial_factor
    unet = replace(kind.unet, sample_size=side)
    return unet, kind.autoencoder.block_out_channels, weights, numbers(AUTOENCODER) * vae_width


def _single_joint_file(path: Path, header: dict[str, int], width: int, vae_width: int) -> Measured:
    with safe_open(path, framework="pt") as file:
        names = [name for name in file.keys() if name.startswith(UNET)]  # noqa: SIM118 - no dictionary
        shapes = {name.removeprefix(UNET): torch.empty(file.get_slice(name).get_shape(), device="meta") for name in names}
    weights = sum(size for name, size in header.items() if name.startswith((UNET, CLIP_L, CLIP_G)))
    vae = sum(size for name, size in header.items() if name.startswith(AUTOENCODER))
    return config_of(shapes, path), AUTOENCODER_CONFIG.block_out_channels, weights * width, vae * vae_width


def _network_row(config: UNetConfig | JointTransformerConfig, latents: tuple[int, int]) -> int:
    """Numbers that one row of the network's forward holds at its widest: every skip connection, and a block at work."""
    if isinstance(config, JointTransformerConfig):
        return MAPS_OF_JOINT * config.inner_dim * (prod(latents) // config.patch_size**2 + TEXT_ROWS)
    maps = [channels * prod(latents) // 4**level for level, channels in enumerate(config.block_out_channels)]
    layers = per_level(config.layers_per_block, config.levels)
    skips = sum((count + 1) * numbers for count, numbers in zip(layers, maps, strict=True))
    attentive = [numbers for numbers, block in zip(maps, config.down_block_types, strict=True) if "Attn" in block]
    return skips + max(MAPS_OF_TRANSFORMER * max(attentive, default=0), MAPS_OF_RESNET * max(maps))


def _config(path: Path) -> UNetConfig | JointTransformerConfig:
    config = read_json(path)
    with making_sense_of(path):
        return JointTransformerConfig.from_dict(config) if path.parent.name == "transformer" else UNetConfig.from_dict(config)


def _bytes(files: Sequence[Path], width: int) -> int:
    """Of the tensors of weight files, so many bytes a number."""
    return sum(_numbers(path) for path in files) * width


def _numbers(path: Path) -> int:
    """How many numbers a weight file holds; of a pickle, whose header cannot be read without it, by its size."""
    if path.suffix in PICKLES:
        return path.stat().st_size // (2 if ".fp16" in path.name else 4)
    return sum(_header(path).values())


def _header(path: Path) -> dict[str, int]:
    """Tensor -> how many numbers it holds, of a safetensors file; only its first kilobytes are read."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        return {name: prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__"}
    except OSError as error:
        raise not_read(path, error) from None
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise PriorError(f"{path} is truncated or not a safetensors file ({error}); copy it again") from None
