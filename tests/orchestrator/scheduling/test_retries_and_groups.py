"""What follows a failure, which kind it was, and which of N seeds wins."""

from __future__ import annotations

import errno
import http.server
import math
import os
import pickle
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import CollapsedError, InputError, JobFailed, OutputError, PriorFailed
from jobs.states import FailureKind, State
from orchestrator.batch.storage.urls import clear_url_errors
from orchestrator.batch.tables.source import TableSource
from orchestrator.host.atomic import clear_output_errors
from orchestrator.prior.local import load_prior
from orchestrator.prior.wire import Raised
from orchestrator.scheduling.failures import failure_kind, sentence
from orchestrator.scheduling.groups import Member, hopeless, settle
from orchestrator.scheduling.retries import RULES, after_failure

NOW = 1000.0


def delay(kind: FailureKind, num_failures: int, **others) -> float | None:
    decision = after_failure(kind, job_id=7, num_failures=num_failures, max_failures=99, now=NOW, **others)
    return None if decision.retry_at is None else decision.retry_at - NOW


def test_every_kind_has_a_rule():
    assert set(RULES) == set(FailureKind)


@pytest.mark.parametrize("kind", [FailureKind.BAD_INPUT, FailureKind.COLLAPSED])
def test_what_would_fail_again_is_never_retried(kind):
    decision = after_failure(kind, job_id=1, num_failures=0, max_failures=4, now=NOW)
    assert decision.retry_at is None and decision.reason == f"{kind}: the same job would fail again"


def test_delays_double_up_to_a_bound():
    delays = [delay(FailureKind.PRIOR_DIED, n) for n in range(12)]
    assert all(2 * 2**n <= found <= 1.2 * 2 * 2**n for n, found in enumerate(delays[:7]))
    assert all(300 <= found <= 360 for found in delays[8:])


@given(kind=st.sampled_from([kind for kind in FailureKind if RULES[kind]]), num=st.integers(0, 10**6), job=st.integers(1))
def test_delays_are_positive_and_bounded(kind, num, job):
    rule = RULES[kind]
    decision = after_failure(kind, job_id=job, num_failures=num, max_failures=num + 2, now=NOW)
    assert decision.retry_at is not None
    assert rule.first_seconds <= decision.retry_at - NOW <= 1.2 * rule.longest_seconds


def test_jobs_do_not_come_back_at_one_instant():
    times = {
        after_failure(FailureKind.PRIOR_DIED, job_id=job, num_failures=3, max_failures=9, now=NOW).retry_at
        for job in range(100)
    }
    assert len(times) == 100


def test_the_cap_sends_a_job_to_the_dead_letters():
    last = after_failure(FailureKind.OUT_OF_MEMORY, job_id=1, num_failures=3, max_failures=4, now=NOW)
    assert last.retry_at is None and "after 4 failed attempts; 'jobs retry' tries again" in last.reason
    assert delay(FailureKind.OUT_OF_MEMORY, 2) is not None


def test_a_full_disk_is_waited_for_without_end_and_an_attempt_that_got_on_does_not_count():
    waiting = after_failure(FailureKind.DISK_FULL, job_id=1, num_failures=3, max_failures=4, now=NOW)
    assert waiting.retry_at is not None and not waiting.counts and "space on the disk" in waiting.reason
    onward = after_failure(FailureKind.WORKER_LOST, job_id=1, num_failures=3, max_failures=4, now=NOW, has_advanced=True)
    assert onward.retry_at is not None and not onward.counts


class OutOfMemoryError(RuntimeError):
    """As torch.cuda and Ray name theirs."""


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except BaseException as caught:
        return caught


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InputError("x"), FailureKind.BAD_INPUT),
        (OutputError("no right to write"), FailureKind.BAD_INPUT),
        (CollapsedError("x"), FailureKind.COLLAPSED),
        (PriorFailed("x"), FailureKind.PRIOR_DIED),
        (JobFailed("x"), FailureKind.UNEXPECTED),
        (ZeroDivisionError("x"), FailureKind.UNEXPECTED),
        (MemoryError(), FailureKind.OUT_OF_MEMORY),
        (raised(JobFailed("x"), OutOfMemoryError("CUDA")), FailureKind.OUT_OF_MEMORY),
        (OSError(errno.ENOSPC, "full"), FailureKind.DISK_FULL),
    ],
)
def test_kinds(error, kind):
    assert failure_kind(error) == kind


