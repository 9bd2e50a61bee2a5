"""Stable Diffusion 3 and 3.5 against diffusers and transformers on the same random weights, trap by trap."""

import copy
import functools
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffusion.checkpoints.defaults import SETTINGS, defaults_of
from diffusion.checkpoints.errors import PriorError
from diffusion.checkpoints.footprint import footprint
from diffusion.checkpoints.hub import needed
from diffusion.checkpoints.lora_files import Lora
from diffusion.checkpoints.source import Source
from diffusion.checkpoints.stable_diffusion_3 import write_stable_diffusion_3_file
from diffusion.checkpoints.transformer_keys import folder_transformer, original_transformer
from diffusion.engine import Engine, EngineConfig
from diffusion.flow_schedule import FlowSchedule
from diffusion.networks.joint_transformer import JointTransformer, JointTransformerConfig, begin
from diffusion.prior import Prior
from diffusion.requests import Condition, DecodeRequest, Guidance, run
from diffusion.samplers import SAMPLERS, image_to_image, timesteps_for
from diffusion.seeding import normal_rows, stream
from diffusion.text.t5 import T5Config, T5Encoder
from tests.diffusion.checkpoints.published import SD3, SD3_VAE, SD35_MEDIUM, random_stable_diffusion_3

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning"
)

PROMPTS = ["a red mushroom", "a corgi, 8k"]
KINDS = {"3": {}, "3 without T5": {"with_t5": False}, "3.5": {"is_35": True}}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @functools.cache
    def make(kind: str) -> tuple[Any, Path]:
        folder = tmp_path_factory.mktemp("sd3")
        return random_stable_diffusion_3(folder, **KINDS[kind]), folder

    return make


def in_float64(prior: Prior) -> Prior:
    for part in (prior.unet, prior.autoencoder, prior.text_encoder, prior.text_encoder_2, prior.text_encoder_3):
        if part is not None:
            part.double()
    prior.text_cache.clear()
    return prior


# -- the network -------------------------------------------------------------------------------------------------------

TINY = {
    "sample_size": 8,
    "num_layers": 3,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 48,
    "caption_projection_dim": 32,
    "pooled_projection_dim": 40,
    "pos_embed_max_size": 12,
    "in_channels": 4,
    "out_channels": 4,
}
OF_35 = {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)}


def both(**more: Any) -> tuple[Any, JointTransformer]:
    torch.manual_seed(0)
    theirs = diffusers.SD3Transformer2DModel(**TINY, **more).double().eval()
    for weight in theirs.parameters():
        weight.data.normal_(std=0.2)
    ours = JointTransformer(JointTransformerConfig.from_dict({**TINY, **more})).double().eval()
    ours.load_state_dict(folder_transformer(ours.state_dict()).to_ours(theirs.state_dict()))
    return theirs, ours


def inputs(height: int = 8, width: int = 12) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.manual_seed(1)
    x, text, pooled = (torch.randn(2, *shape, generator=generator).double() for shape in ((4, height, width), (5, 48), (40,)))
    return x, torch.tensor([900.5, 30.0]).double(), text, pooled


@torch.no_grad()
def test_a_network_begins_as_the_papers_say() -> None:
    """It says 0, each block is the identity, and its places are diffusers' sinusoids."""
    ours = begin(JointTransformer(JointTransformerConfig.from_dict({**TINY, **OF_35}))).double()
    x, t, text, pooled = inputs()
    assert torch.equal(ours(x, t, text, pooled), torch.zeros_like(x))
    patches, words = torch.randn(2, 24, 32).double(), torch.randn(2, 5, 32).double()
    after, words_after = ours.transformer_blocks[0](patches, words, torch.randn(2, 32).double())
    assert torch.equal(after, patches) and torch.equal(words_after, words)
    theirs = diffusers.SD3Transformer2DModel(**{**TINY, "sample_size": 2 * TINY["pos_embed_max_size"]})  # a table of that base
    torch.testing.assert_close(ours.pos_embed.pos_embed.float(), theirs.pos_embed.pos_embed, rtol=0, atol=1e-6)


