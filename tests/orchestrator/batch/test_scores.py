"""CLIP scores, perceptual hashes and marks beside the pictures of a table, in every format, resumed to the same bytes."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from diffusion.prior import TOYBOX
from diffusion.text.image_text import ImageTextModel
from jobs.errors import InputError, Interrupted
from orchestrator.batch.scores import perceptual_hash
from orchestrator.cli.main import main
from orchestrator.prior.source import scored_by
from tests.orchestrator.batch.batch_fakes import FORMATS, contents, run, spec_of, write_table
from tests.orchestrator.batch.test_batch_jobs import StopAfter, records

NUM_ROWS = 12
CLIP = scored_by(str(TOYBOX / "judge"))


def picture(kind: str, height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width] / np.array([height, width])[:, None, None]
    rgb = {
        "waves": [np.sin(9 * x + 4 * y), np.cos(7 * y), np.sin(5 * x * y)],
        "ramp": [2 * x - 1, 2 * y - 1, 1 - 2 * x],
        "disc": [1 - 2 * ((x - 0.5) ** 2 + (y - 0.4) ** 2 < 0.09)] * 3,
    }[kind]
    return np.round((np.stack(rgb, -1) * 0.5 + 0.5) * 255).astype(np.uint8)


def apart(one: str, other: str) -> int:
    return (int(one, 16) ^ int(other, 16)).bit_count()


@pytest.mark.parametrize(
    ("kind", "height", "width", "expected"),
    [
        ("waves", 64, 64, "9d35e0df60de608a"),
        ("waves", 48, 80, "9d35e0df60de60c8"),
        ("waves", 32, 32, "9534c0df62de60da"),
        ("disc", 64, 64, "e1699687189a9e79"),
        ("disc", 32, 32, "e1699687589aa679"),
    ],
)
def test_the_hash_is_that_of_imagehash(kind: str, height: int, width: int, expected: str) -> None:
    """`imagehash.phash` of these pixels, by the package's version 4.3.2."""
    assert perceptual_hash(picture(kind, height, width)) == expected


def test_near_duplicates_differ_in_few_bits_and_others_in_about_half() -> None:
    def scene(seed: int) -> Image.Image:
        pixels = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
        return Image.fromarray(pixels).resize((96, 96), Image.Resampling.BICUBIC)

    def recompressed(image: Image.Image) -> Image.Image:
        image.save(buffer := io.BytesIO(), format="JPEG", quality=60)
        return Image.open(buffer)

    hashes = [perceptual_hash(np.asarray(scene(seed))) for seed in range(24)]
    near = [
        apart(hashes[seed], perceptual_hash(np.asarray(changed(scene(seed)))))
        for seed in range(24)
        for changed in (recompressed, lambda image: image.resize((160, 120)), lambda image: image.point(lambda v: v * 0.8 + 20))
    ]
    far = [apart(one, other) for i, one in enumerate(hashes) for other in hashes[:i]]
    assert max(near) <= 8 and sum(near) / len(near) < 3
    assert min(far) > 12 and abs(sum(far) / len(far) - 32) < 2  # 64 bits, each as likely the one as the other


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write_table(tmp_path / "t.jsonl", NUM_ROWS, sampler={7: "dimm"}, phash={1: "mine"}, note={1: "ü"})


def scored(table: Path, out: Path, **changes: Any) -> Any:
    return run(table, out, **{**CLIP, "min_clip_score": 0.36, "phash": True, **changes})


@pytest.mark.parametrize("output_format", FORMATS)
def test_figures_stand_beside_each_picture_and_a_resumed_job_has_the_same(
    table: Path, tmp_path: Path, output_format: str
) -> None:
    outcome = scored(table, tmp_path / "out", output_format=output_format)
    found = records(output_format, tmp_path / "out")
    clip = ImageTextModel.read(TOYBOX / "judge")
    kept = []
    for index, (record, png) in found.items():
        if index == 7:  # in parquet alone
            assert record["clip_score"] is record["is_kept"] is record["phash"] is None
            continue
        pixels = np.asarray(Image.open(io.BytesIO(png)))
        expected = clip.score(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 255, record["prompt"])
        assert record["clip_score"] == pytest.approx(expected, abs=6e-5)
        assert record["is_kept"] is (record["clip_score"] >= 0.36)
        assert record["phash"] == perceptual_hash(pixels) and record["table_phash"] == ("mine" if index == 1 else None)
        kept.append(record["is_kept"])
    assert len(kept) == NUM_ROWS - 1 and len(set(kept)) == 2  # otherwise the mark would be no choice
    assert outcome.report["num_not_kept"] == kept.count(False)
    with pytest.raises(Interrupted):
        scored(table, tmp_path / "again", output_format=output_format, display=StopAfter(5))
    scored(table, tmp_path / "again", output_format=output_format)
    assert contents(tmp_path / "again") == contents(tmp_path / "out")
    # Mended rows are drawn beside those that stay, which are scored again from their files.
    write_table(table, NUM_ROWS, phash={1: "mine"}, note={1: "ü"})
    scored(table, tmp_path / "again", output_format=output_format, mode="retry-failed")
    after = records(output_format, tmp_path / "again")
    assert after[7][0]["phash"] and all(after[index] == found[index] for index in found if index != 7)


def test_a_table_that_asks_for_none_keeps_its_own_columns(table: Path, tmp_path: Path) -> None:
    run(table, tmp_path / "out", output_format="parquet")
    names = pyarrow.parquet.read_schema(tmp_path / "out/part-00000.parquet").names
    assert "phash" in names and not {"table_phash", "clip_score", "is_kept"} & set(names)
    plain, _ = spec_of(table)
    asked = [spec_of(table, **changes)[0] for changes in (CLIP, {"phash": True}, {**CLIP, "min_clip_score": 0.0})]
    assert len({spec.fingerprint() for spec in (plain, *asked)}) == 4
    assert "clip_hash" not in json.dumps(json.loads((tmp_path / "out/manifest.json").read_text())["fingerprint"])


def test_another_clip_or_another_mark_is_another_job(table: Path, tmp_path: Path) -> None:
    shutil.copytree(TOYBOX / "judge", tmp_path / "clip")
    own = scored_by(str(tmp_path / "clip"))
    assert own["clip_hash"] == CLIP["clip_hash"]
    scored(table, tmp_path / "out", **own)
    with pytest.raises(InputError, match=r"belongs to another job \(min_clip_score 0\.36, not 0\.2\)"):
        scored(table, tmp_path / "out", **own, min_clip_score=0.2)
    data = bytearray((tmp_path / "clip/clip.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "clip/clip.safetensors").write_bytes(data)
    with pytest.raises(InputError, match=r"The CLIP in .*clip has changed since the job was begun \(sha256 .*, now .*\); put "):
        scored(table, tmp_path / "other", **own)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--min-clip-score", "0.2"], "--min-clip-score marks pictures by their CLIP score; give --clip FOLDER too"),
        (["--clip", str(TOYBOX / "judge"), "--min-clip-score", "20"], "--min-clip-score is 20, but a cosine from -1 to 1"),
        (["--clip", "nowhere"], "nowhere holds no CLIP"),
    ],
)
def test_wrong_options_are_one_sentence(table: Path, capsys, arguments: list[str], words: str) -> None:
    assert main(["images", "--prompts", str(table), *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error


def test_the_options_belong_to_a_table(capsys) -> None:
    for option in (["--phash"], ["--min-clip-score", "0.1"], ["--clip", "x"]):
        assert main(["images", "a cup", *option]) == 2
        assert "it belongs to a table of prompts; give --prompts too" in capsys.readouterr().err
