"""The engine without Ray, on denoisers with exact answers: same results as alone, fair, patient, and hard to break."""

import itertools
import weakref
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion.distillation import score_distillation
from diffusion.engine import Cancelled, Engine, EngineConfig, NotFinite, Ticket
from diffusion.engine.memory import CALM, StrictOutOfMemory, is_out_of_memory, is_sticky
from diffusion.requests import Condition, DecodeRequest, Guidance, run
from diffusion.samplers import SAMPLERS
from diffusion.schedule import NoiseSchedule
from diffusion.seeding import normal_rows, step_noise, stream
from tests.oracles import FIVE_MODES, GaussianMixture, Oracle

SHAPE = (2, 1, 1)
SCHEDULE = NoiseSchedule(prediction_type="v_prediction")


class OracleModel:
    """An `Oracle` behind the engine's `Model`. `forwards` are the rows of each forward."""

    def __init__(self) -> None:
        self.schedule = SCHEDULE
        origin = GaussianMixture.gaussian([0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]])
        self.oracle = Oracle(SCHEDULE, FIVE_MODES, origin)
        self.forwards: list[int] = []
        self.texts: list[str] = []  # in the order in which they were new

    def condition(self, prompts: Sequence[str], negative_prompts: Sequence[str] | None = None) -> Condition:
        self.texts += [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.texts]
        return Condition(torch.ones(len(prompts), 1, 1), torch.zeros(len(prompts), 1, 1))

    def has_condition(self, prompt: str, negative_prompt: str = "") -> bool:
        return prompt in self.texts

    def predict(self, x_t: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        self.forwards.append(len(x_t))
        return self.oracle.network(x_t, t, tokens)

    def answer(self, request: Any) -> Any:
        return self.oracle(request)


def sampling(seeds: Sequence[int], *, sampler: str = "ddim", steps: int = 5, scale: float = 2.0):
    """`begin` of a trajectory."""
    names = [(seed, "image") for seed in seeds]

    def begin(condition):
        latents = yield from SAMPLERS[sampler](
            normal_rows(SHAPE, [stream(*name) for name in names]),
            schedule=SCHEDULE,
            timesteps=SCHEDULE.timesteps(steps),
            condition=condition,
            guidance=Guidance(scale=scale),
            noise=step_noise(names, SHAPE),
        )
        return (yield DecodeRequest(latents))

    return begin


def distilling(seed: int, *, views: int = 2, form: Any = "sds"):
    """`begin` of a query."""

    def begin(condition):
        return score_distillation(
            normal_rows(SHAPE, [stream(seed, "picture", view) for view in range(views)]),
            condition=condition,
            guidance=Guidance(scale=3.0),
            schedule=SCHEDULE,
            t=torch.arange(views) * 100 + 200,
            noise=normal_rows(SHAPE, [stream(seed, "noise", view) for view in range(views)]),
            form=form,
        )

    return begin


def submit_images(engine: Engine, seeds: Sequence[int], *, job: str = "images", strict: bool = False, **options) -> Ticket:
    more = {name: options.pop(name) for name in ("preview_every",) if name in options}
    slots = seeds if strict else None
    return engine.submit(sampling(seeds, **options), prompts=["a cup"] * len(seeds), job=job, slots=slots, **more)


def submit_query(engine: Engine, seed: int, *, job: str, views: int = 2, form: Any = "sds") -> Ticket:
    return engine.submit(distilling(seed, views=views, form=form), prompts=["a cup"] * views, job=job, kind="query")


def until_idle(engine: Engine, *, at_most: int = 1000) -> list:
    reports = []
    while engine.live:
        reports.append(engine.step())
        assert len(reports) <= at_most
    return reports


def alone(begin, num: int) -> Any:
    """What the two-line driver gives."""
    model = OracleModel()
    with torch.no_grad():
        return run(begin(model.condition(["a cup"] * num)), model.answer)


def test_a_crowd_of_all_samplers_and_queries_gets_what_each_gets_alone() -> None:
    model = OracleModel()
    engine = Engine(model, config=EngineConfig(row_cap=16))
    scales = itertools.cycle([1.0, 2.5])
    begins = {name: sampling([7, 8], sampler=name, steps=6, scale=next(scales)) for name in SAMPLERS}
    tickets = {name: engine.submit(begin, prompts=["a cup"] * 2, job=name) for name, begin in begins.items()}
    for form in ("sds", "x0"):
        begins[form] = distilling(3, form=form)
        tickets[form] = submit_query(engine, 3, job=form, form=form)
    until_idle(engine)
    for name, ticket in tickets.items():
        expected, given = alone(begins[name], 2), ticket.result()
        if name in ("sds", "x0"):
            expected, given = expected.gradient, given.gradient
        # float64 oracle: rows do not meet anywhere, so only rounding of float32 tensors may differ.
        torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-5)
    assert max(model.forwards) == 16


