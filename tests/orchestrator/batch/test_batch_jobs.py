"""Whole batch jobs in this process: what they leave, how they go on, what they refuse."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from jobs.errors import InputError, Interrupted, JobFailed, OutputError, PriorFailed
from jobs.events import Progress
from orchestrator.exports.png_metadata import read_png_metadata
from orchestrator.host.progress_display import SilentDisplay
from orchestrator.prior.local import LocalPrior
from tests.fakes import FakePrior
from tests.orchestrator.batch.batch_fakes import FORMATS, contents, manifest, marker, run, write_table

NUM_ROWS = 23


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Row 7 asks for a sampler that does not exist, row 8 is a poison."""
    folder = tmp_path_factory.mktemp("table")
    return write_table(folder / "prompts.jsonl", NUM_ROWS, sampler={7: "dimm"}, prompt={8: "poison"}, note={1: "ü"})


@pytest.fixture(scope="module")
def good_table(tmp_path_factory):
    return write_table(tmp_path_factory.mktemp("good") / "prompts.jsonl", NUM_ROWS)


@pytest.fixture(scope="module", params=FORMATS)
def finished(request, table, tmp_path_factory):
    out = tmp_path_factory.mktemp(request.param) / "out"
    return request.param, out, run(table, out, output_format=request.param, price_per_hour=3.6)


def records(output_format, out):
    """index -> (record, PNG bytes or None), as a user of the format reads them."""
    found = {}
    if output_format == "png":
        for lines in sorted(out.glob("*/metadata.jsonl")):
            for line in lines.read_text().splitlines():
                record = json.loads(line)
                found[record["index"]] = record, (lines.parent / record["file_name"]).read_bytes()
    elif output_format == "webdataset":
        for path in sorted(out.glob("*.tar")):
            with tarfile.open(path) as tar:
                data = {member.name: tar.extractfile(member).read() for member in tar}
            for name in data:
                if name.endswith(".json"):
                    record = json.loads(data[name])
                    assert data[name.replace("json", "txt")].decode() == record["prompt"]
                    found[record["index"]] = record, data[name.replace("json", "png")]
    else:
        for row in pyarrow.parquet.read_table(sorted(out.glob("*.parquet"))).to_pylist():
            found[row["index"]] = row, row.pop("image")
    return found


def test_every_format_holds_every_picture_with_its_parameters_and_hash(finished):
    output_format, out, outcome = finished
    found = records(output_format, out)
    drawn = {index: png for index, (_, png) in found.items() if png is not None}
    assert sorted(drawn) == [index for index in range(NUM_ROWS) if index not in (7, 8)]
    for index, png in drawn.items():
        record = found[index][0]
        assert record["sha256"] == hashlib.sha256(png).hexdigest() and record["status"] == "succeeded"
        assert (record["prompt"], record["seed"]) == (f"a {['red', 'green', 'blue'][index % 3]} ball {index}", index)
        assert (record["num_steps"], record["sampler"], record["id"]) == (2 + index % 2, "dpmpp_2m", index)
        assert (record["table_file"], record["table_row"], record["prior_hash"]) == ("prompts.jsonl", index + 1, "f" * 64)
        image = Image.open(io.BytesIO(png))
        assert image.size == (16, 16) == (record["width"], record["height"]) and image.text["seed"] == str(index)
    assert found[1][0]["note"] == "ü" and found[0][0]["note"] is None
    if output_format == "parquet":
        assert found[7][0]["status"] == "failed" and "no sampler 'dimm'" in found[7][0]["error"]
    assert outcome.report["num_succeeded"] == NUM_ROWS - 2


@pytest.mark.parametrize("output_format", FORMATS)
def test_a_column_of_our_name_hides_none_of_the_tables(tmp_path, output_format):
    ours = {"index": 7, "table_index": 1, "table_table_index": 2, "status": "x", "image": "y", "table_file": 3, "a/b": 4, "": 5}
    (tmp_path / "t.jsonl").write_text(json.dumps({"prompt": "a red ball", **ours}))
    run(tmp_path / "t.jsonl", tmp_path / "out", output_format=output_format)
    record = records(output_format, tmp_path / "out")[0][0]
    kept = {
        "table_table_table_index": 7,
        "table_index": 1,
        "table_table_index": 2,
        "table_status": "x",
        "table_image": "y",
        "table_table_file": 3,
        "a/b": 4,
        "": 5,
    }
    assert {name: record[name] for name in kept} == kept
    assert (record["index"], record["status"], record["table_file"]) == (0, "succeeded", "t.jsonl")