@pytest.mark.parametrize("more", [{}, OF_35], ids=["3", "3.5"])
@pytest.mark.parametrize("size", [(8, 12), (24, 4)])
@torch.no_grad()
def test_the_network_equals_diffusers(more: dict[str, Any], size: tuple[int, int]) -> None:
    """Rows of different timesteps, and sizes of which the table of positions gives its middle; the whole table, too."""
    theirs, ours = both(**more)
    x, t, text, pooled = inputs(*size)
    expected = theirs(x, text, pooled, t).sample
    torch.testing.assert_close(ours(x, t, text, pooled), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(ours(x, t, ours.project_context(text, pooled)), expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_positions_are_the_middle_of_the_table() -> None:
    _, ours = both()
    table = torch.arange(144.0).double()[None, :, None].expand(1, 144, 32)
    ours.pos_embed.pos_embed.copy_(table)
    ours.pos_embed.proj.weight.zero_()
    ours.pos_embed.proj.bias.zero_()
    found = ours.pos_embed(torch.zeros(1, 4, 8, 12).double())[0, :, 0].reshape(4, 6)
    assert found[0, 0] == 4 * 12 + 3 and found[-1, -1] == 7 * 12 + 8
    with pytest.raises(ValueError, match="13 by 2 patches; expected at most 12 along a side"):
        ours(torch.zeros(1, 4, 26, 4).double(), *(value[:1] for value in inputs()[1:]))


@torch.no_grad()
def test_padded_rows_of_the_text_are_attended_to() -> None:
    """No mask: zeros after the text change the answer, as in diffusers."""
    theirs, ours = both()
    x, t, text, pooled = inputs()
    longer = torch.cat([text, torch.zeros(2, 3, 48).double()], dim=1)
    torch.testing.assert_close(ours(x, t, longer, pooled), theirs(x, longer, pooled, t).sample, rtol=0, atol=1e-12)
    assert float((ours(x, t, longer, pooled) - ours(x, t, text, pooled)).abs().max()) > 1e-4


@pytest.mark.parametrize("more", [{}, OF_35], ids=["3", "3.5"])
def test_key_maps_lose_nothing_in_either_direction(more: dict[str, Any]) -> None:
    """Folder -> ours -> single file -> diffusers' own conversion -> folder; the swapped halves are swapped back."""
    from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers

    theirs, ours = both(**more)
    own, folder = ours.state_dict(), theirs.state_dict()
    assert folder_transformer(own).to_published(own).keys() == folder.keys()
    original = original_transformer(own).to_published(own)
    back = original_transformer(own).to_ours(original)
    assert back.keys() == own.keys() and all(torch.equal(back[name], own[name]) for name in own)
    converted = convert_sd3_transformer_checkpoint_to_diffusers(dict(original))
    assert converted.keys() == folder.keys()
    assert all(torch.equal(converted[name], folder[name]) for name in folder)
    last = "joint_blocks.2.context_block.adaLN_modulation.1.bias"
    assert torch.equal(original[last].roll(32), folder["transformer_blocks.2.norm1_context.linear.bias"])
    assert torch.equal(
        original["joint_blocks.0.context_block.adaLN_modulation.1.bias"],
        folder["transformer_blocks.0.norm1_context.linear.bias"],
    )


@pytest.mark.parametrize("published", [SD3, SD35_MEDIUM], ids=["3", "3.5"])
def test_the_published_structure_has_diffusers_keys_and_shapes(published: dict[str, Any]) -> None:
    with torch.device("meta"):
        ours = JointTransformer(JointTransformerConfig.from_dict(published)).state_dict()
        theirs = diffusers.SD3Transformer2DModel.from_config(published).state_dict()
    named = folder_transformer(ours).to_published(ours)
    assert {name: tensor.shape for name, tensor in named.items()} == {name: tensor.shape for name, tensor in theirs.items()}
    numbers = sum(tensor.numel() for name, tensor in named.items() if name != "pos_embed.pos_embed")
    assert round(numbers / 1e9, 3) == {192: 2.028, 384: 2.243}[published["pos_embed_max_size"]]


# -- the text ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("feed_forward", ["gated-gelu", "relu"])
@torch.no_grad()
def test_t5_equals_transformers(feed_forward: str) -> None:
    """256 tokens: distances reach into the largest bucket on both sides."""
    from transformers import T5Config as Published
    from transformers import T5EncoderModel

    torch.manual_seed(0)
    config = Published(vocab_size=50, d_model=24, d_kv=6, d_ff=40, num_layers=3, num_heads=4, feed_forward_proj=feed_forward)
    theirs = T5EncoderModel(config).double().eval()
    for weight in theirs.parameters():
        weight.data.normal_(std=0.3)
    ours = T5Encoder(T5Config.from_dict(config.to_dict())).double()
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if k != "encoder.embed_tokens.weight"})
    ids = torch.randint(50, (2, 256), generator=torch.manual_seed(2))
    torch.testing.assert_close(ours(ids), theirs(ids)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["3", "3 without T5"])
