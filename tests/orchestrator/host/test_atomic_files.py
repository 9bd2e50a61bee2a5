"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from jobs.errors import OutputError
from orchestrator.exports import MESH_WRITERS
from orchestrator.host import atomic
from orchestrator.host.atomic import atomic_path, write_bytes, write_text
from tests.orchestrator.exports.sample_meshes import tower


def test_content_appears_at_the_end_under_the_same_suffix(tmp_path):
    target = tmp_path / "mesh.glb"
    with atomic_path(target) as temporary:
        temporary.write_bytes(b"new")
        assert temporary.suffix == ".glb" and temporary.parent == tmp_path
        assert temporary.name.startswith(atomic.TEMPORARY_PREFIX) and not target.exists()
    assert target.read_bytes() == b"new" and list(tmp_path.iterdir()) == [target]


def test_everybody_may_read_what_safetensors_wrote(tmp_path):
    (tmp_path / "plain").touch()
    with atomic_path(tmp_path / "a.safetensors") as temporary:
        save_file({"a": np.zeros(3)}, temporary)
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path):
    target = write_bytes(tmp_path / "a.bin", b"old")
    with pytest.raises(RuntimeError, match="on purpose"), atomic_path(target) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError("on purpose")
    assert target.read_bytes() == b"old" and list(tmp_path.iterdir()) == [target]


def test_a_keyboard_interrupt_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "a.bin") as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "the disk is full; free some space"),
        (errno.EACCES, "you may not write there"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EIO, "Input/output error"),
    ],
)
@pytest.mark.parametrize("name", MESH_WRITERS)
def test_a_disk_that_says_no(tmp_path, monkeypatch, name, number, reason):
    def refuse(_path):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(atomic, "_flush", refuse)
    with pytest.raises(OutputError, match=reason) as caught:
        MESH_WRITERS[name](tower(), tmp_path / f"mesh.{name}")
    assert caught.value.exit_code == 2 and "mesh." in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's /dev/full")
def test_a_really_full_device(tmp_path):
    with pytest.raises(OutputError, match="the disk is full"), atomic_path(tmp_path / "a.bin"):
        Path("/dev/full").write_bytes(b"x")
    assert not list(tmp_path.iterdir())


def test_missing_folder_file_as_folder_and_folder_in_the_way(tmp_path):
    with pytest.raises(OutputError, match="the folder does not exist; create it"):
        write_text(tmp_path / "no" / "a.txt", "x")
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="a part of the path is a file"):
        write_text(tmp_path / "file" / "a.txt", "x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="a folder of that name is in the way"):
        write_text(tmp_path / "folder", "x")


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_folder(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="you may not write there"):
            write_text(tmp_path / "a.txt", "x")
    finally:
        tmp_path.chmod(0o700)


def test_permissions_follow_the_umask(tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    assert write_text(tmp_path / "a", "ü\n").stat().st_mode == plain.stat().st_mode
    assert (tmp_path / "a").read_bytes() == "ü\n".encode()