def test_a_manifest_that_lacks_half_is_named(good_table, tmp_path):
    (tmp_path / "manifest.json").write_text('{"kind": "batch-images"}')
    for mode in ("resume", "overwrite"):
        with pytest.raises(OutputError, match=r"manifest\.json is damaged or not ours \(it lacks 'fingerprint'\)"):
            run(good_table, tmp_path, mode=mode)


def test_all_formats_hold_the_same_pictures(table, tmp_path):
    found = {}
    for output_format in FORMATS:
        run(table, tmp_path / output_format, output_format=output_format)
        found[output_format] = {i: png for i, (_, png) in records(output_format, tmp_path / output_format).items() if png}
    assert found["png"] == found["webdataset"] == found["parquet"]


def test_a_tar_is_to_the_byte_what_tarfile_writes(good_table, tmp_path):
    run(good_table, tmp_path / "out")
    for path in sorted((tmp_path / "out").glob("*.tar")):
        again = io.BytesIO()
        with tarfile.open(path) as ours, tarfile.open(fileobj=again, mode="w", format=tarfile.USTAR_FORMAT) as theirs:
            for member in ours:
                plain = tarfile.TarInfo(member.name)
                plain.size = member.size
                theirs.addfile(plain, ours.extractfile(member))
        assert again.getvalue() == path.read_bytes()


def test_markers_failures_and_report_tell_one_story(finished):
    _, out, outcome = finished
    lines = [json.loads(line) for line in (out / "_failures.jsonl").read_text().splitlines()]
    assert [(line["index"], line["row"], line["cause"], line["shard"]) for line in lines] == [
        (7, 8, "setting", 1),
        (8, 9, "prior", 1),
    ]
    assert lines[0]["message"].startswith("prompts.jsonl, row 8 (line 8): There is no sampler 'dimm' (did you mean ddim?)")
    markers = [marker(out, shard) for shard in range(5)]
    assert [one["num_rows"] for one in markers] == [5, 5, 5, 5, 3] and markers[1]["failures"] == lines
    assert [one["num_failed"] for one in markers] == [0, 2, 0, 0, 0]
    for one in markers:
        data = (out / one["file"]["name"]).read_bytes()
        assert one["file"] | {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} == one["file"]
    report = manifest(out)["report"]
    assert report == outcome.report
    assert report["failures_by_cause"] == {"setting": 1, "prior": 1} and report["num_rows"] == NUM_ROWS
    assert report["images_per_second"] > 0 and report["cpu_seconds"] > 0 and report["gpu_seconds"] == 0
    assert report["cost_per_image"] == pytest.approx(report["cost"] / (NUM_ROWS - 2), rel=0.05)
    assert manifest(out)["state"] == "succeeded" and manifest(out)["attempts"][-1]["num_drawn_by_last_attempt"] == 21


def test_people_get_a_grid_and_a_page(finished):
    _, out, _ = finished
    assert np.asarray(Image.open(out / "grid.png")).ndim == 3
    page = (out / "index.html").read_text()
    assert "21 of 23 rows" in page and "1 setting, 1 prior" in page and "a red ball 0 (seed 0)" in page
    assert page.count("<img") == 5 and "no sampler &#x27;dimm&#x27;" in page
    assert {path.name for path in (out / "_grids").iterdir()} == {f"{shard:05d}.png" for shard in range(5)}


def test_a_finished_job_has_nothing_to_do(finished, table):
    output_format, out, outcome = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    again = run(table, out, output_format=output_format)
    assert again.did == "nothing to do" and again.report == outcome.report
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


