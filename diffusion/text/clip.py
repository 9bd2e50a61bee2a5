"""OpenCLIP towers: text for conditioning, text and image for CLIP scores. The only importer of open_clip's models."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.text.tokenizer import Tokenizer
from diffusion.torchvision_shim import ensure_torchvision_imports


@dataclass(frozen=True)
class TextConfig:
    """A causal text transformer (Radford et al. 2021); widths and counts as in `text_encoder/config.json`."""

    vocab_size: int
    context_length: int = 24
    width: int = 192
    heads: int = 3
    layers: int = 4

    @classmethod
    def from_published(cls, config: dict[str, Any]) -> "TextConfig":
        """From a CLIPTextModel configuration."""
        return cls(
            vocab_size=config["vocab_size"],
            context_length=config["max_position_embeddings"],
            width=config["hidden_size"],
            heads=config["num_attention_heads"],
            layers=config["num_hidden_layers"],
        )

    def to_published(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """The CLIPTextModel configuration of this tower."""
        return {
            "architectures": ["CLIPTextModel"],
            "model_type": "clip_text_model",
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.context_length,
            "hidden_size": self.width,
            "intermediate_size": 4 * self.width,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "projection_dim": self.width,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-5,
            "bos_token_id": tokenizer.bpe.sot_token_id,
            "eos_token_id": tokenizer.bpe.eot_token_id,
            "pad_token_id": tokenizer.pad_id,
            "torch_dtype": "float16",
        }


@dataclass(frozen=True)
class ClipConfig:
    """A pair of towers. `vision` is open_clip's `vision_cfg`: a transformer, or a ResNet if `layers` is a list of four."""

    embed_dim: int
    text: TextConfig
    vision: dict[str, Any] = field(default_factory=dict)


class TextEncoder(nn.Module):
    """Token ids to the states that cross-attention reads: the last layer through the final LayerNorm."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        ensure_torchvision_imports()
        from open_clip.transformer import TextTransformer

        self.config = config
        self.tower = TextTransformer(
            context_length=config.context_length,
            vocab_size=config.vocab_size,
            width=config.width,
            heads=config.heads,
            layers=config.layers,
            output_dim=config.width,
            output_tokens=True,
        )
        self.tower.text_projection = None

    def forward(self, ids_BS: Tensor) -> Tensor:
        """(B, S) int64 -> (B, S, width)."""
        x = self.tower.token_embedding(ids_BS) + self.tower.positional_embedding[: ids_BS.shape[1]]
        return self.tower.ln_final(self.tower.transformer(x, attn_mask=self.tower.attn_mask))


def end_of_text(states_BSW: Tensor, ids_BS: Tensor) -> Tensor:
    """(B, width) states at the end token, which has the largest id (Radford et al. 2021, section 2.4)."""
    return states_BSW[torch.arange(len(ids_BS), device=ids_BS.device), ids_BS.argmax(dim=-1)]


class Clip(nn.Module):
    """Text and image towers with one joint space of `embed_dim`."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        ensure_torchvision_imports()
        from open_clip.model import CLIPVisionCfg, _build_vision_tower

        self.config = config
        self.text = TextEncoder(config.text)
        self.text_projection = nn.Linear(config.text.width, config.embed_dim, bias=False)
        self.visual = _build_vision_tower(config.embed_dim, CLIPVisionCfg(**config.vision))
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    @property
    def image_size(self) -> int:
        """Side of the pictures that the image tower takes."""
        return self.config.vision["image_size"]

    def encode_text(self, ids_BS: Tensor) -> Tensor:
        """(B, S) token ids -> unit vectors (B, embed_dim), read at the end token (the largest id)."""
        return self.project_text(end_of_text(self.text(ids_BS), ids_BS))

    def project_text(self, pooled_BW: Tensor) -> Tensor:
        """States at the end token (B, width) -> unit vectors (B, embed_dim)."""
        return F.normalize(self.text_projection(pooled_BW).float(), dim=-1)

    def encode_image(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> unit vectors (B, embed_dim); other sizes than `image_size` are resampled."""
        if images.shape[-1] != self.image_size:
            images = F.interpolate(images, size=(self.image_size,) * 2, mode="bilinear", antialias=True)
        return F.normalize(self.visual(2 * images - 1).float(), dim=-1)


def contrastive_loss(images_BE: Tensor, texts_BE: Tensor, logit_scale: Tensor) -> Tensor:
    """Symmetric InfoNCE over a batch of unit vectors (Radford et al. 2021, figure 3); `logit_scale` is a logarithm."""
    logits = logit_scale.exp().clamp(max=100) * images_BE @ texts_BE.T
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def save_clip(clip: Clip, tokenizer: Tokenizer, folder: Path, *, with_text: bool) -> None:
    """Writes `clip_config.json`, `clip.safetensors` (fp16) and, unless the text tower lies elsewhere, tower and tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "clip_config.json").write_text(json.dumps({**asdict(clip.config), "with_text": with_text}, indent=2))
    tensors = {k: v.half().contiguous() for k, v in clip.state_dict().items() if with_text or not k.startswith("text.")}
    save_file(tensors, folder / "clip.safetensors")
    if with_text:
        tokenizer.save(folder / "tokenizer")


def load_clip(folder: Path, *, text: TextEncoder | None = None) -> Clip:
    """Reads what `save_clip` wrote; `text` is the tower to join where the folder holds none."""
    config = json.loads((folder / "clip_config.json").read_text())
    clip = Clip(ClipConfig(config["embed_dim"], TextConfig(**config["text"]), config["vision"]))
    missing, unexpected = clip.load_state_dict(
        {k: v.float() for k, v in load_file(folder / "clip.safetensors").items()}, strict=False
    )
    absent = [k for k in missing if config["with_text"] or not k.startswith("text.")]
    if absent or unexpected:
        raise ValueError(
            f"{folder / 'clip.safetensors'} does not fit clip_config.json: missing {absent}, unexpected {unexpected}"
        )
    if text is not None:
        clip.text = text
    return clip.eval()
