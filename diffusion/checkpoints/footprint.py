"""How much memory a prior takes, read from the headers of its files before anything is loaded.

Weights count in the precision that they are loaded in, which is not the file's. Activations are those of the larger of two
stages that never run at once: the network's forward at the row cap, and the autoencoder's decoding of so many pictures. The
same functions give the rows of each stage (`diffusion.prior.Prior.num_rows_at_once`), what `benchmarks.memory` prints, and what
the scheduler places a prior by.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, cast

import torch

from diffusion.adapter_cache import adapter_bytes
from diffusion.checkpoints.errors import PriorError, making_sense_of, not_read
from diffusion.checkpoints.folder import TEXT_STEMS, UNET_STEMS, VAE_STEMS, configured, parts_of
from diffusion.checkpoints.gguf import read_entries
from diffusion.checkpoints.network_files import network_prefix
from diffusion.checkpoints.qwen3_flows import FAMILIES, is_unread
from diffusion.checkpoints.read import locate, pipeline_of
from diffusion.checkpoints.single_file import AUTOENCODER, UNET, family
from diffusion.checkpoints.source import Source
from diffusion.checkpoints.stable_diffusion_3 import AUTOENCODER_CONFIG, CLIP_G, CLIP_L, MARK, config_of
from diffusion.checkpoints.weights import GGUF, PICKLES, read_json, weight_files
from diffusion.engine.memory import SURELY_FREE
from diffusion.networks.autoencoder_kl import AutoencoderKLConfig
from diffusion.networks.flux2 import Flux2Config
from diffusion.networks.joint_transformer import JointTransformerConfig
from diffusion.networks.strips import STRIP_ROWS
from diffusion.networks.unet import UNetConfig, per_level
from diffusion.networks.z_image import RUN, ZImageConfig
from diffusion.text.qwen3 import MAX_TOKENS, Qwen3Config
from diffusion.text.t5 import T5_ROWS

__all__ = [
    "Footprint",
    "activation_bytes",
    "coding_bytes",
    "encoder_gradient_bytes",
    "footprint",
    "least_bytes",
    "network_bytes",
]

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "auto": 4}
AUTOENCODER_BYTES = {**BYTES, "float16": 4}
"""SDXL's overflows in float16, and so none is loaded in it."""
PROCESS_BYTES = 300 * 10**6
"""Of Python and torch, before any weight is read."""
CONTEXT_BYTES = 600 * 10**6
"""On a GPU: of CUDA's context and its libraries' workspaces. Assumed; nobody has measured it here."""
MAX_TEXT_BYTES = 512 * 2**20
"""What `diffusion.prior.Prior` keeps of encoded prompts at most."""
MAPS_OF_TRANSFORMER, MAPS_OF_RESNET = 20, 8
"""Feature maps that are alive within a block at its widest moment: the gated feed-forward of a transformer holds twice four
times its width, beside queries, keys, values and the residual. Attention counts as computed in pieces, without its matrix."""
CLIP_ROWS = 77
MAPS_OF_JOINT, TEXT_ROWS = 12, CLIP_ROWS + T5_ROWS
"""The same of a block of joint attention, for each patch and each of so many rows of text."""
MAPS_OF_PARALLEL = 21
"""The same of FLUX.2's single blocks, whose attention and feed-forward are computed from one matrix."""
CAPTION_ROWS = 4 * RUN
"""Of Z-Image, whose blocks hold as many maps: the rows of a long caption."""
MAPS_OF_DECODER = 3
"""Feature maps of full size that the decoder's last level holds, of the width that comes in from below. A test compares these
numbers with what the published networks allocate."""
MAPS_OF_GRAPH = 13
"""Feature maps that the encoder keeps of each level, of its width, for a gradient to be pulled back."""
MAPS_OF_CHECKPOINTS, MAPS_OF_A_BLOCK = 3, 4
"""With checkpoints: maps that are kept of each level, and those of the block at the picture's size that is computed again."""
MAPS_OF_STRIPS, MAPS_OF_A_STRIP = 2, 3
"""In strips: maps of the picture's size that are kept whole, of the last level's own width, and those of the strip at work,
of the width that comes in from below."""

NetworkConfig = UNetConfig | JointTransformerConfig | ZImageConfig | Flux2Config


