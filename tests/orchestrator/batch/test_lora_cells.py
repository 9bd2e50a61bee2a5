"""Tables whose rows have LoRAs and textual inversions of their own: what is drawn and written, and what a bad one costs."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from jobs.errors import InputError, Interrupted
from orchestrator.batch.verify import check_shards
from orchestrator.exports.png_metadata import read_png_metadata
from orchestrator.prior.local import LocalPrior, load_prior
from tests.fakes import save_tiny_lora, save_tiny_prior
from tests.orchestrator.batch.batch_fakes import contents, run, spec_of, write_table
from tests.orchestrator.batch.test_batch_jobs import StopAfter, records
from tests.orchestrator.batch.test_batch_ray import ON_RAY

NUM_ROWS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prior, and beside it two LoRAs and one for another base."""
    folder = tmp_path_factory.mktemp("loras")
    save_tiny_prior(folder / "prior")
    for seed, name in enumerate(("ink", "chalk")):
        save_tiny_lora(folder / f"{name}.safetensors", folder / "prior", seed=seed)
    (folder / "broken.safetensors").write_bytes(b"not a LoRA")
    return folder


@pytest.fixture
def table(folder: Path) -> Path:
    cells = {
        1: "ink.safetensors:0.8",
        2: str(folder / "chalk.safetensors"),
        3: "none",
        4: "ink.safetensors; chalk.safetensors:-1",
    }
    cells |= {5: "nowhere.safetensors", 6: "broken.safetensors", 8: "ink.safetensors:0.8", 9: "ink.safetensors:many"}
    path = write_table(folder / "prompts.jsonl", NUM_ROWS, lora=cells)
    path.write_text(path.read_text().replace(" ball ", " table "))
    return path


def drawn(table: Path, out: Path, folder: Path, **changes: Any) -> Any:
    def load(source: str, device: str = "cpu") -> LocalPrior:
        return load_prior(source, device)

    return run(table, out, load_prior=load, prior=str(folder / "prior"), num_steps=2, **changes)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


@pytest.mark.parametrize("output_format", ["png", "parquet"])
def test_rows_have_their_own_loras_and_a_bad_one_fails_its_rows_alone(
    table: Path, folder: Path, tmp_path: Path, output_format: str
) -> None:
    outcome = drawn(table, tmp_path / "out", folder, output_format=output_format)
    failures = [json.loads(line) for line in (tmp_path / "out/_failures.jsonl").read_text().splitlines()]
    assert [(failure["index"], failure["cause"]) for failure in failures] == [(5, "lora"), (6, "lora"), (9, "lora")]
    place = r"prompts.jsonl, row"
    for failure, words in zip(
        failures,
        ("There is no LoRA", "broken.safetensors (10 bytes) is truncated or not a safetensors file", "There is no LoRA"),
        strict=True,
    ):
        assert words in failure["message"] and place in failure["message"]
    assert outcome.report["num_failed"] == 3
    found = records(output_format, tmp_path / "out")
    hashes = {name: hash_of(folder / f"{name}.safetensors") for name in ("ink", "chalk")}
    expected = {
        0: (None, None),
        1: ("ink.safetensors:0.8", hashes["ink"]),
        2: ("chalk.safetensors:1", hashes["chalk"]),
        3: (None, None),
        4: ("ink.safetensors:1; chalk.safetensors:-1", f"{hashes['ink']}; {hashes['chalk']}"),
    }
    for index, (lora, sha256) in expected.items():
        record, png = found[index]
        assert (record["lora"], record["lora_sha256"]) == (lora, sha256)
        (tmp_path / "one.png").write_bytes(png)
        text = read_png_metadata(tmp_path / "one.png")
        assert (text.get("lora"), text.get("lora_sha256")) == (lora, sha256)
    assert all(not checked.problem for checked in check_shards(str(tmp_path / "out")))
    assert "table_lora" not in found[0][0]