@torch.no_grad()
def test_texts_are_the_pipelines(kind: str, saved: Any) -> None:
    """77 rows of both CLIP towers, zeros up to T5's width, 256 of T5, attended to with their padding; both pooled texts."""
    pipeline, folder = saved(kind)
    prior, exact = in_float64(Prior.load(f"{folder}?prompt=plain")), copy.deepcopy(pipeline).to(torch.float64)
    states, pooled = prior.encode_text(PROMPTS)
    expected, _, expected_pooled, _ = exact.encode_prompt(PROMPTS, None, None, do_classifier_free_guidance=False)
    assert states.shape == (2, 77 + 256, 208) and pooled is not None and pooled.shape == (2, 192)
    torch.testing.assert_close(states, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(pooled, expected_pooled, rtol=0, atol=1e-10)
    assert bool((states[:, :77, 192:] == 0).all())
    assert bool((states[:, 77:] == 0).all()) == (kind != "3")
    empty, _ = prior.encode_text([""])
    assert float(empty.abs().max()) > 0 and not prior.zeros_for_empty_negative


@torch.no_grad()
def test_weights_of_words_reach_clip_alone_and_long_prompts_have_more_rows(saved: Any) -> None:
    _, folder = saved("3")
    prior = Prior.load(folder)
    plain, weighted = (prior.encode_text([prompt])[0] for prompt in ("a red mushroom", "a (red:1.4) mushroom"))
    assert float((plain - weighted)[:, :77].abs().max()) > 1e-3 and torch.equal(plain[:, 77:], weighted[:, 77:])
    long = prior.encode_text(["a red mushroom and " * 30])[0]
    assert long.shape == (1, 2 * 77 + 256, 208)


# -- whole pictures ----------------------------------------------------------------------------------------------------


def noise(size: tuple[int, int]) -> Tensor:
    return torch.randn(2, 16, size[0] // 8, size[1] // 8, generator=torch.manual_seed(3)).double()


def sampling(prior: Prior, num_steps: int = 4, name: str = "euler") -> dict[str, Any]:
    return {
        "schedule": prior.schedule,
        "timesteps": timesteps_for(name, prior.schedule, num_steps),
        "condition": prior.condition(PROMPTS),
        "guidance": Guidance(scale=7.0),
    }


class ExactFlowMatchEuler(diffusers.FlowMatchEulerDiscreteScheduler):
    """diffusers' own, whose levels and steps are rounded to float32, given ours in float64."""

    def set_timesteps(self, num_inference_steps: Any = None, device: Any = None, **_: Any) -> None:
        super().set_timesteps(num_inference_steps)
        self.timesteps = FlowSchedule(shift=3.0).timesteps(num_inference_steps)
        self.sigmas = torch.cat([self.timesteps / 1000, torch.zeros(1).double()])

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, **_: Any) -> tuple[Tensor]:
        index = int((self.timesteps == timestep).nonzero())
        return (sample + (self.sigmas[index + 1] - self.sigmas[index]) * model_output,)


@pytest.mark.parametrize(("kind", "size"), [("3", (64, 64)), ("3 without T5", (48, 96)), ("3.5", (96, 48))])
@torch.no_grad()
def test_pictures_equal_diffusers_in_float64(kind: str, size: tuple[int, int], saved: Any) -> None:
    pipeline, folder = saved(kind)
    prior = in_float64(Prior.load(folder))
    exact = copy.deepcopy(pipeline).to(torch.float64)
    exact.scheduler = ExactFlowMatchEuler(shift=3.0)
    exact.set_progress_bar_config(disable=True)
    height, width = size
    told = {"num_inference_steps": 4, "guidance_scale": 7.0, "output_type": "pt", "height": height, "width": width}
    theirs = exact(PROMPTS, latents=noise(size), **told).images
    drawing = SAMPLERS["euler"](noise(size), **sampling(prior))
    ours = prior.answer(DecodeRequest(run(drawing, prior.answer)))
    assert ours.shape == (2, 3, *size)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-8)