def test_a_row_without_guidance_costs_one_row_and_with_it_two() -> None:
    for scale, rows in ((1.0, 3), (2.0, 6)):
        model = OracleModel()
        engine = Engine(model)
        submit_images(engine, [1, 2, 3], steps=4, scale=scale)
        until_idle(engine)
        assert model.forwards == [rows] * 4


def test_one_alone_is_computed_in_the_same_batches_whatever_the_measured_cap() -> None:
    forwards = []
    for cap in (2, 5, 64):
        model = OracleModel()
        engine = Engine(model, config=EngineConfig(row_cap=cap))
        submit_images(engine, range(10), steps=2)
        until_idle(engine)
        forwards.append(model.forwards)
    assert forwards == [[20, 20]] * 3


def test_rows_are_shared_by_weight() -> None:
    engine = Engine(OracleModel(), config=EngineConfig(row_cap=8))
    weights = {"light": 1.0, "heavy": 3.0, "also light": 1.0}
    for job, weight in weights.items():
        engine.set_weight(job, weight)
        for chunk in range(30):
            submit_images(engine, range(chunk * 3, chunk * 3 + 3), job=job, steps=20)
    served: Counter[str] = Counter()
    for _ in range(120):
        served.update(engine.step().rows)
    total = sum(served.values())
    assert total == 120 * 8
    for job, weight in weights.items():
        assert served[job] / total == pytest.approx(weight / 5, rel=0.2)


def test_an_image_job_among_eight_query_streams_gets_its_share() -> None:
    """Each stream asks again as soon as it is answered: more rows than the cap holds."""
    engine = Engine(OracleModel(), config=EngineConfig(row_cap=16))
    for seed in range(400):
        submit_images(engine, [seed], steps=20)
    streams: dict[str, Ticket] = {}
    served: Counter[str] = Counter()
    for step in range(200):
        for stream_name in (f"mesh {i}" for i in range(8)):
            if stream_name not in streams or streams[stream_name].finished:
                streams[stream_name] = submit_query(engine, step, job=stream_name, views=4)
        report = engine.step()
        assert report.batch_rows == 16
        served.update(report.rows)
    fair = sum(served.values()) / 9
    assert min(served.values()) >= 0.8 * fair, served


def test_queries_wait_least() -> None:
    """Every query that finds room is answered within the step after it came, whatever trajectories are under way."""
    engine = Engine(OracleModel(), config=EngineConfig(row_cap=16))
    for job, seed in itertools.product("abcd", range(50)):
        submit_images(engine, [seed, seed + 1], job=job, steps=30)
    for _ in range(5):
        engine.step()
    for turn in range(20):
        ticket = submit_query(engine, turn, job="mesh", views=1)
        report = engine.step()
        assert ticket in report.finished and ticket.state == "done"
        assert report.batch_rows == 16


def test_a_query_waits_for_one_call_of_trajectories_pictures() -> None:
    class Decoding(OracleModel):
        decoded = 0

        def answer(self, request: Any) -> Any:
            self.decoded += len(request.latents) if isinstance(request, DecodeRequest) else 0
            return super().answer(request)

    model = Decoding()
    engine = Engine(model, config=EngineConfig(autoencoder_rows=8, admitted_row_caps=100))
    sizes = [5, 5, 20, 1]
    for size in sizes:

        def decodes(condition, size=size):
            return (yield DecodeRequest(torch.zeros(size, *SHAPE)))

        engine.submit(decodes, prompts=["a cup"] * size)

    for turn, decoded in enumerate((10, 30, 31)):
        query = submit_query(engine, turn, job="mesh", views=1)
        engine.step()
        assert query.state == "done" and model.decoded == decoded


