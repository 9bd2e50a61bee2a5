"""FLUX.2 klein's folders against diffusers' own pipeline on the same random weights: texts, pictures, the engine, files."""

import copy
import functools
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from diffusion.checkpoints.defaults import SETTINGS, defaults_of
from diffusion.checkpoints.errors import PriorError
from diffusion.checkpoints.footprint import footprint
from diffusion.checkpoints.hub import needed
from diffusion.checkpoints.lora_files import Lora
from diffusion.checkpoints.source import Source
from diffusion.checkpoints.transformer_keys import folder_transformer
from diffusion.engine import Engine, EngineConfig
from diffusion.flow_schedule import EmpiricalShift
from diffusion.prior import Prior
from diffusion.requests import Condition, DecodeRequest, Guidance, run
from diffusion.samplers import SAMPLERS, image_to_image, timesteps_for
from diffusion.seeding import normal_rows, stream
from jobs.prior_client import GenerateRequest
from orchestrator.prior.local import LocalPrior
from tests.diffusion.checkpoints.published import KLEIN_LAYERS, random_klein, widened_qwen3_norm
from tests.diffusion.test_flux2 import widened_rotation

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings(
        "ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning"
    ),
]
PROMPTS = ["a red mushroom", "a corgi on a wall of bricks, 8k, in the evening"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @functools.cache
    def make(is_distilled: bool = False) -> tuple[Any, Path]:
        folder = tmp_path_factory.mktemp("klein")
        return random_klein(folder, is_distilled=is_distilled), folder

    return make


def in_float64(prior: Prior) -> Prior:
    for part in (prior.unet, prior.autoencoder, prior.text_encoder):
        part.double()
    prior.text_cache.clear()
    return prior


class ExactFlowMatchEuler(diffusers.FlowMatchEulerDiscreteScheduler):
    """diffusers' own, whose levels and steps are rounded to float32, in float64 with mu as its pipeline gives it."""

    def set_timesteps(self, num_inference_steps: Any = None, sigmas: Any = None, mu: Any = None, **_: Any) -> None:
        super().set_timesteps(sigmas=sigmas, mu=mu)
        levels = torch.linspace(1, 1 / len(sigmas), len(sigmas), dtype=torch.float64)
        exact = math.exp(mu) / (math.exp(mu) + 1 / levels - 1)
        torch.testing.assert_close(self.timesteps, (1000 * exact).float(), rtol=1e-5, atol=0)
        self.timesteps, self.sigmas = 1000 * exact, torch.cat([exact, torch.zeros(1).double()])

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, **_: Any) -> tuple[Tensor]:
        index = int((self.timesteps == timestep).nonzero())
        return (sample + (self.sigmas[index + 1] - self.sigmas[index]) * model_output,)


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> Any:
    """diffusers' pipeline in float64, with float64 where it would round to float32 whatever it is given."""
    from diffusers.models.transformers import transformer_flux2
    from transformers.models.qwen3 import modeling_qwen3

    def make(pipeline: Any) -> Any:
        monkeypatch.setattr(transformer_flux2, "apply_rotary_emb", widened_rotation)
        monkeypatch.setattr(modeling_qwen3.Qwen3RMSNorm, "forward", widened_qwen3_norm)
        parts = {name: copy.deepcopy(getattr(pipeline, name)).double() for name in ("vae", "text_encoder", "transformer")}
        scheduler = ExactFlowMatchEuler(shift=3.0, use_dynamic_shifting=True)
        distilled = pipeline.config.is_distilled
        wide = diffusers.Flux2KleinPipeline(scheduler=scheduler, tokenizer=pipeline.tokenizer, is_distilled=distilled, **parts)
        wide.set_progress_bar_config(disable=True)
        return wide

    return make


# -- the text ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_texts_are_the_pipeline_s(saved: Any, exact: Any) -> None:
    """Three of Qwen3's layers side by side, thinking disabled; always 512 rows, padding's own states among them."""
    pipeline, folder = saved()
    prior = in_float64(Prior.load(folder))
    prompts = [*PROMPTS, "", "xy" * 400]
    expected, _ = exact(pipeline).encode_prompt(prompts, text_encoder_out_layers=KLEIN_LAYERS)
    states, pooled = prior.encode_text(prompts)
    assert pooled is None and states.shape == (4, 512, 144)
    torch.testing.assert_close(states, expected, rtol=0, atol=1e-9)
    # Rows of padding differ from each other and from text to text: they stand at places, and read the words.
    lengths = [len(prior.text_encoder.tokens(prompt)) for prompt in prompts]
    assert float((states[0, lengths[0]] - states[0, -1]).abs().max()) > 1e-3
    assert float((states[0, -1] - states[1, -1]).abs().max()) > 1e-3
    assert len(prior.text_encoder.encoder.layers) == 3 and prior.num_chunks(["a"]) == prior.num_chunks(["a " * 60])
    assert (
        "of which the first 512 are read" in str(prior.prompt_warning("xy" * 400)) and prior.prompt_warning("(a:1.2)") is None
    )