def test_a_full_disk_is_recognised_behind_our_own_sentence():
    with pytest.raises(OutputError) as caught, clear_output_errors("/data/run"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert failure_kind(caught.value) == FailureKind.DISK_FULL
    assert sentence(caught.value).startswith("/data/run could not be written: the disk is full")


def test_a_full_disk_is_recognised_in_another_process():
    """Of a batch job's workers, whose errors arrive as values."""
    with pytest.raises(OutputError) as caught, clear_output_errors("/data/run"):
        raise OSError(errno.ENOSPC, "No space left on device")
    there = pickle.loads(pickle.dumps(Raised(caught.value)))
    with pytest.raises(OutputError, match="the disk is full") as caught:
        there.reraise()
    assert caught.value.__cause__ is None and failure_kind(caught.value) == FailureKind.DISK_FULL


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN])
def test_a_shared_disk_that_does_not_answer_is_asked_again_from_any_process(number):
    with pytest.raises(OutputError) as caught, clear_output_errors("/shared/run"):
        raise OSError(number, os.strerror(number))
    there = pickle.loads(pickle.dumps(Raised(caught.value)))
    for error in (caught.value, there.error):
        assert failure_kind(error) == FailureKind.UNEXPECTED and os.strerror(number) in sentence(error)
    assert delay(failure_kind(caught.value), 0) == pytest.approx(5, rel=0.2)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR])
def test_a_place_that_cannot_be_written_is_not_tried_again(number):
    with pytest.raises(OutputError) as caught, clear_output_errors("/shared/run"):
        raise OSError(number, os.strerror(number))
    there = pickle.loads(pickle.dumps(Raised(caught.value)))
    assert failure_kind(caught.value) == failure_kind(there.error) == FailureKind.BAD_INPUT


class HiccupingStore:
    """A folder on a disk that answers every read with the error `number`."""

    location = "/shared/run"

    def __init__(self, number: int) -> None:
        self.number = number

    def open(self, name: str):
        raise OSError(self.number, os.strerror(self.number))


def test_a_manifest_or_marker_that_cannot_be_read_now_is_read_again_later(tmp_path, monkeypatch):
    from jobs.specs import ImagesSpec
    from orchestrator.batch.storage.markers import read_marker
    from orchestrator.run.folder import RunFolder

    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(OutputError, match="cannot be read") as caught:
        RunFolder(tmp_path, ImagesSpec(prompt="a chair"), ())
    assert failure_kind(caught.value) == FailureKind.BAD_INPUT

    def stale(self, *_: object, **__: object) -> bytes:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr("pathlib.Path.read_bytes", stale)
    with pytest.raises(OutputError, match="Stale file handle") as caught:
        RunFolder(tmp_path, ImagesSpec(prompt="a chair"), ())
    assert failure_kind(caught.value) == FailureKind.UNEXPECTED

    for number, kind in ((errno.EIO, FailureKind.UNEXPECTED), (errno.EACCES, FailureKind.BAD_INPUT)):
        with pytest.raises(OutputError, match=r"_shards/00003\.json cannot be read") as caught:
            read_marker(HiccupingStore(number), 3)
        assert failure_kind(caught.value) == kind


def test_a_store_that_does_not_answer_is_asked_again_and_a_missing_bucket_is_not():
    with pytest.raises(OutputError) as caught, clear_url_errors("s3://b/k could not be written", OutputError):
        raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")
    assert failure_kind(caught.value) == FailureKind.UNEXPECTED
    with pytest.raises(OutputError) as caught, clear_url_errors("s3://b/k could not be written", OutputError):
        raise FileNotFoundError("b")
    assert failure_kind(caught.value) == FailureKind.BAD_INPUT


def test_a_run_folder_that_a_lost_worker_still_holds_is_tried_again(tmp_path):
    from jobs.specs import ImagesSpec
    from orchestrator.run.folder import RunFolder

    spec = ImagesSpec(prompt="a chair")
    with RunFolder(tmp_path, spec, ()), pytest.raises(OutputError, match="in use") as caught:
        RunFolder(tmp_path, spec, ())
    assert failure_kind(caught.value) == FailureKind.PLACE_IN_USE
    for num_failures in (0, 3, 50):  # a far-side worker may live on for hours: no dead letter comes of it
        decision = after_failure(
            FailureKind.PLACE_IN_USE, job_id=1, num_failures=num_failures, max_failures=4, now=0.0, has_advanced=False
        )
        assert decision.retry_at is not None and 2 <= decision.retry_at <= 72 and not decision.counts


