"""Single files: the same prior as from the folder, both ways; the prediction type is read or asked for."""

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffusion.checkpoints.architectures import SD1, SD2, SDXL, Architecture, multi_view
from diffusion.checkpoints.errors import PriorError
from diffusion.checkpoints.folder import read_folder
from diffusion.checkpoints.single_file import (
    CAMERA_MARK,
    UNET,
    family,
    known_prediction_type,
    original_tensors,
    read_single_file,
    schedule_of,
    write_single_file,
)
from diffusion.checkpoints.weights import Weights
from diffusion.networks.unet import UNet2DCondition
from diffusion.prior import Prior
from diffusion.text.clip import TextConfig
from tests.diffusion.checkpoints.published import Saved, reduced

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")


def small(model: str) -> Architecture:
    """The family's architecture at the reduced widths."""
    from diffusion.networks.autoencoder_kl import AutoencoderKLConfig
    from diffusion.networks.unet import UNetConfig

    full, configs = {"sd15": SD1, "sd2-v": SD2, "sdxl": SDXL}[model], reduced(model)
    text = [TextConfig.from_published(configs[part]) for part in ("text_encoder", "text_encoder_2") if part in configs]
    return dataclasses.replace(
        full,
        unet=UNetConfig.from_dict(configs["unet"]),
        autoencoder=AutoencoderKLConfig.from_dict(configs["vae"]),
        towers=tuple(dataclasses.replace(tower, config=config) for tower, config in zip(full.towers, text, strict=True)),
        image_sizes=dict.fromkeys(full.image_sizes, 64),
    )


@pytest.fixture(scope="module", params=["sd15", "sd2-v", "sdxl"])
def written(
    request: pytest.FixtureRequest, saved: Saved, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Architecture, Prior, Path]:
    """The architecture, the prior read from a folder, and the single file with the same weights, as float32."""
    architecture = small(request.param)
    checkpoint = read_folder(saved(request.param)[1])
    path = tmp_path_factory.mktemp("single") / "model.safetensors"
    tensors = original_tensors(checkpoint, architecture)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return architecture, Prior.of(checkpoint), path


def test_the_file_gives_the_prior_of_the_folder(written: tuple[Architecture, Prior, Path]) -> None:
    architecture, folder, path = written
    kind = folder.schedule.prediction_type
    prior = Prior.of(read_single_file(path, architecture=architecture, prediction_type=kind))
    assert (prior.name, prior.image_size, prior.schedule) == ("model", 64, folder.schedule)
    assert prior.zeros_for_empty_negative == folder.zeros_for_empty_negative
    for ours, theirs in (
        (prior.unet, folder.unet),
        (prior.autoencoder, folder.autoencoder),
        *((a, b) for (_, a, _), (_, b, _) in zip(prior.towers, folder.towers, strict=True)),
    ):
        given, expected = ours.state_dict(), theirs.state_dict()
        assert given.keys() == expected.keys()
        assert all(torch.equal(given[name], tensor) for name, tensor in expected.items())
    ours, theirs = prior.condition(["a lighthouse"]), folder.condition(["a lighthouse"])
    torch.testing.assert_close(ours.tokens, theirs.tokens, rtol=0, atol=0)
    torch.testing.assert_close(ours.negative, theirs.negative, rtol=0, atol=0)


def test_diffusers_reads_the_unet_of_the_file_we_write(written: tuple[Architecture, Prior, Path], tmp_path: Path) -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    architecture, folder, _ = written
    path = tmp_path / "ours.safetensors"
    write_single_file(folder, architecture, path)
    config = {"class_embed_type": None, "addition_embed_type": None, **dataclasses.asdict(folder.unet.config)}
    theirs = convert_ldm_unet_checkpoint(load_file(path), config)
    assert all(torch.equal(theirs[name], tensor.half()) for name, tensor in folder.unet.state_dict().items())
    assert read_single_file(path, architecture=architecture).schedule == folder.schedule


