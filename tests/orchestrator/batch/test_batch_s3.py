"""Batch jobs on an object store: a real server that speaks S3, on this machine."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import time

import boto3
import pytest
from moto.server import ThreadedMotoServer

from jobs.errors import InputError, Interrupted, OutputError
from jobs.ledger import JobRecord, Submission
from jobs.states import TERMINAL, FailureKind, State
from orchestrator.batch.storage.lease import LEASE, Lease
from orchestrator.batch.storage.stores import open_store
from orchestrator.batch.tables.source import TableSource
from orchestrator.daemon.job_process import JobProcess
from orchestrator.daemon.reports import Failed, Report, ShardsCommitted, Stopped, Succeeded
from tests.orchestrator.batch.batch_fakes import FORMATS, contents, load_slow_prior, run, spec_of, write_table
from tests.orchestrator.batch.test_batch_jobs import StopAfter
from tests.orchestrator.daemon.test_controller import Rig, ScriptedWorkers

# botocore and moto warn in their own modules.
pytestmark = pytest.mark.filterwarnings("ignore")
NUM_ROWS = 12
_numbers = itertools.count()


@pytest.fixture(scope="module")
def server():
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(server, monkeypatch):
    """A new bucket's name; the environment names the server."""
    for name, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    name = f"bucket-{next(_numbers)}"
    boto3.client("s3").create_bucket(Bucket=name)
    return name


