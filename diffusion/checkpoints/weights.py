"""Weight files: safetensors, one or sharded, GGUF, and old pickles, which are read without running what is in them.

What is quantised, GGUF's blocks and fp8 with scales, is dequantised tensor by tensor as it is read.
"""

import errno
import functools
import hashlib
import json
import pickle
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from diffusion.checkpoints.errors import PriorError, making_sense_of, not_read
from diffusion.checkpoints.gguf import read_entries, read_tensor
from diffusion.checkpoints.keymap import KeyMap

Network = TypeVar("Network", bound=nn.Module)

GGUF = ".gguf"
SCALES, NOT_WEIGHTS = ("scale_weight", "weight_scale"), (".scale_input", ".input_scale")
"""Beside an fp8 `NAME.weight` what it is multiplied with, by ComfyUI's older and newer names; and what is for its inputs."""
SCALED_MARK = "scaled_fp8"
PICKLES = (".ckpt", ".bin", ".pt", ".pth")
# In order of preference; the fp16 variants are read where there is nothing else.
_STEM_ENDINGS = (
    ".safetensors.index.json",
    ".safetensors",
    ".fp16.safetensors.index.json",
    ".safetensors.index.fp16.json",
    ".fp16.safetensors",
    ".bin.index.json",
    ".bin",
    ".fp16.bin",
    ".non_ema.safetensors",
    ".non_ema.bin",
)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a prior's folder.

    Raises:
        PriorError: missing, not JSON, or no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PriorError(f"the prior lacks {path.name} in {path.parent}; copy the folder again, with all its files") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise PriorError(f"{path} is not readable JSON ({error}); copy the folder again") from None
    if not isinstance(content, dict):
        raise PriorError(f"{path} holds a {type(content).__name__}; expected values by name; copy the folder again")
    return content


def weight_files(folder: Path, *stems: str) -> list[Path]:
    """The weight files of one part, such as `diffusion_pytorch_model`: one, or the shards that its index names.

    safetensors are preferred to pickles, full precision to fp16, the first of `stems` to the others.

    Raises:
        PriorError: there is none, an index names no shards, or a shard is missing.
    """
    found = next((folder / name for name in candidates(*stems) if (folder / name).exists()), None)
    if found is None:
        files = [folder / f"{stems[0]}.safetensors"]
    elif found.suffix == ".json":
        with making_sense_of(found):
            files = [folder / name for name in sorted(set(read_json(found)["weight_map"].values()))]
    else:
        files = [found]
    for path in files:
        if not path.exists():
            raise PriorError(f"the prior lacks {path.name} in {path.parent}; copy the folder again, with all its files")
    return files


def candidates(*stems: str) -> list[str]:
    """The names that a part's weights, or the index of their shards, may have, in order of preference."""
    return [f"{stem}{ending}" for ending in _STEM_ENDINGS for stem in stems]


class Weights(Mapping[str, Tensor]):
    """The tensors of some weight files by name; those of safetensors are read when they are asked for.

    Args:
        files: safetensors, GGUF or pickles; the tensors of a pickle may lie in its entry "state_dict", others are passed over.

    Raises:
        PriorError: a file is missing, truncated, of another kind, or a pickle with more in it than tensors.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = tuple(files)
        self.metadata: dict[str, str] = {}
        self._readers: dict[str, Callable[[], Tensor]] = {}
        for path in files:
            self._open(path)

    def __getitem__(self, name: str) -> Tensor:
        return self._readers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with a prefix, without it."""
        return {name.removeprefix(prefix): self[name] for name in self if name.startswith(prefix)}

    def _open(self, path: Path) -> None:
        if not path.is_file():
            raise PriorError(f"there is no weight file {path}; check the path")
        if path.suffix == ".safetensors":
            self._open_safetensors(path)
        elif path.suffix == GGUF:
            entries = read_entries(path)
            self._readers |= {name: functools.partial(read_tensor, path, entry) for name, entry in entries.items()}
        elif path.suffix in PICKLES:
            tensors = read_pickle(path)
            tensors = tensors.get("state_dict", tensors)
            self._readers |= {
                name: (lambda tensor=tensor: tensor)  # type: ignore[misc]
                for name, tensor in tensors.items()
                if isinstance(tensor, Tensor)
            }
        else:
            expected = ", ".join((".safetensors", GGUF, *PICKLES))
            raise PriorError(f"{path} is not a weight file by its name; expected one that ends in {expected}")

    def _open_safetensors(self, path: Path) -> None:
        try:
            file = safe_open(path, framework="pt")
            names = list(file.keys())
        except (SafetensorError, OSError, ValueError) as error:
            if _is_pointer(path):
                raise PriorError(
                    f"{path} is a pointer of git-lfs and not the weights themselves; run 'git lfs pull' in its repository, or "
                    "download the file"
                ) from None
            raise PriorError(
                f"{path} ({path.stat().st_size} bytes) is truncated or not a safetensors file ({error}); copy it again"
            ) from None
        self.metadata |= file.metadata() or {}
        scales = {
            f"{module}weight": name
            for name in names
            for ending in SCALES
            if name.endswith(f".{ending}") and f"{(module := name.removesuffix(ending))}weight" in names
        }
        hidden = {SCALED_MARK, *scales.values(), *(name for name in names if name.endswith(NOT_WEIGHTS))}

        def reader(name: str) -> Callable[[], Tensor]:
            if name not in scales:
                return lambda: file.get_tensor(name)
            return lambda: _scaled(file.get_tensor(name), file.get_tensor(scales[name]))

        self._readers |= {name: reader(name) for name in names if name not in hidden}


