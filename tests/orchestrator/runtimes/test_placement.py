"""What actors ask of Ray, by arithmetic."""

from __future__ import annotations

import pytest

from jobs.batch_images import BatchImagesSpec, Table, TableFile
from jobs.errors import InputError
from orchestrator.batch.workers import actor_options
from orchestrator.daemon.job_request import JobRequest, bytes_of_its_own_process
from orchestrator.runtimes.placement import ClusterSizes, on_cluster, on_this_machine
from orchestrator.settings.batch import SHARD_WORKER_BYTES, BatchSettings
from orchestrator.settings.job import JobSettings

HEAD = {"CPU": 0.0, "memory": 4e9}
SMALL = {"CPU": 4.0, "memory": 8e9}
WITH_GPU = {"CPU": 8.0, "GPU": 2.0, "memory": 32e9}


def test_this_machine_is_shared_out_whole():
    place = on_this_machine(num_cpus=2, num_workers=3, device="cuda")
    job, prior = place.job_options(10**9), place.prior_options()
    assert 3 * job["num_cpus"] + 4 * prior["num_cpus"] == pytest.approx(2)
    assert 3 * job["num_gpus"] + 4 * prior["num_gpus"] == pytest.approx(1)
    assert "memory" not in job and place.job_threads == 0
    assert on_this_machine(num_cpus=2, num_workers=3, device="cpu").job_options()["num_gpus"] == 0


def test_on_a_cluster_every_actor_fits_on_one_node():
    place = on_cluster([HEAD, SMALL, SMALL], sizes=ClusterSizes(job_cpus=2, prior_cpus=1))
    assert place.device == "cpu" and place.memory_bytes == 20e9
    assert place.job_options(3 * 10**9) == {"num_cpus": 2, "num_gpus": 0, "memory": 3 * 10**9}
    assert place.num_jobs == 3, "two on one node, one beside the prior"
    assert place.job_threads == 2 and place.prior_threads == 1


def test_a_gpu_of_any_node_makes_the_device_cuda_and_holds_a_prior_with_two_jobs():
    place = on_cluster([SMALL, WITH_GPU])
    assert (place.device, place.job["num_gpus"], place.prior["num_gpus"]) == ("cuda", 0.25, 0.5)
    assert place.num_jobs == 6, "two GPUs: four quarters, and two beside the prior"
    assert on_cluster([SMALL, WITH_GPU], device="cpu").num_jobs == 11
    assert on_cluster([SMALL, WITH_GPU], num_priors=2).num_jobs == 4
    assert on_cluster([SMALL, SMALL], num_priors=3).num_jobs == 5


@pytest.mark.parametrize("nodes", [[], [HEAD], [{"CPU": 0.5}]])
def test_a_cluster_that_is_yet_to_grow_has_room_for_one(nodes):
    assert on_cluster(nodes).num_jobs == 1


def test_a_job_takes_its_threads_from_its_place_and_joins_nothing():
    place = on_cluster([SMALL], sizes=ClusterSizes(job_cpus=3))
    assert place.settings_there({"runtime": {"address": "auto", "num_threads": 0}, "export": {"a": 1}}) == {
        "runtime": {"address": "", "num_threads": 3},
        "export": {"a": 1},
    }
    assert place.settings_there({"runtime": {"num_threads": 1}})["runtime"]["num_threads"] == 1


def test_no_actor_of_a_table_with_many_shard_workers_asks_more_than_a_small_node_has():
    settings = JobSettings(batch=BatchSettings(prompts="s3://bucket/t.csv", num_workers=64))
    table = Table(files=(TableFile(name="t.csv", num_bytes=1, sha256="0" * 64, num_rows=9),), columns={"prompt": "text"})
    job = JobRequest(spec=BatchImagesSpec(table=table).to_json(), out="s3://bucket/out", settings=settings).to_submission()
    assert job.memory_bytes == 900_000_000 + 64 * 500_000_000, "the scheduler counts all of it"
    place = on_cluster([SMALL])
    assert place.job_options(bytes_of_its_own_process(job.settings, job.memory_bytes))["memory"] == 900_000_000
    assert actor_options(SHARD_WORKER_BYTES) == {"num_cpus": 0, "memory": 500_000_000}
    assert actor_options() == {"num_cpus": 0}
    assert place.job_options(bytes_of_its_own_process({"batch": None}, 1_500_000_000))["memory"] == 1_500_000_000


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"job_cpus": 0}, r"--job-cpus is 0; give 0\.01 to 1024"),
        ({"prior_gpus": -1}, "--prior-gpus is -1; give 0 to 1024"),
        ({"job_gpus": 1.5}, r"--job-gpus is 1\.5; Ray gives parts of one GPU"),
    ],
)
def test_sizes_that_ray_cannot_give_are_refused(sizes, message):
    with pytest.raises(InputError, match=message):
        ClusterSizes(**sizes)
