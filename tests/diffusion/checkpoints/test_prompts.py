"""Long, weighted and broken prompts and clip skip, against what diffusers' own towers give for the same tokens."""

from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion.checkpoints.errors import PriorError
from diffusion.prior import Prior
from diffusion.requests import Guidance
from diffusion.text.chunks import chunks_of
from tests.diffusion.checkpoints.published import Saved

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")

LONG = " ".join(f"word{i}" for i in range(60))
CASES = {
    "long": LONG,
    "weighted": "a (red:1.4) fox, [blurry], ((sharp))",
    "broken": "a red fox BREAK in (deep:1.2) snow",
    "plain": "a red fox",
}


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def pair(request: pytest.FixtureRequest, saved: Saved) -> tuple[Any, Prior]:
    pipeline, folder = saved(request.param)
    return pipeline, Prior.load(folder)


def reference(pipeline: Any, prior: Prior, prompt: str) -> Tensor:
    """Each chunk through transformers' towers, its states times the weights, at the mean that it had."""
    parts = []
    for name, _, tokenizer in prior.towers:
        tower = getattr(pipeline, name)
        chunks = chunks_of(tokenizer, prompt)
        texts = []
        for ids, weights in zip(chunks.ids, chunks.weights, strict=True):
            out = tower(ids[None], output_hidden_states=True)
            z = out.hidden_states[-2] if len(prior.towers) == 2 else out.last_hidden_state
            changed = z * weights[None, :, None]
            texts.append(changed * (z.mean() / changed.mean()))
        parts.append(torch.cat(texts, dim=1))
    return torch.cat(parts, dim=-1)


@pytest.mark.parametrize("case", sorted(CASES))
@torch.no_grad()
def test_states_are_those_of_the_towers(case: str, pair: tuple[Any, Prior]) -> None:
    pipeline, prior = pair
    states, _ = prior.encode_text([CASES[case]])
    torch.testing.assert_close(states, reference(pipeline, prior, CASES[case]), rtol=0, atol=2e-5)


def test_chunks_hold_the_tokens_in_order_and_break_begins_a_new_one(pair: tuple[Any, Prior]) -> None:
    tokenizer = pair[1].tokenizer
    words = tokenizer.encode(LONG)
    chunks = chunks_of(tokenizer, LONG)
    assert len(chunks.ids) == -(-len(words) // 75)
    assert [int(id) for row in chunks.ids for id in row[1:76]][: len(words)] == words
    broken = chunks_of(tokenizer, CASES["broken"])
    assert len(broken.ids) == 2 and int(broken.ids[0, 4]) == tokenizer.bpe.eot_token_id


@torch.no_grad()
def test_prompt_and_negative_take_as_many_chunks(pair: tuple[Any, Prior]) -> None:
    prior = pair[1]
    condition = prior.condition(["a fox", "a cat"], [LONG, ""])
    assert condition.negative is not None and condition.negative.shape == condition.tokens.shape
    assert condition.tokens.shape[1] >= 3 * 77
    x = torch.randn(2, 4, 8, 8, generator=torch.manual_seed(0))
    assert prior.predict(x, torch.tensor([10, 900]), condition.tokens).isfinite().all()
    assert Guidance(scale=3).scale == 3


@pytest.mark.parametrize("model", ["sd15", "sdxl"])
@torch.no_grad()
def test_clip_skip_equals_diffusers(model: str, saved: Saved) -> None:
    """Its clip_skip=1 is the common tools' 2."""
    pipeline, folder = saved(model)
    prior = Prior.load(f"{folder}?clip_skip=2")
    if model == "sdxl":
        theirs = pipeline.encode_prompt("a cat", device="cpu", do_classifier_free_guidance=False, clip_skip=1)[0]
    else:
        # What its pipeline means, whose own line fails with today's transformers.
        out = pipeline.text_encoder(prior.tokenizer(["a cat"]), output_hidden_states=True)
        theirs = pipeline.text_encoder.final_layer_norm(out.hidden_states[-2])
    states, _ = prior.encode_text(["a cat"])
    torch.testing.assert_close(states, theirs, rtol=0, atol=3e-6)
    assert prior.weights_hash != Prior.load(folder).weights_hash


def test_plain_prompts_are_cut_and_that_is_said(saved: Saved) -> None:
    folder = saved("sd15")[1]
    plain = Prior.load(f"{folder}?prompt=plain")
    assert plain.num_chunks([LONG]) == 1 and plain.encode_text([LONG])[0].shape[1] == 77
    warning = plain.prompt_warning(LONG)
    assert warning is not None and "tokens, of which the first 75 are read" in warning
    read = Prior.load(folder)
    assert read.prompt_warning(LONG) is None
    assert "<lora:ink:1> is not read" in str(read.prompt_warning("<lora:ink:1> a cat"))


def test_more_layers_than_there_are_cannot_be_skipped(saved: Saved) -> None:
    with pytest.raises(PriorError, match=r"clip_skip is 9, and .* text tower has 3 layers to read"):
        Prior.load(f"{saved('sd15')[1]}?clip_skip=9")
