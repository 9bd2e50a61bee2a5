"""A prior's memory by its headers, against what its networks really allocate."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from benchmarks.memory import Allocations, hollow, hollow_file, measured, row
from diffusion.checkpoints import footprint as module
from diffusion.checkpoints.architectures import SD1, SDXL, Architecture
from diffusion.checkpoints.errors import PriorError
from diffusion.checkpoints.footprint import PROCESS_BYTES, coding_bytes, footprint
from diffusion.checkpoints.weights import skeleton
from diffusion.networks.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from diffusion.networks.flux2 import Flux2Config, Flux2Transformer
from diffusion.networks.joint_transformer import JointTransformer, JointTransformerConfig
from diffusion.networks.projected_context import ProjectedContext
from diffusion.networks.strips import decode_in_strips, encode_in_strips
from diffusion.networks.unet import NUM_SIZES, UNet2DCondition
from diffusion.networks.z_image import ZImageConfig, ZImageTransformer
from diffusion.prior import MAX_CACHED_BYTES, Prior
from diffusion.text.qwen3 import Qwen3, Qwen3Config
from tests.diffusion.checkpoints.published import KLEIN, KLEIN_VAE, QWEN3_4B, SD3, SD35_MEDIUM, Z_IMAGE, Z_IMAGE_VAE


@pytest.mark.parametrize("architecture", [SD1, pytest.param(SDXL, marks=pytest.mark.slow)], ids=["SD 1", "SDXL"])
@torch.no_grad()
def test_activations_are_those_of_the_published_networks(architecture: Architecture, monkeypatch):
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda query, *_, **__: query.new_empty(query.shape))
    side = max(architecture.image_sizes.values()) // 8
    config = replace(architecture.unet, sample_size=side)
    network = skeleton(lambda: UNet2DCondition(config))
    added = [torch.empty(2, config.pooled_dim + NUM_SIZES, device="meta")] if config.addition_embed_type else []
    states = torch.empty(2, 77, config.cross_attention_dim, device="meta")
    with Allocations(network) as forward:
        network(torch.empty(2, 4, side, side, device="meta"), torch.zeros(2, dtype=torch.long, device="meta"), states, *added)
    assert 4 * module._network_row(config, (side, side)) == pytest.approx(forward.peak / 2, rel=0.1)
    decoder = skeleton(lambda: AutoencoderKL(architecture.autoencoder))
    with Allocations(decoder) as decoding:
        decoder.decode(torch.empty(1, 4, side, side, device="meta"))
    widths = architecture.autoencoder.decoder_widths
    assert coding_bytes(widths, (side, side)) == pytest.approx(decoding.peak, rel=0.01)


@pytest.mark.parametrize("latents", [(64, 64), (160, 96)])
@torch.no_grad()
def test_strips_take_a_third_of_the_memory(latents, monkeypatch):
    """Of the published decoder; the encoder holds less, whole and in strips."""
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda query, *_, **__: query.new_empty(query.shape))
    autoencoder = skeleton(lambda: AutoencoderKL(SD1.autoencoder))
    widths, picture = SD1.autoencoder.decoder_widths, torch.empty(1, 3, *(8 * side for side in latents), device="meta")
    with Allocations(autoencoder) as decoding:
        decode_in_strips(autoencoder, torch.empty(1, 4, *latents, device="meta"))
    assert coding_bytes(widths, latents, tiled=True) == pytest.approx(decoding.peak, rel=0.06)
    assert coding_bytes(widths, latents, tiled=True) < 0.4 * coding_bytes(widths, latents)
    for encode, tiled in ((encode_in_strips, True), (AutoencoderKL.encode, False)):
        with Allocations(autoencoder) as encoding:
            encode(autoencoder, picture)
        assert encoding.peak < coding_bytes(widths, latents, tiled=tiled)


@pytest.mark.parametrize("published", [SD3, SD35_MEDIUM], ids=["SD 3", "SD 3.5"])
@pytest.mark.parametrize("side", [64, 128])
@torch.no_grad()
def test_activations_are_those_of_the_published_transformers(published: dict[str, Any], side: int, monkeypatch):
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda query, *_, **__: query.new_empty(query.shape))
    config = JointTransformerConfig.from_dict(published)
    network = skeleton(lambda: JointTransformer(config))
    texts = [torch.empty(2, 333, 4096, device="meta"), torch.empty(2, 2048, device="meta")]
    with Allocations(network) as forward:
        network(torch.empty(2, 16, side, side, device="meta"), torch.zeros(2, device="meta"), *texts)
    # The table of positions, of which a view is taken, is a weight.
    peak = forward.peak - network.pos_embed.pos_embed.nbytes
    assert 4 * module._network_row(config, (side, side)) == pytest.approx(peak / 2, rel=0.15)


@pytest.mark.parametrize("side", [64, 128])
@torch.no_grad()
def test_activations_are_those_of_z_image(side: int, monkeypatch):
    """With a caption of four runs of 32 rows, which is what is counted."""
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda query, *_, **__: query.new_empty(query.shape))
    config = ZImageConfig.from_dict(Z_IMAGE)
    network = skeleton(lambda: ZImageTransformer(config))
    text = ProjectedContext(torch.empty(2, module.CAPTION_ROWS, config.dim, device="meta"))
    with Allocations(network) as forward:
        network(torch.empty(2, 16, side, side, device="meta"), torch.zeros(2, device="meta"), text)
    assert 4 * module._network_row(config, (side, side)) == pytest.approx(forward.peak / 2, rel=0.1)


@pytest.mark.parametrize("side", [64, 128])
@torch.no_grad()
def test_activations_are_those_of_klein(side: int, monkeypatch):
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda query, *_, **__: query.new_empty(query.shape))
    config = Flux2Config.from_dict(KLEIN)
    network = skeleton(lambda: Flux2Transformer(config))
    text = ProjectedContext(torch.empty(2, 512, config.inner_dim, device="meta"))
    with Allocations(network) as forward:
        network(torch.empty(2, 32, side, side, device="meta"), torch.zeros(2, device="meta"), text)
    assert 4 * module._network_row(config, (side, side)) == pytest.approx(forward.peak / 2, rel=0.1)


@pytest.mark.parametrize("family", ["Z-Image", "FLUX.2 klein 4B"])
def test_flows_with_qwen3_as_published_fit_24_gb(family, tmp_path):
    """In bfloat16 at 1024x1024 pixels, pictures and 3D steps, tower and autoencoder counted, by the files' headers alone."""
    is_klein = family != "Z-Image"
    pipeline = "Flux2KleinPipeline" if is_klein else "ZImagePipeline"
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    vae = {**AutoencoderKLConfig.FLUX2, **KLEIN_VAE} if is_klein else Z_IMAGE_VAE
    autoencoder = AutoencoderKLConfig.from_dict(vae)
    settings, network, reads = (
        (KLEIN, lambda: Flux2Transformer(Flux2Config()), (9, 18, 27))
        if is_klein
        else (Z_IMAGE, lambda: ZImageTransformer(ZImageConfig()), (35,))
    )
    parts = {
        "transformer": (settings, "diffusion_pytorch_model", skeleton(network)),
        "text_encoder": (QWEN3_4B, "model", skeleton(lambda: Qwen3(Qwen3Config(), reads))),
        "vae": (vae, "diffusion_pytorch_model", skeleton(lambda: AutoencoderKL(autoencoder))),
    }
    for part, (settings, stem, network) in parts.items():
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL", **settings}))
        shapes = {name: value.shape for name, value in network.state_dict().items()}
        if part == "text_encoder":
            # What the file has beyond what is read: further layers and the norm.
            for number in range(reads[-1], 36):
                shapes |= {name.replace("layers.0.", f"layers.{number}."): shape for name, shape in shapes.items()}
            shapes |= {"norm.weight": torch.Size((2560,))}
        hollow(tmp_path / part / f"{stem}.safetensors", shapes)
    half = footprint(f"{tmp_path}?dtype=bfloat16")
    numbers = [sum(value.numel() for value in network.state_dict().values()) for _, _, network in parts.values()]
    assert [round(number / 1e9, 3) for number in numbers] == ([3.876, 3.114, 0.084] if is_klein else [6.155, 3.922, 0.084])
    assert half.weights == 2 * sum(numbers) and half.towers == (2 * numbers[1],)
    told = [
        round(number / 1e9, 1) for number in (half.weights, half.least_on_gpu(), half.least_on_gpu(in_3d=True), half.on_gpu)
    ]
    line = " | ".join([family, "1024", "bfloat16", *map(str, told)])
    assert f"| {line} |\n" in (Path(__file__).parents[3] / "docs/performance.md").read_text(encoding="utf-8"), line
    assert told[1] <= told[2] < 24


