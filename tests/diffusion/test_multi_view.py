"""Networks that are told their cameras: against MVDream's forward, diffusers, and what groups and cameras must not change."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from diffusion.checkpoints.unet_keys import original_unet
from diffusion.networks.multi_view import MultiViewConfig, position_features, split_keys
from diffusion.networks.unet import UNet2DCondition, UNetConfig
from diffusion.seeding import normal, stream
from diffusion.training.multi_view import with_views
from nerf3d.cameras import Cameras

pytestmark = pytest.mark.oracle

CAMERAS = Cameras.orbit([10.0, 100.0, 190.0, 280.0, 55.0, 145.0, 235.0, 325.0], [15.0] * 4 + [-5.0] * 4).pose_vectors()
# Stable Diffusion 2.1's structure, narrow: heads of 16 where the published ones have 64.
NARROW = UNetConfig(
    sample_size=8,
    block_out_channels=(32, 64, 64, 64),
    attention_head_dim=(2, 4, 4, 4),
    cross_attention_dim=24,
    use_linear_projection=True,
)
MVDREAM = dataclasses.replace(NARROW, multi_view=MultiViewConfig(num_views=4))


def randomised(config: UNetConfig, *, dtype: torch.dtype = torch.float64) -> UNet2DCondition:
    """Random weights everywhere, also in what begins at zero."""
    network = UNet2DCondition(config).to(dtype).eval().requires_grad_(False)
    for number, parameter in enumerate(network.parameters()):
        scale = 0.5 / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.3
        parameter.copy_(parameter * (parameter.ndim == 1) + scale * normal(parameter.shape, stream(1, number), dtype=dtype))
    return network


def inputs(rows: int, *, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    x, text = normal((rows, 4, 8, 8), stream(2, "x"), dtype=dtype), normal((rows, 5, 24), stream(2, "text"), dtype=dtype)
    return x, torch.arange(rows) * 90 + 40, text


class Reference:
    """MVDream's forward, written from the paper and its published names, on a file's tensors in their original layout."""

    def __init__(self, tensors: dict[str, Tensor], *, head_dim: int, num_views: int) -> None:
        self.w, self.head_dim, self.num_views = tensors, head_dim, num_views

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.w[f"{name}.weight"], self.w.get(f"{name}.bias"))

    def conv(self, name: str, x: Tensor, *, stride: int = 1) -> Tensor:
        weight = self.w[f"{name}.weight"]
        return F.conv2d(x, weight, self.w[f"{name}.bias"], stride=stride, padding=weight.shape[-1] // 2)

    def norm(self, name: str, x: Tensor, *, eps: float) -> Tensor:
        return F.group_norm(x, 32, self.w[f"{name}.weight"], self.w[f"{name}.bias"], eps)

    def layer_norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def residual(self, name: str, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv(f"{name}.in_layers.2", F.silu(self.norm(f"{name}.in_layers.0", x, eps=1e-5)))
        h = h + self.linear(f"{name}.emb_layers.1", F.silu(emb))[:, :, None, None]
        h = self.conv(f"{name}.out_layers.3", F.silu(self.norm(f"{name}.out_layers.0", h, eps=1e-5)))
        return h + (self.conv(f"{name}.skip_connection", x) if f"{name}.skip_connection.weight" in self.w else x)

    def attend(self, name: str, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = self.linear(f"{name}.to_q", x), self.linear(f"{name}.to_k", context), self.linear(f"{name}.to_v", context)
        heads = [part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in (q, k, v)]
        weights = torch.softmax(heads[0] @ heads[1].mT / math.sqrt(self.head_dim), dim=-1)
        return self.linear(f"{name}.to_out.0", (weights @ heads[2]).transpose(1, 2).flatten(2))

    def transformer(self, name: str, x: Tensor, text: Tensor) -> Tensor:
        b, c, h, w = x.shape
        y = self.linear(f"{name}.proj_in", self.norm(f"{name}.norm", x, eps=1e-6).flatten(2).mT)
        block = f"{name}.transformer_blocks.0"
        views = self.layer_norm(f"{block}.norm1", y).reshape(b // self.num_views, self.num_views * h * w, c)
        y = y + self.attend(f"{block}.attn1", views, views).reshape(b, h * w, c)
        y = y + self.attend(f"{block}.attn2", self.layer_norm(f"{block}.norm2", y), text)
        value, gate = self.linear(f"{block}.ff.net.0.proj", self.layer_norm(f"{block}.norm3", y)).chunk(2, dim=-1)
        y = y + self.linear(f"{block}.ff.net.2", value * F.gelu(gate))
        return x + self.linear(f"{name}.proj_out", y).mT.reshape(b, c, h, w)

    def block(self, name: str, x: Tensor, emb: Tensor, text: Tensor) -> Tensor:
        """One numbered block: whatever of convolution, residual block, transformer and resampling it holds."""
        if f"{name}.0.op.weight" in self.w:
            return self.conv(f"{name}.0.op", x, stride=2)
        if f"{name}.0.weight" in self.w:
            return self.conv(f"{name}.0", x)
        x = self.residual(f"{name}.0", x, emb)
        for place in (1, 2):
            if f"{name}.{place}.proj_in.weight" in self.w:
                x = self.transformer(f"{name}.{place}", x, text)
            elif f"{name}.{place}.conv.weight" in self.w:
                x = self.conv(f"{name}.{place}.conv", x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))
        return x

    def __call__(self, x: Tensor, t: Tensor, text: Tensor, cameras: Tensor) -> Tensor:
        width = self.w["time_embed.0.weight"].shape[1]
        frequencies = torch.exp(-math.log(10000) * torch.arange(width // 2) / (width // 2))
        angles = t[:, None].float() * frequencies
        sinusoids = torch.cat([angles.cos(), angles.sin()], dim=-1).to(x.dtype)
        emb = self.linear("time_embed.2", F.silu(self.linear("time_embed.0", sinusoids)))
        emb = emb + self.linear("camera_embed.2", F.silu(self.linear("camera_embed.0", cameras.to(x.dtype))))
        skips = []
        for number in range(12):
            x = self.block(f"input_blocks.{number}", x, emb, text)
            skips.append(x)
        x = self.residual("middle_block.0", x, emb)
        x = self.residual("middle_block.2", self.transformer("middle_block.1", x, text), emb)
        for number in range(12):
            x = self.block(f"output_blocks.{number}", torch.cat([x, skips.pop()], dim=1), emb, text)
        return self.conv("out.2", F.silu(self.norm("out.0", x, eps=1e-5)))


def test_groups_with_cameras_are_mvdreams_forward() -> None:
    network, (x, t, text) = randomised(MVDREAM), inputs(8)
    weights = network.state_dict()
    reference = Reference(original_unet(MVDREAM, weights).to_published(weights), head_dim=16, num_views=4)
    with torch.no_grad():
        ours = network(x, t, text, cameras_BM=CAMERAS.double(), num_views=4)
        torch.testing.assert_close(ours, reference(x, t, text, CAMERAS.double()), rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_without_the_extra_parts_it_is_diffusers_unet() -> None:
    from diffusers import UNet2DConditionModel

    config = dataclasses.replace(MVDREAM, multi_view=MultiViewConfig(position_levels=(0, 1, 2)))
    network, (x, t, text) = randomised(config), inputs(3)
    plain = {name: value for name, value in dataclasses.asdict(config).items() if name != "multi_view"}
    theirs = UNet2DConditionModel(**plain).double().eval()
    published, beside = split_keys(network.state_dict())
    theirs.load_state_dict({name: network.state_dict()[name] for name in published})
    assert {name.partition(".")[0] for name in beside} == {"camera_embed", "down_blocks", "up_blocks"}
    with torch.no_grad():
        torch.testing.assert_close(network(x, t, text), theirs(x, t, text).sample, rtol=1e-9, atol=1e-9)


def test_views_know_their_own_group_alone_and_zeros_are_no_camera() -> None:
    config = dataclasses.replace(MVDREAM, multi_view=MultiViewConfig(position_levels=(1, 2)))
    network, (x, t, text) = randomised(config), inputs(8)
    cameras = CAMERAS.double()
    with torch.no_grad():
        both = network(x, t, text, cameras_BM=cameras, num_views=4)
        second = network(x[4:], t[4:], text[4:], cameras_BM=cameras[4:], num_views=4)
        torch.testing.assert_close(both[4:], second, rtol=1e-9, atol=1e-9)
        changed = torch.cat([x[:1] + 1, x[1:]])
        moved = (network(changed, t, text, cameras_BM=cameras, num_views=4) - both).abs().amax(dim=(1, 2, 3))
        assert (moved[:4] > 1e-4).all() and (moved[4:] < 1e-9).all()
        alone = (network(changed, t, text, cameras_BM=cameras) - network(x, t, text, cameras_BM=cameras)).abs()
        assert alone[0].max() > 1e-4 and alone[1:].max() < 1e-9
        nowhere = network(x, t, text, cameras_BM=torch.zeros_like(cameras))
        torch.testing.assert_close(nowhere, network(x, t, text), rtol=1e-12, atol=1e-12)


def test_a_network_without_multi_view_refuses_cameras() -> None:
    with pytest.raises(ValueError, match="for a UNet without multi_view; expected single pictures"):
        UNet2DCondition(NARROW)(*inputs(4, dtype=torch.float32), num_views=4)


def test_position_features_are_where_the_rays_go() -> None:
    config, orbit = MultiViewConfig(), Cameras.orbit([30.0, 200.0], [20.0, -8.0])
    points = position_features(orbit.pose_vectors(), 4, 6, config)[..., :6]
    # In Blender's frame our (x, y, z) is (x, -z, y).
    origin, direction = (torch.stack([v[..., 0], -v[..., 2], v[..., 1]], -1).flatten(1, 2) for v in orbit.rays(4, 6))
    towards = -torch.nn.functional.normalize(origin[:, :1], dim=-1)
    plane = origin + direction * (config.distance / (direction * towards).sum(-1, keepdim=True))
    torch.testing.assert_close(points[..., :3], plane / config.object_radius, rtol=1e-4, atol=1e-5)
    sphere = points[..., 3:] * config.object_radius
    on_ray = torch.linalg.cross(sphere - origin, direction).norm(dim=-1)
    torch.testing.assert_close(on_ray, torch.zeros_like(on_ray), rtol=0, atol=2e-5)
    closest = torch.linalg.cross(origin, direction).norm(dim=-1)
    expected = closest.clamp_min(config.object_radius)
    torch.testing.assert_close(sphere.norm(dim=-1), expected, rtol=1e-4, atol=1e-5)


def test_a_grown_network_answers_as_before_until_it_is_trained() -> None:
    old = randomised(
        dataclasses.replace(NARROW, addition_embed_type="text", addition_embed_type_num_heads=4), dtype=torch.float32
    )
    x, t, text = inputs(4, dtype=torch.float32)
    text = text[:1].expand(4, -1, -1)  # of one text the mean over texts is exact
    grown = with_views(old, MultiViewConfig(), pooled=old.embed_context(text, None))
    assert grown.add_embedding is None
    with torch.no_grad():
        torch.testing.assert_close(grown(x, t, text, cameras_BM=CAMERAS[:4]), old(x, t, text), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bad", [{"num_views": 0}, {"distance": 0.5}, {"fov_degrees": 180.0}])
def test_impossible_configurations_are_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match="expected"):
        MultiViewConfig(**bad)
