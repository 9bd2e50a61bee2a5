"""Z-Image's folders against diffusers' own pipeline on the same random weights: texts, pictures, the engine, files."""

import functools
import json
from collections.abc import Iterator
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
from diffusion.checkpoints.lora_files import Lora, lora_hash
from diffusion.checkpoints.source import Source
from diffusion.checkpoints.z_image_keys import folder_z_image
from diffusion.engine import Engine, EngineConfig
from diffusion.flow_schedule import FlowSchedule
from diffusion.networks.z_image import RUN
from diffusion.prior import Prior
from diffusion.requests import Condition, DecodeRequest, Guidance, run
from diffusion.samplers import SAMPLERS, image_to_image, timesteps_for
from diffusion.seeding import normal_rows, stream
from tests.diffusion.checkpoints.published import random_z_image, widened, widened_qwen3_norm

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning"
)

PROMPTS = ["a red mushroom", "a corgi on a wall of bricks, 8k, in the evening"]
"""Of one run of 32 rows, and of two."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @functools.cache
    def make(shift: float = 6.0) -> tuple[Any, Path]:
        folder = tmp_path_factory.mktemp("flow")
        return random_z_image(folder, shift=shift), folder

    return make


def in_float64(prior: Prior) -> Prior:
    for part in (prior.unet, prior.autoencoder, prior.text_encoder):
        part.double()
    prior.text_cache.clear()
    return prior


class ExactFlowMatchEuler(diffusers.FlowMatchEulerDiscreteScheduler):
    """diffusers' own, whose levels and steps are rounded to float32, given ours in float64."""

    def set_timesteps(self, num_inference_steps: Any = None, sigmas: Any = None, **_: Any) -> None:
        super().set_timesteps(sigmas=sigmas)
        schedule = FlowSchedule(shift=self.config.shift, timestep_spacing="trailing")
        exact = schedule.timesteps(len(sigmas))
        torch.testing.assert_close(self.timesteps, exact.float(), rtol=1e-6, atol=0)
        self.timesteps, self.sigmas = exact, torch.cat([exact / 1000, torch.zeros(1).double()])

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, **_: Any) -> tuple[Tensor]:
        index = int((self.timesteps == timestep).nonzero())
        return (sample + (self.sigmas[index + 1] - self.sigmas[index]) * model_output,)


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> Any:
    """diffusers' pipeline in float64, with float64 where it would round to float32 whatever it is given."""
    from diffusers.models.transformers import transformer_z_image
    from diffusers.pipelines.z_image import pipeline_z_image
    from transformers.models.qwen3 import modeling_qwen3

    network = widened(transformer_z_image, **{"x_in.float()": "x_in.double()"}).ZImageTransformer2DModel
    kind = widened(pipeline_z_image, **{"torch.float32": "torch.float64", ".float()": ".double()"}).ZImagePipeline

    def make(pipeline: Any) -> Any:
        import copy

        monkeypatch.setattr(modeling_qwen3.Qwen3RMSNorm, "forward", widened_qwen3_norm)
        transformer = network.from_config(pipeline.transformer.config).double().eval()
        transformer.load_state_dict(pipeline.transformer.state_dict())
        wide = kind(
            scheduler=ExactFlowMatchEuler(shift=pipeline.scheduler.config.shift),
            vae=copy.deepcopy(pipeline.vae).double(),
            text_encoder=copy.deepcopy(pipeline.text_encoder).double(),
            tokenizer=pipeline.tokenizer,
            transformer=transformer,
        )
        wide.set_progress_bar_config(disable=True)
        return wide

    return make


