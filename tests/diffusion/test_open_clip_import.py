"""open_clip without the libraries that it loads for other people's towers."""

import subprocess
import sys

CODE = """
import sys
from diffusion.text.open_clip_import import UNUSED, ensure_open_clip_imports
ensure_open_clip_imports()
import open_clip.tokenizer, open_clip.transformer
print("open_clip" in sys.modules, [name for name in UNUSED if name in sys.modules])
"""


def test_neither_timm_nor_transformers_is_loaded_nor_left_blocked() -> None:
    result = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=120)
    assert result.stdout.strip() == "True []", result.stderr
