"""Strict mode from the command's words to the last bit: a whole 3D job alone, and beside others on one shared prior."""

from __future__ import annotations

import contextlib
import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from diffusion.distillation import Distilled
from jobs.events import Checkpoint
from jobs.prior_client import DistillationQuery, LossQuery, PriorInfo
from jobs.specs import TextTo3DSpec
from jobs.text_to_3d import text_to_3d
from orchestrator.prior.local import load_prior
from orchestrator.prior.resident import ResidentPrior
from orchestrator.settings.compose import compose
from tests.fakes import FAST_FIT, FAST_MESH

SPEC = TextTo3DSpec(prompt="a red mushroom", strict=True, fit=dataclasses.replace(FAST_FIT, num_steps=2), mesh=FAST_MESH)


class AskedFor:
    """A resident prior, asked on behalf of one job."""

    def __init__(self, prior: ResidentPrior, job: str) -> None:
        self._prior, self._job = prior, job

    def info(self) -> PriorInfo:
        return self._prior.info()

    def prompt_warnings(self, prompts: list[str]) -> list[str]:
        return self._prior.prompt_warnings(prompts)

    def unknown_words(self, prompts: list[str]) -> list[str]:
        return self._prior.unknown_words(prompts)

    def distill(self, query: DistillationQuery) -> Distilled:
        return self._prior.distill(query, job=self._job)

    def losses(self, query: LossQuery) -> torch.Tensor:
        return self._prior.losses(query, job=self._job)


def fitted(spec: TextTo3DSpec, prior: ResidentPrior) -> dict[str, np.ndarray]:
    """Everything that the fit has made after its last step, and what the prior said of it on the way."""
    torch.set_num_threads(1)  # of this thread
    with contextlib.closing(text_to_3d(spec, AskedFor(prior, spec.name))) as events:
        last = next(event for event in events if isinstance(event, Checkpoint) and event.step == spec.fit.num_steps)
    return {**last.tensors, "scores": np.array(list(last.meta["scores"].values()))}


def test_a_strict_3d_job_is_bit_identical_alone_and_beside_three_others():
    alone = ResidentPrior(load_prior("toybox"), num_threads=1, measure=False)
    expected = fitted(SPEC, alone)
    forwards_alone = alone.figures.forwards
    alone.close()
    shared = ResidentPrior(load_prior("toybox"), num_threads=1, measure=False)
    others = [
        dataclasses.replace(SPEC, prompt=prompt, seed=9, strict=n > 0) for n, prompt in enumerate(("a cup", "a duck", "a car"))
    ]
    with ThreadPoolExecutor() as pool:
        running = [pool.submit(fitted, spec, shared) for spec in (*others, SPEC)]
        result = running[-1].result()
    forwards = shared.figures.forwards
    shared.close()
    assert forwards < 4 * forwards_alone  # they did share forwards
    assert result.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(result[name], tensor, err_msg=name)


def test_the_commands_strict_reaches_both_kinds_of_job():
    assert not compose().text_to_3d("a cup", seed=1).strict and not compose().image_job("a cup", seed=1).strict
    settings = compose(["prior.strict=true"])
    assert settings.text_to_3d("a cup", seed=1).strict and settings.image_job("a cup", seed=1).strict
    assert settings.text_to_3d("a cup", seed=1).fingerprint() != compose().text_to_3d("a cup", seed=1).fingerprint()
