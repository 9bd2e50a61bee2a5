"""A network from a file of its own beside a folder's other parts, in each family's layouts: plain, GGUF, scaled fp8."""

import functools
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from diffusion.checkpoints.defaults import defaults_of
from diffusion.checkpoints.errors import PriorError
from diffusion.checkpoints.footprint import footprint
from diffusion.checkpoints.source import Source
from diffusion.checkpoints.transformer_keys import original_flux2, original_transformer
from diffusion.checkpoints.unet_keys import original_unet
from diffusion.checkpoints.z_image_keys import original_z_image
from diffusion.networks.flux2 import Flux2Transformer
from diffusion.networks.joint_transformer import JointTransformer
from diffusion.networks.unet import UNet2DCondition
from diffusion.networks.z_image import ZImageTransformer
from diffusion.prior import Prior
from tests.diffusion.checkpoints.published import random_klein, random_pipeline, random_stable_diffusion_3, random_z_image

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning"
)
FAMILIES = {
    "sd15": "",
    "sdxl": "model.diffusion_model.",
    "sd3": "diffusion_model.",
    "z_image": "",
    "klein": "model.diffusion_model.",
}
"""With the prefix that a file of its network has, one of those that are in use."""
CASES = [pytest.param(family, marks=[pytest.mark.slow] if family in ("sd15", "sd3") else []) for family in FAMILIES]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @functools.cache
    def make(family: str) -> Path:
        folder = tmp_path_factory.mktemp(family)
        if family == "sd3":
            random_stable_diffusion_3(folder, with_t5=False, is_35=True)
        elif family == "z_image":
            random_z_image(folder)
        elif family == "klein":
            random_klein(folder)
        else:
            random_pipeline(family, folder)
        return folder

    return make


def original(prior: Prior) -> dict[str, Tensor]:
    """The network under the names of single files."""
    own, network = prior.unet.state_dict(), prior.unet
    if isinstance(network, UNet2DCondition):
        layout = original_unet(network.config, own)
    else:
        layouts = {
            JointTransformer: original_transformer,
            ZImageTransformer: original_z_image,
            Flux2Transformer: original_flux2,
        }
        layout = layouts[type(network)](own)
    return {name: tensor.contiguous() for name, tensor in layout.to_published(own).items()}


def write_gguf(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """As city96's converter does it: matrices quantised, their shape noted where no block divides a row, the rest float32."""
    writer = gguf.GGUFWriter(path, "sdxl")
    kind = gguf.GGMLQuantizationType.Q8_0
    for name, tensor in tensors.items():
        array = tensor.float().numpy()
        if tensor.ndim == 1 or tensor.numel() % 32:
            writer.add_tensor(name, array)
            continue
        if tensor.shape[-1] % 32:
            writer.add_array(f"comfy.gguf.orig_shape.{name}", list(tensor.shape))
            array = array.reshape(-1, 32)
        writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def dequantised(tensor: Tensor) -> Tensor:
    if tensor.ndim == 1 or tensor.numel() % 32:
        return tensor
    array = tensor.float().numpy()
    array = array.reshape(-1, 32) if tensor.shape[-1] % 32 else array
    kind = gguf.GGMLQuantizationType.Q8_0
    return torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(array, kind), kind)).reshape(tensor.shape)


