"""Encode, decode and encode-with-gradient requests of many tickets, in batches of their own small size.

The autoencoder is bound by memory where the UNet is bound by arithmetic: larger batches bring it little and are the first
to run out of memory (SynerDiff, 2605.08835). So a call takes the pictures for which there is memory, counted from their size
and precision, up to a small number; where there is none for one, it is coded in strips, or its gradient with checkpoints.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from math import prod
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from diffusion.engine.memory import CALM, is_out_of_memory, release_cached_memory
from diffusion.requests import DecodeRequest, EncodeGradientRequest, EncodeRequest, PreviewRequest

CodingRequest = EncodeRequest | DecodeRequest | PreviewRequest | EncodeGradientRequest


class Answers(Protocol):
    """Answers a request of a generator, as `diffusion.prior.Prior.answer` does."""

    def answer(self, request: Any) -> Any:
        """What the request asks for: latents, pictures or a gradient."""
        ...


class KeepsEncoded(Protocol):
    """Keeps an encoder pass for its gradient, as `diffusion.prior.Prior.encode_with_graph` does."""

    def encode_with_graph(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Leaf images and their latents, with a graph between them."""
        ...


class CountsMemory(Protocol):
    """Counts how many pictures fit at once, as `diffusion.prior.Prior.num_coded_at_once` does."""

    def num_coded_at_once(self, request: EncodeRequest | DecodeRequest | EncodeGradientRequest, *, share: float = 1.0) -> int:
        """Pictures of the request's size that the autoencoder has room for in a share of the free memory."""
        ...


THRIFTY = {EncodeRequest: "tiled", DecodeRequest: "tiled", EncodeGradientRequest: "checkpointed"}
"""How each is asked for with less memory."""
GRAPHS_SHARE = 0.5
"""Of the free memory, for an encoder pass that waits for the network's answer; forwards have the other half."""


@dataclass(frozen=True)
class _Way:
    """rows: pictures of a call. thrifty: see `THRIFTY`. may_be_thrifty: once memory runs out for a single picture."""

    rows: int
    thrifty: bool = False
    may_be_thrifty: bool = False


@dataclass(frozen=True, eq=False)
class _Graph:
    """An encoder pass whose gradient will be asked for. leaf: images (B, 3, H, W). latents: (B, C, h, w)."""

    leaf: Tensor
    latents: Tensor