@dataclass(frozen=True)
class Footprint:
    """Bytes of memory that a prior takes, counted before anything of it is loaded.

    Args:
        weights: in the precision they are loaded in; towers: of each of those among them that read text.
        text: encoded prompts, at most. activations: at work. adapters: what requests' LoRAs keep, at most.
        at_ease: activations of so many rows, one picture decoded as a whole, or one view whose gradient is asked for.
        row: activations of a row of the network's forward.
        least: activations of one guided picture, as thrifty as can be; least_of_3d: of such a view as well.
    """

    weights: int
    text: int
    activations: int
    adapters: int
    towers: tuple[int, ...] = ()
    at_ease: int = 0
    row: int = 0
    least: int = 0
    least_of_3d: int = 0

    @property
    def total(self) -> int:
        """All of it, and the process around it."""
        return PROCESS_BYTES + self.weights + self.text + self.activations + self.adapters

    @property
    def beside_gpu(self) -> int:
        """Of the machine's memory where it computes on a GPU: weights are read there, and text towers may stay."""
        return PROCESS_BYTES + self.weights

    @property
    def on_gpu(self) -> int:
        """Of a GPU's memory, where there is enough of it: with more, stages take more at once."""
        return CONTEXT_BYTES + self.weights + self.text + self.at_ease

    def least_on_gpu(self, *, in_3d: bool = False) -> int:
        """What a GPU must have: text towers are there one by one while they read, and so are pictures."""
        work = self.least_of_3d if in_3d else self.least
        return CONTEXT_BYTES + self.weights - sum(self.towers) + self.text + max(*self.towers, work)

    def rows_within(self, gpu_bytes: int) -> int:
        """Rows of a forward, a power of two, for which a GPU of so many bytes has room without the text towers; 0 for none."""
        room = int(SURELY_FREE * gpu_bytes) - CONTEXT_BYTES - self.weights + sum(self.towers) - self.text
        return 1 << (max(0, room) // self.row).bit_length() >> 1


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
    width, vae_width = BYTES[given.dtype], AUTOENCODER_BYTES[given.dtype]
    network_file = None if given.unet is None else locate(given.unet, offline=True)[0]
    measured = _folder(path, width, vae_width, network_file) if path.is_dir() else _single_file(path, width, vae_width)
    unet, autoencoder, network, towers, vae_weights = measured
    if given.vae is not None:
        other, _ = locate(given.vae, offline=True)
        vae_weights = _bytes([other] if other.is_file() else weight_files(other, *VAE_STEMS), vae_width)
    latents = (unet.sample_size, unet.sample_size)
    sizes: dict[str, Any] = {"itemsize": width, "vae_itemsize": vae_width}
    activations = activation_bytes(unet, autoencoder, latents, rows=rows, pictures=pictures, **sizes)
    least, of_3d = (least_bytes(unet, autoencoder, latents, in_3d=in_3d, **sizes) for in_3d in (False, True))
    row = network_bytes(unet, latents, itemsize=width)
    at_ease = max(of_3d, activation_bytes(unet, autoencoder, latents, rows=rows, pictures=1, **sizes))
    weights = network + sum(towers) + vae_weights
    return Footprint(weights, MAX_TEXT_BYTES, activations, adapter_bytes(weights), towers, at_ease, row, least, of_3d)


def activation_bytes(
    unet: NetworkConfig,
    autoencoder: Sequence[int],
    latents: tuple[int, int],
    *,
    rows: int,
    pictures: int,
    tiled: bool = False,
    itemsize: int = 4,
    vae_itemsize: int = 4,
) -> int:
    """Bytes that work holds at its widest, of pictures whose latents are (h, w).

    Args:
        autoencoder: widths of its levels. rows: of a forward. pictures: that are decoded at once. tiled: in strips.
        itemsize, vae_itemsize: bytes of a number in the network and in the autoencoder.
    """
    forward = rows * network_bytes(unet, latents, itemsize=itemsize)
    return max(forward, pictures * coding_bytes(autoencoder, latents, tiled=tiled, itemsize=vae_itemsize))


def least_bytes(
    unet: NetworkConfig,
    autoencoder: Sequence[int],
    latents: tuple[int, int],
    *,
    in_3d: bool,
    itemsize: int = 4,
    vae_itemsize: int = 4,
) -> int:
    """Bytes of one guided picture, decoded in strips, or where in_3d of a view that is encoded with a gradient, too."""
    group = 1 if unet.multi_view is None else unet.multi_view.num_views
    sizes = {"itemsize": itemsize, "vae_itemsize": vae_itemsize}
    picture = activation_bytes(unet, autoencoder, latents, rows=max(2, group), pictures=1, tiled=True, **sizes)
    view = encoder_gradient_bytes(autoencoder, latents, checkpointed=True, itemsize=vae_itemsize)
    return max(picture, view) if in_3d else picture


def network_bytes(unet: NetworkConfig, latents: tuple[int, int], *, itemsize: int = 4) -> int:
    """Bytes that a row of the network's forward holds at its widest, the text that it reads included; latents: (h, w)."""
    return itemsize * (_network_row(unet, latents) + _text_row(unet))


def coding_bytes(autoencoder: Sequence[int], latents: tuple[int, int], *, tiled: bool = False, itemsize: int = 4) -> int:
    """Bytes that the decoder of a picture holds at its widest; the encoder holds less.

    Args:
        autoencoder: widths of its levels. latents: (h, w). tiled: in strips, see `diffusion.networks.strips`.
        itemsize: bytes of a number.
    """
    factor = 2 ** (len(autoencoder) - 1)
    height, width = (factor * side for side in latents)
    from_below = autoencoder[min(1, len(autoencoder) - 1)]
    if tiled:
        strip = MAPS_OF_A_STRIP * from_below * min(height, STRIP_ROWS) * width
        return itemsize * (MAPS_OF_STRIPS * autoencoder[0] * height * width + strip)
    return itemsize * MAPS_OF_DECODER * from_below * height * width


def encoder_gradient_bytes(
    autoencoder: Sequence[int], latents: tuple[int, int], *, checkpointed: bool = False, itemsize: int = 4
) -> int:
    """Bytes that the encoder of a picture holds at its widest when a gradient is pulled back through it.

    Args:
        autoencoder: widths of its levels, of two residual blocks each. latents: (h, w).
        checkpointed: see `diffusion.networks.autoencoder_kl.AutoencoderKL.encode`. itemsize: bytes of a number.
    """
    pixels = prod(latents) * 4 ** (len(autoencoder) - 1)
    one_of_each = sum(channels * pixels // 4**level for level, channels in enumerate(autoencoder))
    if checkpointed:
        return itemsize * (MAPS_OF_CHECKPOINTS * one_of_each + MAPS_OF_A_BLOCK * autoencoder[0] * pixels)
    return itemsize * MAPS_OF_GRAPH * one_of_each


Measured = tuple[NetworkConfig, tuple[int, ...], int, tuple[int, ...], int]
"""Configuration of the network, widths of the autoencoder's levels; bytes of the network, each text tower, the autoencoder."""


def _folder(path: Path, width: int, vae_width: int, network_file: Path | None) -> Measured:
    towers = [part for part in parts_of(path) if part.startswith("text_encoder")]
    network = "transformer" if (path / "transformer").is_dir() else "unet"
    config = _config(path / network / "config.json")
    vae = read_json(path / "vae/config.json")
    widths = vae.get("block_out_channels") or vae.get("decoder_block_out_channels") or AutoencoderKLConfig.block_out_channels
    return (
        config,
        tuple(widths),
        _bytes(weight_files(path / network, *UNET_STEMS), width) if network_file is None else _network_in(network_file, width),
        tuple(width * _tower_numbers(path / part) for part in towers),
        _bytes(weight_files(path / "vae", *VAE_STEMS), vae_width),
    )


def _network_in(file: Path, width: int) -> int:
    """Bytes of the network in a file that may hold other parts of a model too."""
    if file.suffix in PICKLES:
        return _bytes([file], width)
    header = _header(file)
    prefix = network_prefix(header)
    return width * sum(size for name, size in header.items() if name.startswith(prefix))


def _single_file(path: Path, width: int, vae_width: int) -> Measured:
    if path.suffix in PICKLES:
        raise PriorError(f"{path} is a pickle, whose parts cannot be told apart without reading it; convert it to safetensors")
    header = _header(path)
    if any(name.startswith(MARK) for name in header):
        return _single_joint_file(path, header, width, vae_width)
    kind = family(header, path)

    def numbers(*prefixes: str) -> int:
        return sum(size for name, size in header.items() if name.startswith(prefixes))

    towers = tuple(width * numbers(tower.prefix) for tower in kind.towers)
    # SD 2 was published for two sizes of picture; the larger one is counted.
    side = max(kind.image_sizes.values()) // kind.autoencoder.spatial_factor
    unet = replace(kind.unet, sample_size=side)
    return unet, kind.autoencoder.block_out_channels, width * numbers(UNET), towers, vae_width * numbers(AUTOENCODER)


def _single_joint_file(path: Path, header: dict[str, int], width: int, vae_width: int) -> Measured:
    ours = {name.removeprefix(UNET): shape for name, shape in _shapes(path).items() if name.startswith(UNET)}
    shapes = {name: torch.empty(shape, device="meta") for name, shape in ours.items()}
    parts = (UNET, CLIP_L, CLIP_G, AUTOENCODER)
    network, *towers, vae = (sum(size for name, size in header.items() if name.startswith(part)) for part in parts)
    of_towers = tuple(tower * width for tower in towers)
    return config_of(shapes, path), AUTOENCODER_CONFIG.block_out_channels, network * width, of_towers, vae * vae_width


def _network_row(config: NetworkConfig, latents: tuple[int, int]) -> int:
    """Numbers that one row of the network's forward holds at its widest: every skip connection, and a block at work."""
    if isinstance(config, JointTransformerConfig):
        return MAPS_OF_JOINT * config.inner_dim * (prod(latents) // config.patch_size**2 + TEXT_ROWS)
    if isinstance(config, ZImageConfig):
        return MAPS_OF_JOINT * config.dim * (prod(latents) // config.patch_size**2 + CAPTION_ROWS)
    if isinstance(config, Flux2Config):
        return MAPS_OF_PARALLEL * config.inner_dim * (prod(latents) // config.patch_size**2 + MAX_TOKENS)
    maps = [channels * prod(latents) // 4**level for level, channels in enumerate(config.block_out_channels)]
    layers = per_level(config.layers_per_block, config.levels)
    skips = sum((count + 1) * numbers for count, numbers in zip(layers, maps, strict=True))
    attentive = [numbers for numbers, block in zip(maps, config.down_block_types, strict=True) if "Attn" in block]
    return skips + max(MAPS_OF_TRANSFORMER * max(attentive, default=0), MAPS_OF_RESNET * max(maps))


def _text_row(config: NetworkConfig) -> int:
    """Numbers of the text that a row brings along: a UNet's keys and values of all its layers; a transformer's count above."""
    if not isinstance(config, UNetConfig):
        return 0
    layers = per_level(config.layers_per_block, config.levels)
    depths = per_level(config.transformer_layers_per_block, config.levels)
    attentive = [level for level, block in enumerate(config.down_block_types) if "Attn" in block]
    # A level has so many layers on the way down and one more on the way up; the middle has one.
    width = sum((2 * layers[level] + 1) * depths[level] * config.block_out_channels[level] for level in attentive)
    return 2 * CLIP_ROWS * (width + depths[-1] * config.block_out_channels[-1])


def _config(path: Path) -> NetworkConfig:
    config = read_json(path)
    with making_sense_of(path):
        if (family := FAMILIES.get(pipeline_of(path.parents[1]))) is not None:
            return cast(NetworkConfig, family.config.from_dict(config))
        return JointTransformerConfig.from_dict(config) if path.parent.name == "transformer" else UNetConfig.from_dict(config)


def _tower_numbers(folder: Path) -> int:
    """Of a text tower: of Qwen3 those of the layers that are read."""
    files = weight_files(folder, *TEXT_STEMS)
    family = FAMILIES.get(pipeline_of(folder.parent))
    if family is None or any(path.suffix in PICKLES for path in files):
        return sum(map(_numbers, files))
    last = family.reads(configured(folder / "config.json", Qwen3Config.from_dict).num_hidden_layers)[-1]
    return sum(size for path in files for name, size in _header(path).items() if not is_unread(name, last))


def _bytes(files: Sequence[Path], width: int) -> int:
    """Of the tensors of weight files, so many bytes a number."""
    return sum(_numbers(path) for path in files) * width


def _numbers(path: Path) -> int:
    """How many numbers a weight file holds; of a pickle, whose header cannot be read without it, by its size."""
    if path.suffix in PICKLES:
        return path.stat().st_size // (2 if ".fp16" in path.name else 4)
    return sum(_header(path).values())


def _header(path: Path) -> dict[str, int]:
    """Tensor -> how many numbers it holds."""
    return {name: prod(shape) for name, shape in _shapes(path).items()}


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Tensor -> its shape, of a safetensors or GGUF file; only its first kilobytes are read."""
    if path.suffix == GGUF:
        return {name: entry.shape for name, entry in read_entries(path).items()}
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        return {name: tuple(map(int, tensor["shape"])) for name, tensor in header.items() if name != "__metadata__"}
    except OSError as error:
        raise not_read(path, error) from None
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise PriorError(f"{path} is truncated or not a safetensors file ({error}); copy it again") from None
