"""A process whose GPU is lost ends by itself, so that Ray starts it again; other errors are answered."""

import subprocess
import sys

import pytest

CODE = """
import sys
import torch
from jobs.prior_client import GenerateRequest
from orchestrator.prior.actor import PriorActor
from orchestrator.prior.local import LocalPrior
from orchestrator.prior.wire import Wire
from tests.fakes import FakePrior

class Lost(FakePrior):
    def predict(self, *_):
        raise torch.AcceleratorError(sys.argv[1])

actor = PriorActor(lambda source, device: LocalPrior(Lost()), "fake", "cpu", 1, measure=False)
request = GenerateRequest(prompts=("a red ball",) * 2, seeds=(0, 1), num_steps=2)
print("answered", actor.call("generate", Wire(request)).error)
"""


@pytest.mark.parametrize(("words", "code"), [("CUDA error: device-side assert triggered", 1), ("CUDA error: out of memory", 0)])
def test_a_sticky_error_ends_the_process(words: str, code: int) -> None:
    ended = subprocess.run([sys.executable, "-c", CODE, words], capture_output=True, text=True, timeout=200)
    assert ended.returncode == code, ended.stderr
    if code:
        assert f"The GPU is lost to this process, which ends: {words}" in ended.stderr and not ended.stdout
    else:
        assert "out of memory even for the smallest batch" in ended.stdout