@pytest.mark.parametrize("output_format", FORMATS)
def test_half_a_character_in_a_row_leaves_the_others_their_pictures(tmp_path, output_format):
    table = write_table(tmp_path / "t.jsonl", 7, prompt={2: "a \ud83d chair"}, note={1: "\U0001f642", 5: "half \udc00"})
    outcome = run(table, tmp_path / "out", output_format=output_format)
    assert outcome.report["failures_by_cause"] == {"unreadable": 2} and outcome.report["num_succeeded"] == 5
    lines = [json.loads(line) for line in (tmp_path / "out" / "_failures.jsonl").read_text().splitlines()]
    assert [line["message"] for line in lines] == [
        r"t.jsonl, row 3 (line 3): the line holds half a character (\ud83d).",
        r"t.jsonl, row 6 (line 6): the line holds half a character (\udc00).",
    ]
    found = records(output_format, tmp_path / "out")
    assert sorted(index for index, (_, png) in found.items() if png) == [0, 1, 3, 4, 6]
    assert found[1][0]["note"] == "\U0001f642"


def test_seeds_and_settings_of_the_job(good_table, tmp_path):
    run(good_table, tmp_path / "out", seed=50, output_format="png", sampler="euler")
    metadata = read_png_metadata(tmp_path / "out" / "00001" / "000000007.png")
    assert metadata["seed"] == "57" and metadata["sampler"] == "euler" and metadata["steps"] == "3"


