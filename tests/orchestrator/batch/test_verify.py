"""A finished table is looked at again: what is missing or broken is named, and drawn again, and nothing else is."""

from __future__ import annotations

import json

import pytest

from jobs.errors import OutputError
from orchestrator.batch.job_folder import read_spec
from orchestrator.batch.storage.stores import open_store
from orchestrator.batch.verify import check_shards, discard
from orchestrator.cli.main import main
from tests.orchestrator.batch.batch_fakes import FORMATS, contents, run, write_table

FILES = {"png": "{:05d}/metadata.jsonl", "webdataset": "{:05d}.tar", "parquet": "part-{:05d}.parquet"}


@pytest.fixture(params=FORMATS)
def finished(request, tmp_path):
    """(format, table, folder) of 3 shards, the last one with 3 rows, of which row 1 has no picture."""
    table = write_table(tmp_path / "t.jsonl", 13, prompt={1: "poison"})
    run(table, tmp_path / "out", output_format=request.param)
    return request.param, table, tmp_path / "out"


def problems(location):
    return {checked.shard: checked.problem for checked in check_shards(str(location)) if checked.problem}


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def test_a_job_that_nobody_touched_is_well(finished):
    _, _, out = finished
    assert [(checked.shard, checked.problem, checked.num_pictures) for checked in check_shards(str(out))] == [
        (0, "", 4),
        (1, "", 5),
        (2, "", 3),
    ]


def test_every_kind_of_damage_is_named_and_repaired_to_the_same_bytes(finished):
    output_format, table, out = finished
    before, name = contents(out), FILES[output_format]
    flip(out / name.format(0))
    (out / name.format(1)).unlink()
    (out / "_shards" / "00002.json").write_text('{"shard": 2')
    found = problems(out)
    assert list(found) == [0, 1, 2]
    assert found[0].startswith(f"{name.format(0)} has other bytes than were written")
    assert found[1] == f"{name.format(1)} is missing" and found[2] == "its commit marker cannot be read"
    for text in ('{"shard": 2}', json.dumps({"shard": 2, "file": 3, "failures": []})):
        (out / "_shards" / "00002.json").write_text(text)
        assert problems(out)[2] == "its commit marker is damaged"
    discard(str(out), list(found))
    assert "never finished" in problems(out)[0]
    assert run(table, out, output_format=output_format).did == "drawn"
    assert problems(out) == {} and contents(out) == before


def test_a_truncated_shard_is_named_by_its_sizes(finished):
    output_format, _, out = finished
    path = out / FILES[output_format].format(1)
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:100])
    assert problems(out) == {1: f"{path.relative_to(out)} has 100 bytes, but {size:,} were written"}


def test_a_picture_that_is_a_file_of_its_own_is_checked_by_itself(tmp_path):
    run(write_table(tmp_path / "t.jsonl", 8), tmp_path / "out", output_format="png")
    flip(tmp_path / "out" / "00000" / "000000003.png")
    (tmp_path / "out" / "00001" / "000000006.png").unlink()
    found = problems(tmp_path / "out")
    assert found[0] == "picture 3 has other bytes than were written (its sha256 differs)"
    assert found[1].startswith("a picture is missing (") and "000000006.png" in found[1]


def test_an_object_store_is_read_as_well(tmp_path):
    out = "memory://verify/out"
    run(write_table(tmp_path / "t.jsonl", 8), out)
    assert problems(out) == {}
    store = open_store(out)
    with store.open("00001.tar") as file:
        data = file.read()
    store.put({"00001.tar": data[:512] + b"x" + data[513:]})
    store.remove(["00000.tar"])
    assert problems(out) == {
        0: "00000.tar is missing",
        1: "00001.tar has other bytes than were written (its sha256 differs)",
    }


def test_a_place_without_a_table_is_refused(tmp_path):
    with pytest.raises(OutputError, match="holds no job of a table of prompts; give the --out of one"):
        read_spec(open_store(tmp_path))


def test_the_command_names_repairs_and_says_so(tmp_path, tiny_prior, capsys):
    table = write_table(tmp_path / "t.jsonl", 6)
    out = tmp_path / "out"
    options = ["--prompts", str(table), "--out", str(out), "--shard-size", "3", "--prior", str(tiny_prior)]
    command = ["images", *options, "--output-format", "webdataset", "--runtime", "inline"]
    assert main(command) == 0 and main([*command, "--verify"]) == 0
    assert f"All 2 shards of {out} are as they were written: 6 pictures were decoded." in capsys.readouterr().out
    whole = (out / "00001.tar").read_bytes()
    (out / "00001.tar").write_bytes(whole[:1000])
    assert main([*command, "--verify"]) == 1
    said = capsys.readouterr()
    assert (
        "1 of 2 shards" in said.out and "--repair draws them again" in said.out and "shard 1: 00001.tar has 1,000" in said.err
    )
    assert (out / "00001.tar").stat().st_size == 1000
    assert main([*command, "--repair"]) == 0
    assert (out / "00001.tar").read_bytes() == whole and "3 drawn now" in capsys.readouterr().out
    assert main(["images", "a red ball", "--verify"]) == 2
    assert "--verify and --repair look at the shards of a table" in capsys.readouterr().err
