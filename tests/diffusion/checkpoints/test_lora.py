"""LoRA: both layouts, against PEFT through diffusers, which keeps the factors apart where we merge them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from diffusion.checkpoints import lora
from diffusion.checkpoints.errors import PriorError
from diffusion.checkpoints.folder import read_folder
from diffusion.checkpoints.lora import merge_lora
from diffusion.checkpoints.lora_files import Lora
from diffusion.checkpoints.unet_keys import original_modules
from diffusion.prior import Prior
from tests.diffusion.checkpoints.published import Saved

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")

RANK = 3
UNET_MODULES = {
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k": "linear",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0": "linear",
    "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj": "linear",
    "up_blocks.0.resnets.0.conv1": "conv",
    "mid_block.attentions.0.proj_in": "linear",
}
TEXT_MODULES = ("text_model.encoder.layers.0.self_attn.v_proj", "text_model.encoder.layers.1.mlp.fc1")
PROMPT = ["a lighthouse in a storm"]


def modules(checkpoint: Any) -> dict[str, torch.Tensor]:
    """The weights that a LoRA may change, norms aside."""
    found = {name: module.weight for name, module in lora.modules(checkpoint).items()}
    return {name: weight for name, weight in found.items() if weight is not None and weight.ndim > 1}


def factors(pipeline: Any, component: str, names: list[str]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Random factors for modules of a component; text modules are looked up without the prefix that they have lost."""
    generator = torch.Generator().manual_seed(7)
    made = {}
    for name in names:
        parent = getattr(pipeline, component)
        try:
            weight = parent.get_submodule(name).weight
        except AttributeError:
            weight = parent.get_submodule(name.removeprefix("text_model.")).weight
        window = weight.shape[2:]
        down = torch.randn(RANK, weight.shape[1], *window, generator=generator) * 0.2
        up = torch.randn(weight.shape[0], RANK, *(1 for _ in window), generator=generator) * 0.2
        made[name] = (down, up)
    return made


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def case(request: pytest.FixtureRequest, saved: Saved) -> tuple[str, Any, Path, dict[str, Any]]:
    """The model, diffusers' pipeline, its folder, and factors by component."""
    pipeline, folder = saved(request.param)
    made = {"unet": factors(pipeline, "unet", list(UNET_MODULES))}
    for component in ("text_encoder", *(["text_encoder_2"] if request.param == "sdxl" else [])):
        made[component] = factors(pipeline, component, list(TEXT_MODULES))
    return request.param, pipeline, folder, made


