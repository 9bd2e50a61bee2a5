"""A text-conditioned latent diffusion prior: the toybox's, or any Stable Diffusion that `diffusion.checkpoints` reads.

One class holds them all. It answers the requests of samplers and of score distillation.
"""

import contextlib
import functools
import re
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from diffusion.adapter_cache import AdapterCache, adapter_bytes
from diffusion.checkpoints.adapted import adapted
from diffusion.checkpoints.checkpoint import Checkpoint, PriorCard, Transformer
from diffusion.checkpoints.errors import PriorError
from diffusion.checkpoints.footprint import MAX_TEXT_BYTES, coding_bytes, encoder_gradient_bytes, least_bytes, network_bytes
from diffusion.checkpoints.lora_files import AdapterFile
from diffusion.checkpoints.read import read
from diffusion.checkpoints.source import TOYBOX, Source
from diffusion.checkpoints.weights import hash_files
from diffusion.data_parallel import data_parallel
from diffusion.engine.memory import SURELY_FREE, free_bytes
from diffusion.guidance import guided_prediction
from diffusion.latent_colours import LatentColours
from diffusion.networks.autoencoder_kl import AutoencoderKL
from diffusion.networks.autoencoder_tiny import AutoencoderTiny
from diffusion.networks.joint_transformer import JointTransformer
from diffusion.networks.layers import channels_last
from diffusion.networks.projected_context import ProjectedContext
from diffusion.networks.strips import decode_in_strips, encode_in_strips
from diffusion.networks.unet import UNet2DCondition
from diffusion.networks.z_image import RUN, ZImageTransformer
from diffusion.offload import lent
from diffusion.parameterisation import Prediction
from diffusion.requests import (
    Condition,
    DecodeRequest,
    DenoiseRequest,
    EncodeGradientRequest,
    EncodeRequest,
    Guidance,
    PreviewRequest,
    Request,
)
from diffusion.seeding import sent
from diffusion.text.chunks import chunks_of, joined, most_chunks, weighted
from diffusion.text.clip import TextEncoder, end_of_text
from diffusion.text.prompt_syntax import not_read, plain_text
from diffusion.text.qwen3 import MAX_TOKENS, Qwen3Tower
from diffusion.text.row_cache import RowCache, side_by_side
from diffusion.text.t5 import T5_ROWS
from diffusion.text.tokenizer import Tokenizer

__all__ = ["TOYBOX", "Prior", "PriorCard", "PriorError", "hash_files"]

# Of prompts kept in memory, in half precision 3.8 MB each for Stable Diffusion 1.5 and 25 MB for SDXL.
MAX_CACHED_BYTES = MAX_TEXT_BYTES
TOWERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


