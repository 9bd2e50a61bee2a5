"""LoRAs of requests, against the same ones merged into the weights; what they share, how long they stay, what is refused."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from diffusion.adapter_cache import LEAST_BYTES, AdapterCache, adapter_bytes
from diffusion.checkpoints.adapted import adapted
from diffusion.checkpoints.errors import PriorError
from diffusion.checkpoints.footprint import footprint
from diffusion.checkpoints.lora_files import Lora, lora_hash
from diffusion.prior import Prior
from tests.fakes import LORA_RANK as RANK
from tests.fakes import lora_tensors, save_tiny_prior

ATTENTION = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1"
TEXT = "text_encoder.text_model.encoder.layers.1"
PLAIN = (
    f"{ATTENTION}.to_q",
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
    "unet.down_blocks.0.resnets.0.conv1",
    "unet.down_blocks.0.downsamplers.0.conv",
    "unet.up_blocks.0.attentions.0.proj_in",
    f"{TEXT}.self_attn.q_proj",
    f"{TEXT}.self_attn.v_proj",
    f"{TEXT}.self_attn.out_proj",
    f"{TEXT}.mlp.fc1",
)
PROMPTS = ["a red cup", "a blue ball"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_prior(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def prior(folder: Path) -> Prior:
    return Prior.load(folder)


def rnd(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.manual_seed(seed + sum(shape))) * 0.3


def saved(path: Path, tensors: dict[str, Tensor]) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


@torch.no_grad()
def outputs(prior: Prior) -> Tensor:
    x = torch.randn(2, *prior.latent_shape, generator=torch.manual_seed(3))
    return prior.predict(x, torch.tensor([100, 700]), prior.condition(PROMPTS).tokens)


def test_side_paths_give_what_the_merged_weights_give(folder: Path, prior: Prior, tmp_path: Path) -> None:
    path = saved(tmp_path / "ink.safetensors", lora_tensors(prior, *PLAIN))
    before = outputs(prior)
    for dtype, rtol in (("float32", 1e-5), ("bfloat16", 0.05)):
        base, merged = Prior.load(f"{folder}?dtype={dtype}"), Prior.load(f"{folder}?dtype={dtype}&lora={path}:0.7")
        expected = outputs(merged)
        given = outputs(base.adapted((Lora.named(f"{path}:0.7"),)))
        assert (expected - before).abs().max() > 0.05
        torch.testing.assert_close(given, expected, rtol=0, atol=rtol * float(expected.abs().max()))
    # In float64 nothing but the order of sums is left.
    for model in (prior, merged := Prior.load(f"{folder}?lora={path}:0.7")):
        model.unet.double(), model.text_encoder.double()
    x, t = rnd(2, *prior.latent_shape, seed=9).double(), torch.tensor([100, 700])
    one, other = (m.predict(x, t, m.condition(PROMPTS).tokens) for m in (prior.adapted((Lora.named(f"{path}:0.7"),)), merged))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6)  # the merged sum was rounded to float32 when it was loaded


def test_a_side_path_is_the_sum_to_the_last_digits_of_float64(prior: Prior, tmp_path: Path) -> None:
    """y = W x + s (alpha / r) B A x of a convolution with a stride, written out."""
    name = "unet.down_blocks.0.downsamplers.0.conv"
    tensors = lora_tensors(prior, name)
    path = saved(tmp_path / "x.safetensors", {**tensors, f"{name}.alpha": torch.tensor(8.0)})
    prior.unet.double()
    view, num_bytes = adapted(prior, (Lora.named(f"{path}:-0.5"),))
    layer, before = (p.unet.down_blocks[0].downsamplers[0].conv for p in (view, prior))
    x = rnd(1, before.in_channels, 8, 8, seed=4).double()
    down, up = (tensors[f"{name}.lora_{side}.weight"].double() for side in "AB")
    delta = -0.5 * 8.0 / RANK * torch.einsum("or,rikl->oikl", up[:, :, 0, 0], down)
    expected = torch.nn.functional.conv2d(x, before.weight + delta, before.bias, stride=2, padding=1)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)
    assert layer(x).shape[-1] == 4 and num_bytes == 8 * (down.numel() + up.numel())


def test_what_is_no_low_rank_sum_keeps_its_own_weight(folder: Path, prior: Prior, tmp_path: Path) -> None:
    """DoRA, LoHa, LoKr, a full difference, biases and norms, some of them on one layer with a plain LoRA of another file."""
    hada = {f"hada_w{i}_{side}": rnd(*((64, RANK) if side == "a" else (RANK, 64)), seed=i) for i in (1, 2) for side in "ab"}
    tensors = {
        **lora_tensors(prior, *PLAIN[:4]),
        f"{ATTENTION}.to_q.dora_scale": torch.rand(64, 1) + 0.5,
        **{f"lora_unet_{ATTENTION.removeprefix('unet.').replace('.', '_')}_to_k.{k}": v for k, v in hada.items()},
        f"lora_unet_{ATTENTION.removeprefix('unet.').replace('.', '_')}_to_v.lokr_w1": rnd(8, 8, seed=3),
        f"lora_unet_{ATTENTION.removeprefix('unet.').replace('.', '_')}_to_v.lokr_w2": rnd(8, 8, seed=4),
        "lora_unet_conv_in.diff": rnd(32, 8, 3, 3, seed=5),
        "lora_unet_conv_in.diff_b": rnd(32, seed=6),
        "lora_unet_conv_norm_out.w_norm": rnd(32, seed=7),
        "lora_unet_conv_norm_out.b_norm": rnd(32, seed=8),
        f"{TEXT}.self_attn.q_proj.lora_B.bias": rnd(32, seed=9),
        **lora_tensors(prior, f"{TEXT}.self_attn.q_proj"),
    }
    first = saved(tmp_path / "first.safetensors", tensors)
    second = saved(tmp_path / "second.safetensors", lora_tensors(prior, *PLAIN, seed=20))
    before = {name: tensor.clone() for name, tensor in prior.unet.state_dict().items()}
    view = prior.adapted((Lora.named(f"{first}:0.6"), Lora.named(str(second))))
    expected = outputs(Prior.load(f"{folder}?lora={first}:0.6&lora={second}"))
    torch.testing.assert_close(outputs(view), expected, rtol=0, atol=2e-5 * float(expected.abs().max()))
    assert all(torch.equal(tensor, before[name]) for name, tensor in prior.unet.state_dict().items())
    shared = {p.data_ptr() for p in prior.unet.parameters()}
    own = {name for name, p in view.unet.named_parameters() if p.data_ptr() not in shared}
    block = ATTENTION.removeprefix("unet.")
    assert own == {
        *(f"{block}.{name}.weight" for name in ("to_q", "to_k", "to_v")),
        *("conv_in.weight", "conv_in.bias", "conv_norm_out.weight", "conv_norm_out.bias"),
    }
    assert own <= {name for name, _ in view.unet.named_parameters()} and "in_proj_weight" not in own


def test_texts_are_kept_apart_and_the_base_stays_as_it_was(prior: Prior, tmp_path: Path) -> None:
    path = saved(tmp_path / "words.safetensors", lora_tensors(prior, *PLAIN[5:]))
    base = prior.condition(PROMPTS).tokens.clone()
    loras = (Lora.named(str(path)),)
    view = prior.adapted(loras)
    assert prior.has_condition(PROMPTS[0]) and not view.has_condition(PROMPTS[0])
    assert (view.condition(PROMPTS).tokens - base).abs().max() > 1e-3
    assert view.has_condition(PROMPTS[0]) and torch.equal(prior.condition(PROMPTS).tokens, base)
    assert view.unet is prior.unet and view.text_encoder is not prior.text_encoder  # only what it changes is there again
    # The same content elsewhere is the same LoRA; another scale is another one.
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(path.read_bytes())
    assert prior.adapted((Lora.named(str(copy)),)) is view
    assert prior.adapted((Lora.named(f"{copy}:0.5"),)) is not view


def test_adapters_are_kept_by_bytes_and_the_least_recently_used_goes(prior: Prior, tmp_path: Path) -> None:
    files = [saved(tmp_path / f"{i}.safetensors", lora_tensors(prior, *PLAIN[:2], seed=i)) for i in range(4)]
    a, b, c, d = ((Lora.named(str(file)),) for file in files)
    size = 4 * RANK * (64 + 64 + 32 + 64)
    prior.adapters.max_bytes = 2 * size + 7
    first = prior.adapted(a)
    assert prior.adapted(b) is not None and prior.adapters.num_bytes == 2 * size
    assert prior.adapted(a) is first  # used again: b is the oldest now
    prior.adapted(c)
    assert (a in prior.adapters, b in prior.adapters, c in prior.adapters) == (True, False, True)
    assert prior.adapters.num_bytes == 2 * size
    assert prior.adapted(d, in_use={a, c}) is None and prior.adapters.num_bytes == 2 * size  # it waits
    assert prior.adapted(d, in_use={c}) is not None and a not in prior.adapters
    prior.adapters.max_bytes = size - 1
    message = r"LoRAs take 0 MB beside the prior.* give them with the prior, '\?lora=FILE:SCALE'"
    for _ in range(2):  # also once its size is known
        with pytest.raises(PriorError, match=message):
            prior.adapted(b)


def test_the_bound_is_counted_before_the_prior_is_loaded(folder: Path) -> None:
    assert adapter_bytes(10**6) == LEAST_BYTES and adapter_bytes(8 * 10**9) == 2 * 10**9
    for place in (folder, f"{folder}?dtype=bfloat16"):
        assert footprint(str(place)).adapters == Prior.load(place).adapters.max_bytes


def test_a_cache_reads_what_has_no_room_once() -> None:
    made = []

    def make() -> tuple[str, int]:
        made.append(1)
        return "b", 6

    cache: AdapterCache[str] = AdapterCache(10)
    cache.get("a", lambda: ("a", 6))
    assert [cache.get("b", make, in_use={"a"}) for _ in range(3)] == [None] * 3 and len(made) == 1
    assert cache.get("b", make) == "b" and "a" not in cache and cache.num_bytes == 6


def test_a_lora_that_cannot_be_used_is_named(prior: Prior, tmp_path: Path) -> None:
    path = saved(tmp_path / "ink.safetensors", lora_tensors(prior, *PLAIN))
    lora = Lora.named(str(path))
    saved(path, lora_tensors(prior, *PLAIN, seed=5))
    with pytest.raises(PriorError, match=r"ink\.safetensors has changed since the job was begun \(sha256 .*, now .*\); put "):
        prior.adapted((lora,))
    saved(path, {f"{ATTENTION}.to_q.lora_A.weight": torch.ones(2, 1024), f"{ATTENTION}.to_q.lora_B.weight": torch.ones(64, 2)})
    with pytest.raises(PriorError, match=r"changes .*to_q as 64 x 1024, and the model has it as 64 x 64; use one that was tr"):
        prior.adapted((Lora.named(str(path)),))
    saved(path, {f"{ATTENTION}.to_x.lora_A.weight": torch.ones(2, 64), f"{ATTENTION}.to_x.lora_B.weight": torch.ones(64, 2)})
    with pytest.raises(PriorError, match=r"changes .*to_x, which .* does not have; use one that was trained for the same base"):
        prior.adapted((Lora.named(str(path)),))
    assert prior.adapters.num_bytes == 0


def test_the_words_that_a_lora_bundles_are_the_request_s(prior: Prior, folder: Path, tmp_path: Path) -> None:
    vectors = torch.linspace(-0.5, 0.5, 2 * 32).reshape(2, 32)
    tensors = {**lora_tensors(prior, *PLAIN), "bundle_emb.ink.string_to_param.*": vectors}
    path = saved(tmp_path / "ink.safetensors", tensors)
    view, merged = prior.adapted((Lora.named(str(path)),)), Prior.load(f"{folder}?lora={path}")
    expected = merged.encode_text(["a table, ink"])[0]
    torch.testing.assert_close(view.encode_text(["a table, ink"])[0], expected, rtol=0, atol=2e-6)
    assert not prior.tokenizer.knows("ink") and view.tokenizer.encode("ink") == merged.tokenizer.encode("ink")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nowhere.safetensors:0.5", r"there is no LoRA .*nowhere\.safetensors; give a file as FILE or FILE:SCALE"),
        ("ink.safetensors:0,5", r"the scale of the LoRA ink\.safetensors is '0,5'; write it with a point, 0\.5"),
        ("ink.safetensors:nan", r"the scale of the LoRA .*ink\.safetensors is nan; expected -100 to 100"),
        ("ink.safetensors:1e9", r"the scale of the LoRA .*ink\.safetensors is 1e\+09; expected -100 to 100"),
        ("several", r"the folder .*several holds 0 files that may be a LoRA; give the file itself"),
    ],
)
def test_a_wrong_name_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "ink.safetensors").write_bytes(b"x")
    (tmp_path / "several").mkdir()
    with pytest.raises(PriorError, match=message):
        Lora.named(text, tmp_path)


def test_the_hash_of_a_folder_has_its_configuration_in_it(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    # Of a file alone it is what sha256sum prints.
    assert lora_hash(tmp_path) == hashlib.sha256(b"weights").hexdigest()
    before = lora_hash(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert lora_hash(tmp_path) not in (before, "") and Lora.named(str(tmp_path)).sha256 == lora_hash(tmp_path)
