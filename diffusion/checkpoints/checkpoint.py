"""A checkpoint in memory: the networks and tables that make one text-to-image model."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from diffusion.checkpoints.errors import PriorError
from diffusion.checkpoints.source import STRICT_ROWS
from diffusion.checkpoints.weights import read_json
from diffusion.networks.autoencoder_kl import AutoencoderKL
from diffusion.networks.autoencoder_tiny import AutoencoderTiny
from diffusion.networks.flux2 import Flux2Transformer
from diffusion.networks.joint_transformer import JointTransformer
from diffusion.networks.unet import UNet2DCondition
from diffusion.networks.z_image import ZImageConfig, ZImageTransformer
from diffusion.process import Schedule
from diffusion.text.clip import TextEncoder
from diffusion.text.qwen3 import Qwen3Tower
from diffusion.text.t5 import T5Tower
from diffusion.text.tokenizer import Tokenizer

Autoencoder = AutoencoderKL | AutoencoderTiny
Transformer = JointTransformer | ZImageTransformer | Flux2Transformer


@dataclass(frozen=True)
class PriorCard:
    """`dreamkiln.json`: what a user should know about a prior.

    Args:
        vocabulary: the words it knows; None where any may be used.
        view_words: whether it was taught view words, such as "back view". A prior with `multi_view` takes cameras instead.
        picture_suffix: what prompts of pictures with cameras end in, such as MVDream's ", 3d asset".
        first_order_from_noise: whether its schedule begins with so little signal that second-order samplers do better with
            a first step of first order; see `diffusion.samplers.chain.use_second_order`.
    """

    name: str
    image_size: int
    vocabulary: tuple[str, ...] | None = None
    view_words: bool = False
    picture_suffix: str = ""
    first_order_from_noise: bool = False

    @classmethod
    def load(cls, folder: Path, *, name: str, image_size: int) -> "PriorCard":
        """Reads the card; a published folder, which has none, gets this name and size.

        Raises:
            PriorError: it is not JSON, or lacks a field.
        """
        path = folder / "dreamkiln.json"
        if not path.exists():
            return cls(name, image_size)
        card = read_json(path)
        if not {"name", "image_size"} <= card.keys():
            raise PriorError(f"{path} has the fields {sorted(card)}; expected at least name and image_size; add them")
        words = card.get("vocabulary")
        return cls(
            card["name"],
            card["image_size"],
            None if words is None else tuple(words),
            card.get("view_words", False),
            card.get("picture_suffix", ""),
            card.get("first_order_from_noise", False),
        )


@dataclass
class Checkpoint:
    """The parts of a model, frozen.

    Attributes:
        weights_hash: sha256 of all that was read into the networks and, where it is not Stable Diffusion's, of the schedule.
        unet: the network: a UNet, or the transformer of Stable Diffusion 3, Z-Image or FLUX.2.
        text_encoder, tokenizer: the first CLIP tower and its tokenizer, or Qwen3, which has its own, and None.
        text_encoder_2, tokenizer_2: the second tower, of SDXL and Stable Diffusion 3; None otherwise.
        text_encoder_3: Stable Diffusion 3's T5, which may be absent.
        plain_prompts: whether prompts are words alone, without weights and BREAK, cut at the towers' length.
        decoding: "plain", "tiled" (in strips, see `diffusion.networks.strips`), or "auto" for tiled where memory is short.
        strict_rows: of every forward of a strict request.
        clip_skip: 1 for the layer of the text towers that the model was trained with, 2 for the one before, and so on.
        notes: sentences about what was passed over or assumed while it was read.
        distilled: how it was distilled to few steps, a name of `diffusion.checkpoints.defaults.DISTILLED`; "" if it was not.
        ignores_guidance: whether it was distilled so that every guidance scale counts as none, as FLUX.2 klein was.
        zeros_for_empty_negative: whether an empty negative prompt is all zeros instead of being encoded, as SDXL has it.
    """

    card: PriorCard
    schedule: Schedule
    unet: UNet2DCondition | Transformer
    autoencoder: Autoencoder
    text_encoder: TextEncoder | Qwen3Tower
    tokenizer: Tokenizer | None
    weights_hash: str
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    text_encoder_2: TextEncoder | None = None
    tokenizer_2: Tokenizer | None = None
    text_encoder_3: T5Tower | None = None
    zeros_for_empty_negative: bool = False
    notes: list[str] = field(default_factory=list)
    plain_prompts: bool = False
    clip_skip: int = 1
    decoding: str = "auto"
    strict_rows: int = STRICT_ROWS
    distilled: str = ""
    ignores_guidance: bool = False

    @property
    def towers(self) -> list[tuple[str, TextEncoder, Tokenizer]]:
        """(published name, tower, tokenizer) of the CLIP towers: one, two, or none of Z-Image and FLUX.2."""
        if isinstance(self.text_encoder, Qwen3Tower) or self.tokenizer is None:
            return []
        towers = [("text_encoder", self.text_encoder, self.tokenizer)]
        if self.text_encoder_2 is not None and self.tokenizer_2 is not None:
            towers.append(("text_encoder_2", self.text_encoder_2, self.tokenizer_2))
        return towers

    @property
    def sees_mask(self) -> bool:
        """Whether it is an inpainting model, whose UNet takes a mask and the masked picture beside the latents."""
        return self.unet.config.in_channels == inpainting_channels(self.autoencoder.config.latent_channels)

    def check(self, source: Path) -> None:
        """Checks that the parts fit each other.

        Raises:
            PriorError: naming the two that do not.
        """
        if isinstance(self.unet, Transformer):
            self._check_transformer(source, self.unet)
            return
        unet, latents = self.unet.config, self.autoencoder.config.latent_channels
        widths = [tower.config.width for _, tower, _ in self.towers]
        if unet.in_channels not in (latents, inpainting_channels(latents)):
            raise PriorError(
                f"the UNet of {source} takes {unet.in_channels} channels and its autoencoder makes {latents}"
                f"{kind_of_input(unet.in_channels, latents)}; use a text-to-image or an inpainting model"
            )
        if unet.cross_attention_dim != sum(widths):
            raise PriorError(
                f"the UNet of {source} reads text {unet.cross_attention_dim} wide and its text towers are {widths} wide; "
                "take all parts from the same model"
            )
        pooled = self.text_encoder_2.config.projection_dim if self.text_encoder_2 else 0
        if unet.pooled_dim != pooled:
            raise PriorError(
                f"the UNet of {source} reads pooled text {unet.pooled_dim} wide and its text towers give {pooled}; "
                "take all parts from the same model"
            )

    def _check_transformer(self, source: Path, network: Transformer) -> None:
        config, latents = network.config, self.autoencoder.config.latent_channels
        fits = [
            ("takes", "latent channels", config.in_channels, "its autoencoder makes", latents),
            ("gives", "latent channels", config.out_channels, "its autoencoder reads", latents),
            *(self._texts_of_joint(network) if isinstance(network, JointTransformer) else self._text_of_qwen3(network)),
        ]
        for does, what, ours, who, theirs in fits:
            if ours != theirs:
                raise PriorError(
                    f"the transformer of {source} {does} {ours} {what} and {who} {theirs}; take all parts from the same model"
                )
        if not isinstance(network, JointTransformer):
            return
        if (width := sum(tower.config.width for _, tower, _ in self.towers)) > network.config.joint_attention_dim:
            raise PriorError(
                f"the transformer of {source} reads text {network.config.joint_attention_dim} wide and its CLIP towers are "
                f"{width} wide; take all parts from the same model"
            )

    def _texts_of_joint(self, network: JointTransformer) -> list[tuple[str, str, int, str, int]]:
        config, t5 = network.config, self.text_encoder_3
        pooled = sum(tower.config.projection_dim or tower.config.width for _, tower, _ in self.towers)
        width = config.joint_attention_dim if t5 is None else t5.encoder.config.d_model
        return [
            ("reads", "numbers of pooled text", config.pooled_projection_dim, "its text towers give", pooled),
            ("reads text of", "numbers a row", config.joint_attention_dim, "its T5 tower gives", width),
        ]

    def _text_of_qwen3(self, network: ZImageTransformer | Flux2Transformer) -> list[tuple[str, str, int, str, int]]:
        assert isinstance(self.text_encoder, Qwen3Tower)
        encoder, config = self.text_encoder.encoder, network.config
        read = config.cap_feat_dim if isinstance(config, ZImageConfig) else config.joint_attention_dim
        given = len(encoder.reads) * encoder.config.hidden_size
        return [("reads text of", "numbers a row", read, "its text tower gives", given)]


def inpainting_channels(latents: int) -> int:
    """What an inpainting UNet takes: latents, mask, and the latents of the masked picture."""
    return 2 * latents + 1


def kind_of_input(channels: int, latents: int) -> str:
    """The kind of model that takes so many channels, in brackets, or nothing."""
    kinds = {2 * latents: "an InstructPix2Pix", latents + 1: "a depth", latents + 3: "an upscaling"}
    return f" ({kinds[channels]} model, which is not supported)" if channels in kinds else ""
