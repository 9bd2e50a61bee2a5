"""The single-stream transformer of Z-Image (Z-Image team 2025, arXiv:2511.22699): picture and caption in one row of tokens.

Two blocks refine the patches, two the caption, which no timestep changes, and the rest attend to both, picture first. Either
run is filled up to a multiple of 32 by a learned token that is attended to; where captions of several lengths share a forward,
what is beyond a row's own length is masked. Names are those of the single files; queries, keys and values are one matrix.

Published conventions are mapped to ours within: the network is told (T - t) / T and says x_0 - eps, the velocity's negative.

Shapes: B rows, L patches, S rows of the caption, D = dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.networks.attention import attention
from diffusion.networks.multi_view import MultiViewConfig
from diffusion.networks.projected_context import ProjectedContext
from diffusion.networks.published import from_published
from diffusion.networks.rms_norm import RMSNorm
from diffusion.networks.rotary import rotated, rotation_table
from diffusion.networks.unet import timestep_embedding
from diffusion.seeding import sent

RUN = 32
"""Patches and captions are filled up to multiples of so many tokens."""
QK_NORM_EPS, FINAL_NORM_EPS = 1e-5, 1e-6
TIME_DIM, TIME_WIDTH, MODULATION_DIM = 256, 1024, 256
NUM_TRAIN_TIMESTEPS = 1000


@dataclass(frozen=True)
class ZImageConfig:
    """`transformer/config.json` of a ZImageTransformer2DModel; the defaults are the published ones.

    Args:
        cap_feat_dim: width of the caption's states. axes_dims: numbers of a head that frame, row and column turn.
        axes_lens: how many positions each of these has. t_scale: what the level in [0, 1] is multiplied by.
        sample_size: side of the latents of its own pictures, which published files do not say: 1024 pixels.

    Raises:
        ValueError: a setting that no published file has and that would change the result.
    """

    all_patch_size: tuple[int, ...] = (2,)
    all_f_patch_size: tuple[int, ...] = (1,)
    in_channels: int = 16
    dim: int = 3840
    n_layers: int = 30
    n_refiner_layers: int = 2
    n_heads: int = 30
    n_kv_heads: int = 30
    norm_eps: float = 1e-5
    qk_norm: bool = True
    cap_feat_dim: int = 2560
    siglip_feat_dim: int = 0
    rope_theta: float = 256.0
    t_scale: float = 1000.0
    axes_dims: tuple[int, ...] = (32, 48, 48)
    axes_lens: tuple[int, ...] = (1024, 512, 512)
    sample_size: int = 128

    def __post_init__(self) -> None:
        if (self.all_patch_size, self.all_f_patch_size) != ((2,), (1,)):
            raise ValueError(
                f"all_patch_size is {self.all_patch_size} and all_f_patch_size {self.all_f_patch_size}; expected [2] and [1]"
            )
        if self.siglip_feat_dim:
            raise ValueError("siglip_feat_dim is set, as Z-Image Omni has it, which reads pictures; expected null")
        if not self.qk_norm or self.n_kv_heads != self.n_heads:
            raise ValueError(
                f"qk_norm is {self.qk_norm} and n_kv_heads {self.n_kv_heads}; expected true and n_heads, {self.n_heads}"
            )
        if self.dim != self.n_heads * sum(self.axes_dims) or len(self.axes_dims) != 3:
            raise ValueError(
                f"axes_dims are {self.axes_dims}; expected three with the sum of dim / n_heads, {self.dim / self.n_heads:g}"
            )

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> "ZImageConfig":
        """Reads a published configuration, where null is the published class's default."""
        return from_published(cls, config)

    @property
    def patch_size(self) -> int:
        """Latents along a side of a patch."""
        return self.all_patch_size[0]

    @property
    def out_channels(self) -> int:
        """As many as it takes."""
        return self.in_channels

    @property
    def max_patches(self) -> int:
        """Along a side of a picture."""
        return min(self.axes_lens[1:])

    @property
    def multi_view(self) -> MultiViewConfig | None:
        """None: it takes no cameras."""
        return None