def kohya(model: str, made: dict[str, Any], prior: Prior, *, alpha: float) -> dict[str, torch.Tensor]:
    """The file that sd-scripts writes: for SDXL with the single files' module names."""
    prefixes = {"unet": "lora_unet", "text_encoder": "lora_te1" if model == "sdxl" else "lora_te", "text_encoder_2": "lora_te2"}
    table = original_modules(prior.unet.config)
    tensors = {}
    for component, pairs in made.items():
        for name, (down, up) in pairs.items():
            if model == "sdxl" and component == "unet":
                ours = max((head for head in table if f"{name}.".startswith(f"{head}.")), key=len)
                name = table[ours] + name[len(ours) :]
            flat = f"{prefixes[component]}_{name.replace('.', '_')}"
            tensors |= {f"{flat}.lora_down.weight": down, f"{flat}.lora_up.weight": up, f"{flat}.alpha": torch.tensor(alpha)}
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def dotted(made: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The file that diffusers writes today."""
    return {
        f"{component}.{name}.lora_{side}.weight": tensor.contiguous()
        for component, pairs in made.items()
        for name, factors in pairs.items()
        for side, tensor in zip("AB", factors, strict=True)
    }


@torch.no_grad()
def outputs(prior: Prior) -> torch.Tensor:
    """One network call under one prompt."""
    tokens = prior.condition(PROMPT).tokens
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    return prior.predict(x, torch.tensor([400]), tokens)


@torch.no_grad()
def their_outputs(model: str, pipeline: Any, prior: Prior) -> torch.Tensor:
    """The same from diffusers' networks."""
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    encoded = pipeline.encode_prompt(PROMPT, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
    conditions = None
    if model == "sdxl":
        sizes = torch.tensor([[64.0, 64, 0, 0, 64, 64]])
        conditions = {"text_embeds": encoded[2], "time_ids": sizes}
    return pipeline.unet(x, torch.tensor([400]), encoded[0], added_cond_kwargs=conditions).sample


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
def test_a_lora_changes_what_it_changes_in_diffusers(
    case: tuple[str, Any, Path, dict[str, Any]], layout: str, tmp_path: Path
) -> None:
    model, pipeline, folder, made = case
    before = Prior.load(folder)
    path = tmp_path / "ink.safetensors"
    if layout == "kohya":
        # diffusers with transformers 5 loses the attention of kohya's text modules and says so on stderr.
        made = {part: {name: f for name, f in pairs.items() if "self_attn" not in name} for part, pairs in made.items()}
        save_file(kohya(model, made, before, alpha=1.5), path)
    else:
        save_file(dotted(made), path)
    pipeline.load_lora_weights(str(tmp_path), weight_name=path.name, adapter_name="ink")
    pipeline.set_adapters(["ink"], adapter_weights=[0.8])
    try:
        theirs = their_outputs(model, pipeline, before)
    finally:
        pipeline.unload_lora_weights()
    prior = Prior.load(f"{folder}?lora={path}:0.8")
    ours = outputs(prior)
    assert (ours - outputs(before)).abs().max() > 1e-2
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)
    assert prior.weights_hash not in (before.weights_hash, Prior.load(f"{folder}?lora={path}:0.7").weights_hash)
    of_request = before.adapted((Lora.named(f"{path}:0.8"),))
    torch.testing.assert_close(outputs(of_request), theirs, rtol=0, atol=2e-5)


def test_both_layouts_give_the_same_weights(case: tuple[str, Any, Path, dict[str, Any]], tmp_path: Path) -> None:
    model, _, folder, made = case
    prior = Prior.load(folder)
    save_file(kohya(model, made, prior, alpha=RANK), tmp_path / "kohya.safetensors")
    save_file(dotted(made), tmp_path / "dotted.safetensors")
    ours, theirs = read_folder(folder), read_folder(folder)
    merge_lora(ours, tmp_path / "kohya.safetensors", 0.3)
    merge_lora(theirs, tmp_path / "dotted.safetensors", 0.3)
    first, second, before = modules(ours), modules(theirs), modules(prior)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    changed = {tensor.data_ptr() for name, tensor in first.items() if not torch.equal(tensor, before[name])}
    assert len(changed) == sum(len(pairs) for pairs in made.values())


def test_every_spelling_of_a_module_changes_the_same_weight(saved: Saved, tmp_path: Path) -> None:
    pipeline, folder = saved("sd15")
    unet, text = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", "text_model.encoder.layers.0.self_attn.q_proj"
    down, up = factors(pipeline, "unet", [unet])[unet]
    low, high = factors(pipeline, "text_encoder", [text])[text]
    flat, old = unet.replace(".", "_"), unet.replace(".to_q", ".processor.to_q_lora")
    files = {
        "kohya": {f"lora_unet_{flat}.lora_down.weight": down, f"lora_unet_{flat}.lora_up.weight": up},
        "processors": {f"unet.{old}.down.weight": down, f"unet.{old}.up.weight": up},
        "dots": {f"unet.{unet}.lora.down.weight": down, f"unet.{unet}.lora.up.weight": up},
        "adapter": {f"base_model.model.{unet}.lora_A.weight": down, f"base_model.model.{unet}.lora_B.weight": up},
    }
    text_old = text.replace("q_proj", "to_q_lora")
    files["old text"] = {f"text_encoder.{text_old}.down.weight": low, f"text_encoder.{text_old}.up.weight": high}
    text_linear = f"text_encoder.{text}.lora_linear_layer"
    files["linear layer"] = {f"{text_linear}.down.weight": low, f"{text_linear}.up.weight": high}
    for name, tensors in files.items():
        checkpoint = read_folder(folder)
        path = tmp_path / f"{name}.safetensors"
        save_file(tensors, path)
        before = {key: tensor.clone() for key, tensor in modules(checkpoint).items()}
        merge_lora(checkpoint, path, 0.5)
        in_text = "text_encoder." in next(iter(tensors))
        target, change = (f"text_encoder.{text}", high @ low) if in_text else (f"unet.{unet}", up @ down)
        after = modules(checkpoint)
        torch.testing.assert_close(after[target] - before[target], 0.5 * change, rtol=0, atol=1e-6)
        changed = {key for key, tensor in after.items() if not torch.equal(tensor, before[key])}
        assert target in changed and len({after[key].data_ptr() for key in changed}) == 1


def test_peft_settings_scale_the_factors(saved: Saved, tmp_path: Path) -> None:
    pipeline, folder = saved("sd15")
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    down, up = factors(pipeline, "unet", [name])[name]
    tensors = {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    save_file({f"base_model.model.{key}": tensor for key, tensor in tensors.items()}, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps({"lora_alpha": 6, "r": RANK, "use_rslora": True}))
    metadata = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 9, "unet.r": RANK, "unet.alpha_pattern": {name: 12}})}
    file = tmp_path / "with_metadata.safetensors"
    save_file({f"unet.{key}": tensor for key, tensor in tensors.items()}, file, metadata=metadata)
    for path, scale in ((adapter, 6 / RANK**0.5), (file, 12 / RANK)):
        checkpoint = read_folder(folder)
        before = modules(checkpoint)[f"unet.{name}"].clone()
        merge_lora(checkpoint, path)
        change = modules(checkpoint)[f"unet.{name}"] - before
        torch.testing.assert_close(change, scale * up @ down, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("pattern", "alpha"),
    [
        ({"attn1.to_q": 12}, 12),
        ({"to_q": 12}, 12),
        ({r"down_blocks\.0\..*": 5, r"mid_block\..*\.to_[qk]": 12}, 12),
        ({"1.to_q": 12}, 9),
        ({"attn1": 12}, 9),
    ],
)
def test_peft_patterns_are_of_the_ends_of_names(pattern: dict[str, int], alpha: int, saved: Saved, tmp_path: Path) -> None:
    pipeline, folder = saved("sd15")
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    down, up = factors(pipeline, "unet", [name])[name]
    metadata = {"unet.lora_alpha": 9, "unet.r": RANK, "unet.alpha_pattern": pattern}
    path = tmp_path / "pattern.safetensors"
    tensors = {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
    save_file(tensors, path, metadata={"lora_adapter_metadata": json.dumps(metadata)})
    checkpoint = read_folder(folder)
    before = modules(checkpoint)[f"unet.{name}"].clone()
    merge_lora(checkpoint, path)
    change = modules(checkpoint)[f"unet.{name}"] - before
    torch.testing.assert_close(change, alpha / RANK * up @ down, rtol=0, atol=1e-6)


def test_what_does_not_fit_is_refused_and_changes_nothing(saved: Saved, tmp_path: Path) -> None:
    _, folder = saved("sd15")
    checkpoint = read_folder(folder)
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    good = {f"{name.replace('to_k', 'to_q')}.lora_A.weight": torch.ones(2, 32)}
    good |= {f"{name.replace('to_k', 'to_q')}.lora_B.weight": torch.ones(32, 2)}
    bad = {
        "changes .*attn2.to_k as 32 x 1024, and the model has it as 32 x 32; use one that was trained": {
            f"{name}.lora_A.weight": torch.ones(2, 1024),
            f"{name}.lora_B.weight": torch.ones(32, 2),
        },
        "changes text_encoder_2.text_model.x, which .* does not have": {
            "text_encoder_2.text_model.x.lora_A.weight": torch.ones(2, 32),
            "text_encoder_2.text_model.x.lora_B.weight": torch.ones(32, 2),
        },
        "has only a part of the factors of .*attn2.to_k: 'up' is missing": {f"{name}.lora_A.weight": torch.ones(2, 32)},
        "holds lora_unet_x.oft_diag: it is OFT, which is not supported": {"lora_unet_x.oft_diag": torch.ones(2)},
        "holds conv_in.weight: it belongs to no LoRA": {"conv_in.weight": torch.ones(2)},
    }
    before = {key: tensor.clone() for key, tensor in modules(checkpoint).items()}
    for number, (message, tensors) in enumerate(bad.items()):
        path = tmp_path / f"{number}.safetensors"
        save_file({**good, **tensors}, path)
        with pytest.raises(PriorError, match=message):
            merge_lora(checkpoint, path)
    save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(PriorError, match="holds no LoRA"):
        merge_lora(checkpoint, tmp_path / "empty.safetensors")
    with pytest.raises(PriorError, match=r"there is no weight file .*gone.safetensors; check the path"):
        merge_lora(checkpoint, tmp_path / "gone.safetensors")
    assert all(torch.equal(tensor, before[key]) for key, tensor in modules(checkpoint).items())