class StopAfter(SilentDisplay):
    """Ctrl-C once that many rows are done."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows

    def event(self, progress: Progress) -> None:
        if progress.stage == "draw" and progress.step >= self.num_rows:
            raise KeyboardInterrupt


@pytest.mark.parametrize("output_format", FORMATS)
def test_an_interrupted_job_goes_on_to_the_same_files(table, tmp_path, output_format):
    run(table, tmp_path / "whole", output_format=output_format)
    with pytest.raises(Interrupted, match=r"Stopped with 10 of 23 rows done in .*; the same command draws the rest"):
        run(table, tmp_path / "out", output_format=output_format, display=StopAfter(10))
    assert manifest(tmp_path / "out")["state"] == "interrupted"
    committed = {path.name for path in (tmp_path / "out" / "_shards").iterdir()}
    assert "00000.json" in committed and len(committed) < 5
    outcome = run(table, tmp_path / "out", output_format=output_format)
    assert outcome.report["num_drawn_by_last_attempt"] < NUM_ROWS - 2
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert [attempt["state"] for attempt in manifest(tmp_path / "out")["attempts"]] == ["interrupted", "succeeded"]


@pytest.mark.parametrize("output_format", FORMATS)
def test_retry_failed_draws_the_mended_rows_alone(tmp_path, output_format):
    table = write_table(tmp_path / "t.jsonl", 12, sampler={7: "dimm"})
    run(table, tmp_path / "out", output_format=output_format)
    before = contents(tmp_path / "out")
    write_table(table, 12)
    with pytest.raises(InputError, match=r"t\.jsonl has changed .* --retry-failed draws the rows that had failed"):
        run(table, tmp_path / "out", output_format=output_format)
    assert contents(tmp_path / "out") == before
    outcome = run(table, tmp_path / "out", output_format=output_format, mode="retry-failed")
    assert outcome.report["num_drawn_by_last_attempt"] == 1 and outcome.report["num_failed"] == 0
    assert not (tmp_path / "out" / "_failures.jsonl").exists()
    found, old = records(output_format, tmp_path / "out"), contents(tmp_path / "out")
    assert sorted(found) == list(range(12)) and all(png for _, png in found.values())
    unchanged = [name for name in before if "00000" in name.split("/")[-1] or "00002" in name.split("/")[-1]]
    assert all(old[name] == before[name] for name in unchanged if name.startswith(("0", "part")))
    run(write_table(tmp_path / "t.jsonl", 12), tmp_path / "direct", output_format=output_format)
    assert {i: png for i, (_, png) in records(output_format, tmp_path / "direct").items()} == {
        i: png for i, (_, png) in found.items()
    }


def test_retry_failed_tries_a_poison_again_and_a_good_prior_draws_it(tmp_path):
    table = write_table(tmp_path / "t.jsonl", 12, prompt={3: "poison ball"})
    assert run(table, tmp_path / "out").report["failures_by_cause"] == {"prior": 1}
    assert run(table, tmp_path / "out", mode="retry-failed").report["num_failed"] == 1
    healed = run(table, tmp_path / "out", mode="retry-failed", load_prior=lambda source, device: LocalPrior(FakePrior()))
    assert healed.report["num_failed"] == 0 and healed.report["num_drawn_by_last_attempt"] == 1
    assert run(table, tmp_path / "out", mode="retry-failed").did == "nothing to do"


def test_retry_failed_draws_rows_that_were_added(tmp_path):
    table = write_table(tmp_path / "t.jsonl", 12)
    run(table, tmp_path / "out")
    write_table(table, 17)
    outcome = run(table, tmp_path / "out", mode="retry-failed")
    assert outcome.report["num_drawn_by_last_attempt"] == 5 and outcome.report["num_succeeded"] == 17
    assert sorted(records("webdataset", tmp_path / "out")) == list(range(17))


def test_retry_failed_refuses_changed_rows_that_have_pictures(tmp_path):
    table = write_table(tmp_path / "t.jsonl", 12)
    run(table, tmp_path / "out")
    write_table(table, 12, prompt={6: "a green ball"})
    with pytest.raises(InputError, match=r"Rows t\.jsonl, row 6 .* to t\.jsonl, row 10 .* changed since .*shard 1 of"):
        run(table, tmp_path / "out", mode="retry-failed")
    with pytest.raises(InputError, match=r"t\.jsonl has changed since"):
        run(table, tmp_path / "out")
    write_table(table, 9)
    with pytest.raises(InputError, match="other columns or fewer rows"):
        run(table, tmp_path / "out", mode="retry-failed")


@pytest.mark.parametrize("output_format", FORMATS)
def test_overwrite_leaves_nothing_of_the_old_job(good_table, tmp_path, output_format):
    run(good_table, tmp_path / "out", output_format=output_format, shard_size=3)
    (tmp_path / "out" / "mine.txt").write_text("keep")
    run(good_table, tmp_path / "fresh", shard_size=10)
    run(good_table, tmp_path / "out", mode="overwrite", shard_size=10)
    found = contents(tmp_path / "out")
    assert found.pop("mine.txt") == b"keep" and found == contents(tmp_path / "fresh")
    assert len(manifest(tmp_path / "out")["attempts"]) == 1


def test_a_killed_overwrite_goes_on_with_deleting(good_table, tmp_path):
    out = tmp_path / "out"
    run(good_table, out, shard_size=3)
    (out / "manifest.json").write_text(json.dumps(manifest(out) | {"state": "clearing"}))
    (out / "00002.tar").unlink()
    run(good_table, out, shard_size=10)
    run(good_table, tmp_path / "fresh", shard_size=10)
    assert contents(out) == contents(tmp_path / "fresh")


def test_another_jobs_place_is_refused_with_the_difference(good_table, tmp_path):
    run(good_table, tmp_path / "out")
    before = contents(tmp_path / "out")
    for changes, words in (({"seed": 4}, "seed 0, not 4"), ({"output_format": "png"}, 'output_format "webdataset", not "png"')):
        with pytest.raises(InputError, match=f"belongs to another job \\({words}\\).*--overwrite"):
            run(good_table, tmp_path / "out", **changes)
    assert contents(tmp_path / "out") == before


def test_other_weights_are_refused(good_table, tmp_path):
    with pytest.raises(Interrupted):
        run(good_table, tmp_path / "out", display=StopAfter(5))
    with pytest.raises(InputError, match="begun with other weights of the prior"):
        run(good_table, tmp_path / "out", load_prior=lambda source, device: LocalPrior(FakePrior(weights_hash="0" * 64)))


def test_files_that_are_not_ours_are_not_overwritten(good_table, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "00000.tar").write_text("somebody's")
    with pytest.raises(OutputError, match=r"holds 00000\.tar but no manifest\.json"):
        run(good_table, tmp_path / "out")


def test_a_folder_in_use_is_refused(good_table, tmp_path):
    from orchestrator.batch.storage.stores import open_store

    with open_store(tmp_path / "out").hold(), pytest.raises(OutputError, match="is in use by another dreamkiln process"):
        run(good_table, tmp_path / "out")


def test_leftovers_of_a_killed_process_are_cleaned(good_table, tmp_path):
    run(good_table, tmp_path / "fresh", output_format="png")
    with pytest.raises(Interrupted):
        run(good_table, tmp_path / "out", output_format="png", display=StopAfter(10))
    for folder in ("", "_shards", "_grids", "00003"):
        (tmp_path / "out" / folder).mkdir(exist_ok=True)
        (tmp_path / "out" / folder / ".writing-123456.png").write_bytes(b"half")
    (tmp_path / "out" / "00003" / "000000015.png").write_bytes(b"half a picture")
    run(good_table, tmp_path / "out", output_format="png")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_a_prior_that_dies_leaves_a_job_that_goes_on(good_table, tmp_path):
    class Dying(LocalPrior):
        num_calls = 0

        def info(self):
            if self.num_calls > 5:
                raise PriorFailed("The process that holds the prior died.")
            return super().info()

        def generate(self, request):
            self.num_calls += 1
            if self.num_calls > 5:
                raise PriorFailed("The process that holds the prior died.")
            return super().generate(request)

    with pytest.raises(PriorFailed, match="died"):
        run(good_table, tmp_path / "out", load_prior=lambda source, device: Dying(FakePrior()))
    assert manifest(tmp_path / "out")["state"] == "failed" and not (tmp_path / "out" / "_failures.jsonl").exists()
    run(good_table, tmp_path / "out")
    run(good_table, tmp_path / "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_a_damaged_marker_is_named(good_table, tmp_path):
    run(good_table, tmp_path / "out")
    path = tmp_path / "out" / "_shards" / "00002.json"
    path.write_text("{")
    (tmp_path / "out" / "_shards" / "00004.json").unlink()
    with pytest.raises(OutputError, match=r"_shards/00002\.json cannot be read .* delete it"):
        run(good_table, tmp_path / "out")


def test_shards_that_were_moved_away_are_not_drawn_again(good_table, tmp_path):
    run(good_table, tmp_path / "out")
    (tmp_path / "out" / "00001.tar").unlink()
    (tmp_path / "out" / "_shards" / "00004.json").unlink()
    assert run(good_table, tmp_path / "out").report["num_drawn_by_last_attempt"] == 3
    assert not (tmp_path / "out" / "00001.tar").exists()


@pytest.mark.parametrize("output_format", FORMATS)
def test_retry_failed_without_a_shard_that_was_moved_away_says_so_and_goes_on_when_it_is_back(tmp_path, output_format):
    table, out = write_table(tmp_path / "t.jsonl", 12, sampler={7: "dimm"}), tmp_path / "out"
    run(table, out, output_format=output_format)
    name = {"png": "00001/000000006.png", "webdataset": "00001.tar", "parquet": "part-00001.parquet"}[output_format]
    (out / name).rename(tmp_path / "away")
    before = contents(out)
    write_table(table, 12)
    with pytest.raises(OutputError, match=rf"Shard 1 has rows to draw again, but {name}, .* bring it back and repeat"):
        run(table, out, output_format=output_format, mode="retry-failed")
    assert contents(out) == before, "its marker stays"
    (tmp_path / "away").rename(out / name)
    outcome = run(table, out, output_format=output_format, mode="retry-failed")
    assert outcome.report["num_drawn_by_last_attempt"] == 1 and outcome.report["num_succeeded"] == 12


def test_a_table_that_grows_while_it_is_read_fails_the_job(good_table, tmp_path):
    from orchestrator.batch.perform import perform_batch
    from tests.orchestrator.batch.batch_fakes import INLINE, load_poisoned_prior, spec_of

    table = write_table(tmp_path / "t.jsonl", 7)
    spec, source = spec_of(table)
    write_table(table, 9)
    with pytest.raises(JobFailed, match="changed while it was read"):
        perform_batch(spec, source, out=str(tmp_path / "out"), runtime=INLINE, load_prior=load_poisoned_prior)


def test_words_that_the_prior_does_not_know_are_warned_of(good_table, tmp_path):
    (tmp_path / "t.txt").write_text("a zeppelin\na red ball\n")
    outcome = run(tmp_path / "t.txt", tmp_path / "out")
    [unknown] = [message for message in outcome.messages if "never shown" in message]
    assert "never shown: zeppelin" in unknown
