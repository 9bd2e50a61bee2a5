"""The listing of `orchestrator/` explains the product: few rooms, few arrows between them, no circle anywhere."""

from __future__ import annotations

import pytest

from tests import rooms


def test_rooms_and_arrows_stay_few(capsys):
    rooms.main()
    assert "13 rooms" in capsys.readouterr().out
    assert len(rooms.arrows()) <= 55


@pytest.mark.parametrize("package", ["nerf3d", "jobs", "orchestrator"])
def test_no_folder_is_crowded(package):
    assert rooms.crowded(package, 15) == {}


@pytest.mark.parametrize("package", rooms.PACKAGES)
def test_no_module_imports_itself_through_others(package):
    assert set(rooms.order(package)) == set(rooms.modules(package))


def test_every_module_of_ours_that_is_imported_exists():
    assert rooms.missing_imports() == set()