# -- the text ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_texts_are_the_pipeline_s(saved: Any, exact: Any) -> None:
    """The last layer but one of Qwen3, not normed, of the tokens alone; also of the empty text, which is encoded."""
    pipeline, folder = saved()
    prior = in_float64(Prior.load(folder))
    prompts = [*PROMPTS, ""]
    expected, _ = exact(pipeline).encode_prompt(list(prompts), do_classifier_free_guidance=False)
    assert [len(one) for one in expected] == [len(prior.text_encoder.tokens(prompt)) for prompt in prompts]
    for prompt, one in zip(prompts, expected, strict=True):
        states, pooled = prior.encode_text([prompt])
        assert pooled is None
        torch.testing.assert_close(states[0], one, rtol=0, atol=1e-10)
    states, _ = prior.encode_text(prompts)
    torch.testing.assert_close(states[2, : len(expected[2])], expected[2], rtol=0, atol=1e-10)
    assert not states[2, len(expected[2]) :].any() and not prior.zeros_for_empty_negative


def test_a_caption_is_computed_once_and_kept_in_its_own_length(saved: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tower, caption embedding and context refiner: whoever it shares a forward with, and at every step."""
    prior = Prior.load(saved()[1])
    calls: list[int] = []
    project = prior.unet.project_context
    monkeypatch.setattr(prior.unet, "project_context", lambda *given: calls.append(given[0].shape[1]) or project(*given))
    refined: list[int] = []
    for block in prior.unet.context_refiner:
        block.register_forward_pre_hook(lambda *_: refined.append(1))
    short, long = (prior.condition([prompt]) for prompt in PROMPTS)
    both = prior.condition(PROMPTS)
    assert len(calls) == 3  # two prompts and the empty one
    assert short.tokens.shape[1] == RUN and long.tokens.shape[1] == both.tokens.shape[1] == 2 * RUN + 1
    assert torch.equal(both.tokens[0, :RUN], short.tokens[0]) and not both.tokens[0, RUN:-1].any()
    assert both.tokens[:, -1, 0].tolist() == [1, 2] and both.negative is not None and both.negative[:, -1, 0].tolist() == [1, 1]
    assert prior.has_condition(PROMPTS[0]) and not prior.has_condition("another")
    assert prior.text_cache._num_bytes == 4 * 48 * RUN * (1 + 2 + 1)
    run(SAMPLERS["euler"](noise((64, 64)).float(), **sampling(prior)), prior.answer)
    assert len(refined) == 2 * 3


def test_what_of_a_prompt_is_not_read_is_said(saved: Any) -> None:
    prior = Prior.load(saved()[1])
    assert prior.prompt_warning("(red:1.4) words as they stand") is None and not prior.reads_syntax
    assert "tokens with its template, of which the first 512 are read" in str(prior.prompt_warning("xy" * 400))
    assert prior.condition(["xy" * 400]).tokens.shape[1] == 16 * RUN + 1


# -- whole pictures ----------------------------------------------------------------------------------------------------


def noise(size: tuple[int, int]) -> Tensor:
    return torch.randn(2, 16, size[0] // 8, size[1] // 8, generator=torch.manual_seed(3)).double()


def sampling(prior: Prior, num_steps: int = 4, *, scale: float = 6.0) -> dict[str, Any]:
    return {
        "schedule": prior.schedule,
        "timesteps": timesteps_for("euler", prior.schedule, num_steps),
        "condition": prior.condition(PROMPTS),
        "guidance": Guidance(scale=scale),
    }


def drawn(prior: Prior, x: Tensor, **told: Any) -> Tensor:
    return prior.answer(DecodeRequest(run(SAMPLERS["euler"](x, **sampling(prior, **told)), prior.answer)))


def options(size: tuple[int, int], num_steps: int, scale: float) -> dict[str, Any]:
    height, width = size
    told = {"num_inference_steps": num_steps, "guidance_scale": scale, "output_type": "pt"}
    return {**told, "height": height, "width": width}


@pytest.mark.parametrize(("shift", "scale", "size"), [(6.0, 5.0, (64, 96)), (6.0, 5.0, (48, 80)), (3.0, 0.0, (64, 64))])
@torch.no_grad()
def test_pictures_equal_diffusers_in_float64(shift: float, scale: float, size: tuple[int, int], saved: Any, exact: Any) -> None:
    """Its 5 is our 6, Turbo's 0 our 1; patches of 24, 15 and 16, which are filled up; captions of two lengths."""
    pipeline, folder = saved(shift)
    theirs = exact(pipeline)(list(PROMPTS), latents=noise(size), **options(size, 4, scale)).images
    ours = drawn(in_float64(Prior.load(folder)), noise(size), scale=1 + scale)
    assert ours.shape == (2, 3, *size)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-8)


