"""Replicas of a prior in a real Ray: one dies in the middle of what it was asked, another gives the same answer."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from diffusion.seeding import normal_rows, stream
from jobs.errors import PriorFailed
from jobs.prior_client import DistillationQuery, GenerateRequest
from orchestrator.prior.client import RayPrior
from orchestrator.prior.local import load_prior
from orchestrator.prior.wire import Wire
from orchestrator.runtimes.ray_runtime import RayRuntime

# ray opens files at interpreter exit and warns in its own modules; that is not ours to mend.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]

LONG = GenerateRequest(prompts=("a red table",), seeds=(3,), num_steps=400)
QUERY = DistillationQuery(
    images=normal_rows((3, 16, 16), [stream(0, "picture", view) for view in range(2)]).sigmoid(),
    prompts=("a blue table",) * 2,
    t=torch.tensor([200, 600]),
    noise_keys=((1, "noise", 0), (1, "noise", 1)),
)


def process_of(replica) -> int:
    import ray

    return ray.get(replica.__ray_call__.remote(lambda actor: os.getpid()))


def wait_until_drawing(replica) -> None:
    import ray

    while not ray.get(replica.figures.remote()).get("forwards"):
        time.sleep(0.02)


def test_what_a_dead_replica_was_asked_another_answers_alike(tiny_prior):
    alone = load_prior(str(tiny_prior))
    with RayRuntime(load_prior, str(tiny_prior), num_threads=1, num_replicas=2) as runtime:
        prior = runtime.prior()
        assert isinstance(prior, RayPrior)
        first = runtime._replicas[0]
        prior.info()
        with ThreadPoolExecutor() as pool:
            drawing = pool.submit(prior.generate, LONG)
            wait_until_drawing(first)
            os.kill(process_of(first), signal.SIGKILL)
            assert (drawing.result(timeout=120) == alone.generate(LONG)).all()
        # Ray has started the first one again, or its turn goes to the second: either way the answer is the same.
        assert torch.equal(prior.distill(QUERY).gradient, alone.distill(QUERY).gradient)


def test_a_lone_replica_that_dies_is_named(tiny_prior):
    with RayRuntime(load_prior, str(tiny_prior), num_threads=1) as runtime:
        (replica,) = runtime._replicas
        assert runtime.prior().info().name == "tiny"
        os.kill(process_of(replica), signal.SIGKILL)
        with pytest.raises(PriorFailed, match=r"The process that holds the prior died .*; the same command continues"):
            runtime.prior().distill(QUERY)


def test_a_message_arrives_as_it_was_sent():
    again = Wire(QUERY).open()
    assert torch.equal(again.images, QUERY.images) and again.t.dtype == torch.long
    assert (again.prompts, again.noise_keys, again.guidance) == (QUERY.prompts, QUERY.noise_keys, QUERY.guidance)
    assert vars(Wire(LONG).open()) == vars(LONG)