@torch.no_grad()
def test_pictures_equal_diffusers_own_scheduler_in_float32(saved: Any) -> None:
    pipeline, folder = saved("3.5")
    prior = Prior.load(folder)
    told = {"num_inference_steps": 6, "guidance_scale": 4.5, "output_type": "pt", "height": 64, "width": 64}
    theirs = pipeline(PROMPTS, latents=noise((64, 64)).float(), **told).images
    drawing = SAMPLERS["euler"](noise((64, 64)).float(), **{**sampling(prior, 6), "guidance": Guidance(scale=4.5)})
    ours = prior.answer(DecodeRequest(run(drawing, prior.answer)))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_picture_is_drawn_anew_and_kept_where_it_is_masked(saved: Any) -> None:
    _, folder = saved("3 without T5")
    prior = Prior.load(folder)
    images, masks = torch.rand(2, 3, 64, 64, generator=torch.manual_seed(4)), torch.ones(2, 1, 64, 64)
    masks[..., :32] = 0
    edited = run(
        image_to_image(
            images,
            sampler=SAMPLERS["euler"],
            strength=0.75,
            start_noise=noise((64, 64)).float(),
            masks=masks,
            **sampling(prior),
        ),
        prior.answer,
    )
    assert torch.equal(edited[..., :32], images[..., :32]) and float((edited - images)[..., 32:].abs().max()) > 0.05


def test_the_autoencoder_shifts_before_it_scales(saved: Any) -> None:
    pipeline, folder = saved("3")
    prior = Prior.load(folder)
    images = torch.rand(1, 3, 32, 32, generator=torch.manual_seed(4))
    with torch.no_grad():
        raw = pipeline.vae.encode(2 * images - 1).latent_dist.mean
    torch.testing.assert_close(prior.encode(images), (raw - 0.0609) * 1.5305, rtol=0, atol=1e-5)
    assert not hasattr(prior.autoencoder, "quant_conv") and SD3_VAE["latent_channels"] == prior.latent_shape[0]


# -- the engine --------------------------------------------------------------------------------------------------------


def test_strict_pictures_are_bit_equal_alone_and_among_others(saved: Any) -> None:
    """Batch-invariant, through joint attention and both halves of the guidance; another text length has forwards of its own."""
    _, folder = saved("3.5")
    prior = Prior.load(folder)

    def begin(seed: int) -> Any:
        def drawing(condition: Condition) -> Any:
            x = normal_rows(prior.latent_shape, [stream(seed, "image")])
            return SAMPLERS["euler"](x, **{**sampling(prior, 3), "condition": condition})

        return drawing

    def drawn(seeds: list[int]) -> dict[int, Tensor]:
        engine = Engine(prior, config=EngineConfig(strict_rows=4))
        long = "a red mushroom and " * 30
        tickets = {seed: engine.submit(begin(seed), prompts=["a red mushroom"], slots=[seed]) for seed in seeds}
        others = [engine.submit(begin(9), prompts=[long], slots=[1])] if len(seeds) > 1 else []
        while engine.live:
            engine.step()
        assert all(bool(ticket.result().isfinite().all()) for ticket in others)
        return {seed: ticket.result() for seed, ticket in tickets.items()}

    together = drawn([0, 1, 2, 5])
    for seed in (0, 5):
        assert torch.equal(together[seed], drawn([seed])[seed])