@torch.no_grad()
def test_pictures_in_float32_are_as_close_as_diffusers_is_to_itself(saved: Any, exact: Any) -> None:
    """With its own scheduler; root mean squares of differences to float64."""
    pipeline, folder = saved()
    size, told = (64, 96), options((64, 96), 6, 5.0)
    single = pipeline(list(PROMPTS), latents=noise(size).float(), **told).images
    ours = drawn(Prior.load(folder), noise(size).float(), num_steps=6)
    truth = exact(pipeline)(list(PROMPTS), latents=noise(size), **told).images
    assert float((ours - truth).square().mean()) <= 4 * float((single - truth).square().mean())
    assert float((ours - truth).abs().max()) <= 2 * float((single - truth).abs().max())


def test_levels_are_those_of_upstream_s_nine_steps_whose_last_is_skipped() -> None:
    turbo = FlowSchedule(shift=3.0, timestep_spacing="trailing")
    nine = turbo.shifted(torch.linspace(1, 0, 9).double())
    torch.testing.assert_close(turbo.timesteps(8) / 1000, nine[:-1], rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_picture_is_drawn_anew_and_kept_where_it_is_masked(saved: Any) -> None:
    prior = Prior.load(saved()[1])
    images, masks = torch.rand(2, 3, 64, 64, generator=torch.manual_seed(4)), torch.ones(2, 1, 64, 64)
    masks[..., :32] = 0
    told = {"sampler": SAMPLERS["euler"], "strength": 0.75, "start_noise": noise((64, 64)).float(), "masks": masks}
    edited = run(image_to_image(images, **told, **sampling(prior)), prior.answer)
    assert torch.equal(edited[..., :32], images[..., :32]) and float((edited - images)[..., 32:].abs().max()) > 0.05


# -- the engine --------------------------------------------------------------------------------------------------------


def test_strict_pictures_are_bit_equal_alone_and_among_others(saved: Any) -> None:
    """A short prompt without a mask, a long one with a mask over its short negative; strict, in any company."""
    prior = Prior.load(saved()[1])
    guidance = {"schedule": prior.schedule, "timesteps": timesteps_for("euler", prior.schedule, 3), "guidance": Guidance(6.0)}

    def begin(seed: int) -> Any:
        def drawing(condition: Condition) -> Any:
            x = normal_rows(prior.latent_shape, [stream(seed, "image")])
            return SAMPLERS["euler"](x, condition=condition, **guidance)

        return drawing

    def pictures(seeds: list[int]) -> dict[int, Tensor]:
        engine = Engine(prior, config=EngineConfig(strict_rows=4))
        tickets = {s: engine.submit(begin(s), prompts=[PROMPTS[s % 2]], slots=[s]) for s in seeds}
        others = [engine.submit(begin(9), prompts=["a wall of red bricks, " * n]) for n in (1, 2, 4) if len(seeds) > 1]
        while engine.live:
            engine.step()
        assert all(bool(ticket.result().isfinite().all()) for ticket in others)
        return {seed: ticket.result() for seed, ticket in tickets.items()}

    together = pictures([0, 1, 2, 3, 5])
    for seed in (0, 1, 5):
        assert torch.equal(together[seed], pictures([seed])[seed])


@torch.no_grad()
def test_a_row_is_the_same_in_any_company_up_to_rounding(saved: Any) -> None:
    prior = in_float64(Prior.load(saved()[1]))
    x, t = noise((64, 64)), torch.tensor([700.0, 20.0]).double()
    together = prior.predict(x, t, prior.condition(PROMPTS).tokens)
    for i, prompt in enumerate(PROMPTS):
        alone = prior.predict(x[i : i + 1], t[i : i + 1], prior.condition([prompt]).tokens)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-12)


