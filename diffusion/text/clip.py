"""OpenCLIP towers: text for conditioning, text and image for CLIP scores. The only importer of open_clip's models."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.text.open_clip_import import ensure_open_clip_imports
from diffusion.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class TextConfig:
    """A causal text transformer (Radford et al. 2021); widths and counts as in `text_encoder/config.json`.

    `projection_dim` is the width of the pooled text, 0 for a tower that has none. CLIP's own towers use "quick_gelu",
    open_clip's "gelu".
    """

    vocab_size: int
    context_length: int = 24
    width: int = 192
    heads: int = 3
    layers: int = 4
    hidden_act: str = "gelu"
    projection_dim: int = 0

    def __post_init__(self) -> None:
        if self.hidden_act not in ("gelu", "quick_gelu"):
            raise ValueError(f"the text tower's hidden_act is {self.hidden_act!r}; expected 'gelu' or 'quick_gelu'")

    @classmethod
    def from_published(cls, config: dict[str, Any], *, with_projection: bool | None = None) -> "TextConfig":
        """From the configuration of a CLIPTextModel or, with a projection, of a CLIPTextModelWithProjection.

        Args:
            with_projection: whether it has one; None for what the configuration says of its class.

        Raises:
            ValueError: a setting that would change the result and is not offered.
        """
        width = config["hidden_size"]
        if config.get("intermediate_size", 4 * width) != 4 * width:
            raise ValueError(f"the text tower's intermediate_size is {config['intermediate_size']}; expected {4 * width}")
        if with_projection is None:
            with_projection = "CLIPTextModelWithProjection" in (config.get("architectures") or [])
        return cls(
            vocab_size=config["vocab_size"],
            context_length=config["max_position_embeddings"],
            width=width,
            heads=config["num_attention_heads"],
            layers=config["num_hidden_layers"],
            hidden_act=config.get("hidden_act", "quick_gelu"),
            projection_dim=config["projection_dim"] if with_projection else 0,
        )

    def to_published(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """The CLIPTextModel configuration of this tower."""
        return {
            "architectures": ["CLIPTextModelWithProjection" if self.projection_dim else "CLIPTextModel"],
            "model_type": "clip_text_model",
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.context_length,
            "hidden_size": self.width,
            "intermediate_size": 4 * self.width,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "projection_dim": self.projection_dim or self.width,
            "hidden_act": self.hidden_act,
            "layer_norm_eps": 1e-5,
            "bos_token_id": tokenizer.bpe.sot_token_id,
            "eos_token_id": tokenizer.bpe.eot_token_id,
            "pad_token_id": tokenizer.pad_id,
            # The file is float16; newer transformers would leave the tower so, beside a UNet that diffusers makes float32.
            "torch_dtype": "float32",
        }


@dataclass(frozen=True)
class ClipConfig:
    """A pair of towers. `vision` is open_clip's `vision_cfg`: a transformer, or a ResNet if `layers` is a list of four."""

    embed_dim: int
    text: TextConfig
    vision: dict[str, Any] = field(default_factory=dict)


