"""Kills, a full disk and database restarts in the middle of mixed work on a real cluster of three nodes: nothing is lost,
nothing doubled, and every file is the one that an undisturbed run makes. `python -m benchmarks.faults` is the long version.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from benchmarks import faults
from benchmarks.fault_work import CHECKPOINT_EVERY, Kind, kinds_of_work, run_undisturbed
from tests.fakes import save_tiny_prior

# ray warns in its own modules; that is not ours to mend.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(1800)]

Expected = dict[int, dict[str, str]]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Kind], Expected]:
    folder = tmp_path_factory.mktemp("work")
    kinds = kinds_of_work(save_tiny_prior(folder / "prior"), folder / "prompts.jsonl")
    return kinds, {id(kind): run_undisturbed(kind, folder / str(number)) for number, kind in enumerate(kinds)}


@pytest.fixture(scope="module")
def nodes() -> Iterator[faults.Nodes]:
    with faults.environment_of_ray():
        cluster = faults.Nodes()
        try:
            yield cluster
        finally:
            cluster.shut_down()


@pytest.fixture(scope="module")
def possible(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A small disk takes the right to mount one, and a database PostgreSQL's programs."""
    found = list(faults.FAULTS)
    for fault, make in {
        "full disk": lambda: faults.small_disk(tmp_path_factory.mktemp("disk")),
        "database": faults.postgresql,
    }.items():
        try:
            with make():
                pass
        except faults.NotHereError:
            found.remove(fault)
    return found


def test_nothing_is_lost_or_doubled(possible: list[str], nodes: faults.Nodes, work: tuple[list[Kind], Expected], tmp_path):
    """Each fault once, in one night, in an order of chance."""
    kinds, expected = work
    strikes = random.Random(4).sample(possible, len(possible))
    with faults.scene_of(strikes, nodes, tmp_path / "night", seed=4) as scene:
        found = faults.disturb(scene, "everything", strikes, kinds=kinds, expected=expected)
    assert found["wrong"] == []
    assert found["moments"] == len(strikes) >= 5 and found["jobs"] >= len(kinds)
    assert found["most_steps_redone"] <= CHECKPOINT_EVERY