# -- files -------------------------------------------------------------------------------------------------------------


def test_defaults_are_known_before_it_is_loaded_and_turbo_is_recognised(saved: Any, tmp_path: Path) -> None:
    base, turbo = (str(saved(shift)[1]) for shift in (6.0, 3.0))
    found = defaults_of(Source.parse(base))
    assert (found.family, found.recipe, found.image_size, found.distilled) == ("Z-Image", "rfds-sd3", 64, "")
    assert found.values == dict(zip(SETTINGS, (50, 6.0, 0.0, "euler", None), strict=True))
    distilled = dict(zip(SETTINGS, (8, 1.0, 0.0, "euler", None), strict=True))
    found = defaults_of(Source.parse(turbo))
    assert found.values == distilled and found.distilled == "turbo" and "by its scheduler's shift of 3: 8 steps" in found.note
    assert defaults_of(Source.parse(f"{turbo}?distilled=none")).values["num_steps"] == 50
    named = defaults_of(Source.parse("Tongyi-MAI/Z-Image-Turbo"))
    assert named.family == "Z-Image" and named.values == distilled and "by its name" in named.note
    assert defaults_of(Source.parse("Tongyi-MAI/Z-Image")).values["guidance_scale"] == 6.0
    assert Prior.load(turbo).distilled == "turbo" and Prior.load(turbo).schedule.shift == 3.0


def test_the_tower_is_read_with_and_without_its_head(saved: Any, tmp_path: Path) -> None:
    """As Qwen3ForCausalLM saves it, under `model.`, with or without the head that says words; the last layer is never kept."""
    import shutil

    _, folder = saved()
    prior = Prior.load(folder)
    assert len(prior.text_encoder.encoder.layers) == 3
    other = tmp_path / "z"
    shutil.copytree(folder, other)
    weights = load_file(folder / "text_encoder/model.safetensors")
    named = {f"model.{name}": tensor for name, tensor in weights.items()} | {"lm_head.weight": torch.zeros(300, 48)}
    save_file(named, other / "text_encoder/model.safetensors", metadata={"format": "pt"})
    torch.testing.assert_close(Prior.load(other).encode_text(PROMPTS), prior.encode_text(PROMPTS), rtol=0, atol=0)
    assert (
        footprint(str(other)).weights
        == footprint(str(folder)).weights
        == 4 * sum(p.numel() for part in (prior.unet, prior.autoencoder, prior.text_encoder) for p in part.parameters())
    )