def test_what_training_leaves_in_a_file_is_passed_over(written: tuple[Architecture, Prior, Path], tmp_path: Path) -> None:
    architecture, folder, path = written
    kind = folder.schedule.prediction_type
    extra = {"betas": torch.zeros(3), "model_ema.decay": torch.zeros(()), "posterior_variance": torch.zeros(3)}
    if architecture.name == "Stable Diffusion 2.x":
        extra["cond_stage_model.model.transformer.resblocks.23.ln_1.bias"] = torch.zeros(3)
        extra["cond_stage_model.model.logit_scale"] = torch.zeros(())
    else:
        extra[f"{architecture.towers[0].prefix}text_model.embeddings.position_ids"] = torch.arange(77)[None]
    copy = tmp_path / "model.safetensors"
    save_file({**load_file(path), **extra}, copy)
    read_single_file(copy, architecture=architecture, prediction_type=kind)
    save_file({**load_file(path), "control_model.input.weight": torch.zeros(3)}, copy)
    with pytest.raises(PriorError, match=r"1 tensors that a Stable Diffusion .* such as control_model.input.weight"):
        read_single_file(copy, architecture=architecture, prediction_type=kind)


def test_misfits_are_reported_by_the_files_own_names(written: tuple[Architecture, Prior, Path], tmp_path: Path) -> None:
    architecture, folder, path = written
    tensors: dict[str, Tensor] = load_file(path)
    del tensors[f"{UNET}middle_block.0.in_layers.2.bias"]
    tensors[f"{UNET}out.2.bias"] = torch.zeros(5)
    tensors[f"{UNET}out.7.bias"] = torch.zeros(5)
    copy = tmp_path / "model.safetensors"
    save_file(tensors, copy)
    expected = (
        r"missing model.diffusion_model.middle_block.0.in_layers.2.bias \(32,\); unexpected model.diffusion_model.out.7.bias; "
        r"model.diffusion_model.out.2.bias is \(5,\), expected \(4,\); take all files from the same model"
    )
    with pytest.raises(PriorError, match=expected):
        read_single_file(copy, architecture=architecture, prediction_type=folder.schedule.prediction_type)


def test_old_pickles_and_averaged_weights(written: tuple[Architecture, Prior, Path], tmp_path: Path) -> None:
    architecture, folder, path = written
    kind = folder.schedule.prediction_type
    tensors: dict[str, Any] = load_file(path)
    averaged = {
        "model_ema." + name.removeprefix("model.").replace(".", ""): tensor + 1
        for name, tensor in tensors.items()
        if name.startswith(UNET)
    }
    file = tmp_path / "model.ckpt"
    torch.save({"state_dict": {**tensors, **averaged}, "global_step": 7}, file)
    last = read_single_file(file, architecture=architecture, prediction_type=kind)
    torch.testing.assert_close(last.unet.conv_in.bias, folder.unet.conv_in.bias, rtol=0, atol=0)
    average = read_single_file(file, architecture=architecture, prediction_type=kind, averaged=True)
    torch.testing.assert_close(average.unet.conv_in.bias, folder.unet.conv_in.bias + 1, rtol=0, atol=0)
    with pytest.raises(PriorError, match=r"holds no averaged copy of the UNet .*leave out 'averaged'"):
        read_single_file(path, architecture=architecture, prediction_type=kind, averaged=True)


def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path: Path) -> None:
    ran = tmp_path / "ran"

    class Payload:
        def __reduce__(self) -> Any:
            return Path.touch, (ran,)

    file = tmp_path / "model.ckpt"
    torch.save({"state_dict": {"a": Payload()}}, file)
    with pytest.raises(
        PriorError, match="is a pickle with more than tensors in it, and reading that could run code"
    ) as refused:
        Prior.load(file)
    assert "PyTorch 2.6" not in str(refused.value)
    file.write_bytes(pickle.dumps({"a": Payload()}))
    with pytest.raises(PriorError, match=r"model\.ckpt"):
        Prior.load(file)
    assert not ran.exists()


