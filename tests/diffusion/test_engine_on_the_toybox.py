"""The engine on the prior that ships: strict results are batch-invariant, fast ones nearly."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from diffusion.distillation import score_distillation
from diffusion.engine import Engine, EngineConfig, Ticket, profile_batches
from diffusion.prior import Prior
from diffusion.requests import DecodeRequest, Guidance
from diffusion.samplers import SAMPLERS
from diffusion.seeding import normal_rows, step_noise, stream

STEPS = 2
PROMPTS = [f"a {colour} {thing}" for colour in ("red", "blue", "green", "white") for thing in ("cup", "duck", "table", "house")]


@pytest.fixture(scope="module")
def prior() -> Prior:
    return Prior.load("toybox")


def submit_image(engine: Engine, prior: Prior, prompt: str, seed: int, *, strict: bool, sampler: str = "ddim") -> Ticket:
    names = [(seed, "image")]

    def begin(condition):
        latents = yield from SAMPLERS[sampler](
            normal_rows(prior.latent_shape, [stream(*name) for name in names]),
            schedule=prior.schedule,
            timesteps=prior.schedule.timesteps(STEPS),
            condition=condition,
            guidance=Guidance(scale=4.0, rescale=0.5),
            noise=step_noise(names, prior.latent_shape),
        )
        return (yield DecodeRequest(latents))

    return engine.submit(begin, prompts=[prompt], job=prompt, slots=[seed] if strict else None)


def submit_query(engine: Engine, prior: Prior, seed: int, *, views: int, strict: bool) -> Ticket:
    def begin(condition):
        return score_distillation(
            normal_rows((3, prior.image_size, prior.image_size), [stream(seed, "picture", v) for v in range(views)]).sigmoid(),
            condition=condition,
            guidance=Guidance(scale=7.0, rescale=0.5, rescale_on="x0"),
            schedule=prior.schedule,
            t=torch.arange(views) * 100 + 300,
            noise=normal_rows(prior.latent_shape, [stream(seed, "noise", v) for v in range(views)]),
            form="sds" if seed % 2 else "x0",
        )

    slots = [seed + view for view in range(views)] if strict else None
    return engine.submit(begin, prompts=PROMPTS[:views], job=f"mesh {seed}", kind="query", slots=slots)


def until_idle(engine: Engine) -> None:
    while engine.live:
        engine.step()


def alone_and_in_a_crowd(prior: Prior, *, strict: bool, config: EngineConfig) -> list[tuple[Tensor, Tensor]]:
    """Results of one image and of one query, alone and among 15 strangers of both kinds."""
    alone = []
    for submit in (
        lambda e: submit_image(e, prior, PROMPTS[5], 5, strict=strict),
        lambda e: submit_query(e, prior, 21, views=3, strict=strict),
    ):
        engine = Engine(prior, config=config)
        ticket = submit(engine)
        until_idle(engine)
        alone.append(ticket.result())
    engine = Engine(prior, config=config)
    samplers: Sequence[str] = list(SAMPLERS)
    for seed in range(5):
        submit_image(engine, prior, PROMPTS[seed], seed, strict=strict, sampler=samplers[seed])
    engine.step()
    image, query = (
        submit_image(engine, prior, PROMPTS[5], 5, strict=strict),
        submit_query(engine, prior, 21, views=3, strict=strict),
    )
    for seed in range(6, 16):
        submit_image(engine, prior, PROMPTS[seed], seed, strict=strict and seed % 3 > 0)
    submit_query(engine, prior, 22, views=2, strict=strict)
    until_idle(engine)
    return [(alone[0], image.result()), (alone[1].gradient, query.result().gradient)]


def test_strict_results_are_bit_identical_alone_and_among_15_strangers(prior: Prior) -> None:
    for alone, crowd in alone_and_in_a_crowd(prior, strict=True, config=EngineConfig()):
        assert torch.equal(alone, crowd)


def test_fast_results_are_nearly_the_same_alone_and_in_a_crowd(prior: Prior) -> None:
    (picture, in_crowd), (gradient, gradient_in_crowd) = alone_and_in_a_crowd(
        prior, strict=False, config=EngineConfig(row_cap=10)
    )
    assert not torch.equal(picture, in_crowd)  # otherwise this test would compare nothing
    torch.testing.assert_close(in_crowd, picture, rtol=0, atol=1e-4)
    torch.testing.assert_close(gradient_in_crowd, gradient, rtol=0, atol=1e-4 * float(gradient.abs().max()))


def test_the_profile_measures_this_network(prior: Prior) -> None:
    tokens = prior.condition([""]).tokens
    profile = profile_batches(prior.predict, latent_shape=prior.latent_shape, tokens=tokens, sizes=(1, 2, 4), repeats=1)
    assert set(profile.rows_per_second) <= {1, 2, 4} and profile.rows_per_second[1] > 0
    assert profile.knee() in profile.rows_per_second
