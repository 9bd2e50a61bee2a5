"""LoRAs and textual inversions as requests name them, by file and hash; `lora` and `textual_inversion` read them.

Nothing here imports torch.
"""

import hashlib
import math
from dataclasses import dataclass, field
from pathlib import Path

from diffusion.checkpoints.errors import PriorError, not_read
from diffusion.checkpoints.source import with_scale

FOLDER_FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin")
"""The files of a folder that holds a LoRA, as PEFT and diffusers call them."""
BLOCK_BYTES = 1 << 20
MAX_SCALE = 100.0


@dataclass(frozen=True)
class Lora:
    """A LoRA of a request.

    Args:
        file: where it lies, a file or a folder; two of one content are equal wherever they lie.
        sha256: see `lora_hash`. scale: 1 as it was trained, -100 to 100.

    Raises:
        PriorError: a scale or a hash that is none.
    """

    file: str = field(compare=False, metadata={"fingerprint": False})
    sha256: str
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and abs(self.scale) <= MAX_SCALE):
            raise PriorError(
                f"the scale of the LoRA {self.file} is {self.scale:g}; expected -{MAX_SCALE:g} to {MAX_SCALE:g}, 1 as it was "
                "trained; give FILE:SCALE with one of these"
            )
        _check_hash("LoRA", self.file, self.sha256)

    @classmethod
    def named(cls, text: str, folder: Path | None = None) -> "Lora":
        """The LoRA of FILE or FILE:SCALE, its file hashed.

        Args:
            folder: where a relative path begins; the working folder by default.

        Raises:
            PriorError: there is no such file, or the scale is none.
        """
        file, scale = with_scale(text)
        path = (folder or Path()) / Path(file).expanduser()
        return cls(str(path.absolute()), lora_hash(path), scale)

    def __str__(self) -> str:
        return f"{Path(self.file).name}:{self.scale:g}"


@dataclass(frozen=True)
class Embedding:
    """A textual inversion of a request.

    Args:
        file: where it lies; two of one content and one word are equal wherever they lie.
        sha256: of the file.
        word: what prompts call it: the file's name without suffix, or another word, which then `replaces` the file's own.

    Raises:
        PriorError: a word or a hash that is none.
    """

    file: str = field(compare=False, metadata={"fingerprint": False})
    sha256: str
    word: str
    replaces: bool = False

    def __post_init__(self) -> None:
        if not self.word.strip():
            raise PriorError(f"the word of the embedding {self.file} is empty; give FILE or FILE:WORD")
        _check_hash("embedding", self.file, self.sha256)

    @classmethod
    def named(cls, text: str, folder: Path | None = None) -> "Embedding":
        """The embedding of FILE or FILE:WORD, its file hashed.

        Args:
            folder: where a relative path begins; the working folder by default.

        Raises:
            PriorError: there is no such file.
        """
        folder = folder or Path()
        file, _, word = text.rpartition(":")
        if not file or (folder / Path(text).expanduser()).exists():
            file, word = text, ""
        path = folder / Path(file).expanduser()
        return cls(str(path.absolute()), embedding_hash(path), word or path.stem, bool(word))

    def __str__(self) -> str:
        return f"{Path(self.file).name}:{self.word}" if self.replaces else Path(self.file).name


AdapterFile = Lora | Embedding
"""What is put into a prior's networks for one request."""


def lora_file(path: Path) -> Path:
    """The weights of a LoRA that is given as a file or as a folder.

    Raises:
        PriorError: the folder holds none, or several under names of their own.
    """
    if not path.is_dir():
        return path
    named = [path / name for name in FOLDER_FILES if (path / name).exists()]
    found = named[:1] or sorted(path.glob("*.safetensors"))
    if len(found) != 1:
        raise PriorError(
            f"the folder {path} holds {len(found)} files that may be a LoRA; give the file itself, or a folder with one of "
            f"{', '.join(FOLDER_FILES)}"
        )
    return found[0]


def lora_hash(path: Path) -> str:
    """sha256 (hex) of a LoRA's file; of a folder that PEFT wrote, of its configuration after it.

    Raises:
        PriorError: it is missing, cannot be read, or a folder holds several.
    """
    file = lora_file(path)
    beside = file.parent / "adapter_config.json"
    with_settings = file.name == "adapter_model.safetensors" and beside.exists()
    return _hash_of([file, beside] if with_settings else [file], "LoRA", "FILE or FILE:SCALE")


def embedding_hash(path: Path) -> str:
    """sha256 (hex) of a textual inversion's file. Raises PriorError for one that is missing or cannot be read."""
    return _hash_of([path], "embedding", "FILE or FILE:WORD")


def _hash_of(files: list[Path], what: str, form: str) -> str:
    digest = hashlib.sha256()
    for part in files:
        try:
            with part.open("rb") as stream:
                while block := stream.read(BLOCK_BYTES):
                    digest.update(block)
        except FileNotFoundError:
            raise PriorError(f"there is no {what} {part}; give a file as {form}") from None
        except OSError as error:
            raise not_read(part, error) from None
    return digest.hexdigest()


def _check_hash(what: str, file: str, sha256: str) -> None:
    if len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):
        raise PriorError(f"the sha256 of the {what} {file} is {sha256[:80]!r}; expected 64 hexadecimal digits")