def test_a_truncated_or_missing_file_is_named(written: tuple[Architecture, Prior, Path], tmp_path: Path) -> None:
    content = written[2].read_bytes()
    short = tmp_path / "short.safetensors"
    short.write_bytes(content[: len(content) // 2])
    with pytest.raises(PriorError, match=rf"short.safetensors \({len(content) // 2} bytes\) is truncated or not a safetensors"):
        Prior.load(short)
    ckpt = tmp_path / "short.ckpt"
    torch.save({"a": torch.zeros(1000)}, ckpt)
    ckpt.write_bytes(ckpt.read_bytes()[:-800])
    with pytest.raises(PriorError, match=r"short.ckpt \(\d+ bytes\) is truncated or not a PyTorch file"):
        Prior.load(ckpt)
    text = tmp_path / "model.txt"
    text.write_text("hello")
    with pytest.raises(PriorError, match=r"model.txt is not a weight file by its name; expected one that ends in .safetensors"):
        Prior.load(text)
    with pytest.raises(PriorError, match="is neither 'toybox' nor a folder, a file or a name on the hub"):
        Prior.load(tmp_path / "gone.safetensors")


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["conditioner.embedders.0.model.ln_final.bias", f"{UNET}out.0.bias"], "an SDXL refiner"),
        (["joint_blocks.0.x"], "a Stable Diffusion 3's transformer without its text towers"),
        (["lora_unet_mid.alpha"], "a LoRA, which is given beside a model"),
        (["b", "a"], r"its first names are \['a', 'b'\]"),
    ],
)
def test_other_families_are_named(names: list[str], found: str) -> None:
    with pytest.raises(PriorError, match=f"x.safetensors is no single file of Stable Diffusion 1.x, .*{found}"):
        family(names, Path("x.safetensors"))


def test_families_follow_from_the_text_towers() -> None:
    for architecture in (SD1, SD2, SDXL):
        assert family([f"{tower.prefix}a" for tower in architecture.towers], Path("x")) is architecture


def one_tensor(path: Path, names: list[str], metadata: dict[str, str] | None = None) -> Weights:
    save_file({name: torch.zeros(1) for name in names}, path, metadata=metadata)
    return Weights([path])


def test_the_prediction_type_is_read_or_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    plain = one_tensor(path, ["a"])
    assert known_prediction_type(plain, path, SD1) == known_prediction_type(plain, path, SDXL) == "epsilon"
    with pytest.raises(PriorError, match=r"whether it predicts noise or v is not in the file; add '\?prediction_type=epsilon'"):
        known_prediction_type(plain, path, SD2)
    assert known_prediction_type(one_tensor(path, ["a", "v_pred"]), path, SDXL) == "v_prediction"
    stated = one_tensor(path, ["a"], {"modelspec.prediction_type": "v"})
    assert known_prediction_type(stated, path, SD2) == "v_prediction"
    other = one_tensor(path, ["a"], {"modelspec.prediction_type": "flow"})
    with pytest.raises(PriorError, match=r"says modelspec.prediction_type = 'flow'; expected one of epsilon"):
        known_prediction_type(other, path, SD2)
    plain = one_tensor(path, ["a"])
    path.with_suffix(".yaml").write_text('model:\n  params:\n    parameterization: "v"\n    linear_start: 0.00085\n')
    assert known_prediction_type(plain, path, SD2) == "v_prediction"
    path.with_suffix(".yaml").write_text("model:\n  params:\n    linear_start: 0.00085\n")
    assert known_prediction_type(plain, path, SD2) == "epsilon"