class AutoencoderStage:
    """At most `rows` pictures a call; when memory runs out for several, half as many as those, until CALM calls went well."""

    def __init__(self, model: Answers, *, rows: int) -> None:
        self._model = model
        self._rows = self._most = rows
        self._calm = 0
        self._kept: dict[int, tuple[Tensor, _Graph, slice]] = {}

    def answer_all(self, requests: Sequence[CodingRequest], *, strict: Sequence[bool]) -> list[Tensor | Exception]:
        """The answer of each request, or the exception that it alone brought about.

        Strict requests are answered one picture at a time, so that nothing depends on who else asks.
        """
        answers: dict[int, Tensor | Exception] = {}
        groups: dict[Any, list[int]] = {}
        for index, (request, alone) in enumerate(zip(requests, strict, strict=True)):
            shapes = tuple((tensor.shape[1:], tensor.dtype) for tensor in _tensors(request))
            groups.setdefault((type(request), shapes, alone), []).append(index)
        for (_, _, alone), members in groups.items():
            of_kind = [requests[index] for index in members]
            if not alone and (kept := self._from_kept(of_kind)):
                answers |= {members[place]: answer for place, answer in kept.items()}
                members = [index for place, index in enumerate(members) if place not in kept]
                of_kind = [requests[index] for index in members]
            if not of_kind:
                continue
            together = self._answer(of_kind, self._way(of_kind[0], alone))
            answers |= dict(zip(members, together, strict=True))
        return [answers[index] for index in range(len(requests))]

    def _from_kept(self, requests: Sequence[CodingRequest]) -> dict[int, Tensor]:
        """Answers of those that one encoder pass serves twice: latents now, their gradient when it is asked for.

        Place among the requests -> answer. What fails is left to the way without graphs, which finds out whose fault it is.
        """
        try:
            if isinstance(requests[0], EncodeRequest) and getattr(self._model, "keeps_encoded", False):
                return self._encoded(requests)
            if isinstance(requests[0], EncodeGradientRequest) and self._kept:
                return self._pulled_back(requests)
        except Exception as error:
            self._kept.clear()
            release_cached_memory(error)
        return {}

    def _encoded(self, requests: Sequence[CodingRequest]) -> dict[int, Tensor]:
        """Those that will be pulled back and fit into one call."""
        chosen: list[int] = []
        size, limit = 0, min(self._rows_of(requests[0]), self._num_graphs(requests[0]))
        for place, request in enumerate(requests):
            if isinstance(request, EncodeRequest) and request.is_pulled_back and size + len(request.images) <= limit:
                chosen.append(place)
                size += len(request.images)
        if not chosen:
            return {}
        self._kept.clear()  # of a request that was cancelled, or waits long: one graph is enough memory
        images = [_tensors(requests[place])[0] for place in chosen]
        leaf, latents = cast(KeepsEncoded, self._model).encode_with_graph(torch.cat(images))
        graph, start = _Graph(leaf, latents), 0
        for tensor in images:
            self._kept[id(tensor)] = (tensor, graph, slice(start, start + len(tensor)))
            start += len(tensor)
        return dict(zip(chosen, latents.detach().split([len(tensor) for tensor in images]), strict=True))

    def _pulled_back(self, requests: Sequence[CodingRequest]) -> dict[int, Tensor]:
        """Those whose pictures were kept, in one pass backward, after which nothing is."""
        asked = {place: self._kept.get(id(_tensors(request)[0])) for place, request in enumerate(requests)}
        found = {place: kept for place, kept in asked.items() if kept is not None}
        if not found:
            return {}
        graph = next(iter(found.values()))[1]
        gradient = torch.zeros_like(graph.latents)
        for place, (_, _, rows) in found.items():
            gradient[rows] = _tensors(requests[place])[1].to(gradient)
        self._kept.clear()
        (pulled,) = torch.autograd.grad(graph.latents, graph.leaf, gradient)
        return {place: pulled[rows] for place, (_, _, rows) in found.items()}

    def _way(self, request: CodingRequest, alone: bool) -> "_Way":
        """As many pictures a call as memory allows, and thriftily where it does not allow one."""
        way = _Way(rows=1 if alone else self._rows_of(request))
        decoding, kind = getattr(self._model, "decoding", None), type(request)
        if decoding is None or kind not in THRIFTY:
            return way
        if THRIFTY[kind] == "tiled":  # with other last bits, so that strict answers keep to the option
            if decoding == "tiled":
                return _Way(rows=1, thrifty=True)
            if decoding == "plain" or alone:
                return way
        room = cast(CountsMemory, self._model).num_coded_at_once(request)  # type: ignore[arg-type]
        return _Way(max(1, min(way.rows, room)), thrifty=room < 1, may_be_thrifty=True)

    def _num_graphs(self, request: CodingRequest) -> int:
        """Pictures of whose encoder pass all may wait that a gradient takes."""
        assert isinstance(request, EncodeRequest)
        if getattr(self._model, "decoding", None) is None:
            return self._rows
        asked = EncodeGradientRequest(request.images, request.images)
        return cast(CountsMemory, self._model).num_coded_at_once(asked, share=GRAPHS_SHARE)

    def _rows_of(self, request: CodingRequest) -> int:
        """Pictures of a call: of larger ones than the prior's own as many fewer as they are larger."""
        pictures = _tensors(request)[0]
        own = getattr(self._model, "latent_shape", None)
        if own is None or isinstance(request, EncodeRequest | EncodeGradientRequest):
            side = getattr(self._model, "image_size", None)
            own = pictures.shape[1:] if side is None else (3, side, side)
        return max(1, int(self._rows * min(1.0, prod(own[1:]) / prod(pictures.shape[2:]))))

    def _answer(self, requests: list[CodingRequest], way: "_Way") -> list[Tensor | Exception]:
        """Together while that works; otherwise each alone, so that an exception ends the request that it belongs to."""
        try:
            return list(self._together(requests, way))
        except Exception as error:
            if len(requests) == 1:
                return [error]
            if is_out_of_memory(error):
                release_cached_memory(error)
        way = replace(way, rows=min(way.rows, self._rows_of(requests[0])))
        return [answer for request in requests for answer in self._answer([request], way)]

    def _together(self, requests: list[CodingRequest], way: "_Way") -> Sequence[Tensor]:
        counts = [num_pictures(request) for request in requests]
        names = [field.name for field in fields(requests[0]) if isinstance(getattr(requests[0], field.name), Tensor)]
        columns = [torch.cat(column) for column in zip(*map(_tensors, requests), strict=True)]
        done: list[Tensor] = []
        start = 0
        while start < sum(counts):
            size = min(way.rows, sum(counts) - start)
            parts: dict[str, Any] = {name: column[start : start + size] for name, column in zip(names, columns, strict=True)}
            thrifty: dict[str, Any] = {THRIFTY[type(requests[0])]: True} if way.thrifty else {}
            chunk = replace(requests[0], **parts, **thrifty)
            try:
                done.append(self._model.answer(chunk))
                self._calm += 1
                if self._rows < self._most and self._calm >= CALM:
                    self._rows, self._calm = min(self._most, 2 * self._rows), 0
            except Exception as error:
                if is_out_of_memory(error) and size > 1:
                    release_cached_memory(error)
                    self._calm = 0
                    self._rows = size // 2  # of the prior's own size it may be more, but memory is short
                    way = replace(way, rows=self._rows)
                    continue
                if is_out_of_memory(error) and way.may_be_thrifty and not way.thrifty:
                    release_cached_memory(error)
                    way = replace(way, thrifty=True)
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
    return [value for field in fields(request) if isinstance(value := getattr(request, field.name), Tensor)]
