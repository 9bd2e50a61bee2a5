"""GGUF files, in which stable-diffusion.cpp and others keep quantised weights: tensors by name, dequantised when they are read.

The format is ggml's (docs/gguf.md there), versions 2 and 3, little-endian; the block layouts are those of its `ggml-common.h`.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from diffusion.checkpoints.errors import PriorError, not_read

MAGIC, VERSIONS, ALIGNMENT = b"GGUF", (2, 3), 32
MOST_DIMENSIONS = 4
# Kinds of metadata values; a string has its length before it, an array the kind of its items and their number.
NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9
Blocks = np.ndarray
"""Of one tensor, uint8 (number of blocks, bytes of a block)."""


def _f16(columns: Blocks) -> np.ndarray:
    return np.ascontiguousarray(columns).view(np.float16).astype(np.float32)


def _bits(packed: Blocks, run: int, shifts: list[int], mask: int) -> np.ndarray:
    """Unpacks values of a few bits: runs of so many bytes, each read once for every shift; (blocks, values)."""
    parts = packed.reshape(len(packed), -1, 1, run) >> np.array(shifts, np.uint8).reshape(1, 1, -1, 1)
    return (parts & mask).reshape(len(packed), -1)


def _nibbles(packed: Blocks, run: int) -> np.ndarray:
    return _bits(packed, run, [0, 4], 15)


def _fifth_bits(packed: Blocks) -> np.ndarray:
    """32 bits of a little-endian word, the lowest first."""
    return np.unpackbits(packed, axis=1, bitorder="little")


def _q4_0(b: Blocks) -> np.ndarray:
    return _f16(b[:, :2]) * (_nibbles(b[:, 2:], 16).astype(np.float32) - 8)


def _q4_1(b: Blocks) -> np.ndarray:
    return _f16(b[:, :2]) * _nibbles(b[:, 4:], 16).astype(np.float32) + _f16(b[:, 2:4])


def _q5_0(b: Blocks) -> np.ndarray:
    q = _nibbles(b[:, 6:], 16) | _fifth_bits(b[:, 2:6]) << 4
    return _f16(b[:, :2]) * (q.astype(np.float32) - 16)


def _q5_1(b: Blocks) -> np.ndarray:
    q = _nibbles(b[:, 8:], 16) | _fifth_bits(b[:, 4:8]) << 4
    return _f16(b[:, :2]) * q.astype(np.float32) + _f16(b[:, 2:4])


def _q8_0(b: Blocks) -> np.ndarray:
    return _f16(b[:, :2]) * np.ascontiguousarray(b[:, 2:]).view(np.int8).astype(np.float32)


def _by_group(scales: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Each group's scale times its values."""
    groups = q.reshape(len(q), scales.shape[1], -1)
    return (scales[:, :, None] * groups.astype(np.float32)).reshape(len(q), -1)


def _q2_k(b: Blocks) -> np.ndarray:
    scales, q = b[:, :16], _bits(b[:, 16:80], 32, [0, 2, 4, 6], 3)
    d, minimum = _f16(b[:, 80:82]), _f16(b[:, 82:84])
    lowest = np.repeat(minimum * (scales >> 4).astype(np.float32), 16, axis=1)
    return _by_group(d * (scales & 15).astype(np.float32), q) - lowest


def _q3_k(b: Blocks) -> np.ndarray:
    high = _bits(b[:, :32], 32, list(range(8)), 1) ^ 1
    q = _bits(b[:, 32:96], 32, [0, 2, 4, 6], 3).astype(np.int8) - (high << 2).astype(np.int8)
    packed = b[:, 96:108]
    scales = _bits(packed[:, :8], 8, [0, 4], 15) | _bits(packed[:, 8:], 4, [0, 2, 4, 6], 3) << 4
    return _by_group(_f16(b[:, 108:110]) * (scales.astype(np.float32) - 32), q)


def _scales_and_minima(packed: Blocks) -> tuple[np.ndarray, np.ndarray]:
    """Eight of each, of six bits, in twelve bytes: (blocks, 8) both."""
    low, minima, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([low & 63, (rest & 15) | (low >> 2 & 48)], axis=1)
    return scales.astype(np.float32), np.concatenate([minima & 63, (rest >> 4) | (minima >> 2 & 48)], axis=1).astype(np.float32)


def _q4_k(b: Blocks, q: np.ndarray | None = None) -> np.ndarray:
    scales, minima = _scales_and_minima(b[:, 4:16])
    q = _nibbles(b[:, 16:], 32) if q is None else q
    return _by_group(_f16(b[:, :2]) * scales, q) - np.repeat(_f16(b[:, 2:4]) * minima, 32, axis=1)


def _q5_k(b: Blocks) -> np.ndarray:
    return _q4_k(b, _nibbles(b[:, 48:], 32) | _bits(b[:, 16:48], 32, list(range(8)), 1) << 4)


def _q6_k(b: Blocks) -> np.ndarray:
    q = _nibbles(b[:, :128], 64) | _bits(b[:, 128:192], 32, [0, 2, 4, 6], 3) << 4
    scales = np.ascontiguousarray(b[:, 192:208]).view(np.int8).astype(np.float32)
    return _by_group(_f16(b[:, 208:210]) * scales, q.astype(np.int8) - 32)


