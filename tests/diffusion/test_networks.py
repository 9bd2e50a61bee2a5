"""Our networks hold the published weights: the same state dict gives the same numbers as diffusers and transformers."""

import json
from dataclasses import asdict

import pytest
import torch

from diffusion.checkpoints.text_keys import folder_text
from diffusion.networks.autoencoder_tiny import AutoencoderTiny, AutoencoderTinyConfig
from diffusion.networks.unet import UNet2DCondition, UNetConfig
from diffusion.text.clip import TextConfig, TextEncoder
from diffusion.text.tokenizer import Tokenizer

SD1_LIKE = UNetConfig(
    sample_size=8,
    block_out_channels=(32, 64, 64, 64),
    cross_attention_dim=24,
    attention_head_dim=8,
)
SD2_LIKE = UNetConfig(
    sample_size=8,
    block_out_channels=(32, 64, 64, 64),
    cross_attention_dim=24,
    attention_head_dim=(2, 4, 4, 4),
    use_linear_projection=True,
)
TOYBOX_LIKE = UNetConfig(
    sample_size=8,
    in_channels=8,
    out_channels=8,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    block_out_channels=(32, 64, 96),
    layers_per_block=1,
    cross_attention_dim=24,
    attention_head_dim=(1, 2, 3),
    use_linear_projection=True,
    addition_embed_type="text",
    addition_embed_type_num_heads=3,
)


@pytest.mark.parametrize(
    ("config", "tolerance"),
    # diffusers takes the softmax of the pooled text in float32 whatever the weights are.
    [(SD1_LIKE, 1e-10), (SD2_LIKE, 1e-10), (TOYBOX_LIKE, 1e-6)],
    ids=["sd1", "sd2", "toybox"],
)
def test_unet_equals_diffusers_in_float64(config: UNetConfig, tolerance: float) -> None:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    theirs = UNet2DConditionModel.from_config(json.loads(json.dumps(asdict(config)))).double().eval()
    ours = UNet2DCondition(config).double().eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(3, config.in_channels, 8, 8, dtype=torch.float64)
    t, text = torch.tensor([1, 400, 999]), torch.randn(3, 7, 24, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x, t, text), theirs(x, t, text).sample, rtol=0, atol=tolerance)


def test_every_row_of_a_batch_has_its_own_timestep() -> None:
    torch.manual_seed(0)
    unet = UNet2DCondition(TOYBOX_LIKE).double().eval()
    x, t = torch.randn(3, 8, 8, 8, dtype=torch.float64), torch.tensor([5, 500, 900])
    text = torch.randn(3, 7, 24, dtype=torch.float64)
    with torch.no_grad():
        together = unet(x, t, text)
        alone = torch.cat([unet(x[i : i + 1], t[i : i + 1], text[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


def test_unknown_block_type_is_named() -> None:
    with pytest.raises(ValueError, match="'AttnDownBlock2D' is unknown; expected one of CrossAttnDownBlock2D"):
        UNetConfig(down_block_types=("AttnDownBlock2D",))


def test_autoencoder_equals_diffusers_in_float64() -> None:
    from diffusers import AutoencoderTiny as Theirs

    torch.manual_seed(0)
    config = AutoencoderTinyConfig(
        encoder_block_out_channels=(16,) * 3,
        decoder_block_out_channels=(16,) * 3,
        num_encoder_blocks=(0, 1, 2),
        num_decoder_blocks=(2, 1, 0),
        latent_channels=8,
        scaling_factor=0.7,
    )
    theirs = Theirs.from_config(json.loads(json.dumps(asdict(config)))).double().eval()
    ours = AutoencoderTiny(config).double().eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        latents = ours.encode(images)
        torch.testing.assert_close(latents, theirs.encode(2 * images - 1).latents * 0.7, rtol=0, atol=1e-12)
        decoded = theirs.decode(latents / 0.7).sample
        torch.testing.assert_close(2 * ours.decode(latents) - 1, decoded, rtol=0, atol=1e-12)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.for_words(["a", "red", "table", "with", "blue", "legs", ",", "left", "view", "3d"], 12)


def test_text_tower_equals_transformers_in_float64(tokenizer: Tokenizer) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    ours = TextEncoder(TextConfig(tokenizer.vocab_size, context_length=12, width=48, heads=3, layers=2)).double().eval()
    theirs = CLIPTextModel(CLIPTextConfig(**ours.config.to_published(tokenizer))).double().eval()
    published = folder_text(ours.tower.state_dict()).to_published(ours.tower.state_dict())
    flat = "text_model.final_layer_norm.weight" not in theirs.state_dict()
    theirs.load_state_dict({k.removeprefix("text_model.") if flat else k: v for k, v in published.items()})
    ids = tokenizer(["a red table", "a red table with blue legs, left view", ""])
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).last_hidden_state, rtol=0, atol=1e-10)


def test_text_keys_map_both_ways(tokenizer: Tokenizer) -> None:
    tower = TextEncoder(TextConfig(tokenizer.vocab_size, context_length=12, width=48, heads=3, layers=2)).tower
    layout = folder_text(tower.state_dict())
    there_and_back = layout.to_ours(layout.to_published(tower.state_dict()))
    assert there_and_back.keys() == tower.state_dict().keys()
    for name, tensor in tower.state_dict().items():
        torch.testing.assert_close(there_and_back[name], tensor, rtol=0, atol=0)


def test_trimmed_tokenizer_agrees_with_transformers(tokenizer: Tokenizer, tmp_path) -> None:
    from transformers import CLIPTokenizer

    tokenizer.save(tmp_path)
    theirs = CLIPTokenizer.from_pretrained(str(tmp_path))
    prompts = ["a red table with blue legs, left view", "A RED  table", "", "a zebra, 3d " * 4]
    ids = theirs(prompts, padding="max_length", truncation=True, max_length=12, return_tensors="pt").input_ids
    torch.testing.assert_close(tokenizer(prompts), ids, rtol=0, atol=0)
    reread = Tokenizer.load(tmp_path)
    torch.testing.assert_close(reread(prompts), tokenizer(prompts), rtol=0, atol=0)


def test_known_words_are_one_token_each(tokenizer: Tokenizer) -> None:
    assert tokenizer.num_tokens("a red table with blue legs") == 8
    assert tokenizer.vocab_size < 600
