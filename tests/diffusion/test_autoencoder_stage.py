"""The autoencoder's batches: an exception is of one request, and memory that runs out is asked for less."""

from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion.engine.autoencoder_stage import AutoencoderStage
from diffusion.requests import DecodeRequest, EncodeGradientRequest, EncodeRequest


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


class Encoder:
    """(x, y) -> x^3 y, of pictures whose second channel is y; counts its passes."""

    keeps_encoded = True

    def __init__(self, limit: int = 10**6) -> None:
        self.passes, self.limit = 0, limit

    def encode(self, images: Tensor) -> Tensor:
        self.passes += 1
        if len(images) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return images[:, :1] ** 3 * images[:, 1:2]

    def encode_with_graph(self, images: Tensor) -> tuple[Tensor, Tensor]:
        leaf = images.detach().requires_grad_()
        with torch.enable_grad():
            return leaf, self.encode(leaf)

    def answer(self, request: Any) -> Tensor:
        if isinstance(request, EncodeRequest):
            return self.encode(request.images)
        leaf, latents = self.encode_with_graph(request.images)
        return torch.autograd.grad(latents, leaf, request.latent_gradient)[0]


def pulled(stage: AutoencoderStage, pictures: list[Tensor], strict: bool = False) -> list[list[Tensor]]:
    """Latents of some tickets, and then their gradients."""
    with torch.no_grad():
        asked = [EncodeRequest(images, is_pulled_back=True) for images in pictures]
        latents = stage.answer_all(asked, strict=[strict] * len(pictures))
        asked_back = [
            EncodeGradientRequest(images, torch.full_like(z, 2.0)) for images, z in zip(pictures, latents, strict=True)
        ]
        return [latents, stage.answer_all(asked_back, strict=[strict] * len(pictures))]


def test_one_pass_of_the_encoder_serves_latents_and_their_gradient() -> None:
    pictures = [torch.rand(rows, 2, 4, 4, generator=torch.Generator().manual_seed(rows)) for rows in (2, 1, 3)]
    encoder, twice = Encoder(), Encoder()
    twice.keeps_encoded = False
    ours, plain = pulled(AutoencoderStage(encoder, rows=8), pictures), pulled(AutoencoderStage(twice, rows=8), pictures)
    assert (encoder.passes, twice.passes) == (1, 2)
    for answer, expected in zip([*ours[0], *ours[1]], [*plain[0], *plain[1]], strict=True):
        torch.testing.assert_close(answer, expected)
        assert not answer.requires_grad
    x, y = pictures[0][:, :1], pictures[0][:, 1:]
    torch.testing.assert_close(ours[1][0], 2 * torch.cat([3 * x**2 * y, x**3], 1))


@pytest.mark.parametrize(("rows", "strict", "limit", "passes"), [(2, False, 9, 4), (8, True, 9, 12), (8, False, 3, 6)])
def test_what_does_not_fit_or_is_strict_is_encoded_twice(rows: int, strict: bool, limit: int, passes: int) -> None:
    pictures = [torch.rand(3, 2, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    encoder = Encoder(limit)
    ours = pulled(AutoencoderStage(encoder, rows=rows), pictures, strict)
    for images, gradient in zip(pictures, ours[1], strict=True):
        x, y = images[:, :1], images[:, 1:]
        torch.testing.assert_close(gradient, 2 * torch.cat([3 * x**2 * y, x**3], 1))
    assert encoder.passes >= passes


def test_pictures_of_a_request_that_went_away_are_not_taken_for_anothers() -> None:
    encoder = Encoder()
    stage = AutoencoderStage(encoder, rows=8)
    first, second = (torch.full((1, 2, 1, 1), value) for value in (2.0, 3.0))
    stage.answer_all([EncodeRequest(first, is_pulled_back=True)], strict=[False])
    (gradient,) = stage.answer_all([EncodeGradientRequest(second, torch.ones(1, 1, 1, 1))], strict=[False])
    assert gradient.flatten().tolist() == [81, 27] and encoder.passes == 2


class CountedEncoder(Encoder):
    """Has memory for the graphs of `room` pictures, and notes how gradients are asked for."""

    decoding = "auto"

    def __init__(self, room: float, limit: int = 10**6) -> None:
        super().__init__(limit)
        self.room, self.asked = room, []

    def num_coded_at_once(self, request: Any, *, share: float = 1.0) -> int:
        return int(share * self.room)

    def answer(self, request: Any) -> Tensor:
        if isinstance(request, EncodeGradientRequest):
            self.asked.append((len(request.images), request.checkpointed))
        return super().answer(request)


@pytest.mark.parametrize(
    ("room", "strict", "asked"),
    [
        (8, False, []),  # the graph of all four waits in half of it
        (7, False, [(4, False)]),
        (2, False, [(2, False), (2, False)]),
        (0.9, False, [(1, True)] * 4),
        (0.9, True, [(1, True)] * 4),
        (9, True, [(1, False)] * 4),
    ],
)
def test_memory_says_how_the_gradient_is_pulled_back(room: float, strict: bool, asked: Any) -> None:
    """Checkpoints change no bit, so strict requests have them, too."""
    pictures = torch.rand(4, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    encoder = CountedEncoder(room)
    _, (gradient,) = pulled(AutoencoderStage(encoder, rows=8), [pictures], strict)
    x, y = pictures[:, :1], pictures[:, 1:]
    torch.testing.assert_close(gradient, 2 * torch.cat([3 * x**2 * y, x**3], 1))
    assert encoder.asked == asked
