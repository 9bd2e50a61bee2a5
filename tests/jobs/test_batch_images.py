"""The batch recipe: rows to pictures and failures, in order, grouped by settings, through a client that remembers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion.distillation import Distilled
from diffusion.schedule import NoiseSchedule
from jobs import codec
from jobs.batch_images import (
    BatchImagesSpec,
    Failed,
    Generated,
    Row,
    Table,
    TableFile,
    batched,
    extra_values,
    generate_rows,
    row_digest,
    shard_range,
)
from jobs.errors import InputError, JobFailed, PriorFailed
from jobs.images import EditSource
from jobs.prior_client import DistillationQuery, GenerateRequest, PriorInfo


class RememberingPrior:
    """Draws flat pictures whose value is the seed; fails at prompts with "poison"; can be gone."""

    def __init__(self, *, poison: str = "poison", alive: bool = True) -> None:
        self.requests: list[GenerateRequest] = []
        self.poison = poison
        self.alive = alive

    def info(self) -> PriorInfo:
        if not self.alive:
            raise PriorFailed("The process that holds the prior died.")
        return PriorInfo(name="flat", weights_hash="0" * 64, image_size=8, size_multiple=8, schedule=NoiseSchedule())

    def unknown_words(self, prompts: Sequence[str]) -> list[str]:
        return []

    def distill(self, query: DistillationQuery) -> Distilled:
        raise NotImplementedError

    def generate(self, request: GenerateRequest) -> np.ndarray:
        self.requests.append(request)
        if not self.alive or any(self.poison in prompt for prompt in request.prompts):
            raise PriorFailed(f"The prior answered {request.prompts[0]!r} with a picture that is not finite.")
        return np.stack([np.full((*(request.size or (8, 8)), 3), seed % 256, np.uint8) for seed in request.seeds])


def spec_of(num_rows: int, *, columns: Sequence[str] = ("prompt",), **changes) -> BatchImagesSpec:
    file = TableFile(name="prompts.csv", num_bytes=1, sha256="0" * 64, num_rows=num_rows)
    table = Table(files=(file,), columns=dict.fromkeys(columns, "text"))
    return BatchImagesSpec(**{"table": table, "seed": 100, "chunk_size": 4, **changes})


def rows_of(*cells: dict | str) -> list[Row]:
    values = [{"prompt": cell} if isinstance(cell, str) else {"prompt": "a chair", **cell} for cell in cells]
    return [Row(index=i, file="prompts.csv", number=i + 1, line=i + 2, values=v) for i, v in enumerate(values)]


def draw(rows: Sequence[Row], prior: RememberingPrior | None = None, **changes) -> list[Generated | Failed]:
    prior = prior or RememberingPrior()
    info = dataclasses.replace(RememberingPrior().info())
    return list(generate_rows(spec_of(len(rows)), rows, prior, info=info, **changes))


def only(answers: list[Generated | Failed]) -> Generated | Failed:
    assert len(answers) == 1
    return answers[0]


def test_row_r_is_drawn_from_seed_plus_r_with_the_jobs_settings():
    prior = RememberingPrior()
    answers = draw(rows_of("a", "b", "c"), prior)
    assert [answer.image[0, 0, 0] for answer in answers] == [100, 101, 102]
    (request,) = prior.requests
    assert request.prompts == ("a", "b", "c") and request.seeds == (100, 101, 102)
    assert (request.num_steps, request.sampler, request.guidance.scale) == (20, "dpmpp_2m", 3.0)


def test_cells_override_the_job_and_text_is_read_as_numbers():
    cells = {
        "seed": "9007199254740993",  # not a float's integer
        "steps": "7",
        "guidance_scale": "1.5",
        "guidance_rescale": 0.25,
        "sampler": "euler",
        "negative_prompt": "grey",
        "size": "8x8",
    }
    prior = RememberingPrior()
    answer = only(draw(rows_of(cells), prior))
    (request,) = prior.requests
    assert isinstance(answer, Generated) and request.seeds == (9007199254740993,)
    assert (request.num_steps, request.sampler, request.negative_prompt) == (7, "euler", "grey")
    assert (request.guidance.scale, request.guidance.rescale) == (1.5, 0.25)


def test_empty_cells_leave_the_jobs_own_value():
    prior = RememberingPrior()
    draw(rows_of({"seed": "", "num_steps": None, "sampler": "  ", "guidance_scale": float("nan")}), prior)
    assert prior.requests[0].seeds == (100,) and prior.requests[0].sampler == "dpmpp_2m"


def test_rows_with_the_same_settings_share_a_forward_pass_and_keep_their_order():
    cells = [{"num_steps": 5 if i % 2 else 9} for i in range(10)]
    prior = RememberingPrior()
    answers = draw(rows_of(*cells), prior)
    assert [answer.row.index for answer in answers] == list(range(10))
    assert [(request.num_steps, len(request.prompts)) for request in prior.requests] == [(9, 4), (9, 1), (5, 4), (5, 1)]


def test_rows_have_sizes_of_their_own_and_those_of_one_size_go_together():
    cells = [{"size": "16x24"}, {}, {"width": "16", "height": 24}, {"size": 8}, {"height": 16}]
    prior = RememberingPrior()
    answers = draw(rows_of(*cells), prior)
    assert [answer.image.shape[:2] for answer in answers] == [(24, 16), (8, 8), (24, 16), (8, 8), (16, 8)]
    # The prior's own size said aloud is the prior's own size; rows that say it go on their own.
    assert [request.size for request in prior.requests] == [(24, 16), None, None, (16, 8)]
    assert len(prior.requests[0].seeds) == 2


@pytest.mark.parametrize(
    ("cells", "cause", "words"),
    [
        ({"prompt": ""}, "prompt", "The prompt is empty"),
        ({"prompt": "🙂"}, "prompt", "holds no letter or digit"),
        ({"prompt": 7}, "prompt", "The prompt is 7"),
        ({"sampler": "dimm"}, "setting", r"no sampler 'dimm' \(did you mean ddim\?\)"),
        ({"seed": "x"}, "setting", "seed is 'x', but a number was expected"),
        ({"seed": "-1"}, "setting", "The seed is -1"),
        ({"seed": 1.5}, "setting", "seed is 1.5, but a whole number"),
        ({"seed": "--5"}, "setting", "seed is '--5', but a number was expected"),
        ({"seed": "+-5"}, "setting", r"seed is '\+-5', but a number"),
        ({"seed": "9" * 5000}, "setting", "seed is inf, but a number"),
        ({"seed": 10**5000}, "setting", "seed is a number of 16,610 bits, but a whole number of at most 64 bits"),
        ({"seed": 1e300}, "setting", r"seed is 1e\+300, but a whole number of at most 64 bits"),
        ({"seed": 2**63}, "setting", "The seed is 9223372036854775808"),
        ({"guidance_scale": 10**400}, "setting", "guidance_scale is a number of 1,329 bits, but a number"),
        ({"guidance_scale": "9" * 500}, "setting", "guidance_scale is inf"),
        ({"strength": -(10**400), "init_image": "a.png"}, "setting", "strength is a number of"),
        ({"num_steps": 0}, "setting", "num_steps is 0"),
        ({"num_steps": "5x"}, "setting", "num_steps is '5x'"),
        ({"size": "--5"}, "setting", "size is '--5', but width and height such as 512x768, or one number"),
        ({"size": "9" * 5000}, "setting", "size is '9{50,60}…, but width and height"),
        ({"size": 10**400}, "setting", "size is a number of 1,329 bits, but width and height"),
        ({"guidance_scale": "inf"}, "setting", "guidance_scale is inf"),
        ({"size": "8x8x8"}, "setting", "size is '8x8x8', but width and height"),
        ({"size": "500x16"}, "setting", "The size is 500x16, but the prior 'flat' draws .* in multiples of 8; give 496x16"),
        ({"height": 4}, "setting", "height is 4, but 8 to 16,384 is allowed"),
        ({"width": "8.5"}, "setting", "width is '8.5', but a whole number"),
        ({"size": "8x16", "width": 8}, "setting", "There are a size and a width; give one of them"),
        ({"negative_prompt": "\0"}, "setting", r"control character U\+0000"),
        ({"init_image": "a.png", "strength": 2}, "setting", "strength is 2"),
        ({"mask": "m.png"}, "setting", "There is a mask but no init_image"),
        ({"init_image": "a.png"}, "initial image", "initial images cannot be read here"),
    ],
)
def test_a_bad_row_is_named_and_the_others_go_on(cells, cause, words):
    answers = draw([*rows_of("a", cells, "c")])
    assert [type(answer) for answer in answers] == [Generated, Failed, Generated]
    failed = answers[1]
    assert failed.cause == cause
    with pytest.raises(InputError, match=rf"^prompts\.csv, row 2 \(line 3\): .*{words}"):
        raise InputError(failed.message)


def test_an_unreadable_row_keeps_its_own_words():
    row = Row(index=0, file="prompts.jsonl", number=1, line=4, problem="the line is not JSON (x)")
    failed = only(draw([row]))
    assert failed == Failed(row=row, cause="unreadable", message="prompts.jsonl, row 1 (line 4): the line is not JSON (x).")


def test_a_poisonous_prompt_fails_alone():
    answers = draw(rows_of("a", "poison", "c", "d", "e"))
    assert [isinstance(answer, Generated) for answer in answers] == [True, False, True, True, True]
    assert answers[1].cause == "prior" and "not finite" in answers[1].message


def test_a_prior_that_is_gone_fails_the_job_and_not_the_rows():
    with pytest.raises(PriorFailed, match="process that holds the prior died"):
        draw(rows_of("a", "b"), RememberingPrior(alive=False))


def test_a_prior_that_fails_at_every_row_is_to_blame_itself():
    with pytest.raises(JobFailed, match="failed at each of the first 16 rows"):
        draw(rows_of(*["poison"] * 40))
    assert len(draw(rows_of(*["poison"] * 15))) == 15


def test_initial_images_and_masks_reach_the_prior_in_the_rows_order():
    def load(picture, info):
        value = float(picture.image.init_image)
        mask = torch.ones(1, info.image_size, info.image_size) if picture.image.mask else None
        return EditSource(torch.full((3, info.image_size, info.image_size), value), mask)

    prior = RememberingPrior()
    draw(rows_of({"init_image": "0.25"}, {}, {"init_image": "0.5"}, {"init_image": "1", "mask": "m"}), prior, load_source=load)
    edited, plain, masked = prior.requests
    assert edited.init_images.shape == (2, 3, 8, 8) and edited.init_images[:, 0, 0, 0].tolist() == [0.25, 0.5]
    assert edited.strength == 0.6 and edited.masks is None and edited.seeds == (100, 102)
    assert plain.init_images is None and masked.masks.shape == (1, 1, 8, 8) and masked.strength == 1.0


def test_other_columns_are_kept():
    spec = spec_of(1, columns=("prompt", "steps", "id", "note"))
    assert extra_values(spec, rows_of({"steps": "3", "id": "7"})[0]) == {"id": "7", "note": None}


def test_strict_jobs_ask_strictly():
    prior = RememberingPrior()
    for strict in (False, True):
        list(generate_rows(spec_of(1, strict=strict), rows_of("a"), prior, info=prior.info()))
    assert [request.strict for request in prior.requests] == [False, True]


def test_the_prompt_column_can_have_any_name():
    rows = [Row(index=0, file="t.csv", number=1, values={"caption": "a", "prompt": ""})]
    prior = RememberingPrior()
    spec = spec_of(1, columns=("caption", "prompt"), prompt_column="caption")
    assert isinstance(only(list(generate_rows(spec, rows, prior, info=prior.info()))), Generated)
    assert prior.requests[0].prompts == ("a",)


def test_spec_round_trip_and_fingerprint():
    spec = spec_of(7)
    fields = {name: value for name, value in json.loads(json.dumps(spec.to_json())).items() if name != "kind"}
    again = codec.from_plain(BatchImagesSpec, fields)
    assert again == spec and again.fingerprint() == spec.fingerprint()
    file = dataclasses.replace(spec.table.files[0], sha256="1" * 64)
    other = dataclasses.replace(spec, table=dataclasses.replace(spec.table, files=(file,)))
    assert other.fingerprint() != spec.fingerprint() and other.name.startswith("prompts-csv-")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shard_size": 0}, "shard_size is 0"),
        ({"output_format": "webdatase"}, r"no output format 'webdatase' \(did you mean webdataset\?\)"),
        ({"sampler": "x"}, "There is no sampler 'x'"),
        ({"seed": 2**63 - 1}, "The seed is"),
        ({"strength": 2.0}, "strength is 2"),
    ],
)
def test_a_bad_spec_is_refused(changes, words):
    with pytest.raises(InputError, match=words):
        spec_of(2, **changes)


def test_an_empty_table_is_refused():
    with pytest.raises(InputError, match=r"prompts\.csv holds no rows"):
        spec_of(0)


@given(num_rows=st.integers(1, 200), shard_size=st.integers(1, 50))
def test_shards_cover_every_row_once(num_rows, shard_size):
    spec = spec_of(num_rows, shard_size=shard_size)
    rows = [index for shard in range(spec.num_shards) for index in shard_range(spec, shard)]
    assert rows == list(range(num_rows))
    assert [list(r) for r in batched(range(num_rows), shard_size)] == [
        list(shard_range(spec, s)) for s in range(spec.num_shards)
    ]


def test_the_digest_tells_rows_apart():
    a, b = rows_of("a", "b")
    assert row_digest([a, b]) == row_digest(rows_of("a", "b")) != row_digest(rows_of("a", "c"))
    assert row_digest([a]) != row_digest([b]) and row_digest([dataclasses.replace(a, index=5)]) != row_digest([a])