def test_the_text_is_projected_once_a_prompt(saved: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, folder = saved("3")
    prior = Prior.load(folder)
    calls: list[int] = []
    project = prior.unet.project_context
    monkeypatch.setattr(prior.unet, "project_context", lambda *given: calls.append(1) or project(*given))
    for _ in range(2):
        run(SAMPLERS["euler"](noise((64, 64)).float(), **sampling(prior)), prior.answer)
    assert len(calls) == 3  # two prompts and the empty one


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["3 without T5", "3.5"])
@torch.no_grad()
def test_a_single_file_is_the_folder_without_t5(kind: str, saved: Any, tmp_path: Path) -> None:
    _, folder = saved(kind)
    prior = Prior.load(folder)
    prior.text_encoder_3 = None
    prior.text_cache.clear()
    path = tmp_path / "sd3_medium_incl_clips.safetensors"
    write_stable_diffusion_3_file(prior, path)
    tensors = load_file(path)
    # As published: CLIP-L's projection is not in the file, and T5 may be.
    del tensors["text_encoders.clip_l.transformer.text_projection.weight"]
    tensors["text_encoders.t5xxl.transformer.shared.weight"] = torch.zeros(4, 4)
    save_file(tensors, path)
    read = Prior.load(path)
    assert read.schedule == FlowSchedule(shift=3.0)
    expected = {**vars(prior.unet.config), "sample_size": 128}
    assert vars(read.unet.config) == expected
    x, condition = noise((64, 64)).float(), prior.condition(PROMPTS)
    torch.testing.assert_close(read.condition(PROMPTS).tokens, condition.tokens, rtol=0, atol=0)
    t = torch.tensor([500.0, 30.0])
    torch.testing.assert_close(read.predict(x, t, condition.tokens), prior.predict(x, t, condition.tokens), rtol=0, atol=0)
    torch.testing.assert_close(read.decode(x), prior.decode(x), rtol=0, atol=0)
    assert "holds a T5 tower without its tokenizer" in read.notes[0]


def test_what_does_not_fit_is_said(saved: Any, tmp_path: Path) -> None:
    _, folder = saved("3 without T5")
    prior = Prior.load(folder)
    assert prior.notes == [f"{folder.name} has no T5 tower: its rows of the text are zeros."]
    with pytest.raises(PriorError, match=r"the picture is 72x64 pixels; expected multiples of 16, such as 64x64"):
        prior.latent_shape_of((64, 72))
    with pytest.raises(PriorError, match=r"the table of positions of .* ends at 192; take a smaller one"):
        prior.latent_shape_of((64, 208))
    with pytest.raises(PriorError, match=r"prediction_type is 'epsilon', and .* is a rectified flow"):
        Prior.load(f"{folder}?prediction_type=epsilon")
    path = tmp_path / "file.safetensors"
    write_stable_diffusion_3_file(prior, path)
    tensors = load_file(path)
    save_file({name: value for name, value in tensors.items() if "clip_g" not in name}, path)
    with pytest.raises(PriorError, match="lacks the text tower clip_g; use a file that includes the CLIP towers"):
        Prior.load(path)
    save_file({**tensors, "lora.down": torch.zeros(1)}, path)
    with pytest.raises(PriorError, match=r"holds 1 tensors that a Stable Diffusion 3 does not have, such as lora.down"):
        Prior.load(path)
    save_file({name: value for name, value in tensors.items() if "first_stage_model" not in name}, path)
    with pytest.raises(PriorError, match=r"holds no autoencoder; add the family's with '\?vae=PATH'"):
        Prior.load(path)
    vae = Prior.load(f"{path}?vae={folder / 'vae'}").autoencoder
    assert vae.config.shift_factor == 0.0609


