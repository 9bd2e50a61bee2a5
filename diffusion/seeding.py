"""Random streams: every image, view and step draws from its own, found by its name.

A stream is a CPU generator whose whole state is a hash of (seed, *keys). What is drawn depends on nothing else: not on
the batch, the neighbours, the device, the process, or what was drawn before elsewhere.

torch.Generator.manual_seed would not do: the CPU generator (Mersenne Twister) keeps only the lower 32 bits of the seed,
so that among a million images about a hundred pairs would be drawn from the same noise. The state is filled instead.
"""

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from diffusion.errors import DiffusionError

Key = int | str
NoiseSource = Callable[[int], Tensor]

# Layout of the CPU generator's state, unchanged since torch 0.4 kept it for old checkpoints: seed (8 bytes), words left
# in the block (4), seeded flag (4), next word (8), 624 words in 8 bytes each, then the cached normals.
_STATE_BYTES = 5056
_LEFT_AT = 8
_WORDS_AT = 24
_NUM_WORDS = 624


def stream(seed: int, *keys: Key) -> torch.Generator:
    """The random stream of that name, at its beginning.

    Args:
        seed: any integer.
        keys: integers and strings in order, e.g. ("image", 17, "noise"); 1 and "1" are different keys.

    Returns:
        A CPU generator; the same in every process, on every machine.

    Raises:
        DiffusionError: a key that is neither an integer nor a string.
    """
    words = hashlib.shake_256(_name((seed, *keys))).digest(4 * _NUM_WORDS)
    generator = torch.Generator()
    state = generator.get_state()
    if state.numel() != _STATE_BYTES:
        raise RuntimeError(
            f"the CPU generator of torch {torch.__version__} has a state of {state.numel()} bytes; expected "
            f"{_STATE_BYTES}; install the torch version of constraints.txt (its layout is written to directly)"
        )
    state[_WORDS_AT : _WORDS_AT + 8 * _NUM_WORDS].view(torch.int64).copy_(
        torch.frombuffer(bytearray(words), dtype=torch.uint8).view(_NUM_WORDS, 4).long()
        @ torch.tensor([1, 1 << 8, 1 << 16, 1 << 24])
    )
    # One word left: the next draw starts a fresh block from the words above.
    state[_LEFT_AT : _LEFT_AT + 4].view(torch.int32).fill_(1)
    generator.set_state(state)
    return generator


def normal(
    shape: Sequence[int],
    generator: torch.Generator,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal numbers of that shape, drawn in float32 on the CPU and then moved: the same on every device."""
    noise = torch.randn(tuple(shape), generator=generator, dtype=torch.float32)  # noqa: TID251
    return sent(noise.to(dtype), device)


def normal_rows(
    shape: Sequence[int],
    streams: Sequence[torch.Generator],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """(B, *shape): row b is drawn from streams[b], so a row does not know how many there are."""
    return sent(torch.stack([normal(shape, generator, dtype=dtype) for generator in streams]), device)


def uniform(shape: Sequence[int], generator: torch.Generator, *, device: torch.device | str = "cpu") -> Tensor:
    """Uniform float32 numbers in [0, 1) of that shape, drawn on the CPU and then moved."""
    return sent(torch.rand(tuple(shape), generator=generator), device)  # noqa: TID251


def sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on that device, without waiting for what a GPU still computes: CUDA copies from pageable memory at once."""
    return tensor.to(device, non_blocking=tensor.device.type == "cpu" and torch.device(device).type == "cuda")


def step_noise(names: Sequence[Sequence[Key]], shape: Sequence[int]) -> NoiseSource:
    """The noise argument of a stochastic sampler, without state: noise of step i is stream(*name, "step", i).

    Args:
        names: for each item its (seed, *keys).
        shape: of one item, e.g. (C, h, w).

    Returns:
        A function from the step's index to (B, *shape) float32 on the CPU. A run resumed at step i draws what the
        uninterrupted run drew.
    """

    def draw(step: int) -> Tensor:
        return normal_rows(shape, [stream(int(name[0]), *name[1:], "step", step) for name in names])

    return draw


def _name(keys: Sequence[Key]) -> bytes:
    """An unambiguous byte string: each key with its type and length before it."""
    parts = []
    for key in keys:
        if isinstance(key, bool) or not isinstance(key, int | str):
            raise DiffusionError.explained(
                f"the random stream's key {key!r} is a {type(key).__name__}",
                expected="an integer or a string",
                fix="convert it (int(...), str(...))",
                why="the hash must be the same in every process",
            )
        text = str(key).encode()
        parts.append(f"{type(key).__name__}:{len(text)}:".encode() + text)
    return b"dreamkiln-stream-1|" + b"|".join(parts)
