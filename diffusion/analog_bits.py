"""Analog bits: integers and categories as real numbers that a continuous diffusion model can carry (2208.04202 section 2.1).

The n bits of an integer, most significant first, become channels of value -scale or scale.
"""

import torch
from torch import Tensor

from diffusion.errors import DiffusionError


def num_bits_for(num_symbols: int) -> int:
    """ceil(log2 K): the bits that tell K symbols apart."""
    if num_symbols < 2:
        raise DiffusionError.explained(
            f"there are {num_symbols} symbols", expected="at least 2", fix="use 256 for bytes or the size of the palette"
        )
    return (num_symbols - 1).bit_length()


def to_bits(symbols: Tensor, num_symbols: int, *, scale: float = 1.0) -> Tensor:
    """int2bit of 2208.04202 algorithm 1, shifted and scaled to {-scale, scale}.

    Args:
        symbols: (B, C, ...) integers in [0, num_symbols).

    Returns:
        (B, C n, ...) float32; the n bits of one channel lie side by side.

    Raises:
        DiffusionError: symbols that are not integers or leave the range.
    """
    if symbols.is_floating_point():
        raise DiffusionError.explained(f"the symbols are {symbols.dtype}", expected="integers", fix="quantise them first")
    if symbols.numel() and not 0 <= int(symbols.min()) <= int(symbols.max()) < num_symbols:
        raise DiffusionError.explained(
            f"the symbols run from {int(symbols.min())} to {int(symbols.max())}",
            expected=f"0 to {num_symbols - 1}",
            fix="check num_symbols",
        )
    bits = (symbols.long().unsqueeze(2) >> _shifts(num_symbols, symbols)) & 1
    return scale * (2.0 * bits - 1).flatten(1, 2)


def from_bits(bits: Tensor, num_symbols: int) -> Tensor:
    """bit2int of 2208.04202 algorithm 2: a bit is set where it is above 0.

    Where K is not a power of two the n bits could also spell integers from K on. Then the K codewords alone are
    compared, and the nearest one is taken: for legal bits the same, and every result is legal.

    Args:
        bits: (B, C n, ...) real numbers, such as a model's estimates.

    Returns:
        (B, C, ...) int64 in [0, num_symbols).

    Raises:
        DiffusionError: the channels are not a multiple of n.
    """
    num_bits = num_bits_for(num_symbols)
    if bits.shape[1] % num_bits:
        raise DiffusionError.explained(
            f"there are {bits.shape[1]} channels of bits", expected=f"a multiple of {num_bits}", fix="check num_symbols"
        )
    grouped = bits.unflatten(1, (-1, num_bits))
    if num_symbols == 2**num_bits:
        return ((grouped > 0).long() << _shifts(num_symbols, bits)).sum(2)
    codewords = to_bits(torch.arange(num_symbols, device=bits.device)[:, None], num_symbols)
    # All codewords are equally long, so that the nearest has the largest inner product.
    return torch.einsum("bcn...,kn->bck...", grouped, codewords.to(bits)).argmax(2)


def _shifts(num_symbols: int, like: Tensor) -> Tensor:
    """(1, 1, n, 1, ...) n - 1 down to 0, for (B, C, n, ...) bits of (B, C, ...) symbols."""
    shifts = torch.arange(num_bits_for(num_symbols) - 1, -1, -1, device=like.device)
    return shifts.reshape(1, 1, -1, *(1,) * (like.ndim - 2))