def _scaled(weight: Tensor, scale: Tensor) -> Tensor:
    """A quantised weight times its scale, one for all of it or one a row, float32."""
    scale = scale.float()
    rows = scale.numel() == len(weight) and scale.numel() > 1
    return weight.float() * (scale.reshape(-1, *(1 for _ in weight.shape[1:])) if rows else scale)


def _is_pointer(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(40).startswith(b"version https://git-lfs")


def read_pickle(path: Path) -> dict[str, Any]:
    """A pickled dictionary of tensors and plain values, read without running anything in it.

    Raises:
        PriorError: it holds code or objects, or is truncated, or is no dictionary.
    """
    try:
        # ParameterDict is how the first textual inversion code stored its vectors.
        with torch.serialization.safe_globals([nn.ParameterDict]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # What was found is a paragraph between torch's advice to read the file all the same.
        paragraphs = [text.strip() for text in str(error).split("\n\n")[1:] if not text.startswith("Check the documentation")]
        found = " ".join(" ".join(paragraphs).split()).rstrip(".") or type(error).__name__
        damaged = "damaged, or " if "Unsupported operand" in found else ""
        raise PriorError(
            f"{path} is {damaged}a pickle with more than tensors in it, and reading that could run code ({found[:200]}); "
            "use the safetensors file of the same model"
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        # In a truncated archive torch seeks to before its beginning, which the system calls an invalid argument.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise not_read(path, error) from None
        reason = str(error).partition("\n")[0]
        raise PriorError(
            f"{path} ({path.stat().st_size} bytes) is truncated or not a PyTorch file ({reason}); copy it again"
        ) from None
    if not isinstance(content, dict):
        raise PriorError(f"{path} holds a {type(content).__name__}; expected tensors by name; use another file")
    return content


def load_weights(files: Sequence[Path]) -> dict[str, Tensor]:
    """All tensors of some weight files, as float32; see `Weights` for what is raised."""
    weights = Weights(files)
    return {name: weights[name].float() for name in weights}


def skeleton(make: Callable[[], Network]) -> Network:
    """A network without values, on the meta device, to be filled."""
    with torch.device("meta"):
        return make()


def fill(
    network: Network,
    layout: Callable[[Iterable[str]], KeyMap],
    tensors: Mapping[str, Tensor],
    source: Path,
    *,
    prefix: str = "",
    dtype: torch.dtype = torch.float32,
) -> Network:
    """Gives a skeleton a file's weights and freezes it.

    Args:
        layout: makes the key map from the network's keys.
        tensors: the file's, without `prefix`. source: named in messages.
        dtype: of all parameters; the tensors are always copied, so the file may change afterwards.

    Raises:
        PriorError: missing, unexpected or mis-shaped keys, or numbers that are not finite.
    """
    like = network.state_dict()
    ours = layout(like).read(tensors, like, source, prefix=prefix)
    for name, tensor in ours.items():
        if not bool(tensor.float().isfinite().all()):
            raise PriorError(
                f"the weights in {source} hold numbers that are not finite, first in {prefix}{name}, as a failed merge leaves "
                "them; copy the file again, or take the models that it was merged from"
            )
    network.load_state_dict({name: tensor.to(dtype, copy=True).contiguous() for name, tensor in ours.items()}, assign=True)
    return network.eval().requires_grad_(False)


def hash_files(files: Sequence[Path]) -> str:
    """sha256 over the names and contents of weight files: two priors with one hash draw the same pictures."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode())
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
