"""LoRA's relatives against their papers' formulas, and DoRA against diffusers; each in the layouts that files have."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from diffusion.checkpoints.checkpoint import Checkpoint
from diffusion.checkpoints.errors import PriorError
from diffusion.checkpoints.folder import read_folder
from diffusion.checkpoints.lora import merge_lora
from tests.diffusion.checkpoints.published import Saved

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")

MODULE = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
KOHYA = "lora_unet_" + MODULE.replace(".", "_")
CONV = "lora_unet_down_blocks_0_resnets_0_conv1"
W = 16


def rnd(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.manual_seed(sum(shape))) * 0.3


@pytest.fixture(scope="module")
def base(saved: Saved) -> dict[str, Tensor]:
    return read_folder(saved("sd15")[1]).unet.state_dict()


def merged(saved: Saved, folder: Path, tensors: dict[str, Tensor], scale: float = 1.0) -> Checkpoint:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "x.safetensors")
    checkpoint = read_folder(saved("sd15")[1])
    merge_lora(checkpoint, folder / "x.safetensors", scale)
    return checkpoint


def factorised(name: str, *, rank: int = 2) -> tuple[dict[str, Tensor], Tensor]:
    down, up = rnd(rank, W), rnd(W, rank)
    return {
        f"{name}.lora_down.weight": down,
        f"{name}.lora_up.weight": up,
        f"{name}.alpha": torch.tensor(1.0),
    }, up @ down / rank


def hada(**more: Tensor) -> dict[str, Tensor]:
    parts = {"hada_w1_a": rnd(W, 2), "hada_w1_b": rnd(2, W), "hada_w2_a": rnd(W, 2) + 0.1, "hada_w2_b": rnd(2, W) - 0.1}
    return {f"{KOHYA}.{name}": tensor for name, tensor in {**parts, "alpha": torch.tensor(1.0), **more}.items()}


def lokr(**parts: Tensor) -> dict[str, Tensor]:
    return {f"{KOHYA}.lokr_{name}" if name != "alpha" else f"{KOHYA}.alpha": tensor for name, tensor in parts.items()}


H = hada()
PLAIN, DELTA = factorised(KOHYA)
CASES: dict[str, tuple[dict[str, Tensor], Tensor]] = {
    "ComfyUI's names": factorised("diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"),
    "scalar": ({**PLAIN, f"{KOHYA}.scalar": torch.tensor(0.5)}, 0.5 * DELTA),
    "full difference": ({f"{KOHYA}.diff": rnd(W, W)}, rnd(W, W)),
    "LoHa": (
        H,
        (H[f"{KOHYA}.hada_w1_a"] @ H[f"{KOHYA}.hada_w1_b"]) * (H[f"{KOHYA}.hada_w2_a"] @ H[f"{KOHYA}.hada_w2_b"]) / 2,
    ),
    "LoKr, whole": (lokr(w1=rnd(4, 4), w2=rnd(4, 4) + 1, alpha=torch.tensor(9.0)), torch.kron(rnd(4, 4), rnd(4, 4) + 1)),
    "LoKr, factorised": (
        lokr(w1=rnd(4, 4), w2_a=rnd(4, 2), w2_b=rnd(2, 4), alpha=torch.tensor(1.0)),
        torch.kron(rnd(4, 4), rnd(4, 2) @ rnd(2, 4)) / 2,
    ),
}


@pytest.mark.parametrize("case", sorted(CASES))
@torch.no_grad()
def test_a_weight_is_changed_by_the_method_s_formula(case: str, base: Any, saved: Saved, tmp_path: Path) -> None:
    tensors, delta = CASES[case]
    after = merged(saved, tmp_path, tensors, 0.7).unet.state_dict()
    torch.testing.assert_close(after[f"{MODULE}.weight"], base[f"{MODULE}.weight"] + 0.7 * delta, rtol=0, atol=1e-6)
    assert [name for name in base if not torch.equal(base[name], after[name])] == [f"{MODULE}.weight"]


@torch.no_grad()
def test_convolutions(base: Any, saved: Saved, tmp_path: Path) -> None:
    """LoHa and LoCon with Tucker cores (2108.06098 section 2.2), and LoKr of a kernel."""
    name = "down_blocks.0.resnets.0.conv1.weight"
    up, mid, down = rnd(W, 2, 1, 1), rnd(2, 2, 3, 3), rnd(2, W, 1, 1)
    tucker = {f"{CONV}.lora_up.weight": up, f"{CONV}.lora_mid.weight": mid, f"{CONV}.lora_down.weight": down}
    product = torch.einsum("or,rskl,si->oikl", up[:, :, 0, 0], mid, down[:, :, 0, 0])
    kron = {f"{CONV}.lokr_w1": rnd(4, 4), f"{CONV}.lokr_w2": rnd(4, 4, 3, 3)}
    whole = torch.stack([torch.kron(rnd(4, 4), rnd(4, 4, 3, 3)[..., i, j]) for i in range(3) for j in range(3)], -1)
    for tensors, delta in ((tucker, product), (kron, whole.reshape(W, W, 3, 3))):
        after = merged(saved, tmp_path, tensors).unet.state_dict()
        torch.testing.assert_close(after[name], base[name] + delta, rtol=0, atol=1e-6)


@torch.no_grad()
def test_dora_equals_diffusers_where_that_reads_it(base: Any, saved: Saved, tmp_path: Path) -> None:
    """2402.09353 eq. 5; kohya's spelling means the same, and diffusers drops its magnitudes in silence."""
    tensors, delta = factorised(KOHYA)
    magnitude = torch.linspace(0.5, 1.5, W)
    changed = base[f"{MODULE}.weight"] + delta
    expected = magnitude[:, None] * changed / changed.norm(dim=1, keepdim=True)
    after = merged(saved, tmp_path, {**tensors, f"{KOHYA}.dora_scale": magnitude[:, None]}).unet.state_dict()
    torch.testing.assert_close(after[f"{MODULE}.weight"], expected, rtol=0, atol=1e-6)
    peft = {f"unet.{MODULE}.lora_A.weight": rnd(2, W), f"unet.{MODULE}.lora_B.weight": rnd(W, 2)}
    peft |= {f"unet.{MODULE}.lora_magnitude_vector": magnitude}
    after = merged(saved, tmp_path, peft).unet.state_dict()
    pipeline = saved("sd15")[0]
    before = {name: tensor.clone() for name, tensor in pipeline.unet.state_dict().items()}
    pipeline.load_lora_weights(tmp_path, weight_name="x.safetensors")
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    theirs = pipeline.unet.state_dict()[f"{MODULE}.weight"].clone()
    pipeline.unet.load_state_dict(before)
    torch.testing.assert_close(after[f"{MODULE}.weight"], theirs, rtol=0, atol=1e-6)


