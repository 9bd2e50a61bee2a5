"""Textual inversion: every layout gives the words and vectors that were learned, and diffusers reads prompts alike."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusion.checkpoints.errors import PriorError
from diffusion.checkpoints.folder import read_folder
from diffusion.checkpoints.textual_inversion import add_words
from diffusion.prior import Prior
from diffusion.text.tokenizer import full_table
from tests.diffusion.checkpoints.published import Saved, random_pipeline

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")

VECTORS = torch.linspace(-0.2, 0.2, 3 * 32).reshape(3, 32)


def write(folder: Path, layout: str) -> tuple[Path, str]:
    """A file in a layout, and the word it teaches."""
    path = folder / "cat-toy.safetensors"
    match layout:
        case "diffusers":
            save_file({"<cat>": VECTORS}, path)
            return path, "<cat>"
        case "diffusers bin":
            torch.save({"<cat>": VECTORS[0]}, folder / "learned_embeds.bin")
            return folder / "learned_embeds.bin", "<cat>"
        case "kohya":
            save_file({"emb_params": VECTORS}, path)
            return path, "cat-toy"
        case "automatic1111":
            content = {"string_to_token": {"*": 265}, "string_to_param": {"*": VECTORS}, "name": "my cat", "step": 500}
            torch.save(content, folder / "cat.pt")
            return folder / "cat.pt", "my cat"
        case "original":
            parameters = torch.nn.ParameterDict({"*": torch.nn.Parameter(VECTORS)})
            torch.save({"string_to_token": {"*": torch.tensor(265)}, "string_to_param": parameters}, folder / "cat2.pt")
            return folder / "cat2.pt", "cat2"
    raise AssertionError(layout)


@pytest.mark.parametrize("layout", ["diffusers", "diffusers bin", "kohya", "automatic1111", "original"])
def test_every_layout_teaches_its_word(layout: str, saved: Saved, tmp_path: Path) -> None:
    path, word = write(tmp_path, layout)
    folder = saved("sd15")[1]
    prior = Prior.load(f"{folder}?embedding={path}")
    count = 1 if layout == "diffusers bin" else 3
    table = full_table()
    expected = [*table.encode("a"), *range(49408, 49408 + count), *table.encode("on the table")]
    assert prior.tokenizer.encode(f"a {word} on the table") == expected
    torch.testing.assert_close(prior.text_encoder.tower.token_embedding.weight[49408:], VECTORS[:count], rtol=0, atol=0)
    assert prior.weights_hash != Prior.load(folder).weights_hash


def test_diffusers_reads_the_same_prompt(tmp_path: Path) -> None:
    pipeline: Any = random_pipeline("sd15", tmp_path / "sd15")
    path, _ = write(tmp_path, "diffusers")
    pipeline.load_textual_inversion(str(path))
    prompt = ["a painting of <cat>, oil"]
    theirs = pipeline.encode_prompt(prompt, "cpu", 1, False)[0]
    ours = Prior.load(f"{tmp_path / 'sd15'}?embedding={path}").encode_text(prompt)[0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=3e-6)


def test_sdxl_has_vectors_for_both_towers(saved: Saved, tmp_path: Path) -> None:
    """Pooled text is read at the end token, not at the largest id, which would be the new word's."""
    path = tmp_path / "ink.safetensors"
    large = torch.linspace(-0.1, 0.1, 2 * 48).reshape(2, 48)
    save_file({"clip_l": VECTORS[:2], "clip_g": large}, path)
    folder = saved("sdxl")[1]
    plain = read_folder(folder)
    prior = Prior.load(f"{folder}?embedding={path}:<ink>")
    assert prior.tokenizer_2 is not None and prior.text_encoder_2 is not None
    assert prior.tokenizer_2.encode("<ink>") == [49408, 49409]
    torch.testing.assert_close(prior.text_encoder_2.tower.token_embedding.weight[-2:], large, rtol=0, atol=0)
    assert plain.text_encoder_2 is not None and plain.tokenizer_2 is not None
    ids = prior.tokenizer_2(["a house <ink>"])
    end = ids[0].tolist().index(49407)
    *_, last = prior.text_encoder_2.layers(ids)
    pooled = prior.text_encoder_2.tower.ln_final(last[:, end]) @ prior.text_encoder_2.tower.text_projection
    _, found = prior.text_encoder_2.penultimate_and_pooled(ids, end_id=prior.tokenizer_2.end_id)
    torch.testing.assert_close(found, pooled, rtol=0, atol=0)


