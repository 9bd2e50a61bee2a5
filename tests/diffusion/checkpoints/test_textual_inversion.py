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
from diffusion.checkpoints.lora_files import Embedding
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


def with_words(prior: Prior, *texts: str) -> Prior:
    """The prior as a request with these textual inversions sees it."""
    view = prior.adapted(tuple(Embedding.named(text) for text in texts))
    assert view is not None
    return view


def test_diffusers_reads_the_same_prompt(tmp_path: Path) -> None:
    pipeline: Any = random_pipeline("sd15", tmp_path / "sd15")
    path, _ = write(tmp_path, "diffusers")
    pipeline.load_textual_inversion(str(path))
    prompt = ["a painting of <cat>, oil"]
    theirs = pipeline.encode_prompt(prompt, "cpu", 1, False)[0]
    loaded = Prior.load(f"{tmp_path / 'sd15'}?embedding={path}")
    for ours in (loaded, with_words(Prior.load(tmp_path / "sd15"), str(path))):
        torch.testing.assert_close(ours.encode_text(prompt)[0], theirs, rtol=0, atol=3e-6)


def test_diffusers_reads_the_same_prompt_with_both_towers_of_sdxl(tmp_path: Path) -> None:
    """The states alone: its tower pools at the largest id, which is the word's; see the next test."""
    pipeline: Any = random_pipeline("sdxl", tmp_path / "sdxl")
    vectors = {"clip_l": VECTORS[:2], "clip_g": torch.linspace(-0.1, 0.1, 2 * 48).reshape(2, 48)}
    save_file(vectors, tmp_path / "ink.safetensors")
    for number, key in (("", "clip_l"), ("_2", "clip_g")):
        parts = {name: getattr(pipeline, f"{name}{number}") for name in ("text_encoder", "tokenizer")}
        pipeline.load_textual_inversion(vectors[key], token="<ink>", **parts)
    theirs = pipeline.encode_prompt("a house, <ink>", device="cpu", do_classifier_free_guidance=False)[0]
    ours = with_words(Prior.load(tmp_path / "sdxl"), f"{tmp_path}/ink.safetensors:<ink>").encode_text(["a house, <ink>"])[0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=3e-6)


@pytest.mark.parametrize("layout", ["diffusers", "diffusers bin", "kohya", "automatic1111", "original"])
def test_a_request_reads_what_a_prior_with_the_embedding_reads(layout: str, saved: Saved, tmp_path: Path) -> None:
    path, word = write(tmp_path, layout)
    folder = saved("sd15")[1]
    base, loaded = Prior.load(folder), Prior.load(f"{folder}?embedding={path}")
    prompts = [f"a {word} on the table", f"the {path.stem}", "a table"]
    before = base.condition(prompts).tokens.clone()
    view = with_words(base, str(path))
    assert not view.has_condition(prompts[0])  # texts are kept apart
    assert torch.equal(view.condition(prompts).tokens, loaded.condition(prompts).tokens)
    assert torch.equal(base.condition(prompts).tokens, before) and not torch.equal(view.condition(prompts).tokens, before)
    assert torch.equal(view.condition(prompts[2:]).tokens, before[2:])
    # The network, and the table of 49,408 tokens, are the prior's own; what is kept is the vectors.
    table = view.text_encoder.tower.token_embedding
    assert view.unet is base.unet and table.table is base.text_encoder.tower.token_embedding
    assert base.adapters.num_bytes == (1 if layout == "diffusers bin" else 3) * 32 * 4


def test_several_files_and_a_name_of_the_request_s_own(saved: Saved, tmp_path: Path) -> None:
    cat, dog = tmp_path / "cat-toy.safetensors", tmp_path / "dog.safetensors"
    save_file({"<cat>": VECTORS}, cat)
    save_file({"emb_params": VECTORS[:1] + 1}, dog)
    base = Prior.load(saved("sd15")[1])
    both = with_words(base, str(cat), f"{dog}:<wolf>")
    encode = both.tokenizer.encode
    assert encode("<cat> <wolf>") == [49408, 49409, 49410, 49411] and encode("dog") == base.tokenizer.encode("dog")
    assert encode("CAT-TOY") == encode("<cat>")
    # One content under two names is two embeddings, and under one name the same wherever it lies.
    moved = tmp_path / "moved"
    moved.mkdir()
    shutil.copy(cat, moved / "cat-toy.safetensors")
    shutil.copy(cat, moved / "tiger.safetensors")
    named = Embedding.named(str(cat))
    assert named == Embedding.named(str(moved / "cat-toy.safetensors")) != Embedding.named(str(moved / "tiger.safetensors"))
    assert (str(named), str(Embedding.named(f"{dog}:<wolf>"))) == ("cat-toy.safetensors", "dog.safetensors:<wolf>")
    assert with_words(base, str(cat)) is with_words(base, str(moved / "cat-toy.safetensors"))


def test_an_embedding_that_a_request_cannot_use_is_named(saved: Saved, tmp_path: Path) -> None:
    base, path = Prior.load(saved("sd15")[1]), tmp_path / "cat.safetensors"
    with pytest.raises(PriorError, match=r"there is no embedding .*cat\.safetensors; give a file as FILE or FILE:WORD"):
        Embedding.named(str(path))
    save_file({"<cat>": VECTORS}, path)
    named = Embedding.named(str(path))
    save_file({"<cat>": VECTORS + 1}, path)
    with pytest.raises(PriorError, match=r"the embedding .*cat\.safetensors has changed since the job was begun \(sha256 .*, "):
        base.adapted((named,))
    save_file({"<cat>": torch.zeros(1, 1024)}, path)
    with pytest.raises(PriorError, match=r"are \{'text_encoder': 1024\} wide, and .* text_encoder is 32 wide"):
        with_words(base, str(path))
    with pytest.raises(PriorError, match=r"the word of the embedding .*cat\.safetensors is empty; give FILE or FILE:WORD"):
        Embedding(str(path), named.sha256, " ")
    with pytest.raises(PriorError, match=r"the sha256 of the embedding .* is 'x'; expected 64 hexadecimal digits"):
        Embedding(str(path), "x", "cat")
    assert base.adapters.num_bytes == 0


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
