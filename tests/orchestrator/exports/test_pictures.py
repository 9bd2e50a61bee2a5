"""PNG text, image grids, the contact sheet and the turntable."""

from __future__ import annotations

import logging
import subprocess

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from jobs.errors import OutputError
from orchestrator.exports import (
    image_grid,
    read_png_metadata,
    write_contact_sheet,
    write_image_grid,
    write_png,
    write_turntable,
)
from orchestrator.exports.contact_sheet import BACKGROUND, contact_sheet
from orchestrator.exports.png_metadata import KEYS
from orchestrator.exports.turntable import turntable_frames
from tests.orchestrator.exports.sample_meshes import tower

PICTURE = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def test_png_keeps_pixels_and_metadata(tmp_path):
    metadata = dict(zip(KEYS, ("ein roter Pilz 🍄, 蘑菇 \n", "7", "ddim", "30", "7.5", "ab12"), strict=True))
    path = write_png(PICTURE, tmp_path / "a.png", metadata)
    assert read_png_metadata(path) == metadata
    np.testing.assert_array_equal(np.asarray(Image.open(path)), PICTURE)


def test_ascii_is_text_and_the_rest_is_utf8(tmp_path):
    data = write_png(PICTURE, tmp_path / "a.png", {"prompt": "größer", "seed": "1"}).read_bytes()
    assert b"tEXtseed\x001" in data and b"iTXtprompt\0" in data and "größer".encode() in data


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=st.text(max_size=200))
def test_any_prompt_survives(tmp_path, prompt):
    path = write_png(PICTURE, tmp_path / "a.png", {"prompt": prompt})
    assert read_png_metadata(path)["prompt"] == prompt.replace("\0", "")


def test_ten_thousand_characters_survive(tmp_path):
    prompt = "🍄" * 10_000
    assert read_png_metadata(write_png(PICTURE, tmp_path / "a.png", {"prompt": prompt}))["prompt"] == prompt


@pytest.mark.parametrize("key", ["", "a" * 80, "é", " lead", "a\nb"])
def test_png_rejects_keys_that_the_format_lacks(tmp_path, key):
    with pytest.raises(ValueError, match="metadata key"):
        write_png(PICTURE, tmp_path / "a.png", {key: "x"})


def test_png_rejects_floats(tmp_path):
    with pytest.raises(ValueError, match="the image is float64"):
        write_png(PICTURE / 255, tmp_path / "a.png")


def test_png_into_a_missing_folder(tmp_path):
    with pytest.raises(OutputError, match="the folder does not exist"):
        write_png(PICTURE, tmp_path / "no" / "a.png")


@pytest.mark.parametrize(("num", "rows", "columns"), [(1, 1, 1), (2, 1, 2), (5, 2, 3), (16, 4, 4), (17, 4, 5)])
def test_grid_is_nearly_square(num, rows, columns):
    page = image_grid(np.zeros((num, 6, 9, 3), np.uint8), padding=2)
    assert page.shape == (rows * 8 + 2, columns * 11 + 2, 3)


def test_grid_puts_each_image_in_its_cell(tmp_path):
    images = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((3, 4, 5, 3), np.uint8) * 50
    page = image_grid(images, padding=1)
    assert page[1, 1, 0] == 0 and page[1, 7, 0] == 50 and page[6, 1, 0] == 100
    assert page[6, 7, 0] == 255 and page[0, 0, 0] == 255
    path = write_image_grid(images, tmp_path / "grid.png", metadata={"seed": "3"})
    assert read_png_metadata(path) == {"seed": "3"}


def test_pictures_of_different_sizes_stand_in_the_middle_of_equal_cells():
    page = image_grid([np.zeros((4, 8, 3), np.uint8), np.full((6, 2, 3), 9, np.uint8)], num_columns=2, padding=1)
    assert page.shape == (8, 19, 3)
    assert (page[2:6, 1:9] == 0).all() and (page[1:7, 13:15] == 9).all()
    assert (page[1, 1:9] == 255).all() and (page[1:7, 10:13] == 255).all()


def test_grid_of_nothing():
    with pytest.raises(ValueError, match=r"shape \(0, 4, 4, 3\)"):
        image_grid(np.zeros((0, 4, 4, 3), np.uint8))


def test_contact_sheet_shows_eight_coloured_views_and_four_white_ones(tmp_path):
    page = contact_sheet(tower(), size=64)
    assert page.shape == (3 * 66 + 2, 4 * 66 + 2, 3)
    cells = [page[2 + r * 66 : 66 + r * 66, 2 + c * 66 : 66 + c * 66].astype(int) for r in range(3) for c in range(4)]
    for cell in cells:
        np.testing.assert_allclose(cell[0, 0], np.array(BACKGROUND) * 255, atol=1)
    red = [(cell[..., 0] - cell[..., 1] > 60).sum() for cell in cells]
    assert red[0] > 0 and red[2] > 0 and max(red[8:]) == 0
    columns = np.nonzero(cells[0][..., 0] - cells[0][..., 1] > 60)[1]
    assert columns.min() > 32  # the knob on the object's own left is on the picture's right, seen from the front
    path = write_contact_sheet(tower(), tmp_path / "preview.png", size=32, metadata={"prompt": "π"})
    assert read_png_metadata(path) == {"prompt": "π"}


def test_turntable_is_h264_that_browsers_play(tmp_path):
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    path = write_turntable(tower(), tmp_path / "turntable.mp4", num_frames=6, size=64)
    assert path.name == "turntable.mp4" and [p.name for p in tmp_path.iterdir()] == ["turntable.mp4"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    run = subprocess.run(command, check=True, capture_output=True)
    assert b"Video: h264" in run.stderr and b"yuv420p" in run.stderr
    frames = np.frombuffer(run.stdout, np.uint8).reshape(6, 64, 64, 3)
    expected = list(turntable_frames(tower(), num_frames=6, size=64))
    assert np.abs(frames[0].astype(int) - expected[0]).mean() < 8


def test_turntable_without_ffmpeg_is_an_animated_webp(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "missing"))
    monkeypatch.setattr("orchestrator.exports.turntable._write_mp4", no_ffmpeg)
    with caplog.at_level(logging.WARNING):
        path = write_turntable(tower(), tmp_path / "turntable.mp4", num_frames=5, size=32)
    assert path == tmp_path / "turntable.webp" and [p.name for p in tmp_path.iterdir()] == ["turntable.webp"]
    assert "No ffmpeg exe could be found" in caplog.text
    with Image.open(path) as film:
        assert film.n_frames == 5 and film.size == (32, 32)


def no_ffmpeg(*_):
    raise RuntimeError("No ffmpeg exe could be found. Install ffmpeg on your system.")


def test_turntable_into_a_missing_folder_is_not_a_missing_ffmpeg(tmp_path):
    with pytest.raises(OutputError, match="the folder does not exist"):
        write_turntable(tower(), tmp_path / "no" / "turntable.mp4", num_frames=2, size=32)


def test_turntable_size_must_be_even(tmp_path):
    with pytest.raises(ValueError, match="size is 33 pixels"):
        write_turntable(tower(), tmp_path / "turntable.mp4", size=33)