def test_a_text_is_computed_once(saved: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    prior = Prior.load(saved()[1])
    calls: list[int] = []
    project = prior.unet.project_context
    monkeypatch.setattr(prior.unet, "project_context", lambda *given: calls.append(given[0].shape[1]) or project(*given))
    for prompts in (PROMPTS, PROMPTS[:1], PROMPTS[1:]):
        assert prior.condition(prompts).tokens.shape[1:] == (512, 48)
    assert calls == [512] * 3  # two prompts and the empty one
    run(SAMPLERS["euler"](noise((64, 64)).float(), **sampling(prior, (64, 64))), prior.answer)
    assert len(calls) == 3


# -- whole pictures ----------------------------------------------------------------------------------------------------


def noise(size: tuple[int, int]) -> Tensor:
    return torch.randn(2, 32, size[0] // 8, size[1] // 8, generator=torch.manual_seed(3)).double()


def sampling(prior: Prior, size: tuple[int, int], num_steps: int = 4, *, scale: float = 4.0) -> dict[str, Any]:
    schedule = prior.schedule.fitted((size[0] // 8, size[1] // 8), patch=2, num_steps=num_steps)
    condition, guidance = prior.told_scale(prior.condition(PROMPTS), Guidance(scale=scale))
    timesteps = timesteps_for("euler", schedule, num_steps)
    return {"schedule": schedule, "timesteps": timesteps, "condition": condition, "guidance": guidance}


def drawn(prior: Prior, size: tuple[int, int], dtype: torch.dtype = torch.float64, **told: Any) -> Tensor:
    latents = run(SAMPLERS["euler"](noise(size).to(dtype), **sampling(prior, size, **told)), prior.answer)
    return prior.answer(DecodeRequest(latents))


def by_diffusers(pipeline: Any, size: tuple[int, int], num_steps: int, scale: float, dtype: torch.dtype) -> Tensor:
    told = {"num_inference_steps": num_steps, "guidance_scale": scale, "output_type": "pt", "height": size[0], "width": size[1]}
    latents = F.pixel_unshuffle(noise(size).to(dtype), 2)
    return pipeline(prompt=list(PROMPTS), latents=latents, text_encoder_out_layers=KLEIN_LAYERS, **told).images


@pytest.mark.parametrize(
    ("is_distilled", "scale", "size"),
    [(False, 4.0, (64, 96)), (False, 4.0, (48, 80)), (False, 1.0, (64, 64)), (True, 4.0, (64, 64))],
)
@torch.no_grad()
def test_pictures_equal_diffusers_in_float64(
    is_distilled: bool, scale: float, size: tuple[int, int], saved: Any, exact: Any
) -> None:
    """uncond + s (cond - uncond) with the empty negative; the distilled model ignores s."""
    pipeline, folder = saved(is_distilled)
    theirs = by_diffusers(exact(pipeline), size, 4, scale, torch.float64)
    prior = in_float64(Prior.load(folder))
    ours = drawn(prior, size, scale=scale)
    assert ours.shape == (2, 3, *size)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-8)
    if is_distilled:
        assert torch.equal(ours, drawn(prior, size, scale=1.0)) and prior.ignores_guidance


@torch.no_grad()
def test_pictures_in_float32_are_as_close_as_diffusers_is_to_itself(saved: Any, exact: Any) -> None:
    """With its own scheduler; root mean squares of differences to float64."""
    pipeline, folder = saved()
    size = (64, 96)
    single = by_diffusers(pipeline, size, 6, 4.0, torch.float32)
    ours = drawn(Prior.load(folder), size, torch.float32, num_steps=6)
    truth = by_diffusers(exact(pipeline), size, 6, 4.0, torch.float64)
    assert float((ours - truth).square().mean()) <= 4 * float((single - truth).square().mean())
    assert float((ours - truth).abs().max()) <= 2 * float((single - truth).abs().max())


@torch.no_grad()
def test_a_request_is_drawn_at_the_levels_of_its_own_size_and_steps(saved: Any) -> None:
    """Through `LocalPrior`, as every command draws; a distilled model costs no unconditional rows."""
    pipeline, folder = saved(True)
    prior = LocalPrior(Prior.load(folder))
    rows: list[int] = []
    forward = prior._prior.unet.forward
    prior._prior.unet.forward = lambda x, *args, **kwargs: rows.append(len(x)) or forward(x, *args, **kwargs)
    request = GenerateRequest(
        prompts=(PROMPTS[0],), seeds=(7,), num_steps=4, sampler="euler", guidance=Guidance(scale=4.0), size=(48, 80)
    )
    picture = prior.generate(request)[0]
    assert rows == [1] * 4
    latents = F.pixel_unshuffle(normal_rows((32, 6, 10), [stream(7, "image")]), 2)
    told = {"num_inference_steps": 4, "output_type": "pt", "height": 48, "width": 80}
    theirs = pipeline(prompt=PROMPTS[0], latents=latents, text_encoder_out_layers=KLEIN_LAYERS, **told).images[0]
    expected = (theirs.clamp(0, 1) * 255).round().permute(1, 2, 0)
    assert float((torch.from_numpy(picture).float() - expected).abs().max()) <= 1


@torch.no_grad()
def test_a_picture_is_drawn_anew_and_kept_where_it_is_masked(saved: Any) -> None:
    prior = Prior.load(saved()[1])
    images, masks = torch.rand(2, 3, 64, 64, generator=torch.manual_seed(4)), torch.ones(2, 1, 64, 64)
    masks[..., :32] = 0
    told = {"sampler": SAMPLERS["euler"], "strength": 0.75, "start_noise": noise((64, 64)).float(), "masks": masks}
    edited = run(image_to_image(images, **told, **sampling(prior, (64, 64))), prior.answer)
    assert torch.equal(edited[..., :32], images[..., :32]) and float((edited - images)[..., 32:].abs().max()) > 0.05


# -- the engine --------------------------------------------------------------------------------------------------------


def test_strict_pictures_are_bit_equal_alone_and_among_others(saved: Any) -> None:
    prior = Prior.load(saved()[1])
    schedule = prior.schedule.fitted((8, 8), patch=2, num_steps=3)
    guidance = {"schedule": schedule, "timesteps": timesteps_for("euler", schedule, 3), "guidance": Guidance(4.0)}

    def begin(seed: int) -> Any:
        def drawing(condition: Condition) -> Any:
            x = normal_rows(prior.latent_shape, [stream(seed, "image")])
            return SAMPLERS["euler"](x, condition=condition, **guidance)

        return drawing

    def pictures(seeds: list[int]) -> dict[int, Tensor]:
        engine = Engine(prior, config=EngineConfig(strict_rows=4))
        tickets = {s: engine.submit(begin(s), prompts=[PROMPTS[s % 2]], slots=[s]) for s in seeds}
        others = [engine.submit(begin(9), prompts=["a wall of bricks"]) for _ in range(2) if len(seeds) > 1]
        while engine.live:
            engine.step()
        assert all(bool(ticket.result().isfinite().all()) for ticket in others)
        return {seed: ticket.result() for seed, ticket in tickets.items()}

    together = pictures([0, 1, 2, 3])
    for seed in (0, 1):
        assert torch.equal(together[seed], pictures([seed])[seed])


# -- files -------------------------------------------------------------------------------------------------------------


def test_defaults_are_known_before_it_is_loaded_and_the_distilled_one_is_recognised(saved: Any) -> None:
    base, distilled = (str(saved(kind)[1]) for kind in (False, True))
    found = defaults_of(Source.parse(base))
    assert (found.family, found.recipe, found.image_size, found.distilled) == ("FLUX.2 klein", "rfds-sd3", 64, "")
    assert found.values == dict(zip(SETTINGS, (50, 4.0, 0.0, "euler", None), strict=True))
    few = dict(zip(SETTINGS, (4, 1.0, 0.0, "euler", None), strict=True))
    found = defaults_of(Source.parse(distilled))
    assert found.values == few and found.distilled == "steps" and "by its model_index.json: 4 steps" in found.note
    assert defaults_of(Source.parse(f"{distilled}?distilled=none")).values["num_steps"] == 50
    named = defaults_of(Source.parse("black-forest-labs/FLUX.2-klein-4B"))
    assert (named.family, named.values) == ("FLUX.2 klein", few)
    assert defaults_of(Source.parse("black-forest-labs/FLUX.2-klein-base-4B")).values["guidance_scale"] == 4.0
    prior = Prior.load(base)
    assert prior.schedule.resolution_shift == EmpiricalShift() and not prior.ignores_guidance and prior.distilled == ""
    # What has no number of steps, a distillation's level, is shifted as in 50 steps of its own size.
    assert prior.schedule.shift == pytest.approx(EmpiricalShift().shift(16, 50)) and prior.size_multiple == 16
    assert prior.latent_shape == (32, 8, 8)


@torch.no_grad()
def test_a_lora_changes_the_transformer_in_diffusers_names_and_in_the_single_files(saved: Any, tmp_path: Path) -> None:
    pipeline, folder = saved()
    generator = torch.manual_seed(5)
    a, b = torch.randn(2, 48, generator=generator), torch.randn(144, 2, generator=generator)
    before, file = pipeline.transformer.state_dict(), tmp_path / "lora.safetensors"
    for module, up in (
        ("transformer.transformer_blocks.1.attn.to_k", b[:48]),
        ("diffusion_model.double_blocks.1.img_attn.qkv", b),
    ):
        save_file({f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": up}, file)
        prior = Prior.load(f"{folder}?lora={file}:0.5")
        changed = folder_transformer(prior.unet.state_dict()).to_published(prior.unet.state_dict())
        names = {name for name in before if not torch.equal(before[name], changed[name])}
        touched = ("k",) if len(up) == 48 else ("q", "k", "v")
        assert names == {f"transformer_blocks.1.attn.to_{part}.weight" for part in touched}
        whole = torch.cat([before[f"transformer_blocks.1.attn.to_{part}.weight"] for part in touched])
        found = torch.cat([changed[f"transformer_blocks.1.attn.to_{part}.weight"] for part in touched])
        torch.testing.assert_close(found, whole + 0.5 * up @ a)
        resident = Prior.load(folder)
        asked = resident.adapted((Lora.named(f"{file}:0.5"),))
        x, t = noise((64, 64)).float(), torch.tensor([500.0, 30.0])
        plain, merged, beside = (one.predict(x, t, one.condition(PROMPTS).tokens) for one in (resident, prior, asked))
        torch.testing.assert_close(beside, merged, rtol=0, atol=1e-4)
        assert float((merged - plain).abs().max()) > 0.01


def test_what_does_not_fit_is_said(saved: Any, tmp_path: Path) -> None:
    _, folder = saved()
    prior = Prior.load(folder)
    with pytest.raises(PriorError, match=r"the picture is 72x64 pixels; expected multiples of 16, such as 64x64"):
        prior.latent_shape_of((64, 72))
    with pytest.raises(PriorError, match=r"clip_skip is 2, and .* has no CLIP tower; leave it out"):
        Prior.load(f"{folder}?clip_skip=2")
    other = tmp_path / "klein"
    for part, changed, message in (
        ("transformer", {"guidance_embeds": True}, "guidance_embeds is True; expected False, as klein has it"),
        ("transformer", {"joint_attention_dim": 96}, "context_embedder.*expected"),
        ("text_encoder", {"hidden_act": "gelu"}, "hidden_act is 'gelu'; expected 'silu'"),
        ("vae", {"patch_size": [4, 4]}, r"patch_size is \[4, 4\]; expected 2"),
        ("vae", {"latent_channels": 16}, "do not fit"),
    ):
        shutil.rmtree(other, ignore_errors=True)
        shutil.copytree(folder, other)
        path = other / part / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
        with pytest.raises(PriorError, match=message):
            Prior.load(other)
    tokenizer = other / "tokenizer/tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace("<|endoftext|>", "<|nothing|>"))
    with pytest.raises(PriorError, match=r"the tokenizer lacks <\|endoftext\|>, by which prompts are filled up"):
        shutil.copy(folder / "vae/config.json", other / "vae/config.json")
        Prior.load(other)
    (other / "model_index.json").write_text(json.dumps({"_class_name": "Flux2Pipeline", "transformer": ["x", "y"]}))
    with pytest.raises(PriorError, match=r"is a FLUX \(Flux2Pipeline\), which is not supported; use a folder of"):
        Prior.load(other)


def test_memory_and_files_are_those_that_are_read(saved: Any) -> None:
    _, folder = saved()
    prior = Prior.load(folder)
    numbers = sum(p.numel() for part in (prior.unet, prior.autoencoder, prior.text_encoder) for p in part.parameters())
    # Statistics of the batch norm are no parameters; the file has a count of steps besides.
    assert footprint(str(folder)).weights == 4 * (numbers + 2 * 128 + 1)
    files = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    assert set(needed(files)) == set(files) - {"tokenizer/chat_template.jinja"}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    diffusers.utils.logging.disable_progress_bar()
    yield