def test_weights_count_as_they_are_loaded():
    prior = Prior.load("toybox")
    parts = [prior.unet, prior.text_encoder.tower]
    loaded = sum(weight.nbytes for part in parts for weight in part.parameters())
    autoencoder = sum(weight.nbytes for weight in prior.autoencoder.parameters())
    whole, half = footprint("toybox"), footprint("toybox?dtype=bfloat16")
    assert whole.weights == pytest.approx(loaded + autoencoder, rel=0.01)
    assert half.weights == pytest.approx((loaded + autoencoder) / 2, rel=0.01)
    mixed = footprint("toybox?dtype=float16")
    assert mixed.weights == pytest.approx(loaded / 2 + autoencoder, rel=0.01)
    assert whole.text == MAX_CACHED_BYTES
    assert whole.total == PROCESS_BYTES + whole.weights + whole.text + whole.activations + whole.adapters < 1.2e9


def test_sdxl_as_published(tmp_path):
    path = hollow_file(SDXL, tmp_path / "sd_xl_base_1.0.safetensors")
    whole, half = footprint(str(path)), footprint(f"{path}?dtype=float16")
    # 2,567 million parameters in the network, 818 in the towers, 84 in the autoencoder, which stays in float32.
    assert whole.weights / 4e6 == pytest.approx(2567 + 818 + 84, rel=0.01)
    assert half.weights / 2e6 == pytest.approx(2567 + 818 + 2 * 84, rel=0.01)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "truncated or not a safetensors"), (b"\xff" * 20, "truncated"), (b"\2" + b"\0" * 7 + b"[]", "truncated")],
)
def test_a_damaged_header_names_its_file(content, message, tmp_path):
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(PriorError, match=rf"m\.safetensors is {message}"):
        footprint(str(tmp_path / "m.safetensors"))


