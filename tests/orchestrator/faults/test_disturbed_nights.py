"""Kills, a full disk and database restarts in the middle of mixed work on a real cluster of three nodes: nothing is lost,
nothing doubled, and every file is the one that an undisturbed run makes. `python -m benchmarks.faults` is the long version.
"""

from __future__ import annotations

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


@pytest.mark.parametrize("fault", faults.FAULTS)
def test_nothing_is_lost_or_doubled(fault: str, nodes: faults.Nodes, work: tuple[list[Kind], Expected], tmp_path):
    kinds, expected = work
    try:
        with faults.scene_of(fault, nodes, tmp_path / "night", seed=0) as scene:
            found = faults.disturb(scene, fault, num_moments=2, kinds=kinds, expected=expected)
    except faults.NotHereError as error:
        pytest.skip(str(error))
    assert found["wrong"] == []
    assert found["moments"] == 2 and found["jobs"] >= len(kinds)
    assert found["most_steps_redone"] <= CHECKPOINT_EVERY