@dataclass
class Prior(Checkpoint):
    """A checkpoint that answers requests.

    Attributes:
        latent_shape: (C, h, w) of one picture.
        lends_towers: whether the text towers stay on the CPU, and are on the device only while they read.
        adapted_by: what has been put into its networks for a request, see `adapted`.
    """

    lends_towers: bool = False
    text_cache: RowCache = field(default_factory=lambda: RowCache(MAX_CACHED_BYTES))
    adapted_by: tuple[AdapterFile, ...] = ()
    _colours: LatentColours | None = None

    @classmethod
    def load(cls, source: str | Path | Source = "toybox", *, device: str | torch.device = "cpu") -> "Prior":
        """Reads "toybox" (the prior in this package), a folder, a single file, or a name on the Hugging Face hub.

        Args:
            source: as on the command line, options included; see `diffusion.checkpoints.source.Source`.

        Raises:
            PriorError: a file is missing, damaged or does not fit the others, or the name cannot be had.
        """
        source = source if isinstance(source, Source) else Source.parse(str(source))
        return cls.of(read(source.settled(torch.device(device).type)), device=device)

    @classmethod
    def of(cls, checkpoint: Checkpoint, *, device: str | torch.device = "cpu") -> "Prior":
        """The prior of a checkpoint, which moves to the device and must not be used otherwise afterwards."""
        parts = {f.name: getattr(checkpoint, f.name) for f in fields(Checkpoint)}
        target = torch.device(device)
        for module in parts.values():
            if isinstance(module, nn.Module):
                module.eval().requires_grad_(False)
        if next(parts["unet"].parameters()).dtype == torch.bfloat16:
            # Which has float32's range; SDXL's autoencoder overflows in float16 alone.
            parts["autoencoder"].to(torch.bfloat16)
        if target.type == "cuda":
            torch.set_float32_matmul_precision("high")
        parts |= {name: channels_last(parts[name].to(target)) for name in ("unet", "autoencoder")}
        prior = cls(**{**parts, "device": target})
        towers = {name: tower for name in TOWERS if (tower := getattr(prior, name)) is not None}
        prior.lends_towers = target.type == "cuda" and not prior._has_room_for(towers.values())
        for name, tower in towers.items():
            setattr(prior, name, tower if prior.lends_towers else tower.to(target))
        return prior

    def _has_room_for(self, towers: Iterable[nn.Module]) -> bool:
        """Whether text towers fit beside what waits and works on the device for one view of a 3D step."""
        itemsizes = {"itemsize": self._unet_dtype.itemsize, "vae_itemsize": self._autoencoder_dtype.itemsize}
        height, width = self.latent_shape[1:]
        work = least_bytes(self.unet.config, self.autoencoder.config.decoder_widths, (height, width), in_3d=True, **itemsizes)
        weights = sum(weight.nbytes for tower in towers for weight in (*tower.parameters(), *tower.buffers()))
        return weights + MAX_TEXT_BYTES + work <= self._room(1.0)

    def _reading(self, tower: nn.Module) -> contextlib.AbstractContextManager[None]:
        """Inside, the tower is on the device."""
        return lent(tower, self.device) if self.lends_towers else contextlib.nullcontext()

    @functools.cached_property
    def adapters(self) -> "AdapterCache[Prior]":
        """The LoRAs and words that requests have brought."""
        return AdapterCache(adapter_bytes(self.num_bytes))

    @functools.cached_property
    def num_bytes(self) -> int:
        """Of the weights."""
        modules = [part for part in vars(self).values() if isinstance(part, nn.Module)]
        return sum(weight.nbytes for module in modules for weight in (*module.parameters(), *module.buffers()))

    def adapted(self, adapters: tuple[AdapterFile, ...], *, in_use: Collection[tuple[AdapterFile, ...]] = ()) -> "Prior | None":
        """This prior with LoRAs and words in it; it shares all that they do not change, and so do the texts that it keeps.

        Args:
            in_use: what is at work, and stays.

        Returns:
            None while what is in use leaves no room.

        Raises:
            PriorError: a file is missing, damaged, was trained for another base, or takes too much memory.
        """

        def make() -> tuple[Prior, int]:
            model, num_bytes = adapted(self, adapters)
            return replace(model, adapted_by=adapters), num_bytes

        return self.adapters.get(adapters, make, in_use=in_use) if adapters else self

    @property
    def name(self) -> str:
        """The prior's name, for manifests."""
        return self.card.name

    @property
    def image_size(self) -> int:
        """Side of its pictures in pixels."""
        return self.card.image_size

    @property
    def num_views(self) -> int | None:
        """Views of a group that it draws together; None where it takes no cameras."""
        return None if self.unet.config.multi_view is None else self.unet.config.multi_view.num_views

    @property
    def elevation_jitter(self) -> float:
        """Degrees by which the views of a group differed in elevation in training."""
        return 0.0 if self.unet.config.multi_view is None else self.unet.config.multi_view.elevation_jitter

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of the latents of one picture of its own size."""
        return self.latent_shape_of(self._own_size)

    @property
    def size_multiple(self) -> int:
        """Widths and heights are multiples of so many pixels: of those of a latent, or of a transformer's patch of them."""
        return self.autoencoder.config.spatial_factor * self.patch_size

    @property
    def patch_size(self) -> int:
        """Latents along a side of what the network takes for one place: a transformer's patch, or 1."""
        return self.unet.config.patch_size if isinstance(self.unet, Transformer) else 1

    def latent_shape_of(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """(C, h, w) of the latents of a picture of this (height, width) in pixels.

        Raises:
            PriorError: a side that is no multiple of `size_multiple`, or another size than its own of a prior that takes
                cameras, whose position features belong to one size.
        """
        factor = self.size_multiple
        if any(side < factor or side % factor for side in size):
            raise PriorError(
                f"the picture is {size[1]}x{size[0]} pixels; expected multiples of {factor}, such as "
                f"{_nearest(size[1], factor)}x{_nearest(size[0], factor)}"
            )
        if isinstance(self.unet, Transformer) and max(size) > (most := self.unet.config.max_patches * factor):
            raise PriorError(
                f"the picture is {size[1]}x{size[0]} pixels, and the table of positions of {self.name} ends at {most}; take a "
                "smaller one"
            )
        if self.num_views is not None and size != self._own_size:
            raise PriorError(f"the prior {self.name} takes cameras and draws {self.image_size}x{self.image_size} pixels alone")
        pixels = self.autoencoder.config.spatial_factor
        return (self.autoencoder.config.latent_channels, size[0] // pixels, size[1] // pixels)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one row of the network's input: the latents and, of an inpainting model, what it sees beside them."""
        return (self.unet.config.in_channels, *self.latent_shape[1:])

    @torch.no_grad()
    def told_scale(self, condition: Condition, guidance: Guidance) -> tuple[Condition, Guidance]:
        """Of a network that is told its guidance scale (2310.04378): the condition that says it, and no other guidance.

        Of one that ignores guidance: the condition without its unconditional half.
        """
        if self.ignores_guidance:
            return replace(condition, negative=None), replace(guidance, scale=1.0)
        if not isinstance(self.unet, UNet2DCondition) or not self.unet.scale_dim:
            return condition, guidance
        tokens = condition.tokens.clone()
        tokens[:, -1, : self.unet.scale_dim] = self.unet.embed_scale(guidance.scale).to(tokens)
        return replace(condition, tokens=tokens, negative=None), replace(guidance, scale=1.0)

    def unknown_words(self, prompt: str) -> list[str]:
        """Words of a prompt that this prior never saw in training; empty where it may know any word."""
        if self.card.vocabulary is None:
            return []
        known = set(self.card.vocabulary)
        return [word for word in dict.fromkeys(re.findall(r"[^\W_]+", prompt.lower())) if word not in known]

    @torch.no_grad()
    def encode_text(
        self, prompts: Sequence[str], *, size: tuple[int, int] | None = None, num_chunks: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """What the towers make of prompts: states (B, S, D) and, of SDXL, pooled text and sizes (B, A), or pooled text alone.

        S is the towers' length times the number of chunks (see `diffusion.text.chunks`), and of Stable Diffusion 3 the rows of
        T5 after them, zeros without it; of Z-Image that of the longest prompt, with zeros after the shorter; of FLUX.2 512.

        Args:
            size: (height, width) of the pictures in pixels, which SDXL is told; the prior's own by default.
            num_chunks: at least as many as the longest prompt has, which is the default.
        """
        if isinstance(self.text_encoder, Qwen3Tower):
            with self._reading(self.text_encoder):
                texts = [at_least_float32(self.text_encoder(prompt)[0]) for prompt in prompts]
            return pad_sequence(texts, batch_first=True), None
        if not self.reads_syntax:
            read = [
                self._read(tower, tokenizer, sent(tokenizer(list(prompts)), self.device)) for _, tower, tokenizer in self.towers
            ]
            states = torch.cat([at_least_float32(one) for one, _ in read], dim=-1)
            pooled = self._pooled([one for _, one in read])
        else:
            num_chunks = num_chunks or self.num_chunks(prompts)
            chunked = [self._read_in_chunks(prompt, num_chunks) for prompt in prompts]
            states = torch.cat([text for text, _ in chunked])
            pooled = None if chunked[0][1] is None else torch.cat([cast(Tensor, one) for _, one in chunked])
        if isinstance(self.unet, JointTransformer):
            if self.text_encoder_2 is not None:
                states = self._with_t5(states, prompts, self.unet.config.joint_attention_dim)
            return states, at_least_float32(cast(Tensor, pooled))
        if self.text_encoder_2 is None:
            return states, None
        return states, self._added(at_least_float32(cast(Tensor, pooled)), size or self._own_size)

    def _with_t5(self, states: Tensor, prompts: Sequence[str], width: int) -> Tensor:
        """CLIP's rows (B, S, D), made as wide as T5's by zeros, and T5's after them (2403.03206 section 4)."""
        states = F.pad(states, (0, width - states.shape[-1]))
        if self.text_encoder_3 is None:
            return F.pad(states, (0, 0, 0, T5_ROWS))
        words = [plain_text(prompt) if self.reads_syntax else prompt for prompt in prompts]
        with self._reading(self.text_encoder_3):
            return torch.cat([states, at_least_float32(self.text_encoder_3(words)).to(states)], dim=1)

    def _pooled(self, of_towers: Sequence[Tensor | None]) -> Tensor | None:
        """Of SDXL the last tower's pooled text, of Stable Diffusion 3 both side by side."""
        if not isinstance(self.unet, JointTransformer):
            return of_towers[-1]
        return torch.cat([cast(Tensor, one) for one in of_towers], dim=-1)

    def _read(self, tower: TextEncoder, tokenizer: Tokenizer, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, S, width) states of the layer that this family reads, and pooled text: without projection the end's state."""
        with self._reading(tower):
            if self.text_encoder_2 is None:
                states = tower(ids, skip=self.clip_skip - 1)
                return states, end_of_text(states, ids) if isinstance(self.unet, JointTransformer) else None
            return tower.penultimate_and_pooled(ids, end_id=tokenizer.end_id, skip=self.clip_skip - 1)

    def _read_in_chunks(self, prompt: str, num_chunks: int) -> tuple[Tensor, Tensor | None]:
        """(1, N S, D) of one prompt, each tower's states weighted on their own, and the first chunk's pooled text."""
        states, of_towers = [], []
        for _, tower, tokenizer in self.towers:
            chunks = chunks_of(tokenizer, prompt, num_chunks=num_chunks)
            read, pooled = self._read(tower, tokenizer, sent(chunks.ids, self.device))
            states.append(joined(weighted(at_least_float32(read), chunks.weights)))
            of_towers.append(None if pooled is None else pooled[:1])
        return torch.cat(states, dim=-1), self._pooled(of_towers)

    @property
    def reads_syntax(self) -> bool:
        """Whether prompts may be weighted, and longer than CLIP; priors of few words, and Qwen3, read words alone."""
        return not self.plain_prompts and self.card.vocabulary is None and not isinstance(self.text_encoder, Qwen3Tower)

    def num_chunks(self, prompts: Sequence[str]) -> int:
        """How often the towers' length, or of Qwen3 a run of 32 rows, the longest of some prompts takes."""
        if isinstance(self.text_encoder, Qwen3Tower):
            return max(-(-self.text_encoder.num_tokens(prompt) // RUN) for prompt in dict.fromkeys([*prompts, ""]))
        if not self.reads_syntax:
            return 1
        return most_chunks([tokenizer for _, _, tokenizer in self.towers], list(dict.fromkeys(prompts)) or [""])

    def prompt_warning(self, prompt: str) -> str | None:
        """What of a prompt is cut or taken as plain words, in one sentence; None for nothing."""
        clauses = []
        if isinstance(self.text_encoder, Qwen3Tower):
            if (tokens := len(self.text_encoder.tokens(prompt))) > MAX_TOKENS:
                clauses.append(f"it has {tokens} tokens with its template, of which the first {MAX_TOKENS} are read")
        elif not self.reads_syntax and self.tokenizer is not None:
            tokens, length = self.tokenizer.num_tokens(prompt), self.tokenizer.context_length
            if tokens > length:
                clauses.append(f"it has {tokens - 2} tokens, of which the first {length - 2} are read")
        clauses += not_read(prompt)
        return f"Of the prompt {prompt!r}: {'; '.join(clauses)}." if clauses else None

    def _told_size(self, size: tuple[int, int] | None) -> tuple[int, int]:
        """The size that a prompt's condition depends on: of networks that are not told any, always their own."""
        is_told = self.text_encoder_2 is not None and not isinstance(self.unet, JointTransformer)
        return size if size is not None and is_told else self._own_size

    @property
    def _own_size(self) -> tuple[int, int]:
        return (self.image_size, self.image_size)

    def _added(self, pooled: Tensor, size: tuple[int, int]) -> Tensor:
        """SDXL's vector condition: pooled text, original size, crop's corner, target size (2307.01952 section 2.2)."""
        return torch.cat([pooled, pooled.new_tensor([[*size, 0, 0, *size]]).expand(len(pooled), -1)], dim=1)

    def condition(
        self,
        prompts: Sequence[str],
        negative_prompts: Sequence[str] | None = None,
        *,
        size: tuple[int, int] | None = None,
        num_chunks: int | None = None,
    ) -> Condition:
        """Texts as `predict` takes them: all that the towers and the UNet make of the words alone.

        Each distinct prompt is computed once, alone, so that neighbours never matter, and kept for the next call.

        Args:
            prompts, negative_prompts: as many of each; "" by default. size, num_chunks: see `encode_text`.
        """
        negative_prompts = [""] * len(prompts) if negative_prompts is None else negative_prompts
        size, num_chunks = self._told_size(size), num_chunks or self.num_chunks([*prompts, *negative_prompts])
        tokens = [self._row(prompt, size, num_chunks) for prompt in prompts]
        negative = [self._row(self._negative(prompt), size, num_chunks) for prompt in negative_prompts]
        return Condition(side_by_side(tokens), side_by_side(negative))

    def has_condition(
        self,
        prompt: str,
        negative_prompt: str = "",
        *,
        size: tuple[int, int] | None = None,
        num_chunks: int | None = None,
    ) -> bool:
        """Whether `condition` has this pair ready."""
        chunks = num_chunks or self.num_chunks([prompt, negative_prompt])
        texts = (prompt, self._negative(negative_prompt))
        return all(self._key(text, self._told_size(size), chunks) in self.text_cache for text in texts)

    def _negative(self, prompt: str) -> str | None:
        """None stands for no text at all, which is not the same as the empty text."""
        return None if self.zeros_for_empty_negative and not prompt else prompt

    def _row(self, prompt: str | None, size: tuple[int, int], num_chunks: int) -> Tensor:
        key = self._key(prompt, size, num_chunks)
        row = self.text_cache.get(key, lambda: self._project(prompt, size, num_chunks))
        return self.unet.lengthened(row, num_chunks) if isinstance(self.unet, ZImageTransformer) else row

    def _key(self, prompt: str | None, size: tuple[int, int], num_chunks: int) -> Hashable:
        """Of what is kept of a prompt: a caption of Z-Image is kept in its own length, whatever it is lengthened to."""
        return (self.adapted_by, prompt, size, 1 if isinstance(self.unet, ZImageTransformer) else num_chunks)

    @torch.no_grad()
    def _project(self, prompt: str | None, size: tuple[int, int], num_chunks: int) -> Tensor:
        states, added = self.encode_text([prompt or ""], size=size, num_chunks=num_chunks)
        if prompt is None and isinstance(self.unet, UNet2DCondition):
            # SDXL's condition for no text: zeros, but for the sizes.
            states = torch.zeros_like(states)
            added = self._added(states.new_zeros(1, self.unet.config.pooled_dim), size)
        return self.unet.project_context(states.to(self._unet_dtype), added).packed()[0]

    @property
    def _unet_dtype(self) -> torch.dtype:
        return next(self.unet.parameters()).dtype

    @property
    def _autoencoder_dtype(self) -> torch.dtype:
        return next(self.autoencoder.parameters()).dtype

    def answer(self, request: Request) -> Any:
        """Answers one request of a generator; see `diffusion.requests` for what each is answered with."""
        match request:
            case DenoiseRequest():
                return self.denoise(request)
            case EncodeRequest(images):
                return self.encode(images, tiled=request.tiled)
            case DecodeRequest(latents):
                return self.decode(latents, tiled=request.tiled)
            case PreviewRequest(latents):
                return self.preview(latents)
            case EncodeGradientRequest(images, latent_gradient):
                return self.encoder_gradient(images, latent_gradient, checkpointed=request.checkpointed)
        raise TypeError(f"a prior cannot answer {type(request).__name__}")

    @torch.no_grad()
    def denoise(self, request: DenoiseRequest) -> Prediction:
        """The guided prediction; rows whose guidance needs no unconditional half cost one forward."""
        return guided_prediction(self.predict, request, self.schedule)

    def predict(self, x_t: Tensor, t: Tensor, tokens: Tensor, cameras: Tensor | None = None, num_views: int = 1) -> Tensor:
        """The network's raw output for (B, C, h, w) latents at timesteps (B,) under `condition`'s tokens (B, S, K).

        cameras, num_views: see `Condition`.
        """
        columns = [sent(column, self.device) for column in (x_t, t, tokens, cameras) if column is not None]
        return data_parallel(functools.partial(self.predict_together, num_views=num_views), *columns, together=num_views)

    def predict_together(
        self, x_t: Tensor, t: Tensor, tokens: Tensor, cameras: Tensor | None = None, *, num_views: int = 1
    ) -> Tensor:
        """`predict` in a single forward of the network; everything is on the prior's device already."""
        dtype = self._unet_dtype
        dims = {"embedding_dim": self.unet.context_embedding_dim, "scale_dim": self.unet.scale_dim}
        context = ProjectedContext.unpacked(tokens.to(dtype), **dims)
        return self.unet(x_t.to(dtype), t, context, cameras_BM=cameras, num_views=num_views).to(x_t.dtype)

    @torch.no_grad()
    def encode(self, images: Tensor, *, tiled: bool = False) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> scaled latents (B, C, h, w), in the images' precision; tiled: see `decode`."""
        images = sent(images, self.device)
        if tiled and isinstance(self.autoencoder, AutoencoderKL):
            return torch.cat(
                [encode_in_strips(self.autoencoder, self._in_its_precision(one)).to(one.dtype) for one in images.split(1)]
            )
        return data_parallel(self._coded, images)

    @torch.no_grad()
    def decode(self, latents: Tensor, *, tiled: bool = False) -> Tensor:
        """Scaled latents on the prior's device -> images (B, 3, H, W) clamped to [0, 1].

        tiled: one picture after another in strips, see `diffusion.networks.strips`; a tiny autoencoder needs none.
        """
        if tiled and isinstance(self.autoencoder, AutoencoderKL):
            done = [decode_in_strips(self.autoencoder, self._in_its_precision(one)).to(one.dtype) for one in latents.split(1)]
            return torch.cat(done).clamp(0, 1)
        return data_parallel(self._decoded, latents).clamp(0, 1)

    def num_rows_at_once(self, latents: tuple[int, int]) -> int:
        """How many network rows of such latents (h, w) fit into half of the memory that is free now.

        The other half is for what waits meanwhile: an encoder's graph, the latents of many requests.
        """
        return self._room(0.5) // network_bytes(self.unet.config, latents, itemsize=self._unet_dtype.itemsize)

    def num_coded_at_once(self, request: EncodeRequest | DecodeRequest | EncodeGradientRequest, *, share: float = 1.0) -> int:
        """How many pictures of its size the autoencoder codes as a whole in a share of the memory that is free; 0 for none."""
        if isinstance(request, DecodeRequest):
            height, width = request.latents.shape[2:]
        else:
            height, width = (side // self.autoencoder.config.spatial_factor for side in request.images.shape[2:])
        count = encoder_gradient_bytes if isinstance(request, EncodeGradientRequest) else coding_bytes
        widths, itemsize = self.autoencoder.config.decoder_widths, self._autoencoder_dtype.itemsize
        return self._room(share) // count(widths, (height, width), itemsize=itemsize)

    def _room(self, share: float) -> int:
        """Bytes: a share of what is surely free on the device now."""
        return int(share * SURELY_FREE * free_bytes(self.device))

    def _in_its_precision(self, tensor: Tensor) -> Tensor:
        """In the autoencoder's precision."""
        return tensor.to(self._autoencoder_dtype)

    def _coded(self, images: Tensor, *, checkpointed: bool = False) -> Tensor:
        how = {"checkpointed": True} if checkpointed and isinstance(self.autoencoder, AutoencoderKL) else {}
        return self.autoencoder.encode(self._in_its_precision(images), **how).to(images.dtype)

    def _decoded(self, latents: Tensor) -> Tensor:
        return self.autoencoder.decode(self._in_its_precision(latents)).to(latents.dtype)

    def preview(self, latents: Tensor) -> Tensor:
        """Scaled latents on the prior's device -> small images (B, 3, h', w') in [0, 1].

        Decoded where that is cheap, else in `LatentColours`.
        """
        if isinstance(self.autoencoder, AutoencoderTiny):
            return self.decode(latents)
        if self._colours is None:
            factor = self.autoencoder.config.spatial_factor
            self._colours = LatentColours.fit(self.encode, factor=factor, device=self.device)
        return self._colours(latents)

    def encoder_gradient(self, images: Tensor, latent_gradient: Tensor, *, checkpointed: bool = False) -> Tensor:
        """Vector-Jacobian product of the encoder, (B, 3, H, W); checkpointed: see `AutoencoderKL.encode`."""
        pulled_back = functools.partial(self._encoder_gradient, checkpointed=checkpointed)
        return data_parallel(pulled_back, sent(images, self.device), latent_gradient)

    @property
    def keeps_encoded(self) -> bool:
        """Whether `encode_with_graph` pays; on a CPU each core pulls its own rows back, which one graph could not."""
        return self.device.type == "cuda"

    def encode_with_graph(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """`encode`, and what its gradient is pulled back to: leaf images (B, 3, H, W), latents (B, C, h, w) with a graph."""
        leaf = sent(images, self.device).detach().requires_grad_()
        with torch.enable_grad():
            return leaf, self._coded(leaf)

    def _encoder_gradient(self, images: Tensor, latent_gradient: Tensor, *, checkpointed: bool) -> Tensor:
        images = images.detach().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(self._coded(images, checkpointed=checkpointed), images, latent_gradient)
        return gradient


def _nearest(side: int, factor: int) -> int:
    return max(1, round(side / factor)) * factor


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half precision widened, anything else as it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