@dataclass(frozen=True)
class Kind:
    """A block's layout. values, num_bytes: of a block. read: blocks to float32 (blocks, values)."""

    name: str
    values: int
    num_bytes: int
    read: Callable[[Blocks], np.ndarray]


KINDS = {
    0: Kind("F32", 1, 4, lambda b: np.ascontiguousarray(b).view(np.float32)),
    1: Kind("F16", 1, 2, _f16),
    2: Kind("Q4_0", 32, 18, _q4_0),
    3: Kind("Q4_1", 32, 20, _q4_1),
    6: Kind("Q5_0", 32, 22, _q5_0),
    7: Kind("Q5_1", 32, 24, _q5_1),
    8: Kind("Q8_0", 32, 34, _q8_0),
    10: Kind("Q2_K", 256, 84, _q2_k),
    11: Kind("Q3_K", 256, 110, _q3_k),
    12: Kind("Q4_K", 256, 144, _q4_k),
    13: Kind("Q5_K", 256, 176, _q5_k),
    14: Kind("Q6_K", 256, 210, _q6_k),
    30: Kind("BF16", 1, 2, lambda b: (np.ascontiguousarray(b).view(np.uint16).astype(np.uint32) << 16).view(np.float32)),
}


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies. shape: as torch has it, the last dimension the fastest. offset: in the file."""

    shape: tuple[int, ...]
    kind: Kind
    offset: int

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor's blocks in the file."""
        return prod(self.shape) // self.kind.values * self.kind.num_bytes


def read_entries(path: Path) -> dict[str, Entry]:
    """The tensors of a GGUF file by name, from its header.

    Raises:
        PriorError: it is missing, truncated, of another version, or holds a kind of block that is not read.
    """
    try:
        with path.open("rb") as file:
            return _entries(file, path)
    except FileNotFoundError:
        raise PriorError(f"there is no weight file {path}; check the path") from None
    except OSError as error:
        raise not_read(path, error) from None
    except (struct.error, UnicodeDecodeError, MemoryError, OverflowError) as error:
        raise PriorError(
            f"{path} ({path.stat().st_size} bytes) is truncated or not a GGUF file ({error}); copy it again"
        ) from None


def read_tensor(path: Path, entry: Entry) -> Tensor:
    """A tensor, float32. Raises PriorError where the system does not read its bytes."""
    try:
        blocks = np.fromfile(path, np.uint8, entry.num_bytes, offset=entry.offset).reshape(-1, entry.kind.num_bytes)
    except OSError as error:
        raise not_read(path, error) from None
    return torch.from_numpy(entry.kind.read(blocks).reshape(entry.shape).copy())


def _entries(file: IO[bytes], path: Path) -> dict[str, Entry]:
    magic, version, num_tensors, num_values = _unpack(file, "<4sIQQ")
    if magic != MAGIC:
        raise struct.error(f"it begins with {magic!r}")
    if version not in VERSIONS:
        raise PriorError(f"{path} is a GGUF file of version {version}; expected 2 or 3; convert it with a newer program")
    metadata = {}
    for _ in range(num_values):
        name = _string(file)
        metadata[name] = _value(file, *_unpack(file, "<I"))
    alignment = metadata.get("general.alignment", ALIGNMENT)
    places = []
    for _ in range(num_tensors):
        name, (num,) = _string(file), _unpack(file, "<I")
        if num > MOST_DIMENSIONS:
            raise struct.error(f"{name} has {num} dimensions")
        *sizes, number, offset = _unpack(file, f"<{num}QIQ")
        if number not in KINDS:
            known = ", ".join(kind.name for kind in KINDS.values())
            raise PriorError(
                f"{path} holds {name} in blocks of ggml's type {number}; expected one of {known}; take another file"
            )
        places.append((name, tuple(reversed(sizes)), KINDS[number], offset))
    begin = -(-file.tell() // alignment) * alignment
    # Of convolutions whose rows no block divides the writers keep the true shape apart.
    shapes = {name.removeprefix(SHAPE): tuple(value) for name, value in metadata.items() if name.startswith(SHAPE)}
    found = {name: Entry(shapes.get(name, shape), kind, begin + offset) for name, shape, kind, offset in places}
    size = path.stat().st_size
    for name, entry in found.items():
        if entry.offset + entry.num_bytes > size or prod(entry.shape) % entry.kind.values:
            raise struct.error(f"{name} ends behind the file's end")
    return found


SHAPE = "comfy.gguf.orig_shape."


def _unpack(file: IO[bytes], layout: str) -> tuple[Any, ...]:
    return struct.unpack(layout, file.read(struct.calcsize(layout)))


def _string(file: IO[bytes]) -> str:
    (length,) = _unpack(file, "<Q")
    if length > 1 << 24:
        raise struct.error(f"a string of {length} bytes")
    (text,) = _unpack(file, f"<{length}s")
    return text.decode("utf-8")


def _value(file: IO[bytes], kind: int) -> Any:
    if kind == STRING:
        return _string(file)
    if kind == ARRAY:
        inner, num = _unpack(file, "<IQ")
        return [_value(file, inner) for _ in range(num)]
    if kind not in NUMBERS:
        raise struct.error(f"a value of kind {kind}")
    return _unpack(file, NUMBERS[kind])[0]