@torch.no_grad()
def test_a_lora_changes_the_transformer_as_in_diffusers(saved: Any, tmp_path: Path) -> None:
    """diffusers' names; queries, keys and values are one matrix here and still changed apart."""
    pipeline, folder = saved("3 without T5")
    generator = torch.manual_seed(5)
    names = ("attn.to_q", "attn.add_k_proj", "attn.to_out.0")
    weights = {}
    for name in names:
        module = f"transformer.transformer_blocks.1.{name}"
        weights |= {f"{module}.lora_A.weight": torch.randn(2, 128, generator=generator)}
        weights |= {f"{module}.lora_B.weight": torch.randn(128, 2, generator=generator)}
    save_file(weights, tmp_path / "lora.safetensors")
    prior = Prior.load(f"{folder}?lora={tmp_path / 'lora.safetensors'}:0.5")
    changed = folder_transformer(prior.unet.state_dict()).to_published(prior.unet.state_dict())
    before = pipeline.transformer.state_dict()
    touched = {name for name in before if not torch.equal(before[name], changed[name])}
    assert touched == {f"transformer_blocks.1.{name}.weight" for name in names}
    for name in names:
        module = f"transformer_blocks.1.{name}"
        added = 0.5 * weights[f"transformer.{module}.lora_B.weight"] @ weights[f"transformer.{module}.lora_A.weight"]
        torch.testing.assert_close(changed[f"{module}.weight"], before[f"{module}.weight"] + added)
    base = Prior.load(folder)
    of_request = base.adapted((Lora.named(f"{tmp_path / 'lora.safetensors'}:0.5"),))
    assert base.adapters.num_bytes == 4 * 2 * (128 + 384 + 128 + 384 + 128 + 128)  # a fused matrix has its own factors' rows
    x, t = torch.randn(2, *base.latent_shape, generator=generator), torch.tensor([100, 900])
    given, merged, plain = (
        one.predict(x, t, one.condition(["a red mushroom", ""]).tokens) for one in (of_request, prior, base)
    )
    assert (merged - plain).abs().max() > 0.01 * merged.abs().max()
    torch.testing.assert_close(given, merged, rtol=0, atol=1e-5 * float(merged.abs().max()))


def test_memory_and_defaults_are_known_before_it_is_loaded(saved: Any, tmp_path: Path) -> None:
    for kind, family, steps, scale in (("3", "Stable Diffusion 3", 28, 7.0), ("3.5", "Stable Diffusion 3.5", 40, 4.5)):
        _, folder = saved(kind)
        prior = Prior.load(folder)
        path = tmp_path / f"{steps}.safetensors"
        write_stable_diffusion_3_file(prior, path)
        for place in (folder, path):
            found = defaults_of(Source.parse(str(place)))
            assert (found.family, found.recipe) == (family, "rfds-sd3")
            assert found.values == dict(zip(SETTINGS, (steps, scale, 0.0, "euler", None), strict=True))
        assert defaults_of(Source.parse(str(folder))).image_size == 64
        networks = [prior.unet, prior.autoencoder, prior.text_encoder.tower, prior.text_encoder_2.tower]
        numbers = sum(tensor.numel() for network in networks for tensor in network.state_dict().values())
        assert footprint(str(path)).weights == 4 * numbers
        t5 = 0 if prior.text_encoder_3 is None else sum(p.numel() for p in prior.text_encoder_3.parameters())
        assert footprint(str(folder)).weights == pytest.approx(4 * (numbers + t5), rel=0.001)
    assert defaults_of(Source.parse("stabilityai/stable-diffusion-3.5-medium")).family == "Stable Diffusion 3.5"
    assert defaults_of(Source.parse("sd3_medium_incl_clips.ckpt")).family == "Stable Diffusion 3"


def test_the_files_that_are_read_are_those_that_the_hub_is_asked_for(saved: Any) -> None:
    _, folder = saved("3")
    files = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    asked = needed([*files, "transformer/diffusion_pytorch_model.fp16.safetensors", "sd3_medium.safetensors"])
    weights = [file for file in asked if file.endswith(".safetensors")]
    stems = {"transformer": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
    parts = ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
    assert set(weights) == {f"{part}/{stems.get(part, 'model')}.safetensors" for part in parts}
    assert {"tokenizer_3/tokenizer.json", "scheduler/scheduler_config.json"} <= set(asked)