def test_a_mark_of_zero_signal_beside_predicted_noise_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    marked = one_tensor(path, ["a", "ztsnr"])
    assert schedule_of(marked, path, "v_prediction").rescale_betas_zero_snr
    assert not schedule_of(one_tensor(path, ["a"]), path, "epsilon").rescale_betas_zero_snr
    expected = r"x.safetensors has the mark 'ztsnr' .* epsilon, which cannot be; add '\?prediction_type=v_prediction'"
    with pytest.raises(PriorError, match=expected):
        schedule_of(marked, path, "epsilon")


def test_mvdreams_files_are_told_by_their_camera_embedding(saved: Saved, tmp_path: Path) -> None:
    """`sd-v2.1-base-4view`: Stable Diffusion 2's names and `camera_embed`, beside schedule tables that carry no weights."""
    assert family([f"{SD2.towers[0].prefix}a", CAMERA_MARK], Path("x")) == multi_view(SD2)
    assert multi_view(SD1).image_sizes == {"epsilon": 256}
    base = small("sd2-v")
    architecture = dataclasses.replace(multi_view(base), image_sizes={"epsilon": 64})
    checkpoint = read_folder(saved("sd2-v")[1])
    plain = checkpoint.unet.state_dict()
    checkpoint.unet = UNet2DCondition(architecture.unet).requires_grad_(False)
    checkpoint.unet.load_state_dict(plain, strict=False)
    tensors = original_tensors(checkpoint, architecture)
    assert f"{UNET}camera_embed.0.weight" in tensors and tensors[f"{UNET}camera_embed.0.weight"].shape[1] == 16
    path = tmp_path / "sd-v2.1-base-4view.pt"
    torch.save({"state_dict": {**tensors, "betas": torch.zeros(1000), "sqrt_recip_alphas_cumprod": torch.zeros(1000)}}, path)
    found = Prior.of(read_single_file(path, architecture=architecture))
    assert found.num_views == 4 and found.schedule.prediction_type == "epsilon"
    assert found.card.picture_suffix == ", 3d asset"
    for name, tensor in checkpoint.unet.state_dict().items():
        assert torch.equal(found.unet.state_dict()[name], tensor), name


def test_a_quantised_file_gives_what_its_blocks_say(written: tuple[Architecture, Prior, Path], tmp_path: Path) -> None:
    """GGUF as stable-diffusion.cpp converts a whole model, and fp8 with scales, against the numbers that were written."""
    import gguf

    architecture, folder, path = written
    kind = folder.schedule.prediction_type
    tensors = load_file(path)
    is_matrix = {name: tensor.ndim == 2 and tensor.shape[1] % 32 == 0 for name, tensor in tensors.items()}
    q8 = gguf.GGMLQuantizationType.Q8_0
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "sd")
    scaled: dict[str, torch.Tensor] = {}
    meant: dict[str, dict[str, torch.Tensor]] = {"model.gguf": {}, "fp8.safetensors": {}}
    for name, tensor in tensors.items():
        if not is_matrix[name]:
            writer.add_tensor(name, tensor.numpy())
            scaled[name] = meant["model.gguf"][name] = meant["fp8.safetensors"][name] = tensor
            continue
        blocks = gguf.quants.quantize(tensor.numpy(), q8)
        writer.add_tensor(name, blocks, raw_dtype=q8)
        meant["model.gguf"][name] = torch.from_numpy(gguf.quants.dequantize(blocks, q8))
        scale = tensor.abs().max().clamp_min(1e-6) / 448
        scaled[name] = (tensor / scale).to(torch.float8_e4m3fn)
        meant["fp8.safetensors"][name] = scaled[name].float() * scale
        if name.endswith(".weight"):
            scaled[f"{name.removesuffix('weight')}scale_weight"] = scale
        else:
            scaled[name] = meant["fp8.safetensors"][name]
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(scaled, tmp_path / "fp8.safetensors")
    assert sum(is_matrix.values()) > 20
    for name, expected in meant.items():
        read = read_single_file(tmp_path / name, architecture=architecture, prediction_type=kind)
        found = original_tensors(read, architecture)
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.items() if key in found)
        assert found.keys() == original_tensors(folder, architecture).keys()
