"""What actors ask of Ray, by arithmetic."""

from __future__ import annotations

import pytest

from jobs.batch_images import BatchImagesSpec, Table, TableFile
from jobs.errors import InputError
from orchestrator.batch.workers import actor_options
from orchestrator.daemon.job_request import JobRequest, bytes_of_its_own_process
from orchestrator.host.gpus import Gpus
from orchestrator.runtimes.base import resolve_device
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
    assert job["num_gpus"] == prior["num_gpus"] == 0, "which GPU an actor gets is not Ray's choice here"
    assert "memory" not in job and place.job_threads == 0
    assert on_this_machine(num_cpus=2, num_workers=3, device="cuda:1").device == "cuda"
    assert place.settings_there({"runtime": {"device": "cuda:1"}})["runtime"]["device"] == "cuda"


def test_all_gpus_are_used_and_a_large_prior_has_one_for_itself():
    gpus = Gpus.of(2.0, "cuda", {})
    assert [gpus.for_prior(("toybox", n), num_bytes=10**8, apart_from=[("toybox", 0)]) for n in range(2)] == ["0", "1"]
    assert sorted(gpus.for_job(n) for n in range(4)) == ["0", "0", "1", "1"]
    gpus = Gpus.of(3.0, "cuda", {"CUDA_VISIBLE_DEVICES": "4,GPU-b7,6"})
    assert gpus.for_prior("sdxl", num_bytes=7 * 10**9) == "4"
    assert [gpus.for_job(n) for n in range(6)] == ["GPU-b7", "6"] * 3, "not where the large prior is"
    assert gpus.for_prior("toybox", num_bytes=10**8) == "GPU-b7" and gpus.for_prior("sd", num_bytes=4 * 10**9) == "6"
    for n in range(6):
        gpus.release(n)
        gpus.release(n)
    assert gpus.load("4") == 1 and gpus.load("GPU-b7") == gpus.load("6") == 0.5


def test_where_sizes_are_known_a_prior_goes_where_its_bytes_are_free():
    gpus = Gpus.of(2.0, "cuda", {}, sizes=[8 * 10**9, 24 * 10**9])
    sd, xl = {"num_bytes": 5 * 10**9, "least_bytes": 4 * 10**9}, {"num_bytes": 13 * 10**9, "least_bytes": 8 * 10**9}
    assert gpus.for_prior("sd", **sd) == "1" and gpus.load("1") == 0.5 and gpus.free_bytes("1") == 19 * 10**9
    assert gpus.for_prior("xl", **xl) == "1" and gpus.load("1") == 1.5, "more than half of it is a whole one"
    assert gpus.for_prior("other", **sd) == "0" and gpus.load("0") == 1
    assert [gpus.held(name) for name in ("xl", "nobody")] == [(1, 13 * 10**9), None]
    assert gpus.for_job("job") == "0", "which has less to do"
    gpus.release("xl")
    assert gpus.free_bytes("1") == 19 * 10**9
    with pytest.raises(InputError, match=r"needs 25.0 GB of a GPU at least, and the largest GPU here has 24.0 GB; take"):
        gpus.for_prior("flux", num_bytes=30 * 10**9, least_bytes=25 * 10**9)
    assert Gpus.of(2.0, "cuda:1", {}, sizes=[8, 24]).sizes == (24,)


def test_nodes_that_declare_their_gpus_memory_are_asked_for_it():
    small, large = ({"CPU": 8, "GPU": num, "gpu_memory_gb": gb, "memory": 9e9} for num, gb in ((2, 48), (1, 80)))
    place = on_cluster([HEAD, small, large])
    assert place.gpu_bytes == (24 * 10**9, 24 * 10**9, 80 * 10**9)
    half, whole = place.prior_options(5 * 10**9), place.prior_options(13 * 10**9)
    assert (half["num_gpus"], half["resources"]) == (0.5, {"gpu_memory_gb": 5})
    assert (whole["num_gpus"], whole["resources"]) == (1, {"gpu_memory_gb": 13})
    assert on_cluster([small, WITH_GPU]).gpu_bytes == () and on_cluster([small], device="cpu").gpu_bytes == ()
    assert "resources" not in on_cluster([small, WITH_GPU]).prior_options(13 * 10**9)


def test_a_numbered_gpu_is_that_one_and_must_be_there():
    assert {Gpus.of(2.0, "cuda:1", {}).for_job(n) for n in range(3)} == {"1"}
    assert Gpus.of(2.0, "cuda:1", {"CUDA_VISIBLE_DEVICES": "6,7"}).for_job(0) == "7"
    assert Gpus.of(2.0, "cpu", {}).for_job(0) == ""
    with pytest.raises(InputError, match="'cuda:2', but there are 2 GPUs here; give cuda:0 to cuda:1"):
        Gpus.of(2.0, "cuda:2", {})


def test_a_device_that_torch_does_not_find_is_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert resolve_device("cuda:1") == "cuda:1" and resolve_device("auto") == "cuda"
    with pytest.raises(InputError, match="'cuda:2', but torch finds 2 CUDA devices; give cuda:0 to cuda:1"):
        resolve_device("cuda:2")


def test_replicas_on_a_cluster_have_a_gpu_each():
    assert on_cluster([WITH_GPU], num_priors=2).prior_options()["num_gpus"] == 1
    one = on_cluster([WITH_GPU])
    assert (one.prior_options(2 * 10**9)["num_gpus"], one.prior_options(7 * 10**9)["num_gpus"]) == (0.5, 1)
    chosen = on_cluster([WITH_GPU], sizes=ClusterSizes(prior_gpus=0.25), num_priors=2)
    assert chosen.prior_options(7 * 10**9)["num_gpus"] == 0.25


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
    assert on_cluster([SMALL, WITH_GPU], sizes=ClusterSizes(prior_gpus=0.5), num_priors=2).num_jobs == 4
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
