"""The rows of a denoise request as the network sees them, computed in as many forwards as it takes."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffusion.guidance import guided_samples, network_inputs, prediction_from_output
from diffusion.parameterisation import Prediction
from diffusion.requests import DenoiseRequest
from diffusion.schedule import NoiseSchedule


class NetworkRows:
    """B samples cost B conditional rows and, for each that is guided, an unconditional one before them.

    Rows are gathered from the request when they are taken: all of them side by side may be gigabytes of text.

    Args:
        slots: B integers that say where in a strict batch each sample sits; None in fast mode.
    """

    def __init__(self, request: DenoiseRequest, slots: Sequence[int] | None = None) -> None:
        self.request = request
        self._guided: list[int] = guided_samples(request).tolist()
        self._slots = slots
        self._num = len(self._guided) + len(request.t)
        self._todo = list(range(self._num))
        self._output: Tensor | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """Rows with one key may share a forward."""
        x_t, tokens = self.request.x_t, self.request.condition.tokens
        return (tuple(x_t.shape[1:]), x_t.dtype, tuple(tokens.shape[1:]), tokens.dtype)

    @property
    def todo(self) -> list[int]:
        """Indices of the rows that are not computed yet, in order."""
        return self._todo

    def places(self, size: int) -> dict[int, int]:
        """Row -> its place in a strict batch of `size` rows: a function of its slot alone.

        A sample has two neighbouring places, the unconditional row before the conditional one.
        """
        assert self._slots is not None
        pairs = max(1, size // 2)
        where = {row: 2 * (self._slots[sample] % pairs) for row, sample in enumerate(self._guided)}
        where |= {len(self._guided) + sample: 2 * (slot % pairs) + 1 for sample, slot in enumerate(self._slots)}
        return {row: place % size for row, place in where.items()}

    def take(self, rows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """x_t, t and tokens of these rows, which are in order."""
        if len(rows) == self._num:
            every = network_inputs(self.request)
            return every.x_t, every.t, every.tokens
        x_t, t, condition = self.request.x_t, self.request.t, self.request.condition
        first = bisect_left(rows, len(self._guided))
        unconditional = [self._guided[row] for row in rows[:first]]
        conditional = [row - len(self._guided) for row in rows[first:]]
        samples, without, with_text = (
            torch.tensor(of, dtype=torch.long, device=x_t.device)
            for of in (unconditional + conditional, unconditional, conditional)
        )
        if condition.negative is None or not unconditional:
            return x_t[samples], t[samples], condition.tokens[with_text]
        negative = condition.negative[without]
        tokens = torch.cat([negative, condition.tokens[with_text]]) if conditional else negative
        return x_t[samples], t[samples], tokens

    def put(self, rows: Sequence[int], output: Tensor) -> None:
        """The network's answer for these rows, which are then done."""
        if len(rows) == self._num:
            self._output, self._todo = output, []
            return
        if self._output is None:
            self._output = output.new_empty((self._num, *output.shape[1:]))
        self._output[torch.as_tensor(rows, device=output.device)] = output
        done = set(rows)
        self._todo = [row for row in self._todo if row not in done]

    def prediction(self, schedule: NoiseSchedule) -> Prediction:
        """The guided prediction of the whole request, once nothing is left to do."""
        assert self._output is not None and not self._todo
        return prediction_from_output(self.request, self._output, schedule)