@pytest.mark.parametrize(
    ("architecture", "dtype"),
    [
        (SD1, "bfloat16"),
        *(pytest.param(SD1, dtype, marks=pytest.mark.slow) for dtype in ("float32", "float16")),
        *(pytest.param(SDXL, dtype, marks=pytest.mark.slow) for dtype in ("float32", "float16", "bfloat16")),
    ],
)
def test_cards_hold_what_the_documentation_says(architecture: Architecture, dtype: str, tmp_path: Path):
    """Formulas are those of meta tensors, the cards are large enough, and the numbers stand in the page."""
    found = row(architecture, dtype, tmp_path)
    for stage in found["stages"].values():
        assert stage["counted"] == pytest.approx(stage["on_meta_tensors"], rel=0.06), found["stages"]
    told = [f"{found[name] / 1e9:.1f}" for name in ("weights", "images", "steps_of_3d", "at_ease")]
    line = " | ".join([found["model"], str(found["pixels"]), dtype, *told])
    assert f"| {line} |\n" in (Path(__file__).parents[3] / "docs/performance.md").read_text(encoding="utf-8")
    assert found["images"] < found["card_gb"] * 1e9
    assert (found["steps_of_3d"] < found["card_gb"] * 1e9) == (architecture is SD1 or dtype != "float32")


def test_the_allocator_agrees_in_reduced_form():
    """A narrow network on the CPU: within 0.7 and 1.3 of what is counted; the backends' own buffers are in what is measured."""
    for name, stage in measured().items():
        assert 0.7 < stage["measured"] / stage["counted"] < 1.3, (name, stage)
