"""The autoencoder's batches: an exception is of one request, and memory that runs out is asked for less."""

from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion.engine.autoencoder_stage import AutoencoderStage
from diffusion.requests import DecodeRequest


class Decoder:
    """Doubles latents; raises where it is told to, and drops a picture of value 99. `asked` are the sizes of its calls."""

    def __init__(self, limit: int = 10**6) -> None:
        self.limit, self.asked = limit, []

    def answer(self, request: DecodeRequest) -> Tensor:
        self.asked.append(len(request.latents))
        if len(request.latents) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 2 * request.latents[(request.latents != 99).flatten(1).all(dim=1)]


def latents(*values: float) -> DecodeRequest:
    return DecodeRequest(torch.tensor(values)[:, None, None, None])


def answers(stage: AutoencoderStage, *requests: Any) -> list[Any]:
    return [
        answer if isinstance(answer, Exception) else answer.flatten().tolist()
        for answer in stage.answer_all(requests, strict=[False] * len(requests))
    ]


def test_a_picture_that_is_dropped_fails_its_own_request_alone() -> None:
    first, second, third = answers(AutoencoderStage(Decoder(), rows=2), latents(1, 2, 3), latents(4, 99), latents(5))
    assert (first, third) == ([2, 4, 6], [10])
    assert isinstance(second, RuntimeError)


def test_what_cannot_be_put_side_by_side_is_answered_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    cat = torch.cat

    def without_memory(tensors: Any, *args: Any) -> Tensor:
        tensors = list(tensors)
        if len(tensors) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return cat(tensors, *args)

    monkeypatch.setattr(torch, "cat", without_memory)
    assert answers(AutoencoderStage(Decoder(), rows=8), latents(1, 2), latents(3)) == [[2, 4], [6]]


def test_the_batch_is_halved_from_what_did_not_fit() -> None:
    decoder = Decoder(limit=3)
    stage = AutoencoderStage(decoder, rows=64)
    assert answers(stage, latents(1, 2, 3, 4, 5)) == [[2, 4, 6, 8, 10]]
    assert decoder.asked == [5, 2, 2, 1]


def test_one_picture_that_does_not_fit_leaves_the_batch_as_it_is() -> None:
    decoder = Decoder(limit=0)
    stage = AutoencoderStage(decoder, rows=8)
    (error,) = answers(stage, latents(1))
    assert isinstance(error, torch.OutOfMemoryError) and decoder.asked == [1]
    decoder.limit = 8
    answers(stage, latents(*range(16)))
    assert decoder.asked == [1, 8, 8]
