"""Encode, decode and encode-with-gradient requests of many tickets, in batches of their own small size.

The autoencoder is bound by memory where the UNet is bound by arithmetic: larger batches bring it little and are the first
to run out of memory (SynerDiff, 2605.08835).
"""

from collections.abc import Sequence
from dataclasses import fields
from math import prod
from typing import Any, Protocol

import torch
from torch import Tensor

from diffusion.engine.memory import CALM, is_out_of_memory, release_cached_memory
from diffusion.requests import DecodeRequest, EncodeGradientRequest, EncodeRequest, PreviewRequest

CodingRequest = EncodeRequest | DecodeRequest | PreviewRequest | EncodeGradientRequest


class Answers(Protocol):
    """See `diffusion.prior.Prior.answer`."""

    def answer(self, request: Any) -> Any:
        """What the request asks for: latents, pictures or a gradient."""
        ...


class AutoencoderStage:
    """At most `rows` pictures a call; when memory runs out for several, half as many as those, until CALM calls went well."""

    def __init__(self, model: Answers, *, rows: int) -> None:
        self._model = model
        self._rows = self._most = rows
        self._calm = 0

    def answer_all(self, requests: Sequence[CodingRequest], *, strict: Sequence[bool]) -> list[Tensor | Exception]:
        """The answer of each request, or the exception that it alone brought about.

        Strict requests are answered one picture at a time, so that nothing depends on who else asks.
        """
        answers: dict[int, Tensor | Exception] = {}
        groups: dict[Any, list[int]] = {}
        for index, (request, alone) in enumerate(zip(requests, strict, strict=True)):
            shapes = tuple((tensor.shape[1:], tensor.dtype) for tensor in _tensors(request))
            groups.setdefault((type(request), shapes, alone), []).append(index)
        for (kind, _, alone), members in groups.items():
            of_kind = [requests[index] for index in members]
            together = self._answer(kind, of_kind, rows=1 if alone else self._rows_of(of_kind[0]))
            answers |= dict(zip(members, together, strict=True))
        return [answers[index] for index in range(len(requests))]

    def _rows_of(self, request: CodingRequest) -> int:
        """Pictures of a call: of larger ones than the prior's own as many fewer as they are larger."""
        pictures = _tensors(request)[0]
        own = getattr(self._model, "latent_shape", None)
        if own is None or isinstance(request, EncodeRequest | EncodeGradientRequest):
            side = getattr(self._model, "image_size", None)
            own = pictures.shape[1:] if side is None else (3, side, side)
        return max(1, int(self._rows * min(1.0, prod(own[1:]) / prod(pictures.shape[2:]))))

    def _answer(self, kind: type[CodingRequest], requests: list[CodingRequest], *, rows: int) -> list[Tensor | Exception]:
        """Together while that works; otherwise each alone, so that an exception ends the request that it belongs to."""
        try:
            return list(self._together(kind, requests, rows=rows))
        except Exception as error:
            if len(requests) == 1:
                return [error]
            if is_out_of_memory(error):
                release_cached_memory(error)
        rows = min(rows, self._rows_of(requests[0]))
        return [answer for request in requests for answer in self._answer(kind, [request], rows=rows)]

    def _together(self, kind: type[CodingRequest], requests: list[CodingRequest], *, rows: int) -> Sequence[Tensor]:
        counts = [num_pictures(request) for request in requests]
        columns = [torch.cat(column) for column in zip(*map(_tensors, requests), strict=True)]
        done: list[Tensor] = []
        start = 0
        while start < sum(counts):
            size = min(rows, sum(counts) - start)
            chunk = kind(*(column[start : start + size] for column in columns))
            try:
                done.append(self._model.answer(chunk))
                self._calm += 1
                if self._rows < self._most and self._calm >= CALM:
                    self._rows, self._calm = min(self._most, 2 * self._rows), 0
            except Exception as error:
                if is_out_of_memory(error) and size > 1:
                    release_cached_memory(error)
                    self._calm = 0
                    self._rows = rows = size // 2  # of the prior's own size it may be more, but memory is short
                    continue
                raise
            start += size
        # Of a model that dropped a picture, the answers do not add up, and splitting them raises.
        return torch.cat(done).split(counts)


def num_pictures(request: CodingRequest) -> int:
    """B, the rows that a request asks for."""
    return len(_tensors(request)[0])


def _tensors(request: CodingRequest) -> list[Tensor]:
    """(images,), (latents,) or (images, latent_gradient)."""
    return [getattr(request, field.name) for field in fields(request)]
