"""The rows of a request: gathered a batch at a time, the same numbers as all of them side by side."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from diffusion.engine.network_rows import NetworkRows
from diffusion.guidance import network_inputs
from diffusion.requests import Condition, DenoiseRequest, Guidance
from diffusion.schedule import NoiseSchedule
from diffusion.seeding import normal, stream

B = 6
T = torch.tensor([900, 100, 500, 800, 50, 700])


def request(guidance: Guidance, *, negative: bool = True) -> DenoiseRequest:
    x_t, tokens, others = (normal(shape, stream(0, i)) for i, shape in enumerate([(B, 4, 2, 2), (B, 3, 5), (B, 3, 5)]))
    return DenoiseRequest(x_t, T, Condition(tokens, others if negative else None), guidance)


@pytest.mark.parametrize("size", [1, 3, 4, 100])
@pytest.mark.parametrize(
    "asked",
    [
        request(Guidance(scale=5)),
        request(Guidance(scale=5, interval=(400, 850))),
        request(Guidance(scale=1)),
        request(Guidance(scale=1), negative=False),
    ],
    ids=["guided", "some guided", "unguided", "no negative"],
)
def test_rows_taken_a_few_at_a_time_are_those_of_the_whole_request(asked: DenoiseRequest, size: int) -> None:
    every, rows = network_inputs(asked), NetworkRows(asked)
    assert len(rows.todo) == len(every.t)
    taken = [rows.take(rows.todo[start : start + size]) for start in range(0, len(rows.todo), size)]
    for given, expected in zip(zip(*(part.columns for part in taken), strict=True), every.columns, strict=True):
        assert torch.equal(torch.cat(given), expected)
    apart = rows.todo[::2]
    for given, expected in zip(rows.take(apart).columns, every.columns, strict=True):
        assert torch.equal(given, expected[apart])


class Texts(TorchDispatchMode):
    """Notes the most rows of text that an operation made."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made.shape[1:] == (3, 5):
            self.most = max(self.most, len(made))
        return made


def test_text_is_copied_for_the_rows_of_a_batch_alone() -> None:
    asked = request(Guidance(scale=5))
    with Texts() as texts:
        rows = NetworkRows(asked)
        assert rows.key and texts.most == 0
        rows.take([4, 5, 6, 7])
    assert texts.most == 4


def grouped(guidance: Guidance) -> DenoiseRequest:
    asked = request(guidance)
    return DenoiseRequest(asked.x_t, T, asked.condition.seen_from(normal((B, 16), stream(0, "cameras")), 2), guidance)


@pytest.mark.parametrize("guidance", [Guidance(scale=5), Guidance(scale=5, interval=(400, 850)), Guidance(scale=1)])
def test_groups_are_taken_whole_with_their_cameras(guidance: Guidance) -> None:
    asked = grouped(guidance)
    every, rows = network_inputs(asked), NetworkRows(asked)
    assert rows.num_todo == len(every.t) == 2 * len(rows.todo)
    assert every.cameras is not None
    taken = [rows.take([group]) for group in rows.todo]
    for name in ("x_t", "t", "tokens", "cameras"):
        assert torch.equal(torch.cat([getattr(part, name) for part in taken]), getattr(every, name))
    assert all(part.num_views == 2 for part in taken)


def test_a_group_is_guided_as_soon_as_one_of_its_views_is() -> None:
    # Timesteps 900, 100 | 500, 800 | 50, 700: guidance within 400 to 850 holds for none, two and one of them.
    asked = grouped(Guidance(scale=5, interval=(400, 850)))
    assert network_inputs(asked).t.tolist() == [500, 800, 50, 700, *T.tolist()]
    rows = NetworkRows(asked)
    rows.put(rows.todo, torch.cat([torch.zeros(4, 4, 2, 2), torch.ones(B, 4, 2, 2)]))
    prediction = rows.prediction(NoiseSchedule(prediction_type="sample"))
    assert prediction.x0[:, 0, 0, 0].tolist() == [1, 1, 5, 5, 1, 5]
