"""What a GPU's owner does first, on a CUDA device that is not there: nothing mixes devices, and the host seldom waits."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from typing import Any

import pytest

from tests.ghost_cuda import ROOT

QUICK = (
    "renderers",
    "x0",
    "sds_hash_grid",
    "groups_of_views",
    "without_kernels",
    "short_of_memory",
    "samplers",
    "editing",
    "engine",
    "planted_faults",
)
SLOW = ("toybox", "batch_table", "evaluation", "training", "family")
WITHOUT_KERNEL = """
import sys
from tests.ghost_cuda.device import operations_without_a_cuda_kernel as without
print(sorted(without(set(sys.argv[1:]))))
"""


def python(*arguments: str) -> str:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout


@cache
def records(names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """What the workloads did, all in one process: to import torch takes longer than most of them."""
    found = [json.loads(line) for line in python("-m", "tests.ghost_cuda", *names).splitlines()]
    return {record["name"]: record for record in found}


def check(record: dict[str, Any]) -> None:
    assert not record["error"] and not record["refused"], (record["error"], record["refused"])


@pytest.mark.parametrize("name", QUICK)
def test_nothing_mixes_devices(name: str) -> None:
    check(records(QUICK)[name])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", SLOW)
def test_nothing_mixes_devices_in_long_work(name: str) -> None:
    check(records(SLOW)[name])


@pytest.mark.parametrize(
    ("name", "most"),
    [
        # Two of the fit (the object's colours, the step's scalars) and two of the prior (finite rows, finite gradient).
        ("x0", 4),
        ("groups_of_views", 4),
        # The torch path finds the rays that hit and the samples that are occupied.
        ("without_kernels", 6),
        # Each of two parts is a question of its own.
        ("sds_hash_grid", 6),
    ],
)
def test_a_step_of_a_fit_waits_for_the_device_a_few_times(name: str, most: int) -> None:
    waits = records(QUICK)[name]["waits_a_step"]
    assert len(waits) >= 2 and max(waits) <= most, waits


def test_short_memory_lends_the_towers_and_changes_nothing_but_rounding() -> None:
    record = records(QUICK)["short_of_memory"]
    assert record["lends_towers"] == [False, True] and record["tower_is_on"] == "cpu"
    assert record["gradient"] < 1e-4 and record["pictures"] <= 1


def test_a_step_of_a_sampler_waits_once() -> None:
    assert records(QUICK)["samplers"]["waits_a_step"] == 1  # are the answers finite?


def test_a_wait_is_told_with_its_line() -> None:
    places = [wait["place"] for wait in records(QUICK)["x0"]["waits"]]
    assert any(place.startswith("nerf3d/fit/loop.py:") for place in places), places


def test_a_fit_that_goes_on_is_the_same_and_ends_in_a_mesh() -> None:
    record = records(QUICK)["x0"]
    assert record["resumed_is_the_same"] is True and record["num_faces"] > 100


def test_both_renderers_take_the_same_samples_at_the_defaults() -> None:
    record = records(QUICK)["renderers"]
    on_cpu, on_cuda = record["num_samples"]
    # Whether a sample at the border of a cell is within it is decided by the last bit.
    assert on_cpu > 10_000 and abs(on_cuda - on_cpu) < 0.002 * on_cpu
    assert record["largest_difference"] < 0.01


def test_every_operation_has_a_cuda_kernel() -> None:
    operations = {operation for record in records(QUICK).values() for operation in record["operations"]}
    assert len(operations) > 100
    # A planted one, which oneDNN has alone.
    assert python("-c", WITHOUT_KERNEL, *operations, "aten.mkldnn_linear.default").strip() == "['aten.mkldnn_linear.default']"


def test_planted_faults_are_caught() -> None:
    record = records(QUICK)["planted_faults"]
    answers = record["answers"]
    assert answers.pop("none") == "survived" and len(answers) == 5
    assert set(answers.values()) <= {"Refused", "TypeError"}, answers
    assert record["counted"] == 2  # a copy to the device and a read of one number