@torch.no_grad()
def test_biases_and_norms(base: Any, saved: Saved, tmp_path: Path) -> None:
    """PEFT's `lora_bias` is scaled as the product is; differences of norms and biases are added."""
    out = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
    norm = "down_blocks.0.resnets.0.norm1"
    tensors = {f"unet.{out}.lora_A.weight": rnd(2, W), f"unet.{out}.lora_B.weight": rnd(W, 2)}
    tensors |= {f"unet.{out}.lora_B.bias": rnd(W), f"unet.{out}.alpha": torch.tensor(1.0)}
    kohya = "lora_unet_" + norm.replace(".", "_")
    tensors |= {f"{kohya}.w_norm": rnd(W), f"{kohya}.b_norm": rnd(W) + 1}
    after = merged(saved, tmp_path, tensors, 0.5).unet.state_dict()
    changes = {
        f"{out}.weight": rnd(W, 2) @ rnd(2, W) / 2,
        f"{out}.bias": rnd(W) / 2,
        f"{norm}.weight": rnd(W),
        f"{norm}.bias": rnd(W) + 1,
    }
    for name, change in changes.items():
        torch.testing.assert_close(after[name], base[name] + 0.5 * change, rtol=0, atol=1e-6)


def test_a_bundled_word_and_a_folder_of_diffusers(base: Any, saved: Saved, tmp_path: Path) -> None:
    words = {"bundle_emb.mychar.string_to_param.*": rnd(2, 32)}
    save_file({**PLAIN, **words}, tmp_path / "pytorch_lora_weights.safetensors")
    checkpoint = read_folder(saved("sd15")[1])
    assert merge_lora(checkpoint, tmp_path) == ["mychar"]
    assert len(checkpoint.tokenizer.encode("MyChar")) == 2
    torch.testing.assert_close(checkpoint.text_encoder.tower.token_embedding.weight[-2:], rnd(2, 32))
    assert not torch.equal(checkpoint.unet.state_dict()[f"{MODULE}.weight"], base[f"{MODULE}.weight"])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({f"{KOHYA}.lora_down.weight": rnd(2, W)}, "has only a part of the factors of .*'up' is missing"),
        ({f"{KOHYA}.diff": rnd(W, W + 1)}, "as 16 x 17, and the model has it as 16 x 16"),
        ({f"{KOHYA}.oft_blocks": rnd(2, 2)}, "it is OFT, which is not supported"),
        ({f"{KOHYA}.lokr_w1": rnd(4, 4)}, "has only a part of the factors"),
        ({f"{KOHYA}.diff": rnd(W, W), f"{KOHYA}.diff_b": rnd(W)}, r"'s bias \(16 numbers\), and the model has none there"),
    ],
)
def test_what_does_not_fit_is_refused(tensors: Any, message: str, saved: Saved, tmp_path: Path) -> None:
    with pytest.raises(PriorError, match=message):
        merged(saved, tmp_path, tensors)


def test_a_folder_of_several_files_is_asked_about(tmp_path: Path) -> None:
    from diffusion.checkpoints.lora import lora_file

    for name in ("a", "b"):
        save_file({"x": torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(PriorError, match="holds 2 files that may be a LoRA; give the file itself"):
        lora_file(tmp_path)
