"""What a UNet computes of a text: once a prompt, kept within bounds, and the same numbers as in every forward."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from diffusion.distillation import score_distillation
from diffusion.engine import Engine
from diffusion.networks.projected_context import ProjectedContext
from diffusion.networks.unet import UNet2DCondition, UNetConfig
from diffusion.prior import Prior
from diffusion.requests import DecodeRequest, Guidance
from diffusion.samplers import SAMPLERS
from diffusion.seeding import normal, normal_rows, step_noise, stream
from diffusion.text.row_cache import RowCache, side_by_side
from tests.fakes import save_tiny_prior

PLAIN = UNetConfig(
    sample_size=8, block_out_channels=(32, 64, 64, 64), cross_attention_dim=48, transformer_layers_per_block=(1, 2, 1, 1)
)
CONFIGS = {
    "Stable Diffusion's": PLAIN,
    "toybox's": replace(PLAIN, addition_embed_type="text", addition_embed_type_num_heads=3),
    "SDXL's": replace(
        PLAIN,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=5 + 6 * 8,
        use_linear_projection=True,
    ),
    "an inpainting one": replace(PLAIN, in_channels=9),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_a_forward_and_its_gradients_are_those_of_the_raw_text(config: UNetConfig) -> None:
    torch.manual_seed(0)
    unet = UNet2DCondition(config).double()
    x, t = normal((3, config.in_channels, 8, 8), stream(0, "x")).double(), torch.tensor([1, 400, 999])
    states = normal((3, 7, 48), stream(0, "states")).double().requires_grad_()
    added = torch.tensor([[0.3, 1, -2, 0, 1, 64, 64, 0, 8, 64, 64]], dtype=torch.float64).expand(3, -1)
    weight = unet.up_blocks[-1].attentions[-1].transformer_blocks[0].attn2.to_v.weight
    answers, gradients = [], []
    for context in (
        states,
        ProjectedContext.unpacked(unet.project_context(states, added).packed(), embedding_dim=unet.context_embedding_dim),
    ):
        answers.append(unet(x, t, context, added))
        gradients.append(torch.autograd.grad(answers[-1].square().sum(), (states, weight)))
    torch.testing.assert_close(answers[1], answers[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-9, atol=1e-9)
    assert gradients[0][0].abs().max() > 0


def test_sdxls_sizes_keep_their_precision_in_half_a_network() -> None:
    """1024 and 1028 are one number in bfloat16: sizes become sinusoids in float32, whatever the weights are."""
    torch.manual_seed(0)
    unet = UNet2DCondition(CONFIGS["SDXL's"]).bfloat16()
    states = normal((2, 7, 48), stream(0, "states")).bfloat16()
    added = torch.tensor([[0.3, 1, -2, 0, 1, 1024, 1024, 0, 0, side, side] for side in (1024, 1028)])
    projected = unet.project_context(states, added)
    assert projected.embedding is not None and projected.embedding.dtype == torch.bfloat16
    assert not torch.equal(projected.embedding[0], projected.embedding[1])
    x, t = normal((2, 4, 8, 8), stream(0, "x")).bfloat16(), torch.tensor([1, 900])
    assert torch.equal(unet(x, t, projected), unet(x, t, states, added))


def test_the_network_reads_each_text_once_however_many_steps_and_requests(tmp_path) -> None:
    prior = Prior.load(save_tiny_prior(tmp_path))
    calls: Counter[str] = Counter()
    once_a_text = [name for name, _ in prior.unet.named_modules() if name.endswith(("attn2.to_k", "attn2.to_v"))]
    for name in (*once_a_text, "add_embedding.pool", "conv_in"):
        prior.unet.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.update([name]))
    for name, tower, _ in prior.towers:
        tower.register_forward_hook(lambda *_, name=name: calls.update([name]))
    engine = Engine(prior)

    def drawing(seed: int):
        def begin(condition):
            latents = yield from SAMPLERS["pndm"](
                normal_rows(prior.latent_shape, [stream(seed, "image")]),
                schedule=prior.schedule,
                timesteps=prior.schedule.timesteps(6),
                condition=condition,
                guidance=Guidance(scale=4.0),
                noise=step_noise([(seed, "image")], prior.latent_shape),
            )
            return (yield DecodeRequest(latents))

        return begin

    def distilling(condition):
        return score_distillation(
            torch.full((2, 3, 16, 16), 0.5),
            condition=condition,
            guidance=Guidance(scale=4.0),
            schedule=prior.schedule,
            t=torch.tensor([300, 600]),
            noise=normal_rows(prior.latent_shape, [stream(0, "noise", view) for view in range(2)]),
        )

    tickets = [
        engine.submit(drawing(0), prompts=["a red table"]),
        engine.submit(drawing(1), prompts=["a red table"], slots=[1]),
        engine.submit(distilling, prompts=["a red table", "a blue table"], kind="query"),
    ]
    while engine.live:
        engine.step()
    assert [ticket.state for ticket in tickets] == ["done"] * 3
    assert calls["conv_in"] > 6
    # A red table, a blue table, and the empty negative prompt of all.
    assert {name: calls[name] for name in (*once_a_text, "add_embedding.pool", "text_encoder")} == dict.fromkeys(
        (*once_a_text, "add_embedding.pool", "text_encoder"), 3
    )


def test_the_least_recently_used_text_goes_when_its_bytes_are_needed() -> None:
    cache, computed = RowCache(max_bytes=3 * 40), []

    def get(key: str, size: int = 10) -> torch.Tensor:
        return cache.get(key, lambda: computed.append(key) or torch.full((size,), float(len(computed))))

    first = get("a")
    get("b"), get("c")
    assert get("a") is first
    get("d")
    assert [key in cache for key in "abcd"] == [True, False, True, True]
    get("larger than all", 100)
    assert "larger than all" in cache and not any(key in cache for key in "acd")
    get("a")
    assert computed == ["a", "b", "c", "d", "larger than all", "a"] and "larger than all" not in cache


def test_one_text_many_times_takes_its_memory_once() -> None:
    red, blue = torch.ones(2, 3), torch.zeros(2, 3)
    same = side_by_side([red[None][0], red])
    assert same.shape == (2, 2, 3) and same.untyped_storage().data_ptr() == red.untyped_storage().data_ptr()
    torch.testing.assert_close(side_by_side([red, blue]), torch.stack([red, blue]))
