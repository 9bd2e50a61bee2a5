"""Any CLIP says how well pictures and a sentence fit: open_clip's own answer, and ours."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from diffusion.checkpoints.errors import PriorError
from diffusion.prior import TOYBOX
from diffusion.text.clip import load_clip
from diffusion.text.image_text import ImageTextModel
from diffusion.text.open_clip_import import ensure_open_clip_imports
from diffusion.text.tokenizer import Tokenizer

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
WAYS = {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28], "interpolation": "bicubic", "resize_mode": "squash"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny open_clip model of random weights as the hub holds such folders."""
    ensure_open_clip_imports()
    from open_clip import CLIP

    place = tmp_path_factory.mktemp("open_clip")
    torch.manual_seed(0)
    model = CLIP(**TINY)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, place / "open_clip_model.safetensors")
    (place / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": WAYS}))
    return place


@pytest.mark.parametrize("size", [32, 48])
def test_an_open_clip_folder_answers_as_open_clip_does(folder: Path, size: int) -> None:
    import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    pixels = torch.randint(0, 256, (3, size, size, 3), dtype=torch.uint8)
    prepared = torch.stack([preprocess(Image.fromarray(one.numpy())) for one in pixels])
    ids = open_clip.get_tokenizer(f"local-dir:{folder}")(["a red teapot"])
    with torch.no_grad():
        expected = model.eval().encode_image(prepared, normalize=True) @ model.encode_text(ids, normalize=True)[0]
    ours = ImageTextModel.read(folder)
    images = pixels.permute(0, 3, 1, 2) / 255
    found = ours.embed_images(images) @ ours.embed_texts(["a red teapot"])[0]
    # PIL resamples whole numbers.
    torch.testing.assert_close(found, expected, atol=1e-6 if size == 32 else 5e-3, rtol=0)
    assert ours.score(images, "a red teapot") == pytest.approx(float(found.mean())) and ours.image_size == 32


def test_a_clip_of_our_own_is_read_too() -> None:
    place = TOYBOX / "judge"
    clip, ids = load_clip(place), Tokenizer.load(place / "tokenizer")(["a red cube"])
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = float((clip.encode_image(images) @ clip.encode_text(ids)[0]).mean())
    assert ImageTextModel.read(place).score(images, "a red cube") == pytest.approx(expected, abs=1e-6)


def test_what_is_missing_or_damaged_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PriorError, match=r"holds no CLIP: neither clip_config\.json"):
        ImageTextModel.check(tmp_path)
    (tmp_path / "open_clip_config.json").write_bytes((folder / "open_clip_config.json").read_bytes())
    with pytest.raises(PriorError, match=r"lacks open_clip_model\.safetensors or open_clip_pytorch_model\.bin"):
        ImageTextModel.check(tmp_path)
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"not weights")
    with pytest.raises(PriorError, match="cannot be read"):
        ImageTextModel.read(tmp_path)