class Attention(nn.Module):
    """Attention of a row to itself, queries and keys normed and then turned by their positions."""

    def __init__(self, config: ZImageConfig) -> None:
        super().__init__()
        self.num_heads = config.n_heads
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.out = nn.Linear(config.dim, config.dim, bias=False)
        self.q_norm, self.k_norm = (RMSNorm(config.dim // config.n_heads, QK_NORM_EPS) for _ in range(2))

    def forward(self, x_BLD: Tensor, rotations: Tensor, mask: Tensor | None) -> Tensor:
        """(B, L, D), (B or 1, L, head_dim / 2, 2), bool (B, 1, 1, L) -> (B, L, D)."""
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in self.qkv(x_BLD).chunk(3, dim=-1)
        )
        query, key = rotated(self.q_norm(query), rotations), rotated(self.k_norm(key), rotations)
        return self.out(attention(query, key, value, mask).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """W2 (SiLU(W1 x) * W3 x) (Shazeer 2020, arXiv:2002.05202), 8/3 times as wide within."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        inner = int(dim / 3 * 8)
        self.w1, self.w2, self.w3 = (nn.Linear(*widths, bias=False) for widths in ((dim, inner), (inner, dim), (dim, inner)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    """Attention and feed-forward, each normed before and behind, scaled and gated by the timestep where it is told one."""

    def __init__(self, config: ZImageConfig, *, is_modulated: bool = True) -> None:
        super().__init__()
        self.attention, self.feed_forward = Attention(config), FeedForward(config.dim)
        self.attention_norm1, self.attention_norm2, self.ffn_norm1, self.ffn_norm2 = (
            RMSNorm(config.dim, config.norm_eps) for _ in range(4)
        )
        if is_modulated:
            self.adaLN_modulation = nn.Sequential(nn.Linear(min(config.dim, MODULATION_DIM), 4 * config.dim))

    def forward(self, x_BLD: Tensor, rotations: Tensor, *, temb_BM: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """(B, L, D) -> (B, L, D). temb_BM: the timestep's embedding; None of the caption's refiner."""
        attended = self.attention_norm1(x_BLD)
        if temb_BM is None:
            x = x_BLD + self.attention_norm2(self.attention(attended, rotations, mask))
            return x + self.ffn_norm2(self.feed_forward(self.ffn_norm1(x)))
        scale, gate, scale_ff, gate_ff = self.adaLN_modulation(temb_BM)[:, None].chunk(4, dim=-1)
        x = x_BLD + gate.tanh() * self.attention_norm2(self.attention(attended * (1 + scale), rotations, mask))
        fed = self.feed_forward(self.ffn_norm1(x) * (1 + scale_ff))
        return x + gate_ff.tanh() * self.ffn_norm2(fed)


class TimeEmbedding(nn.Module):
    """Two linear layers with SiLU between."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIME_DIM, TIME_WIDTH), nn.SiLU(), nn.Linear(TIME_WIDTH, dim))


class FinalLayer(nn.Module):
    """Layer norm, scaled by the timestep, and the patches' numbers."""

    def __init__(self, config: ZImageConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.dim, config.patch_size**2 * config.out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(min(config.dim, MODULATION_DIM), config.dim))

    def forward(self, x_BLD: Tensor, temb_BM: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, patch^2 C)."""
        scale = 1 + self.adaLN_modulation(temb_BM)[:, None]
        return self.linear(F.layer_norm(x_BLD, x_BLD.shape[-1:], eps=FINAL_NORM_EPS) * scale)


class ZImageTransformer(nn.Module):
    """The velocity eps - x0 of noisy latents under a caption: Z-Image's network under its published names."""

    scale_dim = context_embedding_dim = 0
    """It is not told its guidance scale, and adds nothing of the caption to the timestep's embedding."""

    def __init__(self, config: ZImageConfig) -> None:
        super().__init__()
        self.config = config
        numbers = config.patch_size**2 * config.in_channels
        self.x_embedder, self.final_layer = nn.Linear(numbers, config.dim), FinalLayer(config)
        self.noise_refiner = nn.ModuleList(Block(config) for _ in range(config.n_refiner_layers))
        self.context_refiner = nn.ModuleList(Block(config, is_modulated=False) for _ in range(config.n_refiner_layers))
        self.t_embedder = TimeEmbedding(min(config.dim, MODULATION_DIM))
        self.cap_embedder = nn.Sequential(
            RMSNorm(config.cap_feat_dim, config.norm_eps), nn.Linear(config.cap_feat_dim, config.dim)
        )
        self.x_pad_token, self.cap_pad_token = (nn.Parameter(torch.zeros(1, config.dim)) for _ in range(2))
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layers))

    def project_context(self, context_BSD: Tensor, added_BA: Tensor | None = None) -> ProjectedContext:
        """All that the network computes from captions of one length without a timestep, for any number of `forward`s.

        Args:
            context_BSD: (B, S, cap_feat_dim). added_BA: None; there is no pooled text.

        Returns:
            The refined captions (B, S', D), S' the next multiple of 32.
        """
        text = _filled(self.cap_embedder(context_BSD), self.cap_pad_token)
        rotations = _caption_rotations(self._tables(text.device), text.shape[1])
        for block in self.context_refiner:
            text = block(text, rotations)
        return ProjectedContext(text)

    @staticmethod
    def lengthened(text_SD: Tensor, num_runs: int) -> Tensor:
        """A refined caption for forwards with others of up to `num_runs` runs of 32 rows.

        Returns:
            (32, D) where the longest has one run. (32 num_runs + 1, D) where it has more: zeros, which are masked, behind the
            caption, and its own number of runs in the last row. Whether a forward masks is so told by its rows' shape, which
            is the request's own, and never by who else is in it.
        """
        if num_runs == 1:
            return text_SD
        row = F.pad(text_SD, (0, 0, 0, RUN * num_runs + 1 - len(text_SD)))
        row[-1] = len(text_SD) // RUN
        return row

    def forward(
        self,
        x_BCHW: Tensor,
        t: Tensor,
        context: Tensor | ProjectedContext,
        added_BA: Tensor | None = None,
        *,
        cameras_BM: Tensor | None = None,
        num_views: int = 1,
    ) -> Tensor:
        """Predicts for noisy latents.

        Args:
            x_BCHW: (B, in_channels, H, W), H and W multiples of the patch.
            t: (B,) timesteps 1000 sigma, each row its own.
            context: captions of one length (B, S, cap_feat_dim), or what `project_context` made of them, `lengthened` where
                they differ in length.
            added_BA, cameras_BM, num_views: None, None and 1; it takes neither pooled text nor cameras.

        Returns:
            (B, out_channels, H, W).

        Raises:
            ValueError: cameras or groups, or a picture with more patches along a side than there are positions.
        """
        if cameras_BM is not None or num_views != 1:
            raise ValueError(f"cameras or groups of {num_views} views for Z-Image; expected single pictures")
        if not isinstance(context, ProjectedContext):
            context = self.project_context(context)
        text, num_runs = context.keys_values, None
        if text.shape[1] % RUN:
            text, num_runs = text[:, :-1], text[:, -1, 0].long()
        level = (NUM_TRAIN_TIMESTEPS - t) / NUM_TRAIN_TIMESTEPS * self.config.t_scale
        temb = self.t_embedder.mlp(timestep_embedding(level, TIME_DIM, flip_sin_to_cos=True, freq_shift=0).to(x_BCHW.dtype))
        patches = self._patches(x_BCHW)
        height, width = (side // self.config.patch_size for side in x_BCHW.shape[2:])
        x = _filled(self.x_embedder(patches), self.x_pad_token)
        tables = self._tables(x.device)
        frames = text.new_full((1,), text.shape[1] + 1, dtype=torch.long) if num_runs is None else RUN * num_runs + 1
        rotations = self._picture_rotations(tables, frames, height, width)
        for block in self.noise_refiner:
            x = block(x, rotations, temb_BM=temb)
        captions = _caption_rotations(tables, text.shape[1]).expand(len(rotations), -1, -1, -1)
        x, rotations = torch.cat([x, text], dim=1), torch.cat([rotations, captions], dim=1)
        mask = None if num_runs is None else self._mask(num_runs, x.shape[1] - text.shape[1], text.shape[1])
        for block in self.layers:
            x = block(x, rotations, temb_BM=temb, mask=mask)
        return -self._pictures(self.final_layer(x[:, : height * width], temb), height, width)

    def _patches(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, L, patch^2 C), channels last within a patch."""
        patch = self.config.patch_size
        grid = x_BCHW.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # B, C, H', patch, W', patch
        return grid.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)

    def _pictures(self, patches_BLP: Tensor, height: int, width: int) -> Tensor:
        """The inverse of `_patches`, of height by width of them."""
        patch = self.config.patch_size
        grid = patches_BLP.unflatten(1, (height, width)).unflatten(-1, (patch, patch, -1))
        return grid.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)

    def _tables(self, device: torch.device) -> list[Tensor]:
        """Of frame, row and column: (positions, dim / 2, 2)."""
        axes = zip(self.config.axes_dims, self.config.axes_lens, strict=True)
        return [sent(rotation_table(dim, length, self.config.rope_theta), device) for dim, length in axes]

    def _picture_rotations(self, tables: Sequence[Tensor], frames: Tensor, height: int, width: int) -> Tensor:
        """(B or 1, L', head_dim / 2, 2): each row's frame (B or 1,) is behind its caption, the filling at (0, 0, 0)."""
        if max(height, width) > self.config.max_patches:
            raise ValueError(
                f"the picture has {height} by {width} patches; expected at most {self.config.max_patches} along a side"
            )
        frame, row, column = tables
        grid = torch.cat(
            (
                frame[frames][:, None, None].expand(-1, height, width, -1, -1),
                row[None, :height, None].expand(len(frames), -1, width, -1, -1),
                column[None, None, :width].expand(len(frames), height, -1, -1, -1),
            ),
            dim=3,
        )
        return _filled(grid.flatten(1, 2), torch.cat((frame[:1], row[:1], column[:1]), dim=1))

    @staticmethod
    def _mask(num_runs: Tensor, num_patches: int, num_rows: int) -> Tensor:
        """Bool (B, 1, 1, L' + S): all patches, and each row's own caption."""
        place = torch.arange(num_patches + num_rows, device=num_runs.device)
        return (place < num_patches + RUN * num_runs[:, None])[:, None, None]


def _caption_rotations(tables: Sequence[Tensor], num_rows: int) -> Tensor:
    """(1, S, head_dim / 2, 2): positions (1, 0, 0) to (S, 0, 0), the filling included."""
    frame, row, column = tables
    parts = (frame[1 : num_rows + 1], row[:1].expand(num_rows, -1, -1), column[:1].expand(num_rows, -1, -1))
    return torch.cat(parts, dim=1)[None]


def _filled(rows: Tensor, with_what: Tensor) -> Tensor:
    """(B, N, ...) up to the next multiple of 32 rows with the row (1, ...)."""
    missing = -rows.shape[1] % RUN
    return rows if not missing else torch.cat((rows, with_what.expand(len(rows), missing, *with_what.shape[1:])), dim=1)
