"""GGUF against the package gguf, which writes the files and dequantises their blocks; scaled fp8 against its own definition."""

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from safetensors.torch import save_file

from diffusion.checkpoints.errors import PriorError
from diffusion.checkpoints.gguf import KINDS, read_entries
from diffusion.checkpoints.weights import Weights

TYPES = [GGMLQuantizationType(number) for number in KINDS]


def blocks(kind: GGMLQuantizationType, num: int) -> np.ndarray:
    """Random bytes whose numbers in half precision are finite, as every block may hold."""
    values, num_bytes = GGML_QUANT_SIZES[kind]
    data = np.random.default_rng(int(kind)).integers(0, 256, (num, num_bytes), dtype=np.uint8)
    places = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2)}
    for place in places.get(kind.name, (0,)) if values > 1 or kind.name == "F16" else ():
        data[:, place + 1] &= 0xBF  # the exponent's top bit
    if kind.name in ("F32", "BF16"):
        data[:, -1] &= 0xBF
    return data


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_every_kind_of_block_is_dequantised_as_by_gguf(kind: GGMLQuantizationType, tmp_path: Path) -> None:
    values, num_bytes = GGML_QUANT_SIZES[kind]
    assert (KINDS[int(kind)].name, KINDS[int(kind)].values, KINDS[int(kind)].num_bytes) == (kind.name, values, num_bytes)
    rows = blocks(kind, 6 * max(1, 256 // values)).reshape(6, -1)
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "sd1")
    writer.add_string("general.name", "größe")
    writer.add_array("some.numbers", [1, 2, 3])
    if kind == GGMLQuantizationType.F32:
        rows = rows.view(np.float32)
    elif kind == GGMLQuantizationType.F16:
        rows = rows.view(np.float16)
    writer.add_tensor("first", np.arange(5, dtype=np.float32))  # so that the second begins behind padding
    writer.add_tensor("second.weight", rows, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    expected = gguf.quants.dequantize(rows, kind)
    weights = Weights([path])
    assert set(weights) == {"first", "second.weight"}
    torch.testing.assert_close(weights["first"], torch.arange(5.0), rtol=0, atol=0)
    found = weights["second.weight"]
    assert found.dtype == torch.float32 and found.shape == expected.shape and np.isfinite(expected).all()
    np.testing.assert_array_equal(found.numpy(), expected)


def test_what_gguf_quantised_is_near_what_it_was(tmp_path: Path) -> None:
    """End to end: weights to a file by gguf's own quantisation, and back with no more error than its own."""
    weight = np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "sd1")
    for kind in (GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0, GGMLQuantizationType.BF16):
        writer.add_tensor(kind.name, gguf.quants.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = Weights([tmp_path / "x.gguf"])
    for name, most in (("Q8_0", 0.02), ("Q4_0", 0.35), ("BF16", 0.02)):
        assert 0 < np.abs(found[name].numpy() - weight).max() < most


def test_a_convolution_keeps_the_shape_that_its_writer_noted(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).normal(size=(4, 8, 3, 3)).astype(np.float32)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "sd1")
    writer.add_array("comfy.gguf.orig_shape.conv.weight", [4, 8, 3, 3])
    flat = gguf.quants.quantize(weight.reshape(-1, 32), GGMLQuantizationType.Q8_0)
    writer.add_tensor("conv.weight", flat, raw_dtype=GGMLQuantizationType.Q8_0)
    writer.add_tensor("plain.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = Weights([tmp_path / "x.gguf"])
    torch.testing.assert_close(found["plain.weight"], torch.from_numpy(weight), rtol=0, atol=0)
    torch.testing.assert_close(found["conv.weight"], torch.from_numpy(weight), rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"\(0 bytes\) is truncated or not a GGUF file"),
        (b"GGML" + bytes(20), r"it begins with b'GGML'"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), r"is a GGUF file of version 1; expected 2 or 3"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 0), r"is truncated or not a GGUF file"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 60), r"a string of \d+ bytes"),
        (
            b"GGUF" + struct.pack("<IQQQ1sIQIQ", 3, 1, 0, 1, b"w", 1, 32, 16, 0),
            r"holds w in blocks of ggml's type 16; exp",
        ),
        (b"GGUF" + struct.pack("<IQQQ1sIQIQ", 3, 1, 0, 1, b"w", 1, 32, 0, 0), r"w ends behind the file's end"),
    ],
)
def test_a_damaged_file_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(PriorError, match=message):
        read_entries(tmp_path / "x.gguf")


@pytest.mark.parametrize("ending", ["scale_weight", "weight_scale"])
def test_scaled_fp8_is_the_number_times_its_scale(ending: str, tmp_path: Path) -> None:
    """ComfyUI's `scaled_fp8` and its successor: W = scale * fp8, a scale for the tensor or for each of its rows."""
    weight = torch.randn(6, 8, generator=torch.manual_seed(0))
    scales = {"a": weight.abs().max() / 448, "b": weight.abs().amax(dim=1, keepdim=True) / 448}
    tensors = {"scaled_fp8": torch.empty(2, dtype=torch.float8_e4m3fn), "c.weight": weight.to(torch.float8_e5m2)}
    for name, scale in scales.items():
        tensors[f"{name}.weight"] = (weight / scale).to(torch.float8_e4m3fn)
        tensors[f"{name}.{ending}"] = scale
        tensors[f"{name}.{ending.replace('weight', 'input')}"] = torch.ones(())
    save_file(tensors, tmp_path / "x.safetensors")
    found = Weights([tmp_path / "x.safetensors"])
    assert set(found) == {"a.weight", "b.weight", "c.weight"}
    for name, scale in scales.items():
        assert torch.equal(found[f"{name}.weight"], tensors[f"{name}.weight"].float() * scale)
        assert (found[f"{name}.weight"] - weight).abs().max() < 0.04 * weight.abs().max()  # three bits of mantissa
    assert torch.equal(found["c.weight"].float(), tensors["c.weight"].float())