def test_nobody_starves_behind_a_flood_of_queries() -> None:
    engine = Engine(OracleModel(), config=EngineConfig(row_cap=8))
    image = submit_images(engine, [1], steps=5)
    steps = 0
    while not image.finished:
        for i in range(6):
            submit_query(engine, steps, job=f"flood {i}", views=4)
        engine.step()
        steps += 1
        # A round of all seven jobs takes at most 6 queries of 8 rows and 2 rows of the image: 7 forwards.
        assert steps <= 7 * 5
    assert image.state == "done"


def test_the_first_come_finishes_first_and_the_rest_joins_as_room_is_made() -> None:
    engine = Engine(OracleModel(), config=EngineConfig(row_cap=8, admitted_row_caps=1))
    tickets = [submit_images(engine, [seed], steps=4) for seed in range(40)]
    finished: list[Ticket] = []
    while engine.live:
        finished += engine.step().finished
        assert sum(ticket.state == "running" for ticket in tickets) <= 8
    assert [ticket.number for ticket in finished] == sorted(ticket.number for ticket in finished)


class LimitedMemory(OracleModel):
    """Runs out of memory above `limit` rows, as a device does."""

    limit = 5

    def predict(self, x_t: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        if len(x_t) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().predict(x_t, t, tokens)


def test_out_of_memory_halves_the_cap_and_goes_on() -> None:
    engine = Engine(LimitedMemory(), config=EngineConfig(row_cap=16))
    tickets = [submit_images(engine, [seed, seed + 100], job=str(seed)) for seed in range(6)]
    reports = until_idle(engine)
    assert sum(report.out_of_memory for report in reports) == 2 and engine.row_cap == 4
    for seed, ticket in enumerate(tickets):
        torch.testing.assert_close(ticket.result(), alone(sampling([seed, seed + 100]), 2), rtol=1e-5, atol=1e-5)


def test_what_a_failed_forward_held_is_free_before_it_is_tried_with_fewer_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    activations: list[weakref.ref[Tensor]] = []

    class Holds(LimitedMemory):
        def predict(self, x_t: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
            held = torch.zeros(3)
            activations.append(weakref.ref(held))
            return super().predict(x_t, t, tokens)

    alive: list[int] = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: alive.append(sum(ref() is not None for ref in activations)))
    engine = Engine(Holds(), config=EngineConfig(row_cap=16))
    tickets = [submit_images(engine, [seed]) for seed in range(8)]
    until_idle(engine)
    assert alive and not any(alive) and all(ticket.state == "done" for ticket in tickets)


def test_halved_caps_grow_again_when_memory_is_free_again() -> None:
    model = LimitedMemory()
    engine = Engine(model, config=EngineConfig(row_cap=16))
    for seed in range(8):
        submit_images(engine, [seed])
    until_idle(engine)
    assert engine.row_cap == 4
    model.limit = 1000
    for turn in range(2 * CALM // 5 + 2):
        submit_images(engine, [turn])
        until_idle(engine)
    assert engine.row_cap == 16


@pytest.mark.parametrize(("room", "rows"), [(100, 16), (13, 8), (3, 2), (0, 1)])
def test_a_forward_has_no_more_rows_than_there_is_memory_for(room: int, rows: int) -> None:
    """A power of two, asked for once a shape and again when one did not fit."""
    asked = []

    class Counted(LimitedMemory):
        def num_rows_at_once(self, latents: tuple[int, int]) -> int:
            asked.append(latents)
            return room

    model = Counted()
    model.limit = 1000
    engine = Engine(model, config=EngineConfig(row_cap=16))
    tickets = [submit_images(engine, [seed]) for seed in range(16)]
    reports = until_idle(engine)
    assert max(report.batch_rows for report in reports) == rows and len(asked) == 1
    assert all(ticket.state == "done" for ticket in tickets)
    model.limit = rows - 1
    submit_images(engine, [0, 1, 2, 3, 4, 5, 6, 7])
    until_idle(engine)
    assert len(asked) >= 1 + (rows > 1)


def test_a_strict_forward_that_does_not_fit_says_so() -> None:
    engine = Engine(LimitedMemory(), config=EngineConfig(strict_rows=8))
    ticket = submit_images(engine, [1], strict=True)
    until_idle(engine)
    with pytest.raises(StrictOutOfMemory, match="a strict forward always has 8 rows, which do not fit"):
        ticket.result()


def test_only_errors_that_a_process_does_not_outlive_are_sticky() -> None:
    lost = torch.AcceleratorError("CUDA error: device-side assert triggered")
    short = torch.AcceleratorError("CUDA error: out of memory")
    wrapped = RuntimeError("the engine stopped")
    wrapped.__cause__ = lost
    assert is_sticky(lost) and is_sticky(wrapped)
    assert is_out_of_memory(short) and not is_sticky(short) and not is_sticky(ValueError("no"))


def test_not_even_one_row_fits() -> None:
    model = LimitedMemory()
    model.limit = 0
    engine = Engine(model)
    ticket = submit_images(engine, [1])
    until_idle(engine)
    with pytest.raises(torch.OutOfMemoryError):
        ticket.result()


class BrokenRow(OracleModel):
    """Answers the row that starts with 77 with not-a-number, and refuses one that starts with 88."""

    def predict(self, x_t: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        if (x_t[:, 0, 0, 0] == 88).any():
            raise ValueError("this row cannot be computed")
        output = super().predict(x_t, t, tokens)
        return torch.where(x_t[:, :1] == 77, torch.nan, output)


def starting_at(value: float):
    def begin(condition):
        return SAMPLERS["ddim"](
            torch.full((1, *SHAPE), value),
            schedule=SCHEDULE,
            timesteps=SCHEDULE.timesteps(3),
            condition=condition,
            guidance=Guidance(scale=1.0),
        )

    return begin


def test_a_broken_row_fails_its_own_request_alone() -> None:
    engine = Engine(BrokenRow())
    good = [submit_images(engine, [seed], job=str(seed)) for seed in range(3)]
    nan, refused = (engine.submit(starting_at(value), prompts=["a cup"]) for value in (77.0, 88.0))
    until_idle(engine)
    with pytest.raises(NotFinite, match=r"'a cup' with a number that is not finite at step 0; expected finite numbers; lower"):
        nan.result()
    with pytest.raises(ValueError, match="this row cannot be computed"):
        refused.result()
    for seed, ticket in enumerate(good):
        torch.testing.assert_close(ticket.result(), alone(sampling([seed]), 1), rtol=1e-5, atol=1e-5)


class DropsARow(OracleModel):
    """Answers a row too few where a row starts with 99, from the network and from the autoencoder."""

    def predict(self, x_t: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        output = super().predict(x_t, t, tokens)
        return output[1:] if (x_t[:, 0, 0, 0] == 99).any() else output

    def answer(self, request: Any) -> Any:
        output = super().answer(request)
        return output[1:] if (request.latents[:, 0, 0, 0] == 99).any() else output


@pytest.mark.parametrize("strict", [False, True])
def test_an_answer_that_lacks_a_row_fails_its_own_request_alone(strict: bool) -> None:
    engine = Engine(DropsARow())
    good = [submit_images(engine, [seed, seed + 50], job=str(seed), strict=strict) for seed in range(3)]
    short = engine.submit(starting_at(99.0), prompts=["a cup"], slots=[7] if strict else None)

    def decodes(condition):
        return (yield DecodeRequest(torch.full((1, *SHAPE), 99.0)))

    undecoded = engine.submit(decodes, prompts=["a cup"], slots=[7] if strict else None)
    until_idle(engine)
    expected = "the network answered 15 rows; expected the 16 it was asked" if strict else "answered 0 rows; expected the 1 it"
    with pytest.raises(ValueError, match=expected):
        short.result()
    with pytest.raises((RuntimeError, ValueError)):
        undecoded.result()
    for seed, ticket in enumerate(good):
        torch.testing.assert_close(ticket.result(), alone(sampling([seed, seed + 50]), 2), rtol=1e-5, atol=1e-5)


def test_an_error_inside_a_request_fails_it_alone() -> None:
    engine = Engine(OracleModel())

    def raises_later(condition):
        yield DecodeRequest(torch.zeros(1, *SHAPE))
        raise RuntimeError("mistake in a sampler")

    def asks_nonsense(condition):
        yield "what is the weather"

    bad = [engine.submit(begin, prompts=["a cup"]) for begin in (raises_later, asks_nonsense, None)]
    good = submit_images(engine, [1])
    until_idle(engine)
    assert [type(ticket.error) for ticket in bad] == [RuntimeError, TypeError, TypeError] and good.state == "done"


def test_cancelling_takes_effect_at_the_next_step() -> None:
    model = OracleModel()
    engine = Engine(model)
    first, second = submit_images(engine, [1], steps=9), submit_images(engine, [2], steps=9)
    engine.step()
    engine.cancel(first)
    assert first.finished and engine.live == 1
    report = engine.step()
    assert first in report.finished and model.forwards == [4, 2]
    until_idle(engine)
    assert second.state == "done"
    with pytest.raises(Cancelled, match="request 0 of job 'images' was cancelled"):
        first.result()
    with pytest.raises(RuntimeError, match="is queued; call step"):
        submit_images(engine, [3]).result()


def test_previews_approach_the_picture() -> None:
    engine = Engine(OracleModel())
    ticket = submit_images(engine, [5], steps=10, preview_every=3)
    previews = [preview for report in until_idle(engine) for preview in report.previews]
    assert [preview.steps for preview in previews] == [3, 6, 9]
    distances = [float((preview.images - ticket.result()).norm()) for preview in previews]
    assert distances == sorted(distances, reverse=True) and distances[-1] < 0.1


def test_few_new_prompts_are_encoded_a_step_and_known_ones_do_not_wait() -> None:
    model = OracleModel()
    engine = Engine(model, config=EngineConfig(text_prompts=3))
    many = engine.submit(sampling(range(7)), prompts=[f"cup {i}" for i in range(7)])
    engine.step()
    assert many.state == "queued" and model.texts == ["cup 0", "cup 1", "cup 2"]
    known = engine.submit(sampling([1]), prompts=["cup 1"])
    engine.step()
    assert many.state == "queued" and known.state == "running"
    until_idle(engine)
    assert model.texts == [f"cup {i}" for i in range(7)]


def test_strict_forwards_always_have_one_shape_and_their_holes_are_filled() -> None:
    model = OracleModel()
    engine = Engine(model, config=EngineConfig(strict_rows=8))
    submit_images(engine, [0], steps=3, strict=True)
    reports = until_idle(engine)
    assert [(report.batch_rows, sum(report.rows.values())) for report in reports] == [(8, 2)] * 3
    strict, other = submit_images(engine, [1], steps=3, strict=True), submit_images(engine, [2], job="other", steps=3)
    assert {"images": 2, "other": 2} in [report.rows for report in until_idle(engine) if report.batch_rows == 8]
    for seed, ticket in ((1, strict), (2, other)):
        torch.testing.assert_close(ticket.result(), alone(sampling([seed], steps=3), 1), rtol=1e-5, atol=1e-5)


def test_strict_requests_of_one_slot_take_turns() -> None:
    engine = Engine(OracleModel(), config=EngineConfig(strict_rows=4))
    tickets = [submit_images(engine, [seed], steps=2, strict=True) for seed in (0, 2, 4, 1)]
    reports = until_idle(engine)
    assert {report.batch_rows for report in reports} == {4}
    assert all(ticket.state == "done" for ticket in tickets)


def test_bad_arguments_are_named() -> None:
    engine = Engine(OracleModel())
    with pytest.raises(ValueError, match="2 slots for 1 prompts; expected one each"):
        engine.submit(sampling([1]), prompts=["a cup"], slots=[1, 2])
    with pytest.raises(ValueError, match=r"the weight of job 'x' is 0; give a positive number"):
        engine.set_weight("x", 0)
    with pytest.raises(ValueError, match="the engine's row_cap is 0; expected at least 1"):
        EngineConfig(row_cap=0)


class GroupModel(OracleModel):
    """Every row answers with what all rows of its group and their cameras add up to, so that a parted group shows."""

    def predict(self, x_t: Tensor, t: Tensor, tokens: Tensor, cameras: Tensor | None = None, num_views: int = 1) -> Tensor:
        self.forwards.append(len(x_t))
        output = self.oracle.network(x_t, t, tokens)
        if num_views == 1:
            return output
        assert cameras is not None and len(x_t) % num_views == 0
        seen = output * (1 + cameras[:, :1, None, None].to(output))
        return seen.unflatten(0, (-1, num_views)).mean(dim=1).repeat_interleave(num_views, dim=0)


def submit_groups(engine: Engine, seed: int, *, groups: int, job: str, strict: bool = False, steps: int = 4) -> Ticket:
    """A trajectory of so many groups of four views."""
    rows = 4 * groups
    begin = sampling(range(seed, seed + rows), steps=steps)
    cameras = torch.arange(rows * 16).view(rows, 16) / 100

    def seen(condition):
        return begin(condition.seen_from(cameras, 4))

    return engine.submit(seen, prompts=["a cup"] * rows, job=job, slots=range(seed, seed + rows) if strict else None)


@pytest.mark.parametrize("row_cap", [1, 6, 8, 64])
def test_groups_are_never_parted_and_share_forwards_with_their_like(row_cap: int) -> None:
    def results(crowd: bool) -> list[Tensor]:
        engine = Engine(GroupModel(), config=EngineConfig(row_cap=row_cap, max_rows=row_cap))
        tickets = [submit_groups(engine, 40, groups=3, job="groups")]
        if crowd:
            tickets += [submit_groups(engine, 0, groups=2, job="others"), submit_images(engine, range(5))]
        until_idle(engine)
        return [ticket.result() for ticket in tickets]

    torch.testing.assert_close(results(crowd=True)[0], results(crowd=False)[0], rtol=1e-5, atol=1e-6)
    model = GroupModel()
    engine = Engine(model, config=EngineConfig(row_cap=row_cap))
    submit_groups(engine, 0, groups=1, job="a")
    submit_groups(engine, 8, groups=1, job="b")
    reports = until_idle(engine)
    # Four steps of two groups, each guided: 16 rows a step in whole groups of 4.
    assert sum(sum(report.rows.values()) for report in reports) == 64
    assert all(rows % 4 == 0 and rows <= max(row_cap, 4) for rows in model.forwards)
    assert max(model.forwards) == max(4, min(row_cap, 16) // 4 * 4)


@pytest.mark.parametrize("strict_rows", [1, 8, 16])
def test_strict_groups_are_batch_invariant(strict_rows: int) -> None:
    class Places(GroupModel):
        """Rounds by the place in the batch, as tiles of a matrix product do."""

        def predict(self, x_t: Tensor, t: Tensor, tokens: Tensor, cameras: Tensor | None = None, num_views: int = 1) -> Tensor:
            output = super().predict(x_t, t, tokens, cameras, num_views)
            return output * (1 + 1e-6 * (torch.arange(len(output)) + len(output)))[:, None, None, None]

    def result(company: int) -> Tensor:
        engine = Engine(Places(), config=EngineConfig(strict_rows=strict_rows))
        tickets = [submit_groups(engine, 4 * n, groups=1, job=f"job {n}", strict=True) for n in range(company)]
        ticket = submit_groups(engine, 100, groups=2, job="mine", strict=True)
        until_idle(engine)
        assert all(other.result() is not None for other in tickets)
        return ticket.result()

    assert torch.equal(result(0), result(5))


def test_a_group_too_large_for_the_memory_fails_alone() -> None:
    class Small(GroupModel):
        def predict(self, x_t: Tensor, t: Tensor, tokens: Tensor, cameras: Tensor | None = None, num_views: int = 1) -> Tensor:
            if len(x_t) > 2:
                raise torch.OutOfMemoryError("not enough")
            return super().predict(x_t, t, tokens, cameras, num_views)

    engine = Engine(Small())
    group, pictures = submit_groups(engine, 0, groups=2, job="groups"), submit_images(engine, [1, 2, 3])
    until_idle(engine)
    assert isinstance(group.error, torch.OutOfMemoryError) and pictures.result() is not None
