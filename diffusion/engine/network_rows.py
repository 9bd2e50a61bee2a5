"""The rows of a denoise request as the network sees them, computed in as many forwards as it takes."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffusion.guidance import NetworkInputs, guided_samples, network_inputs, prediction_from_output
from diffusion.parameterisation import Prediction
from diffusion.process import Schedule
from diffusion.requests import DenoiseRequest
from diffusion.seeding import sent


class NetworkRows:
    """B samples cost B conditional rows and, for each that is guided, an unconditional one before them.

    Samples come in groups that are denoised together: the views of one object, or one picture alone. Everything here counts
    in network groups: G groups of samples cost G conditional groups and, for each that is guided, an unconditional one.

    Rows are gathered from the request when they are taken: all of them side by side may be gigabytes of text.

    Args:
        slots: B integers that say where in a strict batch each sample sits; None in fast mode.
    """

    def __init__(self, request: DenoiseRequest, slots: Sequence[int] | None = None) -> None:
        self.request = request
        self.num_views = views = request.condition.num_views
        self._guided: list[int] = [sample // views for sample in guided_samples(request).tolist()[::views]]
        self._slots = None if slots is None else [slot // views for slot in slots[::views]]
        self._num = len(self._guided) + len(request.t) // views
        self._todo = list(range(self._num))
        self._output: Tensor | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """Rows with one key may share a forward."""
        x_t, condition = self.request.x_t, self.request.condition
        tokens, has_cameras = condition.tokens, condition.cameras is not None
        beside = None if condition.channels is None else len(condition.channels[0])
        text = (tuple(tokens.shape[1:]), tokens.dtype)
        return (tuple(x_t.shape[1:]), x_t.dtype, beside, *text, has_cameras, self.num_views)

    @property
    def todo(self) -> list[int]:
        """Indices of the groups that are not computed yet, in order."""
        return self._todo

    @property
    def num_todo(self) -> int:
        """How many network rows are not computed yet; fair shares and limits count these."""
        return len(self._todo) * self.num_views

    def places(self, size: int) -> dict[int, int]:
        """Group -> its place in a strict batch of `size` groups: a function of its slot alone.

        A sample has two neighbouring places, the unconditional group before the conditional one.
        """
        assert self._slots is not None
        pairs = max(1, size // 2)
        where = {row: 2 * (self._slots[sample] % pairs) for row, sample in enumerate(self._guided)}
        where |= {len(self._guided) + sample: 2 * (slot % pairs) + 1 for sample, slot in enumerate(self._slots)}
        return {group: place % size for group, place in where.items()}

    def take(self, groups: Sequence[int]) -> NetworkInputs:
        """The rows of these groups, which are in order."""
        if len(groups) == self._num:
            return network_inputs(self.request)
        x_t, t, condition = self.request.x_t, self.request.t, self.request.condition
        first = bisect_left(groups, len(self._guided))
        unconditional = [self._guided[group] for group in groups[:first]]
        conditional = [group - len(self._guided) for group in groups[first:]]
        samples, without, with_text = (
            self._rows(of, x_t.device) for of in (unconditional + conditional, unconditional, conditional)
        )
        tokens = condition.tokens[with_text]
        if condition.negative is not None and unconditional:
            negative = condition.negative[without]
            tokens = torch.cat([negative, tokens]) if conditional else negative
        cameras = None if condition.cameras is None else condition.cameras[sent(samples, condition.cameras.device)]
        t = sent(t, x_t.device)[samples]
        return NetworkInputs(self.request.network_input(samples), t, tokens, samples, cameras, self.num_views)

    def put(self, groups: Sequence[int], output: Tensor) -> None:
        """The network's answer for the rows of these groups, which are then done."""
        if len(groups) == self._num:
            self._output, self._todo = output, []
            return
        if self._output is None:
            self._output = output.new_empty((self._num * self.num_views, *output.shape[1:]))
        self._output[self._rows(groups, output.device)] = output
        done = set(groups)
        self._todo = [group for group in self._todo if group not in done]

    def prediction(self, schedule: Schedule) -> Prediction:
        """The guided prediction of the whole request, once nothing is left to do."""
        assert self._output is not None and not self._todo
        return prediction_from_output(self.request, self._output, schedule)

    def _rows(self, groups: Sequence[int], device: torch.device) -> Tensor:
        """The rows of these groups, (len(groups) * num_views,) long."""
        rows = sent(torch.tensor(groups, dtype=torch.long), device)
        if self.num_views == 1:
            return rows
        return (rows[:, None] * self.num_views + torch.arange(self.num_views, device=device)).flatten()