@torch.no_grad()
def test_a_lora_changes_the_transformer_in_diffusers_names_and_in_the_single_files(saved: Any, tmp_path: Path) -> None:
    pipeline, folder = saved()
    generator = torch.manual_seed(5)
    a, b = torch.randn(2, 48, generator=generator), torch.randn(48, 2, generator=generator)
    before = pipeline.transformer.state_dict()
    for prefix in ("transformer.", "diffusion_model."):
        module = f"{prefix}layers.1.attention.to_k"
        save_file({f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}, tmp_path / "lora.safetensors")
        prior = Prior.load(f"{folder}?lora={tmp_path / 'lora.safetensors'}:0.5")
        changed = folder_z_image(prior.unet.state_dict()).to_published(prior.unet.state_dict())
        assert {name for name in before if not torch.equal(before[name], changed[name])} == {"layers.1.attention.to_k.weight"}
        expected = before["layers.1.attention.to_k.weight"] + 0.5 * b @ a
        torch.testing.assert_close(changed["layers.1.attention.to_k.weight"], expected)
    # The same beside a resident prior, for one request: a side path at a third of the matrix.
    file = tmp_path / "lora.safetensors"
    resident = Prior.load(folder)
    asked = resident.adapted((Lora(file=str(file), sha256=lora_hash(file), scale=0.5),))
    x, t = noise((64, 64)).float(), torch.tensor([500.0, 30.0])
    plain, merged, beside = (one.predict(x, t, one.condition(PROMPTS).tokens) for one in (resident, prior, asked))
    torch.testing.assert_close(beside, merged, rtol=0, atol=1e-4)
    assert float((merged - plain).abs().max()) > 0.01
    wide = torch.randn(144, 2, generator=generator)
    module = "diffusion_model.layers.1.attention.qkv"
    save_file({f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": wide}, tmp_path / "lora.safetensors")
    prior, plain = Prior.load(f"{folder}?lora={tmp_path / 'lora.safetensors'}"), Prior.load(folder)
    name = "layers.1.attention.qkv.weight"
    torch.testing.assert_close(prior.unet.state_dict()[name], plain.unet.state_dict()[name] + wide @ a)


def test_what_does_not_fit_is_said(saved: Any, tmp_path: Path) -> None:
    import shutil

    _, folder = saved()
    prior = Prior.load(folder)
    with pytest.raises(PriorError, match=r"the picture is 72x64 pixels; expected multiples of 16, such as 64x64"):
        prior.latent_shape_of((64, 72))
    with pytest.raises(PriorError, match=r"the table of positions of .* ends at 8192; take a smaller one"):
        prior.latent_shape_of((64, 8208))
    with pytest.raises(PriorError, match=r"prediction_type is 'epsilon', and .* is a rectified flow"):
        Prior.load(f"{folder}?prediction_type=epsilon")
    with pytest.raises(PriorError, match=r"clip_skip is 2, and .* has no CLIP tower; leave it out"):
        Prior.load(f"{folder}?clip_skip=2")
    save_file({"cat": torch.zeros(48)}, tmp_path / "cat.safetensors")
    with pytest.raises(PriorError, match="lacks"):
        Prior.load(f"{folder}?embedding={tmp_path / 'cat.safetensors'}")
    other = tmp_path / "z"
    for part, message in (
        ("tokenizer/tokenizer.json", "tokenizer.json is missing; save the tokenizer in its newer form"),
        ("text_encoder/model.safetensors", "the prior lacks model.safetensors"),
        ("text_encoder", "the prior lacks the folder text_encoder"),
    ):
        shutil.rmtree(other, ignore_errors=True)
        shutil.copytree(folder, other)
        shutil.rmtree(other / part) if (other / part).is_dir() else (other / part).unlink()
        with pytest.raises(PriorError, match=message):
            Prior.load(other)
    for part, changed, message in (
        ("transformer", {"siglip_feat_dim": 1152}, "siglip_feat_dim is set, as Z-Image Omni has it"),
        ("transformer", {"cap_feat_dim": 64}, "cap_embedder.*expected"),
        ("text_encoder", {"attention_bias": True}, "attention_bias is True; expected False"),
        ("scheduler", {"invert_sigmas": True}, "invert_sigmas is True"),
    ):
        shutil.rmtree(other)
        shutil.copytree(folder, other)
        path = next((other / part).glob("*config.json"))
        path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
        with pytest.raises(PriorError, match=message):
            Prior.load(other)


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", ""])
def test_a_single_file_by_itself_is_refused_by_its_name(prefix: str, saved: Any, tmp_path: Path) -> None:
    """It holds neither the text tower nor its tokenizer; beside a folder it is read, see `test_network_files`."""
    own = Prior.load(saved()[1]).unet.state_dict()
    save_file({f"{prefix}{name}": tensor for name, tensor in own.items()}, tmp_path / "z_image.safetensors")
    with pytest.raises(PriorError, match="a Z-Image's transformer without its text towers, which is given beside the fol"):
        Prior.load(tmp_path / "z_image.safetensors")


def test_the_files_that_are_read_are_those_that_the_hub_is_asked_for(saved: Any) -> None:
    _, folder = saved()
    files = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    asked = needed([*files, "assets/showcase.jpg", "transformer/model.fp16.safetensors"])
    assert set(asked) == set(files) - {"tokenizer/chat_template.jinja"}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    diffusers.utils.logging.disable_progress_bar()
    yield
