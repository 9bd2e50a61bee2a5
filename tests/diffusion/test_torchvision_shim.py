"""The shim: torchvision imports in a fresh process; nothing else is changed or hidden."""

import subprocess
import sys
from typing import Any

import pytest

from diffusion import torchvision_shim
from diffusion.torchvision_shim import ensure_torchvision_imports


def test_torchvision_imports_in_a_fresh_process_and_a_second_call_does_nothing() -> None:
    code = (
        "from diffusion.torchvision_shim import ensure_torchvision_imports as ensure; ensure(); ensure();"
        "import torchvision.transforms; print(torchvision.__name__)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "torchvision"


def import_fails_with(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Pretend that torchvision was not imported yet and that its import raises."""

    class Finder:
        @staticmethod
        def find_spec(name: str, path: Any = None, target: Any = None) -> None:
            if name == "torchvision":
                raise error

    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])


def test_does_nothing_where_torchvision_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    import_fails_with(monkeypatch, ModuleNotFoundError("hidden", name="torchvision"))
    monkeypatch.setattr(torchvision_shim, "_library", None)
    ensure_torchvision_imports()
    assert torchvision_shim._library is None


@pytest.mark.parametrize("error", [RuntimeError("something else"), ModuleNotFoundError("no PIL", name="PIL")])
def test_other_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    import_fails_with(monkeypatch, error)
    with pytest.raises(type(error), match=str(error)):
        ensure_torchvision_imports()
