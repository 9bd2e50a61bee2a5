"""A prior that many threads ask at once: the answers of one that is asked alone, errors as errors, nobody left waiting."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from dataclasses import replace

import numpy as np
import pytest
import torch

from diffusion.distillation import Distilled
from diffusion.engine import EngineConfig
from diffusion.prior import Prior
from diffusion.requests import Guidance
from diffusion.seeding import normal_rows, stream
from jobs.errors import PriorFailed
from jobs.prior_client import DistillationQuery, GenerateRequest
from orchestrator.prior.actor import PriorActor
from orchestrator.prior.local import LocalPrior, load_prior
from orchestrator.prior.resident import ResidentPrior
from orchestrator.prior.wire import Wire
from tests.fakes import FakePrior


def request(*seeds: int, **changes) -> GenerateRequest:
    return replace(GenerateRequest(prompts=("a red table",) * len(seeds), seeds=seeds, num_steps=4), **changes)


def query(seed: int, *, views: int = 2, **changes) -> DistillationQuery:
    pictures = normal_rows((3, 16, 16), [stream(seed, "picture", view) for view in range(views)]).sigmoid()
    return replace(
        DistillationQuery(
            images=pictures,
            prompts=("a blue table, front view",) * views,
            t=torch.arange(views) * 200 + 100,
            noise_keys=tuple((seed, "noise", view) for view in range(views)),
            guidance=Guidance(scale=5.0),
        ),
        **changes,
    )


@pytest.fixture
def resident(tiny_prior):
    prior = ResidentPrior(load_prior(str(tiny_prior)), num_threads=1, measure=False)  # a busy machine's knee is anywhere
    yield prior
    prior.close()


def test_a_process_whose_gpu_is_lost_ends_instead_of_answering(tiny_prior, monkeypatch):
    class Ended(BaseException):
        pass

    def end(code):
        raise Ended(code)

    def lost(*_, **__):
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    actor = PriorActor(load_prior, str(tiny_prior), "cpu", 1, measure=False)
    assert actor.call("generate", Wire(request(1))).shape == (1, 16, 16, 3)
    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(Prior, "predict", lost)
    with pytest.raises(Ended):
        actor.call("generate", Wire(request(1)))
    actor._prior.close()


def test_many_callers_get_what_one_gets_alone(tiny_prior, resident):
    alone = load_prior(str(tiny_prior))
    asked = [request(n, n + 1, sampler=name) for n, name in enumerate(["ddim", "heun", "ddpm", "dpmpp_2m"])]
    queries = [query(seed, form=form) for seed, form in ((1, "x0"), (2, "sds"), (3, "x0"))]
    with ThreadPoolExecutor(8) as pool:
        drawn = [pool.submit(resident.generate, each, job=f"images {n}") for n, each in enumerate(asked)]
        distilled = [pool.submit(resident.distill, each, job=f"mesh {n}") for n, each in enumerate(queries)]
    for each, future in zip(asked, drawn, strict=True):
        # A rounding step of 1/255 at most, where a value lay on the border.
        difference = np.abs(alone.generate(each).astype(int) - future.result().astype(int))
        assert difference.max() <= 1 and difference.mean() < 0.01
    for each, future in zip(queries, distilled, strict=True):
        torch.testing.assert_close(future.result().gradient, alone.distill(each).gradient, rtol=1e-4, atol=1e-5)
    assert set(resident.figures.rows) == {*(f"images {n}" for n in range(4)), *(f"mesh {n}" for n in range(3))}
    # Fewer forwards than the requests have denoising steps: 4 + 7 + 4 + 4 of trajectories and 3 of queries.
    assert resident.figures.forwards < 22


def test_one_caller_alone_gets_the_same_bits_again(tiny_prior, resident):
    alone = load_prior(str(tiny_prior))
    for each in (query(1), query(2, views=4), query(1)):
        assert torch.equal(resident.distill(each).gradient, alone.distill(each).gradient)
    assert (resident.generate(request(1, 2, 3)) == alone.generate(request(1, 2, 3))).all()


def test_strict_images_do_not_depend_on_who_asks_for_how_many(tiny_prior, resident):
    one = load_prior(str(tiny_prior)).generate(request(7, strict=True))
    futures = [resident.start_generate(request(n, strict=n % 2 == 0), job=str(n)) for n in range(20, 26)]
    several = resident.generate(request(5, 6, 7, 8, 9, strict=True))
    wait(futures)
    assert (several[2] == one[0]).all()


def test_a_cancelled_request_stops_and_the_others_go_on(resident):
    long = resident.start_generate(request(1, num_steps=500), job="long")
    while not resident.figures.forwards:
        time.sleep(0.005)
    assert long.cancel()
    assert resident.generate(request(2)).shape == (1, 16, 16, 3)
    forwards = resident.figures.forwards
    time.sleep(0.1)
    assert resident.figures.forwards == forwards < 400
    with pytest.raises(CancelledError):
        long.result()


def test_the_end_of_a_job_ends_its_requests(resident):
    futures = [resident.start_generate(request(seed, num_steps=500), job="gone") for seed in range(3)]
    other = resident.start_generate(request(9), job="stays")
    resident.end_job("gone")
    for future in futures:
        with pytest.raises(PriorFailed, match="of job 'gone' was cancelled"):
            future.result(timeout=20)
    assert other.result(timeout=20).shape == (1, 16, 16, 3)


def test_closing_leaves_nobody_waiting(resident):
    future = resident.start_generate(request(1, num_steps=900))
    resident.close()
    with pytest.raises(PriorFailed, match="was unloaded while it was asked; ask again"):
        future.result(timeout=10)
    with pytest.raises(PriorFailed, match="was unloaded"):
        resident.generate(request(1))


def test_a_mistake_inside_the_engine_leaves_nobody_waiting(resident, monkeypatch):
    def broken():
        raise AssertionError("a mistake")

    monkeypatch.setattr(resident._prior.engine, "step", broken)
    for _ in range(2):
        with pytest.raises(PriorFailed, match=r"The prior's engine stopped \(AssertionError: a mistake\)"):
            resident.generate(request(1))
    assert resident.has_ended


def test_errors_name_their_cause():
    class Nowhere(FakePrior):
        def predict(self, x_t, t, tokens):
            return super().predict(x_t, t, tokens) * torch.nan

    class Small(FakePrior):
        def predict(self, x_t, t, tokens):
            raise torch.OutOfMemoryError("CUDA out of memory")

    for model, words in ((Nowhere, "a number that is not finite"), (Small, "out of memory even for the smallest batch")):
        prior = ResidentPrior(LocalPrior(model()), num_threads=1)
        with pytest.raises(PriorFailed, match=words):
            prior.generate(GenerateRequest(prompts=("a red ball",), seeds=(1,), num_steps=2))
        prior.close()


def test_weights_divide_the_rows(tiny_prior):
    """Two jobs that always have something to do; the heavy one is drawn about three times as much."""
    prior = ResidentPrior(LocalPrior(Prior.load(tiny_prior), config=EngineConfig(row_cap=4)), num_threads=1, measure=False)
    prior.set_weight("heavy", 3.0)
    jobs = ("heavy", "light")
    futures = {job: [prior.start_generate(request(seed, num_steps=50), job=job) for seed in range(30)] for job in jobs}
    while sum(prior.figures.rows.values()) < 320:
        time.sleep(0.01)
    rows = dict(prior.figures.rows)
    for job in jobs:
        prior.end_job(job)
    assert rows["heavy"] / rows["light"] == pytest.approx(3.0, rel=0.2)
    wait(futures["heavy"] + futures["light"])
    prior.close()


def test_the_batch_size_is_measured_when_two_first_meet(tiny_prior):
    prior = ResidentPrior(load_prior(str(tiny_prior)), num_threads=1)
    assert prior.generate(request(1)).shape == (1, 16, 16, 3)
    assert not prior.figures.rows_per_second and prior.figures.forwards == 4 and prior.figures.batch_rows == 8
    wait([prior.start_generate(request(seed, num_steps=50), job=str(seed)) for seed in range(3)])
    assert prior.figures.to_json()["rows_per_second"][1] > 0
    assert prior._prior.engine.row_cap in prior.figures.rows_per_second
    prior.close()
    assert "prior-engine" not in [thread.name for thread in threading.enumerate()]
    assert prior.num_bytes > 100_000


def test_the_answer_of_a_query_keeps_its_type(resident):
    assert isinstance(resident.distill(query(1, form="sds", strict=True)), Distilled)
    assert resident.unknown_words(["a purple table"]) == ["purple"] and resident.info().name == "tiny"
