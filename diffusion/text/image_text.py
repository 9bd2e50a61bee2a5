"""A CLIP of anybody's that says how well pictures and sentences fit together: one of ours, or any of open_clip's."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusion.checkpoints.errors import PriorError
from diffusion.checkpoints.weights import hash_files
from diffusion.text.clip import load_clip
from diffusion.text.open_clip_import import ensure_open_clip_imports
from diffusion.text.tokenizer import Tokenizer

__all__ = ["ImageTextModel"]

BATCH_SIZE = 64
OURS, OPEN_CLIP = "clip_config.json", "open_clip_config.json"
WEIGHTS = {OURS: ("clip.safetensors",), OPEN_CLIP: ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")}


class ImageTextModel:
    """Pictures and captions as unit vectors of one space (Radford et al. 2021, arXiv:2103.00020).

    Args:
        encode_image: (B, 3, H, W) in [0, 1], of any size -> (B, E). encode_text: (B, S) token ids -> (B, E).
        tokenize: captions -> (B, S).
        image_size: side of the pictures that it was trained on, in pixels.
        folder: where it was read. weights_hash: sha256 of its weights.
    """

    def __init__(
        self,
        encode_image: Callable[[Tensor], Tensor],
        encode_text: Callable[[Tensor], Tensor],
        tokenize: Callable[[Sequence[str]], Tensor],
        *,
        image_size: int,
        folder: Path,
        weights_hash: str,
        device: torch.device | str = "cpu",
    ) -> None:
        self._encode_image, self._encode_text, self._tokenize = encode_image, encode_text, tokenize
        self._device = device
        self.image_size = image_size
        self.folder = folder
        self.weights_hash = weights_hash

    @classmethod
    def read(cls, folder: Path, *, device: torch.device | str = "cpu") -> ImageTextModel:
        """What `diffusion.text.clip.save_clip(..., with_text=True)` wrote, or a folder of open_clip's, as the hub holds them.

        Raises:
            PriorError: the folder or one of its files is missing or damaged.
        """
        config, weights = _files(folder)
        try:
            read = _read_ours if config.name == OURS else _read_open_clip
            encode_image, encode_text, tokenize, size = read(folder, device)
        except Exception as error:  # a damaged file can fail in any of its readers
            raise PriorError(f"the CLIP in {folder} cannot be read ({type(error).__name__}: {error}); copy it again") from error
        return cls(
            encode_image,
            encode_text,
            tokenize,
            image_size=size,
            folder=folder,
            weights_hash=hash_files([weights]),
            device=device,
        )

    @staticmethod
    def check(folder: Path) -> None:
        """Whether there is one, without reading it. Raises PriorError for a folder that holds none."""
        _files(folder)

    @staticmethod
    def hash(folder: Path) -> str:
        """The sha256 of its weights, see `weights_hash`, without reading them in. Raises PriorError."""
        return hash_files([_files(folder)[1]])

    @torch.no_grad()
    def embed_images(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> unit vectors (N, E) on the CPU. No gradients."""
        return torch.cat([self._encode_image(chunk.to(self._device)).cpu() for chunk in images.split(BATCH_SIZE)])

    @torch.no_grad()
    def embed_texts(self, captions: Sequence[str]) -> Tensor:
        """P captions -> unit vectors (P, E) on the CPU. No gradients."""
        ids = self._tokenize(captions)
        return torch.cat([self._encode_text(chunk.to(self._device)).cpu() for chunk in ids.split(BATCH_SIZE)])

    def score(self, images: Tensor, prompt: str) -> float:
        """Mean cosine similarity of pictures (N, 3, H, W) with a sentence: the CLIP score (Hessel et al. 2021, 2104.08718)."""
        return float((self.embed_images(images) @ self.embed_texts([prompt])[0]).mean())


def _files(folder: Path) -> tuple[Path, Path]:
    """Configuration and weights. Raises PriorError where one is missing."""
    config = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if config is None:
        raise PriorError(
            f"{folder} holds no CLIP: neither {OURS} (written by 'dreamkiln train') nor {OPEN_CLIP} (of open_clip) is there; "
            "give a folder that has one"
        )
    weights = next((folder / name for name in WEIGHTS[config.name] if (folder / name).is_file()), None)
    needed = [] if config.name == OPEN_CLIP else [folder / "tokenizer"]
    if weights is None or not all(path.exists() for path in needed):
        missing = next((path for path in needed if not path.exists()), folder / " or ".join(WEIGHTS[config.name]))
        raise PriorError(f"the CLIP in {folder} lacks {missing.name}; copy the folder again, with all its files")
    return config, weights


_Read = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], Callable[[Sequence[str]], Tensor], int]


def _read_ours(folder: Path, device: torch.device | str) -> _Read:
    clip = load_clip(folder).eval().requires_grad_(False).to(device)
    return clip.encode_image, clip.encode_text, Tokenizer.load(folder / "tokenizer"), clip.image_size


def _read_open_clip(folder: Path, device: torch.device | str) -> _Read:
    ensure_open_clip_imports()
    import open_clip

    model = open_clip.create_model(f"local-dir:{folder.resolve()}", device=device).eval().requires_grad_(False)
    size = json.loads((folder / OPEN_CLIP).read_text(encoding="utf-8"))["model_cfg"]["vision_cfg"]["image_size"]
    size = size if isinstance(size, int) else size[0]
    ways = model.visual.preprocess_cfg
    mean, std = (torch.tensor(ways[name], device=device)[:, None, None] for name in ("mean", "std"))

    def encode_image(images: Tensor) -> Tensor:
        if images.shape[-2:] != (size, size):
            images = F.interpolate(images, size=(size, size), mode="bicubic", antialias=True).clamp(0, 1)
        return model.encode_image((images - mean) / std, normalize=True).float()

    def encode_text(ids: Tensor) -> Tensor:
        return model.encode_text(ids, normalize=True).float()

    return encode_image, encode_text, open_clip.get_tokenizer(f"local-dir:{folder.resolve()}"), size