def download(bucket, folder):
    client = boto3.client("s3")
    for entry in client.list_objects_v2(Bucket=bucket).get("Contents", ()):
        path = folder / entry["Key"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(client.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read())


@pytest.mark.parametrize("output_format", FORMATS)
def test_a_bucket_ends_with_the_same_objects_as_a_folder(bucket, tmp_path, output_format):
    table = write_table(tmp_path / "t.jsonl", NUM_ROWS, sampler={7: "dimm"})
    run(table, tmp_path / "here", output_format=output_format)
    boto3.client("s3").upload_file(str(table), bucket, "in/t.jsonl")
    source, out = f"s3://{bucket}/in/t.jsonl", f"s3://{bucket}/out"
    with pytest.raises(Interrupted):
        run(source, out, output_format=output_format, display=StopAfter(5))
    run(source, out, output_format=output_format)
    assert run(source, out, output_format=output_format).did == "nothing to do"
    download(bucket, tmp_path / "there")
    assert contents(tmp_path / "there" / "out") == contents(tmp_path / "here")


def test_retry_and_overwrite_work_there_too(bucket, tmp_path):
    table = write_table(tmp_path / "t.jsonl", NUM_ROWS, sampler={7: "dimm"})
    out = f"s3://{bucket}"
    run(table, out, output_format="parquet")
    write_table(table, NUM_ROWS)
    assert run(table, out, output_format="parquet", mode="retry-failed").report["num_drawn_by_last_attempt"] == 1
    run(table, out, output_format="webdataset", mode="overwrite")
    run(table, tmp_path / "here", output_format="webdataset")
    download(bucket, tmp_path / "there")
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


def test_a_folder_and_a_glob_of_tables(bucket, tmp_path):
    for name in ("in/b.jsonl", "in/sub/a.jsonl", "in/notes.md"):
        boto3.client("s3").upload_file(str(write_table(tmp_path / "t.jsonl", 3)), bucket, name)
    source = TableSource.find(f"s3://{bucket}/in")
    assert source.names == ("b.jsonl", "sub/a.jsonl") and source.scan().num_rows == 6
    assert TableSource.find(f"s3://{bucket}/in/*.jsonl").names == ("b.jsonl",)
    assert source.resolve("x.png", "sub/a.jsonl") == f"s3://{bucket}/in/sub/x.png"


def test_a_bucket_that_is_not_there_is_named(bucket, tmp_path):
    table = write_table(tmp_path / "t.jsonl", 2)
    with pytest.raises(OutputError, match=r"s3://no-such-bucket-of-ours/out/_lease\.json could not be written: .*bucket"):
        run(table, "s3://no-such-bucket-of-ours/out")
    with pytest.raises(InputError, match=r"There is no prompt table s3://no-such-bucket-of-ours/t\.csv"):
        TableSource.find("s3://no-such-bucket-of-ours/t.csv")


def test_a_server_that_does_not_answer_is_named(monkeypatch):
    from botocore.exceptions import EndpointConnectionError

    store = open_store("s3://bucket/out")

    def silent(*_: object, **__: object) -> None:
        raise EndpointConnectionError(endpoint_url="http://127.0.0.1:1/")

    monkeypatch.setattr(store._filesystem, "open", silent)
    monkeypatch.setattr(store._filesystem, "ls", silent)
    with pytest.raises(OutputError, match=r"bucket/out/_lease\.json could not be read: Could not connect"), store.hold():
        pass
    with pytest.raises(OutputError, match="could not be read: Could not connect"):
        store.names()


def test_large_files_go_up_in_parts_and_failures_leave_nothing(bucket, monkeypatch):
    from orchestrator.batch.storage import stores

    monkeypatch.setattr(stores, "SPOOL_BYTES", 6 * 1024**2)
    store = open_store(f"s3://{bucket}/big")
    data = os.urandom(1024) * (13 * 1024)
    with store.create("a.bin") as file:
        file.write(data)
    with store.open("a.bin") as file:
        assert file.read() == data
    with pytest.raises(RuntimeError), store.create("b.bin") as file:
        file.write(data)
        raise RuntimeError
    assert store.names() == ["a.bin"]


def lease_of(store, **fields):
    store.put({LEASE: json.dumps({"host": "elsewhere", "pid": 1, "token": "x", "renewed": 1, **fields}).encode()})


def test_a_lease_that_is_renewed_keeps_others_out(bucket):
    store = open_store(f"s3://{bucket}/out")
    lease_of(store)
    renewals = itertools.count(2)
    with (
        pytest.raises(OutputError, match=r"in use by another dreamkiln process \(pid 1 on elsewhere\)"),
        Lease(store, sleep=lambda seconds: lease_of(store, renewed=next(renewals))),
    ):
        pass


def test_a_lease_that_nobody_renews_is_taken_over(bucket):
    store = open_store(f"s3://{bucket}/out")
    lease_of(store)
    waited = []
    with Lease(store, every_seconds=0.2, sleep=waited.append), store.open(LEASE) as file:
        assert json.loads(file.read())["pid"] == os.getpid()
    assert sum(waited) == pytest.approx(0.6) and LEASE not in store.names()


def test_a_dead_process_of_this_machine_is_not_waited_for(bucket):
    import socket

    store = open_store(f"s3://{bucket}/out")
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    lease_of(store, host=socket.gethostname(), pid=child)
    with Lease(store, sleep=lambda seconds: pytest.fail("it waited")):
        pass


class MortalWorker:
    """A job's process on a thread of this one. It is lost as soon as it has committed a shard."""

    def __init__(self, job: JobRecord) -> None:
        prior = load_slow_prior("slow", seconds=0.1)
        self._process = JobProcess(job.spec, job.settings, job.out, prior)

    def poll(self) -> list[Report]:
        reports = self._process.poll()
        if not any(isinstance(report, ShardsCommitted) and any(shard.worker for shard in report.shards) for report in reports):
            return reports
        self._process.stop(at_checkpoint=False)
        while not isinstance(reports[-1], (Stopped, Succeeded)):
            time.sleep(0.005)  # the job's thread, the store's and the server's need the interpreter too
            reports += self._process.poll()
        if isinstance(reports[-1], Stopped):
            reports[-1] = Failed(FailureKind.WORKER_LOST, "The process that ran the job ended.")
        return reports

    def stop(self, *, at_checkpoint: bool) -> None: ...

    def set_weight(self, weight: float) -> None: ...

    def kill(self) -> None: ...


class MortalWorkers(ScriptedWorkers):
    def start(self, job: JobRecord) -> MortalWorker:
        return MortalWorker(job)


def test_deaths_between_commits_do_not_make_a_dead_letter_there(bucket, tmp_path):
    """Each attempt commits a shard and dies; the job may fail twice."""
    table, out = write_table(tmp_path / "t.jsonl", 20), f"s3://{bucket}/out"
    run(table, tmp_path / "here")
    submitted = Submission.of(spec_of(table)[0], out=out, settings={"batch": {"prompts": str(table), "num_workers": 1}})
    rig = Rig(tmp_path / "state", make_workers=MortalWorkers)
    (job,) = rig.submit(dataclasses.replace(submitted, max_failures=2))
    deadline = time.monotonic() + 300
    while rig.state(job) not in TERMINAL:
        assert time.monotonic() < deadline, rig.ledger.jobs.get(job)
        rig.tick()
        time.sleep(0.005)
    record, shards = rig.ledger.jobs.get(job), rig.ledger.shards.summary(job)
    rig.ledger.close()
    assert record.state == State.SUCCEEDED and record.num_attempts > 2 and record.num_failures == 0
    assert shards.num_committed == 4 and shards.num_rows == 20
    download(bucket, tmp_path / "there")
    assert contents(tmp_path / "there" / "out") == contents(tmp_path / "here")
