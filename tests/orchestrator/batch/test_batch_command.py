"""`dreamkiln images --prompts` as a user runs it: words, exit codes, JSON."""

from __future__ import annotations

import json

import pytest

from jobs.errors import InputError
from orchestrator.batch.command import choose_mode
from orchestrator.cli.main import main
from tests.orchestrator.batch.batch_fakes import manifest

CSV = "prompt,seed,sampler,id\na red table,,,1\na blue table,7,,2\na table,,dimm,3\n,,,4\n"
QUICK = ("--steps", "2", "--runtime", "inline", "runtime.num_threads=1")


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.csv").write_text(CSV)
    return tmp_path / "prompts.csv"


def command(capsys, *arguments):
    code = main(["images", *map(str, arguments)])
    output = capsys.readouterr()
    return code, output.out, output.err


def test_a_table_is_drawn_and_failures_have_an_exit_code(capsys, table, tiny_prior):
    arguments = ("--prompts", "prompts.csv", "--prior", tiny_prior, "--out", "out", "--output-format", "parquet", *QUICK)
    code, out, err = command(capsys, *arguments, "--price-per-hour", "1")
    assert code == 3 and "Traceback" not in err
    assert all(words in out for words in ("2 of 4 rows have a picture", "1 row failed: setting", "--retry-failed", "cost "))
    assert "draw 4/4" in err
    assert manifest(table.parent / "out")["spec"]["num_steps"] == 2
    table.write_text(CSV.replace("dimm", "ddim").replace("\n,,,4", "\na chair,,,4"))
    code, out, err = command(capsys, *arguments)
    assert code == 2 and "has changed since" in err
    code, out, err = command(capsys, *arguments, "--retry-failed", "--json")
    answer = json.loads(out)
    assert code == 0 and answer["ok"] and answer["report"]["num_succeeded"] == 4
    code, out, err = command(capsys, *arguments)
    assert code == 0 and out.startswith("Already finished: out")


def test_the_default_folder_is_found_again(capsys, table, tiny_prior):
    for words in ("Done: runs/prompts-csv-", "Already finished: runs/prompts-csv-"):
        _, out, _ = command(capsys, "--prompts", "prompts.csv", "--prior", tiny_prior, *QUICK)
        assert out.startswith(words)
    assert len(list((table.parent / "runs").iterdir())) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompts", "missing.csv"], "There is no prompt table missing.csv."),
        (["--prompts", "prompts.csv", "--prompt-column", "promt"], "has no column 'promt' (did you mean prompt?)"),
        (["--prompts", "prompts.csv", "--num-images", "4"], "--num-images 4 does not go with the rest"),
        (["--prompts", "prompts.csv", "--overwrite", "--retry-failed"], "--overwrite and --retry-failed exclude each other"),
        (["--prompts", "prompts.csv", "--sampler", "dimm"], "There is no sampler 'dimm' (did you mean ddim?)"),
        (["--prompts", "prompts.csv", "--shard-size", "0"], "shard_size is 0"),
        (["--prompts", "prompts.csv", "--price-per-hour", "-1"], "--price-per-hour is -1"),
        (["--prompts", "prompts.csv", "--num-workers", "0"], "--num-workers is 0"),
        (["--prompts", "prompts.csv", "--prior", "nowhere"], "The prior 'nowhere' is neither"),
        (["--prompts", "prompts.csv", "images.nosuch=1"], "There is no setting 'images.nosuch'"),
        (["a chair", "--shard-size", "3"], "--shard-size 3 does not go with the rest of the command"),
        (["a chair", "--retry-failed"], "it belongs to a table of prompts; give --prompts too"),
        ([], "There is no prompt; give one in quotes"),
        (["--prompts", ""], "--prompts is empty"),
        (["a chair", "--prompts", "prompts.csv"], "There is a prompt ('a chair') and a table of them"),
        (["a chair", "--out", ""], "--out is empty"),
        (["a chair", "--prior", ""], "--prior is empty"),
        (["a chair", "--out", "s3://bucket/x"], "--out s3://bucket/x is a URL, which only --prompts writes to"),
    ],
)
def test_bad_usage_is_one_sentence_and_exit_code_2(capsys, table, arguments, words):
    code, out, err = command(capsys, *arguments)
    assert code == 2 and out == "" and words in err and "Traceback" not in err and len(err.strip().splitlines()) == 1


def test_the_mode_is_one_of_three():
    assert choose_mode(overwrite=False, retry_failed=False, resume=False) == "resume"
    assert choose_mode(overwrite=True, retry_failed=False, resume=False) == "overwrite"
    with pytest.raises(InputError, match="exclude each other"):
        choose_mode(overwrite=False, retry_failed=True, resume=True)


def test_initial_images_come_from_paths_beside_the_table(table, tiny_prior, capsys):
    import numpy as np

    from orchestrator.exports import write_png

    write_png(np.full((16, 16, 3), (200, 30, 30), np.uint8), table.parent / "start.png")
    table.write_text("prompt,init_image,strength\na red table,start.png,0\na red table,start.png,1\na table,nope.png,\n")
    code, out, _ = command(capsys, "--prompts", table, "--prior", tiny_prior, "--out", "out", *QUICK, "--steps", "4", "--json")
    failures = [json.loads(line) for line in (table.parent / "out" / "_failures.jsonl").read_text().splitlines()]
    assert code == 3 and json.loads(out)["report"]["num_succeeded"] == 2
    assert [failure["cause"] for failure in failures] == ["initial image"] and "nope.png" in failures[0]["message"]
    kept, redrawn = (table.parent / "out" / "00000" / f"00000000{i}.png" for i in range(2))
    assert kept.read_bytes() != redrawn.read_bytes()
    records = [json.loads(line) for line in (table.parent / "out" / "00000" / "metadata.jsonl").read_text().splitlines()]
    assert [(record["init_image"], record["strength"]) for record in records] == [("start.png", 0.0), ("start.png", 1.0)]