def hash_of(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_row_is_drawn_as_by_the_prior_with_its_lora_merged(table: Path, folder: Path, tmp_path: Path) -> None:
    drawn(table, tmp_path / "out", folder, output_format="parquet", strict=True)
    plain = write_table(tmp_path / "plain.jsonl", NUM_ROWS)
    plain.write_text(plain.read_text().replace(" ball ", " table "))
    found = records("parquet", tmp_path / "out")
    ink = folder / "ink.safetensors"
    for rows, options in (
        ((0, 3, 7), ""),
        ((1, 8), f"?lora={ink}:0.8"),
        ((4,), f"?lora={ink}&lora={folder}/chalk.safetensors:-1"),
    ):
        out = tmp_path / str(rows[0])
        run(
            plain,
            out,
            load_prior=load_prior,
            prior=f"{folder / 'prior'}{options}",
            num_steps=2,
            output_format="parquet",
            strict=True,
        )
        merged = records("parquet", out)
        for row in rows:
            apart = np.abs(pixels(found[row][1]).astype(int) - pixels(merged[row][1]))
            assert apart.max() <= (1 if options else 0)
    assert not np.array_equal(pixels(found[1][1]), pixels(merged[1][1]))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_strict_rows_with_several_adapters_are_the_same_files_on_ray_as_in_this_process(
    table: Path, folder: Path, tmp_path: Path
) -> None:
    """Four rows have a textual inversion besides, two of them with a LoRA."""
    options: dict[str, Any] = {"output_format": "parquet", "strict": True}
    lines = [json.loads(line) for line in table.read_text().splitlines()]
    for row, (seed, name) in zip((1, 3, 7, 8), enumerate(("oak", "elm", "oak", "elm")), strict=True):
        save_file({"emb_params": torch.randn(2, 32, generator=torch.manual_seed(seed % 2))}, folder / f"{name}.safetensors")
        lines[row] |= {"textual_inversion": f"{name}.safetensors", "prompt": f"{lines[row]['prompt']}, {name}"}
    table.write_text("\n".join(map(json.dumps, lines)))
    drawn(table, tmp_path / "inline", folder, **options)
    outcome = drawn(table, tmp_path / "ray", folder, **options, runtime=ON_RAY, num_workers=2)
    assert outcome.report["num_succeeded"] == NUM_ROWS - 3 and contents(tmp_path / "ray") == contents(tmp_path / "inline")
    found = records("parquet", tmp_path / "ray")
    assert [found[row][0]["textual_inversion"] for row in (0, 1, 3)] == [None, "oak.safetensors", "elm.safetensors"]


def test_an_interrupted_table_with_loras_goes_on_to_the_same_files(table: Path, folder: Path, tmp_path: Path) -> None:
    output_format = "parquet"
    options = {"output_format": output_format, "strict": True}
    drawn(table, tmp_path / "whole", folder, **options)
    with pytest.raises(Interrupted):
        drawn(table, tmp_path / "out", folder, display=StopAfter(5), **options)
    drawn(table, tmp_path / "out", folder, **options)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    # Mended rows are drawn beside those that stay, whose columns stay too.
    before = records(output_format, tmp_path / "out")
    table.write_text(table.read_text().replace("nowhere.safetensors", "chalk.safetensors"))
    drawn(table, tmp_path / "out", folder, mode="retry-failed", **options)
    after = records(output_format, tmp_path / "out")
    assert after[5][0]["lora"] == "chalk.safetensors:1" and before[5][0]["lora"] is None
    assert all(after[index] == before[index] for index in range(NUM_ROWS) if index in before and index != 5)
    marker = json.loads((tmp_path / "out/_shards/00000.json").read_text())
    assert {Path(file).name for file in marker["loras"]} == {"ink.safetensors", "chalk.safetensors"}


def test_a_lora_that_changed_since_is_refused(folder: Path, table: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.safetensors"
    save_tiny_lora(own, folder / "prior", seed=7)
    table.write_text(table.read_text().replace("nowhere.safetensors", str(own)))
    with pytest.raises(Interrupted):
        drawn(table, tmp_path / "out", folder, display=StopAfter(11))
    save_tiny_lora(own, folder / "prior", seed=8)
    words = r"The file .*own\.safetensors of a row's LoRA or textual inversion has changed since pictures of shard 1 .* or gi"
    with pytest.raises(InputError, match=words):
        drawn(table, tmp_path / "out", folder)


def test_the_jobs_own_lora_is_every_rows_that_says_none_of_its_own(folder: Path, table: Path, tmp_path: Path) -> None:
    from jobs.specs import find_loras

    (ink,) = find_loras([str(folder / "ink.safetensors")])
    drawn(table, tmp_path / "out", folder, output_format="parquet", loras=(ink,))
    found = records("parquet", tmp_path / "out")
    assert [found[index][0]["lora"] for index in (0, 1, 3)] == ["ink.safetensors:1", "ink.safetensors:0.8", None]
    plain, _ = spec_of(table)
    specs = [spec_of(table, loras=(lora,))[0] for lora in (ink, *find_loras([f"{ink.file}:0.5"]))]
    assert len({spec.fingerprint() for spec in (plain, *specs)}) == 3
    assert json.loads((tmp_path / "out/manifest.json").read_text())["spec"]["loras"][0]["sha256"] == ink.sha256


def test_rows_have_textual_inversions_of_their_own(folder: Path, tmp_path: Path) -> None:
    for seed, name in enumerate(("oak", "elm")):
        save_file({"emb_params": torch.randn(2, 32, generator=torch.manual_seed(seed))}, tmp_path / f"{name}.safetensors")
    torch.save({"conv": torch.zeros(2, 3, 3)}, tmp_path / "other.bin")
    cells = {1: "oak.safetensors", 2: "elm.safetensors:<oak>", 3: "none", 4: "nowhere.pt", 5: "other.bin", 6: "oak.safetensors"}
    table = write_table(tmp_path / "t.jsonl", 8, textual_inversion=cells, lora={6: str(folder / "ink.safetensors")})
    lines = [{**json.loads(line), "prompt": "an oak table", "seed": 1} for line in table.read_text().splitlines()]
    lines[2]["prompt"] = "an <oak> table"
    table.write_text("\n".join(json.dumps({**line, "num_steps": 2}) for line in lines))
    drawn(table, tmp_path / "out", folder, output_format="parquet", strict=True)
    found = records("parquet", tmp_path / "out")
    failures = [json.loads(line) for line in (tmp_path / "out/_failures.jsonl").read_text().splitlines()]
    assert [(one["index"], one["cause"]) for one in failures] == [(4, "textual_inversion"), (5, "textual_inversion")]
    assert "There is no embedding" in failures[0]["message"] and "is no textual inversion file" in failures[1]["message"]
    names = [found[index][0]["textual_inversion"] for index in (0, 1, 2, 3, 6)]
    assert names == [None, "oak.safetensors", "elm.safetensors:<oak>", None, "oak.safetensors"]
    assert found[1][0]["textual_inversion_sha256"] == hash_of(tmp_path / "oak.safetensors")
    assert found[6][0]["lora"] == "ink.safetensors:1"
    (tmp_path / "one.png").write_bytes(found[2][1])
    assert read_png_metadata(tmp_path / "one.png")["textual_inversion"] == "elm.safetensors:<oak>"
    pictures = {index: pixels(found[index][1]).tobytes() for index in (0, 1, 2, 3, 6, 7)}
    assert pictures[0] == pictures[3] == pictures[7] and len(set(pictures.values())) == 4
    # Mended rows are drawn beside those that stay.
    save_file({"emb_params": torch.zeros(1, 32)}, tmp_path / "nowhere.safetensors")
    table.write_text(table.read_text().replace("nowhere.pt", "nowhere.safetensors"))
    drawn(table, tmp_path / "out", folder, mode="retry-failed", output_format="parquet", strict=True)
    after = records("parquet", tmp_path / "out")
    assert after[4][0]["textual_inversion"] == "nowhere.safetensors" and all(after[i] == found[i] for i in (0, 1, 2, 3, 6, 7))


def test_a_table_without_loras_has_no_columns_for_them(folder: Path, tmp_path: Path) -> None:
    run(write_table(tmp_path / "t.jsonl", 3), tmp_path / "out", output_format="parquet")
    assert "lora" not in pyarrow.parquet.read_schema(tmp_path / "out/part-00000.parquet").names