def test_a_tower_saved_with_an_extended_vocabulary_pools_where_it_did_before(saved: Saved, tmp_path: Path) -> None:
    """As diffusers saves a pipeline whose words were learned: a longer table, and its size in config.json."""
    folder = saved("sdxl")[1]
    longer = shutil.copytree(folder, tmp_path / "longer")
    for tower in ("text_encoder", "text_encoder_2"):
        path = next((longer / tower).glob("*.safetensors"))
        tensors = load_file(path)
        (name,) = (key for key in tensors if key.endswith("token_embedding.weight"))
        tensors[name] = torch.cat([tensors[name], torch.ones(2, tensors[name].shape[1], dtype=tensors[name].dtype)])
        save_file(tensors, path, metadata={"format": "pt"})
        config = json.loads((longer / tower / "config.json").read_text())
        (longer / tower / "config.json").write_text(json.dumps({**config, "vocab_size": config["vocab_size"] + 2}))
    (_, expected), (_, pooled) = (Prior.load(one).encode_text(["a house by the sea"]) for one in (folder, longer))
    torch.testing.assert_close(pooled, expected, rtol=0, atol=0)


def test_what_does_not_fit_is_refused(saved: Saved, tmp_path: Path) -> None:
    checkpoint = read_folder(saved("sd15")[1])
    wide, pair, other = (tmp_path / f"{name}.safetensors" for name in ("wide", "pair", "other"))
    save_file({"<a>": torch.zeros(1, 1024)}, wide)
    with pytest.raises(PriorError, match=r"are \{'text_encoder': 1024\} wide, and .* text_encoder is 32 wide"):
        add_words(checkpoint, wide)
    save_file({"clip_l": torch.zeros(1, 32), "clip_g": torch.zeros(1, 48)}, pair)
    with pytest.raises(PriorError, match=r"has embeddings for \['text_encoder_2'\], which .* lacks"):
        add_words(checkpoint, pair)
    save_file({"conv": torch.zeros(2, 3, 3)}, other)
    with pytest.raises(PriorError, match=r"is no textual inversion file: expected vectors by word"):
        add_words(checkpoint, other)
    path, _ = write(tmp_path, "diffusers")
    add_words(checkpoint, path)
    with pytest.raises(PriorError, match=r"the word '<cat>' of .* is taken or empty; give it another one"):
        add_words(checkpoint, path)
    add_words(checkpoint, path, "<dog>")
    assert checkpoint.tokenizer.encode("<dog>")[0] == 49408 + 3


def test_words_are_whole_and_of_any_case_and_a_file_s_name_counts(saved: Saved, tmp_path: Path) -> None:
    checkpoint = read_folder(saved("sd15")[1])
    content = {"string_to_param": {"*": torch.randn(2, 32)}, "string_to_token": {"*": 265}, "name": "art"}
    torch.save(content, tmp_path / "EasyNegative.pt")
    add_words(checkpoint, tmp_path / "EasyNegative.pt")
    encode = checkpoint.tokenizer.encode
    new = [49408, 49409]
    assert encode("art") == encode("ART") == encode("EasyNegative") == encode("easynegative") == new
    assert encode("heart of a cartoon party") == checkpoint.tokenizer.bpe.encode("heart of a cartoon party")
    assert encode("the art, (art)")[1:3] == new and encode("art's")[:2] == new
    assert len(checkpoint.text_encoder.tower.token_embedding.weight) == 49410


def test_a_lora_is_no_textual_inversion(saved: Saved, tmp_path: Path) -> None:
    save_file({"lora_unet_x.lora_down.weight": torch.randn(2, 32)}, tmp_path / "lora.safetensors")
    with pytest.raises(PriorError, match=r"is a LoRA and no textual inversion; give it as '\?lora=FILE'"):
        add_words(read_folder(saved("sd15")[1]), tmp_path / "lora.safetensors")