def test_a_table_or_a_prior_that_cannot_be_read_now_is_read_again_later(tmp_path, monkeypatch):
    answer = [503]

    class Moody(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            self.send_response(answer[0])
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

    with http.server.HTTPServer(("127.0.0.1", 0), Moody) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/t.csv"
        for status, kind in ((503, FailureKind.UNEXPECTED), (404, FailureKind.BAD_INPUT)):
            answer[0] = status
            with pytest.raises(InputError) as caught:
                TableSource.find(url).scan()
            assert failure_kind(pickle.loads(pickle.dumps(Raised(caught.value))).error) == kind, str(caught.value)
        server.shutdown()
    (tmp_path / "t.csv").write_text("prompt\na house\n")
    source = TableSource.find(str(tmp_path / "t.csv"))
    for number, kind in ((errno.EIO, FailureKind.UNEXPECTED), (errno.ESTALE, FailureKind.UNEXPECTED)):
        monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem._open", broken(number))
        with pytest.raises(InputError, match=os.strerror(number)) as caught:
            list(source.rows())
        assert failure_kind(caught.value) == kind
    (tmp_path / "prior").mkdir()
    (tmp_path / "prior" / "model_index.json").write_text("{}")
    for number, kind in ((errno.ESTALE, FailureKind.UNEXPECTED), (errno.EACCES, FailureKind.BAD_INPUT)):
        monkeypatch.setattr("pathlib.Path.read_text", broken(number))
        with pytest.raises(InputError, match=f"cannot be read .{os.strerror(number)}") as caught:
            load_prior(str(tmp_path / "prior"))
        assert failure_kind(caught.value) == kind


def broken(number: int):
    def read(*_: object, **__: object) -> str:
        raise OSError(number, os.strerror(number), "x/y")

    return read


def test_sentences_are_one_line():
    assert sentence(ValueError("a\n  b")) == "ValueError: a b"
    assert sentence(KeyError()) == "KeyError"


def member(id: int, state: State, ended_at: float | None = None, **metrics) -> Member:
    return Member(id=id, state=state, ended_at=ended_at, metrics=metrics)


def test_the_first_to_finish_win_and_the_others_are_cancelled():
    members = [
        member(1, State.SUCCEEDED, 50.0),
        member(2, State.SUCCEEDED, 40.0),
        member(3, State.RUNNING),
        member(4, State.FAILED, 10.0),
        member(5, State.QUEUED),
    ]
    outcome = settle(members, num_wanted=1)
    assert outcome.winners == (2,) and outcome.cancel == (3, 5) and outcome.reason == "the first 1 of 5 to finish"
    assert settle(members, num_wanted=2).winners == (2, 1)
    assert settle(members, num_wanted=3) is None


def test_the_best_win_when_all_are_done():
    members = [
        member(1, State.SUCCEEDED, score=0.4),
        member(2, State.SUCCEEDED, score=0.9),
        member(3, State.SUCCEEDED),
        member(4, State.CANCELLED),
        member(5, State.SUCCEEDED, score=math.nan),
    ]
    outcome = settle(members, num_wanted=2, metric="score")
    assert outcome.winners == (2, 1) and outcome.cancel == () and outcome.reason == "score 0.9, the best of 5"
    assert settle(members, num_wanted=1, metric="score", largest_is_best=False).winners == (1,)
    assert settle([*members, member(6, State.LOST)], num_wanted=1, metric="score") is None


@pytest.mark.parametrize("metric", [None, "score"])
def test_a_group_in_which_nothing_succeeded_is_decided_too(metric):
    outcome = settle([member(1, State.FAILED), member(2, State.CANCELLED)], num_wanted=1, metric=metric)
    assert outcome.winners == () and outcome.reason == "none of them succeeded"


def test_a_try_is_hopeless_behind_enough_better_ones_at_the_same_step_alone():
    run, done = State.RUNNING, State.SUCCEEDED
    tries = [member(1, done, prior_score_25=0.30, prior_score_50=0.40), member(2, run, prior_score_25=0.25)]
    assert hopeless(tries, num_wanted=1) == {}, "less than the margin behind"
    tries += [member(3, run, prior_score_25=0.28, prior_score_50=0.29), member(4, State.QUEUED)]
    assert set(hopeless(tries, num_wanted=1)) == {3}
    assert hopeless(tries, num_wanted=2) == {}, "two are wanted, and only one is better"
    assert hopeless([member(1, State.FAILED, prior_score_50=0.9), member(2, run, prior_score_50=0.1)], num_wanted=1) == {}
    assert hopeless([member(1, run, prior_score_50=0.9), member(2, done, prior_score_50=0.1)], num_wanted=1) == {}
