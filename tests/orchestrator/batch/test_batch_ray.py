"""Batch jobs on a real local Ray: the same files as in one process, dead workers, Ray Data."""

from __future__ import annotations

import io
import os
import signal
import threading
import time

import numpy as np
import psutil
import pytest
from PIL import Image

from orchestrator.batch.perform import perform_batch
from orchestrator.batch.tables.ray_data import GenerateImages
from orchestrator.prior.local import LocalPrior, load_prior
from orchestrator.runtimes.ray_runtime import RayRuntime
from orchestrator.runtimes.ray_start import living_nodes, start_ray, stop_ray
from orchestrator.settings.groups import RuntimeSettings
from tests.fakes import FakePrior
from tests.orchestrator.batch.batch_fakes import contents, load_poisoned_prior, run, spec_of, write_table

# ray opens files at interpreter exit and warns in its own modules; that is not ours to mend.
RAY = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]
ON_RAY = RuntimeSettings(kind="ray", num_threads=1, device="cpu")


def with_ray(test):
    for mark in RAY:
        test = mark(test)
    return test


@with_ray
def test_several_workers_leave_the_same_files_though_one_is_killed(tmp_path, tiny_prior):
    table = write_table(tmp_path / "t.jsonl", 40, sampler={7: "dimm"}, prompt={8: ""})
    options = {"prior": str(tiny_prior), "load_prior": load_prior, "chunk_size": 1}
    run(table, tmp_path / "inline", **options)
    killed = []

    def kill_a_worker_at_work():
        deadline = time.monotonic() + 240
        while not killed and time.monotonic() < deadline:
            busy = any((tmp_path / "ray" / "_shards").glob("*.json"))
            workers = [p for p in psutil.Process().children(recursive=True) if "ShardActor" in " ".join(_command_line(p))]
            if busy and workers:
                os.kill(workers[0].pid, signal.SIGKILL)
                killed.append(workers[0].pid)
            time.sleep(0.02)

    killer = threading.Thread(target=kill_a_worker_at_work)
    killer.start()
    outcome = run(table, tmp_path / "ray", runtime=ON_RAY, num_workers=2, **options)
    killer.join()
    assert killed and outcome.report["num_failed"] == 2 and outcome.report["num_succeeded"] == 38
    assert contents(tmp_path / "ray") == contents(tmp_path / "inline")


@with_ray
def test_ray_data_draws_through_the_shared_prior(tiny_prior):
    rows = [{"prompt": f"a red table {i}" if i < 12 else "", "num_steps": 2, "id": i} for i in range(13)]
    with RayRuntime(load_prior, str(tiny_prior), num_threads=1) as runtime:
        import ray.data

        dataset = ray.data.from_items(rows).map_batches(
            GenerateImages,
            fn_constructor_kwargs={"prior": runtime.prior(), "sampler": "euler", "chunk_size": 1},
            compute=ray.data.ActorPoolStrategy(size=1),
            num_cpus=0.1,
            batch_size=5,
        )
        found = {row["id"]: row for row in dataset.take_all()}
        alone = GenerateImages(runtime.prior(), sampler="euler", chunk_size=1)
        batch = {"prompt": np.array(["a red table 7"], dtype=object), "num_steps": np.array([2])}
        again = alone(batch)["image"][0]
    assert sorted(found) == list(range(13))
    assert found[12]["status"] == "failed" and "prompt is empty" in found[12]["error"] and found[12]["image"] is None
    assert all(found[i]["status"] == "succeeded" for i in range(12))
    assert Image.open(io.BytesIO(found[3]["image"])).size == (16, 16) and found[7]["image"] == again


def test_the_callable_needs_no_ray():
    """Seeds come from the cell, or from the prompt, never from the place in the batch."""
    draw = GenerateImages(LocalPrior(FakePrior()), num_steps=2, chunk_size=2)
    batch = {
        "prompt": np.array(["a red ball", "a blue ball", "a red ball", "a red ball"], dtype=object),
        "seed": np.array([5, 5, 6, 5]),
    }
    answer = draw(batch)
    assert answer["image_seed"].tolist() == ["5", "5", "6", "5"] and answer["image"][0] == answer["image"][3]
    turned = draw({name: column[::-1] for name, column in batch.items()})
    assert [len(png) for png in turned["image"][::-1]] == [len(png) for png in answer["image"]]
    unseeded = draw({"prompt": batch["prompt"]})
    assert unseeded["image_seed"][0] == unseeded["image_seed"][2] != unseeded["image_seed"][1]
    assert set(answer) == {"prompt", "seed", "image", "image_sha256", "image_seed", "status", "error"}


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@with_ray
def test_where_only_one_of_three_workers_finds_room_it_draws_and_makes_room_at_the_end(tmp_path):
    table = write_table(tmp_path / "t.jsonl", 20)
    run(table, tmp_path / "inline", load_prior=load_poisoned_prior)
    start_ray("")
    try:
        memory_bytes = int(sum(node["memory"] for node in living_nodes()))
        spec, source = spec_of(table)
        outcome = perform_batch(
            spec,
            source,
            out=str(tmp_path / "ray"),
            runtime=ON_RAY,
            num_workers=3,
            shared_prior=LocalPrior(FakePrior()),
            shard_worker_bytes=int(0.6 * memory_bytes),
        )
    finally:
        stop_ray()
    assert outcome.report["num_succeeded"] == 20 and contents(tmp_path / "ray") == contents(tmp_path / "inline")
