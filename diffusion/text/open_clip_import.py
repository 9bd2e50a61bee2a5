"""The first import of open_clip, without what it loads on the way for towers that nobody here builds."""

import importlib
import sys

from diffusion.torchvision_shim import ensure_torchvision_imports

# open_clip imports these where they are installed, does without them where they are not, and needs them for timm's image
# towers and Hugging Face's text towers alone. They cost a second.
UNUSED = ("timm", "transformers")


def ensure_open_clip_imports() -> None:
    """Import open_clip as if `UNUSED` were not installed; others import those afterwards as usual.

    Call it before an import from open_clip. A second call costs a dictionary look-up.
    """
    if "open_clip" in sys.modules:
        return
    ensure_torchvision_imports()
    hidden = [name for name in UNUSED if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # an import of it raises ModuleNotFoundError
    try:
        importlib.import_module("open_clip")
    finally:
        for name in hidden:
            del sys.modules[name]