class TextEncoder(nn.Module):
    """Token ids to the states that cross-attention reads, and to pooled text where the tower has a projection."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        ensure_open_clip_imports()
        from open_clip.transformer import QuickGELU, TextTransformer

        self.config = config
        self.tower = TextTransformer(
            context_length=config.context_length,
            vocab_size=config.vocab_size,
            width=config.width,
            heads=config.heads,
            layers=config.layers,
            output_dim=config.projection_dim or config.width,
            act_layer=QuickGELU if config.hidden_act == "quick_gelu" else nn.GELU,
            output_tokens=True,
        )
        # A buffer would have no values on a tower from the meta device; `layers` attends causally without it.
        self.tower.attn_mask = None
        if not config.projection_dim:
            self.tower.text_projection = None

    def forward(self, ids_BS: Tensor, *, skip: int = 0) -> Tensor:
        """(B, S) int64 -> (B, S, width): the last layer but `skip` through the final LayerNorm.

        Stable Diffusion 2.x reads the last but one through it; its towers are published and built a layer shorter.
        """
        return self.tower.ln_final(list(self.layers(ids_BS))[-1 - skip])

    def penultimate_and_pooled(self, ids_BS: Tensor, *, end_id: int, skip: int = 0) -> tuple[Tensor, Tensor | None]:
        """What SDXL reads (2307.01952 section 2.1): the last but one layer without norm, (B, S, width), and pooled text.

        The pooled text, (B, projection_dim), is the last layer at the first end token, through the norm and the projection;
        None for a tower without projection.

        Args:
            end_id: the tokenizer's end token. The tower does not know it: a vocabulary that textual inversion has extended,
                in memory or in the folder, has larger ids.
            skip: layers to go back from the last but one.
        """
        states = list(self.layers(ids_BS))
        penultimate, last = states[-2 - skip], states[-1]
        if self.tower.text_projection is None:
            return penultimate, None
        ends = (ids_BS == end_id).int().argmax(dim=-1)
        return penultimate, self.tower.ln_final(last[torch.arange(len(last)), ends]) @ self.tower.text_projection

    def layers(self, ids_BS: Tensor) -> Iterator[Tensor]:
        """(B, S, width) after each layer."""
        x = self.tower.token_embedding(ids_BS) + self.tower.positional_embedding[: ids_BS.shape[1]]
        for block in self.tower.transformer.resblocks:
            x = x + causal_attention(block.attn, block.ln_1(x))
            x = x + block.mlp(block.ln_2(x))
            yield x


def causal_attention(layer: nn.MultiheadAttention, x_BSW: Tensor) -> Tensor:
    """(B, S, width) -> (B, S, width): each token attends to itself and those before.

    What calling the layer gives, to the last bit, in half the time: on the CPU torch multiplies the layer's transposed
    input at half the speed. An adapter's side path (`diffusion.networks.low_rank`) adds to queries, keys and values.
    """
    qkv = F.linear(x_BSW, layer.in_proj_weight, layer.in_proj_bias)
    if (side_path := getattr(layer, "side_path", None)) is not None:
        qkv = qkv + side_path(x_BSW)
    query, key, value = (part.unflatten(-1, (layer.num_heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    out = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    return layer.out_proj(out.transpose(1, 2).flatten(2))


def end_of_text(states_BSW: Tensor, ids_BS: Tensor) -> Tensor:
    """(B, width) states at the end token, which has the largest id (Radford et al. 2021, section 2.4)."""
    return states_BSW[torch.arange(len(ids_BS), device=ids_BS.device), ids_BS.argmax(dim=-1)]


class Clip(nn.Module):
    """Text and image towers with one joint space of `embed_dim`."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        ensure_open_clip_imports()
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


def contrastive_loss(
    images_BE: Tensor, texts_BE: Tensor, logit_scale: Tensor, *, distractors_DE: Tensor | None = None
) -> Tensor:
    """Symmetric InfoNCE over a batch of unit vectors (Radford et al. 2021, figure 3); `logit_scale` is a logarithm.

    distractors_DE: texts that are true of none of the images; an image has to tell its own from them, too.
    """
    texts = texts_BE if distractors_DE is None else torch.cat([texts_BE, distractors_DE])
    logits = logit_scale.exp().clamp(max=100) * images_BE @ texts.T
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits[:, : len(logits)].T, target)) / 2


def save_clip(clip: Clip, tokenizer: Tokenizer, folder: Path, *, with_text: bool) -> None:
    """Writes `clip_config.json`, `clip.safetensors` (fp16) and, unless the text tower lies elsewhere, tower and tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "clip_config.json").write_text(json.dumps({**asdict(clip.config), "with_text": with_text}, indent=2))
    tensors = {k: v.half().contiguous() for k, v in clip.state_dict().items() if with_text or not k.startswith("text.")}
    (folder / "clip.safetensors").write_bytes(save(tensors))
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
