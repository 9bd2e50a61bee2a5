"""Qwen3 as a text tower against transformers on the same random weights and the same tokenizer."""

from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion.text.qwen3 import MAX_TOKENS, Qwen3, Qwen3Config, Qwen3Tower
from diffusion.text.t5 import load_tokenizer
from tests.diffusion.checkpoints.published import QWEN3_4B, random_qwen3, widened_qwen3_norm, write_qwen_tokenizer

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning"),
]

PROMPTS = ["a red mushroom", "", "{a} corgi, 8k \u2014 caf\u00e9 \u732b\n on  two lines", "say <|im_end|> and <think>"]


def both(monkeypatch: pytest.MonkeyPatch, reads: tuple[int, ...], **more: Any) -> tuple[Any, Qwen3]:
    from transformers.models.qwen3 import modeling_qwen3

    monkeypatch.setattr(modeling_qwen3.Qwen3RMSNorm, "forward", widened_qwen3_norm)
    torch.manual_seed(0)
    theirs = random_qwen3(**more).double()
    ours = Qwen3(Qwen3Config.from_dict(theirs.config.to_dict()), reads).double()
    ours.load_state_dict({name: value for name, value in theirs.state_dict().items() if name in ours.state_dict()})
    return theirs, ours


@pytest.mark.parametrize("length", [1, 37, 300])
@torch.no_grad()
def test_the_states_equal_transformers(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention written out and fused; the numbers of layers are those of `hidden_states`, whose first is the embedding."""
    theirs, ours = both(monkeypatch, (1, 3))
    ids = torch.randint(300, (2, length), generator=torch.manual_seed(1))
    expected = theirs(ids, output_hidden_states=True).hidden_states
    assert len(expected) == 5 and len(ours.layers) == 3
    torch.testing.assert_close(ours(ids), torch.cat([expected[1], expected[-2]], dim=-1), rtol=0, atol=1e-10)


@torch.no_grad()
def test_float32_is_as_close_as_transformers_is_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, _ = both(monkeypatch, (3,))
    monkeypatch.undo()
    ids = torch.randint(300, (1, 60), generator=torch.manual_seed(1))
    exact = theirs(ids, output_hidden_states=True).hidden_states[-2]
    single = theirs.float()(ids, output_hidden_states=True).hidden_states[-2]
    ours = Qwen3(Qwen3Config.from_dict(theirs.config.to_dict()), (3,))
    ours.load_state_dict({name: value for name, value in theirs.state_dict().items() if name in ours.state_dict()})
    assert float((ours(ids) - single).square().mean()) <= 4 * float((single - exact).square().mean())


@pytest.mark.parametrize("thinks", [True, False])
def test_tokens_are_those_of_the_published_template(thinks: bool, tmp_path: Path) -> None:
    """Thinking enabled leaves the template open, disabled writes empty thoughts; braces and special words are a user's own."""
    theirs = write_qwen_tokenizer(tmp_path)
    tower = Qwen3Tower(Qwen3(Qwen3Config(**TINY), (1,)), load_tokenizer(tmp_path), thinks=thinks)
    for prompt in PROMPTS:
        told = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": thinks}
        text = theirs.apply_chat_template([{"role": "user", "content": prompt}], **told)
        assert tower.tokens(prompt) == theirs(text).input_ids
        assert ("<think>\n\n</think>\n\n" in text) == (not thinks)


TINY = {"vocab_size": 300, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "head_dim": 4}
TINY |= {"num_attention_heads": 2, "num_key_value_heads": 1}


@torch.no_grad()
def test_long_prompts_are_cut_with_the_template_s_end(tmp_path: Path) -> None:
    theirs = write_qwen_tokenizer(tmp_path)
    tower = Qwen3Tower(Qwen3(Qwen3Config(**TINY), (1,)), load_tokenizer(tmp_path))
    prompt = "xy" * 400
    assert len(tower.tokens(prompt)) > tower.num_tokens(prompt) == MAX_TOKENS == 512
    text = theirs.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True)
    assert theirs(text, truncation=True, max_length=512).input_ids == tower.tokens(prompt)[:MAX_TOKENS]
    assert tower(prompt).shape == (1, 512, 8) and tower("").shape[1] == len(tower.tokens(""))


def test_the_published_structure_has_transformers_keys_and_shapes() -> None:
    """But for the last layer and the norm behind it, which nobody reads: 35 of 36 layers, 27 for klein."""
    from transformers import Qwen3Config as Published
    from transformers import Qwen3Model

    with torch.device("meta"):
        theirs = Qwen3Model(Published(**QWEN3_4B)).state_dict()
        for reads, unread in (((35,), 1), ((9, 18, 27), 9)):
            ours = Qwen3(Qwen3Config.from_dict(QWEN3_4B), reads).state_dict()
            left = {name for name in theirs if name not in ours}
            assert left == {"norm.weight"} | {name for i in range(36 - unread, 36) for name in theirs if f"layers.{i}." in name}
            assert {name: t.shape for name, t in ours.items()} == {n: t.shape for n, t in theirs.items() if n not in left}


def test_what_cannot_be_read_is_said() -> None:
    for more, message in (
        ({"attention_bias": True}, "attention_bias is True; expected False"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type is 'yarn'; expected 'default'"),
        ({"num_key_value_heads": 5}, "32 heads of queries and 5 of keys; expected a multiple"),
    ):
        with pytest.raises(ValueError, match=message):
            Qwen3Config.from_dict({**QWEN3_4B, **more})
    with pytest.raises(ValueError, match="read after layer 36; expected 1 to 35"):
        Qwen3(Qwen3Config(), (36,))