@pytest.mark.parametrize("family", CASES)
def test_a_network_is_read_from_its_file_beside_a_folder_without_one(
    family: str, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """In the single file's layout and in the folder's, every tensor to the bit."""
    whole = Prior.load(folder_of(family))
    expected = whole.unet.state_dict()
    part = "unet" if family.startswith("sd") and family != "sd3" else "transformer"
    (own,) = (folder_of(family) / part).glob("*.safetensors")
    folder = tmp_path / "folder"
    shutil.copytree(folder_of(family), folder)
    (folder / part / own.name).unlink()
    with pytest.raises(PriorError, match=rf"the prior lacks {own.name}"):
        Prior.load(folder)
    unread = {"norm_final.weight": torch.ones(48)} if family == "z_image" else {}
    file = tmp_path / "network.safetensors"
    save_file({f"{FAMILIES[family]}{name}": tensor for name, tensor in (original(whole) | unread).items()}, file)
    prior = Prior.load(f"{folder}?unet={file}")
    found = prior.unet.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    assert prior.weights_hash != whole.weights_hash
    counted = footprint(f"{folder}?unet={file}").weights - 4 * sum(tensor.numel() for tensor in unread.values())
    assert counted == footprint(str(folder_of(family))).weights
    found = Prior.load(f"{folder}?unet={own}").unet.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert defaults_of(Source.parse(f"{folder}?unet={file}")).values == defaults_of(Source.parse(str(folder))).values


@pytest.mark.parametrize("family", CASES)
def test_quantised_networks_are_dequantised_to_the_bit(family: str, folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    whole = Prior.load(folder_of(family))
    tensors = original(whole)
    write_gguf(tmp_path / "network.gguf", tensors)
    found = original(Prior.load(f"{folder_of(family)}?unet={tmp_path}/network.gguf"))
    assert found.keys() == tensors.keys() and all(torch.equal(found[name], dequantised(tensors[name])) for name in tensors)
    assert any(not torch.equal(found[name], tensors[name]) for name in tensors)
    half = original(Prior.load(f"{folder_of(family)}?unet={tmp_path}/network.gguf&dtype=bfloat16"))
    assert all(torch.equal(half[name], found[name].bfloat16()) for name in tensors)
    # ComfyUI's scaled fp8: a scale a tensor beside each matrix.
    scaled: dict[str, Tensor] = {"scaled_fp8": torch.empty(0, dtype=torch.float8_e4m3fn)}
    expected = {}
    for name, tensor in tensors.items():
        scaled[name] = expected[name] = tensor
        if tensor.ndim == 2 and name.endswith(".weight"):
            scale = tensor.abs().max() / 448
            scaled[name] = (tensor / scale).to(torch.float8_e4m3fn)
            scaled[f"{name.removesuffix('weight')}scale_weight"] = scale
            expected[name] = scaled[name].float() * scale
    save_file(scaled, tmp_path / "network.safetensors")
    found = original(Prior.load(f"{folder_of(family)}?unet={tmp_path}/network.safetensors"))
    assert all(torch.equal(found[name], expected[name]) for name in tensors)


def test_a_file_of_another_network_is_named(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    z_image, sd15 = folder_of("z_image"), folder_of("sd15")
    file = tmp_path / "network.safetensors"
    tensors: dict[str, Any] = original(Prior.load(sd15))
    save_file(tensors, file)
    with pytest.raises(PriorError, match=r"network\.safetensors is not the network of .*: of \d+ tensors it has 0, and others"):
        Prior.load(f"{z_image}?unet={file}")
    with pytest.raises(PriorError, match=r"it looks like a UNet without its text towers, which is given beside the fol"):
        Prior.load(file)
    with pytest.raises(
        PriorError, match=r"'unet' was given beside the file .*; it replaces a folder's network, so give a folder"
    ):
        Prior.load(f"{file}?unet={file}")
    with pytest.raises(PriorError, match=r"'unet' was given beside .*, which takes cameras and has its network in two parts"):
        Prior.load(f"toybox?unet={file}")
    with pytest.raises(PriorError, match=r"the prior '.*nowhere\.gguf' is neither"):
        Prior.load(f"{sd15}?unet={tmp_path}/nowhere.gguf")
    tensors["out.2.weight"] = torch.zeros(4, 16, 1, 1)
    del tensors["out.2.bias"]
    save_file(tensors, file)
    with pytest.raises(PriorError, match=r"do not fit the model: missing out\.2\.bias \(4,\); out\.2\.weight is \(4, 16, 1,"):
        Prior.load(f"{sd15}?unet={file}")
